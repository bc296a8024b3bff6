"""Any sequence of rounds on a run folder: finished objects keep their bytes, and every video has one outcome."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepfake_detector.adapters.rounds import finished_rounds, load_summary, round_storage
from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.core import layout
from deepfake_detector.core.config import Config, fingerprint, override, stage_settings
from deepfake_detector.core.errors import DataError
from deepfake_detector.core.markers import RecordFile, ShardReport
from deepfake_detector.core.outcomes import Outcome, PlannedVideo, VideoOutcome
from deepfake_detector.core.plan import require_closed
from deepfake_detector.core.recipes import resolve
from deepfake_detector.core.retry import NEVER_AGAIN
from deepfake_detector.core.sequences import RecordEntry
from deepfake_detector.stages.evaluate import lost_videos
from deepfake_detector.stages.plan import load_plan, make_plan
from deepfake_detector.stages.retry import make_retry_plan, next_retry
from deepfake_detector.stages.runs import save_config
from deepfake_detector.stages.summary import finish
from deepfake_detector.training.dataset import open_records

TRIED = sorted(set(Outcome) - NEVER_AGAIN.keys())
CLIPS = 6  # of each label; the fakes of the last two are missing at first


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 4), st.integers(1, 5), st.randoms(use_true_random=False))
def test_any_sequence_of_rounds(shards: int, rounds: int, chance: random.Random) -> None:
    with tempfile.TemporaryDirectory() as folder:
        videos, run = Path(folder) / "videos", open_storage(f"{folder}/run")
        late = make_videos(videos)

        def any_outcome() -> Outcome:
            return chance.choice(TRIED)

        config = override(resolve("demo"), {"data.videos": str(videos), "data.shards": shards}, "the test")
        save_config(run, config, {})
        make_plan(run, config)
        everything = {video.key for video in [*load_plan(run)[1], *load_plan(run)[0].lost]}
        preprocess(run, config, 0, shards, any_outcome)
        for _ in range(rounds):
            if late and chance.random() < 0.5:
                late.pop().touch()
            before, files = objects_of(run), open_records(run).files
            upcoming = next_retry(run)
            number = len(finished_rounds(run))
            assert upcoming.number == number
            if not upcoming.shards:
                assert any("nothing to try again" in line or "not tried again: " in line for line in upcoming.why_none)
                continue
            assert make_retry_plan(run, config, number).shards == upcoming.shards <= shards
            assert load_plan(round_storage(run, number))[1], "a round has something to do"
            preprocess(run, config, number, upcoming.shards, any_outcome)

            after = objects_of(run)
            assert {name: after[name] for name in before} == before
            assert open_records(run).files[: len(files)] == files
            assert load_summary(run).videos == len(everything)
            assert sum(sum(labels.values()) for labels in load_summary(run).outcomes.values()) == len(everything)
            lost = {video.key for video in lost_videos(run, finished_rounds(run))}
            won = [entry.video for file in open_records(run).files for entry in file.records]
            assert len(won) == len(set(won)), "no video is in the records twice"
            assert lost | set(won) == everything
            assert not lost & set(won)
        require_closed(planned(run).values(), "the test")


@pytest.mark.parametrize("pathless", [False, True], ids=["this version", "an earlier one's plan"])
def test_files_that_are_still_missing_make_no_round(tmp_path: Path, pathless: bool) -> None:
    late = make_videos(tmp_path / "videos")
    run = open_storage(str(tmp_path / "run"))
    config = override(resolve("demo"), {"data.videos": str(tmp_path / "videos"), "data.shards": 2}, "the test")
    save_config(run, config, {})
    plan = make_plan(run, config)
    if pathless:
        lost = [replace(video, path="") for video in plan.lost]
        run.write(layout.PLAN, plan.model_copy(update={"lost": lost}).encode())
    preprocess(run, config, 0, 2, lambda: Outcome.OK)
    upcoming = next_retry(run)
    assert upcoming.shards == 0
    assert upcoming.why_none == (
        f"{run.uri}: no lost video may be tried again",
        "  not tried again: missing_file 2 (still not there)",
        f"  not tried again: unlabelled 1 ({NEVER_AGAIN[Outcome.UNLABELLED]})",
    )
    with pytest.raises(DataError, match=r"no lost video may be tried again; not tried again: missing_file 2 \(still"):
        make_retry_plan(run, config, 1)
    assert not list(run.list(layout.RETRIES))

    late.pop().touch()
    assert next_retry(run).shards == 2
    assert make_retry_plan(run, config, 1).counts["train"]["fake"] <= 1
    assert len(load_plan(round_storage(run, 1))[1]) == 1


def make_videos(folder: Path) -> list[Path]:
    """Empty files are enough for a plan; returns those that are labelled and missing."""
    lines, late = ["path,label"], []
    for clip in range(CLIPS):
        for name in (f"real/{clip}.mp4", f"fake/{clip}__x.mp4"):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if clip < CLIPS - 2 or name.startswith("real"):
                path.touch()
            else:
                lines.append(f"{name},fake")
                late.append(path)
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    (folder / "stray.mp4").touch()
    return late


def preprocess(run: Storage, config: Config, number: int, shards: int, outcome: Callable[[], Outcome]) -> None:
    """The round's reports with outcomes as they come, in place of the work, and then its summary."""
    place = round_storage(run, number)
    for shard in range(shards):
        assert len(finished_rounds(run)) == number
        videos = [video for video in load_plan(place)[1] if video.shard == shard]
        report = report_of(config, shard, shards, [(video, outcome()) for video in videos])
        place.write(layout.shard_report(shard, shards), report.encode())
        assert (finish(run, config, number) is None) == (shard < shards - 1)


def report_of(config: Config, shard: int, shards: int, ended: list[tuple[PlannedVideo, Outcome]]) -> ShardReport:
    made_with = stage_settings(config, "preprocess")
    metadata = {"width": 8.0, "height": 8.0, "fps": 25.0, "seconds": 1.0, "rotation": 0.0, "codec": "h264"}
    files = [
        RecordFile(
            name=layout.records(video.split, shard, shards, f"{number:08x}"),
            size=1,
            crc32c="00000000",
            split=video.split,
            records=[
                RecordEntry(
                    sample=f"{video.key}#0.0",
                    video=video.key,
                    group=video.group,
                    label=video.label,
                    track=0,
                    window=0,
                    offset=0,
                    length=1,
                )
            ],
        )
        for number, (video, outcome) in enumerate(ended)
        if outcome is Outcome.OK
    ]
    outcomes = [
        VideoOutcome(key=video.key, label=video.label, split=video.split, outcome=outcome, metadata=dict(metadata))
        for video, outcome in ended
    ]
    return ShardReport(
        settings=made_with,
        fingerprint=fingerprint(made_with),
        code_version="1",
        shard=shard,
        shards=shards,
        files=files,
        videos=outcomes,
    )


def objects_of(run: Storage) -> dict[str, bytes]:
    return {entry.name: run.read(entry.name) for entry in run.list()}


def planned(run: Storage) -> dict[str, PlannedVideo]:
    return {video.key: video for each in finished_rounds(run) for video in load_plan(each.storage)[1]}
