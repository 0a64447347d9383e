"""Every source gives data that can be trained on, or one line that says what is wrong with which array."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import struct
import sys
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from mtkd_jax.data import streams
from mtkd_jax.data.sources.archives import cifar10
from mtkd_jax.data.sources.arrays import idx, npz
from mtkd_jax.data.sources.embedded import digits, synthetic
from mtkd_jax.data.sources.folders import csv, folder
from mtkd_jax.data.sources.prepared import tfds
from mtkd_jax.data.sources.series import ucr
from mtkd_jax.types import UserError


def good_arrays(num_train=12, num_test=6):
    rng = np.random.default_rng(0)
    return {
        "train_images": rng.integers(0, 256, (num_train, 5, 4, 3), dtype=np.uint8),
        "train_labels": np.arange(num_train) % 3,
        "test_images": rng.integers(0, 256, (num_test, 5, 4, 3), dtype=np.uint8),
        "test_labels": np.arange(num_test) % 3,
    }


def load(tmp_path, arrays):
    np.savez(tmp_path / "made.npz", **arrays)
    return npz(path=str(tmp_path / "made.npz"))


def refused(tmp_path, arrays):
    with pytest.raises(UserError) as caught:
        load(tmp_path, arrays)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(str(tmp_path / "made.npz"))
    return message


# --- the embedded ones --------------------------------------------------------------------------------


def test_digits_are_all_of_scikit_learns_and_the_test_part_is_stratified():
    dataset = digits()
    bunch = load_digits()
    assert dataset.train_images.shape == (1437, 8, 8, 1)
    assert dataset.test_images.shape == (360, 8, 8, 1)
    assert dataset.train_images.dtype == np.uint8
    assert dataset.train_labels.dtype == np.int32
    assert (dataset.train_images.min(), dataset.train_images.max()) == (0, 255)

    images = np.concatenate([dataset.train_images, dataset.test_images])[..., 0]
    labels = np.concatenate([dataset.train_labels, dataset.test_labels])
    back = np.round(images * (16 / 255))  # the scaling loses nothing
    ours = sorted((label, *image.ravel()) for label, image in zip(labels, back))
    assert ours == sorted((label, *image.ravel()) for label, image in zip(bunch.target, bunch.images))

    share = np.bincount(dataset.test_labels) / np.bincount(bunch.target)
    assert np.all(np.abs(share - 0.2) < 0.01)
    np.testing.assert_array_equal(dataset.test_images, digits().test_images)


def test_synthetic_can_be_learnt_and_noise_makes_it_harder():
    def nearest_mean_accuracy(noise):
        dataset = synthetic(noise=noise)
        flat = dataset.train_images.reshape(600, -1).astype(np.float64)
        means = np.stack([flat[dataset.train_labels == c].mean(0) for c in range(10)])
        test = dataset.test_images.reshape(200, 1, -1)
        return np.mean(np.argmin(((test - means) ** 2).sum(-1), 1) == dataset.test_labels)

    assert nearest_mean_accuracy(0.0) == 1.0
    assert nearest_mean_accuracy(0.5) > 0.9
    assert 0.1 < nearest_mean_accuracy(3.0) < 0.8


def test_synthetic_has_the_shapes_asked_for_and_balanced_classes():
    dataset = synthetic(num_classes=3, num_train=10, num_test=7, size=5, channels=2, seed=4)
    assert dataset.train_images.shape == (10, 5, 5, 2)
    assert dataset.test_images.shape == (7, 5, 5, 2)
    assert sorted(np.bincount(dataset.train_labels)) == [3, 3, 4]
    assert dataset.class_names == ("0", "1", "2")
    again = synthetic(num_classes=3, num_train=10, num_test=7, size=5, channels=2, seed=4)
    other = synthetic(num_classes=3, num_train=10, num_test=7, size=5, channels=2, seed=5)
    np.testing.assert_array_equal(dataset.train_images, again.train_images)
    assert not np.array_equal(dataset.train_images, other.train_images)


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_classes": 1},
        {"num_train": 9},
        {"num_test": 0},
        {"size": 0},
        {"channels": 0},
        {"noise": -0.1},
        {"noise": float("nan")},
        {"seed": -1},
    ],
)
def test_synthetic_names_the_argument_that_makes_no_problem(arguments):
    (name,) = arguments
    with pytest.raises(UserError, match=f"^synthetic: {name} = .*: must be at least "):
        synthetic(**arguments)


# --- npz ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keras_names", [False, True])
def test_npz_reads_both_spellings_and_keeps_what_it_reads(tmp_path, keras_names):
    arrays = good_arrays()
    keras = {
        "train_images": "x_train",
        "train_labels": "y_train",
        "test_images": "x_test",
        "test_labels": "y_test",
    }
    dataset = load(tmp_path, {keras[k]: v for k, v in arrays.items()} if keras_names else arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(getattr(dataset, name), array)
    assert dataset.train_images.dtype == np.uint8
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int32
    assert dataset.name == "made"
    assert dataset.class_names == ("0", "1", "2")


def test_npz_grey_float64_and_named_classes(tmp_path):
    arrays = good_arrays()
    arrays["train_images"] = arrays["train_images"][..., 0] / 7.0 - 3.0
    arrays["test_images"] = arrays["test_images"][..., 0] / 7.0 - 3.0
    arrays["class_names"] = np.array(["cat", "dog", "gnu"])
    arrays["something_else"] = np.array([object()])  # never read, so never unpickled
    dataset = load(tmp_path, arrays)
    assert dataset.train_images.shape == (12, 5, 4, 1)
    assert dataset.train_images.dtype == np.float32
    np.testing.assert_array_equal(dataset.train_images[..., 0], arrays["train_images"].astype(np.float32))
    assert dataset.class_names == ("cat", "dog", "gnu")


def with_nan(images):
    images = images.astype(np.float32)
    images[2, 0, 0, 0] = np.nan
    return images


BAD = {
    "rank of images": ("train_images", lambda a: a[0, 0], "shape (4, 3): must be [N,h,w,c]"),
    "no pixels": ("train_images", lambda a: a[:, :0], "shape (12, 0, 4, 3): must be"),
    "no examples": ("test_images", lambda a: a[:0], "is empty: must hold at least one image"),
    "one-hot labels": ("train_labels", lambda a: np.eye(3, dtype=int)[a], "of one-hot rows it is the argmax"),
    "several labels": (
        "train_labels",
        lambda a: np.eye(3)[a] + np.eye(3)[::-1][a],
        ", and not several labels",
    ),
    "labels of pixels": (
        "train_labels",
        lambda a: np.repeat(a, 20).reshape(12, 5, 4),
        "data.source='masks' reads labels of pixels, from arrays train_masks and test_masks",
    ),
    "names but for blanks": (
        "class_names",
        lambda a: np.array(["cat", " cat", "dog"]),
        "'cat' and ' cat' look the same",
    ),
    "names but for inner blanks": (
        "class_names",
        lambda a: np.array(["a  b", "c", "a b"]),
        "'a  b' and 'a b' look the same",
    ),
    "names but for accents": (
        "class_names",
        lambda a: np.array(["caf\u00e9", "b", "cafe\u0301"]),
        "look the same; must be one name a class",
    ),
    "name of blanks": ("class_names", lambda a: np.array(["a", " ", "c"]), "' ' is empty; must name a class"),
    "names twice": ("class_names", lambda a: np.array(["a", "b", "a"]), "'a' stands there twice"),
    "name with an escape": ("class_names", lambda a: np.array(["a", "b", "\x1b[2J"]), "must be plain text"),
    "fewer labels": ("train_labels", lambda a: a[:-1], "11 labels for 12 images"),
    "more test labels": ("test_labels", lambda a: np.append(a, 0), "7 labels for 6 images"),
    "label too high": ("test_labels", lambda a: a + 1, "labels 1..3: must lie in 0..C-1, with C = 3 classes"),
    "label negative": (
        "train_labels",
        lambda a: a - 1,
        "labels -1..1: must lie in 0..C-1 for C classes; numpy.unique(labels, return_inverse=True)[1] counts",
    ),
    "test label negative": ("test_labels", lambda a: a - 1, "labels -1..1: must lie in 0..C-1, with C = 3"),
    "labels all negative": ("train_labels", lambda a: a - 9, "labels -9..-7: must lie in 0..C-1"),
    "float labels": ("train_labels", lambda a: a.astype(float), "float64 labels: must be integers"),
    "whole floats": ("train_labels", lambda a: a.astype(float), "; labels.astype(int) makes them so"),
    "NaN labels": (
        "train_labels",
        lambda a: np.where(a == 1, np.nan, a),
        "float64 labels: must be integers, and 4 are NaN: every image must have a label",
    ),
    "bool labels": ("test_labels", lambda a: a > 0, "bool labels: must be integers"),
    "text labels": ("train_labels", lambda a: a.astype(str), "labels: must be integers"),
    "text to number": ("test_labels", lambda a: a.astype(str), "numpy.unique(labels, return_inverse=True)"),
    "from 1": (
        "train_labels",
        lambda a: a + 1,
        "class 0 (0): every class must be in the training set; numpy.unique(labels, return_inverse=True)[1] "
        "counts from 0 without gaps",
    ),
    "one class": ("train_labels", lambda a: a * 0, "labels 0..2: must lie in 0..C-1, with C = 1 classes"),
    "gap": ("train_labels", lambda a: a * 2, "2 of 5 classes without an example, the first is class 1 (1)"),
    "huge label": ("train_labels", lambda a: a * 10**9, "reaches 2000000000 in 12 examples"),
    "NaN": ("train_images", with_nan, "1 images hold NaN or infinite pixels: must be finite"),
    "inf": ("test_images", lambda a: a / np.float32(0.0), "hold NaN or infinite pixels"),
    "beyond float32": ("train_images", lambda a: a * 1e300, "hold NaN or infinite pixels"),
    "one colour": ("train_images", lambda a: a * 0 + np.uint8(7), "every pixel is 7: nothing can be learnt"),
    "integers of bytes": (
        "train_images",
        lambda a: a.astype(np.int16),
        "images.astype('uint8') loses nothing",
    ),
    "flat": ("train_images", lambda a: a.reshape(12, -1), "flat rows must be reshaped to these"),
    "images last": (
        "train_images",
        lambda a: a.transpose(1, 2, 3, 0),
        "are (5, 4, 3, 12): transpose(3, 0, 1, 2)",
    ),
    "integer pixels": ("train_images", lambda a: a.astype(np.int64), "int64 pixels: must be uint8"),
    "complex pixels": ("train_images", lambda a: a * 1j, "complex128 pixels: must be uint8"),
    "other size": ("test_images", lambda a: a[:, 1:], "uint8 (4, 4, 3): must be as in train_images"),
    "other channels": ("test_images", lambda a: a[..., 0], "uint8 (5, 4, 1): must be as in train_images"),
    "other scale": ("test_images", lambda a: a / 255, "float32 (5, 4, 3): must be as in train_images, uint8"),
    "class too many": ("class_names", lambda a: np.array(list("abcd")), "the first is class 3 (d)"),
    "class too few": ("class_names", lambda a: np.array(list("ab")), "labels 0..2: must lie in 0..C-1"),
    "class numbers": (
        "class_names",
        lambda a: np.arange(3),
        "class_names: must be a one-dimensional array of",
    ),
    "pickled names": (
        "class_names",
        lambda a: np.array([None, {}]),
        "cannot read class_names (Object arrays",
    ),
    "pickled labels": ("train_labels", lambda a: a.astype(object), "cannot read train_labels (Object arrays"),
}


@pytest.mark.parametrize("case", BAD)
def test_npz_says_in_one_line_what_is_wrong_with_which_array(tmp_path, case):
    array, spoil, said = BAD[case]
    arrays = good_arrays()
    arrays[array] = None if array == "class_names" else arrays[array]
    with np.errstate(all="ignore"):
        arrays[array] = spoil(arrays[array])
    message = refused(tmp_path, arrays)
    assert said in message
    if case not in (
        "one class",
        "class too many",
        "class too few",
        "images last",
    ):  # there, another array shows it
        assert array in message


def test_npz_one_class_everywhere(tmp_path):
    arrays = good_arrays()
    arrays |= {"train_labels": arrays["train_labels"] * 0, "test_labels": arrays["test_labels"] * 0}
    assert "train_labels: 1 class: must be at least 2" in refused(tmp_path, arrays)


@pytest.mark.parametrize("name", ["train_images", "train_labels", "test_images", "test_labels"])
def test_npz_names_the_missing_array_and_lists_what_is_there(tmp_path, name):
    arrays = good_arrays()
    del arrays[name]
    message = refused(tmp_path, arrays)
    assert f"no array {name} (or " in message
    assert f"and holds {', '.join(sorted(arrays))}" in message


def test_npz_missing_file_and_folder(tmp_path):
    for path in (tmp_path / "nowhere.npz", tmp_path, ""):
        with pytest.raises(UserError, match=r"^data.path = '.*': no such file; must be an .npz archive"):
            npz(path=str(path))


def test_npz_damaged_files(tmp_path):
    """Cut short or with a byte changed: the data as written, or one line. Never something else."""
    file = tmp_path / "made.npz"
    np.savez_compressed(file, **good_arrays())
    whole, want = file.read_bytes(), npz(path=str(file))
    rng = np.random.default_rng(0)
    damaged = [whole[: int(n)] for n in rng.integers(0, len(whole), 10)]
    for _ in range(40):
        flipped = bytearray(whole)
        flipped[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        damaged.append(bytes(flipped))
    damaged += [b"", b"train_images,train_labels\n", b"\x93NUMPY"]
    num_refused = 0
    for content in damaged:
        file.write_bytes(content)
        try:
            got = npz(path=str(file))
        except UserError as error:
            assert "\n" not in str(error)
            assert "made.npz" in str(error)
            num_refused += 1
        else:
            for name in good_arrays():
                np.testing.assert_array_equal(getattr(got, name), getattr(want, name))
    assert num_refused > 30


def test_npz_val_images_become_the_last_training_rows(tmp_path):
    arrays = good_arrays()
    arrays |= {"x_val": arrays["test_images"][::-1], "y_val": arrays["test_labels"][::-1].astype(np.uint8)}
    dataset = load(tmp_path, arrays)
    np.testing.assert_array_equal(dataset.val_rows, np.arange(12, 18))
    np.testing.assert_array_equal(dataset.train_images[dataset.val_rows], arrays["x_val"])
    np.testing.assert_array_equal(dataset.train_labels[dataset.val_rows], arrays["y_val"])
    np.testing.assert_array_equal(dataset.train_images[:12], arrays["train_images"])
    np.testing.assert_array_equal(dataset.test_images, arrays["test_images"])
    assert load(tmp_path, good_arrays()).val_rows is None


def test_npz_groups_of_text_and_numbers_have_one_code_in_all_parts(tmp_path):
    arrays = good_arrays()
    names = {
        part: np.array(list(letters)) for part, letters in (("train", "bbbaaacccddd"), ("test", "deeade"))
    }
    numbers = {part: np.array([ord(letter) for letter in letters]) for part, letters in names.items()}
    for groups in (names, numbers):
        dataset = load(tmp_path, arrays | {f"{part}_groups": groups[part] for part in groups})
        assert "".join("abcde"[code] for code in dataset.train_groups) == "bbbaaacccddd"
        assert "".join("abcde"[code] for code in dataset.test_groups) == "deeade"
        assert dataset.train_groups.dtype == dataset.test_groups.dtype == np.int32


def test_npz_val_images_bring_their_groups(tmp_path):
    arrays = good_arrays()
    arrays |= {"val_images": arrays["test_images"], "val_labels": arrays["test_labels"]}
    arrays |= {"train_groups": np.arange(12), "val_groups": np.full(6, 20), "test_groups": np.full(6, 5)}
    dataset = load(tmp_path, arrays)
    np.testing.assert_array_equal(dataset.train_groups, [*range(12), *[12] * 6])
    np.testing.assert_array_equal(dataset.test_groups, [5] * 6)
    del arrays["val_groups"]
    assert "no array val_groups; must hold" in refused(tmp_path, arrays)


BAD_PARTS = {
    "val images alone": ({"val_images": lambda a: a["test_images"]}, "no array val_labels (or y_val)"),
    "val of another size": (
        {"val_images": lambda a: a["test_images"][:, 1:], "val_labels": lambda a: a["test_labels"]},
        "val_images: uint8 (6, 4, 4, 3): must be as in train_images, uint8 (12, 5, 4, 3)",
    ),
    "val of another scale": (
        {"val_images": lambda a: a["test_images"] / 255, "val_labels": lambda a: a["test_labels"]},
        "val_images: float64 (6, 5, 4, 3): must be as in train_images, uint8",
    ),
    "fewer val labels": (
        {"val_images": lambda a: a["test_images"], "val_labels": lambda a: a["test_labels"][1:]},
        "val_labels: int64 (5,): must be as in train_labels, int64 (12,), and as many as val_images",
    ),
    "val labels a number": (
        {"val_images": lambda a: a["test_images"], "val_labels": lambda a: np.int64(1)},
        "val_labels: int64 (): must be as in train_labels",
    ),
    "groups of one part": ({"train_groups": lambda a: a["train_labels"]}, "no array test_groups; must hold"),
    "groups of both kinds": (
        {"train_groups": lambda a: a["train_labels"], "test_groups": lambda a: a["test_labels"].astype(str)},
        "test_groups: <U21 (6,): must be [N] whole numbers or [N] text, the same kind in all parts",
    ),
    "groups of measurements": (
        {"train_groups": lambda a: a["train_labels"] / 2, "test_groups": lambda a: a["test_labels"] / 2},
        "train_groups: float64 (12,): must be [N] whole numbers",
    ),
    "fewer groups": (
        {"train_groups": lambda a: a["train_labels"][1:], "test_groups": lambda a: a["test_labels"]},
        "train_groups: int64 (11,): must be whole numbers [12], one an image",
    ),
}


@pytest.mark.parametrize("case", BAD_PARTS)
def test_npz_says_what_is_wrong_with_validation_and_groups(tmp_path, case):
    more, said = BAD_PARTS[case]
    arrays = good_arrays()
    assert said in refused(tmp_path, arrays | {name: make(arrays) for name, make in more.items()})


def test_npz_that_unpacks_to_far_more_than_its_size_is_not_unpacked(tmp_path):
    """65 MiB out of 66 kB are refused; so are they in several arrays; what nobody reads does not count."""
    file = tmp_path / "made.npz"
    zeros = np.zeros((65, 1024, 1024, 1), np.uint8)
    np.savez_compressed(file, **good_arrays() | {"train_images": zeros})
    assert file.stat().st_size < 2**17
    tracemalloc.start()
    try:
        with pytest.raises(UserError, match=r"cannot read .* bytes that would unpack to 681\d\d\d\d\d"):
            npz(path=str(file))
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()
    np.savez_compressed(file, **good_arrays() | {"train_images": zeros[:33], "test_images": zeros[:33]})
    with pytest.raises(UserError, match="would unpack to 692"):
        npz(path=str(file))
    np.savez_compressed(file, **good_arrays() | {"something_else": zeros})
    assert len(npz(path=str(file)).train_images) == 12


@pytest.mark.parametrize(
    "shape, dtype", [((2**40, 1, 1, 1), "|u1"), ((1, 5, 4, 3), "|u1"), ((2**50,), "<U0"), ((0,), "|u1")]
)
@pytest.mark.parametrize("name", ["train_images", "class_names"])
def test_npz_reserves_nothing_for_a_header_that_promises_more_or_less_than_follows(
    tmp_path, name, shape, dtype
):
    np.savez(tmp_path / "made.npz", **{k: v for k, v in good_arrays().items() if k != name})
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": dtype, "fortran_order": False, "shape": shape})
    with zipfile.ZipFile(tmp_path / "made.npz", "a") as archive:
        archive.writestr(f"{name}.npy", header.getvalue() + bytes(720))
    with pytest.raises(
        UserError, match=rf"cannot read {name} \(its header promises \d+ bytes and 720 follow\)"
    ):
        npz(path=str(tmp_path / "made.npz"))


def test_npz_names_that_lead_out_of_the_archive_lead_nowhere(tmp_path):
    """Nothing is unpacked to disk, so a member's name is only a word."""
    folder = tmp_path / "inner"
    folder.mkdir()
    np.savez(folder / "made.npz", **good_arrays())
    with zipfile.ZipFile(folder / "made.npz", "a") as archive:
        for name in ("../train_images.npy", "../../escaped.npy", str(tmp_path / "absolute.npy")):
            archive.writestr(name, b"anything")
    np.testing.assert_array_equal(
        npz(path=str(folder / "made.npz")).train_images, good_arrays()["train_images"]
    )
    assert [path.name for path in tmp_path.rglob("*")] == ["inner", "made.npz"]


