"""Exact frames, upright crops and steady boxes from real decoders and the real detector."""

from __future__ import annotations

from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from deepfake_detector.adapters.faces import FaceDetector, check_weights
from deepfake_detector.adapters.video import Video
from deepfake_detector.core.boxes import iou
from deepfake_detector.core.config import Config, override
from deepfake_detector.core.errors import ConfigError
from deepfake_detector.core.outcomes import Outcome
from deepfake_detector.core.recipes import resolve
from deepfake_detector.stages.extract import compress, cut, extract
from tests.make_videos import has_encoder, portrait, scene, talking_head, write_rotated, write_video

CONFIG = resolve("demo")
PIXELS = CONFIG.limits.max_pixels
B_FRAMES = {"bf": "3", "b-pyramid": "normal", "refs": "4", "g": "250"}


def changed(**settings: object) -> Config:
    return override(CONFIG, {name.replace("__", "."): value for name, value in settings.items()}, "test")


def noisy(count: int) -> list[np.ndarray]:
    """Moving faces with noise, so that no two frames are alike and non-reference frames carry residuals."""
    random = np.random.default_rng(0)
    frames = []
    for frame in talking_head(count, (160, 120)):
        grain = random.integers(-20, 20, frame.shape)
        frames.append(np.clip(frame + grain, 0, 255).astype(np.uint8))
    return frames


@pytest.mark.parametrize(
    ("codec", "name", "options"),
    [
        pytest.param("libx264", "a.mp4", B_FRAMES, id="h264 with B-frames"),
        pytest.param("libx264", "a.mkv", {"bf": "0"}, id="h264 without"),
        pytest.param("libx264", "a.avi", B_FRAMES, id="h264 in AVI, which stores no times"),
        pytest.param("libx264", "a.ts", B_FRAMES, id="h264 transport stream"),
        pytest.param("libx264", "a.h264", B_FRAMES, id="h264 without a container"),
        pytest.param("libx265", "a.mp4", {"x265-params": "bframes=4:log-level=none"}, id="hevc"),
        pytest.param("libvpx-vp9", "a.webm", {"deadline": "realtime", "cpu-used": "8"}, id="vp9"),
        pytest.param("libsvtav1", "a.mp4", {"preset": "12"}, id="av1"),
        pytest.param("mpeg4", "a.mp4", {"bf": "2"}, id="mpeg4"),
    ],
)
def test_sampled_frames_equal_those_of_a_full_decode(
    tmp_path: Path, codec: str, name: str, options: dict[str, str]
) -> None:
    if not has_encoder(codec):
        pytest.skip(f"this PyAV has no encoder {codec}")
    path = write_video(tmp_path / name, noisy(48), codec=codec, options=options)
    assert_exact(path, list(range(2, 48, 5)))


def test_skipping_leaves_frames_out(tmp_path: Path) -> None:
    """The test above would pass without any skip; this one shows that there is one."""
    path = write_video(tmp_path / "a.mp4", noisy(48), options=B_FRAMES)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        stream.codec_context.skip_frame = "NONREF"
        assert sum(1 for _ in container.decode(stream)) < 40


def assert_exact(path: Path, wanted: list[int]) -> None:
    video = Video(path, PIXELS)
    pictures = {picture.index: picture for picture in video.frames(wanted)}
    assert list(pictures) == wanted
    compared = 0
    with av.open(str(path)) as container:
        for index, frame in enumerate(container.decode(video=0)):
            if index in pictures:
                np.testing.assert_array_equal(pictures[index].rgb, frame.to_ndarray(format="rgb24"))
                compared += 1
        assert index + 1 == len(video.times)
    assert compared == len(wanted)


@pytest.mark.clips
def test_real_clips_are_exact_and_have_faces(real_clips: Path) -> None:
    for path in sorted(real_clips.rglob("*.mp4"))[::4]:
        video = Video(path, PIXELS)
        assert_exact(path, list(range(7, len(video.times), 59)))
        extraction = extract(path, changed(sampling__frames=4))
        assert (extraction.outcome, extraction.tracks) == (Outcome.OK, 1)
        assert extraction.frames_detected == extraction.frames_sampled == 4


