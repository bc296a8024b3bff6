from __future__ import annotations

from collections import Counter
from itertools import chain

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepfake_detector.core.config import Config, override
from deepfake_detector.core.errors import DataError
from deepfake_detector.core.order import Order, padded_share, permutation, worker_slice


def config_of(**train: object) -> Config:
    return override(Config(), {f"train.{name}": value for name, value in train.items()}, "the test")


class_sizes = st.tuples(st.integers(1, 40), st.integers(1, 40))
few = settings(max_examples=40, deadline=None)  # one example draws hundreds of permutations
half_batches = st.integers(1, 12)


def labels_of(sizes: tuple[int, int], shuffle_seed: int = 0) -> list[int]:
    labels = np.repeat([0, 1], sizes)
    return np.random.default_rng(shuffle_seed).permutation(labels).tolist()


@few
@given(sizes=class_sizes, share=half_batches, workers=st.sampled_from([1, 2, 3, 8]), step=st.integers(0, 10**6))
def test_workers_slices_join_to_the_batch_and_are_balanced(
    sizes: tuple[int, int], share: int, workers: int, step: int
) -> None:
    labels = labels_of(sizes)
    config = config_of(global_batch=2 * share * workers, workers=workers)
    batch = Order(labels, config).global_batch(step)
    alone = Order(labels, config_of(global_batch=2 * share * workers, workers=1)).global_batch(step)
    slices = [[batch[i] for i in worker_slice(len(batch), rank, workers)] for rank in range(workers)]
    assert list(chain.from_iterable(slices)) == batch == alone
    for mine in slices:
        assert Counter(labels[i] for i in mine) == {0: share, 1: share}


@few
@given(sizes=class_sizes, half=half_batches, seed=st.integers(0, 2**32 - 1), passes=st.integers(1, 3))
def test_each_pass_of_a_class_covers_it_exactly_once(sizes: tuple[int, int], half: int, seed: int, passes: int) -> None:
    labels = labels_of(sizes)
    order = Order(labels, config_of(global_batch=2 * half, seed=seed))
    steps = -(-max(sizes) * passes // half)
    seen = [index for step in range(steps) for index in order.global_batch(step)]
    for label, size in enumerate(sizes):
        stream = [index for index in seen if labels[index] == label]
        for start in range(0, len(stream) - size + 1, size):
            assert sorted(stream[start : start + size]) == np.flatnonzero(np.equal(labels, label)).tolist()


@few
@given(count=st.integers(1, 50), batch=st.integers(1, 20))
def test_each_unbalanced_pass_covers_the_split_exactly_once(count: int, batch: int) -> None:
    order = Order([1] * count, config_of(global_batch=batch, balanced=False))
    seen = [index for step in range(-(-3 * count // batch)) for index in order.global_batch(step)]
    for start in range(0, 3 * count, count):
        assert sorted(seen[start : start + count]) == list(range(count))


@few
@given(sizes=class_sizes, half=half_batches, start=st.integers(0, 60))
def test_a_resumed_stream_goes_on_where_it_was(sizes: tuple[int, int], half: int, start: int) -> None:
    labels, config = labels_of(sizes), config_of(global_batch=2 * half)
    continued = Order(labels, config)
    for step in range(start):
        continued.global_batch(step)
    permutation.cache_clear()
    resumed = Order(labels, config)
    assert [resumed.global_batch(step) for step in range(start, start + 3)] == [
        continued.global_batch(step) for step in range(start, start + 3)
    ]


def test_seeds_and_passes_differ() -> None:
    orders = {tuple(permutation(50, seed, 0, number)) for seed in range(3) for number in range(3)}
    assert len(orders) == 9


def test_the_order_is_frozen() -> None:
    """Resumed runs of an older installation depend on these very numbers."""
    assert permutation(8, 0, 0, 0).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]


@pytest.mark.parametrize(
    ("sizes", "train", "expected"),
    [
        pytest.param((10, 3), {"global_batch": 8}, 3, id="twice the larger class"),
        pytest.param((3, 8), {"global_batch": 8}, 2, id="a whole number of batches"),
        pytest.param((10, 3), {"global_batch": 8, "balanced": False}, 2, id="unbalanced: every sample once"),
        pytest.param((10, 3), {"global_batch": 8, "steps_per_epoch": 7}, 7, id="as set"),
    ],
)
def test_steps_per_epoch(sizes: tuple[int, int], train: dict[str, object], expected: int) -> None:
    assert Order(labels_of(sizes), config_of(**train)).steps_per_epoch == expected


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        pytest.param([], "training split: 0 sequences: expected at least one", id="empty"),
        pytest.param([1, 1, 1], "training split: 0 real, 3 fake sequences: expected both labels", id="one class"),
    ],
)
def test_unusable_splits_are_refused(labels: list[int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        Order(labels, config_of())


@given(count=st.integers(0, 60), workers=st.integers(1, 9), batch=st.integers(1, 9))
def test_padded_shares_cover_a_split_once_in_equally_many_steps(count: int, workers: int, batch: int) -> None:
    shares = [padded_share(count, rank, workers, batch) for rank in range(workers)]
    assert [index for share in shares for index in share if index is not None] == list(range(count))
    assert len({len(share) for share in shares}) == 1
    assert len(shares[0]) % batch == 0