def test_npz_labels_may_stand_in_a_column_and_channels_first(tmp_path):
    rng = np.random.default_rng(0)
    images, labels = rng.integers(0, 256, (12, 6, 5, 3), dtype=np.uint8), np.arange(12) % 3
    file = tmp_path / "made.npz"
    turned = images.transpose(0, 3, 1, 2)
    np.savez(
        file,
        train_images=turned,
        train_labels=labels[:, None],
        test_images=turned[:6],
        test_labels=labels[:6, None],
        val_images=turned[:3],
        val_labels=labels[:3, None],
    )
    found = npz(path=str(file))
    np.testing.assert_array_equal(found.train_images, np.concatenate([images, images[:3]]))
    np.testing.assert_array_equal(found.train_labels, np.append(labels, labels[:3]))
    assert found.notes == ("The images are [N,c,h,w], and were turned to [N,h,w,c].",)


@pytest.mark.parametrize("shape", [(12, 3, 4, 3), (12, 32, 32, 3), (12, 5, 6, 7), (12, 3, 3, 9)])
def test_npz_turns_only_what_can_be_nothing_else(tmp_path, shape):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(
        tmp_path / "made.npz",
        train_images=images,
        train_labels=np.arange(12) % 3,
        test_images=images,
        test_labels=np.arange(12) % 3,
    )
    found = npz(path=str(tmp_path / "made.npz"))
    assert found.train_images.shape == shape and found.notes == ()


