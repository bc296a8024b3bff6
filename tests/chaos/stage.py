"""One run with its faults, on this machine, and what came out of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.core import layout
from deepfake_detector.core.errors import EXIT_OK, EXIT_PERMANENT
from deepfake_detector.core.markers import DetectorManifest, ShardReport, TrainedMarker, decode
from deepfake_detector.supervisor.child import leashed
from tests.chaos.processes import below, victims
from tests.chaos.scenarios import Fault, Scenario
from tests.integration.fault_proxy import FaultProxy

ROOT = Path(__file__).parents[2]
LIMIT_SECONDS = 420.0  # of one run; an undisturbed one takes about 30
RELAUNCHES = 6
LAUNCHER = (sys.executable, "-m", "tests.chaos.launcher")
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "term": signal.SIGTERM}
BALLAST = "ballast"


@dataclass(frozen=True)
class World:
    """What the runs share. scratch: the folder that holds all local files of a run, small where it may be filled."""

    folder: Path
    settings: Sequence[str]
    videos: str
    records: str
    scratch: Path
    can_fill: bool
    proxy: FaultProxy | None


@dataclass
class Hit:
    """A fault that was done, and when. step: seconds until training went on; None: it did not."""

    fault: Fault
    at: float
    step: float | None = None


@dataclass(frozen=True)
class Step:
    """A step of training: when it was done, by which of the chief's lives."""

    at: float
    pid: int
    number: int


@dataclass
class Result:
    scenario: Scenario
    outcome: dict[str, Any]
    hits: list[Hit]
    missed: list[Fault]  # nothing was there to be hit
    attempts: int
    launches: int
    seconds: float
    first_step: float | None  # seconds from the launch
    problems: list[str] = field(default_factory=list)


