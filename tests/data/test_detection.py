"""Sources of images with boxes: what they read, what they cut and leave out, and what they refuse."""

import json

import numpy as np
import pytest
from PIL import Image

from mtkd_jax.data.sources.detection import coco, npz_boxes, synthetic_boxes, voc
from mtkd_jax.types import UserError

SIDE = 16


def picture(file, height=SIDE, width=SIDE):
    rng = np.random.default_rng(len(str(file)))
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(rng.integers(0, 256, (height, width), dtype=np.uint8)).save(file)


def refused(call, said, **arguments):
    with pytest.raises(UserError, match=said) as raised:
        call(**arguments)
    assert "\n" not in str(raised.value)


# --- NumPy archives -----------------------------------------------------------------------------------


def archive(tmp_path, **changed):
    """Four training images, two with boxes, and one to test on; two classes, in pixels of 32 x 32."""
    rng = np.random.default_rng(0)
    arrays = {
        "train_images": rng.integers(0, 256, (4, SIDE, SIDE, 1), dtype=np.uint8),
        "test_images": rng.integers(0, 256, (1, SIDE, SIDE, 1), dtype=np.uint8),
        "class_names": np.array(["hole", "crack"]),
        "train_boxes_img_cls_xyxy32": np.array(
            [[0, 0, 1, 1, 16, 8], [1, 1, 17, 1, 32, 32], [1, 0, 1, 17, 8, 32]]
        ),
        "test_boxes_img_cls_xyxy32": np.array([[0, 1, 1, 1, 32, 32]]),
    }
    path = tmp_path / "steel.npz"
    np.savez(path, **{name: array for name, array in (arrays | changed).items() if array is not None})
    return str(path)


def test_an_archive_gives_places_and_boxes(tmp_path):
    found = npz_boxes(path=archive(tmp_path), stride=4)
    assert found.class_names == ("background", "hole", "crack") and found.task == "boxes"
    assert found.train_labels.shape == (4, 16) and found.train_labels.dtype == np.int32
    assert found.train_goals["boxes"].shape == (4, 16, 4) and not found.notes
    # Pixels 1 to 16 of 32 are the left half: places whose middle is in the middle of it.
    own = found.train_goals["boxes"][0][found.train_labels[0] == 1]
    np.testing.assert_allclose(own, np.tile([0, 0, 0.5, 0.25], (len(own), 1)))
    assert set(found.train_labels[1]) == {0, 1, 2} and not found.train_labels[2].any()
    assert set(found.test_labels[0]) == {0, 2}


def test_what_is_cut_and_left_out_is_counted(tmp_path):
    """Of an archive: beyond the edge, and no area; two boxes of one place."""
    of_first = [[0, 0, 1, 1, 40, 8], [0, 1, 5, 5, 4, 9]]
    of_second = [[1, 1, 1, 1, 32, 32], [1, 0, 2, 2, 31, 31], [1, 0, 1, 1, 8, 8]]
    rows = [*of_first, *of_second, [2, 1, 1, 1, 9, 9]]
    path = archive(tmp_path, train_boxes_img_cls_xyxy32=np.array(rows))
    found = npz_boxes(path=path, stride=16)
    assert found.notes == (
        "1 of 7 boxes reach beyond their image and are cut at its edge; the first: "
        "train_boxes_img_cls_xyxy32, image 0.",
        "1 of 7 boxes have no area in their image and are left out; the first: "
        "train_boxes_img_cls_xyxy32, image 0.",
        "2 of 7 boxes have no place, that of their middle being the only one of another box, and are left "
        "out; the first: "
        "train_boxes_img_cls_xyxy32, image 1.",
    )


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"class_names": None}, "no array class_names"),
        ({"test_boxes_img_cls_xyxy32": np.zeros((0, 6), int)}, "no box in the test set"),
        ({"test_boxes_img_cls_xyxy32": None}, "no array test_boxes_img_cls_xyxyS"),
        ({"train_boxes_img_cls_xyxy32": np.zeros((2, 5), int)}, "must be \\[n,6\\] whole numbers"),
        (
            {"train_boxes_img_cls_xyxy32": np.array([[4, 0, 1, 1, 2, 2]])},
            "column 0 is 4..4: must lie in 0..3, of 4",
        ),
        (
            {"train_boxes_img_cls_xyxy32": np.array([[0, 2, 1, 1, 2, 2]])},
            "column 1 is 2..2: must lie in 0..1, of 2",
        ),
        ({"class_names": np.array(["hole", "background"])}, "a class is called 'background'"),
        ({"test_images": np.zeros((1, SIDE, SIDE), np.uint8)}, "test_images: shape"),
    ],
)
def test_bad_archives_are_one_line(tmp_path, changed, said):
    refused(npz_boxes, said, path=archive(tmp_path, **changed))


