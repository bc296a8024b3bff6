"""The way to an API server: kubeconfig, requests that are tried again, streams of lines, refusals in words.

The official client brings the kubeconfig (contexts, certificates, exec plugins, proxies) and the connection. Its models
are left out: they rename every key and drop what they do not know, so objects are plain dicts with camelCase keys.
"""

from __future__ import annotations

import json
import logging
import re
import socket
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from deepfake_detector.core.errors import ClusterAwayError, ClusterError

Query = Sequence[tuple[str, str]]

CONNECT_SECONDS, READ_SECONDS = 10.0, 60.0
RETRY_SECONDS = (1.0, 2.0)  # pauses before a request is sent again
BUSY = (429, 500, 502, 503, 504)
SIGN_IN = "log in again (for GKE: gcloud container clusters get-credentials), or name another CONTEXT"


class RefusedError(ClusterError):
    """The API server's refusal. status: of HTTP; reason: in one word of its own, for example "AlreadyExists"."""

    def __init__(self, message: str, status: int, reason: str) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class KubeApi:
    """One context of the kubeconfig. requests: sent so far, repeated ones included. Threads may share it.

    Raises ClusterAwayError when the server does not answer, and RefusedError when it refuses.
    """

    def __init__(self, client: Any, context: str, namespace: str) -> None:
        self.context = context
        self.namespace = namespace
        self.requests = 0
        self._client = client
        self._lock = threading.Lock()

    @classmethod
    def connect(cls, context: str | None, namespace: str) -> KubeApi:
        """Read the kubeconfig; nothing is sent. Raises ClusterError: none there, no such context, no credentials."""
        client, name = _load_client(context)
        return cls(client, name, namespace)

    def call(
        self, method: str, path: str, *, query: Query = (), body: Mapping[str, Any] | None = None, again: bool = True
    ) -> dict[str, Any]:
        """The answer's JSON object. again: try twice more where the server is away or busy.

        Every request of this project may be sent twice: objects are created under fixed names.
        """
        for pause in (*RETRY_SECONDS, None) if again else (None,):
            try:
                return self._object(self._send(method, path, query, body, READ_SECONDS, whole=True))
            except ClusterAwayError:
                if pause is None:
                    raise
                time.sleep(pause)
        raise AssertionError("the last try returns or raises")

    def _object(self, content: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(content)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):  # the page of a proxy or of a network's login
            said = content[:100].decode("utf-8", "replace")
            raise ClusterAwayError(f"{self._client.configuration.host}: {said!r}: expected a JSON object of Kubernetes")
        return answer

    def lines(self, path: str, query: Query, stop: threading.Event, silence_seconds: float | None) -> Iterator[bytes]:
        """Whole lines of a streamed answer as they come, until it ends or `stop` is set, at once in both cases.

        silence_seconds: without a byte, after which the connection counts as lost; None: never.
        """
        from urllib3.exceptions import HTTPError

        response = self._send("GET", path, query, None, silence_seconds)
        rest = b""
        try:
            with _shut_on(stop, response):
                for chunk in response.stream(amt=None, decode_content=False):
                    *lines, rest = (rest + chunk).split(b"\n")
                    yield from lines
        except (HTTPError, OSError, ValueError) as error:  # ValueError: shut by `stop` in the middle of a chunk
            if not stop.is_set():
                raise self._away(error) from None
        finally:
            response.close()
        if rest and not stop.is_set():
            yield rest

    def _send(
        self,
        method: str,
        path: str,
        query: Query,
        body: Mapping[str, Any] | None,
        read_seconds: float | None,
        *,
        whole: bool = False,
    ) -> Any:
        """One request. whole: the answer's bytes, instead of the open response (urllib3's)."""
        from kubernetes.client.exceptions import ApiException
        from urllib3.exceptions import HTTPError

        request = self._client.param_serialize(
            method,
            path,
            query_params=list(query),
            header_params={"Accept": "application/json, */*", "Content-Type": "application/json"},
            body=body,
            auth_settings=["BearerToken"],
        )
        with self._lock:
            self.requests += 1
        try:
            response = self._client.call_api(*request, _request_timeout=(CONNECT_SECONDS, read_seconds)).response
            failed = not 200 <= response.status <= 299
            content = response.data if failed or whole else b""
        except (HTTPError, OSError, ApiException) as error:  # ApiException: TLS, with the status 0
            raise self._away(error) from None
        if failed:
            self._refuse(response.status, content)
        return content if whole else response

    def _away(self, error: Exception) -> ClusterAwayError:
        inner = next((each for each in reversed(error.args) if isinstance(each, Exception)), error)
        # urllib3 begins with the connection's repr: "HTTPSConnection(host='...', port=443): Failed to ..."
        reason = re.sub(r"^HTTPS?Connection\w*\([^)]*\): ", "", " ".join(str(inner).split()))
        return ClusterAwayError(
            f"context {self.context}: {self._client.configuration.host} does not answer ({reason}): expected an API "
            f"server (is the cluster up? kubectl --context {self.context} version)"
        )

    def _refuse(self, status: int, content: bytes) -> None:
        try:
            answer = json.loads(content)
        except ValueError:
            answer = {}  # a proxy's page
        if not isinstance(answer, dict):
            answer = {}
        message = " ".join(str(answer.get("message") or content[:200].decode("utf-8", "replace")).split())
        if status in BUSY:
            raise ClusterAwayError(f"context {self.context}: the API server answers {status} ({message}): try again")
        missing = status == 404 and answer.get("details", {}).get("kind") == "namespaces"
        text = self._missing_namespace() if missing else self._explain(status, message)
        raise RefusedError(text, status, str(answer.get("reason", "")))

    def _explain(self, status: int, message: str) -> str:
        where = f"context {self.context}, namespace {self.namespace}"
        if status == 401 or 'User "system:anonymous"' in message:
            return f"{where}: the API server does not accept the credentials ({status}): {SIGN_IN}"
        forbidden = re.search(r'User "([^"]*)" cannot (\S+) resource "([^"]*)"(?: in API group "([^"]+)")?', message)
        if forbidden:
            user, verb, resource, group = forbidden.groups()
            return (
                f"{where}: user {user} may not {verb} {resource}{f'.{group}' if group else ''}: expected the Role "
                "'submitter' of k8s/base, which grants what submitting needs, in a RoleBinding to this user"
            )
        return f"{where}: refused ({status}): {message}"

    def _missing_namespace(self) -> str:
        return (
            f"context {self.context}, namespace {self.namespace}: there is no such namespace: "
            f"make deploy CONTEXT={self.context} NAMESPACE={self.namespace}"
        )


