"""Real supervisors, real signals, real sockets; only TensorFlow is a stand-in that does as it is told."""

from __future__ import annotations

import fcntl
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from deepfake_detector.adapters.attempts import AttemptWorker
from deepfake_detector.adapters.storage_local import LocalStorage
from deepfake_detector.core import layout
from deepfake_detector.core.errors import EXIT_UNAVAILABLE, StorageError
from deepfake_detector.supervisor import sigterm, supervise
from deepfake_detector.supervisor.attempts import KEEPER_GONE, SILENT, STOPPED, History
from deepfake_detector.supervisor.child import End
from deepfake_detector.supervisor.where import NOWHERE
from jobs.train import main
from tests.integration.director import PATIENCE, FakeWorker, Stage

KILLED = "killed by signal 9 (SIGKILL)"
DONE = ["training is complete", "the model is exported"]
STAGED = layout.staged_export("0123456789abcdef") + "model/saved_model.pb"


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(tmp_path) as stage:
        yield stage


def finish(stage: Stage, children: list[FakeWorker]) -> None:
    """Training completes, the export succeeds, every supervisor ends with 0."""
    for child in reversed(children):
        child.order(0, marker=True)
    [export] = stage.cast(1)
    assert export.stage == "export"
    export.order(0, marker=True)
    assert [stage.end(index)[0] for index in range(stage.workers)] == [0] * stage.workers


def test_undisturbed(stage: Stage) -> None:
    stage.start()
    children = stage.cast()
    assert [child.rank for child in children] == [0, 1]
    assert all(child.cluster == ["127.0.0.1:20001", "127.0.0.1:20009"] for child in children)
    finish(stage, children)
    assert stage.reasons() == DONE
    workers = [(worker.index, worker.rank, worker.address) for worker in stage.attempt(1).workers]
    assert workers == [(0, 0, "127.0.0.1:20001"), (1, 1, "127.0.0.1:20009")]


def test_a_finished_run_starts_nothing(stage: Stage) -> None:
    stage.run.write(layout.TRAINED, b"{}")
    stage.run.write(layout.DETECTOR, b"{}")
    stage.run.write(STAGED, b"of an export that died before it had tidied up")
    stage.start()
    assert [stage.end(index) for index in (0, 1)] == [(0, ""), (0, "")]
    assert stage.reasons() == []
    assert not stage.run.exists(STAGED)


def test_trained_but_not_exported_is_exported_without_peers(stage: Stage) -> None:
    stage.run.write(layout.TRAINED, b"{}")
    stage.start(0)
    [export] = stage.cast(1)
    export.order(1, "no space left")
    [export] = stage.cast(1)
    stage.run.write(STAGED, b"of an export that dies before it has tidied up")
    export.order(137, marker=True)
    assert stage.end(0)[0] == 0
    assert stage.reasons() == ["export: exit 1: no space left", "the model is exported"]
    assert not stage.run.exists(STAGED)


@pytest.mark.parametrize("victim", [0, 1])
def test_killed_child(stage: Stage, victim: int) -> None:
    stage.start()
    first = stage.cast()
    first[victim].kill()
    first[1 - victim].wait_gone()
    second = stage.cast()
    assert [child.attempt for child in second] == [2, 2]
    assert set(first[0].cluster).isdisjoint(second[0].cluster)
    finish(stage, second)
    assert stage.reasons() == [f"worker {victim}: {KILLED}", *DONE]
    stored = stage.run.read(layout.log("train", victim, 1)).decode()
    assert stored.endswith(f"--- attempt 1, worker {victim} with rank {victim}: {KILLED}\n")


@pytest.mark.parametrize("keeps", [True, False], ids=["keeper", "member"])
def test_killed_supervisor(stage: Stage, keeps: bool) -> None:
    """Its child dies with it, the peer's child is stopped, and a restart of the one is enough."""
    stage.start()
    first = stage.cast()
    keeper = stage.keeper()
    victim = keeper if keeps else 1 - keeper
    stage.signal(victim, signal.SIGKILL)
    first[victim].wait_gone()
    first[1 - victim].wait_gone()
    if keeps:
        assert stage.keeper(after=1) == 1 - victim
    stage.start(victim)
    second = stage.cast()
    assert [child.attempt for child in second] == [2, 2]
    finish(stage, second)
    assert stage.reasons() == [SILENT if keeps else f"worker {victim}: its supervisor at 127.0.0.1 is gone", *DONE]


