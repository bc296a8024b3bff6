"""One video to sequences of face crops: the same code for training and for prediction.

Frames stream through: each is decoded, searched for faces and kept until no later detection can move its boxes
(`Tracker.settled`), then cropped and dropped. Memory is three to eleven frames, however many are sampled.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from deepfake_detector.adapters.faces import FaceDetector
from deepfake_detector.adapters.files import require_readable
from deepfake_detector.adapters.video import Picture, Video, VideoError
from deepfake_detector.core.boxes import PixelBox, Track, Tracker, keep_tracks, lookahead, square
from deepfake_detector.core.config import Config, Faces
from deepfake_detector.core.extraction import Extraction
from deepfake_detector.core.outcomes import Outcome
from deepfake_detector.core.sampling import choose_frames
from deepfake_detector.core.sequences import FaceSequence

__all__ = ["Extraction", "extract"]


@dataclass(frozen=True)
class Crop:
    image: bytes
    index: int
    time: float
    box: PixelBox
    score: float


def warm_up(config: Config) -> None:
    """Load what every video needs, so that the first one is timed like the others. Raises ConfigError."""
    cv2.setNumThreads(1)  # one thread per process; a pod scales by processes
    _detector(config.faces.threshold)


def extract(path: Path, config: Config) -> Extraction:
    """Sample, detect, track and crop one video file; the file is only read.

    A bad video is an outcome, never an exception: not_a_video, no_video_stream, too_large, decode_error, no_face,
    out_of_memory, missing_file. Raises ConfigError when the detector's weights are not the expected ones, StorageError
    where a disk, a mount or the machine is in trouble.
    """
    warm_up(config)
    extraction = _extract(path, config)
    # FFmpeg takes an error of the disk for the file's end, or says EIO, as it does of broken files.
    if extraction.detail and extraction.outcome not in (Outcome.MISSING_FILE, Outcome.OUT_OF_MEMORY):
        require_readable(path)
    return extraction


def _extract(path: Path, config: Config) -> Extraction:
    detector = _detector(config.faces.threshold)
    try:
        video = Video(path, config.limits.max_pixels)
    except VideoError as error:
        return Extraction(outcome=error.outcome, detail=str(error))
    except MemoryError:
        return Extraction(outcome=Outcome.OUT_OF_MEMORY, detail="while opening")
    windows = choose_frames(video.times, video.end, config.sampling)
    wanted = sorted({index for window in windows for index in window})
    cropper = FaceCropper(detector, config.faces)
    outcome, detail = Outcome.OK, ""
    try:
        for picture in video.frames(wanted):
            cropper.add(picture)
        cropper.finish()
    except VideoError as error:
        outcome, detail = error.outcome, str(error)
    except (MemoryError, cv2.error) as error:
        if isinstance(error, cv2.error) and error.code != cv2.Error.StsNoMem:
            raise
        outcome, detail = Outcome.OUT_OF_MEMORY, f"after {len(cropper.indices)} of {len(wanted)} frames"
    sequences = cropper.sequences(windows, config) if outcome is Outcome.OK else []
    if outcome is Outcome.OK:
        outcome, detail = _verdict(video, cropper, sequences, len(wanted))
    return Extraction(
        outcome=outcome,
        detail=detail,
        sequences=sequences,
        metadata=_metadata(video),
        frame_count=len(video.times),
        frames_wanted=len(wanted),
        frames_decoded=len(cropper.indices),
        frames_with_face=cropper.frames_with_face,
    )


class FaceCropper:
    """Turns sampled frames, in time order, into crops by track. Frames wait in a queue of bounded length."""

    def __init__(self, detector: FaceDetector, faces: Faces) -> None:
        self._detector = detector
        self._faces = faces
        self._tracker = Tracker()
        self._waiting: deque[Picture] = deque()
        self._cropped = 0
        self._crops: dict[int, dict[int, Crop]] = {}  # track -> frame index -> crop
        self.indices: list[int] = []
        self.frames_with_face = 0

    def add(self, picture: Picture) -> None:
        detections = self._detector.detect(picture.rgb)
        self._tracker.add(picture.time, detections)
        self._waiting.append(picture)
        self.indices.append(picture.index)
        self.frames_with_face += bool(detections)
        smoothing = self._faces.smoothing_frames
        while self._waiting and (
            len(self._waiting) > lookahead(smoothing) or self._tracker.settled(self._cropped, smoothing)
        ):
            self._crop_next()

    def finish(self) -> None:
        while self._waiting:
            self._crop_next()

    def sequences(self, windows: Sequence[Sequence[int]], config: Config) -> list[FaceSequence]:
        """The sequences of the kept tracks, numbered by weight from 0, heaviest first."""
        decoded = set(self.indices)
        shown = [[index for index in window if index in decoded] for window in windows]
        kept: dict[int, list[tuple[int, list[Crop]]]] = {}
        for identity, crops in self._crops.items():
            for window, indices in enumerate(shown):
                mine = [crops[index] for index in indices if index in crops]
                present = sum(crop.score > 0 for crop in mine)
                if present and present >= self._faces.min_coverage * len(indices):
                    kept.setdefault(identity, []).append((window, mine))
        tracks = keep_tracks((self._tracker.tracks[identity] for identity in kept), self._faces.max_tracks)
        return [
            make_sequence(number, window, crops, config.sampling.frames)
            for number, track in enumerate(tracks)
            for window, crops in kept[track.identity]
        ]

    def _crop_next(self) -> None:
        position, picture = self._cropped, self._waiting.popleft()
        self._cropped += 1
        for track in self._tracker.tracks:
            crop = self._crop(track, position, picture)
            if crop is not None:
                self._crops.setdefault(track.identity, {})[picture.index] = crop

    def _crop(self, track: Track, position: int, picture: Picture) -> Crop | None:
        smooth = self._tracker.box(track, position, self._faces.smoothing_frames)
        if smooth is None:
            return None
        box = square(smooth, self._faces.margin)
        found = track.found.get(position)
        image = compress(cut(picture.rgb, box, self._faces.size), self._faces.jpeg_quality)
        return Crop(image, picture.index, picture.time, box, found.score if found else 0.0)


def cut(rgb: npt.NDArray[np.uint8], box: PixelBox, size: int) -> npt.NDArray[np.uint8]:
    """The box's pixels as (size, size, 3) uint8; beyond the frame its edge is repeated, for both classes alike.

    Shrinking averages areas (INTER_AREA), enlarging is bicubic.
    """
    left, top, right, bottom = box
    height, width = rgb.shape[:2]
    if left >= 0 and top >= 0 and right <= width and bottom <= height:
        region = rgb[top:bottom, left:right]
    else:
        rows = np.clip(np.arange(top, bottom), 0, height - 1)
        columns = np.clip(np.arange(left, right), 0, width - 1)
        region = rgb[np.ix_(rows, columns)]
    interpolation = cv2.INTER_AREA if right - left > size else cv2.INTER_CUBIC
    resized: npt.NDArray[np.uint8] = cv2.resize(region, (size, size), interpolation=interpolation)
    return resized


def compress(rgb: npt.NDArray[np.uint8], quality: int) -> bytes:
    """JPEG bytes of an RGB image."""
    done, data = cv2.imencode(".jpg", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        raise RuntimeError(f"JPEG encoding failed for an image of shape {rgb.shape}")
    return bytes(data)


def make_sequence(track: int, window: int, crops: Sequence[Crop], frames: int) -> FaceSequence:
    """A sequence of length `frames`: a shorter list of crops repeats its last, marked valid=False."""
    padded = [*crops, *[crops[-1]] * (frames - len(crops))]
    return FaceSequence(
        track=track,
        window=window,
        images=[crop.image for crop in padded],
        frame_indices=[crop.index for crop in padded],
        timestamps=[crop.time for crop in padded],
        boxes=[crop.box for crop in padded],
        scores=[crop.score for crop in padded],
        present=[crop.score > 0 for crop in padded],
        valid=[k < len(crops) for k in range(frames)],
    )


@lru_cache(maxsize=1)
def _detector(threshold: float) -> FaceDetector:
    return FaceDetector(threshold)


def _verdict(video: Video, cropper: FaceCropper, sequences: Sequence[FaceSequence], wanted: int) -> tuple[Outcome, str]:
    decoded = len(cropper.indices)
    parts = [video.truncated] if video.truncated else []
    if decoded < wanted:
        parts.append(f"{decoded} of {wanted} wanted frames decoded")
        parts.extend(video.notes[:2])
    if not decoded:
        return Outcome.DECODE_ERROR, "; ".join(parts)
    if not sequences:
        parts.append(f"a face in {cropper.frames_with_face} of {decoded} frames")
        return Outcome.NO_FACE, "; ".join(parts)
    return Outcome.OK, "; ".join(parts)


def _metadata(video: Video) -> dict[str, float | str]:
    return {
        "width": float(video.width),
        "height": float(video.height),
        "fps": round(video.fps, 4),
        "codec": video.codec,
        "seconds": round(video.seconds, 4),
        "rotation": float(video.rotation),
    }
