"""Named recipes: a run is reproducible from one word. A variant derives in three lines with `override`."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from deepfake_detector.core.config import Config, override
from deepfake_detector.core.errors import ConfigError


def dfdc() -> Config:
    """DeepFake Detection Challenge: 10 s clips of 1080p, folders with metadata.json."""
    return override(
        Config(recipe="dfdc"),
        {
            "data.shards": 16,
            "sampling.frames": 16,
            "faces.size": 128,
            "train.global_batch": 32,
            "train.epochs": 30,
            "train.patience": 6,
        },
        "recipe 'dfdc'",
    )


def ffpp() -> Config:
    """FaceForensics++: long talking heads, so several bursts of one clip are cut."""
    return override(
        dfdc(),
        {"sampling.mode": "burst", "sampling.windows": 4},
        "recipe 'ffpp'",
    ).model_copy(update={"recipe": "ffpp"})


def demo() -> Config:
    """Small synthetic clips on a laptop: about two minutes of training on two cores."""
    return override(
        Config(recipe="demo"),
        {
            "data.shards": 2,
            "data.validation": 0.15,
            "data.test": 0.2,
            "sampling.frames": 8,
            "faces.size": 64,
            "train.global_batch": 16,
            "train.epochs": 20,
            "train.workers": 2,
            "model.dropout": 0.1,
            "operations.max_lost_fraction": 0.1,
        },
        "recipe 'demo'",
    )


def seed() -> Config:
    """The small DFDC CNN-LSTM trainer that this project grew out of, as a baseline under leak-free splits.

    Architecture and optimiser of github.com/microcoder-py/deepfake-detector: 60 frames of 100 px, one
    convolution, LSTM(16, relu), SGD 1e-3, batch 4, 10 epochs.
    """
    return override(
        Config(recipe="seed"),
        {
            "data.shards": 16,
            "sampling.frames": 60,
            "faces.size": 100,
            "model.backbone": "seed",
            "model.lstm_units": 16,
            "model.dropout": 0.0,
            "train.optimizer": "sgd",
            "train.learning_rate": 1e-3,
            "train.schedule": "constant",
            "train.global_batch": 4,
            "train.epochs": 10,
            "train.augment": False,
        },
        "recipe 'seed'",
    )


RECIPES: dict[str, Callable[[], Config]] = {"demo": demo, "dfdc": dfdc, "ffpp": ffpp, "seed": seed}


def resolve(recipe: str, assignments: Iterable[str] = ()) -> Config:
    """The Config of a recipe's name and `key=value` strings; raises ConfigError."""
    if recipe not in RECIPES:
        raise ConfigError(f"--recipe {recipe}: expected one of {', '.join(sorted(RECIPES))}")
    values: dict[str, str] = {}
    for assignment in assignments:
        key, equals, value = assignment.partition("=")
        if not equals:
            raise ConfigError(f"--set {assignment}: expected key=value, for example train.epochs=5")
        values[key.strip()] = value.strip()
    return override(RECIPES[recipe](), values, f"recipe {recipe!r} with --set")
