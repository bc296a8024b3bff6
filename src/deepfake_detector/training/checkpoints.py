"""Checkpoints in the run folder: files first, the marker that commits them last; written by the chief alone."""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deepfake_detector.adapters.storage import Storage, commit_file, fetch_file
from deepfake_detector.core import layout
from deepfake_detector.core.config import fingerprint, require_same
from deepfake_detector.core.errors import CorruptError, NotFoundError
from deepfake_detector.core.markers import CheckpointMarker, TrainState, decode

PREFIX = "checkpoint"  # of the files of one tf.train.Checkpoint

log = logging.getLogger(__name__)


def markers(run: Storage) -> Iterator[CheckpointMarker]:
    """Committed checkpoints, newest first; one whose marker can't be read is logged and passed over."""
    names = [entry.name for entry in run.list(layout.CHECKPOINTS) if layout.is_checkpoint_marker(entry.name)]
    for name in sorted(names, reverse=True):
        try:
            yield decode(CheckpointMarker, run.read(name), f"{run.uri}/{name}")
        except (CorruptError, NotFoundError) as error:
            log.warning("checkpoint passed over: %s", error)


def read(run: Storage, step: int) -> CheckpointMarker:
    """The marker of the checkpoint of `step`; raises NotFoundError, CorruptError."""
    name = layout.checkpoint_marker(step)
    return decode(CheckpointMarker, run.read(name), f"{run.uri}/{name}")


def newest(run: Storage, scratch: Path, settings: dict[str, Any]) -> CheckpointMarker | None:
    """The newest checkpoint that verifies, staged under `scratch`; None when there is none.

    Raises ConfigError, naming the setting, when it was made with other settings.
    """
    for marker in markers(run):
        require_same(settings, marker.settings, f"{run.uri}/{layout.checkpoint_marker(marker.step)}")
        try:
            fetch(run, marker, scratch)
        except (CorruptError, NotFoundError) as error:
            log.warning("checkpoint passed over: %s", error)
            continue
        return marker
    return None


def discard_from(run: Storage, step: int) -> None:
    """Withdraw the checkpoint of `step` and all later ones: training goes on from the one before, to the same bits."""
    names = [entry.name for entry in run.list(layout.CHECKPOINTS) if layout.is_checkpoint_marker(entry.name)]
    for name in names:
        if layout.checkpoint_step(name) >= step:
            run.delete(name)


def fetch(run: Storage, marker: CheckpointMarker, scratch: Path) -> Path:
    """Stage a checkpoint's files; returns the path prefix that tf.train.Checkpoint reads. Raises CorruptError."""
    folder = scratch / "checkpoints" / f"{marker.step:08d}"
    for file in marker.files:
        fetch_file(run, file, folder / Path(file.name).name)
    return folder / PREFIX


@dataclass(frozen=True)
class Written:
    """A checkpoint in a folder of this machine, not committed yet."""

    state: TrainState
    folder: Path


class Checkpoints:
    """The chief's writer. keep: committed checkpoints that stay, the best one beside them."""

    def __init__(
        self,
        run: Storage,
        scratch: Path,
        settings: dict[str, Any],
        code_version: str,
        machines: Sequence[str],
        keep: int,
    ) -> None:
        self._run = run
        self._scratch = scratch / "checkpoints"
        shutil.rmtree(self._scratch, ignore_errors=True)  # what a killed process has left on this disk
        self._settings = settings
        self._code_version = code_version
        self._machines = list(machines)
        self._keep = keep

    def save(self, model: Any, optimizer: Any, state: TrainState) -> CheckpointMarker:
        """`write`, then `commit`."""
        return self.commit(self.write(model, optimizer, state))

    def write(self, model: Any, optimizer: Any, state: TrainState) -> Written:
        """Weights and optimizer to local disk."""
        import tensorflow as tf

        self._scratch.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f"{state.step:08d}-", dir=self._scratch))
        tf.train.Checkpoint(model=model, optimizer=optimizer).write(str(folder / PREFIX))
        return Written(state, folder)

    def commit(self, written: Written) -> CheckpointMarker:
        """Store it in the run under its step, marker last, then remove what is no longer needed. Any thread may."""
        state = written.state
        paths = sorted(written.folder.iterdir())
        files = [commit_file(self._run, path, layout.checkpoint(state.step) + path.name) for path in paths]
        marker = CheckpointMarker(
            settings=self._settings,
            fingerprint=fingerprint(self._settings),
            code_version=self._code_version,
            step=state.step,
            state=state,
            files=files,
            machines=self._machines,
        )
        self._run.write(layout.checkpoint_marker(state.step), marker.encode())
        shutil.rmtree(written.folder)
        self._prune(state)
        return marker

    def _prune(self, state: TrainState) -> None:
        """Delete what is older than the newest `keep`, but never the best; a marker goes before its files.

        Later ones than this are let alone: they are damaged, or another chief's by now.
        """
        names = [entry.name for entry in self._run.list(layout.CHECKPOINTS)]
        entries = [name for name in names if name != layout.TRAINED and layout.checkpoint_step(name) <= state.step]
        committed = sorted(name for name in entries if layout.is_checkpoint_marker(name))
        kept = set(committed[-self._keep :]) | {layout.checkpoint_marker(state.step)}
        if state.best_step is not None:
            kept.add(layout.checkpoint_marker(state.best_step))
        folders = tuple(name.removesuffix(".json") + "/" for name in kept)
        for name in committed:
            if name not in kept:
                self._run.delete(name)
        for name in entries:  # also what a crash left without its marker
            if not name.endswith(".json") and not name.startswith(folders):
                self._run.delete(name)


def restore(path: Path, model: Any, optimizer: Any) -> None:
    """Load a staged checkpoint into the model and the built optimizer, and remove its files from scratch.

    Raises AssertionError if a variable finds no value.
    """
    import tensorflow as tf

    tf.train.Checkpoint(model=model, optimizer=optimizer).read(str(path)).assert_existing_objects_matched()
    shutil.rmtree(path.parent)


def restore_weights(run: Storage, step: int, model: Any, scratch: Path) -> CheckpointMarker:
    """Load only the model's weights of the checkpoint of `step`; raises NotFoundError, CorruptError."""
    import tensorflow as tf

    marker = read(run, step)
    path = fetch(run, marker, scratch)
    status = tf.train.Checkpoint(model=model).read(str(path))
    status.assert_existing_objects_matched().expect_partial()
    shutil.rmtree(path.parent)
    return marker


def weights_sha256(model: Any) -> str:
    """SHA-256 (hex) of the model's weights: raw bytes in model order, seed generators' states left out."""
    digest = hashlib.sha256()
    for variable in model.weights:
        digest.update(variable.numpy().tobytes())
    return digest.hexdigest()
