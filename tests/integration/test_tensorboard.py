"""TensorBoard on a run in a folder and in a bucket: the real server, real event files."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from urllib.error import URLError

import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.cluster.tensorboard import refresh, tensorboard
from deepfake_detector.core import layout
from deepfake_detector.core.errors import NotFoundError
from tests.integration.gcs_server import free_port

DEADLINE = 60.0


class Events:
    """Scalars stored as training stores them: the whole event file anew after each epoch.

    TensorBoard's own EventFileWriter would import TensorFlow.
    """

    def __init__(self, run: Storage, path: Path) -> None:
        self._run, self._path = run, path
        self._write(Event(wall_time=0.0, file_version="brain.Event:2"))

    def add(self, step: int) -> None:
        value = Summary.Value(tag="validation_auc", simple_value=0.5)
        self._write(Event(wall_time=float(step), step=step, summary=Summary(value=[value])))
        self._run.upload(self._path, layout.TENSORBOARD + self._path.name)

    def _write(self, event: Event) -> None:
        with self._path.open("ab") as file:
            RecordWriter(file).write(event.SerializeToString())


def test_copy_grows_in_place(storage: Storage, tmp_path: Path) -> None:
    """TensorBoard keeps a file open: its inode must stay, and its bytes, too."""
    name = f"{layout.TENSORBOARD}events.1"
    copy = tmp_path / "copy/events.1"
    storage.write(name, b"one")
    storage.write(f"{layout.TENSORBOARD}events.0", b"")
    storage.write("logs/metrics.jsonl", b"not an event file")
    assert refresh(storage, copy.parent) == 2
    inode = copy.stat().st_ino
    with copy.open("rb") as reader:
        assert reader.read() == b"one"
        assert refresh(storage, copy.parent) == 0
        storage.write(name, b"one two")
        assert refresh(storage, copy.parent) == 1
        assert reader.read() == b" two"
    assert copy.stat().st_ino == inode
    assert sorted(path.name for path in copy.parent.iterdir()) == ["events.0", "events.1"]


def scalars(url: str) -> list[list[float]]:
    """[wall time, step, value] of validation_auc, of every run that TensorBoard found."""
    found = []
    with urllib.request.urlopen(f"{url}/data/plugin/scalars/tags", timeout=10) as answer:
        runs = json.load(answer)
    for run in runs:
        query = f"{url}/data/plugin/scalars/scalars?tag=validation_auc&run={urllib.request.quote(run)}"
        with urllib.request.urlopen(query, timeout=10) as answer:
            found += json.load(answer)
    return found


def steps_of(url: str, expected: list[int], process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + DEADLINE
    seen: list[int] = []
    while seen != expected:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, seen
        try:
            seen = sorted(int(step) for _, step, _ in scalars(url))
        except OSError:
            seen = []
        time.sleep(0.1)


def test_shows_epochs_as_they_come_and_ends_with_ctrl_c(tmp_path: Path) -> None:
    storage = open_storage(str(tmp_path / "run"))
    storage.write(layout.CONFIG, b"{}")
    port = free_port()
    events = Events(storage, tmp_path / "events.out.tfevents.1.host")
    events.add(10)
    code = f"""
import sys
from deepfake_detector.cluster.tensorboard import tensorboard
sys.exit(tensorboard({storage.uri!r}, port={port}, refresh_seconds=1))
"""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    try:
        steps_of(f"http://localhost:{port}", [10], process)
        events.add(20)
        steps_of(f"http://localhost:{port}", [10, 20], process)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=DEADLINE)
        assert process.returncode == 0
        assert f"http://localhost:{port} (Ctrl-C ends it)" in output
        with pytest.raises(URLError):
            urllib.request.urlopen(f"http://localhost:{port}", timeout=5)
    finally:
        process.kill()
        process.wait()


def test_no_run(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"config.json: not found, expected a run"):
        tensorboard(open_storage(str(tmp_path)).uri)
