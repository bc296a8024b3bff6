"""A shard end to end: what the run's folder holds afterwards."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deepfake_detector.adapters.records import decode as decode_record
from deepfake_detector.adapters.records import encode, read_record, scan
from deepfake_detector.adapters.storage import Storage, crc32c_of, open_storage
from deepfake_detector.adapters.storage_local import LocalStorage
from deepfake_detector.core import layout
from deepfake_detector.core.config import Config, override
from deepfake_detector.core.errors import ConfigError, DataError
from deepfake_detector.core.losses import require_few_lost
from deepfake_detector.core.markers import RecordsSummary, ShardReport, decode
from deepfake_detector.core.outcomes import Outcome, VideoOutcome
from deepfake_detector.core.recipes import resolve
from deepfake_detector.core.sequences import FaceSequence
from deepfake_detector.stages import preprocess
from deepfake_detector.stages.plan import make_plan
from deepfake_detector.stages.preprocess import preprocess_shard
from deepfake_detector.stages.runs import save_config
from deepfake_detector.stages.summary import finish
from deepfake_detector.training.dataset import open_split
from tests.make_videos import scene, talking_head, write_video

REPOSITORY = Path(__file__).parents[2]


def config_for(videos: Path | str, **settings: object) -> Config:
    values = {
        "data.videos": str(videos),
        "data.shards": 2,
        "data.validation": 0.2,
        "data.test": 0.2,
        "sampling.frames": 4,
        "faces.size": 32,
        "operations.decoders": 2,
        "operations.max_lost_fraction": 0.4,
    }
    return override(
        resolve("demo"), values | {key.replace("__", "."): value for key, value in settings.items()}, "test"
    )


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five real and five fake clips, a faceless fake, an empty real one and names with spaces."""
    folder = tmp_path_factory.mktemp("videos")
    for k in range(5):
        write_video(folder / f"real/clip {k}.mp4", talking_head(8))
        write_video(folder / f"fake/çlip {k}.mp4", talking_head(8, name="hopper"))
    write_video(folder / "fake/faceless.mp4", [scene((320, 240))] * 8)
    (folder / "real/empty.mp4").touch()
    return folder


@pytest.fixture(scope="module")
def finished(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Storage, Config]:
    """A run whose two shards were made by the job itself, as a pod makes them."""
    run, config = submit(tmp_path_factory.mktemp("run"), videos)
    before = snapshot(videos)
    for index in (0, 1):
        assert job(run, index).returncode == 0
    assert snapshot(videos) == before  # no stage changes or deletes a source
    return run, config


def submit(folder: Path, videos: Path, **settings: object) -> tuple[Storage, Config]:
    run, config = open_storage(str(folder)), config_for(videos, **settings)
    save_config(run, config, {})
    return run, config


