"""Submitting against an API server and a bucket, both real processes' sockets; no pod ever runs."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from deepfake_detector.adapters import kubectl
from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.cli import main
from deepfake_detector.core import layout
from deepfake_detector.core.config import Stage, fingerprint, stage_settings
from deepfake_detector.core.errors import EXIT_PERMANENT
from deepfake_detector.core.jobspec import job_name, run_hash
from deepfake_detector.core.markers import DetectorManifest, RecordsSummary, TrainedMarker
from deepfake_detector.stages.runs import load_config
from tests.integration.api_server import ApiServer
from tests.integration.gcs_server import GcsServer, available

pytestmark = [
    pytest.mark.gcs,
    pytest.mark.skipif(not available(), reason="needs a fake-gcs-server binary or a Go toolchain"),
    pytest.mark.skipif(not shutil.which("kubectl"), reason="needs kubectl"),
]

RUN, VIDEOS, IMAGE = "gs://bucket/runs/one", "gs://bucket/videos", "registry.example/detector:1"
PREPROCESS = ["submit", "preprocess", "--run", RUN, "--recipe", "demo", "--videos", VIDEOS]
TRAIN = ["submit", "train", "--run", RUN]
EXPORT = ["submit", "export", "--run", RUN]


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GcsServer]:
    server = GcsServer(tmp_path_factory.mktemp("gcs") / "log")
    server.start()
    server.make_bucket("bucket")
    yield server
    server.kill()


@pytest.fixture(scope="module", autouse=True)
def render_once() -> Iterator[None]:
    """kubectl's rendering, the same for all tests, is most of a submission's time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kubectl, "kustomize", functools.cache(kubectl.kustomize))
        yield