class Play:
    """One run: its launcher, and a thread for each fault."""

    def __init__(self, world: World, scenario: Scenario, uri: str) -> None:
        self._world, self._scenario = world, scenario
        self._run: Storage = open_storage(uri)
        self._folder = world.folder / f"play-{scenario.number}"
        self._folder.mkdir()
        self._steps = self._folder / "steps"
        self._steps.touch()
        self._over = threading.Event()
        self._launcher: subprocess.Popen[bytes] | None = None
        self._hits: list[Hit] = []
        self._missed: list[Fault] = []
        self._trouble: list[str] = []  # faults that could not be done, and should

    def play(self) -> Result:
        begin = time.time()
        threads = [threading.Thread(target=self._do, args=(fault,)) for fault in self._scenario.faults]
        problems: list[str] = []
        launches = 0
        try:
            self._launch()
            for thread in threads:
                thread.start()
            launches = self._until_it_is_done(begin, problems)
        finally:
            self._over.set()
            for thread in threads:
                thread.join()
            assert self._launcher
            self._launcher.kill()
            self._launcher.wait()
            self._empty()
        problems += self._trouble
        problems += [f"left behind: {process}" for process in self._left_behind()]
        outcome = {} if problems else outcome_of(self._run, whole=self._scenario.whole)
        steps = self._done()
        for hit in self._hits:
            hit.step = resumed(steps, hit.at)
        first = steps[0].at - begin if steps else None
        attempts = len(list(self._run.list(layout.ATTEMPTS)))
        seconds = time.time() - begin
        return Result(self._scenario, outcome, self._hits, self._missed, attempts, launches, seconds, first, problems)

    def said(self) -> str:
        return (self._folder / "launcher.log").read_text(errors="replace")

    def _launch(self) -> None:
        scenario, world = self._scenario, self._world
        more = [f"operations.spares={scenario.spares}", f"operations.standby={str(scenario.standby).lower()}"]
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "RUN": self._run.uri,
            "SET": json.dumps([*world.settings, *more]),
            "VIDEOS": world.videos if scenario.whole else "",
            "RECORDS": "" if scenario.whole else world.records,
            "CHAOS_STEPS": str(self._steps),
            "TMPDIR": str(world.scratch),
        }
        with (self._folder / "launcher.log").open("ab") as log:
            self._launcher = subprocess.Popen(leashed(LAUNCHER), env=environment, stdout=log, stderr=log, cwd=ROOT)

    def _until_it_is_done(self, begin: float, problems: list[str]) -> int:
        """As a person who types the same command again; returns how often it was typed."""
        for launch in range(1, RELAUNCHES + 1):
            assert self._launcher
            try:
                status = self._launcher.wait(max(1.0, begin + LIMIT_SECONDS - time.time()))
            except subprocess.TimeoutExpired:
                problems.append(f"hangs: not done after {LIMIT_SECONDS:g} s")
                return launch
            if status == EXIT_OK:
                return launch
            if status == EXIT_PERMANENT or launch == RELAUNCHES or not self._scenario.repeatable:
                break
            self._launch()
        problems.append(f"ended with {status}: {self.said().strip().splitlines()[-1]}")
        return launch

    def _done(self) -> list[Step]:
        """In order of time."""
        lines = [line.split() for line in self._steps.read_text().splitlines()]
        steps = [Step(float(at), int(pid), int(number)) for at, pid, number in lines]
        return sorted(steps, key=lambda step: step.at)

    def _do(self, fault: Fault) -> None:
        while fault.step and max((step.number for step in self._done()), default=0) < fault.step:
            if self._over.wait(0.02):
                self._missed.append(fault)
                return
        if self._over.wait(fault.delay):
            self._missed.append(fault)
            return
        try:
            with self._done_to(fault):
                self._hits.append(Hit(fault, time.time()))
                self._over.wait(fault.seconds)
        except LookupError:
            self._missed.append(fault)
        except Exception as error:
            self._trouble.append(f"{fault}: {error!r}")

    @contextlib.contextmanager
    def _done_to(self, fault: Fault) -> Any:
        """Do it, and end it afterwards where it has an end. Raises LookupError where nothing is there to be hit."""
        match fault.act:
            case "outage" | "missing":
                if self._world.proxy is None:
                    raise LookupError
                with self._world.proxy.outage(missing=fault.act == "missing"):
                    yield
            case "full":
                if not self._world.can_fill:
                    raise LookupError
                self._fill()
                yield
                self._empty()
            case _:
                pid = self._victim(fault)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, SIGNALS[fault.act])
                yield
                if fault.seconds:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGCONT)

    def _victim(self, fault: Fault) -> int:
        assert self._launcher
        if fault.victim == "launcher":
            return self._launcher.pid
        for _ in range(500):  # it may be between two lives
            if found := victims(self._launcher.pid, fault.victim):
                return found[fault.index % len(found)]
            if self._over.wait(0.02):
                break
        raise LookupError

    def _fill(self) -> None:
        with (self._world.scratch / BALLAST).open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(bytes(1 << 16))

    def _empty(self) -> None:
        (self._world.scratch / BALLAST).unlink(missing_ok=True)

    def _left_behind(self) -> list[str]:
        """Processes of this run that outlive its launcher: whatever it started dies with it, by the kernel."""
        mark = f"RUN={self._run.uri}\0".encode()
        for _ in range(250):
            left = []
            for process in below(1) + below(os.getpid()):
                with contextlib.suppress(OSError):
                    if mark in Path(f"/proc/{process.pid}/environ").read_bytes():
                        left.append(f"{process.pid} {process.command}")
            if not left:
                return []
            time.sleep(0.02)
        return left


def resumed(steps: Sequence[Step], fault: float) -> float | None:
    """Seconds from a fault until training goes on: to the first step of a later life, or of the same life the second.

    One step may have been on its way when the fault came.
    """
    before = {step.pid for step in steps if step.at <= fault}
    on_its_way = True
    for step in steps:
        if step.at <= fault:
            continue
        if step.pid not in before or not on_its_way:
            return step.at - fault
        on_its_way = False
    return None


def outcome_of(run: Storage, *, whole: bool) -> dict[str, Any]:
    """All that must not depend on what happened on the way."""
    trained = decode(TrainedMarker, run.read(layout.TRAINED), layout.TRAINED)
    detector = decode(DetectorManifest, run.read(layout.DETECTOR), layout.DETECTOR)
    found: dict[str, Any] = {
        "weights": trained.weights_sha256,
        "best": (trained.best_step, trained.best_loss),
        "calibration": (detector.slope, detector.offset, detector.threshold),
        "metrics": run.read(layout.REPORT_METRICS),
    }
    if whole:
        found["records"] = [
            _record(run, entry.name) for entry in run.list("records/") if layout.is_shard_report(entry.name)
        ]
    return found


def _record(run: Storage, name: str) -> Mapping[str, Any]:
    report = decode(ShardReport, run.read(name), name)
    outcomes = {video.key: video.outcome for video in report.videos}
    return {"files": [(file.name, file.size, file.crc32c) for file in report.files], "outcomes": outcomes}
