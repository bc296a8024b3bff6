"""jobs.train with the worker that tells of its steps; everything else is the product's."""

import os

from deepfake_detector.supervisor.sigterm import end_on_sigterm

if __name__ == "__main__":
    end_on_sigterm()

import sys

from jobs.train import main

if __name__ == "__main__":
    sys.exit(main(dict(os.environ), train=(sys.executable, "-m", "tests.chaos.worker")))
