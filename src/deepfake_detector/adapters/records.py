"""TFRecord files of tf.train.SequenceExample without TensorFlow: a decoding pod never needs to import it.

Framing (tensorflow/core/lib/io/record_writer.h): uint64 length, masked CRC-32C of it, payload, masked CRC-32C of
the payload; little-endian. The messages are built in a descriptor pool of our own, because a second definition of
`tensorflow.SequenceExample` in the default pool would clash with TensorFlow's in one process.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import google_crc32c
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from deepfake_detector.adapters.files import os_errors
from deepfake_detector.core.errors import CorruptError
from deepfake_detector.core.sequences import SCHEMA_VERSION, FaceSequence

HEADER = struct.Struct("<QI")
FOOTER = struct.Struct("<I")
CONTEXT_KEYS: Mapping[str, type] = {
    "schema_version": int,
    "sample_id": str,
    "dataset": str,
    "video_id": str,
    "original_id": str,
    "group_id": str,
    "method": str,
    "label": int,
    "split": str,
    "track_id": int,
    "window": int,
    "fps": float,
    "frame_count": int,
    "size": int,
    "codec": str,
    "source_checksum": str,
    "preprocess_fingerprint": str,
}


def masked_crc(data: bytes) -> int:
    """CRC-32C, rotated by 15 bits and offset: a CRC of data that holds CRCs stays sound (TFRecord's rule)."""
    crc = google_crc32c.value(data)
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def encode(sequence: FaceSequence, context: Mapping[str, str | int | float]) -> bytes:
    """A serialised tf.train.SequenceExample; equal input gives equal bytes in any process.

    context: the keys of CONTEXT_KEYS except schema_version, track_id, window, which are the sequence's own.
    Feature lists, all of length T: image/encoded (JPEG bytes), frame_index (int64), timestamp (float, seconds),
    bbox (4 int64: left, top, right, bottom), det_score (float), face_present and valid (int64, 0 or 1).
    Raises ValueError when a context key is missing, unknown or of another type, or when the lists differ in length.
    """
    full = {
        **context,
        "schema_version": SCHEMA_VERSION,
        "track_id": sequence.track,
        "window": sequence.window,
    }
    if full.keys() != CONTEXT_KEYS.keys():
        raise ValueError(f"context keys {sorted(full)}: expected {sorted(CONTEXT_KEYS)}")
    example = _sequence_example()()
    for key, kind in CONTEXT_KEYS.items():
        value = full[key]
        if not isinstance(value, kind) and not (kind is float and isinstance(value, int)):
            raise ValueError(f"context {key}={value!r}: expected {kind.__name__}")
        _fill(example.context.feature[key], kind, [value])
    for name, kind, rows in _feature_lists(sequence):
        if len(rows) != len(sequence.images):
            raise ValueError(f"{name}: {len(rows)} values, expected {len(sequence.images)}, one per image")
        steps = example.feature_lists.feature_list[name].feature
        for row in rows:
            _fill(steps.add(), kind, row)
    encoded: bytes = example.SerializeToString(deterministic=True)
    return encoded


def decode(payload: bytes) -> tuple[FaceSequence, dict[str, str | int | float]]:
    """The sequence and the whole context of a payload; the inverse of `encode`. Raises CorruptError."""
    example = _sequence_example()()
    try:
        example.ParseFromString(payload)
        context = {key: _read(example.context.feature[key], kind)[0] for key, kind in CONTEXT_KEYS.items()}
        lists = {name: entry.feature for name, entry in example.feature_lists.feature_list.items()}
        sequence = FaceSequence(
            track=int(context["track_id"]),
            window=int(context["window"]),
            images=[step.bytes_list.value[0] for step in lists["image/encoded"]],
            frame_indices=[step.int64_list.value[0] for step in lists["frame_index"]],
            timestamps=[step.float_list.value[0] for step in lists["timestamp"]],
            boxes=[tuple(step.int64_list.value) for step in lists["bbox"]],
            scores=[step.float_list.value[0] for step in lists["det_score"]],
            present=[bool(step.int64_list.value[0]) for step in lists["face_present"]],
            valid=[bool(step.int64_list.value[0]) for step in lists["valid"]],
        )
    except (DecodeError, KeyError, IndexError, UnicodeDecodeError) as error:
        raise CorruptError(f"record: expected a SequenceExample of schema {SCHEMA_VERSION} ({error!r})") from None
    return sequence, context


class RecordWriter:
    """Writes one TFRecord file, plain (uncompressed): JPEGs do not shrink further.

    Raises StorageError and ConfigError that name the file, when it is made, added to and closed.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with os_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("wb")
        self._offset = 0
        self._crc = google_crc32c.Checksum()

    def add(self, payload: bytes) -> tuple[int, int]:
        """Append one record; returns its (offset, length) in bytes, header and footer included."""
        length = HEADER.pack(len(payload), masked_crc(struct.pack("<Q", len(payload))))
        framed = length + payload + FOOTER.pack(masked_crc(payload))
        with os_errors(self._path):
            self._file.write(framed)
        self._crc.update(framed)
        offset, self._offset = self._offset, self._offset + len(framed)
        return offset, len(framed)

    @property
    def size(self) -> int:
        return self._offset

    @property
    def crc32c(self) -> str:
        """CRC-32C of everything written, as 8 hex digits."""
        return self._crc.digest().hex()

    def close(self) -> None:
        with os_errors(self._path):
            self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_record(source: int | BinaryIO, offset: int, length: int, where: str = "") -> bytes:
    """The payload of the record at `offset`; thread-safe for a file descriptor (pread).

    source: a file descriptor or an open binary file; where: its name for messages.
    Raises CorruptError naming file and offset when lengths or checksums disagree.
    """
    descriptor = source if isinstance(source, int) else source.fileno()
    where = where or str(getattr(source, "name", f"descriptor {descriptor}"))
    place = f"{where} at byte {offset}"
    framed = os.pread(descriptor, length, offset)
    if len(framed) != length or length < HEADER.size + FOOTER.size:
        raise CorruptError(f"{place}: {len(framed)} bytes, expected a record of {length}")
    size, length_crc = HEADER.unpack_from(framed)
    if masked_crc(framed[:8]) != length_crc or size != length - HEADER.size - FOOTER.size:
        raise CorruptError(f"{place}: length {size}: expected {length - HEADER.size - FOOTER.size} (checksum or size)")
    payload = framed[HEADER.size : -FOOTER.size]
    if masked_crc(payload) != FOOTER.unpack_from(framed, length - FOOTER.size)[0]:
        raise CorruptError(f"{place}: checksum of the payload disagrees: expected {framed[-4:].hex()} (little-endian)")
    return payload


def scan(path: Path) -> Iterator[tuple[int, int]]:
    """(offset, length) of every record of a file, by walking the headers. Raises CorruptError."""
    with path.open("rb") as file:
        end = file.seek(0, os.SEEK_END)
        offset = 0
        while offset < end:
            header = os.pread(file.fileno(), HEADER.size, offset)
            if len(header) < HEADER.size:
                raise CorruptError(f"{path} at byte {offset}: {len(header)} bytes, expected a header of {HEADER.size}")
            size, crc = HEADER.unpack(header)
            length = HEADER.size + size + FOOTER.size
            if masked_crc(header[:8]) != crc or offset + length > end:
                raise CorruptError(f"{path} at byte {offset}: length {size}: expected a checked length within the file")
            yield offset, length
            offset += length


def _feature_lists(sequence: FaceSequence) -> list[tuple[str, type, list[Any]]]:
    return [
        ("image/encoded", bytes, [[image] for image in sequence.images]),
        ("frame_index", int, [[index] for index in sequence.frame_indices]),
        ("timestamp", float, [[time] for time in sequence.timestamps]),
        ("bbox", int, [list(box) for box in sequence.boxes]),
        ("det_score", float, [[score] for score in sequence.scores]),
        ("face_present", int, [[int(present)] for present in sequence.present]),
        ("valid", int, [[int(valid)] for valid in sequence.valid]),
    ]


def _fill(feature: Any, kind: type, values: list[Any]) -> None:
    if kind is int:
        feature.int64_list.value.extend(values)
    elif kind is float:
        feature.float_list.value.extend(values)
    else:
        feature.bytes_list.value.extend(value.encode() if isinstance(value, str) else value for value in values)


def _read(feature: Any, kind: type) -> list[Any]:
    if kind is int:
        return list(feature.int64_list.value)
    if kind is float:
        return list(feature.float_list.value)
    return [value.decode() if kind is str else value for value in feature.bytes_list.value]


@cache
def _sequence_example() -> Any:
    """The message class, from tensorflow/core/example/{feature,example}.proto: names and numbers are the format."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="tensorflow", syntax="proto3")
    types = descriptor_pb2.FieldDescriptorProto
    repeated, single = types.LABEL_REPEATED, types.LABEL_OPTIONAL

    def message(name: str) -> Any:
        return file.message_type.add(name=name)

    def field(owner: Any, name: str, number: int, label: Any, kind: Any, of: str = "") -> Any:
        return owner.field.add(
            name=name, number=number, label=label, type=kind, type_name=f".tensorflow.{of}" if of else None
        )

    def mapping(owner: Any, name: str, entry: str, value: str) -> None:
        nested = owner.nested_type.add(name=entry)
        nested.options.map_entry = True
        field(nested, "key", 1, single, types.TYPE_STRING)
        field(nested, "value", 2, single, types.TYPE_MESSAGE, value)
        field(owner, name, 1, repeated, types.TYPE_MESSAGE, f"{owner.name}.{entry}")

    lists = (("Bytes", types.TYPE_BYTES), ("Float", types.TYPE_FLOAT), ("Int64", types.TYPE_INT64))
    for name, kind in lists:
        field(message(f"{name}List"), "value", 1, repeated, kind)
    feature = message("Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, _) in enumerate(lists, start=1):
        member = field(feature, f"{name.lower()}_list", number, single, types.TYPE_MESSAGE, f"{name}List")
        member.oneof_index = 0
    mapping(message("Features"), "feature", "FeatureEntry", "Feature")
    field(message("FeatureList"), "feature", 1, repeated, types.TYPE_MESSAGE, "Feature")
    mapping(message("FeatureLists"), "feature_list", "FeatureListEntry", "FeatureList")
    example = message("SequenceExample")
    field(example, "context", 1, single, types.TYPE_MESSAGE, "Features")
    field(example, "feature_lists", 2, single, types.TYPE_MESSAGE, "FeatureLists")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.SequenceExample"))
