"""A Job, its pods and its namespace's events, kept up to date by three watches; nothing is polled."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from deepfake_detector.core.errors import ClusterAwayError, ClusterError
from deepfake_detector.core.jobspec import RUN_LABEL
from deepfake_detector.core.pods import COMPONENT, name_of

if TYPE_CHECKING:
    from deepfake_detector.adapters.cluster import Cluster, Kind

Object = dict[str, Any]
Update = Callable[[], None]

SELECTING = (RUN_LABEL, COMPONENT)  # labels by which a Job is watched, where it has them
JOIN_SECONDS = 2.0


class Changes:
    """The latest known state of one Job. A context manager: its watches end with it.

    job: as it was last seen; gone: it was deleted.
    """

    def __init__(self, cluster: Cluster, job_name: str) -> None:
        """Look at the Job once; raises ClusterError where there is none of that name."""
        job = cluster.get_job(job_name)
        if job is None:
            raise ClusterError(f"job {job_name} ({cluster}): not found, expected one that was created before")
        self.job: Object = job
        self.gone = False
        self._away: dict[Kind, str] = {}
        self._uid = job["metadata"]["uid"]
        self._pods: dict[str, Object] = {}
        self._events: dict[str, Object] = {}
        self._cluster = cluster
        self._stop = threading.Event()
        self._updates: queue.SimpleQueue[Update] = queue.SimpleQueue()
        labels = job["metadata"].get("labels") or {}
        mine = ",".join(f"{name}={labels[name]}" for name in SELECTING if name in labels)
        watches: tuple[tuple[Kind, str, Sequence[Object], Callable[[str, Object], None]], ...] = (
            ("jobs", mine, (job,), self._take_job),  # one that is deleted before the watch begins is missed otherwise
            ("pods", f"batch.kubernetes.io/job-name={job_name}", (), self._take_pod),
            ("events", "", (), self._take_event),
        )
        self._threads = [threading.Thread(target=self._watch, args=watch, daemon=True) for watch in watches]

    def __enter__(self) -> Changes:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(JOIN_SECONDS)  # daemons: one that hangs in a dead connection must not keep the command

    @property
    def away(self) -> str | None:
        """Why the API server does not answer; None while it does."""
        return next(iter(self._away.values()), None)

    @property
    def pods(self) -> list[Object]:
        return list(self._pods.values())

    @property
    def events(self) -> list[Object]:
        return list(self._events.values())

    def wait(self, seconds: float) -> bool:
        """Take in all that has happened; where nothing has, wait for it. False: nothing happened meanwhile.

        Raises ClusterError when a watch is not permitted.
        """
        try:
            self._updates.get(timeout=seconds)()
        except queue.Empty:
            return False
        while not self._updates.empty():
            self._updates.get()()
        return True

    def _watch(self, kind: Kind, selector: str, known: Sequence[Object], take: Callable[[str, Object], None]) -> None:
        def lost(reason: str) -> None:
            self._updates.put(lambda: self._away.update({kind: reason}))

        def back() -> None:
            self._updates.put(lambda: self._away.clear())

        try:
            for change, thing in self._cluster.watch(
                kind, selector, known=known, stop=self._stop, on_away=lost, on_back=back
            ):
                self._updates.put(lambda change=change, thing=thing: take(change, thing))  # type: ignore[misc]
        except Exception as error:  # told by the thread that waits
            self._updates.put(lambda error=error: _raise(error))  # type: ignore[misc]

    def _take_job(self, change: str, job: Object) -> None:
        if job["metadata"]["uid"] == self._uid:
            self.job = job
            self.gone = change == "DELETED"

    def _take_pod(self, change: str, pod: Object) -> None:
        """A failed pod is remembered after its deletion: it says why."""
        uid = pod["metadata"]["uid"]
        owners = {owner["uid"] for owner in pod["metadata"].get("ownerReferences") or ()}
        if self._uid not in owners:
            return
        if change == "DELETED" and (pod.get("status") or {}).get("phase") != "Failed":
            self._pods.pop(uid, None)
        else:
            self._pods[uid] = pod

    def _take_event(self, change: str, event: Object) -> None:
        if change == "DELETED":  # after an hour
            self._events.pop(event["metadata"]["uid"], None)
        elif str((event.get("involvedObject") or {}).get("name", "")).startswith(name_of(self.job)):  # it or its pods
            self._events[event["metadata"]["uid"]] = event


def _raise(error: Exception) -> None:
    if isinstance(error, ClusterError | ClusterAwayError):
        raise error
    raise RuntimeError("a watch has ended") from error
