"""The work is the cluster's: it goes on without the client, and what pods said outlives them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import yaml

from tests.e2e.conftest import FINISHED, SETTINGS, Undisturbed, deployed, give_records
from tests.e2e.namespace import ROOT, Namespace, Object, Said, eventually, index_of, kubectl, names

NAME = "runs/left-alone"
RUN = f"gs://videos/{NAME}"
SECONDS = 300.0
KUSTOMIZATIONS = ("k8s/overlays/local", "k8s/overlays/gke", "tests/manifests/bucket-key")


@dataclass(frozen=True)
class LeftAlone:
    """A training whose client was killed, what others were told of it meanwhile, and what was there in the end."""

    namespace: Namespace
    refused: Said
    attached: str
    at_work: bool
    objects: list[str]
    pods: list[Object]
    said: Said


@pytest.fixture(scope="module")
def left_alone(image: str, undisturbed: Undisturbed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LeftAlone]:
    """Trained on the records of another run, by the folder that they are in: nothing is preprocessed."""
    settings = ("--recipe", "demo", "--workers", "2", "--set", *SETTINGS, "train.epochs=2")
    with deployed(image, tmp_path_factory.mktemp("left-alone")) as namespace:
        give_records(namespace, undisturbed)
        client = namespace.submit("train", RUN, "--records", f"{FINISHED}/records", *settings)
        client.says(r"^created job train-", SECONDS)
        client.kill()
        other = ("train", f"RUN={RUN}", f"IMAGE={image}", "SET=train.learning_rate=0.5")
        refused = namespace.make(*other, status=2)
        again = namespace.submit("train", RUN)
        attached = again.says(r"^attached to job [\w-]+", SECONDS)
        again.kill()
        at_work = bool(namespace.job("train")["status"].get("active"))
        with namespace.bucket() as bucket:
            marker = f"{NAME}/model/detector.json"
            eventually("the model is in the bucket", SECONDS, lambda: marker in names(bucket, marker))
            objects = names(bucket, NAME)
        said = namespace.submit("train", RUN).end(SECONDS)
        # The model is there a moment before its pods have ended, and `clean` refuses a Job at work.
        eventually("the Job is complete", SECONDS, lambda: "completionTime" in namespace.job("train")["status"])
        pods = namespace.pods("train")
        namespace.make("clean", f"RUN={RUN}")
        yield LeftAlone(namespace, refused, attached, at_work, objects, pods, said)


def test_the_model_is_made_though_the_client_was_killed_right_after_the_job_was_created(left_alone: LeftAlone) -> None:
    assert left_alone.said.status == 0
    assert "created job" not in left_alone.said.text
    assert f"train: done, {RUN}/model/" in left_alone.said.text


def test_the_records_of_another_run_need_no_preprocessing(left_alone: LeftAlone) -> None:
    assert f"{NAME}/checkpoints/trained.json" in left_alone.objects
    assert not [name for name in left_alone.objects if name.startswith((f"{NAME}/records/", f"{NAME}/plan/"))]
    jobs = [event for event in left_alone.namespace.objects("events") if event["involvedObject"]["kind"] == "Job"]
    assert {event["involvedObject"]["name"] for event in jobs} == {left_alone.attached.split()[-1]}


def test_other_settings_are_refused_by_name_while_the_job_is_at_work(left_alone: LeftAlone) -> None:
    assert left_alone.at_work, "it had not come to an end before it was asked"
    expected = f"train.learning_rate=0.5: expected 0.001, with which the train Job at work on {RUN} was made"
    assert expected in left_alone.refused.line("^error: ")
    [name] = {pod["metadata"]["labels"]["batch.kubernetes.io/job-name"] for pod in left_alone.pods}
    assert left_alone.attached == f"attached to job {name}", "the same settings attach to the Job"


def test_logs_and_status_work_after_the_pods_are_gone(left_alone: LeftAlone) -> None:
    namespace = left_alone.namespace
    assert namespace.objects("jobs") == namespace.pods("train") == []
    assert [index_of(pod) for pod in left_alone.pods] == [0, 1]
    for pod in left_alone.pods:
        index = index_of(pod)
        by_name = namespace.make("logs", f"RUN={RUN}", f"POD={pod['metadata']['name']}")
        by_index = namespace.make("logs", f"RUN={RUN}", "STAGE=train", f"POD={index}")
        assert by_name.text == by_index.text
        assert by_name.text.startswith(f"== logs/train/{index}/00001.log\n")
        place = f"{pod['metadata']['name']} on {pod['spec']['nodeName']}"
        last = rf"^--- attempt 1, worker {index} with rank {index}, pod {re.escape(place)}: exit 0$"
        assert re.search(last, by_name.text, re.MULTILINE)
        if index == 0:
            assert re.search(r'INFO epoch 2: \{"step":16,', by_name.text), "what the chief itself has printed"
    assert "no Job of this run (RUN/logs/ has what its pods have left)" in namespace.make("status", f"RUN={RUN}").text


@pytest.mark.parametrize("folder", KUSTOMIZATIONS)
def test_the_server_takes_what_is_rendered(left_alone: LeftAlone, folder: str) -> None:
    """As `kubectl apply -k` would send it, but for the namespace; and Pod Security has no word against it."""
    namespace = left_alone.namespace
    objects = list(yaml.safe_load_all(kubectl("kustomize", str(ROOT / folder))))
    for thing in objects:
        if thing["kind"] == "Namespace":
            thing["metadata"]["name"] = namespace.name
        else:
            thing["metadata"]["namespace"] = namespace.name
        for subject in thing.get("subjects", ()):
            subject["namespace"] = namespace.name
    sent = yaml.safe_dump_all(objects)
    said = kubectl("apply", "--server-side", "--dry-run=server", "--warnings-as-errors", "-f", "-", given=sent)
    assert len(said.splitlines()) == len(objects)
    assert "Job" in {thing["kind"] for thing in objects}
