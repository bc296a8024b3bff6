"""How large the image is, and what is not in it.

Its size is what its layers hold uncompressed, which no API tells: a node's sizeBytes is what its runtime has stored,
compressed where the image was pulled from a registry. So a pod of the image counts what it sees; that is all of the
layers, but for files that a later layer has replaced (the Dockerfile replaces none).
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from deepfake_detector.cluster.doctor import full_name
from tests.e2e.namespace import ROOT, Namespace, eventually, kubectl

LIMIT_BYTES = 2.4e9
SECONDS = 120.0
Contents = dict[str, Any]


@pytest.fixture(scope="module")
def contents(image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Contents]:
    """What image_contents.py has printed in a pod."""
    namespace = Namespace(image, tmp_path_factory.mktemp("image"))
    kubectl("create", "namespace", namespace.name)
    try:
        kubectl("label", "namespace", namespace.name, "pod-security.kubernetes.io/enforce=baseline")
        script = Path(__file__).with_name("image_contents.py").read_text()
        namespace.start_pod("look", ["python", "-c", script], user=0)  # some folders are root's alone
        ended = eventually("the pod has looked", SECONDS, lambda: _ended(namespace))
        said = namespace.kubectl("logs", "look")
        assert ended == "Succeeded", said
        yield json.loads(said)
    finally:
        namespace.remove()


def _ended(namespace: Namespace) -> str | None:
    phase = str(namespace.pod("look")["status"]["phase"])
    return phase if phase in ("Succeeded", "Failed") else None


def test_it_is_small_enough(contents: Contents, image: str) -> None:
    stored = {
        node["metadata"]["name"]: each["sizeBytes"]
        for node in json.loads(kubectl("get", "nodes", "-o", "json"))["items"]
        for each in node["status"].get("images", ())
        if full_name(image) in each.get("names", ())
    }
    print(f"\n{image}: at most {LIMIT_BYTES / 1e9:g} GB uncompressed")
    print(f"  {contents['archive'] / 1e9:.3f} GB as uncompressed layers ({contents['files']} files, counted in a pod)")
    print(f"  {contents['content'] / 1e9:.3f} GB in its files alone; closed to root: {contents['closed'] or 'nothing'}")
    for node, size in stored.items():
        print(f"  {size / 1e9:.3f} GB as {node} stores it (sizeBytes: layers as they came, compressed or not)")
    assert contents["files"] > 1000
    assert all(path.startswith("/var/") for path in contents["closed"]), "all that the Dockerfile adds was seen"
    assert contents["archive"] <= LIMIT_BYTES
    assert all(size <= LIMIT_BYTES for size in stored.values())


def test_nothing_is_in_it_that_pods_do_not_need(contents: Contents) -> None:
    """Neither the Kubernetes client, nor what only the demo or the tests import, nor anything beside the lock."""
    installed = {_canonical(name) for name in contents["packages"]} - {"deepfake-detector"}
    lock = (ROOT / "docker/requirements.lock").read_text()
    locked = {_canonical(name) for name in re.findall(r"^([\w.-]+)==", lock, re.MULTILINE)}
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = {
        extra: {_canonical(re.match(r"[\w.-]+", each)[0]) for each in wanted}  # type: ignore[index]
        for extra, wanted in project["optional-dependencies"].items()
        if extra in ("cluster", "demo")
    }
    assert {"kubernetes"} <= extras["cluster"]
    assert [name for wanted in extras.values() for name in wanted if name in installed] == []
    assert installed <= locked
    assert contents["importable"] == []


def test_tensorflow_is_its_cpu_build_and_no_file_of_a_package_was_removed(contents: Contents) -> None:
    assert "tensorflow_cpu" in {name.replace("-", "_") for name in contents["packages"]}
    assert contents["incomplete"] == {}


def _canonical(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()
