"""The rendezvous as a state machine: events in, actions out. It knows no sockets, clocks or storage.

One rule: an attempt begins when as many supervisors are present as there are ranks and no child is left of the attempt
before, and the end of one child is the end of all. Restarting only the dead process would hang under
MultiWorkerMirroredStrategy. Supervisors beyond that number are spares: one takes over a rank whose holder is gone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from deepfake_detector.core.errors import EXIT_OK, EXIT_PERMANENT, EXIT_UNAVAILABLE
from deepfake_detector.core.pods import OUT_OF_MEMORY
from deepfake_detector.core.topology import port
from deepfake_detector.core.waiting import Budget
from deepfake_detector.supervisor.where import NOWHERE, Where, on

COMPLETE = "training is complete"
OVER_THE_RUN = "over the run"  # all attempts are counted
MOST_OUT_OF_MEMORY = 3  # in a row: it was no coincidence, and more attempts under the same limit end alike
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
    """A supervisor's connection broke. why: for people."""

    index: int
    why: str = "is gone"


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
class Past:
    """What the run's attempts were so far, an answer to Recall.

    last: the latest attempt's number; used: how many counted; reason: why the latest ended; ranks: who had which rank
    in training's latest, by index; out_of_memory: how many of the latest in a row ran out of memory.
    """

    last: int = 0
    used: int = 0
    reason: str = ""
    ranks: Mapping[int, int] = field(default_factory=dict)
    out_of_memory: int = 0


@dataclass(frozen=True)
class Recall:
    """Read what the run's attempts were: asked once, when an attempt could begin.

    Not before, since who keeps the rendezvous of an earlier term may have one at work until its supervisors come over.
    """


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


Event = Joined | Left | Ended | Completed | Overdue | Past
Action = Recall | Open | Start | Stop | Close | Finish


class Rendezvous:
    """Decides for `workers` ranks and `spares` more supervisors.

    attempts: most of them over the run; budget: seconds in which missing workers are awaited (None: without end).
    """

    def __init__(self, workers: int, *, attempts: int, spares: int = 0, budget: Budget | None = None) -> None:
        self.workers = workers
        self.spares = spares
        self.size = workers + spares
        self.attempts = attempts
        self._budget = budget or Budget(float("inf"))
        self._recalling = self._recalled = False
        self.attempt = 0
        self.used = 0
        self.present: dict[int, Worker] = {}
        self.ranks: dict[int, int] = {}  # of the latest attempt, by index
        self.running: set[int] = set()  # whose child of this attempt is not known to be gone
        self.out_of_memory = 0  # attempts in a row
        self.open = False  # the attempt has begun and nothing has ended it yet
        self.finished = False

    @property
    def missing(self) -> list[int]:
        """Who is awaited: nobody, where enough are present."""
        if len(self.present) >= self.workers:
            return []
        return [index for index in range(self.size) if index not in self.present]

    @property
    def last_one(self) -> bool:
        """Whether there is no attempt after this one."""
        return self.used >= self.attempts

    def overdue_at(self, now: float) -> float | None:
        """When the missing workers are overdue; None: enough are there. To be asked after each event.

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
        actions: list[Action] = []
        match event:
            case Joined(worker):
                self.present[worker.index] = worker
            case Left(index, why):
                actions = self._left(index, why)
            case Ended():
                actions = self._ended(event)
            case Completed():  # an attempt that has ended keeps the reason it has
                actions = [Close(self.attempt, COMPLETE)] if self.open else []
                actions += self._finish(EXIT_OK, COMPLETE)
            case Overdue(message):
                actions = self._finish(EXIT_UNAVAILABLE, message) if self.missing else []
            case Past():
                actions = self._recall(event)
        return actions or self._begin()

    def _recall(self, past: Past) -> list[Action]:
        self._recalled = True
        self.attempt, self.used, self.ranks = past.last, past.used, dict(past.ranks)
        # Each MOST_OUT_OF_MEMORY of them ended the run: whoever gave it again has more memory for it.
        self.out_of_memory = past.out_of_memory % MOST_OUT_OF_MEMORY
        if self.last_one:
            return self._finish(EXIT_PERMANENT, exhausted(self.used, self.attempts, past.reason))
        return []

    def _left(self, index: int, why: str) -> list[Action]:
        worker = self.present.pop(index, None)
        if worker is None:
            return []
        self.running.discard(index)
        if index not in self.ranks:
            return []  # a spare
        if self.open:
            self.out_of_memory = 0
        return self._fail(f"{worker.name}: its supervisor at {worker.host} {why}")

    def _ended(self, event: Ended) -> list[Action]:
        if event.attempt != self.attempt or event.index not in self.running:
            return []
        self.running.discard(event.index)
        reason = f"{self.present[event.index].name}: {event.reason}"
        if event.status == EXIT_PERMANENT:
            return [Close(self.attempt, reason), *self._finish(EXIT_PERMANENT, reason)]
        if self.open:
            self.out_of_memory = self.out_of_memory + 1 if event.reason.startswith(OUT_OF_MEMORY) else 0
            if self.out_of_memory >= MOST_OUT_OF_MEMORY:
                message = f"{self.out_of_memory} attempts in a row ran out of memory, the last: {reason}"
                return [Close(self.attempt, reason), *self._finish(EXIT_PERMANENT, message)]
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
        if not self._recalled:
            actions: list[Action] = [] if self._recalling else [Recall()]  # others may come while it is under way
            self._recalling = True
            return actions
        self.attempt += 1
        self.used += 1
        self.open = True
        self.ranks = assign(self.ranks, self.present, self.workers)
        ranked = tuple(self.present[index] for index in sorted(self.ranks, key=self.ranks.__getitem__))
        cluster = tuple(worker.address(self.attempt) for worker in ranked)
        self.running = set(self.ranks)
        starts = (Start(worker.index, self.attempt, rank, cluster) for rank, worker in enumerate(ranked))
        return [Open(self.attempt, ranked), *starts]


def assign(former: Mapping[int, int], present: Collection[int], workers: int) -> dict[int, int]:
    """Ranks 0 to workers - 1 by index: who is present keeps its rank, and the lowest of the others fill the gaps.

    A worker that keeps its rank has staged what it needs. At least `workers` must be present.
    """
    ranks = {index: rank for index, rank in former.items() if index in present and rank < workers}
    free = [rank for rank in range(workers) if rank not in ranks.values()]
    others = [index for index in sorted(present) if index not in ranks]
    return ranks | dict(zip(others, free, strict=False))


def exhausted(used: int, attempts: int, reason: str, whose: str = "training", counted: str = OVER_THE_RUN) -> str:
    """Why there is no further attempt. whose: "shard 3"; counted: OVER_THE_RUN or WITHOUT_SUCCESS."""
    lives = "1 attempt" if used == 1 else f"{used} attempts"
    return (
        f"{lives} of {whose}: expected at most operations.attempts={attempts} {counted} (raise it to go on); the last "
        f"ended with {reason}"
    )
