"""Decoding processes that die, hang, stand still or eat memory: each costs its video and no other."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path

import pytest

from deepfake_detector.adapters import kernel
from deepfake_detector.adapters.kernel import cpu_seconds
from deepfake_detector.core.config import Config
from deepfake_detector.core.errors import ConfigError, WaitError
from deepfake_detector.core.extraction import Extraction
from deepfake_detector.core.outcomes import Outcome
from deepfake_detector.stages import decoders as decoders_module
from deepfake_detector.stages.decoders import BASE_SECONDS, Decoders, allowed_seconds
from tests.integration.test_preprocess import REPOSITORY, config_for

PATIENCE = 60.0
before: list[str] = []  # what this process has worked on
left_behind: list[bytearray] = []  # by earlier videos


def act(path: Path, config: Config) -> Extraction:
    """A decoder that does what the path says; it runs in a real decoding process."""
    what, earlier = path.name.partition("-")[0], len(before)
    before.append(path.name)
    if what == "abort":
        os.abort()
    if what == "once" and first_time(path):
        os.abort()
    if what == "wait" and first_time(path):
        signal.pause()
    if what == "answer" and first_time(path):
        return Extraction(outcome=Outcome.OK, detail="x" * 10_000_000)  # more than the pipe takes
    if what == "doze" and first_time(path):
        os.kill(os.getpid(), signal.SIGSTOP)
    if what == "hang":
        signal.pause()
    while what == "spin":
        path.with_name(f"{os.getpid()}.spins").touch()
    if what == "memory":
        bytearray(8 << 30)
    if what == "eat":
        bytearray(1 << 30)
    if what == "keep":
        left_behind.append(bytearray(300 << 20))
    if what == "much":
        bytearray(300 << 20)
    if what == "garble":
        monkey = pytest.MonkeyPatch()  # for as long as the process lives
        monkey.setattr("deepfake_detector.stages.decoding.pickle.dumps", lambda message: b"\x80\x04\x95 no pickle")
    if what == "number":
        return 5  # type: ignore[return-value]
    if what == "bug":
        raise ZeroDivisionError("a bug")
    if what == "settings":
        raise ConfigError("weights: expected others")
    return Extraction(outcome=Outcome.OK, detail=f"{path.name} {earlier} {'tensorflow' in sys.modules}")


def first_time(path: Path) -> bool:
    """Leaves the process's id in a file, whole or not at all."""
    marker = path.with_name(f"{path.name}.tried")
    if marker.exists():
        return False
    partial = marker.with_suffix(".partial")
    partial.write_text(str(os.getpid()))
    partial.rename(marker)
    return True


def run_all(names: list[str], folder: Path, **settings: object) -> list[Extraction]:
    with Decoders(config_for(folder, **settings), 2, act) as decoders:
        return list(decoders.map(folder / name for name in names))


def test_a_crash_costs_exactly_its_video(tmp_path: Path) -> None:
    names = ["ok-1", "abort-1", "ok-2", "memory-1", "bug-1", "once-1", *[f"ok-{k}" for k in range(3, 9)]]
    results = run_all(names, tmp_path)
    assert [result.outcome for result in results] == [
        Outcome.OK,
        Outcome.CRASHED,
        Outcome.OK,
        Outcome.OUT_OF_MEMORY,
        Outcome.CRASHED,
        Outcome.OK,
        *[Outcome.OK] * 6,
    ]
    assert results[1].detail == "signal 6 (SIGABRT); then signal 6 (SIGABRT)"
    assert results[3].detail == "(operations.video_memory_mb=600)"
    assert results[4].detail == "ZeroDivisionError: a bug; then ZeroDivisionError: a bug"
    told = [result.detail.split() for result in results if result.outcome is Outcome.OK]
    assert [name for name, _, _ in told] == [name for name in names if name.partition("-")[0] in ("ok", "once")]
    assert {tensorflow for _, _, tensorflow in told} == {"False"}


def test_an_answer_that_is_none_costs_its_video(tmp_path: Path) -> None:
    results = run_all(["garble-1", "ok-1", "number-1", "ok-2"], tmp_path)
    assert [result.outcome for result in results] == [Outcome.CRASHED, Outcome.OK] * 2
    garbled, number = (result.detail.split("; then ") for result in (results[0], results[2]))
    assert [detail.startswith("garbled answer (UnpicklingError: ") for detail in garbled] == [True, True]
    assert number == ["answered with int: expected an extraction"] * 2


