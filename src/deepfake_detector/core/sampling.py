"""Which frames of a video become sequences: a pure function of presentation times.

Frames are chosen by time and never by index, so that clips of 24, 30 and 60 frames a second, or of variable rate,
are seen alike: a frame rate that correlates with the label must not show in the spacing of the crops.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

from deepfake_detector.core.config import Sampling


def wanted_times(start: float, duration: float, sampling: Sampling) -> list[list[float]]:
    """The wanted presentation times in seconds: `windows` lists of `frames` ascending times.

    start: time of the clip's first frame; duration: from there to the end of its last frame.
    spread: the clip is cut into T equal parts and each part into W; window w takes the centre of the w-th piece of
    every part, so windows interleave and none shares a frame with another while the clip has T x W frames.
    burst: T times `interval_seconds` apart; windows begin at the centres of W equal parts of what the burst leaves
    free. A burst longer than the clip begins with the clip and keeps the times that lie inside.
    """
    count, windows = sampling.frames, sampling.windows
    if sampling.mode == "spread":
        part = duration / count
        return [[start + part * (k + (w + 0.5) / windows) for k in range(count)] for w in range(windows)]
    interval = sampling.interval_seconds
    free = duration - interval * (count - 1)
    if free <= 0:
        inside = [start + interval * k for k in range(count) if interval * k < duration]
        return [inside or [start] for _ in range(windows)]
    return [[start + free * (w + 0.5) / windows + interval * k for k in range(count)] for w in range(windows)]


def choose_frames(timeline: Sequence[float], end: float, sampling: Sampling) -> list[list[int]]:
    """Indices into `timeline` for each window, strictly ascending and at most T of them.

    timeline: ascending presentation times (seconds) of all frames of the stream; end: where its last frame ends.
    Each wanted time takes the nearest frame, the earlier on a tie. A burst first moves to the frame nearest to its
    beginning, so a constant rate that divides the interval gives a constant stride. A frame that is nearest to two
    wanted times is taken once: a short clip gives a short window, and equal windows are given once.
    """
    if not timeline:
        return []
    windows: list[list[int]] = []
    for times in wanted_times(timeline[0], max(end - timeline[0], 0.0), sampling):
        shift = timeline[_nearest(timeline, times[0])] - times[0] if sampling.mode == "burst" else 0.0
        window = sorted({_nearest(timeline, time + shift) for time in times})
        if window not in windows:
            windows.append(window)
    return windows


def _nearest(timeline: Sequence[float], time: float) -> int:
    right = bisect_left(timeline, time)
    if right == 0:
        return 0
    if right == len(timeline):
        return right - 1
    # A microsecond of tolerance: equal distances must not be told apart by rounding.
    return right - 1 if time - timeline[right - 1] <= timeline[right] - time + 1e-6 else right