@pytest.fixture
def run(bucket: GcsServer, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """An empty run in a bucket that holds a video."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.url)
    storage = open_storage(RUN)
    for entry in list(storage.list()):
        storage.delete(entry.name)
    open_storage(VIDEOS).write("a.mp4", b"video")
    return storage


@pytest.fixture
def server(
    server: ApiServer, use_kubeconfig: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> ApiServer:
    """Where everything has been deployed; the current cluster of the client and of kubectl."""
    path = server.kubeconfig(tmp_path / "kubeconfig")
    use_kubeconfig(path)
    monkeypatch.setenv("KUBECONFIG", str(path))
    for kind, name in (("services", "training"), ("serviceaccounts", "stages"), ("configmaps", "settings")):
        server.put(kind, name)
    return server


def submit(*arguments: str, image: str = IMAGE) -> int:
    target = ["--overlay", "gke", "--namespace", "mine", "--image", image]
    return main([*arguments, *target, "--detach"])


def created(server: ApiServer) -> dict[str, Any]:
    (job,) = server.listed("jobs", {})
    return job


def environment(job: dict[str, Any]) -> dict[str, str]:
    (container,) = job["spec"]["template"]["spec"]["containers"]
    return {each["name"]: each["value"] for each in container["env"] if "value" in each}


def writes(server: ApiServer) -> list[str]:
    """Requests that would change something in the cluster."""
    return [line for line in server.requests if not line.startswith("GET ") and "accessreviews" not in line]


def marked(run: Storage, stage: Stage) -> dict[str, Any]:
    settings = stage_settings(load_config(run), stage)
    return {"settings": settings, "fingerprint": fingerprint(settings), "code_version": "0"}


def finish_preprocessing(run: Storage, lost_fraction: float = 0.0) -> None:
    summary = RecordsSummary(
        **marked(run, "preprocess"),
        shards=2,
        videos=10,
        lost_fraction=lost_fraction,
        outcomes={"ok": {"real": 5, "fake": 4}, "no_face": {"fake": 1}},
        sequences={split: {"real": 3, "fake": 3} for split in layout.SPLITS},
        frames_sampled=100,
        frames_detected=100,
        frames_filled=0,
        metadata_auc=None,
        warnings=[],
    )
    run.write(layout.RECORDS_SUMMARY, summary.encode())


def finish_training(run: Storage) -> None:
    marker = TrainedMarker.model_construct(
        **marked(run, "train"),
        step=1,
        epochs=1,
        best_step=1,
        best_loss=None,
        stopped="epochs=1 done",
        records=run.uri,
        records_fingerprint="r",
        weights_sha256="w",
        machines=[],
    )
    run.write(layout.TRAINED, marker.encode())


def finish_export(run: Storage) -> None:
    marker = DetectorManifest.model_construct(
        **marked(run, "export"),
        files=[],
        step=1,
        slope=1.0,
        offset=0.0,
        prior=0.5,
        validation_prior=None,
        threshold=0.5,
        threshold_from="validation",
        keras_version="3",
        tensorflow_version="2",
        config={},
    )
    test = {"videos": 4, "real": 2, "fake": 2, "auc": 0.75, "equal_error_rate": 0.25, "accuracy": 0.5}
    test |= {"log_loss_balanced": None, "reasons": {"log_loss_balanced": "one class"}}
    run.write(layout.REPORT_METRICS, json.dumps({"test": {"all": test}}).encode())
    run.write(layout.DETECTOR, marker.encode())


def preprocessed(run: Storage, server: ApiServer) -> None:
    """A run whose preprocessing is finished, and its Job gone."""
    assert submit(*PREPROCESS) == 0
    finish_preprocessing(run)
    server.remove("jobs", created(server)["metadata"]["name"])
    server.requests.clear()


def test_preprocess_creates_an_indexed_job(run, server, capsys):
    assert submit(*PREPROCESS, "--set", "data.shards=6", "--pods", "3") == 0
    job = created(server)
    name = job_name("preprocess", RUN, 6)
    assert job["metadata"]["name"] == name
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (6, 3)
    assert environment(job)["RUN"] == RUN
    config = load_config(run)
    expected = fingerprint(stage_settings(config, "preprocess"))
    assert job["metadata"]["annotations"]["deepfake-detector/settings"] == expected
    assert (config.train.threads, config.operations.decoders) == (4, 4), "the CPU limits of the overlay"
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"context test, namespace mine, image {IMAGE}"
    assert lines[-2:] == [f"created job {name}", f"next: make status RUN={RUN}"]


def test_no_more_pods_than_shards(run, server):
    assert submit(*PREPROCESS, "--pods", "9") == 0
    assert created(server)["spec"]["parallelism"] == 2


def test_train_creates_a_pod_for_each_worker(run, server):
    preprocessed(run, server)
    assert submit(*TRAIN, "--workers", "4", "--limits", "cpu=2") == 0
    job = created(server)
    name = job_name("train", RUN, 4)
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (4, 4)
    assert environment(job)["PEERS"].split(",")[3] == f"{name}-3.training:2220"
    config = load_config(run)
    assert (config.train.workers, config.train.threads, config.recipe) == (4, 2, "demo"), "the recipe is as before"


def test_a_dry_run_prints_what_would_be_created_and_writes_nothing(run, server, capsys):
    before = list(open_storage("gs://bucket").list())
    assert submit(*PREPROCESS, "--dry-run") == 0
    output = capsys.readouterr()
    assert output.err == f"context test, namespace mine, image {IMAGE}\n"
    assert writes(server) == []
    assert list(open_storage("gs://bucket").list()) == before
    assert submit(*PREPROCESS) == 0
    stored = created(server)
    for added in ("uid", "resourceVersion", "creationTimestamp"):
        del stored["metadata"][added]
    assert list(yaml.safe_load_all(output.out)) == [stored]


def test_the_same_command_attaches(run, server, capsys):
    assert submit(*PREPROCESS) == 0
    before = created(server)
    server.requests.clear()
    assert submit(*PREPROCESS) == 0
    assert created(server) == before
    assert writes(server) == []
    assert f"attached to job {before['metadata']['name']}" in capsys.readouterr().out


def test_an_attached_job_may_have_another_image(run, server, capsys):
    assert submit(*PREPROCESS) == 0
    assert submit(*PREPROCESS, image="registry.example/detector:2") == 0
    assert "at work with image registry.example/detector:1, not registry.example/detector:2" in capsys.readouterr().out


def test_other_settings_than_those_of_an_active_job_are_refused(run, server, capsys):
    assert submit(*PREPROCESS) == 0
    before, job = run.read(layout.CONFIG), created(server)
    assert submit(*PREPROCESS, "--set", "faces.margin=1.5") == EXIT_PERMANENT
    assert "error: faces.margin=1.5: expected 1.3" in capsys.readouterr().err
    assert run.read(layout.CONFIG) == before
    assert created(server) == job


def test_a_second_client_with_other_settings_that_was_faster_wins(run, server, capsys):
    assert submit(*PREPROCESS) == 0
    name = created(server)["metadata"]["name"]
    server.put("jobs", name, **{**created(server), "metadata": {"annotations": {"deepfake-detector/settings": "x"}}})
    assert submit(*PREPROCESS) == EXIT_PERMANENT
    assert f"job {name}: at work with other settings" in capsys.readouterr().err


def test_a_second_client_with_the_same_settings_that_was_faster_is_joined(run, server, capsys):
    server.before_create = lambda job: server.put("jobs", job["metadata"]["name"], **job)
    assert submit(*PREPROCESS) == 0
    assert f"attached to job {created(server)['metadata']['name']}" in capsys.readouterr().out


def test_settings_that_are_overwritten_at_the_last_moment_cost_the_job(run, server, capsys):
    """Both clients saw no Job; the other one stored its settings after ours, and would have been second to create."""

    def overwrite(_: dict[str, Any]) -> None:
        document = json.loads(run.read(layout.CONFIG))
        document["resolved"]["faces"]["margin"] = 1.5
        run.write(layout.CONFIG, json.dumps(document).encode())

    server.before_create = overwrite
    assert submit(*PREPROCESS) == EXIT_PERMANENT
    assert "changed by somebody else just now" in capsys.readouterr().err
    assert server.listed("jobs", {}) == []


@pytest.mark.parametrize(
    ("condition", "says"),
    [
        pytest.param(
            {"type": "Failed", "reason": "BackoffLimitExceeded"}, "failed before (BackoffLimitExceeded)", id="failed"
        ),
        pytest.param(
            {"type": "FailureTarget", "reason": "PodFailurePolicy"}, "failed before (PodFailurePolicy)", id="failing"
        ),
        pytest.param({"type": "Complete"}, "ended before", id="complete, its marker gone"),
    ],
)
def test_a_job_that_is_over_is_made_again(run, server, capsys, condition, says):
    assert submit(*PREPROCESS) == 0
    job = created(server)
    name = job["metadata"]["name"]
    server.put("jobs", name, **{**job, "status": {"conditions": [{**condition, "status": "True"}]}})
    assert submit(*PREPROCESS) == 0
    again = created(server)
    assert again["metadata"]["uid"] != job["metadata"]["uid"]
    assert "status" not in again
    assert f"job {name}: {says}; removing it, to create it again" in capsys.readouterr().out


def test_a_finished_stage_is_described_and_nothing_is_created(run, server, capsys):
    preprocessed(run, server)
    capsys.readouterr()
    assert submit(*PREPROCESS) == 0
    assert writes(server) == []
    output = capsys.readouterr().out
    assert "9 of 10 videos in 2 shards" in output
    assert f"next: make train RUN={RUN}" in output


def test_a_finished_training_is_described(run, server, capsys):
    preprocessed(run, server)
    finish_training(run)
    finish_export(run)
    capsys.readouterr()
    assert submit(*TRAIN) == 0
    assert writes(server) == []
    output = capsys.readouterr().out
    assert "AUC 0.7500" in output
    assert "log loss not available (one class)" in output
    assert f"next: make pull-model RUN={RUN}" in output


def test_other_settings_than_those_of_a_finished_training_are_refused(run, server, capsys):
    preprocessed(run, server)
    assert submit(*TRAIN) == 0
    finish_training(run)
    finish_export(run)
    server.remove("jobs", created(server)["metadata"]["name"])
    before = run.read(layout.CONFIG)
    assert submit(*TRAIN, "--set", "train.learning_rate=0.5") == EXIT_PERMANENT
    assert "train.learning_rate=0.5: expected 0.001" in capsys.readouterr().err
    assert run.read(layout.CONFIG) == before
    assert server.listed("jobs", {}) == []


def test_too_many_lost_videos_fail_preprocessing_and_refuse_training(run, server, capsys):
    preprocessed(run, server)
    finish_preprocessing(run, lost_fraction=0.3)
    for command in (PREPROCESS, TRAIN):
        assert submit(*command) == EXIT_PERMANENT
        assert "30.0% of the labelled videos lost" in capsys.readouterr().err
    assert writes(server) == []
    assert submit(*TRAIN, "--set", "operations.max_lost_fraction=0.5") == 0


def test_training_needs_records(run, server, capsys):
    assert submit(*TRAIN) == EXIT_PERMANENT
    assert f"{RUN}: holds no records, expected make preprocess" in capsys.readouterr().err
    assert submit(*PREPROCESS) == 0
    run.write(layout.shard_report(0, 2), b"{}")
    server.requests.clear()
    capsys.readouterr()
    assert submit(*TRAIN) == EXIT_PERMANENT
    assert f"{RUN}: preprocessing is at work: 1 of 2 shards done" in capsys.readouterr().err
    server.remove("jobs", created(server)["metadata"]["name"])
    assert submit(*TRAIN) == EXIT_PERMANENT
    assert "preprocessing has not finished: 1 of 2" in capsys.readouterr().err
    assert writes(server) == []


def test_training_on_the_records_of_another_run(run, server, capsys):
    preprocessed(run, server)
    other = f"{RUN}-other"
    before = [entry.name for entry in open_storage(other).list()]
    assert submit("submit", "train", "--run", other, "--records", f"{RUN}-none") == EXIT_PERMANENT
    assert f"{RUN}-none" in capsys.readouterr().err
    assert [entry.name for entry in open_storage(other).list()] == before
    assert submit("submit", "train", "--run", other, "--records", f"{RUN}/records", "--recipe", "demo") == 0
    assert created(server)["metadata"]["labels"]["deepfake-detector/run"] == run_hash(other)
    assert submit("submit", "train", "--run", other, "--records", RUN) == 0, "the same records by their run"
    open_storage(other).delete(layout.CONFIG)


def test_export_needs_a_training_and_not_two_exporters(run, server, capsys):
    preprocessed(run, server)
    assert submit(*EXPORT) == EXIT_PERMANENT
    assert f"{RUN}/{layout.TRAINED}: not found, expected a finished training" in capsys.readouterr().err
    assert submit(*TRAIN) == 0
    finish_training(run)
    assert submit(*EXPORT) == EXIT_PERMANENT
    assert f"at work on {RUN}, expected its end: it exports the model, too" in capsys.readouterr().err
    server.remove("jobs", created(server)["metadata"]["name"])
    assert submit(*EXPORT) == 0
    assert created(server)["spec"]["completions"] == 1


def test_what_the_doctor_finds_keeps_a_job_from_being_created(run, server, capsys):
    server.denied.add(("create", "jobs"))
    assert submit(*PREPROCESS) == EXIT_PERMANENT
    assert "create jobs" in capsys.readouterr().err
    assert writes(server) == []
    assert not run.exists(layout.CONFIG)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(["submit", "train", "--run", "runs/one"], "--run 'runs/one': expected gs://", id="local run"),
        pytest.param([*PREPROCESS[:-1], "videos"], "--videos 'videos': expected gs://", id="local videos"),
        pytest.param([*TRAIN, "--records", "/old"], "--records '/old': expected gs://", id="local records"),
        pytest.param([*TRAIN, "--set", "model.weights=w.weights.h5"], "pods can't see", id="local weights"),
        pytest.param([*TRAIN, "--limits", "cpu=many"], "--limits cpu='many'", id="quantity"),
        pytest.param([*PREPROCESS, "--requests", "cpu=9"], "--requests cpu=9: expected at most", id="request"),
        pytest.param([*PREPROCESS, "--recipe", "best"], "--recipe best", id="recipe"),
        pytest.param([*TRAIN, "--context", "other"], "context other: expected one of test", id="context"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_written(run, server, capsys, arguments, says):
    assert submit(*arguments) == EXIT_PERMANENT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert says in line
    assert writes(server) == []
    assert not run.exists(layout.CONFIG)


def test_an_overlay_that_is_not_there(server, capsys):
    assert main(["deploy", "--overlay", "aws"]) == EXIT_PERMANENT
    assert "--overlay aws: expected one of gke, local" in capsys.readouterr().err


def test_a_refusal_of_kubectl_is_one_line(server, capsys):
    assert main(["deploy", "--overlay", "gke", "--namespace", "mine"]) == EXIT_PERMANENT
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: kubectl apply (context test, namespace mine): ")


def test_deploy_as_a_dry_run_has_no_jobs_and_the_chosen_namespace(server, capsys):
    assert main(["deploy", "--overlay", "local", "--namespace", "mine", "--dry-run"]) == 0
    objects = list(yaml.safe_load_all(capsys.readouterr().out))
    kinds = {thing["kind"] for thing in objects}
    assert {"Namespace", "Service", "Role", "RoleBinding", "Deployment"} <= kinds
    assert "Job" not in kinds
    assert {thing["metadata"].get("namespace", thing["metadata"]["name"]) for thing in objects} == {"mine"}


def test_the_command_line_stays_light():
    code = (
        "import sys\n"
        "from deepfake_detector.cli import main\n"
        "try: main(['submit', 'train', '--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'kubernetes', 'yaml', 'urllib3', 'google.cloud', 'pydantic'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
