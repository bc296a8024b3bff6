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

from deepfake_detector.core.errors import EXIT_OK, ConfigError, DetectorError


def main(environment: Mapping[str, str]) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        with tempfile.TemporaryDirectory(prefix="preprocess-", dir=_scratch(environment)) as folder:
            _preprocess(_required(environment, "RUN"), _index(environment), Path(folder))
    except DetectorError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return EXIT_OK


def _preprocess(uri: str, index: int, scratch: Path) -> None:
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


def _index(environment: Mapping[str, str]) -> int:
    text = _required(environment, "JOB_COMPLETION_INDEX")
    if not text.isdecimal():
        raise ConfigError(f"JOB_COMPLETION_INDEX={text!r}: expected a number from 0 (environment)")
    return int(text)


def _required(environment: Mapping[str, str], name: str) -> str:
    if not environment.get(name):
        raise ConfigError(f"{name}: not set (environment)")
    return environment[name]


if __name__ == "__main__":
    sys.exit(main(dict(os.environ)))
