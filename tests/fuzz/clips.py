"""The clips that the fuzzer starts from: a few small frames in every codec and container, most with a face."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import cv2
import numpy as np

from deepfake_detector.adapters.quiet import silent_stderr
from tests.make_videos import Image, scheduled_as_before, talking_head, write_rotated, write_video

FRAME = (160, 120)
GIANT = (7680, 4320)  # within limits.max_pixels, and more than the memory of a decoding process takes
# One thread each: the bytes must be the same every time.
ENCODERS: dict[str, tuple[str, dict[str, str]]] = {
    # With mbtree x264's first file of a process differs from the later ones.
    "h264": ("libx264", {"preset": "veryfast", "bf": "2", "x264-params": "mbtree=0:rc-lookahead=0:sync-lookahead=0"}),
    "hevc": ("libx265", {"preset": "ultrafast", "x265-params": "log-level=none:pools=none:frame-threads=1"}),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
    "av1": ("libsvtav1", {"preset": "12", "svtav1-params": "lp=1"}),
    "mpeg4": ("mpeg4", {"bf": "2"}),
}
CONTAINERS = ("mp4", "faststart.mp4", "fragmented.mp4", "mkv", "webm", "avi")
STREAMS = ("h264.ts", "h264.flv", "h264.h264", "hevc.ts", "hevc.hevc", "vp9.ivf", "av1.ivf", "av1.obu", "mpeg4.m4v")
MOVFLAGS = {"faststart.mp4": "faststart", "fragmented.mp4": "frag_keyframe+empty_moov"}
NEVER = {("h264", "webm"), ("hevc", "webm"), ("mpeg4", "webm"), ("hevc", "avi")}  # FFmpeg's muxers refuse these


@dataclass(frozen=True)
class Clip:
    """name: "h264.faststart.mp4" or "h264.noise.mp4"; data: the file."""

    name: str
    data: bytes

    @property
    def suffix(self) -> str:
        return Path(self.name).suffix


@cache
def clips() -> tuple[Clip, ...]:
    """Five codecs in their containers, and noise, a rotated one, one with sound, in mp4; a second of CPU in all."""
    with tempfile.TemporaryDirectory() as folder, silent_stderr():  # SVT-AV1 greets
        return tuple(Clip(path.name, path.read_bytes()) for path in _write(Path(folder)))


@cache
def giants() -> tuple[Clip, ...]:
    """Two grey frames of 8K, a few kB each."""
    with tempfile.TemporaryDirectory() as folder, silent_stderr():
        paths = [_grey(Path(folder) / f"{codec}.giant.mp4", codec) for codec in ("h264", "av1")]
        return tuple(Clip(path.name, path.read_bytes()) for path in paths)


def faces(count: int = 12) -> list[Image]:
    return [cv2.resize(frame, FRAME, interpolation=cv2.INTER_AREA) for frame in talking_head(count)]


def _write(folder: Path) -> Iterator[Path]:
    random = np.random.default_rng(0)
    noise = [random.integers(0, 256, (64, 80, 3)).astype(np.uint8) for _ in range(6)]
    for codec in ENCODERS:
        for container in CONTAINERS:
            if (codec, container) not in NEVER:
                yield _encode(folder / f"{codec}.{container}", faces(), codec, MOVFLAGS.get(container, ""))
        yield _encode(folder / f"{codec}.noise.mp4", noise, codec)
    for name in STREAMS:  # what else of video.FORMATS is met, with less of a structure
        yield _encode(folder / name, faces(), name.partition(".")[0])
    yield write_rotated(folder / "h264.rotated.mp4", faces(4))
    yield _with_sound(folder / "mpeg4.sound.mkv")


def _encode(path: Path, frames: list[Image], codec: str, movflags: str = "") -> Path:
    encoder, options = ENCODERS[codec]
    flags = {"fflags": "+bitexact"} | ({"movflags": movflags} if movflags else {})
    return write_video(path, frames, codec=encoder, options=dict(options), container_options=flags)


def _grey(path: Path, codec: str) -> Path:
    encoder, options = ENCODERS[codec]
    grey = av.VideoFrame(*GIANT, "yuv420p")
    for plane in grey.planes:
        plane.update(b"\x80" * plane.buffer_size)
    with scheduled_as_before(), av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(encoder, rate=25, options=dict(options))
        stream.width, stream.height = GIANT
        stream.codec_context.thread_count = 1
        for number in range(2):
            grey.pts, grey.time_base = number, Fraction(1, 25)
            container.mux(stream.encode(grey))
        container.mux(stream.encode(None))
    return path


def _with_sound(path: Path) -> Path:
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        sound = container.add_stream("pcm_s16le", rate=8000)
        video = container.add_stream("mpeg4", rate=25)
        video.width, video.height = FRAME
        video.pix_fmt = "yuv420p"
        for picture in faces(8):
            samples = av.AudioFrame.from_ndarray(np.zeros((1, 320), np.int16), format="s16", layout="mono")
            samples.sample_rate = 8000
            container.mux(sound.encode(samples))
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
        container.mux(sound.encode(None))
    return path
