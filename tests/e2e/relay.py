"""A TCP relay to the API server that can be cut: connections are dropped, and new ones refused, until it heals."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

from tests.e2e.namespace import kubectl

PIECE = 1 << 16


class Relay:
    """Listens on 127.0.0.1, in a thread of its own."""

    def __init__(self, host: str, port: int) -> None:
        self._target = (host, port)
        self._tasks: set[asyncio.Task[None]] = set()
        self._cut = False
        self.dropped = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._call(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.port: int = self._server.sockets[0].getsockname()[1]

    @contextlib.contextmanager
    def cut(self) -> Iterator[None]:
        self._cut = True
        self._call(self._drop())
        try:
            yield
        finally:
            self._cut = False

    def close(self) -> None:
        self._server.close()
        self._call(self._drop())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _call(self, work):  # type: ignore[no-untyped-def]
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    async def _drop(self) -> None:
        tasks = list(self._tasks)
        self.dropped += len(tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        try:
            if not self._cut:
                there = await asyncio.open_connection(*self._target)
                with contextlib.suppress(OSError):
                    await asyncio.gather(_copy(reader, there[1]), _copy(there[0], writer))
        except asyncio.CancelledError:
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(PIECE):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


@contextlib.contextmanager
def relayed(folder: Path) -> Iterator[tuple[Relay, Path]]:
    """A relay to the current context's API server, and a kubeconfig that leads through it."""
    config = json.loads(kubectl("config", "view", "--raw", "--minify", "--flatten", "--output", "json"))
    cluster = config["clusters"][0]["cluster"]
    server = urlsplit(cluster["server"])
    assert server.hostname
    relay = Relay(server.hostname, server.port or 443)
    try:
        # The certificate is for the server's own name.
        cluster |= {"server": f"https://127.0.0.1:{relay.port}", "tls-server-name": server.hostname}
        path = folder / "relayed.kubeconfig"
        path.touch(mode=0o600)
        path.write_text(json.dumps(config))
        yield relay, path
    finally:
        relay.close()
