"""A pool of decoding processes in which a hostile video costs exactly itself.

One process per slot, each behind its own pipe: a crash, a hang or an exhausted memory names its video at once, which
a shared queue could not. Nothing here imports TensorFlow, nor does a decoding process.
"""

from __future__ import annotations

import ctypes
import logging
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Self

from deepfake_detector.adapters.machine import MemoryUse, describe_oom, memory_use
from deepfake_detector.core.config import Config
from deepfake_detector.core.errors import ConfigError, DetectorError, MemoryLimitError, WaitError
from deepfake_detector.core.extraction import Extraction
from deepfake_detector.core.outcomes import Outcome

Extract = Callable[[Path, Config], Extraction]

AHEAD = 4  # results kept per slot while a slow video holds up the order: bounds memory and scratch space
STARTUP_SECONDS = 120.0
WORKING_MB = 128  # address space for the frames of a small video
PR_SET_PDEATHSIG = 1
KILLED = "signal 9 (SIGKILL)"

log = logging.getLogger(__name__)


class Decoders:
    """`count` processes that run `extract` on one video after another; use as a context manager.

    Start it in the main thread: children die with the thread that started them. extract: another picklable
    function of (path, config) in place of stages.extract.extract.
    """

    def __init__(self, config: Config, count: int, extract: Extract | None = None) -> None:
        self._slots = [_Slot(config, extract) for _ in range(count)]
        self._timeout = config.operations.video_timeout_seconds

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for slot in self._slots:
            slot.stop()

    @property
    def pids(self) -> list[int]:
        """Process ids of the living decoding processes."""
        return [slot.pid for slot in self._slots if slot.pid]

    def map(self, paths: Iterable[Path]) -> Iterator[Extraction]:
        """The extraction of every path, in the order of `paths`, which is consumed as slots become free.

        A timeout is not tried again; a crash is, once, in a fresh process. Raises WaitError when a process does not
        even start, MemoryLimitError when the kernel kills one because this container's memory ran out (no video is
        to blame for a limit that is too low), and whatever error of this project a process meets that is not the
        video's.
        """
        tasks = enumerate(paths)
        results: dict[int, Extraction] = {}
        again: list[tuple[int, Path]] = []
        crashes: dict[int, str] = {}
        handed_out, due, more = 0, 0, True
        while True:
            for slot in self._slots:
                if slot.task is None and again:
                    slot.begin(*again.pop(0))
                elif slot.task is None and more and handed_out - due < AHEAD * len(self._slots):
                    task = next(tasks, None)
                    more = task is not None
                    if task is not None:
                        handed_out += 1
                        slot.begin(*task)
            busy = [slot for slot in self._slots if slot.task is not None]
            if not busy:
                return
            for slot, answer in _answers(busy, self._timeout):
                assert slot.task is not None
                index, path = slot.task
                slot.task = None
                if isinstance(answer, Extraction):
                    results[index] = answer
                elif index in crashes:
                    results[index] = Extraction(outcome=Outcome.CRASHED, detail=f"{crashes[index]}; then {answer}")
                else:
                    log.warning("%s: decoding process crashed (%s), trying once more", path.name, answer)
                    crashes[index] = answer
                    again.append((index, path))
            while due in results:
                yield results.pop(due)
                due += 1


class _Slot:
    """One process at a time, and the video that it works on."""

    def __init__(self, config: Config, extract: Extract | None) -> None:
        self._config = config
        self._extract = extract
        self._process: multiprocessing.process.BaseProcess | None = None
        self.connection: Connection | None = None
        self.task: tuple[int, Path] | None = None
        self.ready = False
        self.since = 0.0
        self.memory: MemoryUse | None = None  # before the process started

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.is_alive() else None

    def begin(self, index: int, path: Path) -> None:
        if self._process is None or not self._process.is_alive():
            self._start()
        assert self.connection is not None
        try:
            self.connection.send(path)
        except OSError:  # it died while it was idle
            self._start()
            self.connection.send(path)
        self.task = (index, path)
        self.since = time.monotonic()

    def stop(self) -> str:
        """End the process at once; how it ended, in words."""
        if self._process is None:
            return "not started"
        if self.connection:
            self.connection.close()
        self._process.kill()
        self._process.join()
        code = self._process.exitcode or 0
        self._process.close()
        self._process = self.connection = None
        return f"signal {-code} ({signal.Signals(-code).name})" if code < 0 else f"exit status {code}"

    def wait_for_end(self) -> str:
        """As `stop`, for a process that has closed its pipe: its own end is awaited first, for its exit status."""
        if self._process is not None:
            self._process.join(timeout=10)
        return self.stop()

    def _start(self) -> None:
        self.stop()
        self.memory = memory_use()
        context = multiprocessing.get_context("spawn")  # a fork would carry the parent's threads and locks
        self.connection, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, os.getpid(), self._config, self._extract), daemon=True, name="decoder"
        )
        self._process.start()
        theirs.close()
        self.ready = False


