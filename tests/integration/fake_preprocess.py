"""jobs.preprocess with a stand-in for the shard's work: everything else is the product's."""

import os

from deepfake_detector.supervisor.sigterm import end_on_sigterm

if __name__ == "__main__":
    end_on_sigterm(os.environ.get("TERMINATION_LOG"))

import sys
from pathlib import Path

from deepfake_detector.supervisor import sigterm
from jobs.preprocess import main

FAKE = (sys.executable, str(Path(__file__).with_name("fake_worker.py")), "preprocess")

if __name__ == "__main__":
    sigterm.FAREWELL_SECONDS = float(os.environ.get("FAREWELL_SECONDS", "60"))  # longer than anybody waits
    sys.exit(main(dict(os.environ), shard=FAKE))
