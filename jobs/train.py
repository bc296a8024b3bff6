"""One training pod or local worker: the supervisor of its TensorFlow process.

RUN                   the run's folder or gs:// prefix
JOB_COMPLETION_INDEX  this worker's index; index 0 keeps the rendezvous and runs the export
PEERS                 host:port,... of all supervisors' rendezvous, in order of index
POD_IP                the address under which the TensorFlow processes find each other (127.0.0.1)
TF_BASE_PORT          the first of the 8 ports of this worker's TensorFlow (2222)
SCRATCH               a folder on local disk
VERBOSE               1: the TensorFlow process's output, too, on stderr

Exit status as in core/errors.py; the last line on stderr is the error.
"""

from __future__ import annotations

from deepfake_detector.supervisor.child import end_on_sigterm

if __name__ == "__main__":
    end_on_sigterm()  # before the imports below: storage's take a while

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from deepfake_detector.core.errors import EXIT_OK, ConfigError, DetectorError
from deepfake_detector.supervisor.keeper import Peer
from deepfake_detector.supervisor.member import Place
from deepfake_detector.supervisor.supervise import supervise

TRAIN = (sys.executable, "-m", "jobs.train_worker")
EXPORT = (sys.executable, "-m", "jobs.export")


def main(environment: Mapping[str, str], train: Sequence[str] = TRAIN, export: Sequence[str] = EXPORT) -> int:
    from deepfake_detector.adapters.storage import open_storage
    from deepfake_detector.stages.runs import load_config

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        place = place_of(environment)
        run = open_storage(_required(environment, "RUN"))
        supervise(place, run, load_config(run), train=train, export=export)
    except DetectorError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_status
    return EXIT_OK


def place_of(environment: Mapping[str, str]) -> Place:
    """The supervisor's place from a pod's environment; raises ConfigError naming the variable that is wrong."""
    return Place(
        index=_number(environment, "JOB_COMPLETION_INDEX", 0, 100_000),
        peers=tuple(_peer(text.strip()) for text in _required(environment, "PEERS").split(",")),
        host=environment.get("POD_IP") or "127.0.0.1",
        base_port=_number(environment, "TF_BASE_PORT", 1, 65_528, "2222"),
        scratch=Path(_required(environment, "SCRATCH")),
        environment=environment,
        verbose=environment.get("VERBOSE") == "1",
    )


def _peer(text: str) -> Peer:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"PEERS: {text!r}: expected host:port (environment)")
    return Peer(host, int(port))


def _number(environment: Mapping[str, str], name: str, low: int, high: int, default: str = "") -> int:
    text = environment.get(name) or default
    if not text.isdigit() or not low <= int(text) <= high:
        raise ConfigError(f"{name}={text!r}: expected a number from {low} to {high} (environment)")
    return int(text)


def _required(environment: Mapping[str, str], name: str) -> str:
    if not environment.get(name):
        raise ConfigError(f"{name}: not set (environment)")
    return environment[name]


if __name__ == "__main__":
    sys.exit(main(dict(os.environ)))
