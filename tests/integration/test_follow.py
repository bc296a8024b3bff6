"""The live display of a Job, on an API server whose objects the test changes."""

from __future__ import annotations

import copy
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from deepfake_detector.adapters import cluster as adapter
from deepfake_detector.adapters.cluster import Cluster
from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.cluster import follow as following
from deepfake_detector.cluster.changes import Changes
from deepfake_detector.cluster.follow import follow
from deepfake_detector.cluster.status import pods_in_words
from deepfake_detector.core import layout
from deepfake_detector.core.config import Config
from deepfake_detector.core.errors import EXIT_OK, EXIT_PERMANENT, EXIT_RETRY, EXIT_UNAVAILABLE, ClusterError
from deepfake_detector.core.jobspec import RUN_LABEL, run_hash
from deepfake_detector.display import Display, TrainDisplay
from tests.integration.api_server import ApiServer

RECORDED = json.loads((Path(__file__).parents[1] / "unit" / "recorded_jobs.json").read_text())
JOB = "train-x-0123abcd"
SECONDS = 20.0


@pytest.fixture
def run(tmp_path: Path) -> Storage:
    return open_storage(str(tmp_path / "run"))


class Lines:
    """What was said so far."""

    def __init__(self) -> None:
        self.all: list[str] = []
        self._changed = threading.Condition()

    def add(self, line: str) -> None:
        with self._changed:
            self.all.append(line.strip())
            self._changed.notify_all()

    def wait_for(self, text: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: any(text in line for line in self.all), SECONDS), self.all


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch) -> Lines:
    heard = Lines()
    monkeypatch.setattr(Display, "say", lambda _, line: heard.add(line))
    return heard


class Scene:
    """One training Job with its pods, as controllers, scheduler and kubelet would change them."""

    def __init__(self, server: ApiServer, labels: dict[str, str]) -> None:
        self._server = server
        self._labels = {"app.kubernetes.io/component": "train", **labels}
        self.uid = ""

    def job(self, **status: Any) -> None:
        spec = {"completions": 2, "parallelism": 2, "backoffLimit": 30}
        job = self._server.put("jobs", JOB, metadata={"labels": self._labels}, spec=spec, status=status)
        self.uid = job["metadata"]["uid"]

    def ended(self, kind: str, reason: str = "", message: str = "") -> None:
        self.job(conditions=[{"type": kind, "status": "True", "reason": reason, "message": message}])

    def pod(
        self,
        index: int,
        case: str = "retry",
        *,
        phase: str = "",
        message: str = "",
        status: int = EXIT_PERMANENT,
        life: int = 0,
        **metadata: Any,
    ) -> None:
        """A pod in a recorded state, or in a phase without any trouble. status: of the exit, with `message`."""
        pod = copy.deepcopy(RECORDED[case]["pods"][0])
        labels = {
            **self._labels,
            "batch.kubernetes.io/job-name": JOB,
            "batch.kubernetes.io/job-completion-index": str(index),
        }
        if phase:
            pod["status"] = {"phase": phase}
        elif message:
            pod["status"]["containerStatuses"][0]["state"]["terminated"] |= {
                "message": message,
                "exitCode": status,
            }
        owners = [{"uid": self.uid, "kind": "Job", "name": JOB}]
        metadata |= {"labels": labels, "ownerReferences": owners, "creationTimestamp": f"2026-01-01T00:00:0{life}Z"}
        self._server.put("pods", f"{JOB}-{index}-{life}", metadata=metadata, spec=pod["spec"], status=pod["status"])


@pytest.fixture
def scene(server: ApiServer, run: Storage) -> Scene:
    server.put("nodes", "node-1", **copy.deepcopy(RECORDED["nodes"][0]))
    scene = Scene(server, {RUN_LABEL: run_hash(run.uri)})
    scene.job(active=2)
    return scene


