"""The adapters on the cluster of the current kubeconfig. Needs KUBECONFIG, kubectl, and rights to make namespaces."""

from __future__ import annotations

import os
import shutil
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from deepfake_detector.adapters.cluster import Cluster
from deepfake_detector.adapters.kubectl import apply, kubectl_version, kustomize
from deepfake_detector.cluster.deploy import to_yaml
from deepfake_detector.core.errors import ClusterError
from deepfake_detector.core.jobspec import Resources, fill, in_namespace, stage_job
from tests.e2e.namespace import ROOT, delete_namespace, fresh_name, kubeconfig_of, kubectl

pytestmark = pytest.mark.skipif(
    not os.environ.get("KUBECONFIG") or not shutil.which("kubectl"), reason="needs KUBECONFIG and kubectl"
)

OVERLAYS = ROOT / "k8s/overlays"
DEADLINE_SECONDS = 120.0
IMAGE = "busybox:1.35"  # the local overlay needs it, too
RUN = "gs://videos/runs/46"  # its hash is 971e7886, which YAML readers may take for a number


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """A fresh namespace, removed afterwards."""
    name = fresh_name()
    kubectl("create", "namespace", name)
    try:
        yield Cluster.connect(None, name)
    finally:
        delete_namespace(name)


def job(name: str, command: str, completions: int = 1) -> dict[str, Any]:
    container = {"name": "stage", "image": IMAGE, "command": ["sh", "-c", command]}
    pod = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 1, "containers": [container]}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": {"e2e": name}},
        "spec": {
            "completionMode": "Indexed",
            "completions": completions,
            "parallelism": completions,
            "template": {"metadata": {"labels": {"e2e": name}}, "spec": pod},
        },
    }


def until(cluster: Cluster, kind: Any, selector: str, what: Any) -> dict[str, Any]:
    """The first object for which `what` holds, by a watch."""
    stop = threading.Event()
    timer = threading.Timer(DEADLINE_SECONDS, stop.set)
    timer.start()
    try:
        for change, thing in cluster.watch(kind, selector, stop=stop):
            if what(change, thing):
                return thing
    finally:
        timer.cancel()
    raise AssertionError(f"{kind} {selector}: nothing in {DEADLINE_SECONDS:g} s: {cluster.events()}")


def test_versions(cluster):
    assert cluster.version() >= (1, 31)
    assert kubectl_version() >= (1, 21), "the first with kubectl kustomize as it is now"


def test_a_job_from_its_creation_to_its_deletion(cluster):
    wanted = job("hello", "echo from $JOB_COMPLETION_INDEX; test -e /never || sleep 1000", completions=2)
    assert cluster.create_job(wanted) is True
    assert cluster.create_job(wanted) is False
    before = cluster.requests
    running = until(cluster, "pods", "e2e=hello", lambda _, pod: pod["status"]["phase"] == "Running")
    assert cluster.requests - before == 2, "a list and a watch, however long it took"
    index = running["metadata"]["annotations"]["batch.kubernetes.io/job-completion-index"]
    lines = cluster.pod_log(running["metadata"]["name"], follow=True)
    assert next(lines) == f"from {index}"
    assert [each["metadata"]["name"] for each in cluster.jobs("e2e=hello")] == ["hello"]
    assert len(cluster.pods("e2e=hello")) == 2
    assert {"SuccessfulCreate", "Scheduled"} <= {event["reason"] for event in cluster.events()}
    cluster.delete_job("hello")
    assert cluster.get_job("hello") is None
    assert cluster.pods("e2e=hello") == [], "the foreground deletion takes the pods first"
    assert cluster.create_job(job("hello", "exit 0")) is True, "the name is free"


def test_the_end_of_a_job_is_seen(cluster):
    cluster.create_job(job("short", "exit 0"))
    until(
        cluster,
        "jobs",
        "e2e=short",
        lambda _, each: any(
            condition["type"] == "Complete" and condition["status"] == "True"
            for condition in each["status"].get("conditions", ())
        ),
    )


def test_the_log_of_a_pod_that_is_not_there(cluster):
    with pytest.raises(ClusterError, match=r'pods "nobody" not found'):
        list(cluster.pod_log("nobody"))


