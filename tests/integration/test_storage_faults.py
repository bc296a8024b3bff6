"""Storage over a network that breaks: each operation ends right, or says what it waited for."""

from __future__ import annotations

import hashlib
import io
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from deepfake_detector.adapters import storage_gcs
from deepfake_detector.adapters.gcs_download import LEAST_BYTES, Download
from deepfake_detector.adapters.storage import Entry
from deepfake_detector.adapters.storage_gcs import GcsStorage
from deepfake_detector.core.errors import StorageError
from tests.integration.fault_proxy import RANDOM, Fault, FaultProxy, faulty_server
from tests.integration.gcs_server import available

pytestmark = pytest.mark.gcs
BIG = os.urandom(9 << 20)  # above 8 MiB: a resumable upload
SMALL = b"small"
KINDS = sorted(RANDOM)


@pytest.fixture(scope="module")
def shared_proxy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultProxy]:
    if not available():
        pytest.skip("needs fake-gcs-server, or Go to build it")
    log = tmp_path_factory.mktemp("gcs") / "server.log"
    with faulty_server(log, slow_seconds=0.2, silence_seconds=0.2) as (server, proxy):
        server.make_bucket("bucket")
        yield proxy


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is waited between tries has nothing to do with whether they end right."""
    monkeypatch.setattr(storage_gcs, "_DELAYS", (0.02, 0.5, 2.0))


@pytest.fixture
def proxy(shared_proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultProxy]:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", shared_proxy.url)
    yield shared_proxy
    shared_proxy.heal()


@pytest.fixture
def storage(proxy: FaultProxy, request: pytest.FixtureRequest) -> Iterator[GcsStorage]:
    """An empty folder of a healthy bucket."""
    folder = GcsStorage(f"gs://bucket/{hashlib.sha256(request.node.name.encode()).hexdigest()}", page_size=2)
    yield folder
    proxy.heal()
    for entry in list(folder.list()):  # the server keeps them in memory
        folder.delete(entry.name)


def read(storage: GcsStorage, folder: Path) -> None:
    assert storage.read("small") == SMALL
    assert storage.read("big") == BIG


def write(storage: GcsStorage, folder: Path) -> None:
    storage.write("new", BIG)
    storage.write("new", SMALL)
    assert storage.read("new") == SMALL


def create(storage: GcsStorage, folder: Path) -> None:
    assert storage.create("created", SMALL)
    assert not storage.create("created", b"another's")
    assert storage.create("created", SMALL)
    assert storage.create("created big", BIG)
    assert storage.read("created big") == BIG


def replace(storage: GcsStorage, folder: Path) -> None:
    version = storage.version("small")
    assert storage.replace("small", b"second", version)
    assert not storage.replace("small", b"third", version)
    assert storage.read("small") == b"second"


def listing(storage: GcsStorage, folder: Path) -> None:
    """Three pages and more."""
    expected = [Entry("big", len(BIG)), *(Entry(f"many/{index}", 1) for index in range(5)), Entry("small", 5)]
    assert list(storage.list()) == expected
    assert [(each.name, each.size) for each in storage.checksums()] == [(each.name, each.size) for each in expected]


def upload(storage: GcsStorage, folder: Path) -> None:
    (folder / "source").write_bytes(BIG)
    storage.upload(folder / "source", "new")
    assert storage.read("new") == BIG


def download(storage: GcsStorage, folder: Path) -> None:
    storage.download("big", folder / "target")
    assert (folder / "target").read_bytes() == BIG


def exists(storage: GcsStorage, folder: Path) -> None:
    assert storage.exists("small")
    assert not storage.exists("none")


def delete(storage: GcsStorage, folder: Path) -> None:
    storage.delete("small")
    storage.delete("none")
    assert not storage.exists("small")


Operation = Callable[[GcsStorage, Path], None]
STORED = {"big": BIG, "small": SMALL, **{f"many/{index}": b"1" for index in range(5)}}
NEEDED: dict[Operation, Collection[str]] = {
    read: ("big", "small"),
    write: (),
    create: (),
    replace: ("small",),
    listing: STORED,
    upload: (),
    download: ("big",),
    exists: ("small",),
    delete: ("small",),
}
OPERATIONS = list(NEEDED)


def fill(storage: GcsStorage, names: Collection[str] = tuple(STORED)) -> None:
    for name in names:
        storage.write(name, STORED[name])


@pytest.mark.parametrize(
    ("kind", "operation"),
    [
        (kind, operation)
        for kind in KINDS
        for operation in OPERATIONS
        if kind is not Fault.CUT_UPLOAD or operation in (write, create, replace, upload)
    ],
)
def test_requests_break_again_and_again(
    proxy: FaultProxy,
    storage: GcsStorage,
    tmp_path: Path,
    kind: Fault,
    operation: Operation,
) -> None:
    """Every third request, or every fifth where several have to succeed in a row."""
    fill(storage, NEEDED[operation])
    before = proxy.injected[kind]
    proxy.inject(kind, count=1000, every=5 if operation in (write, create, upload) else 3)
    operation(storage, tmp_path)
    assert proxy.injected[kind] > before


def test_many_threads_through_random_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not available():
        pytest.skip("needs fake-gcs-server, or Go to build it")
    with faulty_server(tmp_path / "server.log", rate=0.2, seed=1, slow_seconds=0.1, silence_seconds=0.1) as (
        server,
        proxy,
    ):
        server.make_bucket("bucket")
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)

        def work(index: int) -> None:
            storage = GcsStorage(f"gs://bucket/{index}", page_size=2)
            folder = tmp_path / str(index)
            folder.mkdir()
            fill(storage)
            for operation in (listing, read, upload, download, create, replace, delete):
                operation(storage, folder)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        assert len(proxy.injected) >= 5  # kinds


def test_racing_creates_have_one_winner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not available():
        pytest.skip("needs fake-gcs-server, or Go to build it")
    kinds = [Fault.STATUS, Fault.STATUS_AFTER, Fault.RESET_AFTER, Fault.RESET_MIDDLE, Fault.CUT_UPLOAD]
    with faulty_server(tmp_path / "server.log", rate=0.3, seed=2, kinds=kinds) as (server, proxy):
        server.make_bucket("bucket")
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", proxy.url)
        storages = [GcsStorage("gs://bucket/run") for _ in range(8)]
        for turn in range(4):
            name = f"{turn}"
            with ThreadPoolExecutor(len(storages)) as pool:
                futures = [pool.submit(each.create, name, b"%d" % index) for index, each in enumerate(storages)]
                won = [future.result() for future in futures]
            assert won.count(True) == 1
            assert storages[0].read(name) == b"%d" % won.index(True)


@pytest.mark.parametrize("kind", [Fault.STATUS_AFTER, Fault.RESET_AFTER, Fault.RESET_MIDDLE, Fault.SHORT])
@pytest.mark.parametrize("size", [5, 9 << 20], ids=["at once", "in a session"])
def test_a_create_whose_answer_was_lost(proxy: FaultProxy, storage: GcsStorage, kind: Fault, size: int) -> None:
    """A 412 on one's own earlier success is a success."""
    method = "POST" if size < 100 else "PUT"
    proxy.inject(kind, method=method)
    assert storage.create("a", BIG[:size])
    assert storage.read("a") == BIG[:size]


