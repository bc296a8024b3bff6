"""How far a pod's log has been told, so that a new stream of it goes on from there."""

from __future__ import annotations

import re
from collections import Counter, deque
from datetime import UTC, datetime, timedelta

_STAMPED = re.compile(r"(\d{4}-\d\d-\d\dT\S+) ?(.*)", re.DOTALL)  # with timestamps=true
OVERLAP = timedelta(seconds=1)  # lines of stdout and stderr may be logged out of order, by a moment


class LogPosition:
    """What was told of a log whose lines begin with their time (RFC 3339, nanoseconds).

    The API server passes PodLogOptions.sinceTime on to the kubelet without its fraction, so a new stream begins with
    lines that were told before. Those are known by their time and text. A line that a lost connection cut in two is
    told again, whole.
    """

    def __init__(self) -> None:
        self._since: datetime | None = None  # where a new stream begins: a whole second
        self._told: deque[tuple[datetime, str]] = deque()  # since then
        self._repeated: Counter[str] = Counter()  # of these, what the stream at hand has not repeated yet
        self._unstamped: set[str] = set()  # the kubelet's own words: "unable to retrieve container logs for ..."

    def query(self, tail_lines: int | None) -> list[tuple[str, str]]:
        """Parameters of the next stream. tail_lines: where to begin while nothing was told; None: with the first."""
        self._repeated = Counter(line for _, line in self._told)
        if self._since is not None:
            return [("sinceTime", self._since.strftime("%Y-%m-%dT%H:%M:%SZ"))]
        return [] if tail_lines is None else [("tailLines", str(tail_lines))]

    def take(self, line: str) -> str | None:
        """The stream's next line without its time; None: it was told before."""
        if self._repeated[line]:
            self._repeated[line] -= 1
            return None
        stamped = _STAMPED.fullmatch(line)
        moment = _moment(stamped[1]) if stamped else None
        if stamped is None or moment is None:
            if line in self._unstamped:
                return None
            self._unstamped.add(line)
            return line
        since = moment.replace(microsecond=0) - OVERLAP
        self._since = max(self._since or since, since)
        self._told.append((moment, line))
        while self._told[0][0] < self._since:
            self._told.popleft()
        return str(stamped[2])


def _moment(text: str) -> datetime | None:
    try:
        return datetime.fromisoformat(text).astimezone(UTC)  # the node's own time zone
    except ValueError:
        return None
