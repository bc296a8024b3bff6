"""What a submission creates, attaches to, or finds done."""

from __future__ import annotations

import pytest
import yaml

from deepfake_detector.adapters.storage import open_storage
from deepfake_detector.core.config import fingerprint, stage_settings
from deepfake_detector.core.errors import EXIT_PERMANENT
from deepfake_detector.core.jobspec import job_name, run_hash
from deepfake_detector.stages.runs import load_config
from tests.integration.submit.driver import (
    IMAGE,
    NEEDS,
    PREPROCESS,
    RUN,
    TRAIN,
    created,
    environment,
    finish_export,
    finish_training,
    preprocessed,
    submit,
    writes,
)

pytestmark = NEEDS


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
