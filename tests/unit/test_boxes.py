from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepfake_detector.core.boxes import (
    END_FILL_FRAMES,
    MAX_GAP_FRAMES,
    Box,
    Detection,
    Tracker,
    iou,
    keep_tracks,
    lookahead,
    square,
)


def face(x: float, y: float = 100, side: float = 100, score: float = 0.9) -> Detection:
    return Detection((x, y, x + side, y + side), score)


def tracked(frames: list[list[Detection]], step: float = 0.1) -> Tracker:
    tracker = Tracker()
    for k, detections in enumerate(frames):
        tracker.add(k * step, detections)
    return tracker


def positions(tracker: Tracker) -> list[list[int]]:
    return [track.positions for track in tracker.tracks]


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        pytest.param((0, 0, 2, 2), (0, 0, 2, 2), 1.0, id="equal"),
        pytest.param((0, 0, 2, 2), (1, 0, 3, 2), 1 / 3, id="half over"),
        pytest.param((0, 0, 2, 2), (2, 0, 4, 2), 0.0, id="touching"),
        pytest.param((0, 0, 0, 0), (0, 0, 0, 0), 0.0, id="empty"),
        pytest.param((-2, -2, 2, 2), (0, 0, 2, 2), 0.25, id="beyond the frame"),
    ],
)
def test_iou(a: Box, b: Box, expected: float) -> None:
    assert iou(a, b) == pytest.approx(expected)
    assert iou(b, a) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        pytest.param([[face(0)], [face(10)], [face(20)]], [[0, 1, 2]], id="slow face"),
        pytest.param([[face(0)], [face(90)], [face(180)]], [[0, 1, 2]], id="walking face, no overlap"),
        pytest.param([[face(0)], [face(400)]], [[0], [1]], id="too far to be the same"),
        pytest.param([[face(0)], [face(0, side=300)]], [[0], [1]], id="another size is another face"),
        pytest.param([[face(0), face(300)], [face(310), face(5)]], [[0, 1], [0, 1]], id="order does not matter"),
        pytest.param([[face(0), face(120)], [face(60), face(180)]], [[0, 1], [0, 1]], id="best pairs first"),
        pytest.param([[face(0)], [], [], [face(5)]], [[0, 3]], id="bridged gap"),
        pytest.param([[face(0)], *[[]] * MAX_GAP_FRAMES, [face(0)]], [[0], [MAX_GAP_FRAMES + 1]], id="gap too long"),
    ],
)
def test_tracks(frames: list[list[Detection]], expected: list[list[int]]) -> None:
    assert positions(tracked(frames)) == expected


@pytest.mark.parametrize(
    ("missing", "step", "tracks"),
    [(1, 5.0, 1), (2, 5.0, 2), (3, 0.1, 1)],
    ids=["one sparse sample is bridged", "two sparse samples are too long a time", "dense samples"],
)
def test_gap_in_time(missing: int, step: float, tracks: int) -> None:
    assert len(tracked([[face(0)], *[[]] * missing, [face(0)]], step).tracks) == tracks


def test_a_missing_box_is_interpolated_in_time() -> None:
    tracker = Tracker()
    for time, detections in ((0.0, [face(0)]), (0.3, []), (0.4, [face(40)])):
        tracker.add(time, detections)
    assert tracker.filled(tracker.tracks[0], 1) == pytest.approx((30, 100, 130, 200))


def test_the_ends_take_the_nearest_box_and_no_more() -> None:
    far = END_FILL_FRAMES + 1
    tracker = tracked([*[[]] * far, [face(50)], *[[]] * far])
    track = tracker.tracks[0]
    there = [tracker.filled(track, k) is not None for k in range(2 * far + 1)]
    assert there == [False, *[True] * (2 * END_FILL_FRAMES + 1), False]
    assert tracker.filled(track, far + 1) == face(50).box


def test_smoothing_is_a_centred_mean() -> None:
    tracker = tracked([[face(x)] for x in (0, 10, 50, 10, 0)])
    assert tracker.box(tracker.tracks[0], 2, 3) == pytest.approx((70 / 3, 100, 70 / 3 + 100, 200))
    assert tracker.box(tracker.tracks[0], 0, 3) == pytest.approx((5, 100, 105, 200))
    assert tracker.box(tracker.tracks[0], 2, 1) == pytest.approx(face(50).box)


def test_sparse_samples_are_not_smoothed() -> None:
    """A mean over seconds would lag behind a moving head."""
    tracker = tracked([[face(x)] for x in (0, 50, 100)], step=2.0)
    assert tracker.box(tracker.tracks[0], 1, 5) == pytest.approx(face(50).box)


def test_steady_motion_passes_the_smoothing_unchanged() -> None:
    tracker = tracked([[face(10 * k)] for k in range(9)])
    assert tracker.box(tracker.tracks[0], 4, 5) == pytest.approx(face(40).box)


