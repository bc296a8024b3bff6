"""Ways to break a video file. Each is a pure function of the file, a source of random numbers and another file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from tests.fuzz.elements import PAYLOAD, Element, elements
from tests.fuzz.fields import COUNTS, ENTRY, SIZES, TIMES, Place, fields

Mutation = Callable[[bytes, Random, bytes], bytes]

FOURCCS = (b"avc1", b"hev1", b"vp09", b"av01", b"mp4v", b"XVID", b"H264", b"mjpg", b"png ", b"raw ", b"ap4h", b"rle ")
CODECS = (b"V_MPEG4/ISO/AVC", b"V_MPEGH/ISO/HEVC", b"V_VP9", b"V_AV1", b"V_VP8", b"V_MPEG4/ISO/ASP", b"V_UNCOMPRESSED")


def truncate(data: bytes, random: Random, other: bytes) -> bytes:
    return data[: random.randrange(len(data))]


def truncate_at_border(data: bytes, random: Random, other: bytes) -> bytes:
    return data[: max(random.choice(_borders(data)) + random.choice((-1, 0, 0, 1)), 0)]


def flip_few(data: bytes, random: Random, other: bytes) -> bytes:
    return _flip(data, random, range(len(data)), random.randint(1, 4))


def flip_many(data: bytes, random: Random, other: bytes) -> bytes:
    return _flip(data, random, range(len(data)), random.randint(10, max(len(data) // 20, 11)))


def flip_headers(data: bytes, random: Random, other: bytes) -> bytes:
    payload = [element for element in elements(data) if element.name in PAYLOAD]
    places = [k for k in range(len(data)) if not any(element.body <= k < element.end for element in payload)]
    return _flip(data, random, places, random.randint(1, 12))


def flip_payload(data: bytes, random: Random, other: bytes) -> bytes:
    payload = [element for element in elements(data) if element.name in PAYLOAD]
    places = [k for element in payload for k in range(element.body, element.end)]
    return _flip(data, random, places, random.randint(1, max(len(places) // 50, 2)))


def swap_elements(data: bytes, random: Random, other: bytes) -> bytes:
    """Two that do not overlap change places; sizes above them stay as they are."""
    found = _parts(data)
    first = random.choice(found)
    apart = [element for element in found if element.end <= first.start or element.start >= first.end]
    if not apart:
        return data
    a, b = sorted((first, random.choice(apart)), key=lambda element: element.start)
    return data[: a.start] + data[b.start : b.end] + data[a.end : b.start] + data[a.start : a.end] + data[b.end :]


def duplicate_element(data: bytes, random: Random, other: bytes) -> bytes:
    chosen = random.choice(_parts(data))
    copies = data[chosen.start : chosen.end] * random.choice((1, 1, 2, 30 if chosen.end - chosen.start < 500 else 1))
    return _replaced(data, chosen.end, chosen.end, copies, random)


def remove_element(data: bytes, random: Random, other: bytes) -> bytes:
    chosen = random.choice(_parts(data))
    return _replaced(data, chosen.start, chosen.end, b"", random)


def adopt_element(data: bytes, random: Random, other: bytes) -> bytes:
    """An element of the other file, in place of one of this file's or inside it."""
    chosen, foreign = random.choice(_parts(data)), random.choice(_parts(other))
    start = random.choice((chosen.start, chosen.body, chosen.end))
    return _replaced(data, start, max(start, chosen.end), other[foreign.start : foreign.end], random)


def resize_element(data: bytes, random: Random, other: bytes) -> bytes:
    for _ in range(random.randint(1, 3)):
        chosen = random.choice(_parts(data))
        change = random.choice((-64, -8, -4, -1, 1, 4, 8, 64, 4096))
        data = chosen.with_size(data, chosen.size(data) + change)
    return data


def extreme_sizes(data: bytes, random: Random, other: bytes) -> bytes:
    chosen = random.choice(_parts(data))
    bits = 7 * chosen.size_bytes if chosen.form == "ebml" else 32
    return chosen.with_size(data, _extreme(bits, random))


