from __future__ import annotations

from pathlib import Path

import pytest

from deepfake_detector.adapters.storage import Storage, commit_bytes, crc32c_of
from deepfake_detector.core import layout
from deepfake_detector.core.errors import ConfigError, CorruptError, DetectorError, NotFoundError
from deepfake_detector.core.markers import DetectorManifest, StoredFile
from deepfake_detector.stages.pull import pull
from tests.make_markers import detector_manifest

FILES = {"saved_model.pb": b"graph", "variables/variables.index": b"", "variables/variables.data": b"w" * 100_000}


def export(storage: Storage, files: dict[str, bytes] = FILES) -> DetectorManifest:
    """An exported model, in all that pull sees of it."""
    return mark(storage, [commit_bytes(storage, data, layout.MODEL + name) for name, data in files.items()])


def mark(storage: Storage, files: list[StoredFile]) -> DetectorManifest:
    manifest = detector_manifest(files=files)
    storage.write(layout.DETECTOR, manifest.encode())
    return manifest


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_model_comes_home_with_its_manifest(storage: Storage, tmp_path: Path) -> None:
    manifest = export(storage)
    to = tmp_path / "home/model"
    assert pull(storage.uri, to) == manifest
    assert contents(to) == {**FILES, "detector.json": manifest.encode()}
    assert list(to.parent.iterdir()) == [to]


def test_second_pull_downloads_nothing(storage: Storage, tmp_path: Path) -> None:
    manifest = export(storage)
    pull(storage.uri, tmp_path / "model")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "model").rglob("*")}
    for name in FILES:
        storage.delete(layout.MODEL + name)
    assert pull(storage.uri, tmp_path / "model") == manifest
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "model").rglob("*")} == before


def test_empty_folder_is_filled(storage: Storage, tmp_path: Path) -> None:
    export(storage)
    (tmp_path / "model/empty").mkdir(parents=True)
    pull(storage.uri, tmp_path / "model")
    assert contents(tmp_path / "model").keys() == {*FILES, "detector.json"}


def test_older_model_is_replaced_and_equal_files_are_kept(storage: Storage, tmp_path: Path) -> None:
    export(storage, {**FILES, "gone.txt": b"1"})
    pull(storage.uri, tmp_path / "model")
    newer = {**FILES, "saved_model.pb": b"graph 2", "new.txt": b"2"}
    manifest = export(storage, newer)
    storage.delete(layout.MODEL + "variables/variables.data")  # so it must come from the older model
    pull(storage.uri, tmp_path / "model")
    assert contents(tmp_path / "model") == {**newer, "detector.json": manifest.encode()}
    assert [path.name for path in tmp_path.iterdir() if path.name != "run"] == ["model"]


def test_damaged_copy_is_repaired(storage: Storage, tmp_path: Path) -> None:
    manifest = export(storage)
    pull(storage.uri, tmp_path / "model")
    (tmp_path / "model/saved_model.pb").write_bytes(b"hparg")
    (tmp_path / "model/variables/variables.index").unlink()
    pull(storage.uri, tmp_path / "model")
    assert contents(tmp_path / "model") == {**FILES, "detector.json": manifest.encode()}


@pytest.mark.parametrize("older", [False, True], ids=["first pull", "over an older model"])
def test_failed_pull_changes_nothing_and_the_next_goes_on(storage: Storage, tmp_path: Path, older: bool) -> None:
    before: dict[str, bytes] = {}
    if older:
        export(storage, {"saved_model.pb": b"old"})
        pull(storage.uri, tmp_path / "model")
        before = contents(tmp_path / "model")
    manifest = export(storage)
    storage.write(layout.MODEL + "variables/variables.data", b"W" * 100_000)
    with pytest.raises(CorruptError, match=r"model/variables/variables\.data"):
        pull(storage.uri, tmp_path / "model")
    assert (tmp_path / "model").exists() == older
    assert contents(tmp_path / "model") == before

    storage.write(layout.MODEL + "variables/variables.data", FILES["variables/variables.data"])
    storage.delete(layout.MODEL + "saved_model.pb")  # it was fetched before the failure
    pull(storage.uri, tmp_path / "model")
    assert contents(tmp_path / "model") == {**FILES, "detector.json": manifest.encode()}


@pytest.mark.parametrize(
    ("markers", "expected"),
    [
        ([], "there is no run"),
        ([layout.CONFIG, layout.PLAN], "preprocess and train have not finished"),
        ([layout.CONFIG, layout.PLAN, layout.RECORDS_SUMMARY], "train has not finished"),
        ([layout.CONFIG, layout.TRAINED], "export has not finished"),
    ],
    ids=["nothing", "planned", "preprocessed", "trained"],
)
def test_missing_stage_is_named(storage: Storage, tmp_path: Path, markers: list[str], expected: str) -> None:
    for marker in markers:
        storage.write(marker, b"{}")
    with pytest.raises(NotFoundError, match=expected) as error:
        pull(storage.uri, tmp_path / "model")
    assert error.value.exit_status == 78
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    ("existing", "expected", "kind"),
    [
        ({"model": b"a file"}, "model: is a file", ConfigError),
        ({"model/thesis.tex": b"1"}, r"model: holds thesis\.tex: expected a new or empty folder", ConfigError),
        ({"model/saved_model.pb": b"1"}, r"model: holds saved_model\.pb: expected a new or empty", ConfigError),
        ({"model/detector.json": b"{}"}, r"model/detector\.json: .* expected a valid DetectorManifest", CorruptError),
    ],
    ids=["file", "other files", "another model", "another detector.json"],
)
def test_folder_with_something_else_is_refused(
    storage: Storage, tmp_path: Path, existing: dict[str, bytes], expected: str, kind: type[DetectorError]
) -> None:
    export(storage)
    for name, data in existing.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    with pytest.raises(kind, match=expected):
        pull(storage.uri, tmp_path / "model")
    assert {name: (tmp_path / name).read_bytes() for name in existing} == existing


def test_model_with_something_added_is_refused(storage: Storage, tmp_path: Path) -> None:
    export(storage)
    pull(storage.uri, tmp_path / "model")
    (tmp_path / "model/notes.txt").write_text("mine")
    export(storage, {"saved_model.pb": b"newer"})
    with pytest.raises(ConfigError, match=r"holds notes\.txt beside a model"):
        pull(storage.uri, tmp_path / "model")
    assert (tmp_path / "model/notes.txt").read_text() == "mine"


@pytest.mark.parametrize(
    "name", ["saved_model.pb", "model/../../escaped", "/etc/passwd", "model/", "model/detector.json"]
)
def test_manifest_that_leaves_the_model_is_refused(storage: Storage, tmp_path: Path, name: str) -> None:
    mark(storage, [StoredFile(name=name, size=1, crc32c=crc32c_of(b"1"))])
    with pytest.raises(CorruptError, match=r"expected a file below model/"):
        pull(storage.uri, tmp_path / "model")
    assert [path.name for path in tmp_path.rglob("*") if path.name == "escaped"] == []


def test_damaged_manifest_is_refused(storage: Storage, tmp_path: Path) -> None:
    storage.write(layout.DETECTOR, b"{}")
    with pytest.raises(CorruptError, match=r"model/detector\.json"):
        pull(storage.uri, tmp_path / "model")
