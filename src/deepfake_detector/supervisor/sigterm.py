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
_farewell_seconds = 0.0
_asked = False


def end_on_sigterm(message_file: str | None = None) -> None:
    """Obey SIGTERM at once: children are killed, the status is 143.

    message_file: where a pod's last words belong (its terminationMessagePath).
    """
    global _message_file
    _message_file = message_file
    signal.signal(signal.SIGTERM, _terminate)


@contextlib.contextmanager
def farewell(seconds: float) -> Iterator[None]:
    """Meanwhile SIGTERM kills the children, and their end may still be told: this process has `seconds` for it.

    Whoever has told it calls `leave`.
    """
    global _farewell_seconds
    _farewell_seconds = seconds
    try:
        yield
    finally:
        _farewell_seconds = 0.0


def asked() -> bool:
    """Whether SIGTERM has come; the children are dead then."""
    return _asked


def leave() -> None:
    """End at once, if SIGTERM has come, whatever a thread is still busy with."""
    if _asked:
        os._exit(EXIT_TERMINATED)


def kill_group(group: int) -> None:
    """SIGKILL to every process of the group."""
    with contextlib.suppress(ProcessLookupError, PermissionError):  # gone; macOS: only zombies are left
        os.killpg(group, signal.SIGKILL)


def _terminate(_signal: int, _frame: FrameType | None) -> None:
    global _asked
    _asked = True
    bereaved = tuple(groups)
    for group in bereaved:
        kill_group(group)
    if _message_file:
        with contextlib.suppress(OSError), open(_message_file, "w") as file:  # nothing may keep it from ending
            file.write(f"{SAID}\n")
    if not _farewell_seconds or not bereaved:
        leave()
    timer = threading.Timer(_farewell_seconds, leave)
    timer.daemon = True
    timer.start()
