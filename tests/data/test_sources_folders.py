"""Folders and tables of image files give the data that their arrays would, or one line that names a file."""

from __future__ import annotations

import csv as tables
import os
import shutil

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from mtkd_jax.config import default, source_call
from mtkd_jax.data import images as image_files
from mtkd_jax.data import streams
from mtkd_jax.data.sources.arrays import npz
from mtkd_jax.data.sources.folders import csv, folder
from mtkd_jax.data.streams import OneByOne
from mtkd_jax.types import UserError

CLASSES = ("bee", "cat", "dog")


def pixels(number, size=(6, 5), channels=3):
    shape = size if channels == 1 else (*size, channels)
    return np.random.default_rng(number).integers(0, 256, shape, dtype=np.uint8)


def put(root, path, number, **form):
    file = root / path
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels(number, **form)).save(file)


def flat(root, num=10, **form):
    """Classes of `num` images each, numbered through."""
    for label, name in enumerate(CLASSES):
        for n in range(num):
            put(root, f"{name}/{n:02d}.png", label * num + n, **form)
    return root


def split_up(root, parts=("train", "test"), num=2):
    """{part: numbers of its images in the order of their paths}."""
    numbers = {}
    for p, part in enumerate(parts):
        numbers[part] = [100 * p + n for n in range(num * len(CLASSES))]
        for n in numbers[part]:
            put(root, f"{part}/{CLASSES[n % 100 // num]}/{n:03d}.png", n)
    return numbers


def table(file, rows, columns=("path", "label"), delimiter=","):
    with open(file, "w", encoding="utf-8", newline="") as stream:
        writer = tables.writer(stream, delimiter=delimiter)
        writer.writerow(columns)
        writer.writerows(rows)
    return str(file)


