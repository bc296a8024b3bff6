"""Checkpoints in the run folder: files first, the marker that commits them last; written by the chief alone.

Beside the first one, and for good, a marker of step 0 is stored, which needs no files: should all checkpoints be lost,
training begins again with the settings, the records and the threads that it began with.
"""

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
from deepfake_detector.core.markers import CheckpointMarker, StoredFile, TrainState, decode
from deepfake_detector.core.schedule import initial_state

PREFIX = "checkpoint"  # of the files of one tf.train.Checkpoint

log = logging.getLogger(__name__)


def markers(run: Storage) -> Iterator[CheckpointMarker]:
    """Committed checkpoints, newest first; one whose marker can't be read is logged and passed over."""
    for name in reversed([name for name in _objects(run) if layout.is_checkpoint_marker(name)]):
        try:
            yield decode(CheckpointMarker, run.read(name), f"{run.uri}/{name}")
        except (CorruptError, NotFoundError) as error:
            log.warning("checkpoint passed over: %s", error)


def _objects(run: Storage) -> dict[str, int]:
    """The names of all that checkpoints consist of, each with its step: by step, a marker before its files."""
    steps = ((entry.name, layout.checkpoint_step(entry.name)) for entry in run.list(layout.CHECKPOINTS))
    return {name: step for name, step in steps if step is not None}


def read(run: Storage, step: int) -> CheckpointMarker:
    """The marker of the checkpoint of `step`; raises NotFoundError, CorruptError."""
    name = layout.checkpoint_marker(step)
    return decode(CheckpointMarker, run.read(name), f"{run.uri}/{name}")


def newest(run: Storage, scratch: Path, settings: dict[str, Any]) -> CheckpointMarker | None:
    """The newest checkpoint that verifies, staged under `scratch`; None when there is none but that of step 0.

    Raises ConfigError, naming the setting, when it was made with other settings.
    """
    for marker in markers(run):
        require_same(settings, marker.settings, f"{run.uri}/{layout.checkpoint_marker(marker.step)}")
        if marker.step == 0:
            break
        try:
            fetch(run, marker, scratch)
        except (CorruptError, NotFoundError) as error:
            log.warning("checkpoint passed over: %s", error)
            continue
        return marker
    return None


def discard_from(run: Storage, step: int) -> None:
    """Withdraw the checkpoint of `step` and all later ones: training goes on from the one before, to the same bits."""
    for name, of_step in _objects(run).items():
        if layout.is_checkpoint_marker(name) and of_step >= step:
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
    """The chief's writer. keep: committed checkpoints that stay, the best one beside them.

    start: the step of the newest whole checkpoint, from which this process goes on; 0 where there is none.
    """

    def __init__(
        self,
        run: Storage,
        scratch: Path,
        settings: dict[str, Any],
        code_version: str,
        machines: Sequence[str],
        keep: int,
        start: int = 0,
    ) -> None:
        self._run = run
        self._scratch = scratch / "checkpoints"
        shutil.rmtree(self._scratch, ignore_errors=True)  # what a killed process has left on this disk
        self._settings = settings
        self._code_version = code_version
        self._machines = list(machines)
        self._keep = keep
        self._start = start
        self._committed: set[int] = set()

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
        marker = self._marker(state, files)
        if not self._committed:
            beginning = self._marker(initial_state(state.records_fingerprint, state.threads), [])
            self._run.create(layout.checkpoint_marker(0), beginning.encode())
        self._run.write(layout.checkpoint_marker(state.step), marker.encode())
        self._committed.add(state.step)
        shutil.rmtree(written.folder)
        self._prune(state)
        return marker

    def _marker(self, state: TrainState, files: list[StoredFile]) -> CheckpointMarker:
        return CheckpointMarker(
            settings=self._settings,
            fingerprint=fingerprint(self._settings),
            code_version=self._code_version,
            step=state.step,
            state=state,
            files=files,
            machines=self._machines,
        )

    def _prune(self, state: TrainState) -> None:
        """Delete what is older than the newest `keep` whole ones, but never the best, nor the marker of step 0.

        What lies between the start and this step without being this process's own is damaged: it would have gone on
        from there. Later ones than this are let alone: they are damaged, or another chief's by now.
        """
        reached = {name: step for name, step in _objects(self._run).items() if step <= state.step}
        whole = [
            step
            for name, step in reached.items()
            if layout.is_checkpoint_marker(name) and (0 < step <= self._start or step in self._committed)
        ]
        kept = {*whole[-self._keep :], state.step, state.best_step, 0}
        for name, step in reached.items():  # also what a crash left without its marker
            if step not in kept:
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