def test_all_supervisors_lost_at_once(stage: Stage) -> None:
    """As with a node: whoever comes back first keeps the rendezvous for the other."""
    stage.start()
    first = stage.cast()
    for index in (0, 1):
        stage.supervisors[index].send_signal(signal.SIGKILL)
    for child in first:
        child.wait_gone()
    stage.start()
    second = stage.cast()
    assert [child.attempt for child in second] == [2, 2]
    finish(stage, second)
    assert stage.reasons() == [SILENT, *DONE]


def test_a_standby_child_takes_over(tmp_path: Path) -> None:
    """It waits from before the first attempt, so that its imports and the rendezvous take place at once."""
    with Stage(tmp_path, settings={"operations.standby": True}) as stage:
        stage.start(AFTER_SECONDS="0")
        first = stage.cast()
        assert [child.waited for child in first] == [True, True]
        for index in (0, 1):
            stage.await_file(stage.folder / f"scratch-{index}" / "standby-00002.log")
        first[1].kill()
        second = stage.cast()
        assert [(child.attempt, child.rank, child.waited) for child in second] == [(2, 0, True), (2, 1, True)]
        finish(stage, second)
        assert stage.reasons() == [f"worker 1: {KILLED}", *DONE]
        stored = stage.run.read(layout.log("train", 1, 2)).decode()
        assert stored == "some output\n--- attempt 2, worker 1 with rank 1: exit 0\n"


def test_a_spare_has_a_standby_child_that_dies_with_it(tmp_path: Path) -> None:
    with Stage(tmp_path, settings={"operations.spares": 1, "operations.standby": True}) as stage:
        stage.start(0, 1)
        children = stage.cast()
        stage.start(2)
        stage.await_file(stage.folder / "scratch-2" / "standby-00001.log")
        assert stage.signal(2, signal.SIGTERM) == 143
        stage.start(2)
        finish(stage, children)
        assert stage.end(2)[0] == 0


def test_memory_may_not_allow_a_standby_child(tmp_path: Path) -> None:
    with Stage(tmp_path, settings={"operations.standby": True}) as stage:
        stage.start(NEEDS_MB=str(1 << 40))
        children = stage.cast()
        assert [child.waited for child in children] == [False, False]
        finish(stage, children)


def test_member_lost_at_the_finish_ends_by_the_marker(stage: Stage) -> None:
    """Worker 1's supervisor dies with training complete: the others don't wait for it, nor it for them."""
    stage.start()
    children = stage.cast()
    stage.run.write(layout.TRAINED, b"{}")
    stage.signal(1, signal.SIGKILL)
    children[0].wait_gone()
    stage.start(1)
    assert stage.end(1)[0] == 0
    [export] = stage.cast(1)
    export.order(0, marker=True)
    assert stage.end(0)[0] == 0


@pytest.mark.parametrize(
    ("status", "attempts"),
    [
        pytest.param(1, 20, id="crash"),
        pytest.param(1, 1, id="crash in the last attempt"),
        pytest.param(78, 20, id="78"),
    ],
)
def test_status_is_0_whatever_the_child_s_was_when_training_is_complete(
    tmp_path: Path, status: int, attempts: int
) -> None:
    with Stage(tmp_path, settings={"operations.attempts": attempts}) as stage:
        stage.start()
        children = stage.cast()
        children[0].order(status, "crashed in its destructors", marker=True)
        children[1].wait_gone()
        [export] = stage.cast(1)
        export.order(0, marker=True)
        assert [stage.end(index)[0] for index in (0, 1)] == [0, 0]
        assert stage.reasons() == DONE


