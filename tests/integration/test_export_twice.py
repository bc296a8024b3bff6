"""Real processes that export one run at the same time, and one after them, from a bucket whose answers get lost."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepfake_detector.adapters.storage import open_storage
from deepfake_detector.core import layout
from deepfake_detector.core.markers import DetectorManifest, decode
from deepfake_detector.stages.pull import pull
from tests.integration.fault_proxy import RANDOM, Fault, faulty_server
from tests.integration.gcs_server import available
from tests.integration.trained_run import make_trained_run, usual_videos


def start(run: str, scratch: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "RUN": run, "SCRATCH": str(scratch)}
    return subprocess.Popen(
        [sys.executable, "-m", "jobs.export_model"], env=environment, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.gcs
def test_exports_at_the_same_time_and_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not available():
        pytest.skip("needs fake-gcs-server, or Go to build it")
    local, _ = make_trained_run(tmp_path / "run", usual_videos(2))
    with faulty_server(tmp_path / "server.log", rate=0.05, seed=3, kinds=RANDOM - {Fault.SILENCE}) as (server, proxy):
        server.make_bucket("bucket")
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        run = open_storage("gs://bucket/run")
        for entry in local.list():
            run.upload(Path(local.uri) / entry.name, entry.name)

        pair = [start(run.uri, tmp_path / f"scratch-{index}") for index in range(2)]
        errors = [process.communicate(timeout=240)[1] for process in pair]
        assert [process.returncode for process in pair] == [0, 0], errors
        first = run.read(layout.DETECTOR)
        reports = {entry.name: run.read(entry.name) for entry in run.list(layout.REPORT)}

        again = start(run.uri, tmp_path / "scratch-again")
        again.communicate(timeout=240)
        assert again.returncode == 0
        assert run.read(layout.DETECTOR) == first
        assert {entry.name: run.read(entry.name) for entry in run.list(layout.REPORT)} == reports

        manifest = decode(DetectorManifest, first, layout.DETECTOR)
        stored = {file.name: file for file in run.checksums(layout.MODEL)}
        assert {file.name: file for file in manifest.files} == {
            name: file for name, file in stored.items() if name != layout.DETECTOR
        }
        assert [entry.name for entry in run.list(layout.EXPORTS)] == [layout.export_choice(manifest.fingerprint)]
        pull(run.uri, tmp_path / "model")
        assert proxy.injected
