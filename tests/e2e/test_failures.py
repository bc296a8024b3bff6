"""What may happen to a run in a cluster: pods deleted in mid-work, memory, bad settings, no bucket, no room."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from google.cloud import storage

from deepfake_detector.adapters.storage_gcs import OUTAGE_SECONDS
from deepfake_detector.core.capacity import rooms
from tests.e2e.conftest import FINISHED, SETTINGS, VIDEOS, Undisturbed
from tests.e2e.namespace import (
    BUCKET,
    Client,
    Namespace,
    Object,
    await_removals,
    download,
    eventually,
    index_of,
    kubectl,
    names,
    read,
)

NAME = "runs/disturbed"
RUN = f"gs://{BUCKET}/{NAME}"
SECONDS = 300.0  # for what takes a fraction of it on a machine that does nothing else
GIVEN_UP_SECONDS = 180.0  # twice the rendezvous' 60 s, and the pods' beginning and end
ENOUGH_MILLICORES = 500  # for two training pods that wait for a third
OPTIONS = ("--recipe", "demo", "--set", *SETTINGS)


def submit_training(namespace: Namespace, *options: str) -> Client:
    return namespace.submit("train", RUN, "--records", FINISHED, *OPTIONS, *options)


def test_a_preprocessing_pod_deleted_in_mid_shard(
    namespace: Namespace, undisturbed: Undisturbed, videos: Path, tmp_path: Path
) -> None:
    namespace.run("upload", "--videos", str(videos), "--to", VIDEOS)
    # A fraction of a CPU, so that there is a middle to be met.
    slow = ("--requests", "cpu=100m", "--limits", "cpu=200m")
    client = namespace.submit("preprocess", RUN, "--videos", VIDEOS, "--pods", "3", *OPTIONS, *slow)
    with namespace.bucket() as bucket:
        eventually("shard 1 is in work", SECONDS, lambda: is_in_work(bucket, f"{NAME}/logs/preprocess/1/progress.json"))
        deleted = namespace.delete_running_pod("preprocess", 1)
        assert f"{NAME}/records/00001-of-00003.json" not in names(bucket, f"{NAME}/records/")
        said = client.end(SECONDS)
        download(bucket, f"{NAME}/", tmp_path / "run")
    assert said.status == 0
    assert "shard 1: was deleted, or asked to end (SIGTERM): its Job starts another pod" in said.text
    assert deleted not in [pod["metadata"]["name"] for pod in namespace.pods("preprocess")]
    assert namespace.job("preprocess")["status"]["succeeded"] == 3
    require_each_video_once(tmp_path / "run")
    assert contents(tmp_path / "run" / "records") == contents(undisturbed.folder / "records")


def is_in_work(bucket: storage.Bucket, progress: str) -> bool:
    """Whether a shard has begun; its next report of progress is 5 s later, or its end."""
    if progress not in names(bucket, progress):
        return False
    told = json.loads(read(bucket, progress))
    assert told["done"] < told["total"], "the shard was faster than this test"
    return True


def require_each_video_once(run: Path) -> None:
    reports = [json.loads(file.read_bytes()) for file in sorted((run / "records").glob("*-of-*.json"))]
    assert len(reports) == 3
    times = Counter(video["key"] for report in reports for video in report["videos"])
    summary = json.loads((run / "records/summary.json").read_bytes())
    counted = sum(sum(by_label.values()) for by_label in summary["outcomes"].values())
    planned = json.loads((run / "plan/summary.json").read_bytes())
    assert set(times.values()) == {1}
    assert len(times) + len(planned["lost"]) == counted == summary["videos"]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("index", [pytest.param(1, id="worker 1"), pytest.param(0, id="chief")])
def test_a_training_pod_deleted_in_mid_epoch(
    with_records: Namespace, undisturbed: Undisturbed, index: int, tmp_path: Path
) -> None:
    namespace = with_records
    client = submit_training(namespace, "--workers", "2")
    with namespace.bucket() as bucket:
        # 8 steps an epoch: step 10 is in the second, and three more follow.
        marker = f"{NAME}/checkpoints/00000010.json"
        eventually("a checkpoint in mid-epoch", SECONDS, lambda: marker in names(bucket, marker))
        namespace.delete_running_pod("train", index)
        assert f"{NAME}/checkpoints/trained.json" not in names(bucket, f"{NAME}/checkpoints/")
        said = client.end(SECONDS)
        assert said.status == 0
        result = {name: json.loads(read(bucket, f"{NAME}/{name}")) for name in RESULTS}
        attempts = names(bucket, f"{NAME}/logs/attempts/")
    assert len(attempts) == 3, "one that was cut off, one to the end, one that exported"
    assert f"worker {index}: was deleted, or asked to end (SIGTERM): its Job starts another pod" in said.text
    survivors = [pod for pod in namespace.pods("train") if index_of(pod) != index]
    assert len(survivors) == 1, "only the pod that was deleted is replaced"
    before = {name: json.loads((undisturbed.folder / name).read_bytes()) for name in RESULTS}
    for name, fields in RESULTS.items():
        assert {field: result[name][field] for field in fields} == {field: before[name][field] for field in fields}
    namespace.make("pull-model", f"RUN={RUN}", f"TO={tmp_path / 'disturbed'}")
    namespace.run_alone("pull", "--run", str(undisturbed.folder), "--to", str(tmp_path / "undisturbed"))
    assert _variables(tmp_path / "disturbed") == _variables(tmp_path / "undisturbed")


def _variables(model: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Every variable of a pulled model: of the SavedModel, and of the Keras model beside it."""
    import h5py
    import tensorflow as tf

    reader = tf.train.load_checkpoint(str(model / "variables/variables"))
    # Strings tell how the objects hang together, in an order of their own each time.
    numbers = [name for name, dtype in reader.get_variable_to_dtype_map().items() if dtype != tf.string]
    found = {f"SavedModel {name}": reader.get_tensor(name) for name in numbers}
    assert len(found) > 10
    with h5py.File(model / "model.weights.h5") as file:
        file.visititems(
            lambda name, item: found.update({f"Keras {name}": item[()]}) if isinstance(item, h5py.Dataset) else None
        )
    assert len(found) > 2 * 10
    return {name: (str(value.dtype), value.shape, value.tobytes()) for name, value in found.items()}


