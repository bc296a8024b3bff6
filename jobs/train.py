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

from deepfake_detector.core.errors import ConfigError
from deepfake_detector.supervisor.keeper import Peer
from deepfake_detector.supervisor.member import Place
from deepfake_detector.supervisor.supervise import supervise
from jobs.environment import exit_status, number, required

TRAIN = (sys.executable, "-m", "jobs.train_worker")
EXPORT = (sys.executable, "-m", "jobs.export")


def main(environment: Mapping[str, str], train: Sequence[str] = TRAIN, export: Sequence[str] = EXPORT) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    return exit_status(lambda: _supervise(environment, train, export))


def _supervise(environment: Mapping[str, str], train: Sequence[str], export: Sequence[str]) -> None:
    from deepfake_detector.adapters.storage import open_storage
    from deepfake_detector.stages.runs import load_config

    place = place_of(environment)
    run = open_storage(required(environment, "RUN"))
    supervise(place, run, load_config(run), train=train, export=export)


def place_of(environment: Mapping[str, str]) -> Place:
    """The supervisor's place from a pod's environment; raises ConfigError naming the variable that is wrong."""
    scratch = Path(required(environment, "SCRATCH"))
    return Place(
        index=number(environment, "JOB_COMPLETION_INDEX", 0, 100_000),
        peers=tuple(_peer(text.strip()) for text in required(environment, "PEERS").split(",")),
        host=environment.get("POD_IP") or "127.0.0.1",
        base_port=number(environment, "TF_BASE_PORT", 1, 65_528, "2222"),
        scratch=scratch,
        # TensorFlow writes generated code into TMPDIR, and a child that is killed leaves it there.
        environment={**environment, "TMPDIR": str(scratch)},
        verbose=environment.get("VERBOSE") == "1",
    )


def _peer(text: str) -> Peer:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"PEERS: {text!r}: expected host:port (environment)")
    return Peer(host, int(port))


if __name__ == "__main__":
    sys.exit(main(dict(os.environ)))
