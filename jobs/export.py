"""The export of a trained run, in a process of its own: worker 0's supervisor starts it.

RUN      the run's folder or gs:// prefix
SCRATCH  a folder on local disk

Exit status as in core/errors.py; the last line on stderr is the error.
"""

from __future__ import annotations

from deepfake_detector.supervisor.child import end_on_sigterm

if __name__ == "__main__":
    end_on_sigterm()  # before the heavy imports

import os
import sys
from collections.abc import Mapping
from pathlib import Path

from deepfake_detector.core.errors import EXIT_OK, ConfigError, DetectorError


def main(environment: Mapping[str, str]) -> int:
    from deepfake_detector.adapters.storage import open_storage

    try:
        run = open_storage(_required(environment, "RUN"))
        scratch = Path(_required(environment, "SCRATCH"))
        from deepfake_detector.stages.export import export  # TensorFlow: 2 s and 550 MB

        export(run, scratch)
    except DetectorError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return EXIT_OK


def _required(environment: Mapping[str, str], name: str) -> str:
    if not environment.get(name):
        raise ConfigError(f"{name}: not set (environment)")
    return environment[name]


if __name__ == "__main__":
    sys.exit(main(dict(os.environ)))
