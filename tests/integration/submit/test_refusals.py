"""What is refused, in one line that names it, before anything is written."""

from __future__ import annotations

import pytest

from deepfake_detector.core import layout
from deepfake_detector.core.errors import EXIT_PERMANENT
from tests.integration.submit.driver import (
    EXPORT,
    NEEDS,
    PREPROCESS,
    RUN,
    TRAIN,
    created,
    finish_export,
    finish_preprocessing,
    finish_training,
    preprocessed,
    submit,
    writes,
)

pytestmark = NEEDS


@pytest.mark.parametrize("flag", ["--run", "--videos", "--records"])
def test_a_bucket_that_does_not_exist_is_told_at_once(run, server, capsys, flag):
    """Its pods would wait for one that may be away."""
    stage = PREPROCESS if flag != "--records" else TRAIN
    assert submit(*stage, flag, "gs://no-such-bucket/somewhere") == EXIT_PERMANENT
    assert "gs://no-such-bucket: no such bucket" in capsys.readouterr().err
    assert server.listed("jobs", {}) == []


def test_other_settings_than_those_of_an_active_job_are_refused(run, server, capsys):
    assert submit(*PREPROCESS) == 0
    before, job = run.read(layout.CONFIG), created(server)
    assert submit(*PREPROCESS, "--set", "faces.margin=1.5") == EXIT_PERMANENT
    assert "error: faces.margin=1.5: expected 1.3" in capsys.readouterr().err
    assert run.read(layout.CONFIG) == before
    assert created(server) == job


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


def test_a_damaged_report_is_named(run, server, capsys):
    preprocessed(run, server)
    finish_training(run)
    finish_export(run)
    run.write(layout.REPORT_METRICS, b"{")
    assert submit(*TRAIN) == EXIT_PERMANENT
    assert f"error: {RUN}/{layout.REPORT_METRICS}: expected JSON (" in capsys.readouterr().err


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
