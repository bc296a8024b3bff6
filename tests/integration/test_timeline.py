"""A supervisor and its worker, as a pod runs them, tell where the time to the first step went."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from deepfake_detector.adapters.storage import open_storage
from deepfake_detector.core.timeline import steps, table
from deepfake_detector.display import TrainDisplay
from tests.integration.director import ROOT, free_port
from tests.make_records import make_run, tiny


def test_the_first_attempt_tells_its_moments_in_order(tmp_path: Path) -> None:
    run = open_storage(make_run(tmp_path / "run", tiny(train__epochs=1), {"train": (4, 4), "validation": (2, 2)}))
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "RUN": run.uri,
        "JOB_COMPLETION_INDEX": "0",
        "PEERS": f"127.0.0.1:{free_port()}",
        "TF_BASE_PORT": str(free_port()),
        "SCRATCH": str(tmp_path / "scratch"),
    }
    with TrainDisplay(run) as display, (tmp_path / "log").open("wb") as log:
        begun = time.time()
        with subprocess.Popen([sys.executable, "-m", "jobs.train"], env=environment, stdout=log, stderr=log) as pod:
            while not display.timeline:
                display.look()
                with suppress(subprocess.TimeoutExpired):
                    assert pod.wait(0.2) is None, (tmp_path / "log").read_text()
            ended = time.time()
            pod.terminate()
    moments = list(display.timeline.items())
    assert [name for name, _ in moments] == [
        "process",
        "supervisor",
        "child",
        "prepared",
        "imported",
        "strategy",
        "staged",
        "agreed",
        "model",
        "resumed",
        "built",
        "first_step",
    ]
    times = [moment for _, moment in moments]
    assert times == sorted(times)
    assert begun - 0.1 <= times[0] <= times[-1] <= ended, "a process' start is known to a tick"
    assert sum(step.seconds for step in steps(display.timeline)) <= ended - begun + 0.1
    assert "x the" in table(display.timeline)[-1]
    print("\n".join(table(display.timeline)))
