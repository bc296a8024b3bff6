"""Exports of one run that meet: what detector.json says is one export's files, at any moment and in any order."""

from __future__ import annotations

import hashlib
import random
import shutil
import tempfile
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepfake_detector.adapters.storage import Storage, open_storage, stored_as
from deepfake_detector.core import layout
from deepfake_detector.core.markers import DetectorManifest, decode
from deepfake_detector.stages.commit_export import commit_export

NAMES = ("model/config.json", "model/saved_model.pb", "model/variables/variables.index", "report/metrics.json")


def make_export(folder: Path, who: str) -> DetectorManifest:
    """Files that differ from everybody else's, but for the weights."""
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("weights" if "variables" in name else f"{name} of {who}")
    model = [folder / name for name in NAMES if name.startswith(layout.MODEL)]
    files = [stored_as(path, path.relative_to(folder).as_posix()) for path in model]
    return DetectorManifest(
        settings={},
        fingerprint="0123456789abcdef",
        code_version="test",
        files=files,
        step=1,
        slope=1.0,
        offset=0.0,
        prior=0.5,
        validation_prior=0.5,
        threshold=0.5,
        threshold_from="test",
        keras_version="3",
        tensorflow_version="2",
        config={},
    )


def require_one_export(run: Storage) -> str:
    """Whose files are published; every one must be his."""
    manifest = decode(DetectorManifest, run.read(layout.DETECTOR), layout.DETECTOR)
    stored = {file.name: file for file in run.checksums()}
    for file in manifest.files:
        assert stored[file.name] == file
    owners = {run.read(name).decode().rpartition(" of ")[2] for name in NAMES if "variables" not in name}
    assert len(owners) == 1, owners
    return owners.pop()


class Killed(BaseException):
    pass


class Turns:
    """Lets one of several threads go on at a time, drawn by a seed whenever all of them wait."""

    def __init__(self, seed: int, threads: int) -> None:
        self._draw = random.Random(seed)
        self._alive = set(range(threads))
        self._waiting: set[int] = set()
        self._turn = -1
        self._changed = threading.Condition()

    def await_turn(self, me: int) -> None:
        with self._changed:
            self._waiting.add(me)
            self._choose()
            self._changed.wait_for(lambda: self._turn == me)
            self._turn = -1
            self._waiting.remove(me)

    def leave(self, me: int) -> None:
        with self._changed:
            self._alive.remove(me)
            self._choose()

    def _choose(self) -> None:
        if self._turn < 0 and self._alive and self._waiting == self._alive:
            self._turn = self._draw.choice(sorted(self._waiting))
            self._changed.notify_all()


class Stepwise:
    """A storage that waits for its turn before each operation, and dies before number `last`."""

    def __init__(self, run: Storage, turns: Turns, me: int, last: int) -> None:
        self._run, self._turns, self._me, self._left = run, turns, me, last
        self.uri = run.uri

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def operation(*arguments: Any) -> Any:
            self._turns.await_turn(self._me)
            self._left -= 1
            if self._left < 0:
                raise Killed
            if self._run.exists(layout.DETECTOR):
                require_one_export(self._run)
            return getattr(self._run, name)(*arguments)

        return operation


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32),
    lasts=st.lists(st.one_of(st.just(10**6), st.integers(0, 30)), min_size=2, max_size=3),
    removed=st.booleans(),
)
def test_exports_in_any_order_and_with_any_of_them_killed(seed: int, lasts: list[int], removed: bool) -> None:
    turns = Turns(seed, len(lasts))
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        run = open_storage(str(home / "run"))

        def export(me: int) -> str | None:
            folder = home / str(me)
            manifest = make_export(folder, str(me))
            try:
                commit_export(
                    Stepwise(run, turns, me, lasts[me]),  # type: ignore[arg-type]
                    folder,
                    manifest,
                    home / f"scratch-{me}",
                )
            except Killed:
                return None
            finally:
                turns.leave(me)
            return require_one_export(run)

        with ThreadPoolExecutor(len(lasts)) as pool:
            owners = {owner for owner in pool.map(export, range(len(lasts))) if owner}
        assert len(owners) <= 1
        if removed:  # to have it made anew
            shutil.rmtree(home / "run" / "model", ignore_errors=True)
        commit_export(run, home / "late", make_export(home / "late", "late"), home / "scratch")
        owner = require_one_export(run)
        if owners and not removed:
            assert {owner} == owners
        staged = [entry.name for entry in run.list(layout.EXPORTS)]
        assert staged == [layout.export_choice("0123456789abcdef")]


def test_twice(storage: Storage, tmp_path: Path) -> None:
    for who in ("first", "second"):
        commit_export(storage, tmp_path / who, make_export(tmp_path / who, who), tmp_path / "scratch")
        assert require_one_export(storage) == "first"


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_chosen_export_that_is_lost(storage: Storage, tmp_path: Path, damage: str) -> None:
    """Its process died after the choice, and its staged files are not what the choice says."""
    manifest = make_export(tmp_path / "dead", "dead")
    storage.create(layout.export_choice(manifest.fingerprint), manifest.encode())
    if damage == "changed":
        staged = layout.staged_export(hashlib.sha256(manifest.encode()).hexdigest())
        for name in NAMES:
            storage.write(staged + name, b"something else")
    commit_export(storage, tmp_path / "own", make_export(tmp_path / "own", "own"), tmp_path / "scratch")
    assert require_one_export(storage) == "own"
