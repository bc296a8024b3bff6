"""All settings of a run, in one frozen object that is passed whole. Defaults live here and nowhere else.

Sections decide what a change costs: each stage's fingerprint covers its own sections and those of the stages
before it (`STAGE_SECTIONS`), so a new learning rate does not cost preprocessing again. `operations` changes how
a run is carried out and never what comes out: it is in no fingerprint.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from deepfake_detector.core.errors import ConfigError

Stage = Literal["plan", "preprocess", "train", "export"]
SMALLEST_CROP = {"mobilenet_v3_small": 32}  # pixels: it halves its input five times


class Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)


class Data(Section):
    """Which videos, and how they are divided."""

    videos: str = Field("", description="folder or gs:// prefix that holds the videos")
    validation: float = Field(0.15, gt=0, lt=1, description="share of each label's groups held out for validation")
    test: float = Field(0.15, gt=0, lt=1, description="share of each label's groups held out for the test")
    seed: int = Field(0, ge=0, description="seed of the split")
    shards: int = Field(4, ge=1, le=100_000, description="units of preprocessing; one Job index each")

    @model_validator(mode="after")
    def _splits_leave_training_data(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation + test = {self.validation + self.test:g}: expected less than 1")
        return self


class Sampling(Section):
    """Which frames of a video become a sequence; always chosen by presentation time."""

    frames: int = Field(16, ge=1, le=512, description="T, the frames of one sequence")
    mode: Literal["spread", "burst"] = Field("spread", description="evenly over the clip, or close together")
    interval_seconds: float = Field(1 / 15, gt=0, le=10, description="burst: time between two frames")
    windows: int = Field(1, ge=1, le=64, description="sequences cut from one track, at different times")


class Faces(Section):
    """From frames to tracked, cropped and compressed faces."""

    threshold: float = Field(0.5, gt=0, lt=1, description="least detection score")
    margin: float = Field(1.3, ge=1, le=3, description="side of the square crop over the box's longer side")
    size: int = Field(224, ge=16, le=1024, description="S, pixels of the crop's side")
    jpeg_quality: int = Field(95, ge=50, le=100)
    smoothing_frames: int = Field(5, ge=1, le=31, description="sampled frames that a smoothed box averages (odd)")
    min_coverage: float = Field(0.25, gt=0, le=1, description="share of a sequence's frames with a detection")
    max_tracks: int = Field(4, ge=1, le=32, description="faces kept per video, by coverage and size")

    @model_validator(mode="after")
    def _smoothing_is_centred(self) -> Self:
        if self.smoothing_frames % 2 == 0:
            raise ValueError(f"smoothing_frames={self.smoothing_frames}: expected an odd number")
        return self


class Limits(Section):
    """What a video may cost before it becomes a counted loss."""

    max_pixels: int = Field(8192 * 4320, ge=1, description="width x height of one frame")


class Model(Section):
    backbone: Literal["compact", "mobilenet_v3_small", "seed"] = "compact"
    head: Literal["lstm", "mean"] = Field("lstm", description="mean: mean-pool over time, the LSTM's ablation")
    weights: str = Field("none", description="'none', or path or gs:// URI of backbone weights (.weights.h5)")
    weights_sha256: str = Field("", pattern=r"^([0-9a-f]{64})?$")
    lstm_units: int = Field(64, ge=1, le=4096)
    dropout: float = Field(0.2, ge=0, lt=1)

    @model_validator(mode="after")
    def _checksum_is_of_something(self) -> Self:
        if self.weights_sha256 and self.weights == "none":
            raise ValueError("weights_sha256 without weights: expected model.weights as well")
        return self


class Train(Section):
    workers: int = Field(1, ge=1, le=256, description="processes under MultiWorkerMirroredStrategy")
    global_batch: int = Field(8, ge=1, description="sequences per step over all workers")
    epochs: int = Field(20, ge=1)
    steps_per_epoch: int = Field(0, ge=0, description="0: one pass over the larger class, twice its size in all")
    optimizer: Literal["adam", "sgd"] = "adam"
    learning_rate: float = Field(1e-3, gt=0)
    schedule: Literal["constant", "cosine", "plateau"] = "cosine"
    warmup_steps: int = Field(0, ge=0)
    patience: int = Field(0, ge=0, description="epochs without a better validation log loss; 0: never stop early")
    seed: int = Field(0, ge=0, lt=2**32)
    balanced: bool = Field(True, description="half of every batch real, half fake")
    augment: bool = True
    threads: int = Field(0, ge=0, description="intra-op threads per worker; 0: from the CPU limit, then frozen")

    @model_validator(mode="after")
    def _batch_divides(self) -> Self:
        if self.global_batch % self.workers:
            raise ValueError(f"global_batch={self.global_batch}: expected a multiple of workers={self.workers}")
        if self.balanced and self.global_batch % 2:
            raise ValueError(f"global_batch={self.global_batch}: expected an even number when balanced")
        return self


class Export(Section):
    prior: float = Field(0.5, gt=0, lt=1, description="share of fakes that calibrated probabilities assume")


class Operations(Section):
    """How the work is carried out. Nothing here may change a result."""

    max_lost_fraction: float = Field(0.2, ge=0, le=1, description="share of lost videos above which training refuses")
    attempts: int = Field(
        20, ge=1, description="lives of training, over the run; of each shard and the export, since it last succeeded"
    )
    spares: int = Field(0, ge=0, description="idle supervisors that take over a lost rank; fewer than train.workers")
    standby: bool = Field(
        False, description="a second child per supervisor, with TensorFlow imported (600 MB), where memory allows"
    )
    rendezvous_seconds: float = Field(
        900, gt=0, description="how long the workers wait for each other; a Job's own back-off is up to 600"
    )
    startup_seconds: float = Field(300, gt=0, description="how long a child may take to its first step")
    stall_seconds: float = Field(
        900, gt=0, description="how long a step may take: a child that hangs for longer is ended, with a traceback"
    )
    heartbeat_seconds: int = Field(10, ge=1, description="TensorFlow's own failure detection, the backstop")
    plan_wait_seconds: float = Field(600, gt=0, description="how long a shard waits for the plan")
    checkpoint_seconds: float = Field(
        30, gt=0, description="most training that a crash may cost, unless saving then took more than 3 % of the time"
    )
    checkpoint_steps: int = Field(0, ge=0, description="also a checkpoint every so many steps; 0: by time alone")
    keep_checkpoints: int = Field(3, ge=1, description="the newest ones; the best stays beside them")
    video_timeout_seconds: float = Field(
        3600,
        gt=0,
        description="most for one video, however large; a small one gets 10 s and 1 s per 10 kB",
    )
    video_memory_mb: int = Field(
        600, ge=1, description="resident memory of one decoding process; 1080p takes 160, 4K 410, 8K 530 to 900"
    )
    decoders: int = Field(0, ge=0, description="decoding processes per shard; 0: from the CPU limit")


class Config(Section):
    """Everything about one run."""

    recipe: str = "dfdc"
    data: Data = Data()
    sampling: Sampling = Sampling()
    faces: Faces = Faces()
    limits: Limits = Limits()
    model: Model = Model()
    train: Train = Train()
    export: Export = Export()
    operations: Operations = Operations()

    @model_validator(mode="after")
    def _spares_are_few(self) -> Self:
        """So that no two halves of a divided network can both train."""
        if 0 < self.operations.spares >= self.train.workers:
            raise ValueError(
                f"operations.spares={self.operations.spares}: expected fewer than train.workers={self.train.workers}"
            )
        return self

    @model_validator(mode="after")
    def _backbone_fits_the_crop(self) -> Self:
        least = SMALLEST_CROP.get(self.model.backbone, 0)
        if self.faces.size < least:
            raise ValueError(
                f"model.backbone={self.model.backbone} with faces.size={self.faces.size}: expected at least {least}"
            )
        return self


STAGE_SECTIONS: Mapping[Stage, tuple[str, ...]] = {
    "plan": ("data",),
    "preprocess": ("sampling", "faces", "limits"),
    "train": ("model", "train"),
    "export": ("export",),
}
STAGES: tuple[Stage, ...] = ("plan", "preprocess", "train", "export")


def flat(config: Config, *sections: str) -> dict[str, Any]:
    """Dotted settings, for example `{"train.epochs": 20}`, of the named sections or of all."""
    dump = config.model_dump(mode="json")
    names = sections or tuple(name for name in dump if name != "recipe")
    return {f"{name}.{key}": value for name in names for key, value in dump[name].items()}


def stage_settings(config: Config, stage: Stage) -> dict[str, Any]:
    """The dotted settings that `stage` and every stage before it depend on."""
    through = STAGES[: STAGES.index(stage) + 1]
    return flat(config, *(section for name in through for section in STAGE_SECTIONS[name]))


def fingerprint(settings: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of the settings in canonical JSON: equal settings, equal fingerprint."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def require_same(settings: Mapping[str, Any], recorded: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError naming the first setting in which `recorded` (a marker's) differs from `settings`."""
    for name in sorted(settings.keys() | recorded.keys()):
        if settings.get(name) != recorded.get(name):
            raise ConfigError(
                f"{name}={settings.get(name)!r}: expected {recorded.get(name)!r}, with which {where} was made "
                "(use another run folder, or the same settings)"
            )


def override(config: Config, assignments: Mapping[str, Any], where: str) -> Config:
    """`config` with dotted settings replaced, validated as a whole.

    Raises ConfigError naming the setting, its value and what was expected; `where` says where it was given.
    """
    dump = config.model_dump()
    for name, value in assignments.items():
        section, dot, key = name.partition(".")
        known = dump.get(section)
        if not dot or not isinstance(known, dict) or key not in known:
            raise ConfigError(f"{name}={value}: expected one of {', '.join(flat(config))} ({where})")
        known[key] = value
    return parse(dump, where)


def parse(dump: Mapping[str, Any], where: str) -> Config:
    """A Config from plain data; raises ConfigError on the first unknown key or bad value."""
    try:
        return Config.model_validate(dump)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        if first["type"] == "value_error":
            raise ConfigError(f"{name + ': ' if name else ''}{message} ({where})") from None
        if first["type"] == "extra_forbidden":
            expected = ", ".join(flat(Config()))
            raise ConfigError(f"{name}={first['input']}: expected one of {expected} ({where})") from None
        message = message.removeprefix("Input should be ")
        raise ConfigError(f"{name}={first['input']}: expected {message} ({where})") from None
