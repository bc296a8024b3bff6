"""The way to the local overlay's object store: real processes, with a stand-in for kubectl."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from deepfake_detector.cluster import emulator
from deepfake_detector.cluster.emulator import PortForward, storage_access
from deepfake_detector.core.errors import ClusterError, ConfigError

FAKE = Path(__file__).with_name("fake_kubectl.py")
DEADLINE = 30.0


def fake(log: Path) -> list[str]:
    return [sys.executable, str(FAKE), str(log)]


def starts(log: Path) -> list[tuple[int, int]]:
    """(pid, port) of each start of the stand-in so far."""
    lines = log.read_text().splitlines() if log.exists() else []
    return [(int(pid), int(port)) for pid, port in map(str.split, lines)]


def status(url: str) -> int:
    try:
        urllib.request.urlopen(url, timeout=5).close()
    except urllib.error.HTTPError as error:
        return error.code
    return 200


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_started_again_on_the_same_port(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with PortForward(fake(log), "service/object-store", 4443) as forward:
        url = forward.wait_until_ready(DEADLINE)
        for again in (2, 3):
            assert status(f"{url}/lost") == 404
            wait_for(lambda count=again: len(starts(log)) == count)
            assert forward.wait_until_ready(DEADLINE) == url
    began = starts(log)
    assert len({pid for pid, _ in began}) == 3
    assert {f"http://127.0.0.1:{port}" for _, port in began} == {url}
    assert all(gone(pid) for pid, _ in began)


def test_missing_service_is_refused_at_once(tmp_path: Path) -> None:
    with (
        pytest.raises(ClusterError, match=r'services "missing" not found .remedy: make deploy'),
        PortForward(fake(tmp_path / "log"), "service/missing", 4443) as forward,
    ):
        forward.wait_until_ready(3600)


def test_pending_pod_is_waited_for(tmp_path: Path) -> None:
    with PortForward(fake(tmp_path / "log"), "service/pending", 4443) as forward:
        wait_for(lambda: len(starts(tmp_path / "log")) >= 2)
        with pytest.raises(ClusterError, match=r"Current status=Pending: expected an answer within 0.5 s"):
            forward.wait_until_ready(0.5)


def test_ends_with_a_killed_client(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from deepfake_detector.cluster.emulator import PortForward\n"
        f"with PortForward({fake(tmp_path / 'log')!r}, 'service/object-store', 4443) as forward:\n"
        f"    print(forward.wait_until_ready({DEADLINE}), flush=True)\n"
        "    sys.stdin.read()\n"
    )
    client = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert client.stdout is not None
    client.stdout.readline()
    [(pid, _)] = starts(tmp_path / "log")
    assert not gone(pid)
    client.send_signal(signal.SIGKILL)
    client.communicate(timeout=DEADLINE)
    wait_for(lambda: gone(pid))


CLUSTER = SimpleNamespace(context="somewhere", namespace="deepfake-detector")


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The stand-in as `kubectl` on PATH; returns its log."""
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    log = tmp_path / "log"
    program.write_text(f'#!/bin/sh\necho "$1 $2 $3 $4" >{tmp_path}/options\nshift 4\nexec {" ".join(fake(log))} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv(emulator.VARIABLE, raising=False)
    return log


def test_environment_names_the_forward_meanwhile(kubectl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "internal.example")
    with storage_access(CLUSTER, "local"):
        host = os.environ[emulator.VARIABLE]
        assert host == f"http://127.0.0.1:{starts(kubectl)[0][1]}"
        assert os.environ["no_proxy"] == "internal.example,127.0.0.1"
        with storage_access(CLUSTER, "local"):
            assert os.environ[emulator.VARIABLE] == host
    assert emulator.VARIABLE not in os.environ
    assert os.environ["no_proxy"] == "internal.example"
    assert len(starts(kubectl)) == 1
    expected = "--context somewhere --namespace deepfake-detector\n"
    assert kubectl.with_name("options").read_text() == expected


def test_own_emulator_and_real_buckets_are_left_alone(kubectl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with storage_access(CLUSTER, "gke"):
        assert emulator.VARIABLE not in os.environ
    monkeypatch.setenv(emulator.VARIABLE, "http://localhost:9")
    with storage_access(CLUSTER, "local"):
        assert os.environ[emulator.VARIABLE] == "http://localhost:9"
    assert starts(kubectl) == []


def test_an_unknown_overlay_is_no_way_to_a_real_bucket(kubectl: Path) -> None:
    with (
        pytest.raises(ConfigError, match="--overlay locl: expected one of gke, local"),
        storage_access(CLUSTER, "locl"),
    ):
        pass
    assert starts(kubectl) == []


def test_kubectl_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(emulator.VARIABLE, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ClusterError, match="kubectl: not found"), storage_access(CLUSTER, "local"):
        pass
