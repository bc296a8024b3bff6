from __future__ import annotations

import json
from pathlib import Path

import pytest

from deepfake_detector.adapters.attempts import AttemptWorker
from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.core import layout
from deepfake_detector.core.markers import EpochMetrics, RecordsSummary, ShardReport
from deepfake_detector.core.outcomes import Outcome, VideoOutcome
from deepfake_detector.display import PreprocessDisplay, TrainDisplay, describe_records
from deepfake_detector.supervisor.attempts import History
from deepfake_detector.supervisor.policy import COMPLETE
from tests.unit.test_status import plan

WORKERS = [AttemptWorker(index=0, rank=0, address="127.0.0.1:2223")]


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path))


def write_epochs(run: Storage, *numbers: int) -> None:
    lines = [
        EpochMetrics(
            epoch=number,
            step=10 * number,
            seconds=1.5,
            learning_rate=0.001,
            train_loss=0.5,
            train_accuracy=0.75,
            validation_loss=None,
            validation_accuracy=None,
            validation_auc=None if number == 1 else 0.9,
            sequences_per_second=10.0,
            input_wait_fraction=0.0,
        ).model_dump_json()
        for number in numbers
    ]
    run.write(layout.METRICS, "".join(line + "\n" for line in lines).encode())


def test_each_epoch_and_each_lost_attempt_is_told_once(run: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    history = History(run)
    with TrainDisplay(run) as display:
        history.open(1, "train", WORKERS)
        write_epochs(run, 1, 2)
        display.last_words()
        history.close("worker 0: killed by signal 9 (SIGKILL)")
        display.last_words()
        display.last_words()
    assert capsys.readouterr().out.splitlines() == [
        "  epoch   1: loss 0.5000, accuracy 0.750, validation AUC -, 1.5 s",
        "  epoch   2: loss 0.5000, accuracy 0.750, validation AUC 0.9000, 1.5 s",
        "  attempt 1 ended: worker 0: killed by signal 9 (SIGKILL)",
    ]


def test_a_damaged_attempt_is_told_of_once(run: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    with TrainDisplay(run) as display:
        run.write(layout.attempt(1), b"{")
        display.last_words()
        display.last_words()
    assert capsys.readouterr().out.splitlines() == ["  attempt 1 ended: unknown: its record is damaged"]


def test_a_look_that_comes_late_tells_in_order(run: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    with TrainDisplay(run) as display:
        history = History(run)
        for attempt, reason in enumerate(("worker 1: killed by signal 9 (SIGKILL)", COMPLETE), 1):
            history.open(attempt, "train", WORKERS)
            history.close(reason)
        write_epochs(run, 1)
        display.last_words()
    assert [line.strip()[:12] for line in capsys.readouterr().out.splitlines()] == [
        "attempt 1 en",
        "epoch   1: l",
        "training is ",
    ]


def test_epochs_of_an_earlier_command_are_not_told_but_those_cut_back_are(
    run: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    write_epochs(run, 1, 2)
    with TrainDisplay(run) as display:
        write_epochs(run, 1)
        display.last_words()
        write_epochs(run, 1, 2)
        display.last_words()
    assert [line[:11] for line in capsys.readouterr().out.splitlines()] == ["  epoch   2"]


def test_records_are_described_with_every_loss_by_reason() -> None:
    summary = RecordsSummary(
        settings={},
        fingerprint="",
        code_version="",
        shards=2,
        videos=10,
        lost_fraction=0.3,
        outcomes={"ok": {"real": 3, "fake": 4}, "no_face": {"real": 2, "fake": 0}, "unlabelled": {"unknown": 1}},
        sequences={"train": {"real": 3, "fake": 3}, "test": {"real": 0, "fake": 1}},
        frames_sampled=1,
        frames_detected=1,
        frames_filled=0,
        metadata_auc=None,
        warnings=["3 of 10 lost"],
    )
    assert describe_records(summary) == [
        "  7 of 10 videos in 2 shards; sequences: 6 train, 1 test",
        "  lost: no_face 2 real",
        "  lost: unlabelled 1 unknown",
        "  warning: 3 of 10 lost",
    ]


def test_what_came_after_the_last_refresh_is_still_shown(run: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    with PreprocessDisplay(run, 1) as display:
        display.refresh([0])  # before there is a plan; another look is not due for a while
        run.write(layout.PLAN, plan("split test has real videos only (3)").encode())
        videos = [VideoOutcome(key=key, label=0, split="train", outcome=Outcome.OK) for key in "ab"]
        report = ShardReport(settings={}, fingerprint="", code_version="", shard=0, shards=1, files=[], videos=videos)
        run.write(layout.shard_report(0, 1), report.encode())
        display.last_look()
        assert (display.bar.n, display.bar.total) == (2, 2)
    assert capsys.readouterr().out.splitlines() == [
        "  DFDC in ./: 1 real, 1 fake",
        "  warning: split test has real videos only (3)",
    ]


def test_losses_of_finished_and_of_running_shards_are_told_by_reason(run: Storage) -> None:
    run.write(layout.PLAN, plan().encode())
    outcomes = [Outcome.OK, Outcome.NO_FACE, Outcome.NO_FACE]
    videos = [VideoOutcome(key=str(key), label=0, split="train", outcome=each) for key, each in enumerate(outcomes)]
    report = ShardReport(settings={}, fingerprint="", code_version="", shard=0, shards=3, files=[], videos=videos)
    run.write(layout.shard_report(0, 3), report.encode())
    run.write(layout.progress("preprocess", 0), b'{"done": 3, "outcomes": {"no_face": 2, "ok": 1}}')
    run.write(layout.progress("preprocess", 1), b'{"done": 4, "outcomes": {"ok": 3, "decode_error": 1}}')
    with PreprocessDisplay(run, 3) as display:
        display.note(pods="2 pods run")
        display.look([0, 1, 2])  # 0 has finished meanwhile, 2 has told nothing yet
        assert display.bar.n == 7
        assert display.bar.postfix == "2 pods run, lost: no_face 2, decode_error 1"


def test_what_was_done_before_has_no_part_in_the_rate(run: Storage) -> None:
    run.write(layout.progress("train", 0), b'{"epoch": 3, "epochs": 4, "step": 30, "steps": 40, "loss": 0.5}')
    with TrainDisplay(run) as display:
        display.look()
        assert (display.bar.initial, display.bar.n, display.bar.total) == (30, 30, 40)


def test_steps_speed_and_the_moments_of_the_start_are_read_from_the_chiefs_progress(run: Storage) -> None:
    told = {"epoch": 1, "epochs": 4, "step": 3, "steps": 40, "loss": 0.69314, "rate": 12.34}
    with TrainDisplay(run) as display:
        run.write(layout.progress("train", 0), json.dumps({**told, "timeline": {"child": 1.0}}).encode())
        display.look()
        assert display.bar.postfix == "epoch 1/4, loss 0.6931, 12.3 sequences/s"
        run.write(layout.progress("train", 0), json.dumps({**told, "timeline": {"prepared": 9.0}}).encode())
        display.look()
        assert display.timeline == {"child": 1.0}, "of the first start, not of a later attempt"


def test_a_progress_object_that_is_no_json_is_skipped(run: Storage) -> None:
    run.write(layout.progress("train", 0), b"{")
    with TrainDisplay(run) as display:
        display.look()
        assert display.bar.n == 0


def test_a_bar_that_is_finished_is_full(run: Storage) -> None:
    run.write(layout.progress("train", 0), b'{"epoch": 3, "epochs": 4, "step": 30, "steps": 40, "loss": 0.5}')
    with TrainDisplay(run) as display:
        display.look()
        display.finish()
        assert display.bar.n == 40
