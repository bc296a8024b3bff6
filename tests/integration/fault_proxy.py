"""An HTTP/1.1 proxy before the emulator that breaks requests, at random by a seed or as a test orders.

`python -m tests.integration.fault_proxy --server-port N --seed S --rate R` prints its URL, then runs until SIGTERM
and prints what it injected as JSON. SIGUSR1 begins an outage, SIGUSR2 ends it.

The emulator has to be started with public_port = the proxy's port (`faulty_server` does it), so that the links in
its answers come back here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import re
import signal
import socket
import struct
import sys
import threading
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Self

from tests.integration.gcs_server import GcsServer
from tests.integration.http_messages import HEAD_LIMIT, PIECE, Head, body, is_bodiless, read_head

_STATUSES = (429, 500, 502, 503, 504)
_SLOW_PIECES = 20
_TRICKLE_SECONDS = 0.05


class Fault(StrEnum):
    STATUS = "status"  # 429 or 5xx; the server never sees the request
    STATUS_AFTER = "status-after"  # 5xx in place of the server's answer
    RESET = "reset"  # the server never sees the request
    RESET_MIDDLE = "reset-middle"  # in the middle of the answer
    RESET_AFTER = "reset-after"  # the server has answered, and nothing of it arrives
    SHORT = "short"  # the answer ends before its Content-Length
    SLOW = "slow"  # the answer takes `slow_seconds` more
    CUT_UPLOAD = "cut-upload"  # the server sees a part of the request's body
    SILENCE = "silence"  # no answer for `silence_seconds`, then a reset; the server never sees the request
    TRICKLE = "trickle"  # a byte of the answer's body every 50 ms: for hours


RANDOM = frozenset(Fault) - {Fault.TRICKLE}
_NEED_BODY = {Fault.CUT_UPLOAD}


@dataclass
class Order:
    """As given to `FaultProxy.inject`."""

    fault: Fault
    count: int
    method: str
    target: str
    at: int | None
    every: int
    seen: int = 0

    def takes(self, head: Head) -> bool:
        able = head.has_body or self.fault not in _NEED_BODY
        if not (able and self.method in ("", head.method) and re.search(self.target, head.target)):
            return False
        self.seen += 1
        return (self.seen - 1) % self.every == 0


class _Ended(Exception):
    """The answer was the last one on this connection."""


class FaultProxy:
    """Listens on a port of its own and passes requests on to `server_port`; a thread of its own runs it.

    seed, rate, kinds: a share `rate` of the requests gets a fault of `kinds`. What the n-th request of a method to
    a path gets is a function of these and the seed, whatever other connections do meanwhile. server_port may be
    assigned later. injected: how many faults of which kind; "outage" counts connections that met one, or requests.
    requests: how many requests of which method arrived. answered: bytes of answers' bodies that were passed on.
    """

    def __init__(
        self,
        server_port: int = 0,
        *,
        seed: int = 0,
        rate: float = 0.0,
        kinds: Collection[Fault | str] = RANDOM,
        port: int = 0,
        slow_seconds: float = 1.0,
        silence_seconds: float = 2.0,
    ) -> None:
        self.server_port = server_port
        self.injected: Counter[str] = Counter()
        self.requests: Counter[str] = Counter()
        self.answered = 0
        self.rate = rate  # may be changed meanwhile
        self._seed, self._kinds = seed, sorted(Fault(kind) for kind in kinds)
        self._slow_seconds, self._silence_seconds = slow_seconds, silence_seconds
        self._seen: Counter[str] = Counter()
        self._orders: list[Order] = []
        self._lock = threading.Lock()
        self._connections: set[asyncio.Task[None]] = set()
        self._away = self._missing = False
        self._listener = socket.create_server(("127.0.0.1", port), backlog=512)
        self.port: int = self._listener.getsockname()[1]
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="fault-proxy", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Drop all connections and end the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._main.cancel)
            self._thread.join()

    def inject(
        self,
        fault: Fault | str,
        count: int = 1,
        *,
        method: str = "",
        target: str = "",
        at: int | None = None,
        every: int = 1,
    ) -> None:
        """The next `count` requests of `method` whose path and query match the expression `target` get `fault`.

        at: after how many bytes of the body it is cut (CUT_UPLOAD, RESET_MIDDLE, SHORT); half of it by default.
        every: the first of these requests, and every n-th after it.
        """
        with self._lock:
            self._orders.append(Order(Fault(fault), count, method, target, at, every))

    def heal(self) -> None:
        """Forget all orders."""
        with self._lock:
            self._orders = []

    @contextmanager
    def outage(self, *, missing: bool = False) -> Iterator[None]:
        """Meanwhile every connection is reset, those that are open as well as new ones.

        missing: instead, every request is answered as Google answers one for a bucket that does not exist.
        """
        self.begin_outage(missing=missing)
        try:
            yield
        finally:
            self.end_outage()

    def begin_outage(self, *, missing: bool = False) -> None:
        """Returns when the last connection is dropped."""

        async def begin() -> None:
            if missing:
                self._missing = True
                return
            self._away = True
            self.injected["outage"] += len(self._connections)
            await self._drop_all()

        asyncio.run_coroutine_threadsafe(begin(), self._loop).result()

    def end_outage(self) -> None:
        self._away = self._missing = False

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._main = self._loop.create_task(self._serve())
        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._main)
        self._loop.close()

    async def _serve(self) -> None:
        self._listener.setblocking(False)
        try:
            while True:
                client, _ = await self._loop.sock_accept(self._listener)
                if self._away:
                    self.injected["outage"] += 1
                    _reset(client)
                    client.close()
                    continue
                connection = self._loop.create_task(self._attend(client))
                self._connections.add(connection)
                connection.add_done_callback(self._connections.discard)
        finally:
            self._listener.close()
            await self._drop_all()

    async def _drop_all(self) -> None:
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _attend(self, client: socket.socket) -> None:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        reader, writer = await asyncio.open_connection(sock=client, limit=HEAD_LIMIT)
        upstream = _Upstream()
        try:
            while (head := await read_head(reader)) is not None:
                await self._pass(head, reader, writer, upstream)
                if head.headers.get("connection", "").lower() == "close":
                    break
        except _Ended:
            pass
        # A fault, the end of an end, or an outage: a reset, which is what a network would make of it.
        except (OSError, EOFError, asyncio.CancelledError):
            _reset(client)
            writer.transport.abort()
        finally:
            upstream.drop()
            writer.close()

    async def _pass(
        self, head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, upstream: _Upstream
    ) -> None:
        self.requests[head.method] += 1
        if self._missing:
            self.injected["outage"] += 1
            async for _ in body(head, reader):
                pass
            await _answer(writer, 404, "The specified bucket does not exist.")
            return
        fault, at, draw = self._choose(head)
        if fault is not None:
            self.injected[fault] += 1
        if fault is Fault.RESET:
            raise ConnectionResetError
        if fault is Fault.SILENCE:
            await self._stay_silent(reader)
        if fault is Fault.STATUS:
            async for _ in body(head, reader):
                pass
            await _answer(writer, draw.choice(_STATUSES))
            return
        await upstream.connect(self.server_port)
        await self._send(head, reader, upstream, fault, at)
        if fault in (Fault.STATUS_AFTER, Fault.RESET_AFTER):
            answer = await upstream.answer()
            async for _ in body(answer, upstream.reader, head.method):
                pass
            if fault is Fault.RESET_AFTER:
                raise ConnectionResetError
            await _answer(writer, draw.choice(_STATUSES[1:]))
            return
        await self._answer_back(head, writer, upstream, fault, at)

    def _choose(self, head: Head) -> tuple[Fault | None, int | None, random.Random]:
        path = head.target.partition("?")[0]
        with self._lock:
            key = f"{head.method} {path}"
            self._seen[key] += 1
            draw = random.Random(f"{self._seed} {key} {self._seen[key]}")
            for order in self._orders:
                if order.takes(head):
                    order.count -= 1
                    self._orders = [each for each in self._orders if each.count]
                    return order.fault, order.at, draw
        kinds = [kind for kind in self._kinds if head.has_body or kind not in _NEED_BODY]
        if not kinds or draw.random() >= self.rate:
            return None, None, draw
        return draw.choice(kinds), None, draw

    async def _stay_silent(self, reader: asyncio.StreamReader) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(self._silence_seconds):
                while await reader.read(PIECE):
                    pass
        raise ConnectionResetError

    async def _send(
        self, head: Head, reader: asyncio.StreamReader, upstream: _Upstream, fault: Fault | None, at: int | None
    ) -> None:
        left = _cut(head, at) if fault is Fault.CUT_UPLOAD else None
        await upstream.send(head.raw)
        async for piece in body(head, reader):
            if left is not None and len(piece) >= left:
                await upstream.send(piece[:left])
                raise ConnectionResetError
            left = None if left is None else left - len(piece)
            await upstream.send(piece)

    async def _answer_back(
        self,
        head: Head,
        writer: asyncio.StreamWriter,
        upstream: _Upstream,
        fault: Fault | None,
        at: int | None,
    ) -> None:
        answer = await upstream.answer()
        cut = fault in (Fault.SHORT, Fault.RESET_MIDDLE)
        left = _cut(answer, at) if cut else None
        whole = not cut or (head.method != "HEAD" and answer.has_body)
        await _write(writer, answer.raw if whole else answer.raw[: len(answer.raw) // 2])
        size = max(1, (answer.length or PIECE) // _SLOW_PIECES) if fault is Fault.SLOW else PIECE
        size, pause = (1, _TRICKLE_SECONDS) if fault is Fault.TRICKLE else (size, self._slow_seconds / _SLOW_PIECES)
        async for piece in body(answer, upstream.reader, head.method, size):
            if left is not None and len(piece) >= left:
                self.answered += left
                await _write(writer, piece[:left])
                break
            left = None if left is None else left - len(piece)
            self.answered += len(piece)
            await _write(writer, piece)
            if fault in (Fault.SLOW, Fault.TRICKLE):
                await asyncio.sleep(pause)
        if fault is Fault.SHORT:
            raise _Ended
        if fault is Fault.RESET_MIDDLE:
            raise ConnectionResetError
        without_end = not (answer.has_body or is_bodiless(answer, head))
        if without_end or answer.headers.get("connection", "").lower() == "close":
            raise _Ended  # as the server closes its end


class _Upstream:
    """The connection to the server that belongs to one of a client's; made when it is needed."""

    reader: asyncio.StreamReader

    def __init__(self) -> None:
        self._writer: asyncio.StreamWriter | None = None

    async def connect(self, port: int) -> None:
        if self._writer is not None and self.reader.at_eof():  # the server was replaced
            self.drop()
        if self._writer is None:
            self.reader, self._writer = await asyncio.open_connection("127.0.0.1", port, limit=HEAD_LIMIT)

    async def send(self, data: bytes) -> None:
        assert self._writer is not None
        await _write(self._writer, data)

    async def answer(self) -> Head:
        while (head := await read_head(self.reader)) is not None:
            if head.status >= 200:
                return head
        raise EOFError("the server closed the connection without an answer")

    def drop(self) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
            self._writer = None


