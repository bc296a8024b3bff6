"""Submissions against an API server and a bucket, both behind real sockets; no pod ever runs."""

from __future__ import annotations

import json
import shutil
from typing import Any

import pytest

from deepfake_detector.adapters.storage import Storage
from deepfake_detector.cli import main
from deepfake_detector.core import layout
from deepfake_detector.stages.runs import load_config
from tests.integration.api_server import ApiServer
from tests.integration.gcs_server import available
from tests.make_markers import detector_manifest, records_summary, trained_marker

NEEDS = [
    pytest.mark.gcs,
    pytest.mark.skipif(not available(), reason="needs a fake-gcs-server binary or a Go toolchain"),
    pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl"),
]

RUN, VIDEOS, IMAGE = "gs://bucket/runs/one", "gs://bucket/videos", "registry.example/detector:1"
PREPROCESS = ["submit", "preprocess", "--run", RUN, "--recipe", "demo", "--videos", VIDEOS]
TRAIN = ["submit", "train", "--run", RUN]
EXPORT = ["submit", "export", "--run", RUN]


def command(*arguments: str, image: str = IMAGE) -> list[str]:
    return [*arguments, "--overlay", "gke", "--namespace", "mine", "--image", image, "--detach"]


def submit(*arguments: str, image: str = IMAGE) -> int:
    return main(command(*arguments, image=image))


def created(server: ApiServer) -> dict[str, Any]:
    (job,) = server.listed("jobs", {})
    return job


def environment(job: dict[str, Any]) -> dict[str, str]:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return {each["name"]: each["value"] for each in container["env"] if "value" in each}


def writes(server: ApiServer) -> list[str]:
    """Requests that would change something in the cluster."""
    return [line for line in server.requests if not line.startswith("GET ") and "accessreviews" not in line]


def errors_of(text: str) -> list[str]:
    """Error lines on stderr, beside those of checks that found something."""
    return [line for line in text.splitlines() if line.startswith("error: ")]


def finish_preprocessing(run: Storage, lost_fraction: float = 0.0) -> None:
    run.write(layout.RECORDS_SUMMARY, records_summary(load_config(run), lost_fraction=lost_fraction).encode())


def finish_training(run: Storage) -> None:
    run.write(layout.TRAINED, trained_marker(load_config(run), records=run.uri).encode())


def finish_export(run: Storage) -> None:
    test = {"videos": 4, "real": 2, "fake": 2, "auc": 0.75, "equal_error_rate": 0.25, "accuracy": 0.5}
    test |= {"log_loss_balanced": None, "reasons": {"log_loss_balanced": "one class"}}
    run.write(layout.REPORT_METRICS, json.dumps({"test": {"all": test}}).encode())
    run.write(layout.DETECTOR, detector_manifest(load_config(run)).encode())


def preprocessed(run: Storage, server: ApiServer) -> None:
    """A run whose preprocessing is finished, and its Job gone."""
    assert submit(*PREPROCESS) == 0
    finish_preprocessing(run)
    server.remove("jobs", created(server)["metadata"]["name"])
    server.requests.clear()
