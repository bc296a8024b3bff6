"""A hundred broken files through real decoding processes; `make fuzz` takes thousands, with a fresh seed."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import pytest

from deepfake_detector.core.config import Config
from deepfake_detector.core.errors import ConfigError
from deepfake_detector.core.extraction import Extraction
from deepfake_detector.core.outcomes import Outcome
from deepfake_detector.core.recipes import resolve
from tests.fuzz import run
from tests.fuzz.corpus import GIANT, HONEST, Case, make
from tests.fuzz.report import table
from tests.fuzz.run import Result, complaint, fuzz

SEED = 5
FILES = 100
CONFIG = resolve("demo")


@pytest.mark.timeout(600)
def test_every_broken_file_ends_in_an_outcome_within_its_budget(tmp_path: Path) -> None:
    findings = fuzz(partial(make, SEED), range(FILES), CONFIG, tmp_path)
    assert not findings.wrong, table(findings, SEED, FILES)
    assert sorted(findings.results) == list(range(FILES))
    outcomes = {result.outcome for result in findings.results.values()}
    assert {Outcome.OK, Outcome.NO_FACE, Outcome.NOT_A_VIDEO, Outcome.DECODE_ERROR} <= outcomes
    giants = [result for result in findings.results.values() if result.kind == GIANT]
    assert max(result.peak_mb for result in giants) > 200  # they were decoded, and memory was measured
    assert all(result.seconds > 0 for result in findings.results.values())
    assert list(tmp_path.iterdir()) == []


def case(index: int, data: bytes, kind: str = "made here") -> Case:
    return Case(index=index, kind=kind, source="made here", suffix=".mp4", data=data)


def test_what_must_not_be_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a fuzzer that finds nothing one must know that it can."""
    monkeypatch.setattr(run, "observed", misbehaved)
    data = [b"fine", b"bug", b"abort", b"empty", b"large", b"settings", b"fine"]
    findings = fuzz(lambda index: case(index, data[index]), range(len(data)), CONFIG, tmp_path, 1)
    assert sorted(findings.results) == [0, 1, 2, 3, 4, 6]
    assert findings.results[2].outcome is Outcome.CRASHED
    assert findings.results[2].lost == ("signal 6 (SIGABRT)",)  # and once more, which its detail tells
    assert findings.wrong == {
        1: "an exception of our own: ZeroDivisionError: a bug",
        3: "does not fit into the records: ValueError: ok without a sequence",
        4: "601 MB: expected at most 600",
        5: "ends the pool: ConfigError: weights: expected others",
    }
    assert "WRONG  index 4: 601 MB" in table(findings, 0, len(data))


def misbehaved(path: Path, config: Config) -> Extraction:
    what = path.read_bytes()
    if what == b"bug":
        raise ZeroDivisionError("a bug")
    if what == b"settings":
        raise ConfigError("weights: expected others")
    if what == b"abort":
        os.abort()
    if what == b"large":
        run.peak_file(path).write_text("601.0")
    return Extraction(outcome=Outcome.OK if what == b"empty" else Outcome.NO_FACE)


@pytest.mark.parametrize(
    ("seconds", "kind", "outcome", "expected"),
    [
        pytest.param(29.9, "flip few", Outcome.TIMEOUT, "", id="in its budget"),
        pytest.param(30.1, "flip few", Outcome.TIMEOUT, "30.1 s: expected at most 30", id="too slow"),
        pytest.param(1.0, HONEST, Outcome.NO_FACE, "an honest file: no_face: expected ok", id="an honest file lost"),
    ],
)
def test_complaint(seconds: float, kind: str, outcome: Outcome, expected: str) -> None:
    result = Result(index=0, kind=kind, source="a", outcome=outcome, detail="", seconds=seconds, peak_mb=100.0)
    assert complaint(case(0, b"", kind), Extraction(outcome=outcome), result, CONFIG) == expected


class Stuck:
    """A pool that gives no answer."""

    pids = ()

    def __init__(self, *arguments: object) -> None:
        self.ended = threading.Event()

    def __enter__(self) -> Stuck:
        return self

    def __exit__(self, *error: object) -> None: ...

    def map(self, paths: Iterable[Path]) -> Iterator[Extraction]:
        next(iter(paths))
        self.ended.wait()
        yield from ()


def test_a_hang_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "Decoders", Stuck)
    monkeypatch.setattr(run, "HANG_SECONDS", 0.1)
    findings = fuzz(lambda index: case(index, b""), range(3), CONFIG, tmp_path, 1)
    assert findings.wrong == {0: "hangs", 1: "unaccounted for", 2: "unaccounted for"}
