from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepfake_detector.core.config import Sampling
from deepfake_detector.core.sampling import choose_frames, wanted_times


def timeline(fps: float, seconds: float, start: float = 0.0) -> list[float]:
    return [start + k / fps for k in range(round(fps * seconds))]


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        pytest.param(Sampling(frames=4), [[1.0, 3.0, 5.0, 7.0]], id="spread takes the centres"),
        pytest.param(Sampling(frames=2, windows=2), [[1.0, 5.0], [3.0, 7.0]], id="spread windows interleave"),
        pytest.param(
            Sampling(frames=3, mode="burst", interval_seconds=1), [[3.0, 4.0, 5.0]], id="one burst lies in the middle"
        ),
        pytest.param(
            Sampling(frames=3, mode="burst", interval_seconds=1, windows=2),
            [[1.5, 2.5, 3.5], [4.5, 5.5, 6.5]],
            id="bursts are evenly placed",
        ),
        pytest.param(
            Sampling(frames=5, mode="burst", interval_seconds=3),
            [[0.0, 3.0, 6.0]],
            id="too long a burst",
        ),
    ],
)
def test_wanted_times_of_eight_seconds(sampling: Sampling, expected: list[list[float]]) -> None:
    times = wanted_times(0.0, 8.0, sampling)
    assert times == [pytest.approx(window) for window in expected]


@pytest.mark.parametrize("fps", [24, 25, 29.97, 30, 50, 60])
def test_equal_times_whatever_the_rate(fps: float) -> None:
    """A rate that correlates with the label must not show in the spacing of the crops."""
    frames = timeline(fps, 10)
    for sampling in (Sampling(frames=16), Sampling(frames=16, mode="burst")):
        wanted = wanted_times(0.0, 10.0, sampling)[0]
        [window] = choose_frames(frames, 10.0, sampling)
        # A burst may move by half a frame as a whole, and each frame is at most half a frame off.
        assert [frames[index] for index in window] == pytest.approx(wanted, abs=1.01 / fps)


def test_a_burst_keeps_a_constant_stride_where_the_rate_allows() -> None:
    [window] = choose_frames(timeline(30, 10), 10.0, Sampling(frames=16, mode="burst"))
    assert {b - a for a, b in pairwise(window)} == {2}


def test_variable_rate_is_chosen_by_time() -> None:
    frames = [0.0, 0.1, 0.2, 0.3, 5.0, 9.0]  # the picture stands still from 0.3 to 5 s
    [window] = choose_frames(frames, 10.0, Sampling(frames=4))
    assert window == [3, 4, 5]  # 1.25 -> 0.3, 3.75 and 6.25 -> 5.0, 8.75 -> 9.0


@pytest.mark.parametrize("mode", ["spread", "burst"])
def test_one_frame(mode: str) -> None:
    assert choose_frames([0.5], 0.54, Sampling(frames=8, mode=mode, windows=3)) == [[0]]


def test_no_frame() -> None:
    assert choose_frames([], 0.0, Sampling()) == []


gaps = st.lists(st.floats(1e-3, 1.0), min_size=1, max_size=80)
samplings = st.builds(
    Sampling,
    frames=st.integers(1, 20),
    mode=st.sampled_from(["spread", "burst"]),
    interval_seconds=st.floats(0.01, 2.0),
    windows=st.integers(1, 5),
)


@given(gaps, st.floats(-5, 5), samplings)
def test_windows_are_ascending_bounded_distinct_and_nearest(gap: list[float], start: float, sampling: Sampling) -> None:
    frames = [start]
    for step in gap:
        frames.append(frames[-1] + step)
    end = frames[-1] + gap[-1]
    windows = choose_frames(frames, end, sampling)
    assert 1 <= len(windows) <= sampling.windows
    assert len({tuple(window) for window in windows}) == len(windows)
    for window in windows:
        assert 1 <= len(window) <= sampling.frames
        assert window == sorted(set(window))
        assert all(0 <= index < len(frames) for index in window)
    if sampling.mode == "spread" and sampling.windows == 1:
        for time in wanted_times(start, end - start, sampling)[0]:
            nearest = min(abs(frame - time) for frame in frames)
            assert min(abs(frames[index] - time) for index in windows[0]) <= nearest + 1e-5


@given(st.integers(1, 12), st.integers(1, 4))
def test_spread_windows_share_no_frame_while_there_are_enough(frames: int, windows: int) -> None:
    sampling = Sampling(frames=frames, windows=windows)
    chosen = choose_frames(timeline(30, 10), 10.0, sampling)
    assert len({index for window in chosen for index in window}) == frames * windows
