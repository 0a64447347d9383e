"""Each augmentation against NumPy, for one image; and the batch against the images one by one."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax.data.augment import FURTHER, alternately, augment, cutout, flip, noise, resized_crop, shift
from mtkd_jax.data.rand_augment import rand_augment
from mtkd_jax.types import UserError

ALL = {"shift": 2, "flip": True, "rand_augment": (2, 7), "cutout": 3, "noise": 0.1}


def image_of(shape=(7, 5, 3), low=0.0, high=1.0, seed=0):
    return jnp.asarray(np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32))


def keys_of(num, seed=0):
    return jax.random.split(jax.random.key(seed), num)


def test_shift_is_reflect_padding_and_a_crop_and_every_offset_occurs():
    image, pixels = image_of(), 2
    padded = np.pad(image, ((pixels, pixels), (pixels, pixels), (0, 0)), mode="reflect")
    crops = {
        (down, right): padded[down : down + 7, right : right + 5] for down in range(5) for right in range(5)
    }
    moved = jax.jit(jax.vmap(lambda key: shift(image, key, pixels=pixels)))(keys_of(500))
    seen = []
    for one in np.asarray(moved):
        (offset,) = [offset for offset, crop in crops.items() if np.array_equal(one, crop)]
        seen.append(offset)
    counts = [seen.count(offset) for offset in crops]
    assert np.sum((np.array(counts) - 20) ** 2 / 20) < 80  # chi-squared, 24 degrees, p = 1e-7


def test_resized_crops_are_parts_of_the_area_and_proportion_asked_for():
    """Of an image whose values are its coordinates, so that each crop tells where it was cut."""
    rows, columns = np.meshgrid(np.arange(20.0), np.arange(24.0), indexing="ij")
    image = jnp.asarray(np.stack([rows, columns], axis=-1), jnp.float32)
    cropped = jax.jit(jax.vmap(lambda key: resized_crop(image, key, least_area=0.3)))(keys_of(300))
    found = np.asarray(cropped, np.float64)
    tall = (found[:, 12, 5, 0] - found[:, 8, 5, 0]) / 4  # pixels a pixel, away from the border
    wide = (found[:, 5, 12, 1] - found[:, 5, 8, 1]) / 4
    area, proportion = tall * wide, wide / tall
    assert area.min() + 0.02 >= 0.3 and area.max() <= 1 + 1e-5
    assert proportion.min() >= 3 / 4 - 1e-3 and proportion.max() <= 4 / 3 + 1e-3
    assert (np.diff(np.quantile(area, [0, 0.25, 0.5, 0.75])) > 0.1).all()
    top = found[:, 10, 5, 0] - 10.5 * tall + 0.5
    left = found[:, 5, 12, 1] - 12.5 * wide + 0.5
    for start, size, whole in ((top, 20 * tall, 20), (left, 24 * wide, 24)):
        assert start.min() > -1e-3 and (start + size).max() < whole + 1e-3


def test_shift_by_almost_the_whole_image_and_no_further():
    image = image_of((4, 6, 1))
    padded = np.pad(image, ((3, 3), (3, 3), (0, 0)), mode="reflect")
    crops = [padded[down : down + 4, right : right + 6] for down in range(7) for right in range(7)]
    for moved in np.asarray(jax.jit(jax.vmap(lambda key: shift(image, key, pixels=3)))(keys_of(20))):
        assert any(np.array_equal(moved, crop) for crop in crops)
    with pytest.raises(UserError, match=r"^shift = 4: must be less than 4, for images 4x6$"):
        shift(image, jax.random.key(0), pixels=4)


def test_time_series_are_not_moved_or_mirrored_but_cut_out_and_noisy():
    series = image_of((9, 1, 2))[None]
    for name, value, said in (
        ("flip", True, r"^flip: images 9x1 have no left and right"),
        ("shift", 1, r"^shift = 1: must be less than 1, for images 9x1"),
    ):
        with pytest.raises(UserError, match=said):
            augment(jax.random.key(0), series, **{name: value})
    assert augment(jax.random.key(0), series, cutout=3, noise=0.1).shape == series.shape


def test_flip_mirrors_half_of_the_time():
    image = image_of()
    mirrored = 0
    for one in np.asarray(jax.vmap(functools.partial(flip, image))(keys_of(400))):
        if np.array_equal(one, image[:, ::-1]):
            mirrored += 1
        else:
            np.testing.assert_array_equal(one, image)
    assert 150 < mirrored < 250  # 5 standard deviations


def test_in_two_epochs_an_image_is_seen_both_ways():
    rows, keys = jnp.arange(400), keys_of(2)
    seen = np.array([[alternately(key, rows, jnp.int32(epoch)) for epoch in range(5)] for key in keys])
    np.testing.assert_array_equal(seen[:, :-1], ~seen[:, 1:])
    for first in seen[:, 0]:
        assert 150 < first.sum() < 250  # 5 standard deviations
    assert 150 < (seen[0, 0] ^ seen[1, 0]).sum() < 250  # other trainings, other halves
    few = np.array([7, 0, 399])  # whatever stands beside an image in a batch
    np.testing.assert_array_equal(alternately(keys[0], jnp.asarray(few), jnp.int32(0)), seen[0, 0][few])


def test_which_images_are_mirrored_can_be_said():
    images, mirrored = image_of((4, 7, 5, 3)), np.array([True, False, False, True])
    found = augment(jax.random.key(0), images, flip=jnp.asarray(mirrored))
    expected = np.where(mirrored[:, None, None, None], images[:, :, ::-1], images)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("size", [2, 3, 20])
def test_cutout_paints_the_mean_on_a_square_around_any_pixel(size):
    image = image_of()
    mean = np.asarray(image, np.float64).mean((0, 1))
    holes = set()
    for one in np.asarray(jax.jit(jax.vmap(lambda key: cutout(image, key, size=size)))(keys_of(300))):
        changed = np.any(one != image, axis=-1)
        rows, columns = np.flatnonzero(changed.any(1)), np.flatnonzero(changed.any(0))
        assert changed[np.ix_(rows, columns)].all()  # a rectangle
        np.testing.assert_allclose(one[changed], np.broadcast_to(mean, (changed.sum(), 3)), rtol=1e-5)
        holes.add((rows[0], rows[-1], columns[0], columns[-1]))
    want = set()
    for row in range(7):
        for column in range(5):
            top, left = row - size // 2, column - size // 2
            want.add((max(top, 0), min(top + size, 7) - 1, max(left, 0), min(left + size, 5) - 1))
    assert holes == want


def test_noise_has_the_deviation_asked_for_and_is_clipped_only_in_unit_images():
    inside, outside = image_of((200, 100, 3), 0.4, 0.6), image_of((200, 100, 3), -4.0, 9.0)
    for image in (inside, outside):
        added = np.asarray(noise(image, jax.random.key(0), std=0.05) - image, np.float64)
        assert abs(added.mean()) < 0.05 * 5 / np.sqrt(60_000)
        assert abs(added.std() - 0.05) < 0.05 * 5 / np.sqrt(2 * 60_000)

    strong = np.asarray(noise(inside, jax.random.key(0), std=1.0))
    assert strong.min() == 0.0
    assert strong.max() == 1.0
    free = np.asarray(noise(outside, jax.random.key(0), std=1.0))
    assert free.min() < -4.5
    assert free.max() > 9.5


def test_moving_and_cutting_keep_any_image_within_its_own_range():
    moved = jax.jit(functools.partial(augment, shift=3, flip=True, cutout=4))
    for low, high in ((0.0, 1.0), (-5.0, -3.0)):
        images = image_of((16, 8, 8, 3), low, high)
        out = np.asarray(moved(jax.random.key(0), images))
        assert not np.array_equal(out, images)
        assert images.min() <= out.min()
        assert out.max() <= images.max()


def test_augment_switched_off_is_the_identity_and_draws_nothing():
    images = image_of((4, 8, 8, 3))
    assert augment(jax.random.key(0), images) is images
    assert not jax.make_jaxpr(augment)(jax.random.key(0), images).eqns


def test_augment_is_the_single_functions_by_a_key_for_each_image():

    @jax.jit
    def one(image, keys, further):
        image = shift(flip(image, keys[0]), keys[1], pixels=2)
        image = rand_augment(image, further, number=2, magnitude=7)
        return noise(cutout(image, keys[2], size=3), keys[3], std=0.1)

    images, key = image_of((6, 8, 8, 3)), jax.random.key(3)
    out = jax.jit(functools.partial(augment, **ALL))(key, images)
    assert out.shape == images.shape
    assert out.dtype == jnp.float32
    further = jax.random.split(jax.random.fold_in(key, FURTHER), 6)
    for row, keys in enumerate(jax.random.split(key, (6, 4))):
        np.testing.assert_allclose(out[row], one(images[row], keys, further[row]), atol=1e-6)


@pytest.mark.parametrize("name", ALL)
def test_augment_draws_for_each_image_of_a_batch(name):
    same = jnp.broadcast_to(image_of((8, 8, 3)), (32, 8, 8, 3))
    varied = np.asarray(jax.jit(functools.partial(augment, **{name: ALL[name]}))(jax.random.key(3), same))
    assert len({one.tobytes() for one in varied}) > 1


def test_augment_switching_on_the_others_leaves_the_draws_of_the_noise_alone():
    # No move or cut shows on plain grey, nor any operation of no strength.
    key, grey = jax.random.key(3), jnp.full((32, 8, 8, 3), 128 / 255)
    noisy = jax.jit(functools.partial(augment, noise=0.1))(key, grey)
    everything = jax.jit(functools.partial(augment, **{**ALL, "rand_augment": (2, 0)}))(key, grey)
    np.testing.assert_allclose(everything, noisy, atol=1e-6)


def test_augment_of_members_inside_a_scan_gives_the_same():
    images, keys = image_of((3, 2, 4, 8, 8, 1)), keys_of(6).reshape(3, 2)  # steps, members, batch
    all_on = functools.partial(augment, **ALL)

    @jax.jit
    def scanned(keys, images):
        return jax.lax.scan(lambda carry, now: (carry, jax.vmap(all_on)(*now)), 0, (keys, images))[1]

    alone = jax.jit(all_on)
    plain = [[alone(keys[step, member], images[step, member]) for member in range(2)] for step in range(3)]
    np.testing.assert_allclose(scanned(keys, images), np.array(plain), atol=1e-6)
