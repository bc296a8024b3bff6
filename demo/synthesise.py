"""The demo's video set: folders as DFDC has them, made from a seed, with a marker written last.

A group is one synthesised real clip and the fake made from it. A few files are broken on purpose, so that the
demo shows what becomes of them; they come on top of the groups.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
from collections.abc import Collection, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from tqdm import tqdm

from deepfake_detector.adapters.machine import cpu_limit
from deepfake_detector.core.config import require_same
from deepfake_detector.core.errors import ConfigError, DataError
from demo import clips

MARKER = "synthesised.json"
PARTS = 2
_UNFINISHED = "unfinished.json"
_VERSION = 1  # raised when the same settings would give other clips


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What decides every byte of the set. groups: at least PARTS; strength: factor on the fakes' artefacts."""

    groups: int = 280
    strength: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.groups < PARTS:
            raise ConfigError(f"--groups {self.groups}: expected at least {PARTS}")
        if not 0 <= self.strength <= 4:
            raise ConfigError(f"--strength {self.strength:g}: expected 0 to 4")


def synthesise(folder: Path, settings: Settings, processes: int = 0) -> bool:
    """Make the set in `folder`; False when it is there already. One that was interrupted is made anew.

    processes: 0 takes one for each CPU; the bytes do not depend on it. Raises ConfigError when the folder holds a
    set of other settings, or anything that is not the demo's.
    """
    check(folder, settings)
    if (folder / MARKER).is_file():
        return False
    unfinished = folder / _UNFINISHED  # says that what is beside it may be replaced, until it becomes the marker
    folder.mkdir(parents=True, exist_ok=True)
    unfinished.write_text(json.dumps(describe(settings), indent=1) + "\n")
    for part in range(PARTS):
        shutil.rmtree(_part(folder, part), ignore_errors=True)
        _part(folder, part).mkdir()
    _write_clips(folder, settings, processes or cpu_limit())
    _write_broken(_part(folder, PARTS - 1), settings)
    for part in range(PARTS):
        (_part(folder, part) / "metadata.json").write_text(json.dumps(_metadata(part, settings), indent=1) + "\n")
    unfinished.replace(folder / MARKER)
    return True


def check(folder: Path, settings: Settings) -> None:
    """Raise ConfigError unless `folder` is free for this set, or holds it. Changes nothing."""
    if (folder / MARKER).is_file():
        require_same(describe(settings), json.loads((folder / MARKER).read_bytes()), str(folder))
    elif folder.exists() and not folder.is_dir():
        raise ConfigError(f"--videos {folder}: expected a folder")
    elif folder.exists() and any(folder.iterdir()) and not (folder / _UNFINISHED).is_file():
        raise ConfigError(f"--videos {folder}: expected a folder that is new, empty, or the demo's own")


def describe(settings: Settings) -> dict[str, Any]:
    """The content of the marker: equal descriptions, equal bytes of every file of the set."""
    return {f"demo.{name}": value for name, value in asdict(settings).items()} | {"demo.version": _VERSION}


def clip_name(group: int, fake: bool) -> str:
    return f"{group:04d}_{'fake' if fake else 'real'}.mp4"


def held_out(folder: Path, test_paths: Collection[str]) -> tuple[Path, Path]:
    """The real and the fake clip of the first group in the test split; raises DataError when there is none.

    test_paths: the split's videos, relative to `folder`. Taken by number, so that no result decides.
    """
    reals = sorted(Path(path) for path in test_paths if path.endswith("_real.mp4"))
    if not reals:
        raise DataError(f"{folder}: no group in the test split: expected at least one of {len(test_paths)} videos")
    real = min(reals, key=lambda path: path.name)
    return folder / real, folder / real.with_name(real.name.replace("_real", "_fake"))


def _part(folder: Path, part: int) -> Path:
    return folder / f"part_{part}"


def _write_clips(folder: Path, settings: Settings, processes: int) -> None:
    jobs = [(group, fake) for group in range(settings.groups) for fake in (False, True)]
    # spawn: a fork of a process whose libraries have threads may hang.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(processes, mp_context=context, initializer=cv2.setNumThreads, initargs=(1,)) as pool:
        futures = [
            pool.submit(
                clips.write_clip,
                _part(folder, group % PARTS) / clip_name(group, fake),
                settings.seed,
                group,
                fake,
                settings.strength,
            )
            for group, fake in jobs
        ]
        try:
            for future in tqdm(as_completed(futures), "synthesise", len(futures), unit="clip", mininterval=1):
                future.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _metadata(part: int, settings: Settings) -> dict[str, dict[str, Any]]:
    """What DFDC's metadata.json says: a label for every name, and what each fake was made from."""
    labels: dict[str, dict[str, Any]] = {}
    for group in range(part, settings.groups, PARTS):
        real = clip_name(group, False)
        labels[real] = {"label": "REAL", "split": "train"}
        labels[clip_name(group, True)] = {"label": "FAKE", "split": "train", "original": real}
    if part == PARTS - 1:
        for name in ("broken_empty.mp4", "broken_text.mp4", "broken_faceless.mp4"):
            labels[name] = {"label": "REAL", "split": "train"}
        for name in ("broken_truncated.mp4", "broken_missing.mp4"):
            labels[name] = {"label": "FAKE", "split": "train", "original": clip_name(part, False)}
    return labels


def _write_broken(folder: Path, settings: Settings) -> None:
    """Files that no detector can be trained on; broken_missing.mp4 has a label and no file."""
    spare = settings.groups  # one group more than the set has
    (folder / "broken_empty.mp4").touch()
    (folder / "broken_text.mp4").write_text("This is not a video.\n")
    truncated = folder / "broken_truncated.mp4"
    clips.write_clip(truncated, settings.seed, spare, fake=True, strength=settings.strength)
    os.truncate(truncated, truncated.stat().st_size // 2)  # the index is at the end
    clips.write(folder / "broken_faceless.mp4", _colours(settings.seed), fps=15, quality=23)
    clips.write_clip(folder / "broken_unlabelled.mp4", settings.seed, spare, fake=False)


def _colours(seed: int) -> Iterator[np.ndarray]:
    """Frames of drifting smooth colours, without a face."""
    first, last = np.random.default_rng(seed).uniform(0, 255, (2, 4, 4, 3)).astype(np.float32)
    for share in np.linspace(0, 1, 24, dtype=np.float32):
        frame = cv2.resize(first + (last - first) * share, (176, 160), interpolation=cv2.INTER_LINEAR)
        yield frame.astype(np.uint8)
