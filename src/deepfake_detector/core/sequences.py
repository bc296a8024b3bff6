"""The record of the pipeline: T face crops of one track, in time order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

SCHEMA_VERSION = 1


@dataclass(frozen=True, kw_only=True)
class FaceSequence:
    """What decoding makes of one window of one track; all lists have length T.

    images: JPEG bytes of S x S RGB crops; frame_indices: index in the decoded stream (it travels with the frame);
    timestamps: seconds; boxes: (left, top, right, bottom) whole pixels of the square crop in the upright frame;
    scores: detection score, 0 where the box was filled in from its neighbours; present: a detection was there;
    valid: 1 for a frame of its own, 0 where a short track repeats its last frame.
    """

    track: int
    window: int
    images: Sequence[bytes]
    frame_indices: Sequence[int]
    timestamps: Sequence[float]
    boxes: Sequence[tuple[int, int, int, int]]
    scores: Sequence[float]
    present: Sequence[bool]
    valid: Sequence[bool]


@dataclass(frozen=True, kw_only=True)
class RecordEntry:
    """Where one sequence lies in a TFRecord file, and what a reader needs to choose it without opening it.

    offset and length: bytes of the framed record (12 bytes header, payload, 4 bytes footer).
    """

    sample: str  # "<video key>#<track>.<window>"
    video: str
    group: str
    label: int
    track: int
    window: int
    offset: int
    length: int
