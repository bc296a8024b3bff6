"""What a real cluster's troubles look like to who follows a Job. Needs KUBECONFIG and kubectl, but no image of ours.

Every test has a Job of its own in one fresh namespace. Jobs keep the manifests' failure policy.
"""

from __future__ import annotations

import os
import secrets
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from deepfake_detector.adapters.cluster import Cluster
from deepfake_detector.adapters.kubectl import kustomize
from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.cluster.follow import follow
from deepfake_detector.cluster.status import pods_in_words
from deepfake_detector.core import layout
from deepfake_detector.core.config import Config
from deepfake_detector.core.errors import EXIT_OK, EXIT_PERMANENT, EXIT_RETRY
from deepfake_detector.core.jobspec import Resources, fill, stage_job
from deepfake_detector.display import Display
from tests.e2e.namespace import ROOT, delete_namespace, fresh_name, kubectl

pytestmark = pytest.mark.skipif(
    not os.environ.get("KUBECONFIG") or not shutil.which("kubectl"), reason="needs KUBECONFIG and kubectl"
)

LOCAL = ROOT / "k8s/overlays/local"
BUCKET_KEY = ROOT / "tests/manifests/bucket-key"
IMAGE = "busybox:1.35"  # the local overlay needs it, too
SECONDS = 120.0
SMALL = {"cpu": "10m", "memory": "8Mi"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A fresh namespace that holds to Pod Security "restricted", with what a stage's pods need."""
    name = fresh_name()
    kubectl("create", "namespace", name)
    try:
        kubectl("label", "namespace", name, "pod-security.kubernetes.io/enforce=restricted")
        kubectl("--namespace", name, "create", "serviceaccount", "stages")
        kubectl("--namespace", name, "create", "configmap", "settings")
        yield Cluster.connect(None, name)
    finally:
        delete_namespace(name)


class Followed:
    """A Job that is followed in a thread, as `deepfake-detector submit` does."""

    def __init__(self, status: Future[int], lines: list[str], changed: threading.Condition) -> None:
        self._status, self._lines, self._changed = status, lines, changed

    def hears(self, text: str) -> str:
        """The first line with this text."""
        with self._changed:
            self._changed.wait_for(lambda: any(text in line for line in self._lines) or self._status.done(), SECONDS)
            found = [line for line in self._lines if text in line]
        assert found, f"no line with {text!r}: {self._lines}"
        return found[0].strip()

    def end(self) -> int:
        return self._status.result(SECONDS)


Begin = Callable[..., Followed]


@pytest.fixture
def begin(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Begin]:
    """Creates a Job out of the local overlay's template with another command, and follows it."""
    lines: list[str] = []
    changed = threading.Condition()

    def hear(_: Display, line: str) -> None:
        with changed:
            lines.append(line)
            changed.notify_all()

    monkeypatch.setattr(Display, "say", hear)
    created: list[str] = []
    with ThreadPoolExecutor(1) as pool:

        def start(
            run: Storage, script: str, *, stage: str = "train", image: str = IMAGE, pods: int = 1, **change: Any
        ) -> Followed:
            job = job_of(cluster, run, script, stage, image, pods, **change)
            assert cluster.create_job(job)
            created.append(job["metadata"]["name"])
            status = pool.submit(follow, cluster, run, stage, created[-1], Config())  # type: ignore[arg-type]
            return Followed(status, lines, changed)

        yield start
        for name in created:
            cluster.delete_job(name)


def job_of(
    cluster: Cluster,
    run: Storage,
    script: str,
    stage: str,
    image: str,
    pods: int,
    *,
    requests: dict[str, str] | None = None,
    limits: dict[str, str] | None = None,
    deadline_seconds: int | None = None,
    source: Path = LOCAL,
) -> dict[str, Any]:
    """source: the kustomization to take the template from."""
    resources = Resources(requests=requests or SMALL, limits=limits or {"cpu": "100m", "memory": "32Mi"})
    job = fill(
        stage_job(kustomize(source), stage, str(source)),
        stage=stage,
        run_uri=run.uri,
        namespace=cluster.namespace,
        image=image,
        completions=pods,
        parallelism=pods,
        settings_fingerprint="",
        resources=resources,
    )
    spec = job["spec"]["template"]["spec"]
    spec["containers"][0]["command"] = ["sh", "-c", script]
    spec["terminationGracePeriodSeconds"] = 1
    job["spec"]["backoffLimit"] = 0
    if deadline_seconds:
        job["spec"]["activeDeadlineSeconds"] = deadline_seconds
    return job


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / f"run-{secrets.token_hex(4)}"))


