"""The plan of a run, made over real storage, local and gs://."""

from __future__ import annotations

import gzip
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.core import layout
from deepfake_detector.core.config import Config, Data
from deepfake_detector.core.errors import ConfigError, CorruptError, DataError, NotFoundError, WaitError
from deepfake_detector.core.layout import SPLITS
from deepfake_detector.core.outcomes import Outcome
from deepfake_detector.stages.plan import await_plan, decode_videos, encode_videos, load_plan, make_plan

PAIRS = [f"clip {number} é" for number in range(12)]


@pytest.fixture
def config(storage: Storage) -> Config:
    """Twelve pairs of real and fake files beside the run, one label without a file, one file without a label."""
    uri = f"{storage.uri.rpartition('/')[0]}/videos"
    videos = open_storage(uri)
    for pair in PAIRS:
        videos.write(f"real/{pair}.mp4", pair.encode())
        videos.write(f"fake/{pair}__swap.mp4", pair.encode() * 2)
    videos.write("stray.mov", b"stray")
    videos.write("more/manifest.csv", b"path,label\ngone.mp4,fake\n")
    return config_for(uri)


def config_for(uri: str, seed: int = 0) -> Config:
    return Config(data=Data(videos=uri, validation=0.25, test=0.25, shards=3, seed=seed))


def test_a_plan_holds_every_video_once_and_every_loss(storage: Storage, config: Config) -> None:
    listed: list[int] = []
    made = make_plan(storage, config, progress=listed.append)
    summary, videos = load_plan(storage)
    assert summary == made
    assert summary.found == [
        "manifest in more/manifest.csv: 0 real, 0 fake, 1 not there",
        "real/ and fake/ folders in ./: 12 real, 12 fake",
        "videos without a label: 1",
    ]
    assert (summary.groups, summary.shards, summary.warnings) == (12, 3, [])
    assert summary.counts == {
        "train": {"real": 6, "fake": 6},
        "validation": {"real": 3, "fake": 3},
        "test": {"real": 3, "fake": 3},
    }
    assert [(loss.key, loss.outcome) for loss in summary.lost] == [
        ("manifest/fake/gone", Outcome.MISSING_FILE),
        ("unlabelled/unknown/stray.mov", Outcome.UNLABELLED),
    ]
    assert [video.key for video in videos] == sorted(
        [f"folders/real/{pair}" for pair in PAIRS] + [f"folders/fake/{pair}__swap" for pair in PAIRS]
    )
    assert {video.original for video in videos if video.label} == {f"folders/real/{pair}" for pair in PAIRS}
    assert Counter((video.shard, video.label) for video in videos) == dict.fromkeys(
        [(shard, label) for shard in range(3) for label in (0, 1)], 4
    )
    assert listed[-1] == 26


def test_a_plan_is_byte_identical_when_it_is_made_again(storage: Storage, config: Config) -> None:
    make_plan(storage, config)
    before = {name: storage.read(name) for name in (layout.PLAN, layout.PLAN_VIDEOS)}
    storage.delete(layout.PLAN)
    storage.delete(layout.PLAN_VIDEOS)
    make_plan(storage, config)
    assert {name: storage.read(name) for name in before} == before
    assert before[layout.PLAN_VIDEOS][4:8] == bytes(4)  # gzip's time stamp (RFC 1952)


def test_a_plan_that_is_there_is_kept_though_the_videos_change(storage: Storage, config: Config) -> None:
    made = make_plan(storage, config)
    open_storage(config.data.videos).write("real/new.mp4", b"new")
    assert make_plan(storage, config) == made == await_plan(storage, config, 0)
    assert len(load_plan(storage)[1]) == 24


def test_what_a_killed_planner_left_is_replaced(storage: Storage, config: Config) -> None:
    storage.write(layout.PLAN_VIDEOS, b"from a listing of other videos")
    made = make_plan(storage, config)
    assert load_plan(storage)[0] == made


def test_planners_that_race_agree(storage: Storage, config: Config) -> None:
    together = threading.Barrier(4)

    def plan() -> bytes:
        together.wait()
        return make_plan(storage, config).encode()

    with ThreadPoolExecutor(4) as pool:
        made = {future.result() for future in [pool.submit(plan) for _ in range(4)]}
    assert made == {storage.read(layout.PLAN)}
    assert len(load_plan(storage)[1]) == 24


def test_other_settings_are_refused_by_name(storage: Storage, config: Config) -> None:
    make_plan(storage, config)
    other = config_for(config.data.videos, seed=1)
    for stage in (make_plan, lambda run, config: await_plan(run, config, 0)):
        with pytest.raises(ConfigError, match=r"data\.seed=1: expected 0, with which the plan .*summary\.json"):
            stage(storage, other)


