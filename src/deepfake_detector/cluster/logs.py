"""What the processes of a run said: running pods from the cluster, those that are gone from the run's logs/."""

from __future__ import annotations

import queue
import re
import sys
import threading
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from deepfake_detector.adapters.cluster import Cluster
from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.cluster.lives import Lives, Place
from deepfake_detector.core.errors import EXIT_OK, ClusterError, NotFoundError
from deepfake_detector.core.findings import ranges
from deepfake_detector.core.jobspec import is_over, run_selector
from deepfake_detector.core.pods import (
    COMPONENT,
    FINISHED,
    Manifest,
    created,
    index_of,
    name_of,
    phase_of,
    state_of,
    subject_of,
)

TAIL_LINES = 100  # of each running pod, where none was asked for by POD
LAST_WORDS_SECONDS = 10.0  # for the rest of a pod's output to come, once it has ended, or should have
_TOLD_POD = re.compile(r"\n--- [^:\n]*, pod ([^\s:]+)(?: on [^\s:]+)?: ")  # in a log's last line (supervisor/where.py)
_POD_NAME = re.compile(r"([a-z]+)-.*-(\d+)-[a-z0-9]{5}")  # <stage>-<slug>-<hash>-<index>-<random>

Write = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """stage: one of them, or "" for all; pod: an index ("1") or a pod's name, which may be gone; "" for all."""

    stage: str = ""
    pod: str = ""

    def takes(self, pod: Manifest) -> bool:
        by_name = self.pod in ("", name_of(pod), str(index_of(pod)))
        return by_name and self.stage in ("", _stage(pod))

    def takes_job(self, job: Manifest) -> bool:
        return self.stage in ("", _stage(job))

    def takes_stored(self, place: Place) -> bool:
        stage, index = place
        named = _POD_NAME.fullmatch(self.pod)
        by_name = self.pod in ("", str(index)) or (named is not None and (named[1], int(named[2])) == place)
        return by_name and self.stage in ("", stage)


def show_logs(
    cluster: Cluster | None,
    run_uri: str,
    *,
    stage: str | None = None,
    pod: str | None = None,
    follow: bool = False,
    write: Write = print,
) -> int:
    """Write what the run's processes said, oldest first: of each (stage, index) the last life, as it is stored or,
    where it runs or could not store it, from the cluster; those that succeeded are only named. With `pod` all lives.

    cluster: None, or one that is away: what is stored only. follow: go on with running pods, and those that replace
    them, until the run's Jobs are over. Raises NotFoundError, saying what there is, when nothing matches. Returns 0.
    """
    run = open_storage(run_uri)
    wanted = Wanted(stage or "", pod or "")
    pods = _pods(cluster, run)
    lives = Lives(run)
    mine = [each for each in pods if wanted.takes(each)]
    chosen = [place for place in lives.places if wanted.takes_stored(place)]
    if not mine and not chosen:
        raise NotFoundError(_nothing(run, wanted, pods, lives.places))
    _Past(cluster, run, lives, pods, mine, write, everything=bool(pod)).show(chosen)
    if cluster is None:
        return EXIT_OK
    ended = [each for each in mine if phase_of(each) in FINISHED]
    jobs = [job for job in cluster.jobs(run_selector(run.uri)) if wanted.takes_job(job)] if follow else []
    if not all(is_over(job) for job in jobs):
        _Followed(cluster, run, wanted, jobs, ended, write).until_over()
        return EXIT_OK
    for each in mine:
        if each not in ended:
            _write_pod(cluster, each, None if pod else TAIL_LINES, write)
    return EXIT_OK


def _pods(cluster: Cluster | None, run: Storage) -> list[dict[str, Any]]:
    if cluster is None:
        return []
    try:
        return sorted(cluster.pods(run_selector(run.uri)), key=lambda pod: (*_place(pod), created(pod)))
    except ClusterError as error:
        print(f"pods are left out: {error}", file=sys.stderr)
        return []