def test_an_image_that_cannot_be_pulled_is_named(begin: Begin, cluster: Cluster, run: Storage) -> None:
    followed = begin(run, "true", image="registry.invalid/no-such:1")
    assert followed.hears("can't be pulled").startswith("worker 0: image registry.invalid/no-such:1 can't be pulled: ")
    assert "! worker 0: image registry.invalid/no-such:1 can't be pulled" in pods_in_words(cluster, run.uri)
    kubectl("--namespace", cluster.namespace, "delete", "jobs", "--all", "--wait=false")
    assert followed.end() == EXIT_RETRY


def test_a_pod_without_room_says_what_it_asked_and_what_is_free(begin: Begin, cluster: Cluster, run: Storage) -> None:
    huge = {"cpu": "4000", "memory": "8Mi"}
    followed = begin(run, "true", requests=huge, limits=huge, pods=2)
    line = followed.hears("pending for lack of cpu")
    assert "asked 4000, free " in line
    assert line.endswith("lower REQUESTS or the number of pods, or add a node")
    kubectl("--namespace", cluster.namespace, "delete", "jobs", "--all", "--wait=false")
    assert followed.end() == EXIT_RETRY


def test_a_pod_out_of_memory_says_limit_and_peak(
    begin: Begin, cluster: Cluster, run: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    script = "text=a; while true; do text=$text$text; done"
    followed = begin(run, script, limits={"cpu": "1", "memory": "16Mi"})
    assert "worker 0: OOMKilled: limit 16 MiB, and the peak reached it: raise the memory" in followed.hears("OOMKilled")
    assert followed.end() == EXIT_RETRY
    assert "OOMKilled: limit 16 MiB" in capsys.readouterr().err
    assert "! worker 0: OOMKilled: limit 16 MiB" in pods_in_words(cluster, run.uri)


def test_a_permanent_error_fails_the_job_with_its_line(
    begin: Begin, run: Storage, capsys: pytest.CaptureFixture[str]
) -> None:
    script = 'if [ "$JOB_COMPLETION_INDEX" = 1 ]; then echo "workers=0: expected 1" >/dev/termination-log; exit 78; fi'
    followed = begin(run, f"{script}; exec sleep 300", pods=2)
    assert followed.end() == EXIT_PERMANENT
    assert "has failed: worker 1: exit 78: workers=0: expected 1\n" in capsys.readouterr().err


def test_a_deadline_is_told(begin: Begin, run: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    assert begin(run, "exec sleep 300", deadline_seconds=1).end() == EXIT_RETRY
    assert "has failed: took longer than activeDeadlineSeconds=1\n" in capsys.readouterr().err


def test_a_quota_is_told(begin: Begin, cluster: Cluster, run: Storage) -> None:
    kubectl("--namespace", cluster.namespace, "create", "quota", "none", "--hard=pods=0")
    try:
        followed = begin(run, "true", stage="preprocess")
        assert "no more pods: exceeded quota: none, requested: pods=1" in followed.hears("exceeded quota")
    finally:
        kubectl("--namespace", cluster.namespace, "delete", "quota", "none")
        kubectl("--namespace", cluster.namespace, "delete", "jobs", "--all", "--wait=false")
    assert followed.end() == EXIT_RETRY


def test_missing_settings_are_told(begin: Begin, cluster: Cluster, run: Storage) -> None:
    kubectl("--namespace", cluster.namespace, "delete", "configmap", "settings")
    try:
        followed = begin(run, "true", stage="export")
        line = followed.hears("is missing")
        assert line == "export: configmap settings is missing: make deploy creates what pods need once"
    finally:
        kubectl("--namespace", cluster.namespace, "create", "configmap", "settings")
    # The kubelet tries again by itself, and the Job ends without the marker of an export.
    assert followed.end() == EXIT_RETRY


def test_the_bucket_key_is_awaited_and_readable(begin: Begin, cluster: Cluster, run: Storage) -> None:
    """Of k8s/components/bucket-key: a Secret that is not there is told; as soon as it is there the pod reads it."""
    run.write(layout.DETECTOR, b"{}")
    followed = begin(run, 'test "$(cat "$GOOGLE_APPLICATION_CREDENTIALS")" = secret', source=BUCKET_KEY)
    assert 'secret "bucket-key" not found: create it ' in followed.hears("waits for a volume")
    kubectl(
        *("--namespace", cluster.namespace, "create", "secret", "generic", "bucket-key"),
        "--from-literal=key.json=secret",
    )
    assert followed.end() == EXIT_OK


def test_a_job_is_followed_to_its_end_with_few_requests(begin: Begin, cluster: Cluster, run: Storage) -> None:
    before = cluster.requests
    run.write(layout.DETECTOR, b"{}")
    followed = begin(run, "true", pods=2)
    assert followed.end() == EXIT_OK
    assert cluster.requests - before <= 1 + 1 + 3 * 2, "create, look once, list and watch three kinds"
