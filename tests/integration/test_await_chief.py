"""Workers that start before their chief."""

from __future__ import annotations

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from deepfake_detector.core.topology import Cluster
from deepfake_detector.training.worker import POLL_SECONDS, await_chief


def test_a_worker_waits_until_the_chief_listens() -> None:
    """TensorFlow's own next try would come a second later."""
    with socket.socket() as chief, ThreadPoolExecutor(1) as pool:
        chief.bind(("127.0.0.1", 0))
        addresses = (f"127.0.0.1:{chief.getsockname()[1]}", "127.0.0.1:1")
        await_chief(Cluster(0, addresses))  # returns at once: it is the chief
        waiting = pool.submit(await_chief, Cluster(1, addresses))
        with pytest.raises(TimeoutError):
            waiting.result(timeout=3 * POLL_SECONDS)
        chief.listen()
        waiting.result(timeout=20)
