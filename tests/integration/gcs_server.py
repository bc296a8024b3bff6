"""fake-gcs-server, an emulator of Google Cloud Storage, as a real process.

`python -m tests.integration.gcs_server` builds it if need be and prints its path.
"""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path

NAME = "fake-gcs-server"
VERSION = "v1.56.1"
BUILT = Path(__file__).parents[2] / ".cache" / f"{NAME}-{VERSION}" / NAME
START_SECONDS = 30.0


def available() -> bool:
    return BUILT.is_file() or bool(shutil.which(NAME) or shutil.which("go"))


@functools.cache
def binary() -> Path:
    """Path of the server; the first call on a machine builds it, in about two minutes, where only Go is there."""
    if on_path := shutil.which(NAME):
        return Path(on_path)
    if not BUILT.is_file():
        BUILT.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=BUILT.parent) as folder:
            command = ["go", "install", f"github.com/fsouza/{NAME}@{VERSION}"]
            print(f"building {NAME} {VERSION}, once: about two minutes", file=sys.__stderr__, flush=True)
            subprocess.run(command, env={**os.environ, "GOBIN": folder}, check=True)
            (Path(folder) / NAME).replace(BUILT)
    return BUILT


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@contextmanager
def serving(server: ThreadingHTTPServer) -> Iterator[None]:
    """A stand-in for a server at work, in a thread of its own."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


class GcsServer:
    """One server on a port of its own. folder: keeps objects over restarts; None keeps them in memory.

    public_port: where clients see it, for a proxy in between.
    """

    def __init__(self, log: Path, folder: Path | None = None, public_port: int | None = None) -> None:
        self.port = free_port()
        public = f"127.0.0.1:{public_port or self.port}"
        self.url = f"http://{public}"
        self._backend = (
            ["-backend", "filesystem", "-filesystem-root", str(folder)] if folder else ["-backend", "memory"]
        )
        self._public = ["-external-url", self.url, "-public-host", public]
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start and wait until it answers."""
        command = [str(binary()), "-scheme", "http", "-host", "127.0.0.1", "-port", str(self.port)]
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen([*command, *self._backend, *self._public], stdout=log, stderr=log)
        deadline = time.monotonic() + START_SECONDS
        while not self._healthy():
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                raise RuntimeError(f"{NAME} did not start: {self._log.read_text()[-2000:]}")
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL: no answer is finished."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Meanwhile connections are made, and nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def make_bucket(self, name: str) -> None:
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/storage/v1/b",
            data=json.dumps({"name": name}).encode(),
            headers={"Content-Type": "application/json"},
        )
        urllib.request.urlopen(request, timeout=10).close()

    def _healthy(self) -> bool:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{self.port}/_internal/healthcheck", timeout=5).close()
        except (urllib.error.URLError, ConnectionError):
            return False
        return True


if __name__ == "__main__":
    print(binary())
