"""Real training processes on synthetic records: exact resume, equal workers, refusals."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from deepfake_detector.adapters.epochs import read_epochs
from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.core import layout
from deepfake_detector.core.config import fingerprint, stage_settings
from deepfake_detector.core.errors import EXIT_PERMANENT, EXIT_RETRY, EXIT_TERMINATED, ConfigError, DataError
from deepfake_detector.core.markers import INEXACT, RecordsSummary, ShardReport, TrainedMarker, decode
from deepfake_detector.core.topology import ALONE, Cluster
from deepfake_detector.stages.status import read_status, to_text
from deepfake_detector.training import checkpoints
from deepfake_detector.training.dataset import open_records, open_split
from deepfake_detector.training.worker import run_worker
from jobs.train_worker import main
from tests.make_records import make_run, tiny

ROOT = Path(__file__).parents[2]
COUNTS = {"train": (12, 20), "validation": (3, 5)}
TIMES = {"seconds", "sequences_per_second", "input_wait_fraction"}
WHOLE = tiny(train__epochs=4, train__steps_per_epoch=9, operations__checkpoint_steps=4)
LIMIT_SECONDS = 240.0
DIES_AFTER_THE_LAST_VALIDATION = """
import os, signal
from deepfake_detector.training.logs import RunLog
from jobs.train_worker import main

add = RunLog.epoch

def add_and_die(log, metrics):
    add(log, metrics)
    if metrics.epoch == 4:
        log._uploads.drain()
        os.kill(os.getpid(), signal.SIGKILL)

RunLog.epoch = add_and_die
main(dict(os.environ))
"""
ONE_AFTER_THE_OTHER = """
import os, sys
from jobs.train_worker import main

for run in sys.argv[1:]:
    print("STATUS", main({**os.environ, "RUN": run, "SCRATCH": f"{run}-scratch"}), file=sys.stderr)
