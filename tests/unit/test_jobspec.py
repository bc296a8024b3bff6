from __future__ import annotations

import copy
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepfake_detector.core.errors import ConfigError
from deepfake_detector.core.jobspec import (
    Resources,
    cpu_limit_of,
    fill,
    in_namespace,
    is_over,
    job_name,
    parse_resources,
    peers,
    retry_of,
    run_hash,
    run_selector,
    stage_job,
    with_resources,
)

DNS_LABEL = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")  # RFC 1123, at most 63 characters
RUN = "gs://videos/runs/First Try_2"


def template(stage: str = "train", **resources: dict[str, str]) -> dict[str, Any]:
    container = {
        "name": "stage",
        "image": "deepfake-detector:dev",
        "env": [{"name": "SCRATCH", "value": "/scratch"}, {"name": "RUN", "value": "to be replaced"}],
        "resources": resources or {"requests": {"cpu": "100m"}, "limits": {"cpu": "1", "memory": "3Gi"}},
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": stage, "namespace": "deepfake-detector", "labels": {"app": "x"}},
        "spec": {
            "completions": 1,
            "template": {"metadata": {"labels": {"app": "x"}}, "spec": {"containers": [container]}},
        },
    }


def filled(stage: str = "train", completions: int = 2, **changes: Any) -> dict[str, Any]:
    wanted: dict[str, Any] = {
        "stage": stage,
        "run_uri": RUN,
        "namespace": "mine",
        "image": "registry.example/detector:1a2b",
        "completions": completions,
        "parallelism": completions,
        "settings_fingerprint": "f00d",
        "resources": Resources(),
    }
    return fill(template(stage), **{**wanted, **changes})


def container_of(job: dict[str, Any]) -> dict[str, Any]:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return container


@pytest.mark.parametrize(
    ("stage", "uri", "completions", "slug"),
    [
        pytest.param("train", "gs://b/my-run", 2, "my-run", id="plain"),
        pytest.param("train", "gs://b/runs/My Run_2", 2, "my-run-2", id="other characters"),
        pytest.param("export", "gs://b/--x--", 1, "x", id="dashes at the ends"),
        pytest.param("preprocess", "gs://b/" + "a" * 200, 100_000, "a" * 32, id="cut"),
        pytest.param("train", "gs://b/" + "a" * 31 + "-b", 1, "a" * 31, id="cut at a dash"),
        pytest.param("train", "gs://b/日本", 1, "", id="nothing of it is left"),
        pytest.param("train", "gs://b/7", 1, "7", id="a digit"),
    ],
)
def test_job_names(stage, uri, completions, slug):
    expected = "-".join(part for part in (stage, slug, run_hash(uri)) if part)
    assert job_name(stage, uri, completions) == expected
    assert len(f"{expected}-{completions - 1}") <= 63


@given(
    stage=st.sampled_from(["preprocess", "train", "export"]),
    path=st.text(min_size=1, max_size=300),
    completions=st.integers(1, 100_000),
)
def test_every_run_has_a_name_that_kubernetes_takes(stage, path, completions):
    uri = f"gs://bucket/{path}"
    name = job_name(stage, uri, completions)
    for label in (name, f"{name}-{completions - 1}", run_hash(uri)):
        assert DNS_LABEL.fullmatch(label)
        assert len(label) <= 63
    assert job_name(stage, uri, 1) == name, "the name must not depend on the count"


@pytest.mark.parametrize(
    ("stage", "completions"),
    [
        pytest.param("train", 0, id="no pods"),
        pytest.param("train", 10**20, id="an index of 20 digits"),
        pytest.param("Train", 2, id="upper case"),
        pytest.param("", 2, id="no stage"),
        pytest.param("a" * 60, 2, id="long stage"),
    ],
)
def test_a_name_that_kubernetes_would_refuse_is_refused_first(stage, completions):
    with pytest.raises(ConfigError, match="expected its last pod's name"):
        job_name(stage, "gs://bucket/0123456789012345678901234567890123456789", completions)


