"""One namespace of a Kubernetes cluster: the API's own JSON objects, as plain dicts with camelCase keys."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

from deepfake_detector.adapters.kube_api import READ_SECONDS, RETRY_SECONDS, KubeApi, Query, RefusedError
from deepfake_detector.adapters.log_position import LogPosition
from deepfake_detector.core.errors import ClusterAwayError

Object = dict[str, Any]
Kind = Literal[
    "configmaps",
    "deployments",
    "events",
    "jobs",
    "namespaces",
    "networkpolicies",
    "nodes",
    "pods",
    "resourcequotas",
    "secrets",
    "serviceaccounts",
    "services",
]

GROUPS = {"deployments": "apps", "jobs": "batch", "networkpolicies": "networking.k8s.io"}  # others: the core group
CLUSTER_SCOPED = ("namespaces", "nodes")
LONGEST_PAUSE_SECONDS = 30.0  # between two tries of a watch
LONGEST_LOG_PAUSE_SECONDS = 5.0  # of a followed log, which is soon gone once its pod has ended
WATCH_SECONDS = 240  # after which the server ends a watch, and a new one goes on from there
DELETE_SECONDS = 120.0


@contextmanager
def ending_after(seconds: float) -> Iterator[threading.Event]:
    """An event that is set after `seconds`, for a watch that may take no longer; the clock stops with the block."""
    over = threading.Event()
    timer = threading.Timer(seconds, over.set)
    timer.daemon = True
    timer.start()
    try:
        yield over
    finally:
        timer.cancel()


class Cluster:
    """A context of the kubeconfig and a namespace. Its methods may be called from several threads.

    All methods raise ClusterAwayError where the API server does not answer, and ClusterError where it refuses, in a
    line that names context, namespace and remedy.
    """

    def __init__(self, api: KubeApi) -> None:
        self._api = api
        self.context = api.context
        self.namespace = api.namespace

    @classmethod
    def connect(cls, context: str | None, namespace: str) -> Cluster:
        """Read the kubeconfig ($KUBECONFIG or ~/.kube/config); context None: its current one. Nothing is sent.

        Raises ClusterError: no kubeconfig, no such context, credentials that its exec plugin does not give.
        """
        return cls(KubeApi.connect(context, namespace))

    @property
    def requests(self) -> int:
        """API requests sent so far."""
        return self._api.requests

    def version(self) -> tuple[int, int]:
        """The API server's, for example (1, 34)."""
        answer = self._api.call("GET", "/version")
        major, minor = ("".join(filter(str.isdigit, answer[part])) for part in ("major", "minor"))  # GKE: "34+"
        return int(major), int(minor)

    def can(self, verb: str, resource: str, group: str = "", subresource: str = "") -> bool:
        """Whether this user may, by a SelfSubjectAccessReview; resource: plural, for example "jobs"."""
        asked = {"verb": verb, "resource": resource, "group": group, "subresource": subresource}
        if resource != "nodes":
            asked["namespace"] = self.namespace
        review = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": asked},
        }
        answer = self._api.call("POST", "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", body=review)
        return bool(answer["status"].get("allowed"))

    def get(self, kind: Kind, name: str) -> Object | None:
        """The object, or None where there is none of that name (or no such namespace)."""
        try:
            return self._api.call("GET", f"{self._path(kind)}/{name}")
        except RefusedError as error:
            if error.status == 404:
                return None
            raise

    def exists(self, kind: Kind, name: str) -> bool:
        return self.get(kind, name) is not None

    def get_job(self, name: str) -> Object | None:
        return self.get("jobs", name)

    def jobs(self, selector: str = "") -> list[Object]:
        """Jobs whose labels match, for example "deepfake-detector/run=1a2b3c4d"."""
        return self._list("jobs", _selecting(selector))[1]

    def all_jobs(self, selector: str) -> list[Object] | None:
        """The same of all namespaces; None where that is not permitted."""
        path = f"/apis/{GROUPS['jobs']}/v1/jobs"
        return _if_permitted(lambda: self._list("jobs", _selecting(selector), path=path)[1])

    def pods(self, selector: str = "") -> list[Object]:
        return self._list("pods", _selecting(selector))[1]

    def events(self) -> list[Object]:
        return self._list("events", ())[1]

    def nodes(self) -> list[Object] | None:
        """None where this user may not list nodes, which no stage needs."""
        return _if_permitted(lambda: self._list("nodes", ())[1])

    def all_pods(self) -> list[Object] | None:
        """Pods of all namespaces that hold room on a node (not ended ones); None where that is not permitted."""
        running = (("fieldSelector", "status.phase!=Succeeded,status.phase!=Failed"),)
        return _if_permitted(lambda: self._list("pods", running, path="/api/v1/pods")[1])

    def create_job(self, job: Mapping[str, Any], *, dry_run: bool = False) -> bool:
        """Create it; False when there is a Job of its name. dry_run: the server admits it, and stores nothing."""
        query = (("dryRun", "All"),) if dry_run else ()
        try:
            self._api.call("POST", self._path("jobs"), query=query, body=job)
        except RefusedError as error:
            if error.reason == "AlreadyExists":
                return False
            raise
        return True

    def delete_job(self, name: str, *, uid: str | None = None, budget_seconds: float = DELETE_SECONDS) -> None:
        """Delete a Job and its pods, and wait until they are gone; nothing happens when it is not there.

        Only the Job of this uid (None: the one that is there now): another one that someone creates meanwhile under
        the name stays. Raises ClusterAwayError after `budget_seconds`: a pod on a vanished node stays until its node
        object is gone.
        """
        job = self.get("jobs", name)
        if job is None or uid not in (None, job["metadata"]["uid"]):
            return
        uid = job["metadata"]["uid"]
        options = {"propagationPolicy": "Foreground", "preconditions": {"uid": uid}}
        try:
            self._api.call("DELETE", f"{self._path('jobs')}/{name}", body=options)
        except RefusedError as error:
            if error.status in (404, 409):  # 409: another one by now
                return
            raise
        with ending_after(budget_seconds) as over:
            self._await_gone(uid, (("fieldSelector", f"metadata.name={name}"),), over)
        if over.is_set():
            raise ClusterAwayError(
                f"job {name} ({self}): not gone {budget_seconds:g} s after its deletion, expected its pods to end "
                f"(kubectl --context {self.context} -n {self.namespace} get pods -l job-name={name})"
            )

    def _await_gone(self, uid: str, query: Query, over: threading.Event) -> None:
        _, jobs = self._list("jobs", query)
        known = {job["metadata"]["uid"]: job for job in jobs}
        if uid not in known:
            return
        for change, job in self._watch("jobs", query, over, known=known):  # it may be gone before the watch begins
            if job["metadata"]["uid"] != uid or change == "DELETED":
                return

    def watch(
        self,
        kind: Kind,
        selector: str = "",
        *,
        known: Sequence[Object] = (),
        stop: threading.Event | None = None,
        on_away: Callable[[str], None] | None = None,
        on_back: Callable[[], None] | None = None,
    ) -> Iterator[tuple[str, Object]]:
        """("ADDED" | "MODIFIED" | "DELETED", object) for all that is there, then for each change, until `stop` is set.

        known: what the caller has seen before, of which only changes are told: one that is gone since is DELETED.
        Survives a lost connection and an expired position (410): what was missed is listed and told as changes, a
        DELETED object as it was last seen. Two tries are at least 1 s apart; `on_away` hears why one failed, `on_back`
        that one succeeded after that. Blocks: one thread for each watch. Raises ClusterError when it is not permitted.
        """
        seen = {thing["metadata"]["uid"]: thing for thing in known}
        return self._watch(kind, _selecting(selector), stop or threading.Event(), on_away, on_back, seen)

    def _watch(
        self,
        kind: Kind,
        query: Query,
        stop: threading.Event,
        on_away: Callable[[str], None] | None = None,
        on_back: Callable[[], None] | None = None,
        known: dict[str, Object] | None = None,
    ) -> Iterator[tuple[str, Object]]:
        known = {} if known is None else known
        away = False
        version: str | None = None  # where the watch goes on; None: list anew
        pause = 0.0
        while not stop.wait(pause):
            try:
                if version is None:
                    version, things = self._list(kind, query, again=False)
                    if away and on_back:
                        on_back()
                    away = False
                    yield from _differences(known, things)
                for change, thing in self._changes(kind, query, version, stop):
                    version = thing["metadata"]["resourceVersion"]
                    pause = 0.0
                    if change != "BOOKMARK":
                        _remember(known, change, thing)
                        yield change, thing
                pause = RETRY_SECONDS[0]
            except _ExpiredError:
                version, pause = None, min(max(RETRY_SECONDS[0], 2 * pause), LONGEST_PAUSE_SECONDS)
            except ClusterAwayError as error:
                away, version = True, None  # a list answers at once, where a watch may have nothing to tell
                pause = min(max(RETRY_SECONDS[0], 2 * pause), LONGEST_PAUSE_SECONDS)
                if on_away:
                    on_away(str(error))

    def pod_log(
        self,
        name: str,
        follow: bool = False,
        tail_lines: int | None = None,
        stop: threading.Event | None = None,
        ended: threading.Event | None = None,
    ) -> Iterator[str]:
        """Lines of a pod's only container, without line ends; follow: until it ends, or `stop` is set.

        What is followed survives a lost connection, as watches do: a new stream goes on after the last line that was
        told. ended: to be set once the pod has ended or is gone; a stream that ends before it was cut off, too. The API
        server does not end the stream of a pod whose node vanished: only `stop` does. Raises ClusterError where the pod
        is gone or its container has not started, and ClusterAwayError, but not while it follows.
        """
        stop = stop or threading.Event()
        if follow:
            yield from self._followed_log(name, tail_lines, stop, ended)
            return
        query = [] if tail_lines is None else [("tailLines", str(tail_lines))]
        yield from self._log(name, query, stop, READ_SECONDS)

    def _followed_log(
        self, name: str, tail_lines: int | None, stop: threading.Event, ended: threading.Event | None
    ) -> Iterator[str]:
        position = LogPosition()
        whole = False  # the last stream was not cut off, as far as it can know
        pause = 0.0
        while not stop.is_set():
            over = ended is None or ended.is_set()  # looked at before: then this stream has all that there is
            query = [("follow", "true"), ("timestamps", "true"), *position.query(tail_lines)]
            try:
                for line in self._log(name, query, stop, None):
                    pause = 0.0
                    if (text := position.take(line)) is not None:
                        yield text
                if ended is None or over:
                    return
                whole, pause = True, RETRY_SECONDS[0]
                ended.wait(pause)
            except ClusterAwayError:
                whole, pause = False, min(max(RETRY_SECONDS[0], 2 * pause), LONGEST_LOG_PAUSE_SECONDS)
                stop.wait(pause)
            except RefusedError:
                if whole:  # the pod was deleted since
                    return
                raise

    def _log(self, name: str, query: Query, stop: threading.Event, silence: float | None) -> Iterator[str]:
        for line in self._api.lines(f"{self._path('pods')}/{name}/log", query, stop, silence):
            yield line.decode("utf-8", "replace")

    def __str__(self) -> str:
        return f"context {self.context}, namespace {self.namespace}"

    def _path(self, kind: str) -> str:
        group = GROUPS.get(kind)
        root = f"/apis/{group}/v1" if group else "/api/v1"
        return f"{root}/{kind}" if kind in CLUSTER_SCOPED else f"{root}/namespaces/{self.namespace}/{kind}"

    def _list(self, kind: Kind, query: Query, *, path: str = "", again: bool = True) -> tuple[str, list[Object]]:
        """The list's resourceVersion, and its objects."""
        answer = self._api.call("GET", path or self._path(kind), query=query, again=again)
        return answer["metadata"]["resourceVersion"], answer.get("items") or []

    def _changes(self, kind: Kind, query: Query, version: str, stop: threading.Event) -> Iterator[tuple[str, Object]]:
        """One watch request. Raises _ExpiredError when it cannot go on from `version`."""
        watch = [
            *query,
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("resourceVersion", version),
            ("timeoutSeconds", str(WATCH_SECONDS)),
        ]
        try:
            for line in self._api.lines(self._path(kind), watch, stop, WATCH_SECONDS + READ_SECONDS):
                event = _event(line)
                if event is None or event["type"] == "ERROR":  # cut off in a line; mostly 410, as a Status object
                    raise _ExpiredError
                yield event["type"], event["object"]
        except RefusedError as error:
            if error.status == 410:
                raise _ExpiredError from None
            raise


