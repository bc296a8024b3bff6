"""Synthesised frames: from the seed alone, and one path for real and fake."""

from __future__ import annotations

import numpy as np
import pytest

from deepfake_detector.core.errors import ConfigError
from demo import clips, portraits


def frames(group: int, fake: bool, strength: float = 1.0, seed: int = 0) -> np.ndarray:
    return np.stack(list(clips.render(seed, group, fake, strength))).astype(np.float32)


def test_equal_seeds_give_equal_frames() -> None:
    np.testing.assert_array_equal(frames(3, True), frames(3, True))


@pytest.mark.parametrize(
    "other", [pytest.param({"group": 4}, id="group"), pytest.param({"group": 3, "seed": 1}, id="seed")]
)
def test_each_group_and_seed_is_a_scene_of_its_own(other: dict[str, int]) -> None:
    assert (
        clips.draw_scene(0, 3).motion.tolist() != clips.draw_scene(other.get("seed", 0), other["group"]).motion.tolist()
    )


@pytest.mark.parametrize("group", range(4))
def test_clips_have_the_promised_form(group: int) -> None:
    scene, clip = clips.draw_scene(0, group), frames(group, False)
    assert clip.shape == (scene.frames, scene.height, scene.width, 3)
    assert (scene.width, scene.height) in clips.SIZES
    assert clips.FRAMES[0] <= scene.frames <= clips.FRAMES[1]
    assert clip.std(axis=(1, 2)).min() > 10  # a picture in every frame
    assert np.abs(np.diff(clip, axis=0)).mean() > 0.5  # and it moves


@pytest.mark.parametrize("group", range(4))
def test_at_strength_zero_a_fake_differs_from_its_real_in_noise_alone(group: int) -> None:
    noise = clips.draw_scene(0, group).noise
    difference = frames(group, True, strength=0) - frames(group, False)
    # Of two independent draws, and of the rounding of both; cut off where a pixel is black or white.
    assert 0.3 * noise < difference.std() < 1.1 * np.hypot(np.sqrt(2) * noise, np.sqrt(1 / 6))
    assert np.abs(difference.mean(axis=0)).mean() < noise


@pytest.mark.parametrize("group", range(4))
def test_a_fake_differs_from_its_real_in_the_face_alone(group: int) -> None:
    scene = clips.draw_scene(0, group)
    difference = np.abs((frames(group, True) - frames(group, False)).mean(axis=0)).mean(axis=2)
    middle_y, middle_x = scene.height // 2, scene.width // 2
    face = difference[middle_y - 20 : middle_y + 20, middle_x - 15 : middle_x + 15].mean()
    border = np.concatenate([difference[:8].ravel(), difference[-8:].ravel(), difference[:, :8].ravel()]).mean()
    assert face > 3 * border


def test_a_portrait_that_is_not_the_measured_one_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    other = portraits.Portrait(package="skimage", path="data/coffee.png", sha256="0" * 64, hull=((0, 0), (1, 1)))
    with pytest.raises(ConfigError, match=r"coffee.png: sha256 \w{64}: expected 0{64}"):
        portraits.load(other)


def test_a_missing_package_is_named() -> None:
    other = portraits.Portrait(package="no_such_package", path="x", sha256="", hull=())
    with pytest.raises(ConfigError, match="package no_such_package: expected it to be installed"):
        portraits.load(other)


@pytest.mark.parametrize("portrait", portraits.PORTRAITS, ids=lambda portrait: portrait.package)
def test_portraits_have_their_face_in_the_middle_at_one_size(portrait: portraits.Portrait) -> None:
    canvas, hull = portraits.load(portrait)
    assert canvas.shape == (portraits.CANVAS, portraits.CANVAS, 3)
    assert canvas.dtype == np.float32
    low, high = hull.min(axis=0), hull.max(axis=0)
    assert high[1] - low[1] == pytest.approx(portraits.FACE_HEIGHT)
    np.testing.assert_allclose((low + high) / 2, portraits.CANVAS / 2, atol=0.01)
