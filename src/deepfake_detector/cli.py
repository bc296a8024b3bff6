"""The command line: arguments in, one stage called, one line on failure."""

from __future__ import annotations

import argparse
import functools
import io
import logging
import os
import select
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from deepfake_detector import __version__
from deepfake_detector.adapters.files import full_disk
from deepfake_detector.cluster.commands import add_commands, cluster_flags, connect, reach
from deepfake_detector.core.errors import EXIT_OK, EXIT_PERMANENT, ConfigError, DetectorError

if TYPE_CHECKING:
    from deepfake_detector.adapters.storage import Storage

Command = Callable[[argparse.Namespace], int]
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell has it
EXIT_BROKEN_PIPE = 141  # 128 + SIGPIPE


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status (errors.py)."""
    arguments = _parser().parse_args(argv)
    command: Command = arguments.command
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # what is said is seen at once behind a pipe, too (`| tee`)
    return exit_status(lambda: command(arguments), debug=arguments.debug)


def exit_status(work: Callable[[], int], *, debug: bool) -> int:
    """Do the work; a failure is one line on stderr, and a traceback only with `debug`.

    Where nobody reads stdout or stderr any more (`| head -1`) it ends without a word and with the status of a command
    that died of SIGPIPE: never with 0, since the work may not be done. Python ignores the signal itself, and so must
    this process, which has sockets.
    """
    logging.basicConfig(level=logging.INFO if debug else logging.WARNING, format="%(levelname)s %(message)s")
    try:
        status = _failures_told(work, debug)
        sys.stdout.flush()
    except BrokenPipeError:
        if not _reader_is_gone():
            raise
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (sys.stdout, sys.stderr):  # Python would complain once more while it flushes at exit
            os.dup2(nowhere, stream.fileno())
        return EXIT_BROKEN_PIPE
    return status


def _failures_told(work: Callable[[], int], debug: bool) -> int:
    try:
        return work()
    except DetectorError as error:
        return _tell(error, debug)
    except KeyboardInterrupt:
        print("stopped: the same command again goes on from here", file=sys.stderr)
        return EXIT_INTERRUPTED
    except Exception as error:
        if debug or (isinstance(error, BrokenPipeError) and _reader_is_gone()):
            raise
        if full := full_disk(error):
            return _tell(full, debug)
        print(f"error: unexpected {type(error).__name__}: {error} (--debug shows where)", file=sys.stderr)
        return 1


def _tell(error: DetectorError, debug: bool) -> int:
    """Returns its exit status."""
    if debug:
        traceback.print_exception(error)
    print(f"error: {error}", file=sys.stderr)
    return error.exit_status


def _all_told(parts: Sequence[Callable[[], None]], debug: bool) -> int:
    """Do every part, whatever became of those before it; their failures are told after all of them, equal ones once.

    Returns the exit status of the last failure.
    """
    failures: dict[str, DetectorError] = {}
    for part in parts:
        try:
            part()
        except DetectorError as error:
            failures.setdefault(str(error), error)
    return [EXIT_OK, *(_tell(failure, debug) for failure in failures.values())][-1]


def _reader_is_gone() -> bool:
    """Whether stdout or stderr is a pipe without a reader."""
    streams = select.poll()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed, or no file at all
            streams.register(stream.fileno(), 0)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in streams.poll(0))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="deepfake-detector", description="Train a video deepfake detector, and judge videos with it."
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="log more, and show tracebacks")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", title="commands")
    for add in (_add_local, _add_predict, _add_status, _add_pull, add_commands):
        add(commands, common)
    return parser


def _add_local(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser(
        "local", parents=[common], help="the whole pipeline on this machine, as the processes that pods would be"
    )
    parser.add_argument("--videos", metavar="DIR_OR_GS", default="", help="labelled videos (layouts: see the README)")
    parser.add_argument("--run", metavar="DIR_OR_GS", required=True, help="folder of the run: all that it makes")
    parser.add_argument(
        "--recipe", metavar="NAME", default="dfdc", help="settings by name: demo, dfdc, ffpp, seed (dfdc)"
    )
    parser.add_argument("--workers", metavar="N", type=int, default=None, help="training processes (the recipe's)")
    parser.add_argument("--set", metavar="KEY=VALUE", nargs="+", action="extend", default=[], help="settings to change")
    parser.add_argument("--records", metavar="URI", default="", help="train on the finished records of another run")
    parser.add_argument("--retry-lost", action="store_true", help="try lost videos again first, before any training")
    parser.set_defaults(command=_local)


def _add_predict(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    parser = commands.add_parser("predict", parents=[common], help="judge videos with an exported model")
    parser.add_argument("--model", metavar="DIR_OR_GS", required=True, help="a run's model/ folder")
    parser.add_argument("--json", action="store_true", help="one JSON document instead of a table")
    parser.add_argument("videos", metavar="VIDEO", nargs="+")
    parser.set_defaults(command=_predict)


def _add_status(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    parents = [common, cluster_flags(None)]
    parser = commands.add_parser("status", parents=parents, help="what a run has come to")
    parser.add_argument("--run", metavar="URI", required=True)
    parser.add_argument("--cluster", action="store_true", help="its pods in words, too (not with --json)")
    parser.add_argument("--json", action="store_true", help="one JSON document")
    parser.set_defaults(command=_status)


def _add_pull(commands: argparse._SubParsersAction, common: argparse.ArgumentParser) -> None:
    parents = [common, cluster_flags(None)]
    parser = commands.add_parser("pull", parents=parents, help="fetch a run's exported model, checksums verified")
    parser.add_argument("--run", metavar="URI", required=True)
    parser.add_argument("--to", metavar="DIR", required=True, type=Path)
    parser.set_defaults(command=_pull)


def _local(arguments: argparse.Namespace) -> int:
    from deepfake_detector.local import run_local
    from deepfake_detector.stages.prepare import prepare_run

    assignments = list(arguments.set)
    if arguments.workers is not None:
        assignments.append(f"train.workers={arguments.workers}")
    if not arguments.videos and not arguments.records:
        raise ConfigError("--videos: expected a folder or gs:// prefix with labelled videos (or --records)")
    run, config = prepare_run(
        arguments.run,
        recipe=arguments.recipe,
        assignments=assignments,
        videos=arguments.videos,
        records=arguments.records,
    )
    return run_local(run, config, retry_lost=arguments.retry_lost, verbose=arguments.debug)


def _predict(arguments: argparse.Namespace) -> int:
    from deepfake_detector.stages.predict import predict, to_json, to_text

    verdicts = predict(arguments.model, arguments.videos)
    print(to_json(verdicts) if arguments.json else to_text(verdicts))
    return EXIT_PERMANENT if any(verdict.failed for verdict in verdicts) else EXIT_OK


def _status(arguments: argparse.Namespace) -> int:
    from deepfake_detector.adapters.storage import open_storage

    run = open_storage(arguments.run)
    parts = [functools.partial(_print_status, arguments, run)]
    if arguments.cluster and not arguments.json:  # what the pods do may say why the run can't be read
        parts.append(functools.partial(_print_pods, arguments, run))
    return _all_told(parts, arguments.debug)


def _print_status(arguments: argparse.Namespace, run: Storage) -> None:
    from deepfake_detector.stages.status import read_status, to_text

    with reach(arguments, arguments.run):
        status = read_status(run)
    print(status.encode().decode() if arguments.json else to_text(status))


def _print_pods(arguments: argparse.Namespace, run: Storage) -> None:
    from deepfake_detector.cluster.status import pods_in_words

    print(pods_in_words(connect(arguments), run.uri), flush=True)


def _pull(arguments: argparse.Namespace) -> int:
    from deepfake_detector.stages.pull import pull

    with reach(arguments, arguments.run):
        manifest = pull(arguments.run, arguments.to)
    size = sum(file.size for file in manifest.files)
    print(f"{arguments.to}: {len(manifest.files)} files, {size / 1e6:.1f} MB, checksums verified")
    print(f'next: python -c "import tensorflow as tf; tf.keras.models.load_model({str(arguments.to)!r}).summary()"')
    return EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
