"""Self-blending: nothing at strength 0, and more with more of it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from demo import blending

SQUARE = np.array([(20, 20), (44, 20), (44, 44), (20, 44)], np.float32)


def face(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(20, 230, (48, 40, 3)).astype(np.float32)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_the_copy_of_strength_zero_is_the_face(seed: int) -> None:
    jitter = blending.draw_jitter(rng(seed), 0.0)
    copy = blending.placed(blending.changed_copy(face(), jitter), jitter, rng(seed))
    np.testing.assert_allclose(copy, face(), atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), strength=st.floats(0.1, 4))
def test_every_magnitude_is_proportional_to_the_strength(seed: int, strength: float) -> None:
    one, other = blending.draw_jitter(rng(seed), 1.0), blending.draw_jitter(rng(seed), strength)
    for name, value in vars(one).items():
        np.testing.assert_allclose(getattr(other, name), np.multiply(strength, value), err_msg=name)
        assert np.all(np.abs(value) > 0), name


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_every_fake_differs_visibly_from_its_face(seed: int) -> None:
    jitter = blending.draw_jitter(rng(seed), 1.0)
    copy = blending.placed(blending.changed_copy(face(), jitter), jitter, rng(seed))
    assert np.abs(copy - face()).mean() > 4  # levels of 255


@pytest.mark.parametrize("seed", range(4))
def test_the_mask_is_soft_and_covers_the_face_alone(seed: int) -> None:
    mask = blending.soft_mask(SQUARE, 64, rng(seed))
    assert mask.shape == (64, 64, 1)
    assert mask.dtype == np.float32
    assert mask.min() == 0
    assert 0.7 < mask[32, 32, 0] <= 1
    assert max(mask[0].max(), mask[-1].max(), mask[:, 0].max(), mask[:, -1].max()) < 0.02
    assert np.mean((mask > 0.05) & (mask < 0.7)) > 0.01


def test_the_blend_runs_from_target_to_source() -> None:
    target, source = face(0), face(1)
    half = np.full((48, 40, 1), 0.5, np.float32)
    np.testing.assert_array_equal(blending.blend(target, source, 0 * half), target)
    np.testing.assert_allclose(blending.blend(target, source, 2 * half), source, rtol=1e-5)
    np.testing.assert_allclose(blending.blend(target, source, half), (target + source) / 2, rtol=1e-5)
    np.testing.assert_array_equal(blending.blend(target, target, half), target)
