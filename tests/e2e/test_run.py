"""From a folder of videos to a verdict, as a user goes: undisturbed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.e2e.conftest import RUN, VIDEOS, Undisturbed
from tests.e2e.namespace import index_of, kubectl

# Warnings that a run may cause, and why each of them is harmless.
EXPLAINED = {
    "Unhealthy": "the object store's readiness probe, asked before the server listens",
}


def test_videos_become_records_and_a_model(undisturbed: Undisturbed) -> None:
    assert re.search(r"56 files, .* checksums verified", undisturbed.upload.text)
    assert "preprocess: done" in undisturbed.preprocess.text
    assert "48 of 54 videos in 3 shards" in undisturbed.preprocess.text
    assert f"next: make train RUN={RUN}" in undisturbed.preprocess.text
    assert f"train: done, {RUN}/model/" in undisturbed.train.text
    assert re.search(r"test: AUC \d\.\d{4}", undisturbed.train.text)
    assert f"next: make pull-model RUN={RUN}" in undisturbed.train.text
    for stage, pods in (("preprocess", 3), ("train", 2)):
        assert sorted(map(index_of, undisturbed.namespace.pods(stage))) == list(range(pods)), "no pod was replaced"


def test_the_first_lines_say_where_the_work_is_sent(undisturbed: Undisturbed) -> None:
    context = kubectl("config", "current-context").strip()
    where = f"context {context}, namespace {undisturbed.namespace.name}, image {undisturbed.namespace.image}"
    for said in (undisturbed.preprocess, undisturbed.train):
        assert said.text.splitlines()[0] == where


def test_the_model_is_pulled_and_judges_videos(undisturbed: Undisturbed, videos: Path, tmp_path: Path) -> None:
    model = tmp_path / "model"
    said = undisturbed.namespace.make("pull-model", f"RUN={RUN}", f"TO={model}")
    assert "checksums verified" in said.text
    clips = [str(next(videos.rglob(f"*_{kind}.mp4"))) for kind in ("real", "fake")]
    judged = undisturbed.namespace.run_alone("predict", "--model", str(model), "--json", *clips)
    verdicts = json.loads(judged.text[judged.text.index("{") :])
    assert [Path(video["video"]).name for video in verdicts["videos"]] == [Path(clip).name for clip in clips]
    assert all(0 < video["probability"] < 1 for video in verdicts["videos"])


def test_every_pod_was_admitted_where_restricted_is_enforced(undisturbed: Undisturbed) -> None:
    namespace = undisturbed.namespace
    labels = json.loads(kubectl("get", "namespace", namespace.name, "-o", "json"))["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    with pytest.raises(AssertionError, match="violates PodSecurity"):
        namespace.kubectl("run", "privileged", "--image=busybox:1.35", "--privileged", "--dry-run=server")
    assert not [event for event in namespace.objects("events") if event["reason"] == "FailedCreate"]


def test_no_warning_goes_unexplained(undisturbed: Undisturbed) -> None:
    warnings = [event for event in undisturbed.namespace.objects("events") if event["type"] == "Warning"]
    unexplained = [f"{event['reason']}: {event['message']}" for event in warnings if event["reason"] not in EXPLAINED]
    assert unexplained == []


def test_the_display_watches_and_does_not_poll(undisturbed: Undisturbed) -> None:
    line = undisturbed.train.line(r"\d+ API requests in \d+ s")
    requests, seconds = map(int, re.findall(r"(\d+) API requests in (\d+) s", line)[0])
    print(f"\nlive display: {requests} API requests in {seconds} s")
    assert requests <= seconds


def test_it_is_told_where_the_time_to_the_first_step_went(undisturbed: Undisturbed) -> None:
    """Printed, with its ratio: what a machine that does nothing else reaches is for people to judge."""
    lines = undisturbed.train.text.splitlines()
    begin = lines.index(undisturbed.train.line("from the command to the first training step"))
    end = lines.index(undisturbed.train.line("to the first step,"))
    table = lines[begin : end + 1]
    print("\n" + "\n".join(table))
    seconds = [float(re.findall(r"([\d.]+) s ", line)[0]) for line in table[1:]]
    needed = sum(number for number, line in zip(seconds, table[1:-1], strict=False) if "*" in line)
    assert seconds[-1] == pytest.approx(sum(seconds[:-1]), abs=0.1 * len(seconds))
    ratio, told = map(float, re.findall(r"([\d.]+) x the ([\d.]+) s", table[-1])[0])
    assert told == pytest.approx(needed, abs=0.1 * len(seconds))
    assert ratio == pytest.approx(seconds[-1] / needed, abs=0.1)


def test_the_same_command_again_finds_it_done(undisturbed: Undisturbed) -> None:
    for target in ("train", "export"):
        said = undisturbed.namespace.make(target, f"RUN={RUN}", f"IMAGE={undisturbed.namespace.image}")
        assert "created job" not in said.text
        assert f"{target}: done, {RUN}/model/" in said.text


def test_other_settings_are_refused_by_name(undisturbed: Undisturbed) -> None:
    said = undisturbed.namespace.make(
        *("train", f"RUN={RUN}", f"IMAGE={undisturbed.namespace.image}", "SET=train.learning_rate=0.5"), status=2
    )
    line = said.line("^error: ")
    assert "train.learning_rate=0.5: expected 0.001" in line
    said = undisturbed.namespace.make(
        *("preprocess", f"VIDEOS={VIDEOS}", f"RUN={RUN}", f"IMAGE={undisturbed.namespace.image}"),
        "SET=faces.size=64",
        status=2,
    )
    assert "faces.size=64: expected 32" in said.line("^error: ")