# What must not depend on what happened on the way.
RESULTS: dict[str, tuple[str, ...]] = {
    "checkpoints/trained.json": ("step", "epochs", "best_step", "best_loss", "stopped", "weights_sha256"),
    "model/detector.json": ("step", "slope", "offset", "prior", "validation_prior", "threshold", "threshold_from"),
    "report/metrics.json": ("test",),
}


def test_a_pod_out_of_memory(with_records: Namespace) -> None:
    namespace = with_records
    memory = ("--requests", "memory=128Mi", "--limits", "memory=300Mi")  # TensorFlow alone takes more
    # One life only, so that the end comes soon.
    said = submit_training(namespace, "--workers", "2", "--set", "operations.attempts=1", *memory).end(SECONDS)
    killed = r"OOMKilled: limit 300 MiB, peak (29\d|300) MiB"
    assert said.status == 78
    assert re.search(killed, said.line(r"^error: job train-\S+ has failed"))
    assert "raise the memory limit (LIMITS=memory=...)" in said.text
    told = namespace.run("status", "--run", RUN, "--overlay", "local", "--cluster")
    assert re.search(killed, told.line(r"^ +! workers? [01]"))
    assert namespace.job("train")["status"]["failed"] <= 2, "no retries"


@pytest.fixture
def held_back(namespace: Namespace, videos: Path) -> Client:
    """A preprocessing Job that is created, and followed, but may not have pods yet: `let_go`."""
    namespace.run("upload", "--videos", str(videos), "--to", VIDEOS)
    namespace.kubectl("create", "quota", "no-more", "--hard=pods=1")  # the object store's
    eventually(
        "the quota counts", SECONDS, lambda: namespace.objects("resourcequotas")[0].get("status", {}).get("used")
    )
    client = namespace.submit("preprocess", RUN, "--videos", VIDEOS, *OPTIONS)
    client.says(r"exceeded quota: no-more", SECONDS)
    return client


def let_go(namespace: Namespace) -> None:
    namespace.kubectl("delete", "quota", "no-more")