class _ExpiredError(Exception):
    """The server does not know any more what changed since a resourceVersion."""


def _event(line: bytes) -> Object | None:
    try:
        event: Object = json.loads(line)
    except ValueError:
        return None
    return event


def _selecting(selector: str) -> Query:
    return (("labelSelector", selector),) if selector else ()


def _if_permitted(ask: Callable[[], list[Object]]) -> list[Object] | None:
    try:
        return ask()
    except RefusedError as error:
        if error.status == 403:
            return None
        raise


def _remember(known: dict[str, Object], change: str, thing: Object) -> None:
    uid = thing["metadata"]["uid"]
    if change == "DELETED":
        known.pop(uid, None)
    else:
        known[uid] = thing


def _differences(known: dict[str, Object], things: list[Object]) -> Iterator[tuple[str, Object]]:
    """What happened between what is `known` and the list `things`, and takes note of it."""
    there = {thing["metadata"]["uid"]: thing for thing in things}
    for uid in [uid for uid in known if uid not in there]:
        yield "DELETED", known.pop(uid)
    for uid, thing in there.items():
        before = known.get(uid)
        known[uid] = thing
        if before is None:
            yield "ADDED", thing
        elif before["metadata"]["resourceVersion"] != thing["metadata"]["resourceVersion"]:
            yield "MODIFIED", thing
