from __future__ import annotations

import json

import pytest

from deepfake_detector.core.errors import ConfigError
from deepfake_detector.core.topology import ALONE, Cluster, parse_tf_config, port


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_tf_config_is_read_back(rank: int) -> None:
    cluster = Cluster(rank, ("10.0.0.1:2222", "10.0.0.2:2222", "[fd00::3]:2222"))
    assert parse_tf_config(cluster.tf_config()) == cluster
    assert cluster.chief == (rank == 0)
    assert cluster.workers == 3


def test_tf_config_is_what_tensorflow_reads() -> None:
    assert json.loads(Cluster(1, ("a:1", "b:2")).tf_config()) == {
        "cluster": {"worker": ["a:1", "b:2"]},
        "task": {"type": "worker", "index": 1},
    }


@pytest.mark.parametrize("text", ["", " \n"], ids=["empty", "blank"])
def test_no_tf_config_is_one_worker(text: str) -> None:
    assert parse_tf_config(text) == ALONE
    assert (ALONE.chief, ALONE.workers) == (True, 1)


def written(workers: object, kind: object, index: object) -> str:
    return json.dumps({"cluster": {"worker": workers}, "task": {"type": kind, "index": index}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("{", "expected cluster.worker, task.type and task.index", id="not JSON"),
        pytest.param("[]", "expected cluster.worker", id="not an object"),
        pytest.param('{"task": {}}', "expected cluster.worker", id="no cluster"),
        pytest.param(written(["a:1"], "ps", 0), "expected a task of type 'worker'", id="a parameter server"),
        pytest.param(written(["a:1"], "worker", "0"), "with a whole index", id="index as text"),
        pytest.param(written([1], "worker", 0), "address strings", id="numbers for addresses"),
        pytest.param(written(["a:1"], "worker", 1), "rank 1: expected 0 to 0", id="rank out of range"),
        pytest.param(written([], "worker", 0), "rank 0: expected", id="nobody"),
    ],
)
def test_a_bad_tf_config_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_tf_config(text)


def test_the_port_moves_on_with_each_attempt_and_comes_round_after_eight() -> None:
    ports = [port(2222, attempt) for attempt in range(9)]
    assert len(set(ports[:8])) == 8
    assert ports[8] == ports[0] == 2222