class _Past:
    """What lives that are over have said, place by place.

    It is stored, unless their pod was killed or could not reach the bucket: then its own log is all, while it is there.
    """

    def __init__(
        self,
        cluster: Cluster | None,
        run: Storage,
        lives: Lives,
        pods: Sequence[Manifest],
        mine: Sequence[Manifest],
        write: Write,
        *,
        everything: bool,
    ) -> None:
        """pods: of the run, oldest first; mine: those of them that are asked for. everything: also of earlier lives."""
        self._cluster, self._run, self._lives, self._write = cluster, run, lives, write
        self._everything = everything
        self._ended = {name_of(pod): pod for pod in pods if phase_of(pod) in FINISHED}
        self._at_work = {name_of(pod) for pod in mine} - set(self._ended)  # what these say is shown later
        self._asked: dict[Place, list[str]] = defaultdict(list)  # names, oldest first
        for pod in mine:
            self._asked[_place(pod)].append(name_of(pod))
        self._told: set[str] = set()  # names of pods that have said no more

    def show(self, chosen: Sequence[Place]) -> None:
        self._lives.read({*chosen, *self._asked}, everything=self._everything)
        done = set() if self._everything else {place for place in chosen if self._lives.is_done(place)}
        for stage, places in groupby(sorted(done), key=lambda place: place[0]):
            indexes = ranges(index for _, index in places)
            self._write(f"== {stage} {indexes}: done; STAGE={stage} POD=index shows what was said")
        for place in sorted({*chosen, *self._asked}):
            if place in done:
                self._show_after_success(place)
            else:
                self._show_lives(place)
            asked = self._asked[place]
            for pod in asked if self._everything else asked[-1:]:
                if pod not in self._told:
                    self._show_own(pod)

    def _show_after_success(self, place: Place) -> None:
        """Why its pod failed all the same, if it did."""
        kept = self._lives.kept(place)
        pod = self._lives.pod(place, kept.lives[-1])
        self._tell({pod}, succeeded=True)
        for number in sorted(kept.supervisors)[-1:]:
            text = self._read(kept.supervisors[number])
            if pod and pod in _said_in(text):
                self._show_log(kept.supervisors[number], text)
                self._tell({pod}, succeeded=False)

    def _show_lives(self, place: Place) -> None:
        kept = self._lives.kept(place)
        lives, supervisors = kept.lives, sorted(kept.supervisors)
        shown, failed = (lives, supervisors) if self._everything else (lives[-1:], supervisors[-1:])
        if older := len(lives) + len(supervisors) - len(shown) - len(failed):
            stage, index = place
            self._write(f"== {stage} {index}: {older} older ones, which STAGE={stage} POD={index} shows")
        for number in shown:
            if number in kept.logs:
                text = self._read(kept.logs[number])
                self._show_log(kept.logs[number], text)
                self._tell(_said_in(text), succeeded=self._lives.succeeded(place, number))
            elif (pod := self._lives.pod(place, number)) not in self._at_work:
                self._write(f"== {self._lives.unlogged(place, number)}")
                self._show_own(pod)
        for number in failed:
            text = self._read(kept.supervisors[number])
            self._show_log(kept.supervisors[number], text)
            self._tell(_said_in(text), succeeded=False)

    def _tell(self, pods: set[str], *, succeeded: bool) -> None:
        """These said last what was shown; but a pod that failed after its child succeeded has more to say."""
        self._told |= {pod for pod in pods if not succeeded or phase_of(self._ended.get(pod, {})) != "Failed"}

    def _read(self, name: str) -> str:
        try:
            return self._run.read(name).decode(errors="replace")
        except NotFoundError:  # removed since
            return ""

    def _show_log(self, name: str, text: str) -> None:
        self._write(f"== {name}")
        self._write(text.rstrip("\n"))

    def _show_own(self, name: str) -> None:
        """The log of a pod that has ended, once."""
        pod = self._ended.pop(name, None)
        if self._cluster and pod:
            _write_pod(self._cluster, pod, None if self._everything else TAIL_LINES, self._write)


def _said_in(text: str) -> set[str]:
    """The name of the pod that a stored log is of, if it was in one."""
    return set(_TOLD_POD.findall(f"\n{text}")[-1:])


def _write_pod(cluster: Cluster, pod: Manifest, tail_lines: int | None, write: Write) -> None:
    write(f"== {name_of(pod)}: {subject_of(pod)} {state_of(pod)}")
    try:
        for line in cluster.pod_log(name_of(pod), tail_lines=tail_lines):
            write(line)
    except ClusterError as error:
        write(f"(no output: {error})")


def _nothing(run: Storage, wanted: Wanted, pods: Sequence[Manifest], stored: Iterable[Place]) -> str:
    asked = ", ".join(f"{name} {value!r}" for name, value in (("stage", wanted.stage), ("pod", wanted.pod)) if value)
    places = sorted({*stored, *(_place(pod) for pod in pods)})
    if not places:
        return f"{run.uri}: no logs yet, and no pods: expected a run that was submitted"
    by_stage = defaultdict(list)
    for stage, index in places:
        by_stage[stage].append(str(index))
    there = "; ".join(f"{stage} {', '.join(indexes)}" for stage, indexes in by_stage.items())
    return f"{run.uri}: no logs of {asked}: expected one of {there} (STAGE=stage POD=index)"


def _place(pod: Manifest) -> Place:
    return _stage(pod), index_of(pod)


def _stage(manifest: Manifest) -> str:
    """Of a pod or Job."""
    return str((manifest["metadata"].get("labels") or {}).get(COMPONENT, ""))


