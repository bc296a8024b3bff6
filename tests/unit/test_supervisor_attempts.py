from __future__ import annotations

from pathlib import Path

import pytest

from deepfake_detector.adapters.attempts import DAMAGED, AttemptWorker, Work
from deepfake_detector.adapters.storage import open_storage
from deepfake_detector.core import layout
from deepfake_detector.core.errors import WaitError
from deepfake_detector.supervisor.attempts import (
    KEEPER_GONE,
    POD_GONE,
    SHARD_DONE,
    SILENT,
    STOPPED,
    History,
    under_way,
)
from deepfake_detector.supervisor.policy import COMPLETE

WORKERS = [AttemptWorker(index=0, rank=0, address="127.0.0.1:2223", pod="train-0")]


def test_numbers_and_reasons_outlive_the_keeper(tmp_path: Path) -> None:
    run = open_storage(str(tmp_path))
    history = History(run)
    assert (history.last, history.reason) == (0, "")
    history.open(1, "train", WORKERS)
    history.close("worker 0: killed by signal 9 (SIGKILL)")
    history.open(2, "train", WORKERS)  # and its keeper dies

    restarted = History(run)
    assert restarted.last == 2
    assert restarted.reason == KEEPER_GONE
    restarted.open(3, "export", WORKERS)
    assert (restarted.used("train"), restarted.used("export")) == (2, 1)


def test_training_that_is_complete_needs_nobody_to_say_so(tmp_path: Path) -> None:
    """As when the keeper died, or the export began, between training's marker and the attempt's end."""
    run = open_storage(str(tmp_path))
    History(run).open(1, "train", WORKERS)
    run.write(layout.TRAINED, b"{}")
    assert History(run).reason == COMPLETE


def test_two_keepers_cannot_open_the_same_attempt(tmp_path: Path) -> None:
    run = open_storage(str(tmp_path))
    first, second = History(run), History(run)
    first.open(1, "train", WORKERS)
    with pytest.raises(WaitError, match=r"logs/attempts/00001\.json"):
        second.open(1, "train", WORKERS)


def test_a_damaged_attempt_is_named_and_counts(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """One object that nobody needs any more must not end a run."""
    run = open_storage(str(tmp_path))
    run.write(layout.attempt(1), b"{")
    history = History(run)
    assert "logs/attempts/00001.json" in caplog.text
    assert (history.last, history.used("train"), history.reason) == (1, 1, DAMAGED)
    history.close("its end, much later")
    assert not under_way(run, without=0)


@pytest.mark.parametrize(
    ("stage", "indexes", "reason", "expected"),
    [
        ("train", [0, 2], None, True),
        ("train", [0, 1], None, False),
        ("train", [0, 2], "over", False),
        ("export", [0], None, False),
    ],
)
def test_training_is_under_way_without_somebody(
    tmp_path: Path, stage: Work, indexes: list[int], reason: str | None, expected: bool
) -> None:
    run = open_storage(str(tmp_path))
    assert not under_way(run, without=1)
    history = History(run)
    history.open(1, stage, [AttemptWorker(index=index, rank=rank) for rank, index in enumerate(indexes)])
    if reason:
        history.close(reason)
    assert under_way(run, without=1) == expected


def test_attempts_out_of_memory_are_counted_from_the_latest(tmp_path: Path) -> None:
    history = History(open_storage(str(tmp_path)))
    oom = "worker 1 on a-node: OOMKilled: limit 512 MiB"
    for number, reason in enumerate([oom, "worker 0: exit 1", oom, oom], 1):
        history.open(number, "train", WORKERS)
        history.close(reason)
    assert history.out_of_memory == 2


def test_each_shard_counts_its_own_attempts_since_its_last_success(tmp_path: Path) -> None:
    run = open_storage(str(tmp_path))
    for shard, reasons in ((0, ["a", SHARD_DONE, "b", "c"]), (1, [])):
        history = History(run, shard=shard)
        for reason in reasons:
            history.open(history.last + 1, "preprocess", [])
            history.close(reason)
    assert History(run, shard=0).in_vain("preprocess") == ["c", "b"]
    assert History(run, shard=1).in_vain("preprocess") == []
    assert History(run).last == 0


def test_why_attempts_failed_is_told_with_their_nodes(tmp_path: Path) -> None:
    history = History(open_storage(str(tmp_path)), shard=0)
    for node in ("node-1", "", "node-2"):
        history.open(history.last + 1, "preprocess", [AttemptWorker(index=0, rank=0, pod=node and "a", node=node)])
        history.close("exit 75: away")
    expected = ["exit 75: away, on node-2", "exit 75: away", "exit 75: away, on node-1"]
    assert History(open_storage(str(tmp_path)), shard=0).in_vain("preprocess") == expected


def test_an_attempt_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    run = open_storage(str(tmp_path))
    run.write(
        layout.attempt(1),
        b'{"attempt": 1, "stage": "train", "workers": [{"index": 0, "rank": 0, "address": "a:1"}], "started": 1.5, '
        b'"ended": 2.5, "reason": "worker 0: exit 75: away"}',
    )
    assert History(run).used("train") == 1


def test_a_pod_that_was_lost_without_a_word_has_used_its_attempt(tmp_path: Path) -> None:
    run = open_storage(str(tmp_path))
    History(run, shard=3).open(1, "preprocess", [])
    assert History(run, shard=3).in_vain("preprocess") == [POD_GONE]


@pytest.mark.parametrize(
    ("stage", "pod", "reason", "counted"),
    [
        pytest.param("train", "train-0", KEEPER_GONE, 1, id="training in a pod"),
        pytest.param("export", "train-0", POD_GONE, 1, id="an export in a pod"),
        pytest.param("preprocess", "preprocess-0", POD_GONE, 1, id="a shard in a pod"),
        pytest.param("train", "", SILENT, 0, id="training on one machine"),
        pytest.param("export", "", SILENT, 0, id="an export on one machine"),
        pytest.param("preprocess", "", SILENT, 0, id="a shard on one machine"),
    ],
)
def test_what_ended_without_a_word(tmp_path: Path, stage: Work, pod: str, reason: str, counted: int) -> None:
    """Out of the machine's memory, for instance: that is no Ctrl-C, and no failure either."""
    run, shard = open_storage(str(tmp_path)), 0 if stage == "preprocess" else None
    History(run, shard=shard).open(1, stage, [AttemptWorker(index=0, rank=0, pod=pod)])
    history = History(run, shard=shard)
    assert (history.reason, history.used(stage), history.in_vain(stage)) == (reason, counted, [reason] * counted)


def test_what_a_person_stopped_is_no_attempt(tmp_path: Path) -> None:
    history = History(open_storage(str(tmp_path)))
    for reason in ("worker 0: exit 75: away", STOPPED):
        history.open(history.last + 1, "train", WORKERS)
        history.close(reason)
    assert history.used("train") == 1
    assert history.in_vain("train") == ["worker 0: exit 75: away"]
