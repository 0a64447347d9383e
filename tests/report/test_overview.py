"""What `python -m mtkd_jax.data` says: sizes and values by hand, duplicates that were put there."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from PIL import Image

from mtkd_jax.data import loading
from mtkd_jax.report import overview
from mtkd_jax.types import DataSet

SHEET = overview.TILE, overview.GAP


class AskedFor:
    """Images that give no more than `types.Images` promises, and never more than `most` at a time."""

    def __init__(self, images, most):
        self.shape, self.dtype, self._images, self._most = images.shape, images.dtype, images, most

    def __len__(self):
        return len(self._images)

    def __getitem__(self, rows):
        assert len(rows) <= self._most
        return self._images[rows]


def made(dtype=np.uint8, shape=(6, 4, 3), groups=True):
    """40 training and 12 test images of two classes; 8 training images are for validation."""
    rng = np.random.default_rng(0)
    train, test = (rng.integers(0, 256, (num, *shape)).astype(dtype) for num in (40, 12))
    return DataSet(
        name="made",
        train_images=train,
        train_labels=(np.arange(40) % 2).astype(np.int32),
        test_images=test,
        test_labels=(np.arange(12) % 2).astype(np.int32),
        class_names=("cat", "dog"),
        train_groups=np.repeat(np.arange(10), 4).astype(np.int32) if groups else None,
        test_groups=np.repeat([20, 21, 22], 4).astype(np.int32) if groups else None,
        val_rows=np.arange(32, 40).astype(np.int32),
        notes=("Three were skipped.",),
    )


def split_of(dataset, num_train=20):
    return loading.split(dataset, num_train=num_train, val_fraction=0.2, seed=0)


def rows_of(split):
    return {"train": split.train, "pool": split.pool, "val": split.val}


def test_sizes_classes_and_groups_are_those_of_the_split():
    split = split_of(made())
    found = overview.facts(split)
    assert (found["name"], found["shape"], found["dtype"]) == ("made", [6, 4, 3], "uint8")
    assert {part: own["size"] for part, own in found["parts"].items()} == {
        "train": 20,
        "pool": 12,
        "val": 8,
        "test": 12,
    }
    assert {part: own["counts"] for part, own in found["parts"].items()} == {
        "train": [10, 10],
        "pool": [6, 6],
        "val": [4, 4],
        "test": [6, 6],
    }
    assert (found["parts"]["val"]["groups"], found["parts"]["test"]["groups"]) == (2, 3)
    in_train = {row // 4 for row in split.train.tolist()}
    assert found["parts"]["train"]["groups"] == len(in_train)
    assert found["shared_groups"]["pool in train"] == len(
        in_train & {row // 4 for row in split.pool.tolist()}
    )
    assert found["shared_groups"]["val in train"] == found["shared_groups"]["test in train"] == 0
    assert found["notes"][0] == "Three were skipped."
    assert overview.facts(split_of(made(groups=False), 0))["shared_groups"] is None


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_values_are_those_of_each_channel(dtype):
    dataset = made(dtype)
    split = split_of(dataset)
    for part, own in overview.facts(split)["parts"].items():
        images = dataset.test_images if part == "test" else dataset.train_images[rows_of(split)[part]]
        pixels = images.reshape(-1, 3).astype(np.float64)
        for name, expected in zip(
            overview.VALUES, (pixels.min(0), pixels.max(0), pixels.mean(0), pixels.std(0))
        ):
            np.testing.assert_allclose(own[name], expected, rtol=1e-12, err_msg=f"{part} {name}")


def test_images_are_asked_for_in_blocks_and_blocks_change_nothing(monkeypatch):
    dataset = made()
    expected = overview.facts(split_of(dataset))
    monkeypatch.setattr(overview, "BLOCK", 5 * 6 * 4 * 3 + 1)
    object.__setattr__(dataset, "train_images", AskedFor(dataset.train_images, most=5))
    object.__setattr__(dataset, "test_images", AskedFor(dataset.test_images, most=5))
    assert overview.facts(split_of(dataset)) == expected


def test_every_duplicate_is_counted_where_it_is():
    dataset = made(groups=False)
    split = split_of(dataset)
    nothing = overview.facts(split)["duplicates"]
    assert not any([*nothing["within"].values(), *nothing["across"].values(), nothing["conflicting"]])
    assert set(nothing["across"]) == {
        "pool in train",
        "val in train",
        "test in train",
        "val in pool",
        "test in pool",
        "test in val",
    }
    labels, (one, two) = dataset.train_labels, split.train[:2]
    same, other = (
        next(row for row in split.val if (labels[row] == labels[one]) == alike) for alike in (True, False)
    )
    dataset.train_images[[two, same]] = dataset.train_images[one]  # three times, in two parts
    dataset.train_images[other] = dataset.test_images[0]
    dataset.test_images[[1, 2]] = dataset.test_images[0]
    found = overview.facts(split)["duplicates"]
    assert found["within"] == {"train": 1, "pool": 0, "val": 0, "test": 2}
    assert {pair: number for pair, number in found["across"].items() if number} == {
        "val in train": 1,
        "test in val": 3,
    }
    # Rows 0 and 1 of test are of two classes, whatever else is.
    assert found["conflicting"] == 1 + (labels[one] != labels[two])


def test_a_pixel_makes_another_image():
    dataset = made(np.float32, groups=False)
    split = split_of(dataset)
    dataset.train_images[split.val[0]] = dataset.train_images[split.train[0]]
    assert overview.facts(split)["duplicates"]["across"]["val in train"] == 1
    dataset.train_images[split.val[0], 0, 0, 0] += 1
    assert overview.facts(split)["duplicates"]["across"]["val in train"] == 0


# --- the contact sheet --------------------------------------------------------------------------------


def drawn(split):
    png = overview.sheet(split)
    assert png == overview.sheet(split)
    return np.asarray(Image.open(io.BytesIO(png)))


def tile_of(pixels, row, column):
    """A tile by its place, counted from the right: how wide the names are depends on the font."""
    tile, gap = SHEET
    left = pixels.shape[1] - (overview.COLUMNS - column) * (tile + gap)
    top = gap + row * (tile + gap)
    return pixels[top : top + tile, left : left + tile]


def test_the_sheet_shows_training_images_of_every_class_in_its_row():
    dataset = made(shape=(6, 6, 3))
    split = split_of(dataset)
    pixels = drawn(split)
    for label in (0, 1):
        rows = split.train[dataset.train_labels[split.train] == label]
        for column, row in enumerate(rows):  # ten of each: all of them
            expected = dataset.train_images[row].repeat(12, axis=0).repeat(12, axis=1)
            np.testing.assert_array_equal(tile_of(pixels, label, column), expected)


def test_grey_floats_go_from_black_to_white_and_proportions_stay():
    dataset = made(np.float32, shape=(6, 4, 1))
    dataset.train_images[:] = np.linspace(-3, 5, 24).reshape(6, 4, 1)
    tile = tile_of(drawn(split_of(dataset)), 0, 0)
    assert tile[0, 0].tolist() == [0, 0, 0] and tile[71, 47].tolist() == [255, 255, 255]
    assert (tile[:, 48:] == 255).all()  # 6x4 is 72x48
    np.testing.assert_array_equal(tile[::12, :48:12, 0], np.round(np.linspace(0, 255, 24)).reshape(6, 4))


def test_time_series_are_curves():
    dataset = made(np.float32, shape=(72, 1, 1), groups=False)
    dataset.train_images[:] = np.linspace(0, 1, 72)[:, None, None]
    tile = tile_of(drawn(split_of(dataset)), 1, 3)[..., 0]
    np.testing.assert_array_equal(np.argwhere(tile[::-1] == 0), np.column_stack([np.arange(72)] * 2))


@pytest.mark.parametrize("shape", [(6, 4, 2), (100, 200, 3), (5, 1, 6), (1, 9, 1)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_every_shape_has_a_sheet(dtype, shape):
    dataset = made(dtype, shape=shape)
    dataset.train_images[:] = 7  # nothing varies
    assert drawn(split_of(dataset)).shape[0] == SHEET[1] + 2 * sum(SHEET)


# --- the command --------------------------------------------------------------------------------------


def saved(tmp_path):
    dataset = made()
    names = ("train_images", "train_labels", "test_images", "test_labels", "train_groups", "test_groups")
    np.savez(tmp_path / "made.npz", **{name: getattr(dataset, name) for name in names})
    return str(tmp_path / "made.npz")


def test_the_command_says_what_the_facts_are(tmp_path, capsys):
    path = saved(tmp_path)
    assert overview.main(["npz", "--path", path, "--num_train=20", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["parts"]["train"]["size"] == 20 and found["parts"]["test"]["counts"] == [6, 6]
    sheet = tmp_path / "sheet.png"
    assert overview.main([f"npz(path={path!r})", "--num_train=20", "--sheet", str(sheet)]) == 0
    said = capsys.readouterr().out
    lines = [line.split() for line in said.splitlines()]
    assert said.startswith("made: images 6x4x3 uint8, 2 classes")
    for part, own in found["parts"].items():
        assert [part, str(own["size"]), str(own["groups"]), "0"] in lines
        mean = [own[name][2] for name in overview.VALUES]
        assert [part, "2", *(f"{value:.4g}" for value in mean)] in lines
    assert ["1", *(str(own["counts"][1]) for own in found["parts"].values())] in lines
    assert ["val", "in", "train", "0", "0"] in lines
    assert sheet.read_bytes().startswith(b"\x89PNG")


def test_the_command_cuts_as_a_run_would(tmp_path, capsys):
    path = saved(tmp_path)
    sizes = {}
    for how in ("grouped", "random"):
        assert overview.main(["npz", "--path", path, f"--split={how}", "--val_fraction=0.3", "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        sizes[how] = found["shared_groups"]["val in train"]
    assert sizes["grouped"] == 0 < sizes["random"]
    assert any("data.split is random" in note for note in found["notes"])


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["digit"], "config.data.source: there is no source 'digit'; did you mean 'digits'?"),
        (["npz"], "config.data.path is empty"),
        (["npz", "--path=nowhere.npz"], "data.path = 'nowhere.npz': no such file"),
        (["digits", "--val_fraction=2"], "config.data.val_fraction: 2.0 is not possible"),
        (["digits", "--num_train=9999"], "data.num_train = 9999: must be 0 (all) or 10"),
        (["digits", "--seed=x"], "argument --seed: invalid int value: 'x'"),
        (["digits", "--split=rnd"], "config.data.split: 'rnd' is not possible; it must be one of grouped"),
        ([], "required: SOURCE"),
        (["digits", "--sheet=nowhere/sheet.png"], "nowhere/sheet.png"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_code_2(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert overview.main(arguments) == 2
    out = capsys.readouterr()
    assert out.err.startswith("mtkd_jax: ") and out.err.count("\n") == 1 and said in out.err
    assert out.out == ""
