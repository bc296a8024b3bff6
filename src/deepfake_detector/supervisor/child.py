"""One child process: its own process group, its output in a file, dead when its supervisor is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from deepfake_detector.adapters.kernel import Frozen, reap_group
from deepfake_detector.adapters.machine import ROOT, MemoryUse, describe_oom, memory_use
from deepfake_detector.core.errors import WaitError
from deepfake_detector.supervisor import sigterm

TAIL_BYTES = 64 * 1024
TAIL_LINES = 200
FOLLOW_SECONDS = 0.2
LOOK_SECONDS = 2.0  # between two looks whether a child is frozen
FROZEN_SECONDS = 10.0  # after which a frozen one is ended: nobody waits for it any longer than for a silent supervisor
UNKILLABLE_SECONDS = 60.0  # after SIGKILL: whoever is there then waits in the kernel for a device, maybe for ever
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
        self._killed: str | None = None  # by this supervisor, and why, where there is more to say than "killed"
        self._killed_at: float | None = None
        self.log = log
        self.pid = process.pid

    @classmethod
    async def start(
        cls,
        command: Sequence[str],
        environment: Mapping[str, str],
        log: Path,
        root: Path = ROOT,
        *,
        waiting: bool = False,
    ) -> Child:
        """Run `command` with stdout and stderr in the file `log`. root: of the kernel's files (adapters.machine).

        waiting: it will read what more its environment is from stdin, which `order` tells it. Raises WaitError where
        the machine has no means for a further process.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        memory = memory_use(root)
        with log.open("wb") as output, sigterm.farewell():
            process = await _start(command, environment, output, waiting)
            child = cls(process, log, memory, root)
            if not waiting:
                child._at_work()
        return child

    def _at_work(self) -> None:
        """From now on SIGTERM kills it, and waits until its end is told; before, it just dies with its supervisor."""
        sigterm.groups.add(self.pid)
        if sigterm.asked():  # in the meantime
            sigterm.kill_group(self.pid)

    @property
    def alive(self) -> bool:
        return self._process.returncode is None

    def order(self, environment: Mapping[str, str], log: Path) -> None:
        """Let a waiting child begin, with this added to its environment; its output is found in `log` from now on."""
        assert self._process.stdin, "it was not started to wait"
        self.log = self.log.rename(log)
        self._memory = memory_use(self._root)  # what was killed while it waited is no business of its own
        self._at_work()
        self._process.stdin.write(json.dumps(dict(environment)).encode() + b"\n")

    def kill(self, reason: str = "") -> None:
        """SIGKILL to the whole group: TensorFlow may not exit on SIGTERM. reason: to be told as its end's."""
        if self.alive:
            self._killed = self._killed or reason
            self._killed_at = self._killed_at or time.monotonic()
            sigterm.kill_group(self.pid)

    async def wait(self) -> End:
        """Wait for its end, which the kernel tells at once; whatever it had started goes with it.

        A child that is frozen for FROZEN_SECONDS is ended. Raises WaitError when one does not die of SIGKILL: this
        supervisor can't go on, but whoever takes over its part elsewhere can.
        """
        status = await self._ended()
        sigterm.kill_group(self.pid)
        threading.Thread(target=reap_group, args=(self.pid,), daemon=True).start()
        sigterm.groups.discard(self.pid)
        if status and sigterm.asked():
            return End(status, sigterm.SAID)
        if status == -signal.SIGKILL and self._killed:
            return End(status, self._killed)
        if status == -signal.SIGKILL and self._killed is None and (reason := describe_oom(self._memory, self._root)):
            return End(status, reason)
        return End(status, describe_end(status, tail(self.log)))

    async def _ended(self) -> int:
        frozen = Frozen(self.pid)
        while True:
            try:
                async with asyncio.timeout(LOOK_SECONDS):
                    return await self._process.wait()
            except TimeoutError:
                if frozen.seconds() >= FROZEN_SECONDS:
                    self.kill(was_frozen())
                if self._killed_at and time.monotonic() - self._killed_at >= UNKILLABLE_SECONDS:
                    raise WaitError(
                        f"process {self.pid}: still there {UNKILLABLE_SECONDS:g} s after SIGKILL, expected it to die "
                        "(it waits in the kernel: see the node's disks, mounts and devices)"
                    ) from None


async def _start(
    command: Sequence[str], environment: Mapping[str, str], output: BinaryIO, waiting: bool
) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            *leashed(command),
            stdin=asyncio.subprocess.PIPE if waiting else asyncio.subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**environment, "PYTHONUNBUFFERED": "1"},  # lines in their order, and none lost to SIGKILL
            start_new_session=True,
        )
    except OSError as error:  # no memory, no descriptors, no room for one more process
        raise WaitError(f"{' '.join(command)}: {error}: expected to start this process") from error


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
    """Where stderr is a file on a full disk, or nobody's any more, training goes on: the log is stored as well."""
    with contextlib.suppress(OSError):
        sys.stderr.write(file.read().decode(errors="replace"))
        sys.stderr.flush()


def was_frozen() -> str:
    """Why a process was killed that was frozen for too long."""
    return f"was frozen for {FROZEN_SECONDS:g} s (SIGSTOP), and ended for it"


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
