"""What `logs` shows, over a folder and a bucket, with a stand-in for the cluster."""

from __future__ import annotations

from typing import Any

import pytest

from deepfake_detector.adapters.attempts import Attempt, AttemptWorker, Work
from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.cluster.logs import TAIL_LINES, show_logs
from deepfake_detector.core import layout
from deepfake_detector.core.errors import NotFoundError
from deepfake_detector.supervisor.attempts import (
    EXPORTED,
    KEEPER_GONE,
    POD_GONE,
    SHARD_DONE,
)
from deepfake_detector.supervisor.policy import COMPLETE
from tests.integration.stand_in import StandIn, job, pod

STORED = {
    "logs/train/0/00001.log": "step 1\n--- worker 0: lost its peer\n",
    "logs/train/0/00002.log": "step 2\n--- worker 0: done\n",
    "logs/train/0/progress.json": "{}",
    "logs/train/1/00001.log": "one\n--- attempt 1, worker 1 with rank 1, pod train-first-0-1-abcde on node-1: exit 0\n",
    "logs/train/1/supervisor-00001.log": "gave up\n",
    "logs/preprocess/10/00001.log": "shard ten\n",
    "logs/metrics.jsonl": "{}\n",
    "logs/attempts/00001.json": "{}",
}


@pytest.fixture
def run(storage: Storage) -> Storage:
    for name, text in STORED.items():
        storage.write(name, text.encode())
    return storage


def shown(cluster: Any, run: Storage, **choice: Any) -> list[str]:
    lines: list[str] = []
    assert show_logs(cluster, run.uri, write=lines.append, **choice) == 0
    return lines


def lived(run: Storage, stage: Work, index: int, number: int, pod: str, reason: str | None, log: str = "") -> list[str]:
    """A life and, with what it said, the log that it left; returns what `logs` shows of that log."""
    worker = AttemptWorker(index=index, rank=0, pod=pod, node="node-1")
    attempt = Attempt(attempt=number, stage=stage, workers=[worker], started=0.0, reason=reason)
    run.write(layout.attempt(number, index if stage == "preprocess" else None), attempt.encode())
    if not log:
        return []
    name, text = layout.log(stage, index, number), f"{log}\n--- {stage} {index}, pod {pod} on node-1: {reason}"
    run.write(name, text.encode())
    return [f"== {name}", text]


def test_newest_of_all_after_the_pods_are_gone(run: Storage) -> None:
    expected = [
        "== logs/preprocess/10/00001.log",
        "shard ten",
        "== train 0: 1 older ones, which STAGE=train POD=0 shows",
        "== logs/train/0/00002.log",
        "step 2\n--- worker 0: done",
        "== logs/train/1/00001.log",
        STORED["logs/train/1/00001.log"].rstrip("\n"),
        "== logs/train/1/supervisor-00001.log",
        "gave up",
    ]
    assert shown(StandIn(), run) == expected
    assert shown(None, run) == expected


@pytest.mark.parametrize(
    ("choice", "files"),
    [
        pytest.param({"stage": "preprocess"}, ["logs/preprocess/10/00001.log"], id="stage"),
        pytest.param(
            {"stage": "train", "pod": "0"}, ["logs/train/0/00001.log", "logs/train/0/00002.log"], id="all of an index"
        ),
        pytest.param(
            {"pod": "train-first-1a2b3c4d-1-x7k2p"},
            ["logs/train/1/00001.log", "logs/train/1/supervisor-00001.log"],
            id="pod that is gone",
        ),
        pytest.param({"pod": "10"}, ["logs/preprocess/10/00001.log"], id="two digits"),
    ],
)
def test_choice(run: Storage, choice: dict[str, str], files: list[str]) -> None:
    lines = shown(StandIn(), run, **choice)
    assert [line for line in lines if line.startswith("==")] == [f"== {name}" for name in files]


