"""Supervisors that look for each other: real processes and sockets, DNS and storage that lag, peers that never come."""

from __future__ import annotations

import asyncio
import signal
import socket
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.core import layout
from deepfake_detector.core.errors import EXIT_RETRY, EXIT_UNAVAILABLE, PeerError, StorageError
from deepfake_detector.core.waiting import InVain, in_vain
from deepfake_detector.stages.runs import load_config
from deepfake_detector.supervisor import member
from deepfake_detector.supervisor.attempts import EXPORTED
from deepfake_detector.supervisor.keeper import Peer
from deepfake_detector.supervisor.member import Place
from deepfake_detector.supervisor.policy import COMPLETE
from deepfake_detector.supervisor.supervise import supervise
from tests.integration.director import PATIENCE, TRAIN, Stage
from tests.integration.fake_train import FAKE


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with Stage(tmp_path) as stage:
        yield stage


def test_peer_that_never_comes_is_named(tmp_path: Path) -> None:
    with Stage(tmp_path, settings={"operations.rendezvous_seconds": 0.5}) as stage:
        here, there = stage.peers.split(",")
        stage.start(0)
        assert stage.end(0) == (
            EXIT_UNAVAILABLE,
            f"error: worker 1 ({there}): not there after 0.5 s, expected its supervisor to register "
            "(operations.rendezvous_seconds)",
        )
        stage.start(1)
        assert stage.end(1) == (
            EXIT_UNAVAILABLE,
            f"error: supervisor 0 ({here}): no answer for 0.5 s (Connect call failed ('127.0.0.1', "
            f"{here.rpartition(':')[2]})), expected it to keep the rendezvous (operations.rendezvous_seconds)",
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


def test_an_address_that_can_t_be_told_keeps_nobody_from_training(tmp_path: Path) -> None:
    """It is a hint for those who can't resolve the chief's name yet."""
    with Stage(tmp_path, workers=1) as stage:

        def direct() -> None:
            stage.cast(1)[0].order(0, marker=True)
            stage.cast(1)[0].order(0, marker=True)

        supervise_alone(stage, Away(stage.run, layout.RENDEZVOUS), direct)
        assert stage.reasons() == [COMPLETE, EXPORTED]


def test_storage_that_is_away_for_too_long_asks_for_another_try_by_name(tmp_path: Path) -> None:
    with Stage(tmp_path, workers=1) as stage:
        with pytest.raises(StorageError, match=r"^logs/attempts/00001\.json: away for 300 s$") as caught:
            supervise_alone(stage, Away(stage.run, layout.ATTEMPTS), lambda: None)
        assert caught.value.exit_status == EXIT_RETRY


def take_part_by_name(stage: Stage, direct: Callable[[], None]) -> None:
    """Supervisor 0 is a process of its own, 1 is in this one, where DNS is a stand-in; `direct` leads the children."""
    port = int(stage.peers.split(",")[0].rpartition(":")[2])
    peers = (Peer("a-0.training", port), Peer("a-1.training", 1))
    place = Place(1, peers, "127.0.0.1", 20_008, stage.folder, stage.environment(1))
    supervisor = member.Member(place, stage.run, (*FAKE, "train"), patience=PATIENCE)

    async def take_part() -> None:
        error, _ = await asyncio.gather(supervisor.run(), asyncio.to_thread(direct))
        assert error is None

    stage.start(0)
    asyncio.run(take_part())
    assert stage.end(0)[0] == 0


def test_a_keeper_is_found_under_the_address_that_its_name_has_now(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS lags behind a pod that starts, and behind one that was replaced and has another address."""
    unknown = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
    answers: deque[str | Exception] = deque([unknown, "127.0.0.1"])
    resolve = socket.getaddrinfo

    def lagging_dns(host: str, *options: int) -> object:
        if host != "a-0.training":
            return resolve(host, *options)
        answer = answers.popleft() if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return resolve(answer, *options)

    monkeypatch.setattr(socket, "getaddrinfo", lagging_dns)

    def direct() -> None:
        first = stage.cast()
        answers.extend([unknown, "127.0.0.2"])  # after another 127.0.0.1, where nobody is any more
        stage.signal(0, signal.SIGKILL)
        for child in first:
            child.wait_gone()
        stage.start(0, POD_IP="127.0.0.2")
        second = stage.cast()
        assert [child.cluster[0] for child in second] == ["127.0.0.2:20002"] * 2
        for child in reversed(second):
            child.order(0, marker=True)
        stage.cast(1)[0].order(0, marker=True)

    take_part_by_name(stage, direct)


def test_a_keeper_is_found_where_it_says_it_is_while_its_name_is_unknown(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cluster's DNS may answer for 30 s that a pod's name does not exist, and an older address may be anybody's."""
    resolve = socket.getaddrinfo

    def ignorant_dns(host: str, *options: int) -> object:
        if host == "a-0.training":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return resolve(host, *options)

    monkeypatch.setattr(socket, "getaddrinfo", ignorant_dns)
    stage.run.write(layout.RENDEZVOUS, b'{"host": "127.0.0.1", "port": 1}')  # of a pod that is gone

    def direct() -> None:
        for child in reversed(stage.cast()):
            child.order(0, marker=True)
        stage.cast(1)[0].order(0, marker=True)

    take_part_by_name(stage, direct)


def test_keeper_that_accepts_but_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a stopped process does: the kernel completes the connection for it."""
    monkeypatch.setattr(member, "CONNECT_SECONDS", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        peer = Peer(*silent.getsockname())
        place = Place(1, (peer, peer), "127.0.0.1", 20_000, tmp_path, {})
        silenced = member.Member(place, open_storage(str(tmp_path / "run")), TRAIN, patience=0.3)
        with pytest.raises(
            PeerError, match=r"no answer for 0.3 s \(silent for 0.1 s\), expected it to keep the rendezvous"
        ):
            asyncio.run(asyncio.wait_for(silenced.run(), PATIENCE))
