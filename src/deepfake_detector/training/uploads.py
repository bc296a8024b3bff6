"""What the chief writes to storage, in order and in a thread of its own: training does not wait for a bucket."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable

Work = Callable[[], object]
WAITING = 4  # pieces of work in line; whoever adds another waits, so that an outage stops training and not memory


class Uploads:
    """One thread that does one piece of work after the other; an error is raised by whichever call comes next."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Work | None] = queue.Queue(WAITING)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="uploads", daemon=True)
        self._thread.start()

    @property
    def idle(self) -> bool:
        """Whether all that was put is done."""
        return self._queue.unfinished_tasks == 0

    def put(self, work: Work) -> None:
        """Have it done after what was put before; waits while WAITING others are in line."""
        self._raise()
        self._queue.put(work)

    def drain(self) -> None:
        """Return when everything is done."""
        self._queue.join()
        self._raise()

    def close(self) -> None:
        """As `drain`, and end the thread."""
        self.drain()
        self._queue.put(None)
        self._thread.join()

    def _raise(self) -> None:
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        while (work := self._queue.get()) is not None:
            try:
                if self._failure is None:  # else nothing may follow: a later marker would commit what is not there
                    work()
            except BaseException as error:
                self._failure = error
            finally:
                self._queue.task_done()
        self._queue.task_done()