def test_a_stride_beyond_the_image_is_one_line(tmp_path):
    refused(npz_boxes, "stride = 17: must be 1..16 pixels", path=archive(tmp_path), stride=17)


# --- COCO ---------------------------------------------------------------------------------------------


def annotations(num=2, part="train", width=2 * SIDE, **changed):
    """As COCO writes them: boxes of left, top, width, height."""
    said = {
        "images": [
            {"id": n + 7, "file_name": f"{part}{n}.png", "height": SIDE, "width": width} for n in range(num)
        ],
        "annotations": [
            {"id": n, "image_id": n + 7, "category_id": 3 + 5 * (n % 2), "bbox": [0, 4, 16, 8], "iscrowd": 0}
            for n in range(num)
        ],
        "categories": [{"id": 3, "name": "cat"}, {"id": 8, "name": "dog"}],
    }
    return said | changed


def coco_folder(root, train=None, test=None, width=2 * SIDE):
    for part, said in (("train", train or annotations()), ("test", test or annotations(part="test"))):
        (root / part).mkdir()
        (root / part / "boxes.json").write_text(json.dumps(said))
        for image in said["images"]:
            picture(root / part / image["file_name"], SIDE, width)
    return {"path": str(root), "train": "train/boxes.json", "test": "test/boxes.json"}


def test_coco_gives_boxes_as_parts_of_the_image(tmp_path):
    found = coco(**coco_folder(tmp_path), image_size=(16, 16), stride=4)
    assert found.class_names == ("background", "cat", "dog") and found.train_images.shape == (2, 16, 16, 1)
    for row, label in enumerate((1, 2)):
        own = found.train_goals["boxes"][row][found.train_labels[row] == label]
        np.testing.assert_allclose(own, np.tile([0, 0.25, 0.5, 0.75], (len(own), 1)))
        assert len(own)
    assert found.test_names == ("test/test0.png", "test/test1.png") and found.fit == "stretch"


@pytest.mark.parametrize("size", [(0, 16), (16, -1), (16,), -16])
def test_a_size_that_is_none_is_no_fault_of_a_file(tmp_path, size):
    with pytest.raises(UserError, match=r"^image_size = .*: must be s or \(h, w\) in pixels, or 0"):
        coco(**coco_folder(tmp_path), image_size=size, stride=4)


def test_coco_may_draw_its_test_set_and_validate_on_a_file(tmp_path):
    arguments = coco_folder(tmp_path, train=annotations(num=8)) | {"test": "", "val": "test/boxes.json"}
    found = coco(**arguments, test_fraction=0.25)
    assert len(found.test_images) == 2 and len(found.train_images) == 8
    assert found.notes == ("The test set, 0.25 of the images of train/boxes.json, was drawn.",)
    assert found.val_rows.tolist() == [6, 7] and found.train_names[6] == "test/test0.png"
    again = coco(**arguments, test_fraction=0.25, seed=1)
    assert set(found.test_names) | set(found.train_names) == set(again.test_names) | set(again.train_names)


def test_crowds_are_left_out_and_told(tmp_path):
    said = annotations(num=3)
    said["annotations"][2]["iscrowd"] = 1
    found = coco(**coco_folder(tmp_path, train=said))
    assert found.notes == ("1 annotations are of crowds and are left out.",)
    assert not found.train_labels[2].any()


def test_categories_without_a_box_are_no_classes(tmp_path):
    said = annotations()
    said["categories"] = [{"id": 0, "name": "pets"}, *said["categories"]]
    found = coco(**coco_folder(tmp_path, train=said))
    assert found.class_names == ("background", "cat", "dog")
    assert found.notes == ("1 categories without a box are no classes: pets.",)
    assert set(found.train_labels[1]) <= {0, 2}


