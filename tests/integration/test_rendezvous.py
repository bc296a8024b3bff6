"""Supervisors that look for each other: real processes and sockets, DNS and storage that lag, peers that never come."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deepfake_detector.adapters.attempts import AttemptWorker
from deepfake_detector.adapters.storage import Storage
from deepfake_detector.core import layout
from deepfake_detector.core.errors import EXIT_RETRY, EXIT_UNAVAILABLE, PeerError, StorageError
from deepfake_detector.core.waiting import Budget, InVain, in_vain
from deepfake_detector.stages.runs import load_config
from deepfake_detector.supervisor import keeper, member, terms
from deepfake_detector.supervisor import supervise as supervise_module
from deepfake_detector.supervisor.attempts import EXPORTED, SILENT, History
from deepfake_detector.supervisor.member import Member
from deepfake_detector.supervisor.office import Office
from deepfake_detector.supervisor.place import Place
from deepfake_detector.supervisor.policy import COMPLETE
from deepfake_detector.supervisor.supervise import _train, supervise
from deepfake_detector.supervisor.terms import Peer
from tests.integration.director import PATIENCE, Stage
from tests.integration.fake_train import FAKE


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(tmp_path) as stage:
        yield stage


def test_peer_that_never_comes_is_named(tmp_path: Path) -> None:
    with Stage(tmp_path, settings={"operations.rendezvous_seconds": 0.5}) as stage:
        peers = stage.peers.split(",")
        for index in (0, 1):  # whoever is there keeps the rendezvous, although the other was the last to keep it
            stage.start(index)
            assert stage.end(index) == (
                EXIT_UNAVAILABLE,
                f"error: worker {1 - index} ({peers[1 - index]}): not there after 0.5 s, expected its supervisor to "
                "register (operations.rendezvous_seconds)",
            )


def test_nobody_waits_longer_than_the_rendezvous_for_a_peer_that_never_comes(tmp_path: Path) -> None:
    """Room for two of three: both end with the same words, which their pods leave behind."""
    with Stage(tmp_path, workers=3, settings={"operations.rendezvous_seconds": 1.0, "train.global_batch": 6}) as stage:
        stage.start(0, 1)
        ends = [stage.end(index) for index in (0, 1)]
        assert ends[0] == ends[1]
        status, line = ends[0]
        assert status == EXIT_UNAVAILABLE
        assert in_vain(line) == InVain((2,), f"2 ({stage.peers.split(',')[2]})", "1", "never came")
        assert stage.reasons() == [], "no attempt is spent on waiting"


@dataclass
class Away:
    """The run's storage, which fails to write what begins with `prefix`, as after an outage's whole budget."""

    storage: Storage
    prefix: str

    def __getattr__(self, name: str) -> Any:
        return getattr(self.storage, name)

    def write(self, name: str, data: bytes) -> None:
        self._fail(name)
        self.storage.write(name, data)

    def create(self, name: str, data: bytes) -> bool:
        self._fail(name)
        return self.storage.create(name, data)

    def _fail(self, name: str) -> None:
        if name.startswith(self.prefix):
            raise StorageError(f"{name}: away for 300 s")


def supervise_alone(stage: Stage, run: Any, direct: Callable[[], None]) -> None:
    """The supervisor of a run with one worker, in this process; `direct` leads the children meanwhile."""
    peer = Peer("127.0.0.1", int(stage.peers.rpartition(":")[2]))
    place = Place(0, (peer,), "127.0.0.1", 20_000, stage.folder, stage.environment(0))
    with ThreadPoolExecutor(1) as pool:
        directing = pool.submit(direct)
        supervise(place, run, load_config(stage.run), train=(*FAKE, "train"), export=(*FAKE, "export"))
        directing.result(PATIENCE)


def test_storage_that_is_away_for_too_long_asks_for_another_try_by_name(tmp_path: Path) -> None:
    with Stage(tmp_path, workers=1) as stage:
        with pytest.raises(StorageError, match=r"^logs/attempts/00001\.json: away for 300 s$") as caught:
            supervise_alone(stage, Away(stage.run, layout.ATTEMPTS), lambda: None)
        assert caught.value.exit_status == EXIT_RETRY


class CutOff(Member):
    """Reaches no keeper but itself until the cut is healed: nothing is refused, nothing is answered."""

    healed = False

    async def _register(self, keeper: Peer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if keeper != self._place.rendezvous and not self.healed:
            await asyncio.Event().wait()
        return await super()._register(keeper)


def place_of(stage: Stage, index: int) -> Place:
    texts = stage.peers.split(",")
    peers = tuple(Peer("127.0.0.1", int(peer.rpartition(":")[2])) for peer in texts)
    return Place(index, peers, "127.0.0.1", 20_000 + 8 * index, stage.folder / texts[index], stage.environment(index))


@contextlib.asynccontextmanager
async def cast_off(stage: Stage) -> AsyncIterator[list[CutOff]]:
    """All supervisors, in this process."""
    config = load_config(stage.run)
    offices, members = [], []
    for index in range(stage.size):
        budget = Budget(config.operations.rendezvous_seconds)
        place = place_of(stage, index)
        offices.append(Office(place, stage.run, config, budget))
        members.append(CutOff(place, stage.run, (*FAKE, "train"), offices[-1], budget))
    try:
        yield members
    finally:
        await asyncio.gather(*(office.close() for office in offices))


async def take_part(stage: Stage, heard: list[CutOff]) -> list[str | BaseException | None]:
    """How each of two supervisors ended. heard: gets them, to be healed meanwhile."""
    async with cast_off(stage) as members:
        heard += members
        return await asyncio.wait_for(asyncio.gather(*(m.run() for m in members), return_exceptions=True), PATIENCE)


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(member, "CONNECT_SECONDS", 0.1)
    monkeypatch.setattr(keeper, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(keeper, "HOLD_SECONDS", 0.05)


@pytest.mark.usefixtures("short")
def test_two_that_can_t_reach_each_other_end_within_the_budget(tmp_path: Path) -> None:
    """Storage answers both, so each takes the rendezvous from the other again and again."""
    with Stage(tmp_path, settings={"operations.rendezvous_seconds": 1.5}) as stage:
        ends = asyncio.run(take_part(stage, []))
        assert [type(end) for end in ends] == [PeerError, PeerError], ends
        newest = terms.latest(stage.run)
        assert newest
        assert newest.number >= 3, "it went to and fro"
        assert stage.reasons() == []


@pytest.mark.usefixtures("short")
def test_a_cut_that_heals_is_got_over(stage: Stage) -> None:
    members: list[CutOff] = []

    def direct() -> None:
        stage.keeper(after=3)
        for each in members:
            each.healed = True
        for child in reversed(stage.cast()):
            child.order(0, marker=True)

    async def both() -> list[str | BaseException | None]:
        ends, _ = await asyncio.gather(take_part(stage, members), asyncio.to_thread(direct))
        return ends

    assert asyncio.run(both()) == [None, None]
    assert stage.reasons() == [COMPLETE]


@pytest.mark.usefixtures("short")
def test_a_spare_that_was_cut_off_is_called_back(tmp_path: Path) -> None:
    """It begins a term of its own, where nobody would ever come to it: the others train."""

    async def play(stage: Stage) -> None:
        async with cast_off(stage) as members, asyncio.timeout(PATIENCE):
            members[0].healed = members[1].healed = True
            tasks = [asyncio.create_task(member.run()) for member in members[:2]]
            first = await asyncio.to_thread(stage.cast)
            tasks.append(asyncio.create_task(members[2].run()))
            while await asyncio.to_thread(stage.keeper, 1) != 2:
                pass  # one of the others has taken it back
            members[2].healed = True
            tasks[1].cancel()
            second = await asyncio.to_thread(stage.cast)
            assert [worker.index for worker in stage.attempt(2).workers] == [0, 2]
            for child in first:
                await asyncio.to_thread(child.wait_gone)
            for child in reversed(second):
                await asyncio.to_thread(child.order, 0, marker=True)
            ends = await asyncio.gather(*tasks, return_exceptions=True)
            assert [ends[0], type(ends[1]), ends[2]] == [None, asyncio.CancelledError, None]

    with Stage(tmp_path, settings={"operations.spares": 1}) as stage:
        asyncio.run(play(stage))


@pytest.mark.usefixtures("short")
def test_a_spare_that_waits_in_vain_while_others_train_waits_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its end would end the Job, and the others with it."""

    async def play(stage: Stage) -> None:
        config = load_config(stage.run)
        async with cast_off(stage) as members, asyncio.timeout(PATIENCE):
            members[0].healed = members[1].healed = True
            tasks = [asyncio.create_task(member.run()) for member in members[:2]]
            children = await asyncio.to_thread(stage.cast)
            spare = asyncio.create_task(_train(place_of(stage, 2), stage.run, config, (*FAKE, "train")))
            while "training goes on without this one" not in caplog.text:
                assert not spare.done(), spare
                await asyncio.sleep(0.01)
            for child in reversed(children):
                await asyncio.to_thread(child.order, 0, marker=True)
            assert await asyncio.gather(*tasks, spare) == [None, None, None]

    monkeypatch.setattr(supervise_module, "Member", CutOff)
    with Stage(tmp_path, settings={"operations.spares": 1, "operations.rendezvous_seconds": 2.0}) as stage:
        asyncio.run(play(stage))


