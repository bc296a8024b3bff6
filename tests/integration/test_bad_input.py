"""Bad and hostile files: each ends in its outcome, from the function that training and prediction share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from deepfake_detector.core.config import override
from deepfake_detector.core.outcomes import Outcome
from deepfake_detector.core.recipes import resolve
from deepfake_detector.stages.extract import extract
from tests.make_videos import (
    has_encoder,
    scene,
    talking_head,
    truncate,
    write_audio,
    write_bomb,
    write_rotated,
    write_video,
)

CONFIG = resolve("demo")


def zero_bytes(folder: Path) -> Path:
    (folder / "a.mp4").touch()
    return folder / "a.mp4"


def text(folder: Path) -> Path:
    (folder / "a.mp4").write_text("not a video\n" * 50)
    return folder / "a.mp4"


def playlist(folder: Path) -> Path:
    """A file that names other files must not open them."""
    write_video(folder / "other.ts", talking_head(5))
    (folder / "a.mp4").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.ts\n#EXT-X-ENDLIST\n")
    return folder / "a.mp4"


def picture(folder: Path) -> Path:
    import cv2

    cv2.imwrite(str(folder / "a.png"), scene((64, 64)))
    return folder / "a.png"


def without_index(folder: Path) -> Path:
    return truncate(write_video(folder / "whole.mp4", talking_head(20)), folder / "a.mp4", 0.5)


def audio_only(folder: Path) -> Path:
    return write_audio(folder / "a.mp4")


def faceless(folder: Path) -> Path:
    return write_video(folder / "a.mp4", [scene((320, 240))] * 12)


def missing(folder: Path) -> Path:
    return folder / "a.mp4"


@pytest.mark.parametrize(
    ("make", "outcome", "detail"),
    [
        pytest.param(zero_bytes, Outcome.NOT_A_VIDEO, "Invalid data", id="zero bytes"),
        pytest.param(text, Outcome.NOT_A_VIDEO, "Invalid data", id="text"),
        pytest.param(playlist, Outcome.NOT_A_VIDEO, "Invalid", id="playlist"),
        pytest.param(picture, Outcome.NOT_A_VIDEO, "Invalid", id="still picture"),
        pytest.param(without_index, Outcome.NOT_A_VIDEO, "Invalid data", id="no moov"),
        pytest.param(audio_only, Outcome.NO_VIDEO_STREAM, "streams: audio", id="audio only"),
        pytest.param(faceless, Outcome.NO_FACE, "a face in 0 of 8 frames", id="faceless"),
        pytest.param(missing, Outcome.MISSING_FILE, "No such file", id="missing"),
    ],
)
def test_outcome(tmp_path: Path, make: Callable[[Path], Path], outcome: Outcome, detail: str) -> None:
    path = make(tmp_path)
    before = path.read_bytes() if path.exists() else None
    extraction = extract(path, CONFIG)
    assert extraction.outcome is outcome
    assert extraction.sequences == []
    assert detail in extraction.detail
    assert str(tmp_path) not in extraction.detail  # reports are the same wherever the scratch folder is
    assert (path.read_bytes() if path.exists() else None) == before


def test_a_cut_tail_keeps_the_frames_before_it(tmp_path: Path) -> None:
    frames = talking_head(60)
    random = np.random.default_rng(0)
    noisy = [np.clip(f + random.integers(-12, 12, f.shape), 0, 255).astype(np.uint8) for f in frames]
    whole = write_video(tmp_path / "whole.mp4", noisy, container_options={"movflags": "faststart"})
    extraction = extract(truncate(whole, tmp_path / "a.mp4", 0.5), CONFIG)
    assert extraction.outcome is Outcome.OK
    assert extraction.detail.startswith("truncated at ")
    assert "of 2.4 s" in extraction.detail
    assert 8 <= extraction.frame_count < 60
    assert extraction.sequences[0].frame_indices[-1] < extraction.frame_count


def test_a_corrupt_payload_is_no_end(tmp_path: Path) -> None:
    """Decoders conceal what they cannot read; only the face coverage shows it."""
    path = write_video(tmp_path / "a.mp4", talking_head(40))
    data = bytearray(path.read_bytes())
    start = data.index(b"mdat")
    for position in range(start + 7000, min(start + 9000, len(data) - 3000), 7):
        data[position] ^= 0xFF
    path.write_bytes(data)
    assert extract(path, CONFIG).outcome in {Outcome.OK, Outcome.NO_FACE, Outcome.DECODE_ERROR}


def test_one_frame(tmp_path: Path) -> None:
    extraction = extract(write_video(tmp_path / "a.mp4", talking_head(1)), CONFIG)
    assert extraction.outcome is Outcome.OK
    [sequence] = extraction.sequences
    assert list(sequence.valid) == [True] + [False] * 7
    assert len(set(sequence.images)) == 1


def test_variable_rate(tmp_path: Path) -> None:
    times = [k * k / 100 for k in range(20)]
    path = write_video(tmp_path / "a.mp4", talking_head(20), times=times)
    extraction = extract(path, CONFIG)
    assert extraction.outcome is Outcome.OK
    sequence = extraction.sequences[0]
    for index, time in zip(sequence.frame_indices, sequence.timestamps, strict=True):
        assert time == pytest.approx(times[index], abs=1e-3)


def test_rotated(tmp_path: Path) -> None:
    assert extract(write_rotated(tmp_path / "a.mp4", talking_head(8)), CONFIG).outcome is Outcome.OK


@pytest.mark.parametrize(
    ("codec", "name", "canonical"),
    [("libx265", "a.mp4", "hevc"), ("libvpx-vp9", "a.webm", "vp9"), ("libsvtav1", "a.mkv", "av1")],
)
def test_other_codecs(tmp_path: Path, codec: str, name: str, canonical: str) -> None:
    if not has_encoder(codec):
        pytest.skip(f"this PyAV has no encoder {codec}")
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    path = write_video(tmp_path / name, talking_head(12), codec=codec, options=options)
    extraction = extract(path, CONFIG)
    assert (extraction.outcome, extraction.metadata["codec"]) == (Outcome.OK, canonical)
    assert extraction.frames_detected == 8


@pytest.mark.parametrize("name", ["ünï cödé 视频.mp4", "with spaces  .mp4", "x:y.mp4", "-dash%20?.mp4", "no_suffix"])
def test_names(tmp_path: Path, name: str) -> None:
    write_video(tmp_path / "plain.mp4", talking_head(8)).rename(tmp_path / name)
    assert extract(tmp_path / name, CONFIG).outcome is Outcome.OK


def test_a_bomb_is_refused_before_decoding(tmp_path: Path) -> None:
    path = write_bomb(tmp_path / "a.mov")
    assert path.stat().st_size < 300_000
    extraction = extract(path, CONFIG)
    assert extraction.outcome is Outcome.TOO_LARGE
    assert extraction.detail == "15000 x 15000 pixels: expected at most 35389440"


def test_growth_in_mid_stream_is_refused(tmp_path: Path) -> None:
    small = write_video(tmp_path / "small.h264", talking_head(10))
    large = write_video(tmp_path / "large.h264", talking_head(10, (640, 480)))
    path = tmp_path / "a.h264"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    assert extract(path, CONFIG).outcome is Outcome.OK
    extraction = extract(path, override(CONFIG, {"limits.max_pixels": 100_000}, "test"))
    assert (extraction.outcome, extraction.detail) == (
        Outcome.TOO_LARGE,
        "640 x 480 pixels: expected at most 100000",
    )
