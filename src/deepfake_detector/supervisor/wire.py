"""Messages between supervisors: one JSON object a line (UTF-8) over TCP. A broken connection means: gone."""

from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

Message = dict[str, Any]
MAX_LINE = 1 << 20  # bytes; a cluster of 256 workers is 6 kB


async def receive(reader: asyncio.StreamReader) -> Message | None:
    """The next message; None when the other side is gone or speaks something else."""
    try:
        line = await reader.readline()
        message = json.loads(line) if line.endswith(b"\n") else None
    except (OSError, ValueError):
        return None
    return message if isinstance(message, dict) else None


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
