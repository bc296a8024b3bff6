"""The best checkpoint becomes a calibrated, evaluated model: RUN/model/ and RUN/report/, the marker last.

The same checkpoint and records give the same weights (model.weights.h5, byte for byte), calibration and metrics on
the same machine and number of threads; saved_model.pb and Keras' config.json hold random ids, and promise nothing.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from deepfake_detector.adapters.files import require_room
from deepfake_detector.adapters.machine import code_version
from deepfake_detector.adapters.storage import Storage, stored_as
from deepfake_detector.adapters.tensorflow_import import import_tensorflow
from deepfake_detector.core import layout
from deepfake_detector.core.calibration import Calibration
from deepfake_detector.core.config import Config, fingerprint, flat, require_same, stage_settings
from deepfake_detector.core.errors import CorruptError, NotFoundError
from deepfake_detector.core.markers import CheckpointMarker, DetectorManifest, TrainedMarker, decode
from deepfake_detector.stages.commit_export import commit_export, tidy_up
from deepfake_detector.stages.evaluate import ScoredSplit, calibrate, evaluate, lost_videos, video_scores
from deepfake_detector.stages.report import report_files
from deepfake_detector.stages.runs import load_config, records_storage

BATCH = 8  # sequences at once; part of the results' bits, so no setting
_COPIES = 5  # of the weights: the checkpoint, a SavedModel, Keras' archive, that unpacked, another export's
CHECKED = 16  # sequences of the test split on which the loaded model is compared with the checkpoint

log = logging.getLogger(__name__)


def export(run: Storage, scratch: Path, records: Storage | None = None) -> DetectorManifest:
    """Write RUN/model/ and RUN/report/, unless the marker is there already; returns the marker.

    What dead exports staged is removed in either case.

    records: the run whose records are evaluated, by default the one that config.json names. Raises NotFoundError
    before training is complete, ConfigError when the marker was made with other settings, CorruptError when
    checkpoint or records are not those that training committed, ExportError when the written model does not load
    or disagrees with the checkpoint.
    """
    config = load_config(run)
    settings = stage_settings(config, "export")
    if published := _published(run, settings):
        tidy_up(run)  # after one that died before it could
        return published
    trained = _trained(run, config)
    records = records or records_storage(run, patient=True)
    try:
        model = _restore(run, trained, config, scratch)
    except (CorruptError, NotFoundError) as error:
        again = f"to compute it again: delete {run.uri}/{layout.TRAINED}, then give the same command to train"
        raise type(error)(f"{error} ({again})") from error
    validation, test, frames = _score(model, records, trained, config, scratch)
    calibration = calibrate(validation, config.export.prior)
    for note in calibration.notes:
        log.warning("%s", note)
    folder = scratch / "export"
    shutil.rmtree(folder, ignore_errors=True)
    _write(model, calibration, frames, folder / layout.MODEL, scratch / "check")
    document = _metrics(config, trained, calibration, validation, test)
    for name, data in report_files(run, records, document, video_scores(test, calibration)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    manifest = commit_export(run, folder, _manifest(settings, config, trained, calibration, folder), scratch)
    require_same(settings, manifest.settings, f"{run.uri}/{layout.DETECTOR}")
    return manifest


def _published(run: Storage, settings: dict[str, Any]) -> DetectorManifest | None:
    """The marker of a finished export. Raises ConfigError when it was made with other settings."""
    if not run.exists(layout.DETECTOR):
        return None
    where = f"{run.uri}/{layout.DETECTOR}"
    manifest = decode(DetectorManifest, run.read(layout.DETECTOR), where)
    require_same(settings, manifest.settings, where)
    return manifest


def _trained(run: Storage, config: Config) -> TrainedMarker:
    where = f"{run.uri}/{layout.TRAINED}"
    try:
        trained = decode(TrainedMarker, run.read(layout.TRAINED), where)
    except NotFoundError:
        raise NotFoundError(f"{where}: not found, expected finished training") from None
    require_same(stage_settings(config, "train"), trained.settings, where)
    return trained


def _restore(run: Storage, trained: TrainedMarker, config: Config, scratch: Path) -> Any:
    """The Keras model with the best checkpoint's weights, under the numerics that training had."""
    name = layout.checkpoint_marker(trained.best_step)
    marker = decode(CheckpointMarker, run.read(name), f"{run.uri}/{name}")
    size = sum(file.size for file in marker.files)
    require_room(scratch, _COPIES * size, f"the checkpoint of step {marker.step} and the model that is made of it")

    import_tensorflow()
    import tensorflow as tf

    from deepfake_detector.training.checkpoints import restore_weights, weights_sha256
    from deepfake_detector.training.model import build
    from deepfake_detector.training.worker import configure_tensorflow

    threads = marker.state.threads
    try:
        configure_tensorflow(threads)
    except RuntimeError:  # only where another stage has used TensorFlow in this process, never in a job
        log.warning("TensorFlow runs already: the last bits of the metrics may differ from %d threads'", threads)
    tf.keras.utils.clear_session()  # layers' automatic names start from the same number
    tf.keras.utils.set_random_seed(config.train.seed)
    model = build(config)
    restore_weights(run, trained.best_step, model, scratch)
    found = weights_sha256(model)
    if found != trained.weights_sha256:
        raise CorruptError(
            f"{run.uri}/{name}: weights have SHA-256 {found}: expected {trained.weights_sha256} ({layout.TRAINED})"
        )
    return model