class Relay:
    """A way to the API server that can be cut, and is there again at once."""

    def __init__(self, host: str, port: int) -> None:
        self._to = (host, port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._ends: list[socket.socket] = []
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        for end in self._ends:
            with suppress(OSError):  # it has ended by itself
                end.shutdown(socket.SHUT_RDWR)
        self._ends.clear()

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):  # closed
            while True:
                near, far = self._listener.accept()[0], socket.create_connection(self._to)
                self._ends += [near, far]
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._copy, args=ends, daemon=True).start()

    def _copy(self, source: socket.socket, to: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                to.sendall(data)
            to.shutdown(socket.SHUT_WR)


@pytest.fixture
def relayed(cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Relay, Cluster]]:
    """The same namespace, by way of a relay."""
    from kubernetes.config import kube_config

    config = yaml.safe_load(kubectl("config", "view", "--raw", "--minify", "--flatten"))
    server = urlsplit(config["clusters"][0]["cluster"]["server"])
    relay = Relay(str(server.hostname), server.port or 443)
    config["clusters"][0]["cluster"] |= {
        "server": f"https://127.0.0.1:{relay.port}",
        "tls-server-name": server.hostname,
    }
    path = tmp_path / "kubeconfig"
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(config))
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    try:
        yield relay, Cluster.connect(None, cluster.namespace)
    finally:
        relay.close()


def test_a_followed_log_is_whole_though_its_connection_is_lost(cluster, relayed):
    relay, client = relayed
    cluster.create_job(job("talks", 'i=0; while [ $i -lt 40 ]; do echo "line $i"; i=$((i+1)); sleep 0.1; done'))
    talks = until(cluster, "pods", "e2e=talks", lambda _, pod: pod["status"]["phase"] == "Running")
    ended = threading.Event()
    lines = []
    for line in client.pod_log(talks["metadata"]["name"], follow=True, ended=ended):
        lines.append(line)
        if len(lines) in (5, 15):
            relay.cut()
        if len(lines) == 40:
            ended.set()
    assert lines == [f"line {number}" for number in range(40)]
    assert client.requests >= 3


def test_a_namespace_that_is_not_there():
    other = Cluster.connect(None, fresh_name())
    assert other.pods() == []
    with pytest.raises(ClusterError, match=rf"no such namespace: make deploy .*NAMESPACE={other.namespace}"):
        other.create_job(job("x", "exit 0"))


def test_a_user_without_permissions_is_told_which(cluster, tmp_path, monkeypatch):
    from kubernetes.config import kube_config

    kubectl("-n", cluster.namespace, "create", "serviceaccount", "nobody")
    path = kubeconfig_of("nobody", cluster.namespace, tmp_path)
    monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(path))
    nobody = Cluster.connect(None, cluster.namespace)
    assert not nobody.can("create", "jobs", "batch")
    assert cluster.can("create", "jobs", "batch")
    assert nobody.nodes() is None
    assert nobody.all_pods() is None
    with pytest.raises(
        ClusterError, match=r"user \S+:nobody may not create jobs\.batch: expected the Role 'submitter'"
    ):
        nobody.create_job(job("x", "exit 0"))
    with pytest.raises(ClusterError, match=r"may not list pods"):
        next(nobody.watch("pods"))


@pytest.mark.parametrize("overlay", ["local", "gke"])
def test_the_server_admits_what_the_overlays_render(cluster, overlay):
    """Under Pod Security `restricted`, and the Jobs as submit fills them in; nothing of it is stored."""
    name = fresh_name()
    objects = in_namespace(kustomize(OVERLAYS / overlay), name)
    kubectl("create", "namespace", name)  # a dry run can't put anything into a namespace that is only planned
    try:
        there = Cluster.connect(None, name)
        apply([thing for thing in objects if thing["kind"] == "Namespace"], there.context, name)
        for stage, completions in (("preprocess", 16), ("train", 2), ("export", 1)):
            filled = fill(
                stage_job(objects, stage, overlay),
                stage=stage,
                run_uri=RUN,
                namespace=name,
                image="deepfake-detector:dev",
                completions=completions,
                parallelism=completions,
                settings_fingerprint="f" * 64,
                resources=Resources(limits={"cpu": "1", "memory": "300Mi"}),
            )
            assert there.create_job(filled, dry_run=True) is True
            kubectl("create", "--dry-run=server", "--filename", "-", given=to_yaml([filled]))  # as DRY_RUN=1 prints it
        assert there.jobs() == []
    finally:
        delete_namespace(name)
