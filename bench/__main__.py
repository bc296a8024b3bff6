"""`make bench`: a table of ratios with their targets, and the same as JSON lines.

python -m bench                  everything
python -m bench --only train     one part
REAL_CLIPS=folder                adds what needs real clips (DFDC and FaceForensics++)
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PARTS = ("preprocess", "train", "control")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; targets are printed beside the figures and never asserted."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=PARTS, help="one part instead of all")
    arguments = parser.parse_args(argv)
    clips = os.environ.get("REAL_CLIPS", "")
    rows: list[dict[str, Any]] = []
    for part in PARTS if arguments.only is None else (arguments.only,):
        rows += _measure(part, clips)
    print(f"\n{_machine()}\n")
    print(_table(rows))
    print()
    for row in rows:
        print(json.dumps(row))
    return 0


def _measure(part: str, clips: str) -> list[dict[str, Any]]:
    if part == "preprocess":
        if not clips:
            print("preprocess: skipped, it needs REAL_CLIPS=folder with real clips", file=sys.stderr)
            return []
        from bench import preprocess

        return preprocess.run(Path(clips))
    if part == "control":
        from bench import control

        return control.run()
    from bench import train

    return train.run()


def _machine() -> str:
    from deepfake_detector.adapters.machine import cpu_limit, cpu_model

    return f"{cpu_limit()} CPUs, {cpu_model()}, {platform.system()}, Python {platform.python_version()}"


def _table(rows: Sequence[dict[str, Any]]) -> str:
    lines = ["| what | measured | target | detail |", "|---|---|---|---|"]
    for row in rows:
        measured = f"{row['ratio']:.3g}" if isinstance(row["ratio"], float) else str(row["ratio"])
        lines.append(f"| {row['name']} | {measured} | {row['target']} | {row['detail']} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
