"""What became of each video. Every video of a plan ends in exactly one outcome; none is dropped silently."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

LABELS = {0: "real", 1: "fake", None: "unknown"}


class Outcome(StrEnum):
    OK = "ok"
    NO_FACE = "no_face"
    NOT_A_VIDEO = "not_a_video"  # zero bytes, text, no index: no container can be opened
    NO_VIDEO_STREAM = "no_video_stream"  # audio only
    DECODE_ERROR = "decode_error"  # not one wanted frame came out, or the bytes disagree with storage's checksum
    TOO_LARGE = "too_large"  # more pixels than limits.max_pixels, known before decoding
    OUT_OF_MEMORY = "out_of_memory"
    TIMEOUT = "timeout"
    CRASHED = "crashed"  # the decoding process died on it, twice
    MISSING_FILE = "missing_file"  # labelled, but not there
    BAD_NAME = "bad_name"  # an object's name that is no path, like real//a.mp4: no run could fetch it
    UNLABELLED = "unlabelled"  # there, but without a label


@dataclass(frozen=True, kw_only=True)
class Video:
    """One labelled video of a data set.

    key: unique name, "dataset/method/id"; path: relative to data.videos; label: 1 is fake; group: source
    identity, which never crosses splits; original: key of the real video that a fake was made from, if known.
    """

    key: str
    path: str
    label: int
    group: str
    dataset: str
    method: str
    original: str = ""


@dataclass(frozen=True, kw_only=True)
class PlannedVideo(Video):
    split: str
    shard: int


@dataclass(frozen=True, kw_only=True)
class VideoOutcome:
    """One line of a shard's report, or a loss of the plan's. Frame counts are sums over the sequences that were kept.

    path: relative to data.videos, of a loss of the plan's; "" where the video has a place in a plan, which tells it.
    """

    key: str
    label: int | None
    split: str
    outcome: Outcome
    detail: str = ""
    path: str = ""
    tracks: int = 0
    sequences: int = 0
    frames_sampled: int = 0
    frames_detected: int = 0
    frames_filled: int = 0
    metadata: dict[str, float | str] = field(default_factory=dict)  # width, height, fps, codec, seconds, rotation
