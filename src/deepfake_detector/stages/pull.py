"""Bring a run's exported model home: verified, and never half of one under the name asked for."""

from __future__ import annotations

import shutil
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from deepfake_detector.adapters.files import full_disk, require_room
from deepfake_detector.adapters.storage import Storage, checked_name, fetch_file, is_copy, open_storage
from deepfake_detector.core import layout
from deepfake_detector.core.errors import ConfigError, CorruptError, NotFoundError
from deepfake_detector.core.markers import DetectorManifest, StoredFile, decode

_MANIFEST = PurePosixPath(layout.DETECTOR).name


def pull(run: str, to: Path) -> DetectorManifest:
    """Copy the exported model of a run (a folder or gs:// URI) into the folder `to`, with its detector.json.

    Files that `to` holds already are not downloaded again. A model is assembled beside `to` and takes its place
    whole; an interrupted pull goes on where it ended. An older model in `to` is replaced, anything else is not.
    Raises NotFoundError when the run has no model yet, naming the stage that is missing; ConfigError when `to`
    holds something else than a model; CorruptError when the run's files are not what its marker says; StorageError
    when there is no room for it.
    """
    storage = open_storage(run)
    data = _manifest_bytes(storage)
    manifest = decode(DetectorManifest, data, f"{storage.uri}/{layout.DETECTOR}")
    files = {_relative(stored, storage.uri): stored for stored in manifest.files}
    to = to.resolve()
    old = _old_model(to)
    if old == data and all(is_copy(to / name, stored) for name, stored in files.items()):
        return manifest
    try:
        _assemble(storage, files, data, to)
    except OSError as error:
        if full := full_disk(error):
            raise full from error
        raise ConfigError(f"{to}: {error.strerror}: expected a folder that can be written") from error
    return manifest


def _manifest_bytes(storage: Storage) -> bytes:
    try:
        return storage.read(layout.DETECTOR)
    except NotFoundError as error:
        if storage.exists(layout.TRAINED):
            missing = "export has not finished"
        elif storage.exists(layout.RECORDS_SUMMARY):
            missing = "train has not finished"
        elif next(storage.list(), None) is not None:
            missing = "preprocess and train have not finished"
        else:
            missing = "there is no run"
        raise NotFoundError(f"{storage.uri}: expected an exported model ({layout.DETECTOR}), but {missing}") from error


def _relative(stored: StoredFile, where: str) -> str:
    """The file's name inside the model's folder."""
    name = stored.name.removeprefix(layout.MODEL)
    try:
        if name != stored.name and name != _MANIFEST:
            return checked_name(name)
    except ConfigError:
        pass  # refused below, as what it is here: a bad manifest
    raise CorruptError(f"{where}/{layout.DETECTOR}: {stored.name!r}: expected a file below {layout.MODEL}")


def _old_model(to: Path) -> bytes | None:
    """The manifest of the model in `to`; None when there is nothing. Raises ConfigError for anything else."""
    if not to.exists():
        return None
    if not to.is_dir():
        raise ConfigError(f"{to}: is a file: expected a folder for the model")
    if not (to / _MANIFEST).is_file():
        if (other := next((path for path in to.rglob("*") if not path.is_dir()), None)) is None:
            return None
        raise ConfigError(f"{to}: holds {other.relative_to(to)}: expected a new or empty folder, or a pulled model")
    data = (to / _MANIFEST).read_bytes()
    known = {_relative(stored, str(to)) for stored in decode(DetectorManifest, data, str(to / _MANIFEST)).files}
    present = {path.relative_to(to).as_posix() for path in to.rglob("*") if not path.is_dir()}
    if strange := present - known - {_MANIFEST}:
        raise ConfigError(f"{to}: holds {min(strange)} beside a model: expected nothing else there")
    return data


def _assemble(storage: Storage, files: dict[str, StoredFile], manifest: bytes, to: Path) -> None:
    """Gather the model beside `to`, manifest last, and let it take the place of `to`."""
    incoming = to.with_name(f".{to.name}.incoming")  # one name, so that the next pull goes on with it
    outgoing = to.with_name(f".{to.name}.outgoing")
    size = sum(stored.size for stored in files.values())
    require_room(to.parent, size - _present(incoming), f"the model of {storage.uri}")
    with tqdm(total=size, desc="pull", unit="B", unit_scale=True, disable=None) as bar:
        for name, stored in files.items():
            target = incoming / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if is_copy(to / name, stored):
                shutil.copyfile(to / name, target)
            fetch_file(storage, stored, target)
            bar.update(stored.size)
    for path in incoming.rglob("*"):  # of an interrupted pull of another model
        if path.is_file() and path.relative_to(incoming).as_posix() not in files:
            path.unlink()
    incoming.mkdir(parents=True, exist_ok=True)
    (incoming / _MANIFEST).write_bytes(manifest)
    shutil.rmtree(outgoing, ignore_errors=True)
    if to.exists():
        to.rename(outgoing)
    incoming.rename(to)
    shutil.rmtree(outgoing, ignore_errors=True)


def _present(folder: Path) -> int:
    """Bytes of the files in a folder, 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
