"""The export of a trained run, in a process of its own: worker 0's supervisor starts it, or the export Job's parent.

RUN      the run's folder or gs:// prefix
SCRATCH  a folder on local disk

Further variables: jobs/environment.py. Exit status as in core/errors.py; the last line on stderr is the error.
"""

from __future__ import annotations

from deepfake_detector.supervisor.sigterm import end_on_sigterm

if __name__ == "__main__":
    end_on_sigterm()  # before the heavy imports

import os
import sys
from collections.abc import Mapping

from jobs.environment import exit_status, folder, settled_run


def main(environment: Mapping[str, str]) -> int:
    return exit_status(environment, lambda: _export(environment))


def _export(environment: Mapping[str, str]) -> None:
    scratch = folder(environment, "SCRATCH")
    run, _ = settled_run(environment)  # what is wrong with it is told before TensorFlow is imported: 2 s and 550 MB
    from deepfake_detector.stages.export import export

    export(run, scratch)


if __name__ == "__main__":
    sys.exit(main(dict(os.environ)))
