"""A pool of decoding processes in which a hostile video costs exactly itself.

One process per slot, each behind its own pipe: a crash, a hang or an exhausted memory names its video at once, which
a shared queue could not. Nothing here imports TensorFlow, nor does a decoding process.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import TracebackType
from typing import Self

from deepfake_detector.adapters.kernel import GAP_SECONDS, Frozen, cpu_seconds
from deepfake_detector.adapters.machine import MemoryUse, describe_oom, memory_use
from deepfake_detector.core.config import Config
from deepfake_detector.core.errors import DetectorError, MemoryLimitError, WaitError
from deepfake_detector.core.extraction import Extraction
from deepfake_detector.core.outcomes import Outcome
from deepfake_detector.stages.decoding import NOT_YET, Extract, receive, serve

AHEAD = 4  # results kept per slot while a slow video holds up the order: bounds memory and scratch space
STARTUP_SECONDS = 120.0
# A video's time grows with its file, so that a small hostile one is stopped soon and a long film is not. DFDC's clips
# hold 2 MB for a second of CPU; the worst of honest ones, a still picture of 1080p with a keyframe every 24 s, 34 kB in
# VP9, 40 kB in HEVC, 98 kB in H.264. Two tries of a file of up to 40 kB are over within 30 s.
BASE_SECONDS = 10.0
BYTES_PER_SECOND = 10_000
ANSWER_SECONDS = 10.0  # for more of an answer that has begun: what the parent does meanwhile is not the video's time
LOOK_SECONDS = 2.0  # between two looks whether a process is frozen, or its time is over
FROZEN_SECONDS = 10.0  # after which a frozen one is ended, whatever time its video has
STALLED = 0.1  # a process that was on a CPU for less than this share of its time was stopped or starved
KILLED = "signal 9 (SIGKILL)"

log = logging.getLogger(__name__)


class Decoders:
    """`count` processes that run `extract` on one video after another; use as a context manager.

    Start it in the main thread: children die with the thread that started them. extract: another picklable
    function of (path, config) in place of stages.extract.extract.
    """

    def __init__(self, config: Config, count: int, extract: Extract | None = None) -> None:
        self._slots = [_Slot(config, extract) for _ in range(count)]
        self._most_seconds = config.operations.video_timeout_seconds

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

        A process that crashes, is frozen (SIGSTOP), or stands still until its video's time is over, costs one more try
        in a fresh process, with nothing else before it. So does one that meets the cap of memory after other videos,
        which left something behind in it: the outcome is the same whatever came before. A video that keeps a process at
        work for all its time is not tried again. Raises WaitError when a process does not even start, MemoryLimitError
        when the kernel kills one because this container's memory ran out (no video is to blame for a limit that is too
        low), and whatever error of this project a process meets that is not the video's.
        """
        tasks = (self._task(index, path) for index, path in enumerate(paths))
        results: dict[int, Extraction] = {}
        again: list[_Task] = []
        handed_out, due, more = 0, 0, True
        while True:
            for slot in self._slots:
                if slot.task is None and again:
                    slot.begin(again.pop(0))
                elif slot.task is None and more and handed_out - due < AHEAD * len(self._slots):
                    task = next(tasks, None)
                    more = task is not None
                    if task is not None:
                        handed_out += 1
                        slot.begin(task)
            busy = [slot for slot in self._slots if slot.task is not None]
            if not busy:
                return
            for slot, answer in _answers(busy):
                task, slot.task = slot.task, None
                assert task is not None
                if isinstance(answer, Extraction):
                    results[task.index] = answer
                elif task.earlier:
                    results[task.index] = Extraction(
                        outcome=answer.outcome, detail=f"{task.earlier}; then {answer.reason}"
                    )
                else:
                    log.warning("%s: decoding process lost (%s), trying once more", task.path.name, answer.reason)
                    again.append(replace(task, earlier=answer.reason))
            while due in results:
                yield results.pop(due)
                due += 1

    def _task(self, index: int, path: Path) -> _Task:
        return _Task(index, path, allowed_seconds(path, self._most_seconds))


def allowed_seconds(path: Path, most: float) -> float:
    """Seconds that a process may take for this video: they grow with the file's size, up to `most`."""
    try:
        size = path.stat().st_size
    except OSError:
        size = 0
    return min(round(BASE_SECONDS + size / BYTES_PER_SECOND, 1), most)


@dataclass(frozen=True)
class _Task:
    """A video's turn. seconds: what it may take; earlier: how the process of its first try ended, or ""."""

    index: int
    path: Path
    seconds: float
    earlier: str = ""


@dataclass(frozen=True)
class _Lost:
    """A try that another one, in a fresh process, has to confirm; the outcome is the video's if that one ends so."""

    outcome: Outcome
    reason: str