@pytest.mark.parametrize("victim", [0, 1])
def test_permanent_error_ends_all(stage: Stage, victim: int) -> None:
    stage.start()
    children = stage.cast()
    children[victim].order(78, "train.epochs=0: expected 1 or more")
    children[1 - victim].wait_gone()
    message = f"worker {victim}: exit 78: train.epochs=0: expected 1 or more"
    assert [stage.end(index) for index in (0, 1)] == [(78, f"error: {message}")] * 2
    assert stage.reasons() == [message]
    assert b"train.epochs=0" in stage.run.read(layout.log("train", victim, 1))


def test_permanent_error_of_the_export(stage: Stage) -> None:
    stage.run.write(layout.TRAINED, b"{}")
    stage.start(0)
    [export] = stage.cast(1)
    export.order(78, "model.h5: damaged")
    assert stage.end(0) == (78, "error: export: exit 78: model.h5: damaged")


def test_attempts_are_counted_over_restarts(tmp_path: Path) -> None:
    with Stage(tmp_path, settings={"operations.attempts": 2}) as stage:
        stage.start(0, POD_NAME="train-0")
        assert stage.keeper() == 0
        stage.start(1)
        first = stage.cast()
        stage.signal(0, signal.SIGKILL)
        first[1].wait_gone()
        stage.start(0, POD_NAME="train-0")
        second = stage.cast()
        second[1].order(75, "storage was away")
        second[0].wait_gone()
        said = "2 attempts of training: expected at most operations.attempts=2 over the run (raise it to go on); "
        said += "the last ended with worker 1: exit 75: storage was away"
        assert [stage.end(index) for index in (0, 1)] == [(78, f"error: {said}")] * 2
        assert stage.reasons() == [KEEPER_GONE, "worker 1: exit 75: storage was away"]
        stage.start()
        assert [stage.end(index) for index in (0, 1)] == [(78, f"error: {said}")] * 2


def test_attempts_of_the_export_are_counted_by_themselves(tmp_path: Path) -> None:
    with Stage(tmp_path, settings={"operations.attempts": 2}) as stage:
        stage.run.write(layout.TRAINED, b"{}")
        stage.start(0)
        for _ in range(2):
            [export] = stage.cast(1)
            export.order(1, "no space left")
        said = "2 attempts of the export: expected at most operations.attempts=2 without success (raise it to go on); "
        said += "the last ended with export: exit 1: no space left (2 times)"
        assert stage.end(0) == (78, f"error: {said}")


def test_what_a_person_or_nobody_s_word_ends_is_no_attempt(tmp_path: Path) -> None:
    """Ctrl-C on one machine, where the launcher sends SIGTERM, and SIGKILL: as often as there are attempts."""
    with Stage(tmp_path, settings={"operations.attempts": 2}) as stage:
        stage.start()
        for number, status in ((signal.SIGTERM, 143), (signal.SIGKILL, -signal.SIGKILL)):
            children = stage.cast()
            victim = stage.keeper()
            assert stage.signal(victim, number) == status
            for child in children:
                child.wait_gone()
            stage.start(victim)
        finish(stage, stage.cast())
        assert stage.reasons() == [STOPPED, SILENT, *DONE]


@pytest.mark.parametrize(
    ("pod", "reason"),
    [
        pytest.param("train-0", f"export: {sigterm.SAID}", id="in a pod"),
        pytest.param("", STOPPED, id="on one machine"),
    ],
)
def test_an_export_that_is_told_to_end_says_so(stage: Stage, pod: str, reason: str) -> None:
    stage.run.write(layout.TRAINED, b"{}")
    stage.start(0, POD_NAME=pod)
    [export] = stage.cast(1)
    assert stage.signal(0, signal.SIGTERM) == 143
    export.wait_gone()
    assert stage.reasons() == [reason]


def test_a_pod_that_is_told_to_end_has_used_its_attempt(tmp_path: Path) -> None:
    """Kubernetes does not count it: a spot node on which training never gets on would be taken again for ever."""
    with Stage(tmp_path, settings={"operations.attempts": 2}) as stage:
        stage.start(0, POD_NAME="train-0", NODE_NAME="node-1")
        assert stage.keeper() == 0
        stage.start(1)
        children = stage.cast()
        assert stage.signal(0, signal.SIGTERM) == 143
        for child in children:
            child.wait_gone()
        assert stage.reasons() == ["worker 0 on node-1: its supervisor at 127.0.0.1 is gone"]


