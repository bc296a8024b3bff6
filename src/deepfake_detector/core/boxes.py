"""From detections in single frames to steady square crops of one face through time.

A box is (left, top, right, bottom) in pixels of the upright frame, right and bottom exclusive. Positions `k` count
sampled frames, in time order over all windows of a video.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

Box = tuple[float, float, float, float]
PixelBox = tuple[int, int, int, int]

LINK_IOU = 0.3  # a face that hardly moved
LINK_DISTANCE = 1.0  # centre distance over the larger side: a head crosses about its own width in 0.6 s
LINK_SCALE = 1.6  # and its size changes by less than this in that time
MAX_GAP_FRAMES = 8  # a track ends after so many sampled frames without a detection,
MAX_GAP_SECONDS = 2.0  # or after so long, except that
MIN_GAP_FRAMES = 2  # so many steps are always bridged, however sparse the samples
END_FILL_FRAMES = 2  # frames before the first and after the last detection that take the nearest box,
END_FILL_SECONDS = 1.0  # if they are that near in time
SMOOTHING_REACH_SECONDS = 1.0  # a mean over a longer time would lag behind a moving head and cut it off


@dataclass(frozen=True)
class Detection:
    """One face in one frame. keypoints: (x, y) pixels of eyes, nose, mouth and ears, in the detector's order."""

    box: Box
    score: float
    keypoints: tuple[tuple[float, float], ...] = ()


@dataclass
class Track:
    """One face through time: its detections by position among the sampled frames, added in order."""

    identity: int
    found: dict[int, Detection] = field(default_factory=dict)
    positions: list[int] = field(default_factory=list)

    def add(self, k: int, detection: Detection) -> None:
        self.found[k] = detection
        self.positions.append(k)

    @property
    def last(self) -> int:
        return self.positions[-1]

    @property
    def weight(self) -> float:
        """Coverage times size: the sum of the box sides over all detections."""
        return sum(_side(detection.box) for detection in self.found.values())


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes; 0 when both are empty."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    overlap = max(width, 0.0) * max(height, 0.0)
    union = _area(a) + _area(b) - overlap
    return overlap / union if union > 0 else 0.0


class Tracker:
    """Links detections of successive sampled frames, best pair first (greedy).

    Pairs are ranked by IoU, then, for those below LINK_IOU, by nearness of centres among boxes of like size: at
    0.6 s between samples a walking head no longer overlaps itself. Identity is position alone: a cut to another
    person in the same place goes on as one track.
    """

    def __init__(self) -> None:
        self.tracks: list[Track] = []
        self.times: list[float] = []
        self._live: list[Track] = []

    def add(self, time: float, detections: Sequence[Detection]) -> None:
        """The next sampled frame, at `time` seconds, not before the last one."""
        k = len(self.times)
        self.times.append(time)
        self._live = [track for track in self._live if self._bridges(track.last, k)]
        pairs = [
            (affinity, -track.identity, -index)
            for track in self._live
            for index, detection in enumerate(detections)
            if (affinity := _affinity(track.found[track.last].box, detection.box)) > 0
        ]
        taken: set[int] = set()
        for _, identity, index in sorted(pairs, reverse=True):
            track = self.tracks[-identity]
            if -index not in taken and k not in track.found:
                track.add(k, detections[-index])
                taken.add(-index)
        for index, detection in enumerate(detections):
            if index not in taken:
                track = Track(len(self.tracks))
                track.add(k, detection)
                self.tracks.append(track)
                self._live.append(track)

    def box(self, track: Track, k: int, smoothing_frames: int) -> Box | None:
        """The smoothed box of `track` at position `k`; None where the track does not reach.

        It is the mean of the filled boxes at up to smoothing_frames positions centred on k. It depends on positions
        up to k + `lookahead(smoothing_frames)` only, so a caller may crop while later frames are still to come.
        """
        if self.filled(track, k) is None:
            return None
        half = smoothing_frames // 2
        near = [
            box
            for j in range(max(k - half, 0), min(k + half + 1, len(self.times)))
            if abs(self.times[j] - self.times[k]) <= SMOOTHING_REACH_SECONDS
            and (box := self.filled(track, j)) is not None
        ]
        left, top, right, bottom = (sum(side) / len(near) for side in zip(*near, strict=True))
        return left, top, right, bottom

    def settled(self, k: int, smoothing_frames: int) -> bool:
        """Whether no later detection can change a box at position `k`, so that its frame need not be kept.

        Mostly so when the smoothing's half has been seen: `lookahead` is for a face that is out of sight.
        """
        half, seen = smoothing_frames // 2, len(self.times) - 1
        return seen >= k + max(half, END_FILL_FRAMES) and all(track.last >= k + half for track in self._live)

    def filled(self, track: Track, k: int) -> Box | None:
        """The detection at `k`, or one interpolated linearly in time, or at the ends the nearest; else None."""
        if k in track.found:
            return track.found[k].box
        place = bisect_left(track.positions, k)
        before = track.positions[place - 1] if place else None
        after = track.positions[place] if place < len(track.positions) else None
        if before is not None and after is not None:
            span = self.times[after] - self.times[before]
            share = (self.times[k] - self.times[before]) / span if span > 0 else 0.5
            a, b = track.found[before].box, track.found[after].box
            left, top, right, bottom = (x + (y - x) * share for x, y in zip(a, b, strict=True))
            return left, top, right, bottom
        nearest = before if before is not None else after
        if nearest is None or abs(k - nearest) > END_FILL_FRAMES:
            return None
        if abs(self.times[k] - self.times[nearest]) > END_FILL_SECONDS:
            return None
        return track.found[nearest].box

    def _bridges(self, last: int, k: int) -> bool:
        steps = k - last
        seconds = self.times[k] - self.times[last]
        return steps <= MIN_GAP_FRAMES or (steps <= MAX_GAP_FRAMES and seconds <= MAX_GAP_SECONDS)


def lookahead(smoothing_frames: int) -> int:
    """How many later sampled frames may still change a smoothed box."""
    return smoothing_frames // 2 + MAX_GAP_FRAMES


def square(box: Box, margin: float) -> PixelBox:
    """The square of side `margin` x the box's longer side around its centre, in whole pixels; it may leave the frame.

    The side is rounded first and to at least 1 pixel, so neighbouring frames keep one size while the centre moves.
    """
    side = max(round(margin * _side(box)), 1)
    left = round((box[0] + box[2] - side) / 2)
    top = round((box[1] + box[3] - side) / 2)
    return left, top, left + side, top + side


def keep_tracks(tracks: Iterable[Track], most: int) -> list[Track]:
    """The `most` heaviest tracks (coverage times size), heaviest first; ties go to the earlier track."""
    return sorted(tracks, key=lambda track: (-track.weight, track.identity))[:most]


def _affinity(a: Box, b: Box) -> float:
    """Above 1: overlapping boxes; 0 to 1: near and of like size; 0: not the same face."""
    overlap = iou(a, b)
    if overlap >= LINK_IOU:
        return 1 + overlap
    small, large = sorted((_side(a), _side(b)))
    if small <= 0 or large > LINK_SCALE * small:
        return 0.0
    distance = (((a[0] + a[2] - b[0] - b[2]) / 2) ** 2 + ((a[1] + a[3] - b[1] - b[3]) / 2) ** 2) ** 0.5
    return max(1 - distance / (LINK_DISTANCE * large), 0.0)


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def _side(box: Box) -> float:
    return max(box[2] - box[0], box[3] - box[1])
