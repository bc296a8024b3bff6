"""The fuzzer's own parts: files are parsed as they are made, and each mutation breaks them, the same way each time."""

from __future__ import annotations

from random import Random

import pytest

from tests.fuzz.clips import CONTAINERS, ENCODERS, NEVER, STREAMS, Clip, clips
from tests.fuzz.corpus import HONEST, KINDS, WRONG_NAME, make
from tests.fuzz.elements import elements
from tests.fuzz.fields import COUNTS, SIZES, TIMES, Field, Place, fields
from tests.fuzz.mutations import MUTATIONS, truncate, wild_times

NAMES = [clip.name for clip in clips()]


def clip(name: str) -> Clip:
    return next(clip for clip in clips() if clip.name == name)


def test_clips_are_the_same_every_time() -> None:
    assert clips.__wrapped__() == clips()


def test_every_codec_is_in_every_container_that_takes_it() -> None:
    pairs = {(codec, container) for codec in ENCODERS for container in CONTAINERS} - NEVER
    assert {f"{codec}.{container}" for codec, container in pairs} | {*STREAMS} <= set(NAMES)
    assert max(len(clip.data) for clip in clips()) < 30_000


@pytest.mark.parametrize(
    ("name", "some"),
    [
        pytest.param("h264.mp4", {"ftyp", "mdat", "moov", "trak", "stbl", "stsd", "avc1", "avcC", "stts"}, id="MP4"),
        pytest.param("av1.fragmented.mp4", {"moov", "mvex", "moof", "traf", "trun", "av01", "mfra"}, id="fragments"),
        pytest.param("vp9.mkv", {"1a45dfa3", "18538067", "1654ae6b", "ae", "86", "e0", "1f43b675", "a3"}, id="EBML"),
        pytest.param("mpeg4.avi", {"RIFF", "LIST", "avih", "strh", "strf", "00dc", "idx1"}, id="AVI"),
    ],
)
def test_elements(name: str, some: set[str]) -> None:
    data = clip(name).data
    found = elements(data)
    assert some <= {element.name for element in found}
    assert max(element.end for element in found) == len(data)
    top = [element for element in found if element.depth == 0]
    assert [element.start for element in top] == [0, *(element.end for element in top[:-1])]
    for element in found:
        assert element.with_size(data, element.size(data)) == data
        assert element.size(element.with_size(data, 5)) == 5


@pytest.mark.parametrize("data", [b"", b"\0", b"\x1a\x45\xdf\xa3", b"RIFF", b"RIFF\xff\xff\xff\xff", b"\0" * 40])
def test_elements_of_what_is_no_container(data: bytes) -> None:
    assert all(0 <= element.start < element.end <= len(data) for element in elements(data))


def test_fields_hold_what_the_muxer_wrote() -> None:
    def values(name: str, table: dict[str, list[Place]]) -> set[int]:
        data = clip(name).data
        return {int.from_bytes(data[f.at : f.at + f.width], f.order) for f in fields(data, table)}  # type: ignore[arg-type]

    assert {160, 120, 160 << 16, 120 << 16} <= values("h264.mp4", SIZES)
    assert {160, 120} <= values("vp9.mkv", SIZES)
    assert {160, 120} <= values("mpeg4.avi", SIZES)
    assert {12_800, 512} <= values("mpeg4.mp4", TIMES)  # FFmpeg's scale for 25 frames a second, and one frame in it
    assert 1_000_000 in values("vp9.webm", TIMES)  # nanoseconds
    assert {40_000, 25} <= values("mpeg4.avi", TIMES)
    assert 12 in values("h264.mp4", COUNTS)


def test_a_field_is_put_back_whole() -> None:
    assert Field(1, 2, "big").put(b"abcd", 0x4142) == b"aABd"
    assert Field(1, 2, "little").put(b"abcd", 0x4142 + (1 << 16)) == b"aBAd"


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_changes_every_clip_and_is_reproducible(name: str) -> None:
    mutate, other = MUTATIONS[name], clip("vp9.webm").data
    for source in clips():
        made = [mutate(source.data, Random(f"{source.name}/{k}"), other) for k in range(10)]
        assert made == [mutate(source.data, Random(f"{source.name}/{k}"), other) for k in range(10)]
        assert all(len(data) < 3 * (len(source.data) + len(other)) for data in made)
        if source.name not in STREAMS:
            assert len({data for data in made if data != source.data}) >= 2, source.name


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_mutation_takes_what_another_has_left(name: str) -> None:
    for seed in range(20):
        broken = truncate(clip("h264.mp4").data[:200], Random(seed), b"") or b"x"
        MUTATIONS[name](broken, Random(seed), broken)


def test_a_truncated_file_is_its_beginning() -> None:
    data = clip("h264.mp4").data
    short = truncate(data, Random(0), b"")
    assert data.startswith(short)
    assert len(short) < len(data)


def test_wild_times_leave_the_payload_alone() -> None:
    data = clip("h264.mp4").data
    payload = next(element for element in elements(data) if element.name == "mdat")
    wild = wild_times(data, Random(0), b"")
    assert wild[payload.start : payload.end] == data[payload.start : payload.end]


def test_a_case_is_a_function_of_seed_and_index() -> None:
    cases = [make(5, index) for index in range(3 * len(KINDS)) if KINDS[index % len(KINDS)] != "giant frames"]
    assert cases == [make(5, case.index) for case in reversed(cases)][::-1]
    assert [case.kind for case in cases] == [KINDS[case.index % len(KINDS)] for case in cases]
    assert [make(6, case.index).data for case in cases] != [case.data for case in cases]
    for case in cases:
        if case.kind != WRONG_NAME:  # some of which are broken, too
            assert (case.data == clip(case.source).data) == (case.kind == HONEST), case.index
        assert (case.suffix != clip(case.source).suffix) == (case.kind == WRONG_NAME)
