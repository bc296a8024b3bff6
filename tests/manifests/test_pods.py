"""What every pod template of an overlay must promise: least privilege, limits, and no way to the API server."""

from __future__ import annotations

import copy
import re

import pytest

from deepfake_detector.core.jobspec import CONTAINER, quantity
from tests.manifests.golden_files import OVERLAYS, ROOT, STAGES, Manifest, of_kind, pod_templates, stage_container, the

TEMPLATES = [
    pytest.param(overlay, template, id=f"{overlay}-{name}")
    for overlay in OVERLAYS
    for name, template in pod_templates(overlay).items()
]
each_template = pytest.mark.parametrize(("overlay", "template"), TEMPLATES)
each_stage = pytest.mark.parametrize("stage", STAGES)
each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)
# Fields of a pod that only privileged workloads set; Pod Security `restricted` refuses them.
PRIVILEGES = ("hostNetwork", "hostPID", "hostIPC", "hostPort", "privileged", "hostPath", "procMount", "sysctls")


def containers(template: Manifest) -> list[Manifest]:
    return [*template["spec"].get("initContainers", ()), *template["spec"]["containers"]]


def test_there_are_templates_to_judge() -> None:
    assert set(pod_templates("local")) == {"Deployment/object-store", *(f"Job/{stage}" for stage in STAGES)}
    assert set(pod_templates("gke")) == {f"Job/{stage}" for stage in STAGES}


@each_template
def test_runs_as_nobody_without_privileges(overlay: str, template: Manifest) -> None:
    pod = template["spec"]["securityContext"]
    assert pod["runAsNonRoot"] is True
    assert pod["runAsUser"] >= 10_000  # a number, which runAsNonRoot can judge
    assert pod["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(template):
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert not context.keys() & {"runAsUser", "runAsNonRoot", "seccompProfile"}  # the pod's hold
    text = repr(template)
    assert not [name for name in PRIVILEGES if f"'{name}'" in text]


@each_template
def test_has_no_token_and_no_addresses_of_other_services(overlay: str, template: Manifest) -> None:
    assert template["spec"]["automountServiceAccountToken"] is False
    assert template["spec"]["enableServiceLinks"] is False
    assert not [volume for volume in template["spec"]["volumes"] if "projected" in volume or "secret" in volume]


@each_template
def test_has_requests_within_limits(overlay: str, template: Manifest) -> None:
    for container in containers(template):
        resources = container["resources"]
        for name in ("cpu", "memory"):
            assert 0 < quantity(resources["requests"][name]) <= quantity(resources["limits"][name])


@each_template
def test_writes_into_a_volume_with_a_limit(overlay: str, template: Manifest) -> None:
    (volume,) = template["spec"]["volumes"]
    assert quantity(volume["emptyDir"]["sizeLimit"]) > 0
    for container in containers(template):
        assert [mount["name"] for mount in container["volumeMounts"]] == [volume["name"]]


@each_template
def test_images_have_tags_other_than_latest(overlay: str, template: Manifest) -> None:
    for container in containers(template):
        _, _, tag = container["image"].rpartition(":")
        assert "/" not in tag  # a registry's port is no tag
        assert tag not in ("", "latest")


@each_overlay
@each_stage
def test_a_stage_runs_its_entrypoint_as_the_powerless_account(overlay: str, stage: str) -> None:
    pod = the(overlay, "Job", stage)["spec"]["template"]["spec"]
    container = stage_container(overlay, stage)
    assert container["name"] == CONTAINER
    assert container["command"] == ["python", "-m", f"jobs.{stage}"]
    assert (ROOT / "jobs" / f"{stage}.py").is_file()
    account = the(overlay, "ServiceAccount", pod["serviceAccountName"])
    assert account["automountServiceAccountToken"] is False
    bound = [
        subject["name"]
        for kind in ("RoleBinding", "ClusterRoleBinding")
        for binding in of_kind(overlay, kind).values()
        for subject in binding["subjects"]
    ]
    assert account["metadata"]["name"] not in bound


@each_overlay
@each_stage
def test_all_that_a_stage_writes_lies_in_scratch(overlay: str, stage: str) -> None:
    container = stage_container(overlay, stage)
    (mount,) = container["volumeMounts"]
    values = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert values["SCRATCH"] == mount["mountPath"]
    for name in ("TMPDIR", "HOME", "KERAS_HOME", "MPLCONFIGDIR"):
        assert str(values[name]).startswith(mount["mountPath"] + "/")


@each_overlay
@each_stage
def test_a_pod_knows_itself_and_says_why_it_ended(overlay: str, stage: str) -> None:
    container = stage_container(overlay, stage)
    fields = {v["name"]: v["valueFrom"]["fieldRef"]["fieldPath"] for v in container["env"] if "valueFrom" in v}
    assert fields == {"POD_NAME": "metadata.name", "POD_IP": "status.podIP", "NODE_NAME": "spec.nodeName"}
    values = {variable["name"]: variable.get("value") for variable in container["env"]}
    assert values["TERMINATION_LOG"] == container.get("terminationMessagePath", "/dev/termination-log")
    assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"
    assert container["envFrom"] == [{"configMapRef": {"name": "settings", "optional": False}}]


@each_stage
def test_a_key_in_a_secret_adds_nothing_but_itself(stage: str) -> None:
    """k8s/components/bucket-key, for clusters that give pods no identity of their own."""
    container = copy.deepcopy(stage_container("bucket-key", stage))
    plain = stage_container("local", stage)
    path = container["env"].pop()
    mount = container["volumeMounts"].pop()
    assert container == {name: value for name, value in plain.items() if name != "resources"}
    assert path == {"name": "GOOGLE_APPLICATION_CREDENTIALS", "value": f"{mount['mountPath']}/key.json"}
    *others, volume = the("bucket-key", "Job", stage)["spec"]["template"]["spec"]["volumes"]
    assert others == the("local", "Job", stage)["spec"]["template"]["spec"]["volumes"]
    assert mount == {"name": volume["name"], "mountPath": mount["mountPath"], "readOnly": True}
    assert volume["secret"] == {
        "secretName": "bucket-key",
        "optional": False,
        "defaultMode": 0o444,
        "items": [{"key": "key.json", "path": "key.json"}],
    }


def test_the_image_runs_as_the_user_that_the_manifests_name() -> None:
    dockerfile = (ROOT / "docker" / "Dockerfile").read_text()
    found = re.search(r"^ARG UID=(\d+)$", dockerfile, re.MULTILINE)
    assert found
    assert "USER ${UID}:${UID}" in dockerfile
    for overlay in OVERLAYS:
        for template in pod_templates(overlay).values():
            context = template["spec"]["securityContext"]
            assert context["runAsUser"] == context["runAsGroup"] == int(found[1])


@each_stage
def test_four_pods_fit_a_node_of_two_cores(stage: str) -> None:
    """Beside the object store and the system's own pods, which request 0.95 CPU on kind."""
    (store,) = pod_templates("local")["Deployment/object-store"]["spec"]["containers"]
    pods = [store, *4 * [stage_container("local", stage)]]
    assert sum(float(quantity(pod["resources"]["requests"]["cpu"])) for pod in pods) <= 2 - 0.95
