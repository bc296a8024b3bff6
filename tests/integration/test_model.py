from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from deepfake_detector.core.config import Config
from deepfake_detector.core.errors import ConfigError
from deepfake_detector.training import normalization
from deepfake_detector.training.augment import augment, clip_seed
from deepfake_detector.training.model import BACKBONE, MOMENTUM, build, load_backbone_weights
from deepfake_detector.training.normalization import SynchronizedBatchNormalization
from tests.make_records import tiny

VARIANTS: dict[str, dict[str, object]] = {
    "compact-lstm": {},
    "mobilenet-mean": {"model__backbone": "mobilenet_v3_small", "model__head": "mean"},
    "seed-lstm": {"model__backbone": "seed", "model__dropout": 0.0},
}
LOAD = """
import sys, numpy as np, tensorflow as tf, keras
folder = sys.argv[1]
clips = np.load(folder + "/clips.npy")
for name in sys.argv[2:]:
    expected = np.load(f"{folder}/{name}.npy")
    loaded = keras.models.load_model(f"{folder}/{name}.keras")
    np.testing.assert_allclose(loaded(clips), expected, atol=1e-6)
served = tf.saved_model.load(f"{folder}/compact-lstm").signatures["serving_default"](tf.constant(clips))
np.testing.assert_allclose(list(served.values())[0], np.load(f"{folder}/compact-lstm.npy"), atol=1e-6)
assert not [name for name in sys.modules if name.startswith("deepfake_detector")]
print("loaded", len(sys.argv) - 2)
"""


def clips_of(config: Config, count: int = 3) -> np.ndarray:
    shape = (count, config.sampling.frames, config.faces.size, config.faces.size, 3)
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


