"""The bytes of one object of a bucket, over connections that may break.

The library's own downloads start from the beginning when retries wrap them, and its retries within a download leave
the checksum unchecked (google/cloud/storage/_media/requests/download.py: "Don't validate the checksum for partial
responses"). Nor does it notice a connection that delivers a byte now and then: the timeout of a socket starts anew
with each. The request itself is the documented one (cloud.google.com/storage/docs/json_api/v1/objects/get).
"""

from __future__ import annotations

import base64
import re
import time
from collections.abc import Callable
from typing import BinaryIO
from urllib.parse import quote

import google_crc32c
import requests
import urllib3
from google.api_core import exceptions as api
from google.cloud.storage.exceptions import DataCorruption

LEAST_BYTES = 256 << 10  # in `seconds`, or the connection is dropped: 4 kB/s by default
_PIECE = 256 << 10
_BROKEN = (requests.RequestException, urllib3.exceptions.HTTPError, ConnectionError)


class Download:
    """One object on its way into an empty file; what has arrived stays there when a connection breaks.

    endpoint: "https://storage.googleapis.com". seconds: most time without a byte, and for `LEAST_BYTES`. The stored
    bytes are taken as they are: one that was stored compressed is not decompressed. require_room: is told the size
    before anything is written, and may raise.
    """

    def __init__(
        self,
        session: requests.Session,
        endpoint: str,
        bucket: str,
        name: str,
        file: BinaryIO,
        seconds: float,
        require_room: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._session = session
        self._url = f"{endpoint}/download/storage/v1/b/{quote(bucket, safe='')}/o/{quote(name, safe='~')}"
        self._file = file
        self._seconds = seconds
        self._require_room = require_room
        self._generation: str | None = None
        self._expected: bytes | None = None
        self._total: int | None = None
        self._forget()

    def go_on(self) -> Exception | None:
        """Ask for what is missing, of the same generation; None when all is there and agrees with its CRC-32C.

        Returns the error where the connection broke after at least `LEAST_BYTES`, which is worth asking again at
        once. Raises the library's errors, those of requests and urllib3, DataCorruption, and OSError of the file.
        """
        before = self._size
        try:
            if self._total is None or self._size < self._total:
                self._request()
        except _BROKEN as error:
            if self._size - before < LEAST_BYTES:
                raise
            return error
        found = self._sum.digest()
        if self._expected in (None, found):
            return None
        message = f"CRC-32C is {found.hex()}: expected {self._expected.hex()} ({self._size} bytes)"
        self._forget()
        if before:  # of more than one request: an emulator that ignores the generation may have mixed two objects
            raise ConnectionError(message)
        raise DataCorruption(None, message)

    def _request(self) -> None:
        query = {"alt": "media"}
        headers = {
            "Accept-Encoding": "gzip"
        }  # with it nothing is decompressed on the way, which would ignore the range
        if self._size:
            headers["Range"] = f"bytes={self._size}-"
            if self._generation:
                query["generation"] = self._generation
        with self._session.get(
            self._url, params=query, headers=headers, stream=True, timeout=self._seconds
        ) as response:
            if self._size and response.status_code in (404, 416):
                self._forget()
                raise ConnectionError(f"the object was replaced while it was read ({response.status_code})")
            if response.status_code not in (200, 206):
                raise api.from_http_response(response)
            if response.status_code == 200:
                self._forget()
                self._begin(response)
            self._receive(response.raw)

    def _begin(self, response: requests.Response) -> None:
        self._generation = response.headers.get("X-Goog-Generation")
        found = re.search(r"crc32c=([\w+/]+=*)", response.headers.get("X-Goog-Hash", ""))
        self._expected = base64.b64decode(found[1]) if found else None
        length = response.headers.get("Content-Length")
        self._total = int(length) if length else None
        self._require_room(self._total or 0)

    def _receive(self, raw: urllib3.BaseHTTPResponse) -> None:
        since, mark = time.monotonic(), self._size
        while data := raw.read1(_PIECE, decode_content=False):
            self._file.write(data)
            self._sum.update(data)
            self._size += len(data)
            if (now := time.monotonic()) - since > self._seconds:
                if self._size - mark < LEAST_BYTES:
                    raise ConnectionError(
                        f"{self._size - mark} bytes in {now - since:.0f} s: expected at least {LEAST_BYTES}"
                    )
                since, mark = now, self._size

    def _forget(self) -> None:
        """Start again from the beginning."""
        self._file.seek(0)
        self._file.truncate()
        self._size = 0
        self._sum = google_crc32c.Checksum()
        self._generation = self._expected = self._total = None
