"""The CNN-LSTM: uint8 faces in, one natural logit of "fake" out; built-in Keras layers only.

Time is folded into the batch for the CNN (2-3 times faster on a CPU than TimeDistributed, same maths), which wants
T fixed: Keras 3.15 can't unfold a symbolic length. The two reshapes are Keras operations and not layers, since no
built-in layer may touch the batch axis; they are saved under a Keras name, so a saved model loads without us.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from typing import Any

import keras
from keras import layers, ops

from deepfake_detector.core.config import Config
from deepfake_detector.core.errors import ConfigError
from deepfake_detector.training.normalization import SynchronizedBatchNormalization

Normalization = type[layers.BatchNormalization]
BACKBONE = "backbone"
MOMENTUM = 0.9  # of BatchNorm's moving statistics: runs of a few hundred steps must reach them


def build(config: Config, normalization: Normalization = layers.BatchNormalization) -> keras.Model:
    """uint8 (batch, T, S, S, 3) -> float32 (batch, 1), the uncalibrated logit of label 1, "fake".

    Weights are drawn from Keras' seed (`keras.utils.set_random_seed`); `load_backbone_weights` replaces the
    backbone's. Preprocessing is inside. normalization: the class of the BatchNorm layers; training passes one that
    sums over the workers, and what is exported has the built-in one with the same variables.
    """
    frames, size = config.sampling.frames, config.faces.size
    network = backbone(config, normalization)
    clip = keras.Input((frames, size, size, 3), dtype="uint8", name="frames")
    images = ops.reshape(clip, (-1, size, size, 3))  # (batch * T, S, S, 3)
    features = network(images)  # (batch * T, C)
    features = ops.reshape(features, (-1, frames, features.shape[-1]))  # (batch, T, C)
    return keras.Model(clip, head(features, config), name="detector")


def head(features: Any, config: Config) -> Any:
    """(batch, T, C) -> logit (batch, 1). mean: the LSTM's ablation, which can't tell the frames' order."""
    model = config.model
    if model.head == "mean":
        pooled = layers.GlobalAveragePooling1D(name="mean")(features)
    else:
        # relu in an LSTM is unstable: only the baseline has it, as its authors did.
        activation = "relu" if model.backbone == "seed" else "tanh"
        pooled = layers.LSTM(model.lstm_units, activation=activation, name="lstm")(features)
    if model.dropout:
        pooled = layers.Dropout(model.dropout, name="dropout")(pooled)
    return layers.Dense(1, name="logit", dtype="float32")(pooled)


def backbone(config: Config, normalization: Normalization = layers.BatchNormalization) -> keras.Model:
    """uint8 or float images (batch, S, S, 3) of 0..255 -> float32 features (batch, C)."""
    size = config.faces.size
    if config.model.backbone == "mobilenet_v3_small":
        return _mobilenet_v3_small(size, normalization)
    if config.model.backbone == "seed":
        return _seed(size)
    return _compact(size, normalization)


def _compact(size: int, normalization: Normalization) -> keras.Model:
    """Four strided stages, wide where the image is small: memory traffic, not arithmetic, bounds the early ones.

    Channels are multiples of 16, the block of oneDNN's kernels (`normalization._has_fast_kernel`).
    """
    image = keras.Input((size, size, 3), name="image")
    x = layers.Rescaling(1 / 127.5, offset=-1)(image)
    for filters in (16, 48, 64, 96):
        x = layers.Conv2D(filters, 3, strides=2, padding="same", use_bias=False)(x)
        x = _normalised(x, normalization)
    x = layers.Conv2D(128, 3, padding="same", use_bias=False)(x)
    x = _normalised(x, normalization)
    x = layers.SeparableConv2D(192, 3, padding="same", use_bias=False)(x)
    x = _normalised(x, normalization)
    return keras.Model(image, layers.GlobalAveragePooling2D()(x), name=BACKBONE)


def _normalised(x: Any, normalization: Normalization) -> Any:
    if issubclass(normalization, SynchronizedBatchNormalization):
        # Checkpoints know layers by their positions: something must stand where the built-in layer's ReLU does.
        return layers.Identity()(normalization(momentum=MOMENTUM, relu=True)(x))
    return layers.ReLU()(normalization(momentum=MOMENTUM)(x))


def _seed(size: int) -> keras.Model:
    """The per-frame part of github.com/microcoder-py/deepfake-detector."""
    image = keras.Input((size, size, 3), name="image")
    x = layers.Rescaling(1 / 127, offset=-1)(image)
    x = layers.Conv2D(32, 2, activation="relu")(x)
    x = layers.AveragePooling2D(2)(x)
    return keras.Model(image, layers.Flatten()(x), name=BACKBONE)


def _mobilenet_v3_small(size: int, normalization: Normalization) -> keras.Model:
    """Howard et al., "Searching for MobileNetV3", 2019, without its classifier; 0.94M parameters."""
    plain = keras.applications.MobileNetV3Small(
        input_shape=(size, size, 3), include_top=False, weights=None, pooling="avg", name=BACKBONE
    )

    def replaced(layer: keras.Layer) -> keras.Layer:
        """keras.applications has no switch for the kind of BatchNorm, and its momentum suits long runs only."""
        settings = layer.get_config()
        if isinstance(layer, layers.BatchNormalization):
            return normalization.from_config(settings | {"momentum": MOMENTUM})
        return layer.__class__.from_config(settings)

    return keras.models.clone_model(plain, clone_function=replaced)


def load_backbone_weights(model: keras.Model, config: Config, path: Path, sha256: str = "") -> None:
    """Load a `.weights.h5` file, saved by Keras from an exported model's backbone, into that of `model`.

    model: as `build` makes it of `config`, with any kind of BatchNorm: such a file names its layers by their classes,
    so it is read into built-in ones. sha256: of the file, in hex; "" checks nothing. Raises ConfigError when it
    differs, or naming the first variable that is missing, unknown or of another shape: nothing is left to chance or to
    random values.
    """
    if sha256:
        with path.open("rb") as file:
            found_sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if found_sha256 != sha256:
            raise ConfigError(f"model.weights={path.name}: sha256 {found_sha256}: expected {sha256}")
    network = backbone(config)
    with tempfile.TemporaryDirectory() as folder:
        sample = Path(folder) / "expected.weights.h5"
        network.save_weights(sample)
        expected = _stored_shapes(sample)
    found = _stored_shapes(path)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            raise ConfigError(
                f"model.weights={path.name}: {name} has shape {found.get(name, 'none')}: expected "
                f"{expected.get(name, 'no such variable')} (backbone of {model.count_params():,} parameters)"
            )
    network.load_weights(path)
    model.get_layer(BACKBONE).set_weights(network.get_weights())


def _stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    import h5py  # type: ignore[import-untyped]

    shapes: dict[str, tuple[int, ...]] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            shapes[name] = tuple(item.shape)

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
    except OSError as error:
        raise ConfigError(f"model.weights={path.name}: expected a .weights.h5 file ({error})") from None
    return shapes
