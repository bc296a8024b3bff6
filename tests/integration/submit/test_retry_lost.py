"""Submitting a retry of lost videos: one round after the other, and never beside a training."""

from __future__ import annotations

from deepfake_detector.core import layout
from deepfake_detector.core.errors import EXIT_PERMANENT
from deepfake_detector.core.jobspec import job_name
from deepfake_detector.stages.runs import load_config
from tests.integration.submit.driver import (
    NEEDS,
    PREPROCESS,
    RUN,
    TRAIN,
    created,
    environment,
    finish_preprocessing,
    finish_training,
    preprocessed,
    submit,
    writes,
)
from tests.make_markers import plan_summary, records_summary

pytestmark = NEEDS

RETRY = [*PREPROCESS, "--retry-lost"]
NAME = job_name("preprocess", RUN, 2)
PLACE = layout.retry(1)


def plan_retry(run) -> None:
    run.write(f"{PLACE}/{layout.PLAN}", plan_summary(load_config(run), shards=1).encode())


def finish_retry(run, **fields) -> None:
    """fields: of the summary, beside the number of shards."""
    run.write(f"{PLACE}/{layout.RECORDS_SUMMARY}", records_summary(load_config(run), shards=3, **fields).encode())


def complete(server) -> None:
    job = created(server)
    server.put("jobs", NAME, **{**job, "status": {"conditions": [{"type": "Complete", "status": "True"}]}})


def test_a_retry_takes_the_place_of_the_job_that_is_over(run, server, capsys):
    assert submit(*PREPROCESS) == 0
    assert "RETRY" not in environment(created(server))
    finish_preprocessing(run)
    complete(server)
    assert submit(*RETRY, "--pods", "4") == 0
    job = created(server)
    assert (job["metadata"]["name"], environment(job)["RETRY"]) == (NAME, "1")
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (1, 1), "one video is lost"
    assert f"created job {NAME}" in capsys.readouterr().out


def test_the_same_command_attaches_and_then_begins_a_further_round(run, server, capsys):
    preprocessed(run, server)
    assert submit(*RETRY) == 0
    plan_retry(run)
    assert submit(*RETRY) == 0
    assert f"attached to job {NAME}" in capsys.readouterr().out
    finish_retry(run)
    assert submit(*RETRY) == EXIT_PERMANENT
    assert f"job {NAME}: at work on {RUN}, expected its end before lost videos are tried" in capsys.readouterr().err
    complete(server)
    assert submit(*RETRY) == 0
    assert environment(created(server))["RETRY"] == "2"


def test_without_retry_lost_preprocessing_is_finished(run, server, capsys):
    preprocessed(run, server)
    assert submit(*RETRY) == 0
    plan_retry(run)
    server.requests.clear()
    assert submit(*PREPROCESS) == 0
    assert writes(server) == []
    said = capsys.readouterr().out
    assert "9 of 10 videos in 2 shards" in said
    assert said.endswith(f"next: make preprocess RUN={RUN} RETRY_LOST=1 (retry 1 is half done)\n")
    finish_retry(run, outcomes={"ok": {"real": 5, "fake": 5}})
    assert submit(*PREPROCESS) == 0
    said = capsys.readouterr().out
    assert "10 of 10 videos in 3 shards" in said
    assert said.endswith(f"next: make train RUN={RUN}\n")


def test_before_preprocessing_has_finished(run, server, capsys):
    says = "records/summary.json: not found, expected preprocessing to finish before lost videos are tried again "
    says += "(the same command without RETRY_LOST)"
    assert submit(*RETRY) == EXIT_PERMANENT
    assert says in capsys.readouterr().err
    assert submit(*PREPROCESS) == 0
    server.requests.clear()
    assert submit(*RETRY) == EXIT_PERMANENT
    assert says in capsys.readouterr().err
    assert writes(server) == []


def test_nothing_lost(run, server, capsys):
    preprocessed(run, server)
    outcomes = {"ok": {"real": 5, "fake": 4}, "unlabelled": {"unknown": 1}}
    run.write(layout.RECORDS_SUMMARY, records_summary(load_config(run), outcomes=outcomes).encode())
    assert submit(*RETRY) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-2] == f"{RUN}: no lost video may be tried again"
    assert lines[-1].startswith("  not tried again: unlabelled 1 (had no label")
    assert writes(server) == []


def test_training_waits_for_the_end_of_a_retry(run, server, capsys):
    preprocessed(run, server)
    assert submit(*RETRY) == 0
    assert submit(*TRAIN) == EXIT_PERMANENT
    assert f"job {NAME}: tries lost videos of {RUN} again: expected its end before training" in capsys.readouterr().err
    plan_retry(run)
    server.remove("jobs", NAME)
    assert submit(*TRAIN) == EXIT_PERMANENT
    assert "retry 1 of lost videos has begun and not finished" in capsys.readouterr().err
    finish_retry(run)
    assert submit(*TRAIN) == 0
    assert submit(*RETRY) == EXIT_PERMANENT
    assert "at work on" in capsys.readouterr().err


def test_training_that_has_begun_is_named(run, server, capsys):
    preprocessed(run, server)
    finish_training(run)
    assert submit(*RETRY) == EXIT_PERMANENT
    error = capsys.readouterr().err
    assert f"{RUN}/{layout.TRAINED}: training has begun on these records" in error
    assert "(without RETRY_LOST this run goes on" in error
    assert writes(server) == []
