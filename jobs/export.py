"""The pod of an export Job: the parent of the process that exports the run's model (jobs/export_model.py).

It is needed only where the export that training's worker 0 runs by itself did not succeed.

RUN      the run's folder or gs:// prefix
SCRATCH  a folder on local disk

Further variables: jobs/environment.py. Exit status as in core/errors.py; the last line on stderr is the error.
"""

from __future__ import annotations

import os

from deepfake_detector.supervisor.sigterm import end_on_sigterm

if __name__ == "__main__":
    end_on_sigterm(os.environ.get("TERMINATION_LOG"))

import logging
import sys
from collections.abc import Mapping, Sequence

from deepfake_detector.supervisor.attend import attend
from jobs.environment import exit_status, folder, for_child, required, where

EXPORT = (sys.executable, "-m", "jobs.export_model")


def main(environment: Mapping[str, str], export: Sequence[str] = EXPORT) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    return exit_status(environment, lambda: _export(environment, export))


def _export(environment: Mapping[str, str], export: Sequence[str]) -> None:
    scratch = folder(environment, "SCRATCH")
    run = required(environment, "RUN")
    attend(run, "export", 0, export, scratch, for_child(environment), where(environment))


if __name__ == "__main__":
    sys.exit(main(dict(os.environ)))
