"""Bad and hostile files: each ends in its outcome, from the function that training and prediction share."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import av
import cv2
import numpy as np
import pytest

from deepfake_detector.adapters import files
from deepfake_detector.adapters.video import MACHINE, Video, _read_packets
from deepfake_detector.core.config import Config, override
from deepfake_detector.core.errors import StorageError
from deepfake_detector.core.extraction import Extraction
from deepfake_detector.core.outcomes import Outcome
from deepfake_detector.core.recipes import resolve
from deepfake_detector.stages.decoders import Decoders
from deepfake_detector.stages.extract import extract
from tests.fuzz.clips import Clip, clips, giants
from tests.fuzz.run import observed, peak_file
from tests.make_videos import (
    claim_samples,
    repeat_first_sample,
    scene,
    shift_ivf_times,
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


def cut_short(folder: Path) -> Path:
    whole = write_video(folder / "whole.avi", talking_head(20), codec="mpeg4")
    return truncate(whole, folder / "a.avi", 0.5)


@pytest.mark.parametrize("make", [text, cut_short, faceless, audio_only])
def test_trouble_of_a_disk_is_no_verdict_on_a_video(
    tmp_path: Path, make: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """FFmpeg takes an error for the end of the file, so that its bytes have to be asked again."""

    def fail(path: Path, mode: str) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    path = make(tmp_path)
    monkeypatch.setattr(files, "open", fail, raising=False)
    with pytest.raises(StorageError, match=rf"{path}: Input/output error"):
        extract(path, CONFIG)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_file_that_can_not_be_read_ends_the_decoding(tmp_path: Path) -> None:
    (tmp_path / "a.mp4").symlink_to("/proc/self/mem")  # begins with a page that nobody may read: EIO
    with Decoders(CONFIG, 1) as decoders, pytest.raises(StorageError, match=r"a\.mp4: Input/output error"):
        list(decoders.map([tmp_path / "a.mp4"]))


@pytest.mark.parametrize("number", sorted(MACHINE))
def test_trouble_of_the_machine_is_no_verdict_on_a_video(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the opening, and in the midst of the packets; it may be over when the file is read again."""

    def fail(*_: object, **__: object) -> Iterator[None]:
        raise av.FFmpegError(number, os.strerror(number))

    path = talking(tmp_path)
    with pytest.raises(StorageError, match=os.strerror(number)):
        _read_packets(SimpleNamespace(demux=fail), None, path)
    monkeypatch.setattr(av, "open", fail)
    with pytest.raises(StorageError, match=rf"{path}: {os.strerror(number)}"):
        extract(path, CONFIG)


def test_an_error_of_the_machine_in_mid_video(tmp_path: Path) -> None:
    video = Video(talking(tmp_path), CONFIG.limits.max_pixels)

    def fail(stream: object) -> Iterator[None]:
        raise av.FFmpegError(errno.ESTALE, os.strerror(errno.ESTALE))

    with pytest.raises(StorageError, match=os.strerror(errno.ESTALE)):
        list(video._packets(SimpleNamespace(demux=fail), None))


def talking(folder: Path) -> Path:
    return write_video(folder / "a.mp4", talking_head(5))


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


@pytest.mark.parametrize("frames", [1, 12])
@pytest.mark.parametrize("by", [2**32, 2**56], ids=["unix time", "beyond a float's precision"])
def test_times_far_from_zero(tmp_path: Path, by: int, frames: int) -> None:
    """Those that cannot be told apart are as good as none: frames are counted then."""
    path = write_video(tmp_path / "a.ivf", talking_head(frames), codec="libvpx-vp9", options={"deadline": "realtime"})
    extraction = extract(shift_ivf_times(path, by), CONFIG)
    assert (extraction.outcome, extraction.frame_count) == (Outcome.OK, frames)
    assert extraction.frames_with_face == min(frames, 8)
    assert extraction.metadata["fps"] == pytest.approx(25, rel=0.01)


