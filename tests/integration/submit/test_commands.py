"""The commands around a submission."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading

import pytest
import yaml

from deepfake_detector.adapters import kube_api
from deepfake_detector.cli import main
from deepfake_detector.core import layout
from deepfake_detector.core.errors import EXIT_PERMANENT, EXIT_RETRY
from deepfake_detector.core.jobspec import run_hash
from tests.integration.submit.driver import NEEDS, PREPROCESS, RUN, command, created, errors_of, submit

pytestmark = NEEDS


def test_an_overlay_that_is_not_there(server, capsys):
    assert main(["deploy", "--overlay", "aws"]) == EXIT_PERMANENT
    assert "--overlay aws: expected one of gke, local" in capsys.readouterr().err


def test_a_refusal_of_kubectl_is_one_line(server, capsys):
    assert main(["deploy", "--overlay", "gke", "--namespace", "mine"]) == EXIT_PERMANENT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: kubectl apply (context test, namespace mine): ")


def test_deploy_as_a_dry_run_has_no_jobs_and_the_chosen_namespace(server, capsys):
    assert main(["deploy", "--overlay", "local", "--namespace", "mine", "--dry-run"]) == 0
    objects = list(yaml.safe_load_all(capsys.readouterr().out))
    kinds = {thing["kind"] for thing in objects}
    assert {"Namespace", "Service", "Role", "RoleBinding", "Deployment"} <= kinds
    assert "Job" not in kinds
    assert {thing["metadata"].get("namespace", thing["metadata"]["name"]) for thing in objects} == {"mine"}


def test_a_reader_that_goes_after_the_first_line(run, server):
    """`make preprocess | head -1`: the Job is there by then, but nobody has seen what becomes of it."""
    is_gone = threading.Event()
    server.before_create = lambda _: is_gone.wait(60)
    reading, writing = os.pipe()
    process = subprocess.Popen(
        [sys.executable, "-m", "deepfake_detector", *command(*PREPROCESS)],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
    )
    os.close(writing)
    with open(reading) as lines:
        assert lines.readline().startswith("context test, namespace mine")
    is_gone.set()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 141
    assert errors_of(errors) == []
    assert "Broken" not in errors
    assert created(server)["metadata"]["name"].startswith("preprocess-one-")


@pytest.mark.parametrize("missing", ["run", "bucket"])
def test_status_tells_of_the_pods_where_the_run_can_not_be_read(run, server, capsys, missing):
    assert submit(*PREPROCESS) == 0
    job = created(server)
    name, uid = job["metadata"]["name"], job["metadata"]["uid"]
    uri = RUN
    if missing == "bucket":
        uri = "gs://no-such-bucket/run"
        labels = {"deepfake-detector/run": run_hash(uri), "app.kubernetes.io/component": "preprocess"}
        server.put("jobs", name, **{**job, "metadata": {**job["metadata"], "labels": labels}})
    else:
        run.delete(layout.CONFIG)
    metadata = {
        "labels": created(server)["metadata"]["labels"],
        "annotations": {"batch.kubernetes.io/job-completion-index": "1"},
        "ownerReferences": [{"uid": uid}],
    }
    pending = {"phase": "Pending", "conditions": [{"type": "PodScheduled", "status": "True"}]}
    server.put("pods", f"{name}-1-abcde", metadata=metadata, spec={"containers": []}, status=pending)
    capsys.readouterr()
    with contextlib.redirect_stderr(sys.stdout):  # in the order in which a terminal shows them
        status = main(["status", "--run", uri, "--cluster", "--overlay", "gke", "--namespace", "mine"])
    lines = capsys.readouterr().out.splitlines()
    assert status == EXIT_PERMANENT
    assert lines[0] == "cluster   context test, namespace mine"
    assert lines[1].startswith(f"          job {name}: at work; 0 of 2 shards done")
    assert lines[2].startswith("            shard 1: ")
    says = "no such bucket" if missing == "bucket" else f"{uri}/config.json: not found"
    assert lines[-1].startswith("error: ")
    assert says in lines[-1]


def test_status_tells_of_both_that_can_not_be_read(run, server, capsys, monkeypatch):
    monkeypatch.setattr(kube_api, "RETRY_SECONDS", (0.01, 0.01))
    server.close()
    arguments = ["status", "--run", RUN, "--cluster", "--overlay", "gke", "--namespace", "mine"]
    assert main(arguments) == EXIT_RETRY
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith(f"error: {RUN}/config.json: not found")
    assert second.startswith("error: context test: ")


def test_debug_shows_where_each_of_both_failed(run, server, capsys, monkeypatch):
    monkeypatch.setattr(kube_api, "RETRY_SECONDS", (0.01, 0.01))
    server.close()
    arguments = ["status", "--run", RUN, "--cluster", "--overlay", "gke", "--namespace", "mine", "--debug"]
    assert main(arguments) == EXIT_RETRY
    said = capsys.readouterr().err
    for error, message in (("NotFoundError", f"{RUN}/config.json: not found"), ("ClusterAwayError", "context test: ")):
        assert f"\ndeepfake_detector.core.errors.{error}: {message}" in said


def test_the_command_line_stays_light():
    code = (
        "import sys\n"
        "from deepfake_detector.cli import main\n"
        "try: main(['submit', 'train', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'kubernetes', 'yaml', 'urllib3', 'google.cloud', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
