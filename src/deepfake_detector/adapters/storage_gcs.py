"""Storage in a Google Cloud Storage bucket, or in an emulator of it.

google.cloud.storage is imported here and nowhere else; this module itself is imported when a gs:// URI is opened.
The client reads STORAGE_EMULATOR_HOST (with its scheme) by itself and is anonymous then; elsewhere it takes the
application default credentials, for example those of Workload Identity.

Retries wrap a whole operation and the library's own are off, so that budgets do not add up; the exception is an
upload in chunks, each of which has the budget to itself. The library's list of transient errors is kept. An answer
that never ends is bounded for the bytes of objects (gcs_download); the metadata of a page is not, beyond the
longest time without a byte. A 404 may mean the object, the bucket or a resumable upload's lost session. Google says
which; where it is not said, as by emulators, a listing tells (it needs storage.objects.list only, where reading the
bucket's metadata needs more than the role objectAdmin gives), each time, or an outage would make objects disappear. A
bucket that is gone after this process has seen it is an outage; one never seen is a wrong setting.
"""

from __future__ import annotations

import base64
import functools
import io
import logging
import mimetypes
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, TypeVar

import requests
from google.api_core import exceptions as api
from google.api_core.retry import Retry
from google.auth import exceptions as auth
from google.cloud import storage
from google.cloud.storage.exceptions import DataCorruption
from google.cloud.storage.retry import DEFAULT_RETRY

from deepfake_detector.adapters.files import os_errors, require_room, written_whole
from deepfake_detector.adapters.gcs_download import Download
from deepfake_detector.adapters.storage import Entry, checked_name
from deepfake_detector.core.errors import ConfigError, CorruptError, DetectorError, NotFoundError, StorageError
from deepfake_detector.core.markers import StoredFile

OUTAGE_SECONDS = 300.0
GRACE_SECONDS = 60.0  # Workload Identity may refuse in a pod's first seconds
_REQUEST_SECONDS = 60.0  # most time without a byte; the library's default
# Of an upload; at most this much is sent twice after a break. The least that Google advises is 8 MiB
# (cloud.google.com/storage/docs/performing-resumable-uploads#chunked-upload), and one is held in memory.
_CHUNK = 8 << 20
_CREATE_ROUNDS = 3  # more means that somebody else creates and deletes the same name all the time
_DELAYS = (0.5, 15.0, 2.0)  # the first, the longest (each is drawn between 0 and this), their growth
_BUCKET = re.compile(r"[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]")  # cloud.google.com/storage/docs/buckets#naming

_log = logging.getLogger(__name__)
T = TypeVar("T")
_seen: set[tuple[str, str]] = set()  # endpoint and bucket: something in it was answered for


class _BucketAwayError(ConnectionError):
    """A bucket that answers as one that does not exist does."""


