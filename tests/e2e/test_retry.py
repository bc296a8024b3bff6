"""Lost videos of a finished run are tried again by a Job of their own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.e2e.conftest import SETTINGS, VIDEOS
from tests.e2e.namespace import Namespace, download

RUN = "gs://videos/runs/retried"


def objects(namespace: Namespace, folder: Path) -> dict[str, bytes]:
    """The run's, without its logs."""
    with namespace.bucket() as bucket:
        download(bucket, "runs/retried/", folder)
    found = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {name: data for name, data in found.items() if "logs/" not in name}


def test_lost_videos_are_tried_again(namespace: Namespace, videos: Path, tmp_path: Path) -> None:
    """Broken clips are replaced by good ones, a missing one is added, and the first round stays as it is."""
    folder = tmp_path / "set"
    shutil.copytree(videos, folder)
    namespace.run("upload", "--videos", str(folder), "--to", VIDEOS)
    common = (f"RUN={RUN}", f"IMAGE={namespace.image}")
    wanted = ("preprocess", f"VIDEOS={VIDEOS}", *common, "RECIPE=demo", "PODS=2", f"SET={' '.join(SETTINGS)}")
    said = namespace.make(*wanted, "RETRY_LOST=1", status=2)
    assert "expected preprocessing to finish before lost videos are tried again" in said.line("^error: ")
    assert "48 of 54 videos in 3 shards" in namespace.make(*wanted).text
    before = objects(namespace, tmp_path / "before")

    good = next(path for path in sorted(folder.rglob("*_real.mp4")) if "broken" not in path.name)
    broken = sorted(path for path in folder.rglob("broken_*.mp4") if path.stat().st_size < 1000)
    for path in [*broken, broken[0].with_name("broken_missing.mp4")]:
        shutil.copy(good, path)
    namespace.run("upload", "--videos", str(folder), "--to", VIDEOS)
    said = namespace.make("preprocess", *common, "RETRY_LOST=1")
    assert "created job preprocess-retried-" in said.text
    assert "tried again: missing_file 1, no_face 1, not_a_video 3" in said.text
    assert "not tried again: unlabelled 1 (had no label" in said.text
    won = int(said.line(r"retry 1: \d+ of \d+ videos are no longer lost").split()[2])
    assert won == len(broken) + 1
    assert f"{48 + won} of 54 videos in 6 shards" in said.text

    after = objects(namespace, tmp_path / "after")
    assert {name: after[name] for name in before if name != "config.json"} == {
        name: data for name, data in before.items() if name != "config.json"
    }
    added = after.keys() - before.keys()
    assert added
    assert all(name.startswith("retries/00001/") for name in added)
    assert json.loads(after["retries/00001/records/summary.json"])["videos"] == 54
    assert "preprocess: done" in namespace.make("preprocess", *common).text, "without RETRY_LOST it is finished"
    assert "retry 1   done: " in namespace.make("status", f"RUN={RUN}").text
