from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepfake_detector.core.errors import EXIT_OK, EXIT_PERMANENT
from deepfake_detector.core.topology import port as port_of
from deepfake_detector.supervisor.policy import (
    Action,
    Close,
    Completed,
    Ended,
    Event,
    Finish,
    Joined,
    Left,
    Open,
    Past,
    Recall,
    Rendezvous,
    Start,
    Stop,
    Worker,
    assign,
)
from deepfake_detector.supervisor.where import Where

W0 = Worker(0, "10.0.0.1", 2222)
W1 = Worker(1, "10.0.0.2", 2222)
BOTH = [Joined(W0), Joined(W1)]
KILLED = "killed by signal 9 (SIGKILL)"


def rendezvous_of(workers: int, *, attempts: int = 20, spares: int = 0, past: Past | None = None) -> Rendezvous:
    """One that knows of the run's past."""
    rendezvous = Rendezvous(workers, attempts=attempts, spares=spares)
    assert rendezvous.handle(past or Past()) == []
    return rendezvous


def begins(attempt: int) -> list[Action]:
    """What two workers are told when an attempt begins."""
    port = port_of(2222, attempt)
    cluster = (f"10.0.0.1:{port}", f"10.0.0.2:{port}")
    return [Open(attempt, (W0, W1)), Start(0, attempt, 0, cluster), Start(1, attempt, 1, cluster)]


@pytest.mark.parametrize(
    ("events", "actions"),
    [
        pytest.param([Joined(W0)], [], id="one of two waits"),
        pytest.param(BOTH, begins(1), id="all present begin"),
        pytest.param([Joined(W1), Joined(W0)], begins(1), id="ranks follow the index and not the arrival"),
        pytest.param(
            [*BOTH, Ended(1, 1, -9, KILLED)],
            [Stop(0), Close(1, f"worker 1: {KILLED}")],
            id="a dead child stops the other, and nothing begins yet",
        ),
        pytest.param(
            [*BOTH, Ended(1, 1, -9, KILLED), Ended(0, 1, -9, KILLED)],
            begins(2),
            id="the next attempt begins when the last child is gone",
        ),
        pytest.param(
            [*BOTH, Ended(1, 1, 75, "exit 75: storage was away")],
            [Stop(0), Close(1, "worker 1: exit 75: storage was away")],
            id="a temporary failure",
        ),
        pytest.param(
            [*BOTH, Ended(0, 1, 0, "exit 0")],
            [Stop(1), Close(1, "worker 0: exit 0, but training's marker is not there")],
            id="success without the marker is a failure",
        ),
        pytest.param([*BOTH, Left(1)], [Stop(0), Close(1, "worker 1: its supervisor at 10.0.0.2 is gone")], id="left"),
        pytest.param([*BOTH, Left(1), Joined(W1)], [], id="back before the other child is gone"),
        pytest.param([*BOTH, Left(1), Joined(W1), Ended(0, 1, -9, KILLED)], begins(2), id="back, then all gone"),
        pytest.param([*BOTH, Left(1), Ended(0, 1, -9, KILLED), Joined(W1)], begins(2), id="all gone, then back"),
        pytest.param([*BOTH, Left(1), Ended(0, 1, -9, KILLED)], [], id="all gone but one not back"),
        pytest.param(
            [*BOTH, Ended(0, 1, 78, "exit 78: error: train.epochs=0")],
            [Close(1, m := "worker 0: exit 78: error: train.epochs=0"), Finish(EXIT_PERMANENT, m)],
            id="a permanent error ends the run",
        ),
        pytest.param(
            [*BOTH, Ended(1, 1, 75, "exit 75: peer is gone"), Ended(0, 1, 78, "exit 78: bad")],
            [Close(1, "worker 0: exit 78: bad"), Finish(EXIT_PERMANENT, "worker 0: exit 78: bad")],
            id="a permanent error wins over its peer's earlier end",
        ),
        pytest.param(
            [*BOTH, Completed()],
            [Close(1, "training is complete"), Finish(EXIT_OK, "training is complete")],
            id="complete",
        ),
        pytest.param(
            [*BOTH, Ended(1, 1, -9, KILLED), Completed()],
            [Finish(EXIT_OK, "training is complete")],
            id="complete after the attempt has ended: its reason stays",
        ),
        pytest.param([*BOTH, Completed(), Ended(0, 1, 75, "exit 75"), Left(1), Joined(W1)], [], id="nothing after it"),
        pytest.param([*BOTH, Ended(1, 0, -9, KILLED)], [], id="an end of an earlier attempt"),
        pytest.param([*BOTH, Left(7)], [], id="a stranger leaves"),
    ],
)
def test_last_event_leads_to(events: list[Event], actions: list[Action]) -> None:
    rendezvous = rendezvous_of(2)
    assert [rendezvous.handle(event) for event in events][-1] == actions


