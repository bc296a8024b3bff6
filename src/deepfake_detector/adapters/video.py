"""Exact frames of one video by PyAV, on one thread, with as little decoding as exactness allows.

Two passes. The first reads packets without decoding them: their presentation times, sorted, number the frames of
the stream. The second decodes and sets `skip_frame` for each packet: frames that are neither wanted nor used as
a reference by others are skipped (NONREF), which leaves the wanted frames bit-identical to a full decode. Skipping
more (the loop filter, BIDIR) would not. Seeking is slower than this in clips with few keyframes.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.stream import Disposition
from av.video.frame import VideoFrame

from deepfake_detector.core.errors import StorageError
from deepfake_detector.core.outcomes import Outcome

DEFAULT_FPS = 25.0  # FFmpeg's own assumption for a stream that tells neither times nor rate
# Whose decoders obey skip_frame packet by packet, and exactly. libdav1d (AV1), for one, reads it once.
SKIP_CODECS = frozenset({"h264", "hevc"})
# Containers that hold whole videos. Left out on purpose: playlists and image patterns, which open other files.
FORMATS = "mov,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,h264,hevc,ivf,obu,m4v,mxf,gxf,3gp,y4m,yuv4mpegpipe,mpegvideo"
# What no file's content makes FFmpeg say: the process, the machine or a mount is in trouble. EIO is not among them.
MACHINE = {errno.EMFILE, errno.ENFILE, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT}


class VideoError(Exception):
    """A video that ends in an outcome other than ok; its text is the outcome's detail."""

    def __init__(self, outcome: Outcome, detail: str) -> None:
        super().__init__(detail)
        self.outcome = outcome


@dataclass(frozen=True)
class Picture:
    """One decoded frame, upright. index: its number in presentation order; time: seconds; rgb: (H, W, 3) uint8."""

    index: int
    time: float
    rgb: npt.NDArray[np.uint8]


class Video:
    """What a file's packets tell, and its frames. Construction reads the whole file once and decodes nothing.

    times: presentation time in seconds of every frame, ascending; end: when the last one ends; truncated: in words,
    where the file breaks off, or "". An error of a disk may look like the file's end (files.require_readable tells).
    Raises VideoError (not_a_video, no_video_stream, too_large, decode_error, missing_file), StorageError where the
    machine or a mount is in trouble, and MemoryError.
    """

    def __init__(self, path: Path, max_pixels: int) -> None:
        self._path = path
        self._max_pixels = max_pixels
        self.rotation = 0
        self.notes: list[str] = []
        with self._open() as (container, stream):
            self.width, self.height = stream.width, stream.height
            self.codec = stream.codec_context.codec.canonical_name
            packets, broken = _read_packets(container, stream, path)
            if not packets:
                raise VideoError(Outcome.DECODE_ERROR, f"no packet of the video stream could be read {broken}".strip())
            rate = float(stream.average_rate or stream.guessed_rate or 0) or DEFAULT_FPS
            # AVI stores no presentation times: those that FFmpeg makes up are wrong where frames are reordered.
            told = container.format.name != "avi" and all(pts is not None for pts, _ in packets)
            durations = {pts: duration for pts, duration in packets if pts is not None} if told else {}
            self._pts, self.times, self.end = _timeline(durations, stream.time_base, rate)
            self._by_count = not self._pts
            if self._by_count:
                self.times = [k / rate for k in range(len(packets))]
                self.end = len(packets) / rate
            self.fps = rate if self._by_count else len(self._pts) / (self.end - self.times[0])
            self.truncated = self._truncation(container, stream, broken)

    @property
    def seconds(self) -> float:
        return self.end - self.times[0]

    def frames(self, wanted: Sequence[int]) -> Iterator[Picture]:
        """Decode the frames with these indices (ascending), in order; those that cannot be decoded are left out.

        A packet that the decoder refuses costs its frame and leaves a line in `notes`.
        Raises VideoError too_large when the frame size grows beyond the limit before the last wanted frame, and
        StorageError and MemoryError as construction does.
        Colours: swscale's conversion to RGB with the frame's own matrix and range; the same bits on the same CPU.
        """
        missing = set(wanted)
        if not missing:
            return
        final = max(missing)
        with self._open() as (container, stream):
            context = stream.codec_context
            context.options = {**context.options, "max_pixels": str(self._max_pixels)}
            context.thread_type = "NONE"
            context.thread_count = 1
            number: dict[int | None, int] = {pts: index for index, pts in enumerate(self._pts)}
            keep = {self._pts[index] for index in missing} if self._pts else set()
            # Frames are numbered by counting when times are unknown: then none may be skipped.
            skips = self.codec in SKIP_CODECS and not self._by_count
            count = 0
            for packet in self._packets(container, stream):
                if skips:
                    context.skip_frame = "DEFAULT" if packet.pts in keep else "NONREF"
                for frame in self._decode(packet, context):
                    index = count if self._by_count else number.get(frame.pts, -1)
                    count += 1
                    if index in missing:
                        missing.remove(index)
                        yield self._picture(frame, index)
                    if index >= final:
                        return

    def _picture(self, frame: VideoFrame, index: int) -> Picture:
        _check_size(frame.width, frame.height, self._max_pixels)
        self.rotation = frame.rotation
        rgb = frame.to_ndarray(format="rgb24", threads=1)
        # The display matrix turns the stored picture counter-clockwise by `rotation` degrees.
        turns = round(frame.rotation / 90) % 4
        upright = np.ascontiguousarray(np.rot90(rgb, turns)) if turns else rgb
        return Picture(index, self.times[index], upright)  # type: ignore[arg-type]  # rgb24 is uint8

    def _decode(self, packet: Any, context: Any) -> list[VideoFrame]:
        try:
            frames: list[VideoFrame] = packet.decode()
            return frames
        except MemoryError:
            raise
        except (av.FFmpegError, ValueError) as error:
            _check_size(context.width, context.height, self._max_pixels)
            self._note(f"decoder refused a packet: {_reason(error)}")
            return []

    def _packets(self, container: Any, stream: Any) -> Iterator[Any]:
        try:
            yield from container.demux(stream)
        except MemoryError:
            raise
        except (av.FFmpegError, ValueError) as error:
            _check_machine(self._path, error)
            self._note(f"file breaks off: {_reason(error)}")

    def _note(self, line: str) -> None:
        if line not in self.notes:
            self.notes.append(line)

    def _truncation(self, container: Any, stream: Any, broken: str) -> str:
        declared = 0.0
        if stream.duration:
            declared = float(stream.duration * stream.time_base)
        elif container.duration:
            declared = container.duration / av.time_base
        start = max(self.times[0], 0.0)
        # Players differ by a frame or two on where a stream ends: half a second is none of that.
        if declared and (broken or self.end - start < declared - max(0.5, 0.05 * declared)):
            return f"truncated at {self.end - start:.1f} s of {declared:.1f} s"
        return "truncated" if broken else ""

    @contextmanager
    def _open(self) -> Iterator[tuple[Any, Any]]:
        """The container and its first true video stream. Nothing is decoded before the frame size is checked.

        An ordinary open decodes a frame of many formats, so one that allows no decoder reads the headers first;
        max_pixels is the decoder's own limit for sizes that only its bit stream tells.
        """
        with _container(self._path, {"codec_whitelist": "none"}) as header:
            told = _video_stream(header)
            _check_size(told.width, told.height, self._max_pixels)
        with _container(self._path, {"max_pixels": str(self._max_pixels)}) as container:
            stream = _video_stream(container)
            _check_size(stream.width, stream.height, self._max_pixels)
            yield container, stream


