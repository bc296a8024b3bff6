"""Broken files through the product's own decoding processes, and what each of them came to."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from deepfake_detector.adapters.machine import peak_memory_mb
from deepfake_detector.adapters.records import encode
from deepfake_detector.core.config import Config
from deepfake_detector.core.extraction import Extraction
from deepfake_detector.core.markers import ShardReport
from deepfake_detector.core.outcomes import Outcome, PlannedVideo
from deepfake_detector.stages import decoders
from deepfake_detector.stages.decoders import Decoders
from deepfake_detector.stages.preprocess import outcome_of
from tests.fuzz.corpus import HONEST, Case

MAX_SECONDS = 30.0  # a file, over all its tries
MAX_MB = 600.0  # resident memory of a decoding process
HANG_SECONDS = 300.0  # without a result from a pool: longer than two starts of a process and two tries
POLL_SECONDS = 0.02
MAKING = threading.Lock()  # the first file needs the clips, which are made once


@dataclass(frozen=True, kw_only=True)
class Result:
    """One file. seconds: both tries, without the start of their processes; peak_mb: of the process that held it."""

    index: int
    kind: str
    source: str
    outcome: Outcome
    detail: str
    seconds: float
    peak_mb: float
    lost: tuple[str, ...] = ()  # how processes ended on it


@dataclass
class Findings:
    """wrong: index -> what must not be: unaccounted for, over a budget, an honest file lost, a hang."""

    results: dict[int, Result] = field(default_factory=dict)
    wrong: dict[int, str] = field(default_factory=dict)


def fuzz(
    make: Callable[[int], Case],
    indices: Iterable[int],
    config: Config,
    scratch: Path,
    lanes: int = 2,
    on_result: Callable[[Findings], None] = lambda findings: None,
) -> Findings:
    """Every index's file through one of `lanes` pools of one process: each file's time and memory is its own."""
    findings, numbers = Findings(), list(indices)
    watch = [_Lane(k, scratch) for k in range(lanes)]
    threads = [
        threading.Thread(target=lane.run, args=(make, numbers[lane.number :: lanes], config, findings), daemon=True)
        for lane in watch
    ]
    with _losses(watch):
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(POLL_SECONDS)
            on_result(findings)
            for lane in watch:
                lane.sample()
            if hung := [lane for lane in watch if lane.hangs()]:
                findings.wrong |= {lane.case.index: "hangs" for lane in hung if lane.case}
                break
    for index in numbers:
        if index not in findings.results:
            findings.wrong.setdefault(index, "unaccounted for")
    return findings


class _Lane:
    """One pool of one process, in a thread of its own."""

    def __init__(self, number: int, scratch: Path) -> None:
        self.number, self.case = number, None
        self.losses: list[tuple[float, str]] = []  # when, how
        self._scratch = scratch
        self._pool: Decoders | None = None
        self._since = 0.0
        self._peak = 0.0

    case: Case | None

    def run(self, make: Callable[[int], Case], indices: list[int], config: Config, findings: Findings) -> None:
        left = list(indices)
        while left:
            try:
                with Decoders(config, 1, observed) as self._pool:
                    for extraction in self._pool.map(self._paths(make, left)):
                        case, result = self._take(extraction)
                        left.remove(case.index)
                        findings.results[case.index] = result
                        if reason := complaint(case, extraction, result, config):
                            findings.wrong[case.index] = reason
            except Exception as error:  # the pool gave up: that is what no file may bring about
                if self.case is None:
                    raise
                findings.wrong[self.case.index] = f"ends the pool: {type(error).__name__}: {error}"
                left.remove(self.case.index)
                self.case = None
            finally:
                self._pool = None

    def sample(self) -> None:
        """The memory of a process may be told by nobody else, where it does not survive."""
        pool = self._pool
        for pid in pool.pids if pool else ():
            self._peak = max(self._peak, peak_memory_mb(pid) or 0.0)

    def hangs(self) -> bool:
        return self.case is not None and time.monotonic() - self._since > HANG_SECONDS

    def _paths(self, make: Callable[[int], Case], indices: list[int]) -> Iterator[Path]:
        for index in list(indices):
            with MAKING:
                case = make(index)
            path = self._scratch / case.name
            path.write_bytes(case.data)
            self.losses, self._peak, self._since = [], 0.0, time.monotonic()
            self.case = case
            yield path

    def _take(self, extraction: Extraction) -> tuple[Case, Result]:
        case, now = self.case, time.monotonic()
        assert case is not None
        path = self._scratch / case.name
        told = peak_file(path)
        peak = float(told.read_text()) if told.exists() and not self.losses else self._peak
        ends = [when for when, _ in self.losses] + [now]
        seconds = sum(end - start for start, end in zip(started(path), ends, strict=False))
        for file in (told, starts_file(path), path):
            file.unlink(missing_ok=True)
        self.case = None
        result = Result(
            index=case.index,
            kind=case.kind,
            source=case.source,
            outcome=extraction.outcome,
            detail=extraction.detail,
            seconds=seconds,
            peak_mb=peak,
            lost=tuple(how for _, how in self.losses),
        )
        return case, result


def observed(path: Path, config: Config) -> Extraction:
    """extract(), which leaves beside the file when it began, and its own peak of memory (proc(5): 5 resets VmHWM)."""
    from deepfake_detector.stages.extract import extract

    with starts_file(path).open("a") as file:
        file.write(f"{time.monotonic()}\n")
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    try:
        return extract(path, config)
    finally:
        peak_file(path).write_text(str(peak_memory_mb()))


def peak_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.peak")


def starts_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.starts")


def started(path: Path) -> list[float]:
    """When each try began, by the clock that all processes share (clock_gettime(2), CLOCK_MONOTONIC)."""
    with suppress(FileNotFoundError):
        return [float(line) for line in starts_file(path).read_text().splitlines()]
    return []


def complaint(case: Case, extraction: Extraction, result: Result, config: Config) -> str:
    """What is wrong with a file's end, or "": beyond its budget, or not fit for a shard's report and records."""
    if result.seconds > MAX_SECONDS:
        return f"{result.seconds:.1f} s: expected at most {MAX_SECONDS:g}"
    if result.peak_mb > MAX_MB:
        return f"{result.peak_mb:.0f} MB: expected at most {MAX_MB:g}"
    if any("Error: " in reason for reason in result.lost):
        return f"an exception of our own: {result.lost[0]}"
    if case.kind == HONEST and "noise" not in case.source and extraction.outcome is not Outcome.OK:
        return f"an honest file: {extraction.outcome}: expected ok"
    try:
        _record(case, extraction, config)
    except (ValueError, TypeError, OverflowError, KeyError) as error:
        return f"does not fit into the records: {type(error).__name__}: {error}"
    return ""


def _record(case: Case, extraction: Extraction, config: Config) -> None:
    """As preprocessing does: the sequences into examples, the outcome into the shard's report."""
    text = dict.fromkeys(("dataset", "method", "original_id", "source_checksum", "preprocess_fingerprint"), "")
    for sequence in extraction.sequences:
        context = {
            **text,
            "sample_id": case.name,
            "video_id": case.name,
            "group_id": case.name,
            "label": 1,
            "split": "train",
            "size": config.faces.size,
            "fps": float(extraction.metadata["fps"]),
            "frame_count": extraction.frame_count,
            "codec": str(extraction.metadata["codec"]),
        }
        if len(sequence.images) != config.sampling.frames:
            raise ValueError(f"{len(sequence.images)} images: expected {config.sampling.frames}")
        encode(sequence, context)
    video = PlannedVideo(
        key=case.name, path=case.name, label=1, group="", dataset="", method="", split="train", shard=0
    )
    outcome = outcome_of(video, extraction)
    if extraction.outcome is Outcome.OK and not extraction.sequences:
        raise ValueError("ok without a sequence")
    report = ShardReport(settings={}, fingerprint="", code_version="", shard=0, shards=1, files=[], videos=[outcome])
    report.encode()


@contextmanager
def _losses(lanes: list[_Lane]) -> Iterator[None]:
    """The pool's log tells which file's process was lost, also where the second try went well."""

    class Handler(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            for lane in lanes:
                if lane.case is not None and record.args and record.args[0] == lane.case.name:  # type: ignore[index]
                    lane.losses.append((time.monotonic(), str(record.args[1])))  # type: ignore[index]

    log, handler = logging.getLogger(decoders.__name__), Handler()
    before = log.propagate
    log.addHandler(handler)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = before


def default_lanes() -> int:
    return max(len(os.sched_getaffinity(0)), 1)


def outcomes(findings: Findings) -> Counter[str]:
    return Counter(str(result.outcome) for result in findings.results.values())