def test_a_spare_whose_workers_are_dead_says_that_they_did_not_come(tmp_path: Path) -> None:
    """They opened an attempt, which nobody has closed."""
    settings = {"operations.spares": 1, "operations.rendezvous_seconds": 0.5}
    with Stage(tmp_path, settings=settings) as stage:
        places = [AttemptWorker(index=index, rank=rank) for rank, index in enumerate((0, 2))]
        History(stage.run).open(1, "train", places)
        stage.start(1)
        status, line = stage.end(1)
        assert status == EXIT_UNAVAILABLE
        assert line.startswith("error: workers 0 (127.0.0.1:")


def test_trouble_in_telling_of_a_child_ends_its_supervisor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise everybody would wait for ever for the end of a child that is long gone."""

    @contextlib.asynccontextmanager
    async def follow(_log: Path, _verbose: bool) -> AsyncIterator[None]:
        yield
        raise OSError("no room for its output")

    monkeypatch.setattr(member, "follow", follow)
    with Stage(tmp_path, workers=1) as stage, pytest.raises(OSError, match="no room for its output"):
        supervise_alone(stage, stage.run, lambda: stage.cast()[0].kill())


def test_a_keeper_that_accepts_but_never_answers_is_replaced(
    stage: Stage, short: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a stopped process does: the kernel completes the connection for it."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        assert terms.take(stage.run, 1, 1, Peer(*silent.getsockname()))
        monkeypatch.setattr(member, "BACK_OFF_SECONDS", (0.01, 0.01))
        stage.start()
        children = stage.cast()
        assert stage.keeper(after=1) in (0, 1)
        for child in reversed(children):
            child.order(0, marker=True)
        stage.cast(1)[0].order(0, marker=True)


def test_a_damaged_term_is_passed_over(stage: Stage) -> None:
    stage.run.write(layout.term(7), b"{")
    stage.start()
    for child in reversed(stage.cast()):
        child.order(0, marker=True)
    stage.cast(1)[0].order(0, marker=True)
    newest = terms.latest(stage.run)
    assert newest
    assert newest.number == 8


@pytest.mark.parametrize("frozen", [0, 1], ids=["keeper", "member"])
def test_a_frozen_supervisor_is_replaced_by_a_spare(tmp_path: Path, frozen: int) -> None:
    """The kernel acknowledges for a stopped process; nobody beats for it."""
    quick = {"SILENCE_SECONDS": "1", "BEAT_SECONDS": "0.2", "CONNECT_SECONDS": "0.5"}
    with Stage(tmp_path, settings={"operations.spares": 1}) as stage:
        stage.start(0, **quick)
        assert stage.keeper() == 0
        stage.start(1, **quick)
        first = stage.cast()
        stage.start(2, **quick)
        stage.supervisors[frozen].send_signal(signal.SIGSTOP)
        first[1 - frozen].wait_gone()
        second = stage.cast()
        assert [child.attempt for child in second] == [2, 2]
        assert [worker.index for worker in stage.attempt(2).workers] == ([2, 1] if frozen == 0 else [0, 2])
        stage.supervisors[frozen].send_signal(signal.SIGCONT)
        first[frozen].wait_gone()
        for child in reversed(second):
            child.order(0, marker=True)
        stage.cast(1)[0].order(0, marker=True)
        assert [stage.end(index)[0] for index in range(3)] == [0] * 3
        silent = f"worker {frozen}: its supervisor at 127.0.0.1 said nothing for 1 s (frozen, or cut off)"
        assert stage.reasons() == [silent if frozen else SILENT, COMPLETE, EXPORTED], (
            "as the keeper of that time saw it"
        )
