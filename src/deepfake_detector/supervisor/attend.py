"""The parent of one working process in a pod that has no peers: it keeps the tail of its output and why it ended."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from deepfake_detector.adapters.storage import open_storage
from deepfake_detector.core import layout
from deepfake_detector.core.errors import EXIT_OK, EXIT_RETRY, DetectorError
from deepfake_detector.supervisor import sigterm
from deepfake_detector.supervisor.child import Child, End, follow, tail
from deepfake_detector.supervisor.logs import STORE_SECONDS, add_log, within

log = logging.getLogger(__name__)
FAREWELL_SECONDS = 2.0  # the same after SIGTERM


class ChildError(DetectorError):
    """The child did not succeed; its status is passed on."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.exit_status = status


def attend(
    run: str, stage: str, index: int, command: Sequence[str], scratch: Path, environment: Mapping[str, str]
) -> None:
    """Run `command` to its end, with its output on stderr; return when it succeeds.

    run: URI of the run, which is opened at the end only, so that the child starts at once. scratch: a folder on
    local disk. environment: the child's. Raises ChildError with the child's error and status, 128 + n for signal n,
    75 where it ran out of memory; the tail of its output is then in RUN/logs/<stage>/<index>/<n>.log. After SIGTERM
    this process ends with status 143. To be called from the main thread: the child dies with the thread that
    starts it.
    """
    output = scratch / f"{stage}-{index}.log"
    with sigterm.farewell(FAREWELL_SECONDS):
        end = asyncio.run(_run(command, environment, output))
        if sigterm.asked() or end.status != EXIT_OK:
            within(STORE_SECONDS, functools.partial(_store, run, stage, index, output, end.reason))
        sigterm.leave()
    if end.status != EXIT_OK:
        raise _error(end)


async def _run(command: Sequence[str], environment: Mapping[str, str], output: Path) -> End:
    child = await Child.start(command, environment, output)
    async with follow(output, verbose=True):
        return await child.wait()


def _store(run: str, stage: str, index: int, output: Path, reason: str) -> None:
    try:
        storage = open_storage(run)
    except DetectorError as error:
        log.warning("%s", error)
        return
    add_log(storage, functools.partial(layout.log, stage, index), tail(output), f"{stage} {index}", reason)


def _error(end: End) -> ChildError:
    """In the child's own words where it had some."""
    if end.reason.startswith("OOMKilled"):
        return ChildError(end.reason, EXIT_RETRY)
    if end.status < 0:
        return ChildError(end.reason, 128 - end.status)
    prefix = f"exit {end.status}: "
    own = end.reason.startswith(prefix)
    return ChildError(end.reason.removeprefix(prefix) if own else end.reason, end.status)