def test_a_category_without_a_box_may_share_the_name_of_another(tmp_path):
    said = annotations()
    said["categories"] = [{"id": 0, "name": "dog"}, *said["categories"]]
    found = coco(**coco_folder(tmp_path, train=said))
    assert found.class_names == ("background", "dog", "cat") and not found.notes


def test_an_image_of_two_parts_is_one_line(tmp_path):
    arguments = coco_folder(tmp_path) | {"test": "train/boxes.json"}
    refused(coco, "train0.png: is in train and in test; must be in one", **arguments)
    path = voc_folder(tmp_path / "voc")
    listed(tmp_path / "voc", train=("n0", "n1"), val=("n2",), test=("n3", "n2"))
    refused(voc, "n2.png: is in val and in test; must be in one", path=path)


def bad_coco(**changed):
    said = annotations()
    said["annotations"][1] |= changed
    return said


def twice(what, place, **changed):
    said = annotations()
    said[what][place] |= changed
    return said


def endless():
    said = annotations()
    said["images"][0]["height"] = float("inf")
    return said


@pytest.mark.parametrize(
    "train, said",
    [
        (bad_coco(category_id=4), "annotation 1: is of category 4: must be of 3, 8"),
        (bad_coco(image_id=1), "annotation 1: is of image 1, which is not listed"),
        (bad_coco(bbox=[1, 2, 3]), "must be annotations in the form of COCO"),
        (bad_coco(bbox=[1, 2, float("nan"), 4]), "is no finite number"),
        (annotations(images=[]), "lists no image"),
        (twice("images", 1, id=7), "boxes.json: image of id 7 is listed twice; must be listed once"),
        (twice("categories", 1, id=3), "boxes.json: category of id 3 is listed twice; must be"),
        (twice("categories", 1, name="cat"), "boxes.json: category called 'cat' is listed twice; must be"),
        (endless(), "must be annotations in the form of COCO"),
        ({"images": []}, "no entry 'categories'"),
        ([], "must be annotations in the form of COCO"),
        (annotations(width=SIDE), "is 16x32, and .* says 16x16"),
    ],
)
def test_bad_files_of_coco_are_one_line(tmp_path, train, said):
    arguments = coco_folder(
        tmp_path, train=train if isinstance(train, dict) and "annotations" in train else None
    )
    (tmp_path / "train" / "boxes.json").write_text(json.dumps(train))
    refused(coco, said, **arguments)


def test_files_of_coco_that_are_not_there_are_one_line(tmp_path):
    arguments = coco_folder(tmp_path)
    refused(coco, "no such folder", **(arguments | {"path": str(tmp_path / "none")}))
    refused(coco, "cannot be read", **(arguments | {"train": "train/none.json"}))
    (tmp_path / "train" / "train1.png").unlink()
    refused(coco, "train1.png: no such file", **arguments)


def test_a_class_of_the_test_set_alone_is_one_line(tmp_path):
    test = annotations(part="test", categories=[{"id": 3, "name": "cat"}, {"id": 8, "name": "dogs"}])
    refused(
        coco,
        "a box of class 'dogs': must be of cat, dog; did you mean 'dog'",
        **coco_folder(tmp_path, test=test),
    )


# --- Pascal VOC ---------------------------------------------------------------------------------------


def xml(name, *boxes, height=SIDE, width=SIDE, head=""):
    """Boxes of a class and first and last pixels (xmin, ymin, xmax, ymax)."""
    sides = ("xmin", "ymin", "xmax", "ymax")
    objects = "".join(
        f"<object><name>{label}</name><difficult>0</difficult><bndbox>"
        + "".join(f"<{side}>{at}</{side}>" for side, at in zip(sides, box))
        + "</bndbox></object>"
        for label, *box in boxes
    )
    size = f"<size><width>{width}</width><height>{height}</height><depth>1</depth></size>"
    return f"{head}<annotation><filename>{name}.png</filename>{size}{objects}</annotation>"


