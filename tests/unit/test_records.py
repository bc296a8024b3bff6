from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepfake_detector.adapters.records import CONTEXT_KEYS, RecordWriter, decode, encode, masked_crc, read_record, scan
from deepfake_detector.adapters.storage import crc32c_of
from deepfake_detector.core.errors import CorruptError
from deepfake_detector.core.sequences import FaceSequence

CONTEXT: dict[str, str | int | float] = {
    "sample_id": "dfdc/part_0/äbc#1.2",
    "dataset": "dfdc",
    "video_id": "dfdc/part_0/äbc",
    "original_id": "",
    "group_id": "g1",
    "method": "part_0",
    "label": 1,
    "split": "train",
    "fps": 29.97,
    "frame_count": 300,
    "size": 64,
    "codec": "h264",
    "source_checksum": "01234567",
    "preprocess_fingerprint": "ff" * 32,
}


def sequence(length: int = 3) -> FaceSequence:
    return FaceSequence(
        track=1,
        window=2,
        images=[b"\xff\xd8" + bytes([k]) for k in range(length)],
        frame_indices=[10 * k for k in range(length)],
        timestamps=[k / 4 for k in range(length)],
        boxes=[(-3, k, 61, 64 + k) for k in range(length)],
        scores=[0.75, 0.0, 0.5][:length],
        present=[True, False, True][:length],
        valid=[True, True, False][:length],
    )


def test_round_trip() -> None:
    read, context = decode(encode(sequence(), CONTEXT))
    assert read == sequence()
    assert context == {
        **CONTEXT,
        "fps": pytest.approx(29.97),
        "schema_version": 1,
        "track_id": 1,
        "window": 2,
    }


