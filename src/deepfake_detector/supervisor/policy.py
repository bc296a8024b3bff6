"""The rendezvous as a state machine: events in, actions out. It knows no sockets, clocks or storage.

One rule: an attempt begins when every worker is present and no child is left of the attempt before, and the end
of one child is the end of all. Restarting only the dead process would hang under MultiWorkerMirroredStrategy.
"""

from __future__ import annotations

from dataclasses import dataclass

from deepfake_detector.core.errors import EXIT_OK, EXIT_PERMANENT, EXIT_UNAVAILABLE
from deepfake_detector.core.topology import port
from deepfake_detector.core.waiting import Budget
from deepfake_detector.supervisor.where import NOWHERE, Where, on

COMPLETE = "training is complete"
OVER_THE_RUN = "over the run"  # all attempts are counted
WITHOUT_SUCCESS = "without success"  # those since the last success are


@dataclass(frozen=True)
class Worker:
    """A registered supervisor: its index, where its children listen, and in which pod and on which node it is."""

    index: int
    host: str
    base_port: int
    where: Where = NOWHERE

    @property
    def name(self) -> str:
        """For people: "worker 1 on node-1"."""
        return on(f"worker {self.index}", self.where.node)

    def address(self, attempt: int) -> str:
        return f"{self.host}:{port(self.base_port, attempt)}"


@dataclass(frozen=True)
class Joined:
    worker: Worker


@dataclass(frozen=True)
class Left:
    """A supervisor's connection broke."""

    index: int


@dataclass(frozen=True)
class Ended:
    """A child is gone. status: exit status, or minus the signal; reason: for people, "killed by signal 9"."""

    index: int
    attempt: int
    status: int
    reason: str


@dataclass(frozen=True)
class Completed:
    """Training's marker was seen: whatever a child's end was, there is nothing left to train."""


@dataclass(frozen=True)
class Overdue:
    """The budget for awaiting the missing workers is spent. message: names them."""

    message: str


@dataclass(frozen=True)
class Open:
    """Record the attempt before any child of it runs. workers: in order of rank."""

    attempt: int
    workers: tuple[Worker, ...]


@dataclass(frozen=True)
class Start:
    index: int
    attempt: int
    rank: int
    cluster: tuple[str, ...]


@dataclass(frozen=True)
class Stop:
    """Kill the child of this supervisor, which answers with its end."""

    index: int


@dataclass(frozen=True)
class Close:
    """Record why the attempt ended."""

    attempt: int
    reason: str


@dataclass(frozen=True)
class Finish:
    """Every supervisor is done: 0, training is complete; else `message` says why: 78, no retry helps; 69, workers
    did not come.
    """

    status: int
    message: str


Event = Joined | Left | Ended | Completed | Overdue
Action = Open | Start | Stop | Close | Finish


class Rendezvous:
    """Decides for `workers` supervisors. last: the number of the run's latest attempt; used: how many there were.

    patience: seconds in which missing workers are awaited.
    """

    def __init__(
        self, workers: int, *, attempts: int, last: int = 0, used: int = 0, patience: float = float("inf")
    ) -> None:
        self.workers = workers
        self.attempts = attempts
        self.patience = patience
        self._budget = Budget(patience)
        self.attempt = last
        self.used = used
        self.present: dict[int, Worker] = {}
        self.running: set[int] = set()  # whose child of this attempt is not known to be gone
        self.open = False  # the attempt has begun and nothing has ended it yet
        self.finished = False

    @property
    def missing(self) -> list[int]:
        return [index for index in range(self.workers) if index not in self.present]

    @property
    def last_one(self) -> bool:
        """Whether there is no attempt after this one."""
        return self.used >= self.attempts

    def overdue_at(self, now: float) -> float | None:
        """When the missing workers are overdue; None: all are there. To be asked after each event.

        now: seconds of any steady clock.
        """
        if self.missing:
            return self._budget.wait(now)
        self._budget.met()
        return None

    def handle(self, event: Event) -> list[Action]:
        """What to do now, in this order."""
        if self.finished:
            return []
        match event:
            case Joined(worker):
                self.present[worker.index] = worker
                actions = []
            case Left(index):
                actions = self._left(index)
            case Ended():
                actions = self._ended(event)
            case Completed():  # an attempt that has ended keeps the reason it has
                actions = [Close(self.attempt, COMPLETE)] if self.open else []
                actions += self._finish(EXIT_OK, COMPLETE)
            case Overdue(message):
                actions = self._finish(EXIT_UNAVAILABLE, message) if self.missing else []
        return actions or self._begin()

    def _left(self, index: int) -> list[Action]:
        worker = self.present.pop(index, None)
        if worker is None:
            return []
        self.running.discard(index)
        return self._fail(f"{worker.name}: its supervisor at {worker.host} is gone")

    def _ended(self, event: Ended) -> list[Action]:
        if event.attempt != self.attempt or event.index not in self.running:
            return []
        self.running.discard(event.index)
        reason = f"{self.present[event.index].name}: {event.reason}"
        if event.status == EXIT_PERMANENT:
            return [Close(self.attempt, reason), *self._finish(EXIT_PERMANENT, reason)]
        if event.status == EXIT_OK:
            reason += ", but training's marker is not there"
        return self._fail(reason)

    def _fail(self, reason: str) -> list[Action]:
        if not self.open:
            return []
        if self.last_one:
            message = exhausted(self.used, self.attempts, reason)
            return [Close(self.attempt, reason), *self._finish(EXIT_PERMANENT, message)]
        self.open = False
        return [*(Stop(index) for index in sorted(self.running)), Close(self.attempt, reason), *self._begin()]

    def _finish(self, status: int, message: str) -> list[Action]:
        self.open = False
        self.finished = True
        return [Finish(status, message)]

    def _begin(self) -> list[Action]:
        if self.open or self.running or self.missing:
            return []
        self.attempt += 1
        self.used += 1
        self.open = True
        ranked = tuple(self.present[index] for index in sorted(self.present)[: self.workers])
        cluster = tuple(worker.address(self.attempt) for worker in ranked)
        self.running = {worker.index for worker in ranked}
        starts = (Start(worker.index, self.attempt, rank, cluster) for rank, worker in enumerate(ranked))
        return [Open(self.attempt, ranked), *starts]


def exhausted(used: int, attempts: int, reason: str, whose: str = "training", counted: str = OVER_THE_RUN) -> str:
    """Why there is no further attempt. whose: "shard 3"; counted: OVER_THE_RUN or WITHOUT_SUCCESS."""
    lives = "1 attempt" if used == 1 else f"{used} attempts"
    return (
        f"{lives} of {whose}: expected at most operations.attempts={attempts} {counted} (raise it to go on); the last "
        f"ended with {reason}"
    )