def test_a_sequence_of_one_moving_face(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", talking_head(50))
    extraction = extract(path, CONFIG)
    assert (extraction.outcome, extraction.detail, extraction.tracks) == (Outcome.OK, "", 1)
    assert extraction.metadata == {
        "width": 320,
        "height": 240,
        "fps": 25,
        "codec": "h264",
        "seconds": 2,
        "rotation": 0,
    }
    [sequence] = extraction.sequences
    assert list(sequence.frame_indices) == [3, 9, 16, 22, 28, 34, 41, 47]
    assert sequence.timestamps == pytest.approx([index / 25 for index in sequence.frame_indices])
    assert all(sequence.valid)
    assert all(sequence.present)
    assert min(sequence.scores) > CONFIG.faces.threshold
    for index, box, image in zip(sequence.frame_indices, sequence.boxes, sequence.images, strict=True):
        left, top, right, bottom = box
        centre = ((left + right) / 2, (top + bottom) / 2)
        # The face drifts by 2 pixels a frame from x = 100; smoothing may lag behind it at the clip's ends.
        assert centre == pytest.approx((100 + 2 * index, 107), abs=16)
        crop = cv2.imdecode(np.frombuffer(image, np.uint8), cv2.IMREAD_COLOR)
        assert crop.shape == (CONFIG.faces.size, CONFIG.faces.size, 3)


def test_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", talking_head(20))
    assert extract(path, CONFIG) == extract(path, CONFIG)


def test_windows_of_a_burst(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", talking_head(50))
    extraction = extract(path, changed(sampling__mode="burst", sampling__windows=3, sampling__frames=4))
    assert [(s.track, s.window) for s in extraction.sequences] == [(0, 0), (0, 1), (0, 2)]
    assert len({tuple(s.frame_indices) for s in extraction.sequences}) == 3


def test_two_faces_are_two_tracks(tmp_path: Path) -> None:
    frames = [scene((480, 240), [("astronaut", 20 + k, 10), ("hopper", 260, 20)]) for k in range(16)]
    path = write_video(tmp_path / "a.mp4", frames)
    extraction = extract(path, CONFIG)
    assert [sequence.track for sequence in extraction.sequences] == [0, 1]
    a, b = (sequence.boxes[0] for sequence in extraction.sequences)
    assert iou(a, b) == 0
    assert extract(path, changed(faces__max_tracks=1)).sequences == extraction.sequences[:1]


def test_a_missing_detection_is_filled(tmp_path: Path) -> None:
    frames = talking_head(16, step=0)
    frames[7] = scene((320, 240))
    frames[8] = scene((320, 240))
    extraction = extract(write_video(tmp_path / "a.mp4", frames, options={"crf": "10"}), CONFIG)
    [sequence] = extraction.sequences
    assert extraction.frames_filled == 1
    hidden = sequence.present.index(False)
    assert sequence.frame_indices[hidden] in (7, 8)
    assert sequence.scores[hidden] == 0
    assert sequence.valid[hidden]
    assert iou(sequence.boxes[hidden], sequence.boxes[0]) > 0.9


def test_a_face_that_leaves_makes_a_short_track(tmp_path: Path) -> None:
    frames = [*talking_head(25, step=0), *[scene((320, 240))] * 75]
    extraction = extract(write_video(tmp_path / "a.mp4", frames), CONFIG)
    [sequence] = extraction.sequences
    own = sum(sequence.valid)
    assert 2 <= own < 8
    assert list(sequence.valid) == [True] * own + [False] * (8 - own)
    assert len(set(sequence.images[own - 1 :])) == 1  # the last frame, repeated
    assert extraction.frames_sampled == own


def test_a_rare_face_is_dropped(tmp_path: Path) -> None:
    frames = [*talking_head(10, step=0), *[scene((320, 240))] * 90]
    extraction = extract(write_video(tmp_path / "a.mp4", frames), changed(faces__min_coverage=0.5))
    assert extraction.outcome is Outcome.NO_FACE
    assert extraction.detail == "a face in 1 of 8 frames"


def test_a_rotated_video_gives_upright_crops(tmp_path: Path) -> None:
    frames = talking_head(10, step=0)
    upright = extract(write_video(tmp_path / "up.mp4", frames), CONFIG)
    rotated = extract(write_rotated(tmp_path / "turned.mp4", frames), CONFIG)
    assert (rotated.metadata["width"], rotated.metadata["height"], rotated.metadata["rotation"]) == (240, 320, -90)
    for a, b in zip(upright.sequences[0].boxes, rotated.sequences[0].boxes, strict=True):
        assert iou(a, b) > 0.9
    a, b = (
        cv2.imdecode(np.frombuffer(e.sequences[0].images[0], np.uint8), cv2.IMREAD_COLOR).astype(float)
        for e in (upright, rotated)
    )
    assert np.abs(a - b).mean() < 8


def test_a_box_beyond_the_frame_repeats_the_edge() -> None:
    picture = np.zeros((20, 20, 3), np.uint8)
    picture[:, 0], picture[:, 19] = 50, 200
    crop = cut(picture, (-10, 5, 10, 25), 20)
    assert np.all(crop[:, :11] == 50)
    assert np.all(crop[:, 11:] == 0)
    np.testing.assert_array_equal(cut(picture, (0, 0, 20, 20), 20), picture)
    assert np.all(cut(picture, (100, 100, 104, 104), 8) == 200)


def test_crops_are_jpeg_in_the_order_of_rgb() -> None:
    red = np.zeros((32, 32, 3), np.uint8)
    red[..., 0] = 200
    bgr = cv2.imdecode(np.frombuffer(compress(red, 95), np.uint8), cv2.IMREAD_COLOR)
    assert bgr[16, 16].tolist() == pytest.approx([0, 0, 200], abs=3)


@pytest.mark.parametrize("name", ["astronaut", "hopper"])
def test_the_detector_finds_a_portrait(name: str) -> None:
    [face] = FaceDetector(0.5).detect(portrait(name))
    left, top, right, bottom = face.box
    assert 0 < left < right < 160
    assert 0 < top < bottom < 200
    (right_eye_x, right_eye_y), (left_eye_x, left_eye_y), nose, mouth = face.keypoints[:4]
    assert left < right_eye_x < left_eye_x < right
    assert top < min(right_eye_y, left_eye_y) < nose[1] < mouth[1] < bottom


def test_boxes_follow_scale_and_place() -> None:
    detector = FaceDetector(0.5)
    small = scene((320, 240), [("astronaut", 100, 20)])
    [face] = detector.detect(small)
    [large] = detector.detect(cv2.resize(small, (960, 720), interpolation=cv2.INTER_CUBIC))
    assert iou(tuple(3 * x for x in face.box), large.box) > 0.9
    tall = np.zeros((640, 240, 3), np.uint8)
    tall[200:440, :240] = small[:, 80:320]
    [moved] = detector.detect(tall)
    left, top, right, bottom = face.box
    assert iou((left - 80, top + 200, right - 80, bottom + 200), moved.box) > 0.8


def test_other_weights_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.tflite"
    with pytest.raises(ConfigError, match=r"weights\.tflite: expected a readable file"):
        check_weights(file)
    file.write_bytes(b"other")
    with pytest.raises(ConfigError, match=r"weights\.tflite: sha256 d9298a10.*: expected 671dd2f9"):
        check_weights(file)
