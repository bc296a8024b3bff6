"""Nothing is lost: pods deleted again and again, a node drained, the object store killed, the API server cut off."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from google.cloud import storage

from tests.e2e.conftest import VIDEOS, Undisturbed
from tests.e2e.namespace import (
    Client,
    Namespace,
    download,
    eventually,
    index_of,
    kubectl,
    names,
    read,
)
from tests.e2e.relay import relayed
from tests.e2e.test_failures import (
    NAME,
    OPTIONS,
    RESULTS,
    RUN,
    SECONDS,
    contents,
    is_in_work,
    require_each_video_once,
    submit_training,
)

STEPS = 40  # of a training, with a checkpoint every five
CUT_SECONDS = 20.0
PATIENT = ("--set", "operations.rendezvous_seconds=600")  # the Job controller's back-off grows: 10, 20, 40 s
# A fraction of a CPU, so that there is a middle to be met.
SLOW = ("--requests", "cpu=100m", "--limits", "cpu=200m")


@pytest.fixture
def dice() -> random.Random:
    """Another draw each time, which is printed."""
    seed = random.SystemRandom().randrange(10**6)
    print(f"\nseed {seed}", flush=True)
    return random.Random(seed)


def newest_step(bucket: storage.Bucket) -> int:
    found = [re.fullmatch(rf"{NAME}/checkpoints/(\d+)\.json", name) for name in names(bucket, f"{NAME}/checkpoints/")]
    return max((int(match[1]) for match in found if match), default=0)


def require_undisturbed_result(bucket: storage.Bucket, undisturbed: Undisturbed) -> None:
    for name, fields in RESULTS.items():
        result = json.loads(read(bucket, f"{NAME}/{name}"))
        before = json.loads((undisturbed.folder / name).read_bytes())
        assert {field: result[field] for field in fields} == {field: before[field] for field in fields}


def running(namespace: Namespace, stage: str) -> list[int]:
    """The indexes whose pod runs and is not being deleted."""
    return [
        index_of(pod)
        for pod in namespace.pods(stage)
        if pod["status"]["phase"] == "Running" and "deletionTimestamp" not in pod["metadata"]
    ]


def end_well(client: Client, seconds: float = SECONDS) -> str:
    said = client.end(seconds)
    assert said.status == 0
    return said.text


def test_three_training_pods_deleted_at_random_steps(
    with_records: Namespace, undisturbed: Undisturbed, dice: random.Random
) -> None:
    namespace = with_records
    client = submit_training(namespace, "--workers", "2", "--spares", "1", *PATIENT)
    deleted = []
    with namespace.bucket() as bucket:
        for number in range(3):
            step = number * STEPS // 3 + dice.randint(1, STEPS // 3 - 4)
            eventually(f"step {step}", SECONDS, lambda step=step: newest_step(bucket) >= step)  # type: ignore[misc]
            index = dice.choice(eventually("a running pod", SECONDS, lambda: running(namespace, "train")))
            deleted.append(namespace.delete_running_pod("train", index))
            print(f"deleted {deleted[-1]} at step {newest_step(bucket)}", flush=True)
        end_well(client, 2 * SECONDS)
        require_undisturbed_result(bucket, undisturbed)
    assert len(set(deleted)) == 3


def test_three_preprocessing_pods_deleted(
    namespace: Namespace, undisturbed: Undisturbed, videos: Path, dice: random.Random, tmp_path: Path
) -> None:
    namespace.run("upload", "--videos", str(videos), "--to", VIDEOS)
    client = namespace.submit("preprocess", RUN, "--videos", VIDEOS, "--pods", "3", *OPTIONS, *SLOW)
    with namespace.bucket() as bucket:
        for shard in dice.sample(range(3), 3):
            progress = f"{NAME}/logs/preprocess/{shard}/progress.json"
            eventually(f"shard {shard} is in work", SECONDS, lambda name=progress: is_in_work(bucket, name))  # type: ignore[misc]
            namespace.delete_running_pod("preprocess", shard)
        end_well(client, 2 * SECONDS)
        download(bucket, f"{NAME}/", tmp_path / "run")
    require_each_video_once(tmp_path / "run")
    assert contents(tmp_path / "run" / "records") == contents(undisturbed.folder / "records")


def test_a_drained_node(with_records: Namespace, undisturbed: Undisturbed) -> None:
    """The run's pods are evicted by the Eviction API while no node takes new ones; then it goes on."""
    namespace = with_records
    client = submit_training(namespace, "--workers", "2", *PATIENT)
    with namespace.bucket() as bucket:
        eventually("a checkpoint in mid-epoch", SECONDS, lambda: newest_step(bucket) >= 10)
        nodes = {pod["spec"]["nodeName"] for pod in namespace.pods("train")}
        for node in nodes:
            kubectl("cordon", node)
        try:
            for pod in namespace.pods("train"):
                evict(namespace, pod["metadata"]["name"])
            client.says(r"pending", SECONDS)
        finally:
            for node in nodes:
                kubectl("uncordon", node)
        end_well(client, 2 * SECONDS)
        require_undisturbed_result(bucket, undisturbed)


