"""Diagnoses of recorded Jobs (recorded_jobs.json: as a 1.34 API server gave them) and of what cannot be recorded."""

from __future__ import annotations

import copy
import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepfake_detector.core.diagnosis import diagnose
from deepfake_detector.core.findings import Kind, ranges
from deepfake_detector.core.job_end import job_end
from deepfake_detector.core.placement import Surroundings
from deepfake_detector.core.pods import state_of
from deepfake_detector.core.waiting import rendezvous_missing, workers_missing

RECORDED = json.loads(Path(__file__).with_name("recorded_jobs.json").read_text())
NODES = RECORDED.pop("nodes")
AROUND = Surroundings(NODES, [])
NOW = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)

Object = dict[str, Any]


def recorded(name: str) -> Any:
    return copy.deepcopy(RECORDED[name])


def findings(name: str, around: Surroundings = AROUND) -> list[str]:
    case = RECORDED[name]
    return [str(each) for each in diagnose(case["job"], case["pods"], case["events"], around)]


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        pytest.param(
            "account",
            'account: no pods: error looking up service account h3-test/nobody: serviceaccount "nobody" not found: '
            "make deploy creates what pods need once",
            id="service account",
        ),
        pytest.param(
            "config",
            "worker 0: configmap settings is missing: make deploy creates what pods need once",
            id="ConfigMap",
        ),
        pytest.param(
            "volume",
            'worker 0: waits for a volume: MountVolume.SetUp failed for volume "key" : secret "gcs-key" not found: '
            "create it (k8s/components/bucket-key says how)",
            id="secret that is mounted",
        ),
        pytest.param(
            "cpu",
            "workers 0-1: pending for lack of cpu (asked 64, free 2 on node-1): "
            "lower REQUESTS or the number of pods, or add a node",
            id="cpu",
        ),
        pytest.param(
            "gpu",
            "worker 0: pending for lack of gpu (asked 1, free 0 on node-1): "
            "lower REQUESTS or the number of pods, or add a node",
            id="gpu",
        ),
        pytest.param(
            "image",
            "worker 0: image nowhere.example/no-such:1 can't be pulled: failed to do request: Head "
            '"https://nowhere.example/v2/no-such/manifests/1": dial tcp: lookup nowhere.example on 10.96.0.10:53: '
            "no such host: build and load it (make images, make cluster), or name another with IMAGE=",
            id="image",
        ),
        pytest.param(
            "quota",
            "cpu: no more pods: exceeded quota: small, requested: requests.cpu=64, used: requests.cpu=0, limited: "
            "requests.cpu=1: lower REQUESTS, LIMITS or the number of pods",
            id="quota",
        ),
        pytest.param(
            "deadline",
            "deadline: has failed: took longer than activeDeadlineSeconds=4: "
            "the same command again goes on from what is done",
            id="deadline",
        ),
        pytest.param(
            "permanent",
            "permanent: has failed: worker 0: exit 78: train.workers=0: expected 1 or more",
            id="permanent error",
        ),
        pytest.param(
            "retry",
            "retry: has failed: its pods failed more than backoffLimit=2 times; the last: worker 0: exit 75: storage "
            "was away: the same command again goes on from what is done",
            id="retries used up",
        ),
    ],
)
def test_a_recorded_job_is_diagnosed_in_one_line(case: str, expected: str) -> None:
    assert findings(case) == [expected]


def test_pod_security_names_what_is_violated() -> None:
    [line] = findings("pod security")
    assert line.startswith('cpu: its pods are refused: violates PodSecurity "restricted:latest": allowPrivilegeEsc')


def test_out_of_memory_names_limit_and_peak() -> None:
    failed, memory = findings("memory")
    assert "the last: worker 0: OOMKilled: limit 16 MiB" in failed
    assert memory == (
        "worker 0: OOMKilled: limit 16 MiB, and the peak reached it: raise the memory limit (LIMITS=memory=...)"
    )


def test_a_command_that_is_not_in_the_image_is_named() -> None:
    assert 'exec: "/no/such"' in findings("start")[0]


def test_who_may_not_list_nodes_still_learns_what_was_asked() -> None:
    assert findings("cpu", Surroundings())[0].startswith("workers 0-1: pending for lack of cpu (asked 64): ")


def at_work(job: Object) -> Object:
    """The Job before it ended."""
    return {**job, "status": {"active": 1}}


def failed_with(message: str, *, status: int = 75, times: int = 1) -> Any:
    """A Job at work whose index 0 failed, and runs again."""
    case = recorded("retry")
    pods = case["pods"][:times]
    for pod in pods:
        ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]
        ended.update(message=message, exitCode=status)
    return diagnose(at_work(case["job"]), pods, [])