def test_rotated(tmp_path: Path) -> None:
    assert extract(write_rotated(tmp_path / "a.mp4", talking_head(8)), CONFIG).outcome is Outcome.OK


@pytest.mark.parametrize("clip", [clip for clip in clips() if "noise" not in clip.name], ids=lambda clip: clip.name)
def test_every_codec_in_every_container(tmp_path: Path, clip: Clip) -> None:
    (tmp_path / clip.name).write_bytes(clip.data)
    extraction = extract(tmp_path / clip.name, CONFIG)
    assert (extraction.outcome, extraction.metadata["codec"]) == (Outcome.OK, clip.name.partition(".")[0])
    assert extraction.frames_with_face == extraction.frames_wanted


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


@pytest.mark.parametrize("count", [2**31, 2**32 - 1])
def test_a_claim_of_samples_that_are_not_there(tmp_path: Path, count: int) -> None:
    whole = write_video(tmp_path / "whole.mp4", talking_head(8), codec="mpeg4")
    extraction = extract(claim_samples(whole, tmp_path / "a.mp4", count), CONFIG)
    assert extraction.outcome is Outcome.DECODE_ERROR


def in_a_pool(paths: list[Path], **settings: object) -> list[Extraction]:
    config: Config = override(CONFIG, {f"operations.{key}": value for key, value in settings.items()}, "test")
    with Decoders(config, 1, observed) as decoders:
        return list(decoders.map(paths))


def test_twenty_million_samples_meet_the_cap_of_memory(tmp_path: Path) -> None:
    """480 MB of index from 10 kB."""
    whole = write_video(tmp_path / "whole.mp4", talking_head(8), codec="mpeg4")
    claim_samples(whole, tmp_path / "a.mp4", 20_000_000)
    hostile, honest = in_a_pool([tmp_path / "a.mp4", whole])
    assert (hostile.outcome, honest.outcome) == (Outcome.DECODE_ERROR, Outcome.OK)  # FFmpeg goes on without an index
    assert float(peak_file(tmp_path / "a.mp4").read_text()) <= 600


def test_frames_too_large_for_the_memory(tmp_path: Path) -> None:
    """8K passes limits.max_pixels, so what stops it is the cap."""
    (tmp_path / "giant.mp4").write_bytes(giants()[0].data)
    whole = write_video(tmp_path / "whole.mp4", talking_head(8))
    hostile, honest = in_a_pool([tmp_path / "giant.mp4", whole], video_memory_mb=300)
    assert (hostile.outcome, honest.outcome) == (Outcome.OUT_OF_MEMORY, Outcome.OK)
    assert float(peak_file(tmp_path / "giant.mp4").read_text()) <= 300


def test_4k_fits_into_the_memory(tmp_path: Path) -> None:
    frames = [cv2.resize(frame, (3840, 2160), interpolation=cv2.INTER_LINEAR) for frame in talking_head(12)]
    path = write_video(tmp_path / "a.mp4", frames, options={"preset": "ultrafast", "bf": "3"})
    [extraction] = in_a_pool([path])
    assert (extraction.outcome, extraction.frames_detected) == (Outcome.OK, 8)
    assert float(peak_file(path).read_text()) <= 450


def test_one_frame_shown_for_ever_is_out_of_time(tmp_path: Path) -> None:
    """Minutes of work from 100 kB."""
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3)).astype(np.uint8)
    short = write_video(tmp_path / "short.mp4", [noise], options={"crf": "40"})
    path = tmp_path / "a.mp4"
    path.write_bytes(repeat_first_sample(short.read_bytes(), 20_000))
    assert path.stat().st_size < 200_000
    hostile, honest = in_a_pool([path, short], video_timeout_seconds=3)
    assert (hostile.outcome, hostile.detail) == (Outcome.TIMEOUT, "not done after 3 s")
    assert honest.outcome is Outcome.NO_FACE
