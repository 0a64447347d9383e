"""Data that TensorFlow Datasets has prepared."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mtkd_jax.data import streams
from mtkd_jax.data.checks import check, first_line
from mtkd_jax.types import DataSet, Images, UserError

_Records = Sequence[Mapping[str, Any]]  # decoded, {"image": [h,w,c], "label": []}


def tfds(*, name: str) -> DataSet:
    """A TensorFlow Datasets set by its name, splits train and test, and validation if it has one.

    The set must lie prepared on disk (in TFDS_DATA_DIR or ~/tensorflow_datasets); nothing is downloaded
    here. In a random-access format it is read without TensorFlow: each record is decoded once here, and
    images of more than 2 GB again whenever they are used. In another format TensorFlow reads it, where it is
    installed, and all is held in memory. Images must share one size.
    Raises `UserError` with the command that prepares the set.
    """
    import tensorflow_datasets

    try:
        (train, test), info = _opened(name, ["train", "test"])
        num_train = len(train)
        if "validation" in info.splits:
            [train], _ = _opened(name, ["train+validation"])
    except tensorflow_datasets.core.DatasetNotFoundError as error:
        raise UserError(f"tfds: name = {name!r}: {first_line(error)}; see tfds.list_builders()") from error
    # Not prepared, prepared in another format, no such split, no such version: each is an error of its own.
    except Exception as error:
        raise UserError(
            f"tfds: name = {name!r}: cannot be read ({first_line(error)}); prepare it once, with "
            "splits train and test: pip install 'mtkd_jax[tensorflow]' importlib_resources && "
            f"python -c \"import tensorflow_datasets as tfds; tfds.data_source('{name}')\""
        ) from error

    features = info.features
    if not {"image", "label"} <= set(features) or not hasattr(features["label"], "names"):
        raise UserError(
            f"tfds: name = {name!r}: must have the features image and label (of named classes), "
            f"has {', '.join(sorted(features))}"
        )
    (train_images, train_labels), (test_images, test_labels) = (
        _images_and_labels(part, f"tfds {name}") for part in (train, test)
    )
    return check(
        DataSet(
            name=name,
            train_images=train_images,
            train_labels=train_labels,
            test_images=test_images,
            test_labels=test_labels,
            class_names=tuple(features["label"].names),
            val_rows=np.arange(num_train, len(train)) if len(train) > num_train else None,
        ),
        where=f"tfds {name}",
    )


def _opened(name: str, splits: list[str]) -> tuple[list[_Records], Any]:
    """The splits, read when asked for or all now by TensorFlow; and what the set says of itself."""
    import tensorflow_datasets

    try:
        # Asked for by name: without a name, a set that is not prepared counts as one without splits.
        parts = tensorflow_datasets.data_source(name, split=splits, download=False)
        return parts, parts[0].dataset_info
    except Exception:
        if importlib.util.find_spec("tensorflow") is None:
            raise
    parts, info = tensorflow_datasets.load(name, split=splits, download=False, with_info=True)
    return [list(tensorflow_datasets.as_numpy(part)) for part in parts], info


def _images_and_labels(records: _Records, where: str) -> tuple[np.ndarray | Images, np.ndarray]:
    """Images and labels of one split, each record decoded once here; the images streamed if they are many."""
    shape, dtype = records[0]["image"].shape, records[0]["image"].dtype
    num_bytes = len(records) * int(np.prod(shape)) * dtype.itemsize
    held = np.empty((len(records), *shape), dtype) if num_bytes <= streams.MOST_HELD else None
    labels, digests = np.empty(len(records), np.int64), [b""] * len(records)

    def put(row: int) -> None:
        record = records[row]
        if record["image"].shape != shape:
            raise UserError(
                f"{where}: image: sizes {shape} and {record['image'].shape}: must share one [h,w,c]"
            )
        labels[row], digests[row] = record["label"], streams.digest(record["image"])
        if held is not None:
            held[row] = record["image"]

    for _ in streams.in_threads(put, range(len(records))):
        pass
    if held is not None:
        return held, labels
    return streams.OneByOne(lambda row: records[row]["image"], (len(records), *shape), dtype, digests), labels
