"""Data that needs no file: a small real set, and made-up ones."""

from __future__ import annotations

import numpy as np

from mtkd_jax.data.checks import check, number_names
from mtkd_jax.types import DataSet, UserError


def digits() -> DataSet:
    """Handwritten digits of the UCI set, 1 797 images 8x8x1 in 10 classes; needs no file and no network.

    A stratified 20 % (360 images) are the test set. It is drawn with a seed of its own and so is the same
    in every run, whatever `config.seed` says. Source: Alpaydin and Kaynak (1998), in scikit-learn.
    """
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    bunch = load_digits()
    images = np.round(bunch.images * (255 / 16)).astype(np.uint8)[..., None]
    train, test = train_test_split(
        np.arange(len(images)), test_size=0.2, stratify=bunch.target, random_state=0
    )
    return check(
        DataSet(
            name="digits",
            train_images=images[train],
            train_labels=bunch.target[train],
            test_images=images[test],
            test_labels=bunch.target[test],
            class_names=tuple(str(name) for name in bunch.target_names),
        ),
        where="digits",
    )


def synthetic(
    *,
    num_classes: int = 10,
    num_train: int = 600,
    num_test: int = 200,
    size: int = 8,
    channels: int = 1,
    noise: float = 0.5,
    seed: int = 0,
) -> DataSet:
    """A made-up problem that can be learnt: one random image a class, plus Gaussian pixel noise.

    Images are uint8 [size,size,channels]; `noise` is the standard deviation in units of the full range.
    Classes are equally frequent (to within one example). Raises `UserError` for sizes that make no problem.
    """
    lowest = {"num_classes": 2, "num_train": num_classes, "num_test": 1, "size": 1, "channels": 1}
    given: dict[str, float] = {"num_classes": num_classes, "num_train": num_train, "num_test": num_test}
    given |= {"size": size, "channels": channels, "noise": noise, "seed": seed}
    for name, value in given.items():
        if not value >= lowest.get(name, 0):
            raise UserError(f"synthetic: {name} = {value}: must be at least {lowest.get(name, 0)}")

    rng = np.random.default_rng(seed)
    prototypes = rng.random((num_classes, size, size, channels))

    def draw(num: int) -> tuple[np.ndarray, np.ndarray]:
        labels = rng.permutation(np.arange(num) % num_classes)
        images = prototypes[labels] + noise * rng.standard_normal((num, size, size, channels))
        return np.round(255 * np.clip(images, 0, 1)).astype(np.uint8), labels

    train_images, train_labels = draw(num_train)
    test_images, test_labels = draw(num_test)
    return check(
        DataSet(
            name="synthetic",
            train_images=train_images,
            train_labels=train_labels,
            test_images=test_images,
            test_labels=test_labels,
            class_names=number_names(num_classes),
        ),
        where="synthetic",
    )


def in_memory(*, name: str) -> DataSet:
    """Arrays that were given in Python, see `mtkd_jax.data_from_arrays`: their name in a run's config.json.

    Raises `UserError` where it is asked for them: they are kept nowhere.
    """
    raise UserError(
        f"config.data.source: {name} are arrays that were given in Python and kept nowhere; give them "
        "again (mtkd_jax.run), or name a source that can be read, such as npz"
    )
