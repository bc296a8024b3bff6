"""The rendezvous at work: the policy's events come from sockets, its actions go to sockets and the run's history."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from deepfake_detector.adapters.storage import Storage
from deepfake_detector.core import layout
from deepfake_detector.core.errors import EXIT_UNAVAILABLE, DetectorError, NotFoundError, PeerError, WaitError
from deepfake_detector.core.waiting import workers_missing
from deepfake_detector.supervisor import sigterm, wire
from deepfake_detector.supervisor.attempts import AttemptWorker, History
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
    Rendezvous,
    Start,
    Stop,
    Worker,
)
from deepfake_detector.supervisor.where import Where

log = logging.getLogger(__name__)
FAREWELL_SECONDS = 5.0  # how long the last message may take to leave


@dataclass(frozen=True)
class Peer:
    """Where a supervisor is, or will be; a host is a name or an IP address."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def write_address(run: Storage, keeper: Peer) -> None:
    """Tell where the rendezvous is kept, for those who can't resolve its name yet."""
    run.write(layout.RENDEZVOUS, (json.dumps({"host": keeper.host, "port": keeper.port}) + "\n").encode())


def read_address(run: Storage) -> Peer | None:
    """Where the rendezvous was last said to be kept: maybe by a pod that is gone. A hint: damage is no address."""
    try:
        match json.loads(run.read(layout.RENDEZVOUS)):
            case {"host": str(host), "port": int(port)}:
                return Peer(host, port)
    except (NotFoundError, ValueError):
        pass
    return None


class Keeper:
    """Keeps the rendezvous of a run for as long as training lasts. patience: seconds to wait for a worker."""

    def __init__(
        self, run: Storage, history: History, peers: Sequence[Peer], *, attempts: int, patience: float
    ) -> None:
        self._run = run
        self._history = history
        self._peers = peers
        self._policy = Rendezvous(
            len(peers), attempts=attempts, last=history.last, used=history.used("train"), patience=patience
        )
        self._links: dict[int, asyncio.StreamWriter] = {}
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._finish: Finish | None = None
        self._telling = contextlib.ExitStack()  # a farewell for as long as an attempt is open

    async def run(self, host: str, port: int) -> None:
        """Listen on host:port until training is complete or can't be; every supervisor is told which.

        Raises PeerError naming the workers that did not come, WaitError where something else listens there, and
        StorageError.
        """
        try:
            server = await asyncio.start_server(self._serve, host, port, limit=wire.MAX_LINE)
        except OSError as error:
            raise WaitError(f"{host}:{port}: {error.strerror}, expected to keep the rendezvous there") from None
        telling = asyncio.create_task(self._tell_address(Peer(host, port)))
        try:
            while not self._policy.finished:
                await self._perform(self._policy.handle(await self._next_event()))
        finally:
            self._telling.close()
            server.close()
            telling.cancel()
            await self._hang_up()
        if self._finish and self._finish.status == EXIT_UNAVAILABLE:
            raise PeerError(self._finish.message)

    async def _tell_address(self, here: Peer) -> None:
        """Beside the rendezvous' own work: the address is a hint, without which the others wait for DNS to know us."""
        try:
            await asyncio.to_thread(write_address, self._run, here)
        except DetectorError as error:
            log.warning("%s: the others find the rendezvous by its name only", error)

    async def _next_event(self) -> Event:
        """The next event. Where it could end an attempt, or the waiting, training's marker has the last word on how."""
        missing = {index: str(self._peers[index]) for index in self._policy.missing}
        if missing:
            log.info("waiting for worker %s", ", ".join(f"{index} ({peer})" for index, peer in missing.items()))
        try:
            async with asyncio.timeout_at(self._policy.overdue_at(asyncio.get_running_loop().time())):
                event = await self._events.get()
        except TimeoutError:
            event = Overdue(workers_missing(missing, self._policy.patience))
        if isinstance(event, Ended | Left | Overdue) and await asyncio.to_thread(self._run.exists, layout.TRAINED):
            return Completed()
        return event

    async def _perform(self, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Open(attempt, workers):
                    self._telling.enter_context(sigterm.farewell())
                    places = [
                        AttemptWorker(
                            index=worker.index, rank=rank, address=worker.address(attempt), **asdict(worker.where)
                        )
                        for rank, worker in enumerate(workers)
                    ]
                    await asyncio.to_thread(self._history.open, attempt, "train", places)
                    log.info("attempt %d begins: %s", attempt, ", ".join(place.address for place in places))
                case Start(index, attempt, rank, cluster):
                    self._send(index, {"type": "start", "attempt": attempt, "rank": rank, "cluster": cluster})
                case Stop(index):
                    self._send(index, {"type": "stop"})
                case Close(attempt, reason):
                    log.info("attempt %d ended: %s", attempt, reason)
                    await asyncio.to_thread(self._history.close, reason)
                    self._telling.close()
                case Finish(status, message):
                    self._finish = action
                    for index in self._links:
                        self._send(index, {"type": "finish", "status": status, "message": message})

    def _send(self, index: int, message: wire.Message) -> None:
        if index in self._links:  # else its Left event is under way
            wire.send(self._links[index], message)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One supervisor's connection, from its registration to its end."""
        wire.keep_alive(writer)
        worker = self._registration(await wire.receive(reader))
        if worker is None:
            writer.close()
            return
        former = self._links.get(worker.index)
        if former is not None:  # its pod was replaced before the kernel noticed
            self._events.put_nowait(Left(worker.index))
            former.close()
        self._links[worker.index] = writer
        wire.send(writer, {"type": "welcome"})
        self._events.put_nowait(Joined(worker))
        while (message := await wire.receive(reader)) and self._links.get(worker.index) is writer:
            match message:
                case {"type": "ended", "attempt": int(attempt), "status": int(status), "reason": str(reason)}:
                    self._events.put_nowait(Ended(worker.index, attempt, status, reason))
        writer.close()
        if self._links.get(worker.index) is writer:
            del self._links[worker.index]
            self._events.put_nowait(Left(worker.index))

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
            } if 0 <= index < len(self._peers):
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
