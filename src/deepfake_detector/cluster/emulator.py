"""How the submitter's machine reaches the bucket: through a port-forward where the cluster has its own object store.

The one place outside jobs/ that changes the environment: google-cloud-storage learns of an emulator from
STORAGE_EMULATOR_HOST alone, and every storage that is opened meanwhile must find the same one.
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from deepfake_detector.cluster.target import overlay_folder
from deepfake_detector.core.errors import ClusterError
from deepfake_detector.supervisor.child import leashed

if TYPE_CHECKING:
    from deepfake_detector.adapters.cluster import Cluster

OVERLAY = "local"  # the one that brings an object store
VARIABLE = "STORAGE_EMULATOR_HOST"
SERVICE = "object-store"
PORT = 4443
READY_SECONDS = 30.0
_RESTART_SECONDS = 0.5  # a pod that was replaced takes longer; storage retries for minutes
_ANSWER_SECONDS = 5.0
_LOOK_SECONDS = 0.1
_FINAL = re.compile(
    r"\(NotFound\): (services|namespaces)|\(Forbidden\)|Unauthorized|context .* does not exist"
    r"|Unable to connect to the server|connection to the server .* was refused"
)
_NO_PROXY = "no_proxy"  # requests and urllib prefer it to NO_PROXY


@contextmanager
def storage_access(
    cluster: Cluster, overlay: str, *, service: str = SERVICE, ready_seconds: float = READY_SECONDS
) -> Iterator[None]:
    """gs:// URIs lead to the cluster's bucket while the block runs, from this process and what it starts.

    The overlay "local" keeps a `kubectl port-forward` to the Service `service` alive, on one local port throughout,
    and names it in STORAGE_EMULATOR_HOST. Nothing happens for other overlays, which use a real bucket, and where the
    user has set STORAGE_EMULATOR_HOST, whose emulator is used. Raises ConfigError for an unknown overlay, and
    ClusterError when nothing answers after `ready_seconds`, or at once where it can't: no such Service, no
    permission, no kubectl.
    """
    overlay_folder(overlay)
    if overlay != OVERLAY or os.environ.get(VARIABLE):
        yield
        return
    with PortForward(_kubectl(cluster), f"service/{service}", PORT) as forward:
        host = forward.wait_until_ready(ready_seconds)
        with _environment({VARIABLE: host, _NO_PROXY: _without_proxy()}):
            yield


class PortForward:
    """A `kubectl port-forward` that is started again when it ends, on the same local port; ends with the block.

    kubectl binds itself to one pod and gives up when that pod goes, or when the connection to the API server is
    lost. It also ends when this process is killed. kubectl: the command with its global options; target:
    "service/NAME" or "pod/NAME"; port: the target's.
    """

    def __init__(self, kubectl: Sequence[str], target: str, port: int) -> None:
        self._command = [*kubectl, "port-forward", "--address", "127.0.0.1", target]
        self._target_port = port
        self._changed = threading.Condition()
        self._local_port: int | None = None  # the kernel's choice the first time, so that nobody else has it
        self._process: subprocess.Popen[str] | None = None
        self._refused = ""  # why another start can't help
        self._ending = False
        self._said: deque[str] = deque(maxlen=5)
        self._keeper = threading.Thread(target=self._keep, name="port-forward", daemon=True)

    def __enter__(self) -> PortForward:
        self._keeper.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._ending = True
            self._changed.notify_all()
            if self._process is not None:
                self._process.terminate()
        self._keeper.join()

    def wait_until_ready(self, seconds: float) -> str:
        """The URL at which the target answers HTTP. Raises ClusterError with kubectl's last words."""
        deadline = time.monotonic() + seconds
        while not self._answers():
            with self._changed:
                if self._refused:
                    raise ClusterError(f"{self._shown()}: {self._refused} (remedy: make deploy OVERLAY=local)")
                if (left := deadline - time.monotonic()) <= 0:
                    said = self._said[-1] if self._said else "no answer (is its pod running?)"
                    raise ClusterError(f"{self._shown()}: {said}: expected an answer within {seconds:g} s")
                self._changed.wait(min(left, _LOOK_SECONDS))
        return self._url()

    def _url(self) -> str:
        return f"http://127.0.0.1:{self._local_port}"

    def _shown(self) -> str:
        return " ".join([*self._command, f":{self._target_port}"])

    def _answers(self) -> bool:
        """Whether an HTTP server is behind the port: any status will do."""
        if self._local_port is None:
            return False
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            opener.open(f"{self._url()}/", timeout=_ANSWER_SECONDS).close()
        except urllib.error.HTTPError as error:
            error.close()
        except (OSError, http.client.HTTPException):
            return False
        return True

    def _keep(self) -> None:
        while not self._ending:
            # This thread lives as long as the child may: the leash is tied to the thread that forks.
            if (process := self._start()) is None:
                return
            self._follow(process)
            with self._changed:
                self._changed.wait_for(lambda: self._ending, _RESTART_SECONDS)

    def _start(self) -> subprocess.Popen[str] | None:
        command = [*self._command, f"{self._local_port or ''}:{self._target_port}"]
        with self._changed:
            if self._ending:
                return None
            self._process = subprocess.Popen(
                leashed(command, signal.SIGTERM),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C is for this process, which may still write to the bucket
            )
            return self._process

    def _follow(self, process: subprocess.Popen[str]) -> None:
        """Read what kubectl says until it ends."""
        with process:
            for line in process.stdout or ():
                with self._changed:
                    if found := re.match(r"Forwarding from 127\.0\.0\.1:(\d+) ", line):
                        self._local_port = int(found[1])
                        self._changed.notify_all()
                    elif not line.startswith("Handling connection"):
                        self._said.append(line.strip())
        with self._changed:
            if self._local_port is None and self._said and _FINAL.search(self._said[-1]):
                self._refused = self._said[-1]
            self._changed.notify_all()


def _kubectl(cluster: Cluster) -> list[str]:
    if shutil.which("kubectl") is None:
        raise ClusterError(
            "kubectl: not found on PATH, expected it to reach the object store (kubernetes.io/docs/tasks/tools)"
        )
    return ["kubectl", "--context", cluster.context, "--namespace", cluster.namespace]


def _without_proxy() -> str:
    """The user's exceptions from HTTP_PROXY and this machine's own address."""
    given = os.environ.get(_NO_PROXY) or os.environ.get(_NO_PROXY.upper()) or ""
    return ",".join(filter(None, [given, "127.0.0.1"]))


@contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
