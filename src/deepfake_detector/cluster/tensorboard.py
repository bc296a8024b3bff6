"""TensorBoard on a run's curves while it trains, wherever the run is."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

from deepfake_detector.adapters.storage import Storage, open_storage
from deepfake_detector.core import layout
from deepfake_detector.core.errors import EXIT_OK, ConfigError, NotFoundError, StorageError
from deepfake_detector.stages.runs import has_config
from deepfake_detector.supervisor.child import leashed

PORT = 6006  # TensorBoard's own default
REFRESH_SECONDS = 5.0
END_SECONDS = 5.0
# tensorboard/compat/__init__.py leaves TensorFlow out, and its seconds of import, where a module `notf` can be found.
_MAIN = """
import sys
sys.modules["tensorboard.compat.notf"] = sys
from tensorboard.main import run_main
run_main()
"""


def tensorboard(run_uri: str, *, port: int = PORT, refresh_seconds: float = REFRESH_SECONDS) -> int:
    """Serve the run's TensorBoard events on http://localhost:`port` until Ctrl-C; returns 0.

    It reads a copy that is brought up to date every `refresh_seconds`, of a local run, too: TensorBoard keeps event
    files open, and storage replaces them whole; nor does it know of emulators and credentials. Raises NotFoundError
    when there is no run, ConfigError when TensorBoard ends by itself (the port is taken).
    """
    run = open_storage(run_uri)
    if not has_config(run):
        raise NotFoundError(f"{run.uri}/{layout.CONFIG}: not found, expected a run")
    print(f"run {run.uri}: http://localhost:{port} (Ctrl-C ends it)", flush=True)
    with tempfile.TemporaryDirectory(prefix="deepfake-detector-tensorboard-") as scratch:
        folder = Path(scratch)
        refresh(run, folder)
        process = _start(folder, port, refresh_seconds)
        try:
            while not _ends_within(process, refresh_seconds):
                _keep_fresh(run, folder)
        except KeyboardInterrupt:
            return EXIT_OK
        finally:
            _end(process)
    raise ConfigError(f"tensorboard --port {port}: ended with status {process.returncode}: expected it to serve")


def refresh(run: Storage, folder: Path) -> int:
    """Bring the copy of the run's events in `folder` up to date; returns how many files have changed.

    Event files only grow: the end of a grown one is appended to the copy, which TensorBoard holds open.
    """
    changed = 0
    for entry in run.list(layout.TENSORBOARD):
        copy = folder / entry.name.removeprefix(layout.TENSORBOARD)
        have = copy.stat().st_size if copy.exists() else -1
        if entry.size <= have:
            continue
        with tempfile.TemporaryDirectory() as scratch:
            fresh = Path(scratch) / "events"
            run.download(entry.name, fresh)
            copy.parent.mkdir(parents=True, exist_ok=True)
            with fresh.open("rb") as source, copy.open("ab") as target:
                source.seek(max(0, have))
                shutil.copyfileobj(source, target)
        changed += 1
    return changed


def _keep_fresh(run: Storage, folder: Path) -> None:
    """A store that is away for a while costs a look, not the page."""
    try:
        refresh(run, folder)
    except (StorageError, NotFoundError) as error:
        print(f"not up to date: {error}", file=sys.stderr)


def _start(folder: Path, port: int, refresh_seconds: float) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-c", _MAIN, "--logdir", str(folder), "--port", str(port)]
    command += ["--reload_interval", str(max(1, round(refresh_seconds)))]
    # A session of its own: Ctrl-C is for this process, which then ends it.
    return subprocess.Popen(leashed(command, signal.SIGTERM), stdin=subprocess.DEVNULL, start_new_session=True)


def _ends_within(process: subprocess.Popen[bytes], seconds: float) -> bool:
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    return True


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    if not _ends_within(process, END_SECONDS):
        process.kill()
        process.wait()
