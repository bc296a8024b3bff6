"""`python -m deepfake_detector`: the command line without an installed script."""

import sys

from deepfake_detector.cli import main

if __name__ == "__main__":
    sys.exit(main())