def test_a_second_try_has_a_process_to_itself(tmp_path: Path) -> None:
    """Also where another one that has worked before is free: what earlier videos left in it is not to blame."""
    with Decoders(config_for(tmp_path), 2, act) as decoders:
        assert len(list(decoders.map(tmp_path / f"ok-{k}" for k in range(12)))) == 12
        [result] = decoders.map([tmp_path / "once-1"])
    assert result.detail == "once-1 0 False"


def test_memory_that_earlier_videos_left_behind_is_not_to_blame(tmp_path: Path) -> None:
    """What needs 300 of 600 MB gets them in a fresh process; what no process can give is told as at once."""
    with Decoders(config_for(tmp_path), 1, act) as decoders:
        results = list(decoders.map(tmp_path / name for name in ("keep-1", "much-1", "memory-1", "ok-1", "memory-2")))
    told = [(result.outcome, result.detail) for result in results]
    lost = (Outcome.OUT_OF_MEMORY, "(operations.video_memory_mb=600)")
    assert told[1:] == [(Outcome.OK, "much-1 0 False"), lost, (Outcome.OK, "ok-1 0 False"), lost]


def test_a_signal_costs_one_more_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the midst of decoding, and of answering."""
    monkeypatch.setattr(
        "deepfake_detector.stages.decoders.BASE_SECONDS", 300.0
    )  # the signal comes when the machine has time for it
    names = ["answer-1", "wait-1", "wait-2", "wait-3", "ok-1", "ok-2"]
    numbers = [signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGSEGV]
    with Decoders(config_for(tmp_path), 2, act) as decoders:
        results = list(decoders.map(sending(dict(zip(names, numbers, strict=False)), names, tmp_path)))
    assert [result.detail.split()[0] for result in results] == names


@pytest.mark.parametrize("name", ["wait-1", "answer-1"])
def test_a_process_that_stands_still_costs_one_more_try(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped in mid-answer, too: a parent that waited for the rest of it would wait for ever."""
    monkeypatch.setattr("deepfake_detector.stages.decoders.ANSWER_SECONDS", 2.0)
    names = [name, "ok-1", "ok-2"]
    with Decoders(config_for(tmp_path, operations__video_timeout_seconds=4), 2, act) as decoders:
        results = list(decoders.map(sending({name: signal.SIGSTOP}, names, tmp_path)))
    assert [result.detail.split()[0] for result in results] == names


