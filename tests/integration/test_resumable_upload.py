"""Uploads in chunks as Google's servers take them, which the emulator does not: a stand-in with TLS that keeps
what has arrived, ignores bytes that it has, and breaks connections.

cloud.google.com/storage/docs/performing-resumable-uploads
"""

from __future__ import annotations

import base64
import datetime
import ipaddress
import itertools
import json
import os
import re
import ssl
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import google_crc32c
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from deepfake_detector.adapters import storage_gcs
from deepfake_detector.adapters.storage_gcs import GcsStorage
from deepfake_detector.core.errors import StorageError
from tests.integration.gcs_server import serving

CHUNK = storage_gcs._CHUNK
BIG = os.urandom(3 * CHUNK + 12345)


def certificate(folder: Path) -> Path:
    """A key and its own certificate for 127.0.0.1, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "both.pem").write_bytes(pem + signed.public_bytes(serialization.Encoding.PEM))
    return folder / "both.pem"


class Uploads:
    """What the server holds. breaks: what becomes of the n-th chunk: well, busy, lost, cut or less."""

    def __init__(self, breaks: Iterator[str]) -> None:
        self.sessions: dict[str, bytearray] = {}
        self.objects: dict[str, bytes] = {}
        self.received = 0
        self.breaks = breaks


Serve = Callable[[Iterator[str]], AbstractContextManager[Uploads]]


def handler(uploads: Uploads) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:  # the library asks for the bucket in the background
            self.answer(404)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            session = str(len(uploads.sessions))
            uploads.sessions[session] = bytearray()
            place = f"https://{self.headers['Host']}/upload/{session}"
            self.answer(200, Location=place)

        def do_PUT(self) -> None:
            length = int(self.headers["Content-Length"])
            found = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", self.headers["Content-Range"])
            assert found is not None
            first, _, total = map(int, found.groups())
            kept = uploads.sessions[self.path.rpartition("/")[2]]
            how = next(uploads.breaks)
            if how == "cut":
                length //= 2
            data = self.rfile.read(length)
            uploads.received += len(data)
            assert first <= len(kept)
            kept += data[len(kept) - first :]
            if how in ("cut", "lost"):
                self.close_connection = True
                return
            if how == "busy":
                self.answer(503)
            elif len(kept) < total:
                end = len(kept) - (1 << 18 if how == "less" else 0)
                del kept[end:]
                self.answer(308, Range=f"bytes=0-{end - 1}")
            else:
                uploads.objects["a"] = bytes(kept)
                crc32c = base64.b64encode(google_crc32c.Checksum(bytes(kept)).digest()).decode()
                self.answer(200, json.dumps({"name": "a", "crc32c": crc32c}).encode())

        def answer(self, status: int, body: bytes = b"{}", **headers: str) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    return Handler


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    both = certificate(tmp_path)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(both))
    monkeypatch.setattr(storage_gcs, "_DELAYS", (0.02, 0.5, 2.0))

    @contextmanager
    def run(breaks: Iterator[str]) -> Iterator[Uploads]:
        uploads = Uploads(breaks)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(both)
        with ThreadingHTTPServer(("127.0.0.1", 0), handler(uploads)) as server:
            server.socket = context.wrap_socket(server.socket, server_side=True)
            server.handle_error = lambda *_: None  # type: ignore[method-assign]  # the client's end of a break
            monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"https://127.0.0.1:{server.server_port}")
            with serving(server):
                yield uploads

    return run


@pytest.mark.parametrize("how", ["busy", "lost", "cut"])
def test_an_upload_goes_on_where_it_broke(serve: Serve, tmp_path: Path, how: str) -> None:
    """Every second request of it breaks, and only that one is sent again."""
    (tmp_path / "source").write_bytes(BIG)
    with serve(itertools.cycle([how, "well"])) as uploads:
        GcsStorage("gs://bucket/run", outage_seconds=30).upload(tmp_path / "source", "a")
        assert uploads.objects["a"] == BIG
        assert len(uploads.sessions) == 1
        assert uploads.received <= 2 * len(BIG)


def test_a_server_that_keeps_less_than_was_sent(serve: Serve) -> None:
    """The library can't go on from there: the upload begins again."""
    with serve(itertools.chain(["well", "less"], itertools.repeat("well"))) as uploads:
        GcsStorage("gs://bucket/run", outage_seconds=30).write("a", BIG)
        assert uploads.objects["a"] == BIG
        assert len(uploads.sessions) == 2


def test_an_upload_that_gets_nowhere(serve: Serve) -> None:
    with (
        serve(itertools.chain(["well"], itertools.repeat("busy"))) as uploads,
        pytest.raises(StorageError, match=r"503.*expected an answer within 0\.5 s"),
    ):
        GcsStorage("gs://bucket/run", outage_seconds=0.5).write("a", BIG)
    assert len(uploads.sessions) == 1
