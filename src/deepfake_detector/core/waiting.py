"""How long a training's supervisors wait for each other, and what they say when it was in vain.

While no pod is lost, a training whose workers do not all come ends at most

    operations.rendezvous_seconds + 10 s + the pods' grace period (10 s)

after its first pod runs: the first supervisor keeps the rendezvous and waits for the others; whoever can't reach it
keeps one of its own for the rest of its budget, after a last try to connect. A spare that did so while the others train
is called back: who keeps a complete set takes the rendezvous again, and a keeper of missing workers comes over. While
it is called and can't come it waits on, since its end would end the others' Job. Each complete set is an attempt, and
those are counted (operations.attempts), so workers that come and go do not prolong it for ever either.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

SETTING = "operations.rendezvous_seconds"
NAMED = 8  # workers by their address; a pod's termination message has 4096 bytes


class Budget:
    """Seconds that one may wait in one go. It has no clock: moments are given, in seconds of any steady one."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._since: float | None = None

    @property
    def waiting(self) -> bool:
        return self._since is not None

    def wait(self, now: float) -> float:
        """Somebody is awaited now: returns when the budget is spent. It runs from the first of such calls in a row."""
        if self._since is None:
            self._since = now
        return self._since + self.seconds

    def met(self) -> None:
        """Nobody is awaited any more: the next wait has the whole budget."""
        self._since = None


def workers_missing(addresses: Mapping[int, str], seconds: float) -> str:
    """What the rendezvous says at the end of its budget. addresses: of the missing workers, by index."""
    named = ", ".join(f"{index} ({addresses[index]})" for index in sorted(addresses)[:NAMED])
    if len(addresses) > NAMED:
        named += f" and {len(addresses) - NAMED} more"
    who, whose = ("worker", "its supervisor") if len(addresses) == 1 else ("workers", "their supervisors")
    return f"{who} {named}: not there after {seconds:g} s, expected {whose} to register ({SETTING})"


def rendezvous_missing(index: int, address: str, seconds: float, reason: str) -> str:
    """What a worker says that found no rendezvous. index: of who should keep it; reason: of the last try."""
    why = f"no answer for {seconds:g} s ({reason})"
    return f"supervisor {index} ({address}): {why}, expected it to keep the rendezvous ({SETTING})"


@dataclass(frozen=True)
class InVain:
    """Read from one of these messages: who was awaited. who: as it names them; seconds: as text."""

    indexes: tuple[int, ...]
    who: str
    seconds: str
    problem: str


_WORKERS = re.compile(r"workers? (?P<who>\d+ \(.+?): not there after (?P<seconds>[\d.e+]+) s")
_KEEPER = re.compile(r"supervisor (?P<index>\d+) \(.+?\): no answer for (?P<seconds>[\d.e+]+) s")


def in_vain(message: str) -> InVain | None:
    """Who was awaited in vain, if that is what the message says."""
    if match := _WORKERS.search(message):
        indexes = tuple(int(number) for number in re.findall(r"(?:^|, )(\d+) \(", match["who"]))
        return InVain(indexes, match["who"], match["seconds"], "never came")
    if match := _KEEPER.search(message):
        return InVain((int(match["index"]),), match["index"], match["seconds"], "did not answer")
    return None
