"""Object storage behind one small interface: a local folder and gs:// behave alike.

A storage is rooted at a URI; names inside it are relative, with forward slashes. Writes are whole and atomic:
a reader sees the old object, the new one, or none. `create` and `replace` are for writes where two could race.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import google_crc32c

from deepfake_detector.adapters.files import os_errors, temporary_beside
from deepfake_detector.core.errors import ConfigError, CorruptError, NotFoundError
from deepfake_detector.core.layout import is_object_name
from deepfake_detector.core.markers import StoredFile


@dataclass(frozen=True)
class Entry:
    """One stored object: name relative to the storage's root, and size in bytes."""

    name: str
    size: int


class Storage(Protocol):
    """Raises NotFoundError for an object that is not there and StorageError when storage stays away for 300 s.

    ConfigError: no retry can help: a bucket that does not exist, credentials still refused after 60 s, a name
    that is not relative. CorruptError: bytes that disagree with the store's own checksum.
    """

    uri: str

    def read(self, name: str) -> bytes:
        """The whole object."""

    def write(self, name: str, data: bytes) -> None:
        """Create or replace the object, atomically."""

    def create(self, name: str, data: bytes) -> bool:
        """Create the object; False, and nothing written, when it exists already with other bytes.

        A create that finds exactly its own bytes is a success: a retry after a lost answer looks like that.
        """

    def version(self, name: str) -> int:
        """A number that every write of the object changes, whatever its bytes; 0 where there is no object."""

    def replace(self, name: str, data: bytes, version: int) -> bool:
        """Write the object; False, and nothing written, when by now its version is another one, and its bytes, too.

        To change what was read: ask for the version, then read. `create` is the same with version 0.
        """

    def exists(self, name: str) -> bool: ...

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Objects whose names start with `prefix`, sorted by name."""

    def checksums(self, prefix: str = "") -> Iterator[StoredFile]:
        """As `list`, with CRC-32C: the bucket's own record of it, or that of a folder's files, all of them read."""

    def upload(self, path: Path, name: str) -> None:
        """Store a local file under `name`, atomically."""

    def download(self, name: str, path: Path) -> None:
        """Fetch an object into a local file, checked against the store's checksum; parents are made."""

    def delete(self, name: str) -> None:
        """Remove the object; nothing happens when it is not there."""


def open_object(uri: str) -> tuple[Storage, str]:
    """The storage that holds one object, and its name there; uri: a file's path or gs://bucket/name."""
    folder, slash, name = uri.rpartition("/")
    return open_storage(folder or slash or "."), name


def checked_name(name: str) -> str:
    """`name` itself; raises ConfigError unless it is a relative path that stays inside its root."""
    if not is_object_name(name):
        raise ConfigError(f"{name!r}: expected a relative object name without empty, '.' or '..' parts")
    return name


def open_storage(uri: str, *, patient: bool = False) -> Storage:
    """The storage rooted at a folder or at gs://bucket/prefix.

    Opening does no input or output. gs:// honours STORAGE_EMULATOR_HOST. patient: for a process of a run, whose command
    has found the bucket: one that does not exist may be away, and is a wrong setting only when it stays away.
    Raises ConfigError for another scheme.
    """
    if uri.startswith("gs://"):
        from deepfake_detector.adapters.storage_gcs import GcsStorage

        return GcsStorage(uri, patient=patient)
    if not uri or re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", uri):
        raise ConfigError(f"{uri!r}: expected a folder or gs://bucket/prefix")
    from deepfake_detector.adapters.storage_local import LocalStorage

    return LocalStorage(uri)


def crc32c_of(content: bytes | Path) -> str:
    """CRC-32C (Castagnoli, RFC 3720 appendix B.4) of bytes or of a file, as 8 hex digits. Raises OSError."""
    checksum = google_crc32c.Checksum()
    if isinstance(content, bytes):
        checksum.update(content)
    else:
        with open(content, "rb") as file:
            while block := file.read(1 << 20):
                checksum.update(block)
    return checksum.digest().hex()


def commit_file(storage: Storage, path: Path, name: str) -> StoredFile:
    """Upload a local file and return what its marker says of it."""
    if not path.is_file():
        raise NotFoundError(f"{path}: expected a file to store as {storage.uri}/{name}")
    with os_errors(path):
        stored = stored_as(path, name)
    storage.upload(path, name)
    return stored


def stored_as(path: Path, name: str) -> StoredFile:
    """What a marker says of a local file that is stored under `name`. Raises OSError."""
    return StoredFile(name=name, size=path.stat().st_size, crc32c=crc32c_of(path))


def commit_bytes(storage: Storage, data: bytes, name: str) -> StoredFile:
    """Write an object and return what its marker says of it."""
    storage.write(name, data)
    return StoredFile(name=name, size=len(data), crc32c=crc32c_of(data))


def is_copy(path: Path, stored: StoredFile) -> bool:
    """Whether a local file holds exactly the committed bytes (size and CRC-32C)."""
    return path.is_file() and path.stat().st_size == stored.size and crc32c_of(path) == stored.crc32c


def fetch_file(storage: Storage, stored: StoredFile, to: Path) -> None:
    """Download a committed object to `to`; nothing is downloaded when `to` holds its bytes already.

    `to` only ever appears whole and verified. Raises CorruptError when the object is not what was committed.
    """
    with os_errors(to):
        if is_copy(to, stored):
            return
        temporary = temporary_beside(to)
        try:
            storage.download(stored.name, temporary)
            _verify(storage, stored, temporary.stat().st_size, crc32c_of(temporary))
            temporary.replace(to)
        finally:
            temporary.unlink(missing_ok=True)


def fetch_bytes(storage: Storage, stored: StoredFile) -> bytes:
    """The bytes of a committed object. Raises CorruptError when they are not what was committed."""
    data = storage.read(stored.name)
    _verify(storage, stored, len(data), crc32c_of(data))
    return data


def _verify(storage: Storage, stored: StoredFile, size: int, crc32c: str) -> None:
    if (size, crc32c) != (stored.size, stored.crc32c):
        raise CorruptError(
            f"{storage.uri}/{stored.name}: {size} bytes with crc32c {crc32c}: "
            f"expected {stored.size} bytes with crc32c {stored.crc32c}, as its marker says"
        )
