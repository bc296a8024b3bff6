"""The processes of a run, found in /proc (proc(5)) below the launcher that started them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.chaos.scenarios import Victim

# Which module, at which depth below the launcher, a victim is.
MODULES: dict[Victim, tuple[str, ...]] = {
    "supervisor": ("tests.chaos.train",),
    "child": ("tests.chaos.worker", "jobs.export_model"),
    "export": ("jobs.export_model",),
    "preprocess": ("jobs.preprocess",),
    "shard": ("jobs.preprocess_shard",),
    "decoder": ("multiprocessing.spawn",),
}


@dataclass(frozen=True)
class Process:
    pid: int
    parent: int
    command: str


def below(root: int) -> list[Process]:
    """Every living process that `root` has started, and what those have started, by pid."""
    children = defaultdict(list)
    for process in _all():
        children[process.parent].append(process)
    found, waiting = [], [root]
    while waiting:
        here = children[waiting.pop()]
        found += here
        waiting += [process.pid for process in here]
    return sorted(found, key=lambda process: process.pid)


def victims(root: int, victim: Victim) -> list[int]:
    """The pids of those that a fault may hit, in the order in which they were started."""
    modules = MODULES[victim]
    return [process.pid for process in below(root) if any(f" {name}" in process.command for name in modules)]


def _all() -> Iterator[Process]:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            continue
        if fields[0] != "Z":
            yield Process(int(folder.name), int(fields[1]), command)