class GcsStorage:
    """`adapters.storage.Storage` over gs://bucket/prefix; threads may share it.

    outage_seconds: how long transient errors are retried. grace_seconds: the same for refused credentials and for
    downloads that disagree with their checksum, either of which may pass but rarely does. page_size: objects per
    listing request; None leaves it to the server (1000). patient: as in `adapters.storage.open_storage`.
    """

    def __init__(
        self,
        uri: str,
        *,
        outage_seconds: float = OUTAGE_SECONDS,
        grace_seconds: float = GRACE_SECONDS,
        page_size: int | None = None,
        patient: bool = False,
    ) -> None:
        bucket, _, prefix = uri.removeprefix("gs://").strip("/").partition("/")
        if not uri.startswith("gs://") or not _BUCKET.fullmatch(bucket):
            raise ConfigError(f"{uri!r}: expected gs://bucket/prefix")
        self.uri = f"gs://{bucket}/{checked_name(prefix)}" if prefix else f"gs://{bucket}"
        self._bucket_name = bucket
        self._prefix = f"{prefix}/" if prefix else ""
        self._page_size = page_size
        self._patient = patient
        self._request_seconds = min(_REQUEST_SECONDS, outage_seconds)
        self._outage = Retry(_is_transient, *_DELAYS, timeout=outage_seconds)
        self._grace = Retry(_may_pass, *_DELAYS, timeout=grace_seconds)

    def read(self, name: str) -> bytes:
        buffer = io.BytesIO()
        self._fetch(name, buffer)
        return buffer.getvalue()  # no copy: CPython hands out the buffer itself

    def write(self, name: str, data: bytes) -> None:
        self._store(name, data)

    def create(self, name: str, data: bytes) -> bool:
        for _ in range(_CREATE_ROUNDS):
            if self._store(name, data, if_generation_match=0):
                return True
            with suppress(NotFoundError):  # deleted since: another round
                return self.read(name) == data
        raise StorageError(
            f"{self.uri}/{name}: expected an object that is there or not (it came and went {_CREATE_ROUNDS} times)"
        )

    def version(self, name: str) -> int:
        def call() -> int:
            blob = self._blob(name)
            blob.reload(retry=None, timeout=self._request_seconds)
            return int(blob.generation)

        try:
            return self._run(name, call)
        except NotFoundError:
            return 0

    def replace(self, name: str, data: bytes, version: int) -> bool:
        if self._store(name, data, if_generation_match=version):
            return True
        with suppress(NotFoundError):
            return self.read(name) == data  # as a retry after a lost answer finds it
        return False

    def exists(self, name: str) -> bool:
        def call() -> bool:
            self._blob(name).reload(retry=None, timeout=self._request_seconds)  # `exists` would hide what a 404 says
            return True

        try:
            return self._run(name, call)
        except NotFoundError:
            return False

    def list(self, prefix: str = "") -> Iterator[Entry]:
        for name, blob in self._blobs(prefix, "name,size"):
            yield Entry(name, blob.size)

    def checksums(self, prefix: str = "") -> Iterator[StoredFile]:
        for name, blob in self._blobs(prefix, "name,size,crc32c"):
            crc32c = base64.b64decode(blob.crc32c).hex()  # big-endian, as ours
            yield StoredFile(name=name, size=blob.size, crc32c=crc32c)

    def upload(self, path: Path, name: str) -> None:
        if not path.is_file():
            raise NotFoundError(f"{path}: expected a file to store as {self.uri}/{name}")
        with os_errors(path):
            self._store(name, path)

    def download(self, name: str, path: Path) -> None:
        with os_errors(path), written_whole(path, durable=False) as file:
            purpose = f"a copy of {self.uri}/{name}"
            self._fetch(name, file, lambda size: require_room(path.parent, size, purpose))

    def delete(self, name: str) -> None:
        with suppress(NotFoundError):
            self._run(name, lambda: self._blob(name).delete(retry=None, timeout=self._request_seconds))

    @functools.cached_property
    def _client(self) -> storage.Client:
        """Made at the first request, since looking for credentials may ask the metadata server.

        project=None: objects need none, and the library would otherwise refuse credentials that name none.
        """
        return storage.Client(project=None)

    def _fetch(self, name: str, file: BinaryIO, require_room: Callable[[int], None] = lambda size: None) -> None:
        """The object's bytes into an empty file. The budget of an outage starts anew when a request got on."""
        download: Download | None = None
        trouble = _Trouble(f"{self.uri}/{name}")

        def call() -> Exception | None:
            nonlocal download
            download = download or Download(
                self._client._http,  # authorised, and kept alive over requests
                self._client.api_endpoint,
                self._bucket_name,
                self._prefix + checked_name(name),
                file,
                self._request_seconds,
                require_room,
            )
            return download.go_on()

        while (broken := self._run(name, call, trouble)) is not None:
            trouble.met(broken)
        trouble.over()

    def _blob(self, name: str) -> storage.Blob:
        return self._client.bucket(self._bucket_name).blob(self._prefix + checked_name(name))

    def _store(self, name: str, content: bytes | Path, if_generation_match: int | None = None) -> bool:
        """Upload with a checksum; False when the precondition failed."""
        content_type = mimetypes.guess_type(name)[0] or "application/octet-stream"
        trouble = _Trouble(f"{self.uri}/{name}")

        def call() -> bool:
            blob, retry = self._blob(name), self._chunk_retry(trouble)
            if retry is not None:
                blob.chunk_size = _CHUNK
            upload = blob.upload_from_string if isinstance(content, bytes) else blob.upload_from_filename
            try:
                upload(
                    content,
                    content_type=content_type,
                    if_generation_match=if_generation_match,
                    checksum="crc32c",
                    retry=retry,
                    timeout=self._request_seconds,
                )
            except api.PreconditionFailed:
                return False
            except (api.GoogleAPICallError, ValueError) as error:
                if (meant := self._meant_by(error)) is None:
                    raise
                raise meant from error
            return True

        try:
            stored = self._run(name, call, trouble)
        except CorruptError as error:  # on its way from here: from another machine it may arrive
            raise StorageError(str(error)) from error
        trouble.over()
        return stored

    def _meant_by(self, error: Exception) -> Exception | None:
        """What an upload's error comes to where its class does not tell; None: it does."""
        if isinstance(error, api.GoogleAPICallError):
            if error.code in (404, 410):
                self._require_bucket(error)
                return ConnectionError(f"the session of a resumable upload is gone ({error.code})")
            # A server that was told a checksum compares it ("Provided CRC32C ... doesn't match calculated CRC32C ...").
            if error.code == 400 and "crc32c" in str(error).lower():
                return DataCorruption(None, f"damaged on the way: {error}")
        elif not isinstance(error, auth.GoogleAuthError | requests.RequestException):  # some are ValueErrors
            # The server kept less of a chunk than was sent, which the library can't resume.
            return ConnectionError(f"a resumable upload starts again: {error}")
        return None

    def _chunk_retry(self, trouble: _Trouble) -> Retry | None:
        """How a chunk of an upload is tried again; None: only the whole upload is, in one chunk.

        A chunk that is sent twice counts once with Google ("Cloud Storage ignores any bytes you send at an offset
        that Cloud Storage has already persisted", performing-resumable-uploads). fake-gcs-server 1.56.1 appends it
        again, whatever its offset, and a query of what has arrived makes an object of it (fakestorage/upload.go).
        It also sums up all that it has at each chunk: 96 MiB in chunks of 8 take 8 s, at once 2. Emulators are reached
        without TLS.
        """
        if not self._client.api_endpoint.startswith("https://"):
            return None
        return Retry(_is_transient, *_DELAYS, timeout=self._outage.timeout, on_error=trouble.met)

    def _blobs(self, prefix: str, fields: str) -> Iterator[tuple[str, storage.Blob]]:
        """Names below the root and metadata, sorted by name."""
        token = None
        while True:
            # A page per call, since the library's iterator ends silently when it is used again after an error.
            blobs, token = self._run(prefix, functools.partial(self._page, prefix, fields, token))
            for blob in blobs:
                name = blob.name.removeprefix(self._prefix)
                # Consoles mark empty folders by an object whose name ends with a slash; a folder has no such file.
                if name and not name.endswith("/"):
                    yield name, blob
            if not token:
                return

    def _page(self, prefix: str, fields: str, token: str | None) -> tuple[Sequence[storage.Blob], str | None]:
        iterator = self._client.list_blobs(
            self._bucket_name,
            prefix=self._prefix + prefix,
            page_size=self._page_size,
            page_token=token,
            fields=f"items({fields}),nextPageToken",
            retry=None,
            timeout=self._request_seconds,
        )
        try:
            blobs = list(next(iterator.pages, ()))
        except api.NotFound as error:
            raise self._no_bucket() from error
        return blobs, iterator.next_page_token

    def _require_bucket(self, error: api.GoogleAPICallError) -> None:
        """Whether a 404 is about what is in the bucket; raises what to tell of one that is not there."""
        said = error.message.lower()
        if "bucket does not exist" in said:
            raise self._no_bucket() from error
        if "no such object" not in said:
            self._ask_for_bucket()
        _seen.add(self._place)

    def _ask_for_bucket(self) -> None:
        probe = self._client.list_blobs(
            self._bucket_name, max_results=1, fields="items(name)", retry=None, timeout=self._request_seconds
        )
        try:
            next(iter(probe), None)
        except api.NotFound as error:
            raise self._no_bucket() from error

    def _no_bucket(self) -> Exception:
        message = f"gs://{self._bucket_name}: no such bucket (expected one that exists, for {self.uri})"
        return _BucketAwayError(message) if self._patient or self._place in _seen else ConfigError(message)

    @property
    def _place(self) -> tuple[str, str]:
        return self._client.api_endpoint, self._bucket_name

    def _run(self, name: str, call: Callable[[], T], trouble: _Trouble | None = None) -> T:
        """`call` with retries, and its errors as this project's. trouble: of an operation of more than one call."""
        where = f"{self.uri}/{name}"
        own = trouble or _Trouble(where)

        def try_once() -> T:
            try:
                return call()
            except api.NotFound as error:
                self._require_bucket(error)
                raise

        try:
            result = self._grace(self._outage(try_once, on_error=own.met), on_error=own.met)()
        except DetectorError:
            raise
        except api.NotFound as error:
            own.over()
            raise NotFoundError(f"{where}: no such object") from error
        except api.RetryError as error:
            raise self._given_up(f"{where}: try {own.tries}", error.cause) from error
        except auth.GoogleAuthError as error:
            raise StorageError(f"{where}: {_summary(error)}") from error
        except (api.GoogleAPIError, requests.RequestException) as error:
            raise ConfigError(f"{where}: {_summary(error)}") from error
        _seen.add(self._place)
        if trouble is None:
            own.over()
        return result

    def _given_up(self, where: str, cause: Exception | None) -> DetectorError:
        if isinstance(cause, DataCorruption):
            return CorruptError(f"{where}: {_summary(cause)}")
        if isinstance(cause, _BucketAwayError) and self._place not in _seen:
            return ConfigError(str(cause))
        if cause is None or not _refused(cause):
            return StorageError(f"{where}: {_summary(cause)}: expected an answer within {self._outage.timeout:g} s")
        message = (
            f"{where}: {_summary(cause)}: expected credentials that may use the bucket "
            f"(refused for {self._grace.timeout:g} s)"
        )
        return StorageError(message) if getattr(cause, "retryable", False) else ConfigError(message)


