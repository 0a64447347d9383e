"""One picture, cut into as many as are asked for."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageEnhance

from mtkd_jax.data import images as image_files
from mtkd_jax.data.checks import check
from mtkd_jax.types import DataSet, UserError

MOST_SIDES = 32  # a picture is reduced until its shorter side is that of so many patches
TILT = 30.0  # degrees, to either side
LIGHT = 0.4  # brightness, contrast and saturation are multiplied by 1 - LIGHT to 1 + LIGHT


def single_image(
    *,
    path: str,
    num_patches: int = 5000,
    image_size: int = 32,
    channels: int = 3,
    least_area: float = 0.005,
    seed: int = 0,
) -> DataSet:
    """Patches of one picture, uint8: what students may learn from who see none of the data.

    Each is a part of the picture with a share of its area between `least_area` and 1 (uniform in the
    logarithm) and a proportion between 3/4 and 4/3, tilted by up to 30 degrees, brought to `image_size` x
    `image_size`; every other one is mirrored, and brightness, contrast and saturation vary by 40 %.
    `channels` is 1 or 3. A tenth as many are the test images. It is for `data.other`, where nobody looks at
    labels; the two classes are whether a patch is mirrored. Raises UserError for what is no picture, and for
    numbers that cannot be.

    Source: Asano and Saeed 2021, arXiv 2112.00725; there with CutMix and for thousands of classes.
    """
    for name, value, least in (("num_patches", num_patches, 2), ("image_size", image_size, 1)):
        if value < least:
            raise UserError(f"single_image: {name} = {value}: must be at least {least}")
    if not 0 < least_area <= 1:
        raise UserError(f"single_image: least_area = {least_area}: must be in (0, 1]")
    height, width, _ = image_files.shape_of(path)
    factor = min(1.0, MOST_SIDES * image_size / min(height, width))
    shape = (max(1, round(height * factor)), max(1, round(width * factor)), channels)
    whole = image_files.read(path, shape=shape, fit="stretch")
    picture = Image.fromarray(whole[:, :, 0] if channels == 1 else whole)
    rng, num_test = np.random.default_rng(seed), max(2, num_patches // 10)
    labels = np.concatenate([np.arange(num_patches), np.arange(num_test)]).astype(np.int32) % 2
    patches = [_patch(picture, image_size, least_area, mirrored, rng) for mirrored in labels]
    stacked = np.stack(patches).reshape(-1, image_size, image_size, channels)
    return check(
        DataSet(
            name="single_image",
            train_images=stacked[:num_patches],
            train_labels=labels[:num_patches],
            test_images=stacked[num_patches:],
            test_labels=labels[num_patches:],
            class_names=("patch", "mirrored patch"),
        ),
        where=path,
    )


def _patch(
    picture: Image.Image, size: int, least_area: float, mirrored: bool, rng: np.random.Generator
) -> np.ndarray:
    """[size,size] or [size,size,3] uint8."""
    angle = rng.uniform(-TILT, TILT)
    share, ratio = np.exp(rng.uniform(np.log(least_area), 0)), np.exp(rng.uniform(-1, 1) * np.log(4 / 3))
    area = share * picture.width * picture.height
    own = np.array([np.sqrt(area * ratio), np.sqrt(area / ratio)])
    cosine, sine = np.cos(np.radians(angle)), abs(np.sin(np.radians(angle)))
    around = own @ np.array([[cosine, sine], [sine, cosine]])  # what the tilted part spans
    shrunk = min(1.0, *(np.array(picture.size) / around))
    own, around = own * shrunk, around * shrunk
    corner = rng.uniform(size=2) * np.maximum(np.array(picture.size) - around, 0.0)
    box = (*corner, *np.minimum(corner + around, picture.size))
    # Twice the size while it is turned, so that what is cut out of it is not blurred.
    spanned = picture.resize(
        tuple(np.ceil(2 * size * around / own).astype(int).tolist()), Image.Resampling.BILINEAR, box=box
    )
    turned = spanned.rotate(angle, Image.Resampling.BILINEAR)
    edges = (np.array(turned.size) - 2 * size) / 2
    cut = turned.resize((size, size), Image.Resampling.BILINEAR, box=(*edges, *(edges + 2 * size)))
    if mirrored:
        cut = cut.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        factor = rng.uniform(1 - LIGHT, 1 + LIGHT)
        cut = cut if cut.mode == "L" and change is ImageEnhance.Color else change(cut).enhance(factor)
    return np.asarray(cut)
