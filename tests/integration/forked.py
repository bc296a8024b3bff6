"""The product's entrypoints as processes that start in milliseconds: forked by one that has imported what they import.

Their signals, their sockets and the files that they leave are those of any process. The interpreter's own part is not:
such a process ends without atexit functions and finalisation, reads no PYTHON* variable, and Ctrl-C is not worded by
it. test_bound_settings.py starts each entrypoint in an interpreter of its own.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
IMPORTED = (__name__, "jobs.export", "jobs.preprocess", "jobs.train", "deepfake_detector.local.launch")
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(list(IMPORTED))


class Forked:
    """`python program.py` or `python -m program`, to be used as a subprocess.Popen with text from pipes.

    environment: all of it; what the process says is kept in files below `folder`. Whoever starts one kills it whatever
    happens (director.Stage does); one that is forgotten gets SIGTERM when pytest ends.
    """

    def __init__(self, program: str, environment: Mapping[str, str], folder: Path) -> None:
        said = Path(tempfile.mkdtemp(prefix="said-", dir=folder))
        self._program, self._output, self._errors = program, said / "stdout", said / "stderr"
        arguments = (program, dict(environment), str(self._output), str(self._errors))
        self._process = SERVER.Process(target=_run, args=arguments, daemon=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTHONPATH", str(ROOT))  # of the server, which imports nothing from another working directory
            self._process.start()

    @property
    def returncode(self) -> int | None:
        """None while it runs; -9 after SIGKILL."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self._process.exitcode is None:
            assert self._process.pid
            with contextlib.suppress(ProcessLookupError):  # the server knows of its end, and tells it in a moment
                os.kill(self._process.pid, number)

    def kill(self) -> None:
        if self._process.exitcode is None:
            self._process.kill()

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """stdout and stderr, once it has ended. Raises subprocess.TimeoutExpired."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise subprocess.TimeoutExpired(self._program, timeout or 0)
        return self._output.read_text(), self._errors.read_text()


def _run(program: str, environment: dict[str, str], output: str, errors: str) -> None:
    os.environ.clear()
    os.environ.update(environment)
    for name, number in ((output, 1), (errors, 2)):
        with open(name, "wb") as file:
            os.dup2(file.fileno(), number)
    absent = [name for name in IMPORTED if name not in sys.modules]
    assert not absent, f"{absent}: expected the server to have imported them (it passes over every ImportError)"
    sys.argv = [program]
    if program.endswith(".py"):
        runpy.run_path(program, run_name="__main__")
    else:
        sys.modules.pop(program, None)  # as it was imported, which is not as a program
        runpy.run_module(program, run_name="__main__", alter_sys=True)
