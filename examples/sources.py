"""A data source: stripes that run across or down, 8 by 8 pixels, with noise."""

import numpy as np

from mtkd_jax.types import DataSet


def stripes(*, num_train: int = 240, num_test: int = 80, noise: float = 0.5) -> DataSet:
    """Grey stripes, made up: across or down."""
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=num_train + num_test).astype(np.int32)
    across = np.indices((8, 8))[0] % 2  # [8,8]
    clean = np.where(labels[:, None, None], across.T, across)
    images = np.clip(clean + noise * rng.standard_normal(clean.shape), 0, 1).astype(np.float32)[..., None]
    train, test = slice(num_train), slice(num_train, None)
    return DataSet("stripes", images[train], labels[train], images[test], labels[test], ("across", "down"))
