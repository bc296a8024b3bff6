"""`deepfake-detector local` on a run whose settings are stored, with stand-ins for the jobs' work."""

import os
import sys
from pathlib import Path

from deepfake_detector.adapters.storage import open_storage
from deepfake_detector.core.errors import DetectorError
from deepfake_detector.local import run_local
from deepfake_detector.local.launch import Commands
from deepfake_detector.stages.runs import load_config
from deepfake_detector.supervisor import child

HERE = Path(__file__).parent
COMMANDS = Commands(
    preprocess=(sys.executable, str(HERE / "fake_preprocess.py")),
    train=(sys.executable, str(HERE / "fake_train.py")),
)

if __name__ == "__main__":
    child.FROZEN_SECONDS = float(os.environ.get("FROZEN_SECONDS", child.FROZEN_SECONDS))
    run = open_storage(os.environ["RUN"])
    try:
        sys.exit(run_local(run, load_config(run), commands=COMMANDS))
    except DetectorError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