def zero_range(data: bytes, random: Random, other: bytes) -> bytes:
    start, end = _range(data, random)
    return data[:start] + bytes(end - start) + data[end:]


def noise_range(data: bytes, random: Random, other: bytes) -> bytes:
    start, end = _range(data, random)
    return data[:start] + random.randbytes(end - start) + data[end:]


def splice(data: bytes, random: Random, other: bytes) -> bytes:
    return data[: random.randrange(len(data))] + other[random.randrange(len(other)) :]


def splice_at_borders(data: bytes, random: Random, other: bytes) -> bytes:
    return data[: random.choice(_borders(data))] + other[random.choice(_borders(other)) :]


def wild_times(data: bytes, random: Random, other: bytes) -> bytes:
    return _wild(data, random, TIMES)


def wild_counts(data: bytes, random: Random, other: bytes) -> bytes:
    return _wild(data, random, COUNTS)


def wild_frame_sizes(data: bytes, random: Random, other: bytes) -> bytes:
    return _wild(data, random, SIZES)


def rename_codec(data: bytes, random: Random, other: bytes) -> bytes:
    """The container says another codec than the stream is of."""
    found = elements(data)
    for element in found:
        if element.name in ENTRY:
            return data[: element.start + 4] + random.choice(FOURCCS) + data[element.start + 8 :]
        if element.name == "strf":
            return data[: element.body + 16] + random.choice(FOURCCS) + data[element.body + 20 :]
        if element.name == "86":  # CodecID; a shorter name is padded with zeros, as RFC 8794 allows
            room = element.end - element.body
            fitting = [codec for codec in CODECS if len(codec) <= room]
            return data[: element.body] + random.choice(fitting).ljust(room, b"\0") + data[element.end :]
    return data


MUTATIONS: dict[str, Mutation] = {
    function.__name__.replace("_", " "): function
    for function in (
        truncate,
        truncate_at_border,
        flip_few,
        flip_many,
        flip_headers,
        flip_payload,
        swap_elements,
        duplicate_element,
        remove_element,
        adopt_element,
        resize_element,
        extreme_sizes,
        zero_range,
        noise_range,
        splice,
        splice_at_borders,
        wild_times,
        wild_counts,
        wild_frame_sizes,
        rename_codec,
    )
}


def _parts(data: bytes) -> list[Element]:
    """The file's elements; a file of which none can be found is one."""
    return elements(data) or [Element("", 0, min(8, len(data)), len(data), 0, 0, 4, "box")]


def _borders(data: bytes) -> list[int]:
    return sorted({place for element in _parts(data) for place in (element.start, element.body, element.end)})


def _flip(data: bytes, random: Random, places: Sequence[int], count: int) -> bytes:
    changed = bytearray(data)
    for _ in range(count):
        place = random.choice(places or range(len(data)))
        changed[place] ^= 1 << random.randrange(8) if random.random() < 0.5 else random.randint(1, 255)
    return bytes(changed)


def _replaced(data: bytes, start: int, end: int, new: bytes, random: Random) -> bytes:
    """[start, end) replaced; as often as not the sizes of the elements around it are put right."""
    changed = data[:start] + new + data[end:]
    if random.random() < 0.5:
        for around in elements(data):
            if around.body <= start and end <= around.end and around.size(data):
                changed = around.with_size(changed, around.size(data) + len(new) - (end - start))
    return changed


def _range(data: bytes, random: Random) -> tuple[int, int]:
    start = random.randrange(len(data))
    return start, min(start + random.choice((4, 16, 64, 256, 1024)), len(data))


def _extreme(bits: int, random: Random) -> int:
    top = 1 << bits
    values = (0, 1, 2, 7, top - 1, top - 2, top // 2, top // 2 - 1, top // 4, 1_000_000, random.randrange(top))
    return random.choice(values)


def _wild(data: bytes, random: Random, table: dict[str, list[Place]]) -> bytes:
    found = fields(data, table)
    if not found:
        return data
    # Mostly fields of one place in the file: what belongs together goes wild together.
    first = random.randrange(len(found))
    for field in found[first : first + random.choice((1, 1, 2, 4, 40))]:
        data = field.put(data, _extreme(8 * field.width, random))
    return data
