"""How long supervisors wait for each other, by moments that are given, and that what they say is read again."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepfake_detector.core.errors import EXIT_UNAVAILABLE
from deepfake_detector.core.waiting import NAMED, Budget, in_vain, rendezvous_missing, workers_missing
from deepfake_detector.supervisor.policy import (
    Completed,
    Finish,
    Joined,
    Left,
    Open,
    Overdue,
    Past,
    Rendezvous,
    Stop,
    Worker,
)


def test_a_budget_runs_from_the_first_wait() -> None:
    budget = Budget(60.0)
    assert not budget.waiting
    assert [budget.wait(now) for now in (100.0, 130.0, 159.9)] == [160.0] * 3
    assert budget.waiting


def test_a_budget_begins_anew_once_all_are_there() -> None:
    budget = Budget(60.0)
    budget.wait(100.0)
    budget.met()
    assert not budget.waiting
    assert budget.wait(1000.0) == 1060.0


def worker(index: int) -> Worker:
    return Worker(index, f"10.0.0.{index}", 2222)


def knowing(policy: Rendezvous) -> Rendezvous:
    """With the run's past, of which there is none."""
    assert policy.handle(Past()) == []
    return policy


class Rounds:
    """A rendezvous of 3 with a budget of 60 s, on a clock of the test's."""

    def __init__(self) -> None:
        self.policy = knowing(Rendezvous(3, attempts=20, budget=Budget(60.0)))
        self.now = 0.0

    def until(self, now: float, *events: Joined | Left) -> list[Finish]:
        """Time passes up to `now`, at which these events come; the ends that were decided."""
        actions = []
        due = self.policy.overdue_at(self.now)
        if due is not None and due <= now:
            missing = {index: f"w-{index}" for index in self.policy.missing}
            actions += self.policy.handle(Overdue(workers_missing(missing, 60.0)))
        for event in events:
            actions += self.policy.handle(event)
            self.policy.overdue_at(now)
        self.now = now
        return [action for action in actions if isinstance(action, Finish)]


def test_all_end_after_one_budget_when_one_never_comes() -> None:
    rounds = Rounds()
    assert rounds.until(1.0, Joined(worker(0)), Joined(worker(1))) == []
    assert rounds.until(59.9) == []
    [end] = rounds.until(60.0)
    assert (end.status, end.message) == (
        EXIT_UNAVAILABLE,
        "worker 2 (w-2): not there after 60 s, expected its supervisor to register (operations.rendezvous_seconds)",
    )
    assert rounds.policy.finished
    assert rounds.until(61.0, Joined(worker(2))) == [], "too late"


def test_one_that_comes_and_goes_does_not_prolong_the_wait_for_another() -> None:
    rounds = Rounds()
    rounds.until(1.0, Joined(worker(0)))
    for moment in (10.0, 30.0, 50.0):
        assert rounds.until(moment, Joined(worker(1))) == []
        assert rounds.until(moment + 5.0, Left(1)) == []
    [end] = rounds.until(60.0)
    assert end.message.startswith("workers 1 (w-1), 2 (w-2): not there after 60 s, expected their supervisors to")


def test_a_worker_that_is_lost_in_training_has_the_whole_budget_to_come_back() -> None:
    rounds = Rounds()
    rounds.until(50.0, *(Joined(worker(index)) for index in range(3)))
    assert rounds.until(1000.0, Left(1)) == []
    assert rounds.until(1059.0) == []
    assert [end.status for end in rounds.until(1060.0)] == [EXIT_UNAVAILABLE]


def test_the_waiting_ends_children_that_are_still_being_stopped() -> None:
    """A supervisor that stops its child for ever long is no reason to wait any longer."""
    policy = knowing(Rendezvous(2, attempts=20))
    policy.handle(Joined(worker(0)))
    policy.handle(Joined(worker(1)))
    assert Stop(0) in policy.handle(Left(1))
    assert [type(action) for action in policy.handle(Overdue("worker 1: late"))] == [Finish]


def test_nobody_is_overdue_once_all_are_there() -> None:
    policy = knowing(Rendezvous(1, attempts=20))
    assert isinstance(policy.handle(Joined(worker(0)))[0], Open)
    assert policy.handle(Overdue("worker 0: late")) == []
    assert not policy.finished


def test_a_complete_training_waits_for_nobody() -> None:
    policy = knowing(Rendezvous(2, attempts=20))
    policy.handle(Joined(worker(0)))
    assert policy.handle(Completed()) == [Finish(0, "training is complete")]


@given(st.dictionaries(st.integers(0, 300), st.just("train-x-1.training:2220"), min_size=1), st.floats(0.1, 1e6))
def test_what_the_rendezvous_says_is_read_again(addresses: dict[int, str], seconds: float) -> None:
    read = in_vain(f"exit 69: {workers_missing(addresses, seconds)}")
    assert read is not None
    assert read.indexes == tuple(sorted(addresses))[:NAMED]
    assert float(read.seconds) == pytest.approx(seconds, rel=1e-4)
    assert len(workers_missing(addresses, seconds)) < 1000, "a termination message has 4096 bytes"


def test_what_a_worker_says_is_read_again() -> None:
    read = in_vain(rendezvous_missing(0, "train-x-0.training:2220", 900.0, "silent for 5 s"))
    assert read is not None
    assert (read.indexes, read.seconds, read.problem) == ((0,), "900", "did not answer")


def test_other_messages_are_of_nobody_awaited() -> None:
    assert in_vain("worker 1: exit 75: plan/summary.json: not there after 600 s: expected index 0 to make it") is None
