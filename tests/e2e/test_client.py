"""The work is the cluster's, and goes on without the client; and the server takes all that the overlays render."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.e2e.conftest import RECORDS, SETTINGS, Undisturbed
from tests.e2e.namespace import ROOT, Namespace, eventually, kubectl, names

NAME = "runs/left-alone"
RUN = f"gs://videos/{NAME}"
SECONDS = 300.0


def test_the_client_is_killed_right_after_the_job_was_created(
    with_records: Namespace, undisturbed: Undisturbed, tmp_path: Path
) -> None:
    """On the records of another run, so that nothing is preprocessed either."""
    namespace = with_records
    settings = ("--recipe", "demo", "--workers", "2", "--set", *SETTINGS, "train.epochs=2")
    client = namespace.submit("train", RUN, "--records", RECORDS, *settings)
    client.says(r"^created job train-", SECONDS)
    client.kill()
    again = namespace.submit("train", RUN)
    again.says(r"^attached to job train-", SECONDS)
    again.kill()
    with namespace.bucket() as bucket:
        marker = f"{NAME}/model/detector.json"
        eventually("the model is in the bucket", SECONDS, lambda: marker in names(bucket, marker))
        assert names(bucket, f"{NAME}/records/") == names(bucket, f"{NAME}/plan/") == []
    said = namespace.submit("train", RUN).end(SECONDS)
    assert said.status == 0
    assert "created job" not in said.text
    assert f"train: done, {RUN}/model/" in said.text
    assert namespace.objects("jobs", "app.kubernetes.io/component=preprocess") == []


@pytest.mark.parametrize("overlay", ["local", "gke"])
def test_the_server_takes_what_an_overlay_renders(namespace: Namespace, overlay: str) -> None:
    """As `kubectl apply -k` would send it, but for the namespace; and Pod Security has no word against it."""
    objects = list(yaml.safe_load_all(kubectl("kustomize", str(ROOT / "k8s/overlays" / overlay))))
    for thing in objects:
        if thing["kind"] == "Namespace":
            thing["metadata"]["name"] = namespace.name
        elif "namespace" in thing["metadata"]:
            thing["metadata"]["namespace"] = namespace.name
        for subject in thing.get("subjects", ()):
            subject["namespace"] = namespace.name
    sent = yaml.safe_dump_all(objects)
    said = kubectl("apply", "--server-side", "--dry-run=server", "--warnings-as-errors", "-f", "-", given=sent)
    assert len(said.splitlines()) == len(objects)
    assert {"Job", "Service", "NetworkPolicy"} <= {thing["kind"] for thing in objects}
