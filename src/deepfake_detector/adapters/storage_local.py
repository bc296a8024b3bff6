"""Storage in a local folder."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from deepfake_detector.adapters.files import TEMPORARY, os_errors, require_room, written_whole
from deepfake_detector.adapters.storage import Entry, checked_name, crc32c_of
from deepfake_detector.core.errors import ConfigError, DataError, NotFoundError, StorageError
from deepfake_detector.core.markers import StoredFile

_CREATE_ROUNDS = 3  # more means that somebody else creates and deletes the same name all the time


class LocalStorage:
    """`adapters.storage.Storage` over a folder, which need not exist before the first write.

    `create` needs a file system with hard links. Links to folders are followed, as data sets are often linked.
    """

    def __init__(self, folder: str | Path) -> None:
        self.uri = os.path.abspath(folder)
        self._root = Path(self.uri)

    def read(self, name: str) -> bytes:
        path = self._path(name)
        with _reading(path):
            return path.read_bytes()

    def write(self, name: str, data: bytes) -> None:
        path = self._path(name)
        with os_errors(path), written_whole(path) as file:
            file.write(data)

    def create(self, name: str, data: bytes) -> bool:
        path = self._path(name)
        for _ in range(_CREATE_ROUNDS):
            with os_errors(path):
                if not path.is_file() and _create(path, data):
                    return True
            with suppress(NotFoundError):  # deleted since: another round
                return self.read(name) == data
        raise StorageError(f"{path}: expected a file that is there or not (it came and went {_CREATE_ROUNDS} times)")

    def version(self, name: str) -> int:
        path = self._path(name)
        with os_errors(path):
            return _version(path)

    def replace(self, name: str, data: bytes, version: int) -> bool:
        path = self._path(name)
        with os_errors(path), _locked(path.parent):
            if _version(path) == version:
                with written_whole(path) as file:
                    file.write(data)
                return True
            return path.is_file() and path.read_bytes() == data

    def exists(self, name: str) -> bool:
        path = self._path(name)
        with os_errors(path):
            return path.is_file()

    def list(self, prefix: str = "") -> Iterator[Entry]:
        folder, _, _ = prefix.rpartition("/")
        base = self._path(folder) if folder else self._root
        with os_errors(base):
            if self._root.exists() and not self._root.is_dir():
                raise ConfigError(f"{self.uri}: expected a folder")
            yield from sorted(_walk(base, f"{folder}/" if folder else "", prefix), key=lambda entry: entry.name)

    def checksums(self, prefix: str = "") -> Iterator[StoredFile]:
        for entry in self.list(prefix):
            path = self._path(entry.name)
            with suppress(NotFoundError), _reading(path):  # deleted since
                yield StoredFile(name=entry.name, size=entry.size, crc32c=crc32c_of(path))

    def upload(self, path: Path, name: str) -> None:
        target = self._path(name)
        with _reading(path), open(path, "rb") as source, os_errors(target), written_whole(target) as file:
            shutil.copyfileobj(source, file, 1 << 20)

    def download(self, name: str, path: Path) -> None:
        source_path = self._path(name)
        with (
            _reading(source_path),
            open(source_path, "rb") as source,
            os_errors(path),
            written_whole(path, durable=False) as file,
        ):
            require_room(path.parent, os.fstat(source.fileno()).st_size, f"a copy of {source_path}")
            shutil.copyfileobj(source, file, 1 << 20)

    def delete(self, name: str) -> None:
        path = self._path(name)
        with suppress(NotFoundError), _reading(path):
            path.unlink()

    def _path(self, name: str) -> Path:
        return self._root / checked_name(name)


def _version(path: Path) -> int:
    """Each write makes a new file: its inode differs from that of the one it replaces, and its time from older ones."""
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return 0
    return status.st_mtime_ns << 64 | status.st_ino if stat.S_ISREG(status.st_mode) else 0


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Keep `replace` of other processes out of the folder, which is made; other writes do not ask."""
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _create(path: Path, data: bytes) -> bool:
    try:
        with written_whole(path, create=True) as file:
            file.write(data)
    except FileExistsError:
        if path.is_file():
            return False
        raise  # a folder has the name, or a file that of a parent
    return True


def _walk(folder: Path, name: str, prefix: str, above: tuple[tuple[int, int], ...] = ()) -> Iterator[Entry]:
    """Files whose names start with `prefix`. above: device and inode of the folders on the way, against link loops."""
    try:
        own = folder.stat()
        entries = list(os.scandir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    identity = (own.st_dev, own.st_ino)
    if identity in above:
        return
    for entry in entries:
        full = name + entry.name
        if entry.name.startswith(TEMPORARY) or not full.startswith(prefix):
            continue
        try:
            status = entry.stat()
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ELOOP):  # deleted since, or a link to nothing
                continue
            raise
        if stat.S_ISREG(status.st_mode):
            yield Entry(_utf8(full, folder), status.st_size)
        elif stat.S_ISDIR(status.st_mode):
            yield from _walk(folder / entry.name, f"{full}/", prefix, (*above, identity))


def _utf8(name: str, folder: Path) -> str:
    try:
        name.encode()
    except UnicodeEncodeError:
        raise DataError(f"{os.fsencode(name)!r}: expected a file name in UTF-8 (in {folder})") from None
    return name


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """As `files.os_errors`; a folder, or a path below a file, is no object."""
    with os_errors(path, (FileNotFoundError, NotADirectoryError, IsADirectoryError)):
        yield
