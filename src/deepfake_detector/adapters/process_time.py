"""When this process was started."""

from __future__ import annotations

import os
import time
from pathlib import Path


def process_started() -> float:
    """Seconds since 1970 (UTC), to a tick of 10 ms; where there is no /proc, now (proc(5), field 22 of stat)."""
    try:
        fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
        since_boot = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + since_boot
    except (OSError, AttributeError, ValueError, IndexError):
        return time.time()
