"""Groups, splits and shards: what must hold for every data set (hypothesis), and what must hold for awkward ones."""

from __future__ import annotations

import itertools
import random
import re
from collections import Counter, defaultdict
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deepfake_detector.core.config import Data
from deepfake_detector.core.datasets import Found, FoundVideo
from deepfake_detector.core.errors import DataError
from deepfake_detector.core.layout import SPLITS
from deepfake_detector.core.outcomes import PlannedVideo
from deepfake_detector.core.plan import (
    Plan,
    assign_shards,
    group_videos,
    plan_videos,
    require_closed,
    split_groups,
)


def video(name: str, label: int, **fields: object) -> FoundVideo:
    return FoundVideo(
        **{
            "key": f"set/m/{name}",
            "path": f"{name}.mp4",
            "size": 1,
            "label": label,
            "dataset": "set",
            "method": "m",
            **fields,
        }  # type: ignore[arg-type]
    )


def planned(name: str, split: str, group: str = "", original: str = "") -> PlannedVideo:
    return PlannedVideo(
        key=name,
        path=f"{name}.mp4",
        label=int(bool(original)),
        group=group or name,
        dataset="set",
        method="m",
        original=original,
        split=split,
        shard=0,
    )


def plan(videos: Sequence[FoundVideo], data: Data | None = None) -> Plan:
    return plan_videos(Found(list(videos), [], []), data or Data(), "videos")


def of_kinds(*kinds: str) -> list[FoundVideo]:
    """One group for each word: "rff" is a group of one real and two fake videos."""
    return [
        video(f"g{group}v{index}", int(letter == "f"), identities=(f"id:{group}",))
        for group, word in enumerate(kinds)
        for index, letter in enumerate(word)
    ]


def pieces(videos: Sequence[FoundVideo]) -> set[frozenset[str]]:
    """Connected components by flooding: the oracle for union-find."""
    holders = defaultdict(set)
    ties = {v.key: {v.key, *v.identities, *([v.original] if v.original else [])} for v in videos}
    for key, names in ties.items():
        for name in names:
            holders[name].add(key)
    found, seen = set(), set()
    for start in ties:
        if start in seen:
            continue
        piece, frontier = set(), [start]
        while frontier:
            key = frontier.pop()
            if key not in piece:
                piece.add(key)
                frontier += [other for name in ties[key] for other in holders[name]]
        seen |= piece
        found.add(frozenset(piece))
    return found


@st.composite
def data_sets(draw: st.DrawFn) -> list[FoundVideo]:
    """Reals with an id each, and fakes with an id pair, an original that may be absent, both, or neither."""
    ids, size = st.integers(0, 40), st.integers(0, 99)
    reals = [video(f"r{n}", 0, identities=(f"id:{n}",), size=draw(size)) for n in range(draw(st.integers(1, 25)))]
    fakes = [
        video(
            f"f{n}",
            1,
            identities=tuple(f"id:{name}" for name in draw(st.lists(ids, max_size=2))),
            original=draw(st.sampled_from(["", reals[draw(st.integers(0, len(reals) - 1))].key])),
            size=draw(size),
        )
        for n in range(draw(st.integers(1, 40)))
    ]
    return draw(st.permutations(reals + fakes))


WORDS = re.compile("real|fake")

settings = st.builds(
    Data,
    validation=st.sampled_from([0.05, 0.15, 0.3]),
    test=st.sampled_from([0.05, 0.15, 0.4]),
    seed=st.integers(0, 9),
    shards=st.integers(1, 100),
)


@given(data_sets())
def test_groups_are_the_connected_components(videos: list[FoundVideo]) -> None:
    members = defaultdict(set)
    for key, group in group_videos(videos).items():
        members[group].add(key)
    assert {frozenset(keys) for keys in members.values()} == pieces(videos)


@given(data_sets(), settings, st.randoms(use_true_random=False))
def test_any_data_set_is_planned_without_leaks_or_refused(
    videos: list[FoundVideo], data: Data, shuffle: random.Random
) -> None:
    components = pieces(videos)
    labels = {v.key: v.label for v in videos}
    kinds = Counter(tuple(sorted({labels[key] for key in keys})) for keys in components)
    # Training can have both classes, and each other split a group, unless there are too few groups for that.
    possible = len(components) >= 3 + (kinds[0, 1] == 0)
    try:
        result = plan(videos, data)
    except DataError:
        assert not possible
        return
    assert possible
    assert [v.key for v in result.videos] == sorted(v.key for v in videos)
    split_of = {v.key: v.split for v in result.videos}
    assert all(len({split_of[key] for key in keys}) == 1 for keys in components)
    assert result.groups == len(components)
    assert all(0 <= v.shard < data.shards for v in result.videos)
    assert set(split_of.values()) == set(SPLITS)
    assert {v.label for v in result.videos if v.split == "train"} == {0, 1}
    shuffled = list(videos)
    shuffle.shuffle(shuffled)
    assert plan(shuffled, data) == result


