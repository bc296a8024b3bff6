"""What is kept of checkpoints, and which of them is gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepfake_detector.adapters.storage import Storage
from deepfake_detector.core import layout
from deepfake_detector.core.config import stage_settings
from deepfake_detector.core.errors import ConfigError
from deepfake_detector.core.schedule import initial_state
from deepfake_detector.stages.runs import first_marker, has_begun, trained_records
from deepfake_detector.training import checkpoints
from tests.make_records import tiny

FOREIGN = [
    layout.CHECKPOINTS + name for name in (".DS_Store", "00000005.json.txt", "5.json", "best/notes.txt", "notes.txt")
]


@pytest.fixture
def tiny_model() -> tuple[Any, Any]:
    import keras

    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])
    optimizer = keras.optimizers.Adam()
    optimizer.build(model.trainable_variables)
    return model, optimizer


def saved(
    storage: Storage, scratch: Path, trained: tuple[Any, Any], steps: list[int], *, best: int, start: int = 0
) -> dict[str, Any]:
    """Checkpoints of a process that went on from step `start`; returns the settings in them."""
    model, optimizer = trained
    settings = stage_settings(tiny(), "train")
    writer = checkpoints.Checkpoints(storage, scratch, settings, "test", ["machine"], keep=2, start=start)
    for step in steps:
        model.set_weights([np.full((2, 1), step, np.float32), np.zeros(1, np.float32)])
        state = initial_state("records", 1).model_copy(update={"step": step, "best_step": min(best, step)})
        writer.save(model, optimizer, state)
    return settings


def committed(storage: Storage) -> list[int]:
    found = [entry.name for entry in storage.list(layout.CHECKPOINTS) if layout.is_checkpoint_marker(entry.name)]
    return [step for name in found if (step := layout.checkpoint_step(name)) is not None]


def test_the_newest_whole_checkpoint_is_restored(storage: Storage, tmp_path: Path, tiny_model: tuple[Any, Any]) -> None:
    model, optimizer = tiny_model
    storage.write(layout.checkpoint(4) + "checkpoint.index", b"a crash before the marker")
    settings = saved(storage, tmp_path, tiny_model, [5, 10, 15, 20], best=5)
    assert committed(storage) == [0, 5, 15, 20]
    names = [entry.name for entry in storage.list(layout.CHECKPOINTS)]
    assert {name.split("/")[1] for name in names if name.count("/") == 2} == {"00000005", "00000015", "00000020"}

    damaged = next(name for name in names if name.startswith(layout.checkpoint(20)) and "data" in name)
    storage.write(damaged, storage.read(damaged)[:-1] + b"?")
    marker = checkpoints.newest(storage, tmp_path, settings)
    assert marker is not None
    assert marker.step == marker.state.step == 15
    checkpoints.restore(checkpoints.fetch(storage, marker, tmp_path), model, optimizer)
    assert model.get_weights()[0][0, 0] == 15
    checkpoints.restore_weights(storage, 5, model, tmp_path)
    assert model.get_weights()[0][0, 0] == 5
    with pytest.raises(ConfigError, match=r"train.seed=3: expected 0, with which .*/checkpoints/00000020.json"):
        checkpoints.newest(storage, tmp_path, stage_settings(tiny(train__seed=3), "train"))


def test_damaged_later_checkpoints_cost_no_earlier_one(
    storage: Storage, tmp_path: Path, tiny_model: tuple[Any, Any]
) -> None:
    """They take no place among the ones that are kept, before training has reached them again and after."""
    saved(storage, tmp_path, tiny_model, [5, 10, 15, 20], best=5)
    for step in (15, 20):
        storage.write(layout.checkpoint_marker(step), b"{")
    saved(storage, tmp_path, tiny_model, [11, 12, 13], best=5, start=5)
    assert committed(storage) == [0, 5, 12, 13, 15, 20]
    saved(storage, tmp_path, tiny_model, [21], best=5, start=13)
    assert committed(storage) == [0, 5, 13, 21]


def test_where_no_checkpoint_is_left_it_is_known_what_training_began_with(
    storage: Storage, tmp_path: Path, tiny_model: tuple[Any, Any]
) -> None:
    settings = saved(storage, tmp_path, tiny_model, [5, 10, 15], best=5)
    checkpoints.discard_from(storage, 5)
    assert checkpoints.newest(storage, tmp_path, settings) is None, "it begins again"
    [beginning] = checkpoints.markers(storage)
    assert beginning.state == initial_state("records", 1)
    assert trained_records(storage) == "records"
    assert has_begun(storage, "train")
    with pytest.raises(ConfigError, match=r"train.seed=3: expected 0, with which .*/checkpoints/00000000.json"):
        checkpoints.newest(storage, tmp_path, stage_settings(tiny(train__seed=3), "train"))
    saved(storage, tmp_path, tiny_model, [4, 8, 12, 16], best=4)
    assert committed(storage) == [0, 4, 12, 16]


def test_a_damaged_marker_hides_no_training_that_has_begun(
    storage: Storage, tmp_path: Path, tiny_model: tuple[Any, Any]
) -> None:
    saved(storage, tmp_path, tiny_model, [4, 8], best=4)
    for step in (0, 8):
        storage.write(layout.checkpoint_marker(step), b"{")
    assert trained_records(storage) == "records"
    assert first_marker(storage, "train") == layout.checkpoint_marker(4)


def test_foreign_names_among_checkpoints_are_let_alone(
    storage: Storage, tmp_path: Path, tiny_model: tuple[Any, Any]
) -> None:
    for name in FOREIGN:
        storage.write(name, b"a person's, or a file browser's")
    settings = saved(storage, tmp_path, tiny_model, [5, 10, 15], best=15)
    assert committed(storage) == [0, 10, 15]
    newest = checkpoints.newest(storage, tmp_path, settings)
    assert newest is not None
    assert newest.step == 15
    checkpoints.discard_from(storage, 15)
    assert committed(storage) == [0, 10]
    names = {entry.name for entry in storage.list(layout.CHECKPOINTS)}
    assert names.issuperset(FOREIGN)


def test_weights_sha256_sees_one_bit(tiny_model: tuple[Any, Any]) -> None:
    model, _ = tiny_model
    before = checkpoints.weights_sha256(model)
    kernel, bias = model.get_weights()
    model.set_weights([np.nextafter(kernel, np.float32(9)), bias])
    assert checkpoints.weights_sha256(model) != before
