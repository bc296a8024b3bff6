"""Rounds for lost videos: what is tried again, without a leak and with one outcome for every video."""

from __future__ import annotations

import random
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepfake_detector.core import layout
from deepfake_detector.core.config import Config, Data, fingerprint, stage_settings
from deepfake_detector.core.datasets import Found, FoundVideo, find_videos
from deepfake_detector.core.layout import SPLITS
from deepfake_detector.core.markers import RecordFile, RecordsSummary, ShardReport
from deepfake_detector.core.outcomes import Outcome, PlannedVideo, VideoOutcome
from deepfake_detector.core.plan import group_videos, require_closed
from deepfake_detector.core.retry import (
    BETWEEN,
    NEVER_AGAIN,
    NOT_THERE,
    Retry,
    describe,
    latest,
    plan_retry,
    shards_for,
    worth_trying,
)
from deepfake_detector.core.sequences import RecordEntry
from deepfake_detector.stages.summary import summarise

TRIED = [outcome for outcome in Outcome if outcome not in NEVER_AGAIN]


def video(name: str, label: int = 0, **fields: object) -> FoundVideo:
    usual = {"key": name, "path": f"{name}.mp4", "size": 1, "label": label, "dataset": "set", "method": "m"}
    return FoundVideo(**{**usual, **fields})  # type: ignore[arg-type]


def planned(name: str, split: str = "train", group: str = "", label: int = 0) -> PlannedVideo:
    return PlannedVideo(
        key=name,
        path=f"{name}.mp4",
        label=label,
        group=group or name,
        dataset="set",
        method="m",
        split=split,
        shard=0,
    )


def outcome(key: str, what: Outcome, label: int | None = 0, split: str = "") -> VideoOutcome:
    metadata: dict[str, float | str] = {"codec": "h264"} if what is Outcome.OK else {}
    return VideoOutcome(key=key, label=label, split=split, outcome=what, metadata=metadata, path=f"{key}.mp4")


def retry_of(
    videos: Sequence[PlannedVideo], outcomes: Sequence[VideoOutcome], found: Sequence[FoundVideo] = (), shards: int = 2
) -> Retry:
    return plan_retry({each.key: each for each in videos}, latest(outcomes), found, shards, Data(), "videos")


def summary_of(**outcomes: int) -> RecordsSummary:
    return RecordsSummary.model_construct(outcomes={name: {"real": count} for name, count in outcomes.items()})


@pytest.mark.parametrize("what", list(Outcome))
def test_planned_videos_are_tried_again_whatever_they_were_lost_by(what: Outcome) -> None:
    retry = retry_of([planned("a", "test", "g")], [outcome("a", what, split="test")])
    expected = [] if what is Outcome.OK else [planned("a", "test", "g")]
    assert (retry.videos, retry.left) == (expected, [])


def test_the_last_outcome_decides() -> None:
    videos = [planned("a"), planned("b")]
    first = [outcome("a", Outcome.CRASHED), outcome("b", Outcome.OK)]
    assert [each.key for each in retry_of(videos, first).videos] == ["a"]
    assert retry_of(videos, [*first, outcome("a", Outcome.OK)]) == Retry([], [])


MISSING = outcome("x", Outcome.MISSING_FILE)


@pytest.mark.parametrize(
    ("lost", "found", "why"),
    [
        pytest.param(MISSING, [], NOT_THERE, id="still missing"),
        pytest.param(outcome("x", Outcome.BAD_NAME), [video("x")], NEVER_AGAIN[Outcome.BAD_NAME], id="bad name"),
        pytest.param(
            outcome("x", Outcome.UNLABELLED, None), [video("x")], NEVER_AGAIN[Outcome.UNLABELLED], id="no label then"
        ),
        pytest.param(MISSING, [video("x", identities=("p", "q"))], BETWEEN, id="ties two splits together"),
        pytest.param(MISSING, [video("x", identities=("p",), split="test")], BETWEEN, id="fixed to another split"),
        pytest.param(MISSING, [video("x", label=1)], BETWEEN, id="another label now"),
    ],
)
def test_what_is_not_tried_again_says_why(lost: VideoOutcome, found: list[FoundVideo], why: str) -> None:
    videos = [planned("a", "train", "p"), planned("b", "test", "q")]
    outcomes = [outcome("a", Outcome.OK), outcome("b", Outcome.OK), lost]
    retry = retry_of(videos, outcomes, found)
    assert retry.videos == []
    assert [(each.key, each.outcome, each.detail) for each in retry.left] == [("x", lost.outcome, why)]
    assert describe(retry, latest(outcomes)) == ["tried again: none", f"not tried again: {lost.outcome} 1 ({why})"]


@pytest.mark.parametrize(
    ("fields", "split", "group"),
    [
        pytest.param({"identities": ("q",)}, "test", "q", id="with those of its source"),
        pytest.param({"original": "b"}, "test", "q", id="with its original"),
        pytest.param({"identities": ("z",), "split": "validation"}, "validation", "z", id="where the data set has it"),
    ],
)
def test_a_file_that_came_since_joins_its_group(fields: dict[str, object], split: str, group: str) -> None:
    videos = [planned("a", "train", "p"), planned("b", "test", "q")]
    outcomes = [outcome("a", Outcome.OK), outcome("b", Outcome.OK), MISSING, outcome("y", Outcome.MISSING_FILE)]
    (came,) = retry_of(videos, outcomes, [video("x", **fields)]).videos
    assert (came.key, came.path, came.split, came.group) == ("x", "x.mp4", split, group)


