"""The live display of one Job: what its pods do, from watches, and how far the work is, from the run."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from deepfake_detector.adapters.kernel import process_started
from deepfake_detector.adapters.rounds import round_storage
from deepfake_detector.adapters.storage import Storage
from deepfake_detector.cluster.changes import Changes
from deepfake_detector.cluster.notices import Notices, count_in_words
from deepfake_detector.cluster.results import MARKERS, is_done
from deepfake_detector.core import pods as pod_status
from deepfake_detector.core import timeline
from deepfake_detector.core.config import Config, Stage
from deepfake_detector.core.diagnosis import diagnose
from deepfake_detector.core.errors import EXIT_OK, EXIT_PERMANENT, EXIT_RETRY, DetectorError, StorageError
from deepfake_detector.core.findings import Finding, Kind
from deepfake_detector.core.job_end import JobEnd, job_end
from deepfake_detector.core.placement import NOTHING_KNOWN, Surroundings
from deepfake_detector.core.pods import Manifest, index_of, name_of, phase_of
from deepfake_detector.core.waiting import in_vain
from deepfake_detector.display import Display, ExportDisplay, PreprocessDisplay, TrainDisplay
from deepfake_detector.stages.retry import NextRetry

if TYPE_CHECKING:
    from deepfake_detector.adapters.cluster import Cluster

log = logging.getLogger(__name__)
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell has it
TICK_SECONDS = 1.0  # without any change the display is looked after so often
SURROUNDINGS_SECONDS = 30.0  # nodes and all pods are two requests: listed at most so often, and only when needed
AWAY_SECONDS = 3.0  # without an answer of the API server, until that is told
SETTLE_SECONDS = 60.0  # after a Job's failure is known, for its last pods to end
EXPLANATION_SECONDS = 5.0  # after it, for the news of the pod that ended the Job
JOIN_SECONDS = 2.0


def follow(
    cluster: Cluster, run: Storage, stage: Stage, job_name: str, config: Config, retry: NextRetry | None = None
) -> int:
    """Show a Job until it ends; returns the exit status, after saying the reason of a failure.

    0: it is complete and the stage's marker is in the run; 78: it failed and no retry can help; 75: it failed
    otherwise, or was deleted; 130: Ctrl-C, which leaves the work alone. A training whose workers do not all come fails
    by itself (core/waiting.py says when); which of them has not come, and why, is said then. A Job none of whose pods
    has a node waits in the cluster's queue, as its display says. An API server or storage that is away is waited for.
    Sends three watches, and requests for nodes only while a pod has none. Progress that can't be read is said and
    changes no status. Raises ClusterError where the Job is not there or may not be watched.
    """
    requests, begun = cluster.requests, time.monotonic()
    try:
        with Changes(cluster, job_name) as changes, _display(run, stage, config, retry) as display:
            follower = _Follower(cluster, run, stage, changes, display, retry.number if retry else 0)
            with _Looker(display, follower.at_work) as looker:
                status = follower.run_to_the_end(looker)
            if looker.error:
                raise looker.error
            if isinstance(display, TrainDisplay):
                _tell_start(display, changes)
            log.info("display: %d API requests in %.0f s", cluster.requests - requests, time.monotonic() - begun)
            return status
    except KeyboardInterrupt:
        print("\nthe work goes on in the cluster; the same command attaches again", file=sys.stderr)
        return EXIT_INTERRUPTED


def _display(run: Storage, stage: Stage, config: Config, retry: NextRetry | None) -> Display:
    if retry:
        return PreprocessDisplay(round_storage(run, retry.number), retry.shards)
    match stage:
        case "preprocess":
            return PreprocessDisplay(run, config.data.shards)
        case "train":
            return TrainDisplay(run)
        case _:
            return ExportDisplay(run)


class _Follower:
    """The loop that turns changes into lines, until there is an exit status."""

    def __init__(
        self, cluster: Cluster, run: Storage, stage: Stage, changes: Changes, display: Display, retry: int
    ) -> None:
        self._cluster, self._run, self._stage, self._retry = cluster, run, stage, retry
        self._changes, self._display = changes, display
        self._notices = Notices()
        self._troubles: dict[int, Finding] = {}  # by index: the latest that kept its pod from running
        self._away_since: float | None = None
        self._told_away = False
        self._around = NOTHING_KNOWN
        self._around_at = float("-inf")
        self._ended_at: float | None = None  # when the Job's failure was seen, and when it was said
        self._failed_at: float | None = None

    def at_work(self) -> set[int]:
        """The indexes whose pods run. Called from the thread that looks at the run."""
        return {index_of(pod) for pod in self._changes.pods if phase_of(pod) == "Running"}

    def run_to_the_end(self, looker: _Looker) -> int:
        while True:
            self._changes.wait(TICK_SECONDS)
            if isinstance(looker.error, BrokenPipeError):  # nobody reads what is shown
                raise looker.error
            self._tell_reachability()
            if self._changes.gone:
                self._display.say(f"  job {name_of(self._changes.job)}: was deleted; the same command begins it again")
                return EXIT_RETRY
            self._tell_pods()
            end = job_end(self._changes.job, self._changes.pods)
            if end is not None and self._is_settled(end):
                return self._tell_end(end)

    def _tell_reachability(self) -> None:
        """Only what lasts is told: a watch that a proxy cut off goes on a second later."""
        reason = self._changes.away
        if reason is None:
            if self._told_away:
                self._display.say("  the API server answers again")
            self._away_since, self._told_away = None, False
            return
        self._away_since = self._away_since or time.monotonic()
        if not self._told_away and time.monotonic() - self._away_since >= AWAY_SECONDS:
            self._display.say(f"  {reason}; the work goes on, and so does this display once it answers")
            self._told_away = True

    def _tell_pods(self) -> None:
        changes = self._changes
        end = job_end(changes.job, changes.pods)
        found = diagnose(changes.job, changes.pods, changes.events, self._surroundings(), datetime.now(UTC))
        if end is None:  # from then on its controller deletes what does not run
            self._remember(found)
        told_at_the_end = (Kind.JOB, Kind.DEADLINE) if end else ()
        found = [finding for finding in found if finding.kind not in told_at_the_end]
        lines = self._notices.findings(found, time.monotonic(), last=end is not None)
        ending = "deletionTimestamp" in changes.job["metadata"] or (end is not None and not end.complete)
        if not ending:  # else its pods go with it, as is said
            self._display.note(pods=count_in_words(changes.pods))
            lines = [*self._notices.states(changes.job, changes.pods), *lines]
        for line in lines:
            self._display.say(f"  {line}")
        self._display.bar.refresh()  # its clock

    def _remember(self, found: Sequence[Finding]) -> None:
        if any(finding.kind is Kind.PEER for finding in found):
            return  # who runs from now on has room since its peers gave up, and comes too late
        self._troubles |= {index: finding for finding in found for index in finding.indexes}
        for index in self.at_work():
            self._troubles.pop(index, None)

    def _surroundings(self) -> Surroundings:
        """Nodes and all pods, while some pod looks for a node or may have lost its own."""
        if not any(_asks_for_nodes(pod) for pod in self._changes.pods):
            return NOTHING_KNOWN
        if time.monotonic() - self._around_at >= SURROUNDINGS_SECONDS and not self._changes.away:
            self._around_at = time.monotonic()
            try:
                self._around = Surroundings(self._cluster.nodes(), self._cluster.all_pods())
            except DetectorError as error:  # they only add numbers to a line
                self._display.say(f"  {error}")
        return self._around

    def _is_settled(self, end: JobEnd) -> bool:
        """Say a failure as soon as it is known; the end is when the Job's last pods are gone, too."""
        if end.complete:
            return True
        now = time.monotonic()
        self._ended_at = self._ended_at or now
        if not end.explained and now - self._ended_at < EXPLANATION_SECONDS:
            return False
        if end.settled:
            return True
        if self._failed_at is None:
            self._failed_at = now
            job = name_of(self._changes.job)
            self._display.say(f"  job {job} fails: {self._reason(end)}; its other pods are ended")
        return now - self._failed_at > SETTLE_SECONDS

    def _tell_end(self, end: JobEnd) -> int:
        job, run = name_of(self._changes.job), self._run
        if end.complete:
            self._display.look(())
            if is_done(run, self._stage, self._retry):
                self._display.finish()
                return EXIT_OK
            where = f"{round_storage(run, self._retry).uri}/{MARKERS[self._stage]}"
            print(
                f"error: job {job} is complete, but {where} is not there (make status RUN={run.uri})", file=sys.stderr
            )
            return EXIT_RETRY
        print(f"error: job {job} has failed: {self._reason(end)}", file=sys.stderr)
        print(f"next: make logs RUN={run.uri} STAGE={self._stage}", file=sys.stderr)
        if end.permanent:
            return EXIT_PERMANENT
        remedies = [finding.remedy for finding in self._of_awaited(end) if finding.remedy]
        print(f"      {'; '.join([*remedies, end.remedy])}", file=sys.stderr)
        return EXIT_RETRY

    def _reason(self, end: JobEnd) -> str:
        """With what kept those pods from running that their peers awaited in vain."""
        return "; ".join([end.reason, *(f"{each.subject}: {each.problem}" for each in self._of_awaited(end))])

    def _of_awaited(self, end: JobEnd) -> list[Finding]:
        awaited = in_vain(end.reason)
        known = [self._troubles.get(index) for index in awaited.indexes] if awaited else []
        return list(dict.fromkeys(finding for finding in known if finding))


