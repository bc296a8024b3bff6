"""A pod's environment and exit status, read and decided in one way by all entrypoints.

SETTINGS             stage:fingerprint of the settings that the Job was created with (core/jobspec.py); without it, as
                     outside a cluster, those that config.json holds are taken
TERMINATION_LOG      the file of the container's termination message (terminationMessagePath): it gets the error line
POD_NAME, NODE_NAME  the pod's, kept with its attempts and logs; without them, as outside a cluster, nothing is
TMPDIR, HOME         made where they are missing, as under a read-only root with an empty scratch volume
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, cast

from deepfake_detector.adapters.files import full_disk
from deepfake_detector.core.errors import EXIT_OK, ConfigError, DetectorError
from deepfake_detector.supervisor.where import Where

if TYPE_CHECKING:
    from deepfake_detector.adapters.storage import Storage
    from deepfake_detector.core.config import Stage
    from deepfake_detector.stages.runs import Settlement

MESSAGE_BYTES = 4096  # what the kubelet keeps of a termination message
log = logging.getLogger(__name__)


def exit_status(environment: Mapping[str, str], work: Callable[[], None]) -> int:
    """Do the work; a failure is one line, last on stderr and in TERMINATION_LOG, and its status (core/errors.py).

    An unexpected error is a traceback before its line, and status 1; of a full disk, wherever it was met, status 75.
    """
    try:
        _make_folders(environment)
        work()
    except DetectorError as error:
        _say(environment, str(error))
        return error.exit_status
    except Exception as error:
        traceback.print_exc()
        if full := full_disk(error):
            _say(environment, str(full))
            return full.exit_status
        _say(environment, f"unexpected {type(error).__name__}: {error}")
        return 1
    return EXIT_OK


def for_child(environment: Mapping[str, str]) -> dict[str, str]:
    """What a child inherits: the pod's last words are its parent's."""
    return {name: value for name, value in environment.items() if name != "TERMINATION_LOG"}


def where(environment: Mapping[str, str]) -> Where:
    """The pod, and its node."""
    return Where(environment.get("POD_NAME", ""), environment.get("NODE_NAME", ""))


def settled_run(environment: Mapping[str, str]) -> tuple[Storage, Settlement]:
    """RUN, and its settings. Raises ConfigError where they are not those that the Job was created with.

    Two clients may submit at once with different settings (cluster/creation.py), or somebody may edit config.json:
    nothing is worked on with settings that the Job's creator has not seen.
    """
    from deepfake_detector.adapters.storage import open_storage
    from deepfake_detector.core import layout
    from deepfake_detector.stages.runs import load_settlement

    run = open_storage(required(environment, "RUN"), patient=True)
    stage, expected = _bound(environment)
    settlement = load_settlement(run)
    if stage and (found := settlement.fingerprint(stage)) != expected:
        raise ConfigError(
            f"{run.uri}/{layout.CONFIG}: was changed after this Job was created: its settings of {stage} have the "
            f"fingerprint {found[:12]}, expected {expected[:12]} (make {stage} RUN={run.uri} begins again with "
            "those that are there now; where nobody changed it, IMAGE is of another version than the client)"
        )
    return run, settlement


def _bound(environment: Mapping[str, str]) -> tuple[Stage | None, str]:
    """The stage and the fingerprint in SETTINGS, where it is set."""
    from deepfake_detector.core.config import STAGES

    text = environment.get("SETTINGS")
    if not text:
        return None, ""
    stage, _, fingerprint = text.partition(":")
    if stage not in STAGES or not fingerprint:
        raise ConfigError(f"SETTINGS={text!r}: expected stage:fingerprint (environment)")
    return cast("Stage", stage), fingerprint


def required(environment: Mapping[str, str], name: str) -> str:
    """The variable's value; raises ConfigError where it is not set, or empty."""
    if not environment.get(name):
        raise ConfigError(f"{name}: not set (environment)")
    return environment[name]


def number(environment: Mapping[str, str], name: str, low: int, high: int, default: str = "") -> int:
    """A whole number from `low` to `high`; raises ConfigError naming the variable and its value."""
    text = environment.get(name) or default
    if not text.isdecimal() or not low <= int(text) <= high:
        raise ConfigError(f"{name}={text!r}: expected a number from {low} to {high} (environment)")
    return int(text)


def folder(environment: Mapping[str, str], name: str) -> Path:
    """The folder that a variable names, made where it is missing; raises ConfigError where that cannot be."""
    path = Path(required(environment, name))
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if full := full_disk(error):
            raise full from None
        raise ConfigError(f"{name}={path}: {error.strerror}, expected a folder to write to (environment)") from None
    return path


def _make_folders(environment: Mapping[str, str]) -> None:
    if environment.get("TMPDIR"):
        folder(environment, "TMPDIR")
    if environment.get("HOME"):
        try:
            folder(environment, "HOME")
        except ConfigError as error:  # only libraries' caches want it: accounts without a home can work
            log.warning("%s", error)


def _say(environment: Mapping[str, str], message: str) -> None:
    line = " ".join(message.splitlines())
    file = environment.get("TERMINATION_LOG")
    try:
        if file:
            Path(file).write_bytes(_cut(line))
    except OSError as error:
        log.warning("TERMINATION_LOG=%s: %s", file, error.strerror)
    print(f"error: {line}", file=sys.stderr, flush=True)


def _cut(line: str) -> bytes:
    """At most MESSAGE_BYTES of UTF-8, with a newline, and no character cut in two."""
    return line.encode()[: MESSAGE_BYTES - 1].decode(errors="ignore").encode() + b"\n"
