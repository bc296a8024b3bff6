"""`local --retry-lost` once training has begun: it goes on with it, and leaves nothing untried without a word."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.core import layout
from deepfake_detector.core.config import override
from deepfake_detector.core.errors import ConfigError, DataError
from deepfake_detector.core.outcomes import Outcome
from deepfake_detector.core.recipes import resolve
from deepfake_detector.local.launch import Commands, run_local
from deepfake_detector.stages.plan import make_plan
from deepfake_detector.stages.retry import make_retry_plan, next_retry
from deepfake_detector.stages.runs import load_config, save_config
from deepfake_detector.training.dataset import open_records
from tests.integration.test_preprocess import snapshot
from tests.integration.test_rounds import make_videos, preprocess
from tests.make_markers import checkpoint_marker, detector_manifest, trained_marker

# In place of the training; preprocessing may not begin.
COMMANDS = Commands(
    preprocess=(sys.executable, "-c", "raise SystemExit('error: nothing is to be preprocessed')"),
    train=(sys.executable, "-c", ""),
)


class Case:
    """A run with a finished first round. late: labelled files that are not there."""

    def __init__(self, folder: Path, run: str = "") -> None:
        self.videos = folder / "videos"
        self.late = make_videos(self.videos)
        self.run: Storage = open_storage(run or str(folder / "run"))
        changes = {"data.videos": str(self.videos), "data.shards": 2, "operations.attempts": 1}
        self.config = override(resolve("demo"), changes, "the test")
        save_config(self.run, self.config, {})
        make_plan(self.run, self.config)

    def round(self, number: int, outcome: Outcome) -> None:
        shards = make_retry_plan(self.run, self.config, number).shards if number else self.config.data.shards
        preprocess(self.run, self.config, number, shards, lambda: outcome)

    def train(self) -> None:
        """Up to the first checkpoint."""
        marker = checkpoint_marker(self.config, records_fingerprint=open_records(self.run).fingerprint)
        self.run.write(layout.checkpoint_marker(marker.step), marker.encode())

    def export(self) -> None:
        """The end of the training, and the export; nobody needs the videos any more."""
        self.run.write(layout.TRAINED, trained_marker(self.config).encode())
        self.run.write(layout.DETECTOR, detector_manifest(self.config).encode())
        shutil.rmtree(self.videos)
        self.videos.touch()  # any attempt to list them fails


def after_its_retry(case: Case) -> None:
    case.round(0, Outcome.NO_FACE)
    case.round(1, Outcome.NO_FACE)
    case.train()


def after_two_retries(case: Case) -> None:
    case.round(0, Outcome.CRASHED)
    case.round(1, Outcome.CRASHED)
    case.late.pop().touch()
    case.round(2, Outcome.OK)
    case.train()


def nothing_to_try(case: Case) -> None:
    case.round(0, Outcome.OK)
    case.train()


@pytest.mark.parametrize(
    ("before", "line"),
    [
        pytest.param(after_its_retry, "with retry 1 of lost videos", id="after its retry"),
        pytest.param(after_two_retries, "with retry 2 of lost videos", id="after two retries"),
        pytest.param(nothing_to_try, "and no lost video may be tried again", id="after none"),
    ],
)
def test_the_same_command_goes_on_with_the_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], before: Callable[[Case], None], line: str
) -> None:
    case = Case(tmp_path)
    before(case)
    files = snapshot(Path(case.run.uri))
    said = f"{case.run.uri}: training has begun {line}: it goes on\n"
    assert run_local(case.run, load_config(case.run), retry_lost=True, commands=COMMANDS) == 0
    output = capsys.readouterr().out
    assert output.startswith(said)
    assert "train: 2 processes" in output
    case.export()
    assert run_local(case.run, load_config(case.run), retry_lost=True, commands=COMMANDS) == 0
    assert capsys.readouterr().out == f"{case.run.uri}/{layout.MODEL}: done before, nothing to do\n"
    after = snapshot(Path(case.run.uri))
    assert {name: after[name] for name in files} == files
    assert not [name for name in after.keys() - files.keys() if "/retries/" in name]


def never_tried(case: Case) -> None:
    case.round(0, Outcome.NO_FACE)
    case.train()


def a_file_has_come(case: Case) -> None:
    after_its_retry(case)
    case.late.pop().touch()


def a_retry_that_it_does_not_have(case: Case) -> None:
    """It was finished in the moment in which training began."""
    case.round(0, Outcome.NO_FACE)
    fingerprint = open_records(case.run).fingerprint
    case.round(1, Outcome.OK)
    marker = checkpoint_marker(case.config, records_fingerprint=fingerprint)
    case.run.write(layout.checkpoint_marker(marker.step), marker.encode())


@pytest.mark.parametrize(
    "before",
    [
        pytest.param(never_tried, id="before any retry"),
        pytest.param(a_file_has_come, id="a file has come since"),
        pytest.param(a_retry_that_it_does_not_have, id="a retry that it does not have"),
    ],
)
def test_what_it_has_not_tried_is_refused(tmp_path: Path, before: Callable[[Case], None]) -> None:
    case = Case(tmp_path)
    before(case)
    files = snapshot(Path(case.run.uri))
    begun = rf"{case.run.uri}/checkpoints/00000001\.json: training has begun .* \(without --retry-lost this run goes on"
    with pytest.raises(ConfigError, match=begun):
        run_local(case.run, load_config(case.run), retry_lost=True, commands=COMMANDS)
    assert snapshot(Path(case.run.uri)) == files
    assert run_local(case.run, load_config(case.run), commands=COMMANDS) == 0, "without it training goes on"


def test_what_no_retry_has_tried_is_refused_when_all_is_done_too(tmp_path: Path) -> None:
    case = Case(tmp_path)
    never_tried(case)
    case.export()
    with pytest.raises(ConfigError, match=r"checkpoints/trained\.json: training has begun on these records"):
        run_local(case.run, load_config(case.run), retry_lost=True, commands=COMMANDS)
    assert run_local(case.run, load_config(case.run), commands=COMMANDS) == 0


def test_messages_name_the_word_that_was_typed(tmp_path: Path) -> None:
    case = Case(tmp_path)
    unfinished = r"expected preprocessing to finish before lost videos are tried again \(the same command without {}\)"
    with pytest.raises(DataError, match=unfinished.format("--retry-lost")):
        run_local(case.run, case.config, retry_lost=True)
    with pytest.raises(DataError, match=unfinished.format("RETRY_LOST")):
        next_retry(case.run, "RETRY_LOST")
    case.round(0, Outcome.NO_FACE)
    make_retry_plan(case.run, case.config, 1)
    with pytest.raises(
        DataError, match=r"expected its end before training \(the same command with --retry-lost goes on"
    ):
        run_local(case.run, case.config)
    other = open_storage(str(tmp_path / "other"))
    save_config(other, case.config, {}, case.run.uri)
    with pytest.raises(DataError, match=rf"\(local --run {case.run.uri} with --retry-lost goes on; without"):
        run_local(other, case.config)
    with pytest.raises(
        ConfigError, match=r"expected lost videos to be tried again there, before any training on them$"
    ):
        run_local(other, case.config, retry_lost=True)


@pytest.mark.gcs
def test_of_a_run_in_a_bucket_too(tmp_path: Path, gcs_bucket: str) -> None:
    case = Case(tmp_path, f"{gcs_bucket}/runs/one")
    case.round(0, Outcome.NO_FACE)
    make_retry_plan(case.run, case.config, 1)
    with pytest.raises(
        DataError, match=r"expected its end before training \(the same command with --retry-lost goes on"
    ):
        run_local(case.run, case.config)