@pytest.mark.parametrize(
    ("shape", "turned"),
    [
        ((1, 28, 28), True),
        ((2, 28, 28), True),
        ((3, 30, 40), True),
        ((28, 28, 1), False),
        ((9, 9, 200), False),
        ((128, 1, 9), False),
        ((1, 1, 7), False),
        ((1, 128, 9), None),
        ((3, 1, 128), None),
        ((13, 64, 64), None),
        ((8, 8, 8), None),
    ],
)
def test_npz_layout_is_told_by_the_shape_or_must_be_told(tmp_path, shape, turned):
    arrays = good_arrays()
    for part in ("train", "test"):
        num = len(arrays[f"{part}_labels"])
        arrays[f"{part}_images"] = np.random.default_rng(1).integers(0, 256, (num, *shape), dtype=np.uint8)
    both = {"NHWC": arrays["train_images"], "NCHW": arrays["train_images"].transpose(0, 2, 3, 1)}
    if turned is None:
        message = refused(tmp_path, arrays)
        assert f"train_images: shape {(12, *shape)}: may be [N,h,w,c] or [N,c,h,w]; must be told" in message
    else:
        np.testing.assert_array_equal(load(tmp_path, arrays).train_images, both["NCHW" if turned else "NHWC"])
    for layout, images in both.items():
        found = npz(path=str(tmp_path / "made.npz"), layout=layout)
        np.testing.assert_array_equal(found.train_images, images)
        assert len(found.notes) == (layout == "NCHW")
    with pytest.raises(UserError, match="npz: layout = 'nchw': must be NHWC or NCHW"):
        npz(path=str(tmp_path / "made.npz"), layout="nchw")


