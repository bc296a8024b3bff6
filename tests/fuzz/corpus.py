"""Broken files by number: each is a function of (seed, index) alone, so a finding is made again from its index."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from tests.fuzz.clips import Clip, clips, giants
from tests.fuzz.mutations import MUTATIONS
from tests.make_videos import repeat_first_sample

HONEST = "untouched"
GIANT = "giant frames"
WRONG_NAME = "wrong extension"
KINDS = (*MUTATIONS, HONEST, GIANT, WRONG_NAME)
SUFFIXES = (".mp4", ".mkv", ".webm", ".avi", ".mov", ".ts", ".h264", ".y4m", ".txt", ".m3u8", ".jpg", ".yuv", "")
AGAIN = 0.25  # of the broken files are broken in a second way, too
ENDLESS = 0.05  # of the giants show one frame thousands of times, and take all the time that a file gets


@dataclass(frozen=True)
class Case:
    """One file. kind: how it was broken first; source: the clip that it was made from."""

    index: int
    kind: str
    source: str
    suffix: str
    data: bytes

    @property
    def name(self) -> str:
        return f"{self.index:06d}{self.suffix}"


def make(seed: int, index: int) -> Case:
    """The kinds take turns; all else is drawn."""
    random = Random(f"{seed}/{index}")
    kind = KINDS[index % len(KINDS)]
    source: Clip = random.choice(giants() if kind == GIANT else clips())
    data, suffix = source.data, source.suffix
    if kind == WRONG_NAME:
        suffix = random.choice([other for other in SUFFIXES if other != suffix])
    names = [kind] if kind in MUTATIONS else []
    if kind == GIANT and random.random() < ENDLESS:
        return Case(index, kind, source.name, suffix, repeat_first_sample(data, random.randint(1000, 6000)))
    if kind == HONEST or (kind == GIANT and random.random() < 0.5):
        return Case(index, kind, source.name, suffix, data)
    if kind == GIANT:
        names = ["flip few"]
    if random.random() < AGAIN:
        names.append(random.choice(list(MUTATIONS)))
    for name in names:
        if len(data) > 16:
            data = MUTATIONS[name](data, random, random.choice(clips()).data)
    if names and data == source.data:  # the mutation found nothing of its kind, or undid itself
        data = MUTATIONS["flip few"](data, random, b"")
    return Case(index, kind, source.name, suffix, data)
