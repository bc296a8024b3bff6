"""The client of a retry backs out when its pods have begun: the retry is finished, or undone, as the messages say."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from deepfake_detector.adapters.rounds import finished_rounds, half_done_retry
from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.core import layout
from deepfake_detector.core.errors import EXIT_PERMANENT, DataError
from deepfake_detector.core.outcomes import Outcome
from deepfake_detector.core.topology import ALONE
from deepfake_detector.stages.plan import make_plan
from deepfake_detector.stages.retry import make_retry_plan
from deepfake_detector.stages.runs import load_config
from deepfake_detector.training.dataset import open_records
from deepfake_detector.training.worker import run_worker
from jobs import preprocess_shard
from tests.integration.api_server import ApiServer
from tests.integration.submit.driver import (
    NEEDS,
    PREPROCESS,
    RUN,
    TRAIN,
    VIDEOS,
    created,
    environment,
    errors_of,
    submit,
)
from tests.integration.submit.test_two_clients import Clients, b_before_a_creates, once
from tests.integration.test_rounds import objects_of, preprocess

pytestmark = NEEDS

SETTINGS = ["data.shards=1", "train.workers=1", "operations.decoders=1", "operations.max_lost_fraction=1"]
RETRY = ["submit", "preprocess", "--run", RUN, "--retry-lost"]  # make preprocess RUN=... RETRY_LOST=1


def with_lost_videos(run: Storage, server: ApiServer) -> None:
    """A finished first round, in which all videos were lost."""
    videos = open_storage(VIDEOS)
    for clip in range(3):
        videos.write(f"real/{clip}.mp4", b"no video")
        videos.write(f"fake/{clip}__x.mp4", b"no video")
    assert submit(*PREPROCESS, "--set", *SETTINGS) == 0
    config = load_config(run)
    make_plan(run, config)
    preprocess(run, config, 0, 1, lambda: Outcome.TIMEOUT)
    server.remove("jobs", created(server)["metadata"]["name"])


def run_pods(server: ApiServer, scratch: Path) -> None:
    """The work of the Job's pods, one after the other; the Job is gone then."""
    job = created(server)
    given = {name: value for name, value in environment(job).items() if name in ("RUN", "SETTINGS", "RETRY")}
    for index in range(job["spec"]["completions"]):
        pod = {**given, "JOB_COMPLETION_INDEX": str(index), "SCRATCH": str(scratch / str(index))}
        assert preprocess_shard.main(pod) == 0
    server.remove("jobs", job["metadata"]["name"])


def finish(run: Storage, server: ApiServer, scratch: Path) -> None:
    assert submit(*RETRY) == 0
    run_pods(server, scratch)
    assert len(finished_rounds(run)) == 2


def undo(run: Storage, server: ApiServer, scratch: Path) -> None:
    for entry in list(run.list(f"{layout.retry(1)}/")):
        run.delete(entry.name)
    assert len(finished_rounds(run)) == 1


@pytest.mark.parametrize("remedy", [finish, undo])
def test_what_is_left_is_harmless_and_finished_or_undone(
    run: Storage,
    server: ApiServer,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    remedy: Callable[[Storage, ApiServer, Path], None],
) -> None:
    with_lost_videos(run, server)
    config, before, records = load_config(run), objects_of(run), open_records(run)

    def retry_is_there(moment: str) -> bool:
        jobs = server.listed("jobs", {})
        return moment == "create jobs" and any(job["metadata"]["name"].startswith("preprocess-") for job in jobs)

    clients = Clients(server, RETRY, TRAIN)
    b_before_a_creates(clients)
    server.before_answer = once(lambda: make_retry_plan(run, config, 1), retry_is_there)  # as its first pod does
    clients.run()
    assert clients.status == {"a": EXIT_PERMANENT, "b": 0}
    training = created(server)["metadata"]["name"]
    said = capsys.readouterr()
    (error,) = errors_of(said.err)
    assert error.startswith(f"error: job {training}: at work on {RUN}, expected its end before lost videos are tried")
    assert "removed job preprocess-" in said.out

    assert half_done_retry(run) == 1
    assert open_records(run) == records
    after = objects_of(run)
    assert {name: after[name] for name in before if name != layout.CONFIG} == {
        name: data for name, data in before.items() if name != layout.CONFIG
    }
    never_was = f"without {RUN}/{layout.retry(1)} it never was"
    with pytest.raises(DataError, match=rf"retry 1 .* \(RETRY_LOST=1 on a cluster, .* goes on; {never_was}\)"):
        run_worker(run.uri, config, ALONE, tmp_path / "train", run.uri)  # as the training's pod does
    server.remove("jobs", training)
    assert submit(*TRAIN) == EXIT_PERMANENT
    assert f"(make preprocess RUN={RUN} RETRY_LOST=1 goes on; {never_was})" in capsys.readouterr().err

    remedy(run, server, tmp_path)
    assert half_done_retry(run) == 0
    assert submit(*TRAIN) == 0
