"""doctor, upload, logs, stop and clean as a user calls them, in a namespace of their own.

Needs KUBECONFIG, kubectl, rights to make namespaces, and no image but those that the local overlay needs anyway.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deepfake_detector.adapters.cluster import Cluster
from deepfake_detector.adapters.storage import open_storage
from deepfake_detector.cluster.emulator import VARIABLE, storage_access
from deepfake_detector.core import layout
from deepfake_detector.core.jobspec import run_hash
from tests.e2e.namespace import delete_namespace, fresh_name, kubeconfig_of, kubectl

pytestmark = pytest.mark.skipif(
    not os.environ.get("KUBECONFIG") or not shutil.which("kubectl"), reason="needs KUBECONFIG and kubectl"
)

IMAGE = "busybox:1.35"
RUN = "gs://videos/runs/tools"
SECONDS = 180


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A fresh namespace with what `deploy` applies, removed afterwards."""
    name = fresh_name()
    cluster = Cluster.connect(None, name)
    try:
        result = detector(cluster, "deploy")
        assert result.returncode == 0, result.stderr
        yield cluster
    finally:
        delete_namespace(name)


def detector(cluster: Cluster, *arguments: str, answer: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "deepfake_detector", *arguments, "--namespace", cluster.namespace]
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
    return subprocess.run(
        command, input=answer, capture_output=True, text=True, timeout=SECONDS, check=False, env=environment
    )


def job(stage: str, script: str) -> dict[str, Any]:
    """A Job of the run that looks like a stage's, as far as these commands are concerned."""
    labels = {
        "app.kubernetes.io/name": "deepfake-detector",
        "app.kubernetes.io/component": stage,
        "deepfake-detector/run": run_hash(RUN),
    }
    container = {
        "name": "stage",
        "image": IMAGE,
        "command": ["sh", "-c", script],
        "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}, "limits": {"cpu": "100m", "memory": "32Mi"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    security = {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 5,
        "securityContext": security,
        "containers": [container],
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"{stage}-tools-{run_hash(RUN)}", "labels": labels},
        "spec": {
            "completionMode": "Indexed",
            "completions": 1,
            "parallelism": 1,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def started(cluster: Cluster, name: str) -> None:
    selector = f"-lbatch.kubernetes.io/job-name={name}"
    kubectl("wait", "--namespace", cluster.namespace, "pod", "--for=condition=Ready", selector, "--timeout=60s")


def test_doctor_finds_all_well(cluster: Cluster) -> None:
    result = detector(cluster, "doctor", "--run", RUN, "--image", IMAGE, "--workers", "1")
    lines = {line.split()[1]: line.split()[0] for line in result.stdout.splitlines()}
    assert result.returncode == 0, result.stdout + result.stderr
    assert lines == dict.fromkeys(["kubectl", "server", "deployed", "permissions", "bucket", "image", "room"], "ok"), (
        result.stdout
    )
    with storage_access(cluster, "local"):
        assert list(open_storage("gs://videos/runs").list()) == []  # nothing is left of the check


def test_doctor_names_what_is_missing(cluster: Cluster) -> None:
    result = detector(
        cluster, "doctor", "--run", "gs://no-such-bucket-here/run", "--image", "absent:1", "--workers", "100000"
    )
    assert result.returncode == 78
    assert "FAILS  bucket       gs://no-such-bucket-here: no such bucket" in result.stdout
    assert "waits  image        absent:1: on none of " in result.stdout
    assert " of 100000 pods of cpu " in result.stdout
    assert result.stdout.count("remedy: ") == 3


def test_doctor_as_an_account_that_may_do_nothing(cluster: Cluster, tmp_path: Path) -> None:
    """And with the Role `submitter` only: enough for all but looking at nodes."""
    for account, status, says in [("stages", 78, "FAILS  deployed"), ("submitter", 0, "unknown, you may not list")]:
        environment = {**os.environ, "KUBECONFIG": str(kubeconfig_of(account, cluster.namespace, tmp_path))}
        command = [sys.executable, "-m", "deepfake_detector", "doctor", "--namespace", cluster.namespace]
        command += ["--run", RUN, "--image", IMAGE, "--workers", "1"]
        result = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False, env=environment)
        assert result.returncode == status, result.stdout + result.stderr
        assert says in result.stdout


