"""A small API server: objects in memory, lists and watches over HTTP, and the troubles that a real one has.

It knows no schema and no controllers: what is created stays as it is until `put` changes it.
"""

from __future__ import annotations

import copy
import json
import re
import socket
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

Object = dict[str, Any]
PATH = re.compile(
    r"(/api/v1|/apis/[^/]+/v1)(?:/namespaces/(?P<namespace>[^/]+))?/(?P<kind>[a-z]+)(?:/(?P<name>[^/]+))?"
)
REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"


class ApiServer:
    """requests: "METHOD /path?query" of all so far. denied: (verb, resource) that access reviews refuse.

    said: time (RFC 3339) and text of all that every pod says. endless_logs: its streams wait for more of it.
    """

    def __init__(self) -> None:
        self.requests: list[str] = []
        self.denied: set[tuple[str, str]] = set()
        self.objects: dict[str, Object] = {}  # "kind/name"
        self.namespaces = {"mine"}
        self.refusals: deque[tuple[int, Object]] = deque()  # answers of the next requests
        self.before_create: Callable[[Object], None] = lambda _: None  # what others do at just that moment
        self.before_answer: Callable[[str], None] = lambda _: None  # "list jobs", "create jobs": done, and not yet told
        self.said = [(f"2026-01-01T00:00:0{at}.5Z", text) for at, text in enumerate(("first\n", "second\n", "third"))]
        self.endless_logs = False
        self.version = 100
        self.expired_before = 0
        self._changes: list[tuple[int, str, str, Object]] = []  # version, kind, change, object
        self._watchers: list[socket.socket] = []
        self._readers: list[socket.socket] = []
        self._streams_ended = 0
        self._changed = threading.Condition()
        api = self

        class Handler(_Handler):
            server_state = api

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self.drop_watches()
        self.drop_logs()
        self._server.shutdown()
        self._server.server_close()

    def kubeconfig(self, path: Path, *names: str) -> Path:
        """A file with these contexts, the first of them current."""
        names = names or ("test",)
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": names[0],
            "clusters": [{"name": "c", "cluster": {"server": self.url}}],
            "users": [{"name": "u", "user": {"token": "secret"}}],
            "contexts": [{"name": name, "context": {"cluster": "c", "user": "u"}} for name in names],
        }
        path.write_text(json.dumps(document))
        return path

    def put(self, kind: str, name: str, /, **fields: Any) -> Object:
        """Create or change an object, as a controller would."""
        with self._changed:
            key = f"{kind}/{name}"
            before = self.objects.get(key)
            thing = copy.deepcopy(fields)
            metadata = thing.setdefault("metadata", {})
            self.version += 1
            metadata |= {"name": name, "resourceVersion": str(self.version)}
            metadata["uid"] = before["metadata"]["uid"] if before else f"uid-{self.version}"
            metadata.setdefault("creationTimestamp", "2026-01-01T00:00:00Z")
            self.objects[key] = thing
            self._tell(kind, "MODIFIED" if before else "ADDED", thing)
            return thing

    def remove(self, kind: str, name: str) -> None:
        with self._changed:
            thing = self.objects.pop(f"{kind}/{name}")
            self.version += 1
            thing["metadata"]["resourceVersion"] = str(self.version)
            self._tell(kind, "DELETED", thing)

    def _tell(self, kind: str, change: str, thing: Object) -> None:
        self._changes.append((self.version, kind, change, copy.deepcopy(thing)))
        self._changed.notify_all()

    def expire(self) -> None:
        """Forget all changes so far, as compaction does: watches that start before now get 410."""
        with self._changed:
            self.version += 1
            self.expired_before = self.version

    def drop_watches(self) -> None:
        """Cut all watch connections without a word."""
        self._drop(self._watchers)

    def drop_logs(self) -> None:
        """Cut all connections on which logs are read, in the same way."""
        self._drop(self._readers)

    def end_logs(self) -> None:
        """End them in good order, as a kubelet or proxy does that has to go."""
        with self._changed:
            self._streams_ended += 1
            self._changed.notify_all()

    def say(self, time: str, text: str) -> None:
        with self._changed:
            self.said.append((time, f"{text}\n"))
            self._changed.notify_all()

    def _drop(self, connections: list[socket.socket]) -> None:
        with self._changed:
            for connection in connections:
                with suppress(OSError):  # the client has gone by itself
                    connection.shutdown(socket.SHUT_RDWR)
            connections.clear()

    def wait_for_watches(self, count: int, seconds: float = 20.0) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self._watchers) >= count, seconds), self.requests

    def listed(self, kind: str, query: dict[str, str]) -> list[Object]:
        with self._changed:
            things = [thing for key, thing in self.objects.items() if key.startswith(f"{kind}/")]
            return copy.deepcopy([thing for thing in things if _selected(thing, query)])

    def watched(self, kind: str, query: dict[str, str], connection: socket.socket) -> Iterator[Object]:
        """Events from the query's resourceVersion on, for ever."""
        seen = int(query["resourceVersion"])
        if seen < self.expired_before:
            yield {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired"}}
            return
        with self._changed:
            self._watchers.append(connection)
            self._changed.notify_all()
        while True:
            with self._changed:
                while not (self._changes and self._changes[-1][0] > seen):
                    self._changed.wait()
                news = [change for change in self._changes if change[0] > seen]
                seen = news[-1][0]
            for _, of_kind, change, thing in news:
                if of_kind == kind and _selected(thing, query):
                    yield {"type": change, "object": thing}

    def logged(self, query: dict[str, str], connection: socket.socket) -> Iterator[bytes]:
        """What every pod says, from a whole second on, as the kubelet has it."""
        endless = self.endless_logs and "follow" in query
        since, seen, ended = query.get("sinceTime", "")[:19], 0, self._streams_ended
        self._readers.append(connection)
        try:
            while True:
                with self._changed:
                    news, seen = self.said[seen:], len(self.said)
                for time, text in news:
                    if time[:19] >= since:
                        yield (f"{time} {text}" if "timestamps" in query else text).encode()
                with self._changed:
                    while endless and len(self.said) == seen and self._streams_ended == ended:
                        self._changed.wait()
                    if len(self.said) == seen:
                        return
        finally:
            with suppress(ValueError):  # dropped
                self._readers.remove(connection)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_state: ApiServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def do_DELETE(self) -> None:
        self._serve()

    def _serve(self) -> None:
        api = self.server_state
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length) or b"{}")
        api.requests.append(f"{self.command} {self.path}")
        if api.refusals:
            self._answer(*api.refusals.popleft())
            return
        url = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path == "/version":
            self._answer(200, {"major": "1", "minor": "34+"})
        elif url.path == REVIEWS:
            asked = body["spec"]["resourceAttributes"]
            self._answer(201, {"status": {"allowed": (asked["verb"], asked["resource"]) not in api.denied}})
        elif url.path.endswith("/log"):
            self._stream(api.logged(query, self.connection))
        elif found := PATH.fullmatch(url.path):
            self._object(found["kind"], found["name"], found["namespace"], query, body)
        else:
            self._answer(404, {"message": url.path})

    def _object(self, kind: str, name: str | None, namespace: str | None, query: dict[str, str], body: Object) -> None:
        api = self.server_state
        if self.command == "POST":
            self._create(kind, namespace, body)
        elif name is None and query.get("watch"):
            self._stream(json.dumps(event).encode() + b"\n" for event in api.watched(kind, query, self.connection))
        elif name is None:
            answer = {"metadata": {"resourceVersion": str(api.version)}, "items": api.listed(kind, query)}
            api.before_answer(f"list {kind}")
            self._answer(200, answer)
        elif f"{kind}/{name}" not in api.objects:
            self._answer(
                404, {"reason": "NotFound", "message": f'{kind} "{name}" not found', "details": {"kind": kind}}
            )
        elif self.command == "DELETE":
            uid = api.objects[f"{kind}/{name}"]["metadata"]["uid"]
            if body.get("preconditions", {}).get("uid", uid) != uid:
                self._answer(409, {"reason": "Conflict", "message": "another uid"})
                return
            api.remove(kind, name)
            self._answer(200, {"status": "Success"})
        else:
            self._answer(200, api.objects[f"{kind}/{name}"])

    def _create(self, kind: str, namespace: str | None, body: Object) -> None:
        api = self.server_state
        name = body["metadata"]["name"]
        api.before_create(body)
        if namespace not in api.namespaces:
            details = {"kind": "namespaces", "name": namespace}
            message = f'namespaces "{namespace}" not found'
            self._answer(404, {"reason": "NotFound", "message": message, "details": details})
        elif f"{kind}/{name}" in api.objects:
            self._answer(409, {"reason": "AlreadyExists", "message": f'{kind} "{name}" already exists'})
        else:
            answer = api.put(kind, name, **body)
            api.before_answer(f"create {kind}")
            self._answer(201, answer)

    def _answer(self, status: int, document: Object) -> None:
        content = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _stream(self, chunks: Iterator[bytes]) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for chunk in chunks:
                self.wfile.write(b"%x\r\n%s\r\n" % (len(chunk), chunk))
            self.wfile.write(b"0\r\n\r\n")
        except OSError:  # dropped, or the client is gone
            self.close_connection = True


def _selected(thing: Object, query: dict[str, str]) -> bool:
    labels = thing["metadata"].get("labels", {})
    wanted = dict(part.split("=") for part in query.get("labelSelector", "").split(",") if part)
    name = query.get("fieldSelector", "").removeprefix("metadata.name=")
    return wanted.items() <= labels.items() and (not name or "." in name or name == thing["metadata"]["name"])


@contextmanager
def api_server() -> Iterator[ApiServer]:
    server = ApiServer()
    try:
        yield server
    finally:
        server.close()
