"""Which videos go to which split and shard: a pure function of the videos, the settings and the seed.

A detector that has seen a person, or the real video behind a fake, in training is not tested on it but asked to
remember it. So videos are grouped by source identity first, and a group never crosses splits.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from deepfake_detector.core.config import Data
from deepfake_detector.core.datasets import Found, FoundVideo
from deepfake_detector.core.errors import DataError
from deepfake_detector.core.layout import SPLITS
from deepfake_detector.core.outcomes import PlannedVideo

NAMES = ("real", "fake")  # by label
SHARE_TOLERANCE = 0.05  # a split may be off by this share of all videos, or by one, before people are warned


@dataclass(frozen=True)
class Plan:
    """videos: sorted by key; groups: how many; counts: split -> "real" or "fake" -> videos."""

    videos: list[PlannedVideo]
    groups: int
    counts: dict[str, dict[str, int]]
    warnings: list[str]


def plan_videos(found: Found, data: Data, where: str) -> Plan:
    """Group, split and shard the videos that `find_videos` found; independent of their order.

    where: the videos' folder, for messages. Raises DataError when no detector can come of it: one class only,
    fewer groups than splits, a training split that cannot have both classes, fixed splits that cross a group.
    """
    videos = sorted(found.videos, key=lambda video: video.key)
    _require_both_classes(videos, where)
    groups = group_videos(videos)
    official = _official_splits(videos, where)
    if official:
        splits = official
    else:
        by_group = split_groups(_sizes(videos, groups), data, where)
        splits = {video.key: by_group[groups[video.key]] for video in videos}
    shards = assign_shards(videos, data.shards)
    planned = [
        PlannedVideo(
            key=video.key,
            path=video.path,
            label=video.label,
            group=groups[video.key],
            dataset=video.dataset,
            method=video.method,
            original=video.original,
            split=splits[video.key],
            shard=shards[video.key],
        )
        for video in videos
    ]
    require_closed(planned, where)
    counts = count_videos(planned)
    _require_usable(counts, where)
    return Plan(planned, len(set(groups.values())), counts, list(_warnings(counts, {} if official else _shares(data))))


def count_videos(videos: Iterable[PlannedVideo]) -> dict[str, dict[str, int]]:
    """split -> "real" or "fake" -> videos."""
    counts = {split: dict.fromkeys(NAMES, 0) for split in SPLITS}
    for video in videos:
        counts[video.split][NAMES[video.label]] += 1
    return counts


def group_videos(videos: Iterable[FoundVideo]) -> dict[str, str]:
    """key -> group: videos with an identity in common, and a fake with its original, are in one group.

    Union-find over keys and identities. A group is named by the first of its identities, so the result does not
    depend on the videos' order; a video with no ties is a group of its own, named by its key.
    """
    videos = list(videos)
    keys = {video.key for video in videos}
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        while parent.setdefault(name, name) != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for video in videos:
        for tie in (*video.identities, *filter(None, [video.original])):
            first, second = sorted((root(video.key), root(tie)), key=lambda name: (name in keys, name))
            parent[second] = first
    return {key: root(key) for key in keys}


def split_groups(sizes: Mapping[str, tuple[int, int]], data: Data, where: str) -> dict[str, str]:
    """group -> split, near data.validation and data.test of each label's videos.

    sizes: group -> (real, fake) videos. Groups are dealt out from the largest to the smallest, each to the split
    that it brings nearest to its targets; the seed breaks ties. A choice is passed over when the groups that are left
    could no longer give both classes to training, to validation and to the test (in this order of importance)
    and at least one group to each. Raises DataError when there is no such split.
    """
    if len(sizes) < len(SPLITS):
        raise DataError(
            f"{where}: {len(sizes)} groups of source identity in {sum(map(sum, sizes.values()))} videos: "
            f"expected at least {len(SPLITS)}, one for each of {', '.join(SPLITS)} (a manifest can name groups)"
        )
    totals = [sum(size[label] for size in sizes.values()) for label in (0, 1)]
    targets = {split: [share * total for total in totals] for split, share in _shares(data).items()}
    counts = {split: [0, 0] for split in SPLITS}
    left = _Left.of(sizes.values())
    both = next((n for n in (3, 2, 1) if left.can_fill(counts, SPLITS[:n])), 0)  # splits that can have both classes
    if not both:
        raise DataError(
            f"{where}: groups of source identity: {left.real} of real videos only, {left.fake} of fake ones only, "
            f"{left.mixed} of both: expected enough for both classes in training and one in {' and '.join(SPLITS[1:])}"
        )

    def cost(split: str, size: tuple[int, int]) -> float:
        """By how much the group moves its split's counts away from their targets: chi-square, per label's share."""
        return sum(
            number * (2 * (count - target) + number) / (target * total)
            for number, count, target, total in zip(size, counts[split], targets[split], totals, strict=True)
        )

    chosen = {}
    for group in sorted(sizes, key=lambda name: (-sum(sizes[name]), _draw(data.seed, name))):
        size = sizes[group]
        left = left.without(size)
        options = (
            (split, {**counts, split: [counts[split][0] + size[0], counts[split][1] + size[1]]})
            for split in sorted(SPLITS, key=lambda name: cost(name, size))
        )
        # There is always one: what could be filled before this group was dealt out can be with it.
        chosen[group], counts = next(option for option in options if left.can_fill(option[1], SPLITS[:both]))
    return chosen


@dataclass(frozen=True)
class _Left:
    """Groups not yet dealt out, by the classes in them."""

    real: int
    fake: int
    mixed: int

    @staticmethod
    def of(sizes: Iterable[tuple[int, int]]) -> _Left:
        kinds = Counter((real > 0, fake > 0) for real, fake in sizes)
        return _Left(kinds[True, False], kinds[False, True], kinds[True, True])

    def without(self, size: tuple[int, int]) -> _Left:
        real, fake = size[0] > 0, size[1] > 0
        return _Left(self.real - (real and not fake), self.fake - (fake and not real), self.mixed - (real and fake))

    def can_fill(self, counts: Mapping[str, Sequence[int]], both: Sequence[str]) -> bool:
        """Whether the splits of `both` can still get both classes, and every other split at least one group."""
        lacks = Counter((not counts[split][0], not counts[split][1]) for split in both)
        empty = sum(not any(count) for split, count in counts.items() if split not in both)
        whole = min(self.mixed, lacks[True, True])  # a mixed group serves best where both classes are missing
        reals = lacks[True, False] + lacks[True, True] - whole
        fakes = lacks[False, True] + lacks[True, True] - whole
        stand_ins = max(0, reals - self.real) + max(0, fakes - self.fake)
        enough = whole + reals + fakes + empty <= self.real + self.fake + self.mixed
        return enough and stand_ins <= self.mixed - whole


def draw_split(group: str, data: Data) -> str:
    """A split for a group that comes when the others have theirs: seeded, in the shares that data asks for."""
    drawn = int.from_bytes(_draw(data.seed, group)[:8], "big") / 2**64
    if drawn < data.test:
        return "test"
    return "validation" if drawn < data.test + data.validation else "train"


def assign_shards(videos: Iterable[FoundVideo], shards: int) -> dict[str, int]:
    """key -> shard in [0, shards): the numbers of each label, and of all videos, differ by at most one.

    Each label is dealt out in rounds of one video per shard, the largest files first, each to the shard with
    the fewest bytes so far; a round that is too short for all goes to the shards with the fewest videos.
    """
    assigned: dict[str, int] = {}
    numbers, sizes = [0] * shards, [0] * shards
    ordered = sorted(videos, key=lambda video: (video.label, -video.size, video.key))
    for label in (0, 1):
        rest = [video for video in ordered if video.label == label]
        for start in range(0, len(rest), shards):
            dealt = rest[start : start + shards]
            full = len(dealt) == shards
            order = sorted(range(shards), key=lambda shard: (0 if full else numbers[shard], sizes[shard], shard))
            for video, shard in zip(dealt, order, strict=False):
                assigned[video.key] = shard
                numbers[shard] += 1
                sizes[shard] += video.size
    return assigned


def require_closed(videos: Iterable[PlannedVideo], where: str) -> None:
    """Raise DataError naming the first group that crosses splits, or fake whose original is in another split."""
    first: dict[str, PlannedVideo] = {}
    by_key: dict[str, PlannedVideo] = {}
    for video in videos:
        if video.key in by_key:
            raise DataError(f"{where}: key {video.key}: planned twice: expected once")
        by_key[video.key] = video
        other = first.setdefault(video.group, video)
        if other.split != video.split:
            raise DataError(
                f"{where}: group {video.group}: {other.path} in {other.split}, {video.path} in {video.split}: "
                "expected a group in one split"
            )
    for video in by_key.values():
        original = by_key.get(video.original)
        if original and original.split != video.split:
            raise DataError(
                f"{where}: {video.path} in {video.split}: expected in {original.split}, as its original {original.path}"
            )


def _official_splits(videos: Sequence[FoundVideo], where: str) -> dict[str, str]:
    """key -> the split that the data set fixes; empty when it fixes none. Raises DataError when only some have one."""
    fixed = [video for video in videos if video.split]
    if fixed and len(fixed) < len(videos):
        free = next(video for video in videos if not video.split)
        raise DataError(
            f"{where}: {free.path}: no split, but {fixed[0].path} has {fixed[0].split}: "
            "expected a split for every video, or for none"
        )
    return {video.key: video.split for video in fixed}


def _require_both_classes(videos: Sequence[FoundVideo], where: str) -> None:
    labels = {video.label for video in videos}
    if len(labels) < 2:
        kind = NAMES[labels.pop()] if labels else "absent"
        raise DataError(f"{where}: all {len(videos)} videos are {kind}: expected real and fake ones")


def _require_usable(counts: Mapping[str, Mapping[str, int]], where: str) -> None:
    """What split_groups gives always passes; a data set's own splits may not."""
    for split, by_label in counts.items():
        if not any(by_label.values()):
            raise DataError(f"{where}: no video in split {split}: expected at least one in each of {', '.join(SPLITS)}")
    for name, number in counts["train"].items():
        if not number:
            raise DataError(f"{where}: no {name} video in split train: expected both classes")


def _warnings(counts: Mapping[str, Mapping[str, int]], shares: Mapping[str, float]) -> Iterable[str]:
    total = sum(sum(by_label.values()) for by_label in counts.values())
    for split, by_label in counts.items():
        number = sum(by_label.values())
        for name, other in zip(NAMES, reversed(NAMES), strict=True):
            if not by_label[name]:
                yield f"split {split} has {other} videos only ({number}): what needs both classes will be null"
        asked = shares.get(split, number / total)
        if abs(number - asked * total) > max(1, SHARE_TOLERANCE * total):
            yield f"split {split} has {number} of {total} videos ({number / total:.0%}): {asked:.0%} was asked for"


def _sizes(videos: Iterable[FoundVideo], groups: Mapping[str, str]) -> dict[str, tuple[int, int]]:
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for video in videos:
        counts[groups[video.key]][video.label] += 1
    return {group: (real, fake) for group, (real, fake) in counts.items()}


def _shares(data: Data) -> dict[str, float]:
    return {"train": 1 - data.validation - data.test, "validation": data.validation, "test": data.test}


def _draw(seed: int, name: str) -> bytes:
    """A seeded draw that does not depend on the order in which names are asked for."""
    return hashlib.sha256(f"{seed}/{name}".encode()).digest()