def test_the_hash_tells_runs_of_one_name_apart():
    assert run_hash("gs://a/run") == "257bbe81", "printf gs://a/run | sha256sum"
    assert run_hash("gs://b/run") != run_hash("gs://a/run")
    assert run_selector("gs://a/run") == f"deepfake-detector/run={run_hash('gs://a/run')}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("", {}, id="none"),
        pytest.param("cpu=1,memory=2Gi", {"cpu": "1", "memory": "2Gi"}, id="two"),
        pytest.param(" cpu=500m , ", {"cpu": "500m"}, id="spaces"),
        pytest.param("nvidia.com/gpu=1", {"nvidia.com/gpu": "1"}, id="extended"),
    ],
)
def test_resources(text, expected):
    assert parse_resources(text, "--limits") == expected


@pytest.mark.parametrize(
    ("text", "says"),
    [
        pytest.param("cpu", "--limits cpu: expected", id="no value"),
        pytest.param("cpu=", "--limits cpu=''", id="empty"),
        pytest.param("memory=2GB", "--limits memory='2GB'", id="unit"),
        pytest.param("cpu=1,cpu=2", "--limits cpu=2: expected", id="twice"),
        pytest.param("=1", "--limits =1", id="no name"),
    ],
)
def test_resources_that_are_wrong(text, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        parse_resources(text, "--limits")


@pytest.mark.parametrize(
    ("limit", "cpus"),
    [("1", 1), ("2", 2), ("2500m", 2), ("100m", 1), (4, 4), ("29000m", 29), ("1.9", 1)],
)
def test_whole_cpus_of_a_limit(limit, cpus):
    assert cpu_limit_of(template(limits={"cpu": limit})) == cpus


def test_threads_need_a_cpu_limit():
    with pytest.raises(ConfigError, match="no CPU limit on container 'stage'"):
        cpu_limit_of(template(limits={"memory": "1Gi"}))


def test_a_lower_limit_lowers_the_manifests_request():
    job = template(requests={"cpu": "4", "memory": "8Gi"}, limits={"cpu": "4", "memory": "8Gi"})
    changed = with_resources(job, Resources(limits={"memory": "300Mi"}))
    assert container_of(changed)["resources"] == {
        "requests": {"cpu": "4", "memory": "300Mi"},
        "limits": {"cpu": "4", "memory": "300Mi"},
    }
    assert container_of(job)["resources"]["limits"]["memory"] == "8Gi", "the template is left as it is"


def test_a_request_above_the_limit_is_refused():
    with pytest.raises(ConfigError, match=re.escape("--requests cpu=2: expected at most the limit, 1")):
        with_resources(template(), Resources(requests={"cpu": "2"}))
    assert with_resources(template(), Resources(requests={"cpu": "2"}, limits={"cpu": "2"}))


def test_fill():
    original = template()
    before = copy.deepcopy(original)
    job = filled()
    name = job_name("train", RUN, 2)
    assert original == before
    assert job["metadata"]["name"] == name
    assert job["metadata"]["namespace"] == "mine"
    assert job["metadata"]["annotations"] == {
        "deepfake-detector/run-uri": RUN,
        "deepfake-detector/settings": "f00d",
    }
    for labels in (job["metadata"]["labels"], job["spec"]["template"]["metadata"]["labels"]):
        assert labels == {"app": "x", "deepfake-detector/run": run_hash(RUN)}
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (2, 2)
    container = container_of(job)
    assert container["image"] == "registry.example/detector:1a2b"
    assert {each["name"]: each["value"] for each in container["env"]} == {
        "SCRATCH": "/scratch",
        "RUN": RUN,
        "SETTINGS": "train:f00d",
        "PEERS": f"{name}-0.training:2220,{name}-1.training:2220",
    }
    assert job["spec"]["backoffLimit"] == 6, "three failures of each pod"


def test_only_training_has_peers():
    job = filled("preprocess", 16, parallelism=4)
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (16, 4)
    assert "PEERS" not in {each["name"] for each in container_of(job)["env"]}


def test_a_run_that_looks_like_a_variable_is_taken_literally():
    job = filled(run_uri="gs://b/$(POD_NAME)/$5")
    value = next(each["value"] for each in container_of(job)["env"] if each["name"] == "RUN")
    assert value == "gs://b/$$(POD_NAME)/$$5", "Kubernetes takes $$ for $, and does not expand $$(NAME)"


def test_peers_are_in_order_of_index():
    assert peers("train-x", 11)[10] == "train-x-10.training:2220"


def test_stage_job():
    objects = [{"kind": "Service", "metadata": {"name": "train"}}, template("train"), template("export")]
    assert stage_job(objects, "train", "here")["kind"] == "Job"
    with pytest.raises(ConfigError, match="here: expected a Job named 'preprocess'"):
        stage_job(objects, "preprocess", "here")


def test_another_namespace():
    objects = [
        {"kind": "Namespace", "metadata": {"name": "deepfake-detector"}},
        {"kind": "ServiceAccount", "metadata": {"name": "stages", "namespace": "deepfake-detector"}},
        {"kind": "ConfigMap", "metadata": {"name": "settings"}},
        {
            "kind": "RoleBinding",
            "metadata": {"name": "submitter", "namespace": "deepfake-detector"},
            "subjects": [
                {"kind": "ServiceAccount", "name": "submitter", "namespace": "deepfake-detector"},
                {"kind": "User", "name": "ci@example.com"},
            ],
        },
        {
            "kind": "ClusterRoleBinding",
            "metadata": {"name": "look"},
            "subjects": [{"kind": "ServiceAccount", "name": "submitter", "namespace": "deepfake-detector"}],
        },
        {"kind": "ClusterRole", "metadata": {"name": "look"}},
        {"kind": "PriorityClass", "metadata": {"name": "low"}},
    ]
    before = copy.deepcopy(objects)
    namespace, account, settings, binding, cluster_binding, role, priority = in_namespace(objects, "mine")
    assert objects == before
    assert namespace["metadata"] == {"name": "mine"}
    assert account["metadata"] == {"name": "stages", "namespace": "mine"}
    assert settings["metadata"]["namespace"] == "mine"
    assert binding["metadata"] == {"name": "submitter", "namespace": "mine"}
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": "submitter", "namespace": "mine"},
        {"kind": "User", "name": "ci@example.com"},
    ]
    assert cluster_binding["metadata"] == {"name": "look"}
    assert cluster_binding["subjects"][0]["namespace"] == "mine"
    assert role["metadata"] == {"name": "look"}
    assert priority["metadata"] == {"name": "low"}


@pytest.mark.parametrize(
    ("conditions", "metadata", "over"),
    [
        pytest.param([], {}, False, id="at work"),
        pytest.param([("Suspended", "True")], {}, False, id="suspended"),
        pytest.param([("Complete", "True")], {}, True, id="complete"),
        pytest.param([("Failed", "True")], {}, True, id="failed"),
        pytest.param([("FailureTarget", "True")], {}, True, id="failing, its pods still end"),
        pytest.param([("Failed", "False")], {}, False, id="condition that does not hold"),
        pytest.param([], {"deletionTimestamp": "2026-01-01T00:00:00Z"}, True, id="being deleted"),
    ],
)
def test_whether_a_job_is_over(conditions, metadata, over):
    status = {"conditions": [{"type": kind, "status": value} for kind, value in conditions]}
    assert is_over({"metadata": {"name": "x", **metadata}, "status": status}) is over


def test_the_pods_of_a_retry_are_told_its_number() -> None:
    first, second = filled("preprocess"), filled("preprocess", retry=2)
    assert [retry_of(job) for job in (first, second, template())] == [0, 2, 0]
    assert first["metadata"] == second["metadata"], "one Job of preprocessing at a time"
    variables = {variable["name"] for variable in first["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert "RETRY" not in variables
