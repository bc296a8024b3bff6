"""Source videos that cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.adapters.storage_gcs import GcsStorage
from deepfake_detector.core import layout
from deepfake_detector.core.config import Config, override
from deepfake_detector.core.errors import StorageError
from deepfake_detector.core.extraction import Extraction
from deepfake_detector.core.outcomes import Outcome
from deepfake_detector.core.recipes import resolve
from deepfake_detector.stages import predict, preprocess
from deepfake_detector.stages.plan import make_plan
from tests.integration.test_storage_gcs import answering


def faceless(path: Path, config: Config) -> Extraction:
    return Extraction(outcome=Outcome.NO_FACE if path.is_file() else Outcome.MISSING_FILE)


def planned(folder: Path) -> tuple[Storage, Config]:
    """A run of one shard of eight videos that were found in a folder, and are then in gs://bucket/videos."""
    for name in (f"{label}/{k}.mp4" for label in ("real", "fake") for k in range(4)):
        open_storage(str(folder / "videos")).write(name, name.encode())
    config = override(
        resolve("demo"), {"data.videos": str(folder / "videos"), "data.shards": 1, "operations.decoders": 1}, "test"
    )
    run = open_storage(str(folder / "run"))
    make_plan(run, config)
    return run, override(config, {"data.videos": "gs://bucket/videos"}, "test")


def test_an_object_that_disagrees_with_its_checksum_costs_its_video_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, remote = planned(tmp_path)

    def answer(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        return 200, {"X-Goog-Hash": "crc32c=AAAAAA=="} if "real%2F2.mp4" in path else {}, b"other bytes"

    monkeypatch.setattr(preprocess, "open_storage", lambda uri, patient: GcsStorage(uri, grace_seconds=0.3))
    with answering(answer, monkeypatch):
        report = preprocess.preprocess_shard(run, remote, 0, scratch=tmp_path / "scratch", extract=faceless)
    outcomes = {video.key: video for video in report.videos}
    bad = outcomes.pop("folders/real/2")
    assert bad.outcome is Outcome.DECODE_ERROR
    assert bad.detail.startswith("gs://bucket/videos/real/2.mp4: ")
    assert [video.outcome for video in outcomes.values()] == [Outcome.NO_FACE] * 7


def test_a_bucket_that_goes_away_loses_no_video(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One object is gone, which makes sure of the bucket; after three others that is gone, too."""
    run, remote = planned(tmp_path)
    had: set[str] = set()

    def answer(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        if len(had) == 3 or "real%2F1.mp4" in path:
            return 404, {}, b""
        if "mp4" in path:
            had.add(path)
        return 200, {"Content-Type": "application/json"}, b"{}"

    def hasty(uri: str, patient: bool) -> Storage:
        storage = GcsStorage(uri, outage_seconds=0.3, patient=patient)
        monkeypatch.setattr(storage, "_request_seconds", 60.0)  # an answer that comes late is another error
        return storage

    monkeypatch.setattr(preprocess, "open_storage", hasty)
    with answering(answer, monkeypatch), pytest.raises(StorageError, match="gs://bucket: no such bucket"):
        preprocess.preprocess_shard(run, remote, 0, scratch=tmp_path / "scratch", extract=faceless)
    assert not run.exists(layout.shard_report(0, 1))
    assert [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()] == []


def test_local_videos_that_cannot_be_read(tmp_path: Path) -> None:
    """What is gone for good is an outcome, what a disk in trouble refuses is not."""
    run, remote = planned(tmp_path)
    videos = tmp_path / "videos"
    config = override(remote, {"data.videos": str(videos)}, "test")
    for name in ("real/0.mp4", "real/1.mp4", "real/2.mp4"):
        (videos / name).unlink()
    (videos / "real/1.mp4").mkdir()
    (videos / "real/2.mp4").symlink_to("2.mp4")
    sick = videos / "fake/3.mp4"
    sick.unlink()
    sick.symlink_to("/proc/self/mem")  # begins with a page that nobody may read: EIO
    with pytest.raises(StorageError, match=r"fake/3\.mp4: Input/output error"):
        preprocess.preprocess_shard(run, config, 0, scratch=tmp_path / "scratch", extract=faceless)
    assert not run.exists(layout.shard_report(0, 1))
    sick.unlink()
    report = preprocess.preprocess_shard(run, config, 0, scratch=tmp_path / "scratch", extract=faceless)
    missing = {video.key for video in report.videos if video.outcome is Outcome.MISSING_FILE}
    assert missing == {"folders/real/0", "folders/real/1", "folders/real/2", "folders/fake/3"}


def test_a_bad_object_does_not_keep_others_from_being_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One whose checksum is wrong, one whose name is too long for a file, one that is gone since it was looked for."""
    videos = [f"gs://bucket/videos/{name}" for name in ("bad.mp4", f"long.{'n' * 300}", "gone.mp4", "text.mp4")]

    def answer(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        if not path.startswith("/download/"):
            return 200, {"Content-Type": "application/json"}, b"{}"
        wrong = {"X-Goog-Hash": "crc32c=AAAAAA=="} if "bad.mp4" in path else {}
        return 404 if "gone.mp4" in path else 200, wrong, b"other bytes"

    def open_hasty(uri: str) -> tuple[Storage, str]:
        folder, _, name = uri.rpartition("/")
        return GcsStorage(folder, grace_seconds=0.3), name

    monkeypatch.setattr(predict, "open_object", open_hasty)
    config = override(resolve("demo"), {"operations.decoders": 1}, "test")
    with answering(answer, monkeypatch):
        found = list(predict._extractions(videos, config, tmp_path))
    assert [name for name, _ in found] == videos
    outcomes = [extraction.outcome for _, extraction in found]
    assert outcomes == [Outcome.DECODE_ERROR, Outcome.NOT_A_VIDEO, Outcome.MISSING_FILE, Outcome.NOT_A_VIDEO]
    assert found[0][1].detail.startswith("gs://bucket/videos/bad.mp4: ")
    assert list(tmp_path.iterdir()) == []