@given(st.lists(st.sampled_from(["r", "f", "rf", "rff", "rrf", "ffff"]), min_size=3, max_size=7), st.integers(0, 3))
def test_no_better_set_of_splits_with_both_classes_exists(kinds: list[str], seed: int) -> None:
    """Against every way to deal out up to seven groups: training first, then validation, then the test."""

    def rank(choice: Sequence[str]) -> tuple[int, ...]:
        letters: dict[str, set[str]] = {split: set() for split in SPLITS}
        for split, kind in zip(choice, kinds, strict=True):
            letters[split].update(kind)
        if not all(letters.values()) or len(letters["train"]) < 2:
            return (0,)
        both = list(itertools.takewhile(lambda split: len(letters[split]) == 2, SPLITS))
        return (1, len(both))

    best = max(rank(choice) for choice in itertools.product(SPLITS, repeat=len(kinds)))
    sizes = {f"g{n}": (kind.count("r"), kind.count("f")) for n, kind in enumerate(kinds)}
    try:
        chosen = split_groups(sizes, Data(seed=seed), "videos")
    except DataError:
        assert best == (0,)
    else:
        assert rank([chosen[f"g{n}"] for n in range(len(kinds))]) == best


@given(st.integers(60, 200), st.sampled_from([(1, 8), (4, 6), (1, 1)]), settings, st.randoms(use_true_random=False))
def test_splits_have_the_shares_that_were_asked_for(
    number: int, largest: tuple[int, int], data: Data, random: random.Random
) -> None:
    """Of each label, to within the largest group."""
    drawn = [(random.randint(0, largest[0]), random.randint(0, largest[1])) for _ in range(number)]
    groups = {f"g{n}": (reals or int(not fakes), fakes) for n, (reals, fakes) in enumerate([(1, 1), *drawn])}
    chosen = split_groups(groups, data, "videos")
    for label, most in enumerate(largest):
        total = sum(size[label] for size in groups.values())
        for split, share in (("validation", data.validation), ("test", data.test)):
            number = sum(size[label] for name, size in groups.items() if chosen[name] == split)
            assert abs(number - share * total) <= most


def test_single_videos_are_split_to_the_nearest_whole_number() -> None:
    result = plan(of_kinds(*["r"] * 40, *["f"] * 160), Data(validation=0.15, test=0.25))
    assert result.counts == {
        "train": {"real": 24, "fake": 96},
        "validation": {"real": 6, "fake": 24},
        "test": {"real": 10, "fake": 40},
    }
    assert result.warnings == []


def test_another_seed_is_another_split() -> None:
    videos = of_kinds(*["rf"] * 40)
    splits = [{v.key: v.split for v in plan(videos, Data(seed=seed)).videos} for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(0, 10**9)), max_size=120),
    st.integers(1, 40),
)
def test_shards_are_balanced_by_label_and_number(entries: list[tuple[int, int]], shards: int) -> None:
    videos = [video(f"v{n}", label, size=size) for n, (label, size) in enumerate(entries)]
    assigned = assign_shards(videos, shards)
    assert assigned.keys() == {v.key for v in videos}
    for wanted in ({0}, {1}, {0, 1}):
        numbers = Counter(assigned[v.key] for v in videos if v.label in wanted)
        per_shard = [numbers[shard] for shard in range(shards)]
        assert max(per_shard) - min(per_shard) <= 1
        assert sum(per_shard) == sum(v.label in wanted for v in videos)


