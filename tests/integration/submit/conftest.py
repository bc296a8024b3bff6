from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from deepfake_detector.adapters import kubectl
from deepfake_detector.adapters.storage import Storage, open_storage
from tests.integration.api_server import ApiServer
from tests.integration.gcs_server import GcsServer
from tests.integration.submit.driver import RUN, VIDEOS


@pytest.fixture(scope="session")
def bucket(gcs_server: GcsServer) -> GcsServer:
    """The server that has the bucket of RUN and VIDEOS."""
    gcs_server.make_bucket("bucket")
    return gcs_server


@pytest.fixture(scope="session")
def rendered() -> Callable[..., Any]:
    """kubectl's rendering, the same for all tests."""
    return functools.cache(kubectl.kustomize)


@pytest.fixture(autouse=True)
def render_once(rendered: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kubectl, "kustomize", rendered)


@pytest.fixture
def run(bucket: GcsServer, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """An empty run in a bucket that holds a video."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.url)
    everything = open_storage("gs://bucket")
    for entry in list(everything.list()):
        everything.delete(entry.name)
    open_storage(VIDEOS).write("a.mp4", b"video")
    return open_storage(RUN)


@pytest.fixture
def server(
    server: ApiServer, use_kubeconfig: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ApiServer:
    """Where everything has been deployed; the current cluster of the client and of kubectl."""
    path = server.kubeconfig(tmp_path / "kubeconfig")
    use_kubeconfig(path)
    monkeypatch.setenv("KUBECONFIG", str(path))
    for kind, name in (("services", "training"), ("serviceaccounts", "stages"), ("configmaps", "settings")):
        server.put(kind, name)
    return server
