"""What surrounds the work: how soon a dead child is noticed, and how long the command line takes to answer."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

KILLS = 6
STARTS = 7


def run() -> list[dict[str, Any]]:
    """Rows of name, ratio (here: seconds), target and detail."""
    noticed, restarted = zip(*_recoveries(), strict=True)
    starts = [_help_seconds() for _ in range(STARTS)]
    return [
        {
            "name": "a dead child is noticed by its peer's supervisor after [s]",
            "ratio": max(noticed),
            "target": "<= 2",
            "detail": f"most of {KILLS} kill -9; median {median(noticed):.3f}; the next attempt's children start after "
            f"{median(restarted):.2f} s (stand-ins for TensorFlow, real supervisors)",
        },
        {
            "name": "deepfake-detector --help [s]",
            "ratio": median(starts),
            "target": "< 0.5",
            "detail": f"median of {STARTS}, from {min(starts):.2f} to {max(starts):.2f}",
        },
    ]


def _recoveries() -> list[tuple[float, float]]:
    """Seconds from kill -9 of a child to the death of its peer, and to the start of the next attempt's children."""
    from tests.integration.director import Stage

    times = []
    with tempfile.TemporaryDirectory() as folder, Stage(Path(folder)) as stage:
        stage.start()
        children = stage.cast()
        for number in range(KILLS):
            victim = number % 2
            begin = time.perf_counter()
            children[victim].kill()
            children[1 - victim].wait_gone()
            noticed = time.perf_counter() - begin
            children = stage.cast()
            times.append((noticed, time.perf_counter() - begin))
    return times


def _help_seconds() -> float:
    begin = time.perf_counter()
    subprocess.run([sys.executable, "-m", "deepfake_detector", "--help"], stdout=subprocess.DEVNULL, check=True)
    return time.perf_counter() - begin
