"""What is deleted, and what never is: over a folder and a bucket, with a stand-in for the cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.adapters.storage_local import LocalStorage
from deepfake_detector.cluster.clean import clean, stop
from deepfake_detector.core.errors import ClusterError, ConfigError, NotFoundError, StorageError
from tests.integration.stand_in import StandIn, job

OWN = [
    "checkpoints/00000010.json",
    "checkpoints/00000010/weights",
    "checkpoints/trained.json",
    "config.json",
    "logs/train/0/00001.log",
    "model/detector.json",
    "model/saved_model.pb",
    "plan/summary.json",
    "records/summary.json",
    "records/train/00000-of-00001.tfrecord",
    "report/report.html",
]
STRANGE = ["modelling/notes.txt", "notes.txt", "videos/real/a.mp4"]


def fill(run: Storage, videos: str = "gs://videos/first") -> None:
    for name in [*OWN, *STRANGE]:
        run.write(name, b"12345")
    document = {"given": {"recipe": "dfdc", "videos": videos}, "resolved": {}, "records": ""}
    run.write("config.json", json.dumps(document).encode())


def names(run: Storage) -> list[str]:
    return [entry.name for entry in run.list()]


def never(_: str) -> str:
    raise AssertionError("nothing was to be asked")


@pytest.fixture
def said() -> list[str]:
    return []


def test_only_the_cluster_is_cleaned_without_data(storage: Storage, said: list[str]) -> None:
    fill(storage)
    cluster: Any = StandIn([job(storage.uri, ended="Complete"), job("gs://other/run", "export", ended="Failed")])
    assert clean(cluster, storage.uri, ask=never, write=said.append) == 0
    assert cluster.deleted == ["train-first-0"]
    assert names(storage) == sorted(OWN + STRANGE)
    assert said == [
        "removed job train-first-0",
        f"data in {storage.uri} is kept (make clean RUN={storage.uri} DATA=1 removes it)",
    ]


@pytest.mark.parametrize("data", [False, True])
def test_refused_while_a_job_is_at_work(storage: Storage, data: bool) -> None:
    fill(storage)
    cluster: Any = StandIn([job(storage.uri, "preprocess", ended="Complete"), job(storage.uri)])
    with pytest.raises(ClusterError, match=r"train-first-0 at work: expected none \(make stop RUN="):
        clean(cluster, storage.uri, data=data, yes=True, ask=never)
    assert cluster.deleted == []
    assert names(storage) == sorted(OWN + STRANGE)


def test_data_is_listed_and_asked_for(storage: Storage, said: list[str]) -> None:
    fill(storage)
    questions: list[str] = []

    def answer(question: str) -> str:
        questions.append(question)
        assert names(storage) == sorted(OWN + STRANGE)
        return "run\n"

    cluster: Any = StandIn(elsewhere=[])
    assert clean(cluster, storage.uri, data=True, ask=answer, write=said.append) == 0
    assert names(storage) == STRANGE
    assert questions == ["Type the run's name, run, to delete this: "]
    listed = said[0].splitlines()
    assert listed[0].startswith(f"{storage.uri} consists of 11 objects, ")
    assert [line.split()[:3] for line in listed[1:-1]] == [
        ["checkpoints/", "3", "objects"],
        ["config.json", "1", "objects"],
        ["logs/", "1", "objects"],
        ["model/", "2", "objects"],
        ["plan/", "1", "objects"],
        ["records/", "2", "objects"],
        ["report/", "1", "objects"],
    ]
    assert listed[-1].startswith("not of the run, and left alone: modelling/notes.txt and the like, 3 objects")
    assert said[-1] == f"removed 11 objects from {storage.uri}"


def test_data_is_kept_while_a_job_in_another_namespace_is_at_work(storage: Storage, said: list[str]) -> None:
    fill(storage)
    other = job(storage.uri, "preprocess")
    other["metadata"]["namespace"] = "theirs"
    cluster: Any = StandIn([job(storage.uri, ended="Failed")], elsewhere=[job("gs://other/run"), other])
    with pytest.raises(
        ClusterError,
        match=rf"preprocess-first-0 at work in namespace theirs: .*make stop RUN={storage.uri} NAMESPACE=theirs ",
    ):
        clean(cluster, storage.uri, data=True, yes=True)
    assert (names(storage), cluster.deleted) == (sorted(OWN + STRANGE), [])
    assert clean(cluster, storage.uri, ask=never, write=said.append) == 0, "this namespace's alone"
    assert cluster.deleted == ["train-first-0"]


@pytest.mark.parametrize("yes", [False, True], ids=["asked", "yes"])
def test_namespaces_that_can_not_be_seen_are_told_of(storage: Storage, said: list[str], yes: bool) -> None:
    fill(storage)
    cluster: Any = StandIn(elsewhere=None)

    def answer(question: str) -> str:
        said.append(question)
        return "run"

    assert clean(cluster, storage.uri, data=True, yes=yes, ask=answer, write=said.append) == 0
    [told] = [text for text in said if "other namespaces may not be listed by this user" in text]
    assert ("Type the run's name" in told) == (not yes)
    assert names(storage) == STRANGE


def test_a_job_that_is_created_while_the_question_is_open_keeps_the_data(storage: Storage, said: list[str]) -> None:
    fill(storage)
    cluster: Any = StandIn([job(storage.uri, ended="Failed")], elsewhere=[])

    def answer(_: str) -> str:
        cluster.change("jobs", job(storage.uri))
        return "run"

    with pytest.raises(ClusterError, match="train-first-0 at work"):
        clean(cluster, storage.uri, data=True, ask=answer, write=said.append)
    assert (names(storage), cluster.deleted) == (sorted(OWN + STRANGE), [])


@pytest.mark.parametrize("answer", ["", "y", "yes", "runs"])
def test_another_answer_removes_nothing(storage: Storage, answer: str, said: list[str]) -> None:
    fill(storage)
    cluster: Any = StandIn([job(storage.uri, ended="Failed")])
    with pytest.raises(ConfigError, match="nothing was removed: expected the run's name, 'run'"):
        clean(cluster, storage.uri, data=True, ask=lambda _: answer, write=said.append)
    assert (names(storage), cluster.deleted) == (sorted(OWN + STRANGE), [])


def test_no_terminal(storage: Storage, said: list[str]) -> None:
    def closed(_: str) -> str:
        raise EOFError

    fill(storage)
    with pytest.raises(ConfigError, match="expected an answer on a terminal, or --yes"):
        clean(StandIn(), storage.uri, data=True, ask=closed, write=said.append)
    assert names(storage) == sorted(OWN + STRANGE)


def test_no_run(storage: Storage) -> None:
    storage.write("videos/a.mp4", b"1")
    with pytest.raises(NotFoundError, match=r"config.json: not found, expected a run"):
        clean(StandIn(), storage.uri, data=True, yes=True)
    assert names(storage) == ["videos/a.mp4"]


@pytest.mark.parametrize("inside", ["", "/records", "/records/train"])
def test_videos_are_never_removed(storage: Storage, inside: str) -> None:
    """Whatever a config says: videos that lie where a run's data does keep all of it."""
    fill(storage, videos=storage.uri + inside)
    with pytest.raises(ConfigError, match="is among the videos in"):
        clean(StandIn(), storage.uri, data=True, yes=True, write=lambda _: None)
    assert names(storage) == sorted(OWN + STRANGE)


