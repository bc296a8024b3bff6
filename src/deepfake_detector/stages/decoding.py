"""What one decoding process does: a video after another, under a cap of memory, until its parent or its pipe is gone.

Nothing here imports TensorFlow.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import resource
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

from deepfake_detector.core.config import Config
from deepfake_detector.core.errors import ConfigError, DetectorError
from deepfake_detector.core.extraction import Extraction
from deepfake_detector.core.outcomes import Outcome

Extract = Callable[[Path, Config], Extraction]

WORKING_MB = 128  # for the frames of a small video
CODE_MB = 20  # of the libraries, not resident before the first video; 8 to 12 were measured
CHUNK = 8192  # bytes; one write to a pipe, which is there as a whole or not at all
PR_SET_PDEATHSIG = 1
NOT_YET = object()


def serve(connection: Connection, parent: int, config: Config, extract: Extract | None) -> None:
    """A decoding process: None once ready, then an Extraction for each path, until the pipe closes."""
    _die_with(parent)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group: the parent decides
    try:
        from deepfake_detector.stages import extract as stage

        work = extract or stage.extract
        stage.warm_up(config)
        _limit_memory(config.operations.video_memory_mb)
    except DetectorError as error:
        _send(connection, error)
        return
    _send(connection, None)
    while True:
        try:
            path = connection.recv()
        except EOFError:
            return
        try:
            answer: Extraction | DetectorError | str = work(path, config)
        except MemoryError:
            answer = Extraction(outcome=Outcome.OUT_OF_MEMORY)
        except DetectorError as error:
            answer = error
        except Exception as error:
            traceback.print_exc()
            answer = f"{type(error).__name__}: {error}"
        if isinstance(answer, Extraction) and answer.outcome is Outcome.OUT_OF_MEMORY:
            limit = f"operations.video_memory_mb={config.operations.video_memory_mb}"
            answer = replace(answer, detail=f"{answer.detail} ({limit})".strip())
        _send(connection, answer)


def _send(connection: Connection, message: object) -> None:
    """In pieces, of which an empty one is the end: see `receive`."""
    data = pickle.dumps(message)
    for start in range(0, len(data), CHUNK):
        connection.send_bytes(data[start : start + CHUNK])
    connection.send_bytes(b"")


def receive(connection: Connection, received: bytearray) -> object:
    """The parent's half of `_send`: the next message, or NOT_YET; `received` keeps what there is of it.

    Never waits for the rest, since a process may be stopped in mid-answer. What is no message is told as a crash is, in
    words. Raises EOFError, OSError.
    """
    while connection.poll():
        chunk = connection.recv_bytes()
        if not chunk:
            message = bytes(received)
            received.clear()
            try:
                return pickle.loads(message)
            except Exception as error:  # any, the documentation of pickle says
                return f"garbled answer ({type(error).__name__}: {error})"
        received += chunk
    return NOT_YET


def _die_with(parent: int) -> None:
    """Be killed when the parent is, even by SIGKILL (Linux; elsewhere the closed pipe ends an idle process)."""
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def _limit_memory(megabytes: int) -> None:
    """Cap what the process may write to, so that a hostile video meets MemoryError and not the pod's OOM killer.

    Counted from here on, when the libraries are loaded: to `megabytes` of resident memory there is left what is not
    resident yet. RLIMIT_DATA counts what is private and writable (since Linux 4.7, getrlimit(2)), so, unlike the
    address space of RLIMIT_AS, neither libraries nor address space that is only reserved. Raises ConfigError when less
    than WORKING_MB is left.
    """
    if sys.platform != "linux":  # macOS enforces no such limit
        return
    # proc_pid_statm(5): size, resident, shared, text, lib, data; in pages
    pages = [int(field) for field in Path("/proc/self/statm").read_text().split()]
    resident, data = (pages[field] * resource.getpagesize() for field in (1, 5))
    least = resident // 2**20 + CODE_MB + WORKING_MB
    if megabytes < least:
        raise ConfigError(f"operations.video_memory_mb={megabytes}: expected at least {least}")
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = data + (megabytes - CODE_MB) * 2**20 - resident
    resource.setrlimit(resource.RLIMIT_DATA, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