@pytest.fixture
def following_it(cluster: Cluster, run: Storage, server: ApiServer) -> Iterator[Callable[[], Any]]:
    """Starts to follow in a thread; returns once all three watches are open."""
    with ThreadPoolExecutor(1) as pool:

        def begin() -> Any:
            status = pool.submit(follow, cluster, run, "train", JOB, Config())
            server.wait_for_watches(3)
            return status

        yield begin
        if f"jobs/{JOB}" in server.objects:  # a test that failed must not wait for the thread
            server.remove("jobs", JOB)


def test_a_job_is_followed_to_its_model(scene, server, run, lines, following_it, cluster):
    status = following_it()
    scene.pod(0, phase="Running")
    scene.pod(1, phase="Running")
    lines.wait_for("worker 1: runs on node-1")
    run.write(layout.DETECTOR, b"{}")
    scene.pod(0, phase="Succeeded")
    scene.pod(1, phase="Succeeded")
    scene.ended("Complete")
    assert status.result(SECONDS) == EXIT_OK
    assert {"worker 0: runs on node-1", "worker 1: runs on node-1"} <= set(lines.all)
    assert cluster.requests == len(server.requests) == 7, "the Job once; then a list and a watch of three kinds"


def test_a_permanent_error_reaches_the_terminal(scene, following_it, lines, capsys):
    status = following_it()
    scene.pod(1, message="train.workers=0: expected 1 or more\n")
    message = f"Container stage for pod mine/{JOB}-1-0 failed with exit code 78 matching FailJob rule at index 0"
    scene.ended("FailureTarget", "PodFailurePolicy", message)
    lines.wait_for("fails: worker 1: exit 78: train.workers=0: expected 1 or more")
    scene.ended("Failed", "PodFailurePolicy", message)
    assert status.result(SECONDS) == EXIT_PERMANENT
    assert f"error: job {JOB} has failed: worker 1: exit 78: train.workers=0: expected 1 or more\n" in (
        capsys.readouterr().err
    )


def test_a_failure_waits_for_the_pod_that_explains_it(
    scene, following_it, lines, capsys, monkeypatch: pytest.MonkeyPatch
):
    """The Job's stream may be ahead of its pods': its own message names a pod and no reason."""
    monkeypatch.setattr(following, "EXPLANATION_SECONDS", SECONDS)
    status = following_it()
    scene.pod(0, phase="Running")
    lines.wait_for("worker 0: runs on node-1")
    message = f"Container stage for pod mine/{JOB}-0-0 failed with exit code 78 matching FailJob rule at index 0"
    scene.ended("Failed", "PodFailurePolicy", message)
    scene.pod(0, message="train.workers=0: expected 1 or more", status=EXIT_PERMANENT)
    assert status.result(SECONDS) == EXIT_PERMANENT
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"error: job {JOB} has failed: worker 0: exit 78: train.workers=0: expected 1 or more"