def _load_client(context: str | None) -> tuple[Any, str]:
    from kubernetes import client, config
    from kubernetes.config.kube_config import KUBE_CONFIG_DEFAULT_LOCATION
    from yaml import YAMLError

    configuration = client.Configuration()
    configuration.retries = False  # urllib3 would send a failed request again at once, three times
    configuration.keep_alive = True  # a watch notices a peer that vanished without a word
    name, errors = context, []
    try:
        if name is None:
            name = config.list_kube_config_contexts()[1]["name"]
        with _logged_errors() as errors:
            api = config.new_client_from_config(context=name, client_configuration=configuration)
    except (config.ConfigException, YAMLError, OSError) as error:
        names = _context_names()
        if name is not None and names and name not in names:
            raise ClusterError(f"context {name}: expected one of {', '.join(names)} (CONTEXT, --context)") from None
        raise ClusterError(
            f"{KUBE_CONFIG_DEFAULT_LOCATION}: no usable kubeconfig ({' '.join(str(error).split())}): expected a file "
            "that names a cluster, as kind, minikube or gcloud container clusters get-credentials write it (KUBECONFIG)"
        ) from None
    if errors:
        raise ClusterError(f"context {name}: no credentials ({errors[0]}): {SIGN_IN}")
    return api, str(name)


def _context_names() -> list[str]:
    from kubernetes import config
    from yaml import YAMLError

    try:
        return [context["name"] for context in config.list_kube_config_contexts()[0]]
    except (config.ConfigException, YAMLError, OSError):
        return []


@contextmanager
def _logged_errors() -> Iterator[list[str]]:
    """What is logged as an error on the root logger: all that the client says of an exec plugin that fails."""
    messages: list[str] = []

    def take(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.ERROR:
            messages.append(" ".join(record.getMessage().split()))
        return record.levelno < logging.ERROR

    logging.root.addFilter(take)
    try:
        yield messages
    finally:
        logging.root.removeFilter(take)


@contextmanager
def _shut_on(stop: threading.Event, response: Any) -> Iterator[None]:
    """Shut the response's connection when `stop` is set: a reader blocked on it can be woken in no other way."""
    over = threading.Event()

    def wait() -> None:
        while not over.is_set():
            if stop.wait(0.5):
                connection = getattr(response.connection, "sock", None)
                if connection is not None:
                    with suppress(OSError):
                        socket.socket.shutdown(connection, socket.SHUT_RDWR)  # TLS's own would race the reader
                return

    threading.Thread(target=wait, name="shut-on-stop", daemon=True).start()
    try:
        yield
    finally:
        over.set()
