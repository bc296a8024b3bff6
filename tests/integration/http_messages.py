"""Messages of HTTP/1.1 on a stream, as far as a proxy needs them (RFC 9112)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

PIECE = 1 << 16
HEAD_LIMIT = 1 << 20  # bytes; of the stream's buffer, too


@dataclass
class Head:
    """A request's or an answer's first line and headers, as bytes and as far as the proxy needs them."""

    raw: bytes
    first: list[str]
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def method(self) -> str:
        return self.first[0]

    @property
    def target(self) -> str:
        return self.first[1]

    @property
    def status(self) -> int:
        return int(self.first[1])

    @property
    def length(self) -> int | None:
        value = self.headers.get("content-length")
        return int(value) if value is not None else None

    @property
    def chunked(self) -> bool:
        return "chunked" in self.headers.get("transfer-encoding", "").lower()

    @property
    def has_body(self) -> bool:
        return self.chunked or bool(self.length)


async def read_head(reader: asyncio.StreamReader) -> Head | None:
    """None at the end of the connection."""
    try:
        raw = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError as error:
        if error.partial:
            raise
        return None
    first, *lines = raw.decode("latin-1").split("\r\n")
    pairs = (line.partition(":") for line in lines if line)
    return Head(raw, first.split(" ", 2), {name.strip().lower(): value.strip() for name, _, value in pairs})


def is_bodiless(answer: Head, request: Head) -> bool:
    return request.method == "HEAD" or answer.status in (204, 304) or answer.length == 0


async def body(head: Head, reader: asyncio.StreamReader, method: str = "", size: int = PIECE) -> AsyncIterator[bytes]:
    """The body as it is on the wire, in pieces of at most `size` bytes; method: the request's, for an answer."""
    is_answer = head.method.startswith("HTTP/")
    if method == "HEAD" or (is_answer and head.status in (204, 304)):
        return
    if head.chunked:
        while True:
            line = await reader.readuntil(b"\r\n")
            length = int(line.split(b";")[0], 16)
            yield line + await reader.readexactly(length + 2)  # a trailer would end the connection; none is sent here
            if not length:
                return
    left = head.length
    if left is None and not is_answer:
        return
    while left is None or left > 0:
        piece = await reader.read(size if left is None else min(size, left))
        if not piece:
            if left is None:
                return
            raise EOFError(f"the body ended {left} bytes before its Content-Length")
        left = None if left is None else left - len(piece)
        yield piece