def job(run: Storage, index: int, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "jobs.preprocess"],
        cwd=REPOSITORY,
        env={**os.environ, "RUN": run.uri, "JOB_COMPLETION_INDEX": str(index), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def snapshot(folder: Path) -> dict[str, tuple[str, int]]:
    return {
        str(path): (crc32c_of(path), path.stat().st_mtime_ns) for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_the_shards_account_for_every_video(finished: tuple[Storage, Config]) -> None:
    run, config = finished
    outcomes: dict[str, VideoOutcome] = {}
    for shard in range(2):
        report = decode(ShardReport, run.read(layout.shard_report(shard, 2)), "report")
        outcomes |= {video.key: video for video in report.videos}
        for file in report.files:
            path = Path(run.uri) / file.name
            assert (path.stat().st_size, crc32c_of(path)) == (file.size, file.crc32c)
            assert [(entry.offset, entry.length) for entry in file.records] == list(scan(path))
            with path.open("rb") as opened:
                for entry in file.records:
                    sequence, context = decode_record(read_record(opened, entry.offset, entry.length))
                    assert len(sequence.images) == config.sampling.frames
                    assert (context["sample_id"], context["label"]) == (entry.sample, entry.label)
                    assert (context["split"], context["video_id"]) == (file.split, entry.video)
                    assert context["preprocess_fingerprint"] == report.fingerprint
    assert len(outcomes) == 12
    bad = {key.rpartition("/")[2]: video.outcome for key, video in outcomes.items() if video.outcome != "ok"}
    assert bad == {"faceless": Outcome.NO_FACE, "empty": Outcome.NOT_A_VIDEO}


def summary_of(run: Storage) -> RecordsSummary:
    return decode(RecordsSummary, run.read(layout.RECORDS_SUMMARY), "the test")


def test_the_summary_counts_losses_by_reason_and_label(finished: tuple[Storage, Config]) -> None:
    summary = summary_of(finished[0])
    assert summary.outcomes == {"no_face": {"fake": 1}, "not_a_video": {"real": 1}, "ok": {"fake": 5, "real": 5}}
    assert (summary.videos, summary.lost_fraction) == (12, 2 / 12)
    assert sum(count for labels in summary.sequences.values() for count in labels.values()) == 10
    assert summary.frames_sampled == summary.frames_detected + summary.frames_filled == 40


def test_progress_is_told(finished: tuple[Storage, Config]) -> None:
    told = json.loads(finished[0].read(layout.progress("preprocess", 0)))
    assert told["done"] == told["total"] == sum(told["outcomes"].values())


def test_a_rerun_gives_the_same_bytes(finished: tuple[Storage, Config], tmp_path: Path) -> None:
    """In this process, one decoder, another scratch folder: nothing of that may show."""
    run, config = finished
    again, _ = submit(tmp_path / "again", Path(config.data.videos))
    make_plan(again, config)
    slower = override(config, {"operations.decoders": 1}, "test")
    for shard in (1, 0):
        preprocess_shard(again, slower, shard, scratch=tmp_path / "scratch")
    names = [entry.name for entry in run.list("records/")]
    assert names == [entry.name for entry in again.list("records/")]
    assert len(names) >= 5
    for name in names:
        assert run.read(name) == again.read(name), name
    assert [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()] == []


@pytest.mark.gcs
def test_videos_in_a_bucket_give_the_same_sequences(
    finished: tuple[Storage, Config], gcs_bucket: str, tmp_path: Path
) -> None:
    local, config = finished
    videos = open_storage(f"{gcs_bucket}/videos")
    for path in Path(config.data.videos).rglob("*.mp4"):
        videos.upload(path, path.relative_to(config.data.videos).as_posix())
    run = open_storage(f"{gcs_bucket}/runs/a")
    remote = override(config, {"data.videos": videos.uri, "operations.decoders": 1}, "test")
    make_plan(run, remote)
    for shard in range(2):
        preprocess_shard(run, remote, shard, scratch=tmp_path / "scratch")
    assert summary_of(run).outcomes == summary_of(local).outcomes
    assert [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()] == []
    for number, (theirs, ours) in enumerate(zip(records_of(run), records_of(local), strict=True)):
        copy = tmp_path / str(number)
        run.download(theirs, copy)
        assert sequences_of(copy) == sequences_of(Path(local.uri) / ours)


def records_of(run: Storage) -> list[str]:
    return [entry.name for entry in run.list("records/") if entry.name.endswith(".tfrecord")]


def sequences_of(path: Path) -> list[FaceSequence]:
    with path.open("rb") as file:
        return [decode_record(read_record(file, *place))[0] for place in scan(path)]


def test_a_finished_shard_does_nothing(finished: tuple[Storage, Config], tmp_path: Path) -> None:
    run, config = finished
    before = snapshot(Path(run.uri) / "records")

    def never(done: int, total: int, outcomes: object) -> None:
        raise AssertionError("work was done")

    preprocess_shard(run, config, 0, scratch=tmp_path, on_progress=never)
    assert snapshot(Path(run.uri) / "records") == before


def test_other_settings_are_refused_by_name(finished: tuple[Storage, Config], tmp_path: Path) -> None:
    run, config = finished
    other = override(config, {"faces.margin": 1.5}, "test")
    with pytest.raises(ConfigError, match=r"faces\.margin=1\.5: expected 1\.3"):
        preprocess_shard(run, other, 0, scratch=tmp_path)


def test_a_killed_shard_is_made_again(finished: tuple[Storage, Config], tmp_path: Path) -> None:
    """Records without their report do not count: the next try replaces them, with the same bytes, or removes them."""
    run, config = finished
    shutil.copytree(run.uri, tmp_path / "run")
    copy = open_storage(str(tmp_path / "run"))
    copy.delete(layout.RECORDS_SUMMARY)
    report = layout.shard_report(0, 2)
    file = decode(ShardReport, copy.read(report), report).files[0].name
    copy.delete(report)
    copy.write(file, b"half a file")
    for split in layout.SPLITS:
        copy.write(layout.records(split, 0, 2, "00000000"), b"with another outcome of a video")
    preprocess_shard(copy, override(config, {"operations.decoders": 1}, "test"), 0, scratch=tmp_path / "scratch")
    assert copy.read(report) == run.read(report)
    assert copy.read(file) == run.read(file)
    assert copy.read(layout.RECORDS_SUMMARY) == run.read(layout.RECORDS_SUMMARY)
    assert list(copy.list("records/")) == list(run.list("records/"))


@pytest.mark.parametrize("when", ["while it decodes", "while it uploads"])
def test_a_shard_that_two_processes_make_has_the_first_one_s_report(
    finished: tuple[Storage, Config], tmp_path: Path, when: str
) -> None:
    """One was given up, and its successor commits the shard with a video less (another's crash, for example)."""
    run, config = finished
    shutil.copytree(run.uri, tmp_path / "run")
    name = layout.shard_report(0, 2)
    whole = decode(ShardReport, run.read(name), name)
    others = whole.model_copy(update={"videos": whole.videos[1:]})
    late = CommittedMeanwhile(tmp_path / "run", name, others.encode(), before="read" if "dec" in when else "create")
    late.delete(name)
    late.delete(layout.RECORDS_SUMMARY)
    late.arm(2 if "dec" in when else 1)
    one_decoder = override(config, {"operations.decoders": 1}, "test")
    assert preprocess_shard(late, one_decoder, 0, scratch=tmp_path / "scratch") == others
    assert late.read(name) == others.encode()
    assert late.uploads == (0 if "dec" in when else len(whole.files))


def test_a_late_process_with_other_bytes_leaves_the_first_one_s_records(
    finished: tuple[Storage, Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was cut off before its uploads while another one, on another CPU for example, committed the shard."""
    run, config = finished
    shutil.copytree(run.uri, tmp_path / "run")
    name = layout.shard_report(0, 2)
    late = CommittedMeanwhile(tmp_path / "run", name, run.read(name), before="create")
    late.delete(name)
    late.arm(1)
    monkeypatch.setattr(preprocess, "encode", lambda sequence, of: encode(sequence, {**of, "codec": "another"}))
    preprocess_shard(late, config, 0, scratch=tmp_path / "scratch")
    assert late.uploads
    for split in layout.SPLITS:
        opened = open_split(late, split, tmp_path / "scratch")
        assert all(opened.read(index) for index in range(len(opened)))
        opened.close()
    assert {entry.name: late.read(entry.name) for entry in late.list("records/")} == {
        entry.name: run.read(entry.name) for entry in run.list("records/")
    }


class CommittedMeanwhile(LocalStorage):
    """A folder in which `name` appears before the n-th call of `before` for it, as another process puts it there."""

    def __init__(self, folder: Path, name: str, data: bytes, before: str) -> None:
        super().__init__(folder)
        self._name, self._data, self._before, self._left = name, data, before, 0
        self.uploads = 0

    def arm(self, call: int) -> None:
        self._left = call

    def read(self, name: str) -> bytes:
        self._meanwhile("read", name)
        return super().read(name)

    def create(self, name: str, data: bytes) -> bool:
        self._meanwhile("create", name)
        return super().create(name, data)

    def upload(self, path: Path, name: str) -> None:
        self.uploads += 1
        super().upload(path, name)

    def _meanwhile(self, call: str, name: str) -> None:
        if (call, name) == (self._before, self._name):
            self._left -= 1
            if self._left == 0:
                super().write(name, self._data)


def test_a_video_that_is_gone_since_the_plan(videos: Path, tmp_path: Path) -> None:
    copy = tmp_path / "videos"
    shutil.copytree(videos, copy)
    run, config = submit(tmp_path / "run", copy, data__shards=1, operations__decoders=1)
    make_plan(run, config)
    (copy / "real/clip 0.mp4").unlink()
    report = preprocess_shard(run, config, 0, scratch=tmp_path / "scratch")
    lost = sorted(video.outcome for video in report.videos if video.outcome != "ok")
    assert lost == [Outcome.MISSING_FILE, Outcome.NO_FACE, Outcome.NOT_A_VIDEO]
    summary = summary_of(run)
    require_few_lost(summary, 0.25, "here")
    said = r"here: 25\.0% of the labelled videos lost \(missing_file 1, no_face 1, not_a_video 1\): .*fraction=0\.1$"
    with pytest.raises(DataError, match=said):
        require_few_lost(summary, 0.1, "here")


def test_a_higher_limit_of_losses_costs_nothing(finished: tuple[Storage, Config]) -> None:
    run, config = finished
    raised = override(config, {"operations.max_lost_fraction": 0.9}, "test")
    save_config(run, raised, {})
    assert finish(run, raised) == summary_of(run)


@pytest.mark.parametrize(
    ("environment", "status", "message"),
    [
        pytest.param({"RUN": ""}, 78, "error: RUN: not set", id="no run"),
        pytest.param({"JOB_COMPLETION_INDEX": "x"}, 78, "error: JOB_COMPLETION_INDEX='x': expected", id="bad index"),
        pytest.param({"JOB_COMPLETION_INDEX": "2"}, 78, "JOB_COMPLETION_INDEX=2: expected less than", id="index"),
        pytest.param({"RUN": "/nonexistent/run"}, 78, "config.json: not found", id="no such run"),
    ],
)
def test_exit_status(finished: tuple[Storage, Config], environment: dict[str, str], status: int, message: str) -> None:
    result = job(finished[0], 0, **environment)
    assert result.returncode == status
    assert message in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_an_index_without_a_plan_asks_for_another_try(videos: Path, tmp_path: Path) -> None:
    run, _ = submit(tmp_path, videos, operations__plan_wait_seconds=0.2)
    result = job(run, 1)
    assert result.returncode == 75
    assert "expected index 0 to make the plan" in result.stderr.splitlines()[-1]


def test_sigterm_ends_with_143(videos: Path, tmp_path: Path) -> None:
    run, _ = submit(tmp_path, videos)
    environment = {**os.environ, "RUN": run.uri, "JOB_COMPLETION_INDEX": "1"}
    command = [sys.executable, "-m", "jobs.preprocess"]
    process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    assert "waiting for the plan" in process.stderr.readline()
    process.terminate()
    assert process.wait() == 143