class _Trouble:
    """What an operation met: said when it begins and, with its duration, when it is over."""

    def __init__(self, where: str) -> None:
        self.tries = 0  # that failed
        self._where = where
        self._since = 0.0

    def met(self, error: Exception) -> None:
        if not self.tries:
            self._since = time.monotonic()
            _log.warning("%s: %s; trying again", self._where, _summary(error))
        self.tries += 1

    def over(self) -> None:
        if self.tries:
            seconds = time.monotonic() - self._since
            _log.warning("%s: done, %.1f s after the first of %d failed tries", self._where, seconds, self.tries)
            self.tries = 0


def _is_transient(error: Exception) -> bool:
    """The library's own list, and what is no answer of the server's: a page of something in between, for example."""
    return DEFAULT_RETRY._predicate(error) or isinstance(error, requests.JSONDecodeError)


def _refused(error: Exception) -> bool:
    """401, 403, or no valid credentials to begin with."""
    if isinstance(error, auth.GoogleAuthError):
        return not isinstance(error, auth.TransportError)
    return isinstance(error, api.Unauthorized | api.Forbidden)


def _may_pass(error: Exception) -> bool:
    return _refused(error) or isinstance(error, DataCorruption)


def _summary(error: Exception | None) -> str:
    """One line of at most 200 characters."""
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]