def test_attempts_are_bounded_over_restarts_of_the_keeper() -> None:
    rendezvous = Rendezvous(2, attempts=3)
    asked = [rendezvous.handle(event) for event in BOTH][-1]
    assert asked == [Recall()], "not before it could begin: another's attempt may be at work until then"
    assert rendezvous.handle(Past(last=7, used=2)) == begins(8)
    close, finish = rendezvous.handle(Ended(1, 8, -11, "killed by signal 11 (SIGSEGV)"))
    assert close == Close(8, "worker 1: killed by signal 11 (SIGSEGV)")
    assert isinstance(finish, Finish)
    assert finish.status == EXIT_PERMANENT
    assert finish.message.startswith("3 attempts of training: expected at most operations.attempts=3 over the run")
    assert finish.message.endswith("worker 1: killed by signal 11 (SIGSEGV)")


def test_no_attempt_is_left_when_the_rendezvous_moves() -> None:
    rendezvous = Rendezvous(2, attempts=3)
    for event in BOTH:
        rendezvous.handle(event)
    [finish] = rendezvous.handle(Past(last=9, used=3, reason="exit 75: away"))
    assert isinstance(finish, Finish)
    assert finish.status == EXIT_PERMANENT
    assert finish.message.endswith("exit 75: away")


OOM = "OOMKilled: limit 300 MiB, peak 299 MiB: raise the memory limit (LIMITS=memory=...)"


@pytest.mark.parametrize(
    ("reasons", "over"),
    [
        pytest.param([OOM, OOM], False, id="twice"),
        pytest.param([OOM, OOM, OOM], True, id="three times"),
        pytest.param([OOM, OOM, KILLED, OOM, OOM], False, id="with something else in between"),
    ],
)
def test_memory_that_runs_out_again_and_again_is_not_tried_for_ever(reasons: list[str], over: bool) -> None:
    rendezvous = rendezvous_of(2)
    for event in BOTH:
        rendezvous.handle(event)
    for attempt, reason in enumerate(reasons, 1):
        actions = rendezvous.handle(Ended(1, attempt, -9, reason))
        if not rendezvous.finished:
            rendezvous.handle(Ended(0, attempt, -9, KILLED))
    assert rendezvous.finished == over
    if over:
        said = f"3 attempts in a row ran out of memory, the last: worker 1: {OOM}"
        assert actions == [Close(3, f"worker 1: {OOM}"), Finish(EXIT_PERMANENT, said)]


def test_memory_that_ran_out_before_this_keeper_counts() -> None:
    rendezvous = rendezvous_of(2, past=Past(last=5, used=5, out_of_memory=2))
    for event in BOTH:
        rendezvous.handle(event)
    [_, finish] = rendezvous.handle(Ended(1, 6, -9, OOM))
    assert isinstance(finish, Finish)
    assert finish.status == EXIT_PERMANENT


