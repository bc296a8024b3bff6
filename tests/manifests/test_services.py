"""Names, ports and permissions: what is applied once agrees with the Jobs and with the code."""

from __future__ import annotations

import pytest

from deepfake_detector.core.jobspec import RENDEZVOUS_PORT, TRAINING_SERVICE
from deepfake_detector.core.topology import PORTS, port
from tests.manifests.golden_files import OVERLAYS, STAGES, Manifest, golden, of_kind, stage_container, the

each_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


def labels(overlay: str, stage: str) -> dict[str, str]:
    template: Manifest = the(overlay, "Job", stage)["spec"]["template"]
    found: dict[str, str] = template["metadata"]["labels"]
    return found


def training_ports(overlay: str) -> set[int]:
    """The ports that the code of a training pod listens on."""
    values = {variable["name"]: variable.get("value") for variable in stage_container(overlay, "train")["env"]}
    base = int(values["TF_BASE_PORT"])
    return {RENDEZVOUS_PORT, *(port(base, attempt) for attempt in range(3 * PORTS))}


def opened(policy: Manifest) -> set[int]:
    """The ports that a NetworkPolicy lets in."""
    return {
        number
        for rule in policy["spec"].get("ingress", ())
        for entry in rule["ports"]
        for number in range(entry["port"], entry.get("endPort", entry["port"]) + 1)
    }


@each_overlay
def test_one_headless_service_names_all_training_pods(overlay: str) -> None:
    service = the(overlay, "Service", TRAINING_SERVICE)["spec"]
    assert service["clusterIP"] == "None"
    assert service["publishNotReadyAddresses"] is True
    assert service["selector"].items() <= labels(overlay, "train").items()
    for stage in ("preprocess", "export"):
        assert not service["selector"].items() <= labels(overlay, stage).items()
    assert the(overlay, "Job", "train")["spec"]["template"]["spec"]["subdomain"] == TRAINING_SERVICE


@each_overlay
def test_training_pods_declare_the_ports_that_the_code_uses(overlay: str) -> None:
    declared = [each["containerPort"] for each in stage_container(overlay, "train")["ports"]]
    assert set(declared) == training_ports(overlay)
    assert len(declared) == 1 + PORTS
    for stage in ("preprocess", "export"):
        assert "ports" not in stage_container(overlay, stage)


@each_overlay
def test_training_ports_accept_training_pods_only(overlay: str) -> None:
    policy = the(overlay, "NetworkPolicy", "training")
    assert opened(policy) == training_ports(overlay)
    (rule,) = policy["spec"]["ingress"]
    (source,) = rule["from"]
    selector = {"matchLabels": the(overlay, "Service", TRAINING_SERVICE)["spec"]["selector"]}
    assert source == {"podSelector": selector}  # no namespaceSelector: of this namespace
    assert policy["spec"]["podSelector"] == selector


@each_overlay
def test_nobody_else_reaches_a_stage_pod(overlay: str) -> None:
    spec = the(overlay, "NetworkPolicy", "stages")["spec"]
    assert spec["policyTypes"] == ["Ingress"]
    assert "ingress" not in spec
    (expression,) = spec["podSelector"]["matchExpressions"]
    assert set(expression["values"]) == set(STAGES)
    for stage in STAGES:
        assert spec["podSelector"]["matchLabels"].items() <= labels(overlay, stage).items()
        assert labels(overlay, stage)[expression["key"]] == stage


@each_overlay
def test_the_namespace_admits_restricted_pods_only(overlay: str) -> None:
    labels_ = the(overlay, "Namespace", "deepfake-detector")["metadata"]["labels"]
    for mode in ("enforce", "warn", "audit"):
        assert labels_[f"pod-security.kubernetes.io/{mode}"] == "restricted"


@each_overlay
def test_everything_else_is_in_the_namespace(overlay: str) -> None:
    others = [thing for thing in golden(overlay) if thing["kind"] != "Namespace"]
    assert {thing["metadata"].get("namespace") for thing in others} == {"deepfake-detector"}
    assert not [thing["kind"] for thing in others if thing["kind"].startswith("Cluster")]


@each_overlay
def test_the_submitter_may_do_no_more_than_it_must(overlay: str) -> None:
    rules = the(overlay, "Role", "submitter")["rules"]
    allowed = {
        (group, resource): set(rule["verbs"])
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }
    assert allowed.pop(("batch", "jobs")) == {"create", "get", "list", "watch", "delete"}
    assert allowed.pop(("", "pods/portforward")) == {"create", "get"}
    assert set.union(*allowed.values()) == {"get", "list", "watch"}
    assert not [resource for _, resource in allowed if resource in ("*", "secrets", "pods/exec")]


def test_the_local_settings_lead_to_the_object_store() -> None:
    service = the("local", "Service", "object-store")
    (exposed,) = service["spec"]["ports"]
    address = f"http://object-store:{exposed['port']}"
    assert the("local", "ConfigMap", "settings")["data"] == {"STORAGE_EMULATOR_HOST": address}

    pod = the("local", "Deployment", "object-store")["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    (listening,) = container["ports"]
    assert exposed["targetPort"] == listening["name"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    # The answers' links carry this URL, and clients follow them.
    assert {f"-external-url={address}", f"-port={listening['containerPort']}"} <= set(container["command"])
    assert opened(the("local", "NetworkPolicy", "object-store")) == {listening["containerPort"]}


def test_gke_has_a_bucket_of_its_own() -> None:
    assert "data" not in the("gke", "ConfigMap", "settings") or not the("gke", "ConfigMap", "settings")["data"]
    assert "iam.gke.io/gcp-service-account" in the("gke", "ServiceAccount", "stages")["metadata"]["annotations"]
    assert not of_kind("gke", "Deployment")
