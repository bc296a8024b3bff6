"""Every entrypoint, in a fresh interpreter, ends with 78 where config.json is not what its Job was created with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from deepfake_detector.adapters.storage import open_storage
from deepfake_detector.core import layout
from deepfake_detector.core.errors import EXIT_PERMANENT
from deepfake_detector.stages.prepare import prepare_run
from tests.integration.director import ROOT


@pytest.mark.parametrize(
    ("module", "stage"),
    [
        pytest.param("jobs.preprocess", "preprocess", id="preprocess"),
        pytest.param("jobs.train", "train", id="train"),
        pytest.param("jobs.train_worker", "train", id="a life of a worker in training"),
        pytest.param("jobs.export", "export", id="export"),
        pytest.param("jobs.export_model", "train", id="the export that ends a training"),
    ],
)
def test_changed_settings_are_not_worked_on(tmp_path: Path, module: str, stage: str) -> None:
    run, _ = prepare_run(str(tmp_path / "run"), recipe="demo", assignments=[], videos=str(tmp_path))
    message = tmp_path / "termination-log"
    environment = {
        "RUN": run.uri,
        "SETTINGS": f"{stage}:{'0' * 64}",
        "SCRATCH": str(tmp_path / "scratch"),
        "JOB_COMPLETION_INDEX": "0",
        "PEERS": "127.0.0.1:2220,127.0.0.1:2221",
        "TERMINATION_LOG": str(message),
    }
    (tmp_path / "scratch").mkdir()
    result = subprocess.run(
        [sys.executable, "-m", module],
        cwd=ROOT,
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == EXIT_PERMANENT, result.stderr
    line = result.stderr.splitlines()[-1]
    assert line.startswith(f"error: {run.uri}/{layout.CONFIG}: was changed after this Job was created: ")
    assert f" (make {stage} RUN={run.uri} begins again with those that are there now; " in line
    assert message.read_text() == line.removeprefix("error: ") + "\n"
    others = [entry.name for entry in open_storage(run.uri).list() if entry.name != layout.CONFIG]
    assert all(name.startswith("logs/") for name in others), others
