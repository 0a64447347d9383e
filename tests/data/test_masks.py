"""Images with a class for every pixel: what was written is read, or one line says what is wrong."""

import numpy as np
import pytest
from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.EpsImagePlugin import EpsImageFile
from PIL.PngImagePlugin import PngImageFile

from mtkd_jax.data import loading
from mtkd_jax.data.checks import check
from mtkd_jax.data.sources.detection import npz_boxes
from mtkd_jax.data.sources.masks import masks, synthetic_masks
from mtkd_jax.types import DataSet, UserError


def archive(tmp_path, **arrays):
    images = np.arange(3 * 16, dtype=np.uint8).reshape(3, 4, 4)
    usual = {"train_images": images, "test_images": images[:2], "class_names": np.array(["dent", "crack"])}
    path = tmp_path / "some.npz"
    np.savez(path, **{name: array for name, array in {**usual, **arrays}.items() if array is not None})
    return str(path)


BOXES = np.array(  # image, class, first and last pixels (left, top, right, bottom) of 1..200
    [[0, 0, 1, 1, 100, 200], [0, 1, 51, 51, 100, 100], [1, 1, 151, 1, 260, 50], [2, 0, 60, 60, 59, 90]]
)
HALVES = np.repeat(np.arange(2, dtype=np.uint8), 8).reshape(1, 4, 4).repeat(3, axis=0)
OF_BOXES = {"train_boxes_img_cls_xyxy200": BOXES, "test_boxes_img_cls_xyxy200": BOXES[:3]}