def voc_folder(root, **files):
    """Four images of two classes, and more by name."""
    there = {f"n{n}": xml(f"n{n}", (("hole", "crack")[n % 2], 1, 1, 8, 8)) for n in range(4)} | files
    (root / "Annotations").mkdir(parents=True)
    for name, text in there.items():
        (root / "Annotations" / f"{name}.xml").write_text(text)
        picture(root / "JPEGImages" / f"{name}.png")
    return str(root)


def listed(root, **parts):
    (root / "ImageSets" / "Main").mkdir(parents=True)
    for part, names in parts.items():
        (root / "ImageSets" / "Main" / f"{part}.txt").write_text("".join(f"{name}  1\n" for name in names))


def test_voc_counts_pixels_from_one(tmp_path):
    path = voc_folder(tmp_path)
    listed(tmp_path, train=("n1", "n0"), val=("n3",), test=("n2",))
    found = voc(path=path, stride=4)
    assert found.class_names == ("background", "crack", "hole")
    assert found.train_names == ("JPEGImages/n1.png", "JPEGImages/n0.png", "JPEGImages/n3.png")
    assert found.val_rows.tolist() == [2] and found.test_names == ("JPEGImages/n2.png",)
    own = found.train_goals["boxes"][0][found.train_labels[0] == 1]
    np.testing.assert_allclose(own, np.tile([0, 0, 0.5, 0.5], (len(own), 1)))


def test_voc_without_lists_draws_a_test_set(tmp_path):
    found = voc(path=voc_folder(tmp_path), test_fraction=0.25)
    assert len(found.train_images) == 3 and len(found.test_images) == 1
    assert found.notes == ("The test set, 0.25 of all images, was drawn.",)
    listed(tmp_path, val=("n2",))
    assert voc(path=str(tmp_path)).notes == ("The test set, 0.2 of all images but val, was drawn.",)


def test_voc_with_a_test_list_alone_trains_with_all_others(tmp_path):
    path = voc_folder(tmp_path)
    listed(tmp_path, test=("n2",))
    assert len(voc(path=path).train_images) == 3


BOMB = '<!DOCTYPE a [<!ENTITY x "boom">]>'


@pytest.mark.parametrize(
    "text, said",
    [
        (xml("bad", ("hole", 1, 1, 8, 8), head=BOMB), "it has a document type"),
        (xml("bad", ("hole", 1, 1, 8, "x")), "could not convert string to float"),
        (xml("bad", ("hole", 1, 1)), "no entry bndbox/xmax"),
        (xml("bad", ("hole", 1, 1, 8, 8), width=SIDE + 1), "says 16x17"),
        (xml("other"), "other.png: no such file"),
        ("<annotation>", "must be annotations in the form of Pascal VOC"),
    ],
)
def test_bad_files_of_voc_are_one_line(tmp_path, text, said):
    refused(voc, said, path=voc_folder(tmp_path, bad=text))


def test_unknown_classes_and_names_of_voc_are_one_line(tmp_path):
    path = voc_folder(tmp_path)
    refused(
        voc,
        "a box of class 'crack': must be of hole, cracks; did you mean",
        path=path,
        classes=("hole", "cracks"),
    )
    refused(voc, "no file \\*.xml", path=str(tmp_path / "JPEGImages"))
    listed(tmp_path, train=("n9",))
    refused(voc, "n9: no Annotations/n9.xml", path=path)


# --- made up ------------------------------------------------------------------------------------------


def test_made_up_rectangles_are_where_their_boxes_are():
    found = synthetic_boxes(num_classes=2, num_train=20, num_test=5, size=16, noise=0.0, stride=4)
    assert found.class_names == ("background", "brightness 1", "brightness 2")
    again = synthetic_boxes(num_classes=2, num_train=20, num_test=5, size=16, noise=0.0, stride=4)
    np.testing.assert_array_equal(found.train_images, again.train_images)
    for image, label, corners in zip(found.train_images, found.train_labels, found.train_goals["boxes"]):
        left, top, right, bottom = np.round(corners[label > 0] * 16).astype(int)[0]
        assert image[top:bottom, left:right].min() >= 127
    refused(synthetic_boxes, "num_train = 3: must be at least 4", num_train=3)