def test_a_download_goes_on_where_it_broke(
    proxy: FaultProxy, storage: GcsStorage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    storage.write("big", BIG)
    proxy.inject(Fault.SHORT, count=8, method="GET", at=1 << 20)
    before, requests_before = proxy.answered, proxy.requests["GET"]
    storage.download("big", tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == BIG
    assert proxy.answered - before == len(BIG)  # each byte once
    assert proxy.requests["GET"] - requests_before == 9
    first, last = (record.message for record in caplog.records)
    assert "trying again" in first
    assert "of 8 failed tries" in last
    assert list(tmp_path.iterdir()) == [tmp_path / "big"]


def test_progress_renews_the_budget(proxy: FaultProxy, storage: GcsStorage, tmp_path: Path) -> None:
    """Twenty breaks, each of which but those after progress would end the first budget."""
    storage.write("big", BIG)
    hasty = GcsStorage(storage.uri, outage_seconds=30)
    hasty._outage = hasty._outage.with_timeout(0.0)
    proxy.inject(Fault.SHORT, count=20, method="GET", at=LEAST_BYTES)
    hasty.download("big", tmp_path / "big")
    assert (tmp_path / "big").read_bytes() == BIG
    proxy.inject(Fault.SHORT, count=1, method="GET", at=LEAST_BYTES - 1)
    with pytest.raises(StorageError, match=r"try 1:.*expected an answer within 0 s"):
        hasty.download("big", tmp_path / "big")


@pytest.mark.parametrize("pinned", [True, False])
def test_an_object_that_is_replaced_while_it_is_read(proxy: FaultProxy, storage: GcsStorage, pinned: bool) -> None:
    """Not every emulator minds the generation that is asked for."""
    storage.write("a", BIG)
    file = io.BytesIO()
    name = f"{storage.uri.removeprefix('gs://bucket/')}/a"
    download = Download(requests.Session(), proxy.url, "bucket", name, file, 30)
    proxy.inject(Fault.SHORT, method="GET", at=1 << 20)
    assert isinstance(download.go_on(), Exception)
    storage.write("a", BIG[::-1])
    if not pinned:
        download._generation = None
    with pytest.raises(ConnectionError, match="replaced while it was read" if pinned else "CRC-32C"):
        download.go_on()
    assert download.go_on() is None
    assert file.getvalue() == BIG[::-1]
    storage.write("a", SMALL)
    assert download.go_on() is None  # asks nothing more
    assert file.getvalue() == BIG[::-1]


def test_an_object_that_is_gone_while_it_is_read(proxy: FaultProxy, storage: GcsStorage) -> None:
    storage.write("a", BIG)
    file = io.BytesIO()
    name = f"{storage.uri.removeprefix('gs://bucket/')}/a"
    download = Download(requests.Session(), proxy.url, "bucket", name, file, 30)
    proxy.inject(Fault.SHORT, method="GET", at=1 << 20)
    assert isinstance(download.go_on(), Exception)
    storage.delete("a")
    with pytest.raises(ConnectionError, match="replaced while it was read"):
        download.go_on()
    assert file.getvalue() == b""


def test_a_trickle_is_no_download(proxy: FaultProxy, storage: GcsStorage, tmp_path: Path) -> None:
    storage.write("big", BIG)
    proxy.inject(Fault.TRICKLE, count=1000, method="GET")
    hasty = GcsStorage(storage.uri, outage_seconds=0.5)
    with pytest.raises(StorageError, match=r"expected at least 262144.*expected an answer within 0\.5 s"):
        hasty.download("big", tmp_path / "big")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", [False, True], ids=["reset", "404"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_an_outage_is_ridden_out_and_reported(
    proxy: FaultProxy,
    storage: GcsStorage,
    tmp_path: Path,
    operation: Operation,
    missing: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fill(storage, NEEDED[operation])
    with ThreadPoolExecutor(1) as pool:
        with proxy.outage(missing=missing):
            met = proxy.injected["outage"]
            work = pool.submit(operation, storage, tmp_path)
            deadline = time.monotonic() + 60
            while proxy.injected["outage"] < met + 2:
                assert time.monotonic() < deadline
                assert not work.done()
                time.sleep(0.005)  # the proxy is a thread, too
        work.result()
    begun = [record.message for record in caplog.records if "trying again" in record.message]
    over = [record.message for record in caplog.records if "failed tries" in record.message]
    assert len(begun) == len(over) == 1
    assert storage.uri in over[0]


def test_a_big_object_is_held_once(proxy: FaultProxy, storage: GcsStorage) -> None:
    """Peak resident memory of a process that reads 48 MiB, over what it held before."""
    storage.write("big", os.urandom(48 << 20))
    program = (
        "import sys; from deepfake_detector.adapters.machine import peak_memory_mb\n"
        "from deepfake_detector.adapters.storage_gcs import GcsStorage\n"
        "storage = GcsStorage(sys.argv[1]); storage.exists('big'); before = peak_memory_mb()\n"
        "data = storage.read('big'); print(len(data), peak_memory_mb() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, storage.uri], check=True, capture_output=True, text=True, timeout=120
    )
    size, grown = done.stdout.split()
    assert int(size) == 48 << 20
    assert float(grown) < 1.3 * 48
