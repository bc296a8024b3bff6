"""A stand-in for a cluster that holds what a test puts there: Jobs, pods, and what pods said."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

from deepfake_detector.core.errors import ClusterError
from deepfake_detector.core.jobspec import run_hash

Object = dict[str, Any]


def job(run_uri: str, stage: str = "train", *, ended: str = "", retry: int = 0) -> Object:
    """ended: "Complete", "Failed", or "" for a Job at work. retry: number of the round of lost videos."""
    container = {"name": "stage", "env": [{"name": "RETRY", "value": str(retry)}] if retry else []}
    return {
        "metadata": {"name": f"{stage}-first-0", "uid": f"{stage}-uid", "labels": labels(run_uri, stage)},
        "spec": {"template": {"spec": {"containers": [container]}}},
        "status": {"conditions": [{"type": ended, "status": "True"}] if ended else []},
    }


def pod(run_uri: str, stage: str, index: int, phase: str = "Running", suffix: str = "abcde") -> Object:
    name = f"{stage}-first-0-{index}-{suffix}"
    return {
        "metadata": {
            "name": name,
            "uid": name,
            "labels": {**labels(run_uri, stage), "batch.kubernetes.io/job-completion-index": str(index)},
            "creationTimestamp": "2026-01-01T00:00:00Z",
        },
        "spec": {"nodeName": "node-1"} if phase != "Pending" else {},
        "status": {"phase": phase},
    }


def labels(run_uri: str, stage: str) -> dict[str, str]:
    return {"deepfake-detector/run": run_hash(run_uri), "app.kubernetes.io/component": stage}


class StandIn:
    """As `adapters.cluster.Cluster`, whose methods it has; a watch ends when `stop` is set."""

    context, namespace = "test", "detector"

    def __init__(
        self,
        jobs: list[Object] | None = None,
        pods: list[Object] | None = None,
        said: dict[str, list[str]] | None = None,
        elsewhere: list[Object] | None = None,
    ) -> None:
        """elsewhere: Jobs of other namespaces; None: they may not be listed."""
        self.elsewhere = elsewhere
        self._jobs, self._pods, self._said = jobs or [], pods or [], said or {}
        self.deleted: list[str] = []
        self.tails: list[int | None] = []
        self.away = False
        self._changed = threading.Condition()
        self._changes: list[tuple[str, str, Object]] = []  # kind, change, object

    def __str__(self) -> str:
        return "context test, namespace detector"

    def jobs(self, selector: str) -> list[Object]:
        return [thing for thing in self._jobs if _matches(thing, selector)]

    def all_jobs(self, selector: str) -> list[Object] | None:
        if self.elsewhere is None:
            return None
        return [thing for thing in self._jobs + self.elsewhere if _matches(thing, selector)]

    def pods(self, selector: str) -> list[Object]:
        if self.away:
            raise ClusterError("context test: does not answer")
        return [thing for thing in self._pods if _matches(thing, selector)]

    def delete_job(self, name: str, *, uid: str | None = None) -> None:
        gone = [thing for thing in self._jobs if _is(thing, name, uid)]
        self._jobs = [thing for thing in self._jobs if thing not in gone]
        self.deleted += [thing["metadata"]["name"] for thing in gone]

    def pod_log(
        self, name: str, follow: bool = False, tail_lines: int | None = None, **_: threading.Event
    ) -> Iterator[str]:
        self.tails.append(tail_lines)
        if name not in self._said:
            raise ClusterError(f"pod {name}: container has not started")
        yield from self._said[name]

    def change(self, kind: str, thing: Object) -> None:
        """Let watchers see a changed or new object, in the order of calls."""
        things = self._jobs if kind == "jobs" else self._pods
        uid = thing["metadata"]["uid"]
        things[:] = [each for each in things if each["metadata"]["uid"] != uid] + [thing]
        with self._changed:
            self._changes.append((kind, "MODIFIED", thing))
            self._changed.notify_all()

    def watch(self, kind: str, selector: str, *, stop: threading.Event, **_: Any) -> Iterator[tuple[str, Object]]:
        things = self._jobs if kind == "jobs" else self._pods
        with self._changed:
            seen = len(self._changes)
            listed = [("ADDED", thing) for thing in things]
        yield from listed
        while not stop.is_set():
            with self._changed:
                self._changed.wait_for(lambda: len(self._changes) > seen, timeout=0.05)  # noqa: B023
                new, seen = self._changes[seen:], len(self._changes)
            yield from ((change, thing) for of, change, thing in new if of == kind and _matches(thing, selector))


def _is(thing: Object, name: str, uid: str | None) -> bool:
    return thing["metadata"]["name"] == name and uid in (None, thing["metadata"]["uid"])


def _matches(thing: Object, selector: str) -> bool:
    key, _, value = selector.partition("=")
    return bool(thing["metadata"]["labels"].get(key) == value)
