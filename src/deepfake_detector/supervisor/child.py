"""One child process: its own process group, its output in a file, dead when its supervisor is."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from deepfake_detector.adapters.machine import ROOT, MemoryUse, describe_oom, memory_use
from deepfake_detector.supervisor import sigterm

TAIL_BYTES = 64 * 1024
TAIL_LINES = 200
FOLLOW_SECONDS = 0.2
LEASH = Path(__file__).with_name("leash.py")


def leashed(command: Sequence[str], signal_number: signal.Signals = signal.SIGKILL) -> list[str]:
    """`command`, to be sent a signal when the process that starts it (from its main thread) dies."""
    return [sys.executable, "-I", "-S", str(LEASH), str(os.getpid()), str(int(signal_number)), *command]


@dataclass(frozen=True)
class End:
    """status: exit status, or minus the signal. reason: one line for people."""

    status: int
    reason: str


class Child:
    """A running command; made by `start`."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path, memory: MemoryUse | None, root: Path) -> None:
        self._process = process
        self._memory = memory
        self._root = root
        self._killed = False
        self.log = log
        self.pid = process.pid

    @classmethod
    async def start(cls, command: Sequence[str], environment: Mapping[str, str], log: Path, root: Path = ROOT) -> Child:
        """Run `command` with stdout and stderr in the file `log`. root: of the kernel's files (adapters.machine)."""
        log.parent.mkdir(parents=True, exist_ok=True)
        memory = memory_use(root)
        with log.open("wb") as output, sigterm.farewell():
            process = await asyncio.create_subprocess_exec(
                *leashed(command),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**environment, "PYTHONUNBUFFERED": "1"},  # lines in their order, and none lost to SIGKILL
                start_new_session=True,
            )
            sigterm.groups.add(process.pid)
            if sigterm.asked():  # in the meantime
                sigterm.kill_group(process.pid)
        return cls(process, log, memory, root)

    def kill(self) -> None:
        """SIGKILL to the whole group: TensorFlow may not exit on SIGTERM."""
        if self._process.returncode is None:
            self._killed = True
            sigterm.kill_group(self.pid)

    async def wait(self) -> End:
        """Wait for its end, which the kernel tells at once; whatever it had started goes with it."""
        status = await self._process.wait()
        sigterm.kill_group(self.pid)
        sigterm.groups.discard(self.pid)
        if status and sigterm.asked():
            return End(status, sigterm.SAID)
        if status == -signal.SIGKILL and not self._killed and (reason := describe_oom(self._memory, self._root)):
            return End(status, reason)
        return End(status, describe_end(status, tail(self.log)))


@contextlib.asynccontextmanager
async def follow(log: Path, verbose: bool) -> AsyncIterator[None]:
    """Copy what is written to `log` meanwhile to stderr, if verbose."""
    with log.open("rb") as file:
        copying = asyncio.create_task(_copy(file)) if verbose else None
        try:
            yield
        finally:
            if copying:
                copying.cancel()
                _copy_rest(file)


async def _copy(file: BinaryIO) -> None:
    while True:
        _copy_rest(file)
        await asyncio.sleep(FOLLOW_SECONDS)


def _copy_rest(file: BinaryIO) -> None:
    sys.stderr.write(file.read().decode(errors="replace"))
    sys.stderr.flush()


def tail(log: Path) -> str:
    """The last lines of a log file: at most 200 lines and 64 KiB."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - TAIL_BYTES))
        lines = file.read().decode(errors="replace").splitlines()
    return "\n".join(lines[-TAIL_LINES:])


def describe_end(status: int, output: str) -> str:
    """One line: "killed by signal 9 (SIGKILL)", or "exit 75: " and the error.

    The error is the last line of output that begins with "error: ", as the jobs print it (TensorFlow may have
    more to say after it), or else the last line.
    """
    if status < 0:
        return f"killed by signal {-status} ({_signal_name(-status)})"
    lines = [line.strip() for line in reversed(output.splitlines()) if line.strip()]
    own = (line.removeprefix("error: ") for line in lines if line.startswith("error: "))
    last = next(own, lines[0] if lines else "")
    return f"exit {status}: {last}" if last and status else f"exit {status}"


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return "unknown"
