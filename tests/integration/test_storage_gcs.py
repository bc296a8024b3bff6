"""What only a bucket can do: refuse, go away, come back. Budgets are in seconds here, minutes by default."""

from __future__ import annotations

import base64
import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from deepfake_detector.adapters import storage_gcs
from deepfake_detector.adapters.storage import Entry
from deepfake_detector.adapters.storage_gcs import GRACE_SECONDS, OUTAGE_SECONDS, GcsStorage
from deepfake_detector.core.errors import ConfigError, CorruptError, NotFoundError, StorageError
from tests.integration.gcs_server import GcsServer, free_port, serving

Answer = tuple[int, dict[str, str], bytes]
OK: Answer = (200, {"Content-Type": "application/json"}, b"{}")


@contextmanager
def answering(answer: Callable[[str, str], Answer], monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """An HTTP server that answers (method, path) as told; yields the requests for objects so far."""
    requests: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def handle_any(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if "/o" in self.path:  # the library also asks for the bucket's location, in the background
                requests.append(f"{self.command} {self.path}")
            status, headers, body = answer(self.command, self.path)
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST = do_PUT = do_DELETE = handle_any

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{server.server_port}")
        with serving(server):
            yield requests


def operations(storage: GcsStorage, folder: Path) -> dict[str, Callable[[], object]]:
    (folder / "source").write_bytes(b"1")
    return {
        "read": lambda: storage.read("a"),
        "write": lambda: storage.write("a", b"1"),
        "create": lambda: storage.create("a", b"1"),
        "exists": lambda: storage.exists("a"),
        "list": lambda: list(storage.list()),
        "checksums": lambda: list(storage.checksums()),
        "upload": lambda: storage.upload(folder / "source", "a"),
        "download": lambda: storage.download("a", folder / "target"),
        "delete": lambda: storage.delete("a"),
    }


OPERATIONS = ["read", "write", "create", "exists", "list", "checksums", "upload", "download", "delete"]


def test_budgets() -> None:
    assert (OUTAGE_SECONDS, GRACE_SECONDS) == (300, 60)


@pytest.mark.gcs
def test_listing_spans_pages(gcs_bucket: str) -> None:
    storage = GcsStorage(f"{gcs_bucket}/run", page_size=3)
    names = [f"videos/{index:02d} ü.mp4" for index in range(10)]
    for name in names:
        storage.write(name, b"12")
    assert list(storage.list()) == [Entry(name, 2) for name in names]
    assert list(storage.list("videos/0")) == [Entry(name, 2) for name in names]
    assert [entry.name for entry in storage.list("videos/05")] == ["videos/05 ü.mp4"]


@pytest.mark.gcs
def test_folder_marks_are_not_listed(gcs_bucket: str) -> None:
    storage = GcsStorage(f"{gcs_bucket}/run")
    bucket = storage._client.bucket(gcs_bucket.removeprefix("gs://"))
    for name in ["run/", "run/videos/", "run/videos/a.mp4"]:
        bucket.blob(name).upload_from_string(b"", if_generation_match=0)
    assert list(storage.list()) == [Entry("videos/a.mp4", 0)]


@pytest.mark.gcs
@pytest.mark.parametrize("operation", OPERATIONS)
def test_missing_bucket_is_permanent(gcs_bucket: str, tmp_path: Path, operation: str) -> None:
    storage = GcsStorage("gs://no-such-bucket/run")  # with the default budgets: no retry may happen
    with pytest.raises(ConfigError, match=r"^gs://no-such-bucket: no such bucket") as error:
        operations(storage, tmp_path)[operation]()
    assert error.value.exit_status == 78
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_storage_away_for_longer_than_the_budget(
    tmp_path: Path, operation: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{free_port()}")
    storage = GcsStorage("gs://bucket/run", outage_seconds=0.3)
    with pytest.raises(StorageError, match=r"expected an answer within 0\.3 s") as error:
        operations(storage, tmp_path)[operation]()
    assert error.value.exit_status == 75
    assert len(str(error.value).splitlines()) == 1
    assert not (tmp_path / "target").exists()
    assert [record.message.count("trying again") for record in caplog.records] == [1]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_server_errors_for_longer_than_the_budget(
    tmp_path: Path, operation: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = GcsStorage("gs://bucket/run", outage_seconds=0.3)
    monkeypatch.setattr(storage, "_request_seconds", 60.0)  # an answer that comes late is another error
    with (
        answering(lambda method, path: (503, {}, b"busy"), monkeypatch),
        pytest.raises(StorageError, match=r"503.*expected an answer within 0\.3 s"),
    ):
        operations(storage, tmp_path)[operation]()


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_refused_credentials(tmp_path: Path, operation: str, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    storage = GcsStorage("gs://bucket/run", grace_seconds=0.3)
    with (
        answering(lambda method, path: (status, {}, b"no"), monkeypatch),
        pytest.raises(ConfigError, match=r"gs://bucket/run.*expected credentials.*refused for 0\.3 s") as error,
    ):
        operations(storage, tmp_path)[operation]()
    assert error.value.exit_status == 78


def test_credentials_that_become_valid(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([(403, {}, b"not yet"), (403, {}, b"not yet")])
    with answering(lambda method, path: next(answers, OK) if "/o" in path else OK, monkeypatch) as requests:
        GcsStorage("gs://bucket/run", grace_seconds=30).write("a", b"1")
    assert len(requests) == 3


def test_no_credentials_at_all(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "missing.json"))
    with pytest.raises(ConfigError, match=r"missing\.json.*expected credentials"):
        GcsStorage("gs://bucket/run", grace_seconds=0.1).read("a")


def test_emulator_without_a_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "127.0.0.1:4443")
    with pytest.raises(ConfigError, match=r"127\.0\.0\.1:4443"):
        GcsStorage("gs://bucket/run").read("a")


def test_download_that_disagrees_with_its_checksum(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = {"X-Goog-Hash": f"crc32c={base64.b64encode(b'1234').decode()}"}
    storage = GcsStorage("gs://bucket/run", grace_seconds=0.3)
    with answering(lambda method, path: (200, wrong, b"other bytes"), monkeypatch):
        with pytest.raises(CorruptError, match="gs://bucket/run/a"):
            storage.read("a")
        with pytest.raises(CorruptError, match="gs://bucket/run/a"):
            storage.download("a", tmp_path / "target")
    assert list(tmp_path.iterdir()) == []


MISMATCH: Answer = (
    400,
    {},
    b'{"error": {"message": "Provided CRC32C \\"a\\" doesn\'t match calculated CRC32C \\"b\\"."}}',
)


def test_upload_that_was_damaged_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server compares checksums: one more try, and when that goes on another machine may do better."""
    answers = iter([MISMATCH])
    storage = GcsStorage("gs://bucket/run", grace_seconds=30)
    with answering(lambda method, path: next(answers, OK) if method == "POST" else OK, monkeypatch) as requests:
        storage.write("a", b"1")
    assert [request.split()[0] for request in requests] == ["POST", "POST"]
    storage = GcsStorage("gs://bucket/run", grace_seconds=0.3)
    with (
        answering(lambda method, path: MISMATCH, monkeypatch),
        pytest.raises(StorageError, match=r"gs://bucket/run/a.*CRC32C") as error,
    ):
        storage.write("a", b"1")
    assert error.value.exit_status == 75


def test_an_endpoint_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """For uploads as for downloads; the library's error is a ValueError, too."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "ftp://127.0.0.1")
    storage = GcsStorage("gs://bucket/run")
    for call in (lambda: storage.write("a", b"1"), lambda: storage.read("a")):
        with pytest.raises(ConfigError, match="InvalidSchema"):
            call()


@pytest.mark.parametrize("operation", ["write", "list"])
def test_an_answer_that_is_not_the_server_s(tmp_path: Path, operation: str, monkeypatch: pytest.MonkeyPatch) -> None:
    answers: Iterator[Answer] = iter([(200, {"Content-Type": "text/html"}, b"<html>Please log in</html>")])
    with answering(lambda method, path: next(answers, OK) if "/o" in path else OK, monkeypatch) as requests:
        operations(GcsStorage("gs://bucket/run", outage_seconds=30), tmp_path)[operation]()
    assert len(requests) == 2


@pytest.mark.parametrize("status", [404, 410])
def test_lost_upload_session_starts_again(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([(status, {}, b"no such session")])
    with answering(lambda method, path: next(answers, OK) if method == "POST" else OK, monkeypatch) as requests:
        GcsStorage("gs://bucket/run").write("a", b"1")
    assert [request.split()[0] for request in requests] == ["POST", "GET", "POST"]  # the GET asks for the bucket


@pytest.mark.parametrize(("stored", "created"), [(b"own", True), (b"another's", False)], ids=["own", "another's"])
def test_create_whose_answer_was_lost(stored: bytes, created: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([(503, {}, b"lost"), (412, {}, b"it exists")])
    found: Answer = (200, {"Content-Type": "application/octet-stream"}, stored)
    with answering(lambda method, path: next(answers) if method == "POST" else found, monkeypatch) as requests:
        assert GcsStorage("gs://bucket/run").create("a", b"own") == created
    assert [request.split()[0] for request in requests] == ["POST", "POST", "GET"]
    assert all("ifGenerationMatch=0" in request for request in requests[:2])


@pytest.mark.parametrize(("says", "questions"), [(b"No such object: bucket/run/a", 0), (b"Not Found", 5)])
def test_a_missing_object(tmp_path: Path, says: bytes, questions: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Google's word for it is taken; without one each 404 is followed by a question for the bucket."""
    storage = GcsStorage("gs://bucket/run")
    with answering(lambda method, path: OK if "/o?" in path else (404, {}, says), monkeypatch) as requests:
        assert not storage.exists("a")
        assert storage.version("a") == 0
        storage.delete("a")
        for call in (lambda: storage.read("a"), lambda: storage.download("a", tmp_path / "a")):
            with pytest.raises(NotFoundError):
                call()
    assert sum("/o?" in request for request in requests) == questions
    assert len(requests) == 5 + questions


class Bucket:
    """Answers as a bucket with one object, "kept"; or as none at all, for `away` requests for objects.

    says: the words for the latter, of an emulator or of Google.
    """

    def __init__(self, says: str = "Not Found") -> None:
        self.away = 0
        self._says = says.encode()

    def __call__(self, method: str, path: str) -> Answer:
        if "/o" in path and self.away:
            self.away -= 1
            return (404, {}, self._says)
        here = "/o?" in path or "kept" in path or method == "POST"
        return OK if here else (404, {}, b"")


SAYS = pytest.mark.parametrize("says", ["Not Found", "The specified bucket does not exist."])


@SAYS
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_bucket_that_is_gone_after_it_was_seen_is_an_outage(
    tmp_path: Path, operation: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also after an object was missed, and whichever part of this process has seen it."""
    bucket = Bucket(says)
    with answering(bucket, monkeypatch):
        assert not GcsStorage("gs://bucket").exists("gone")
        storage = GcsStorage("gs://bucket/run", outage_seconds=0.3)
        monkeypatch.setattr(storage, "_request_seconds", 60.0)  # an answer that comes late is another error
        bucket.away = 10**6
        with pytest.raises(StorageError, match=r"gs://bucket: no such bucket.*within 0\.3 s") as error:
            operations(storage, tmp_path)[operation]()
    assert error.value.exit_status == 75
    assert not (tmp_path / "target").exists()


@SAYS
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_process_of_a_run_waits_for_a_bucket_that_it_never_saw(
    tmp_path: Path, operation: str, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage_gcs, "_DELAYS", (0.02, 0.5, 2.0))
    bucket = Bucket(says)
    with answering(bucket, monkeypatch) as requests:
        hasty = GcsStorage("gs://bucket/run", outage_seconds=0.3, patient=True)
        monkeypatch.setattr(hasty, "_request_seconds", 60.0)  # an answer that comes late is another error
        bucket.away = 10**6
        with pytest.raises(ConfigError, match=r"^gs://bucket: no such bucket"):
            operations(hasty, tmp_path)[operation]()
        bucket.away = 4
        requests.clear()
        storage = GcsStorage("gs://bucket/run", outage_seconds=60, patient=True)
        with suppress(NotFoundError):  # what is asked for may be missing from it
            operations(storage, tmp_path)[operation]()
        assert len(requests) > 4


def test_a_bucket_that_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An object that is in it is not taken for one that is not, nor the other way round."""
    bucket = Bucket()
    with answering(bucket, monkeypatch):
        storage = GcsStorage("gs://bucket/run", outage_seconds=60)
        storage.write("kept", b"{}")
        for _ in range(2):
            bucket.away = 4
            storage.download("kept", tmp_path / "target")
            assert (tmp_path / "target").read_bytes() == b"{}"
            bucket.away = 4
            with pytest.raises(NotFoundError):
                storage.download("gone", tmp_path / "other")


@pytest.fixture
def lasting_server(gcs_server: GcsServer, tmp_path: Path) -> Iterator[GcsServer]:
    """A server of its own whose objects outlive it."""
    (tmp_path / "objects").mkdir()
    server = GcsServer(tmp_path / "server.log", folder=tmp_path / "objects")
    server.start()
    server.make_bucket("bucket")
    yield server
    server.kill()


@pytest.mark.gcs
def test_server_that_comes_back_within_the_budget(lasting_server: GcsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", lasting_server.url)
    storage = GcsStorage("gs://bucket/run", outage_seconds=60)
    storage.write("a", b"before")
    lasting_server.kill()
    with ThreadPoolExecutor(1) as pool:
        with socket.create_server(("127.0.0.1", lasting_server.port)) as stand_in:
            stand_in.settimeout(60)
            writing = pool.submit(storage.write, "b", b"after")
            stand_in.accept()[0].close()  # a request has failed
        assert not writing.done()
        lasting_server.start()
        writing.result()
    assert (storage.read("a"), storage.read("b")) == (b"before", b"after")


class CutProxy:
    """Passes bytes on to a port until `limit` of one direction went through it; calls `cut`, drops that connection.

    Later connections are whole.
    """

    def __init__(self, direction: str, limit: int, cut: Callable[[], None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.target = 0
        self._direction, self._left, self._cut = direction, limit, cut
        self.was_cut = False
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            try:
                server = socket.create_connection(("127.0.0.1", self.target))
            except ConnectionRefusedError:  # the server is just being replaced
                client.close()
                continue
            for direction, source, sink in (("up", client, server), ("down", server, client)):
                threading.Thread(target=self._pass, args=(direction, source, sink), daemon=True).start()

    def _pass(self, direction: str, source: socket.socket, sink: socket.socket) -> None:
        try:
            while data := source.recv(1 << 16):
                if direction == self._direction and not self.was_cut:
                    self._left -= len(data)
                    if self._left < 0:
                        self.was_cut = True
                        self._cut()
                        return
                sink.sendall(data)
        except OSError:  # the other direction has closed both, or the server was killed
            pass
        finally:
            _drop(source)
            _drop(sink)


def _drop(end: socket.socket) -> None:
    try:
        end.shutdown(socket.SHUT_RDWR)
    except OSError:  # not connected any more
        pass
    finally:
        end.close()


@pytest.mark.gcs
@pytest.mark.parametrize("direction", ["up", "down"])
def test_server_killed_in_the_middle_of_a_transfer(
    gcs_server: GcsServer, tmp_path: Path, direction: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def replace_server() -> None:
        server.kill()
        server.start()

    proxy = CutProxy(direction, 5 << 20, replace_server)
    (tmp_path / "objects").mkdir()
    server = GcsServer(tmp_path / "server.log", folder=tmp_path / "objects", public_port=proxy.port)
    proxy.target = server.port
    server.start()
    try:
        server.make_bucket("bucket")
        monkeypatch.setenv("STORAGE_EMULATOR_HOST", server.url)
        storage = GcsStorage("gs://bucket/run", outage_seconds=60)
        source, target = tmp_path / "source", tmp_path / "target"
        source.write_bytes(os.urandom(20 << 20))
        storage.upload(source, "big")
        storage.download("big", target)
        assert proxy.was_cut
        assert target.read_bytes() == source.read_bytes()
    finally:
        proxy.close()
        server.kill()
