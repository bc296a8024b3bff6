"""Each fault as a client meets it, and that none but those asked for happen."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.integration.fault_proxy import RANDOM, Fault, FaultProxy, faulty_server
from tests.integration.gcs_server import GcsServer, available

pytestmark = pytest.mark.gcs
BODY = os.urandom(1 << 20)
MEDIA = "/download/storage/v1/b/bucket/o/a?alt=media"


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[GcsServer, FaultProxy]]:
    if not available():
        pytest.skip("needs fake-gcs-server, or Go to build it")
    log = tmp_path_factory.mktemp("gcs") / "server.log"
    with faulty_server(log, slow_seconds=0.2, silence_seconds=0.2) as (server, proxy):
        server.make_bucket("bucket")
        assert store(proxy, "a", BODY) == 200
        yield server, proxy


@pytest.fixture
def proxy(servers: tuple[GcsServer, FaultProxy]) -> FaultProxy:
    return servers[1]


def store(proxy: FaultProxy, name: str, body: bytes) -> int:
    return send(proxy.port, "POST", f"/upload/storage/v1/b/bucket/o?uploadType=media&name={name}", body)[0]


def ask(connection: http.client.HTTPConnection) -> bytes:
    connection.request("GET", MEDIA)
    return connection.getresponse().read()


def send(port: int, method: str, target: str, body: bytes | None = None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, target, body)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def is_there(servers: tuple[GcsServer, FaultProxy], name: str) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", servers[0].port, timeout=30)
    connection.request("GET", f"/storage/v1/b/bucket/o/{name}")
    status = connection.getresponse().status
    connection.close()
    return status == 200


def test_nothing_is_changed_without_a_fault(proxy: FaultProxy) -> None:
    before = proxy.injected.copy()
    with ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(lambda _: send(proxy.port, "GET", MEDIA), range(200)))
    assert all(answer == (200, BODY) for answer in answers)
    assert proxy.injected == before


def test_connections_are_kept(proxy: FaultProxy) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
    connection.connect()
    ours = connection.sock.getsockname()
    for target in (MEDIA, "/storage/v1/b/bucket/o/none", "/storage/v1/b/bucket/o"):
        connection.request("GET", target)
        connection.getresponse().read()
        assert connection.sock.getsockname() == ours
    connection.close()


@pytest.mark.parametrize(
    ("fault", "stored"),
    [
        (Fault.STATUS, False),
        (Fault.STATUS_AFTER, True),
        (Fault.RESET, False),
        (Fault.RESET_AFTER, True),
        (Fault.RESET_MIDDLE, True),
        (Fault.SHORT, True),
        (Fault.CUT_UPLOAD, False),
        (Fault.SILENCE, False),
        (Fault.SLOW, True),
    ],
)
def test_what_becomes_of_an_upload(servers: tuple[GcsServer, FaultProxy], fault: Fault, stored: bool) -> None:
    proxy = servers[1]
    before = proxy.injected[fault]
    proxy.inject(fault, method="POST", target=f"name={fault}")
    try:
        answered = store(proxy, fault, BODY)
    except (OSError, http.client.HTTPException):
        answered = 0
    assert (answered == 200) == (fault is Fault.SLOW)
    assert (answered >= 429) == (fault in (Fault.STATUS, Fault.STATUS_AFTER))
    assert is_there(servers, fault) == stored
    assert proxy.injected[fault] == before + 1
    assert store(proxy, f"{fault}-again", BODY) == 200


@pytest.mark.parametrize(
    ("fault", "error"),
    [(Fault.SHORT, http.client.IncompleteRead), (Fault.RESET_MIDDLE, (http.client.IncompleteRead, ConnectionError))],
)
def test_answer_cut_at_a_byte(
    proxy: FaultProxy, fault: Fault, error: type[Exception] | tuple[type[Exception], ...]
) -> None:
    before = proxy.answered
    proxy.inject(fault, method="GET", target="/o/a", at=1000)
    with pytest.raises(error) as raised:
        send(proxy.port, "GET", MEDIA)
    assert proxy.answered - before == 1000
    if fault is Fault.SHORT:
        assert isinstance(raised.value, http.client.IncompleteRead)
        assert raised.value.partial == BODY[:1000]


@pytest.mark.parametrize(("fault", "error"), [(Fault.SILENCE, OSError), (Fault.TRICKLE, TimeoutError)])
def test_a_client_that_gives_up(proxy: FaultProxy, fault: Fault, error: type[Exception]) -> None:
    proxy.inject(fault, method="GET", target="/o/a")
    connection = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=0.02)
    connection.request("GET", MEDIA)
    with pytest.raises(error):
        connection.getresponse().read(1000)
    connection.close()
    assert send(proxy.port, "GET", MEDIA) == (200, BODY)


def test_outage(proxy: FaultProxy) -> None:
    kept = http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)
    ask(kept)
    with proxy.outage():
        for connection in (kept, http.client.HTTPConnection("127.0.0.1", proxy.port, timeout=30)):
            with pytest.raises(OSError):  # noqa: PT011  # reset or broken pipe, as the kernel comes to see it
                ask(connection)
            connection.close()
    assert send(proxy.port, "GET", MEDIA) == (200, BODY)
    assert proxy.injected["outage"] >= 1


def test_a_bucket_that_is_missing_for_a_while(servers: tuple[GcsServer, FaultProxy]) -> None:
    proxy = servers[1]
    with proxy.outage(missing=True):
        assert send(proxy.port, "GET", MEDIA)[0] == 404
        status, said = send(proxy.port, "POST", "/upload/storage/v1/b/bucket/o?uploadType=media&name=lost", BODY)
    assert (status, json.loads(said)["error"]["message"]) == (404, "The specified bucket does not exist.")
    assert send(proxy.port, "GET", MEDIA) == (200, BODY)
    assert not is_there(servers, "lost")


def outcomes(seed: int, port: int) -> list[str]:
    """What becomes of 100 requests one after the other."""
    with FaultProxy(port, seed=seed, rate=0.5, slow_seconds=0.01, silence_seconds=0.01) as proxy:
        for _ in range(100):
            try:
                status, body = send(proxy.port, "GET", MEDIA)
            except (OSError, http.client.HTTPException):
                continue
            assert (status, body) == (200, BODY) or status in (429, 500, 502, 503, 504)
        return [f"{kind} {count}" for kind, count in sorted(proxy.injected.items())]


def test_random_faults_follow_from_the_seed(servers: tuple[GcsServer, FaultProxy]) -> None:
    port = servers[0].port
    first = outcomes(7, port)
    assert outcomes(7, port) == first
    assert outcomes(8, port) != first
    assert {line.split()[0] for line in first} == {str(kind) for kind in RANDOM - {Fault.CUT_UPLOAD}}


def test_as_a_program(servers: tuple[GcsServer, FaultProxy]) -> None:
    command = [sys.executable, "-m", "tests.integration.fault_proxy", "--server-port", str(servers[0].port)]
    process = subprocess.Popen([*command, "--rate", "0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port = int(process.stdout.readline().rpartition(":")[2])

    def until(reached: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 30
        while not reached():
            assert time.monotonic() < deadline

    def answers() -> bool:
        try:
            return send(port, "GET", MEDIA) == (200, BODY)
        except OSError:
            return False

    try:
        assert answers()
        process.send_signal(signal.SIGUSR1)
        until(lambda: not answers())
        process.send_signal(signal.SIGUSR2)
        until(answers)
    finally:
        process.terminate()
    assert json.loads(process.stdout.readline())["outage"] >= 1
    assert process.wait() == 0


def test_server_that_is_replaced(tmp_path: Path) -> None:
    if not available():
        pytest.skip("needs fake-gcs-server, or Go to build it")
    (tmp_path / "objects").mkdir()
    with faulty_server(tmp_path / "server.log", tmp_path / "objects") as (server, proxy):
        server.make_bucket("bucket")
        assert store(proxy, "a", BODY) == 200
        server.kill()
        with pytest.raises(OSError):  # noqa: PT011
            send(proxy.port, "GET", MEDIA)
        server.start()
        assert send(proxy.port, "GET", MEDIA) == (200, BODY)
