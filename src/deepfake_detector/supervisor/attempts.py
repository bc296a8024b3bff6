"""The run's attempts, one small object each, written before its children start, so that none goes uncounted.

logs/attempts/NNNNN.json                     one for each life of the training processes, or of the export
logs/preprocess/<index>/attempts/NNNNN.json  one for each life of a shard's process
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence

from deepfake_detector.adapters.attempts import Attempt, AttemptWorker, Work, read_attempt
from deepfake_detector.adapters.storage import Storage
from deepfake_detector.core import layout
from deepfake_detector.core.errors import WaitError
from deepfake_detector.core.pods import OUT_OF_MEMORY
from deepfake_detector.supervisor import sigterm
from deepfake_detector.supervisor.policy import COMPLETE

EXPORTED = "the model is exported"
SHARD_DONE = "the shard is done"
KEEPER_GONE = "the supervisor that kept the rendezvous is gone"
POD_GONE = "its pod was lost, or killed with all that ran in it"
STOPPED = "ended with the command that ran it (Ctrl-C, a shutdown)"
SILENT = "ended without a word (killed, or its machine went down)"
SUCCESSES = (COMPLETE, EXPORTED, SHARD_DONE)
UNCOUNTED = (STOPPED, SILENT)  # on one machine, where each command gives up by itself what fails again and again
REASONS = 3  # of the last attempts, told when there is none left


class History:
    """All attempts of a run, or of one of its shards, counted over the lives of their supervisors.

    Only one supervisor writes here: in training the one that keeps the rendezvous. An attempt's object is created
    before its children start, so of two writers (one cut off, one restarted) only one can open an attempt.
    """

    def __init__(self, run: Storage, *, shard: int | None = None) -> None:
        """Read what was; an attempt without an end is given one, as whoever opened it is gone.

        shard: preprocessing's, None: the attempts of training and export.
        """
        self._run = run
        self._shard = shard
        self._attempts = [read_attempt(run, entry.name) for entry in run.list(layout.attempts(shard))]
        if self._attempts and self._attempts[-1].reason is None:
            self.close(_without_a_word(run, self._attempts[-1]))

    @property
    def last(self) -> int:
        return self._attempts[-1].attempt if self._attempts else 0

    @property
    def reason(self) -> str:
        """Why the latest attempt ended."""
        return (self._attempts[-1].reason or "") if self._attempts else ""

    @property
    def ranks(self) -> dict[int, int]:
        """Who had which rank in training's latest attempt, by index."""
        trained = (attempt for attempt in reversed(self._attempts) if attempt.stage == "train")
        latest = next(trained, None)
        return {worker.index: worker.rank for worker in latest.workers} if latest else {}

    @property
    def out_of_memory(self) -> int:
        """How many of training's latest attempts in a row ran out of memory."""
        reasons = (attempt.reason or "" for attempt in reversed(self._attempts) if attempt.stage == "train")
        return len(list(itertools.takewhile(lambda reason: OUT_OF_MEMORY in reason, reasons)))

    def used(self, stage: Work) -> int:
        return sum(attempt.stage == stage and attempt.reason not in UNCOUNTED for attempt in self._attempts)

    def in_vain(self, stage: Work) -> list[str]:
        """Why the stage's attempts since its last success ended, and on which node, the latest first."""
        ended = (attempt for attempt in reversed(self._attempts) if attempt.stage == stage)
        vain = itertools.takewhile(lambda attempt: attempt.reason not in SUCCESSES, ended)
        return [_with_node(attempt) for attempt in vain if attempt.reason not in UNCOUNTED]

    def open(self, number: int, stage: Work, workers: list[AttemptWorker]) -> None:
        """Create the attempt's object; raises WaitError when another keeper has opened this number."""
        attempt = Attempt(attempt=number, stage=stage, workers=workers, started=time.time())
        name = layout.attempt(number, self._shard)
        if not self._run.create(name, attempt.encode()):
            raise WaitError(f"{self._run.uri}/{name}: exists, expected no other supervisor at work on the same")
        self._attempts.append(attempt)

    def close(self, reason: str) -> None:
        """Record why the latest attempt ended, unless that is recorded.

        Outside a pod SIGTERM is a person's, who goes on later: no failure. A keeper that was frozen wakes up to events
        that are long over, and must not rewrite what the next one has found.
        """
        if not self._attempts:
            return
        name = layout.attempt(self.last, self._shard)
        last = read_attempt(self._run, name)
        if last.reason is not None:
            self._attempts[-1] = last
            return
        if sigterm.asked() and last.on_one_machine and reason not in SUCCESSES:
            reason = STOPPED
        ended = self._attempts[-1] = last.model_copy(update={"ended": time.time(), "reason": reason})
        self._run.write(name, ended.encode())


def under_way(run: Storage, without: int) -> bool:
    """Whether training goes on, as far as its latest attempt tells, and not with the supervisor of this index."""
    names = [entry.name for entry in run.list(layout.attempts())]
    latest = read_attempt(run, names[-1]) if names else None
    if latest is None or latest.reason is not None or latest.stage != "train":
        return False
    return without not in [worker.index for worker in latest.workers]


def _with_node(attempt: Attempt) -> str:
    """The reason of an attempt of one process, which does not name the node itself."""
    nodes = [worker.node for worker in attempt.workers if worker.node]
    return f"{attempt.reason or ''}, on {nodes[0]}" if nodes else attempt.reason or ""


def _without_a_word(run: Storage, attempt: Attempt) -> str:
    """Why an attempt ended whose end nobody recorded."""
    if attempt.stage == "train" and run.exists(layout.TRAINED):
        return COMPLETE
    if attempt.on_one_machine:
        return SILENT
    return KEEPER_GONE if attempt.stage == "train" else POD_GONE


def in_words(reasons: Sequence[str]) -> str:
    """The last few, equal ones in a row as one: "SIGTERM (3 times), before that exit 75: away"."""
    groups = [(reason, len(list(same))) for reason, same in itertools.groupby(reasons)]
    told = [f"{reason} ({times} times)" if times > 1 else reason for reason, times in groups[:REASONS]]
    return ", before that ".join(told)
