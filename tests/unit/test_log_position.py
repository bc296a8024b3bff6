from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepfake_detector.adapters.log_position import LogPosition

START = datetime(2026, 1, 1, tzinfo=UTC)


def stamped(nanoseconds: int, text: str) -> str:
    seconds, fraction = divmod(nanoseconds, 10**9)
    return f"{(START + timedelta(seconds=seconds)).strftime('%Y-%m-%dT%H:%M:%S')}.{fraction:09d}Z {text}"


def streamed(log: list[str], query: list[tuple[str, str]]) -> list[str]:
    """As the kubelet has it: `sinceTime` is a whole second."""
    since = dict(query).get("sinceTime", "")
    return [line for line in log if line[:19] >= since[:19]]


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


def test_a_line_of_stderr_that_is_logged_late_is_not_lost() -> None:
    position = LogPosition()
    position.query(None)
    assert position.take(stamped(1_000_000_001, "out")) == "out"
    log = [stamped(1_000_000_001, "out"), stamped(999_999_999, "err")]
    again = streamed(log, position.query(None))
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
