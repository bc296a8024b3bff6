"""Rendering, and waiting for what is deployed."""

from __future__ import annotations

import shutil
from typing import Any

import pytest

from deepfake_detector.adapters import kubectl
from deepfake_detector.cluster.deploy import await_ready, to_yaml
from deepfake_detector.core.errors import ClusterAwayError, ClusterError

TEXTS = (
    "yes",
    "y",
    "1e3",
    "12345e67",
    "0x1f",
    "+1",
    ".5",
    "1_0",
    "12:30",
    "2026-01-01",
    "~",
    "null",
    "",
    "two\nlines: é #",
)

needs_kubectl = pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl")


def deployment(ready: int, observed: int = 2) -> dict[str, Any]:
    """Generation 2, of which the controller has seen `observed`."""
    status = {"observedGeneration": observed, "updatedReplicas": ready, "availableReplicas": ready}
    return {"metadata": {"generation": 2}, "spec": {"replicas": 1}, "status": status}


def test_what_is_ready_is_not_waited_for(server, cluster, capsys):
    server.put("deployments", "object-store", **deployment(1))
    server.put("deployments", "other", **deployment(0))
    await_ready(cluster, ["object-store"])
    assert capsys.readouterr().out == "object-store is ready\n"


def test_nothing_to_wait_for_sends_no_request(server, cluster):
    await_ready(cluster, [])
    assert server.requests == []


@pytest.mark.parametrize(
    ("state", "pod", "says"),
    [
        pytest.param(deployment(0), {}, "its pods say nothing (kubectl --context test -n mine describe", id="no pod"),
        pytest.param(deployment(1, observed=1), {}, "not ready after 0.2 s", id="ready is the generation before"),
        pytest.param(
            deployment(0),
            {
                "containerStatuses": [
                    {"state": {"waiting": {"reason": "ImagePullBackOff", "message": "Back-off pulling image x:1"}}}
                ]
            },
            "ImagePullBackOff Back-off pulling image x:1",
            id="image",
        ),
        pytest.param(
            deployment(0),
            {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1"}]},
            "Unschedulable 0/1",
            id="no room",
        ),
    ],
)
def test_what_is_not_ready_in_time_says_why(server, cluster, state, pod, says):
    server.put("deployments", "object-store", **state)
    labels = {"app.kubernetes.io/component": "object-store"}
    server.put("pods", "object-store-1", metadata={"labels": labels}, status=pod)
    with pytest.raises(ClusterAwayError) as caught:
        await_ready(cluster, ["object-store"], budget_seconds=0.2)
    assert says in str(caught.value)
    assert str(caught.value).startswith("deployment object-store (context test, namespace mine): not ready after 0.2 s")


def test_without_kubectl(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    for call in (lambda: kubectl.kustomize(tmp_path), kubectl.kubectl_version):
        with pytest.raises(ClusterError, match="kubectl: not found, expected it on PATH: install it"):
            call()


@needs_kubectl
@pytest.mark.parametrize(
    ("kustomization", "says"),
    [
        pytest.param(None, "expected a folder with a kustomization", id="no folder"),
        pytest.param("resources: [missing.yaml]\n", "missing.yaml", id="missing resource"),
    ],
)
def test_a_kustomization_that_does_not_render(tmp_path, kustomization, says):
    folder = tmp_path / "overlay"
    if kustomization:
        folder.mkdir()
        (folder / "kustomization.yaml").write_text(kustomization)
    with pytest.raises(ClusterError) as caught:
        kubectl.kustomize(folder)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@needs_kubectl
def test_yaml_is_what_kubectl_reads_back(tmp_path):
    labels = {"app": "x"}
    objects = [
        {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": f"a{n}", "labels": labels}, "data": {"on": text}}
        for n, text in enumerate(TEXTS)
    ]
    (tmp_path / "objects.yaml").write_text(to_yaml(objects))
    (tmp_path / "kustomization.yaml").write_text("resources: [objects.yaml]\n")
    assert "&id" not in to_yaml(objects), "anchors for the labels that all share"
    read = {thing["metadata"]["name"]: thing for thing in kubectl.kustomize(tmp_path)}
    assert read == {thing["metadata"]["name"]: thing for thing in objects}