def test_waiting_ends_with_the_plan_or_with_the_budget(storage: Storage, config: Config) -> None:
    with pytest.raises(WaitError, match=r"plan/summary\.json: not there after 0\.2 s: expected index 0"):
        await_plan(storage, config, 0.2)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(await_plan, storage, config, 60)
        made = make_plan(storage, config)
        assert waiting.result() == made


def test_a_changed_video_list_is_corrupt(storage: Storage, config: Config) -> None:
    make_plan(storage, config)
    videos = load_plan(storage)[1]
    storage.write(layout.PLAN_VIDEOS, encode_videos(videos[:-1]))
    with pytest.raises(CorruptError, match=r"plan/videos\.jsonl\.gz: .*expected \d+ bytes with crc32c [0-9a-f]{8}"):
        load_plan(storage)


def test_without_a_plan_there_is_nothing_to_load(storage: Storage) -> None:
    with pytest.raises(NotFoundError, match=r"plan/summary\.json"):
        load_plan(storage)


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param({}, "no such folder, or no files in it: expected DFDC folders", id="no-folder"),
        pytest.param({"real/a.mp4": b"", "real/b.mp4": b""}, "all 2 videos are real", id="one-class"),
        pytest.param({"real/a.mp4": b"", "fake/b.mp4": b""}, "2 groups .*: expected at least 3", id="two-groups"),
        pytest.param(
            {"x/metadata.json": b"{", "x/a.mp4": b""}, r"x/metadata\.json: expected valid JSON", id="metadata"
        ),
    ],
)
def test_videos_that_cannot_become_a_detector_leave_no_plan(
    tmp_path: Path, files: dict[str, bytes], expected: str
) -> None:
    run, videos = open_storage(str(tmp_path / "run")), open_storage(str(tmp_path / "videos"))
    for name, data in files.items():
        videos.write(name, data)
    with pytest.raises(DataError, match=expected):
        make_plan(run, config_for(videos.uri))
    assert list(run.list()) == []


@pytest.mark.gcs
def test_an_object_whose_name_is_no_path_is_not_planned(gcs_bucket: str) -> None:
    from google.cloud import storage as gcs

    videos = open_storage(f"{gcs_bucket}/videos")
    for number in range(4):
        videos.write(f"real/{number}.mp4", b"real")
        videos.write(f"fake/{number}.mp4", b"fake")
    bucket = gcs.Client(project=None).bucket(gcs_bucket.removeprefix("gs://"))
    bucket.blob("videos/real//9.mp4").upload_from_string(b"real")
    run = open_storage(f"{gcs_bucket}/run")
    summary = make_plan(run, config_for(videos.uri))
    assert [(loss.key, loss.outcome, loss.label) for loss in summary.lost] == [("folders/real/9", Outcome.BAD_NAME, 0)]
    assert len(load_plan(run)[1]) == 8


def test_no_videos_setting_is_an_error_before_anything_is_listed(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"data\.videos='': expected the folder"):
        make_plan(open_storage(str(tmp_path)), Config())


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(b"text", "expected gzip", id="not-gzip"),
        pytest.param(gzip.compress(b"{}" * 99)[:-9], "expected gzip", id="truncated"),
        pytest.param(gzip.compress(b"{}\n"), "line 1: key: expected a planned video", id="fields"),
        pytest.param(gzip.compress(b"[\n"), "line 1: .*expected a planned video", id="not-json"),
    ],
)
def test_a_broken_video_list_is_corrupt(data: bytes, expected: str) -> None:
    with pytest.raises(CorruptError, match=f"^here.*{expected}"):
        decode_videos(data, "here")


@pytest.mark.clips
def test_real_clips_are_ten_videos_in_closed_groups(real_clips: Path, tmp_path: Path) -> None:
    run = open_storage(str(tmp_path / "run"))
    summary = make_plan(run, config_for(str(real_clips)))
    _, videos = load_plan(run)
    assert Counter((video.dataset, video.label) for video in videos) == {
        ("dfdc", 0): 2,
        ("dfdc", 1): 2,
        ("ffpp", 0): 3,
        ("ffpp", 1): 3,
    }
    assert summary.lost == []
    assert summary.groups == 7
    by_key = {video.key: video for video in videos}
    pairs = [(video, by_key[video.original]) for video in videos if video.original]
    assert len(pairs) == 3
    assert all(fake.split == real.split and fake.group == real.group for fake, real in pairs)
    assert {video.split for video in videos} == set(SPLITS)
