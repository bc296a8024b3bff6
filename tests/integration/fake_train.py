"""jobs.train with a stand-in for TensorFlow: everything else is the product's."""

import os

from deepfake_detector.supervisor.sigterm import end_on_sigterm

if __name__ == "__main__":
    end_on_sigterm(os.environ.get("TERMINATION_LOG"))

import fcntl
import sys
from pathlib import Path

from deepfake_detector.supervisor import keeper, member, sigterm, standby, wire
from jobs.train import main

SHORTENED = {
    "SILENCE_SECONDS": wire,
    "BEAT_SECONDS": wire,
    "CONNECT_SECONDS": member,
    "AFTER_SECONDS": member,
    "LOOK_SECONDS": keeper,
    "HOLD_SECONDS": keeper,
    "NEEDS_MB": standby,
}
FAKE = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))


def keep_logs_when_unlocked(path: str) -> None:
    """Whoever holds a lock on the file decides when storage takes a log."""
    store = member.store_log

    def store_log(*arguments: object) -> None:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            store(*arguments)  # type: ignore[arg-type]

    member.store_log = store_log


if __name__ == "__main__":
    if "LOCK_ON_LOGS" in os.environ:
        keep_logs_when_unlocked(os.environ["LOCK_ON_LOGS"])
    sigterm.FAREWELL_SECONDS = float(os.environ.get("FAREWELL_SECONDS", "60"))  # longer than anybody waits
    for name, module in SHORTENED.items():
        if name in os.environ:
            setattr(module, name, float(os.environ[name]))
    sys.exit(main(dict(os.environ), train=(*FAKE, "train"), export=(*FAKE, "export")))
