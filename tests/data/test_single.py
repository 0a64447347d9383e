"""Patches of one picture: where they come from, what is done to them, and what is refused."""

import numpy as np
import pytest
from PIL import Image

from mtkd_jax.data.sources import single
from mtkd_jax.types import UserError


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    """Red grows to the right, green downwards, blue is one half: a patch tells where it was cut."""
    file = tmp_path_factory.mktemp("picture") / "ramps.png"
    down, right = np.meshgrid(np.linspace(0, 255, 120), np.linspace(0, 255, 160), indexing="ij")
    Image.fromarray(np.stack([right, down, np.full_like(down, 128)], axis=-1).astype(np.uint8)).save(file)
    return str(file)


def test_patches_are_parts_of_the_picture_of_all_sizes_and_mirrored_in_turn(picture, monkeypatch):
    monkeypatch.setattr(single, "TILT", 0.0)
    monkeypatch.setattr(single, "LIGHT", 0.0)
    found = single.single_image(path=picture, num_patches=200, image_size=12, least_area=0.01)
    assert found.train_images.shape == (200, 12, 12, 3) and found.train_images.dtype == np.uint8
    assert len(found.test_images) == 20 and set(found.train_labels) == {0, 1}
    patches = found.train_images.astype(np.float64)
    wide, tall = (np.ptp(patches[:, 6, :, 0], axis=1) / 255, np.ptp(patches[:, :, 6, 1], axis=1) / 255)
    share = wide * tall * (12 / 11) ** 2  # between the centres of the first and the last pixel
    assert 0.005 < share.min() < 0.03 and share.max() > 0.5
    assert 0.05 < np.median(share) < 0.2  # the middle of 0.01 and 1 in the logarithm is 0.1
    grows = patches[:, 6, -1, 0] > patches[:, 6, 0, 0]
    np.testing.assert_array_equal(grows, found.train_labels == 0)
    assert (patches[:, -1, 6, 1] > patches[:, 0, 6, 1]).all()  # nothing stands on its head
    assert (np.abs(patches[..., 2] - 128) <= 1).all()  # and nothing is filled in from outside


def test_patches_are_tilted_and_their_light_varies_and_a_seed_draws_them_again(picture):
    found = single.single_image(path=picture, num_patches=60, image_size=8)
    blue = found.train_images[..., 2].astype(np.float64).mean(axis=(1, 2))
    assert blue.min() < 110 and blue.max() > 146
    slope = np.diff(found.train_images[..., 0].astype(np.float64), axis=1).mean(axis=(1, 2))
    assert np.abs(slope).max() > 1  # red changes downwards, too, where a patch is tilted
    assert found.train_images.min(axis=(1, 2)).mean() > 10  # corners are not filled with black
    again = single.single_image(path=picture, num_patches=60, image_size=8)
    np.testing.assert_array_equal(found.train_images, again.train_images)
    other = single.single_image(path=picture, num_patches=60, image_size=8, seed=1)
    assert (found.train_images != other.train_images).any()


def test_grey_patches_have_one_channel(picture):
    assert single.single_image(path=picture, num_patches=4, channels=1).train_images.shape == (4, 32, 32, 1)


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"path": "nowhere.png"}, "nowhere.png: no such file"),
        ({"num_patches": 1}, "num_patches = 1: must be at least 2"),
        ({"image_size": 0}, "image_size = 0"),
        ({"least_area": 0.0}, r"least_area = 0.0: must be in \(0, 1\]"),
        ({"channels": 2}, "2 channels"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(picture, arguments, said):
    with pytest.raises(UserError, match=said):
        single.single_image(**{"path": picture, **arguments})
