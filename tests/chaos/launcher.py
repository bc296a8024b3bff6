"""`deepfake-detector local` with VIDEOS or RECORDS, and SET as a JSON list of assignments, from the environment."""

import json
import os
import sys

from deepfake_detector.core.errors import DetectorError
from deepfake_detector.local import run_local
from deepfake_detector.local.launch import Commands
from deepfake_detector.local.processes import module
from deepfake_detector.stages.prepare import prepare_run

if __name__ == "__main__":
    try:
        run, config = prepare_run(
            os.environ["RUN"],
            recipe="demo",
            assignments=json.loads(os.environ["SET"]),
            videos=os.environ.get("VIDEOS", ""),
            records=os.environ.get("RECORDS", ""),
        )
        sys.exit(run_local(run, config, commands=Commands(train=module("tests.chaos.train"))))
    except DetectorError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
