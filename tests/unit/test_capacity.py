from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepfake_detector.core.capacity import Room, describe, places, quantity, requests_of, rooms
from deepfake_detector.core.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("2", 2.0),
        ("100m", 0.1),
        ("0.5", 0.5),
        (".5", 0.5),
        ("2Gi", 2 * 2**30),
        ("128974848", 128974848.0),
        ("129e6", 129e6),
        ("129M", 129e6),
        ("1E", 1e18),
        ("1Ei", 2.0**60),
        ("250u", 250e-6),
        (3, 3.0),
    ],
)
def test_a_quantity_is_read_as_kubernetes_does(text: str | int, number: float) -> None:
    assert quantity(text) == pytest.approx(number)


@pytest.mark.parametrize("text", ["", "2 Gi", "Gi", "1gi", "1e", "two", "1GiB", "--1"])
def test_what_is_no_quantity_is_named(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a quantity"):
        quantity(text)


@pytest.mark.parametrize(
    ("resource", "amount", "words"),
    [
        ("cpu", 1.2000000001, "1.2"),
        ("memory", 2**30, "1.0 GiB"),
        ("memory", 300 * 2**20, "300 MiB"),
        ("nvidia.com/gpu", 1.0, "1"),
    ],
)
def test_amounts_are_told_in_their_units(resource: str, amount: float, words: str) -> None:
    assert describe(resource, amount) == words


def container(restart: str = "", **requests: str) -> dict[str, Any]:
    return {"resources": {"requests": requests}, **({"restartPolicy": restart} if restart else {})}


@pytest.mark.parametrize(
    ("spec", "cpu"),
    [
        pytest.param({"containers": [container(cpu="1"), container(cpu="500m")]}, 1.5, id="containers side by side"),
        pytest.param(
            {"initContainers": [container(cpu="2"), container(cpu="3")], "containers": [container(cpu="1")]},
            3.0,
            id="init containers one after another",
        ),
        pytest.param(
            {"initContainers": [container("Always", cpu="1"), container(cpu="3")], "containers": [container(cpu="2")]},
            4.0,
            id="beside a sidecar",
        ),
        pytest.param({"containers": [{"resources": {"limits": {"cpu": "2"}}}]}, 2.0, id="a limit alone is a request"),
        pytest.param({"containers": [container(cpu="1")], "overhead": {"cpu": "250m"}}, 1.25, id="overhead"),
    ],
)
def test_a_pods_requests_are_what_the_scheduler_reserves(spec: dict[str, Any], cpu: float) -> None:
    assert requests_of(spec)["cpu"] == pytest.approx(cpu)


def node(name: str, cpu: str, *, ready: str = "True", **spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": name, "labels": {"pool": name}},
        "spec": spec,
        "status": {"allocatable": {"cpu": cpu, "pods": "110"}, "conditions": [{"type": "Ready", "status": ready}]},
    }


SPOT = {"key": "spot", "value": "true", "effect": "NoSchedule"}


@pytest.mark.parametrize(
    ("spec", "names"),
    [
        pytest.param({}, ["plain"], id="no toleration"),
        pytest.param({"tolerations": [SPOT]}, ["plain", "spot"], id="tolerated by value"),
        pytest.param({"tolerations": [{"key": "spot", "operator": "Exists"}]}, ["plain", "spot"], id="by key"),
        pytest.param({"tolerations": [{"operator": "Exists"}]}, ["plain", "spot"], id="everything"),
        pytest.param({"tolerations": [{**SPOT, "value": "false"}]}, ["plain"], id="another value"),
        pytest.param({"tolerations": [SPOT], "nodeSelector": {"pool": "spot"}}, ["spot"], id="node selector"),
    ],
)
def test_rooms_are_on_nodes_that_take_the_pod(spec: dict[str, Any], names: list[str]) -> None:
    nodes = [
        node("plain", "2"),
        node("spot", "4", taints=[SPOT]),
        node("cordoned", "8", unschedulable=True),
        node("lost", "16", ready="Unknown"),
    ]
    assert [room.node for room in rooms(nodes, [], spec)] == names


def test_a_finished_pod_takes_no_room() -> None:
    def pod(phase: str) -> dict[str, Any]:
        return {"spec": {"nodeName": "a", "containers": [container(cpu="500m")]}, "status": {"phase": phase}}

    [room] = rooms([node("a", "2")], [pod("Running"), pod("Succeeded"), pod("Failed")])
    assert room.free == {"cpu": 1.5, "pods": 109.0}


@given(st.lists(st.integers(0, 20), max_size=4), st.integers(1, 8))
def test_places_are_counted_on_each_node_by_itself(free: list[int], asked: int) -> None:
    nodes = [Room(str(number), {"cpu": cpu / 10, "pods": 100.0}) for number, cpu in enumerate(free)]
    assert places({"cpu": asked / 10}, nodes) == sum(cpu // asked for cpu in free)


def test_a_device_that_no_node_has_leaves_no_place() -> None:
    assert places({"nvidia.com/gpu": 1.0}, [Room("a", {"cpu": 8.0, "pods": 10.0})]) == 0
