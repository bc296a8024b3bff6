"""A supervisor's side of the rendezvous: it starts, watches and ends one child at a time, as it is told."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import asdict

from deepfake_detector.adapters.kernel import process_started
from deepfake_detector.adapters.storage import Storage
from deepfake_detector.core import layout
from deepfake_detector.core.errors import EXIT_OK, EXIT_UNAVAILABLE, PeerError
from deepfake_detector.core.timeline import Timeline
from deepfake_detector.core.topology import Cluster
from deepfake_detector.core.waiting import Budget, rendezvous_missing
from deepfake_detector.supervisor import sigterm, wire
from deepfake_detector.supervisor.child import Child, End, follow
from deepfake_detector.supervisor.logs import store_log
from deepfake_detector.supervisor.office import Office
from deepfake_detector.supervisor.place import Place
from deepfake_detector.supervisor.standby import AFTER_SECONDS, Standby
from deepfake_detector.supervisor.terms import Peer, Term

log = logging.getLogger(__name__)
CONNECT_SECONDS = 5.0  # to the welcome: an address that nobody has, or a process that is stopped, answers nothing
REACH_SECONDS = 2.5  # of these, to a connection: two tries of the kernel's, the second after 1 s (RFC 6298)
BACK_OFF_SECONDS = (0.05, 1.0)  # first and longest pause between two tries
WIND_DOWN_SECONDS = 2.0  # for a child to end by itself once training is complete, and for the last log


class Member:
    """One supervisor's part in training.

    office: where it finds the rendezvous, or takes it over; budget: to wait for it; standby: with a child in waiting.
    """

    def __init__(
        self,
        place: Place,
        run: Storage,
        command: Sequence[str],
        office: Office,
        budget: Budget,
        *,
        standby: bool = False,
    ) -> None:
        self._place = place
        self._standby = Standby(command, place.environment, place.scratch, wanted=standby)
        self._run = run
        self._command = command
        self._office = office
        self._budget = budget
        self._child: Child | None = None
        self._watch: asyncio.Task[None] | None = None
        self._timeline = Timeline({"process": round(process_started(), 3)})
        self._timeline.mark("supervisor")
        self._uploads: set[asyncio.Task[None]] = set()

    async def run(self) -> str | None:
        """Obey the rendezvous to the end: None, training is complete; a text, why no retry can help.

        Raises PeerError when workers, or any rendezvous, did not come within the budget, and StorageError.
        """
        self._standby.prepare(0)  # its imports and the rendezvous take place at once
        try:
            return await self._take_part()
        finally:
            await self._standby.end()

    async def _take_part(self) -> str | None:
        pause = BACK_OFF_SECONDS[0]
        unreachable = 0  # the latest term whose keeper did not answer
        while not await asyncio.to_thread(self._run.exists, layout.TRAINED):
            term = await self._office.find(unreachable)
            try:
                finish = await self._obey(term)
            except ConnectionError as error:
                self._wait_no_longer(term, str(error))
                finish, unreachable = None, term.number
                pause = min(2 * pause, BACK_OFF_SECONDS[1])
            else:
                pause = BACK_OFF_SECONDS[0]
            if sigterm.asked():
                await _leaving()
            if finish is not None:
                await self._flush()
                if finish["status"] == EXIT_UNAVAILABLE:
                    raise PeerError(str(finish["message"]))
                return None if finish["status"] == EXIT_OK else str(finish["message"])
            await asyncio.sleep(pause)
        await self._flush()
        return None

    def _wait_no_longer(self, term: Term, reason: str) -> None:
        """Raise PeerError where the budget is spent on keepers that do not answer."""
        clock = asyncio.get_running_loop().time
        log.info("%s: %s", term, reason)
        if clock() > self._budget.wait(clock()):
            raise PeerError(rendezvous_missing(term.keeper, str(term.address), self._budget.seconds, reason))

    async def _obey(self, term: Term) -> wire.Message | None:
        """One connection: its final message, or None when it broke. No child is left afterwards.

        Raises ConnectionError when there is no such connection.
        """
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                reader, writer = await self._register(term.address)
        except TimeoutError as error:
            raise ConnectionError(f"no connection in {REACH_SECONDS:g} s, or no answer") from error
        except OSError as error:
            raise ConnectionError(error.strerror or str(error)) from error
        if term.keeper != self._place.index:
            self._budget.met()
        self._standby.prepare(0)
        try:
            async with wire.beating(writer):
                async for message in wire.messages(reader):
                    match message:
                        case {"type": "start", "attempt": int(attempt), "rank": int(rank), "cluster": list(cluster)}:
                            await self._start(writer, attempt, rank, cluster)
                        case {"type": "stop"} if self._child:
                            self._child.kill()
                        case {"type": "finish", "status": int(status)}:
                            if status == EXIT_OK and self._watch:
                                await asyncio.wait([self._watch], timeout=WIND_DOWN_SECONDS)
                            return message
            log.warning("%s: connection lost", term)
        except wire.Silent:
            log.warning("%s: silent for %g s", term, wire.SILENCE_SECONDS)
        finally:
            await self._end_child()
            writer.close()
        return None

    async def _register(self, keeper: Peer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection on which the rendezvous has bidden welcome; raises OSError when it is not there or refuses."""
        async with asyncio.timeout(REACH_SECONDS):
            reader, writer = await asyncio.open_connection(keeper.host, keeper.port, limit=wire.MAX_LINE)
        try:
            wire.keep_alive(writer)
            place = self._place
            register = {"run": self._run.uri, "index": place.index, "host": place.host, "base_port": place.base_port}
            wire.send(writer, {"type": "register", **register, **asdict(place.where)})
            if await wire.receive(reader) is None:
                raise ConnectionError("closed before the welcome")
        except BaseException:
            writer.close()
            raise
        return reader, writer

    async def _start(self, writer: asyncio.StreamWriter, attempt: int, rank: int, cluster: list[str]) -> None:
        environment = {
            **self._place.environment,
            "RUN": self._run.uri,
            "SCRATCH": str(self._place.scratch),
            "TF_CONFIG": Cluster(rank, tuple(cluster)).tf_config(),
            "ATTEMPT": str(attempt),
        }
        if attempt == 1:  # later ones begin where the last one ended, not with the Job
            self._timeline.mark("child")
            environment["TIMELINE"] = self._timeline.encode()
        await self._end_child()
        path = self._place.scratch / f"attempt-{attempt:05d}.log"
        self._child = await self._standby.take(environment, path) or await Child.start(self._command, environment, path)
        self._standby.prepare(AFTER_SECONDS)
        self._watch = asyncio.create_task(self._report(self._child, writer, attempt, rank))

    async def _report(self, child: Child, writer: asyncio.StreamWriter, attempt: int, rank: int) -> None:
        """Tell the rendezvous of the child's end at once; its log is stored meanwhile."""
        try:
            with sigterm.farewell():
                async with follow(child.log, self._place.verbose):
                    end = await child.wait()
                if sigterm.asked():
                    writer.close()  # the peers need not wait for the log
                wire.send(writer, {"type": "ended", "attempt": attempt, "status": end.status, "reason": end.reason})
                self._store(child, attempt, rank, end)
        except Exception:
            writer.close()  # which tells it, too; what happened is raised where the child is ended
            raise

    def _store(self, child: Child, attempt: int, rank: int, end: End) -> None:
        """Store its log in a thread, for which SIGTERM waits."""
        title = self._place.where.of(f"attempt {attempt}, worker {self._place.index} with rank {rank}")
        name = layout.log("train", self._place.index, attempt)
        upload = asyncio.create_task(asyncio.to_thread(store_log, self._run, name, child.log, title, end))
        self._uploads.add(upload)
        upload.add_done_callback(self._uploads.discard)
        telling = contextlib.ExitStack()
        telling.enter_context(sigterm.farewell())
        upload.add_done_callback(lambda _: telling.close())

    async def _end_child(self) -> None:
        """SIGKILL the child, if there is one, and wait until it is gone."""
        if self._child and self._watch:
            self._child.kill()
            await self._watch
        self._child = self._watch = None

    async def _flush(self) -> None:
        if self._uploads:
            await asyncio.wait(self._uploads, timeout=WIND_DOWN_SECONDS)


async def _leaving() -> None:
    """After SIGTERM: nothing is done any more until the last farewell ends this process.

    Above all it does not come back to the rendezvous, which would begin an attempt with it instead of its replacement.
    """
    await asyncio.Event().wait()
