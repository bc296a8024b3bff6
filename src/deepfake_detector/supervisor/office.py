"""Where a supervisor finds the rendezvous, or takes it over: any of them can keep it."""

from __future__ import annotations

import asyncio

from deepfake_detector.adapters.storage import Storage
from deepfake_detector.core.config import Config
from deepfake_detector.core.waiting import Budget
from deepfake_detector.supervisor import terms
from deepfake_detector.supervisor.keeper import FAREWELL_SECONDS, Keeper
from deepfake_detector.supervisor.place import Place
from deepfake_detector.supervisor.terms import NO_KEEPER, Term


class Office:
    """The rendezvous of a run, as one supervisor sees it. budget: its patience with those that do not come."""

    def __init__(self, place: Place, run: Storage, config: Config, budget: Budget) -> None:
        self._place = place
        self._run = run
        self._config = config
        self._budget = budget
        self._keeping: asyncio.Task[None] | None = None
        self._taken = 0  # the first term that this supervisor has begun
        self.superseded = False  # by another's term, after that: somebody else is alive

    async def find(self, unreachable: int) -> Term:
        """The term that holds. This supervisor takes the next one where there is none, or only `unreachable`.

        unreachable: number of a term whose keeper did not answer; 0: none. Raises StorageError, WaitError where this
        supervisor can't listen, and what ended its own keeping.
        """
        while True:
            if self._keeping and self._keeping.done():
                keeping, self._keeping = self._keeping, None
                await keeping
            newest = await asyncio.to_thread(terms.latest, self._run)
            if newest and newest.number > unreachable:
                elsewhere = newest.keeper not in (self._place.index, NO_KEEPER)
                self.superseded = self.superseded or (elsewhere and 0 < self._taken < newest.number)
                return newest
            await self.close(0)
            if taken := await self._take(newest.number + 1 if newest else 1):
                return taken

    async def _take(self, number: int) -> Term | None:
        """Keep the term `number` of the rendezvous; None where another has taken it."""
        keeper = Keeper(self._run, self._place, self._config, self._budget)
        await keeper.listen()  # first: whoever reads of the term connects at once
        try:
            term = await keeper.take(number)
        except BaseException:
            await keeper.close()
            raise
        if term is None:
            await keeper.close()
        else:
            self._taken = self._taken or number
            self._keeping = asyncio.create_task(_keep(keeper))
        return term

    async def close(self, patience: float = FAREWELL_SECONDS) -> None:
        """Stop keeping the rendezvous. patience: seconds for what ends by itself, as when all were told of the end."""
        if self._keeping:
            await asyncio.wait([self._keeping], timeout=patience)
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
            self._keeping = None


async def _keep(keeper: Keeper) -> None:
    try:
        await keeper.run()
    finally:
        await keeper.close()
