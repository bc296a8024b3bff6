"""Local files that appear whole or not at all."""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from deepfake_detector.core.errors import ConfigError, NotFoundError, StorageError

_MAY_PASS = {errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.ETIMEDOUT, errno.EMFILE, errno.ENFILE}
TEMPORARY = ".unfinished-"  # a killed writer leaves such files behind; no listing shows them


def temporary_beside(path: Path) -> Path:
    """A new name in the folder of `path`: on the same file system, so that a rename onto `path` is atomic."""
    return path.with_name(f"{TEMPORARY}{secrets.token_hex(8)}")


@contextmanager
def written_whole(path: Path, *, durable: bool = True, create: bool = False) -> Iterator[BinaryIO]:
    """A new binary file that becomes `path` when the block ends, and leaves nothing when it raises.

    Parents are made, and an older file is replaced. durable: the bytes are on disk before the name is, so that a
    marker never outlives a power cut that its data did not; copies that can be fetched again do without. create:
    an older file is FileExistsError instead, whoever races, since link() fails where rename() replaces (it needs
    a file system with hard links). Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(path)
    try:
        with open(temporary, "xb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        (os.link if create else os.replace)(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut, where the file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # EINVAL: this file system does not synchronise folders
            raise
    finally:
        os.close(descriptor)


@contextmanager
def os_errors(path: Path, absent: tuple[type[OSError], ...] = (FileNotFoundError,)) -> Iterator[None]:
    """Raise NotFoundError (for the classes in `absent`), StorageError or ConfigError in place of OSError."""
    try:
        yield
    except absent as error:
        raise NotFoundError(f"{path}: no such file") from error
    except OSError as error:
        kind = StorageError if error.errno in _MAY_PASS else ConfigError
        raise kind(f"{path}: {error.strerror} (errno {error.errno})") from error