class _Followed:
    """Lines of all wanted pods as they come, each behind its pod's subject.

    A thread for each pod, one that watches for pods, and one that watches the Jobs for the end. A stream that was lost
    on the way goes on where it was. That of a pod whose node vanished does not end by itself: it is cut off
    LAST_WORDS_SECONDS after the pod has ended, is gone, or should be by its deletion's grace period.
    """

    def __init__(
        self,
        cluster: Cluster,
        run: Storage,
        wanted: Wanted,
        jobs: Sequence[dict[str, Any]],
        ended: Sequence[Manifest],
        write: Write,
    ) -> None:
        """jobs: those that are followed to their end. ended: pods that had ended before, and are not shown."""
        self._cluster, self._wanted, self._write = cluster, wanted, write
        self._selector = run_selector(run.uri)
        self._lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()  # None: look whether all is over
        self._stop = threading.Event()
        self._seen = {_uid(pod) for pod in ended}
        self._reading: dict[str, _Stream] = {}  # by the pod's uid
        self._known_jobs = jobs
        self._jobs = {name_of(job): is_over(job) for job in jobs}
        self._failures = 0  # to reach the API server, one after the other

    def until_over(self) -> None:
        for watch in (self._watch_pods, self._watch_jobs):
            threading.Thread(target=self._guarded, args=(watch,), daemon=True).start()
        try:
            while not self._is_over():
                while (line := self._lines.get()) is not None:
                    self._write(line)
            while not self._lines.empty():  # lines that came behind the last look
                if (line := self._lines.get()) is not None:
                    self._write(line)
        finally:
            self._stop.set()
        for pod in self._cluster.pods(self._selector):  # those that began and ended between two looks
            if self._wanted.takes(pod) and _uid(pod) not in self._seen:
                _write_pod(self._cluster, pod, TAIL_LINES, self._write)

    def _is_over(self) -> bool:
        return not self._reading and all(self._jobs.values())

    def _guarded(self, watch: Callable[[], None]) -> None:
        try:
            watch()
        except Exception as error:  # whatever it is, nothing more is heard of them, and nobody may wait for it
            self._jobs = {}
            for stream in list(self._reading.values()):
                stream.cut_off_after(LAST_WORDS_SECONDS)
            self._lines.put(f"(no more is heard of the run: {_in_words(error)})")
            self._lines.put(None)

    def _watch_jobs(self) -> None:
        jobs = self._cluster.watch(
            "jobs", self._selector, known=self._known_jobs, stop=self._stop, on_away=self._away, on_back=self._back
        )
        for change, job in jobs:
            if self._wanted.takes_job(job):
                self._jobs[name_of(job)] = change == "DELETED" or is_over(job)
                self._lines.put(None)

    def _away(self, reason: str) -> None:
        """Only what lasts is told: a watch that a proxy cut off goes on a second later."""
        self._failures += 1
        if self._failures == 2:
            self._lines.put(f"({reason}; waiting for it)")

    def _back(self) -> None:
        if self._failures >= 2:
            self._lines.put("(the API server answers again)")
        self._failures = 0

    def _watch_pods(self) -> None:
        for change, pod in self._cluster.watch("pods", self._selector, stop=self._stop):
            running = phase_of(pod) == "Running" and change != "DELETED"
            if running and _uid(pod) not in self._seen and self._wanted.takes(pod):
                self._seen.add(_uid(pod))
                stream = self._reading[_uid(pod)] = _Stream()
                threading.Thread(target=self._read, args=(pod, stream), daemon=True).start()
            reading = self._reading.get(_uid(pod))
            if reading and not running:
                reading.ended.set()
            if reading and (not running or "deletionTimestamp" in pod["metadata"]):
                grace = pod["metadata"].get("deletionGracePeriodSeconds") or 0
                reading.cut_off_after((grace if running else 0) + LAST_WORDS_SECONDS)

    def _read(self, pod: Manifest, stream: _Stream) -> None:
        subject, name = subject_of(pod), name_of(pod)
        self._lines.put(f"== {name}: {subject} {state_of(pod)}")
        try:
            lines = self._cluster.pod_log(name, True, TAIL_LINES, stop=stream.over, ended=stream.ended)
            for line in lines:
                self._lines.put(f"{subject}: {line}")
        except ClusterError as error:
            self._lines.put(f"{subject}: ({error})")
        finally:
            if stream.over.is_set():
                self._lines.put(f"{subject}: (no more comes of pod {name}, which has ended or was lost with its node)")
            stream.close()
            self._reading.pop(_uid(pod), None)
            self._lines.put(None)


def _in_words(error: Exception) -> str:
    return str(error) if isinstance(error, ClusterError) else repr(error)


class _Stream:
    """A pod's output that is being read. ended: set when the pod has; over: when no more of it is waited for."""

    def __init__(self) -> None:
        self.ended = threading.Event()
        self.over = threading.Event()
        self._timer: threading.Timer | None = None

    def cut_off_after(self, seconds: float) -> None:
        """The first time counts."""
        if self._timer is None:
            self._timer = threading.Timer(seconds, self.over.set)
            self._timer.daemon = True
            self._timer.start()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


def _uid(manifest: Manifest) -> str:
    return str(manifest["metadata"]["uid"])
