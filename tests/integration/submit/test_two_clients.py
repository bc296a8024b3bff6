"""Two clients that submit to one run at the same time, in every order that matters."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.adapters.storage_gcs import GcsStorage
from deepfake_detector.core import layout
from deepfake_detector.core.errors import EXIT_PERMANENT, ConfigError
from deepfake_detector.stages.runs import load_settlement
from jobs.environment import settled_run
from tests.integration.api_server import ApiServer, Object
from tests.integration.submit.driver import (
    EXPORT,
    NEEDS,
    PREPROCESS,
    RUN,
    TRAIN,
    created,
    environment,
    errors_of,
    finish_training,
    preprocessed,
    submit,
)

pytestmark = NEEDS

PATIENCE = 20.0  # seconds
LOOKS = 2  # lists of Jobs: for the checks, and right before config.json is written
FAILED = {"type": "Failed", "status": "True", "reason": "PodFailurePolicy"}


@dataclass
class Clients:
    """A and B, each a command. B is run, or begun, at a moment of A's that a hook of the API server picks."""

    server: ApiServer
    a: list[str]
    b: list[str]
    status: dict[str, int] = field(default_factory=dict)
    a_is_done: threading.Event = field(default_factory=threading.Event)
    beside: threading.Thread | None = None

    def run(self) -> None:
        self.status["a"] = submit(*self.a)
        self.a_is_done.set()
        self.end_b()

    def run_b(self) -> None:
        self.status["b"] = submit(*self.b)

    def begin_b(self) -> None:
        """In a thread of its own."""
        self.beside = threading.Thread(target=self.run_b)
        self.beside.start()

    def end_b(self) -> None:
        if self.beside:
            self.beside.join(PATIENCE)
            assert not self.beside.is_alive()


def once(do: Callable[[], None], when: Callable[[str], bool] = lambda _: True) -> Callable[[object], None]:
    """A hook that does it at the first of the moments that `when` picks, and nothing after that."""
    waiting = [do]

    def hook(moment: object) -> None:
        if waiting and when(str(moment)):
            waiting.pop()()

    return hook


def b_before_a_writes(clients: Clients) -> None:
    """A has seen no Job, and B is done before A stores its settings."""
    looks: list[str] = []

    def is_second_look(moment: str) -> bool:
        looks.append(moment)
        return moment == "list jobs" and looks.count("list jobs") == LOOKS

    clients.server.before_answer = once(clients.run_b, is_second_look)


def b_before_a_creates(clients: Clients) -> None:
    """A has stored its settings, and B is done before A's Job is there."""
    clients.server.before_create = once(clients.run_b)


def b_when_a_has_created(clients: Clients) -> None:
    """A's Job is there, and A does not know it yet."""
    clients.server.before_answer = once(clients.run_b, lambda moment: moment == "create jobs")


def b_writes_last_and_creates_when_a_is_done(clients: Clients) -> None:
    _hold_b(clients, clients.a_is_done)


def b_writes_last_and_creates_when_a_has_created(clients: Clients) -> None:
    a_has_created = threading.Event()

    def go_on() -> None:
        a_has_created.set()
        clients.end_b()

    _hold_b(clients, a_has_created)
    clients.server.before_answer = once(go_on, lambda moment: moment == "create jobs")


def _hold_b(clients: Clients, until: threading.Event) -> None:
    """A has stored its settings; B stores its own before A's Job is there, and tries to create its Job after that."""
    b_has_written = threading.Event()
    creations: list[str] = []

    def creating(_: Object) -> None:
        creations.append("A, then B")
        if len(creations) == 1:
            clients.begin_b()
            assert b_has_written.wait(PATIENCE)
        elif len(creations) == 2:
            b_has_written.set()
            assert until.wait(PATIENCE)

    clients.server.before_create = creating


Moment = Callable[[Clients], None]
MOMENTS = {
    b_before_a_writes: "b",
    b_before_a_creates: "b",
    b_when_a_has_created: "a",
    b_writes_last_and_creates_when_a_is_done: "a",
    b_writes_last_and_creates_when_a_has_created: "a",
}


def in_order(*moments: Moment) -> list[Any]:
    return [pytest.param(moment, id=moment.__name__.replace("_", " ")) for moment in moments]


def require_settled(run: Storage, server: ApiServer) -> None:
    """The Job's pods find the settings that it was created with."""
    job = created(server)
    stage = job["metadata"]["labels"]["app.kubernetes.io/component"]
    _, settlement = settled_run(environment(job))
    assert settlement.fingerprint(stage) == job["metadata"]["annotations"]["deepfake-detector/settings"]


@pytest.mark.parametrize("moment", in_order(*MOMENTS))
def test_one_of_two_with_other_settings_is_refused(
    run: Storage, server: ApiServer, capsys: pytest.CaptureFixture[str], moment: Moment
) -> None:
    margins = {"a": 1.4, "b": 1.5}
    a, b = ([*PREPROCESS, "--set", f"faces.margin={margin}"] for margin in margins.values())
    clients = Clients(server, a, b)
    moment(clients)
    clients.run()
    winner = MOMENTS[moment]
    loser = "b" if winner == "a" else "a"
    assert clients.status == {winner: 0, loser: EXIT_PERMANENT}
    assert load_settlement(run).config.faces.margin == margins[winner]
    require_settled(run, server)
    said = capsys.readouterr()
    (error,) = errors_of(said.err)
    name = created(server)["metadata"]["name"]
    if moment is b_writes_last_and_creates_when_a_has_created:  # config.json still holds B's settings by then
        assert error.startswith(f"error: job {name}: at work with other settings than those in {RUN}/config.json")
    else:
        named = f"faces.margin={margins[loser]}: expected {margins[winner]}, with which the preprocess Job at work"
        assert error.startswith(f"error: {named}")
    assert said.out.count(f"created job {name}") == 1


