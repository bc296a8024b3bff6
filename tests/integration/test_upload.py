"""A data set into a folder and into a bucket of a real fake-gcs-server."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from deepfake_detector.adapters.storage import Entry, Storage, crc32c_of, open_storage
from deepfake_detector.core.errors import ConfigError, DataError, DetectorError, NotFoundError
from deepfake_detector.stages.upload import UploadReport, to_text, upload

CONTENTS = {
    "real/a clip with spaces.mp4": b"1" * 1000,
    "real/naïve 漢字 🎥.mp4": b"2" * 2000,
    "fake/percent%2Fsign+plus#hash?query&[brackets].mp4": b"3" * 3000,
    "fake/empty.mp4": b"",
    "labels.csv": b"path,label\n",
}
SIZE = sum(map(len, CONTENTS.values()))


def snapshot(folder: Path) -> dict[str, tuple[int, int, str]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path): (path.stat().st_mtime_ns, path.stat().st_mode, crc32c_of(path)) for path in files}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    for name, data in CONTENTS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


def test_everything_arrives_and_a_second_run_sends_nothing(storage: Storage, source: Path) -> None:
    before = snapshot(source)
    first = upload(source, storage.uri)
    assert first == UploadReport(storage.uri, len(CONTENTS), SIZE, skipped=0, skipped_bytes=0, replaced=0)
    assert {entry.name: storage.read(entry.name) for entry in storage.list()} == CONTENTS
    second = upload(source, storage.uri)
    assert second == UploadReport(storage.uri, len(CONTENTS), SIZE, len(CONTENTS), SIZE, replaced=0)
    assert "sent 0 files, 0.0 MB; 5 were there already" in to_text(second)
    assert snapshot(source) == before


def test_goes_on_and_replaces_other_bytes(storage: Storage, source: Path) -> None:
    storage.write("labels.csv", b"path,labex\n")  # as long, other bytes
    storage.write("fake/empty.mp4", b"longer")
    storage.write("real/a clip with spaces.mp4", CONTENTS["real/a clip with spaces.mp4"])
    storage.write("somebody else's", b"1")
    report = upload(source, storage.uri)
    assert (report.files, report.skipped, report.skipped_bytes, report.replaced) == (5, 1, 1000, 2)
    assert "2 of those sent took the place of other bytes" in to_text(report)
    assert {entry.name: storage.read(entry.name) for entry in storage.list()} == {**CONTENTS, "somebody else's": b"1"}


def test_links_are_followed(storage: Storage, source: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "b.mp4").write_bytes(b"b")
    (source / "linked folder").symlink_to(elsewhere, target_is_directory=True)
    (source / "linked.mp4").symlink_to(elsewhere / "b.mp4")
    assert upload(source, storage.uri).files == len(CONTENTS) + 2
    assert storage.read("linked folder/b.mp4") == storage.read("linked.mp4") == b"b"
    assert (source / "linked.mp4").is_symlink()


def broken_link(source: Path) -> None:
    (source / "link").symlink_to("nowhere")


def loop(source: Path) -> None:
    (source / "real/loop").symlink_to(source, target_is_directory=True)


def own_loop(source: Path) -> None:
    (source / "self").symlink_to("self")


def fifo(source: Path) -> None:
    os.mkfifo(source / "pipe")


def line_break(source: Path) -> None:
    (source / "two\nlines.mp4").write_bytes(b"1")
    (source / "more\rlines.mp4").write_bytes(b"1")


def not_utf8(source: Path) -> None:
    (source / os.fsdecode(b"\xff.mp4")).write_bytes(b"1")


def too_long(source: Path) -> None:
    folder = source.joinpath(*["漢" * 80] * 5)
    folder.mkdir(parents=True)
    (folder / "a.mp4").write_bytes(b"1")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        pytest.param(broken_link, r"link: a link to nowhere, which is not there", id="link to nothing"),
        pytest.param(own_loop, r"self: a link to self, which is not there", id="link to itself"),
        pytest.param(loop, r"real/loop: a link to a folder that it is in", id="link loop"),
        pytest.param(fifo, r"pipe: neither a file nor a folder", id="fifo"),
        pytest.param(line_break, r"lines.mp4': a name with a line break.*\(and 1 more\)", id="line break"),
        pytest.param(not_utf8, r"\\xff.mp4': a name that is not UTF-8", id="not UTF-8"),
        pytest.param(too_long, r"a name of 12\d\d bytes \(at most 1024\)", id="too long"),
    ],
)
def test_refused_before_anything_is_sent(
    storage: Storage, source: Path, spoil: Callable[[Path], None], says: str
) -> None:
    spoil(source)
    with pytest.raises(DataError, match=says):
        upload(source, storage.uri)
    assert list(storage.list()) == []


@pytest.mark.gcs
def test_prefix_counts_for_the_length(gcs_bucket: str, tmp_path: Path) -> None:
    folder = tmp_path / "source"
    folder.mkdir()
    (folder / ("x" * 200)).write_bytes(b"1")
    room = 1024 - 200 - 1
    prefix = "/".join(["p" * 100] * 8)
    fits, over = f"{prefix}/{'q' * (room - len(prefix) - 1)}", f"{prefix}/{'q' * (room - len(prefix))}"
    with pytest.raises(DataError, match="a name of 1025 bytes"):
        upload(folder, f"{gcs_bucket}/{over}")
    assert upload(folder, f"{gcs_bucket}/{fits}").files == 1


@pytest.mark.parametrize(
    ("folder", "to", "says"),
    [
        pytest.param("missing", "to", "missing: expected a folder with videos", id="no folder"),
        pytest.param("source/labels.csv", "to", "labels.csv: expected a folder", id="a file"),
        pytest.param("empty", "to", "empty: holds no files", id="empty"),
        pytest.param("source", "source/copy", "expected a place outside", id="into itself"),
        pytest.param("source", "source", "expected a place outside", id="onto itself"),
        pytest.param("source", "s3://bucket/a", r"expected a folder or gs://bucket/prefix", id="scheme"),
    ],
)
def test_bad_places(source: Path, tmp_path: Path, folder: str, to: str, says: str) -> None:
    (tmp_path / "empty").mkdir()
    before = snapshot(tmp_path)
    with pytest.raises(DetectorError, match=says):
        upload(tmp_path / folder, to if "://" in to else str(tmp_path / to))
    assert snapshot(tmp_path) == before


@pytest.mark.gcs
def test_no_bucket(gcs_bucket: str, source: Path) -> None:
    with pytest.raises(ConfigError, match="no such bucket"):
        upload(source, "gs://no-such-bucket-here/videos")


def test_a_failure_in_a_thread_is_raised(tmp_path: Path, source: Path) -> None:
    (tmp_path / "to").write_bytes(b"a file in the way")
    with pytest.raises(ConfigError, match="to: expected a folder"):
        upload(source, str(tmp_path / "to"))
    target = open_storage(str(tmp_path / "other"))
    target.write("real", b"a file where a folder must be")
    with pytest.raises((ConfigError, NotFoundError), match="real"):
        upload(source, target.uri)
    assert Entry("real", 29) in list(target.list())