def test_npz_parts_of_two_layouts_are_refused_as_they_are(tmp_path):
    arrays = good_arrays() | {"train_images": np.zeros((12, 3, 8, 8)), "test_images": np.zeros((6, 8, 8, 3))}
    assert "test_images: float32 (8, 8, 3): must be as in train_images, float32 (3, 8, 8)" in refused(
        tmp_path, arrays
    )


@pytest.mark.parametrize("turn", [lambda a: a[:, None], lambda a: a[None], lambda a: a[:, None, None]])
def test_npz_columns_and_rows_of_labels_names_and_groups_are_vectors(tmp_path, turn):
    arrays = good_arrays() | {"class_names": np.array(["a", "b", "c"])}
    arrays |= {"val_images": arrays["test_images"], "val_labels": arrays["test_labels"]}
    arrays |= {"train_groups": np.arange(12), "val_groups": np.full(6, 20), "test_groups": np.full(6, 30)}
    want = load(tmp_path, arrays)
    some = {name: turn(a) for name, a in arrays.items() if not name.endswith("images") and "val" not in name}
    found = load(tmp_path, arrays | some)
    for name in ("train_labels", "test_labels", "train_groups", "test_groups"):
        np.testing.assert_array_equal(getattr(found, name), getattr(want, name))
    assert found.class_names == ("a", "b", "c")


def floats(arrays, scale, shift=0.0):
    """The images of some arrays as float32."""
    return {name: (arrays[name] * np.float64(scale) + shift).astype(np.float32) for name in arrays}


