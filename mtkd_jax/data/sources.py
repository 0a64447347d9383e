"""Data sets. One public function a source, found by its return annotation `-> DataSet`.

To add a source, write a function that ends with `return _checked(DataSet(...), where)`: the check makes
sure that whatever leaves this file can be trained on, or that the user is told in one line why not.
"""

from __future__ import annotations

import dataclasses
import gzip
import math
import os
import pathlib
import struct
import zlib

import numpy as np

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
    return _checked(
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
    given = {"num_classes": num_classes, "num_train": num_train, "num_test": num_test}
    given |= {"size": size, "channels": channels, "noise": noise, "seed": seed}
    for name, value in given.items():
        if not value >= lowest.get(name, 0):
            raise UserError(f"synthetic: {name} = {value}: must be at least {lowest.get(name, 0)}")

    rng = np.random.default_rng(seed)
    prototypes = rng.random((num_classes, size, size, channels))

    def draw(num):
        labels = rng.permutation(np.arange(num) % num_classes)
        images = prototypes[labels] + noise * rng.standard_normal((num, size, size, channels))
        return np.round(255 * np.clip(images, 0, 1)).astype(np.uint8), labels

    train_images, train_labels = draw(num_train)
    test_images, test_labels = draw(num_test)
    return _checked(
        DataSet(
            name="synthetic",
            train_images=train_images,
            train_labels=train_labels,
            test_images=test_images,
            test_labels=test_labels,
            class_names=_numbered(num_classes),
        ),
        where="synthetic",
    )


def npz(*, path: str) -> DataSet:
    """A NumPy archive with train_images, train_labels, test_images, test_labels (or x_train, y_train, ...).

    Images are [N,h,w,c] or, when grey, [N,h,w]; uint8, or floats that are used as they are. Labels are [N]
    integers 0..C-1. `class_names` [C] is optional; other arrays are ignored. Nothing is unpickled.
    Raises `UserError` naming the file and the array.
    """
    file = os.path.expanduser(path)
    if not os.path.isfile(file):
        raise UserError(f"data.path = {path!r}: no such file; must be an .npz archive of images and labels")
    arrays, reading = {}, "the list of its arrays"
    try:
        with open(file, "rb") as stream, np.load(stream, allow_pickle=False) as archive:
            names = set(archive.files)
            for reading in sorted(_WANTED & names):
                arrays[reading] = archive[reading]
    # A damaged archive can raise almost anything: zip, zlib, header and memory errors, TypeError, ...
    except Exception as error:
        raise UserError(
            f"{path}: cannot read {reading} ({_first_line(error)}); "
            "must be an archive that numpy.savez wrote, without object arrays"
        ) from error

    fields = {}
    for name, other in _ARRAYS.items():
        if name not in arrays and other not in arrays:
            raise UserError(
                f"{path}: no array {name} (or {other}); must hold {', '.join(_ARRAYS)}, "
                f"and holds {', '.join(sorted(names)) or 'nothing'}"
            )
        fields[name] = arrays[name if name in arrays else other]
    for name in ("train_images", "test_images"):
        if fields[name].ndim == 3:
            fields[name] = fields[name][..., None]
    if "class_names" in arrays:
        if arrays["class_names"].dtype.kind != "U" or arrays["class_names"].ndim != 1:
            raise UserError(f"{path}: class_names: must be a one-dimensional array of text, one name a class")
        class_names = tuple(arrays["class_names"].tolist())
    else:
        class_names = _names_from(fields["train_labels"], path)
    return _checked(DataSet(name=pathlib.Path(file).stem, class_names=class_names, **fields), where=path)


def idx(*, path: str, class_names: tuple[str, ...] = ()) -> DataSet:
    """A folder of the four IDX files that MNIST and sets of its form come in, such as Fashion-MNIST.

    They are called train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and
    t10k-labels-idx1-ubyte, also with .idx in place of -idx, also gzipped with .gz at the end; of several
    spellings of one file the first is read, in the order just given. Images are grey, uint8 [N,h,w,1].
    `class_names` [C] is optional; without it the classes are called by their numbers.
    A file is read no further than its header promises, whatever it would unpack to.
    Raises `UserError` naming the folder or the file. Format: LeCun, Cortes and Burges (1998), for MNIST.
    """
    if not (isinstance(class_names, tuple) and all(isinstance(name, str) for name in class_names)):
        raise UserError(f"idx: class_names = {class_names!r}: must be a tuple of text, one name a class")
    folder = pathlib.Path(os.path.expanduser(path))
    if not path or not folder.is_dir():
        raise UserError(f"data.path = {path!r}: no such folder; must hold the four IDX files of a set")
    arrays = {
        name: _read_idx(_idx_file(folder, stem, axes), axes) for name, (stem, axes) in _IDX_FILES.items()
    }
    for name in ("train_images", "test_images"):
        arrays[name] = arrays[name][..., None]
    return _checked(
        DataSet(
            name=folder.resolve().name,
            class_names=class_names or _names_from(arrays["train_labels"], path),
            **arrays,
        ),
        where=path,
    )


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
        raise UserError(f"tfds: name = {name!r}: {_first_line(error)}; see tfds.list_builders()") from error
    # Not prepared, prepared in another format, no such split, no such version: each is an error of its own.
    except Exception as error:
        raise UserError(
            f"tfds: name = {name!r}: cannot be read ({_first_line(error)}); prepare it once, with "
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
    return _checked(
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


# --- shared by the sources ----------------------------------------------------------------------------

_ARRAYS = {  # the same under the names of Keras
    "train_images": "x_train",
    "train_labels": "y_train",
    "test_images": "x_test",
    "test_labels": "y_test",
}
_WANTED = {*_ARRAYS, *_ARRAYS.values(), "class_names"}
_IDX_FILES = {  # how the name begins, number of axes
    "train_images": ("train-images", 3),
    "train_labels": ("train-labels", 1),
    "test_images": ("t10k-images", 3),
    "test_labels": ("t10k-labels", 1),
}


def _checked(dataset: DataSet, where: str) -> DataSet:
    """The same data with int32 labels and uint8 or float32 images, or a `UserError` that names the array."""

    def wrong(array, message):
        return UserError(f"{where}: {array}: {message}")

    fields = {}
    for part in ("train", "test"):
        images, labels = getattr(dataset, f"{part}_images"), getattr(dataset, f"{part}_labels")
        if images.ndim != 4 or 0 in images.shape[1:]:
            raise wrong(
                f"{part}_images", f"shape {images.shape}: must be [N,h,w,c], or [N,h,w] for grey images"
            )
        if labels.ndim != 1:
            raise wrong(f"{part}_labels", f"shape {labels.shape}: must be [N], one class number an image")
        if len(images) == 0:
            raise wrong(f"{part}_images", "is empty: must hold at least one image")
        if len(images) != len(labels):
            raise wrong(f"{part}_labels", f"{len(labels)} labels for {len(images)} images: must be as many")
        if images.dtype.kind == "f":
            with np.errstate(over="ignore"):  # what float32 cannot hold becomes inf and is reported below
                images = images.astype(np.float32, copy=False)
            if bad := np.count_nonzero(~np.isfinite(images).all(axis=(1, 2, 3))):
                raise wrong(
                    f"{part}_images", f"{bad} images hold NaN or infinite pixels: must be finite float32"
                )
        elif images.dtype != np.uint8:
            raise wrong(f"{part}_images", f"{images.dtype} pixels: must be uint8 (0..255) or floats")
        if labels.dtype.kind not in "iu":
            raise wrong(f"{part}_labels", f"{labels.dtype} labels: must be integers")
        if labels.min() < 0 or labels.max() >= dataset.num_classes:
            raise wrong(
                f"{part}_labels",
                f"labels {labels.min()}..{labels.max()}: must lie in 0..C-1, with C = {dataset.num_classes} "
                "classes",
            )
        fields |= {f"{part}_images": images, f"{part}_labels": labels.astype(np.int32)}

    if dataset.num_classes < 2:
        raise wrong("train_labels", f"{dataset.num_classes} class: must be at least 2")
    counts = np.bincount(fields["train_labels"], minlength=dataset.num_classes)
    if empty := np.flatnonzero(counts == 0).tolist():
        raise wrong(
            "train_labels",
            f"{len(empty)} of {dataset.num_classes} classes without an example, the first is class "
            f"{empty[0]} ({dataset.class_names[empty[0]]}): every class must be in the training set",
        )
    train, test = fields["train_images"], fields["test_images"]
    if (train.shape[1:], train.dtype) != (test.shape[1:], test.dtype):
        raise wrong(
            "test_images",
            f"{test.dtype} {test.shape[1:]}: must be as in train_images, {train.dtype} {train.shape[1:]}",
        )
    return dataclasses.replace(dataset, **fields)


def _numbered(num_classes: int) -> tuple[str, ...]:
    return tuple(str(c) for c in range(num_classes))


def _names_from(labels: np.ndarray, where: str) -> tuple[str, ...]:
    """Class numbers as names, for a file without names: as many as the training labels ask for."""
    if labels.dtype.kind not in "iu" or labels.size == 0 or labels.max() < 0:
        return _numbered(0)
    # More classes than examples leave a class empty. Said here, before a stray label of 10**9 names as many.
    if labels.max() >= labels.size:
        raise UserError(
            f"{where}: train_labels: reaches {labels.max()} in {labels.size} examples: "
            "must be 0..C-1 with every class in the training set"
        )
    return _numbered(int(labels.max()) + 1)


def _idx_file(folder: pathlib.Path, stem: str, num_axes: int) -> pathlib.Path:
    """The first spelling of a name that is there."""
    names = [f"{stem}{mark}idx{num_axes}-ubyte{packed}" for packed in ("", ".gz") for mark in ("-", ".")]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder}: no file {names[0]}: must be there, or as {', '.join(names[1:])}")


def _read_idx(file: pathlib.Path, num_axes: int) -> np.ndarray:
    """Bytes in `num_axes` dimensions: the mark 0, 0, 8, num_axes; big-endian sizes of 32 bits; the bytes."""
    mark, content = bytes((0, 0, 8, num_axes)), bytearray()
    try:
        with (gzip.open if file.suffix == ".gz" else open)(file, "rb") as stream:
            header = stream.read(4 + 4 * num_axes)
            if not header.startswith(mark):
                raise UserError(
                    f"{file}: begins with {header[:4].hex(' ') or 'nothing'}: must begin with "
                    f"{mark.hex(' ')}, the mark of unsigned bytes in {num_axes} dimension(s)"
                )
            if len(header) < 4 + 4 * num_axes:
                raise UserError(
                    f"{file}: the header ends after {len(header)} bytes: must be {4 + 4 * num_axes} long"
                )
            shape = struct.unpack(f">{num_axes}I", header[4:])
            size = math.prod(shape)
            # In pieces: one read would reserve at once whatever a false header promises.
            while piece := stream.read(min(size + 1 - len(content), 2**20)):
                content += piece
    # OSError is also what gzip raises for a wrong checksum and for a file that is not gzipped.
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(
            f"{file}: cannot be read ({_first_line(error)}); must be a whole, readable IDX file"
        ) from error
    if 0 in shape or len(content) != size:
        follow = "more" if len(content) > size else str(len(content))
        raise UserError(
            f"{file}: the header says {' x '.join(map(str, shape))} = {size} bytes and {follow} follow: "
            "must be as many, and at least one"
        )
    return np.frombuffer(content, np.uint8).reshape(shape)


def _stacked(part, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one split of records {"image", "label"}."""
    records = [part[row] for row in range(len(part))]
    shapes = {record["image"].shape for record in records}
    if len(shapes) > 1:
        raise UserError(f"{where}: image: {len(shapes)} different sizes: must share one [h,w,c]")
    return np.stack([r["image"] for r in records]), np.array([r["label"] for r in records])


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