def evict(namespace: Namespace, pod: str) -> None:
    metadata = {"name": pod, "namespace": namespace.name}
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": metadata}
    path = f"/api/v1/namespaces/{namespace.name}/pods/{pod}/eviction"
    kubectl("create", "--raw", path, "--filename", "-", given=json.dumps(body))


class ObjectStore:
    """The namespace's, beside whose container another waits that kills it: to start one takes seconds."""

    def __init__(self, namespace: Namespace) -> None:
        self._namespace = namespace
        [store] = namespace.objects("pods", "app.kubernetes.io/component=object-store")
        self._name = store["metadata"]["name"]
        # SIGABRT, a crash to Go's runtime: SIGKILL does not reach the first process of a container from within.
        wait_and_kill = "until [ -e /tmp/now ]; do sleep 0.05; done; kill -ABRT 1"
        image = ("--image=busybox:1.35", "--target=object-store", "--profile=restricted", "--container=killer")
        namespace.kubectl("debug", self._name, *image, "--", "sh", "-c", wait_and_kill)
        eventually("the killer waits", SECONDS, self._killer_waits)

    def kill(self) -> None:
        """Its container dies at once and is started again; what it holds is on a volume of the pod."""
        before = self._restarts()
        self._namespace.kubectl("exec", self._name, "--container=killer", "--", "touch", "/tmp/now")
        eventually("the object store is back", SECONDS, lambda: self._restarts() > before and self._status()["ready"])

    def _killer_waits(self) -> bool:
        killers = self._namespace.pod(self._name)["status"].get("ephemeralContainerStatuses", [])
        return any("running" in killer["state"] for killer in killers)

    def _restarts(self) -> int:
        return int(self._status()["restartCount"])

    def _status(self) -> dict[str, Any]:
        [status] = self._namespace.pod(self._name)["status"]["containerStatuses"]
        return dict(status)


def test_the_object_store_killed_in_training(with_records: Namespace, undisturbed: Undisturbed) -> None:
    namespace = with_records
    store = ObjectStore(namespace)
    client = submit_training(namespace, "--workers", "2")
    with namespace.bucket() as bucket:
        eventually("a checkpoint", SECONDS, lambda: newest_step(bucket) >= 5)
    store.kill()
    with namespace.bucket() as bucket:
        assert not names(bucket, f"{NAME}/checkpoints/trained.json"), "training was faster than this test"
    end_well(client, 2 * SECONDS)
    with namespace.bucket() as bucket:
        require_undisturbed_result(bucket, undisturbed)


def test_the_object_store_killed_in_mid_upload(namespace: Namespace, tmp_path: Path) -> None:
    """Large files, which go up in parts; the client goes on, and checks what is there."""
    folder, dice = tmp_path / "large", random.Random(0)
    for label in ("real", "fake"):
        (folder / label).mkdir(parents=True)
        for number in range(4):
            (folder / label / f"{number}.mp4").write_bytes(dice.randbytes(24 << 20))
    store = ObjectStore(namespace)
    client = namespace.start("upload", "--videos", str(folder), "--to", "gs://videos/large")
    with namespace.bucket() as bucket:
        eventually("a file is there", SECONDS, lambda: names(bucket, "large/"))
        assert len(names(bucket, "large/")) < 8, "the upload was faster than this test"
    store.kill()
    said = end_well(client, SECONDS)
    assert "trying again" in said, "the upload was over when the object store died"
    assert "checksums verified" in said
    with namespace.bucket() as bucket:
        for file in folder.rglob("*.mp4"):
            assert read(bucket, f"large/{file.relative_to(folder)}") == file.read_bytes()


@pytest.fixture
def pause() -> Iterator[Event]:
    """Set when the test is over."""
    event = Event()
    yield event
    event.set()


def test_the_api_server_is_cut_off_for_a_while(
    with_records: Namespace, undisturbed: Undisturbed, pause: Event, tmp_path: Path
) -> None:
    """For the client only; the run goes on meanwhile, and the client tells its end."""
    namespace = with_records
    with relayed(tmp_path) as (relay, kubeconfig):
        client = submit_training(namespace.by(kubeconfig), "--workers", "2")
        client.says(r"created job", SECONDS)
        with namespace.bucket() as bucket:
            eventually("a checkpoint", SECONDS, lambda: newest_step(bucket) >= 5)
        with relay.cut():
            pause.wait(CUT_SECONDS)
        text = end_well(client)
        assert relay.dropped
    assert f"train: done, {RUN}/model/" in text
    with namespace.bucket() as bucket:
        require_undisturbed_result(bucket, undisturbed)