floats = st.floats(0, 1, width=32)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(st.binary(max_size=50), st.integers(0, 2**40), floats, st.integers(-(2**31), 2**31), st.booleans()),
        min_size=1,
        max_size=12,
    ),
    st.text(max_size=20),
)
def test_any_sequence_survives(rows: list[tuple[bytes, int, float, int, bool]], name: str) -> None:
    original = FaceSequence(
        track=0,
        window=0,
        images=[row[0] for row in rows],
        frame_indices=[row[1] for row in rows],
        timestamps=[row[2] for row in rows],
        boxes=[(row[3], row[3], row[3] + 1, row[3] + 1) for row in rows],
        scores=[row[2] for row in rows],
        present=[row[4] for row in rows],
        valid=[not row[4] for row in rows],
    )
    read, context = decode(encode(original, {**CONTEXT, "method": name}))
    assert read == original
    assert context["method"] == name


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        pytest.param({"colour": "red"}, "colour", id="unknown key"),
        pytest.param({"label": "fake"}, "label='fake': expected int", id="wrong type"),
    ],
)
def test_context_is_checked(change: dict[str, str], expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        encode(sequence(), {**CONTEXT, **change})


def test_lists_of_unequal_length_are_refused() -> None:
    crooked = FaceSequence(**{**vars(sequence()), "scores": [0.5]})
    with pytest.raises(ValueError, match="det_score: 1 values, expected 3"):
        encode(crooked, CONTEXT)


def test_payload_that_is_no_record() -> None:
    with pytest.raises(CorruptError, match="expected a SequenceExample"):
        decode(b"\x0a\xff\xff")


def test_masked_crc_of_known_bytes() -> None:
    """RFC 3720, B.4: the CRC-32C of 32 zero bytes is 0x8a9136aa; rotated right by 15 and offset."""
    crc = 0x8A9136AA
    assert masked_crc(bytes(32)) == (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


@settings(max_examples=30, deadline=None)
@given(st.lists(st.binary(max_size=200), max_size=8))
def test_records_are_found_again(tmp_path_factory: pytest.TempPathFactory, payloads: list[bytes]) -> None:
    path = tmp_path_factory.mktemp("records") / "a.tfrecord"
    with RecordWriter(path) as writer:
        places = [writer.add(payload) for payload in payloads]
    assert (writer.size, writer.crc32c) == (path.stat().st_size, crc32c_of(path))
    assert list(scan(path)) == places
    with path.open("rb") as file:
        assert [read_record(file, *place) for place in reversed(places)] == payloads[::-1]


@pytest.mark.parametrize("position", [0, 9, 12, 20, -1], ids=["length", "its crc", "payload", "payload too", "crc"])
def test_a_flipped_bit_is_named(tmp_path: Path, position: int) -> None:
    path = tmp_path / "a.tfrecord"
    with RecordWriter(path) as writer:
        writer.add(b"first")
        place = writer.add(b"the second payload")
    data = bytearray(path.read_bytes())
    data[place[0] + position if position >= 0 else place[0] + place[1] - 1] ^= 4
    path.write_bytes(data)
    with path.open("rb") as file, pytest.raises(CorruptError, match=rf"a\.tfrecord at byte {place[0]}"):
        read_record(file, *place)


def test_a_cut_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.tfrecord"
    with RecordWriter(path) as writer:
        place = writer.add(b"payload")
    path.write_bytes(path.read_bytes()[:-1])
    with path.open("rb") as file, pytest.raises(CorruptError, match="22 bytes, expected a record of 23"):
        read_record(file, *place)
    with pytest.raises(CorruptError, match="at byte 0"):
        list(scan(path))


def test_two_processes_write_the_same_bytes() -> None:
    """Map fields have no order of their own, and hash seeds differ by process."""
    code = (
        "import sys; from tests.unit.test_records import *; "
        "assert 'tensorflow' not in sys.modules; sys.stdout.buffer.write(encode(sequence(), CONTEXT))"
    )
    runs = [
        subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=Path(__file__).parents[2])
        for _ in range(2)
    ]
    assert runs[0].stdout == runs[1].stdout == encode(sequence(), CONTEXT)


def test_tensorflow_reads_it(tmp_path: Path) -> None:
    """The oracle: TensorFlow's own reader and parser, in the process that also holds our message classes."""
    tf = pytest.importorskip("tensorflow")
    path = tmp_path / "a.tfrecord"
    with RecordWriter(path) as writer:
        for _ in range(2):
            writer.add(encode(sequence(), CONTEXT))
    kinds = {str: tf.string, int: tf.int64, float: tf.float32}
    context_features = {key: tf.io.FixedLenFeature([], kinds[kind]) for key, kind in CONTEXT_KEYS.items()}
    lists = {
        "image/encoded": tf.io.FixedLenSequenceFeature([], tf.string),
        "frame_index": tf.io.FixedLenSequenceFeature([], tf.int64),
        "timestamp": tf.io.FixedLenSequenceFeature([], tf.float32),
        "bbox": tf.io.FixedLenSequenceFeature([4], tf.int64),
        "det_score": tf.io.FixedLenSequenceFeature([], tf.float32),
        "face_present": tf.io.FixedLenSequenceFeature([], tf.int64),
        "valid": tf.io.FixedLenSequenceFeature([], tf.int64),
    }
    payloads = list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator())
    assert payloads == [encode(sequence(), CONTEXT)] * 2
    context, steps = tf.io.parse_single_sequence_example(payloads[0], context_features, lists)
    assert context["sample_id"].numpy().decode() == CONTEXT["sample_id"]
    assert int(context["label"]) == 1
    assert float(context["fps"]) == pytest.approx(29.97)
    assert steps["bbox"].numpy().tolist() == [list(box) for box in sequence().boxes]
    assert steps["image/encoded"].numpy().tolist() == list(sequence().images)
    assert steps["face_present"].numpy().tolist() == [1, 0, 1]
    assert tf.train.SequenceExample.FromString(payloads[0]).SerializeToString(deterministic=True) == payloads[0]