IMAGES = {name: array for name, array in good_arrays().items() if name.endswith("images")}
ONE_SCALE = {**floats(IMAGES, 1 / 255)}
OTHER_SCALES = {
    "test images of 0..255": (
        ONE_SCALE | {"test_images": IMAGES["test_images"] * np.float32(1)},
        "test_images: values 2..254 (half",
    ),
    "validation of 0..255": (
        ONE_SCALE | {"val_images": IMAGES["test_images"] * np.float32(1), "val_labels": np.arange(6) % 3},
        "val_images: values 2..254 (half",
    ),
    "bits beside bytes": ({"test_images": IMAGES["test_images"] % 2}, "test_images: values 0..1 (half"),
    "far from 0": (
        floats(IMAGES, 1 / 255, 1e6),
        "channel 0: must differ by more, for float32 has few numbers",
    ),
    "one channel of 1e-40": (
        {name: (a * np.array([1, 1e-42, 1])).astype(np.float32) for name, a in IMAGES.items()},
        "e-40 in channel 1: must be of a size near 1, scale them",
    ),
}


@pytest.mark.parametrize("case", OTHER_SCALES)
def test_npz_values_that_cannot_be_of_one_scale_or_normalised(tmp_path, case):
    changed, said = OTHER_SCALES[case]
    load(tmp_path, good_arrays() | ONE_SCALE)
    assert said in refused(tmp_path, good_arrays() | changed)


