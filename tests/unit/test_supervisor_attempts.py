from __future__ import annotations

from pathlib import Path

import pytest

from deepfake_detector.adapters.storage import open_storage
from deepfake_detector.core import layout
from deepfake_detector.core.errors import CorruptError, WaitError
from deepfake_detector.supervisor.attempts import AttemptWorker, History

WORKERS = [AttemptWorker(index=0, rank=0, address="127.0.0.1:2223")]


def test_numbers_and_reasons_outlive_the_keeper(tmp_path: Path) -> None:
    run = open_storage(str(tmp_path))
    history = History(run)
    assert (history.last, history.reason) == (0, "")
    history.open(1, "train", WORKERS)
    history.close("worker 0: killed by signal 9 (SIGKILL)")
    history.open(2, "train", WORKERS)  # and its keeper dies

    restarted = History(run)
    assert restarted.last == 2
    assert restarted.reason == "the supervisor that kept the rendezvous is gone"
    restarted.open(3, "export", WORKERS)
    assert (restarted.used("train"), restarted.used("export")) == (2, 1)


def test_two_keepers_cannot_open_the_same_attempt(tmp_path: Path) -> None:
    run = open_storage(str(tmp_path))
    first, second = History(run), History(run)
    first.open(1, "train", WORKERS)
    with pytest.raises(WaitError, match=r"logs/attempts/00001\.json"):
        second.open(1, "train", WORKERS)


def test_a_damaged_attempt_is_named(tmp_path: Path) -> None:
    run = open_storage(str(tmp_path))
    run.write(layout.attempt(1), b"{")
    with pytest.raises(CorruptError, match=r"logs/attempts/00001\.json"):
        History(run)
