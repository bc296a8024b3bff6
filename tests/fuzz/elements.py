"""What a container file is made of: MP4's boxes, Matroska's EBML elements, AVI's chunks, as one flat list."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

# ISO/IEC 14496-12: boxes that hold boxes, and how many bytes of their own come first.
BOXES = {
    **dict.fromkeys(("moov", "trak", "mdia", "minf", "dinf", "stbl", "edts", "udta", "mvex", "moof", "traf"), 0),
    "stsd": 8,
    "meta": 4,
    "dref": 8,
    **dict.fromkeys(("avc1", "hev1", "hvc1", "vp09", "av01", "mp4v"), 78),
}
# RFC 9559: EBML header, Segment, SeekHead, Seek, Info, Tracks, TrackEntry, Video, Cluster, BlockGroup, Cues, CuePoint,
# CueTrackPositions, Tags, Tag, Targets.
MASTERS = frozenset(
    {"1a45dfa3", "18538067", "114d9b74", "4dbb", "1549a966", "1654ae6b", "ae", "e0", "1f43b675", "a0", "1c53bb6b"}
    | {"bb", "b7", "1254c367", "7373", "63c0"}
)
PAYLOAD = frozenset({"mdat", "a3", "a1", "00dc", "00db"})


@dataclass(frozen=True)
class Element:
    """name: a box's or chunk's four characters, or an EBML id in hex; [start, end) with its header; body: after it."""

    name: str
    start: int
    body: int
    end: int
    depth: int
    size_at: int
    size_bytes: int
    form: str  # box, ebml or riff

    def with_size(self, data: bytes, size: int) -> bytes:
        """`data` with another number, of as many bits as fit, in the element's size field."""
        bits = 7 * self.size_bytes if self.form == "ebml" else 32
        size %= 1 << bits
        if self.form == "ebml":  # its width is told by leading zeros
            size |= 1 << bits
        field = size.to_bytes(self.size_bytes, "little" if self.form == "riff" else "big")
        return data[: self.size_at] + field + data[self.size_at + self.size_bytes :]

    def size(self, data: bytes) -> int:
        """The number in the size field."""
        raw = data[self.size_at : self.size_at + self.size_bytes]
        number = int.from_bytes(raw, "little" if self.form == "riff" else "big")
        return number & ~(1 << 7 * self.size_bytes) if self.form == "ebml" else number


def elements(data: bytes) -> list[Element]:
    """All elements in file order, parents before children; as far as a broken file can be followed."""
    if data[:4] == b"\x1a\x45\xdf\xa3":
        return list(_ebml(data, 0, len(data), 0))
    if data[:4] == b"RIFF":
        return list(_riff(data, 0, len(data), 0))
    return list(_boxes(data, 0, len(data), 0))


def _boxes(data: bytes, start: int, end: int, depth: int) -> Iterator[Element]:
    while start + 8 <= end:
        size = int.from_bytes(data[start : start + 4], "big")
        name = data[start + 4 : start + 8].decode("latin-1")
        stop = start + size if size >= 8 else end
        if stop > end:
            return
        yield Element(name, start, start + 8, stop, depth, start, 4, "box")
        if name in BOXES:
            yield from _boxes(data, start + 8 + BOXES[name], stop, depth + 1)
        start = stop


def _ebml(data: bytes, start: int, end: int, depth: int) -> Iterator[Element]:
    while start + 2 <= end:
        id_bytes = 9 - data[start].bit_length()
        size_at = start + id_bytes
        if id_bytes > 4 or size_at >= end:
            return
        size_bytes = 9 - data[size_at].bit_length()
        body = size_at + size_bytes
        if size_bytes > 8 or body > end:
            return
        size = int.from_bytes(data[size_at:body], "big") & ~(1 << 7 * size_bytes)
        unknown = size == (1 << 7 * size_bytes) - 1
        stop = end if unknown else body + size
        if stop > end:
            return
        name = data[start:size_at].hex()
        yield Element(name, start, body, stop, depth, size_at, size_bytes, "ebml")
        if name in MASTERS:
            yield from _ebml(data, body, stop, depth + 1)
        start = stop


def _riff(data: bytes, start: int, end: int, depth: int) -> Iterator[Element]:
    while start + 8 <= end:
        name = data[start : start + 4].decode("latin-1")
        stop = start + 8 + int.from_bytes(data[start + 4 : start + 8], "little")
        if stop > end:
            return
        yield Element(name, start, start + 8, stop, depth, start + 4, 4, "riff")
        if name in ("RIFF", "LIST"):
            yield from _riff(data, start + 12, stop, depth + 1)
        start = stop + stop % 2