@pytest.mark.parametrize("moment", in_order(*MOMENTS))
def test_two_with_the_same_settings_share_a_job(
    run: Storage, server: ApiServer, capsys: pytest.CaptureFixture[str], moment: Moment
) -> None:
    clients = Clients(server, PREPROCESS, PREPROCESS)
    moment(clients)
    clients.run()
    assert clients.status == {"a": 0, "b": 0}
    require_settled(run, server)
    said = capsys.readouterr()
    assert errors_of(said.err) == []
    name = created(server)["metadata"]["name"]
    assert (said.out.count(f"created job {name}"), said.out.count(f"attached to job {name}")) == (1, 1)


@pytest.mark.parametrize(
    ("moment", "winner"),
    [
        pytest.param(b_before_a_creates, "b", id="b before a creates"),
        pytest.param(b_writes_last_and_creates_when_a_has_created, "a", id="b creates when a has created"),
    ],
)
def test_of_two_stages_that_exclude_each_other_one_begins(
    run: Storage, server: ApiServer, capsys: pytest.CaptureFixture[str], moment: Moment, winner: str
) -> None:
    """A training exports, too, and both Jobs have names of their own."""
    preprocessed(run, server)
    assert submit(*TRAIN) == 0
    finish_training(run)
    server.remove("jobs", created(server)["metadata"]["name"])
    clients = Clients(server, EXPORT, TRAIN)
    moment(clients)
    clients.run()
    loser = "b" if winner == "a" else "a"
    assert clients.status == {winner: 0, loser: EXIT_PERMANENT}
    name = created(server)["metadata"]["name"]
    assert name.startswith({"a": "export-", "b": "train-"}[winner])
    said = capsys.readouterr()
    (error,) = errors_of(said.err)
    assert error.startswith(f"error: job {name}: at work on {RUN}, expected its end: it exports the model, too")
    assert f"removed job {'export' if winner == 'b' else 'train'}-" in said.out


def test_both_find_a_job_that_is_over(run: Storage, server: ApiServer, capsys: pytest.CaptureFixture[str]) -> None:
    """A is about to delete it when B has created it anew: B's Job stays."""
    assert submit(*PREPROCESS) == 0
    job = created(server)
    server.put("jobs", job["metadata"]["name"], **{**job, "status": {"conditions": [FAILED]}})
    clients = Clients(server, PREPROCESS, PREPROCESS)
    b_before_a_writes(clients)
    clients.run()
    assert clients.status == {"a": 0, "b": 0}
    require_settled(run, server)
    assert len([line for line in server.requests if line.startswith("DELETE")]) == 1
    assert capsys.readouterr().out.count("attached to job") == 1


def test_records_of_another_run_are_settled_like_any_setting(
    run: Storage, server: ApiServer, capsys: pytest.CaptureFixture[str]
) -> None:
    preprocessed(run, server)
    other = open_storage(f"{RUN}-other")
    records = run.read(layout.RECORDS_SUMMARY)
    for name, content in ((layout.CONFIG, run.read(layout.CONFIG)), (layout.RECORDS_SUMMARY, records)):
        other.write(name, content)
    fresh = ["submit", "train", "--run", f"{RUN}-new", "--recipe", "demo", "--records"]
    clients = Clients(server, [*fresh, run.uri], [*fresh, other.uri])
    b_before_a_creates(clients)
    clients.run()
    assert clients.status == {"a": EXIT_PERMANENT, "b": 0}
    assert f"--records '{run.uri}': expected '{other.uri}'" in capsys.readouterr().err
    new = open_storage(f"{RUN}-new")
    require_settled(new, server)
    assert load_settlement(new).records == other.uri


def test_pods_refuse_settings_that_storage_let_the_loser_write(
    run: Storage, server: ApiServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some emulators of object storage ignore preconditions."""

    def replace(self: GcsStorage, name: str, data: bytes, version: int) -> bool:
        self.write(name, data)
        return True

    a, b = ([*PREPROCESS, "--set", f"faces.margin={margin}"] for margin in (1.4, 1.5))
    clients = Clients(server, a, b)
    b_before_a_writes(clients)
    with monkeypatch.context() as patch:
        patch.setattr(GcsStorage, "replace", replace)
        clients.run()
    assert clients.status == {"a": EXIT_PERMANENT, "b": 0}
    assert load_settlement(run).config.faces.margin == 1.4
    job = created(server)
    changed = rf"{RUN}/config.json: was changed after this Job was created: .* \(make preprocess RUN={RUN} begins"
    with pytest.raises(ConfigError, match=changed):
        settled_run(environment(job))
    for command in (a, b):
        assert submit(*command) == EXIT_PERMANENT
    errors = errors_of(capsys.readouterr().err)
    assert len(errors) == 3
    assert all(f"at work with other settings than those in {RUN}/config.json" in line for line in errors)
    server.put("jobs", job["metadata"]["name"], **{**job, "status": {"conditions": [FAILED]}})  # as the pods' 78 does
    assert submit(*b) == 0
    require_settled(run, server)
    assert load_settlement(run).config.faces.margin == 1.5
