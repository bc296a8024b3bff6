from __future__ import annotations

from typing import Any

import pytest

from deepfake_detector.cluster.notices import GROWTH_SECONDS, Notices, count_in_words
from deepfake_detector.core.findings import Finding, Kind


def pending(*indexes: int, free: str = "1.2") -> Finding:
    return Finding(Kind.PENDING, f"shards {indexes}", f"pending for lack of cpu (asked 4, free {free})", "", indexes)


def failing(times: int) -> Finding:
    return Finding(Kind.FAILED, "shard 3", f"keeps failing ({times} times)", "", (3,), times)


@pytest.mark.parametrize(
    ("first", "then", "news"),
    [
        pytest.param([pending(1, 2)], [pending(1, 2)], 0, id="nothing new"),
        pytest.param([pending(1, 2)], [pending(1, 2, free="0.9")], 0, id="other numbers"),
        pytest.param([pending(1, 2)], [pending(2)], 0, id="fewer have it"),
        pytest.param([pending(1, 2)], [pending(1, 2, 3)], 1, id="one more has it"),
        pytest.param([failing(1)], [failing(2)], 1, id="once more"),
        pytest.param([failing(2)], [failing(2), pending(3)], 1, id="another kind"),
        pytest.param([pending(1)], [], 0, id="over"),
    ],
)
def test_only_news_is_told(first: list[Finding], then: list[Finding], news: int) -> None:
    notices = Notices()
    assert len(notices.findings(first, 0.0)) == len(first)
    assert len(notices.findings(then, GROWTH_SECONDS)) == news


def test_what_was_over_is_told_when_it_comes_back() -> None:
    notices = Notices()
    lines = [notices.findings(found, 0.0) for found in ([pending(1)], [], [pending(1)])]
    assert [len(each) for each in lines] == [1, 0, 1]


def test_a_trouble_that_spreads_is_told_as_it_begins_and_then_now_and_then() -> None:
    """100 pods that find no node, one after the other within 25 s."""
    notices = Notices()
    lines = {
        now: lines
        for now in range(60)
        if (lines := notices.findings([pending(*range(min(4 * now + 1, 100)))], float(now)))
    }
    assert list(lines) == [0, 10, 20, 30], "the last of them is told, too"
    assert all(len(each) == 1 for each in lines.values())
    assert str(tuple(range(100))) in lines[30][0]


def test_what_did_not_get_its_turn_is_told_at_the_end() -> None:
    notices = Notices()
    notices.findings([failing(2)], 0.0)
    assert notices.findings([failing(3)], 1.0) == []
    assert notices.findings([failing(3)], 2.0, last=True) == [str(failing(3))]


def test_another_trouble_of_the_same_kind_does_not_wait() -> None:
    notices = Notices()
    volume = Finding(Kind.PENDING, "shard 4", "pending: volume node affinity conflict", "", (4,))
    assert len(notices.findings([pending(1)], 0.0)) == 1
    assert notices.findings([pending(1), volume], 1.0) == [str(volume)]


def pod(index: int, phase: str) -> dict[str, Any]:
    labels = {
        "batch.kubernetes.io/job-completion-index": str(index),
        "app.kubernetes.io/component": "preprocess",
    }
    return {
        "metadata": {"uid": str(index), "labels": labels},
        "spec": {"nodeName": "n"},
        "status": {"phase": phase},
    }


@pytest.mark.parametrize(("completions", "lines"), [(2, ["shard 0: runs on n", "shard 1: done"]), (9, [])])
def test_the_pods_of_a_small_job_are_told_one_by_one(completions: int, lines: list[str]) -> None:
    notices, job = Notices(), {"spec": {"completions": completions}}
    pods = [pod(0, "Running"), pod(1, "Succeeded"), pod(2, "Failed")]
    assert notices.states(job, pods) == lines, "a failure is told by its finding"
    assert notices.states(job, pods) == []


@pytest.mark.parametrize(
    ("phases", "words"),
    [
        ([], ""),
        (["Running"], "1 pod runs"),
        (["Running", "Running", "Pending", "Succeeded", "Failed"], "2 pods run, 1 waits"),
        (["Pending", "Pending"], "2 wait"),
    ],
)
def test_pods_are_counted(phases: list[str], words: str) -> None:
    assert count_in_words([pod(index, phase) for index, phase in enumerate(phases)]) == words
