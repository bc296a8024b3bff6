"""What a pod of the image sees of it, as JSON: run as `python -c` in there, so nothing but the standard library."""

import csv
import importlib.metadata
import importlib.util
import json
import os
import stat
from collections.abc import Iterator

BLOCK = 512  # bytes, of a tar archive
OWN = "deepfake-detector"
ABSENT = ("kubernetes", "yaml", "skimage", "demo", "bench", "tests")


def mounts() -> set[str]:
    """Where other file systems begin: /proc, volumes, /etc/hosts and the like are no part of the image."""
    with open("/proc/self/mountinfo") as file:
        return {line.split()[4] for line in file} - {"/"}


def entries(closed: list[str]) -> Iterator[os.stat_result]:
    """Everything in the root file system, whose entries are the image's: a pod writes nothing there.

    closed: takes the folders that may not be read.
    """
    elsewhere = mounts()
    waiting = ["/"]
    while waiting:
        folder = waiting.pop()
        try:
            found = sorted(os.scandir(folder), key=lambda entry: entry.name)
        except PermissionError:
            closed.append(folder)
            continue
        for entry in found:
            if entry.path not in elsewhere:
                yield entry.stat(follow_symlinks=False)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(entry.path)


def measure() -> dict[str, object]:
    """content: bytes in files; archive: bytes of one uncompressed tar of all of it, as an image's layer would be."""
    files = content = archive = 0
    closed: list[str] = []
    seen: set[tuple[int, int]] = set()
    for about in entries(closed):
        archive += BLOCK
        inode = (about.st_dev, about.st_ino)
        if stat.S_ISREG(about.st_mode) and not (about.st_nlink > 1 and inode in seen):
            seen.add(inode)
            files += 1
            content += about.st_size
            archive += -(-about.st_size // BLOCK) * BLOCK
    return {"files": files, "content": content, "archive": archive, "closed": closed}


def missing(package: importlib.metadata.Distribution) -> list[str]:
    """The files that the package's wheel had and that are not there."""
    rows = csv.reader((package.read_text("RECORD") or "").splitlines())
    return [row[0] for row in rows if row and not os.path.exists(package.locate_file(row[0]))]


packages = {package.metadata["Name"]: package for package in importlib.metadata.distributions()}
found = {
    "packages": sorted(packages),
    # pip's --target has moved our own scripts since it wrote their names.
    "incomplete": {name: gone for name, package in packages.items() if name != OWN and (gone := missing(package))},
    "importable": [name for name in ABSENT if importlib.util.find_spec(name)],
    **measure(),
}
print(json.dumps(found))
