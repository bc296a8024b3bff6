from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from deepfake_detector.adapters.cluster import Cluster
from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.core import layout
from deepfake_detector.core.outcomes import Outcome, VideoOutcome
from tests.integration.api_server import ApiServer, api_server
from tests.integration.trained_run import make_trained_run, usual_videos

LOST = (
    VideoOutcome(key="set/real/faceless", label=0, split="test", outcome=Outcome.NO_FACE),
    VideoOutcome(key="set/method0/broken", label=1, split="test", outcome=Outcome.DECODE_ERROR),
    VideoOutcome(key="set/real/elsewhere", label=0, split="train", outcome=Outcome.NO_FACE),
)


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """A run that was exported: 40 test videos, two of them lost. Not to be changed.

    All processes of pytest-xdist share it: the first that asks makes it, and the others wait.
    """
    from deepfake_detector.stages.export import export

    own = tmp_path_factory.getbasetemp()
    folder = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "exported"
    run = open_storage(str(folder / "run"))
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not run.exists(layout.DETECTOR):
            shutil.rmtree(folder, ignore_errors=True)  # of one that did not come to its end
            run, _ = make_trained_run(folder / "run", usual_videos(19), LOST)
            export(run, folder / "scratch")
    return run


@pytest.fixture(scope="session")
def model_folder(exported: Storage) -> Path:
    return Path(exported.uri) / "model"


@pytest.fixture
def server() -> Iterator[ApiServer]:
    """A stand-in for a cluster's API server."""
    with api_server() as running:
        yield running


@pytest.fixture
def use_kubeconfig(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """The client reads $KUBECONFIG once, when it is imported."""
    from kubernetes.config import kube_config

    def use(path: Path) -> None:
        monkeypatch.setattr(kube_config, "KUBE_CONFIG_DEFAULT_LOCATION", str(path))

    return use


@pytest.fixture
def cluster(server: ApiServer, tmp_path: Path, use_kubeconfig: Callable[[Path], None]) -> Cluster:
    use_kubeconfig(server.kubeconfig(tmp_path / "kubeconfig"))
    return Cluster.connect(None, "mine")
