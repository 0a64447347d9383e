"""Tables of numbers: the values that were written, or one line that says where and what is wrong."""

from __future__ import annotations

import numpy as np
import pytest

from mtkd_jax.data import tables
from mtkd_jax.data.sources.rows import breast_cancer, table
from mtkd_jax.types import UserError

SPLIT = """\
id; height; label; width; split
7; 1.5; 10; -2; train
8; 2.5; 9.0; 1e1; train
9; 0; 9; 3; validation
11; 1; 10; 4; Val
10; 0.5; 10; .5; test
12; 0.75; 9; 6; test
"""


def written(folder, text):
    file = folder / "list.csv"
    file.write_text(text, encoding="utf-8")
    return str(file)


def refused(folder, text, **arguments):
    with pytest.raises(UserError) as caught:
        table(path=written(folder, text), **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_rows_are_images_of_one_pixel_with_a_channel_a_column(tmp_path):
    found = table(path=written(tmp_path, SPLIT), drop=("id",))
    assert found.column_names == ("height", "width") and found.class_names == ("9", "10")
    expected = np.array([[1.5, -2], [2.5, 10], [0, 3], [1, 4]], np.float32)[:, None, None]
    np.testing.assert_array_equal(found.train_images, expected)
    np.testing.assert_array_equal(found.test_images, np.array([[0.5, 0.5], [0.75, 6]])[:, None, None])
    assert found.train_labels.tolist() == [1, 0, 0, 1] and found.test_labels.tolist() == [1, 0]
    assert found.val_rows.tolist() == [2, 3]
    assert found.train_images.dtype == np.float32


def test_without_splits_a_test_set_is_drawn_of_every_class_and_of_whole_groups(tmp_path):
    lines = [f"{n},{'ab'[n % 2]},g{n // 4}" for n in range(40)]
    plain = table(
        path=written(tmp_path, "\n".join(["x,kind,y", *(f"{line}1" for line in lines)])),
        label="kind",
        drop=("y",),
    )
    assert np.bincount(plain.test_labels).tolist() == [4, 4] and len(plain.train_labels) == 32
    assert plain.notes == ("The test set, 0.2 of all examples, was drawn.",)
    assert sorted([*plain.train_images.flat, *plain.test_images.flat]) == list(range(40))
    grouped = table(path=written(tmp_path, "\n".join(["x,kind,who", *lines])), label="kind", group="who")
    assert grouped.column_names == ("x",)
    assert not {*grouped.train_groups.tolist()} & {*grouped.test_groups.tolist()}
    np.testing.assert_array_equal(grouped.train_groups, grouped.train_images[:, 0, 0, 0] // 4)


@pytest.mark.parametrize(
    "text, arguments, message",
    [
        (
            "a,label\n1,x\n,y\nnan,y",
            {},
            "list.csv: line 3: a is missing; must be a number in every line (2 of 3",
        ),
        (
            "a,label\n1,x\nred,y",
            {},
            "line 3: a is 'red'; must be a number in every line; drop=('NAME',) leaves",
        ),
        ("a,label\n1,x\n1_0,y", {}, "line 3: a is '1_0'; must be a number in every line"),
        ("a,label\n1,x\n-inf,y", {}, "line 3: a is -inf; must be a finite number"),
        ("a,label\n1,x\n2", {}, "line 3: label is missing; must be there in every line"),
        ("a,lable\n1,x", {}, "has no column 'label'; did you mean 'lable'?"),
        ("a,label\n1,x", {"drop": ("b",)}, "has no column 'b'; known are a, label"),
        ("a,label\n1,x", {"drop": "a"}, "table: drop = 'a': must be a tuple of columns"),
        ("a,a,label\n1,1,x", {}, "has two columns 'a'; must have one of each name"),
        ("a,label\n1,x,2", {}, "line 2: has 3 entries for 2 columns"),
        (",a,label\n0,1,x", {}, "column 1 has no name; must have one, or drop=('',) leaves it out, as"),
        ("a,label\n", {}, "must have a line for each row"),
        ("label\nx", {}, "must have a column of numbers beside its labels"),
        ("a,label,split\n1,x,train\n2,y,dunno", {}, "line 3: split is 'dunno'; must be train, val or test"),
        (
            "a,label,split\n1,x,train\n2,y,train\n3,x,test\n4,y,test\n5,z,test",
            {},
            "class z is in test and not in train; must be in every split",
        ),
        ("a,label\n1,x\n2,y", {}, "no test set can be drawn (2 of 2 classes have one example, such as x)"),
        ("", {}, "has no column 'label'"),
    ],
)
def test_what_is_wrong_is_one_line(text, arguments, message, tmp_path):
    assert message in refused(tmp_path, text, **arguments)


def test_a_column_without_a_name_may_be_left_out(tmp_path):
    text = "\n".join([",a,label", *(f"{n},{n}.5,{'xy'[n % 2]}" for n in range(20))])
    found = table(path=written(tmp_path, text), drop=("",))
    assert found.column_names == ("a",) and found.train_images.shape == (16, 1, 1, 1)


def test_rows_of_equal_numbers_are_no_blank_images(tmp_path):
    lines = [f"{n},{n},{'xy'[n % 2]},{'test' if n > 15 else 'train'}" for n in range(20)]
    assert table(path=written(tmp_path, "\n".join(["a,b,label,split", *lines]))).notes == ()


def test_no_table_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no such file; must be a table with the column label"):
        table(path=str(tmp_path))


def test_a_reader_finds_its_columns_in_any_order_and_raises_line_by_line(tmp_path):
    file = tmp_path / "new.tsv"
    file.write_text("b\tother\ta\n1\tx\t2\n\n3\ty\tz\n4\ty\t-1e39\n", encoding="utf-8")
    (first, read), (second, broken), (_, large) = tables.readers(file, ("a", "b"))
    assert (first, second) == (2, 4)
    np.testing.assert_array_equal(read(), np.array([[[2, 1]]], np.float32))
    with pytest.raises(UserError, match="line 4: a is 'z'"):
        broken()
    with pytest.raises(UserError, match="line 5: a is -1e39; must be a finite number that float32 can hold"):
        large()


def test_the_tables_of_scikit_learn_are_cut_the_same_way_in_every_run():
    found = breast_cancer()
    assert found.train_images.shape == (455, 1, 1, 30) and found.test_images.shape == (114, 1, 1, 30)
    assert len(found.column_names) == 30 and found.class_names == ("malignant", "benign")
    np.testing.assert_array_equal(found.test_images, breast_cancer().test_images)
