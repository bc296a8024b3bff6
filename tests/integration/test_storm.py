"""Storms: supervisors and stand-ins for TensorFlow killed, frozen and told to end at random, and training completes.

What is at stake is the agreement of supervisors, so a storm takes seconds; tests/chaos does the like to real training.
`STORMS=200` has more of them. A stand-in does nothing by itself: as in an all-reduce, it waits for a dead peer forever.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from deepfake_detector.core.errors import EXIT_OK, EXIT_PERMANENT, EXIT_UNAVAILABLE
from deepfake_detector.supervisor.attempts import EXPORTED, SILENT
from deepfake_detector.supervisor.policy import COMPLETE
from tests.integration.director import PATIENCE, FakeWorker, Stage
from tests.integration.forked import Forked

STORMS = int(os.environ.get("STORMS", "8"))
STORM_SECONDS = 3.0
QUICK = {
    "SILENCE_SECONDS": "0.8",
    "BEAT_SECONDS": "0.1",
    "CONNECT_SECONDS": "0.4",
    "LOOK_SECONDS": "0.1",
    "HOLD_SECONDS": "0.3",
    "FAREWELL_SECONDS": "0.5",
    "NEEDS_MB": "0",
}
SIGNALS = (signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP)


@dataclass(frozen=True)
class Fault:
    """at: seconds into the storm; index: of the supervisor, or which of the children; seconds: of a SIGSTOP."""

    at: float
    victim: str
    index: int
    number: signal.Signals
    seconds: float


def draw(dice: random.Random, size: int) -> list[Fault]:
    faults = []
    for _ in range(dice.randint(1, 6)):
        victim = dice.choice(("supervisor", "child"))
        number = dice.choice(SIGNALS) if victim == "supervisor" else signal.SIGKILL
        at, index, seconds = dice.uniform(0, STORM_SECONDS), dice.randrange(size), dice.uniform(0.2, 2.5)
        faults.append(Fault(at, victim, index, number, seconds))
    return sorted(faults, key=lambda fault: fault.at)


class Storm:
    """Leads a stage through its faults to the end of training. Whoever ends without success is started again."""

    def __init__(self, stage: Stage, faults: list[Fault]) -> None:
        self._stage, self._faults = stage, faults
        self._begin = time.monotonic()
        self._frozen: list[tuple[float, Forked | subprocess.Popen[str]]] = []
        self._children: list[FakeWorker] = []
        stage.server.settimeout(0.02)

    def pass_over(self) -> None:
        self._stage.start(**QUICK)
        while not self._over():
            now = time.monotonic() - self._begin
            assert now < STORM_SECONDS + PATIENCE, f"hangs: {self._stage.reasons()}, {self._children}"
            with contextlib.suppress(TimeoutError):
                self._children += self._stage.cast(1)
            self._children = [child for child in self._children if alive(child)]
            while self._faults and self._faults[0].at <= now:
                self._strike(self._faults.pop(0))
            for _, supervisor in [each for each in self._frozen if each[0] <= now]:
                supervisor.send_signal(signal.SIGCONT)
            self._frozen = [each for each in self._frozen if each[0] > now]
            if not (self._faults or self._frozen):
                self._let_them_finish()

    def _over(self) -> bool:
        """Whether all supervisors have ended well."""
        done = True
        for index, supervisor in self._stage.supervisors.items():
            status = supervisor.poll() if isinstance(supervisor, subprocess.Popen) else supervisor.returncode
            assert status not in (EXIT_PERMANENT, EXIT_UNAVAILABLE), self._stage.end(index)
            if status not in (None, EXIT_OK):
                self._stage.start(index, **QUICK)
            done = done and status == EXIT_OK
        return done

    def _strike(self, fault: Fault) -> None:
        if fault.victim == "child":
            if self._children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._children[fault.index % len(self._children)].pid, fault.number)
            return
        supervisor = self._stage.supervisors[fault.index]
        supervisor.send_signal(fault.number)
        if fault.number == signal.SIGSTOP:
            self._frozen.append((fault.at + fault.seconds, supervisor))

    def _let_them_finish(self) -> None:
        """Once all ranks of the latest attempt are at work, and for the export."""
        for child in [child for child in self._children if child.stage == "export"]:
            tell(child, marker=True)
        trained = [child for child in self._children if child.stage == "train"]
        latest = [child for child in trained if child.attempt == max(each.attempt for each in trained)]
        if len(latest) == self._stage.workers:
            for child in sorted(latest, key=lambda child: -child.rank):
                tell(child, marker=child.rank == 0)


def tell(child: FakeWorker, *, marker: bool) -> None:
    with contextlib.suppress(OSError):  # it was killed in this moment
        child.order(0, marker=marker)


def alive(child: FakeWorker) -> bool:
    """A dead one's end of the connection is closed by the kernel."""
    if child.connection.fileno() < 0:
        return False
    child.connection.setblocking(False)
    try:
        child.connection.recv(1)
    except BlockingIOError:
        child.connection.settimeout(PATIENCE)
        return True
    except OSError:  # a reset, or closed by us
        pass
    child.connection.close()
    return False


@pytest.mark.parametrize("seed", range(STORMS))
def test_a_storm_passes(tmp_path: Path, seed: int) -> None:
    dice = random.Random(seed)
    spares, standby = dice.randint(0, 1), dice.random() < 0.5
    settings = {"operations.spares": spares, "operations.standby": standby, "operations.attempts": 100}
    with Stage(tmp_path, settings=settings) as stage:
        faults = draw(dice, stage.size)
        print(f"{spares} spares, standby: {standby}", *faults, sep="\n")
        Storm(stage, faults).pass_over()
        reasons = stage.reasons()
        assert reasons[-1] == EXPORTED
        assert reasons.count(COMPLETE) <= 1, "a stand-in may have been killed while the chief wrote the marker"
        assert SILENT not in reasons[-2:]
