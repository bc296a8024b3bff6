"""kill -9 of every process that training has, one after the other: nothing that comes out is different.

And what the undisturbed run tells while it is at work, since TensorFlow's start is most of what these tests take.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from deepfake_detector.adapters.attempts import Attempt
from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.core import layout
from deepfake_detector.core.markers import DetectorManifest, TrainedMarker, decode
from deepfake_detector.core.timeline import steps, table
from deepfake_detector.display import TrainDisplay
from deepfake_detector.supervisor import terms
from deepfake_detector.supervisor.attempts import SILENT
from tests.integration.director import ROOT, free_port
from tests.make_records import make_run, tiny

STEPS = 24  # of the run
PATIENCE = 300.0  # seconds for the next checkpoint, a start of TensorFlow included
COUNTS = {"train": (16, 16), "validation": (8, 8), "test": (8, 8)}
VICTIMS = ("child 1", "child 0", "member", "keeper")

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="finds a supervisor's child in /proc"),
    pytest.mark.timeout(1200),  # seven starts of two TensorFlow processes; 90 s on two idle cores
]


@dataclass
class Kill:
    """What was killed, at which step, and the seconds until the attempt was closed and a new step was done."""

    victim: str
    index: int
    step: int
    noticed: float
    recovered: float


class Training:
    """Two supervisors of one run, as two pods would have them. checkpoint_steps: 0 for none in mid-epoch."""

    def __init__(self, folder: Path, checkpoint_steps: int) -> None:
        epochs = 2
        config = tiny(
            train__workers=2,
            train__epochs=epochs,
            train__steps_per_epoch=STEPS // epochs,
            operations__checkpoint_steps=checkpoint_steps,
            operations__keep_checkpoints=3,
        )
        self.folder = folder
        self.run: Storage = open_storage(make_run(folder / "run", config, COUNTS))
        self.peers = ",".join(f"127.0.0.1:{free_port()}" for _ in range(2))
        self.ports = [23_000 + 16 * (os.getpid() % 500) + 8 * index for index in range(2)]
        self.supervisors: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, index: int) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "RUN": self.run.uri,
            "JOB_COMPLETION_INDEX": str(index),
            "PEERS": self.peers,
            "TF_BASE_PORT": str(self.ports[index]),
            "SCRATCH": str(self.folder / f"scratch-{index}"),
        }
        with (self.folder / f"supervisor-{index}.log").open("ab") as log:
            self.supervisors[index] = subprocess.Popen(
                [sys.executable, "-m", "jobs.train"], env=environment, stdout=log, stderr=log
            )

    def newest_step(self) -> int:
        names = [entry.name for entry in self.run.list(layout.CHECKPOINTS)]
        steps = [re.fullmatch(r"checkpoints/(\d{8})\.json", name) for name in names]
        return max((int(match[1]) for match in steps if match), default=0)

    def wait_for_step(self, step: int) -> int:
        """The newest committed step, once it is `step` or later."""
        deadline = time.monotonic() + PATIENCE
        while (newest := self.newest_step()) < step:
            assert time.monotonic() < deadline, f"step {step} did not come: {self.said()}"
            time.sleep(0.05)
        return newest

    def kill(self, victim: str) -> Kill:
        index = self.index_of(victim)
        supervisor = self.supervisors[index]
        step = self.newest_step()
        before = time.time()
        os.kill(child_of(supervisor.pid) if victim.startswith("child") else supervisor.pid, signal.SIGKILL)
        if not victim.startswith("child"):
            supervisor.wait()
            self.start(index)
        ended = self.wait_for_end(before)
        reached = self.newest_step()  # checkpoints that were on their way have been committed since
        self.wait_for_step(reached + 1)
        return Kill(victim, index, step, noticed=ended - before, recovered=time.time() - before)

    def wait_for_end(self, before: float) -> float:
        """When the attempt was closed that was at work at that moment."""
        deadline = time.monotonic() + PATIENCE
        while True:
            if ended := [attempt.ended for attempt in self.attempts() if attempt.ended and attempt.ended >= before]:
                return ended[0]
            assert time.monotonic() < deadline, f"the attempt was not closed: {self.said()}"
            time.sleep(0.05)

    def index_of(self, victim: str) -> int:
        """keeper: the supervisor that keeps the rendezvous; member: the other one."""
        term = terms.latest(self.run)
        assert term
        known = {"keeper": term.keeper, "member": 1 - term.keeper}
        return known[victim] if victim in known else int(victim.removeprefix("child "))

    def attempts(self) -> list[Attempt]:
        names = [entry.name for entry in self.run.list("logs/attempts/")]
        return [decode(Attempt, self.run.read(name), name) for name in names]

    def said(self) -> str:
        return "\n".join(path.read_text() for path in sorted(self.folder.glob("*.log")))

    def finish(self) -> None:
        for supervisor in self.supervisors.values():
            assert supervisor.wait(PATIENCE) == 0, self.said()

    def outcome(self) -> dict[str, object]:
        """All that must not depend on what happened on the way."""
        trained = decode(TrainedMarker, self.run.read(layout.TRAINED), layout.TRAINED)
        detector = decode(DetectorManifest, self.run.read(layout.DETECTOR), layout.DETECTOR)
        return {
            "weights": trained.weights_sha256,
            "best": (trained.best_step, trained.best_loss),
            "calibration": (detector.slope, detector.offset, detector.threshold),
            "metrics": self.run.read(layout.REPORT_METRICS),
        }


@contextmanager
def training(folder: Path, checkpoint_steps: int) -> Iterator[Training]:
    folder.mkdir()
    cast = Training(folder, checkpoint_steps)
    try:
        for index in (0, 1):
            cast.start(index)
        yield cast
    finally:
        for supervisor in cast.supervisors.values():
            supervisor.kill()
            supervisor.wait()


def child_of(parent: int) -> int:
    """The process that a supervisor has started."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            return int(stat.parent.name)
    raise AssertionError(f"process {parent} has no child")