def test_saved_models_load_without_the_project(tmp_path: Path) -> None:
    np.save(tmp_path / "clips.npy", clips_of(tiny()))
    for name, changes in VARIANTS.items():
        model = build(tiny(**changes))
        logits = model(clips_of(tiny()))
        assert (logits.shape, logits.dtype) == ((3, 1), tf.float32)
        np.save(tmp_path / f"{name}.npy", logits)
        model.save(tmp_path / f"{name}.keras")
        if name == "compact-lstm":
            model.export(tmp_path / name, verbose=False)
    result = subprocess.run(
        [sys.executable, "-I", "-c", LOAD, str(tmp_path), *VARIANTS], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.stdout.strip() == "loaded 3", result.stderr


def test_folding_time_into_the_batch_is_time_distributed() -> None:
    config = tiny(sampling__frames=3)
    model = build(config)
    clip = keras.Input((3, 32, 32, 3), dtype="uint8")
    features = keras.layers.TimeDistributed(model.get_layer(BACKBONE))(clip)
    slow = keras.Model(clip, model.get_layer("logit")(model.get_layer("lstm")(features)))
    np.testing.assert_allclose(slow(clips_of(config)), model(clips_of(config)), atol=1e-6)


@pytest.mark.parametrize("backbone", ["compact", "mobilenet_v3_small"])
@pytest.mark.parametrize("kind", [keras.layers.BatchNormalization, SynchronizedBatchNormalization])
def test_every_normalisation_is_of_the_kind_asked_for(backbone: str, kind: type) -> None:
    network = build(tiny(model__backbone=backbone), kind).get_layer(BACKBONE)
    norms = [layer for layer in network.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(norms) >= 6
    assert all(type(layer) is kind and layer.momentum == MOMENTUM for layer in norms)


def test_a_checkpoint_of_training_fits_the_model_that_is_exported(tmp_path: Path) -> None:
    """Checkpoints know variables by the positions of their layers."""
    trained, exported = build(tiny(), SynchronizedBatchNormalization), build(tiny())
    path = tf.train.Checkpoint(model=trained).write(str(tmp_path / "checkpoint"))
    tf.train.Checkpoint(model=exported).read(path).assert_consumed()
    for ours, theirs in zip(trained.weights, exported.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_allclose(trained(clips_of(tiny())), exported(clips_of(tiny())), atol=1e-6)


def test_the_seed_baseline_is_the_original_architecture() -> None:
    model = build(tiny(model__backbone="seed", model__dropout=0.0, model__lstm_units=16, faces__size=100))
    network, lstm = model.get_layer(BACKBONE), model.get_layer("lstm")
    assert network.output_shape == (None, 49 * 49 * 32)
    assert (lstm.units, lstm.activation.__name__) == (16, "relu")
    image = np.full((1, 100, 100, 3), 254.0)
    np.testing.assert_allclose(network.layers[1](image), image / 127 - 1)


def test_backbone_weights_are_loaded_or_refused(tmp_path: Path) -> None:
    config = tiny()
    keras.utils.set_random_seed(1)
    trained = build(config)
    path = tmp_path / "backbone.weights.h5"
    trained.get_layer(BACKBONE).save_weights(path)
    keras.utils.set_random_seed(2)
    fresh = build(config, SynchronizedBatchNormalization)
    load_backbone_weights(fresh, config, path)
    for ours, theirs in zip(fresh.get_layer(BACKBONE).weights, trained.get_layer(BACKBONE).weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)

    with pytest.raises(ConfigError, match=r"sha256 [0-9a-f]{64}: expected 0{64}"):
        load_backbone_weights(fresh, config, path, "0" * 64)
    with pytest.raises(ConfigError, match=r"backbone.weights.h5: .* has shape .*: expected"):
        load_backbone_weights(build(tiny(model__backbone="seed")), tiny(model__backbone="seed"), path)
    path.write_bytes(b"not HDF5")
    with pytest.raises(ConfigError, match=r"expected a .weights.h5 file"):
        load_backbone_weights(fresh, config, path)


def augmented(clip: np.ndarray, seed: int, step: int, position: int) -> np.ndarray:
    def one(image: object) -> object:
        return augment(image, clip_seed(seed, tf.constant(step, tf.int64), tf.constant(position, tf.int64)))

    eager = np.asarray(one(tf.constant(clip)))
    (in_dataset,) = tf.data.Dataset.from_tensors(clip).map(one).as_numpy_iterator()
    np.testing.assert_array_equal(eager, in_dataset)
    return eager


def test_augmentation_is_drawn_once_per_clip_and_keyed() -> None:
    frame = np.random.default_rng(3).integers(0, 256, (1, 32, 32, 3), np.uint8)
    clip = np.repeat(frame, 4, axis=0)
    first = augmented(clip, 0, 5, 2)
    assert (first.shape, first.dtype) == (clip.shape, np.uint8)
    assert (first == first[:1]).all(), "frames of one clip were changed differently"
    np.testing.assert_array_equal(first, augmented(clip, 0, 5, 2))
    others = [augmented(clip, *key) for key in [(1, 5, 2), (0, 6, 2), (0, 5, 3)]]
    assert all((first != other).any() for other in others)


@pytest.mark.parametrize("relu", [False, True], ids=["plain", "relu"])
@pytest.mark.parametrize(
    ("alone", "channels"),
    [
        pytest.param(True, 16, id="kernel of a lone worker"),
        pytest.param(False, 16, id="sums of several, fast kernels"),
        pytest.param(False, 7, id="sums of several"),
    ],
)
def test_training_normalises_as_the_built_in_layer_does(
    monkeypatch: pytest.MonkeyPatch, alone: bool, channels: int, relu: bool
) -> None:
    monkeypatch.setattr(normalization, "_is_alone", lambda: alone)  # sums over one worker are its own
    random = np.random.default_rng(0)
    images = tf.constant(random.normal(1, 2, (4, 5, 6, channels)), tf.float32)
    weights = tf.constant(random.normal(size=images.shape), tf.float32)

    def everything(layer: keras.Layer, after: Callable[[Any], Any]) -> list[Any]:
        layer.build(images.shape)
        layer.gamma.assign(np.linspace(0.5, 2, channels))

        @tf.function
        def trained() -> list[Any]:  # a graph, in which TensorFlow fuses what it can
            with tf.GradientTape() as tape:
                tape.watch(images)
                outputs = after(layer(images, training=True))
                loss = tf.reduce_sum(tf.sin(outputs) * weights)
            return [outputs, *tape.gradient(loss, [images, layer.gamma, layer.beta])]

        return [*trained(), layer.moving_mean, layer.moving_variance, after(layer(images, training=False))]

    ours = everything(SynchronizedBatchNormalization(momentum=MOMENTUM, relu=relu), tf.identity)
    theirs = everything(keras.layers.BatchNormalization(momentum=MOMENTUM), tf.nn.relu if relu else tf.identity)
    for mine, built_in in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, built_in, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 7, 7, 20), (7, 4, 6, 3), (192, 64, 64, 16)], ids=str)
def test_sums_over_a_batch_are_exact_to_float32(shape: tuple[int, ...]) -> None:
    """Adding one value after the other to a float32 loses 5e-4 of a million squares."""
    random = np.random.default_rng(0)
    x, y = (random.normal(mean, 1, shape).astype(np.float32) for mean in (1, 0.5))
    any_batch = tf.TensorSpec((None, *shape[1:]))

    @tf.function(input_signature=[any_batch, any_batch])
    def summed(x: Any, y: Any) -> list[Any]:
        return [normalization._sum_of(x), normalization._sum_of_products(x, y)]

    exact = [values.sum((0, 1, 2), np.float64) for values in (x, x * y)]
    for ours, sums in zip(summed(x, y), exact, strict=True):
        np.testing.assert_allclose(ours, sums, rtol=1e-5)