def test_upload_survives_the_loss_of_the_store_and_sends_once(cluster: Cluster, tmp_path: Path) -> None:
    for name in ("real/a clip.mp4", "fake/漢字.mp4", "fake/empty.mp4"):
        path = tmp_path / "set" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 1000 if "empty" not in name else b"")
    arguments = ["upload", "--videos", str(tmp_path / "set"), "--to", "gs://videos/tools"]
    first, second = detector(cluster, *arguments), detector(cluster, *arguments)
    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "sent 3 files" in first.stdout
    assert "sent 0 files, 0.0 MB; 3 were there already" in second.stdout
    with storage_access(cluster, "local"):
        bucket = open_storage("gs://videos/tools")
        assert bucket.read("real/a clip.mp4") == b"real/a clip.mp4" * 1000
        # The port-forward dies with its pod; the same address leads to the next one, whose disk is empty.
        kubectl("delete", "pod", "--namespace", cluster.namespace, "-lapp.kubernetes.io/component=object-store")
        assert list(bucket.list()) == []
        assert bucket.create("again", b"1")
    third = detector(cluster, *arguments)
    assert "sent 3 files" in third.stdout, third.stderr


def test_logs_stop_and_clean(cluster: Cluster) -> None:
    with storage_access(cluster, "local"):
        run = open_storage(RUN)
        document = {"given": {"videos": "gs://videos/tools"}, "resolved": {}, "records": ""}
        run.write(layout.CONFIG, json.dumps(document).encode())
        run.write(layout.log("preprocess", 3, 1), b"shard three\n")
        open_storage("gs://videos/tools").write("kept.mp4", b"1")
    long = job("train", "echo first step; trap 'exit 143' TERM; while :; do sleep 1; done")
    assert cluster.create_job(long)
    started(cluster, long["metadata"]["name"])

    logs = detector(cluster, "logs", "--run", RUN)
    assert logs.returncode == 0, logs.stderr
    assert "== logs/preprocess/3/00001.log\nshard three\n" in logs.stdout
    assert ": worker 0 runs on " in logs.stdout
    assert logs.stdout.endswith("\nfirst step\n")
    missing = detector(cluster, "logs", "--run", RUN, "--stage", "export")
    assert missing.returncode == 78
    assert "expected one of preprocess 3; train 0" in missing.stderr

    refused = detector(cluster, "clean", "--run", RUN, "--data", "--yes")
    assert refused.returncode == 78
    assert f"{long['metadata']['name']} at work: expected none (make stop RUN={RUN} ends it)" in refused.stderr

    stopped = detector(cluster, "stop", "--run", RUN)
    assert stopped.returncode == 0, stopped.stderr
    assert f"the same make train RUN={RUN} goes on from there" in stopped.stdout
    assert cluster.jobs() == cluster.pods(f"deepfake-detector/run={run_hash(RUN)}") == []

    short = job("export", "echo exported")
    assert cluster.create_job(short)
    followed = detector(cluster, "logs", "--run", RUN, "--stage", "export", "--follow")
    assert followed.returncode == 0, followed.stderr
    assert "exported" in followed.stdout

    other = detector(cluster, "clean", "--run", RUN, "--data", answer="yes\n")
    assert other.returncode == 78
    assert "nothing was removed: expected the run's name, 'tools'" in other.stderr
    assert [each["metadata"]["name"] for each in cluster.jobs()] == [short["metadata"]["name"]]
    cleaned = detector(cluster, "clean", "--run", RUN, "--data", answer="tools\n")
    assert cleaned.returncode == 0, cleaned.stderr
    assert f"{RUN} consists of 2 objects" in cleaned.stdout
    assert cluster.jobs() == []
    with storage_access(cluster, "local"):
        assert list(open_storage(RUN).list()) == []
        assert open_storage("gs://videos/tools").read("kept.mp4") == b"1"