def test_a_bad_value_smuggled_into_the_settings(namespace: Namespace, held_back: Client) -> None:
    with namespace.bucket() as bucket:
        settings: dict[str, Any] = json.loads(read(bucket, f"{NAME}/config.json"))
        settings["resolved"]["faces"]["size"] = "large"
        bucket.blob(f"{NAME}/config.json").upload_from_string(json.dumps(settings))
    let_go(namespace)
    _require_failed_for_good(namespace, held_back, r"faces\.size=large: expected a valid integer.*config\.json")


def test_a_bucket_that_does_not_exist(namespace: Namespace, held_back: Client) -> None:
    with namespace.bucket() as bucket:
        bucket.delete_blobs(list(bucket.list_blobs()))
        bucket.delete()
    let_go(namespace)
    # The pods take it for away first.
    _require_failed_for_good(namespace, held_back, r"gs://videos: no such bucket", SECONDS + OUTAGE_SECONDS)


def _require_failed_for_good(namespace: Namespace, client: Client, expected: str, seconds: float = SECONDS) -> None:
    """By status 78, without retries, and with the one line on the terminal."""
    said = client.end(seconds)
    assert said.status == 78
    assert re.search(expected, said.line(r"^error: job preprocess-\S+ has failed"))
    job = namespace.job("preprocess")
    assert _failed(job)["reason"] == "PodFailurePolicy"
    ends = Counter((index_of(pod), _exit_code(pod)) for pod in namespace.pods("preprocess"))
    assert 78 in {status for _, status in ends}
    assert set(ends.values()) == {1}, "no index was tried twice"


def _failed(job: Object) -> Object:
    """The condition."""
    [failed] = [each for each in job["status"]["conditions"] if each["type"] == "Failed"]
    return dict(failed)


def test_three_workers_with_room_for_two(with_records: Namespace) -> None:
    namespace = with_records
    asked = _room_for_two(namespace)
    client = submit_training(
        namespace, "--workers", "3", "--set", "train.global_batch=6", "--requests", asked, "--limits", asked
    )
    pending = client.says(r"worker \d: pending for lack of cpu \(asked [\d.]+, free [\d.]+", SECONDS)
    index = int(re.findall(r"worker (\d)", pending)[0])
    # Nobody stops it: the others wait for the rendezvous' 60 s, at most twice, and then the Job has failed.
    said = client.end(GIVEN_UP_SECONDS)
    assert said.status == 75
    line = said.line(r"^error: job train-\S+ has failed")
    assert re.search(rf"worker {index} \(\S+\): not there after 60 s", line)
    assert re.search(rf"; worker {index}: pending for lack of cpu \(asked [\d.]+, free [\d.]+", line)
    assert _failed(namespace.job("train"))["reason"] == "PodFailurePolicy"
    pods = namespace.pods("train")
    assert max(Counter(map(index_of, pods)).values()) == 1, "no index was tried twice"
    assert {_exit_code(pod) for pod in pods} - {None} in ({69}, {69, 143})


def _exit_code(pod: Object) -> int | None:
    """None: it never ran."""
    statuses = pod["status"].get("containerStatuses") or [{}]
    ended = statuses[0].get("state", {}).get("terminated")
    return int(ended["exitCode"]) if ended else None


def _room_for_two(namespace: Namespace) -> str:
    """Make room for two pods and no third; returns what each of them has to ask for.

    They go to the node that has the least room, but enough; what others have is taken by pods that do nothing.
    """
    await_removals()
    nodes = json.loads(kubectl("get", "nodes", "-o", "json"))["items"]
    pods = json.loads(kubectl("get", "pods", "--all-namespaces", "-o", "json"))["items"]
    free = {room.node: int(1000 * room.free["cpu"]) for room in rooms(nodes, pods)}  # millicores
    enough = {node: room for node, room in free.items() if room >= ENOUGH_MILLICORES}
    assert enough, f"no node has {ENOUGH_MILLICORES} millicores for two training pods: {free}"
    chosen = min(enough, key=lambda node: enough[node])
    asked = enough[chosen] * 2 // 5  # two and a half fit
    for number, node in enumerate(node for node, room in free.items() if node != chosen and room >= asked):
        rest = free[node] - asked // 2
        namespace.start_pod(f"ballast-{number}", ["sleep", "infinity"], cpu=f"{rest}m", node=node)
    namespace.kubectl("wait", "--for=condition=PodScheduled", "pod", "--all", f"--timeout={SECONDS:g}s")
    return f"cpu={asked}m"
