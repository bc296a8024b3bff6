"""Training ports accept training pods only: what the policies in the cluster say, and what its network lets through.

Some networks take NetworkPolicies and enforce none (flannel, for one), which is found out by trying.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

import pytest

from deepfake_detector.core.jobspec import RENDEZVOUS_PORT
from tests.e2e.conftest import deployed
from tests.e2e.namespace import Namespace, Object, eventually

NAME, COMPONENT = "app.kubernetes.io/name", "app.kubernetes.io/component"
LABELS: dict[str, dict[str, str]] = {
    "stranger": {},
    "train": {NAME: "deepfake-detector", COMPONENT: "train"},
    "peer": {NAME: "deepfake-detector", COMPONENT: "train"},
    "preprocess": {NAME: "deepfake-detector", COMPONENT: "preprocess"},
    "object-store": {NAME: "deepfake-detector", COMPONENT: "object-store"},
}
TRAINING = frozenset({RENDEZVOUS_PORT, 2222, 2229})
PORTS = TRAINING | {2221, 2230, 8080}
# From whom to whom, and at which of PORTS.
CASES = [
    pytest.param("peer", "train", TRAINING, id="a training pod reaches another one's training ports"),
    pytest.param("stranger", "train", frozenset(), id="a pod of something else reaches none"),
    pytest.param("preprocess", "train", frozenset(), id="a preprocessing pod reaches none"),
    pytest.param("object-store", "train", frozenset(), id="the object store reaches none"),
    pytest.param("train", "preprocess", frozenset(), id="nobody reaches a preprocessing pod"),
    pytest.param("train", "stranger", PORTS, id="what is not ours is left alone"),
]
ENFORCED_SECONDS = 10.0  # networks take a moment to learn of a new pod
SECONDS = 120.0
LISTEN = f"""
import socket, time
servers = [socket.create_server(("", port)) for port in {sorted(PORTS)}]
print("listening", flush=True)
time.sleep(3600)
"""
CONNECT = f"""
import socket, sys
for port in {sorted(PORTS)}:
    try:
        socket.create_connection((sys.argv[1], port), 1).close()
        print(port)
    except OSError:
        pass
"""


@pytest.fixture(scope="module")
def listeners(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Namespace]:
    """A deployed namespace with a pod of each kind, all of which listen on PORTS."""
    with deployed(image, tmp_path_factory.mktemp("policies")) as namespace:
        for name, labels in LABELS.items():
            namespace.start_pod(name, ["python", "-c", LISTEN], labels=labels)
        for name in LABELS:
            eventually(f"{name} listens", SECONDS, lambda name=name: _listens(namespace, name))  # type: ignore[misc]
        yield namespace


def _listens(namespace: Namespace, name: str) -> bool:
    running = namespace.pod(name)["status"]["phase"] == "Running"
    return running and "listening" in namespace.kubectl("logs", name)


def reached(namespace: Namespace, source: str, target: str) -> frozenset[int]:
    """The ports at which a connection of one pod to the other opens."""
    address = namespace.pod(target)["status"]["podIP"]
    said = namespace.kubectl("exec", source, "--", "python", "-c", CONNECT, address)
    return frozenset(map(int, said.split()))


@pytest.fixture(scope="module")
def enforcing(listeners: Namespace) -> Namespace:
    """Skips where the cluster's network enforces no policies, so that they can't be seen at work."""
    assert reached(listeners, "train", "stranger") == PORTS, "where no policy is in the way pods reach each other"
    deadline = time.monotonic() + ENFORCED_SECONDS
    while open_to_all := reached(listeners, "stranger", "preprocess"):
        if time.monotonic() >= deadline:
            pytest.skip(
                "this cluster's network enforces no NetworkPolicy: under one that refuses all, a stranger reached "
                f"ports {sorted(open_to_all)}"
            )
    return listeners


@pytest.mark.parametrize(("source", "target", "expected"), CASES)
def test_the_policies_in_the_cluster_say_so(
    listeners: Namespace, source: str, target: str, expected: frozenset[int]
) -> None:
    policies = listeners.objects("networkpolicies")
    assert {"stages", "training", "object-store"} <= {policy["metadata"]["name"] for policy in policies}
    allowed = {port for port in PORTS if allows(policies, LABELS[source], LABELS[target], port)}
    assert allowed == expected


@pytest.mark.parametrize(("source", "target", "expected"), CASES)
def test_the_network_does_so(enforcing: Namespace, source: str, target: str, expected: frozenset[int]) -> None:
    assert reached(enforcing, source, target) == expected


def allows(policies: Sequence[Object], source: Mapping[str, str], target: Mapping[str, str], port: int) -> bool:
    """What the policies of one namespace make of a TCP connection within it, for those that know pod selectors only.

    kubernetes.io/docs/concepts/services-networking/network-policies: a pod that none selects takes all, and otherwise
    what at least one of them allows.
    """
    chosen = [policy["spec"] for policy in policies if _selects(policy["spec"]["podSelector"], target)]
    rules = [rule for spec in chosen for rule in spec.get("ingress", ())]
    return not chosen or any(
        any(_selects(peer["podSelector"], source) for peer in rule["from"])
        and any(each["port"] <= port <= each.get("endPort", each["port"]) for each in rule["ports"])
        for rule in rules
    )


def _selects(selector: Object, labels: Mapping[str, str]) -> bool:
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    expressions = selector.get("matchExpressions", ())
    assert all(each["operator"] == "In" for each in expressions)
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        labels.get(each["key"]) in each["values"] for each in expressions
    )