"""


def start(folder: Path, *command: str, rank: int = 0, **environment: str) -> subprocess.Popen[str]:
    scratch = folder.parent / f"scratch-{folder.name}-{rank}"
    variables = os.environ | {"RUN": str(folder), "SCRATCH": str(scratch)} | environment
    return subprocess.Popen(
        [sys.executable, *(command or ("-m", "jobs.train_worker"))],
        cwd=ROOT,
        env=variables,
        stderr=subprocess.PIPE,
        text=True,
    )


def end(process: subprocess.Popen[str]) -> tuple[int, str]:
    _, errors = process.communicate(timeout=LIMIT_SECONDS)
    return process.returncode, errors


def wait_for(process: subprocess.Popen[str], path: Path) -> None:
    limit = time.monotonic() + LIMIT_SECONDS
    while not path.exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < limit, f"{path} did not come"
        time.sleep(0.002)


def addresses(count: int) -> tuple[str, ...]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return tuple(f"127.0.0.1:{port}" for port in ports)


def trained(folder: Path) -> TrainedMarker:
    return decode(TrainedMarker, (folder / layout.TRAINED).read_bytes(), "the test")


def lasting(folder: Path) -> list[dict[str, Any]]:
    """The metrics that do not depend on the clock."""
    return [epoch.model_dump(exclude=TIMES) for epoch in read_epochs(open_storage(str(folder)))]


def tensorboard_steps(folder: Path) -> list[int]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / layout.TENSORBOARD))
    events.Reload()
    return [event.step for event in events.Scalars("train_loss")]


@dataclass
class Ended:
    """How a training ended: its status and the last line on stderr. place: the damaged one, if any."""

    run: Path
    status: int
    line: str
    place: str = ""


@pytest.fixture(scope="module")
def ended(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Ended]:
    """Trainings by name, one undisturbed and three that fail.

    All in one process, since TensorFlow's import is most of their time; the first finds it as it would alone.
    """
    folder = tmp_path_factory.mktemp("trainings")
    make_run(folder / "whole", WHOLE, COUNTS)
    config = tiny(train__learning_rate=1e38, train__optimizer="sgd", model__head="mean", train__augment=False)
    make_run(folder / "diverging", config, {"train": (4, 4)})
    places = {"whole": "", "diverging": ""}
    for split in ("train", "validation"):
        config = tiny(train__epochs=1, model__head="mean", train__augment=False)
        make_run(folder / split, config, {"train": (4, 4), "validation": (2, 2)})
        places[split] = damage(folder / split, split)
    process = start(folder / "all", "-c", ONE_AFTER_THE_OTHER, *(str(folder / name) for name in places))
    status, errors = end(process)
    assert status == 0, errors
    lines = errors.splitlines()
    ends = [number for number, line in enumerate(lines) if line.startswith("STATUS ")]
    assert len(ends) == len(places), errors
    return {
        name: Ended(folder / name, int(lines[number].split()[1]), lines[number - 1], place)
        for number, (name, place) in zip(ends, places.items(), strict=True)
    }


def damage(folder: Path, split: str) -> str:
    """Flip a bit of a JPEG in the last record of `split` in shard 0; returns the place that an error should name."""
    report = decode(ShardReport, (folder / layout.shard_report(0, 2)).read_bytes(), "the test")
    [file] = [file for file in report.files if file.split == split]
    path, record = folder / file.name, file.records[-1]
    data = bytearray(path.read_bytes())
    data[record.offset + record.length // 2] ^= 1
    path.write_bytes(data)
    return f"{path} at byte {record.offset}"


def test_a_killed_run_ends_with_the_same_bits(ended: dict[str, Ended], tmp_path: Path) -> None:
    """SIGTERM in mid-epoch, SIGKILL between an epoch's steps and its checkpoint, against an undisturbed run.

    Dropout and augmentation are on. SIGKILL in mid-epoch: test_kill.py.
    """
    assert ended["whole"].status == 0, ended["whole"].line
    whole, broken = ended["whole"].run, tmp_path / "broken"
    make_run(broken, WHOLE, COUNTS)

    process = start(broken)
    wait_for(process, broken / layout.checkpoint_marker(16))
    process.terminate()
    assert end(process)[0] == EXIT_TERMINATED
    assert not (broken / layout.TRAINED).exists()
    assert end(start(broken, "-c", DIES_AFTER_THE_LAST_VALIDATION))[0] == -signal.SIGKILL
    before_validation = checkpoints.read(open_storage(str(broken)), 36)
    assert before_validation.state.epoch == 3, "the epoch's steps are kept, its end is not"
    assert [epoch["epoch"] for epoch in lasting(broken)] == [1, 2, 3, 4], "its metrics are ahead of it"
    status, errors = end(start(broken))
    assert status == 0, errors
    assert "resumed at step 36" in errors
    assert checkpoints.read(open_storage(str(broken)), 36).files == before_validation.files

    assert trained(broken).weights_sha256 == trained(whole).weights_sha256
    assert lasting(broken) == lasting(whole)
    assert tensorboard_steps(broken) == tensorboard_steps(whole) == [9, 18, 27, 36]
    assert (broken / layout.CHARTS).read_bytes().startswith(b"\x89PNG")
    kept = [entry.name for entry in open_storage(str(broken)).list(layout.CHECKPOINTS)]
    best = trained(whole).best_step
    assert sum(map(layout.is_checkpoint_marker, kept)) == 4 + (best not in (28, 32, 36)), "that of step 0 among them"
    assert layout.checkpoint_marker(best) in kept
    assert trained(broken).exact


def test_a_lost_best_checkpoint_is_computed_again(ended: dict[str, Ended], tmp_path: Path) -> None:
    """All others are whole, so that nothing was missed until the weights were asked for."""
    whole, broken = ended["whole"].run, tmp_path / "broken"
    shutil.copytree(whole, broken)
    (broken / layout.TRAINED).unlink()
    best = trained(whole).best_step
    for path in (broken / layout.checkpoint(best)).glob("*.data*"):
        path.write_bytes(path.read_bytes()[:-1])
    process = start(tmp_path / "all", "-c", ONE_AFTER_THE_OTHER, str(broken), str(broken))
    status, errors = end(process)
    assert status == 0, errors
    assert re.findall(r"^STATUS (\d+)", errors, re.MULTILINE) == [str(EXIT_RETRY), "0"]
    assert "the best checkpoint is lost, and computed again by another attempt: " in errors
    assert trained(broken).weights_sha256 == trained(whole).weights_sha256
    assert lasting(broken) == lasting(whole)


def test_another_kind_of_cpu_ends_the_promise_of_equal_bits(ended: dict[str, Ended], tmp_path: Path) -> None:
    """The newest checkpoint of a run that has all its steps was made elsewhere, says its marker."""
    moved = tmp_path / "moved"
    shutil.copytree(ended["whole"].run, moved)
    (moved / layout.TRAINED).unlink()
    run = open_storage(str(moved))
    newest = checkpoints.read(run, 36)
    elsewhere = newest.model_copy(update={"machines": ["AMD EPYC 7B12 (avx2), 1 threads"]})
    run.write(layout.checkpoint_marker(36), elsewhere.encode())
    status, errors = end(start(moved))
    assert status == 0, errors
    assert INEXACT in errors
    assert not trained(moved).exact
    assert f"          {INEXACT}" in to_text(read_status(run)).splitlines()


def test_two_workers_train_as_one(tmp_path: Path) -> None:
    """20 steps of 1 x 8 and 2 x 4, and a validation after every ten.

    The rate is low since training itself magnifies rounding: at 1e-3 one process whose first weights differ by
    6e-8 is 1e-3 away after 20 steps, at 1e-4 it is 1e-7 away.
    """
    changes = {"train__epochs": 2, "train__steps_per_epoch": 10, "model__dropout": 0.0, "train__schedule": "constant"}
    changes |= {"train__learning_rate": 1e-4}
    one, two = tmp_path / "one", tmp_path / "two"
    make_run(one, tiny(**changes), COUNTS)
    make_run(two, tiny(**changes, train__workers=2), COUNTS)
    peers = addresses(2)
    processes = [start(one, "-m", "tests.integration.training_worker", str(one), str(tmp_path / "s"), str(one / "out"))]
    assert end(processes[0])[0] == 0
    processes = [
        start(
            two,
            "-m",
            "tests.integration.training_worker",
            str(two),
            str(tmp_path / f"s{rank}"),
            str(two / f"out{rank}"),
            TF_CONFIG=Cluster(rank, peers).tf_config(),
        )
        for rank in (0, 1)
    ]
    ends = [end(process) for process in processes]
    assert [status for status, _ in ends] == [0, 0], ends

    alone = json.loads((one / "out").read_text())
    told = [json.loads((two / f"out{rank}").read_text()) for rank in (0, 1)]
    assert told[0] == told[1], "weights or moving statistics differ between the workers"
    assert alone["threads"] == told[0]["threads"] == tiny().train.threads
    assert len(set(told[0]["digests"])) == 20
    np.testing.assert_allclose(alone["losses"], told[0]["losses"], rtol=0, atol=1e-5)
    for name in ("train_loss", "validation_loss"):
        ours, theirs = ([epoch[name] for epoch in lasting(folder)] for folder in (one, two))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5)
    assert trained(two).machines == trained(one).machines * 2


def test_a_loss_that_is_not_finite_names_its_step(ended: dict[str, Ended]) -> None:
    assert ended["diverging"].status == EXIT_PERMANENT
    assert "expected a finite number (train.learning_rate=1e+38" in ended["diverging"].line


def test_a_peer_that_never_comes_ends_the_worker(tmp_path: Path) -> None:
    config = tiny(train__workers=2, operations__startup_seconds=1)
    make_run(tmp_path / "run", config, {"train": (4, 4)})
    status, errors = end(start(tmp_path / "run", TF_CONFIG=Cluster(0, addresses(2)).tf_config()))
    assert status == 1
    assert "Timeout" in errors
    assert "make_strategy" in errors


@pytest.mark.parametrize("split", ["train", "validation"])
def test_a_damaged_record_ends_training_for_good(ended: dict[str, Ended], split: str) -> None:
    assert ended[split].status == EXIT_PERMANENT
    assert ended[split].line.startswith(f"error: {ended[split].place}: checksum of the payload disagrees")


@pytest.mark.parametrize("name", ["RUN", "SCRATCH"])
def test_a_missing_variable_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    environment = {"RUN": str(tmp_path / "run"), "SCRATCH": str(tmp_path / "scratch")}
    assert main(environment | {name: ""}) == EXIT_PERMANENT
    assert capsys.readouterr().err == f"error: {name}: not set (environment)\n"


@pytest.fixture
def small_run(tmp_path: Path) -> Path:
    make_run(tmp_path / "run", tiny(), COUNTS)
    return tmp_path / "run"


def test_finished_training_does_nothing_without_tensorflow(small_run: Path) -> None:
    config = tiny()
    settings = stage_settings(config, "train")
    marker = TrainedMarker(
        settings=settings,
        fingerprint=fingerprint(settings),
        code_version="test",
        step=1,
        epochs=1,
        best_step=1,
        best_loss=None,
        stopped="",
        records=str(small_run),
        records_fingerprint="",
        weights_sha256="",
        machines=[],
    )
    (small_run / layout.CHECKPOINTS).mkdir()
    (small_run / layout.TRAINED).write_bytes(marker.encode())
    code = (
        "import os, sys; from jobs.train_worker import main\n"
        "assert main(dict(os.environ)) == 0; assert 'tensorflow' not in sys.modules"
    )
    status, errors = end(start(small_run, "-c", code))
    assert status == 0, errors
    with pytest.raises(ConfigError, match=r"train.epochs=9: expected 2, .*trained.json"):
        run_worker(str(small_run), tiny(train__epochs=9), ALONE, small_run, str(small_run))


@pytest.mark.parametrize(
    ("changes", "cluster", "message"),
    [
        pytest.param({"faces__size": 64}, ALONE, "faces.size=64: expected 32", id="crops of another size"),
        pytest.param({}, Cluster(0, ("a:1", "b:1")), "train.workers=1: expected 2", id="another number of workers"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    small_run: Path, changes: dict[str, Any], cluster: Cluster, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_worker(str(small_run), tiny(**changes), cluster, small_run, str(small_run))


def test_too_many_lost_videos_are_refused(small_run: Path) -> None:
    run = open_storage(str(small_run))
    summary = decode(RecordsSummary, run.read(layout.RECORDS_SUMMARY), "the test")
    outcomes = {"ok": {"real": 24}, "no_face": {"real": 16}}
    failed = summary.model_copy(update={"lost_fraction": 0.4, "outcomes": outcomes})
    run.write(layout.RECORDS_SUMMARY, failed.encode())
    lost = r"40\.0% .* lost \(no_face 16\): expected at most operations\.max_lost_fraction=0\.2"
    with pytest.raises(DataError, match=lost):
        run_worker(run.uri, tiny(), ALONE, small_run, run.uri)


def copy_run(source: Path, target: Storage) -> None:
    for path in sorted(source.rglob("*")):
        if path.is_file():
            target.write(path.relative_to(source).as_posix(), path.read_bytes())


def test_records_are_read_by_position(small_run: Path, storage: Storage, tmp_path: Path) -> None:
    copy_run(small_run, storage)
    split = open_split(storage, "train", tmp_path / "scratch")
    try:
        assert len(split) == 32
        assert split.labels.sum() == 20
        samples = [entry.sample for entry in split.entries]
        assert all(samples[index].encode() in split.read(index) for index in (31, 0, 17))
    finally:
        split.close()
    assert open_records(storage).fingerprint == open_records(open_storage(str(small_run))).fingerprint
    open_split(storage, "train", tmp_path / "scratch").close()  # staged already
    empty = open_split(storage, "test", tmp_path / "scratch")
    assert len(empty) == 0
