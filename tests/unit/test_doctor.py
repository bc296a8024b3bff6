"""The checks before a submission, on clusters that are described by hand."""

from __future__ import annotations

import re
from typing import Any

import pytest

from deepfake_detector.cluster import doctor
from deepfake_detector.cluster.doctor import Check, full_name, image_check, room_check
from deepfake_detector.core.errors import ClusterError


class FakeCluster:
    """What the checks ask of a cluster."""

    context, namespace = "kind-test", "detector"

    def __init__(
        self, version: tuple[int, int] = (1, 34), lacks: tuple[str, ...] = (), refuses: tuple[str, ...] = ()
    ) -> None:
        self._version, self._lacks, self._refuses = version, lacks, refuses

    def version(self) -> tuple[int, int]:
        return self._version

    def exists(self, kind: str, name: str) -> bool:
        return f"{kind}/{name}" not in self._lacks

    def can(self, verb: str, resource: str, group: str = "", subresource: str = "") -> bool:
        assert (group == "batch") == (resource == "jobs")
        return " ".join(filter(None, [verb, resource, subresource])) not in self._refuses

    def nodes(self) -> list[dict[str, Any]] | None:
        return None

    def all_pods(self) -> list[dict[str, Any]] | None:
        raise AssertionError("nobody who may not list nodes needs all pods")


class AwayCluster(FakeCluster):
    def version(self) -> tuple[int, int]:
        raise ClusterError("context kind-test: does not answer")


def node(name: str = "a", *, cpu: str = "4", memory: str = "8Gi", images: tuple[str, ...] = (), **extra: Any) -> Any:
    return {
        "metadata": {"name": name, "labels": {}},
        "spec": extra,
        "status": {
            "allocatable": {"cpu": cpu, "memory": memory, "pods": "110"},
            "conditions": [{"type": "Ready", "status": "True"}],
            "images": [{"names": [image]} for image in images],
        },
    }


def spec(**requests: str) -> dict[str, Any]:
    return {"containers": [{"name": "stage", "resources": {"requests": requests}}]}


def pod(on: str, phase: str = "Running", **requests: str) -> dict[str, Any]:
    return {"metadata": {"name": "p"}, "spec": {**spec(**requests), "nodeName": on}, "status": {"phase": phase}}


@pytest.mark.parametrize(
    ("cluster", "overlay", "failing"),
    [
        pytest.param(FakeCluster(), "local", {}, id="all well"),
        pytest.param(FakeCluster((1, 31)), "gke", {}, id="oldest server"),
        pytest.param(
            FakeCluster((1, 30)), "gke", {"server": r"at least 1.31, since it lacks podFailurePolicy$"}, id="1.30"
        ),
        pytest.param(
            FakeCluster((1, 28)),
            "gke",
            {"server": "podFailurePolicy, backoffLimitPerIndex, podReplacementPolicy"},
            id="1.28",
        ),
        pytest.param(AwayCluster(), "gke", {"server": "does not answer"}, id="away"),
        pytest.param(
            FakeCluster(lacks=("services/training",)),
            "gke",
            {"deployed": "lacks services/training$"},
            id="not deployed",
        ),
        pytest.param(
            FakeCluster(lacks=("services/object-store",)),
            "local",
            {"deployed": "lacks services/object-store$"},
            id="deployed without the store",
        ),
        pytest.param(FakeCluster(lacks=("services/object-store",)), "gke", {}, id="a real bucket needs no store"),
        pytest.param(
            FakeCluster(refuses=("create jobs", "get pods log")),
            "gke",
            {"permissions": r"you may not: create jobs, get pods/log \(namespace detector\)"},
            id="permissions",
        ),
        pytest.param(
            FakeCluster(refuses=("create pods portforward",)),
            "local",
            {"permissions": "create pods/portforward"},
            id="the way to the store",
        ),
        pytest.param(FakeCluster(refuses=("create pods portforward",)), "gke", {}, id="no way to a store needed"),
    ],
)
def test_cluster(cluster: Any, overlay: str, failing: dict[str, str]) -> None:
    checks = doctor.check(cluster, overlay)
    assert [each.name for each in checks if not each.ok] == list(failing)
    for each in checks:
        if not each.ok:
            assert re.search(failing[each.name], each.detail)
            assert each.remedy
            assert each.blocks
    if "server" not in failing:
        assert [each.name for each in checks] == ["server", "deployed", "permissions"]


def test_store_is_not_tried_through_a_broken_cluster() -> None:
    checks = doctor.check(FakeCluster(lacks=("services/object-store",)), "local", run="gs://videos/run")
    assert checks[-1] == Check("bucket", False, checks[-1].detail, "first what is above")


def test_without_permission_to_list_nodes() -> None:
    image, room = doctor.check(FakeCluster(), "gke", image="a:1", pods=2, spec=spec(cpu="1"))[-2:]
    assert (image.name, image.ok, room.name, room.ok) == ("image", True, "room", True)
    assert "you may not list nodes" in image.detail
    assert "you may not list nodes" in room.detail