def _answers(busy: list[_Slot], timeout: float) -> Iterator[tuple[_Slot, Extraction | str]]:
    """Wait until something happens to a busy slot: its result, or how it crashed. May yield nothing."""
    now = time.monotonic()
    left = min(slot.since + (timeout if slot.ready else STARTUP_SECONDS) - now for slot in busy)
    happened = wait([slot.connection for slot in busy if slot.connection], timeout=max(left, 0))
    for slot in busy:
        limit = timeout if slot.ready else STARTUP_SECONDS
        if slot.connection in happened:
            answer = _receive(slot)
            if answer is not None:
                yield slot, answer
        elif time.monotonic() - slot.since >= limit:
            if not slot.ready:
                raise WaitError(f"decoding process: not ready after {limit:g} s: expected it to start")
            slot.stop()
            yield slot, Extraction(outcome=Outcome.TIMEOUT, detail=f"not done after {limit:g} s")


def _receive(slot: _Slot) -> Extraction | str | None:
    assert slot.connection is not None
    try:
        message = slot.connection.recv()
    except (EOFError, OSError):
        was_ready, end = slot.ready, slot.wait_for_end()
        if end == KILLED and (reason := describe_oom(slot.memory)):
            raise MemoryLimitError(f"decoding process: {reason}") from None
        if not was_ready:
            raise WaitError(
                f"decoding process: {end} before it was ready: expected it to start (its error is above)"
            ) from None
        return end
    if message is None:
        slot.ready, slot.since = True, time.monotonic()  # the import of the libraries is not the video's time
        return None
    if isinstance(message, DetectorError):
        raise message
    if isinstance(message, str):
        slot.stop()
        return message
    assert isinstance(message, Extraction)
    if message.outcome is Outcome.OUT_OF_MEMORY:
        slot.stop()  # what a library left behind at the limit is not to be built on
    return message


def _serve(connection: Connection, parent: int, config: Config, extract: Extract | None) -> None:
    """A decoding process: None once ready, then an Extraction for each path, until the pipe closes."""
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group: the parent decides
    try:
        from deepfake_detector.stages import extract as stage

        work = extract or stage.extract
        stage.warm_up(config)
        _limit_memory(config.operations.video_memory_mb)
    except DetectorError as error:
        connection.send(error)
        return
    connection.send(None)
    while True:
        try:
            path = connection.recv()
        except EOFError:
            return
        try:
            answer: Extraction | DetectorError | str = work(path, config)
        except MemoryError:
            answer = Extraction(outcome=Outcome.OUT_OF_MEMORY, detail=f"{config.operations.video_memory_mb} MB")
        except DetectorError as error:
            answer = error
        except Exception as error:
            traceback.print_exc()
            answer = f"{type(error).__name__}: {error}"
        connection.send(answer)


def _die_with(parent: int) -> None:
    """Be killed when the parent is, even by SIGKILL (Linux; elsewhere the closed pipe ends an idle process)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _limit_memory(megabytes: int) -> None:
    """Cap the address space, so that a hostile video meets MemoryError and not the pod's OOM killer.

    Called when the libraries are loaded; raises ConfigError when they leave less than WORKING_MB of the cap.
    """
    if sys.platform != "linux":  # macOS refuses RLIMIT_AS
        return
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() // 2**20
    if megabytes < taken + WORKING_MB:
        raise ConfigError(f"operations.video_memory_mb={megabytes}: expected at least {taken + WORKING_MB}")
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
