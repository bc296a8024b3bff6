"""One preprocessing pod or local process: the parent of the process that makes one shard (jobs/preprocess_shard.py).

RUN                   the run's folder or gs:// prefix
JOB_COMPLETION_INDEX  the shard; index 0 also makes the plan, the others wait for it
RETRY                 number of the round that tries lost videos again, from 1; without it, or 0, the first round
SCRATCH               a folder on local disk (default: a temporary one)

Further variables: jobs/environment.py. Exit status as in core/errors.py; the last line on stderr is the error.
"""

from __future__ import annotations

import os

from deepfake_detector.supervisor.sigterm import end_on_sigterm

if __name__ == "__main__":
    end_on_sigterm(os.environ.get("TERMINATION_LOG"))

import logging
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from deepfake_detector.supervisor.attend import attend
from jobs.environment import exit_status, folder, for_child, number, required, where

SHARD = (sys.executable, "-m", "jobs.preprocess_shard")
MOST_SHARDS = 100_000  # completions that an Indexed Job may have


def main(environment: Mapping[str, str], shard: Sequence[str] = SHARD) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    return exit_status(environment, lambda: _preprocess(environment, shard))


def _preprocess(environment: Mapping[str, str], shard: Sequence[str]) -> None:
    run = required(environment, "RUN")
    index = number(environment, "JOB_COMPLETION_INDEX", 0, MOST_SHARDS - 1)
    parent = folder(environment, "SCRATCH") if environment.get("SCRATCH") else None
    with tempfile.TemporaryDirectory(prefix="preprocess-", dir=parent) as scratch:
        child = {**for_child(environment), "SCRATCH": scratch}
        attend(run, "preprocess", index, shard, Path(scratch), child, where(environment))


if __name__ == "__main__":
    sys.exit(main(dict(os.environ)))
