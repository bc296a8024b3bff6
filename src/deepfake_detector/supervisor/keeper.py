"""The rendezvous at work: the policy's events come from sockets, its actions go to sockets and the run's history."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from dataclasses import asdict

from deepfake_detector.adapters.attempts import AttemptWorker
from deepfake_detector.adapters.storage import Storage
from deepfake_detector.core import layout
from deepfake_detector.core.config import Config
from deepfake_detector.core.errors import EXIT_UNAVAILABLE, DetectorError, PeerError, WaitError
from deepfake_detector.core.waiting import Budget, workers_missing
from deepfake_detector.supervisor import sigterm, terms, wire
from deepfake_detector.supervisor.attempts import History
from deepfake_detector.supervisor.place import Place
from deepfake_detector.supervisor.policy import (
    Action,
    Close,
    Completed,
    Ended,
    Event,
    Finish,
    Joined,
    Left,
    Open,
    Overdue,
    Past,
    Recall,
    Rendezvous,
    Start,
    Stop,
    Worker,
)
from deepfake_detector.supervisor.terms import Term
from deepfake_detector.supervisor.where import Where

log = logging.getLogger(__name__)
FAREWELL_SECONDS = 5.0  # how long the last message may take to leave
LOOK_SECONDS = 2.0  # while workers are missing: whether another keeps the rendezvous by now
HOLD_SECONDS = 10.0  # while enough are here: whether a spare that could not reach this keeper waits elsewhere


class Keeper:
    """One term of the rendezvous, kept by this supervisor: `listen`, `take`, `run`, and `close` however it went.

    budget: of this supervisor, to wait for others.
    """

    def __init__(self, run: Storage, place: Place, config: Config, budget: Budget) -> None:
        workers = config.train.workers
        self._run = run
        self._place = place
        self._budget = budget
        self._policy = Rendezvous(
            workers, attempts=config.operations.attempts, spares=len(place.peers) - workers, budget=budget
        )
        self._number = 0  # of the latest term that it has begun
        self._server: asyncio.Server | None = None
        self._history: History | None = None
        self._links: dict[int, asyncio.StreamWriter] = {}
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._finish: Finish | None = None
        self._telling = contextlib.ExitStack()  # a farewell for as long as an attempt is open

    async def listen(self) -> None:
        """Answer at this supervisor's place; raises WaitError where something else does."""
        here = self._place.rendezvous
        try:
            self._server = await asyncio.start_server(self._serve, here.host, here.port, limit=wire.MAX_LINE)
        except OSError as error:
            raise WaitError(f"{here}: {error.strerror}, expected to keep the rendezvous there") from None

    async def take(self, number: int) -> Term | None:
        """Begin this term; None when somebody else has. Raises StorageError."""
        term = await asyncio.to_thread(terms.take, self._run, number, self._place.index, self._place.rendezvous)
        if term:
            self._number = term.number
        return term

    async def run(self) -> None:
        """Keep it until training is complete or can't be, of which every supervisor is told, or to a later term.

        Raises PeerError naming the workers that did not come, and StorageError.
        """
        holding = asyncio.create_task(self._hold()) if self._policy.spares else None
        try:
            await self._decide()
        finally:
            if holding:
                holding.cancel()
        if self._finish and self._finish.status == EXIT_UNAVAILABLE:
            raise PeerError(self._finish.message)

    async def _decide(self) -> None:
        while not self._policy.finished:
            event = await self._next_event()
            if event is None:
                log.info("another supervisor keeps the rendezvous now")
                return
            try:
                await self._perform(self._policy.handle(event))
            except WaitError as error:  # frozen or cut off, it did not know that it is superseded
                log.info("%s", error)
                return
            if sigterm.asked():
                await self._leave()

    async def _hold(self) -> None:
        """Take the rendezvous back from a spare that has begun a term of its own, since it could not reach this keeper.

        It would wait there, alone, until its budget ends it, and the Job with it; a keeper of missing workers looks for
        later terms, and comes over. Seen twice: a keeper that has just been frozen learns first who has left it.
        """
        seen = 0
        while True:
            await asyncio.sleep(HOLD_SECONDS)
            try:
                newest = await asyncio.to_thread(terms.latest, self._run)
                if newest is None or newest.number <= self._number or self._policy.missing:
                    continue
                if newest.number == seen and not sigterm.asked() and (held := await self.take(newest.number + 1)):
                    log.info("%s began term %d: taken back by term %d", newest, seen, held.number)
                seen = newest.number
            except DetectorError as error:  # spares are called back later; nothing else depends on it
                log.warning("later terms of the rendezvous: %s", error)

    async def close(self) -> None:
        """Nobody is answered any more; what was said last has left."""
        self._telling.close()
        if self._server:
            self._server.close()
        await self._hang_up()

    async def _leave(self) -> None:
        """After SIGTERM: the others look for another keeper at once, and this process ends with its last farewell.

        Above all it begins no attempt any more, which would end with it.
        """
        if self._server:
            self._server.close()
        for writer in self._links.values():
            writer.close()
        await asyncio.Event().wait()

    async def _next_event(self) -> Event | None:
        """The next event; None: another keeps the rendezvous.

        Where it could end an attempt, or the waiting, training's marker has the last word on how.
        """
        missing = {index: str(self._place.peers[index]) for index in self._policy.missing}
        if missing:
            log.info("waiting for worker %s", ", ".join(f"{index} ({peer})" for index, peer in missing.items()))
        event = await self._awaited(missing)
        if isinstance(event, Ended | Left | Overdue) and await asyncio.to_thread(self._run.exists, layout.TRAINED):
            return Completed()
        return event

    async def _awaited(self, missing: dict[int, str]) -> Event | None:
        clock = asyncio.get_running_loop().time
        while True:
            overdue = self._policy.overdue_at(clock())
            try:
                async with asyncio.timeout_at(overdue and min(overdue, clock() + LOOK_SECONDS)):
                    return await self._events.get()
            except TimeoutError:
                newest = await asyncio.to_thread(terms.latest, self._run)
                if newest and newest.number > self._number:
                    return None
                if await asyncio.to_thread(self._run.exists, layout.TRAINED):  # without this one
                    return Completed()
                if overdue and clock() >= overdue:
                    return Overdue(workers_missing(missing, self._budget.seconds))

    async def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Recall():
                    self._events.put_nowait(await asyncio.to_thread(self._recall))
                case Open(attempt, workers):
                    if sigterm.asked():
                        await self._leave()
                    self._telling.enter_context(sigterm.farewell())
                    places = [
                        AttemptWorker(
                            index=worker.index, rank=rank, address=worker.address(attempt), **asdict(worker.where)
                        )
                        for rank, worker in enumerate(workers)
                    ]
                    await asyncio.to_thread(self._attempts.open, attempt, "train", places)
                    log.info("attempt %d begins: %s", attempt, ", ".join(place.address for place in places))
                case Start(index, attempt, rank, cluster):
                    self._send(index, {"type": "start", "attempt": attempt, "rank": rank, "cluster": cluster})
                case Stop(index):
                    self._send(index, {"type": "stop"})
                case Close(attempt, reason):
                    log.info("attempt %d ended: %s", attempt, reason)
                    await asyncio.to_thread(self._attempts.close, reason)
                    self._telling.close()
                case Finish(status, message):
                    self._finish = action
                    for index in self._links:
                        self._send(index, {"type": "finish", "status": status, "message": message})

    def _recall(self) -> Past:
        self._history = History(self._run)
        history = self._history
        return Past(history.last, history.used("train"), history.reason, history.ranks, history.out_of_memory)

    @property
    def _attempts(self) -> History:
        assert self._history, "an attempt begins after a Recall"
        return self._history

    def _send(self, index: int, message: wire.Message) -> None:
        if index in self._links:  # else its Left event is under way
            wire.send(self._links[index], message)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One supervisor's connection, from its registration to its end."""
        wire.keep_alive(writer)
        async with wire.beating(writer):
            worker = await self._registered(reader)
            if worker is None or sigterm.asked():
                writer.close()
                return
            former = self._links.get(worker.index)
            if former is not None:  # its pod was replaced before the kernel noticed
                self._events.put_nowait(Left(worker.index))
                former.close()
            self._links[worker.index] = writer
            wire.send(writer, {"type": "welcome"})
            self._events.put_nowait(Joined(worker))
            why = await self._listen_to(worker.index, reader, writer)
            writer.close()
            if self._links.get(worker.index) is writer:
                del self._links[worker.index]
                self._events.put_nowait(Left(worker.index, why))

    async def _listen_to(self, index: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        """Its messages become events; returns, at the end, why it is gone."""
        try:
            async for message in wire.messages(reader):
                if self._links.get(index) is not writer:
                    break
                match message:
                    case {"type": "ended", "attempt": int(attempt), "status": int(status), "reason": str(reason)}:
                        self._events.put_nowait(Ended(index, attempt, status, reason))
        except wire.Silent:
            return f"said nothing for {wire.SILENCE_SECONDS:g} s (frozen, or cut off)"
        return "is gone"

    async def _registered(self, reader: asyncio.StreamReader) -> Worker | None:
        """Who has come; None where nobody of this run has."""
        try:
            async with asyncio.timeout(wire.SILENCE_SECONDS):
                return self._registration(await wire.receive(reader))
        except TimeoutError:
            log.warning("a connection was closed: silent for %g s, expected a registration", wire.SILENCE_SECONDS)
            return None

    def _registration(self, message: wire.Message | None) -> Worker | None:
        match message:
            case {
                "type": "register",
                "run": self._run.uri,
                "index": int(index),
                "host": str(host),
                "base_port": int(port),
                "pod": str(pod),
                "node": str(node),
            } if 0 <= index < len(self._place.peers):
                return Worker(index, host, port, Where(pod, node))
        log.warning("a connection was refused: expected a supervisor of %s, got %s", self._run.uri, message)
        return None

    async def _hang_up(self) -> None:
        writers = list(self._links.values())
        for writer in writers:
            writer.close()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)
