"""What is kept in the run of a process's output: its tail, and why it ended."""

from __future__ import annotations

import contextlib
import functools
import logging
import re
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path

from deepfake_detector.adapters.storage import Storage
from deepfake_detector.core import layout
from deepfake_detector.core.errors import DetectorError
from deepfake_detector.supervisor.child import TAIL_LINES, End, tail
from deepfake_detector.supervisor.where import NOWHERE, Where

log = logging.getLogger(__name__)
STORE_SECONDS = 15.0  # where storage is slow or away: the work has waited for it long enough


def store_log(run: Storage, name: str, log_file: Path, title: str, end: End) -> None:
    """Keep the tail of a child's output in the run. Losing it costs no work: the failure is only logged."""
    try:
        run.write(name, _document(tail(log_file), title, end.reason))
    except DetectorError as error:
        log.warning("%s/%s: not stored: %s", run.uri, name, error)


def add_log(run: Storage, name_of: Callable[[int], str], text: str, title: str, reason: str) -> None:
    """As `store_log`, under the first number above those that exist: two processes never share one.

    name_of: core.layout's name of a number.
    """
    prefix = name_of(0).removesuffix("00000.log")
    try:
        names = (re.fullmatch(r"(\d{5})\.log", entry.name.removeprefix(prefix)) for entry in run.list(prefix))
        number = max((int(match[1]) for match in names if match), default=0) + 1
        while not run.create(name_of(number), _document(text, title, reason)):
            number += 1
    except DetectorError as error:
        log.warning("%s: the log of %s was not stored: %s", run.uri, title, error)


def within(seconds: float, work: Callable[[], None]) -> bool:
    """Do the work in a thread that is left behind, and does not keep the process alive, when time is up."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


@contextlib.contextmanager
def end_kept(run: Storage, stage: str, index: int, where: Where = NOWHERE) -> Iterator[None]:
    """Keep in the run why this supervisor failed, with the tail of its own log; the error goes on.

    What children said is kept as each of them ends.
    """
    own = _LogTail()
    logging.getLogger().addHandler(own)
    try:
        yield
    except Exception as error:
        expected = isinstance(error, DetectorError)
        text = own.text() if expected else f"{own.text()}\n{traceback.format_exc()}"
        reason = str(error) if expected else f"unexpected {error!r}"
        name_of = functools.partial(layout.supervisor_log, stage, index)
        title = where.of(f"supervisor {index}")
        within(STORE_SECONDS, functools.partial(add_log, run, name_of, text, title, reason))
        raise
    finally:
        logging.getLogger().removeHandler(own)


class _LogTail(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self._lines: deque[str] = deque(maxlen=TAIL_LINES)

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(self.format(record))

    def text(self) -> str:
        return "\n".join(self._lines)


def _document(text: str, title: str, reason: str) -> bytes:
    return f"{text}\n--- {title}: {reason}\n".encode()