@pytest.mark.parametrize(
    ("box", "margin", "expected"),
    [
        pytest.param((10, 10, 20, 20), 1.0, (10, 10, 20, 20), id="as it is"),
        pytest.param((10, 10, 20, 30), 1.0, (5, 10, 25, 30), id="longer side"),
        pytest.param((0, 0, 10, 10), 2.0, (-5, -5, 15, 15), id="may leave the frame"),
        pytest.param((3, 3, 3, 3), 1.3, (2, 2, 3, 3), id="never empty"),
    ],
)
def test_square(box: Box, margin: float, expected: tuple[int, ...]) -> None:
    assert square(box, margin) == expected


coordinates = st.floats(-1e4, 1e4)


@given(coordinates, coordinates, st.floats(0.1, 1e4), st.floats(0.1, 1e4), st.floats(1, 3))
def test_square_is_square_whole_and_centred(x: float, y: float, width: float, height: float, margin: float) -> None:
    left, top, right, bottom = square((x, y, x + width, y + height), margin)
    assert right - left == bottom - top >= 1
    assert abs((left + right) / 2 - (x + width / 2)) <= 1
    assert abs((top + bottom) / 2 - (y + height / 2)) <= 1
    assert abs((right - left) - margin * max(width, height)) <= 1


def test_heavy_tracks_are_kept() -> None:
    frames = [[face(0, side=50), face(300, side=200)], [face(0, side=50)], [face(0, side=50)]]
    tracker = tracked(frames)
    assert [track.identity for track in keep_tracks(tracker.tracks, 1)] == [1]  # 200 > 3 x 50
    assert [track.identity for track in keep_tracks(tracker.tracks, 5)] == [1, 0]


detections = st.lists(st.builds(face, st.integers(0, 600), st.integers(0, 300), st.integers(40, 160)), max_size=3)


@settings(max_examples=50, deadline=None)
@given(st.lists(detections, min_size=1, max_size=30), st.sampled_from([1, 3, 5, 9]), st.floats(0.03, 2.0))
def test_later_frames_do_not_change_a_box_beyond_the_lookahead(
    frames: list[list[Detection]], smoothing: int, step: float
) -> None:
    """What lets the cropper drop a frame before the video's end."""
    ahead = lookahead(smoothing)
    tracker = Tracker()
    early: dict[tuple[int, int], Box | None] = {}
    for k, found in enumerate(frames):
        tracker.add(k * step, found)
        if k >= ahead:
            early |= {(t.identity, k - ahead): tracker.box(t, k - ahead, smoothing) for t in tracker.tracks}
    for (identity, k), box in early.items():
        assert tracker.box(tracker.tracks[identity], k, smoothing) == box


@settings(max_examples=200, deadline=None)
@given(st.lists(detections, min_size=1, max_size=30), st.sampled_from([1, 3, 5, 9]), st.floats(0.03, 2.0))
def test_later_frames_do_not_change_a_settled_box(frames: list[list[Detection]], smoothing: int, step: float) -> None:
    """A track that begins later has no box there either."""
    tracker = Tracker()
    early: dict[int, list[Box]] = {}
    for k, found in enumerate(frames):
        tracker.add(k * step, found)
        for place in range(k + 1):
            if tracker.settled(place, smoothing):
                early.setdefault(place, boxes(tracker, place, smoothing))
    for place, there in early.items():
        assert boxes(tracker, place, smoothing) == there


def boxes(tracker: Tracker, k: int, smoothing: int) -> list[Box]:
    return [box for track in tracker.tracks if (box := tracker.box(track, k, smoothing)) is not None]


@pytest.mark.parametrize(
    ("frames", "settled"),
    [
        pytest.param([[face(0)]] * 10, 8, id="steady: all but the smoothing's half"),
        pytest.param([[]] * 10, 8, id="nobody"),
        pytest.param([[face(0)], [face(0)], *[[]] * 8], 0, id="out of sight, may come back"),
        pytest.param([[face(0)], [face(0)], *[[]] * 10], 10, id="gone for good"),
    ],
)
def test_what_is_settled_needs_not_be_kept(frames: list[list[Detection]], settled: int) -> None:
    tracker = tracked(frames)
    assert [tracker.settled(k, 5) for k in range(len(frames))].index(False) == settled


@settings(max_examples=50, deadline=None)
@given(st.lists(detections, min_size=1, max_size=20))
def test_every_detection_is_in_exactly_one_track(frames: list[list[Detection]]) -> None:
    tracker = tracked(frames)
    for k, found in enumerate(frames):
        linked = [track.found[k] for track in tracker.tracks if k in track.found]
        assert sorted(map(id, linked)) == sorted(map(id, found))
