"""A local data set into storage: in parallel, verified, and only what is not there yet."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.pool import ThreadPool
from pathlib import Path

from tqdm import tqdm

from deepfake_detector.adapters.files import TEMPORARY, os_errors
from deepfake_detector.adapters.storage import Storage, crc32c_of, open_storage
from deepfake_detector.core.errors import ConfigError, DataError
from deepfake_detector.core.layout import is_object_name
from deepfake_detector.core.markers import StoredFile

THREADS = 8  # a request waits for the network most of its time
LONGEST_NAME = 1024  # bytes of UTF-8: cloud.google.com/storage/docs/objects#naming


@dataclass(frozen=True)
class UploadReport:
    """to: where the files are now; replaced: those among the sent ones that took the place of other bytes."""

    to: str
    files: int
    bytes: int
    skipped: int  # files that were there already, with the same size and CRC-32C
    skipped_bytes: int
    replaced: int


@dataclass(frozen=True)
class _File:
    path: Path
    name: str  # below the storage's root
    size: int


@dataclass(frozen=True)
class _Sent:
    file: _File
    skipped: bool
    replaced: bool


def upload(folder: Path, to: str, *, threads: int = THREADS) -> UploadReport:
    """Copy every file below `folder` into the folder or gs://bucket/prefix `to`, under the same relative names.

    A file of which `to` holds the same size and CRC-32C is not sent, so that an interrupted upload goes on where it
    ended and a second one sends nothing; an object with other bytes is replaced. Links are followed. Sources are
    only read, and nothing in `to` is deleted. Raises ConfigError and DataError before anything is sent: no such
    folder, `to` inside it, no files, a name that object storage can't hold, a link to nothing or to a folder that
    it is in, something that is no file. Later: the errors of Storage.
    """
    root = folder.resolve()
    if not root.is_dir():
        raise ConfigError(f"{folder}: expected a folder with videos")
    target = open_storage(to)
    _refuse_own_target(folder, root, target)
    files = list(_files(root))
    if not files:
        raise DataError(f"{folder}: holds no files: expected a folder with videos")
    _refuse_names(target.uri, files)
    there = {stored.name: stored for stored in target.checksums()}
    return _report(target.uri, _send(files, target, there, threads))


def to_text(report: UploadReport) -> str:
    sent = report.files - report.skipped
    size = report.bytes - report.skipped_bytes
    lines = [
        f"{report.to}: {report.files} files, {report.bytes / 1e6:.1f} MB, checksums verified",
        f"  sent {sent} files, {size / 1e6:.1f} MB; {report.skipped} were there already",
    ]
    if report.replaced:
        lines.append(f"  {report.replaced} of those sent took the place of other bytes")
    return "\n".join(lines)


def _send(files: list[_File], target: Storage, there: dict[str, StoredFile], threads: int) -> list[_Sent]:
    def send(file: _File) -> _Sent:
        stored = there.get(file.name)
        if stored is not None and stored.size == file.size:
            with os_errors(file.path):
                if crc32c_of(file.path) == stored.crc32c:
                    return _Sent(file, skipped=True, replaced=False)
        target.upload(file.path, file.name)
        return _Sent(file, skipped=False, replaced=stored is not None)

    sent = []
    total = sum(file.size for file in files)
    # A ThreadPool's threads are daemons: Ctrl-C does not wait for the large files that are on their way.
    with (
        ThreadPool(threads) as pool,
        tqdm(total=total, desc="upload", unit="B", unit_scale=True, disable=None) as bar,
    ):
        for done in pool.imap_unordered(send, files):
            sent.append(done)
            bar.update(done.file.size)
            bar.set_postfix_str(f"{len(sent)} of {len(files)} files", refresh=False)
    return sent


def _report(to: str, sent: list[_Sent]) -> UploadReport:
    return UploadReport(
        to=to,
        files=len(sent),
        bytes=sum(each.file.size for each in sent),
        skipped=sum(each.skipped for each in sent),
        skipped_bytes=sum(each.file.size for each in sent if each.skipped),
        replaced=sum(each.replaced for each in sent),
    )


def _files(folder: Path, name: str = "", above: tuple[tuple[int, int], ...] = ()) -> Iterator[_File]:
    """Files below a folder, by name. above: device and inode of the folders on the way, against link loops."""
    with os_errors(folder):
        own = folder.stat()
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    identity = (own.st_dev, own.st_ino)
    if identity in above:
        raise DataError(f"{folder}: a link to a folder that it is in: expected files and folders")
    for entry in entries:
        if entry.name.startswith(TEMPORARY):
            continue
        path = folder / entry.name
        if entry.is_symlink() and not path.exists():
            raise DataError(f"{path}: a link to {os.readlink(path)}, which is not there: expected a file or folder")
        with os_errors(path):
            status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            yield from _files(path, f"{name}{entry.name}/", (*above, identity))
        elif stat.S_ISREG(status.st_mode):
            yield _File(path, f"{name}{entry.name}", status.st_size)
        else:
            raise DataError(f"{path}: neither a file nor a folder: expected nothing else to upload")


def _refuse_own_target(folder: Path, root: Path, target: Storage) -> None:
    if not target.uri.startswith("gs://") and Path(target.uri).resolve().is_relative_to(root):
        raise ConfigError(f"{target.uri}: is in {folder}: expected a place outside the folder that is uploaded")


def _refuse_names(uri: str, files: list[_File]) -> None:
    """The whole object name counts, with the prefix of `uri`."""
    bad = [(file, reason) for file in files if (reason := _why_no_name(uri, file.name))]
    if not bad:
        return
    file, reason = bad[0]
    more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    raise DataError(f"{os.fsencode(file.path)!r}: {reason}, which object storage can't hold{more}: rename it")


def _why_no_name(uri: str, name: str) -> str:
    """What is wrong with an object's name; empty for one that Google Cloud Storage holds."""
    prefix = uri.removeprefix("gs://").partition("/")[2] if uri.startswith("gs://") else ""
    full = f"{prefix}/{name}" if prefix else name
    try:
        encoded = full.encode()
    except UnicodeEncodeError:
        return "a name that is not UTF-8"
    if "\r" in full or "\n" in full:
        return "a name with a line break"
    if len(encoded) > LONGEST_NAME:
        return f"a name of {len(encoded)} bytes (at most {LONGEST_NAME})"
    if not is_object_name(name) or full.startswith(".well-known/acme-challenge/"):
        return "a reserved name"
    return ""