def _score(
    model: Any, records: Storage, trained: TrainedMarker, config: Config, scratch: Path
) -> tuple[ScoredSplit, ScoredSplit, NDArray[np.uint8]]:
    """Logits of the validation and the test split, and the frames that the written model is checked on."""
    from deepfake_detector.adapters.saved_model import logits_function
    from deepfake_detector.training.dataset import damage_named, evaluation_batches, open_records, open_split

    finished = open_records(records, trained.records_fingerprint)
    if finished.fingerprint != trained.records_fingerprint:
        raise CorruptError(
            f"{records.uri}: records have fingerprint {finished.fingerprint}: expected "
            f"{trained.records_fingerprint}, on which the run was trained"
        )
    lost = lost_videos(records, finished.rounds)
    infer = logits_function(model)
    shape = (config.sampling.frames, config.faces.size)
    scored: dict[str, ScoredSplit] = {}
    checked: list[NDArray[np.uint8]] = []
    for name in ("validation", "test"):
        split = open_split(records, name, scratch, finished)
        logits: list[float] = []
        batches = evaluation_batches(split, range(len(split)), BATCH, *shape) if len(split) else ()
        with (
            damage_named(split),
            tqdm(total=len(split), desc=f"scoring {name}", unit="sequence", delay=2, disable=None) as bar,
        ):
            for batch in batches:
                logits += infer(batch).tolist()
                bar.update(len(batch))
                if name == "test" and sum(map(len, checked)) < CHECKED:
                    checked.append(batch.numpy())
        scored[name] = ScoredSplit(
            entries=split.entries, logits=logits, lost=[video for video in lost if video.split == name]
        )
        split.close()
    if not checked:
        log.warning("no test sequences: the exported model is checked on random ones")
        random = np.random.default_rng(0)
        checked.append(random.integers(0, 256, (CHECKED, *shape, shape[1], 3), np.uint8))
    return scored["validation"], scored["test"], np.concatenate(checked)[:CHECKED]


def _write(model: Any, calibration: Calibration, frames: NDArray[np.uint8], folder: Path, scratch: Path) -> None:
    """Write the exported folder and check it in a fresh interpreter; raises ExportError."""
    from deepfake_detector.adapters import saved_model

    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch.mkdir(parents=True, exist_ok=True)
    saved_model.write(model, calibration.slope, calibration.offset, folder)
    logits = saved_model.logits_function(model)(frames)
    difference = saved_model.check(folder, frames, logits, calibration.slope, calibration.offset, scratch)
    log.info("loaded back, the model differs from the checkpoint by %.2g on %d sequences", difference, len(frames))


def _metrics(
    config: Config, trained: TrainedMarker, calibration: Calibration, validation: ScoredSplit, test: ScoredSplit
) -> dict[str, Any]:
    """What the report says of the model."""
    return {
        "code_version": code_version(),
        "recipe": config.recipe,
        "step": trained.best_step,
        "epochs": trained.epochs,
        "weights_sha256": trained.weights_sha256,
        "calibration": vars(calibration),
        "test": evaluate(test, calibration),
        "validation": evaluate(validation, calibration),
    }


def _manifest(
    settings: dict[str, Any],
    config: Config,
    trained: TrainedMarker,
    calibration: Calibration,
    folder: Path,
) -> DetectorManifest:
    import keras
    import tensorflow as tf

    paths = sorted(path for path in (folder / layout.MODEL).rglob("*") if path.is_file())
    files = [stored_as(path, path.relative_to(folder).as_posix()) for path in paths]

    return DetectorManifest(
        settings=settings,
        fingerprint=fingerprint(settings),
        code_version=code_version(),
        files=files,
        step=trained.best_step,
        slope=calibration.slope,
        offset=calibration.offset,
        prior=calibration.prior,
        validation_prior=calibration.validation_prior,
        threshold=calibration.threshold,
        threshold_from=calibration.threshold_from,
        keras_version=keras.__version__,
        tensorflow_version=tf.__version__,
        config=flat(config, "sampling", "faces", "limits"),
    )
