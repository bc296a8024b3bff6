from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepfake_detector.adapters.log_position import LogPosition

START = datetime(2026, 1, 1, tzinfo=UTC)
STAMP = "2026-01-01T00:00:07.123456789"


def stamped(nanoseconds: int, text: str) -> str:
    seconds, fraction = divmod(nanoseconds, 10**9)
    return f"{(START + timedelta(seconds=seconds)).strftime('%Y-%m-%dT%H:%M:%S')}.{fraction:09d}Z {text}"


def streamed(log: list[str], query: list[tuple[str, str]]) -> list[str]:
    """As the kubelet has it: `sinceTime` is a whole second."""
    asked = dict(query)
    since = asked.get("sinceTime", "")
    return [line for line in log if line[:19] >= since[:19]][-int(asked.get("tailLines", len(log) + 1)) :]


@pytest.fixture
def pacific(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A client 8 hours behind UTC."""
    monkeypatch.setenv("TZ", "America/Los_Angeles")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@given(
    lines=st.lists(st.tuples(st.integers(0, 3 * 10**9), st.sampled_from(["tick", "tock", ""])), max_size=30),
    cuts=st.lists(st.integers(0, 30), max_size=6),
)
def test_every_line_is_told_once_and_in_order(lines: list[tuple[int, str]], cuts: list[int]) -> None:
    """Each stream but the last is lost after so many of its lines, while the log is written to."""
    moment, log = 0, []
    for pause, text in lines:
        moment += pause
        log.append(stamped(moment, text))
    position, told = LogPosition(), []
    for cut in [*cuts, len(log)]:
        told += [
            text for line in streamed(log, position.query(None))[:cut] if (text := position.take(line)) is not None
        ]
    assert told == [text for _, text in lines]


@given(
    pauses=st.lists(st.one_of(st.integers(1, 999), st.integers(1, 3 * 10**9)), max_size=30),
    cuts=st.lists(st.integers(0, 1200), max_size=6),
    tail_lines=st.none() | st.integers(1, 12),
)
def test_a_stream_may_be_cut_anywhere(pauses: list[int], cuts: list[int], tail_lines: int | None) -> None:
    """Each stream but the last ends after so many of its characters; what it has of a line's text may be told, too."""
    moment, texts, log = 0, [], []
    for number, pause in enumerate(pauses):
        moment += pause
        texts.append(f"line {number:02d}")
        log.append(stamped(moment, texts[-1]))
    position, told = LogPosition(), []
    for cut in [*cuts, None]:
        content = "".join(f"{line}\n" for line in streamed(log, position.query(tail_lines)))[:cut]
        told += [text for line in content.splitlines() if (text := position.take(line)) is not None]
    fragments = {text[:length] for text in texts for length in range(len(text))}
    assert [text for text in told if text not in fragments] == (texts[-tail_lines:] if tail_lines else texts)


@pytest.mark.usefixtures("pacific")
@pytest.mark.parametrize(
    "cut", [*(f"{STAMP}Z"[:length] for length in range(1, len(STAMP) + 2)), f"{STAMP}+02:0", f"{STAMP}+02:00"]
)
def test_a_stream_that_ends_within_a_time_goes_on_where_it_was(cut: str) -> None:
    position = LogPosition()
    position.query(100)
    assert position.take("2026-01-01T00:00:05.000000001Z told") == "told"
    assert position.take(cut) is None
    assert position.query(100) == [("sinceTime", "2026-01-01T00:00:04Z")]
    assert position.take(f"{STAMP}Z whole") == "whole"
    assert position.take(f"{STAMP}Z ") == "", "an empty line"


def test_nothing_from_before_the_tail_is_told_by_a_later_stream() -> None:
    """The lines are less than a microsecond apart."""
    log = [stamped(7_000_000_001, "before the tail"), stamped(7_000_000_002, "last")]
    position = LogPosition()
    assert [position.take(line) for line in streamed(log, position.query(1))] == ["last"]
    log += [stamped(7_000_000_000, "late"), stamped(7_000_000_003, "new")]
    assert [position.take(line) for line in streamed(log, position.query(1))] == [None, None, "late", "new"]


def test_what_comes_after_a_log_was_rotated_is_told() -> None:
    position = LogPosition()
    assert [position.take(line) for line in streamed([stamped(10**9, "last")], position.query(1))] == ["last"]
    assert [position.take(line) for line in streamed([stamped(10**9 + 1, "new")], position.query(1))] == ["new"]


@pytest.mark.parametrize("tail_lines", [None, 100])
def test_a_line_of_stderr_that_is_logged_late_is_not_lost(tail_lines: int | None) -> None:
    position = LogPosition()
    position.query(tail_lines)
    assert position.take(stamped(1_000_000_001, "out")) == "out"
    log = [stamped(1_000_000_001, "out"), stamped(999_999_999, "err")]
    again = streamed(log, position.query(tail_lines))
    assert [position.take(line) for line in again] == [None, "err"]


@pytest.mark.parametrize(
    ("line", "since"),
    [
        pytest.param("2026-01-01T02:00:05.999999999+02:00 x", "2026-01-01T00:00:04Z", id="the node's time zone"),
        pytest.param("2026-01-01T00:00:00Z x", "2025-12-31T23:59:59Z", id="no fraction"),
    ],
)
def test_a_stream_begins_at_a_whole_second_of_utc(line: str, since: str) -> None:
    position = LogPosition()
    assert position.query(100) == [("tailLines", "100")]
    assert position.take(line) == "x"
    assert position.query(100) == [("sinceTime", since)]


@pytest.mark.parametrize("line", ["unable to retrieve container logs for containerd://0", "2026-13-01T99 is no time"])
def test_what_the_kubelet_itself_says_is_told_once(line: str) -> None:
    position = LogPosition()
    assert position.query(None) == []
    assert position.take(line) == line
    assert position.query(None) == []
    assert position.take(line) is None