def _cut(head: Head, at: int | None) -> int:
    return at if at is not None else (head.length or 0) // 2


async def _write(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def _answer(writer: asyncio.StreamWriter, status: int, message: str = "injected") -> None:
    error = json.dumps({"error": {"code": status, "message": message}}).encode()
    head = f"HTTP/1.1 {status} Injected\r\nContent-Type: application/json\r\nContent-Length: {len(error)}\r\n\r\n"
    await _write(writer, head.encode() + error)


def _reset(connection: socket.socket) -> None:
    """Closing it will send RST, not FIN. Where its peer has reset it, asyncio has closed it already: fileno is -1."""
    if connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@contextmanager
def faulty_server(
    log: Path, folder: Path | None = None, *, rate: float = 0.0, seed: int = 0, **options: float
) -> Iterator[tuple[GcsServer, FaultProxy]]:
    """A fresh emulator and a proxy before it, whose URL is for STORAGE_EMULATOR_HOST."""
    with FaultProxy(rate=rate, seed=seed, **options) as proxy:  # type: ignore[arg-type]
        server = GcsServer(log, folder, public_port=proxy.port)
        proxy.server_port = server.port
        server.start()
        try:
            yield server, proxy
        finally:
            server.kill()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--server-port", type=int, required=True)
    parser.add_argument("--port", type=int, default=0, help="of the proxy; any free one by default")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rate", type=float, default=0.05, help="share of requests that get a fault")
    parser.add_argument("--kinds", nargs="+", choices=list(Fault), default=sorted(RANDOM))
    chosen = parser.parse_args()
    signals = {signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2}
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    with FaultProxy(**vars(chosen)) as proxy:
        print(proxy.url, flush=True)
        while (received := signal.sigwait(signals)) in (signal.SIGUSR1, signal.SIGUSR2):
            (proxy.begin_outage if received == signal.SIGUSR1 else proxy.end_outage)()
        json.dump(proxy.injected, sys.stdout)
        print(flush=True)


if __name__ == "__main__":
    main()
