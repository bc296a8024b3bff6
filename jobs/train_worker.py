"""What a training supervisor starts: one life of one worker, `python -m jobs.train_worker`.

RUN        folder or gs:// URI of the run, whose config.json holds all settings
TF_CONFIG  who takes part; empty for one worker alone
ATTEMPT    number of this attempt, for the log
SCRATCH    a folder on local disk, of this worker's own
STANDBY    1: import first, then read one line from stdin, a JSON object with what else belongs to the environment
TIMELINE   moments of the first attempt up to here (core/timeline.py), for the live display

Further variables: jobs/environment.py.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

EXIT_TERMINATED = 143  # as in core.errors; nothing is imported before SIGTERM is taken care of


def obey_sigterm() -> None:
    """End with status 143 at once, whatever the main thread is blocked in.

    TensorFlow replaces a handler by its own, and a Python handler waits for the main thread to leave an all-reduce.
    A signal that is blocked in all threads, those of TensorFlow included, is seen by sigwait alone.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=_end_on_sigterm, daemon=True).start()


def _end_on_sigterm() -> None:
    signal.sigwait({signal.SIGTERM})
    os._exit(EXIT_TERMINATED)


def standby() -> dict[str, str]:
    """The whole environment, once an attempt begins: what takes seconds to import is there then.

    Ends with status 0 when the supervisor has closed the pipe without a word.
    """
    from deepfake_detector.adapters.tensorflow_import import import_tensorflow

    import_tensorflow()
    from deepfake_detector.training import loop  # noqa: F401

    line = sys.stdin.readline()
    if not line:
        os._exit(0)
    os.environ.update(json.loads(line))  # TensorFlow reads TF_CONFIG there
    del os.environ["STANDBY"]
    return dict(os.environ)


def main(environment: Mapping[str, str]) -> int:
    """Train until the run's training is committed; returns the exit status."""
    from jobs.environment import exit_status

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("absl").setLevel(logging.WARNING)  # TensorFlow tells of each checkpoint's sharding
    logging.getLogger("tensorflow").setLevel(logging.WARNING)
    return exit_status(environment, lambda: _train(environment))


def _train(environment: Mapping[str, str]) -> None:
    from deepfake_detector.core.timeline import Timeline
    from deepfake_detector.core.topology import parse_tf_config
    from deepfake_detector.training.worker import run_worker
    from jobs.environment import required, settled_run

    scratch = Path(required(environment, "SCRATCH"))
    run, settlement = settled_run(environment)
    cluster = parse_tf_config(environment.get("TF_CONFIG", ""))
    logging.info("attempt %s, worker %d of %d", environment.get("ATTEMPT", ""), cluster.rank, cluster.workers)
    timeline = Timeline.decode(environment.get("TIMELINE", ""))
    run_worker(run.uri, settlement.config, cluster, scratch, settlement.records_of(run).uri, timeline)


def live() -> NoReturn:
    """The life of this process, from its environment to its exit status."""
    status = main(standby() if os.environ.get("STANDBY") == "1" else dict(os.environ))
    sys.stdout.flush()
    sys.stderr.flush()
    # TensorFlow's teardown waits for peers that may be gone.
    os._exit(status)


if __name__ == "__main__":
    obey_sigterm()
    live()