@pytest.mark.parametrize("uri", ["/runs/first", "runs/first", "s3://bucket/run"])
def test_pods_reach_buckets_only(uri: str) -> None:
    [bucket] = doctor.check(FakeCluster(), "gke", run=uri)[3:]
    assert not bucket.ok
    assert "expected gs://bucket/prefix" in bucket.detail


@pytest.mark.parametrize(
    ("image", "full"),
    [
        ("a:1", "docker.io/library/a:1"),
        ("a", "docker.io/library/a:latest"),
        ("team/a:1", "docker.io/team/a:1"),
        ("localhost/a:1", "localhost/a:1"),
        ("localhost:5000/a:1", "localhost:5000/a:1"),
        ("localhost:5000/a", "localhost:5000/a:latest"),
        ("europe-docker.pkg.dev/p/r/a:1", "europe-docker.pkg.dev/p/r/a:1"),
        ("ghcr.io/a@sha256:00", "ghcr.io/a@sha256:00"),
        ("docker.io/library/a:1", "docker.io/library/a:1"),
    ],
)
def test_full_name(image: str, full: str) -> None:
    assert full_name(image) == full


LOADED = node(images=("docker.io/library/a:1",))


@pytest.mark.parametrize(
    ("image", "nodes", "overlay", "ok", "says"),
    [
        pytest.param("a:1", [LOADED], "local", True, "on 1 of 1 nodes$", id="loaded"),
        pytest.param("a:1", [LOADED, node("b")], "local", True, "on 1 of 2 nodes; not on 1 others", id="on some"),
        pytest.param("a:2", [LOADED], "local", False, "a:2: on none of 1 nodes, and names no registry", id="absent"),
        pytest.param("a:2", [LOADED], "gke", False, "names no registry", id="GKE can't pull a local name"),
        pytest.param("ghcr.io/a:2", [LOADED], "gke", True, "can't be told from here", id="registry"),
        pytest.param(
            "a:2", [node(images=tuple(f"i:{i}" for i in range(50)))], "local", True, "lists only 50", id="long list"
        ),
    ],
)
def test_image(image: str, nodes: list[Any], overlay: str, ok: bool, says: str) -> None:
    found = image_check(image, nodes, overlay)
    assert found.ok == ok
    assert re.search(says, found.detail)
    assert bool(found.remedy) != ok


@pytest.mark.parametrize(
    ("pods", "asks", "nodes", "running", "ok", "says"),
    [
        pytest.param(4, spec(cpu="1"), [node()], [], True, "for 4 pods of cpu 1", id="fits exactly"),
        pytest.param(
            5, spec(cpu="1"), [node()], [], False, r"for 4 of 5 pods of cpu 1 \(free: a cpu 4, pods 110\)", id="cpu"
        ),
        pytest.param(
            2,
            spec(memory="3Gi"),
            [node()],
            [pod("a", memory="4Gi")],
            False,
            r"for 1 of 2 pods of memory 3.0 GiB \(free: a memory 4.0 GiB",
            id="memory",
        ),
        pytest.param(
            2, spec(memory="3Gi"), [node()], [pod("a", "Succeeded", memory="4Gi")], True, "for 2 pods", id="ended pods"
        ),
        pytest.param(1, {**spec(**{"nvidia.com/gpu": "1"})}, [node()], [], False, "for 0 of 1", id="gpu"),
        pytest.param(
            1, spec(cpu="1"), [node(unschedulable=True)], [], False, "no node takes these pods", id="cordoned"
        ),
        pytest.param(
            11,
            spec(cpu="2"),
            [node(name) for name in "abcde"],
            [],
            False,
            "for 10 of 11.*and 2 more nodes",
            id="many nodes",
        ),
        pytest.param(3, spec(), [node()], [], True, "for 3 pods of no requests", id="no requests"),
    ],
)
def test_room(pods: int, asks: Any, nodes: list[Any], running: list[Any], ok: bool, says: str) -> None:
    found = room_check(pods, asks, nodes, running)
    assert found.ok == ok
    assert re.search(says, found.detail), found.detail
    assert not found.blocks  # pods wait for room, and autoscalers make it
    assert bool(found.remedy) != ok


def test_text() -> None:
    checks = [
        Check("server", True, "1.34"),
        Check("image", False, "a:1: on none of 1 nodes", "make cluster"),
        Check("room", False, "for 1 of 2 pods", "add nodes", blocks=False),
    ]
    assert doctor.to_text(checks).splitlines() == [
        "ok     server       1.34",
        "FAILS  image        a:1: on none of 1 nodes",
        "                    remedy: make cluster",
        "waits  room         for 1 of 2 pods",
        "                    remedy: add nodes",
    ]
