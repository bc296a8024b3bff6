from __future__ import annotations

import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from deepfake_detector.adapters.storage import Storage, open_storage
from tests.integration import gcs_server as fake


def pytest_configure() -> None:
    """A shell starts what it puts into the background with SIGINT ignored, and so would be all that tests start.

    TensorFlow's results depend on the number of its threads, which is another one in a process that has used it before
    a stage could set it. What tests start with a copy of os.environ has to set its own.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ.pop("TF_NUM_INTRAOP_THREADS", None)
    os.putenv("TF_NUM_INTRAOP_THREADS", "1")


def pytest_collection_finish(session: pytest.Session) -> None:
    """Build the gs:// server before the first test, whose time limit the build must not use up."""
    items = [item for item in session.items if isinstance(item, pytest.Function)]
    wanted = any(item.get_closest_marker("gcs") or "gcs_server" in item.fixturenames for item in items)
    if not wanted or not fake.available() or session.config.option.collectonly:
        return
    # A build that fails is tried again by the fixture, and fails the tests that need it there: no others.
    with suppress(subprocess.CalledProcessError):
        fake.binary()


@pytest.fixture(scope="session")
def gcs_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fake.GcsServer]:
    if not fake.available():
        pytest.skip("needs fake-gcs-server, or Go to build it")
    server = fake.GcsServer(tmp_path_factory.mktemp("gcs") / "server.log")
    server.start()
    yield server
    server.kill()


@pytest.fixture
def gcs_bucket(gcs_server: fake.GcsServer, monkeypatch: pytest.MonkeyPatch) -> str:
    """URI of a fresh gs:// bucket; STORAGE_EMULATOR_HOST is set for this process and its children."""
    name = f"test-{uuid.uuid4().hex}"
    gcs_server.make_bucket(name)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", gcs_server.url)
    return f"gs://{name}"


@pytest.fixture(params=["local", pytest.param("gs", marks=pytest.mark.gcs)])
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> Storage:
    """An empty run folder, once local and once in a bucket."""
    if request.param == "local":
        return open_storage(str(tmp_path / "run"))
    return open_storage(request.getfixturevalue("gcs_bucket") + "/some/run")


@pytest.fixture(scope="session")
def real_clips() -> Path:
    """Folder of real DFDC and FaceForensics++ clips."""
    if not (folder := os.environ.get("REAL_CLIPS")):
        pytest.skip("needs REAL_CLIPS, a folder with DFDC and FaceForensics++ clips")
    return Path(folder)