@dataclass
class Undisturbed:
    """A run that nobody has killed. timeline: as it was told while training was at work, which began before `first`."""

    outcome: dict[str, object]
    timeline: dict[str, float]
    begun: float
    first: float


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    begun = time.time()
    with training(tmp_path_factory.mktemp("undisturbed") / "run", 0) as cast, TrainDisplay(cast.run) as display:
        deadline = time.monotonic() + PATIENCE
        while not display.timeline:
            assert time.monotonic() < deadline, cast.said()
            assert all(supervisor.poll() is None for supervisor in cast.supervisors.values()), cast.said()
            time.sleep(0.05)
            display.look()
        first = time.time()
        cast.finish()
        return Undisturbed(cast.outcome(), display.timeline, begun, first)


def test_the_first_attempt_tells_its_moments_in_order(undisturbed: Undisturbed) -> None:
    """Where the time to the first step went, told by a supervisor and its worker."""
    assert list(undisturbed.timeline) == [
        "process",
        "supervisor",
        "child",
        "prepared",
        "imported",
        "strategy",
        "staged",
        "agreed",
        "model",
        "resumed",
        "built",
        "first_step",
    ]
    times = list(undisturbed.timeline.values())
    assert times == sorted(times)
    assert undisturbed.begun - 0.1 <= times[0] <= times[-1] <= undisturbed.first, "a process' start is known to a tick"
    assert sum(step.seconds for step in steps(undisturbed.timeline)) <= undisturbed.first - undisturbed.begun + 0.1
    assert "x the" in table(undisturbed.timeline)[-1]
    print("\n".join(table(undisturbed.timeline)))


def test_kill_of_any_process_changes_nothing(undisturbed: Undisturbed, tmp_path: Path) -> None:
    draw = random.Random(0)
    window = STEPS // (len(VICTIMS) + 1)
    with training(tmp_path / "disturbed", 1) as cast:
        kills = []
        for number, victim in enumerate(VICTIMS):
            cast.wait_for_step(number * window + draw.randint(2, window))
            kills.append(cast.kill(victim))
            print(kills[-1])
        cast.finish()
        reasons = [attempt.reason for attempt in cast.attempts()]
        assert cast.outcome() == undisturbed.outcome

    assert all(kill.step < STEPS for kill in kills)
    assert reasons == [
        "worker 1: killed by signal 9 (SIGKILL)",
        "worker 0: killed by signal 9 (SIGKILL)",
        f"worker {kills[2].index}: its supervisor at 127.0.0.1 is gone",
        SILENT,
        "training is complete",
        "the model is exported",
    ]
