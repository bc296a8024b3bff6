"""One preprocessing pod or local process: one shard of the run's videos to records.

RUN                   the run's folder or gs:// prefix
JOB_COMPLETION_INDEX  the shard; index 0 also makes the plan, the others wait for it
SCRATCH               a folder on local disk (default: a temporary one)

Exit status as in core/errors.py; the last line on stderr is the error.
"""

from __future__ import annotations

from deepfake_detector.supervisor.child import end_on_sigterm

if __name__ == "__main__":
    end_on_sigterm()  # before the imports below: storage's take a while

import logging
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from deepfake_detector.core.errors import ConfigError
from jobs.environment import exit_status, number, required

MOST_SHARDS = 100_000  # completions that an Indexed Job may have


def main(environment: Mapping[str, str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    return exit_status(lambda: _preprocess(environment))


def _preprocess(environment: Mapping[str, str]) -> None:
    uri = required(environment, "RUN")
    index = number(environment, "JOB_COMPLETION_INDEX", 0, MOST_SHARDS - 1)
    with tempfile.TemporaryDirectory(prefix="preprocess-", dir=_scratch(environment)) as folder:
        _preprocess_shard(uri, index, Path(folder))


def _preprocess_shard(uri: str, index: int, scratch: Path) -> None:
    from tqdm import tqdm

    from deepfake_detector.adapters.storage import open_storage
    from deepfake_detector.stages.plan import await_plan, make_plan
    from deepfake_detector.stages.preprocess import preprocess_shard
    from deepfake_detector.stages.runs import load_config

    run = open_storage(uri)
    config = load_config(run)
    if index >= config.data.shards:
        raise ConfigError(f"JOB_COMPLETION_INDEX={index}: expected less than data.shards={config.data.shards}")
    if index == 0:
        make_plan(run, config)
    else:
        logging.info("waiting for the plan of index 0")
        await_plan(run, config, config.operations.plan_wait_seconds)
    with tqdm(desc=f"preprocess {index}", unit="video", disable=not sys.stderr.isatty()) as bar:

        def show(done: int, total: int, outcomes: Mapping[str, int]) -> None:
            bar.total = total
            bar.set_postfix(outcomes, refresh=False)
            bar.update(done - bar.n)

        report = preprocess_shard(run, config, index, scratch=scratch, on_progress=show)
    lost = sum(video.outcome != "ok" for video in report.videos)
    logging.info("shard %d: %d videos, %d of them lost", index, len(report.videos), lost)


def _scratch(environment: Mapping[str, str]) -> str | None:
    folder = environment.get("SCRATCH")
    if folder:
        Path(folder).mkdir(parents=True, exist_ok=True)
    return folder or None


if __name__ == "__main__":
    sys.exit(main(dict(os.environ)))
