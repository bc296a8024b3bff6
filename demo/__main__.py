"""`python -m demo`: synthesise a labelled video set, run the whole pipeline on it, and judge two held-out clips."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from deepfake_detector.adapters.storage import Storage
from deepfake_detector.cli import exit_status
from deepfake_detector.core import layout
from deepfake_detector.core.errors import EXIT_OK, EXIT_PERMANENT, ConfigError
from demo.summary import summary
from demo.synthesise import Settings, check, describe, held_out, synthesise

SETTINGS = "demo.json"  # in the run: the settings of the set that it was made from


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo and return its exit status; what is done already is not done again."""
    arguments = _parse(argv)

    def work() -> int:
        settings = Settings(groups=arguments.groups, strength=arguments.strength)
        return run_demo(arguments.videos, arguments.run, settings, verbose=arguments.debug)

    return exit_status(work, debug=arguments.debug)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m demo", description=__doc__)
    defaults = Settings()
    parser.add_argument("--videos", type=Path, default=Path("demo-videos"), help="folder of the set (%(default)s)")
    parser.add_argument("--run", default="demo-run", help="folder of the run (%(default)s)")
    parser.add_argument(
        "--groups", type=int, default=defaults.groups, help="real clips, each with a fake (%(default)s)"
    )
    parser.add_argument(
        "--strength",
        type=float,
        default=defaults.strength,
        help="of the fakes' artefacts; at 0 a fake differs from its real in nothing but noise (%(default)g)",
    )
    parser.add_argument("--debug", action="store_true", help="log more, and show tracebacks")
    return parser.parse_args(argv)


def run_demo(videos: Path, run_uri: str, settings: Settings, *, verbose: bool = False) -> int:
    """Everything, with finished stages skipped. Raises DetectorError; the status is not 0 when a clip is not judged."""
    from deepfake_detector.local import run_local
    from deepfake_detector.stages.plan import load_plan
    from deepfake_detector.stages.predict import predict, to_text
    from deepfake_detector.stages.prepare import prepare_run

    check(videos, settings)
    run, config = prepare_run(run_uri, recipe="demo", assignments=[], videos=str(videos))
    _claim(run, settings)
    made = synthesise(videos, settings)
    print(f"videos  {videos}: {settings.groups} groups{'' if made else ', made before'}")
    status = run_local(run, config, verbose=verbose)
    if status != EXIT_OK:
        return status
    clips = held_out(videos, [video.path for video in load_plan(run)[1] if video.split == "test"])
    print(f"\njudging a real and a fake clip of the test split, {' and '.join(path.name for path in clips)}")
    verdicts = predict(f"{run.uri}/{layout.MODEL}", [str(path) for path in clips])
    print(to_text(verdicts) + "\n")
    metrics = json.loads(run.read(layout.REPORT_METRICS))
    print(summary(metrics, settings, run=run_uri, command=_command()))
    return EXIT_PERMANENT if any(verdict.failed for verdict in verdicts) else EXIT_OK


def _claim(run: Storage, settings: Settings) -> None:
    """Tie the run to its set: the pipeline knows the videos' folder, but not with what settings they were made."""
    wanted = describe(settings)
    if not run.create(SETTINGS, (json.dumps(wanted, indent=1) + "\n").encode()):
        found = json.loads(run.read(SETTINGS))
        raise ConfigError(f"--run {run.uri}: made with {found}: expected {wanted} (use another --run and --videos)")


def _command() -> str:
    """How this environment's `deepfake-detector` is called: by name where it is on the PATH."""
    script = Path(sys.executable).with_name("deepfake-detector")
    found = shutil.which("deepfake-detector")
    if found and Path(found) == script:
        return script.name
    return os.path.relpath(script) if script.is_relative_to(Path.cwd()) else str(script)


if __name__ == "__main__":
    sys.exit(main())