def find(*names: str, labels: Sequence[str]) -> Found:
    """The files and a manifest, whose rows `labels` are."""
    manifest = "\n".join(["path,label,group", *labels]).encode()
    return find_videos({"labels.csv": len(manifest), **dict.fromkeys(names, 1)}, lambda _: manifest, "videos")


MISSED = "one/x.mp4,fake,p"


@pytest.mark.parametrize(
    ("came", "labels", "tried"),
    [
        pytest.param(["one/x.mp4"], [MISSED], "one/x.mp4", id="alone"),
        pytest.param(["one/x.mp4", "two/x.mp4"], [MISSED, "two/x.mp4,fake,p"], "one/x.mp4", id="with a namesake"),
        pytest.param(["one/x.mp4", "two/b.mp4"], [MISSED, "two/b.mp4,fake,p"], "one/x.mp4", id="a planned one's too"),
        pytest.param(["two/x.mp4"], [MISSED, "two/x.mp4,fake,p"], "", id="only a namesake"),
        pytest.param(["two/x.mp4"], ["two/x.mp4,fake,p"], "", id="a namesake in its place"),
    ],
)
def test_a_file_that_came_is_known_by_its_path(came: list[str], labels: list[str], tried: str) -> None:
    """A key holds as much of a path as tells the files of one listing apart."""
    there, rows = ["a.mp4", "b.mp4"], ["a.mp4,real,p", "b.mp4,fake,q"]
    before = find(*there, labels=[*rows, MISSED])
    splits = {"a.mp4": "test", "b.mp4": "train"}
    videos = [
        replace(planned(each.key, splits[each.path], each.identities[0], each.label), path=each.path)
        for each in before.videos
    ]
    (lost,) = before.lost
    found = find(*there, *came, labels=[*rows, *labels]).videos
    retry = retry_of(videos, [*(outcome(each.key, Outcome.OK) for each in videos), lost], found)
    expected = [(lost.key, tried, "test", "group:p")] if tried else []
    assert [(each.key, each.path, each.split, each.group) for each in retry.videos] == expected
    assert [each.detail for each in retry.left] == ([] if tried else [NOT_THERE])


@pytest.mark.parametrize(
    ("found", "tried"),
    [
        pytest.param([video("x", path="far/x.mp4")], "far/x.mp4", id="there"),
        pytest.param([video("y", path="far/x.mp4")], "", id="another key"),
        pytest.param([video("x", path="a.mp4")], "", id="a planned file under its key"),
    ],
)
def test_a_file_that_an_earlier_version_missed_is_known_by_its_key(found: list[FoundVideo], tried: str) -> None:
    """Its plan does not tell the path."""
    retry = retry_of([planned("a")], [outcome("a", Outcome.OK), replace(MISSING, path="")], found)
    assert [(each.key, each.path) for each in retry.videos] == ([("x", tried)] if tried else [])
    assert [each.detail for each in retry.left] == ([] if tried else [NOT_THERE])


@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_a_path_is_known_in_either_form(form: Literal["NFC", "NFD"]) -> None:
    missing = outcome("x\u00e9", Outcome.MISSING_FILE)
    name = unicodedata.normalize(form, missing.path)
    (came,) = retry_of([], [missing], [video("another", path=name)]).videos
    assert (came.key, came.path) == (missing.key, name)


def test_a_group_of_its_own_is_drawn_a_split_by_the_shares() -> None:
    missing = [outcome(f"x{k}", Outcome.MISSING_FILE) for k in range(2000)]
    retry = retry_of([], missing, [video(each.key) for each in missing], shards=7)
    counts = Counter(each.split for each in retry.videos)
    for split, share in {"train": 0.7, "validation": 0.15, "test": 0.15}.items():
        assert abs(counts[split] / 2000 - share) < 0.03, counts


@pytest.mark.parametrize(
    ("counts", "worth", "shards"),
    [
        pytest.param({"ok": 9}, 0, 0, id="nothing lost"),
        pytest.param({"ok": 9, "unlabelled": 2, "bad_name": 1}, 0, 0, id="nothing that may be tried"),
        pytest.param({"ok": 9, "no_face": 2, "missing_file": 1, "unlabelled": 5}, 3, 3, id="fewer than shards"),
        pytest.param({"timeout": 70}, 70, 4, id="as many shards as before"),
    ],
)
def test_shards_are_known_from_the_summary(counts: dict[str, int], worth: int, shards: int) -> None:
    assert worth_trying(summary_of(**counts)) == worth
    assert shards_for(summary_of(**counts), Data(shards=4)) == shards


