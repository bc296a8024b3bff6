"""Directs stand-ins for TensorFlow (fake_worker.py) and the supervisors above them, by events and never by sleeps."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from deepfake_detector.adapters.attempts import Attempt
from deepfake_detector.adapters.storage import open_storage
from deepfake_detector.core import layout
from deepfake_detector.core.config import Config, override
from deepfake_detector.core.topology import PORTS
from deepfake_detector.stages.runs import save_config
from deepfake_detector.supervisor import terms
from tests.integration.forked import ROOT, Forked

PATIENCE = 30.0  # seconds for an event that must come
TRAIN = (sys.executable, str(Path(__file__).with_name("fake_train.py")))


@dataclass
class FakeWorker:
    """A stand-in that waits for its one order."""

    stage: str
    pid: int
    parent: int
    attempt: int
    rank: int
    waited: bool
    cluster: list[str]
    connection: socket.socket

    def order(self, status: int, message: str = "", *, marker: bool = False) -> None:
        """Write the stage's marker or not, print an error or not, exit."""
        self.connection.sendall(json.dumps({"status": status, "message": message, "marker": marker}).encode() + b"\n")
        self.wait_gone()

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        self.wait_gone()

    def wait_gone(self) -> None:
        """Return once the process is dead: its end of the connection is closed by the kernel."""
        with contextlib.suppress(ConnectionResetError):
            assert self.connection.recv(1) == b"", "a stand-in says nothing more"
        self.connection.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@dataclass
class Stage:
    """A run folder with `workers` supervisors, started and restarted by hand as pods would be."""

    folder: Path
    workers: int = 2
    settings: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.run = open_storage(str(self.folder / "run"))
        self.size = self.workers + self.settings.get("operations.spares", 0)
        config = override(Config(), {"train.workers": self.workers, **self.settings}, "test")
        save_config(self.run, config, {}, "")
        self.server = socket.create_server(("127.0.0.1", 0))
        self.server.settimeout(PATIENCE)
        self.peers = ",".join(f"127.0.0.1:{free_port()}" for _ in range(self.size))
        self.supervisors: dict[int, Forked | subprocess.Popen[str]] = {}
        self.children: list[FakeWorker] = []

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *_: object) -> None:
        for supervisor in self.supervisors.values():
            supervisor.kill()
        for supervisor in self.supervisors.values():
            supervisor.communicate()
        for child in self.children:
            child.connection.close()
        self.server.close()

    def environment(self, index: int) -> dict[str, str]:
        return {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "RUN": self.run.uri,
            "JOB_COMPLETION_INDEX": str(index),
            "PEERS": self.peers,
            "TF_BASE_PORT": str(20000 + index * PORTS),
            "SCRATCH": str(self.folder / f"scratch-{index}"),
            "DIRECTOR": str(self.server.getsockname()[1]),
        }

    def start(self, *indexes: int, **environment: str) -> None:
        for index in indexes or range(self.size):
            self.supervisors[index] = Forked(TRAIN[1], {**self.environment(index), **environment}, self.folder)

    def cast(self, count: int | None = None) -> list[FakeWorker]:
        """The next children to start, in order of rank."""
        children = [self._accept() for _ in range(count or self.workers)]
        self.children += children
        return sorted(children, key=lambda child: child.rank)

    def _accept(self) -> FakeWorker:
        connection, _ = self.server.accept()
        connection.settimeout(PATIENCE)
        with connection.makefile() as lines:
            return FakeWorker(**json.loads(lines.readline()), connection=connection)

    def signal(self, index: int, number: signal.Signals) -> int | None:
        """Send a signal to a supervisor and return its status."""
        supervisor = self.supervisors[index]
        supervisor.send_signal(number)
        supervisor.communicate(timeout=PATIENCE)
        return supervisor.returncode

    def end(self, index: int) -> tuple[int | None, str]:
        """Wait for a supervisor: its status, and the last line of its stderr."""
        supervisor = self.supervisors[index]
        _, errors = supervisor.communicate(timeout=PATIENCE)
        return supervisor.returncode, (errors.splitlines() or [""])[-1]

    def keeper(self, after: int = 0) -> int:
        """The index of the supervisor that keeps the rendezvous, once there is a later term than the one given."""
        deadline = time.monotonic() + PATIENCE
        while (term := terms.latest(self.run)) is None or term.number <= after:
            assert time.monotonic() < deadline, f"nobody keeps the rendezvous after term {after}"
            time.sleep(0.01)
        return term.keeper

    def await_file(self, path: Path) -> None:
        """Until something that is seen in no other way has been done."""
        deadline = time.monotonic() + PATIENCE
        while not path.exists():
            assert time.monotonic() < deadline, f"{path} did not come"
            time.sleep(0.01)

    def attempt(self, number: int) -> Attempt:
        return Attempt.model_validate_json(self.run.read(layout.attempt(number)))

    def await_reason(self, number: int) -> str:
        """Why the attempt ended, once that is recorded: its children are gone before."""
        deadline = time.monotonic() + PATIENCE
        while (reason := self.attempt(number).reason) is None:
            assert time.monotonic() < deadline, f"nobody recorded why attempt {number} ended"
            time.sleep(0.01)
        return reason

    def reasons(self) -> list[str | None]:
        names = [entry.name for entry in self.run.list("logs/attempts/")]
        return [Attempt.model_validate_json(self.run.read(name)).reason for name in names]
