"""Source videos in a bucket that cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from deepfake_detector.adapters.storage import open_storage
from deepfake_detector.adapters.storage_gcs import GcsStorage
from deepfake_detector.core.config import Config, override
from deepfake_detector.core.extraction import Extraction
from deepfake_detector.core.outcomes import Outcome
from deepfake_detector.core.recipes import resolve
from deepfake_detector.stages import preprocess
from deepfake_detector.stages.plan import make_plan
from tests.integration.test_storage_gcs import answering


def faceless(path: Path, config: Config) -> Extraction:
    return Extraction(outcome=Outcome.NO_FACE if path.exists() else Outcome.MISSING_FILE)


def test_an_object_that_disagrees_with_its_checksum_costs_its_video_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (f"{label}/{k}.mp4" for label in ("real", "fake") for k in range(4)):
        open_storage(str(tmp_path / "videos")).write(name, name.encode())
    config = override(resolve("demo"), {"data.videos": str(tmp_path / "videos"), "data.shards": 1}, "test")
    run = open_storage(str(tmp_path / "run"))
    make_plan(run, config)
    remote = override(config, {"data.videos": "gs://bucket/videos"}, "test")

    def answer(method: str, path: str) -> tuple[int, dict[str, str], bytes]:
        return 200, {"X-Goog-Hash": "crc32c=AAAAAA=="} if "real%2F2.mp4" in path else {}, b"other bytes"

    monkeypatch.setattr(preprocess, "open_storage", lambda uri: GcsStorage(uri, grace_seconds=0.3))
    with answering(answer, monkeypatch):
        report = preprocess.preprocess_shard(run, remote, 0, scratch=tmp_path / "scratch", extract=faceless)
    outcomes = {video.key: video for video in report.videos}
    bad = outcomes.pop("folders/real/2")
    assert bad.outcome is Outcome.DECODE_ERROR
    assert bad.detail.startswith("gs://bucket/videos/real/2.mp4: ")
    assert [video.outcome for video in outcomes.values()] == [Outcome.NO_FACE] * 7