def test_a_run_in_the_folder_of_its_videos(storage: Storage, said: list[str]) -> None:
    fill(storage, videos=storage.uri.rpartition("/")[0])
    clean(StandIn(), storage.uri, data=True, yes=True, write=said.append)
    assert names(storage) == STRANGE


def test_an_interrupted_clean_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = open_storage(str(tmp_path / "run"))
    fill(run)
    real = LocalStorage.delete

    def failing(self: LocalStorage, name: str) -> None:
        if not name.endswith(".json"):
            raise StorageError(f"{name}: away")
        real(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(LocalStorage, "delete", failing)
        with pytest.raises(StorageError):
            clean(StandIn(), run.uri, data=True, yes=True)
    left = [name for name in names(run) if name.endswith(".json")]
    assert left == ["config.json"]  # no marker without its data, and still known as a run
    clean(StandIn(), run.uri, data=True, yes=True)
    assert names(run) == STRANGE


def test_stop_ends_living_jobs_only(storage: Storage, said: list[str]) -> None:
    cluster: Any = StandIn([job(storage.uri, "preprocess", ended="Complete"), job(storage.uri)])
    assert stop(cluster, storage.uri, write=said.append) == 0
    assert cluster.deleted == ["train-first-0"]
    assert said[-1] == f"what was done is kept: the same make train RUN={storage.uri} goes on from there"
    cluster = StandIn([job(storage.uri, "preprocess", retry=1)])
    stop(cluster, storage.uri, write=said.append)
    assert said[-1].endswith(f"the same make preprocess RUN={storage.uri} RETRY_LOST=1 goes on from there")
    assert stop(cluster, storage.uri, write=said.append) == 0
    assert said[-1] == f"{storage.uri}: no Job of it is at work, nothing to stop"
