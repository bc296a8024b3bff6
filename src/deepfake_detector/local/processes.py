"""Child processes of the launcher: started with a pod's environment, ended with the launcher."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import deepfake_detector
from deepfake_detector.adapters.kernel import Frozen
from deepfake_detector.core.errors import ConfigError, DetectorError
from deepfake_detector.supervisor import child
from deepfake_detector.supervisor.child import End, describe_end, leashed, tail, was_frozen

GRACE_SECONDS = 5.0  # between SIGTERM, which every job obeys at once, and SIGKILL
FIRST_PORT, LAST_PORT = 20_000, 32_000  # below the ports that Linux gives to outgoing connections


class JobError(DetectorError):
    """A job that could not be completed; its status becomes the command's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.exit_status = status


@dataclass(frozen=True)
class Job:
    """One process to run. name: for people, "preprocess 3"; environment: what a pod would have beside the usual."""

    name: str
    index: int
    command: Sequence[str]
    environment: Mapping[str, str]


@dataclass
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    log: BinaryIO  # open for reading, at the end of what was copied to the terminal
    frozen: Frozen
    ended_for_it: bool = False


class Processes:
    """The living jobs of a launcher; a context manager that leaves none behind."""

    def __init__(self, logs: Path, *, verbose: bool) -> None:
        self._root = checkout()
        self._logs = logs
        self._verbose = verbose
        self._running: list[_Running] = []
        self._count = 0

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *_: object) -> None:
        self.end_all()

    def __len__(self) -> int:
        return len(self._running)

    def start(self, job: Job) -> None:
        """Start a job; its output goes to a file, and from there to the terminal when verbose."""
        self._count += 1
        log = self._logs / f"{self._count:05d}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                leashed(job.command, signal.SIGTERM),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=self._environment(job),
                start_new_session=True,  # Ctrl-C is for the launcher, which then ends its jobs
            )
        self._running.append(_Running(job, process, log.open("rb"), Frozen(process.pid)))

    def _environment(self, job: Job) -> dict[str, str]:
        # A pod inherits nothing; here credentials, paths and proxies are the user's own.
        paths = [str(self._root), *filter(None, [os.environ.get("PYTHONPATH")])]
        ours = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1", "PYTHONUNBUFFERED": "1"}
        ours |= {"POD_NAME": "", "NODE_NAME": ""}  # the launcher's, if it is in a pod itself
        return {**os.environ, **ours, **job.environment}

    def ended(self) -> list[tuple[Job, End]]:
        """The jobs that have ended since the last call. One that is frozen (SIGSTOP) for too long is killed."""
        ends = []
        for running in list(self._running):
            status = running.process.poll()
            if status is None and running.frozen.seconds() >= child.FROZEN_SECONDS:
                running.ended_for_it = True
                running.process.kill()
            if self._verbose:
                sys.stderr.write(running.log.read().decode(errors="replace"))
            if status is not None:
                self._running.remove(running)
                said = describe_end(status, tail(Path(running.log.name)))
                reason = was_frozen() if running.ended_for_it else said
                running.log.close()
                ends.append((running.job, End(status, reason)))
        return ends

    def end_all(self) -> None:
        """SIGTERM to every job, SIGKILL to the group of one that does not obey."""
        processes = [running.process for running in self._running]
        for process in processes:
            process.terminate()
        deadline = time.monotonic() + GRACE_SECONDS
        for process in processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        for running in self._running:
            running.log.close()
        self._running.clear()


def checkout() -> Path:
    """The folder that holds jobs/ beside src/; raises ConfigError where the package was installed without it."""
    root = Path(deepfake_detector.__file__).parents[2]
    if not (root / "jobs" / "train.py").is_file():
        raise ConfigError(
            f"{root}/jobs: not found, expected the checkout's jobs/ folder (install it with pip install --editable)"
        )
    return root


def module(name: str) -> tuple[str, ...]:
    return (sys.executable, "-m", name)


def free_blocks(count: int, size: int) -> list[int]:
    """The first ports of `count` blocks of `size` consecutive ports that are free on 127.0.0.1.

    Raises ConfigError when the machine has not so many.
    """
    span = LAST_PORT - FIRST_PORT
    start = os.getpid() * 97 % span  # two launchers at a time rarely look at the same ports
    blocks = []
    for offset in range(0, span - size, size):
        first = FIRST_PORT + (start + offset) % (span - size)
        if all(_is_free(port) for port in range(first, first + size)):
            blocks.append(first)
        if len(blocks) == count:
            return blocks
    raise ConfigError(f"{count} training processes: expected {count} blocks of {size} free ports on 127.0.0.1")


def _is_free(port: int) -> bool:
    try:
        with socket.create_server(("127.0.0.1", port)):
            return True
    except OSError:
        return False