@pytest.mark.parametrize(
    ("choice", "says"),
    [
        ({"stage": "export"}, r"no logs of stage 'export': expected one of preprocess 10; train 0, 1"),
        ({"stage": "train", "pod": "7"}, r"no logs of stage 'train', pod '7': expected one of"),
        ({"pod": "preprocess-first-1a2b3c4d-1-x7k2p"}, r"no logs of pod 'preprocess-first"),
    ],
    ids=["stage", "index", "pod"],
)
def test_says_what_there_is(run: Storage, choice: dict[str, str], says: str) -> None:
    with pytest.raises(NotFoundError, match=says):
        shown(StandIn(), run, **choice)


def test_nothing_at_all(storage: Storage) -> None:
    with pytest.raises(NotFoundError, match="no logs yet, and no pods: expected a run that was submitted"):
        shown(StandIn(), storage)


def test_pods(run: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    pods = [
        pod(run.uri, "train", 0),
        pod(run.uri, "train", 1, "Succeeded"),  # what it said is stored
        pod(run.uri, "train", 2, "Failed"),  # nothing of it is
        pod(run.uri, "export", 0, "Pending"),
        pod("gs://other/run", "train", 0),
    ]
    said = {"train-first-0-0-abcde": ["step 3", "step 4"], "train-first-0-2-abcde": ["no bucket"]}
    cluster = StandIn(pods=pods, said=said)
    lines = shown(cluster, run)
    assert lines[9:] == [
        "== train-first-0-2-abcde: worker 2 failed: Failed",
        "no bucket",
        "== export-first-0-0-abcde: export waits for a node",
        "(no output: pod export-first-0-0-abcde: container has not started)",
        "== train-first-0-0-abcde: worker 0 runs on node-1",
        "step 3",
        "step 4",
    ]
    assert set(cluster.tails) == {TAIL_LINES}
    assert shown(cluster, run, pod="train-first-0-0-abcde")[-2:] == ["step 3", "step 4"]
    assert cluster.tails[-1] is None  # all of what was asked for by name
    cluster.away = True
    assert len(shown(cluster, run)) == 9
    assert "pods are left out: context test: does not answer" in capsys.readouterr().err


def test_the_last_life_is_shown_and_not_an_earlier_one(storage: Storage) -> None:
    """Of shard 0 the log of the first pod is stored; the second was killed, and the third runs."""
    pods = [
        pod(storage.uri, "preprocess", 0, "Failed"),
        pod(storage.uri, "preprocess", 0, "Failed", suffix="fghij"),
        pod(storage.uri, "preprocess", 0, suffix="klmno"),
    ]
    names = [each["metadata"]["name"] for each in pods]
    said = {name: [f"said by {name}"] for name in names}
    first = lived(storage, "preprocess", 0, 1, names[0], "exit 75: away", "said first")
    lived(storage, "preprocess", 0, 2, names[1], POD_GONE)
    lived(storage, "preprocess", 0, 3, names[2], None)
    older = "== preprocess 0: 2 older ones, which STAGE=preprocess POD=0 shows"
    running = [f"== {names[2]}: shard 0 runs on node-1", f"said by {names[2]}"]
    killed = [f"== {names[1]}: shard 0 failed: Failed", f"said by {names[1]}"]
    lost = f"== preprocess 0, attempt 2, pod {names[1]} on node-1: no log of it is stored ({POD_GONE})"
    assert shown(StandIn(pods=pods, said=said), storage) == [older, *running]
    assert shown(StandIn(pods=pods, said=said), storage, pod="0") == [
        *first,
        lost,
        *killed,
        *running,
    ]
    unknown = (
        f"== preprocess 0, attempt 3, pod {names[2]} on node-1: no log of it is stored (it runs, or was lost without"
    )
    assert shown(None, storage) == [older, f"{unknown} a word)"]


def test_a_life_that_was_lost_is_told_while_its_replacement_waits(storage: Storage) -> None:
    """Of shard 0 the pod of attempt 2 vanished with its node."""
    lived(storage, "preprocess", 0, 1, "preprocess-first-0-0-abcde", "exit 75: away", "said first")
    lived(storage, "preprocess", 0, 2, "preprocess-first-0-0-fghij", POD_GONE)
    waiting = pod(storage.uri, "preprocess", 0, "Pending", suffix="klmno")
    assert shown(StandIn(pods=[waiting]), storage) == [
        "== preprocess 0: 1 older ones, which STAGE=preprocess POD=0 shows",
        f"== preprocess 0, attempt 2, pod preprocess-first-0-0-fghij on node-1: no log of it is stored ({POD_GONE})",
        "== preprocess-first-0-0-klmno: shard 0 waits for a node",
        "(no output: pod preprocess-first-0-0-klmno: container has not started)",
    ]


def test_a_pods_own_log_is_in_its_lifes_place(storage: Storage) -> None:
    killed = pod(storage.uri, "preprocess", 0, "Failed")
    early = pod(storage.uri, "preprocess", 0, "Failed", suffix="fghij")  # before it could open an attempt
    stored = pod(storage.uri, "preprocess", 0, "Failed", suffix="klmno")
    names = [each["metadata"]["name"] for each in (killed, early, stored)]
    cluster = StandIn(pods=[killed, early, stored], said={name: [f"said by {name}"] for name in names})
    lived(storage, "preprocess", 0, 1, names[0], POD_GONE)
    second = lived(storage, "preprocess", 0, 2, names[2], "exit 75: away", "said second")
    assert shown(cluster, storage, pod="0") == [
        f"== preprocess 0, attempt 1, pod {names[0]} on node-1: no log of it is stored ({POD_GONE})",
        f"== {names[0]}: shard 0 failed: Failed",
        f"said by {names[0]}",
        *second,
        f"== {names[1]}: shard 0 failed: Failed",
        f"said by {names[1]}",
    ]


def test_what_succeeded_is_only_named(storage: Storage) -> None:
    pods = [pod(storage.uri, "preprocess", index, "Succeeded") for index in range(4)]
    pods[2] = pod(storage.uri, "preprocess", 2, "Failed")
    pods.append(pod(storage.uri, "preprocess", 4))
    names = [each["metadata"]["name"] for each in pods]
    lived(storage, "preprocess", 0, 1, names[0], SHARD_DONE, "made")
    lived(storage, "preprocess", 1, 1, names[1], SHARD_DONE)  # and could not store its log
    failed = lived(storage, "preprocess", 2, 1, names[2], "exit 75: away", "not made")
    lives = lived(storage, "preprocess", 3, 1, "preprocess-first-0-3-fghij", "exit 75: away", "not made yet")
    lives += lived(storage, "preprocess", 3, 2, names[3], SHARD_DONE, "made")
    lived(storage, "preprocess", 4, 1, names[4], None)
    lived(storage, "export", 0, 1, "export-first-0-0-abcde", EXPORTED, "exported")
    cluster = StandIn(pods=pods, said={name: [f"said by {name}"] for name in names})
    assert shown(cluster, storage) == [
        "== export 0: done; STAGE=export POD=index shows what was said",
        "== preprocess 0-1, 3: done; STAGE=preprocess POD=index shows what was said",
        *failed,
        f"== {names[4]}: shard 4 runs on node-1",
        f"said by {names[4]}",
    ]
    assert shown(cluster, storage, stage="preprocess", pod="3") == lives


@pytest.mark.parametrize("choice", [{}, {"pod": "0"}], ids=["last life", "all lives"])
def test_the_last_words_of_a_training_pod_that_was_killed(storage: Storage, choice: dict[str, str]) -> None:
    """In its second attempt, with all that ran in it: the log of the first is the last that it stored."""
    killed = pod(storage.uri, "train", 0, "Failed")
    name = killed["metadata"]["name"]
    first = lived(storage, "train", 0, 1, name, "worker 1: killed by signal 9", "step 1")
    lived(storage, "train", 0, 2, name, KEEPER_GONE)
    older = ["== train 0: 1 older ones, which STAGE=train POD=0 shows"]
    assert shown(StandIn(pods=[killed], said={name: ["step 1", "step 2"]}), storage, **choice) == [
        *(first if choice else older),
        f"== train 0, attempt 2, pod {name} on node-1: no log of it is stored ({KEEPER_GONE})",
        f"== {name}: worker 0 failed: Failed",
        "step 1",
        "step 2",
    ]


@pytest.mark.parametrize("choice", [{}, {"pod": "0"}], ids=["last life", "all lives"])
def test_the_last_words_of_a_chief_that_was_killed_after_training(storage: Storage, choice: dict[str, str]) -> None:
    killed = pod(storage.uri, "train", 0, "Failed")
    name = killed["metadata"]["name"]
    trained = lived(storage, "train", 0, 1, name, COMPLETE, "step 1")
    own = [f"== {name}: worker 0 failed: Failed", "exporting"]
    done = ["== train 0: done; STAGE=train POD=index shows what was said"]
    cluster = StandIn(pods=[killed], said={name: ["exporting"]})
    assert shown(cluster, storage, **choice) == [*(trained if choice else done), *own], "before the export began"
    lived(storage, "export", 0, 2, name, POD_GONE)
    lost = f"== export 0, attempt 2, pod {name} on node-1: no log of it is stored ({POD_GONE})"
    expected = [lost, *own, *trained] if choice else [*done, lost, *own]
    assert shown(cluster, storage, **choice) == expected, "once, in the export's place"


@pytest.mark.parametrize("failed_after", [False, True], ids=["an earlier pod failed", "its pod failed afterwards"])
def test_of_what_succeeded_only_a_later_failure_is_shown(storage: Storage, failed_after: bool) -> None:
    lived(storage, "train", 0, 1, "train-first-0-0-klmno", COMPLETE, "step 1")
    for number, name in ((1, "abcde"), (2, "klmno" if failed_after else "fghij")):
        said = f"waiting\n--- supervisor 0, pod train-first-0-0-{name} on node-1: worker 1 did not come"
        storage.write(layout.supervisor_log("train", 0, number), said.encode())
    assert shown(None, storage) == [
        "== train 0: done; STAGE=train POD=index shows what was said",
        *([f"== {layout.supervisor_log('train', 0, 2)}", said] if failed_after else []),
    ]


def test_a_damaged_attempt_of_all_workers_is_said(run: Storage, capsys: pytest.CaptureFixture[str]) -> None:
    shown(None, run)
    said = f"an attempt is left out: {run.uri}/{layout.attempt(1)}: attempt: expected a valid Attempt"
    assert capsys.readouterr().err.startswith(said)


def test_a_damaged_attempt_is_named_in_place_of_its_log(storage: Storage) -> None:
    storage.write(layout.attempt(1, 0), b"{")
    (line,) = shown(None, storage)
    assert line.startswith(f"== {storage.uri}/{layout.attempt(1, 0)}: the document: expected a valid Attempt")


def test_any_uri_of_the_run_selects_its_pods(tmp_path: Any) -> None:
    run = open_storage(str(tmp_path / "run"))
    cluster = StandIn(pods=[pod(run.uri, "train", 0)], said={"train-first-0-0-abcde": ["here"]})
    lines: list[str] = []
    show_logs(cluster, f"{run.uri}/", write=lines.append)
    assert lines[-1] == "here"


def test_follow_after_the_end_shows_what_there_is(run: Storage) -> None:
    cluster = StandIn([job(run.uri, ended="Failed")], [pod(run.uri, "train", 2, "Failed")], {})
    assert shown(cluster, run, follow=True)[-1] == "(no output: pod train-first-0-2-abcde: container has not started)"
