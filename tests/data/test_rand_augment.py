"""RandAugment's operations against Pillow, SciPy and hand-worked values; what is drawn, how often."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps
from scipy import stats

from mtkd_jax.data.rand_augment import OPERATIONS, rand_augment
from mtkd_jax.types import UserError

LEVELS = np.random.default_rng(0).integers(30, 220, (12, 16, 3)).astype(np.uint8)
STRENGTHS = (-1.0, -0.7, 0.3, 1.0)
PILLOW = {
    "auto_contrast": lambda image, strength: ImageOps.autocontrast(image),
    "solarize": lambda image, strength: ImageOps.solarize(image, 256 * (1 - abs(strength))),
    "posterize": lambda image, strength: ImageOps.posterize(image, 8 - int(4 * abs(strength))),
    "color": lambda image, strength: ImageEnhance.Color(image).enhance(1 + 0.9 * strength),
    "contrast": lambda image, strength: ImageEnhance.Contrast(image).enhance(1 + 0.9 * strength),
    "brightness": lambda image, strength: ImageEnhance.Brightness(image).enhance(1 + 0.9 * strength),
    "sharpness": lambda image, strength: ImageEnhance.Sharpness(image).enhance(1 + 0.9 * strength),
}
# (x, y) of the result from its centre -> (x, y) of the image
MOVES = {
    "rotate": lambda s: [
        [np.cos(np.pi / 6 * s), -np.sin(np.pi / 6 * s), 0],
        [np.sin(np.pi / 6 * s), np.cos(np.pi / 6 * s), 0],
    ],
    "shear_x": lambda s: [[1, 0.3 * s, 0], [0, 1, 0]],
    "shear_y": lambda s: [[1, 0, 0], [0.3 * s, 1, 0]],
    "translate_x": lambda s: [[1, 0, 0.45 * 16 * s], [0, 1, 0]],
    "translate_y": lambda s: [[1, 0, 0], [0, 1, 0.45 * 12 * s]],
}


def operated(name, image, strength):
    return np.asarray(jax.jit(OPERATIONS[name])(jnp.asarray(image, jnp.float32), jnp.float32(strength)))


def test_every_operation_of_the_paper_is_there_and_compared_below():
    assert len(OPERATIONS) == 14
    assert set(OPERATIONS) == {*PILLOW, *MOVES, "identity", "equalize"}


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("name", PILLOW)
def test_levels_are_those_of_pillow(name, strength):
    """To the one or two levels that Pillow rounds away between its steps."""
    want = np.asarray(PILLOW[name](Image.fromarray(LEVELS), strength), np.float64)
    found = 255 * operated(name, LEVELS / 255.0, strength)
    off = np.abs(found - want)
    assert off.max() < (1e-3 if name in ("solarize", "posterize") else 2.01), (off.max(), off.mean())


@pytest.mark.parametrize("strength", STRENGTHS)
@pytest.mark.parametrize("name", MOVES)
def test_moves_are_those_of_pillow_inside_and_reflections_outside(name, strength):
    height, width, _ = LEVELS.shape
    ((a, b, c), (d, e, f)) = MOVES[name](strength)
    across, down = width / 2, height / 2  # Pillow's centre: pixels are squares there
    matrix = (a, b, across - a * across - b * down + c, d, e, down - d * across - e * down + f)
    want = np.asarray(
        Image.fromarray(LEVELS).transform((width, height), Image.Transform.AFFINE, matrix), np.float64
    )
    y, x = np.mgrid[:height, :width] + 0.5
    from_x, from_y = matrix[0] * x + matrix[1] * y + matrix[2], matrix[3] * x + matrix[4] * y + matrix[5]
    inside = (from_x > 0) & (from_x < width) & (from_y > 0) & (from_y < height)
    # Where a place lies between two pixels to the last bit either one is right.
    clear = (np.abs(from_x - np.round(from_x)) > 1e-4) & (np.abs(from_y - np.round(from_y)) > 1e-4)
    found = 255 * operated(name, LEVELS / 255.0, strength)
    assert (inside & clear).sum() > 60
    np.testing.assert_allclose(found[inside & clear], want[inside & clear], atol=1e-3)
    padded = np.pad(LEVELS, ((24, 24), (24, 24), (0, 0)), mode="reflect")
    places = np.floor(from_y).astype(int) + 24, np.floor(from_x).astype(int) + 24
    np.testing.assert_allclose(found[clear], padded[places][clear], atol=1e-3)


def test_equalised_is_the_share_of_darker_pixels():
    ranks = stats.rankdata(LEVELS.reshape(-1, 3), method="min", axis=0) - 1
    want = (ranks / ranks.max(axis=0)).reshape(LEVELS.shape)
    np.testing.assert_allclose(operated("equalize", LEVELS / 255.0, 1), want, atol=1e-6)


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("shape", [(9, 7, 1), (3, 40, 2), (2, 2, 3), (1, 5, 1)])
def test_any_image_stays_within_black_and_white(name, shape):
    image = np.random.default_rng(1).uniform(0, 1, shape)
    for strength in (-1, 0.4, 1):
        found = operated(name, image, strength)
        assert found.shape == shape and found.dtype == np.float32
        assert found.min() >= 0 and found.max() <= 1


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_plain_grey_image_has_nothing_to_stretch(name):
    """A division by a width of nothing would show here."""
    found = operated(name, np.full((6, 6, 3), 128 / 255), 0.25)
    expected = 128 / 255 * {"brightness": 1.225}.get(name, 1)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("name", sorted({*OPERATIONS} - {"auto_contrast", "equalize"}))
def test_no_strength_is_no_change(name):
    np.testing.assert_allclose(operated(name, LEVELS / 255.0, 0.0), LEVELS / 255.0, atol=1e-6)


def test_every_operation_is_drawn_alike_and_both_ways():
    image = jnp.asarray(LEVELS / 255.0, jnp.float32)
    draw = jax.jit(jax.vmap(functools.partial(rand_augment, image, number=1, magnitude=7.0)))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 700)))
    seen = np.zeros((len(OPERATIONS), 2))
    for n, name in enumerate(OPERATIONS):
        ways = [operated(name, image, way * 0.7) for way in (-1, 1)]
        for way, one in enumerate(ways):
            seen[n, way] = sum(np.allclose(found, one, atol=1e-5) for found in drawn)
        if np.allclose(*ways):  # nothing that goes two ways
            seen[n] /= 2
    assert seen.sum() == 700
    assert (np.abs(seen.sum(axis=1) - 50) < 30).all(), seen  # 4.4 standard deviations
    assert (np.abs(seen - 25) < 25).all(), seen


def test_two_operations_follow_one_another():
    image = jnp.asarray(LEVELS / 255.0, jnp.float32)
    once = {(name, way): operated(name, image, way * 0.7) for name in sorted(OPERATIONS) for way in (-1, 1)}
    draw = jax.jit(functools.partial(rand_augment, image, number=2, magnitude=7.0))
    explained = []
    for key in jax.random.split(jax.random.key(3), 6):
        found = np.asarray(draw(key))
        explained.append(
            {
                (first, name)
                for first, between in once.items()
                for name in OPERATIONS
                for way in (-1, 1)
                if np.allclose(operated(name, between, way * 0.7), found, atol=1e-5)
            }
        )
    assert all(explained)
    assert any(all("identity" not in (first, second) for (first, _), second in pairs) for pairs in explained)


def test_what_was_only_rounded_is_not_stretched():
    """A blend may leave one grey in two ways, an ulp apart."""
    almost = np.full((6, 6, 1), 0.31, np.float32)
    almost[2:4] = np.nextafter(np.float32(0.31), np.float32(1))
    for name in ("auto_contrast", "equalize"):
        np.testing.assert_allclose(operated(name, almost, 1), 0.31, atol=1e-3)


def test_time_series_cannot_be_turned():
    with pytest.raises(UserError, match=r"^rand_augment: images 9x1 cannot be turned"):
        rand_augment(jnp.zeros((9, 1, 2)), jax.random.key(0), number=1, magnitude=1)
