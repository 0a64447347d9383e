"""Files of what teachers say: every row is found, and what cannot be meant is refused in one line."""

import dataclasses
import pickle

import numpy as np
import pytest

from mtkd_jax.data import logit_files
from mtkd_jax.types import DataSet, UserError

NAMES = ("cat", "dog", "emu")
RNG = np.random.default_rng(0)
TRAIN, TEST = RNG.normal(size=(2, 6, 3)).astype(np.float32), RNG.normal(size=(2, 4, 3)).astype(np.float32)


def data(**fields):
    blank = np.zeros((6, 2, 2, 1), np.uint8)
    labels = np.arange(6, dtype=np.int32) % 3
    return DataSet("three", blank, labels, blank[:4], labels[:4], NAMES, **fields)


NAMED = data(
    train_names=tuple(f"train/{NAMES[n % 3]}/{n}.png" for n in range(6)),
    test_names=tuple(f"test/{NAMES[n % 3]}/{n}.png" for n in range(4)),
)


def file(tmp_path, **arrays):
    """A file of two teachers, with arrays put in the place of others; None leaves one out."""
    arrays = {"train_logits": TRAIN, "test_logits": TEST, "class_names": np.array(NAMES)} | arrays
    np.savez(tmp_path / "t.npz", **{name: array for name, array in arrays.items() if array is not None})
    return tmp_path / "t.npz"


def refused(tmp_path, dataset=None, **arrays):
    with pytest.raises(UserError) as error:
        logit_files.read(file(tmp_path, **arrays), data() if dataset is None else dataset)
    message = str(error.value)
    assert message.startswith(f"{tmp_path / 't.npz'}: ") and "\n" not in message
    return message


def test_a_cube_and_a_matrix_are_read_as_they_are(tmp_path):
    found = logit_files.read(file(tmp_path), data())
    np.testing.assert_array_equal(found.train, TRAIN)
    np.testing.assert_array_equal(found.test, TEST)
    assert found.notes == () and found.train.dtype == np.float32
    one = logit_files.read(file(tmp_path, train_logits=TRAIN[0].astype(float), test_logits=TEST[0]), data())
    np.testing.assert_array_equal(one.train, TRAIN[:1])


def test_classes_in_another_order_are_put_into_the_datas_and_that_is_said(tmp_path):
    order = [2, 0, 1]
    turned = {"train_logits": TRAIN[..., order], "test_logits": TEST[..., order]}
    found = logit_files.read(file(tmp_path, class_names=np.array(NAMES)[order], **turned), data())
    np.testing.assert_array_equal(found.train, TRAIN)
    np.testing.assert_array_equal(found.test, TEST)
    (note,) = found.notes
    assert "another order" in note


def test_probabilities_become_logarithms_and_that_is_said(tmp_path):
    probs = np.exp(TRAIN) / np.exp(TRAIN).sum(-1, keepdims=True)
    probs[0, 0] = [0.0, 0.25, 0.75]
    of_test = np.exp(TEST) / np.exp(TEST).sum(-1, keepdims=True)
    logits = TRAIN[1], TEST[1]
    probs[1], of_test[1] = logits  # the other teacher's are logits, and stay
    found = logit_files.read(file(tmp_path, train_logits=probs, test_logits=of_test), data())
    np.testing.assert_allclose(np.exp(found.train[0, 1:]), probs[0, 1:], rtol=1e-5)
    np.testing.assert_allclose(found.train[0, 0], np.log([1e-7, 0.25, 0.75]), rtol=1e-5)
    np.testing.assert_array_equal(found.train[1], TRAIN[1])
    (note,) = found.notes
    assert "teacher 0" in note and "1e-07" in note
    message = refused(tmp_path, train_logits=probs)
    assert "probabilities for the train images and none for the test images" in message


def test_what_the_publisher_set_aside_may_stand_in_an_array_of_its_own(tmp_path):
    dataset = data(val_rows=np.array([1, 4], np.int32))
    rest = TRAIN[:, [0, 2, 3, 5]]
    found = logit_files.read(file(tmp_path, train_logits=rest, val_logits=TRAIN[:, [1, 4]]), dataset)
    np.testing.assert_array_equal(found.train, TRAIN)
    np.testing.assert_array_equal(logit_files.read(file(tmp_path), dataset).train, TRAIN)
    assert "beside the val_logits of 2" in refused(tmp_path, dataset, train_logits=rest)
    assert "must be of 2" in refused(tmp_path, dataset, train_logits=rest, val_logits=TRAIN[:, :3])
    assert "sets no images aside" in refused(tmp_path, val_logits=TRAIN[:, :1])