def test_a_failure_that_may_pass_asks_for_another_try(scene, following_it, lines, capsys):
    status = following_it()
    scene.pod(0, "memory")
    lines.wait_for("worker 0: OOMKilled: limit 16 MiB, and the peak reached it: raise the memory limit")
    scene.ended("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
    assert status.result(SECONDS) == EXIT_RETRY
    errors = capsys.readouterr().err
    assert "failed more than backoffLimit=30 times; the last: worker 0: OOMKilled: limit 16 MiB" in errors
    assert "next: make logs RUN=" in errors


def test_each_trouble_is_told_once_and_again_when_it_comes_back(scene, server, following_it, lines):
    status = following_it()
    scene.pod(0, phase="Running")
    for _ in range(3):
        scene.pod(1, "cpu")
    lines.wait_for("worker 1: pending for lack of cpu (asked 64, free 1.99 on node-1)")
    scene.pod(1, phase="Running")
    lines.wait_for("worker 1: runs on node-1")
    scene.pod(1, "cpu")
    scene.pod(0, phase="Succeeded")
    lines.wait_for("worker 0: done")
    server.remove("jobs", JOB)
    assert status.result(SECONDS) == EXIT_RETRY
    assert sum("pending" in line for line in lines.all) == 2
    assert lines.all[-1] == f"job {JOB}: was deleted; the same command begins it again"
    assert sum("GET /api/v1/nodes" in request for request in server.requests) == 1, "not for every change"


def test_a_failure_is_told_again_when_it_happens_again(scene, following_it, lines, server):
    status = following_it()
    scene.pod(0)
    lines.wait_for("worker 0: failed with exit 75: storage was away: its Job starts another pod")
    scene.pod(0, life=1)
    lines.wait_for("worker 0: keeps failing (2 times), last with exit 75: storage was away: see its log")
    server.remove("jobs", JOB)
    assert status.result(SECONDS) == EXIT_RETRY


NOT_THERE = "not there after 60 s, expected its supervisor to register (operations.rendezvous_seconds)"


def test_a_worker_that_never_comes_ends_the_display_with_why(scene, server, following_it, lines, capsys):
    """Room for one of two workers: the first gives up after its budget, and the Job with it."""
    status = following_it()
    scene.pod(0, phase="Running")
    scene.pod(1, "cpu")
    pending = "worker 1: pending for lack of cpu (asked 64, free 1.99 on node-1)"
    lines.wait_for(pending)
    scene.pod(0, message=f"worker 1 ({JOB}-1.training:2220): {NOT_THERE}", status=EXIT_UNAVAILABLE)
    lines.wait_for("never came")
    scene.pod(1, phase="Running")  # there is room now that its peer has given up
    lines.wait_for("worker 1: runs on node-1")
    server.remove("pods", f"{JOB}-1-0")  # by the Job's controller
    message = f"Container stage for pod mine/{JOB}-0-0 failed with exit code 69 matching FailJob rule at index 0"
    scene.ended("FailureTarget", "PodFailurePolicy", message)
    reason = f"worker 0: exit 69: worker 1 ({JOB}-1.training:2220): {NOT_THERE}; {pending}"
    lines.wait_for(f"fails: {reason}; its other pods are ended")
    scene.ended("Failed", "PodFailurePolicy", message)
    assert status.result(SECONDS) == EXIT_RETRY
    said = capsys.readouterr().err.splitlines()
    assert said[0] == f"error: job {JOB} has failed: {reason}"
    assert said[2].strip() == (
        "lower REQUESTS or the number of pods, or add a node; the same command again goes on from what is done"
    )
    lines.wait_for(f"worker 1 ({JOB}-1.training:2220): never came: its peers waited 60 s for it")
    assert not any("its Job starts another pod" in line for line in lines.all)


def test_an_api_server_that_is_away_is_told_once_and_waited_for(
    scene, server, following_it, lines, run, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(adapter, "RETRY_SECONDS", (0.01, 0.01))
    monkeypatch.setattr(following, "AWAY_SECONDS", 0.0)
    monkeypatch.setattr(following, "TICK_SECONDS", 0.01)
    status = following_it()
    server.refusals.extend([(503, {"message": "starting"})] * 6)
    server.drop_watches()
    lines.wait_for("the work goes on, and so does this display once it answers")
    lines.wait_for("the API server answers again")
    scene.pod(0, phase="Running")
    lines.wait_for("worker 0: runs on node-1")
    run.write(layout.DETECTOR, b"{}")
    scene.ended("Complete")
    assert status.result(SECONDS) == EXIT_OK


def test_a_complete_job_without_its_marker_is_an_error(scene, run, following_it, capsys):
    status = following_it()
    scene.ended("Complete")
    assert status.result(SECONDS) == EXIT_RETRY
    assert f"job {JOB} is complete, but {run.uri}/{layout.DETECTOR} is not there" in capsys.readouterr().err


def test_ctrl_c_leaves_the_work_alone(scene, server, cluster, run, capsys):
    def press() -> None:
        server.wait_for_watches(3)
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=press)
    thread.start()
    assert follow(cluster, run, "train", JOB, Config()) == 130
    thread.join()
    assert "the work goes on in the cluster; the same command attaches again" in capsys.readouterr().err
    assert not [request for request in server.requests if request.startswith("DELETE")]


def test_a_reader_that_is_gone_ends_the_display_at_once(scene, cluster, run, monkeypatch: pytest.MonkeyPatch):
    """`make train | head -20` with a Job at work: epochs are said by the thread that looks at the run."""

    def look(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(TrainDisplay, "look", look)
    with pytest.raises(BrokenPipeError):
        follow(cluster, run, "train", JOB, Config())


def delete_job(server, **metadata: Any) -> None:
    job = copy.deepcopy(server.objects[f"jobs/{JOB}"])
    job["metadata"] |= {"deletionTimestamp": "2026-01-01T00:01:00Z", **metadata}
    server.put("jobs", JOB, **job)


def test_who_holds_a_deleted_job_is_told(server, scene, following_it, lines):
    """A pod whose node vanished, then a finalizer that nobody removes."""
    node = copy.deepcopy(RECORDED["nodes"][0])
    node["status"]["conditions"] = [{"type": "Ready", "status": "Unknown"}]
    server.put("nodes", "node-1", **node)
    scene.pod(0, phase="Running", deletionTimestamp="2026-01-01T00:01:10Z")
    delete_job(server, finalizers=["foregroundDeletion", "example.com/keeps"])
    status = following_it()
    lines.wait_for("worker 0: node node-1 does not answer: it holds its deleted Job (kubectl delete node node-1, if")
    server.remove("pods", f"{JOB}-0-0")
    lines.wait_for(f"{JOB}: is being deleted since 00:01:00 UTC, but kept by the finalizer example.com/keeps: whoever")
    server.remove("jobs", JOB)
    assert status.result(SECONDS) == EXIT_RETRY
    assert lines.all[-1] == f"job {JOB}: was deleted; the same command begins it again"


def test_a_job_that_is_deleted_before_it_is_watched_is_gone(scene, server, cluster):
    changes = Changes(cluster, JOB)
    server.remove("jobs", JOB)
    with changes:
        while not changes.gone:
            assert changes.wait(SECONDS)


def test_pods_that_go_with_their_job_are_no_trouble(server, scene, following_it, lines):
    delete_job(server)
    scene.pod(0, message="asked to end (SIGTERM)")
    status = following_it()
    server.remove("jobs", JOB)
    assert status.result(SECONDS) == EXIT_RETRY
    assert lines.all == [f"job {JOB}: was deleted; the same command begins it again"]


def test_a_job_that_is_not_there_is_named(cluster, run):
    with pytest.raises(ClusterError, match=r"job nothing .*: not found"):
        follow(cluster, run, "train", "nothing", Config())


def test_damage_in_the_run_is_said_and_leaves_the_status_alone(
    scene, following_it, run, lines, monkeypatch: pytest.MonkeyPatch
):
    status = following_it()
    run.write(layout.METRICS, b"no json\n")
    lines.wait_for("no progress is shown any more")
    scene.ended("Failed", "DeadlineExceeded")
    assert status.result(SECONDS) == EXIT_RETRY
    assert any(layout.METRICS in line for line in lines.all)


def test_status_tells_of_jobs_pods_and_findings(scene, cluster, run):
    scene.pod(0, phase="Running")
    scene.pod(1, "config")
    assert pods_in_words(cluster, run.uri).splitlines() == [
        "cluster   context test, namespace mine",
        f"          job {JOB}: at work; 0 of 2 workers done",
        "            worker 0: runs on node-1",
        "            worker 1: starts on node-1",
        "          ! worker 1: configmap settings is missing: make deploy creates what pods need once",
    ]


def test_status_without_a_job_says_where_to_look(server, cluster, run):
    assert pods_in_words(cluster, run.uri).splitlines()[1].strip() == (
        "no Job of this run (RUN/logs/ has what its pods have left)"
    )
