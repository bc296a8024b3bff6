"""Processes of a run that begin while a bucket answers 404: they wait, as those that have seen it do."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deepfake_detector.adapters import storage_gcs
from deepfake_detector.adapters.storage import open_storage
from deepfake_detector.core.config import override
from deepfake_detector.core.errors import ConfigError, DataError
from deepfake_detector.core.topology import ALONE
from deepfake_detector.stages.plan import make_plan
from deepfake_detector.training.worker import run_worker
from tests.integration.fault_proxy import FaultProxy, faulty_server
from tests.integration.gcs_server import available
from tests.make_records import tiny

pytestmark = pytest.mark.gcs


@pytest.fixture
def proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    """Before a bucket that nobody has seen."""
    if not available():
        pytest.skip("needs fake-gcs-server, or Go to build it")
    monkeypatch.setattr(storage_gcs, "_DELAYS", (0.02, 0.5, 2.0))
    with faulty_server(tmp_path / "server.log") as (server, proxy):
        server.make_bucket("bucket")
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        yield proxy


def plan(folder: Path) -> None:
    """Of videos in a bucket that holds none."""
    make_plan(open_storage(str(folder)), override(tiny(), {"data.videos": "gs://bucket/videos"}, "test"))


def train(folder: Path) -> None:
    """Alone, where the settings say two."""
    run_worker("gs://bucket/run", tiny(train__workers=2), ALONE, folder, "gs://bucket/records")


@pytest.mark.parametrize(
    ("work", "error", "said"),
    [(plan, DataError, "gs://bucket/videos"), (train, ConfigError, r"train\.workers")],
    ids=["plan", "train"],
)
def test_a_bucket_that_is_away_is_waited_for(
    proxy: FaultProxy, tmp_path: Path, work: Callable[[Path], None], error: type[Exception], said: str
) -> None:
    with ThreadPoolExecutor(1) as pool:
        with proxy.outage(missing=True):
            working = pool.submit(work, tmp_path / "run")
            deadline = time.monotonic() + 60
            while proxy.injected["outage"] < 3:
                assert time.monotonic() < deadline
                assert not working.done()
                time.sleep(0.005)
        with pytest.raises(error, match=said):
            working.result()