def refused(path, **arguments):
    with pytest.raises(UserError) as caught:
        masks(path=str(path), **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_boxes_are_painted_the_smaller_in_front(tmp_path):
    found = masks(path=archive(tmp_path, **OF_BOXES))
    assert found.task == "masks" and found.class_names == ("background", "dent", "crack")
    first, second, third = found.train_labels.reshape(3, 4, 4)
    np.testing.assert_array_equal(first, [[1, 1, 0, 0], [1, 2, 0, 0], [1, 1, 0, 0], [1, 1, 0, 0]])
    np.testing.assert_array_equal(second, [[0, 0, 0, 2]] + 3 * [[0, 0, 0, 0]])  # cut off at the border
    assert not third.any()
    assert any(note.startswith("1 of 4 boxes of train_boxes") for note in found.notes)
    assert any("made from boxes" in note for note in found.notes)


def test_boxes_are_where_a_detector_finds_them(tmp_path):
    """A pixel of every image, counted from 1: the first and the last."""
    rows = np.array([[0, 0, 1, 1, 1, 1], [1, 1, 8, 8, 8, 8]])
    images = np.arange(128, dtype=np.uint8).reshape(2, 8, 8, 1)
    of_both = {f"{part}_boxes_img_cls_xyxy8": rows for part in ("train", "test")}
    path = archive(tmp_path, train_images=images, test_images=images, **of_both)
    painted = masks(path=path).train_labels
    np.testing.assert_array_equal(np.flatnonzero(painted[0]), [0])
    np.testing.assert_array_equal(np.flatnonzero(painted[1]), [63])
    np.testing.assert_array_equal(painted, npz_boxes(path=path, stride=1).train_labels)


def test_images_are_averaged_and_masks_thinned_out(tmp_path):
    labels = np.zeros((3, 4, 4), np.uint8)
    labels[:, 2:] = 1
    labels[:, 3, 3] = 255
    found = masks(path=archive(tmp_path, train_masks=labels, test_masks=labels[:2]), size=2)
    np.testing.assert_array_equal(found.train_images[0, ..., 0], [[2, 4], [10, 12]])  # 2.5, 4.5, to even
    np.testing.assert_array_equal(found.train_labels[0], [0, 0, 1, -1])


@pytest.mark.parametrize(
    "arrays, arguments, why",
    [
        ({}, {}, "no array train_masks"),
        (
            {"train_masks": np.zeros((3, 4, 5), int), "test_masks": np.zeros((2, 4, 4), int)},
            {},
            "as the images",
        ),
        (
            {**OF_BOXES, "train_boxes_img_cls_xyxy200": BOXES + 1},
            {},
            r"column 0 is 1..3: must lie in 0..2, of 3 images",
        ),
        (
            {**OF_BOXES, "train_boxes_img_cls_xyxy200": BOXES + [0, 5, 0, 0, 0, 0]},
            {},
            "column 1 is 5..6: must lie in 0..1, of 2 classes",
        ),
        ({**OF_BOXES, "train_boxes_img_cls_xyxy200": BOXES[:, :5]}, {}, r"must be \[n,6\]"),
        (
            {**OF_BOXES, "train_boxes_img_cls_xyxy200": np.full((1, 6), np.nan)},
            {},
            "float64 .* whole numbers",
        ),
        ({**OF_BOXES, "class_names": None}, {}, "no array class_names"),
        (
            {"train_masks": HALVES * 255, "test_masks": HALVES[:2] * 255, "class_names": None},
            {},
            "hold 0 and 255, which means no class; must hold two classes at least, and those of two",
        ),
        (OF_BOXES, {"size": 3}, "size must divide"),
        (OF_BOXES, {"size": -1}, "size = -1"),
    ],
)
def test_a_bad_archive_is_refused_in_one_line(tmp_path, arrays, arguments, why):
    import re

    assert re.search(why, refused(archive(tmp_path, **arrays), **arguments))


# --- folders ------------------------------------------------------------------------------------------


def folder(tmp_path, number=10, names="ground\nhole\n"):
    for kind in ("images", "masks"):
        (tmp_path / kind).mkdir()
    for n in range(number):
        mask = np.zeros((4, 6), np.uint8)
        mask[:, : 1 + n % 3] = 1
        mask[3, 5] = 255
        save(tmp_path, n, np.full((4, 6), 20 * n, np.uint8), mask)
    (tmp_path / "classes.txt").write_text(names)
    return tmp_path


def save(root, name, image, mask):
    Image.fromarray(image).save(root / "images" / f"{name}.png")
    palette = Image.fromarray(mask, "P")
    palette.putpalette(list(range(256)) * 3)
    palette.save(root / "masks" / f"{name}.png")


def test_a_folder_of_pairs_is_read(tmp_path):
    found = masks(path=str(folder(tmp_path)))
    assert found.class_names == ("ground", "hole")
    assert (len(found.train_images), len(found.test_images)) == (8, 2)
    assert found.train_images.shape[1:] == (4, 6, 1)
    for image, labels in zip(found.train_images, found.train_labels.reshape(-1, 4, 6)):
        number = image[0, 0, 0] // 20  # each with its own mask
        np.testing.assert_array_equal(labels[0], np.arange(6) < 1 + number % 3)
        assert labels[3, 5] == -1


def test_parts_are_what_the_folders_say(tmp_path):
    for part, number in (("train", 4), ("val", 2), ("test", 3)):
        (tmp_path / part).mkdir()
        folder(tmp_path / part, number)
    found = masks(path=str(tmp_path))
    assert (len(found.train_images), len(found.test_images), len(found.val_rows)) == (6, 3, 2)
    assert found.class_names == ("0", "1")


def test_a_bad_pair_is_refused_or_counted(tmp_path):
    root = folder(tmp_path)
    save(root, "small", np.zeros((4, 6), np.uint8), np.zeros((4, 4), np.uint8))
    assert "small.png: 4x4, its image 4x6: must be of one size" in refused(root)
    Image.new("L", (6, 4)).save(root / "images" / "lone.png")
    assert "lone.png: has no mask of its name" in refused(root)
    found = masks(path=str(root), skip_corrupt=True)
    assert len(found.train_images) + len(found.test_images) == 10
    assert any(note.startswith("2 of 12 images were left out") for note in found.notes)
    Image.new("RGB", (6, 4)).save(root / "masks" / "lone.png")
    (root / "images" / "small.png").unlink()
    assert "mode RGB: must be class numbers" in refused(root)


def test_a_mask_is_of_the_image_in_the_folder_of_its_own_name(tmp_path):
    """Cameras number their images alike: each has the mask below the same folder."""
    grounds = {"cam1": 0, "cam2": 1}
    for camera, ground in grounds.items():
        for kind in ("images", "masks"):
            (tmp_path / kind / camera).mkdir(parents=True)
        for n in range(4):
            mask = np.full((4, 6), ground, np.uint8)
            mask[0, 0] = 1 - ground  # both classes in every image
            save(tmp_path, f"{camera}/{n}", np.full((4, 6), 200 * ground, np.uint8), mask)
    found = masks(path=str(tmp_path))
    for images, labels in ((found.train_images, found.train_labels), (found.test_images, found.test_labels)):
        np.testing.assert_array_equal(
            images[:, 2, 2, 0] > 100, labels.reshape(len(images), 4, 6)[:, 2, 2] == 1
        )
    Image.new("L", (6, 4)).save(tmp_path / "images" / "cam1" / "0.jpg")
    assert "cam1/0.png: 0.jpg has the same name; must differ" in refused(tmp_path)


@pytest.mark.parametrize(
    "suffix, why",
    [("EPS", "must be one of PNG"), ("BMP", "must be one of PNG"), ("PNG", "4x9000, its image")],
)
def test_a_mask_is_a_png_of_the_size_of_its_image_before_it_is_decoded(tmp_path, monkeypatch, suffix, why):
    root = folder(tmp_path)
    wide = Image.new("L", (9000, 4) if suffix == "PNG" else (6, 4))
    wide.save(root / "masks" / "0.png", format=suffix)

    def load(image, *_):
        assert "masks" not in image.filename, "a pixel was decoded"
        return of_png(image)

    of_png = PngImageFile.load
    for plugin in (PngImageFile, BmpImageFile, EpsImageFile):
        monkeypatch.setattr(plugin, "load", load)
    assert why in refused(root)


def test_a_mask_of_too_many_pixels_is_left_out(tmp_path, monkeypatch):
    root = folder(tmp_path)
    save(root, "large", np.zeros((4, 6), np.uint8), np.zeros((9, 9), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 40)
    assert "large.png: more than" in refused(root)
    assert any(note.startswith("1 of 11") for note in masks(path=str(root), skip_corrupt=True).notes)


def test_a_mask_without_a_class_and_one_without_an_image_are_told(tmp_path):
    root = folder(tmp_path)
    save(root, "odd", np.zeros((4, 6), np.uint8), np.full((4, 6), 255, np.uint8))
    assert "masks/odd.png: no pixel of a class is there, 255 being none; must have one" in refused(root)
    (root / "images" / "0.png").unlink()
    (root / "masks" / "._1.png").write_bytes(b"")
    lone, left_out, *_ = masks(path=str(root), skip_corrupt=True).notes
    assert lone == "1 masks have no image of their name and were not read, such as masks/0.png."
    assert left_out.startswith("1 of 10 images were left out, the first: ")


def test_names_of_classes_are_utf_8(tmp_path):
    root = folder(tmp_path)
    (root / "classes.txt").write_text("ground\nhöle\n", encoding="utf-8-sig")
    assert masks(path=str(root)).class_names == ("ground", "höle")
    (root / "classes.txt").write_text("ground\nhöle\n", encoding="latin-1")
    assert "classes.txt: cannot be read" in refused(root)


def test_masks_of_255_for_a_class_are_explained(tmp_path):
    root = folder(tmp_path)
    for file in (root / "masks").glob("*.png"):
        Image.fromarray((np.asarray(Image.open(file)) == 1) * np.uint8(255)).save(file)
    assert "hold 0 and 255, which means no class" in refused(root)


def test_a_bad_folder_is_refused_in_one_line(tmp_path):
    assert "no folder images" in refused(tmp_path)
    root = folder(tmp_path, names="ground\n")
    assert "classes.txt: names 1 classes, and masks hold 1" in refused(root)
    assert "no such file" in refused(tmp_path / "nowhere")


# --- what holds for all labels of places ----------------------------------------------------------------


def dense(**fields):
    images = np.arange(6 * 4, dtype=np.uint8).reshape(6, 2, 2, 1)
    labels = np.tile([[0, 1, -1, 2], [0, 0, 1, 1], [2, 0, 0, 0]], (2, 1))
    usual = dict(train_images=images, train_labels=labels, test_images=images, test_labels=labels)
    return DataSet(**{"name": "dense", "class_names": ("a", "b", "c"), "task": "masks", **usual, **fields})


@pytest.mark.parametrize(
    "fields, why",
    [
        ({"task": "classes"}, r"train_labels: shape \(6, 4\): must be \[N\]"),
        ({"train_labels": np.zeros(6, int)}, r"train_labels: shape \(6,\): must be \[N,L\]"),
        ({"test_labels": np.zeros((6, 3), int)}, "must have as many places as train_labels"),
        ({"train_labels": np.full((6, 4), -2)}, r"labels -2..-2: must lie in -1..C-1"),
        ({"test_labels": np.full((6, 4), -1)}, "6 examples have no place at all"),
        ({"train_labels": np.zeros((6, 4), int)}, "2 of 3 classes without an example"),
        ({"train_goals": {"boxes": np.zeros((6, 4, 4))}}, "test_goals: .*as in train"),
        (
            {"train_goals": {"boxes": np.zeros((6, 3, 4))}, "test_goals": {"boxes": np.zeros((6, 4, 4))}},
            "boxes: ",
        ),
    ],
)
def test_labels_of_places_that_cannot_be_are_refused(fields, why):
    with pytest.raises(UserError, match=why):
        check(dense(**fields), "here")


def test_goals_are_float32_and_finite_where_there_is_a_place():
    goals = np.ones((6, 4, 2))
    goals[0, 2] = np.nan  # no place there
    found = check(dense(train_goals={"boxes": goals}, test_goals={"boxes": goals}), "here")
    assert found.train_goals["boxes"].dtype == np.float32 and np.isfinite(found.train_goals["boxes"]).all()
    goals[0, 0] = np.inf
    with pytest.raises(UserError, match="must be finite wherever there is a place"):
        check(dense(train_goals={"boxes": goals}, test_goals={"boxes": goals}), "here")


def test_an_example_is_counted_by_its_rarest_class():
    labels = np.array([[0, 0, 1, -1], [0, 2, 1, 1], [0, 0, 0, 0], [-1, -1, -1, -1], [1, 1, 0, 0]])
    np.testing.assert_array_equal(loading.strata(labels), [1, 2, 0, 0, 1])
    np.testing.assert_array_equal(loading.strata(labels[:, 0]), labels[:, 0])


def test_a_split_holds_every_class_of_pixels_and_hides_other_labels():
    data = synthetic_masks(num_classes=4, num_train=40, size=8)
    split = loading.split(data, num_train=20, val_fraction=0.2, seed=0)
    for rows in (split.train, split.val):
        assert loading.held(data.train_labels, rows) == {0, 1, 2, 3}
    examples = loading.examples(split, weighted=True)
    hidden = np.setdiff1d(np.arange(40), split.train)
    label, weight = np.asarray(examples.label), np.asarray(examples.weight)
    np.testing.assert_array_equal(label[split.train], data.train_labels[split.train])
    assert set(np.unique(label[hidden])) == {-1, 0} and not weight[hidden].any()
    np.testing.assert_array_equal(label < 0, data.train_labels < 0)
    own = data.train_labels[split.train]
    sums = [weight[split.train][own == c].sum() for c in range(4)]
    np.testing.assert_allclose(sums, (own >= 0).sum() / 4, rtol=1e-5)
    np.testing.assert_array_equal(weight[split.train][own < 0], 0)


def test_training_examples_that_hold_no_place_of_a_class_are_refused():
    """Class 1 is in a quarter of the examples that count as class 2: one of these need not hold it."""
    kinds = np.array([[0, 0, 0, 0, 0, 0], [2, 0, 0, 0, 0, 0], [2, 1, 1, 1, 1, 1]])
    labels = kinds[np.repeat([0, 1, 2], (20, 18, 6))]
    images = np.zeros((44, 2, 3, 1), np.uint8)
    fields = {"train_images": images, "train_labels": labels, "val_rows": np.array([0, 20, 38])}
    data, refused = dense(**fields), 0
    for seed in range(8):
        try:
            split = loading.split(data, num_train=3, val_fraction=0.2, seed=seed)
        except UserError as error:
            refused += 1
            assert str(error) == "config.data.num_train = 3: holds no example of class 1 (b); must be larger"
        else:
            assert loading.held(labels, split.train) == {0, 1, 2}
    assert 0 < refused < 8
    assert len(loading.split(data, num_train=0, val_fraction=0.2, seed=0).train) == 41