def test_shards_are_balanced_by_bytes() -> None:
    videos = [video(f"v{n:02}", n % 2, size=(n // 2 + 1) * 100) for n in range(32)]
    assigned = assign_shards(videos, 4)
    loads = [sum(v.size for v in videos if assigned[v.key] == shard) for shard in range(4)]
    assert max(loads) - min(loads) <= 400


@pytest.mark.parametrize(
    ("kinds", "expected"),
    [
        pytest.param(["r"] * 5, ["all 5 videos are real", "expected real and fake"], id="all-real"),
        pytest.param(["ff", "f"], ["all 3 videos are fake"], id="all-fake"),
        pytest.param(["rf", "rf"], ["2 groups", "4 videos", "at least 3", "train, validation, test"], id="two-groups"),
        pytest.param(["rfffr"], ["1 groups", "5 videos"], id="one-group"),
        pytest.param(["r", "r", "f"], ["2 of real videos only, 1 of fake ones only, 0 of both"], id="train-one-class"),
    ],
)
def test_no_detector_can_come_of_it(kinds: list[str], expected: list[str]) -> None:
    with pytest.raises(DataError) as caught:
        plan(of_kinds(*kinds))
    message = str(caught.value)
    assert message.startswith("videos: ")
    assert "\n" not in message
    for part in expected:
        assert part in message


@pytest.mark.parametrize(
    ("kinds", "train", "warnings"),
    [
        pytest.param(["rf"] * 3, {"real": 1, "fake": 1}, [], id="three-pairs"),
        pytest.param(
            ["rf", "r", "f"],
            {"real": 1, "fake": 1},
            ["split validation has ? videos only (1)", "split test has ? videos only (1)"],
            id="the-only-mixed-group-is-for-training",
        ),
        pytest.param(
            ["r", "f", "f", "f"],
            {"real": 1, "fake": 1},
            ["split validation has ? videos only (1)", "split test has ? videos only (1)"],
            id="the-only-real-video-is-for-training",
        ),
        pytest.param(
            ["r", "r", "f", "f", "f"],
            {"real": 1, "fake": 1},
            ["split test has ? videos only (1)"],
            id="validation-before-test",
        ),
    ],
)
def test_few_groups_go_on_with_warnings(kinds: list[str], train: dict[str, int], warnings: list[str]) -> None:
    for seed in range(5):
        result = plan(of_kinds(*kinds), Data(seed=seed))
        assert result.counts["train"] == train
        one_class = [warning for warning in result.warnings if "only" in warning]
        assert sorted(WORDS.sub("?", line.split(":")[0]) for line in one_class) == sorted(warnings)


def test_a_split_far_from_its_share_is_warned_of() -> None:
    result = plan(of_kinds("r" * 50 + "f" * 50, *["rf"] * 10), Data(validation=0.3, test=0.3))
    assert result.counts["train"] == {"real": 50, "fake": 50}
    assert "split train has 100 of 120 videos (83%): 40% was asked for" in result.warnings


def official(*splits: str) -> list[FoundVideo]:
    return [video(f"v{n}", n % 2, split=split, identities=(f"id:{n // 2}",)) for n, split in enumerate(splits)]


def test_splits_of_the_data_set_are_kept() -> None:
    splits = ["test", "test", "train", "train", "train", "train", "validation", "validation"]
    result = plan(official(*splits), Data(validation=0.6, test=0.1))
    assert [v.split for v in result.videos] == splits
    assert result.warnings == []


@pytest.mark.parametrize(
    ("splits", "expected"),
    [
        pytest.param(["train", "test"], "group id:0: v0.mp4 in train, v1.mp4 in test", id="group-crosses"),
        pytest.param(["train", "train", "test", ""], "v3.mp4: no split, but v0.mp4 has train", id="not-all"),
        pytest.param(["train", "train", "test", "test"], "no video in split validation", id="empty-split"),
        pytest.param(["train"], "all 1 videos are real", id="one-class"),
    ],
)
def test_splits_of_the_data_set_that_cannot_be_kept(splits: list[str], expected: str) -> None:
    with pytest.raises(DataError, match=f"^videos: .*{expected}"):
        plan(official(*splits))


def test_training_needs_both_classes_in_fixed_splits_too() -> None:
    videos = [
        video(f"v{n}", int(n > 1), split=split) for n, split in enumerate(["train", "train", "validation", "test"])
    ]
    with pytest.raises(DataError, match="no fake video in split train: expected both classes"):
        plan(videos)


@pytest.mark.parametrize(
    ("videos", "expected"),
    [
        pytest.param(
            [planned("a", "train", "g"), planned("b", "test", "g")],
            "group g: a.mp4 in train, b.mp4 in test",
            id="group",
        ),
        pytest.param(
            [planned("r", "train"), planned("f", "test", original="r")],
            "f.mp4 in test: expected in train",
            id="original",
        ),
        pytest.param([planned("a", "train"), planned("a", "train")], "key a: planned twice", id="twice"),
    ],
)
def test_a_leak_is_refused_where_the_plan_is_made(videos: list[PlannedVideo], expected: str) -> None:
    with pytest.raises(DataError, match=expected):
        require_closed(videos, "videos")


def test_a_closed_plan_passes() -> None:
    require_closed(
        [planned("r", "train", "g"), planned("f", "train", "g", "r"), planned("x", "test", "x", "gone")], "videos"
    )