def refused(source, path, **arguments):
    with pytest.raises(UserError) as caught:
        source(path=str(path), **arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def same(one, other):
    """Whether two data sets hold the same; images that are streamed are read."""
    for name in ("train_images", "train_labels", "test_images", "test_labels"):
        np.testing.assert_array_equal(getattr(one, name)[:], getattr(other, name)[:])
        assert getattr(one, name).dtype == getattr(other, name).dtype
    for name in ("train_groups", "test_groups", "val_rows"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert one.class_names == other.class_names


DRAWN = "The test set, 0.2 of all examples, was drawn."


# --- what is read -------------------------------------------------------------------------------------


def test_a_folder_is_the_archive_of_its_images(tmp_path):
    numbers = split_up(tmp_path / "set", parts=("train", "validation", "test"))
    labels = np.arange(6) // 2
    arrays = {"class_names": np.array(CLASSES)}
    for part, name in (("train", "train"), ("validation", "val"), ("test", "test")):
        arrays[f"{name}_images"] = np.stack([pixels(n) for n in numbers[part]])
        arrays[f"{name}_labels"] = labels
    np.savez(tmp_path / "set.npz", **arrays)
    dataset = folder(path=str(tmp_path / "set"))
    same(dataset, npz(path=str(tmp_path / "set.npz")))
    np.testing.assert_array_equal(dataset.val_rows, np.arange(6, 12))
    assert (dataset.name, dataset.notes) == ("set", ())


def test_streamed_images_are_those_held_in_memory(tmp_path, monkeypatch):
    flat(tmp_path, num=5)
    held, streamed = (folder(path=str(tmp_path), stream=stream) for stream in ("never", "always"))
    assert isinstance(held.train_images, np.ndarray) and isinstance(held.test_images, np.ndarray)
    assert isinstance(streamed.train_images, OneByOne) and isinstance(streamed.test_images, OneByOne)
    same(held, streamed)
    identities = [streamed.train_images.identity()]
    for number in (0, 77):  # the same pixels, then others
        put(tmp_path, "bee/00.png", number)
        again = folder(path=str(tmp_path), stream="always")
        identities.append(again.train_images.identity() + again.test_images.identity())
    identities[0] += streamed.test_images.identity()
    assert identities[0] == identities[1] != identities[2]
    put(tmp_path, "bee/00.png", 0)
    num_bytes = 15 * 6 * 5 * 3
    for limit, kind in ((num_bytes, np.ndarray), (num_bytes - 1, OneByOne)):
        monkeypatch.setattr(streams, "MOST_HELD", limit)
        assert isinstance(folder(path=str(tmp_path)).train_images, kind)


def test_without_splits_a_stratified_test_set_is_drawn_that_only_the_seed_decides(tmp_path):
    flat(tmp_path)
    first, again, other = (folder(path=str(tmp_path), seed=seed) for seed in (0, 0, 1))
    same(first, again)
    np.testing.assert_array_equal(np.bincount(first.test_labels), [2, 2, 2])
    assert (first.test_images != other.test_images).any()
    images = np.concatenate([first.train_images, first.test_images])
    labels = np.concatenate([first.train_labels, first.test_labels])
    got = sorted((label, image.tobytes()) for label, image in zip(labels.tolist(), images))
    assert got == sorted((n // 10, pixels(n).tobytes()) for n in range(30))
    assert len(folder(path=str(tmp_path), test_fraction=0.5).test_labels) == 15


def test_images_are_in_the_order_of_their_paths(tmp_path):
    for path, number in (("cat/b/0.png", 3), ("cat/b.png", 2), ("cat/a.PNG", 1), ("bee/z.jpg.png", 0)):
        put(tmp_path / "train", path, number)
    for name in ("bee", "cat"):
        put(tmp_path / "test", f"{name}/0.png", 9)
    dataset = folder(path=str(tmp_path))
    np.testing.assert_array_equal(dataset.train_images, np.stack([pixels(n) for n in range(4)]))
    np.testing.assert_array_equal(dataset.train_labels, [0, 1, 1, 1])


def test_hidden_files_and_other_files_are_not_looked_at(tmp_path):
    want = folder(path=str(flat(tmp_path)))
    for path in ("bee/.00.png", ".git/cat.png", "bee/.thumbs/0.png", ".hidden.png"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_bytes(b"no image")
    for path in ("README.md", "bee/labels.csv", "bee/png"):
        (tmp_path / path).write_text("no image")
    same(folder(path=str(tmp_path)), want)


def test_images_are_brought_to_one_size_and_one_kind(tmp_path):
    flat(tmp_path)
    put(tmp_path, "bee/00.png", 0, size=(9, 12), channels=1)
    message = refused(folder, tmp_path)
    assert message.startswith(f"{tmp_path}: images of 2 sizes, such as bee/00.png of 9 x 12 and ")
    assert message.endswith(" of 6 x 5: must share one, or be brought to image_size=(h, w)")
    for fit in ("crop", "pad", "stretch"):
        dataset = folder(path=str(tmp_path), image_size=(4, 3), channels=1, fit=fit, test_fraction=0.1)
        files = sorted(tmp_path.rglob("*.png"))
        want = {image_files.read(file, shape=(4, 3, 1), fit=fit).tobytes() for file in files}
        both = np.concatenate([dataset.train_images, dataset.test_images])
        assert {image.tobytes() for image in both} == want
    assert folder(path=str(tmp_path), image_size=4).train_images.shape[1:] == (4, 4, 3)


def test_grey_images_stay_grey(tmp_path):
    flat(tmp_path, channels=1)
    assert folder(path=str(tmp_path)).train_images.shape[1:] == (6, 5, 1)
    assert folder(path=str(tmp_path), channels=3).train_images.shape[1:] == (6, 5, 3)
    put(tmp_path, "bee/00.png", 0)
    assert folder(path=str(tmp_path)).train_images.shape[1:] == (6, 5, 3)


def test_a_table_is_the_folder_of_its_files(tmp_path):
    split_up(tmp_path, parts=("train", "val", "test"))
    rows = []
    for file in sorted(tmp_path.rglob("*.png"))[::-1]:
        part, label, name = file.relative_to(tmp_path).parts
        rows.append((name, f"{part}/{label}/{name}", label, part.upper()))
    columns = ("remark", "path", "label", "split")
    want = folder(path=str(tmp_path))
    dataset = csv(path=table(tmp_path / "list.csv", rows, columns))
    same(dataset, want)
    assert dataset.name == "list"
    same(csv(path=table(tmp_path / "list.tsv", rows, columns, delimiter="\t")), want)
    same(csv(path=str(tmp_path / "list.csv"), stream="always"), want)


def test_a_table_without_splits_is_cut_like_a_folder(tmp_path):
    flat(tmp_path)
    rows = [(f"./{name}//{n:02d}.png", name) for n in range(10) for name in CLASSES]
    same(
        csv(path=table(tmp_path / "list.csv", rows), seed=3, test_fraction=0.3),
        folder(path=str(tmp_path), seed=3, test_fraction=0.3),
    )


def test_the_configuration_names_them(tmp_path):
    flat(tmp_path)
    config = default()
    config.data.source, config.data.path = "folder(image_size=(4, 4), channels=1)", str(tmp_path)
    assert source_call(config)().train_images.shape == (24, 4, 4, 1)
    config.data.source = "csv(image_size=3)"
    config.data.path = table(
        tmp_path / "list.csv", [(f"{c}/{n:02d}.png", c) for c in CLASSES for n in range(5)]
    )
    assert source_call(config)().train_images.shape == (12, 3, 3, 3)


# --- groups -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grouped_root(tmp_path_factory):
    return flat(tmp_path_factory.mktemp("grouped"), num=12, size=(2, 2), channels=1)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    groups=st.lists(st.integers(0, 9), min_size=36, max_size=36),
    seed=st.integers(0, 5),
    test_fraction=st.sampled_from([0.1, 0.2, 0.5]),
)
def test_a_test_set_that_is_drawn_shares_no_group_with_training(grouped_root, groups, seed, test_fraction):
    num_parts = round(1 / test_fraction)
    paths = [f"{name}/{n:02d}.png" for name in CLASSES for n in range(12)]
    names = [f"camera {group}" for group in groups]
    listed = table(
        grouped_root / "groups.csv", zip(paths, names, paths), columns=("path", "group", "further")
    )
    try:
        dataset = folder(path=str(grouped_root), groups="groups.csv", seed=seed, test_fraction=test_fraction)
    except UserError as error:
        assert "no test set can be drawn (" in str(error)
        # A group that holds all of a class must stay in training: no part can be drawn if each has one.
        alone = {
            theirs.pop() for theirs in (set(groups[n : n + 12]) for n in (0, 12, 24)) if len(theirs) == 1
        }
        assert len(set(groups)) < num_parts or len(alone) >= num_parts
        return
    assert len(set(groups)) >= num_parts
    assert not set(dataset.train_groups.tolist()) & set(dataset.test_groups.tolist())
    of_image = {pixels(n, size=(2, 2), channels=1).tobytes(): group for n, group in enumerate(groups)}
    number = {name: n for n, name in enumerate(sorted(set(names)))}
    for part in ("train", "test"):
        images = getattr(dataset, f"{part}_images")
        want = [number[f"camera {of_image[image.tobytes()]}"] for image in images]
        np.testing.assert_array_equal(getattr(dataset, f"{part}_groups"), want)
    table(
        listed.replace("groups", "table"),
        zip(paths, names, [p[:3] for p in paths]),
        ("path", "group", "label"),
    )
    same(csv(path=str(grouped_root / "table.csv"), seed=seed, test_fraction=test_fraction), dataset)


def test_groups_of_published_splits_are_told(tmp_path):
    split_up(tmp_path)
    rows = [
        (file.relative_to(tmp_path).as_posix(), "left" if "train" in str(file) else "right")
        for file in tmp_path.rglob("*.png")
    ]
    table(tmp_path / "groups.tsv", rows, ("path", "group"), delimiter="\t")
    dataset = folder(path=str(tmp_path), groups="groups.tsv")
    np.testing.assert_array_equal(dataset.train_groups, np.zeros(6))
    np.testing.assert_array_equal(dataset.test_groups, np.ones(6))


def test_group_tables_that_do_not_fit(tmp_path):
    flat(tmp_path, num=2)
    rows = [(f"{name}/{n:02d}.png", "one") for name in CLASSES for n in range(2)]
    table(tmp_path / "g.csv", rows[1:], ("path", "group"))
    message = refused(folder, tmp_path, groups="g.csv")
    assert message == f"{tmp_path / 'g.csv'}: has no line for bee/00.png; must give every image a group"
    table(tmp_path / "g.csv", rows, ("path", "camera"))
    assert "g.csv: has no column group, but path, camera; the first line" in refused(
        folder, tmp_path, groups="g.csv"
    )
    table(tmp_path / "g.csv", rows, ("path", "group"))
    message = refused(folder, tmp_path, groups="g.csv")
    assert message.startswith(f"{tmp_path}: test_fraction = 0.2: no test set can be drawn (")
    assert "none.csv: cannot be read (" in refused(folder, tmp_path, groups="none.csv")
    assert "leads out of this folder" in refused(folder, tmp_path, groups="../g.csv")


# --- corrupt files ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", ["never", "always"])
@pytest.mark.parametrize("image_size", [0, 4])
@pytest.mark.parametrize("harm", ["text", "truncated"])
def test_a_corrupt_file_ends_the_run_or_is_left_out_and_noted(tmp_path, harm, image_size, stream):
    numbers = split_up(tmp_path, num=3)
    arguments = {"image_size": image_size, "channels": image_size and 3, "stream": stream}
    whole = folder(path=str(tmp_path), **arguments | {"stream": "never"})
    for file in (
        tmp_path / "train/cat/004.png",
        tmp_path / "train/dog/007.png",
        tmp_path / "test/bee/101.png",
    ):
        content = file.read_bytes()
        file.write_bytes(b"text" if harm == "text" else content[: len(content) // 2])
    message = refused(folder, tmp_path, **arguments)
    first = ("train/cat/004.png", "test/bee/101.png")  # in what is read first
    assert message.startswith(tuple(f"{tmp_path / path}: " for path in first))
    assert message.endswith("; skip_corrupt=True leaves such files out")
    dataset = folder(path=str(tmp_path), skip_corrupt=True, **arguments)
    kept = [n for n in numbers["train"] if n not in (4, 7)]
    np.testing.assert_array_equal(dataset.train_images[:], whole.train_images[kept])
    np.testing.assert_array_equal(dataset.train_labels, whole.train_labels[kept])
    np.testing.assert_array_equal(dataset.test_images[:], whole.test_images[[0, 2, 3, 4, 5, 6, 7, 8]])
    [note] = dataset.notes
    assert note.startswith(f"3 of 18 images were left out, the first: {tmp_path / 'train/cat/004.png'}: ")


def test_rows_to_validate_on_move_up_when_a_file_is_left_out(tmp_path):
    split_up(tmp_path, parts=("train", "val", "test"))
    (tmp_path / "train/bee/000.png").write_bytes(b"text")
    dataset = folder(path=str(tmp_path), skip_corrupt=True)
    np.testing.assert_array_equal(dataset.val_rows, np.arange(5, 11))


def test_a_class_or_a_set_without_a_sound_image(tmp_path):
    split_up(tmp_path, num=1)
    for file in (tmp_path / "train/cat").iterdir():
        file.write_bytes(b"text")
    message = refused(folder, tmp_path, skip_corrupt=True)
    assert "1 of 3 classes without an example, the first is class 1 (cat)" in message
    for file in tmp_path.rglob("*.png"):
        file.write_bytes(b"text")
    message = refused(folder, tmp_path, skip_corrupt=True)
    assert message.startswith(f"{tmp_path}: none of 6 images can be read, the first: ")
    message = refused(folder, tmp_path, skip_corrupt=True, image_size=3, channels=1)
    assert message.startswith(f"{tmp_path}: train_images: is empty")


# --- what is refused ----------------------------------------------------------------------------------


def test_folders_that_are_no_data_set(tmp_path):
    for path in ("", tmp_path / "none", __file__):
        assert refused(folder, path).startswith(f"data.path = {str(path)!r}: no such folder; must hold a ")
    assert (
        refused(folder, tmp_path)
        == f"{tmp_path}: holds no folder; must hold a folder of images for every class"
    )
    flat(tmp_path, num=3)
    (tmp_path / "ant").mkdir()
    assert refused(folder, tmp_path).startswith(
        f"{tmp_path / 'ant'}: holds no image; must hold files that end"
    )
    (tmp_path / "ant/notes.txt").write_text("none yet")
    assert refused(folder, tmp_path).startswith(f"{tmp_path / 'ant'}: holds no image but 1 .txt; must hold")
    shutil.rmtree(tmp_path / "ant")
    put(tmp_path, "train/bee/0.png", 0)
    message = refused(folder, tmp_path)
    assert message.startswith(
        f"{tmp_path}: holds the folders train and bee: must hold splits (train, val, test)"
    )


def test_splits_that_do_not_belong_together(tmp_path):
    split_up(tmp_path, parts=("train", "val", "test"))
    shutil.rmtree(tmp_path / "val/dog")
    message = refused(folder, tmp_path)
    assert message == f"{tmp_path}: class dog is in train and not in val; must be in every split"
    shutil.rmtree(tmp_path / "val")
    put(tmp_path, "test/emu/0.png", 0)
    message = refused(folder, tmp_path)
    assert message == f"{tmp_path}: class emu is in test and not in train; must be in every split"
    shutil.rmtree(tmp_path / "test")
    message = refused(folder, tmp_path)
    assert message == f"{tmp_path}: has no split test; say test_from='train' to draw one from train"
    shutil.rmtree(tmp_path / "train")
    split_up(tmp_path, parts=("test",))
    assert refused(folder, tmp_path) == f"{tmp_path}: has splits, but none is train; must have train and test"


@pytest.mark.parametrize("names", [("train", "test"), ("Training", "Testing"), ("TRAIN", "testset")])
def test_splits_are_known_by_many_words(tmp_path, names):
    split_up(tmp_path, parts=names)
    found = folder(path=str(tmp_path))
    assert found.class_names == CLASSES and (len(found.train_labels), len(found.test_labels)) == (6, 6)


def test_splits_inside_of_every_class(tmp_path):
    for name in CLASSES:
        for part, num in (("train", 3), ("valid", 1), ("Test", 2)):
            for n in range(num):
                put(tmp_path, f"{name}/{part}/{n}.png", n)
    found = folder(path=str(tmp_path))
    assert found.class_names == CLASSES
    assert (len(found.train_labels), len(found.test_labels), len(found.val_rows)) == (12, 6, 3)


@pytest.mark.parametrize("names", [("fold1", "fold2"), ("trian", "other")])
def test_folders_that_hold_the_same_folders_are_no_classes(tmp_path, names):
    split_up(tmp_path, parts=names)
    message = refused(folder, tmp_path)
    assert message.startswith(
        f"{tmp_path}: the folders {min(names)} and {max(names)} hold the same folders (bee"
    )
    assert "splits must be called train, val and test" in message
    assert ("did you mean" in message) == (max(names) == "trian")


def test_a_misspelt_split_beside_a_known_one_is_named(tmp_path):
    split_up(tmp_path, parts=("train", "tset"))
    assert "not both (did you mean test by tset?)" in refused(folder, tmp_path)


def test_train_and_val_as_imagenet_has_them(tmp_path):
    numbers = split_up(tmp_path, parts=("train", "val"), num=5)
    either = "say test_from='val' to test on val, or test_from='train' to draw one from train"
    assert refused(folder, tmp_path) == f"{tmp_path}: has no split test; {either}"
    on_val = folder(path=str(tmp_path), test_from="val")
    assert on_val.val_rows is None and len(on_val.test_labels) == len(numbers["val"])
    np.testing.assert_array_equal(on_val.test_images[0], pixels(100))
    assert "The split val is what is tested on" in on_val.notes[0]
    drawn = folder(path=str(tmp_path), test_from="train", test_fraction=0.2)
    assert (len(drawn.test_labels), len(drawn.val_rows), len(drawn.train_labels)) == (3, 15, 27)
    assert drawn.notes == ("The test set, 0.2 of the split train (test_from), was drawn.",)
    assert "must be val or train" in refused(folder, tmp_path, test_from="valid")
    split_up(tmp_path, parts=("train", "val", "test"))
    assert "has a test set; test_from = 'val' must be ''" in refused(folder, tmp_path, test_from="val")
    rows = [
        (f"train/{name}/{n:03d}.png", name, "train")
        for c, name in enumerate(CLASSES)
        for n in (5 * c, 5 * c + 1)
    ]
    listed = table(tmp_path / "list.csv", rows, ("path", "label", "split"))
    assert len(csv(path=listed, test_from="train", test_fraction=0.5).test_labels) == 3


def test_a_lone_folder_around_the_classes_is_looked_through(tmp_path):
    flat(tmp_path / "a/b", num=5)
    found = folder(path=str(tmp_path))
    assert found.class_names == CLASSES and len(found.train_labels) == 12
    assert found.notes == (f"Read from a/b, the only folder in {tmp_path}.", DRAWN)
    shutil.rmtree(tmp_path / "a")
    for n in range(5):
        put(tmp_path, f"only/{n}.png", n)
    message = refused(folder, tmp_path)
    assert message == f"{tmp_path}: holds 1 class (only); must hold a folder for each of at least 2"


def test_what_is_passed_over_is_counted_and_said(tmp_path):
    flat(tmp_path, num=5)
    put(tmp_path, "stray.png", 1)
    for name in ("bee/list.txt", "bee/more.txt", "cat/raw.cr2"):
        (tmp_path / name).write_text("no image")
    for name in (
        "__MACOSX/bee/._0.png",
        "bee/@eaDir/0.png",
        "bee/._0.png",
        "bee/Thumbs.db",
        ".thumbnails/a/0.png",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    found = folder(path=str(tmp_path))
    assert found.class_names == CLASSES and len(found.train_labels) + len(found.test_labels) == 15
    assert found.notes == (
        "1 images beside the folders of classes were not read, such as stray.png.",
        "3 files do not end as images do and were not read (2 .txt, 1 .cr2), such as bee/list.txt.",
        DRAWN,
    )


def test_further_endings_of_jpeg_are_read(tmp_path):
    flat(tmp_path, num=5)
    for suffix in ("jfif", "jpe"):
        Image.fromarray(pixels(7)).save(tmp_path / f"bee/x.{suffix}", format="jpeg")
    found = folder(path=str(tmp_path))
    assert len(found.train_labels) + len(found.test_labels) == 17 and found.notes == (DRAWN,)


def test_a_pipe_with_the_name_of_an_image_is_not_waited_for(tmp_path):
    flat(tmp_path, num=5)
    os.mkfifo(tmp_path / "bee/x.png")
    assert "x.png: no regular file; must be an image" in refused(folder, tmp_path)
    found = folder(path=str(tmp_path), skip_corrupt=True)
    assert "1 of 16 images were left out" in found.notes[1]


@pytest.mark.parametrize("name", [b"caf\xe9", b"new\nline", b"esc\x1b[31m"])
def test_classes_whose_names_cannot_be_written_are_refused(tmp_path, name):
    flat(tmp_path, num=5)
    os.rename(tmp_path / "bee", os.path.join(os.fsencode(tmp_path), name))
    message = refused(folder, tmp_path)
    assert "cannot be written or shown; must be plain text" in message and message.isprintable()
    message.encode()


def test_too_few_images_to_draw_a_test_set(tmp_path):
    message = refused(folder, flat(tmp_path, num=1))
    assert message.startswith(f"{tmp_path}: test_fraction = 0.2: no test set can be drawn (")


def test_links_are_followed_once(tmp_path):
    root = flat(tmp_path / "set", num=5)
    put(tmp_path, "elsewhere/0.png", 50)
    put(tmp_path, "elsewhere/1.png", 51)
    (root / "bee/linked.png").symlink_to(tmp_path / "elsewhere/0.png")
    (root / "bee/more").symlink_to(tmp_path / "elsewhere")
    (root / "bee/loop").symlink_to(root / "bee")
    (root / "emu").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "link").symlink_to(root)
    found = folder(path=str(tmp_path / "link"))
    assert found.class_names == (*CLASSES[:3], "emu")
    counts = np.bincount([*found.train_labels, *found.test_labels])
    assert counts.tolist() == [5 + 1 + 2, 5, 5, 2]
    (root / "bee/broken.png").symlink_to("nowhere.png")
    assert "broken.png: no such file" in refused(folder, root)
    rows = [(f"{name}/{n:02d}.png", name) for name in CLASSES for n in range(5)]
    listed = table(root / "list.csv", [*rows, ("bee/linked.png", "bee")])
    assert len(csv(path=listed).train_labels) == 12


@pytest.mark.parametrize("path", ["bee/../bee/00.png", "{root}/bee/00.png", " bee/00.png ", "bee\\00.png"])
def test_paths_of_a_table_may_be_written_in_several_ways(tmp_path, path):
    root = flat(tmp_path / "set", num=5)
    rows = [(f"{name}/{n:02d}.png", name) for name in CLASSES for n in range(5)][1:]
    found = csv(path=table(root / "list.csv", [(path.format(root=root), "bee"), *rows]))
    assert len(found.train_labels) + len(found.test_labels) == 15


@pytest.mark.parametrize(
    "path", ["../secret/0.png", "{root}/../secret/0.png", "bee/../../secret/0.png", "bee/\0.png"]
)
def test_tables_cannot_lead_out_of_their_folder(tmp_path, path):
    root = flat(tmp_path / "set", num=3)
    put(tmp_path, "secret/0.png", 50)
    message = refused(csv, table(root / "list.csv", [(path.format(root=root), "bee")]))
    assert (
        "leads out of this folder; must be a path to a file in it" in message or "cannot be read" in message
    )


ROWS = [(f"{name}/{n:02d}.png", name) for name in CLASSES for n in range(3)]


@pytest.mark.parametrize(
    ("rows", "columns", "said"),
    [
        ([], ("path", "label"), ": lists no image; must have a line for each"),
        (
            ROWS,
            ("file", "label"),
            ": has no column path, but file, label (is it file?); the first line must name the columns, with",
        ),
        (
            ROWS,
            ("path", "class"),
            ": has no column label, but path, class (is it class?); the first line must name the columns",
        ),
        ([*ROWS, ("bee/00.png",)], ("path", "label"), ": line 11: must have an entry in each of the columns"),
        ([*ROWS, ("bee/00.png", "")], ("path", "label"), ": line 11: must have an entry in each of"),
        ([*ROWS, ("a.png", "bee", "x")], ("path", "label"), ": line 11: has 3 entries for 2 columns; must"),
        (ROWS, ("path", "labels"), ": has no column label, but path, labels (is it labels?)"),
        (ROWS, ("Path", "Label"), ": has no column path, but Path, Label (is it Path?)"),
        (ROWS, ("path label", ""), ": has no column path, but path label, ; the first line must name"),
        ([(*row, "x") for row in ROWS], ("path", "label", "label"), ": has two columns label; must have one"),
        ([*ROWS, ROWS[0]], ("path", "label"), ": line 11: bee/00.png stands in an earlier line too; must be"),
        (
            [(*row, "other") for row in ROWS],
            ("path", "label", "split"),
            ": line 2: split 'other': must be train, ",
        ),
        (
            [(*row, "train") for row in ROWS],
            ("path", "label", "split"),
            ": has no split test; say test_from='train'",
        ),
    ],
)
def test_tables_that_cannot_be_read(tmp_path, rows, columns, said):
    file = table(flat(tmp_path, num=3) / "list.csv", rows, columns)
    assert refused(csv, file).startswith(file + said)


def test_tables_that_are_none(tmp_path):
    for path in ("", tmp_path, tmp_path / "none.csv"):
        assert refused(csv, path).startswith(f"data.path = {str(path)!r}: no such file; must be a table")
    (tmp_path / "list.csv").write_bytes(b"path,label\n\xff\xfe,bee\n")
    assert "list.csv: cannot be read (" in refused(csv, tmp_path / "list.csv")
    (tmp_path / "list.csv").write_bytes(b"")
    assert "list.csv: has no column path" in refused(csv, tmp_path / "list.csv")
    file = table(tmp_path / "list.csv", ROWS)
    message = refused(csv, file, test_fraction=0.5)
    assert message == (
        f"{file}: 9 of 9 images are not there, such as bee/00.png; must be paths that start at {tmp_path}"
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"image_size": -1}, "image_size = -1: must be s or (h, w) in pixels, or 0 for that of the files"),
        ({"image_size": (3, 0)}, "image_size = (3, 0): must be s or"),
        ({"image_size": (3, 3, 3)}, "image_size = (3, 3, 3): must be s or"),
        ({"image_size": 2.5}, "image_size = 2.5: must be s or"),
        ({"channels": 2}, "channels = 2: must be 1 (grey), 3 (colour), or 0 for those of the files"),
        ({"fit": "padd"}, "images: fit = 'padd': must be one of crop, pad, stretch; did you mean 'pad'?"),
        ({"stream": "sometimes"}, "stream = 'sometimes': must be auto, always or never"),
        ({"test_fraction": 0.0}, "test_fraction = 0.0: must lie above 0 and be at most 0.5"),
        ({"test_fraction": 0.6}, "test_fraction = 0.6: must lie above 0"),
    ],
)
def test_arguments_that_cannot_be(tmp_path, arguments, said):
    flat(tmp_path, num=3)
    assert refused(folder, tmp_path, **arguments).startswith(said)
    assert refused(csv, table(tmp_path / "list.csv", ROWS), **arguments).startswith(said)


@pytest.mark.parametrize(
    "delimiter, suffix", [(",", "csv"), ("\t", "tsv"), (",", "tsv"), ("\t", "csv"), (";", "csv")]
)
def test_the_first_line_tells_what_separates_the_columns(tmp_path, delimiter, suffix):
    rows = [(f"{name}/{n:02d}.png", f" {name} ", "") for name in CLASSES for n in range(5)]
    file = table(flat(tmp_path, num=5) / f"list.{suffix}", rows, (" path", "label ", "remark"), delimiter)
    with open(file, encoding="utf-8", newline="") as stream:
        text = stream.read()
    with open(file, "w", encoding="utf-8-sig", newline="") as stream:  # a BOM, and blank lines at the end
        stream.write(text + "\r\n" + delimiter + "\r\n")
    found = csv(path=file)
    assert found.class_names == CLASSES and len(found.train_labels) + len(found.test_labels) == 15


def test_an_empty_table_is_one_line(tmp_path):
    for text in ("", "\n", "path,label\n"):
        (tmp_path / "list.csv").write_text(text)
        assert str(tmp_path / "list.csv") in refused(csv, tmp_path / "list.csv")


def written(file, text, encoding="utf-8"):
    file.write_bytes(text.encode(encoding))
    return str(file)


LINES = [",".join(row) for row in [("path", "label"), *ROWS]]
WRITTEN = {
    "quotes": "\n".join('"' + line.replace(",", '","') + '"' for line in LINES),
    "quotes after blanks": "\n".join('"' + line.replace(",", '", "') + '"' for line in LINES),
    "bars": "\n".join(LINES).replace(",", "|"),
    "lines that end as on Windows": "\r\n".join(LINES),
    "lines that end as on old Macs": "\r".join(LINES),
    "columns nobody reads": "\n".join([LINES[0] + ",remark,remark", *(line + ",,x" for line in LINES[1:])]),
    "columns nobody reads, left out": "\n".join([LINES[0] + ",remark", *LINES[1:]]),
    "commas at the ends": "\n".join([LINES[0], *(line + "," for line in LINES[1:])]),
    "hard blanks": "\n".join(line.replace(",b", ",\u00a0b") for line in LINES),
}


@pytest.mark.parametrize("case", WRITTEN)
def test_tables_as_programs_write_them(tmp_path, case):
    want = csv(path=table(flat(tmp_path, num=3) / "plain.csv", ROWS), test_fraction=0.4)
    found = csv(path=written(tmp_path / "list.csv", WRITTEN[case]), test_fraction=0.4)
    same(found, want)
    assert found.notes == want.notes


@pytest.mark.parametrize(
    ("text", "encoding", "said"),
    [
        ("\n".join(LINES), "utf-16", "list.csv: cannot be read ('utf-8' codec"),
        ("\n".join(LINES), "utf-16-le", "list.csv: cannot be read (it holds zeros, as UTF-16 does)"),
        ("\n".join(LINES).replace("bee/01", '"bee/01'), "utf-8", "list.csv: cannot be read (unexpected end"),
        ("\n".join(LINES).replace(",cat", ",c\0t"), "utf-8", "class_names: 'c\\x00t' cannot be written"),
        ("\n".join(LINES).replace("cat/01", "c\0t/01"), "utf-8", "leads out of this folder"),
        (
            "label," + ",".join(f"pixel{n}" for n in range(784)),
            "utf-8",
            "pixel10 and 773 more; the first line",
        ),
    ],
)
def test_tables_that_are_written_otherwise(tmp_path, text, encoding, said):
    flat(tmp_path, num=3)
    assert said in refused(csv, written(tmp_path / "list.csv", text, encoding), test_fraction=0.4)


def test_paths_written_in_full_by_another_link_are_inside(tmp_path):
    root = flat(tmp_path / "set", num=3)
    (tmp_path / "link").symlink_to(root)
    want = csv(path=table(root / "list.csv", ROWS), test_fraction=0.4)
    for top, written_as in ((root, tmp_path / "link"), (tmp_path / "link", root)):
        table(root / "full.csv", [(f"{written_as}/{path}", label) for path, label in ROWS])
        same(csv(path=str(top / "full.csv"), test_fraction=0.4), want)


def test_files_with_blanks_and_backslashes_in_their_names_are_found(tmp_path):
    flat(tmp_path, num=3)
    for number, name in enumerate((" x.png ", "a\\b.png")):
        (tmp_path / "bee/00.png").rename(tmp_path / name)
        put(tmp_path, "bee/00.png", 50 + number)
    rows = [(" x.png ", "cat"), ("a\\b.png", "cat"), *ROWS]
    with open(tmp_path / "list.csv", "w", encoding="utf-8", newline="") as stream:
        tables.writer(stream, quoting=tables.QUOTE_ALL).writerows([("path", "label"), *rows])
    found = csv(path=str(tmp_path / "list.csv"), test_fraction=0.4)
    assert len(found.train_labels) + len(found.test_labels) == 11


def test_listed_files_that_are_not_there_are_counted(tmp_path):
    flat(tmp_path, num=3)
    rows = [("C:\\data\\bee\\00.png", "bee"), *ROWS[1:]]
    message = refused(csv, table(tmp_path / "list.csv", rows), test_fraction=0.4)
    assert message.endswith(
        f"1 of 9 images are not there, such as C:/data/bee/00.png; must be paths that start at {tmp_path}"
    )
    found = csv(path=str(tmp_path / "list.csv"), test_fraction=0.4, skip_corrupt=True)
    assert len(found.train_labels) + len(found.test_labels) == 8 and "1 of 9 images" in found.notes[1]
    rows = [(path.removesuffix(".png"), label) for path, label in ROWS]
    assert "9 of 9 images are not there, such as bee/00 (is it 00.png?)" in refused(
        csv, table(tmp_path / "list.csv", rows)
    )


def test_labels_that_are_none_or_differ_in_spelling_are_noted(tmp_path):
    flat(tmp_path, num=3)
    for rename, said in (
        ({"cat": "NaN"}, "3 images are labelled 'NaN', a class like any other."),
        ({"cat": "Bee"}, "The classes 'Bee' and 'bee' are two: are they meant to be?"),
        ({"cat": "1", "dog": "1.0"}, "The classes '1' and '1.0' are two: are they meant to be?"),
    ):
        rows = [(path, rename.get(label, label)) for path, label in ROWS]
        found = csv(path=table(tmp_path / "list.csv", rows), test_fraction=0.4)
        assert {*found.notes} == {said, DRAWN.replace("0.2", "0.4")}
    rows = [(path, str(n / 7)) for n, (path, _) in enumerate(ROWS)]
    assert "no test set can be drawn (9 of 9 classes have one example, such as 0.0);" in refused(
        csv, table(tmp_path / "list.csv", rows)
    )


def test_groups_by_paths_in_full_and_in_two_groups(tmp_path):
    flat(tmp_path, num=6)
    paths = [f"{name}/{n:02d}.png" for name in CLASSES for n in range(6)]
    groups = [str(n % 6) for n in range(18)]
    table(tmp_path / "plain.csv", zip(paths, groups), ("path", "group"))
    full = [(f"{tmp_path}/{path}".replace("/bee/", "/bee\\"), group) for path, group in zip(paths, groups)]
    table(tmp_path / "full.csv", full, ("path", "group"))
    same(folder(path=str(tmp_path), groups="full.csv"), folder(path=str(tmp_path), groups="plain.csv"))
    table(tmp_path / "full.csv", [*full, (paths[0], "5")], ("path", "group"))
    message = refused(folder, tmp_path, groups="full.csv")
    assert message.endswith("line 20: bee/00.png is in group 0 by an earlier line; must be in one")


# --- folders as they come -----------------------------------------------------------------------------


def classes(root, *names, num=5):
    """A folder of `num` images for each of the names."""
    for label, name in enumerate(names):
        for n in range(num):
            put(root, f"{name}/{n}.png", 10 * label + n)


def sizes(found):
    return (
        len(found.train_labels),
        0 if found.val_rows is None else len(found.val_rows),
        len(found.test_labels),
    )


@pytest.mark.parametrize(
    "names",
    [
        ("train_data", "eval", "test-images"),
        ("Training Set", "DEV", "TestSet"),
        ("training", "Valid", "testing"),
    ],
)
def test_words_around_that_of_a_split_do_not_matter(tmp_path, names):
    for name in names:
        classes(tmp_path / name, "bee", "cat", num=2)
    found = folder(path=str(tmp_path))
    assert (found.class_names, sizes(found), found.notes) == (("bee", "cat"), (8, 4, 4), ())


@pytest.mark.parametrize(
    ("places", "said"),
    [
        (
            ("seg_train/bee", "seg_train/cat", "seg_test/bee", "seg_test/cat", "seg_pred"),
            ": the folders seg_test and seg_train hold folders, no image: splits must be called train, val "
            "and test (did you mean test by seg_test?) (did you mean train by seg_train?); with splits=False",
        ),
        (
            ("trian/bee", "trian/cat", "tset/bee"),
            " (did you mean train by trian?) (did you mean test by tset?)",
        ),
        (("train/bee", "Training/bee"), ": the folders Training and train both mean train; must be called"),
        (("val/bee", "dev/bee", "train/bee"), ": the folders dev and val both mean val; must be called"),
        (("bee/train", "bee/test", "cat"), "/cat: holds no splits, as other classes do; must hold train and"),
        (
            ("bee/train", "bee/test", "bee/more"),
            "/bee: holds the folders test and more: must hold splits (train",
        ),
        (
            ("bus", "car", "train"),
            ": holds the folders train and bus: must hold splits (train, val, test) or",
        ),
        (
            ("bee/left", "bee/right", "cat/left", "cat/right"),
            ": the folders bee and cat hold the same folders",
        ),
    ],
)
def test_folders_that_may_be_splits_are_not_taken_for_classes_unless_told(tmp_path, places, said):
    classes(tmp_path, *places)
    message = refused(folder, tmp_path)
    assert message.startswith(str(tmp_path)) and said in message
    tops = sorted({place.split("/")[0] for place in places})
    if len(tops) > 1:
        found = folder(path=str(tmp_path), splits=False)
        counts = [5 * sum(place.split("/")[0] == top for place in places) for top in tops]
        assert found.class_names == tuple(tops)
        assert np.bincount([*found.train_labels, *found.test_labels]).tolist() == counts


def test_classes_called_almost_like_splits_are_classes(tmp_path):
    classes(tmp_path, "brain", "vest", "train station", "test rig", "eval/deep")
    shutil.move(tmp_path / "eval", tmp_path / "oval")
    assert folder(path=str(tmp_path)).class_names == ("brain", "oval", "test rig", "train station", "vest")


def test_one_folder_in_every_class_is_no_split(tmp_path):
    classes(tmp_path, "bee/images", "cat/images", "dog/train")
    assert folder(path=str(tmp_path)).class_names == CLASSES


def test_lone_folders_within_splits_are_looked_through_and_told(tmp_path):
    classes(tmp_path, "train/train/bee", "train/train/cat", "test/bee", "test/cat")
    put(tmp_path, "train/beside.png", 1)
    (tmp_path / "train/train").rename(tmp_path / "train/all")
    assert (
        refused(folder, tmp_path)
        == f"{tmp_path}: class all is in train and not in test; must be in every split"
    )
    (tmp_path / "train/beside.png").unlink()
    found = folder(path=str(tmp_path))
    assert (found.class_names, sizes(found)) == (("bee", "cat"), (10, 0, 10))
    assert found.notes == ("Lone folders were looked through, such as train/all.",)


def test_images_between_the_folders_are_counted_at_every_level(tmp_path):
    classes(tmp_path, "bee/train", "bee/test", "cat/train", "cat/test")
    for place in ("0.png", "bee/0.jfif", "cat/train.png", "cat/notes.txt"):
        put(tmp_path, f"{place}.png", 1)
        (tmp_path / f"{place}.png").rename(tmp_path / place)
    found = folder(path=str(tmp_path))
    assert sizes(found) == (10, 0, 10)
    assert found.notes == ("3 images beside the folders of classes were not read, such as 0.png.",)


def test_names_of_other_letters_and_of_letters_put_together_otherwise(tmp_path):
    joined = "\u0645\u06cc\u200c\u0631\u0648\u062f"  # with a sign that keeps two letters apart
    classes(tmp_path / "train", "caf\u00e9", joined)
    classes(tmp_path / "test", "cafe\u0301", joined)
    assert folder(path=str(tmp_path)).class_names == ("caf\u00e9", joined)
    (tmp_path / "test" / joined).rename(tmp_path / "test/Dog")
    (tmp_path / "train" / joined).rename(tmp_path / "train/dog")
    message = refused(folder, tmp_path)
    assert "class Dog is in test and not in train, which has dog; must be" in message


def test_links_that_lead_nowhere_or_to_what_is_there_already(tmp_path):
    root = tmp_path / "set"
    classes(root, "bee", "cat")
    want = folder(path=str(root))
    for name, to, said in (
        (
            "dog",
            tmp_path / "none",
            f": is a link to {tmp_path / 'none'}, where no folder is; must lead to the",
        ),
        ("dog", "dog", ": is a link to dog, where no folder is; must lead to the folder"),
        ("dog", root, ": is a link to a folder that holds it; must lead to images of a class"),
        ("dog", tmp_path, ": is a link to a folder that holds it; must lead to images of a class"),
        ("dog", "bee", f": is the same folder as {root / 'bee'}; must hold images of their own"),
    ):
        (root / name).symlink_to(to)
        assert refused(folder, root).startswith(f"{root / name}{said}")
        (root / name).unlink()
    (root / "bee/up").symlink_to("..")  # all of it once more, but bee itself
    assert len(folder(path=str(root)).train_labels) == 12
    (root / "bee/up").unlink()
    (root / "bee/again").symlink_to("again")
    same(folder(path=str(root)), want)
    lone = tmp_path / "lone"
    lone.mkdir()
    (lone / "a").symlink_to(lone)
    assert "is a link to a folder that holds it" in refused(folder, lone)
    (tmp_path / "two").mkdir()
    for part in ("train", "test"):
        (tmp_path / "two" / part).symlink_to(root)
    assert "train/bee: is the same folder as " in refused(folder, tmp_path / "two")


@pytest.mark.parametrize("place", ["", "cat", "cat/deep"])
def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch, place):
    classes(tmp_path, "bee", "cat", "cat/deep")
    scandir = os.scandir

    def denied(path):
        if os.fspath(path) == str(tmp_path / place):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)
    message = refused(folder, tmp_path)
    assert (
        message
        == f"{tmp_path / place}: cannot be read (Permission denied); must be a folder that may be read"
    )


def test_paths_that_cannot_be_ones(tmp_path):
    classes(tmp_path, "bee", "cat")
    for path in ("a\0b", "a" * 300, "\udcff", f"{tmp_path}/bee/0.png/more"):
        for source in (folder, csv):
            message = refused(source, path)
            assert message.startswith("data.path = ") and message.isprintable()
    for groups in ("a\0b", "a" * 300):
        refused(folder, tmp_path, groups=groups)
    os.mkfifo(tmp_path / "groups.csv")
    message = refused(folder, tmp_path, groups="groups.csv")
    assert message.startswith(f"{tmp_path / 'groups.csv'}: cannot be read (no regular file); must be a table")


def test_names_of_files_are_shown_and_not_obeyed(tmp_path):
    classes(tmp_path, "bee", "cat")
    here, odd = os.fsencode(tmp_path), b"\xff\x1b[31m\n"
    for place in (b"bee/" + odd + b".png", odd + b".png", b"bee/x." + odd):
        with open(os.path.join(here, place), "wb") as file:
            Image.fromarray(pixels(99)).save(file, format="png")
    found = folder(path=str(tmp_path))
    assert len(found.train_labels) + len(found.test_labels) == 11
    assert len(found.notes) == 3 and all(note.isprintable() for note in found.notes)
    with open(os.path.join(here, b"bee/" + odd + b".png"), "wb") as file:
        file.write(b"no image")
    assert refused(folder, tmp_path).isprintable()
    assert folder(path=str(tmp_path), skip_corrupt=True).notes[2].isprintable()


def test_images_are_called_by_their_paths_and_a_table_says_who_teaches_them(tmp_path):
    rows = ["path,label,split,teacher"]
    for n in range(8):
        name = f"{n}.png"
        Image.fromarray(np.full((4, 4), n * 30, np.uint8)).save(tmp_path / name)
        rows.append(f"{name},{'ab'[n % 2]},{'train' if n < 6 else 'test'},{(0, 1, -1)[n % 3]}")
    (tmp_path / "t.csv").write_text("\n".join(rows), encoding="utf-8")
    found = csv(path=str(tmp_path / "t.csv"))
    assert found.train_names == tuple(f"{n}.png" for n in range(6))
    assert found.test_names == ("6.png", "7.png")
    np.testing.assert_array_equal(found.train_teachers, [0, 1, -1, 0, 1, -1])
    assert "2 of 6 training images are taught by nobody" in " ".join(found.notes)
    (tmp_path / "t.csv").write_text("\n".join(rows).replace(",-1", ",both"), encoding="utf-8")
    with pytest.raises(UserError, match="line 4: teacher 'both': must be the number of a teacher"):
        csv(path=str(tmp_path / "t.csv"))
