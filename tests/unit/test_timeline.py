from __future__ import annotations

import pytest

from deepfake_detector.core.timeline import Timeline, of_job, steps, table

MOMENTS = {
    "submitted": 100.0,
    "job": 101.0,
    "pod": 101.0,
    "scheduled": 101.0,
    "process": 102.5,
    "supervisor": 103.5,
    "child": 104.0,
    "prepared": 105.0,
    "imported": 107.0,
    "strategy": 107.5,
    "staged": 107.5,
    "agreed": 107.7,
    "model": 108.3,
    "resumed": 108.3,
    "built": 108.5,
    "first_step": 110.0,
}


def test_the_steps_add_up_to_the_whole() -> None:
    assert sum(step.seconds for step in steps(MOMENTS)) == pytest.approx(10.0)


def test_the_table_ends_with_the_ratio_to_what_is_needed() -> None:
    lines = table(MOMENTS)
    assert lines[0] == "     1.0 s    submit: checks, settings, the Job is created"
    assert lines[3] == "     1.5 s  * kubelet: image, sandbox, the container starts"
    assert lines[-1] == (
        "    10.0 s    to the first step, 1.72 x the 5.8 s of pod start, TensorFlow import and graph building (*)"
    )


@pytest.mark.parametrize("missing", ["child", "first_step"])
def test_only_a_runs_first_start_has_a_table(missing: str) -> None:
    assert table({name: moment for name, moment in MOMENTS.items() if name != missing}) == []


def test_whole_seconds_of_the_api_make_no_negative_step() -> None:
    found = steps({"submitted": 100.7, "job": 100.0, "pod": 101.0})
    assert [step.seconds for step in found] == pytest.approx([0.0, 0.3])


def test_a_moment_is_marked_once() -> None:
    timeline = Timeline({"imported": 5.0})
    timeline.mark("imported")
    assert timeline.moments == {"imported": 5.0}


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"child": "soon"}', "null"])
def test_a_timeline_that_cannot_be_read_is_empty(text: str) -> None:
    assert Timeline.decode(text).moments == {}


def test_a_timeline_survives_the_environment() -> None:
    assert Timeline.decode(Timeline(MOMENTS).encode()).moments == MOMENTS


def test_the_api_tells_of_the_pod() -> None:
    job = {"metadata": {"creationTimestamp": "1970-01-01T00:00:10Z"}}
    pod = {
        "metadata": {"creationTimestamp": "1970-01-01T00:00:11Z"},
        "status": {
            "conditions": [{"type": "PodScheduled", "status": "True", "lastTransitionTime": "1970-01-01T00:00:12Z"}],
            "containerStatuses": [{"name": "stage", "state": {"running": {"startedAt": "1970-01-01T00:00:13Z"}}}],
        },
    }
    assert of_job(job, pod) == {"job": 10.0, "pod": 11.0, "scheduled": 12.0, "process": 13.0}