class _Slot:
    """One process at a time, and the video that it works on."""

    def __init__(self, config: Config, extract: Extract | None) -> None:
        self._config = config
        self._extract = extract
        self._process: multiprocessing.process.BaseProcess | None = None
        self.connection: Connection | None = None
        self.task: _Task | None = None
        self.ready = False
        self.left = 0.0  # seconds that the process still has for what it does
        self._looked = 0.0
        self.memory: MemoryUse | None = None  # before the process started
        self._failed_starts = 0
        self._videos = 0  # that the process was given
        self._used = 0.0  # seconds of CPU before the task
        self._received = bytearray()
        self._frozen: Frozen | None = None

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process and self._process.is_alive() else None

    @property
    def seconds(self) -> float:
        """How long the process may take for what it does now."""
        assert self.task is not None
        return self.task.seconds if self.ready else STARTUP_SECONDS

    def look(self) -> None:
        """Count its time. Of a long one without a look the process may have had nothing: all may have been stopped."""
        now = time.monotonic()
        self.left -= min(now - self._looked, GAP_SECONDS)
        self._looked = now

    @property
    def frozen(self) -> bool:
        """Whether looks in a row have found the process stopped for too long."""
        return self._frozen is not None and self._frozen.seconds() >= FROZEN_SECONDS

    @property
    def answering(self) -> bool:
        return bool(self._received)

    def begin(self, task: _Task) -> None:
        if task.earlier or self._process is None or not self._process.is_alive():
            self._start()
        assert self.connection is not None
        try:
            self.connection.send(task.path)
        except OSError:  # it died while it was idle
            self._start()
            self.connection.send(task.path)
        self.task = task
        self._videos += 1
        self._begin_count()

    @property
    def fresh(self) -> bool:
        """Whether the process had no video before this one."""
        return self._videos == 1

    def is_ready(self) -> None:
        self.ready, self._failed_starts = True, 0
        self._begin_count()  # the import of the libraries is not the video's time

    def failed_to_start(self, end: str) -> None:
        """A process that was killed before it was ready is started once more. Raises WaitError on the second."""
        self._failed_starts += 1
        if self._failed_starts > 1:
            raise WaitError(f"decoding process: {end} before it was ready: expected it to start (its error is above)")
        assert self.task is not None
        self.begin(self.task)

    def stalled(self) -> bool:
        """Whether the process hardly worked in its time, so that another might have done better."""
        used = cpu_seconds(self.pid) if self.pid else None
        return used is not None and used - self._used < STALLED * self.seconds

    def _begin_count(self) -> None:
        self.left, self._looked = self.seconds, time.monotonic()
        self._used = (cpu_seconds(self.pid) if self.pid else None) or 0.0

    def receive(self) -> object:
        """The next message of the process, or NOT_YET. Raises EOFError, OSError."""
        assert self.connection is not None
        before = len(self._received)
        message = receive(self.connection, self._received)
        if len(self._received) > before:  # the video is done: its process waits for room in the pipe
            self.left = max(self.left, ANSWER_SECONDS)
        return message

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
        context = multiprocessing.get_context("spawn")  # a fork would carry the parent's threads and locks
        try:
            self.memory = memory_use()
            self.connection, theirs = context.Pipe()
            arguments = (theirs, os.getpid(), self._config, self._extract)
            process = context.Process(target=serve, args=arguments, daemon=True, name="decoder")
            process.start()
        except OSError as error:  # no descriptors, no memory, too many processes
            raise WaitError(f"decoding process: {error.strerror or error}: expected to start one") from error
        theirs.close()
        self._process, self._frozen = process, Frozen(process.pid or 0)
        self.ready = False
        self._videos = 0
        self._received.clear()


def _answers(busy: list[_Slot]) -> Iterator[tuple[_Slot, Extraction | _Lost]]:
    """Wait until something happens to a busy slot: its result, or how its process was lost. May yield nothing."""
    left = min(slot.left for slot in busy)
    happened = wait([slot.connection for slot in busy if slot.connection], timeout=min(max(left, 0), LOOK_SECONDS))
    for slot in busy:
        slot.look()
        if slot.connection in happened:
            answer = _receive(slot)
            if answer is not None:
                yield slot, answer
        elif slot.frozen:
            if lost := _was_frozen(slot):
                yield slot, lost
        elif slot.left <= 0:
            yield slot, _out_of_time(slot)


def _was_frozen(slot: _Slot) -> _Lost | None:
    was_ready, reason = slot.ready, f"was frozen for {FROZEN_SECONDS:g} s (SIGSTOP)"
    slot.stop()
    if was_ready:
        return _Lost(Outcome.TIMEOUT, reason)
    slot.failed_to_start(reason)
    return None


def _out_of_time(slot: _Slot) -> Extraction | _Lost:
    if not slot.ready:
        raise WaitError(f"decoding process: not ready after {slot.seconds:g} s: expected it to start")
    if slot.answering:
        stalled, reason = True, f"no more of its answer after {ANSWER_SECONDS:g} s"
    else:
        stalled, reason = slot.stalled(), f"not done after {slot.seconds:g} s"
    slot.stop()
    return _Lost(Outcome.TIMEOUT, reason) if stalled else Extraction(outcome=Outcome.TIMEOUT, detail=reason)


def _receive(slot: _Slot) -> Extraction | _Lost | None:
    try:
        message = slot.receive()
    except (EOFError, OSError):
        was_ready, end = slot.ready, slot.wait_for_end()
        if end == KILLED and (reason := describe_oom(slot.memory)):
            raise MemoryLimitError(f"decoding process: {reason}") from None
        if was_ready:
            return _Lost(Outcome.CRASHED, end)
        slot.failed_to_start(end)
        return None
    if message is NOT_YET:
        return None
    if message is None:
        slot.is_ready()
        return None
    if isinstance(message, DetectorError):
        raise message
    if not isinstance(message, Extraction):
        slot.stop()
        reason = (
            message if isinstance(message, str) else f"answered with {type(message).__name__}: expected an extraction"
        )
        return _Lost(Outcome.CRASHED, reason)
    if message.outcome is Outcome.OUT_OF_MEMORY:
        slot.stop()  # what a library left behind at the limit is not to be built on
        if not slot.fresh:
            return _Lost(Outcome.OUT_OF_MEMORY, f"out of memory {message.detail}".rstrip())
    return message