def test_workers_are_named_with_their_pods_and_nodes(stage: Stage) -> None:
    for index in (0, 1):
        stage.start(index, POD_NAME=f"train-{index}", NODE_NAME=f"node-{index}")
    first = stage.cast()
    first[1].kill()
    first[0].wait_gone()
    finish(stage, stage.cast())
    assert stage.reasons() == [f"worker 1 on node-1: {KILLED}", *DONE]
    here, there = ("train-0", "node-0"), ("train-1", "node-1")
    workers = [[(worker.pod, worker.node) for worker in stage.attempt(number).workers] for number in (1, 2, 3)]
    assert workers == [[here, there], [here, there], [here]], "the export's is the chief's"
    for name, title in (
        (layout.log("train", 1, 1), f"attempt 1, worker 1 with rank 1, pod train-1 on node-1: {KILLED}"),
        (layout.log("export", 0, 3), "attempt 3, export, pod train-0 on node-0: exit 0"),
    ):
        assert stage.run.read(name).decode().endswith(f"--- {title}\n")


def supervisor_log(stage: Stage, index: int, number: int = 1) -> str:
    return stage.run.read(layout.supervisor_log("train", index, number)).decode()


def test_why_a_supervisor_ended_is_kept_in_the_run(tmp_path: Path) -> None:
    """Where its own log and its message are read after the pod is gone."""
    with Stage(tmp_path, settings={"operations.rendezvous_seconds": 0.3}) as stage:
        message = tmp_path / "termination-log"
        for number in (1, 2):
            stage.start(0, TERMINATION_LOG=str(message))
            status, line = stage.end(0)
            said = line.removeprefix("error: ")
            assert (status, message.read_text()) == (EXIT_UNAVAILABLE, f"{said}\n")
            there = stage.peers.split(",")[1]
            assert f"waiting for worker 1 ({there})\n" in supervisor_log(stage, 0, number)
            assert supervisor_log(stage, 0, number).endswith(f"--- supervisor 0: {said}\n")


def test_a_permanent_error_is_kept_for_every_supervisor(stage: Stage) -> None:
    stage.start()
    stage.cast()[0].order(78, "a=0: expected 1")
    for index in (0, 1):
        assert stage.end(index)[0] == 78
        assert supervisor_log(stage, index).endswith(f"--- supervisor {index}: worker 0: exit 78: a=0: expected 1\n")


def test_ends_of_children_are_no_message_of_the_pod(stage: Stage) -> None:
    message = stage.folder / "termination-log"
    stage.start(TERMINATION_LOG=str(message))
    first = stage.cast()
    first[0].order(75, "storage was away")
    first[1].wait_gone()
    finish(stage, stage.cast())
    assert not message.exists()


def test_supervisor_of_another_run_is_refused(stage: Stage, tmp_path: Path) -> None:
    with Stage(tmp_path / "other", settings={"operations.rendezvous_seconds": 0.5}) as other:
        other.peers = stage.peers
        stage.start(0)
        other.start(1)
        assert other.end(1)[0] == EXIT_UNAVAILABLE
    stage.start(1)
    finish(stage, stage.cast())


def test_sigterm_is_obeyed_at_once(stage: Stage) -> None:
    """The stand-in ignores SIGTERM as TensorFlow may; its supervisor ends it all the same, and keeps its log."""
    message = stage.folder / "termination-log"
    stage.start(0, TERMINATION_LOG=str(message))
    assert stage.keeper() == 0
    stage.start(1, TERMINATION_LOG=str(message))
    children = stage.cast()
    assert stage.signal(1, signal.SIGTERM) == 143
    for child in children:
        child.wait_gone()
    assert message.read_text() == f"{sigterm.SAID}\n"
    stored = stage.run.read(layout.log("train", 1, 1)).decode()
    assert stored == f"\n--- attempt 1, worker 1 with rank 1: {sigterm.SAID}\n"
    assert stage.await_reason(1) == "worker 1: its supervisor at 127.0.0.1 is gone"
    assert stage.signal(0, signal.SIGTERM) == 143


