"""How `logs` follows pods to the end of their Jobs: lost streams, streams without an end, replacements."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from deepfake_detector.adapters import cluster as adapter
from deepfake_detector.adapters.cluster import Cluster
from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.cluster import logs
from deepfake_detector.cluster.logs import show_logs
from tests.integration.api_server import ApiServer
from tests.integration.stand_in import StandIn, job, pod

SECONDS = 20.0


@pytest.fixture
def run(storage: Storage) -> Storage:
    storage.write("logs/train/0/00001.log", b"step 1\n--- worker 0: lost its peer\n")
    return storage


def test_follows_replacements_until_the_job_is_over(run: Storage) -> None:
    first, second = pod(run.uri, "train", 0), pod(run.uri, "train", 0, suffix="fghij")
    quick = pod(run.uri, "train", 1, "Succeeded", suffix="klmno")  # began and ended between two looks
    said = {
        "train-first-0-0-abcde": ["step 3"],
        "train-first-0-0-fghij": ["step 4"],
        "train-first-0-1-klmno": ["quick"],
    }
    cluster: Any = StandIn([job(run.uri)], [first], said)
    lines: list[str] = []
    heard = threading.Condition()

    def write(line: str) -> None:
        with heard:
            lines.append(line)
            heard.notify_all()

    def wait_for(line: str) -> None:
        with heard:
            assert heard.wait_for(lambda: line in lines, timeout=60)

    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(show_logs, cluster, run.uri, stage="train", follow=True, write=write)
        wait_for("worker 0: step 3")
        cluster.change("pods", second)
        wait_for("worker 0: step 4")
        cluster.change("pods", quick)
        cluster.change("jobs", job(run.uri, ended="Complete"))
        assert following.result(timeout=60) == 0
    assert lines[-2:] == ["== train-first-0-1-klmno: worker 1 done", "quick"]


@pytest.fixture
def vanishing(server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """A run whose one Job has a pod that runs, and of whose log no more comes."""
    monkeypatch.setattr(logs, "LAST_WORDS_SECONDS", 0.05)
    run = open_storage(str(tmp_path / "run"))
    server.endless_logs = True
    del server.said[1:]
    server.put("jobs", "train-first-0", **job(run.uri))
    server.put("pods", POD, **pod(run.uri, "train", 0))
    return run


POD = "train-first-0-0-abcde"


@contextlib.contextmanager
def followed(cluster: Cluster, run: Storage) -> Iterator[queue.Queue[str]]:
    """The lines of `logs` as it follows the run; at the end it has to succeed."""
    heard: queue.Queue[str] = queue.Queue()
    with ThreadPoolExecutor(1) as pool:
        following = pool.submit(show_logs, cluster, run.uri, follow=True, write=heard.put)
        yield heard
        assert following.result(timeout=SECONDS) == 0


def given_up(server: ApiServer, run: Storage) -> None:
    """Its node does not answer: the node controller deletes the pod, which nobody ends."""
    thing = pod(run.uri, "train", 0)
    thing["metadata"] |= {"deletionTimestamp": "2026-01-01T00:00:40Z", "deletionGracePeriodSeconds": 0}
    server.put("pods", POD, **thing)


def failed(server: ApiServer, run: Storage) -> None:
    server.put("pods", POD, **pod(run.uri, "train", 0, "Failed"))


def removed(server: ApiServer, run: Storage) -> None:
    server.remove("pods", POD)


@pytest.mark.parametrize("vanish", [given_up, failed, removed])
def test_a_stream_that_does_not_end_is_left_when_its_pod_has_ended(
    vanishing: Storage, server: ApiServer, cluster: Cluster, vanish: Callable[[ApiServer, Storage], None]
) -> None:
    with followed(cluster, vanishing) as heard:
        lines = [heard.get(timeout=SECONDS) for _ in range(2)]
        vanish(server, vanishing)
        lines.append(heard.get(timeout=SECONDS))
        server.put("jobs", "train-first-0", **job(vanishing.uri, ended="Failed"))
    assert lines == [
        f"== {POD}: worker 0 runs on node-1",
        "worker 0: first",
        f"worker 0: (no more comes of pod {POD}, which has ended or was lost with its node)",
    ]


def test_a_job_that_is_deleted_before_it_is_watched_is_over(
    vanishing: Storage, server: ApiServer, cluster: Cluster
) -> None:
    server.remove("pods", POD)

    def delete(answer: str) -> None:
        if answer == "list jobs" and "jobs/train-first-0" in server.objects:
            server.remove("jobs", "train-first-0")

    vanishing.write("logs/train/0/00001.log", b"step 1\n")
    server.before_answer = delete
    with followed(cluster, vanishing):
        pass


def test_an_api_server_that_is_away_is_told_and_waited_for(
    vanishing: Storage, server: ApiServer, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapter, "RETRY_SECONDS", (0.01, 0.01))
    with followed(cluster, vanishing) as heard:
        server.wait_for_watches(2)
        server.refusals.extend([(503, {"message": "starting"})] * 12)
        server.drop_watches()
        while "waiting for it" not in heard.get(timeout=SECONDS):
            pass
        while heard.get(timeout=SECONDS) != "(the API server answers again)":
            pass
        server.remove("pods", POD)
        server.remove("jobs", "train-first-0")


def away_for_a_moment(server: ApiServer) -> None:
    server.refusals.extend([(503, {"message": "starting"})] * 3)
    server.drop_logs()


@pytest.mark.parametrize("lose", [ApiServer.drop_logs, ApiServer.end_logs, away_for_a_moment])
def test_a_stream_that_was_lost_goes_on_where_it_was(
    vanishing: Storage,
    server: ApiServer,
    cluster: Cluster,
    monkeypatch: pytest.MonkeyPatch,
    lose: Callable[[ApiServer], None],
) -> None:
    monkeypatch.setattr(adapter, "RETRY_SECONDS", (0.01, 0.01))
    monkeypatch.setattr(logs, "LAST_WORDS_SECONDS", SECONDS)
    with followed(cluster, vanishing) as heard:
        server.wait_for_watches(2)
        server.say("2026-01-01T00:00:07.123456789Z", "tick")
        lines = [heard.get(timeout=SECONDS) for _ in range(3)]
        lose(server)
        server.say("2026-01-01T00:00:07.123456790Z", "tick")
        server.say("2026-01-01T00:00:09.5Z", "tock")
        lines += [heard.get(timeout=SECONDS) for _ in range(2)]
        server.endless_logs = False
        server.end_logs()
        server.put("pods", POD, **pod(vanishing.uri, "train", 0, "Succeeded"))
        server.put("jobs", "train-first-0", **job(vanishing.uri, ended="Complete"))
    assert lines == [
        f"== {POD}: worker 0 runs on node-1",
        *(f"worker 0: {text}" for text in ("first", "tick", "tick", "tock")),
    ]
    assert heard.empty()
    opened = [line for line in server.requests if "/log?" in line]
    assert "tailLines=100" in opened[0]
    assert all("sinceTime=2026-01-01T00%3A00%3A0" in line and "tailLines" not in line for line in opened[1:])


def test_a_pod_that_was_deleted_while_its_stream_was_lost(
    vanishing: Storage, server: ApiServer, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it said last is not known, and that is told."""
    monkeypatch.setattr(adapter, "RETRY_SECONDS", (0.01, 0.01))
    monkeypatch.setattr(logs, "LAST_WORDS_SECONDS", SECONDS)
    with followed(cluster, vanishing) as heard:
        server.wait_for_watches(2)
        assert [heard.get(timeout=SECONDS) for _ in range(2)][1] == "worker 0: first"
        server.refusals.append((404, {"reason": "NotFound", "message": f'pods "{POD}" not found'}))
        server.drop_logs()
        assert heard.get(timeout=SECONDS).endswith(f'refused (404): pods "{POD}" not found)')
        server.remove("pods", POD)
        server.remove("jobs", "train-first-0")
