"""Local files that appear whole or not at all, and the room for them."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from deepfake_detector.core.errors import ConfigError, NotFoundError, StorageError

_FULL = (errno.ENOSPC, errno.EDQUOT)
# What the same call would meet again. All else may pass: a lack of memory or of descriptors, a network file system or
# a FUSE process that is away, a disk in trouble, of which a library may tell in words alone.
_PERMANENT = {
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EFBIG,
    errno.EINVAL,
    errno.ENOSYS,  # hard links on an older kernel's FUSE
    errno.ENOTSUP,
}
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


def require_room(folder: Path, need: int, purpose: str) -> None:
    """Raises StorageError unless `need` bytes are free on the file system of `folder`, which need not exist yet.

    What others write meanwhile, and a limit that only the kubelet watches (emptyDir.sizeLimit), are not seen.
    """
    place = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    with os_errors(place):
        free = shutil.disk_usage(place).free
    if free < need:
        raise StorageError(f"{folder}: {_size(free)} free: expected {_size(need)} for {purpose}")


def require_readable(path: Path) -> None:
    """Read a file through. Raises StorageError where a disk, a mount or the machine is in trouble.

    One that is gone, or not for us to read, is none of that.
    """
    with suppress(NotFoundError, ConfigError), os_errors(path), open(path, "rb") as file:
        while file.read(1 << 20):
            pass


def full_disk(error: BaseException) -> StorageError | None:
    """What to tell where an error is that of a full disk or quota, or was raised in place of one; else None.

    TensorFlow makes a ResourceExhaustedError or an UnknownError of it, with the system's words and the file in its
    message; other libraries raise the OSError.
    """
    cause: BaseException | None = error
    while cause is not None:
        words = [os.strerror(number) for number in _FULL]
        if (isinstance(cause, OSError) and cause.errno in _FULL) or any(each in str(cause) for each in words):
            line = " ".join(str(cause).split())
            return StorageError(f"the disk is full: expected room for what is written ({line})")
        cause = cause.__cause__ or cause.__context__
    return None


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"


@contextmanager
def os_errors(path: Path, absent: tuple[type[OSError], ...] = (FileNotFoundError,)) -> Iterator[None]:
    """For OSError raise NotFoundError (of the classes in `absent`), ConfigError, or StorageError where it may pass."""
    try:
        yield
    except absent as error:
        raise NotFoundError(f"{path}: no such file") from error
    except OSError as error:
        kind = ConfigError if error.errno in _PERMANENT else StorageError
        said = " ".join(str(error).split()) if error.errno is None else f"{error.strerror} (errno {error.errno})"
        raise kind(f"{path}: {said}") from error