def _container(path: Path, options: dict[str, str]) -> Any:
    # "file:" keeps a name with a colon from being read as a protocol, the white lists keep a hostile file from
    # naming others.
    safe = {"protocol_whitelist": "file", "format_whitelist": FORMATS, **options}
    try:
        return av.open(f"file:{path}", options=safe, metadata_errors="replace")
    except MemoryError:
        raise
    except (av.error.FileNotFoundError, av.error.PermissionError) as error:
        raise VideoError(Outcome.MISSING_FILE, _reason(error)) from None
    except (av.FFmpegError, ValueError) as error:
        _check_machine(path, error)
        raise VideoError(Outcome.NOT_A_VIDEO, _reason(error)) from None


def _video_stream(container: Any) -> Any:
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            if stream.codec_context is None:
                raise VideoError(Outcome.DECODE_ERROR, "no decoder for the video stream")
            return stream
    kinds = sorted({stream.type for stream in container.streams})
    raise VideoError(Outcome.NO_VIDEO_STREAM, f"streams: {', '.join(kinds) or 'none'}")


def _read_packets(container: Any, stream: Any, path: Path) -> tuple[list[tuple[int | None, int | None]], str]:
    """(pts, duration) of every packet that is shown, in file order, and why reading stopped early, or ""."""
    packets: list[tuple[int | None, int | None]] = []
    try:
        for packet in container.demux(stream):
            # Empty: the flush at the end, or AVI's "show the last frame again". Discarded: outside an edit list.
            if packet.size and not packet.is_discard:
                packets.append((packet.pts, packet.duration))
    except MemoryError:
        raise
    except (av.FFmpegError, ValueError) as error:
        _check_machine(path, error)
        return packets, f"({_reason(error)})"
    return packets, ""


def _timeline(durations: Mapping[int, int | None], base: Fraction, rate: float) -> tuple[list[int], list[float], float]:
    """Presentation times in units of `base`, in seconds, and when the last frame ends, from time -> duration.

    All empty where the times are of no use: far from zero (2^53 frames) a float does not tell them apart.
    """
    pts = sorted(durations)
    times = [float(time * base) for time in pts]
    if not times:
        return [], [], 0.0
    gap = median(b - a for a, b in pairwise(times)) if times[1:] else 0.0
    last = float((durations[pts[-1]] or 0) * base)
    end = times[-1] + (last or gap or 1 / rate)
    ascend = all(a < b for a, b in pairwise([*times, end]))
    return (pts, times, end) if ascend else ([], [], 0.0)


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise VideoError(Outcome.TOO_LARGE, f"{width} x {height} pixels: expected at most {max_pixels}")


def _check_machine(path: Path, error: Exception) -> None:
    number = getattr(error, "errno", None)
    if number in MACHINE:
        raise StorageError(f"{path}: {_reason(error)} (errno {number})") from error


def _reason(error: Exception) -> str:
    """The error in words, without the path, which may be a scratch file's."""
    return str(getattr(error, "strerror", "") or error).splitlines()[0]
