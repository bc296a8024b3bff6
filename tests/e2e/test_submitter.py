"""The Role `submitter` is enough for a person or CI: with a token of its account, and nothing else, after `deploy`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e.conftest import SETTINGS, VIDEOS
from tests.e2e.namespace import Namespace, kubectl, names

NAME = "runs/submitted"
RUN = f"gs://videos/{NAME}"
SECONDS = 300.0


@pytest.fixture
def submitter(namespace: Namespace) -> Namespace:
    """The deployed namespace, as the account sees it."""
    return namespace.as_account("submitter")


def test_from_doctor_to_clean(submitter: Namespace, videos: Path) -> None:
    doctor = submitter.run("doctor", "--run", RUN, "--image", submitter.image, "--workers", "2")
    assert "FAILS" not in doctor.text
    assert "unknown, you may not list nodes" in doctor.line("^ok +room|^ok +image")
    submitter.run("upload", "--videos", str(videos), "--to", VIDEOS)
    settings = ("--recipe", "demo", "--set", *SETTINGS)
    done = submitter.submit("preprocess", RUN, "--videos", VIDEOS, "--pods", "3", *settings).end(SECONDS)
    assert done.status == 0
    assert "preprocess: done" in done.text
    assert "shard 2: done" in done.text, "its pods were watched"
    status = submitter.run("status", "--run", RUN, "--overlay", "local", "--cluster")
    assert "complete; 3 of 3 shards done" in status.line("job preprocess-submitted-")
    logs = submitter.run("logs", "--run", RUN, "--stage", "preprocess", "--pod", "2")
    assert logs.line(r"^== logs/preprocess/2/00001\.log$")
    assert logs.line(r"^--- preprocess 2, pod preprocess-submitted-\w+-2-\w{5} on \S+: exit 0$")
    assert "== preprocess-" not in logs.text, "the pod, which is still there, has said no more"

    assert submitter.submit("train", RUN, "--workers", "2", "--detach").end(SECONDS).status == 0
    stopped = submitter.run("stop", "--run", RUN)
    assert stopped.text.startswith("stopped job train-submitted-")
    assert submitter.pods("train") == []

    submitter.run("clean", "--run", RUN, "--data", "--yes")
    assert submitter.objects("jobs") == []
    with submitter.bucket() as bucket:
        assert names(bucket, f"{NAME}/") == []


def test_it_may_do_no_more(submitter: Namespace) -> None:
    refused = submitter.run("deploy", status=78)
    assert "forbidden" in refused.line("^error: ")
    account = f"--as=system:serviceaccount:{submitter.name}:submitter"
    for verb, resource in (("create", "pods"), ("get", "secrets"), ("create", "pods/exec"), ("update", "configmaps")):
        assert _may(submitter, verb, resource, account) is False, (verb, resource)
    assert _may(submitter, "create", "jobs", account) is True


def _may(namespace: Namespace, verb: str, resource: str, account: str) -> bool:
    """By the API server's own word; kubectl's status is 1 for no."""
    name, _, subresource = resource.partition("/")
    arguments = ["auth", "can-i", verb, name, f"--subresource={subresource}", account, "--namespace", namespace.name]
    said = kubectl(*arguments, statuses=(0, 1)).strip()
    assert said in ("yes", "no"), said
    return said == "yes"
