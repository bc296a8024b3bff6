"""Lost videos are tried again by real processes: the finished round stays as it is, and what is won is trained on."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from deepfake_detector.adapters.rounds import finished_rounds, half_done_retry, load_summary, require_no_half_done_retry
from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.adapters.storage_gcs import GcsStorage
from deepfake_detector.cluster.results import require_good
from deepfake_detector.core import layout
from deepfake_detector.core.config import override, stage_settings
from deepfake_detector.core.errors import ConfigError, DataError, WaitError
from deepfake_detector.core.markers import TrainedMarker, decode
from deepfake_detector.core.schedule import initial_state
from deepfake_detector.core.topology import ALONE
from deepfake_detector.local.launch import Commands, run_local
from deepfake_detector.local.processes import JobError
from deepfake_detector.stages.evaluate import lost_videos
from deepfake_detector.stages.plan import load_plan, make_plan
from deepfake_detector.stages.preprocess import preprocess_shard
from deepfake_detector.stages.retry import make_retry_plan, next_retry
from deepfake_detector.stages.runs import load_config, save_config
from deepfake_detector.stages.status import read_status, to_text
from deepfake_detector.stages.summary import finish
from deepfake_detector.training.checkpoints import Checkpoints, Written, discard_from
from deepfake_detector.training.dataset import open_records, open_split
from deepfake_detector.training.worker import begun_with, run_worker
from jobs import preprocess_shard as shard_job
from tests.integration.test_preprocess import REPOSITORY, job, snapshot, submit
from tests.make_markers import plan_summary, trained_marker
from tests.make_videos import scene, talking_head, write_video

PATIENCE = 60.0  # seconds for an event that must come
PLACE = layout.retry(1)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """A run with a finished first round, whose videos have changed since.

    Lost were a broken clip, one whose file was missing, a faceless one and one without a label; by now there is a
    good file in the place of the first and of the second. Not to be changed: tests work on copies.
    """
    videos = tmp_path_factory.mktemp("videos")
    for k in range(5):
        write_video(videos / f"real/clip {k}.mp4", talking_head(8))
        write_video(videos / f"fake/clip {k}__x.mp4", talking_head(8, name="hopper"))
    write_video(videos / "fake/faceless.mp4", [scene((320, 240))] * 8)
    (videos / "real/broken.mp4").touch()
    (videos / "stray.mp4").touch()
    (videos / "labels.csv").write_text("path,label,group\nfake/late.mp4,fake,clip 0\nreal/clip 0.mp4,real,clip 0\n")
    once = {
        "operations__decoders": 1,
        "model__head": "mean",
        "train__augment": False,
        "train__workers": 1,
        "train__threads": 1,
        "train__epochs": 1,
        "train__steps_per_epoch": 2,
    }
    run, _ = submit(tmp_path_factory.mktemp("run"), videos, **once)
    config = load_config(run)
    make_plan(run, config)
    for shard in range(2):
        preprocess_shard(run, config, shard, scratch=videos.parent / "scratch")
    write_video(videos / "real/broken.mp4", talking_head(8))
    write_video(videos / "fake/late.mp4", talking_head(8, name="hopper"))
    return run


@pytest.fixture(scope="module")
def retried(template: Storage, tmp_path_factory: pytest.TempPathFactory) -> Storage:
    """A copy whose lost videos the jobs have tried again, as pods do. Not to be changed, either."""
    run = copy_of(template, tmp_path_factory.mktemp("retried") / "run")
    before = snapshot(Path(run.uri))
    for index in (0, 1):
        assert job(run, index, RETRY="1").returncode == 0
    after = snapshot(Path(run.uri))
    assert {name: after[name] for name in before} == before  # no retry changes an object of the first round
    return run


@pytest.fixture
def run(template: Storage, tmp_path: Path) -> Storage:
    return copy_of(template, tmp_path / "run")


def copy_of(run: Storage, folder: Path) -> Storage:
    shutil.copytree(run.uri, folder)
    return open_storage(str(folder))


def retry(run: Storage, scratch: Path, number: int = 1) -> None:
    """All shards of a retry, in this process."""
    config = load_config(run)
    for shard in range(make_retry_plan(run, config, number).shards):
        preprocess_shard(run, config, shard, scratch=scratch, retry=number)


def objects_of(run: Storage, prefix: str) -> dict[str, bytes]:
    return {entry.name: run.read(entry.name) for entry in run.list(prefix) if "/logs/" not in entry.name}


def losses(run: Storage) -> dict[str, str]:
    return {video.key: str(video.outcome) for video in lost_videos(run, finished_rounds(run))}


def test_a_retry_adds_to_the_run_and_changes_nothing(template: Storage, retried: Storage, tmp_path: Path) -> None:
    first = open_records(template)
    assert losses(template) == {
        "folders/fake/faceless": "no_face",
        "folders/real/broken": "not_a_video",
        "manifest/fake/late": "missing_file",
        "unlabelled/unknown/stray.mp4": "unlabelled",
    }
    assert (next_retry(template).number, next_retry(template).shards) == (1, 2)

    run, config = retried, load_config(retried)
    added = {entry.name for entry in run.list()} - {entry.name for entry in template.list()}
    assert [name for name in sorted(added) if not name.startswith((f"{PLACE}/", "logs/"))] == []
    plan, planned = load_plan(open_storage(f"{run.uri}/{PLACE}"))
    assert plan.found == [
        "tried again: missing_file 1, no_face 1, not_a_video 1",
        "not tried again: unlabelled 1 (had no label when the videos were planned: a new RUN plans them anew)",
    ]
    splits = {video.key: (video.split, video.group) for video in load_plan(run)[1]}
    again = {video.key: (video.split, video.group) for video in planned}
    assert again.pop("manifest/fake/late") == splits["manifest/real/clip 0"]
    assert again == {key: splits[key] for key in again}

    assert losses(run) == {"folders/fake/faceless": "no_face", "unlabelled/unknown/stray.mp4": "unlabelled"}
    summary = load_summary(run)
    assert (summary.videos, summary.shards, summary.lost_fraction) == (14, 4, 1 / 13)
    assert sum(sum(labels.values()) for labels in summary.outcomes.values()) == 14
    require_good(run, override(config, {"operations.max_lost_fraction": 0.1}, "test"))
    text = to_text(read_status(run))
    assert "retry 1   done: 3 videos\n          tried again: missing_file 1, no_face 1, not_a_video 1\n" in text
    assert "records   done: 14 videos, lost 7.7%" in text

    records = open_records(run)
    assert records.fingerprint != first.fingerprint
    assert records.files[: len(first.files)] == first.files
    won = {entry.video for file in records.files[len(first.files) :] for entry in file.records}
    assert won == {"folders/real/broken", "manifest/fake/late"}
    read = set()
    for name in layout.SPLITS:
        split = open_split(run, name, tmp_path / "scratch", records)
        read |= {entry.video for index, entry in enumerate(split.entries) if split.read(index)}
        split.close()
    assert won < read
    assert len(read) == summary.outcomes["ok"]["real"] + summary.outcomes["ok"]["fake"] == 12


def test_a_second_retry_is_a_further_round(retried: Storage, tmp_path: Path) -> None:
    run = copy_of(retried, tmp_path / "run")
    before, records, summary = snapshot(Path(run.uri)), open_records(run), load_summary(run)
    upcoming = next_retry(run)
    assert (upcoming.number, upcoming.shards) == (2, 1)
    retry(run, tmp_path / "scratch", 2)
    after = snapshot(Path(run.uri))
    assert {name: after[name] for name in before} == before
    assert [video.key for video in load_plan(open_storage(f"{run.uri}/{layout.retry(2)}"))[1]] == [
        "folders/fake/faceless"
    ]
    assert open_records(run).fingerprint == records.fingerprint, "nothing was won, so the records are the same"
    assert load_summary(run) == summary.model_copy(update={"shards": 5})
    assert [each.number for each in read_status(run).retries] == [1, 2]


def test_a_retry_that_is_killed_goes_on_to_the_same_bytes(run: Storage, retried: Storage, tmp_path: Path) -> None:
    config = load_config(run)
    first = open_records(run).fingerprint
    started = start(run, 0)
    wait_for(started, Path(run.uri) / PLACE / layout.progress("preprocess", 0))
    started.kill()
    started.wait()
    assert not run.exists(f"{PLACE}/{layout.RECORDS_SUMMARY}")
    assert half_done_retry(run) == 1
    assert next_retry(run).number == 1
    assert "retry 1   0 of 2 shards done, not counted yet" in to_text(read_status(run))
    assert open_records(run).fingerprint == first, "it does not count before it is finished"
    with pytest.raises(DataError, match=r"retries/00001: retry 1 of lost videos has begun and not finished"):
        require_no_half_done_retry(run)
    with pytest.raises(DataError, match="expected its end before training"):
        run_worker(run.uri, config, ALONE, tmp_path / "train", run.uri)

    together = [start(run, index) for index in (1, 0)]
    assert [process.wait(PATIENCE) for process in together] == [0, 0]
    assert objects_of(run, PLACE) == objects_of(retried, PLACE)
    assert len(objects_of(run, PLACE)) >= 6
    assert half_done_retry(run) == 0


@pytest.mark.gcs
def test_in_a_bucket_a_retry_makes_the_same_objects(
    template: Storage, retried: Storage, gcs_bucket: str, tmp_path: Path
) -> None:
    remote = open_storage(f"{gcs_bucket}/some/run")
    for entry in template.list():
        remote.upload(Path(template.uri) / entry.name, entry.name)
    before = objects_of(remote, "")
    retry(remote, tmp_path / "scratch")
    after = objects_of(remote, "")
    assert {name: after[name] for name in before} == before
    assert objects_of(remote, PLACE) == objects_of(retried, PLACE)
    assert open_records(remote).fingerprint == open_records(retried).fingerprint
    split = open_split(remote, "train", tmp_path / "staged")
    assert all(split.read(index) for index in range(len(split)))
    split.close()


def start(run: Storage, index: int) -> subprocess.Popen[bytes]:
    environment = {**os.environ, "RUN": run.uri, "JOB_COMPLETION_INDEX": str(index), "RETRY": "1"}
    return subprocess.Popen([sys.executable, "-m", "jobs.preprocess"], cwd=REPOSITORY, env=environment)


def wait_for(process: subprocess.Popen[bytes], path: Path) -> None:
    limit = time.monotonic() + PATIENCE
    while not path.exists():
        assert process.poll() is None
        assert time.monotonic() < limit, f"{path} did not come"
        time.sleep(0.002)


def test_training_uses_what_was_won_and_ends_all_retries(template: Storage, retried: Storage, tmp_path: Path) -> None:
    run = copy_of(retried, tmp_path / "run")
    config = load_config(run)
    assert train(run, tmp_path).returncode == 0
    trained = decode(TrainedMarker, run.read(layout.TRAINED), "the test")
    assert trained.records_fingerprint == open_records(run).fingerprint
    refusal = r"checkpoints/trained\.json: training has begun on these records: expected lost videos"
    with pytest.raises(ConfigError, match=refusal):
        next_retry(run)
    with pytest.raises(ConfigError, match=refusal):
        make_retry_plan(run, config, 2)
    assert not list(run.list(layout.retry(2)))

    # A run that trains on records of another one, which a retry has made other records since.
    theirs, other = copy_of(template, tmp_path / "theirs"), open_storage(str(tmp_path / "other"))
    shutil.copytree(Path(run.uri) / layout.CHECKPOINTS, Path(other.uri) / layout.CHECKPOINTS)
    other.delete(layout.TRAINED)
    save_config(other, config, {}, theirs.uri)
    found, expected = (open_records(each).fingerprint[:12] for each in (theirs, run))
    with pytest.raises(ConfigError, match=f"{theirs.uri}: records {found}: expected {expected}, with which"):
        run_worker(other.uri, config, ALONE, tmp_path / "train", theirs.uri)
    with pytest.raises(ConfigError, match=r"uses the records of .*: expected lost videos to be tried again there"):
        next_retry(other)


def train(run: Storage, folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "RUN": run.uri, "SCRATCH": str(folder / "train"), "TF_CPP_MIN_LOG_LEVEL": "2"}
    command = [sys.executable, "-m", "jobs.train_worker"]
    return subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)


def test_a_training_elsewhere_goes_on_with_the_records_that_it_began_with(template: Storage, retried: Storage) -> None:
    """Nothing in a run tells which others train on its records: a retry may not spoil them."""
    before = open_records(template)
    lost = [video.key for video in lost_videos(template, before.rounds)]
    after = open_records(retried)
    assert after.fingerprint != before.fingerprint
    assert open_records(retried, after.fingerprint).files == after.files
    again = open_records(retried, before.fingerprint)
    assert (again.fingerprint, again.files, again.summary) == (before.fingerprint, before.files, before.summary)
    assert [video.key for video in lost_videos(retried, again.rounds)] == lost
    assert open_records(retried, "0" * 64).files == after.files, "these never were its records: whoever asks compares"


def test_a_training_elsewhere_that_has_lost_its_checkpoints_begins_again_on_the_same_records(
    template: Storage, retried: Storage, tmp_path: Path
) -> None:
    config, other = load_config(retried), open_storage(str(tmp_path / "other"))
    before = open_records(template).fingerprint
    (tmp_path / "weights").mkdir()
    state = initial_state(before, threads=3).model_copy(update={"step": 5, "best_step": 5})
    writer = Checkpoints(other, tmp_path, stage_settings(config, "train"), "the test", [], keep=1)
    writer.commit(Written(state, tmp_path / "weights"))
    assert begun_with(other, retried, config)[0].fingerprint == before
    discard_from(other, 5)
    records, threads = begun_with(other, retried, config)
    assert (records.fingerprint, threads) == (before, 3)


@pytest.mark.gcs
def test_a_retry_whose_videos_are_out_of_reach_is_not_begun(
    run: Storage, gcs_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def hasty(uri: str, patient: bool) -> Storage:
        storage = GcsStorage(uri, outage_seconds=0.3, patient=patient)
        monkeypatch.setattr(storage, "_request_seconds", 60.0)  # an answer that comes late is another error
        return storage

    absent = f"{gcs_bucket}-absent/videos"
    monkeypatch.setattr("deepfake_detector.stages.retry.open_storage", hasty)
    config = load_config(run)
    config = config.model_copy(update={"data": config.data.model_copy(update={"videos": absent})})
    with pytest.raises(ConfigError, match="-absent"):
        make_retry_plan(run, config, 1)
    assert half_done_retry(run) == 0


def test_workers_that_have_read_different_records_start_again() -> None:
    """One was faster than the end of a retry, one was slower."""
    from types import SimpleNamespace

    from deepfake_detector.training.loop import _require_equal_records

    def task(rank: int, fingerprint: str) -> Any:
        records = SimpleNamespace(fingerprint=fingerprint)
        return SimpleNamespace(
            records=records, records_run=SimpleNamespace(uri="there"), cluster=SimpleNamespace(rank=rank, workers=2)
        )

    def of(*fingerprints: str) -> Any:
        return SimpleNamespace(gather=lambda text, rank, workers: list(fingerprints))

    _require_equal_records(task(0, "a" * 64), of("a" * 64, "a" * 64))
    for rank in (0, 1):
        with pytest.raises(WaitError, match="there: records changed while the workers started, worker"):
            _require_equal_records(task(rank, "ab"[rank] * 64), of("a" * 64, "b" * 64))


def test_training_that_begins_during_a_retry_keeps_its_records(run: Storage, tmp_path: Path) -> None:
    """No lock keeps the two apart everywhere: the retry that finishes later does not count."""
    config = load_config(run)
    make_retry_plan(run, config, 1)
    preprocess_shard(run, config, 0, scratch=tmp_path / "scratch", retry=1)
    before = open_records(run).fingerprint
    run.write(layout.TRAINED, trained_marker().encode())
    with pytest.raises(ConfigError, match="training has begun on these records"):
        preprocess_shard(run, config, 1, scratch=tmp_path / "scratch", retry=1)
    assert open_records(run).fingerprint == before
    with pytest.raises(ConfigError, match="training has begun on these records"):
        finish(run, config, 1)


def test_before_the_first_round_is_finished(template: Storage, tmp_path: Path) -> None:
    config = load_config(template)
    run = open_storage(str(tmp_path / "run"))
    message = r"run/records/summary\.json: not found, expected preprocessing to finish before lost videos"
    with pytest.raises(DataError, match=message):
        next_retry(run)
    save_config(run, config, {})
    with pytest.raises(DataError, match=message):
        next_retry(run)
    with pytest.raises(DataError, match=r"retries/00001: 0 finished rounds before it: expected 1"):
        make_retry_plan(run, config, 1)


@pytest.mark.parametrize(
    ("index", "number", "message"),
    [
        pytest.param(0, "2", "retries/00002: 1 finished rounds before it: expected 2", id="a round too far"),
        pytest.param(0, "x", "RETRY='x': expected a number from 0 to 99999", id="no number"),
        pytest.param(1, "1", "JOB_COMPLETION_INDEX=1: expected less than the 1 shards of retry 1", id="index"),
    ],
)
def test_a_wrong_round_or_index_is_named(
    run: Storage, tmp_path: Path, capsys: pytest.CaptureFixture[str], index: int, number: str, message: str
) -> None:
    place = open_storage(f"{run.uri}/{PLACE}")
    if index:
        place.write(layout.PLAN, plan_summary(load_config(run), shards=1).encode())
    environment = {"RUN": run.uri, "SCRATCH": str(tmp_path), "JOB_COMPLETION_INDEX": str(index), "RETRY": number}
    assert shard_job.main(environment) == 78
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_a_local_run_tries_again_before_it_trains(run: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    """And does not train beside one that is half done."""
    no_training = Commands(train=(sys.executable, "-c", "raise SystemExit('error: no training here')"))
    config = override(load_config(run), {"operations.attempts": 1}, "test")
    with pytest.raises(JobError):
        run_local(run, config, retry_lost=True, commands=no_training)
    output = capsys.readouterr().out
    assert "preprocess: retry 1 of lost videos in 2 shards\n" in output
    assert "  retry 1: 2 of 3 videos are no longer lost\n" in output
    assert "  12 of 14 videos in 4 shards; sequences: " in output
    make_retry_plan(run, config, 2)
    with pytest.raises(DataError, match=r"retry 2 of lost videos has begun .* with --retry-lost goes on"):
        run_local(run, config, commands=no_training)


def test_nothing_to_try(run: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    summary = load_summary(run)
    outcomes = {"ok": summary.outcomes["ok"], "unlabelled": {"unknown": 1}}
    run.write(layout.RECORDS_SUMMARY, summary.model_copy(update={"outcomes": outcomes}).encode())
    assert next_retry(run).shards == 0
    no_training = Commands(train=(sys.executable, "-c", "raise SystemExit('error: no training here')"))
    with pytest.raises(JobError):
        run_local(
            run,
            override(load_config(run), {"operations.attempts": 1}, "test"),
            retry_lost=True,
            commands=no_training,
        )
    assert f"{run.uri}: no lost video may be tried again\n  not tried again: unlabelled 1 (" in capsys.readouterr().out
    assert not list(run.list(layout.RETRIES))
