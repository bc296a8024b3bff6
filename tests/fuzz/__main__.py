"""`make fuzz`: broken video files through the decoding processes of the product, and a table of what became of them.

python -m tests.fuzz --files 2000             a fresh seed, which is printed
python -m tests.fuzz --seed 7 --only 1234     one file again; --keep folder leaves it there
"""

from __future__ import annotations

import argparse
import os
import secrets
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from deepfake_detector.core.recipes import resolve
from tests.fuzz.corpus import make
from tests.fuzz.report import table
from tests.fuzz.run import Findings, default_lanes, fuzz


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=None, help="of all files; drawn and printed without it")
    parser.add_argument("--only", type=int, nargs="+", metavar="INDEX", help="these files instead of the first ones")
    parser.add_argument("--keep", type=Path, help="write the files of --only into this folder")
    arguments = parser.parse_args(argv)
    seed = secrets.randbelow(2**31) if arguments.seed is None else arguments.seed
    indices = arguments.only or range(arguments.files)
    print(f"fuzz: {len(indices)} files, seed {seed}", flush=True)
    if arguments.keep:
        arguments.keep.mkdir(parents=True, exist_ok=True)
        for case in map(partial(make, seed), indices):
            (arguments.keep / case.name).write_bytes(case.data)
    with tempfile.TemporaryDirectory(prefix="fuzz-") as scratch:
        findings = fuzz(
            partial(make, seed), indices, resolve("demo"), Path(scratch), default_lanes(), _Progress(len(indices))
        )
    print(f"\n{table(findings, seed, len(indices))}", flush=True)
    if "hangs" in findings.wrong.values():
        os._exit(1)  # a thread that waits for ever would keep this process
    return 1 if findings.wrong else 0


class _Progress:
    """A line for every hundred files."""

    def __init__(self, files: int) -> None:
        self._files, self._told = files, 0

    def __call__(self, findings: Findings) -> None:
        done = len(findings.results)
        if done >= self._told + 100 and done < self._files:
            self._told = done
            print(f"  {done} of {self._files}, {len(findings.wrong)} wrong", flush=True)


if __name__ == "__main__":
    sys.exit(main())