def test_a_frozen_process_is_noticed_before_its_video_s_time_is_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(decoders_module, "BASE_SECONDS", 3000.0)
    monkeypatch.setattr(decoders_module, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(decoders_module, "FROZEN_SECONDS", 0.2)
    results = run_all(["doze-1", "ok-1"], tmp_path)
    assert [result.detail for result in results] == ["doze-1 0 False", "ok-1 0 False"]
    [message] = [record.message for record in caplog.records]
    assert message == "doze-1: decoding process lost (was frozen for 0.2 s (SIGSTOP)), trying once more"


def test_a_process_that_is_frozen_at_its_start_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decoders_module, "STARTUP_SECONDS", 3000.0)
    monkeypatch.setattr(decoders_module, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(decoders_module, "FROZEN_SECONDS", 0.2)
    with Decoders(config_for(tmp_path), 1, EndsAtItsStart(stop_once, tmp_path / "start")) as decoders:
        [result] = decoders.map([tmp_path / "ok-1"])
    assert result.detail.split()[0] == "ok-1"


class Clock:
    """`time`, with a monotonic clock that can be put forward."""

    ahead = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead

    def __getattr__(self, name: str) -> object:
        return getattr(time, name)


def test_a_pause_of_all_processes_costs_no_try(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A paused container, for example: the clock goes on, and the parent may be the first to get on again."""
    clock, looks = Clock(), 0

    def wait_for(connections: list[Connection], timeout: float) -> list[object]:
        nonlocal looks
        marker = tmp_path / "doze-1.tried"
        if marker.exists() and state(pid := int(marker.read_text())) == "T":
            looks += 1
            if looks == 3:
                clock.ahead = 3600.0
            if looks == 5:
                os.kill(pid, signal.SIGCONT)
        return list(wait(connections, min(timeout, 0.02)))

    monkeypatch.setattr(decoders_module, "wait", wait_for)
    monkeypatch.setattr(decoders_module, "time", clock)
    monkeypatch.setattr(kernel, "time", clock)
    results = run_all(["doze-1"], tmp_path)
    assert looks >= 5
    assert [result.outcome for result in results] == [Outcome.OK]
    assert caplog.records == []


def test_a_video_is_not_charged_for_its_parent_s_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The parent is elsewhere when a part of an answer fills the pipe, and comes back when the video's time is over.

    The process, stopped, gets on when the parent waits, and not when it only looks.
    """
    stopped: list[int] = []

    def wait_for(connections: list[Connection], timeout: float) -> list[object]:
        while stopped and timeout > 0:
            os.kill(stopped.pop(), signal.SIGCONT)
        return list(wait(connections, timeout))

    def paths() -> Iterator[Path]:
        yield from (tmp_path / name for name in ("ok-1", "ok-2", "answer-1"))
        marker = tmp_path / "answer-1.tried"
        stands_still(marker)
        os.kill(int(marker.read_text()), signal.SIGSTOP)
        time.sleep(1)  # all of its time
        stopped.append(int(marker.read_text()))
        yield tmp_path / "ok-3"

    monkeypatch.setattr("deepfake_detector.stages.decoders.wait", wait_for)
    with Decoders(config_for(tmp_path, operations__video_timeout_seconds=1), 2, act) as decoders:
        results = list(decoders.map(paths()))
    assert [result.outcome for result in results] == [Outcome.OK] * 4
    assert len(results[2].detail) == 10_000_000  # of the first try
    assert not stopped


def sending(numbers: Mapping[str, signal.Signals], names: Sequence[str], folder: Path) -> Iterator[Path]:
    """The paths of these names; to a process that works on some of them a signal is sent when it stands still.

    That is done while the pool waits for the next path: of the first name nobody reads the answer meanwhile.
    """
    for name in names:
        yield folder / name
        if name in numbers:
            marker = folder / f"{name}.tried"
            stands_still(marker)
            os.kill(int(marker.read_text()), numbers[name])


def stands_still(marker: Path) -> None:
    """Until the process of the marker sleeps, is stopped, or has ended."""
    deadline = time.monotonic() + PATIENCE
    while not marker.exists() or state(int(marker.read_text())) not in "STZX":
        assert time.monotonic() < deadline, f"{marker}: expected a process that stands still"
        time.sleep(0.01)


def state(pid: int) -> str:
    """One letter, as ps tells it; X: gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "X"


def test_a_hang_is_a_timeout_after_two_tries(tmp_path: Path) -> None:
    """A hang without work looks like a process that was stopped, or got no CPU."""
    results = run_all(["hang-1", "ok-1", "ok-2"], tmp_path, operations__video_timeout_seconds=2)
    assert [result.outcome for result in results] == [Outcome.TIMEOUT, Outcome.OK, Outcome.OK]
    assert results[0].detail == "not done after 2 s; then not done after 2 s"


def test_work_without_end_is_a_timeout_at_once(tmp_path: Path) -> None:
    results = run_all(["spin-1", "ok-1"], tmp_path, operations__video_timeout_seconds=3)
    assert [result.outcome for result in results] == [Outcome.TIMEOUT, Outcome.OK]
    assert results[0].detail == "not done after 3 s"
    assert len(list(tmp_path.glob("*.spins"))) == 1


def test_a_video_s_time_grows_with_its_size(tmp_path: Path) -> None:
    for name, size in (("clip", 0), ("film", 2_000_000_000)):
        with (tmp_path / name).open("wb") as file:
            file.truncate(size)
    assert allowed_seconds(tmp_path / "missing", 3600) == BASE_SECONDS
    assert allowed_seconds(tmp_path / "clip", 3600) == BASE_SECONDS
    assert allowed_seconds(tmp_path / "film", 3600) == 3600
    assert allowed_seconds(tmp_path / "clip", 0.5) == 0.5
    (tmp_path / "short").write_bytes(bytes(40_000))
    assert allowed_seconds(tmp_path / "short", 3600) == pytest.approx(BASE_SECONDS + 4)


def test_cpu_seconds_of_a_process_that_works() -> None:
    begin = cpu_seconds(os.getpid())
    used = time.thread_time() + 0.1
    while time.thread_time() < used:
        pass
    end = cpu_seconds(os.getpid())
    assert begin is not None
    assert end is not None
    assert end - begin >= 0.08
    assert cpu_seconds(2**31 - 1) is None


def test_an_error_that_is_not_the_videos_ends_the_map(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="weights: expected others"):
        run_all(["settings-1"], tmp_path)


def test_a_process_that_cannot_start_is_told(tmp_path: Path) -> None:
    """Every video would be a crash otherwise, and the shard a loss without a reason."""
    with (
        pytest.raises(WaitError, match=r"signal 6 \(SIGABRT\) before it was ready: expected it to start"),
        Decoders(config_for(tmp_path), 1, EndsAtItsStart(os.abort)) as decoders,
    ):
        list(decoders.map([tmp_path / "ok-1"]))


def test_a_machine_without_descriptors_is_worth_another_try(tmp_path: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Decoders(config_for(tmp_path), 1, act) as decoders:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            with pytest.raises(
                WaitError, match="decoding process: Too many open files: expected to start one"
            ) as error:
                list(decoders.map([tmp_path / "ok-1"]))
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert error.value.exit_status == 75
        [result] = decoders.map([tmp_path / "ok-1"])
    assert result.outcome is Outcome.OK


def test_a_process_that_is_killed_at_its_start_is_started_again(tmp_path: Path) -> None:
    with Decoders(config_for(tmp_path), 1, EndsAtItsStart(abort_once, tmp_path / "start")) as decoders:
        results = list(decoders.map(tmp_path / f"ok-{k}" for k in range(3)))
    assert [result.detail.split()[0] for result in results] == ["ok-0", "ok-1", "ok-2"]


def abort_once(path: Path) -> Callable[[Path, Config], Extraction]:
    if first_time(path):
        os.abort()
    return act


def stop_once(path: Path) -> Callable[[Path, Config], Extraction]:
    if first_time(path):
        os.kill(os.getpid(), signal.SIGSTOP)
    return act


class EndsAtItsStart:
    """Pickles here and is made again there by a function that may end the process before it is ready."""

    def __init__(self, function: Callable[..., object], *arguments: object) -> None:
        self._made = function, arguments

    def __call__(self, path: Path, config: Config) -> Extraction:
        raise NotImplementedError

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return self._made


def test_too_little_memory_is_a_setting(tmp_path: Path) -> None:
    config = config_for(tmp_path, operations__video_memory_mb=128)
    with (
        pytest.raises(ConfigError, match=r"operations\.video_memory_mb=128: expected at least \d+"),
        Decoders(config, 1, act) as decoders,
    ):
        list(decoders.map([tmp_path / "ok-1"]))


def test_decoders_die_with_their_parent(tmp_path: Path) -> None:
    """SIGKILL leaves the parent no chance to tidy up."""
    code = f"""
from pathlib import Path
from deepfake_detector.stages.decoders import Decoders
from tests.integration.test_decoders import act
from tests.integration.test_preprocess import config_for
if __name__ == "__main__":
    with Decoders(config_for("x"), 2, act) as decoders:
        results = decoders.map(Path("{tmp_path}") / name for name in ("ok-1", "hang-2", "hang-3"))
        next(results)
        print(*decoders.pids, flush=True)
        next(results)
"""
    script = tmp_path / "parent.py"
    script.write_text(code)
    path = os.pathsep.join(filter(None, (str(REPOSITORY), os.environ.get("PYTHONPATH"))))
    parent = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": path}, text=True
    )
    assert parent.stdout is not None
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 2
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + PATIENCE
    while any(state(pid) not in "ZX" for pid in pids):
        assert time.monotonic() < deadline, f"decoding processes {pids} outlive their parent"
        time.sleep(0.05)
