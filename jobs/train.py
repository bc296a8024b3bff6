"""One training pod or local worker: the supervisor of its TensorFlow process.

RUN                   the run's folder or gs:// prefix
JOB_COMPLETION_INDEX  this supervisor's index, among workers and spares; index 0 runs the export
PEERS                 host:port,... of all supervisors, in order of index: for people, but for the port of this one
POD_IP                the address under which the TensorFlow processes find each other (127.0.0.1)
TF_BASE_PORT          the first of the 8 ports of this worker's TensorFlow (2222)
SCRATCH               a folder on local disk
VERBOSE               0: the TensorFlow process's output not on stderr (1)

Further variables: jobs/environment.py. Exit status as in core/errors.py; the last line on stderr is the error.
"""

from __future__ import annotations

import os

from deepfake_detector.supervisor.sigterm import end_on_sigterm

if __name__ == "__main__":
    end_on_sigterm(os.environ.get("TERMINATION_LOG"))

import logging
import sys
from collections.abc import Mapping, Sequence

from deepfake_detector.core.errors import ConfigError
from deepfake_detector.supervisor.logs import end_kept
from deepfake_detector.supervisor.place import Place
from deepfake_detector.supervisor.supervise import supervise
from deepfake_detector.supervisor.terms import Peer
from jobs.environment import exit_status, folder, for_child, number, required, settled_run, where

TRAIN = (sys.executable, "-m", "jobs.train_worker")
EXPORT = (sys.executable, "-m", "jobs.export_model")
LOOPBACK = "127.0.0.1"


def main(environment: Mapping[str, str], train: Sequence[str] = TRAIN, export: Sequence[str] = EXPORT) -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    return exit_status(environment, lambda: _supervise(environment, train, export))


def _supervise(environment: Mapping[str, str], train: Sequence[str], export: Sequence[str]) -> None:
    from deepfake_detector.adapters.storage import open_storage

    place = place_of(environment)
    run = open_storage(required(environment, "RUN"), patient=True)
    with end_kept(run, "train", place.index, place.where):
        run, settlement = settled_run(environment)
        supervise(place, run, settlement.config, train=train, export=export)


def place_of(environment: Mapping[str, str]) -> Place:
    """The supervisor's place from a pod's environment; raises ConfigError naming the variable that is wrong."""
    scratch = folder(environment, "SCRATCH")
    peers = tuple(_peer(text.strip()) for text in required(environment, "PEERS").split(","))
    host = environment.get("POD_IP") or LOOPBACK
    if host == LOOPBACK and any(peer.host not in (LOOPBACK, "localhost") for peer in peers):
        raise ConfigError(f"POD_IP: not set, expected the address under which {environment['PEERS']} reach this pod")
    return Place(
        index=number(environment, "JOB_COMPLETION_INDEX", 0, 100_000),
        peers=peers,
        host=host,
        base_port=number(environment, "TF_BASE_PORT", 1, 65_528, "2222"),
        scratch=scratch,
        # TensorFlow writes generated code into TMPDIR, and a child that is killed leaves it there.
        environment={**for_child(environment), "TMPDIR": str(scratch)},
        verbose=environment.get("VERBOSE") != "0",
        where=where(environment),
    )


def _peer(text: str) -> Peer:
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise ConfigError(f"PEERS: {text!r}: expected host:port (environment)")
    return Peer(host, int(port))


if __name__ == "__main__":
    sys.exit(main(dict(os.environ)))
