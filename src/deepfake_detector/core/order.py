"""Which sample stands where in every global batch: a pure function of (seed, step).

Nothing is kept between steps, so a resumed run and any number of workers see the same training. Worker w of W takes
the w-th contiguous slice of the global batch. A stream is an endless row of permutations, one per pass over its
samples; pass p is sorted by the raw output of Philox-4x64 keyed by (seed, stream, p), whose bits numpy promises to
keep (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from deepfake_detector.core.config import Config
from deepfake_detector.core.errors import DataError

ALL_LABELS = 2  # stream key of the unbalanced stream; 0 and 1 are the labels' own


@lru_cache(maxsize=8)  # the current and the next pass of each stream
def permutation(size: int, seed: int, stream: int, number: int) -> npt.NDArray[np.int64]:
    """Pass `number` (0 is the first) over `size` samples: each of 0..size-1 once."""
    bits = np.random.Philox(np.random.SeedSequence([seed, stream, number]))
    return np.argsort(bits.random_raw(size), kind="stable").astype(np.int64)


def stream_slice(size: int, seed: int, stream: int, start: int, count: int) -> npt.NDArray[np.int64]:
    """Positions start..start+count-1 of a stream's endless row of permutations of 0..size-1."""
    positions = np.arange(start, start + count)
    passes, within = positions // size, positions % size
    return np.array(
        [permutation(size, seed, stream, int(p))[w] for p, w in zip(passes, within, strict=True)], dtype=np.int64
    )


class Order:
    """The order of one training split. labels: 0 or 1 of every sample; raises DataError if it can't be batched."""

    def __init__(self, labels: Sequence[int] | npt.NDArray[np.int64], config: Config) -> None:
        train = config.train
        values = np.asarray(labels, dtype=np.int64)
        if values.size == 0:
            raise DataError(
                "training split: 0 sequences: expected at least one (see the losses in the records summary)"
            )
        self._seed = train.seed
        self._batch = train.global_batch
        self._streams = [np.flatnonzero(values == label) for label in (0, 1)] if train.balanced else []
        self._size = int(values.size)
        if train.balanced and min(len(stream) for stream in self._streams) == 0:
            found = ", ".join(f"{len(s)} {name}" for s, name in zip(self._streams, ("real", "fake"), strict=True))
            raise DataError(f"training split: {found} sequences: expected both labels (train.balanced=true)")
        self.steps_per_epoch = train.steps_per_epoch or self._one_pass()

    def _one_pass(self) -> int:
        """Balanced: the larger class is seen once and the smaller one as often; otherwise every sample once."""
        samples = 2 * max(len(stream) for stream in self._streams) if self._streams else self._size
        return -(-samples // self._batch)

    def global_batch(self, step: int) -> list[int]:
        """Indices into the split of the batch after `step` finished steps; labels alternate when balanced."""
        if not self._streams:
            return stream_slice(self._size, self._seed, ALL_LABELS, step * self._batch, self._batch).tolist()
        half = self._batch // 2
        batch = np.empty(self._batch, dtype=np.int64)
        for label, stream in enumerate(self._streams):
            batch[label::2] = stream[stream_slice(len(stream), self._seed, label, step * half, half)]
        return batch.tolist()


def worker_slice(count: int, rank: int, workers: int) -> range:
    """Positions of worker `rank` in a batch of `count`, which `workers` divides."""
    share = count // workers
    return range(rank * share, (rank + 1) * share)


def padded_share(count: int, rank: int, workers: int, batch: int) -> list[int | None]:
    """Worker `rank`'s contiguous share of 0..count-1, padded with None.

    The length, a multiple of `batch`, is the same on every worker, so that all run equally many steps.
    """
    share = -(-count // workers)
    mine: list[int | None] = list(range(min(rank * share, count), min((rank + 1) * share, count)))
    length = -(-share // batch) * batch
    return mine + [None] * (length - len(mine))
