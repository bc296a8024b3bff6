"""How far a pod's log has been told, so that a new stream of it goes on from there."""

from __future__ import annotations

import re
from collections import Counter, deque
from datetime import UTC, datetime, timedelta

# With timestamps=true, as the kubelet writes them: RFC3339NanoFixed of the node's time zone, a space, the text.
_STAMPED = re.compile(
    r"(?P<second>\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(?P<fraction>\d{1,9}))?(?P<zone>Z|[+-]\d\d:\d\d) (?P<text>.*)",
    re.ASCII | re.DOTALL,
)
_TO_THE_SECOND = "0000-00-00T00:00:00"
_CUT_LATER = re.compile(_TO_THE_SECOND + r"(?:\.0*)?(?:Z|[+-]0{0,2}(?::0{0,2})?)?")  # each digit as a 0
OVERLAP = timedelta(seconds=1)  # lines of stdout and stderr may be logged out of order, by a moment

Moment = tuple[datetime, int]  # a whole second, in UTC, and nanoseconds: datetime has microseconds only


class LogPosition:
    """What was told of a log whose lines begin with their time (RFC 3339, nanoseconds).

    The API server passes PodLogOptions.sinceTime on to the kubelet without its fraction, so a new stream begins with
    lines that were told before. Those are known by their time and text. It may begin with lines from before the tail,
    too, which are left out. A line that a lost connection cut in two is told again, whole; of one that was cut within
    its time nothing is told before.
    """

    def __init__(self) -> None:
        self._first: Moment | None = None  # of the lines that were told
        self._since: datetime | None = None  # where a new stream begins: a whole second
        self._before_tail = False  # the stream at hand may still be at lines from before the tail
        self._told: deque[tuple[datetime, str]] = deque()  # since then
        self._repeated: Counter[str] = Counter()  # of these, what the stream at hand has not repeated yet
        self._unstamped: set[str] = set()  # the kubelet's own words: "unable to retrieve container logs for ..."

    def query(self, tail_lines: int | None) -> list[tuple[str, str]]:
        """Parameters of the next stream. tail_lines: where to begin while nothing was told; None: with the first."""
        self._repeated = Counter(line for _, line in self._told)
        self._before_tail = tail_lines is not None and self._first is not None
        if self._since is not None:
            return [("sinceTime", self._since.strftime("%Y-%m-%dT%H:%M:%SZ"))]
        return [] if tail_lines is None else [("tailLines", str(tail_lines))]

    def take(self, line: str) -> str | None:
        """The stream's next line without its time; None: it was told before, or is not to be told."""
        if self._repeated[line]:
            self._repeated[line] -= 1
            self._before_tail = False
            return None
        stamped = _STAMPED.fullmatch(line)
        moment = _moment(stamped) if stamped else None
        if stamped is None or moment is None:
            if line in self._unstamped or _is_cut_stamp(line):
                return None
            self._unstamped.add(line)
            return line
        self._first = self._first or moment
        if self._before_tail and moment < self._first:
            return None
        self._before_tail = False  # an earlier one from here on was logged late
        second = moment[0]
        self._since = max(self._since or second - OVERLAP, second - OVERLAP)
        self._told.append((second, line))
        while self._told[0][0] < self._since:
            self._told.popleft()
        return str(stamped["text"])


def _moment(stamped: re.Match[str]) -> Moment | None:
    try:
        second = datetime.fromisoformat(stamped["second"] + stamped["zone"]).astimezone(UTC)
    except ValueError:
        return None
    return second, int((stamped["fraction"] or "").ljust(9, "0"))


def _is_cut_stamp(line: str) -> bool:
    """Whether it is the beginning of a time, or a time without the space behind it: a stream ended there."""
    shape = re.sub(r"[0-9]", "0", line)
    return _TO_THE_SECOND.startswith(shape) or _CUT_LATER.fullmatch(shape) is not None
