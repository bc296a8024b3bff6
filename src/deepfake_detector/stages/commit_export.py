"""An export's files become RUN/model/ and RUN/report/, whole ones of one export, whoever else exports at the same time.

Two exports of one run agree in weights, calibration and metrics, but not in the bytes of saved_model.pb and of Keras'
descriptions, and object storage knows no rename: were both to write under the final names, detector.json could commit
one's checksums over the other's files. So each stages its files under a name of its own, one manifest is chosen by a
create-only write, and all, the others too, put the chosen one's files under the final names. Whoever dies on the way,
the next one to come finishes the same.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path

from deepfake_detector.adapters.files import os_errors
from deepfake_detector.adapters.storage import Storage, fetch_file
from deepfake_detector.core import layout
from deepfake_detector.core.errors import CorruptError, NotFoundError
from deepfake_detector.core.markers import DetectorManifest, decode

log = logging.getLogger(__name__)


def commit_export(run: Storage, folder: Path, manifest: DetectorManifest, scratch: Path) -> DetectorManifest:
    """Publish the export in `folder` (model/ and report/), or the one that was chosen before it; returns its marker.

    manifest: of the files in `folder`. What is published under layout.DETECTOR agrees with the files beside it at
    any moment. scratch: for the files of another's export. Raises StorageError, OSError.
    """
    own = manifest.encode()
    choice = layout.export_choice(manifest.fingerprint)
    for name, path in _files(folder):
        run.upload(path, _staged(own) + name)
    run.create(choice, own)
    while (published := _published(run)) is None:
        version = run.version(choice)
        try:
            chosen = run.read(choice)
            source = folder if chosen == own else _fetch(run, choice, chosen, scratch / "chosen")
        except (NotFoundError, CorruptError) as error:
            # Published and tidied up since, or lost: somebody removed a model to have it made anew, for example.
            if not run.exists(layout.DETECTOR):
                log.warning("an export that was chosen is not there any more (%s): this one takes its place", error)
                run.replace(choice, own, version)
            continue
        if source != folder:
            log.warning("another export of this run was first: its files are published, not these")
        for name, path in _files(source):
            run.upload(path, name)
        run.write(layout.DETECTOR, chosen)
    tidy_up(run)
    return published


def _published(run: Storage) -> DetectorManifest | None:
    try:
        return decode(DetectorManifest, run.read(layout.DETECTOR), f"{run.uri}/{layout.DETECTOR}")
    except NotFoundError:
        return None


def _files(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        yield path.relative_to(folder).as_posix(), path


def _staged(manifest: bytes) -> str:
    return layout.staged_export(hashlib.sha256(manifest).hexdigest())


def _fetch(run: Storage, choice: str, chosen: bytes, folder: Path) -> Path:
    """The staged files of the chosen export; raises NotFoundError, CorruptError."""
    staged = _staged(chosen)
    manifest = decode(DetectorManifest, chosen, f"{run.uri}/{choice}")
    shutil.rmtree(folder, ignore_errors=True)
    for entry in run.list(staged + layout.REPORT):
        run.download(entry.name, folder / entry.name.removeprefix(staged))
    for file in manifest.files:
        path = folder / file.name
        with os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
        fetch_file(run, file.model_copy(update={"name": staged + file.name}), path)
    return folder


def tidy_up(run: Storage) -> None:
    """Remove staged files, those of exports that died, too. The choice stays: a late export must find it made."""
    for entry in list(run.list(layout.EXPORTS)):
        if "/" in entry.name.removeprefix(layout.EXPORTS):
            run.delete(entry.name)
