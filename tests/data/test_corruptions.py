"""Corruptions: every one of them at every strength, simple ones against float64, JPEG against Pillow."""

import inspect
import io
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image
from scipy import stats

from mtkd_jax import addresses, listing
from mtkd_jax.data import corruptions
from mtkd_jax.types import UserError
from tests import small
from tests.references import corruptions as reference

CATALOGUE = addresses.catalogue("corruption")
BLURS = ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform", "pixelate")


def photograph(number=4, size=16, channels=3):
    """Something with edges, gradients and a texture, as photographs have them, float32 in [0,1]."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] / size
    images = []
    for _ in range(number):
        a, b, c, d = rng.uniform(0.2, 0.8, 4)
        disk = (x - a) ** 2 + (y - b) ** 2 < 0.09
        scene = 0.25 + 0.35 * x * c + 0.15 * y + 0.3 * disk + 0.05 * np.sin(20 * d * x + 9 * y)
        images.append(
            scene[..., None] * np.linspace(1, 0.8, channels) + 0.02 * rng.normal(size=(size, size, 1))
        )
    return np.clip(images, 0.02, 0.98).astype(np.float32)


@pytest.fixture(scope="module")
def found():
    """{name: [5,N,h,w,c]}: all strengths of each corruption, by one program."""
    images, key = jnp.asarray(photograph()), jax.random.key(3)
    programs = {name: jax.jit(partial(corruptions.corrupt, make())) for name, make in CATALOGUE.items()}
    return {
        name: np.stack([run(key, images, strength) for strength in corruptions.STRENGTHS])
        for name, run in programs.items()
    }


def test_there_are_fifteen_and_all_are_listed():
    assert len(CATALOGUE) == 15
    assert all(f"\n  {name}(" in listing.listing() for name in CATALOGUE)


def test_each_strength_changes_more_than_the_one_before_and_stays_in_range(found):
    images = photograph()
    for name, by_strength in found.items():
        assert by_strength.dtype == np.float32 and by_strength.shape == (5, *images.shape), name
        assert by_strength.min() >= 0 and by_strength.max() <= 1, name
        changed = np.mean((by_strength.astype(np.float64) - images) ** 2, axis=(1, 2, 3, 4))
        assert (np.diff(changed) > 0).all() and changed[0] > 1e-5, (name, changed)


@pytest.mark.parametrize("shape", [(9, 13, 1), (2, 3, 4), (40, 24, 3)])
def test_any_size_and_number_of_channels(shape):
    images = jax.ShapeDtypeStruct((2, *shape), jnp.uint8)
    for name, make in CATALOGUE.items():
        seen = jax.eval_shape(partial(corruptions.corrupt, make()), jax.random.key(0), images, np.int32(5))
        assert (seen.shape, seen.dtype) == (images.shape, images.dtype), name


def test_an_image_has_a_key_of_its_own_whatever_it_is_among(monkeypatch):
    images = np.round(255 * photograph(5, 4)).astype(np.uint8)
    noise = corruptions.gaussian_noise()
    whole = corruptions.corrupted("noise", noise, images, 5)
    monkeypatch.setattr(corruptions, "BLOCK", 2)
    np.testing.assert_array_equal(corruptions.corrupted("noise", noise, images, 5), whole)
    assert not np.array_equal(corruptions.corrupted("other", noise, images, 5), whole)
    assert len({(one.astype(int) - before).tobytes() for one, before in zip(whole, images)}) == 5


def test_made_twice_it_is_the_same_key_of_jit():
    assert corruptions.fog() is corruptions.fog()
    assert corruptions.contrast() is not corruptions.contrast(factors=(0.9, 0.8, 0.7, 0.6, 0.5))


@pytest.mark.parametrize("name", ["contrast", "brightness", "pixelate"])
def test_simple_ones_are_the_reference(name, found):
    (constants,) = (p.default for p in inspect.signature(CATALOGUE[name]).parameters.values())
    for constant, images in zip(constants, found[name]):
        for image, one in zip(photograph(), images):
            np.testing.assert_allclose(
                one,
                getattr(reference, name)(image, constant).clip(0, 1),
                atol=5e-4 if name == "pixelate" else 2e-6,
            )


def test_noise_has_its_deviation_and_its_share(found):
    """Of 3 072 values; between the ends, where nothing is cut."""
    middle = (photograph() > 0.35) & (photograph() < 0.65)
    noise = (found["gaussian_noise"] - photograph())[:, middle]
    np.testing.assert_allclose(noise.std(axis=1), [0.04, 0.06, 0.08, 0.09, 0.10], rtol=0.1)
    changed = (found["impulse_noise"] != photograph()).mean(axis=(1, 2, 3, 4))
    np.testing.assert_allclose(changed, [0.01, 0.02, 0.03, 0.05, 0.07], atol=0.015)
    assert set(np.unique(found["impulse_noise"][4][found["impulse_noise"][4] != photograph()])) == {0, 1}
    shot = (found["shot_noise"] - photograph())[:, middle]
    means = photograph()[middle].mean() / np.array([500, 250, 100, 75, 50])
    np.testing.assert_allclose(shot.var(axis=1), means, rtol=0.2)


@pytest.mark.parametrize("mean", [0.0, 0.3, 4.0, 15.9, 40.0, 500.0])
def test_photons_are_quantiles_of_poisson(mean):
    drawn = np.linspace(0.002, 0.998, 500).astype(np.float32)
    ours = corruptions._poisson(jnp.asarray(drawn), jnp.full(500, mean, jnp.float32))
    exact = stats.poisson.ppf(drawn.astype(np.float64), mean)
    assert np.abs(ours - exact).max() <= 1
    assert np.mean(ours != exact) < (0.01 if mean < 16 else 0.1)


def test_a_grey_wall_is_a_grey_wall_whatever_lens_it_is_seen_through():
    wall = jnp.full((1, 8, 8, 1), 0.4)
    for name in ("defocus_blur", "zoom_blur", "pixelate"):
        seen = jax.jit(partial(corruptions.corrupt, CATALOGUE[name]()))(jax.random.key(0), wall, 5)
        np.testing.assert_allclose(seen, 0.4, atol=1e-5, err_msg=name)


def test_blurs_keep_the_mean_of_what_they_blur(found):
    for name in BLURS:
        np.testing.assert_allclose(found[name].mean(), photograph().mean(), atol=0.02, err_msg=name)


def test_jpeg_is_the_reference():
    """Of noise, in whose blocks nothing lies halfway."""
    image = np.random.default_rng(1).uniform(size=(16, 16, 1)).astype(np.float32)
    jpeg = jax.jit(partial(corruptions.corrupt, corruptions.jpeg_compression()))
    for strength, quality in zip(corruptions.STRENGTHS, (80, 65, 58, 50, 40)):
        ours = np.asarray(jpeg(jax.random.key(0), image[None], strength))[0]
        np.testing.assert_allclose(ours, reference.jpeg_of_grey(image, quality), atol=1.01 / 255)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_what_pillow_writes(channels):
    """Nine in ten images to within a level or two; of others a wave lies halfway between two steps."""
    images = np.round(255 * photograph(4, 16, channels)).astype(np.uint8)
    jpeg = jax.jit(partial(corruptions.corrupt, corruptions.jpeg_compression()))
    off, lost = [], []
    for strength, quality in zip(corruptions.STRENGTHS, (80, 65, 58, 50, 40)):
        for image, ours in zip(images, jpeg(jax.random.key(0), images, strength)):
            file = io.BytesIO()
            Image.fromarray(image.squeeze()).save(file, "JPEG", quality=quality, subsampling=0)
            theirs = np.asarray(Image.open(file)).astype(np.float64).reshape(image.shape)
            off.append(np.abs(np.asarray(ours) - theirs).mean())
            lost.append(np.abs(image - theirs).mean())
    assert np.median(off) < 0.4 and np.max(off) < 0.5 * np.mean(lost), off


@pytest.mark.parametrize(
    "images, words",
    [
        (np.zeros((3, 20, 1, 1), np.uint8), "20x1"),
        (np.full((3, 4, 4, 1), 2.5, np.float32), r"from 2\.5 to 2\.5"),
    ],
)
def test_what_is_no_picture_is_refused(images, words):
    with pytest.raises(UserError, match=words):
        corruptions.corrupted("fog", corruptions.fog(), images, 1)


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"report.corruptions": ("contrst",)}, "'contrst'.*'contrast'"),
        ({"report.corruptions": ("fog", "fog()")}, "twice"),
        ({"report.corruptions": ("fog", "all")}, "twice"),
        ({"report.corruptions": ("contrast(factors=(0.5,))",)}, "1 constants"),
        ({"report.corruptions": ("fog",), "report.strengths": ()}, "is empty"),
        ({"report.strengths": (6,)}, "one of 1, 2"),
        ({"report.ood": "folder"}, "needs path"),
    ],
)
def test_fields_that_cannot_work_are_refused(fields, words):
    with pytest.raises(UserError, match=words):
        small.config(**fields)
