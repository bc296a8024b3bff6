"""What a preprocessing pod's parent starts: one shard of the run's videos to records.

RUN                   the run's folder or gs:// prefix
JOB_COMPLETION_INDEX  the shard; index 0 also makes the plan, the others wait for it
RETRY                 number of the round that tries lost videos again, from 1; without it, or 0, the first round
SCRATCH               a folder on local disk, of this process's own

Further variables: jobs/environment.py. Exit status as in core/errors.py; the last line on stderr is the error.
"""

from __future__ import annotations

from deepfake_detector.supervisor.sigterm import end_on_sigterm

if __name__ == "__main__":
    end_on_sigterm()

import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from deepfake_detector.core.errors import ConfigError
from jobs.environment import exit_status, folder, number, settled_run

MOST_RETRIES = 99_999  # names have five digits (core/layout.py)


def main(environment: Mapping[str, str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    return exit_status(environment, lambda: _preprocess_shard(environment))


def _preprocess_shard(environment: Mapping[str, str]) -> None:
    from tqdm import tqdm

    from deepfake_detector.adapters.rounds import round_storage
    from deepfake_detector.stages.plan import await_plan, make_plan
    from deepfake_detector.stages.preprocess import preprocess_shard
    from deepfake_detector.stages.retry import make_retry_plan

    scratch: Path = folder(environment, "SCRATCH")
    run, settlement = settled_run(environment)
    config = settlement.config
    index = number(environment, "JOB_COMPLETION_INDEX", 0, sys.maxsize)
    retry = number(environment, "RETRY", 0, MOST_RETRIES, default="0")
    if index >= config.data.shards:
        raise ConfigError(f"JOB_COMPLETION_INDEX={index}: expected less than data.shards={config.data.shards}")
    if index == 0:
        plan = make_retry_plan(run, config, retry) if retry else make_plan(run, config)
    else:
        logging.info("waiting for the plan of index 0")
        plan = await_plan(round_storage(run, retry), config, config.operations.plan_wait_seconds)
    if index >= plan.shards:
        raise ConfigError(f"JOB_COMPLETION_INDEX={index}: expected less than the {plan.shards} shards of retry {retry}")
    with tqdm(desc=f"preprocess {index}", unit="video", disable=not sys.stderr.isatty()) as bar:

        def show(done: int, total: int, outcomes: Mapping[str, int]) -> None:
            bar.total = total
            bar.set_postfix(outcomes, refresh=False)
            bar.update(done - bar.n)

        report = preprocess_shard(run, config, index, scratch=scratch, retry=retry, on_progress=show)
    lost = sum(video.outcome != "ok" for video in report.videos)
    logging.info("shard %d: %d videos, %d of them lost", index, len(report.videos), lost)


if __name__ == "__main__":
    sys.exit(main(dict(os.environ)))
