"""Messages between supervisors: one JSON object a line (UTF-8) over TCP. A broken connection means: gone.

So does silence: each side says every BEAT_SECONDS that it is alive, which a frozen process (SIGSTOP, a paused machine)
does not, although the kernel goes on to acknowledge for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any

Message = dict[str, Any]
MAX_LINE = 1 << 20  # bytes; a cluster of 256 workers is 6 kB
BEAT_SECONDS = 4.0
SILENCE_SECONDS = 14.0  # three beats lost; with a new keeper's first tries it is noticed within 30 s
ALIVE: Message = {"type": "alive"}


class Silent(Exception):
    """Nothing was heard for SILENCE_SECONDS on a connection that stands."""


async def receive(reader: asyncio.StreamReader) -> Message | None:
    """The next message; None when the other side is gone or speaks something else."""
    try:
        line = await reader.readline()
        message = json.loads(line) if line.endswith(b"\n") else None
    except (OSError, ValueError):
        return None
    return message if isinstance(message, dict) else None


async def messages(reader: asyncio.StreamReader) -> AsyncIterator[Message]:
    """What the other side says, without its beats, until it is gone; raises Silent."""
    while True:
        try:
            async with asyncio.timeout(SILENCE_SECONDS):
                message = await receive(reader)
        except TimeoutError:
            raise Silent from None
        if message is None:
            return
        if message != ALIVE:
            yield message


@contextlib.asynccontextmanager
async def beating(writer: asyncio.StreamWriter) -> AsyncIterator[None]:
    """Meanwhile the other side hears that this one is alive."""
    task = asyncio.create_task(_beat(writer))
    try:
        yield
    finally:
        task.cancel()


async def _beat(writer: asyncio.StreamWriter) -> None:
    while True:
        await asyncio.sleep(BEAT_SECONDS)
        send(writer, ALIVE)


def send(writer: asyncio.StreamWriter, message: Message) -> None:
    """Queue a message. One that can't be delivered shows as a broken connection to the reader."""
    if not writer.is_closing():
        writer.write(json.dumps(message).encode() + b"\n")


def keep_alive(writer: asyncio.StreamWriter) -> None:
    """Let the kernel find out within about 10 s that the other side's machine vanished without a word."""
    connection: socket.socket = writer.get_extra_info("socket")
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in (("TCP_KEEPIDLE", 4), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 3), ("TCP_USER_TIMEOUT", 10_000)):
        if hasattr(socket, name):  # Linux has all; elsewhere the system's defaults hold
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
