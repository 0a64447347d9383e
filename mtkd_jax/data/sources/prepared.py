"""Data that TensorFlow Datasets has prepared."""

from __future__ import annotations

import numpy as np

from mtkd_jax.data.checks import checked, first_line
from mtkd_jax.types import DataSet, UserError


def tfds(*, name: str) -> DataSet:
    """A TensorFlow Datasets set by its name, splits train and test, read without TensorFlow.

    The set must lie prepared on disk (in TFDS_DATA_DIR or ~/tensorflow_datasets) in a random-access format;
    nothing is downloaded here. Images must share one size and are held in memory.
    Raises `UserError` with the command that prepares the set.
    """
    import tensorflow_datasets

    try:
        # Asked for by name: without a name, a set that is not prepared counts as one without splits.
        parts = tensorflow_datasets.data_source(name, split=["train", "test"], download=False)
    except tensorflow_datasets.core.DatasetNotFoundError as error:
        raise UserError(f"tfds: name = {name!r}: {first_line(error)}; see tfds.list_builders()") from error
    # Not prepared, prepared in another format, no such split, no such version: each is an error of its own.
    except Exception as error:
        raise UserError(
            f"tfds: name = {name!r}: cannot be read ({first_line(error)}); prepare it once, with "
            "splits train and test: pip install 'mtkd_jax[tensorflow]' importlib_resources && "
            f"python -c \"import tensorflow_datasets as tfds; tfds.data_source('{name}')\""
        ) from error

    features = parts[0].dataset_info.features
    if not {"image", "label"} <= set(features) or not hasattr(features["label"], "names"):
        raise UserError(
            f"tfds: name = {name!r}: must have the features image and label (of named classes), "
            f"has {', '.join(sorted(features))}"
        )
    (train_images, train_labels), (test_images, test_labels) = (
        _stacked(part, f"tfds {name}") for part in parts
    )
    return checked(
        DataSet(
            name=name,
            train_images=train_images,
            train_labels=train_labels,
            test_images=test_images,
            test_labels=test_labels,
            class_names=tuple(features["label"].names),
        ),
        where=f"tfds {name}",
    )


def _stacked(part, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one split of records {"image", "label"}."""
    records = [part[row] for row in range(len(part))]
    shapes = {record["image"].shape for record in records}
    if len(shapes) > 1:
        raise UserError(f"{where}: image: {len(shapes)} different sizes: must share one [h,w,c]")
    return np.stack([r["image"] for r in records]), np.array([r["label"] for r in records])
