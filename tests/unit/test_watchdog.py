"""A process that hangs with Python's lock held ends all the same."""

from __future__ import annotations

import subprocess
import sys

import pytest

# PyDLL, unlike CDLL, keeps the lock during a call: no other Python thread runs, as while TensorFlow's strategy waits.
HANGS = """
import ctypes
from deepfake_detector.training.worker import Watchdog

watchdog = Watchdog(startup_seconds={startup}, stall_seconds={stall})
watchdog.start()
{before}
ctypes.PyDLL(None).sleep({hang})
watchdog.stop()
print("stopped in time")
"""


@pytest.mark.parametrize(
    ("startup", "stall", "before"),
    [
        pytest.param(0.2, 600, "", id="no first step"),
        pytest.param(600, 0.2, "watchdog.progress()", id="no further step"),
    ],
)
def test_a_hang_ends_the_process_with_a_traceback(startup: float, stall: float, before: str) -> None:
    script = HANGS.format(startup=startup, stall=stall, before=before, hang=600)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert ended.returncode == 1
    assert "Timeout" in ended.stderr
    assert 'File "<string>", line 8 in <module>' in ended.stderr


def test_a_step_in_time_puts_it_off() -> None:
    script = HANGS.format(startup=0.5, stall=600, before="watchdog.progress()", hang=1)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
    assert (ended.returncode, ended.stdout) == (0, "stopped in time\n")