def test_a_run_that_memory_ended_begins_to_count_anew() -> None:
    """Given again, with more memory, it must not be ended by what else happens."""
    rendezvous = rendezvous_of(2, past=Past(last=3, used=3, out_of_memory=3))
    for event in BOTH:
        rendezvous.handle(event)
    assert rendezvous.handle(Left(0)) == [Stop(1), Close(4, "worker 0: its supervisor at 10.0.0.1 is gone")]
    assert rendezvous.handle(Ended(1, 4, -9, KILLED)) == []
    assert starts(rendezvous.handle(Joined(W0))) == {0: 0, 1: 1}
    assert not any(isinstance(action, Finish) for action in rendezvous.handle(Ended(1, 5, -9, OOM)))


def test_a_lost_pod_between_them_breaks_the_row_of_those_out_of_memory() -> None:
    rendezvous = rendezvous_of(2, past=Past(last=2, used=2, out_of_memory=2))
    for event in (*BOTH, Left(0), Ended(1, 3, -9, KILLED), Joined(W0)):
        rendezvous.handle(event)
    assert not any(isinstance(action, Finish) for action in rendezvous.handle(Ended(1, 4, -9, OOM)))


W2 = Worker(2, "10.0.0.3", 2222)


def test_who_comes_while_the_past_is_recalled_is_no_reason_to_recall_it_again() -> None:
    """A second answer would take the attempt that the first one has begun for one that never was."""
    rendezvous = Rendezvous(2, attempts=20, spares=1)
    assert [rendezvous.handle(event) for event in BOTH] == [[], [Recall()]]
    assert rendezvous.handle(Joined(W2)) == []
    assert starts(rendezvous.handle(Past(last=4, used=4))) == {0: 0, 1: 1}
    assert rendezvous.handle(Ended(1, 5, -9, KILLED)) == [Stop(0), Close(5, f"worker 1: {KILLED}")]


@pytest.mark.parametrize("gone", [0, 1])
def test_who_leaves_while_the_past_is_recalled_is_awaited(gone: int) -> None:
    rendezvous = Rendezvous(2, attempts=20)
    for event in BOTH:
        rendezvous.handle(event)
    assert rendezvous.handle(Left(gone)) == []
    assert rendezvous.handle(Past(last=4, used=4)) == []
    assert rendezvous.missing == [gone]
    assert rendezvous.handle(BOTH[gone]) == begins(5)


def starts(actions: list[Action]) -> dict[int, int]:
    """Ranks by index, of those who are told to start."""
    return {action.index: action.rank for action in actions if isinstance(action, Start)}


def test_a_spare_takes_over_at_once() -> None:
    rendezvous = rendezvous_of(2, spares=1)
    for event in BOTH:
        begun = rendezvous.handle(event)
    assert starts(begun) == {0: 0, 1: 1}
    assert rendezvous.handle(Joined(W2)) == []
    assert rendezvous.handle(Left(0)) == [Stop(1), Close(1, "worker 0: its supervisor at 10.0.0.1 is gone")]
    begun = rendezvous.handle(Ended(1, 1, -9, KILLED))
    assert starts(begun) == {2: 0, 1: 1}, "who is there keeps its rank"
    assert rendezvous.handle(Joined(W0)) == [], "a spare now"
    assert rendezvous.handle(Left(0)) == [], "which nobody misses"
    assert rendezvous.missing == []


def test_a_spare_that_comes_first_is_a_worker() -> None:
    rendezvous = rendezvous_of(2, spares=1)
    assert rendezvous.handle(Joined(W2)) == []
    assert rendezvous.missing == [0, 1], "both are awaited, of whom one is enough"
    assert starts(rendezvous.handle(Joined(W1))) == {1: 0, 2: 1}


def test_the_next_keeper_leaves_the_ranks_where_they_are() -> None:
    rendezvous = rendezvous_of(2, spares=1, past=Past(last=4, used=4, ranks={2: 0, 1: 1}))
    rendezvous.handle(Joined(W1))
    assert starts(rendezvous.handle(Joined(W0))) == {0: 0, 1: 1}


