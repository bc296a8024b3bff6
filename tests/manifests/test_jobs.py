"""What the Jobs ask of the Job controller: when to retry, when to give up, what becomes of a lost node."""

from __future__ import annotations

import pytest

from deepfake_detector.core.capacity import quantity
from deepfake_detector.core.config import Config
from deepfake_detector.core.errors import EXIT_PERMANENT, EXIT_TERMINATED, EXIT_UNAVAILABLE
from deepfake_detector.core.jobspec import CONTAINER
from tests.manifests.golden_files import OVERLAYS, STAGES, Manifest, of_kind, the

JOBS = [
    pytest.param(the(overlay, "Job", stage), stage, id=f"{overlay}-{stage}") for overlay in OVERLAYS for stage in STAGES
]
each_job = pytest.mark.parametrize(("job", "stage"), JOBS)
DAY = 86_400


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_there_is_one_job_for_each_stage(overlay: str) -> None:
    assert set(of_kind(overlay, "Job")) == set(STAGES)


@each_job
def test_failures_are_judged_by_exit_status_in_order(job: Manifest, stage: str) -> None:
    def on_exit(*statuses: int) -> dict[str, object]:
        return {"containerName": CONTAINER, "operator": "In", "values": list(statuses)}

    assert job["spec"]["podFailurePolicy"]["rules"] == [
        {"action": "FailJob", "onExitCodes": on_exit(EXIT_UNAVAILABLE, EXIT_PERMANENT)},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "Ignore", "onExitCodes": on_exit(EXIT_TERMINATED)},
    ]


@each_job
def test_one_pod_at_a_time_per_index(job: Manifest, stage: str) -> None:
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    assert spec["podReplacementPolicy"] == "Failed"
    assert spec["template"]["spec"]["restartPolicy"] == "Never"  # podFailurePolicy asks for it


@each_job
def test_retries_are_bounded(job: Manifest, stage: str) -> None:
    limits = {name: job["spec"].get(name) for name in ("backoffLimit", "backoffLimitPerIndex", "maxFailedIndexes")}
    expected = {"preprocess": (None, 3, None), "train": (30, None, None), "export": (3, None, None)}
    assert tuple(limits.values()) == expected[stage]


@each_job
def test_nothing_stays_for_ever(job: Manifest, stage: str) -> None:
    deadlines = {"preprocess": 2 * DAY, "train": 7 * DAY, "export": DAY // 4}
    assert job["spec"]["activeDeadlineSeconds"] == deadlines[stage]
    assert job["spec"]["ttlSecondsAfterFinished"] == 7 * DAY
    assert job["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] <= 15  # a spot node's notice on GKE


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_hostile_videos_do_not_take_the_pod(overlay: str) -> None:
    """Each decoding process, of which there is one per CPU, may come to its cap at the same time."""
    [container] = the(overlay, "Job", "preprocess")["spec"]["template"]["spec"]["containers"]
    limits = container["resources"]["limits"]
    decoders = int(quantity(limits["cpu"])) * Config().operations.video_memory_mb
    assert quantity(limits["memory"]) >= (decoders + 1024) * 2**20  # and the parent, with what it stages


@each_job
def test_a_vanished_node_is_waited_for_30_seconds(job: Manifest, stage: str) -> None:
    waits = {
        toleration["key"]: toleration["tolerationSeconds"]
        for toleration in job["spec"]["template"]["spec"]["tolerations"]
        if "tolerationSeconds" in toleration
    }
    assert waits == {"node.kubernetes.io/not-ready": 30, "node.kubernetes.io/unreachable": 30}


@each_job
def test_labels_say_whose_it_is(job: Manifest, stage: str) -> None:
    expected = {
        "app.kubernetes.io/name": "deepfake-detector",
        "app.kubernetes.io/component": stage,
        "app.kubernetes.io/part-of": "deepfake-detector",
    }
    assert job["metadata"]["labels"] == job["spec"]["template"]["metadata"]["labels"] == expected


@pytest.mark.parametrize("stage", STAGES)
def test_spot_nodes_on_gke(stage: str) -> None:
    pod = the("gke", "Job", stage)["spec"]["template"]["spec"]
    spot = {"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}
    assert pod["nodeSelector"] == {"cloud.google.com/gke-spot": "true"}
    assert spot in pod["tolerations"]


@pytest.mark.parametrize("stage", STAGES)
def test_whole_equal_cpus_on_gke(stage: str) -> None:
    """Thread counts are frozen in a run, so every pod of it needs the same CPUs."""
    (container,) = the("gke", "Job", stage)["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert container["resources"]["limits"]["cpu"].isdecimal()
