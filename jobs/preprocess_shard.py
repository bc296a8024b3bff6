"""What a preprocessing pod's parent starts: one shard of the run's videos to records.

RUN                   the run's folder or gs:// prefix
JOB_COMPLETION_INDEX  the shard; index 0 also makes the plan, the others wait for it
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


def main(environment: Mapping[str, str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    return exit_status(environment, lambda: _preprocess_shard(environment))


def _preprocess_shard(environment: Mapping[str, str]) -> None:
    from tqdm import tqdm

    from deepfake_detector.stages.plan import await_plan, make_plan
    from deepfake_detector.stages.preprocess import preprocess_shard

    scratch: Path = folder(environment, "SCRATCH")
    run, settlement = settled_run(environment)
    config = settlement.config
    shards = config.data.shards
    index = number(environment, "JOB_COMPLETION_INDEX", 0, sys.maxsize)
    if index >= shards:
        raise ConfigError(f"JOB_COMPLETION_INDEX={index}: expected less than data.shards={shards}")
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


if __name__ == "__main__":
    sys.exit(main(dict(os.environ)))