@given(
    workers=st.integers(1, 5),
    spares=st.integers(0, 4),
    former=st.dictionaries(st.integers(0, 8), st.integers(0, 8)),
    absent=st.sets(st.integers(0, 8)),
)
def test_ranks_are_dense_and_sticky(workers: int, spares: int, former: dict[int, int], absent: set[int]) -> None:
    former = {index: rank for rank, index in enumerate(former)}
    present = [index for index in range(9) if index not in absent][: workers + spares]
    if len(present) < workers:
        return
    ranks = assign(former, present, workers)
    assert sorted(ranks.values()) == list(range(workers))
    assert set(ranks) <= set(present)
    assert all(ranks[index] == rank for index, rank in former.items() if index in present and rank < workers)


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        pytest.param(Ended(1, 1, -9, KILLED), f"worker 1 on node-2: {KILLED}", id="ended"),
        pytest.param(Left(1), "worker 1 on node-2: its supervisor at 10.0.0.2 is gone", id="left"),
    ],
)
def test_a_reason_names_the_node(event: Event, reason: str) -> None:
    rendezvous = rendezvous_of(2)
    for joined in (Joined(W0), Joined(Worker(1, "10.0.0.2", 2222, Where("train-1", "node-2")))):
        rendezvous.handle(joined)
    assert Close(1, reason) in rendezvous.handle(event)


KINDS = ["join", "leave", "end", "late end", "recalled"]


class Staged:
    """A rendezvous with supervisors and children as simple as can be, that checks what it is told to do."""

    def __init__(self, workers: int, spares: int) -> None:
        self.rendezvous = Rendezvous(workers, attempts=10, spares=spares)
        self.size = workers + spares
        self.alive: dict[int, int] = {}  # index -> attempt of its living child
        self.present: set[int] = set()
        self.opened = 0
        self.recalling = False

    def event(self, kind: str, index: int) -> Event | None:
        """What happens, None where it can't."""
        if kind == "join" and index not in self.present:
            self.present.add(index)
            return Joined(Worker(index, "10.0.0.1", 2222))
        if kind == "leave" and index in self.present:
            self.present.discard(index)
            self.alive.pop(index, None)  # a supervisor's child dies with it
            return Left(index)
        if kind == "end" and index in self.alive:
            return Ended(index, self.alive.pop(index), 75, "exit 75")
        if kind == "late end":
            return Ended(index, self.rendezvous.attempt - 1, 75, "exit 75")
        if kind == "recalled" and self.recalling:
            self.recalling = False
            return Past(last=self.opened, used=self.opened)
        return None

    def happens(self, kind: str, index: int) -> None:
        event = self.event(kind, index)
        for action in self.rendezvous.handle(event) if event else []:
            match action:
                case Recall():
                    assert not self.recalling
                    assert not self.opened, "once"
                    self.recalling = True
                case Open(attempt, ranked):
                    assert not self.alive
                    assert len(ranked) == self.rendezvous.workers
                    assert attempt == self.opened + 1
                    self.opened = attempt
                case Start(member, attempt, _, cluster):
                    assert member in self.present
                    assert member not in self.alive
                    assert attempt == self.opened
                    assert len(cluster) == self.rendezvous.workers
                    self.alive[member] = attempt
                case Stop(member):
                    assert member in self.present


@given(
    workers=st.integers(1, 4),
    spares=st.integers(0, 3),
    steps=st.lists(st.tuples(st.sampled_from(KINDS), st.integers(0, 6)), max_size=60),
)
def test_no_two_attempts_overlap_and_none_hangs(workers: int, spares: int, steps: list[tuple[str, int]]) -> None:
    """Whatever happens in whatever order: children start together, in full, and never beside an older child.

    And when all are there at last, the end of every child is the beginning of another attempt.
    """
    staged = Staged(workers, spares)
    for kind, number in steps:
        staged.happens(kind, number % staged.size)
    for index in range(staged.size):
        staged.happens("join", index)
    staged.happens("recalled", 0)
    opened = staged.opened
    for index in list(staged.alive):
        staged.happens("end", index)
    assert staged.rendezvous.finished or staged.opened == opened + 1
    assert staged.opened <= 10