@pytest.mark.parametrize("victim", [0, 1], ids=["keeper", "member"])
def test_who_is_told_to_end_does_not_come_back(stage: Stage, victim: int) -> None:
    """Its log takes long to keep: the next attempt begins with its replacement all the same."""
    log = layout.log("train", victim, 1)
    with (stage.folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        locked = [{"LOCK_ON_LOGS": lock.name} if index == victim else {} for index in (0, 1)]
        stage.start(0, **locked[0])
        assert stage.keeper() == 0
        stage.start(1, **locked[1])
        first = stage.cast()
        leaving = stage.supervisors[victim]
        leaving.send_signal(signal.SIGTERM)
        for child in first:
            child.wait_gone()
        stage.start(victim)
        second = stage.cast()
        assert [child.attempt for child in second] == [2, 2]
        finish(stage, second)
        assert not stage.run.exists(log)
    leaving.communicate(timeout=PATIENCE)
    assert leaving.returncode == 143
    assert stage.run.exists(log)
    ended, *done = stage.reasons()
    assert (ended, done) == (STOPPED if victim == 0 else "worker 1: its supervisor at 127.0.0.1 is gone", DONE)


@pytest.mark.parametrize("trained", [False, True], ids=["the chief in training", "the chief in the export"])
def test_sigterm_keeps_the_log_of_what_it_ends(stage: Stage, trained: bool) -> None:
    if trained:
        stage.run.write(layout.TRAINED, b"{}")
        stage.start(0)
    else:
        stage.start()
    children = stage.cast(1 if trained else 2)
    assert stage.signal(0, signal.SIGTERM) == 143
    for child in children:
        child.wait_gone()
    stored = stage.run.read(layout.log("export" if trained else "train", 0, 1)).decode()
    assert stored.endswith(f": {sigterm.SAID}\n")


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        pytest.param({"PEERS": "127.0.0.1:1"}, "worker 0 of 1 peers: expected train.workers=2", id="too few peers"),
        pytest.param({"PEERS": "a-0.training:1,a-1.training:1"}, "POD_IP: not set, expected", id="no address"),
        pytest.param({"PEERS": "127.0.0.1"}, "PEERS: '127.0.0.1': expected host:port", id="no port"),
        pytest.param({"JOB_COMPLETION_INDEX": "x"}, "JOB_COMPLETION_INDEX='x': expected a number", id="no index"),
        pytest.param({"JOB_COMPLETION_INDEX": "2"}, "worker 2 of 2 peers: expected", id="index above the workers"),
        pytest.param({"RUN": ""}, "RUN: not set", id="no run"),
        pytest.param({"RUN": "ftp://x"}, "'ftp://x': expected a folder or gs://", id="no such storage"),
    ],
)
def test_bad_environment_is_refused(
    stage: Stage, capsys: pytest.CaptureFixture[str], environment: dict[str, str], message: str
) -> None:
    assert main({**stage.environment(0), **environment}) == 78
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {message}")


def test_what_an_export_said_is_kept_where_its_end_can_t_be(tmp_path: Path) -> None:
    class Away(LocalStorage):
        def write(self, name: str, data: bytes) -> None:
            if name == layout.attempt(1):
                raise StorageError(f"{name}: away")
            super().write(name, data)

    run, output = Away(tmp_path / "run"), tmp_path / "output"
    history = History(run)
    history.open(1, "export", [AttemptWorker(index=0, rank=0, pod="train-0")])
    output.write_text("calibrating\n")
    with pytest.raises(StorageError):
        supervise._conclude_export(run, history, NOWHERE, output, End(75, "exit 75: away"))
    assert run.read(layout.log("export", 0, 1)) == b"calibrating\n--- attempt 1, export: exit 75: away\n"
