"""The video files that tests need, good and bad. Faces are public-domain portraits from installed packages."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]


def has_encoder(codec: str) -> bool:
    try:
        av.Codec(codec, "w")
    except (av.FFmpegError, ValueError):
        return False
    return True


@cache
def portrait(name: str = "astronaut") -> Image:
    """(200, 160, 3) RGB head and shoulders."""
    if name == "astronaut":
        from skimage.data import astronaut

        picture, (left, top, right, bottom) = astronaut()[..., :3], (130, 10, 330, 260)
    else:
        from matplotlib.cbook import get_sample_data
        from PIL import Image as Pillow

        path = get_sample_data("grace_hopper.jpg", asfileobj=False)
        picture, (left, top, right, bottom) = np.asarray(Pillow.open(path).convert("RGB")), (90, 30, 430, 455)
    return cv2.resize(picture[top:bottom, left:right], (160, 200), interpolation=cv2.INTER_AREA)


def scene(size: tuple[int, int], faces: Iterable[tuple[str, int, int]] = ()) -> Image:
    """(height, width, 3) RGB: a soft gradient with portraits at (name, left, top)."""
    width, height = size
    x, y = np.meshgrid(np.linspace(40, 160, width), np.linspace(20, 90, height))
    picture = np.stack([x, y, (x + y) / 2], axis=-1).astype(np.uint8)
    for name, left, top in faces:
        face = portrait(name)[: height - top, : width - left]
        picture[top : top + face.shape[0], left : left + face.shape[1]] = face
    return picture


def talking_head(count: int, size: tuple[int, int] = (320, 240), name: str = "astronaut", step: int = 2) -> list[Image]:
    """`count` frames of one face that drifts to the right by `step` pixels a frame."""
    return [scene(size, [(name, 20 + step * k % 120, 20)]) for k in range(count)]


@contextmanager
def scheduled_as_before() -> Iterator[None]:
    """Around an encoder: SVT-AV1, run by root, makes its caller a real-time process (EbThreads.c, SCHED_FIFO 99).

    All that the tests then start inherits that, and nothing else on the machine gets a CPU.
    """
    if not hasattr(os, "sched_getscheduler"):  # Linux and some others have it
        yield
        return
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, priority)


def write_video(
    path: Path,
    frames: Sequence[Image],
    *,
    codec: str = "libx264",
    fps: int = 25,
    times: Sequence[float] | None = None,
    pixels: str = "yuv420p",
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Encode RGB frames; times: presentation times in seconds (to 1 ms) in place of a constant rate."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with scheduled_as_before(), av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options=options or {})
        stream.height, stream.width = frames[0].shape[:2]
        stream.pix_fmt = pixels
        stream.codec_context.thread_count = 1
        if times is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = round(times[number] * 1000), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_audio(path: Path) -> Path:
    """One second of silence and no video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def write_rotated(path: Path, frames: Sequence[Image]) -> Path:
    """Frames stored lying on their left side, with a track header that tells a player to turn them upright."""
    write_video(path, [np.ascontiguousarray(np.rot90(frame)) for frame in frames])
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 4 + 40  # ISO/IEC 14496-12, 8.3.2, version 0
    struct.pack_into(">9i", data, matrix, 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    return path


def write_bomb(path: Path, side: int = 15_000) -> Path:
    """A few hundred kB that decode to side x side pixels (QuickTime with one flat PNG)."""
    with av.open(str(path), "w", format="mov") as container:
        stream = container.add_stream("png", rate=1)
        stream.width = stream.height = side
        stream.pix_fmt = "gray"
        frame = av.VideoFrame(side, side, "gray")
        frame.planes[0].update(bytes(frame.planes[0].buffer_size))
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def shift_ivf_times(path: Path, by: int) -> Path:
    """Add to the 64-bit time of every frame of an IVF file; its header has 32 bytes, a frame's 4 of size before it."""
    data = bytearray(path.read_bytes())
    at = 32
    while at < len(data):
        size, time = struct.unpack_from("<IQ", data, at)
        struct.pack_into("<Q", data, at + 4, time + by)
        at += 12 + size
    path.write_bytes(data)
    return path


def claim_samples(source: Path, target: Path, count: int) -> Path:
    """An MP4 whose sample tables speak of `count` samples of one byte, all in one chunk (ISO/IEC 14496-12, 8.7)."""
    data = bytearray(source.read_bytes())
    for box, offset, values in (
        (b"stsz", 4, (1, count)),  # sample_size, sample_count
        (b"stts", 4, (1, count, 1)),  # entry_count, sample_count, sample_delta
        (b"stsc", 4, (1, 1, count, 1)),  # entry_count, first_chunk, samples_per_chunk, sample_description_index
    ):
        struct.pack_into(f">{len(values)}I", data, data.index(box) + 4 + offset, *values)
    target.write_bytes(data)
    return target


def repeat_first_sample(data: bytes, count: int) -> bytes:
    """An MP4 of one keyframe that is shown `count` times, at 4 bytes each: all chunks begin at the same place.

    data: an MP4 of one video stream whose moov box comes after the mdat box.
    """
    same, _, size = struct.unpack_from(">3I", data, data.index(b"stsz") + 8)
    size = same or size
    [first] = struct.unpack_from(">I", data, data.index(b"stco") + 12)
    start, old = data.index(b"stts") - 4, data.index(b"stbl") - 4
    end = old + struct.unpack_from(">I", data, old)[0]
    tables = (
        _box(b"stts", 1, count, 512)
        + _box(b"stsc", 1, 1, 1, 1)
        + _box(b"stsz", size, count)
        + _box(b"stco", count, *[first] * count)
    )
    changed = bytearray(data[:start] + tables + data[end:])
    changed = changed.replace(b"edts", b"free")  # the edit list shows the source's time only
    for name in (b"stbl", b"minf", b"mdia", b"trak", b"moov"):
        at = changed.index(name) - 4
        struct.pack_into(">I", changed, at, struct.unpack_from(">I", changed, at)[0] + len(tables) - (end - start))
    return bytes(changed)


def _box(name: bytes, *values: int) -> bytes:
    """A full box of 32-bit numbers, version and flags 0."""
    return struct.pack(f">I4s{len(values) + 1}I", 12 + 4 * len(values), name, 0, *values)


def truncate(source: Path, target: Path, share: float) -> Path:
    """The first `share` of a file."""
    data = source.read_bytes()
    target.write_bytes(data[: int(len(data) * share)])
    return target