@pytest.mark.parametrize(
    ("message", "kind", "expected"),
    [
        pytest.param(
            "storage was away",
            Kind.FAILED,
            "worker 0: failed with exit 75: storage was away: its Job starts another pod",
            id="once",
        ),
        pytest.param(
            "Traceback (most recent call last):\nerror: gs://b/x: no such bucket\n2026 I tensorflow says more\n",
            Kind.FAILED,
            "worker 0: failed with exit 75: gs://b/x: no such bucket: its Job starts another pod",
            id="the error in the end of a log",
        ),
        pytest.param(
            "OOMKilled: limit 300 MiB, peak 299 MiB (raise the memory limit)",
            Kind.OUT_OF_MEMORY,
            "worker 0: OOMKilled: limit 300 MiB, peak 299 MiB: raise the memory limit (LIMITS=memory=...)",
            id="a child out of memory, whose parent could measure",
        ),
        pytest.param(
            "decoding process: OOMKilled: limit 110 MiB, peak 110 MiB: raise the memory limit (LIMITS=memory=...)",
            Kind.OUT_OF_MEMORY,
            "worker 0: decoding process: OOMKilled: limit 110 MiB, peak 110 MiB: raise the memory limit "
            "(LIMITS=memory=...)",
            id="a child's child out of memory",
        ),
        pytest.param(
            "gs://b/run/config.json: Forbidden: 403 GET: expected credentials that may use the bucket (refused for "
            "60 s)",
            Kind.CREDENTIALS,
            "worker 0: exit 75: gs://b/run/config.json: Forbidden: 403 GET: expected credentials that may use the "
            "bucket (refused for 60 s): let the service account 'stages' use the bucket (Workload Identity, or a "
            "mounted secret)",
            id="credentials",
        ),
        pytest.param(
            workers_missing({1: "train-x-1.training:2220"}, 60.0),
            Kind.PEER,
            "worker 1 (train-x-1.training:2220): never came: its peers waited 60 s for it: see why its pod does not "
            "run, or raise operations.rendezvous_seconds",
            id="a peer that never came",
        ),
        pytest.param(
            rendezvous_missing(0, "train-x-0.training:2220", 60.0, "connection refused"),
            Kind.PEER,
            "worker 0: did not answer: its peers waited 60 s for it: see why its pod does not run, or raise "
            "operations.rendezvous_seconds",
            id="a chief that never came",
        ),
    ],
)
def test_a_failure_is_told_by_its_last_message(message: str, kind: Kind, expected: str) -> None:
    [finding] = failed_with(message)
    assert (finding.kind, str(finding)) == (kind, expected)


def test_an_index_that_keeps_failing_is_told_with_its_last_message_and_count() -> None:
    [finding] = failed_with("storage was away", times=3)
    assert str(finding) == ("worker 0: keeps failing (3 times), last with exit 75: storage was away: see its log")
    assert finding.times == 3


def test_failures_of_an_index_that_succeeded_are_over() -> None:
    case = recorded("retry")
    case["pods"][-1]["status"]["phase"] = "Succeeded"
    assert diagnose(at_work(case["job"]), case["pods"], []) == []


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        pytest.param("", "was deleted, or asked to end (SIGTERM)", id="kubectl delete pod"),
        pytest.param("PreemptionByScheduler", "was preempted by a pod of higher priority", id="preempted"),
        pytest.param("EvictionByEvictionAPI", "was evicted from node node-1, which is being drained", id="drained"),
        pytest.param("DeletionByPodGC", "was lost with node node-1", id="node gone"),
    ],
)
def test_a_disruption_is_no_failure(reason: str, expected: str) -> None:
    case = recorded("retry")
    pod = case["pods"][0]
    pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] = 143
    if reason:
        pod["status"]["conditions"].append({"type": "DisruptionTarget", "status": "True", "reason": reason})
    [finding] = diagnose(at_work(case["job"]), [pod], [])
    assert str(finding) == f"worker 0: {expected}: its Job starts another pod, and the work goes on"


def test_an_eviction_names_the_volume_that_was_full() -> None:
    case = recorded("retry")
    case["pods"][0]["status"].update(
        reason="Evicted", message='Usage of EmptyDir volume "scratch" exceeds the limit "1Gi". '
    )
    [finding] = diagnose(at_work(case["job"]), case["pods"][:1], [])
    assert str(finding) == (
        'worker 0: evicted: Usage of EmptyDir volume "scratch" exceeds the limit "1Gi": raise the scratch volume\'s '
        "sizeLimit, or take fewer videos to a shard (data.shards)"
    )


def running(deleted: datetime | None = None) -> tuple[Object, list[Object]]:
    """A Job with one pod that runs on node-1."""
    case = recorded("retry")
    pod = case["pods"][0]
    pod["status"] = {"phase": "Running"}
    if deleted:
        pod["metadata"]["deletionTimestamp"] = deleted.isoformat().replace("+00:00", "Z")
    return at_work(case["job"]), [pod]


def test_a_pod_that_runs_has_nothing_to_tell() -> None:
    job, pods = running()
    assert diagnose(job, pods, [], AROUND, NOW) == []
    assert state_of(pods[0]) == "runs on node-1"


def not_ready() -> Surroundings:
    [node] = copy.deepcopy(NODES)
    node["status"]["conditions"] = [
        {"type": "Ready", "status": "Unknown", "lastTransitionTime": "2026-11-23T02:59:00Z"}
    ]
    return Surroundings([node], [])


REPLACED = "its replacement starts when the node object is gone (kubectl delete node node-1, if it won't return)"


