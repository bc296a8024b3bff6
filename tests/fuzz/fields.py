"""Numbers of containers that decide about times, counts and frame sizes, by the element that they are in."""

from __future__ import annotations

from dataclasses import dataclass

from tests.fuzz.elements import Element, elements

ENTRY = frozenset({"avc1", "hev1", "hvc1", "vp09", "av01", "mp4v"})


@dataclass(frozen=True)
class Field:
    """An integer in a file. at: its first byte; width: bytes; order: little or big."""

    at: int
    width: int
    order: str

    def put(self, data: bytes, value: int) -> bytes:
        raw = (value % (1 << 8 * self.width)).to_bytes(self.width, "little" if self.order == "little" else "big")
        return data[: self.at] + raw + data[self.at + self.width :]


@dataclass(frozen=True)
class Place:
    """Where fields are in an element's body; every: the distance to the next of its kind, 0 if it is the only one."""

    offset: int
    width: int = 4
    every: int = 0


# ISO/IEC 14496-12 (version 0 of the boxes), RFC 9559, and the AVI RIFF file reference.
TIMES = {
    "mvhd": [Place(12), Place(16)],
    "tkhd": [Place(20)],
    "mdhd": [Place(12), Place(16)],
    "elst": [Place(8, every=12), Place(12, every=12)],
    "stts": [Place(12, every=8)],
    "ctts": [Place(12, every=8)],
    "trun": [Place(12, every=4)],
    "tfdt": [Place(4)],
    "sidx": [Place(12), Place(16)],
    "2ad7b1": [Place(0, 3)],  # TimestampScale
    "4489": [Place(0, 8)],  # Duration, a double
    "23e383": [Place(0)],  # DefaultDuration
    "e7": [Place(0, 1)],  # a cluster's timestamp
    "a3": [Place(1, 2)],  # SimpleBlock's, signed
    "avih": [Place(0)],
    "strh": [Place(20), Place(24), Place(28)],
}
COUNTS = {
    "elst": [Place(4)],
    "stts": [Place(4), Place(8, every=8)],
    "ctts": [Place(4), Place(8, every=8)],
    "stss": [Place(4), Place(8, every=4)],
    "stsz": [Place(4), Place(8), Place(12, every=4)],
    "stsc": [Place(4), Place(8, every=12), Place(12, every=12), Place(16, every=12)],
    "stco": [Place(4), Place(8, every=4)],
    "stsd": [Place(4)],
    "dref": [Place(4)],
    "trun": [Place(4), Place(8)],
    "tfhd": [Place(4), Place(8)],
    "f1": [Place(0, 1)],  # CueClusterPosition
    "avih": [Place(16), Place(24), Place(28)],
    "strh": [Place(32), Place(36), Place(44)],
    "idx1": [Place(8, every=16), Place(12, every=16)],
}
SIZES = {
    "tkhd": [Place(76), Place(80)],
    **{name: [Place(24, 2), Place(26, 2)] for name in ENTRY},
    "b0": [Place(0, 1)],  # PixelWidth, which with 160 takes one byte
    "ba": [Place(0, 1)],
    "54b0": [Place(0, 1)],
    "54ba": [Place(0, 1)],
    "avih": [Place(32), Place(36)],
    "strf": [Place(4), Place(8)],
}


def fields(data: bytes, table: dict[str, list[Place]]) -> list[Field]:
    """Every field of the table that the file holds as a whole, in file order."""
    found = (field for part in elements(data) for place in table.get(part.name, ()) for field in _at(part, place))
    return sorted(found, key=lambda field: field.at)


def _at(element: Element, place: Place) -> list[Field]:
    order = "little" if element.form == "riff" else "big"
    first, last = element.body + place.offset, element.end - place.width
    return [Field(at, place.width, order) for at in range(first, last + 1, place.every or element.end)]
