"""One example of a data set as a small picture, for contact sheets."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw


def tile(image: np.ndarray, least: float, greatest: float, side: int) -> Image.Image:
    """One image [h,w,c] enlarged pixel by pixel or reduced, its longer side `side` pixels.

    Floats go from black, `least`, to white, `greatest`; of other than 1 or 3 channels the mean is drawn;
    images of width 1 are curves over their steps.
    """
    if image.shape[1] == 1:
        return _curves(image[:, 0], least, greatest, side)
    if image.dtype != np.uint8:
        image = np.round(255 * _scaled(image, least, greatest)).astype(np.uint8)
    if image.shape[-1] != 3:
        image = image.mean(axis=-1).astype(np.uint8)
    return resized(Image.fromarray(image), side)


def as_rgb(image: np.ndarray, least: float, greatest: float) -> np.ndarray:
    """An image [h,w,c] as [h,w,3] uint8; of other than 3 channels the mean. Floats as in `tile`."""
    if image.dtype != np.uint8:
        image = np.round(255 * _scaled(image, least, greatest)).astype(np.uint8)
    if image.shape[-1] == 3:
        return image
    return np.repeat(image.mean(axis=-1, keepdims=True).astype(np.uint8), 3, axis=-1)


def resized(picture: Image.Image, side: int) -> Image.Image:
    """The picture with a longer side of `side` pixels, enlarged pixel by pixel or reduced."""
    scale = side / max(picture.size)
    width, height = (max(1, round(length * scale)) for length in picture.size)
    return picture.resize(
        (width, height), Image.Resampling.NEAREST if scale > 1 else Image.Resampling.LANCZOS
    )


def _curves(series: np.ndarray, least: float, greatest: float, side: int) -> Image.Image:
    """The channels of a series [h,c] over its steps."""
    picture = Image.new("L", (side, side), 235)
    steps = np.linspace(0, side - 1, len(series))
    for channel in _scaled(series, least, greatest).T:
        points = np.round(np.column_stack([steps, (1 - channel) * (side - 1)]))
        ImageDraw.Draw(picture).line([tuple(point) for point in points.tolist()], fill=0)
    return picture


def _scaled(values: np.ndarray, least: float, greatest: float) -> np.ndarray:
    """Values as float64 in [0,1]; all 0 where they never vary."""
    return (values - np.float64(least)) / ((np.float64(greatest) - least) or 1.0)