@st.composite
def collections(draw: st.DrawFn) -> tuple[list[FoundVideo], set[str]]:
    """Videos with sources in common, and the keys of those whose files are missing at first."""
    names = [f"v{k}" for k in range(draw(st.integers(1, 14)))]
    sources = st.lists(st.sampled_from("abcdefgh"), max_size=2, unique=True).map(tuple)
    videos = [video(name, draw(st.integers(0, 1)), identities=draw(sources)) for name in names]
    return videos, {name for name in names if draw(st.booleans())}


@given(collections(), st.integers(1, 5), st.randoms(use_true_random=False), st.integers(0, 4), st.booleans())
def test_any_sequence_of_rounds(
    collection: tuple[list[FoundVideo], set[str]], shards: int, chance: random.Random, rounds: int, pathless: bool
) -> None:
    """Every video has one outcome, no source is in two splits, and nothing that was settled changes.

    pathless: the first plan is an earlier version's.
    """
    videos, missing = collection
    there = [each for each in videos if each.key not in missing]
    groups = group_videos(there)
    splits = {group: chance.choice(SPLITS) for group in sorted(set(groups.values()))}
    so_far = {each.key: planned(each.key, splits[groups[each.key]], groups[each.key], each.label) for each in there}
    reports = [[outcome(key, chance.choice(TRIED)) for key in so_far]]
    lost_by_plan = [outcome(each.key, Outcome.MISSING_FILE, each.label) for each in videos if each.key in missing]
    if pathless:
        lost_by_plan = [replace(each, path="") for each in lost_by_plan]
    for _ in range(rounds):
        before = dict(so_far)
        outcomes = latest([*lost_by_plan, *(each for report in reports for each in report)])
        came = {key for key in missing if chance.random() < 0.5}
        found = [each for each in videos if each.key in came or each.key in so_far]
        retry = plan_retry(so_far, outcomes, found, shards, Data(), "videos")
        shuffled = dict(chance.sample(sorted(outcomes.items()), len(outcomes)))
        again = plan_retry(so_far, shuffled, chance.sample(found, len(found)), shards, Data(), "videos")
        assert again == retry

        tried, left = {each.key: each for each in retry.videos}, {each.key for each in retry.left}
        assert len(tried) == len(retry.videos)
        assert not tried.keys() & left
        assert tried.keys() | left == {key for key, each in outcomes.items() if each.outcome is not Outcome.OK}
        for label in (0, 1):
            dealt = Counter(each.shard for each in retry.videos if each.label == label)
            assert not dealt or max(dealt.values()) - min(dealt[shard] for shard in range(shards)) <= 1
        so_far |= tried
        for key, each in before.items():
            assert (so_far[key].split, so_far[key].group, so_far[key].path) == (each.split, each.group, each.path)
        require_closed(so_far.values(), "here")
        reports.append([outcome(key, chance.choice(TRIED)) for key in tried])
    of_source = defaultdict(set)
    for each in videos:
        if each.key in so_far:
            for source in each.identities:
                of_source[source].add(so_far[each.key].split)
    assert all(len(found_in) == 1 for found_in in of_source.values())
    assert {*so_far, *missing} == {each.key for each in videos}


def report_of(shard: int, shards: int, videos: Sequence[VideoOutcome]) -> ShardReport:
    settings = stage_settings(Config(), "preprocess")
    entries = [
        RecordEntry(sample=f"{each.key}#0.0", video=each.key, group="g", label=0, track=0, window=0, offset=0, length=1)
        for each in videos
        if each.outcome is Outcome.OK
    ]
    file = RecordFile(name="x", size=1, crc32c="00000000", split="train", records=entries)
    return ShardReport(
        settings=settings,
        fingerprint=fingerprint(settings),
        code_version="1",
        shard=shard,
        shards=shards,
        files=[file],
        videos=list(videos),
    )


@settings(deadline=None)  # the first call imports scikit-learn
@given(st.lists(st.dictionaries(st.sampled_from("abcdef"), st.sampled_from(TRIED)), min_size=1, max_size=4))
def test_totals_count_every_video_once(rounds: list[dict[str, Outcome]]) -> None:
    """Whatever the rounds were: the sum over outcomes is the number of videos, and the last outcome is the one."""
    gone = outcome("z", Outcome.UNLABELLED, None)
    missing = outcome("a", Outcome.MISSING_FILE)
    reports = [report_of(0, 1, [outcome(key, what) for key, what in each.items()]) for each in rounds]
    summary = summarise(reports, [missing, gone], Config())
    last: dict[str, Outcome] = {"a": Outcome.MISSING_FILE}
    for each in rounds:
        last |= each
    expected = Counter(map(str, last.values()))
    assert {name: sum(labels.values()) for name, labels in summary.outcomes.items()} == {**expected, "unlabelled": 1}
    assert summary.videos == len(last) + 1
    assert summary.shards == len(rounds)
    assert summary.lost_fraction == pytest.approx(1 - expected["ok"] / len(last))


def test_no_two_rounds_share_a_folder() -> None:
    names = [layout.retry(number) for number in (1, 2, 10, 99_999)]
    assert names == sorted(names)
    for one, other in combinations(names, 2):
        assert not other.startswith(one)
