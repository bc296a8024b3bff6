"""The parent of one working process in a pod that has no peers: it counts its attempts, and keeps how each ended.

Kubernetes does not count a pod that obeyed SIGTERM, or that was evicted or lost with its node: the Job's policy ignores
those, or a spot node would fail the work. But a shard whose pods outgrow their scratch volume is evicted each time, and
one that takes longer than any spot node lives is never done. So every life counts here, by operations.attempts, as in
training; it is written down before the child starts, since an evicted pod has a second or less for its last words. On
one machine neither SIGTERM counts, which only the person and the launcher send, nor an end without a word.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Literal

from deepfake_detector.adapters.attempts import AttemptWorker
from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.core import layout
from deepfake_detector.core.errors import (
    EXIT_OK,
    EXIT_RETRY,
    ConfigError,
    CorruptError,
    DetectorError,
    NotFoundError,
)
from deepfake_detector.core.pods import OUT_OF_MEMORY
from deepfake_detector.stages.runs import load_config
from deepfake_detector.supervisor import sigterm
from deepfake_detector.supervisor.attempts import EXPORTED, SHARD_DONE, History, in_words
from deepfake_detector.supervisor.child import Child, End, follow
from deepfake_detector.supervisor.logs import STORE_SECONDS, store_log, within
from deepfake_detector.supervisor.policy import WITHOUT_SUCCESS, exhausted
from deepfake_detector.supervisor.where import NOWHERE, Where

log = logging.getLogger(__name__)


class AttemptsError(DetectorError):
    """The attempts that the run's settings allow are used up."""


class ChildError(DetectorError):
    """The child did not succeed; its status is passed on."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.exit_status = status


def attend(
    run: str,
    stage: Literal["preprocess", "export"],
    index: int,
    command: Sequence[str],
    scratch: Path,
    environment: Mapping[str, str],
    where: Where = NOWHERE,
) -> None:
    """Run `command` to its end, with its output on stderr; return when it succeeds.

    run: URI of the run. scratch: a folder on local disk. environment: the child's. Raises AttemptsError where
    operations.attempts of this shard, or of the export, ended in vain; StorageError and ConfigError where the bucket
    can't be used; ChildError with the child's error and status, 128 + n for signal n, 75 where it ran out of memory.
    However it ends, the tail of its output is then in RUN/logs/<stage>/<index>/<attempt>.log. After SIGTERM this
    process ends with status 143. To be called from the main thread: the child dies with the thread that starts it.
    """
    storage = open_storage(run, patient=True)
    history = _begin(storage, stage, index, where)
    output = scratch / f"{stage}-{index}.log"
    with sigterm.farewell():
        end = asyncio.run(_run(command, environment, output))
        within(STORE_SECONDS, functools.partial(_conclude, storage, stage, index, where, history, output, end))
    if end.status != EXIT_OK:
        raise _error(end)


def _begin(run: Storage, stage: Literal["preprocess", "export"], index: int, where: Where) -> History:
    """The attempts so far, with a new one; raises AttemptsError where no more are allowed."""
    history = History(run, shard=index if stage == "preprocess" else None)
    vain, limit = history.in_vain(stage), _allowed(run)
    if limit is not None and len(vain) >= limit:
        whose = f"shard {index}" if stage == "preprocess" else "the export"
        raise AttemptsError(exhausted(len(vain), limit, in_words(vain), whose, WITHOUT_SUCCESS))
    history.open(history.last + 1, stage, [AttemptWorker(index=index, rank=0, **asdict(where))])
    return history


def _allowed(run: Storage) -> int | None:
    """None: the settings can't be read, with which the child ends for good, in words of its own."""
    try:
        return load_config(run).operations.attempts
    except (ConfigError, CorruptError, NotFoundError):
        return None


async def _run(command: Sequence[str], environment: Mapping[str, str], output: Path) -> End:
    child = await Child.start(command, environment, output)
    async with follow(output, verbose=True):
        return await child.wait()


def _conclude(run: Storage, stage: str, index: int, where: Where, history: History, output: Path, end: End) -> None:
    """Keep why it ended, then what it said; where storage is away, that it has begun is there already.

    In this order: a success whose end is not recorded counts as a failure, and so do all that came before it.
    """
    exporting = stage == "export"  # told apart from training's attempts, among which it is
    if end.status == EXIT_OK:
        reason = EXPORTED if exporting else SHARD_DONE
    else:
        reason = f"export: {end.reason}" if exporting else end.reason
    try:
        history.close(reason)
    except DetectorError as error:
        log.warning("attempt %d of %s %d: its end was not stored: %s", history.last, stage, index, error)
    store_log(run, layout.log(stage, index, history.last), output, where.of(f"{stage} {index}"), end)


def _error(end: End) -> ChildError:
    """In the child's own words where it had some."""
    if end.reason.startswith(OUT_OF_MEMORY):
        return ChildError(end.reason, EXIT_RETRY)
    if end.status < 0:
        return ChildError(end.reason, 128 - end.status)
    prefix = f"exit {end.status}: "
    own = end.reason.startswith(prefix)
    return ChildError(end.reason.removeprefix(prefix) if own else end.reason, end.status)
