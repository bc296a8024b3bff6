"""What a run's logs/ hold of the lives of its processes: how each ended, and the names of the logs that they left."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from deepfake_detector.adapters.attempts import Attempt, AttemptWorker
from deepfake_detector.adapters.storage import Storage
from deepfake_detector.core import layout
from deepfake_detector.core.errors import CorruptError, NotFoundError
from deepfake_detector.core.markers import decode
from deepfake_detector.supervisor.attempts import SUCCESSES
from deepfake_detector.supervisor.where import NOWHERE, Where

READERS = 8  # attempts read at a time: one takes about 50 ms from a bucket
_STORED = re.compile(r"logs/([a-z]+)/(\d+)/(attempts/|supervisor-|)(\d{5})\.(?:log|json)")

Place = tuple[str, int]  # stage, index


@dataclass(frozen=True)
class Kept:
    """Names of what is stored of one place, by number.

    logs: of its children, one for each life; supervisors: logs of those that failed. attempts: of all of its lives,
    also those that ended before they could store a log.
    """

    logs: dict[int, str] = field(default_factory=dict)
    supervisors: dict[int, str] = field(default_factory=dict)
    attempts: dict[int, str] = field(default_factory=dict)

    @property
    def lives(self) -> list[int]:
        """Their numbers, oldest first."""
        return sorted({*self.logs, *self.attempts})


class Lives:
    """All that is stored of a run. An attempt is an object of its own for a shard, and one for all workers' lives."""

    def __init__(self, run: Storage) -> None:
        self._run = run
        self._places: dict[Place, Kept] = {}
        self._attempts: dict[str, Attempt | str] = {}  # that were read; a text: why one can't be
        shared = []
        for entry in run.list("logs/"):
            if match := _STORED.fullmatch(entry.name):
                kept = self._places.setdefault((match[1], int(match[2])), Kept())
                names = {"attempts/": kept.attempts, "supervisor-": kept.supervisors, "": kept.logs}[match[3]]
                names[int(match[4])] = entry.name
            elif entry.name.startswith(layout.ATTEMPTS):
                shared.append(entry.name)
        self._read(shared)
        for name in shared:
            self._place_shared(name)

    @property
    def places(self) -> list[Place]:
        return sorted(self._places)

    def kept(self, place: Place) -> Kept:
        return self._places.get(place, Kept())

    def read(self, places: Iterable[Place], *, everything: bool) -> None:
        """Read the attempts of these places, many at a time: those of the last lives, or all; before the following."""
        names = []
        for place in places:
            kept = self.kept(place)
            lives = kept.lives if everything else kept.lives[-1:]
            names += [kept.attempts[number] for number in lives if number in kept.attempts]
        self._read(names)

    def is_done(self, place: Place) -> bool:
        """Whether the last life succeeded."""
        return any(self.succeeded(place, number) for number in self.kept(place).lives[-1:])

    def succeeded(self, place: Place, number: int) -> bool:
        attempt = self._attempt(place, number)
        return isinstance(attempt, Attempt) and attempt.reason in SUCCESSES

    def pod(self, place: Place, number: int) -> str:
        """The name of the pod that a life was in; "" where none is known."""
        worker = _worker(self._attempt(place, number), place)
        return worker.pod if worker else ""

    def unlogged(self, place: Place, number: int) -> str:
        """A life that left no log, in words."""
        attempt = self._attempt(place, number)
        if not isinstance(attempt, Attempt):
            return attempt
        worker = _worker(attempt, place)
        where = Where(worker.pod, worker.node) if worker else NOWHERE
        title = where.of(f"{place[0]} {place[1]}, attempt {attempt.attempt}")
        return f"{title}: no log of it is stored ({attempt.reason or 'it runs, or was lost without a word'})"

    def _attempt(self, place: Place, number: int) -> Attempt | str:
        return self._attempts.get(self.kept(place).attempts.get(number, ""), "")

    def _place_shared(self, name: str) -> None:
        attempt = self._attempts[name]
        if isinstance(attempt, str):
            print(f"an attempt is left out: {attempt}", file=sys.stderr)
            return
        for worker in attempt.workers:
            kept = self._places.setdefault((attempt.stage, worker.index), Kept())
            kept.attempts[attempt.attempt] = name

    def _read(self, names: Iterable[str]) -> None:
        new = [name for name in names if name not in self._attempts]
        with ThreadPoolExecutor(READERS) as pool:
            self._attempts |= zip(new, pool.map(self._read_one, new), strict=True)

    def _read_one(self, name: str) -> Attempt | str:
        try:
            return decode(Attempt, self._run.read(name), f"{self._run.uri}/{name}")
        except (CorruptError, NotFoundError) as error:
            return str(error)


def _worker(attempt: Attempt | str, place: Place) -> AttemptWorker | None:
    workers = attempt.workers if isinstance(attempt, Attempt) else []
    return next((worker for worker in workers if worker.index == place[1]), None)