@pytest.mark.parametrize(
    ("deleted", "around", "expected"),
    [
        pytest.param(
            None,
            not_ready(),
            "worker 0: node node-1 does not answer since 2026-11-23T02:59:00Z: the pod is given up after 30 s of that",
            id="just vanished",
        ),
        pytest.param(
            NOW,
            not_ready(),
            f"worker 0: node node-1 does not answer since 2026-11-23T02:59:00Z: {REPLACED}",
            id="given up",
        ),
        pytest.param(
            NOW,
            Surroundings([], []),
            "worker 0: node node-1 is gone: Kubernetes removes its pods within a minute or two",
            id="node object gone",
        ),
        pytest.param(
            NOW - timedelta(seconds=30),
            Surroundings(),
            f"worker 0: should be gone since 02:59:30 UTC: node node-1 does not say so: {REPLACED}",
            id="nodes may not be listed",
        ),
    ],
)
def test_a_vanished_node_is_told(deleted: datetime | None, around: Surroundings, expected: str) -> None:
    job, pods = running(deleted)
    assert [str(each) for each in diagnose(job, pods, [], around, NOW)] == [expected]


def test_a_pod_that_ends_in_its_grace_period_is_no_finding() -> None:
    job, pods = running(NOW + timedelta(seconds=5))
    assert diagnose(job, pods, [], AROUND, NOW) == []
    assert state_of(pods[0]) == "is being deleted"


def test_free_room_is_what_other_pods_leave_on_nodes_that_take_the_pod() -> None:
    big = copy.deepcopy(NODES[0])
    big["metadata"]["name"] = "tainted"
    big["spec"] = {"taints": [{"key": "gpu", "value": "yes", "effect": "NoSchedule"}]}
    big["status"]["allocatable"]["cpu"] = "96"
    other = {
        "metadata": {"name": "other"},
        "spec": {"nodeName": "node-1", "containers": [{"resources": {"requests": {"cpu": "800m"}}}]},
        "status": {"phase": "Running"},
    }
    [line] = findings("cpu", Surroundings([*NODES, big], [other]))
    assert "(asked 64, free 1.2 on node-1)" in line


def test_a_node_that_the_autoscaler_adds_is_the_remedy() -> None:
    case = RECORDED["cpu"]
    events = [
        {"reason": "TriggeredScaleUp", "metadata": {}, "involvedObject": {"kind": "Pod", "name": name}}
        for name in (pod["metadata"]["name"] for pod in case["pods"])
    ]
    [finding] = diagnose(case["job"], case["pods"], events, AROUND)
    assert finding.remedy == "the autoscaler adds a node"


def test_a_refusal_is_over_when_a_pod_was_created_since() -> None:
    case = recorded("quota")
    _, pods = running()
    pods[0]["metadata"]["creationTimestamp"] = "2030-01-01T00:00:00Z"
    assert diagnose(case["job"], pods, case["events"]) == []


@pytest.mark.parametrize("other", ["another Job's", "an earlier Job's of the same name"])
def test_events_of_others_are_left_out(other: str) -> None:
    case = recorded("quota")
    for event in case["events"]:
        event["involvedObject"]["name" if other.startswith("another") else "uid"] = "other"
    assert diagnose(case["job"], [], case["events"]) == []


def test_an_image_that_the_registry_refuses_asks_for_credentials() -> None:
    case = recorded("image")
    waiting = case["pods"][0]["status"]["containerStatuses"][0]["state"]["waiting"]
    waiting.update(reason="ErrImagePull", message="pull access denied, repository does not exist or may require auth")
    [finding] = diagnose(case["job"], case["pods"], [])
    assert finding.problem == "image nowhere.example/no-such:1 can't be pulled: the registry refuses it"


@pytest.mark.parametrize(
    ("case", "permanent"),
    [("permanent", True), ("retry", False), ("memory", False), ("deadline", False)],
)
def test_only_a_permanent_error_ends_a_job_for_good(case: str, permanent: bool) -> None:
    end = job_end(RECORDED[case]["job"], RECORDED[case]["pods"])
    assert end is not None
    assert (end.complete, end.permanent, end.settled) == (False, permanent, True)


def test_a_failure_is_known_before_the_last_pods_have_ended() -> None:
    case = recorded("permanent")
    for condition in case["job"]["status"]["conditions"]:
        condition["status"] = str(condition["type"] == "FailureTarget")
    end = job_end(case["job"], case["pods"])
    assert end is not None
    assert (end.settled, end.reason) == (False, "worker 0: exit 78: train.workers=0: expected 1 or more")


def test_a_permanent_failure_whose_pod_is_gone_is_told_in_the_jobs_words() -> None:
    end = job_end(RECORDED["permanent"]["job"], [])
    assert end is not None
    assert "failed with exit code 78" in end.reason


@given(st.sets(st.integers(0, 60)))
def test_ranges_name_every_index_once(indexes: set[int]) -> None:
    named: list[int] = []
    for part in filter(None, ranges(indexes).split(", ")):
        first, _, last = part.partition("-")
        named += range(int(first), int(last or first) + 1)
    assert named == sorted(indexes)
