"""A child in waiting: what takes long to import is imported already when an attempt begins."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from deepfake_detector.adapters.machine import memory_free_bytes
from deepfake_detector.supervisor.child import Child

log = logging.getLogger(__name__)
NEEDS_MB = 1024  # TensorFlow and the training code take 550 to 650 MB, and the child at work may still grow
AFTER_SECONDS = 20.0  # into an attempt: the child at work has imported and traced by then, which takes the same CPUs
VARIABLE = "STANDBY"  # in the environment of a child that is to wait for its orders on stdin


class Standby:
    """At most one waiting child of a supervisor. wanted: False: never any."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], scratch: Path, *, wanted: bool) -> None:
        self._command = command
        self._environment = {**environment, VARIABLE: "1"}
        self._scratch = scratch
        self._wanted = wanted
        self._numbers = itertools.count(1)
        self._child: Child | None = None
        self._preparing: asyncio.Task[None] | None = None
        self._starting = False

    def prepare(self, after: float) -> None:
        """Have one in `after` seconds, if memory allows it then."""
        if self._wanted and not self._child and not (self._preparing and self._starting):
            if self._preparing:
                self._preparing.cancel()
            self._preparing = asyncio.create_task(self._prepare(after))

    async def _prepared(self) -> None:
        """None is begun any more; one that is just being started is there."""
        preparing, self._preparing = self._preparing, None
        if preparing and not self._starting:
            preparing.cancel()
        elif preparing:
            await preparing

    async def take(self, environment: Mapping[str, str], output: Path) -> Child | None:
        """The waiting child, which now begins with this environment and writes to `output`; None: there is none."""
        await self._prepared()
        child, self._child = self._child, None
        if child is None:
            return None
        if not child.alive:
            log.warning("the standby child: %s", (await child.wait()).reason)
            return None
        child.order(environment, output)
        return child

    async def end(self) -> None:
        """Kill it."""
        await self._prepared()
        child, self._child = self._child, None
        if child:
            child.kill()
            await child.wait()

    async def _prepare(self, after: float) -> None:
        await asyncio.sleep(after)
        free = memory_free_bytes() >> 20
        if free < NEEDS_MB:
            log.warning("no standby child: %d MB of memory are free, expected %d (operations.standby)", free, NEEDS_MB)
            return
        output = self._scratch / f"standby-{next(self._numbers):05d}.log"
        self._starting = True
        try:
            self._child = await Child.start(self._command, self._environment, output, waiting=True)
        finally:
            self._starting = False
