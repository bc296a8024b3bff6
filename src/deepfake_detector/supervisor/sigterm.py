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
FAREWELL_SECONDS = 2.0  # at most, for the child's log and the reason of its end: a replacement waits for this one

groups: set[int] = set()  # process groups of the living children
_message_file: str | None = None
_farewells = 0
_asked = False


def end_on_sigterm(message_file: str | None = None) -> None:
    """Obey SIGTERM at once: children are killed, the status is 143.

    message_file: where a pod's last words belong (its terminationMessagePath).
    """
    global _message_file
    _message_file = message_file
    signal.signal(signal.SIGTERM, _terminate)


@contextlib.contextmanager
def farewell() -> Iterator[None]:
    """From before a child's start until its end is told: SIGTERM kills it, and leaves FAREWELL_SECONDS for the telling.

    Some may be open at a time. After SIGTERM this process ends with the last of them.
    """
    global _farewells
    _farewells += 1
    try:
        yield
    finally:
        _farewells -= 1
        if not (_farewells or groups):
            _leave()


def asked() -> bool:
    """Whether SIGTERM has come; the children are dead then, or about to be."""
    return _asked


def _leave() -> None:
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
    if not (_farewells or bereaved):
        _leave()
    timer = threading.Timer(FAREWELL_SECONDS, _leave)
    timer.daemon = True
    timer.start()
