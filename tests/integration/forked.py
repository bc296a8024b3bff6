"""The product's entrypoints as processes that start in milliseconds: forked by one that has imported what they import.

Their signals, sockets and ends are those of any process. What they are spared is half a second of imports each.
"""

from __future__ import annotations

import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(
    [__name__, "jobs.export", "jobs.preprocess", "jobs.train", "deepfake_detector.local.launch"]
)


class Forked:
    """`python program.py` or `python -m program`, to be used as a subprocess.Popen with text from pipes.

    environment: all of it; what the process says is kept in files below `folder`.
    """

    def __init__(self, program: str, environment: Mapping[str, str], folder: Path) -> None:
        said = Path(tempfile.mkdtemp(prefix="said-", dir=folder))
        self._program, self._output, self._errors = program, said / "stdout", said / "stderr"
        arguments = (program, dict(environment), str(self._output), str(self._errors))
        self._process = SERVER.Process(target=_run, args=arguments)
        self._process.start()

    @property
    def returncode(self) -> int | None:
        """None while it runs; -9 after SIGKILL."""
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self._process.exitcode is None:
            assert self._process.pid
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
    sys.argv = [program]
    if program.endswith(".py"):
        runpy.run_path(program, run_name="__main__")
    else:
        sys.modules.pop(program, None)  # as it was imported, which is not as a program
        runpy.run_module(program, run_name="__main__", alter_sys=True)
