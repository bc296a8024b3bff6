"""A supervisor's whole life: training by agreement with its peers, then, at index 0, the export."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from deepfake_detector.adapters.attempts import AttemptWorker
from deepfake_detector.adapters.storage import Storage
from deepfake_detector.core import layout
from deepfake_detector.core.config import Config
from deepfake_detector.core.errors import EXIT_PERMANENT, ConfigError, DetectorError, PeerError
from deepfake_detector.core.waiting import Budget
from deepfake_detector.stages.commit_export import tidy_up
from deepfake_detector.supervisor import sigterm
from deepfake_detector.supervisor.attempts import EXPORTED, History, in_words, under_way
from deepfake_detector.supervisor.child import Child, End, follow
from deepfake_detector.supervisor.logs import store_log
from deepfake_detector.supervisor.member import Member
from deepfake_detector.supervisor.office import Office
from deepfake_detector.supervisor.place import Place
from deepfake_detector.supervisor.policy import WITHOUT_SUCCESS, exhausted
from deepfake_detector.supervisor.where import Where

log = logging.getLogger(__name__)
EXPORT_PAUSE_SECONDS = (0.5, 30.0)  # first and longest pause before another export


class TrainingError(DetectorError):
    """A child's permanent error, or the run's attempts are used up."""


def supervise(place: Place, run: Storage, config: Config, *, train: Sequence[str], export: Sequence[str]) -> None:
    """Return once training is complete and, at index 0, the model is exported; a finished run returns at once.

    train, export: the children's commands. Raises TrainingError and ConfigError (no retry helps), PeerError (workers
    did not come), WaitError and StorageError (worth another try). To be called from the main thread: children die with
    the thread that starts them.
    """
    workers, peers = config.train.workers, len(place.peers)
    if not workers <= peers <= max(2 * workers - 1, workers) or not 0 <= place.index < peers:
        raise ConfigError(
            f"worker {place.index} of {peers} peers: expected train.workers={workers} of them, with fewer spares than "
            f"that beside them, and an index below ({run.uri}/{layout.CONFIG})"
        )
    asyncio.run(_supervise(place, run, config, train, export))


async def _supervise(place: Place, run: Storage, config: Config, train: Sequence[str], export: Sequence[str]) -> None:
    exported = await asyncio.to_thread(run.exists, layout.DETECTOR)
    if not exported and not await asyncio.to_thread(run.exists, layout.TRAINED):
        await _train(place, run, config, train)
    if place.index == 0:
        if not exported:
            await _export(place, run, config, export)
        await asyncio.to_thread(tidy_up, run)  # after an export that died before it could


async def _train(place: Place, run: Storage, config: Config, command: Sequence[str]) -> None:
    while True:
        budget = Budget(config.operations.rendezvous_seconds)
        office = Office(place, run, config, budget)
        try:
            error = await Member(place, run, command, office, budget, standby=config.operations.standby).run()
            break
        except PeerError as unmet:
            # A spare that is cut off from the others, who call it back: its end would end the Job, and them with it.
            if not (office.superseded and await asyncio.to_thread(under_way, run, place.index)):
                raise
            log.warning("training goes on without this one, which waits to be needed: %s", unmet)
        finally:
            await office.close()
    if error is not None:
        raise TrainingError(error)


async def _export(place: Place, run: Storage, config: Config, command: Sequence[str]) -> None:
    """Run the export as a fresh child until its marker is there."""
    history = await asyncio.to_thread(History, run)
    limit = config.operations.attempts
    pause = EXPORT_PAUSE_SECONDS[0]
    while not await asyncio.to_thread(run.exists, layout.DETECTOR):
        vain = history.in_vain("export")
        if len(vain) >= limit:
            raise TrainingError(exhausted(len(vain), limit, in_words(vain), "the export", WITHOUT_SUCCESS))
        if vain:
            await asyncio.sleep(pause)
            pause = min(2 * pause, EXPORT_PAUSE_SECONDS[1])
        number = history.last + 1
        worker = AttemptWorker(index=place.index, rank=0, address=place.host, **asdict(place.where))
        output = place.scratch / f"attempt-{number:05d}.log"
        with sigterm.farewell():
            await asyncio.to_thread(history.open, number, "export", [worker])
            end = await _export_once(place, run, command, number, output)
            complete = await asyncio.to_thread(_conclude_export, run, history, place.where, output, end)
        if end.status == EXIT_PERMANENT and not complete:
            raise TrainingError(f"export: {end.reason}")


async def _export_once(place: Place, run: Storage, command: Sequence[str], number: int, output: Path) -> End:
    environment = {**place.environment, "RUN": run.uri, "SCRATCH": str(place.scratch), "ATTEMPT": str(number)}
    child = await Child.start(command, environment, output)
    async with follow(output, place.verbose):
        return await child.wait()


def _conclude_export(run: Storage, history: History, where: Where, output: Path, end: End) -> bool:
    """Keep why it ended, then what it said; return whether the model is there."""
    number = history.last
    try:
        complete = run.exists(layout.DETECTOR)
        history.close(EXPORTED if complete else f"export: {end.reason}")
        return complete
    finally:
        store_log(run, layout.log("export", 0, number), output, where.of(f"attempt {number}, export"), end)
