"""What the kernel tells of processes: when one was started, its work, whether it is frozen, what it left behind."""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path

GAP_SECONDS = 5.0  # more between two looks at a process


def _stat(process: str) -> list[str]:
    """What /proc says of a process after its name, which may hold anything: field 3, its state, comes first."""
    return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()


def process_started() -> float:
    """Seconds since 1970 (UTC), to a tick of 10 ms; where there is no /proc, now (proc(5), field 22 of stat)."""
    try:
        fields = _stat("self")
        since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot
    except (OSError, AttributeError, ValueError, IndexError):
        return time.time()


def cpu_seconds(pid: int) -> float | None:
    """Seconds of CPU that a process's first thread has used, to a tick of 10 ms (proc(5), stat's utime and stime).

    Of the others OpenBLAS's spin for 0.1 s each before they sleep. None when it is gone, or where there is no /proc.
    """
    try:
        fields = _stat(f"{pid}/task/{pid}")
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return None


def is_stopped(pid: int) -> bool:
    """Whether SIGSTOP, or a terminal's, holds the process (proc(5), state T); False where there is no /proc."""
    try:
        return _stat(str(pid))[0] == "T"
    except (OSError, IndexError):
        return False


class Frozen:
    """How long a process is found stopped, look by look.

    Looks that are more than GAP_SECONDS apart are not in a row: whoever looks may have been stopped as well, with the
    whole container for example.
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._since = self._looked = float("-inf")

    def seconds(self) -> float:
        """Since the first of the looks in a row that found it so; 0 when this one does not."""
        now, stopped = time.monotonic(), is_stopped(self._pid)
        if not stopped or now - self._looked > GAP_SECONDS:
            self._since = now
        self._looked = now
        return now - self._since


def reap_group(group: int) -> None:
    """Wait for what is left of a process group that was killed, as far as it is this process's by inheritance.

    Orphans become children of the container's first process, and zombies until it waits for them.
    """
    with contextlib.suppress(ChildProcessError):
        while True:
            os.waitpid(-group, 0)
