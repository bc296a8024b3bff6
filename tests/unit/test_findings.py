"""Diagnoses of Jobs with many pods, of Jobs that are deleted, and of workers that all say the same."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from deepfake_detector.core.diagnosis import diagnose
from deepfake_detector.core.errors import EXIT_TERMINATED, EXIT_UNAVAILABLE
from deepfake_detector.core.findings import Kind
from deepfake_detector.core.job_end import job_end
from deepfake_detector.core.placement import Surroundings
from deepfake_detector.core.waiting import workers_missing

Object = dict[str, Any]
NOW = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)


def job(**metadata: Any) -> Object:
    labels = {"app.kubernetes.io/component": "train"}
    return {"metadata": {"name": "train-x", "uid": "job", "labels": labels, **metadata}, "spec": {}, "status": {}}


def pod(index: int, status: Object, **metadata: Any) -> Object:
    labels = {"app.kubernetes.io/component": "train", "batch.kubernetes.io/job-completion-index": str(index)}
    return {
        "metadata": {"name": f"train-x-{index}-abcde", "uid": f"pod-{index}", "labels": labels, **metadata},
        "spec": {"nodeName": "node-1", "containers": [{"name": "stage", "resources": {"requests": {"cpu": "4"}}}]},
        "status": status,
    }


def unscheduled(index: int) -> Object:
    message = "0/1 nodes are available: 1 Insufficient cpu. preemption: none"
    refused = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    waiting = pod(index, {"phase": "Pending", "conditions": [refused]})
    return {**waiting, "spec": {"containers": waiting["spec"]["containers"]}}


def ended(index: int, status: int, message: str = "") -> Object:
    state = {"terminated": {"exitCode": status, "reason": "Error", "message": message}}
    return pod(index, {"phase": "Failed", "containerStatuses": [{"name": "stage", "state": state}]})


NODE = {
    "metadata": {"name": "node-1"},
    "status": {"allocatable": {"cpu": "2"}, "conditions": [{"type": "Ready", "status": "True"}]},
}


class Counted(dict[str, Any]):
    """An object of the API that counts how often something of it is read."""

    reads: Counter[str]

    def __init__(self, kind: str, reads: Counter[str], content: Object) -> None:
        super().__init__(content)
        self.kind, self.reads = kind, reads

    def __getitem__(self, key: str) -> Any:
        self.reads[self.kind] += 1
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.reads[self.kind] += 1
        return super().get(key, default)


def reads_of(pods: int, events: int) -> Counter[str]:
    """How often the objects are read where no pod has a node, in a cluster that is full of them."""
    reads: Counter[str] = Counter()
    told = [
        {"reason": "FailedScheduling", "involvedObject": {"kind": "Pod", "name": f"train-x-{number % pods}-abcde"}}
        for number in range(events)
    ]
    waiting = [Counted("pod", reads, unscheduled(index)) for index in range(pods)]
    others = [Counted("other", reads, pod(index, {"phase": "Running"})) for index in range(pods)]
    [finding] = diagnose(
        job(),
        waiting,
        [Counted("event", reads, event) for event in told],
        Surroundings([Counted("node", reads, NODE)], others),
        NOW,
    )
    assert str(finding).startswith(f"workers 0-{pods - 1}: pending for lack of cpu (asked 4, free 0 on node-1)")
    return reads


def test_the_work_grows_with_pods_and_events_and_not_with_their_product() -> None:
    few, many = reads_of(20, 50), reads_of(2_000, 5_000)
    assert all(many[kind] <= 100 * few[kind] for kind in ("pod", "event", "other")), (few, many)
    assert many["node"] == few["node"]
    assert many["event"] <= 3 * 5_000


def test_workers_that_waited_for_the_same_one_say_it_once() -> None:
    message = workers_missing({2: "train-x-2.training:2220"}, 60.0)
    pods = [ended(0, EXIT_UNAVAILABLE, message), ended(1, EXIT_UNAVAILABLE, message), unscheduled(2)]
    found = diagnose(job(), pods, [])
    assert [(each.kind, each.subject) for each in found] == [
        (Kind.PEER, "worker 2 (train-x-2.training:2220)"),
        (Kind.PENDING, "worker 2"),
    ]


def test_each_disruption_of_an_index_is_counted() -> None:
    lives = [ended(0, EXIT_TERMINATED), ended(0, 75, "away"), ended(0, EXIT_TERMINATED), ended(1, EXIT_TERMINATED)]
    found = diagnose(job(), lives, [])
    goes_on = "its Job starts another pod, and the work goes on"
    assert [(str(each), each.times) for each in found if each.kind is Kind.DISRUPTED] == [
        (f"worker 0: was deleted, or asked to end (SIGTERM) (2 times): {goes_on}", 2),
        (f"worker 1: was deleted, or asked to end (SIGTERM): {goes_on}", 1),
    ]


@pytest.mark.parametrize("condition", ["Failed", "FailureTarget"])
def test_pods_that_end_with_their_failed_job_are_no_disruption(condition: str) -> None:
    message = "Container stage for pod mine/train-x-0-abcde failed with exit code 69 matching FailJob rule at index 0"
    failed = {"type": condition, "status": "True", "reason": "PodFailurePolicy", "message": message}
    pods = [ended(0, EXIT_UNAVAILABLE, "x"), ended(1, EXIT_TERMINATED, "SIGTERM")]
    found = diagnose({**job(), "status": {"conditions": [failed]}}, pods, [])
    assert [each.kind for each in found] == [Kind.JOB]


@pytest.mark.parametrize(
    ("pods", "reason", "explained"),
    [
        pytest.param([], "Container stage for pod", False, id="its pod is not known yet"),
        pytest.param([pod(0, {"phase": "Running"})], "Container stage for pod", False, id="it seems to run still"),
        pytest.param([ended(0, 78, "x=0: expected 1")], "worker 0: exit 78: x=0: expected 1", True, id="it has failed"),
    ],
)
def test_the_failed_pod_explains_its_job(pods: list[Object], reason: str, explained: bool) -> None:
    message = "Container stage for pod mine/train-x-0-abcde failed with exit code 78 matching FailJob rule"
    failed = {"type": "Failed", "status": "True", "reason": "PodFailurePolicy", "message": message}
    end = job_end({**job(), "status": {"conditions": [failed]}}, pods)
    assert end is not None
    assert (end.explained, end.permanent) == (explained, True)
    assert end.reason.startswith(reason)


def deleted(seconds: float, **metadata: Any) -> Object:
    """A Job that somebody deleted so long ago."""
    return job(deletionTimestamp=(NOW - timedelta(seconds=seconds)).isoformat(), **metadata)


RUNNING: Object = {"phase": "Running"}
OVERDUE = (NOW - timedelta(seconds=30)).isoformat()
ENDING = (NOW + timedelta(seconds=30)).isoformat()
AROUND = Surroundings([NODE], [])
GONE = Surroundings([], [])
WONT = "it holds its deleted Job (kubectl delete node node-1, if it won't return)"


@pytest.mark.parametrize(
    ("thing", "pods", "around", "expected"),
    [
        pytest.param(deleted(5), [pod(0, RUNNING, deletionTimestamp=OVERDUE)], GONE, [], id="just deleted"),
        pytest.param(deleted(60), [], AROUND, [], id="about to be gone"),
        pytest.param(
            deleted(60, finalizers=["foregroundDeletion"]), [ended(0, 143)], AROUND, [], id="Kubernetes' own finalizer"
        ),
        pytest.param(
            deleted(60, finalizers=["foregroundDeletion"]),
            [pod(0, RUNNING, deletionTimestamp=OVERDUE), pod(1, RUNNING, deletionTimestamp=OVERDUE)],
            GONE,
            [f"workers 0-1: node node-1 is gone: {WONT}"],
            id="node gone",
        ),
        pytest.param(
            deleted(60),
            [pod(1, RUNNING, deletionTimestamp=OVERDUE)],
            AROUND,
            [f"worker 1: should be gone since 02:59:30 UTC: node node-1 does not say so: {WONT}"],
            id="kubelet silent",
        ),
        pytest.param(
            deleted(60),
            [pod(1, RUNNING, deletionTimestamp=ENDING)],
            AROUND,
            ["worker 1: holds its deleted Job: has not ended yet"],
            id="long grace period",
        ),
        pytest.param(
            deleted(60),
            [pod(1, RUNNING)],
            AROUND,
            [
                "worker 1: holds its deleted Job: was not told to end yet, which Kubernetes' garbage collector does",
            ],
            id="garbage collector behind",
        ),
        pytest.param(
            deleted(60, finalizers=["example.com/a", "foregroundDeletion"]),
            [pod(1, RUNNING, finalizers=["example.com/b", "batch.kubernetes.io/job-tracking"])],
            AROUND,
            [
                "worker 1: holds its deleted Job, kept by the finalizer example.com/b: whoever set it has to remove it",
            ],
            id="finalizer of a pod, before the Job's own",
        ),
        pytest.param(
            deleted(60, finalizers=["example.com/a"]),
            [ended(0, 143)],
            AROUND,
            [
                "train-x: is being deleted since 02:59:00 UTC, but kept by the finalizer example.com/a: whoever set it "
                "has to remove it"
            ],
            id="finalizer of the Job",
        ),
    ],
)
def test_who_holds_a_deleted_job_is_named(
    thing: Object, pods: list[Object], around: Surroundings, expected: list[str]
) -> None:
    assert [str(each) for each in diagnose(thing, pods, [], around, NOW)] == expected
