"""What every entrypoint says and leaves behind when it fails, and the folders that it makes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.core.config import Stage
from deepfake_detector.core.errors import ConfigError, StorageError
from deepfake_detector.core.recipes import resolve
from deepfake_detector.stages.runs import Settlement, load_settlement, save_config
from jobs.environment import exit_status, folder, for_child, number, required, settled_run


def fail(error: Exception) -> Callable[[], None]:
    def work() -> None:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        pytest.param(ConfigError("a=0: expected 1"), 78, "a=0: expected 1", id="no retry helps"),
        pytest.param(StorageError("gs://b: away"), 75, "gs://b: away", id="worth another try"),
        pytest.param(KeyError("x"), 1, "unexpected KeyError: 'x'", id="a bug"),
        pytest.param(ConfigError("two\nlines"), 78, "two lines", id="one line whatever it says"),
    ],
)
def test_a_failure_is_one_line_here_and_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: Exception, status: int, line: str
) -> None:
    message = tmp_path / "termination-log"
    message.write_text("something longer that was there before, and must go")
    assert exit_status({"TERMINATION_LOG": str(message)}, fail(error)) == status
    printed = capsys.readouterr().err.splitlines()
    assert printed[-1] == f"error: {line}"
    assert message.read_text() == f"{line}\n"
    assert (printed[0] == "Traceback (most recent call last):") == (status == 1)


def test_success_leaves_no_message(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    message = tmp_path / "termination-log"
    assert exit_status({"TERMINATION_LOG": str(message)}, lambda: None) == 0
    assert not message.exists()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("letter", ["x", "\N{CJK UNIFIED IDEOGRAPH-8996}"], ids=["ASCII", "three bytes a letter"])
def test_a_long_message_is_cut_at_a_letter(tmp_path: Path, letter: str) -> None:
    message = tmp_path / "termination-log"
    exit_status({"TERMINATION_LOG": str(message)}, fail(ConfigError(letter * 5000)))
    assert 4090 < len(message.read_bytes()) <= 4096
    assert set(message.read_text()) == {letter, "\n"}


def test_a_message_file_that_cannot_be_written_changes_no_status(tmp_path: Path) -> None:
    assert exit_status({"TERMINATION_LOG": str(tmp_path / "none/log")}, fail(ConfigError("a"))) == 78


def test_folders_are_there_when_the_work_begins(tmp_path: Path) -> None:
    names = {name: str(tmp_path / "scratch" / name) for name in ("TMPDIR", "HOME")}

    def work() -> None:
        assert all(Path(path).is_dir() for path in names.values())

    assert exit_status(names, work) == 0
    assert exit_status({"TMPDIR": ""}, lambda: None) == 0


@pytest.mark.parametrize(("name", "status"), [("TMPDIR", 78), ("HOME", 0)])
def test_only_a_home_may_be_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, status: int) -> None:
    (tmp_path / "file").touch()
    assert exit_status({name: str(tmp_path / "file/folder")}, lambda: None) == status
    said = f"error: {name}={tmp_path}/file/folder: Not a directory, expected a folder to write to (environment)\n"
    assert capsys.readouterr().err == (said if status else "")


def test_a_child_has_no_last_words_of_the_pods() -> None:
    assert for_child({"TERMINATION_LOG": "/dev/termination-log", "RUN": "gs://b/r"}) == {"RUN": "gs://b/r"}


@pytest.mark.parametrize(
    ("read", "message"),
    [
        pytest.param(lambda: required({"RUN": ""}, "RUN"), "RUN: not set (environment)", id="empty"),
        pytest.param(lambda: folder({}, "SCRATCH"), "SCRATCH: not set (environment)", id="no folder"),
        pytest.param(lambda: number({"A": "-1"}, "A", 0, 9), "A='-1': expected a number from 0 to 9", id="negative"),
        pytest.param(lambda: number({}, "A", 1, 9, "0"), "A='0': expected a number from 1 to 9", id="bad default"),
    ],
)
def test_a_bad_variable_is_named(read: Callable[[], object], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read()
    assert str(caught.value).startswith(message)


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    run = open_storage(str(tmp_path / "run"))
    save_config(run, resolve("demo"), {})
    return run


def bound(run: Storage, stage: Stage) -> dict[str, str]:
    """The environment of a pod whose Job was created with the settings that are there."""
    return {"RUN": run.uri, "SETTINGS": f"{stage}:{load_settlement(run).fingerprint(stage)}"}


@pytest.mark.parametrize(
    ("stage", "assignment"),
    [
        pytest.param("preprocess", "", id="no change"),
        pytest.param("preprocess", "train.learning_rate=0.5", id="a later stage's"),
        pytest.param("train", "operations.attempts=99", id="how the work is carried out"),
    ],
)
def test_settings_that_a_job_does_not_depend_on_may_change(run: Storage, stage: Stage, assignment: str) -> None:
    environment = bound(run, stage)
    changed = resolve("demo", filter(None, [assignment]))
    save_config(run, changed, {})
    opened, settlement = settled_run(environment)
    assert (opened.uri, settlement.config) == (run.uri, changed)


@pytest.mark.parametrize(
    ("stage", "assignment", "records"),
    [
        pytest.param("preprocess", "faces.margin=1.5", "", id="its own"),
        pytest.param("train", "faces.margin=1.5", "", id="an earlier stage's"),
        pytest.param("train", "export.prior=0.1", "", id="of the export that ends a training Job"),
        pytest.param("export", "export.prior=0.1", "", id="of an export by itself"),
        pytest.param("train", "", "gs://bucket/other", id="other records"),
    ],
)
def test_settings_that_a_job_was_not_created_with_are_refused(
    run: Storage, stage: Stage, assignment: str, records: str
) -> None:
    environment = bound(run, stage)
    changed = Settlement(resolve("demo", filter(None, [assignment])), {}, records)
    run.write("config.json", changed.encode())
    expected = environment["SETTINGS"].partition(":")[2][:12]
    with pytest.raises(
        ConfigError, match=rf"config.json: was changed after .*, expected {expected} \(make {stage} RUN="
    ):
        settled_run(environment)
    assert settled_run({"RUN": run.uri})[1] == changed, "outside a cluster there is one client"


@pytest.mark.parametrize("text", ["train", "train:", "tune:12", ":12"])
def test_a_binding_that_names_no_stage_is_refused(run: Storage, text: str) -> None:
    with pytest.raises(ConfigError, match=r"SETTINGS='.*': expected stage:fingerprint \(environment\)"):
        settled_run({"RUN": run.uri, "SETTINGS": text})
