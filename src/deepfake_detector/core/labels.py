"""Files that label videos: DFDC's metadata.json, and manifests as CSV or JSON lines. Bytes in, rows out.

Whatever is wrong with such a file is one DataError that names the file, the line or entry, the value and what
was expected: a label that is guessed would teach the detector nonsense, and nobody would see it.
"""

from __future__ import annotations

import csv
import io
import json
import posixpath
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from deepfake_detector.core.errors import DataError
from deepfake_detector.core.layout import SPLITS

DFDC_NAME = "metadata.json"
MANIFEST_NAMES = frozenset({"manifest.csv", "manifest.jsonl", "labels.csv", "labels.jsonl"})
VIDEO_SUFFIXES = frozenset(
    {".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ts", ".mts"}
)
COLUMNS = ("path", "label", "group", "split")

_LABELS = {"0": 0, "real": 0, "1": 1, "fake": 1}
_SPLITS = {**{split: split for split in SPLITS}, "val": "validation"}


@dataclass(frozen=True, kw_only=True)
class LabelRow:
    """What a file says of one video.

    path: normalised, relative to the root of the listing; where: file and line or entry, for messages;
    group, split, original: as given, "" when not given.
    """

    path: str
    label: int
    where: str
    group: str = ""
    split: str = ""
    original: str = ""


@dataclass(frozen=True, kw_only=True)
class LabelFile:
    """All rows of one file, and the columns that it has beside the known ones (they are ignored)."""

    rows: list[LabelRow]
    ignored: tuple[str, ...] = ()


def read_dfdc(data: bytes, file: str, *, strict: bool) -> LabelFile | None:
    """Rows of a metadata.json of the DeepFake Detection Challenge (Dolhansky et al. 2020, arXiv:2006.07397).

    The file maps names in its folder to {"label": "REAL" | "FAKE", "original": name | null, "split": ...}.
    Its `split` is "train" throughout and is not taken over. Other programs use the name too, Keras for one: None
    when no entry has a label or is named like a video.

    strict: what is no JSON at all is an error, not another program's file. Raises DataError.
    """
    try:
        document = _json(_text(data, file), file)
    except DataError:
        if strict:
            raise
        return None
    if not isinstance(document, dict) or not any(map(_describes_video, document, document.values())):
        return None
    rows = []
    for name, entry in document.items():
        where = f"{file}, entry {name!r}"
        if not isinstance(entry, dict) or "label" not in entry:
            raise DataError(f'{where}: {_brief(entry)}: expected an object like {{"label": "FAKE"}}')
        original = entry.get("original")
        if original is not None and not (isinstance(original, str) and is_text(original)):
            raise DataError(f"{where}: original={_brief(original)}: expected a video's name or null")
        rows.append(
            LabelRow(
                path=_path(name, file, where),
                label=_label(entry["label"], where),
                where=where,
                original=posixpath.basename(original or ""),
            )
        )
    return LabelFile(rows=rows)


def _describes_video(name: str, entry: object) -> bool:
    return (isinstance(entry, dict) and "label" in entry) or is_video(name)


def is_video(name: str) -> bool:
    return posixpath.splitext(name)[1].lower() in VIDEO_SUFFIXES


def read_manifest(data: bytes, file: str) -> LabelFile:
    """Rows of a manifest: columns path and label, optional group and split; paths from the manifest's folder.

    label: 0, 1, real or fake; split: train, validation (or val) or test; both in any case. An empty group or
    split is one that is not given. Raises DataError.
    """
    text = _text(data, file)
    records = list(_jsonl(text, file) if file.lower().endswith(".jsonl") else _csv(text, file))
    known = [key for _, record in records for key in record]
    ignored = dict.fromkeys(key for key in known if key not in COLUMNS)  # in order of appearance
    return LabelFile(rows=[_manifest_row(record, file, where) for where, record in records], ignored=tuple(ignored))


def _manifest_row(record: Mapping[str, object], file: str, where: str) -> LabelRow:
    for column in ("path", "label"):
        if record.get(column) in (None, ""):
            raise DataError(f"{where}: no {column}: expected a value for path and for label")
    group = record.get("group")
    if group is None:
        group = ""
    if isinstance(group, bool) or not isinstance(group, str | int) or not is_text(str(group)):
        raise DataError(f"{where}: group={_brief(group)}: expected a name or nothing")
    split = str(record.get("split") or "").strip().lower()
    if split and split not in _SPLITS:
        raise DataError(f"{where}: split={_brief(record['split'])}: expected {', '.join(SPLITS)} or nothing")
    return LabelRow(
        path=_path(record["path"], file, where),
        label=_label(record["label"], where),
        where=where,
        group=str(group).strip(),
        split=_SPLITS[split] if split else "",
    )


def _csv(text: str, file: str) -> Iterator[tuple[str, dict[str, object]]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] = []
    try:
        for cells in reader:
            where = f"{file}, line {reader.line_num}"
            if not any(cell.strip() for cell in cells):
                continue
            if not header:
                header = _header([cell.strip().lower() for cell in cells], where)
                continue
            if len(cells) != len(header):
                raise DataError(f"{where}: {len(cells)} cells: expected {len(header)}, as in the header")
            yield where, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num}: {error}: expected CSV (RFC 4180)") from None
    if not header:
        raise DataError(f"{file}: empty: expected a header with the columns {', '.join(COLUMNS)}")


def _header(names: list[str], where: str) -> list[str]:
    for column in ("path", "label"):
        if column not in names:
            raise DataError(f"{where}: columns {', '.join(names)}: expected path, label and, if known, group, split")
    for column in COLUMNS:
        if names.count(column) > 1:
            raise DataError(f"{where}: column {column} appears {names.count(column)} times: expected once")
    return names


def _jsonl(text: str, file: str) -> Iterator[tuple[str, dict[str, object]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"{file}, line {number}"
            record = _json(line, where)
            if not isinstance(record, dict):
                raise DataError(f"{where}: {_brief(record)}: expected an object with path and label")
            yield where, record


def _text(data: bytes, file: str) -> str:
    try:
        return data.decode("utf-8-sig")  # spreadsheets put a byte order mark first
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: byte {data[error.start]:#04x} at {error.start}: expected UTF-8 text") from None


def _json(text: str, where: str) -> object:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        names = dict(pairs)
        if len(names) < len(pairs):
            seen: set[str] = set()
            twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise DataError(f"{where}: {twice!r} appears twice in one object: expected once")
        return names

    try:
        return json.loads(text, object_pairs_hook=unique)
    except (json.JSONDecodeError, RecursionError) as error:
        raise DataError(f"{where}: expected valid JSON ({error})") from None


def _label(value: object, where: str) -> int:
    if not isinstance(value, bool) and isinstance(value, str | int):
        label = _LABELS.get(str(value).strip().lower())
        if label is not None:
            return label
    raise DataError(f"{where}: label={_brief(value)}: expected real, fake, 0 (real) or 1 (fake)")


def _path(value: object, file: str, where: str) -> str:
    if isinstance(value, str) and is_text(value) and not value.startswith("/") and "://" not in value:
        path = posixpath.normpath(posixpath.join(posixpath.dirname(file), value))
        if path != "." and not path.startswith("../") and path != "..":
            return path
    raise DataError(f"{where}: path={_brief(value)}: expected a path relative to this file, inside the videos folder")


def is_text(value: str) -> bool:
    """Encodable as UTF-8: JSON's escapes can spell half a surrogate pair."""
    return value.isascii() or not any("\ud800" <= character <= "\udfff" for character in value)


def _brief(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