SUSPICIOUS = {
    "one part below 0": (
        ONE_SCALE | {"train_images": floats(IMAGES, 2 / 255, -1)["train_images"]},
        "test_images hold values 0.00784..0.996 (half",
    ),
    "other part below 0": (
        ONE_SCALE | {"test_images": floats(IMAGES, 2 / 255, -1)["test_images"]},
        "test_images hold values -0.984..0.992 (half",
    ),
    "one pixel of 300": (
        ONE_SCALE
        | {
            "train_images": np.maximum(
                ONE_SCALE["train_images"], 300 * (np.arange(12) == 5)[:, None, None, None]
            )
        },
        ": are they of one scale?",
    ),
    "a tenth as large": ({"test_images": IMAGES["test_images"] // 20}, ": are they of one scale?"),
    "bits": ({name: a % 2 for name, a in IMAGES.items()}, "The images hold nothing but 0 and 1, where uint8"),
    "floats of bytes": (
        {
            name: np.maximum(a, 255 * (np.arange(len(a)) == 1)[:, None, None, None]).astype(np.float32)
            for name, a in IMAGES.items()
        },
        "The images are floats 0..255 and used as they are",
    ),
    "blank images": (
        {
            "train_images": np.where(
                (np.arange(12) < 5)[:, None, None, None], np.uint8(9), IMAGES["train_images"]
            )
        },
        "images are blank, all of their pixels are the same: 5 of 12 in train_images, 0 of 6 in test_images.",
    ),
    "names but for case": (
        {"class_names": np.array(["Cat", "dog", "cat"])},
        "The classes 'Cat' and 'cat' are two",
    ),
    "names of one number": (
        {"class_names": np.array(["1", "2", "1.0"])},
        "The classes '1' and '1.0' are two",
    ),
}


@pytest.mark.parametrize("case", SUSPICIOUS)
def test_npz_notes_what_may_be_meant_otherwise(tmp_path, case):
    changed, said = SUSPICIOUS[case]
    for arrays in (
        good_arrays(),
        good_arrays() | ONE_SCALE,
        good_arrays() | {"class_names": np.array(["a", "A", "b"])},
    ):
        assert load(tmp_path, arrays).notes == ()
    assert said in " ".join(load(tmp_path, good_arrays() | changed).notes)


def test_npz_parts_of_two_scales_are_refused_and_bits_are_noted(tmp_path):
    images = np.random.default_rng(0).random((12, 4, 4, 1), np.float32)
    arrays = {"train_labels": np.arange(12) % 3, "test_labels": np.arange(12) % 3}
    np.savez(tmp_path / "made.npz", train_images=images, test_images=images * 255, **arrays)
    with pytest.raises(
        UserError, match=r"test_images: values 0.\d+..254 .*, in train_images .*: must be of one scale"
    ):
        npz(path=str(tmp_path / "made.npz"))
    bits = (images > 0.5).astype(np.uint8)
    np.savez(tmp_path / "made.npz", train_images=bits, test_images=bits, **arrays)
    assert npz(path=str(tmp_path / "made.npz")).notes[0].startswith("The images hold nothing but 0 and 1")
    for largest, noted in ((15, ("The images hold nothing above 15, where uint8 is read as 0",)), (16, ())):
        np.savez(tmp_path / "made.npz", train_images=bits * largest, test_images=bits * largest, **arrays)
        notes = npz(path=str(tmp_path / "made.npz")).notes
        assert len(notes) == len(noted) and all(map(str.startswith, notes, noted))


@pytest.mark.parametrize("scale", [1e-40, 1e-20, 1e20, 3e38])
def test_npz_values_that_float32_cannot_square_are_refused(tmp_path, scale):
    images = (np.random.default_rng(0).random((12, 4, 4, 1)) * scale).astype(np.float32)
    labels = np.arange(12) % 3
    np.savez(
        tmp_path / "made.npz",
        train_images=images,
        train_labels=labels,
        test_images=images,
        test_labels=labels,
    )
    with pytest.raises(
        UserError, match="train_images: values up to .*: must be of a size near 1, scale them"
    ):
        npz(path=str(tmp_path / "made.npz"))


def test_npz_is_no_other_file(tmp_path):
    file = tmp_path / "one"
    np.save(tmp_path / "one.npy", np.arange(3))
    (tmp_path / "one.npy").rename(file)
    others = {
        file.read_bytes(): "one array alone; numpy.savez(file, ",
        b"MATLAB 5.0 MAT-file, Platform": "a MATLAB file; scipy.io.loadmat",
        b"\x89HDF\r\n\x1a\n": "an HDF5 file, ",
        b"\x80\x04N.": "a pickle, which may run code",
        b"": "no .npz archive",
        b"train_images,train_labels": "no .npz archive",
    }
    for content, said in others.items():
        file.write_bytes(content)
        with pytest.raises(UserError) as caught:
            npz(path=str(file))
        assert f"{file}: cannot read the list of its arrays (it is {said}" in str(caught.value)
        assert "allow_pickle" not in str(caught.value)


def test_npz_array_under_two_names_is_refused(tmp_path):
    arrays = good_arrays()
    message = refused(tmp_path, arrays | {"y_train": arrays["train_labels"][::-1]})
    assert message.endswith("holds train_labels and y_train, which are one; must hold one of them")


def test_npz_of_many_other_arrays_lists_some(tmp_path):
    message = refused(tmp_path, {f"a{n:02d}": np.zeros(1) for n in range(40)})
    assert message.endswith(
        "and holds a00, a01, a02, a03, a04, a05, a06, a07, a08, a09, a10, a11 and 28 more"
    )


def test_npz_names_arrays_that_are_not_read_and_what_may_be_meant(tmp_path):
    ours = {"train_groups": np.arange(12), "test_groups": np.arange(12, 18)}
    boxes = {"train_boxes_img_cls_xyxy32": np.zeros((0, 6), int), "train_logits": np.zeros((12, 3))}
    assert load(tmp_path, good_arrays() | ours | boxes).notes == ()
    told = "Arrays that are not read: 'classnames' (did you mean 'class_names'?), 'q', 'val_image' "
    misspelt = {name: np.zeros(1) for name in ("classnames", "q", "val_image")}
    assert load(tmp_path, good_arrays() | misspelt).notes == (told + "(did you mean 'val_images'?).",)
    keras = {"x_" + part: good_arrays()[f"{part}_images"] for part in ("train", "test")}
    keras |= {"y_" + part: good_arrays()[f"{part}_labels"] for part in ("train", "test")}
    assert "'x_valid' (did you mean 'x_val'?)" in load(tmp_path, keras | {"x_valid": np.zeros(1)}).notes[0]


# --- idx ----------------------------------------------------------------------------------------------


def idx_file(array, *, mark=None, shape=None, cut=None, more=b""):
    """An IDX file as its format says, or with a false mark or shape, cut short, or with bytes after it."""
    array = np.asarray(array, np.uint8)
    mark = struct.pack(">BBBB", 0, 0, 8, array.ndim) if mark is None else mark
    shape = array.shape if shape is None else shape
    sizes = b"".join(struct.pack(">I", size) for size in shape)
    return (mark + sizes + array.tobytes())[:cut] + more


IDX_ARRAYS = {
    "train-images-idx3-ubyte": np.random.default_rng(1).integers(0, 256, (12, 5, 4)),
    "train-labels-idx1-ubyte": np.arange(12) % 3,
    "t10k-images-idx3-ubyte": np.random.default_rng(2).integers(0, 256, (6, 5, 4)),
    "t10k-labels-idx1-ubyte": np.arange(6) % 3,
}
TRAIN_IMAGES, TRAIN_LABELS, TEST_IMAGES, TEST_LABELS = IDX_ARRAYS


def idx_folder(tmp_path, rename=lambda name: name, **changed):
    """A folder of the four files; `changed` gives other contents, None leaves the file out."""
    folder = tmp_path / "mine"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    contents = {name: idx_file(array) for name, array in IDX_ARRAYS.items()} | changed
    for name, content in contents.items():
        if content is not None:
            packed = rename(name).endswith(".gz") and content[:2] != b"\x1f\x8b"
            (folder / rename(name)).write_bytes(gzip.compress(content, 1) if packed else content)
    return str(folder)


def idx_refused(folder, **arguments):
    with pytest.raises(UserError) as caught:
        idx(path=folder, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("mark", ["-", "."])
def test_idx_reads_every_spelling_and_keeps_what_it_reads(tmp_path, packed, mark):
    dataset = idx(path=idx_folder(tmp_path, lambda name: name.replace("-idx", f"{mark}idx") + packed))
    train_images, train_labels, test_images, test_labels = IDX_ARRAYS.values()
    np.testing.assert_array_equal(dataset.train_images, train_images[..., None])
    np.testing.assert_array_equal(dataset.train_labels, train_labels)
    np.testing.assert_array_equal(dataset.test_images, test_images[..., None])
    np.testing.assert_array_equal(dataset.test_labels, test_labels)
    assert dataset.train_images.dtype == dataset.test_images.dtype == np.uint8
    assert dataset.train_labels.dtype == dataset.test_labels.dtype == np.int32
    assert (dataset.name, dataset.class_names) == ("mine", ("0", "1", "2"))


def test_idx_of_two_spellings_reads_the_first_named(tmp_path):
    other = IDX_ARRAYS[TRAIN_LABELS][::-1]
    extra = {f"{TRAIN_LABELS}.gz": gzip.compress(idx_file(other)), "train-labels.idx1-ubyte": b"unread"}
    dataset = idx(path=idx_folder(tmp_path, **extra))
    np.testing.assert_array_equal(dataset.train_labels, IDX_ARRAYS[TRAIN_LABELS])


def test_idx_with_names_of_classes(tmp_path):
    folder = idx_folder(tmp_path)
    assert idx(path=folder, class_names=("bag", "boot", "coat")).class_names == (
        "bag",
        "boot",
        "coat",
    )
    assert "labels 0..2: must lie in 0..C-1, with C = 2" in idx_refused(folder, class_names=("bag", "boot"))
    assert "the first is class 3 (d)" in idx_refused(folder, class_names=("a", "b", "c", "d"))
    assert "class_names: 'bag' stands there twice" in idx_refused(folder, class_names=("bag", "hat", "bag"))
    for wrong in ("bag", ("bag", 1), ["bag"]):
        message = idx_refused(folder, class_names=wrong)
        assert message.startswith(f"idx: class_names = {wrong!r}: must be a tuple of text")


def test_idx_missing_folder_and_files(tmp_path):
    for path in (str(tmp_path / "nowhere"), "", __file__):
        assert idx_refused(path).startswith(f"data.path = {path!r}: no such folder; must hold the four IDX")
    for name in IDX_ARRAYS:
        message = idx_refused(idx_folder(tmp_path, **{name: None}))
        assert message.startswith(f"{tmp_path / 'mine'}: no file {name}: must be there, or as ")
        assert message.endswith(f"{name.replace('-idx', '.idx')}.gz")


TRAIN = IDX_ARRAYS[TRAIN_IMAGES]
BAD_IDX = {
    "nothing": (TRAIN_IMAGES, b"", "begins with nothing: must begin with 00 00 08 03, "),
    "half a mark": (TRAIN_LABELS, b"\0\0", "begins with 00 00: must begin with 00 00 08 01, "),
    "still packed": (TRAIN_IMAGES, gzip.compress(idx_file(TRAIN)), "begins with 1f 8b 08 00: must begin "),
    "no IDX": (TEST_LABELS, b"<html>Not Found", "begins with 3c 68 74 6d: must begin with 00 00 08 01, "),
    "other numbers": (TRAIN_IMAGES, idx_file(TRAIN, mark=b"\0\0\x0d\3"), "begins with 00 00 0d 03: must "),
    "more dimensions": (TEST_IMAGES, idx_file(TRAIN[..., None]), "begins with 00 00 08 04: must begin "),
    "images for labels": (
        TRAIN_LABELS,
        idx_file(TRAIN),
        "begins with 00 00 08 03: must begin with 00 00 08 01",
    ),
    "other end first": (TRAIN_IMAGES, b"\3\x08\0\0" + bytes(12), "begins with 03 08 00 00: must begin with"),
    "half a header": (
        TEST_IMAGES,
        idx_file(TRAIN, cut=15),
        "the header ends after 15 bytes: must be 16 long",
    ),
    "cut short": (
        TRAIN_IMAGES,
        idx_file(TRAIN, cut=-1),
        "the header says 12 x 5 x 4 = 240 bytes and 239 follow: must be as many",
    ),
    "too long": (
        TRAIN_LABELS,
        idx_file(np.arange(12) % 3, more=b"\n"),
        "the header says 12 = 12 bytes and more follow",
    ),
    "no images": (
        TEST_IMAGES,
        idx_file(TRAIN[:0]),
        "the header says 0 x 5 x 4 = 0 bytes and 0 follow: must be as many, and at least one",
    ),
    "no pixels": (
        TEST_IMAGES,
        idx_file(TRAIN[:0], shape=(0, 2**32 - 1, 2**32 - 1)),
        "the header says 0 x 4294967295 x 4294967295 = 0 bytes and 0 follow: must be",
    ),
    "no labels": (TRAIN_LABELS, idx_file([]), "the header says 0 = 0 bytes and 0 follow: must be"),
}


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("case", BAD_IDX)
def test_idx_says_in_one_line_what_is_wrong_with_which_file(tmp_path, case, packed):
    name, content, said = BAD_IDX[case]
    if case == "still packed" and packed:
        content = gzip.compress(content)
    message = idx_refused(idx_folder(tmp_path, lambda name: name + packed, **{name: content}))
    assert message.startswith(f"{tmp_path / 'mine' / name}{packed}: {said}")


@pytest.mark.parametrize(
    ("name", "array", "said"),
    [
        (TRAIN_LABELS, np.arange(11) % 3, "train_labels: 11 labels for 12 images: must be as many"),
        (TEST_LABELS, np.arange(7) % 3, "test_labels: 7 labels for 6 images: must be as many"),
        (TEST_LABELS, np.arange(6), "test_labels: labels 0..5: must lie in 0..C-1, with C = 3 classes"),
        (TRAIN_LABELS, np.arange(12) % 3 * 2, "train_labels: 2 of 5 classes without an example"),
        (TRAIN_LABELS, np.full(12, 255), "train_labels: reaches 255 in 12 examples: must be 0..C-1"),
        (TEST_IMAGES, np.zeros((6, 4, 5)), "test_images: uint8 (4, 5, 1): must be as in train_images"),
    ],
)
def test_idx_files_that_do_not_belong_together(tmp_path, name, array, said):
    folder = idx_folder(tmp_path, **{name: idx_file(array)})
    assert idx_refused(folder).startswith(f"{folder}: {said}")


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_idx_reserves_no_memory_for_what_is_not_there_and_unpacks_no_bomb(tmp_path, packed):
    """Two false headers: 2^31 images that are not there, and 240 bytes where 64 MiB follow."""
    promises = idx_file(TRAIN, shape=(2**31, 28, 28))
    bomb = idx_file(TRAIN, more=bytes(2**26))
    for content, said in ((promises, "= 1683627180032 bytes and 240 follow"), (bomb, "and more follow")):
        folder = idx_folder(tmp_path, lambda name: name + packed, **{TRAIN_IMAGES: content})
        tracemalloc.start()
        assert said in idx_refused(folder)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 4 * 2**20


def test_idx_damaged_packed_files(tmp_path):
    """Cut short or with a byte changed: the data as written, or one line that names the file."""
    folder = idx_folder(tmp_path, lambda name: f"{name}.gz")
    file, want = tmp_path / "mine" / f"{TRAIN_IMAGES}.gz", idx(path=folder)
    whole, rng = file.read_bytes(), np.random.default_rng(0)
    damaged = [whole[:length] for length in rng.integers(0, len(whole), 30)]
    for _ in range(100):
        flipped = bytearray(whole)
        flipped[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        damaged.append(bytes(flipped))
    damaged += [idx_file(TRAIN), whole + b"garbage", whole[:-8] + bytes(8)]
    num_refused = 0
    for content in damaged:
        file.write_bytes(content)
        try:
            got = idx(path=folder)
        except UserError as error:
            assert "\n" not in str(error) and str(error).startswith(f"{file}: ")
            num_refused += 1
        else:
            np.testing.assert_array_equal(got.train_images, want.train_images)
    assert num_refused > 100


# --- tfds ---------------------------------------------------------------------------------------------


@pytest.fixture
def tensorflow_datasets():
    return pytest.importorskip("tensorflow_datasets")


def test_tfds_reads_a_set_without_tensorflow(tensorflow_datasets):
    before = "tensorflow" in sys.modules
    with tensorflow_datasets.testing.mock_data(num_examples=120):
        dataset = tfds(name="mnist")
    assert dataset.name == "mnist"
    assert dataset.train_images.shape == dataset.test_images.shape == (120, 28, 28, 1)
    assert dataset.train_images.dtype == np.uint8
    assert dataset.train_labels.dtype == np.int32
    assert set(dataset.train_labels.tolist()) == set(range(10))
    assert dataset.class_names == tuple("0123456789")
    assert ("tensorflow" in sys.modules) == before


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("mnnist", "Dataset mnnist not found"),
        ("not a name", "cannot be read"),
        ("cmaterdb", "prepare it once, with splits train and test: pip install"),
        ("cmaterdb/no_such_config", "cannot be read"),
    ],
)
def test_tfds_says_in_one_line_how_to_prepare_a_set(tensorflow_datasets, name, said):
    with pytest.raises(UserError) as caught:
        tfds(name=name)
    message = str(caught.value)
    assert message.startswith(f"tfds: name = {name!r}: ")
    assert said in message
    assert "\n" not in message


def test_tfds_refuses_what_is_no_set_of_labelled_images_of_one_size(tensorflow_datasets):
    with tensorflow_datasets.testing.mock_data(num_examples=20):
        with pytest.raises(UserError, match="must have the features image and label .* has description, "):
            tfds(name="ag_news_subset")
        with pytest.raises(UserError, match="image: sizes .*: must share one"):
            tfds(name="imagenette")


TINY = np.random.default_rng(3).integers(0, 256, (12, 4, 5, 3), dtype=np.uint8)
TINY_SPLITS = {"train": range(6), "validation": range(6, 9), "test": range(9, 12)}


@pytest.fixture(scope="module")
def tiny_builder():
    """What prepares a set of 12 images, and makes its name known, as a set of the catalogue does."""
    tensorflow_datasets = pytest.importorskip("tensorflow_datasets")
    core, features = tensorflow_datasets.core, tensorflow_datasets.features

    class MtkdTinyPhotos(core.GeneratorBasedBuilder):
        VERSION = core.Version("1.0.0")
        code_path = None  # TFDS would look beside it for a description

        def _info(self):
            image, label = features.Image(shape=(4, 5, 3)), features.ClassLabel(names=["bee", "cat", "dog"])
            return core.DatasetInfo(
                builder=self, features=features.FeaturesDict({"image": image, "label": label})
            )

        def _split_generators(self, _):
            return {split: self._generate_examples(rows) for split, rows in TINY_SPLITS.items()}

        def _generate_examples(self, rows):
            for row in rows:
                file = io.BytesIO()
                Image.fromarray(TINY[row]).save(file, "png")
                yield row, {"image": file.getvalue(), "label": row % 3}

    return MtkdTinyPhotos


def prepare(builder, folder, file_format, monkeypatch):
    monkeypatch.setattr("tensorflow_datasets.core.constants.DATA_DIR", str(folder))
    builder(data_dir=str(folder), file_format=file_format).download_and_prepare()


def check_is_tiny(dataset):
    """TFDS shuffles what it prepares, within a split: every image is looked up among those it was given."""

    def rows(images):
        return [int(np.flatnonzero((image == TINY).all(axis=(1, 2, 3)))[0]) for image in images[:]]

    train, test = rows(dataset.train_images), rows(dataset.test_images)
    assert (sorted(train[:6]), sorted(train[6:])) == ([*TINY_SPLITS["train"]], [*TINY_SPLITS["validation"]])
    assert sorted(test) == [*TINY_SPLITS["test"]]
    np.testing.assert_array_equal(dataset.val_rows, [6, 7, 8])
    np.testing.assert_array_equal(dataset.train_labels, np.array(train) % 3)
    np.testing.assert_array_equal(dataset.test_labels, np.array(test) % 3)
    assert dataset.class_names == ("bee", "cat", "dog")


def test_tfds_reads_records_held_or_streamed_and_validates_on_the_sets_own_split(
    tiny_builder, tmp_path, monkeypatch
):
    prepare(tiny_builder, tmp_path, "array_record", monkeypatch)
    held = tfds(name="mtkd_tiny_photos")
    assert isinstance(held.train_images, np.ndarray) and isinstance(held.test_images, np.ndarray)
    check_is_tiny(held)
    monkeypatch.setattr(streams, "MOST_HELD", TINY[:9].nbytes - 1)
    streamed = tfds(name="mtkd_tiny_photos")
    assert isinstance(streamed.train_images, streams.OneByOne) and isinstance(
        streamed.test_images, np.ndarray
    )
    check_is_tiny(streamed)
    np.testing.assert_array_equal(streamed.train_images[np.array([8, 0, 3])], held.train_images[[8, 0, 3]])


@pytest.mark.slow
def test_tfds_reads_what_is_prepared_for_tensorflow_alone_by_tensorflow(tiny_builder, tmp_path, monkeypatch):
    pytest.importorskip("tensorflow")
    prepare(tiny_builder, tmp_path, "tfrecord", monkeypatch)
    check_is_tiny(tfds(name="mtkd_tiny_photos"))


def test_tfds_without_tensorflow_says_what_is_prepared_for_it_alone(tiny_builder, tmp_path, monkeypatch):
    prepare(tiny_builder, tmp_path, "array_record", monkeypatch)
    info = next(tmp_path.rglob("dataset_info.json"))
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    with pytest.raises(UserError, match="mtkd_tiny_photos': cannot be read .*; prepare it once, with"):
        tfds(name="mtkd_tiny_photos")


def test_pipes_and_paths_that_cannot_be_ones_are_one_line_whatever_the_source(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "set").mkdir()
    for name in ("A_TRAIN.ts", "A_TEST.ts", "data_batch_1", "train-images-idx3-ubyte", "x.npz"):
        os.mkfifo(tmp_path / "set" / name)
    for source in (npz, idx, ucr, cifar10, folder, csv):
        for path in ("a\0b", "a" * 300, str(pipe), str(tmp_path / "set"), str(tmp_path / "set/x.npz")):
            with pytest.raises(UserError) as caught:
                source(path=path)
            assert str(caught.value).isprintable()


def test_npz_names_and_teachers_of_images_go_with_them_into_the_training_rows(tmp_path):
    blank, labels = np.zeros((4, 2, 2, 1), np.uint8), np.array([0, 1, 0, 1])
    arrays = {f"{part}_images": blank for part in ("train", "val", "test")}
    arrays |= {f"{part}_labels": labels for part in ("train", "val", "test")}
    arrays |= {
        f"{part}_names": np.array([f"{part}/{n}" for n in range(4)]) for part in ("train", "val", "test")
    }
    arrays["train_images"] = arrays["train_images"] + np.arange(4, dtype=np.uint8)[:, None, None, None] * 9
    arrays["train_teachers"] = np.array([[1, 0], [0, 1], [1, 1], [0, 0]])
    file = tmp_path / "a.npz"
    np.savez(file, **arrays, val_teachers=np.ones((4, 2), int))
    found = npz(path=str(file))
    assert found.train_names == tuple(f"{part}/{n}" for part in ("train", "val") for n in range(4))
    assert found.test_names[3] == "test/3"
    expected = np.array([[1, 0], [0, 1], [1, 1], [0, 0], *[[1, 1]] * 4], bool)
    np.testing.assert_array_equal(found.train_teachers, expected)
    assert found.train_teachers.dtype == bool
    for change, words in (
        ({}, "no array val_teachers"),
        ({"val_teachers": np.full((4, 2), 2)}, r"train_teachers: int64 \(8, 2\): must be \[8,K\]"),
        (
            {"val_teachers": np.ones((4, 2), int), "val_names": np.array(["train/0"] * 4)},
            "stands there twice",
        ),
    ):
        np.savez(file, **arrays | change)
        with pytest.raises(UserError, match=words):
            npz(path=str(file))