@pytest.mark.parametrize(
    "spelt", [str, lambda name: f"../data/three/{name}", lambda name: f"three\\{name}".replace("/", "\\")]
)
def test_rows_are_found_by_names_in_any_order_and_whatever_stands_before_them(spelt, tmp_path):
    order = RNG.permutation(10)
    names = np.array([spelt(name) for name in (*NAMED.train_names, *NAMED.test_names)])[order]
    logits = np.concatenate([TRAIN, TEST], axis=1)[:, order]
    path = file(tmp_path, train_logits=None, test_logits=None, logits=logits, names=names)
    found = logit_files.read(path, NAMED)
    np.testing.assert_array_equal(found.train, TRAIN)
    np.testing.assert_array_equal(found.test, TEST)


def test_bare_names_do_where_they_tell_the_images_apart(tmp_path):
    arrays = {"train_names": np.array([f"{n}.png" for n in range(6)])[::-1], "train_logits": TRAIN[:, ::-1]}
    np.testing.assert_array_equal(logit_files.read(file(tmp_path, **arrays), NAMED).train, TRAIN)
    alike = dataclasses.replace(NAMED, train_names=tuple(f"{n}/0.png" for n in range(6)))
    assert "may be 0/0.png or 1/0.png" in refused(
        tmp_path, alike, **arrays | {"train_names": np.array(["0.png"] * 6)}
    )


def test_names_that_do_not_fit_are_refused(tmp_path):
    names = np.array(NAMED.train_names)
    assert "train/emu/5.png: no name is like it" in refused(
        tmp_path, NAMED, train_names=np.array([*names[:5], "train/emu/7.png"])
    )
    twice = np.array([*names[:5], f"x/{names[0]}"])
    assert "x/train" not in refused(
        tmp_path, NAMED, train_names=twice
    )  # an equal one goes first; 5 is missing
    both = np.array([*(f"a/{name}" for name in names[:5]), f"b/{names[0]}"])
    assert "2 names end in it" in refused(tmp_path, NAMED, train_names=both)
    assert "a name for every row" in refused(tmp_path, NAMED, train_names=names[:5])
    assert "the data does not" in refused(tmp_path, train_names=names)
    assert "logits have no names" in refused(tmp_path, NAMED, logits=TRAIN)


NAN = TRAIN.copy()
NAN[1, 3, 0] = np.nan


@pytest.mark.parametrize(
    "arrays, words",
    [
        ({"train_logits": None}, "no array train_logits, but class_names, test_logits"),
        ({"test_logits": None}, "no array test_logits"),
        ({"class_names": None}, "no array class_names"),
        ({"class_names": np.array(["cat", "dog", "elk"])}, "no class 'elk'"),
        ({"class_names": np.array(["cat", "dog"])}, "must be cat, dog, emu"),
        ({"class_names": np.arange(3)}, "class_names: int64 (3,)"),
        ({"train_logits": TRAIN[:, :5]}, "of 5 images; must be of the 6 train images"),
        ({"train_logits": TRAIN[..., :2]}, "train_logits: float32 (2, 6, 2)"),
        ({"train_logits": TRAIN[:1]}, "as many teachers"),
        ({"train_logits": TRAIN[:0], "test_logits": TEST[:0]}, "is of no teacher"),
        ({"train_logits": TRAIN.astype(str)}, "must be numbers"),
        ({"train_logits": NAN}, "of 1 of 6 train images hold NaN"),
        ({"test_logits": np.full(TEST.shape, 1e300)}, "of 4 of 4 test images hold NaN or infinite"),
        ({"train_logits": np.array([None, {}])}, "cannot read train_logits"),
    ],
)
def test_arrays_that_cannot_be_meant_are_refused_in_a_line(arrays, words, tmp_path):
    assert words in refused(tmp_path, **arrays)


@pytest.mark.parametrize("kind", ["text", "pickle", "npy", "cut", "flipped", "missing"])
def test_files_that_are_none_are_refused_in_a_line(kind, tmp_path):
    path = file(tmp_path)
    whole = path.read_bytes()
    middle = whole.index(TRAIN.tobytes()) + 5
    content = {
        "text": b"0.1,0.2\n",
        "pickle": pickle.dumps([1, 2]),
        "npy": b"\x93NUMPY\x01\x00v\x00",
        "cut": whole[:middle],
        "flipped": whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :],
    }
    path.unlink() if kind == "missing" else path.write_bytes(content[kind])
    with pytest.raises(UserError, match=r"t\.npz: (cannot read|no such file)"):
        logit_files.read(path, data())


def test_what_is_written_is_read(tmp_path):
    logit_files.write(tmp_path / "w.npz", {"train_logits": TRAIN, "test_logits": TEST}, NAMES)
    found = logit_files.read(tmp_path / "w.npz", data())
    np.testing.assert_array_equal(found.train, TRAIN)
