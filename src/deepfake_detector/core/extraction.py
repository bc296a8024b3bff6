"""What decoding makes of one video: plain data that travels from a decoding process to its parent."""

from __future__ import annotations

from dataclasses import dataclass, field

from deepfake_detector.core.outcomes import Outcome
from deepfake_detector.core.sequences import FaceSequence


@dataclass(frozen=True, kw_only=True)
class Extraction:
    """What became of one video.

    sequences: heaviest track first, each track's windows in order; metadata: width, height, fps, codec, seconds,
    rotation, as far as they became known; frame_count: frames in the stream. frames_wanted, frames_decoded and
    frames_with_face count distinct sampled frames, whatever became of the tracks.
    """

    outcome: Outcome
    detail: str = ""
    sequences: list[FaceSequence] = field(default_factory=list)
    metadata: dict[str, float | str] = field(default_factory=dict)
    frame_count: int = 0
    frames_wanted: int = 0
    frames_decoded: int = 0
    frames_with_face: int = 0

    @property
    def tracks(self) -> int:
        return len({sequence.track for sequence in self.sequences})

    @property
    def frames_sampled(self) -> int:
        """Frames of their own (not repeated ones) in the kept sequences, each sequence counted."""
        return sum(sum(sequence.valid) for sequence in self.sequences)

    @property
    def frames_detected(self) -> int:
        """Those of frames_sampled with a detection of their track."""
        return sum(
            present and valid
            for sequence in self.sequences
            for present, valid in zip(sequence.present, sequence.valid, strict=True)
        )

    @property
    def frames_filled(self) -> int:
        """Those of frames_sampled whose box comes from its neighbours."""
        return self.frames_sampled - self.frames_detected
