"""Time series from every form of file: the values that were written, or one line that says what is wrong."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mtkd_jax.data.checks import check
from mtkd_jax.data.sources.series import synthetic_series, ucr
from mtkd_jax.types import UserError

HEADER = """# a comment
@problemName Mine
@timeStamps false
@univariate false
@classLabel true b a c
@data
"""
TRAIN, TEST = "2\t1.5\t-2\t3e1\n10\t0\t0.25\t7\n1\t4\t5\t6\n", "10\t1\t2\t3\n\n2\t-1\t-2\t-3\n"
TS_TRAIN = HEADER + "1,2,3:4,5,6:b\n7,8,9:10,11,12:a\n0.5,0,0:0,0,1:c\n"
TS_TEST = HEADER + "3,2,1:6,5,4:c\n"


def folder_of(tmp_path, ending, train, test, name="Mine"):
    (tmp_path / f"{name}_TRAIN{ending}").write_text(train)
    if test is not None:
        (tmp_path / f"{name}_TEST{ending}").write_text(test)
    return str(tmp_path)


def refused(path, **arguments):
    with pytest.raises(UserError) as caught:
        ucr(path=str(path), **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_tsv_numbers_are_classes_in_the_order_of_their_values(tmp_path):
    dataset = ucr(path=folder_of(tmp_path, ".tsv", TRAIN, TEST))
    assert dataset.train_images.shape == (3, 3, 1, 1) and dataset.train_images.dtype == np.float32
    np.testing.assert_array_equal(dataset.train_images[..., 0, 0], [[1.5, -2, 30], [0, 0.25, 7], [4, 5, 6]])
    np.testing.assert_array_equal(dataset.test_images[..., 0, 0], [[1, 2, 3], [-1, -2, -3]])
    np.testing.assert_array_equal(dataset.train_labels, [1, 2, 0])
    np.testing.assert_array_equal(dataset.test_labels, [2, 1])
    assert (dataset.name, dataset.class_names) == ("Mine", ("1", "2", "10"))


def test_ts_channels_are_channels_and_words_are_classes(tmp_path):
    dataset = ucr(path=folder_of(tmp_path, ".ts", TS_TRAIN, TS_TEST))
    assert dataset.train_images.shape == (3, 3, 1, 2)
    np.testing.assert_array_equal(dataset.train_images[0, :, 0], [[1, 4], [2, 5], [3, 6]])
    np.testing.assert_array_equal(dataset.test_images[0, :, 0], [[3, 6], [2, 5], [1, 4]])
    assert dataset.class_names == ("a", "b", "c")
    np.testing.assert_array_equal(dataset.train_labels, [1, 0, 2])
    np.testing.assert_array_equal(dataset.test_labels, [2])


def test_one_spelling_of_a_number_is_one_class(tmp_path):
    dataset = ucr(path=folder_of(tmp_path, ".tsv", "1.0000e+00\t1\n-1\t2\n", "1\t3\n-1.0\t4\n"))
    assert dataset.class_names == ("-1", "1")
    np.testing.assert_array_equal(dataset.test_labels, [1, 0])


def test_an_archive_of_folders_is_asked_by_name(tmp_path):
    for name, train in (("Mine", TRAIN), ("Yours", "7\t1\n8\t2\n")):
        (tmp_path / name).mkdir()
        folder_of(tmp_path / name, ".tsv", train, TEST if name == "Mine" else "8\t3\n", name)
    (tmp_path / "Mine" / "Mine_TRAIN.ts").write_text(TS_TRAIN)
    assert ucr(path=str(tmp_path), name="Yours").class_names == ("7", "8")
    assert ucr(path=str(tmp_path), name="Mine").class_names == ("1", "2", "10")  # .tsv comes first
    assert ucr(path=str(tmp_path / "Yours")).name == "Yours"
    assert "name = 'Your': did you mean 'Yours'?" in refused(tmp_path, name="Your")
    assert "name = '': must be one of Mine, Yours" in refused(tmp_path)


@pytest.mark.parametrize(
    "ending, train, said",
    [
        (".tsv", "1\t1\t2\n2\t1\tNaN\n", "Mine_TRAIN.tsv, line 2: 1 values are missing"),
        (
            ".tsv",
            "1\t1\t2\n2\t1\n",
            "line 2: channels of (1,) values: must be one length in all series, here (2,)",
        ),
        (".tsv", "1\t1\tx\n", "line 1: could not convert string to float: 'x'; must be values and a class"),
        (".tsv", "1 1 2\n", "line 1: no tab: must be the class and the values, between tabs"),
        (".tsv", "1,1,2\n", "line 1: no tab: must be the class and the values, between tabs"),
        (".tsv", "1\t1\t\n", "line 1: 1 values are missing: must all be there, or at the end with pad="),
        (".tsv", "NaN\t1\n1\t2\n", "line 1: no class: must name the class"),
        (
            ".tsv",
            "1\t1\t2\n2\t1\t2\n",
            "Mine: series of 2 steps in train and 1 in test: must be one length; pad=",
        ),
        (".tsv", "\t1\t2\n", "line 1: no class"),
        (".tsv", "\n", "Mine_TRAIN.tsv: holds no series"),
        (".tsv", "1\t1\n1\t2\n", "train_labels: 1 class: must be at least 2"),
        (".tsv", "1\t5\n2\t1e60\n", "1 images hold NaN or infinite pixels"),
        (".ts", HEADER + "1,?,3:4,5,?:b\n", "Mine_TRAIN.ts, line 7: 2 values are missing"),
        (".ts", HEADER + "1,2:4,5,6:b\n", "line 7: channels of (2, 3) values: must be one length"),
        (".ts", HEADER + "1,2:3,4:b\n1,2:b\n", "line 8: 1 channels: must be as many as before, 2"),
        (".ts", HEADER + "1,2,3\n", "line 7: channels of () values"),
        (".ts", HEADER + "1,2,3:\n", "line 7: no class"),
        (".ts", HEADER.replace("@data", "") + "1:a\n", "no line @data"),
        (".ts", HEADER.replace("Stamps false", "Stamps true") + "(0,1):a\n", "@timeStamps true: must be"),
        (".ts", HEADER.replace("@classLabel true", "@targetLabel true") + "1:2\n", "below @classLabel true"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(tmp_path, ending, train, said):
    test = "1\t1\n" if ending == ".tsv" else HEADER + "1,2:3,4:b\n"
    assert said in refused(folder_of(tmp_path, ending, train, test))


def test_files_that_are_not_there_or_not_text(tmp_path):
    for path in ("", tmp_path / "nowhere"):
        assert "no such file or folder; must be a folder of series or an .npz" in refused(path)
    assert "no set; must hold NAME_TRAIN.tsv" in refused(tmp_path)
    assert "Mine_TEST.tsv: cannot be read (" in refused(folder_of(tmp_path, ".tsv", TRAIN, None))
    (tmp_path / "Mine_TEST.tsv").write_bytes(b"1\t\xff\n")
    assert "Mine_TEST.tsv: cannot be read ('utf-8' codec" in refused(tmp_path)


def archive(tmp_path, **changed):
    """An .npz of one set "a/b"; `changed` gives other arrays, None leaves one out."""
    rng = np.random.default_rng(0)
    arrays = {
        "train_x": rng.standard_normal((6, 5, 2)),
        "train_y": np.arange(6) % 3,
        "test_x": rng.standard_normal((3, 5, 2)).astype(np.float32),
        "test_y": np.array([2, 0, 1], np.uint8),
        "classes": np.array(["sit", "run", "walk"]),
    } | changed
    arrays = {f"a/b/{name}": array for name, array in arrays.items() if array is not None}
    np.savez(tmp_path / "sets.npz", **arrays)
    return str(tmp_path / "sets.npz"), arrays


def test_npz_series_and_classes_in_sorted_order(tmp_path):
    path, arrays = archive(tmp_path)
    dataset = ucr(path=path)
    np.testing.assert_array_equal(dataset.train_images[:, :, 0], arrays["a/b/train_x"].astype(np.float32))
    np.testing.assert_array_equal(dataset.test_images[:, :, 0], arrays["a/b/test_x"])
    assert dataset.test_images.dtype == np.float32
    assert (dataset.name, dataset.class_names) == ("a/b", ("run", "sit", "walk"))
    np.testing.assert_array_equal(dataset.test_labels, [2, 1, 0])
    np.testing.assert_array_equal(dataset.train_labels, [1, 0, 2, 1, 0, 2])


def test_npz_without_names_of_classes_and_with_whole_numbers(tmp_path):
    steps = np.arange(30).reshape(6, 5, 1)
    path, _ = archive(
        tmp_path,
        classes=None,
        train_x=steps,
        test_x=steps[:3],
        test_y=np.array([0, 7, -1]),
        train_y=np.array([7, -1, 0, 7, 0, -1]),
    )
    dataset = ucr(path=path)
    assert dataset.train_images.dtype == np.float32  # not pixels 0..255
    np.testing.assert_array_equal(dataset.train_images[:, :, 0], steps)
    assert dataset.class_names == ("-1", "0", "7")
    np.testing.assert_array_equal(dataset.train_labels, [2, 0, 1, 2, 1, 0])


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"test_x": None}, "no array a/b/test_x: must hold a/b/train_x"),
        ({"train_x": np.zeros((6, 5))}, "a/b/train_x: float64 (6, 5): must be numbers [N,T,C]"),
        ({"train_x": np.zeros((6, 5, 2), "U1")}, "a/b/train_x: <U1 (6, 5, 2): must be numbers"),
        ({"train_y": np.arange(6)}, "a/b/train_y: must be whole numbers 0..C-1, with C = 3 classes"),
        ({"train_y": np.arange(6.0)}, "a/b/train_y: must be whole numbers 0..C-1"),
        ({"test_y": np.zeros((3, 2), int)}, "a/b/test_y: int64 (3, 2): must be one class a series, [N]"),
        ({"train_y": np.arange(5) % 3}, "a/b/train_x: 6 series and 5 classes: must be as many"),
        (
            {"test_x": np.zeros((3, 4, 2))},
            "a/b: series of 5 steps in train and 4 in test: must be one length;",
        ),
        ({"test_x": np.zeros((3, 5, 1))}, "test_images: float32 (5, 1, 1): must be as in train_images"),
        (
            {"train_x": np.full((6, 5, 2), np.nan)},
            "a/b/train_x[0]: 10 values are missing: must all be there, or",
        ),
        ({"train_x": np.full((6, 5, 2), np.inf)}, "6 images hold NaN or infinite"),
        (
            {"classes": None, "train_y": np.array([0, 1, np.nan, 2, 0, 1]), "test_y": np.arange(3.0)},
            "a/b/train_y: 1 are NaN: must name the class",
        ),
        ({"train_x": np.array([{}])}, "cannot read a/b/train_x (Object arrays"),
    ],
)
def test_what_is_wrong_with_an_npz_is_one_line(tmp_path, changed, said):
    assert said in refused(archive(tmp_path, **changed)[0])


UNEQUAL = "1\t1\t2\t3\n2\t4\t5\n"


def test_series_of_unequal_length_are_filled_up_where_that_is_asked_for(tmp_path):
    place = folder_of(tmp_path, ".tsv", UNEQUAL, "1\t6\tNaN\tNaN\tNaN\n2\t7\t8\t9\t10\n")
    message = refused(place)
    assert "line 2: channels of (2,) values" in message and "pad='zeros' or pad='last' fills up" in message
    zeros, last = (ucr(path=place, pad=pad) for pad in ("zeros", "last"))
    np.testing.assert_array_equal(zeros.train_images[..., 0, 0], [[1, 2, 3, 0], [4, 5, 0, 0]])
    np.testing.assert_array_equal(last.train_images[..., 0, 0], [[1, 2, 3, 3], [4, 5, 5, 5]])
    np.testing.assert_array_equal(last.test_images[..., 0, 0], [[6, 6, 6, 6], [7, 8, 9, 10]])
    assert "must be zeros or last" in refused(place, pad="zero")


def test_values_missing_in_the_middle_are_refused_with_any_padding(tmp_path):
    place = folder_of(tmp_path, ".tsv", "1\t1\tNaN\t3\n2\t4\t5\t6\n", "1\t1\t2\t3\n")
    for pad in ("", "zeros"):
        assert "line 1: 1 values are missing" in refused(place, pad=pad)


def test_arff_of_one_channel_and_of_several(tmp_path):
    header = "% of mine\n@relation mine\n@attribute a numeric\n@attribute c {a, b}\n@DATA\n% the rows\n"
    for name in ("one", "two", "none"):
        (tmp_path / name).mkdir()
    one = ucr(path=folder_of(tmp_path / "one", ".arff", header + "1,2,a\n3,4,'b'\n", header + "5,6,b\n"))
    np.testing.assert_array_equal(one.train_images[..., 0, 0], [[1, 2], [3, 4]])
    assert one.class_names == ("a", "b") and one.test_labels.tolist() == [1]
    two = ucr(
        path=folder_of(
            tmp_path / "two", ".arff", header + "'1,2\\n3,4',a\n\"5,6\\n7,8\",b\n", header + "'1,2\\n3,4',b\n"
        )
    )
    np.testing.assert_array_equal(two.train_images[:, :, 0], [[[1, 3], [2, 4]], [[5, 7], [6, 8]]])
    assert "no line @data" in refused(folder_of(tmp_path / "none", ".arff", "1,2,a\n", "1,2,a\n"))


@pytest.mark.parametrize(
    ("header", "row", "said"),
    [
        (
            "@attribute c {a,b}\n@attribute y numeric\n",
            "1,2.5",
            ": the last attribute has no values in braces",
        ),
        ("@attribute y numeric\n@attribute c {a,b}\n", "{0 1, 1 a}", ", line 4: a sparse row: must hold all"),
        ("@attribute y numeric\n@attribute c {a,b}\n", "?,a", ", line 4: 1 values are missing: must all be"),
        ("@attribute y numeric\n@attribute c {a,b}\n", "1,?", ", line 4: no class: must name the class"),
    ],
)
def test_what_is_wrong_with_an_arff_is_one_line(tmp_path, header, row, said):
    text = f"{header}@data\n{row}\n"
    assert f"Mine_TRAIN.arff{said}" in refused(folder_of(tmp_path, ".arff", text, text))


def test_arff_classes_in_quotes_may_hold_commas(tmp_path):
    text = "@attribute y numeric\n@attribute c {'a, b', c}\n@data\n1,'a, b'\n2, \"c\"\n"
    assert ucr(path=folder_of(tmp_path, ".arff", text, text)).class_names == ("a, b", "c")


def test_npz_series_are_filled_up_as_those_of_files(tmp_path):
    """The two channels of a series may end at different steps, and test may be longer than train."""
    x = np.arange(1.0, 61).reshape(6, 5, 2)
    x[2, 3:, 0] = x[4, 1:] = np.nan
    path, _ = archive(tmp_path, train_x=x, test_x=np.ones((3, 7, 2)), train_y=np.arange(6)[:, None] % 3)
    want = np.pad(x, ((0, 0), (0, 2), (0, 0)), mode="edge")
    want[2, 3:, 0], want[4, 1:] = want[2, 2, 0], want[4, 0]
    np.testing.assert_array_equal(ucr(path=path, pad="last").train_images[:, :, 0], want)
    zeros = np.pad(np.nan_to_num(x), ((0, 0), (0, 2), (0, 0)))
    np.testing.assert_array_equal(ucr(path=path, pad="zeros").train_images[:, :, 0], zeros)
    path, _ = archive(tmp_path, train_x=np.where(np.arange(6)[:, None, None] == 1, np.nan, x))
    assert "a/b/train_x[1]: a channel without a value: must have one at least" in refused(path, pad="zeros")


def test_empty_files_are_one_line_with_any_padding(tmp_path):
    for pad in ("", "zeros", "last"):
        assert "holds no series: must hold one a line" in refused(
            folder_of(tmp_path, ".tsv", "", ""), pad=pad
        )


def test_a_file_alone_and_files_of_other_endings_are_told(tmp_path):
    place = folder_of(tmp_path, ".txt", TRAIN, TEST)
    assert f"{place}, which holds Mine_TRAIN.txt: no set; must hold NAME_TRAIN.tsv, .ts or" in refused(place)
    for ending in (".txt", ".tsv", ".ts", ".arff"):
        folder_of(tmp_path, ending, TRAIN, TEST)
        file = tmp_path / f"Mine_TRAIN{ending}"
        assert refused(file).startswith(
            f"data.path = '{file}': is one file; must be the folder of NAME_TRAIN"
        )


def test_made_up_series_are_cylinders_bells_and_funnels():
    data = synthetic_series(num_train=60, num_test=5, steps=40, noise=0.0, seed=3)
    assert (data.name, data.class_names) == ("synthetic_series", ("cylinder", "bell", "funnel"))
    assert data.train_images.shape == (60, 40, 1, 1) and data.test_labels.tolist() == [0, 1, 2, 0, 1]
    spans = []
    for series, kind in zip(data.train_images[..., 0, 0], data.train_labels):
        first, *_, last = np.flatnonzero(series)
        risen = series[first : last + 1]
        np.testing.assert_array_equal(np.delete(series, np.s_[first : last + 1]), 0)
        # The height is 6 and a standard normal number; a bell begins and a funnel ends with a step of 0.
        assert 1 < risen.max() < 11
        bends, slope = np.diff(risen, 2), np.diff(risen)
        np.testing.assert_allclose(bends, 0, atol=1e-5)
        np.testing.assert_allclose(np.sign(np.round(slope, 5)), [0, 1, -1][kind])
        if kind:
            np.testing.assert_allclose(np.abs(slope[0]), risen.max() / len(risen), rtol=1e-5)
        spans.append((first + (kind != 1), len(risen) - (kind == 0)))  # onset of 1..T, steps to the end
    onsets, lengths = np.array(spans).T
    assert {*onsets} == set(range(5, 11))  # [T/8, T/4], all met
    assert 10 <= lengths.min() <= 12 and 27 <= lengths.max() <= 30  # [T/4, 3T/4]


def test_made_up_series_have_the_noise_that_is_asked_for_and_are_drawn_with_a_seed():
    quiet, loud = (synthetic_series(steps=64, noise=noise, seed=7) for noise in (0.0, 0.5))
    first, again, other = (synthetic_series(steps=16, seed=seed).train_images for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1
    before = loud.train_images[:, :7, 0, 0]  # before T/8: noise alone, 630 draws of it
    assert not quiet.train_images[:, :7].any()
    np.testing.assert_allclose(before.std(), 0.5, rtol=0.1)
    with pytest.raises(UserError, match="steps = 7, noise = 1.0: must be >= 8"):
        synthetic_series(steps=7)


def test_frames_with_classes_of_their_own_are_told_where_they_belong():
    whole = synthetic_series(num_train=6, num_test=3, steps=8)
    labels = np.zeros((6, 8), int)
    with pytest.raises(UserError, match="train_labels: shape .6, 8.: .* a data set with task='frames'"):
        check(dataclasses.replace(whole, train_labels=labels), "here")
    check(
        dataclasses.replace(
            whole, train_labels=np.arange(48).reshape(6, 8) % 3, test_labels=labels[:3], task="frames"
        ),
        "here",
    )


def test_frames_of_made_up_series_have_the_class_of_the_series():
    sizes = {"num_train": 6, "num_test": 3, "steps": 8}
    whole, frames = (synthetic_series(**sizes, frames=each) for each in (False, True))
    assert (whole.task, frames.task) == ("classes", "frames")
    np.testing.assert_array_equal(frames.train_images, whole.train_images)
    np.testing.assert_array_equal(frames.train_labels, [[kind] * 8 for kind in (0, 1, 2, 0, 1, 2)])
    np.testing.assert_array_equal(frames.test_labels, [[kind] * 8 for kind in (0, 1, 2)])
