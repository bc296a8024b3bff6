"""SIGTERM, obeyed from the first line on: imported before anything else, so it imports next to nothing itself.

PID 1 of a container ignores the signal unless there is a handler. Nothing is waited for in the handler, since one that
waits for a child deadlocks with the main thread's own wait.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from deepfake_detector.core.errors import EXIT_TERMINATED

SAID = "SIGTERM: told to end (the pod was deleted, moved or stopped)"

groups: set[int] = set()  # process groups of the living children
_message_file: str | None = None
_farewell: Farewell | None = None


class Farewell:
    """asked: SIGTERM has come; the children are dead, and this process has `seconds` left to say so."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.asked = False


def end_on_sigterm(message_file: str | None = None) -> None:
    """Obey SIGTERM at once: children are killed, the status is 143.

    message_file: where a pod's last words belong (its terminationMessagePath).
    """
    global _message_file
    _message_file = message_file
    signal.signal(signal.SIGTERM, _terminate)


@contextlib.contextmanager
def farewell(seconds: float) -> Iterator[Farewell]:
    """Meanwhile SIGTERM kills the children, and the process ends `seconds` later at the latest, with status 143."""
    global _farewell
    _farewell = Farewell(seconds)
    try:
        yield _farewell
    finally:
        _farewell = None


def kill_group(group: int) -> None:
    """SIGKILL to every process of the group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # gone; macOS: only zombies are left
        os.killpg(group, signal.SIGKILL)


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    for group in tuple(groups):
        kill_group(group)
    if _message_file:
        with contextlib.suppress(OSError), open(_message_file, "w") as file:  # nothing may keep it from ending
            file.write(f"{SAID}\n")
    if _farewell is None:
        os._exit(EXIT_TERMINATED)
    _farewell.asked = True
    timer = threading.Timer(_farewell.seconds, os._exit, [EXIT_TERMINATED])
    timer.daemon = True
    timer.start()