def _asks_for_nodes(pod: Manifest) -> bool:
    """Not scheduled, or maybe lost with its node: being deleted, or not ready as the node controller says it.

    That one gives no reason (pkg/controller/util/node, MarkPodsNotReady); a kubelet always does.
    """
    if phase_of(pod) in pod_status.FINISHED:
        return False
    scheduled, ready = pod_status.condition(pod, "PodScheduled"), pod_status.condition(pod, "Ready")
    unready = ready is not None and ready["status"] == "False" and not ready.get("reason")
    refused = scheduled is not None and scheduled["status"] == "False"
    return refused or unready or "deletionTimestamp" in pod["metadata"]


class _Looker:
    """Looks at the run every few seconds, in a thread: storage that is away must not hold up what pods tell."""

    def __init__(self, display: Display, at_work: Callable[[], Collection[int]]) -> None:
        self._display = display
        self._at_work = at_work
        self._stop = threading.Event()
        self.error: Exception | None = None  # that ended the looking
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> _Looker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(JOIN_SECONDS)  # a daemon: storage that is away is tried for minutes

    def _look(self) -> None:
        away = False
        while not self._stop.wait(self._display.pause):
            try:
                self._display.look(self._at_work())
            except StorageError as error:
                if not away:
                    self._display.say(f"  {error}; the work goes on")
                away = True
            except DetectorError as error:
                self._display.say(f"  {error}: no progress is shown any more")
                return
            except BrokenPipeError as error:  # raised by the thread that waits, at once
                self.error = error
                return
            except Exception as error:  # a mistake of ours: raised by the thread that waits, at the end
                self.error = error
                self._display.say(f"  {error!r}: no progress is shown any more")
                return
            else:
                if away:
                    self._display.say(f"  {self._display.run.uri} answers again")
                away = False


def _tell_start(display: TrainDisplay, changes: Changes) -> None:
    """Where the time to the first step went, for the command that began the run."""
    moments = dict(display.timeline)
    chief = min((pod for pod in changes.pods if index_of(pod) == 0), key=pod_status.created, default=None)
    if chief is not None:
        moments = {**timeline.of_job(changes.job, chief), **moments}
    begun = process_started()
    if begun <= moments.get("job", 0.0) + 1.0:  # else the Job was there before this command
        moments["submitted"] = begun
    lines = timeline.table(moments)
    if lines:
        print("\n".join(["from the command to the first training step:", *lines]))
