"""Object storage behind one small interface: a local folder and gs:// behave alike.

A storage is rooted at a URI; names inside it are relative, with forward slashes. Writes are whole and atomic:
a reader sees the old object, the new one, or none. `create` is for writes where two could race.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol


@dataclass(frozen=True)
class Entry:
    """One stored object: name relative to the storage's root, and size in bytes."""

    name: str
    size: int


class Storage(Protocol):
    """Raises NotFoundError for what is not there and StorageError when storage stays away for 300 s."""

    uri: str

    def read(self, name: str) -> bytes:
        """The whole object."""

    def write(self, name: str, data: bytes) -> None:
        """Create or replace the object, atomically."""

    def create(self, name: str, data: bytes) -> bool:
        """Create the object; False, and nothing written, when it exists already with other bytes.

        A create that finds exactly its own bytes is a success: a retry after a lost answer looks like that.
        """

    def exists(self, name: str) -> bool: ...

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Objects whose names start with `prefix`, sorted by name."""

    def upload(self, path: Path, name: str) -> None:
        """Store a local file under `name`, atomically."""

    def download(self, name: str, path: Path) -> None:
        """Fetch an object into a local file, checked against the store's checksum; parents are made."""

    def delete(self, name: str) -> None:
        """Remove the object; nothing happens when it is not there."""


def open_storage(uri: str) -> Storage:
    """The storage rooted at a folder or at gs://bucket/prefix.

    Opening does no input or output. gs:// honours STORAGE_EMULATOR_HOST. Raises ConfigError for another scheme.
    """
    raise NotImplementedError
