"""Splits, orders and subsets: invariants over many made-up data sets, and values counted by hand."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtkd_jax.data import loading
from mtkd_jax.types import DataSet, Examples, UserError

few = settings(max_examples=40, deadline=None)


def dataset_of(labels, images=None):
    """A data set with these labels, and images that carry their own row number."""
    labels = np.asarray(labels, np.int32)
    if images is None:
        images = np.broadcast_to(np.arange(len(labels)).reshape(-1, 1, 1, 1), (len(labels), 2, 3, 1))
        images = images.astype(np.float32)
    return DataSet(
        name="made",
        train_images=images,
        train_labels=labels,
        test_images=images[:3],
        test_labels=labels[:3],
        class_names=tuple(str(c) for c in range(labels.max() + 1)),
    )


@st.composite
def label_lists(draw):
    sizes = draw(st.lists(st.integers(3, 30), min_size=2, max_size=6))
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return np.random.default_rng(draw(st.integers(0, 99))).permutation(labels)


# --- splits -------------------------------------------------------------------------------------------


@few
@given(labels=label_lists(), seed=st.integers(0, 9), share=st.floats(0, 1))
def test_split_parts_are_disjoint_complete_sorted_and_hold_every_class(labels, seed, share):
    num_classes, total = labels.max() + 1, len(labels)
    num_val = round(0.34 * total)
    num_train = num_classes + int(share * (total - num_val - num_classes))
    parts = loading.split(dataset_of(labels), num_train=num_train, val_fraction=0.34, seed=seed)
    assert [len(parts.train), len(parts.pool), len(parts.val)] == [
        num_train,
        total - num_val - num_train,
        num_val,
    ]
    rows = np.concatenate([parts.train, parts.pool, parts.val])
    assert rows.dtype == np.int32
    assert sorted(rows.tolist()) == list(range(total))
    for part in (parts.train, parts.pool, parts.val):
        assert np.all(np.diff(part) > 0)
    assert set(labels[parts.train]) == set(labels[parts.val]) == set(labels)


@few
@given(labels=label_lists(), seed=st.integers(0, 9))
def test_split_is_stratified_by_websters_rule(labels, seed):
    """No class could give a place to another and both come nearer to their share."""
    parts = loading.split(dataset_of(labels), num_train=0, val_fraction=0.34, seed=seed)
    sizes, taken = np.bincount(labels), np.bincount(labels[parts.val])
    last_dealt = np.max(np.where(taken > 1, (taken - 0.5) / sizes, 0))
    next_in_line = np.min(np.where(taken < sizes, (taken + 0.5) / sizes, np.inf))
    assert last_dealt <= next_in_line + 1e-12


def test_split_by_hand():
    labels = [0] * 60 + [1] * 30 + [2] * 10
    parts = loading.split(dataset_of(labels), num_train=24, val_fraction=0.2, seed=0)
    labels = np.array(labels)
    assert np.bincount(labels[parts.val]).tolist() == [12, 6, 2]
    # 48, 24 and 8 are left. A share of 24/80 makes 14.4, 7.2 and 2.4: the 24th place goes to the first class,
    # whose next half comes soonest, at 14.5/48 = 0.302 against 7.5/24 = 2.5/8 = 0.3125.
    assert np.bincount(labels[parts.train]).tolist() == [15, 7, 2]
    assert np.bincount(labels[parts.pool]).tolist() == [33, 17, 6]


def test_split_seed_decides_and_validation_does_not_depend_on_num_train():
    dataset = dataset_of(np.arange(200) % 4)

    def parts(num_train, seed):
        return loading.split(dataset, num_train=num_train, val_fraction=0.2, seed=seed)

    everything, some, fewer = parts(0, 1), parts(40, 1), parts(20, 1)
    assert len(everything.pool) == 0
    np.testing.assert_array_equal(everything.val, some.val)
    np.testing.assert_array_equal(some.train, parts(40, 1).train)
    assert set(fewer.train.tolist()) < set(some.train.tolist()) < set(everything.train.tolist())
    assert not np.array_equal(some.val, parts(40, 2).val)
    assert not np.array_equal(some.train, parts(40, 2).train)


@pytest.mark.parametrize(
    ("num_train", "val_fraction", "said"),
    [
        (
            81,
            0.2,
            r"config.data.num_train = 81: must be 0 \(all\) or 4 \(one a class\) to 80 \(100 training",
        ),
        (3, 0.2, r"config.data.num_train = 3: must be 0 \(all\) or 4 "),
        (-1, 0.2, r"config.data.num_train = -1: must be 0 "),
        (0, 0.0, r"config.data.val_fraction = 0.0: must lie strictly between 0 and 1"),
        (0, 1.0, r"config.data.val_fraction = 1.0: must lie strictly"),
        (0, float("nan"), r"config.data.val_fraction = nan: must lie strictly"),
        (
            0,
            0.03,
            r"config.data.val_fraction = 0.03: gives 3 validation examples of 100, must be at least one for",
        ),
        (
            0,
            0.99,
            r"config.data.val_fraction = 0.99: leaves no example of class \d \(\d\) for training, of 25",
        ),
    ],
)
def test_split_refuses_the_impossible_in_one_line(num_train, val_fraction, said):
    dataset = dataset_of(np.arange(100) % 4)
    with pytest.raises(UserError, match=f"^{said}"):
        loading.split(dataset, num_train=num_train, val_fraction=val_fraction, seed=0)


def test_split_refuses_a_class_with_a_single_example():
    with pytest.raises(
        UserError, match=r"class 1 \(1\) has 1 training example; must have 2, one to validate on"
    ):
        loading.split(dataset_of([0] * 20 + [1]), num_train=0, val_fraction=0.2, seed=0)


# --- subsets ------------------------------------------------------------------------------------------

LABELS = np.arange(3000) % 5
INDICES = np.arange(1, 3000, 3, dtype=np.int32)  # a third of the rows


def test_subset_keeps_each_with_the_probability_and_draws_without_replacement():
    kept = loading.subset(INDICES, LABELS, 0.7, (3, 1))
    assert np.all(np.diff(kept) > 0)
    assert set(kept.tolist()) < set(INDICES.tolist())
    assert abs(len(kept) - 700) < 5 * np.sqrt(1000 * 0.7 * 0.3)
    np.testing.assert_array_equal(kept, loading.subset(INDICES, LABELS, 0.7, (3, 1)))
    assert not np.array_equal(kept, loading.subset(INDICES, LABELS, 0.7, (3, 2)))
    np.testing.assert_array_equal(loading.subset(INDICES, LABELS, 1.0, (3, 1)), INDICES)


def test_bootstrap_draws_as_many_with_replacement():
    drawn = loading.bootstrap(INDICES, LABELS, (3, 1))
    assert len(drawn) == len(INDICES)
    assert drawn.dtype == np.int32
    assert np.all(np.diff(drawn) >= 0)
    assert set(drawn.tolist()) <= set(INDICES.tolist())
    assert abs(len(set(drawn.tolist())) / 1000 - (1 - np.exp(-1))) < 0.05
    assert not np.array_equal(drawn, loading.bootstrap(INDICES, LABELS, (3, 2)))


def test_subset_and_bootstrap_draw_again_until_every_class_is_there():
    indices, labels = np.arange(6), np.array([0, 1, 2, 0, 1, 2, 9, 9])  # class 9 is not asked for
    for number in range(30):
        assert set(labels[loading.subset(indices, labels, 0.4, (number,))]) == {0, 1, 2}
        assert set(labels[loading.bootstrap(indices, labels, (number,))]) == {0, 1, 2}


def test_subset_gives_up_with_the_field_to_change():
    everyone_alone = np.arange(20)
    with pytest.raises(UserError, match=r"^config.teachers.subset_fraction = 0.1: 100 random subsets of 20 "):
        loading.subset(everyone_alone, everyone_alone, 0.1, (0,))
    with pytest.raises(UserError, match=r"^bootstrap: 100 bootstrap samples of 20 .* data.num_train must"):
        loading.bootstrap(everyone_alone, everyone_alone, (0,))
    for fraction in (0.0, -1.0, 1.01, float("nan")):
        with pytest.raises(UserError, match=r"^config.teachers.subset_fraction = .*: must lie in \(0,1\]"):
            loading.subset(INDICES, LABELS, fraction, (0,))


# --- orders -------------------------------------------------------------------------------------------


@few
@given(
    num=st.integers(1, 40),
    num_steps=st.integers(1, 12),
    batch_size=st.integers(1, 20),
    seed=st.integers(0, 99),
)
def test_epoch_order_gives_each_index_floor_or_ceil_of_its_share(num, num_steps, batch_size, seed):
    indices = 7 * np.arange(num, dtype=np.int32) + 3
    order = loading.epoch_order(indices, num_steps=num_steps, batch_size=batch_size, key=(seed, 5))
    assert order.shape == (num_steps, batch_size)
    assert order.dtype == np.int32
    assert set(order.ravel().tolist()) <= set(indices.tolist())
    times = np.array([np.sum(order == index) for index in indices])
    assert times.sum() == num_steps * batch_size
    assert times.max() - times.min() <= 1
    # and so does every whole pass within it
    for start in range(0, num_steps * batch_size - num + 1, num):
        assert sorted(order.ravel()[start : start + num].tolist()) == indices.tolist()


def test_epoch_order_is_a_function_of_every_word_of_the_key():
    def order(*key):
        return tuple(loading.epoch_order(np.arange(50), num_steps=5, batch_size=10, key=key).ravel().tolist())

    keys = [(0,), (0, 0), (0, 0, 0), (1,), (1, 0), (0, 1), (0, 1, 0), (2**40, 1), (1, 2**40)]
    assert len({order(*key) for key in keys}) == len(keys)
    assert order(1, 2, 3, 4) == order(1, 2, 3, 4)


def test_epoch_order_is_shuffled_evenly():
    """Each index is as likely in the first place as any other (chi-squared, 9 degrees, p = 1e-6)."""
    first = [
        loading.epoch_order(np.arange(10), num_steps=1, batch_size=2, key=(k,))[0, 0] for k in range(1000)
    ]
    counts = np.bincount(first, minlength=10)
    assert np.sum((counts - 100) ** 2 / 100) < 47.0


@few
@given(
    num_labelled=st.integers(1, 20),
    num_unlabelled=st.integers(1, 40),
    num_steps=st.integers(1, 10),
    parts=st.tuples(st.integers(0, 8), st.integers(1, 8)),
    seed=st.integers(0, 99),
)
def test_mixed_order_has_the_same_number_of_each_kind_in_every_batch(
    num_labelled, num_unlabelled, num_steps, parts, seed
):
    labelled, unlabelled = np.arange(num_labelled), 100 + np.arange(num_unlabelled)
    order = loading.mixed_order(
        labelled,
        unlabelled,
        num_steps=num_steps,
        batch_size=sum(parts),
        labelled_per_batch=parts[0],
        key=(seed,),
    )
    assert order.shape == (num_steps, sum(parts))
    assert order.dtype == np.int32
    assert np.all(np.sum(order < 100, axis=1) == parts[0])
    for indices in (labelled, unlabelled):
        times = [np.sum(order == index) for index in indices]
        assert max(times) - min(times) <= 1


def test_mixed_order_refuses_what_is_not_mixed():
    arguments = {"num_steps": 2, "batch_size": 4, "key": (0,)}
    for number in (-1, 4, 5):
        with pytest.raises(
            UserError, match=rf"labelled_fraction: gives {number} labelled images, must give 0..3"
        ):
            loading.mixed_order(np.arange(5), np.arange(5), labelled_per_batch=number, **arguments)
    with pytest.raises(UserError, match=r"^config.students.transfer = 'unlabelled': .* data.num_train must"):
        loading.mixed_order(np.arange(5), np.arange(0), labelled_per_batch=2, **arguments)


# --- arrays for the device ----------------------------------------------------------------------------


def colour_split(dtype, num=40):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (num, 4, 3, 2), dtype=np.uint8)
    images = images if dtype == np.uint8 else (images.astype(dtype) * 0.1 - 7)
    return loading.split(dataset_of(np.arange(num) % 3, images), num_train=9, val_fraction=0.25, seed=0)


def test_examples_show_only_the_labels_of_the_training_rows():
    parts = colour_split(np.uint8)
    shown = loading.examples(parts)
    np.testing.assert_array_equal(shown.image, parts.dataset.train_images)
    assert shown.image.dtype == jnp.uint8
    assert shown.label.dtype == jnp.int32
    assert np.flatnonzero(shown.labelled).tolist() == parts.train.tolist()
    np.testing.assert_array_equal(shown.label[parts.train], parts.dataset.train_labels[parts.train])
    hidden = np.concatenate([parts.pool, parts.val])
    assert np.any(parts.dataset.train_labels[hidden])  # there is something to hide
    assert not np.any(shown.label[hidden])


def test_the_validation_set_is_as_stored():
    parts = colour_split(np.uint8)
    images, labels = loading.validation_set(parts)
    np.testing.assert_array_equal(images, parts.dataset.train_images[parts.val])
    np.testing.assert_array_equal(labels, parts.dataset.train_labels[parts.val])


@pytest.mark.parametrize("shape", [(5,), (2, 5)])
def test_gather_takes_rows_and_scales_bytes_inside_jit(shape):
    parts = colour_split(np.uint8)
    shown = loading.examples(parts)
    rows = np.random.default_rng(1).integers(0, 40, shape).astype(np.int32)
    batch = jax.jit(loading.gather)(shown, jnp.asarray(rows))
    assert batch.image.dtype == jnp.float32
    np.testing.assert_allclose(batch.image, parts.dataset.train_images[rows] / 255.0, rtol=1e-6)
    np.testing.assert_array_equal(batch.label, np.asarray(shown.label)[rows])
    np.testing.assert_array_equal(batch.labelled, np.asarray(shown.labelled)[rows])
    np.testing.assert_array_equal(batch.index, rows)


def test_gather_leaves_floats_as_they_are():
    parts = colour_split(np.float32)
    batch = loading.gather(loading.examples(parts), jnp.array([3, 1]))
    np.testing.assert_array_equal(batch.image, parts.dataset.train_images[[3, 1]])


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_channel_statistics_are_those_of_the_labelled_training_images(dtype):
    parts = colour_split(dtype)
    mean, std = loading.channel_statistics(parts)
    seen = np.asarray(loading.scale(jnp.asarray(parts.dataset.train_images[parts.train])), np.float64)
    np.testing.assert_allclose(mean, seen.mean((0, 1, 2)), rtol=1e-6)
    np.testing.assert_allclose(std, seen.std((0, 1, 2)), rtol=1e-6)
    assert all(type(value) is float for value in mean + std)


def test_channel_statistics_never_invite_a_division_by_nothing():
    """A channel that never varies has deviation 1, one that hardly ever does 1/255 of its range."""
    num = 70_000
    images = np.full((num, 1, 1, 3), 3.3, np.float32)
    images[7, ..., 1] += 51
    images[..., 2] = np.linspace(-1e-6, 1e-6, num).reshape(num, 1, 1)
    rows = np.arange(num, dtype=np.int32)
    mean, std = loading.channel_statistics(
        loading.Split(dataset_of(rows % 2, images), train=rows, pool=rows[:0], val=rows[:0])
    )
    np.testing.assert_allclose(mean[:2], [3.3, 3.3 + 51 / num], rtol=1e-6)
    assert std == (1.0, pytest.approx(51 / 255), pytest.approx(1e-6 / np.sqrt(3), rel=1e-4))


# --- groups -------------------------------------------------------------------------------------------


def grouped(num_groups=12, per_group=6, test_groups=(90, 91)):
    """A data set whose groups hold every class alike."""
    total = num_groups * per_group
    blank = lambda num: np.zeros((num, 2, 2, 1), np.uint8)  # noqa: E731
    return DataSet(
        name="grouped",
        train_images=blank(total),
        train_labels=(np.arange(total) % 3).astype(np.int32),
        test_images=blank(6),
        test_labels=(np.arange(6) % 3).astype(np.int32),
        class_names=("a", "b", "c"),
        train_groups=np.repeat(np.arange(num_groups), per_group).astype(np.int32),
        test_groups=np.resize(test_groups, 6).astype(np.int32),
    )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("val_fraction, num_val", [(0.25, 18), (1 / 3, 24), (0.5, 36)])
def test_no_group_is_both_validated_and_trained_on(seed, val_fraction, num_val):
    dataset = grouped()
    cut = loading.split(dataset, num_train=12, val_fraction=val_fraction, seed=seed)
    assert len(cut.val) == num_val and cut.dataset.notes == ()
    seen = np.concatenate([cut.train, cut.pool])
    assert sorted([*cut.val, *seen]) == list(range(72))
    assert not set(dataset.train_groups[cut.val]) & set(dataset.train_groups[seen])


def test_a_random_cut_through_groups_is_told_and_a_shared_test_group_refused():
    cut = loading.split(grouped(), num_train=0, val_fraction=0.25, seed=0, how="random")
    (note,) = cut.dataset.notes
    assert "groups have images in both training and validation" in note
    shared = grouped(test_groups=(3, 90))
    with pytest.raises(UserError, match="grouped: 1 groups are in both training and test, the first"):
        for seed in range(20):  # until group 3 is not validated on
            loading.split(shared, num_train=0, val_fraction=0.25, seed=seed)
    with pytest.raises(UserError, match=r"no validation set of whole groups can be cut \(12 groups for 20"):
        loading.split(grouped(), num_train=0, val_fraction=0.05, seed=0)


@pytest.mark.parametrize("seed", range(8))
def test_a_part_of_groups_leaves_every_class_and_holds_every_class_where_one_can(seed):
    labels, groups = np.repeat([0, 1], 20), np.tile(np.repeat([0, 1, 2, 3], 5), 2)
    labels[groups == 3] = 0  # class 1 is in three of the four groups
    part = loading.part_of_groups(labels, groups, 0.25, seed)
    assert set(labels[part]) == {0, 1} and 3 not in groups[part]
    labels[groups > 0] = 0  # and now in one alone, which must be trained on
    part = loading.part_of_groups(labels, groups, 0.25, seed)
    assert set(labels[part]) == {0} and 0 not in groups[part]
    with pytest.raises(ValueError, match="every part of the groups takes a class away"):
        loading.part_of_groups(groups[:20], groups[:20], 0.25, seed)


def test_the_publishers_validation_rows_are_validated_on():
    rows = np.arange(60, 72, dtype=np.int32)  # groups 10 and 11
    cut = loading.split(dataclasses.replace(grouped(), val_rows=rows), num_train=0, val_fraction=0.2, seed=3)
    np.testing.assert_array_equal(cut.val, rows)
    np.testing.assert_array_equal(cut.train, np.arange(60))


def test_a_window_holds_the_rows_of_its_indices_and_has_one_size():
    total = 10
    examples = Examples(
        image=np.zeros((2, 1, 1, 1), np.uint8), label=np.arange(total), labelled=np.arange(total) % 2 == 0
    )
    images = np.arange(total, dtype=np.uint8).reshape(total, 1, 1, 1)
    for indices in ([[7, 3], [3, 9]], [[1, 1], [1, 1]]):
        indices = np.asarray(indices)
        found, local = loading.window(examples, images[loading.rows_of(indices)], indices)
        assert found.image.shape == (4, 1, 1, 1)
        np.testing.assert_array_equal(found.image[local].squeeze(), indices)
        np.testing.assert_array_equal(found.label[local], indices)
        np.testing.assert_array_equal(found.labelled[local], indices % 2 == 0)
        np.testing.assert_array_equal(loading.gather(found, local[0]).index, indices[0])


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"val_rows": np.array([0, 1])},
            "made: the validation set that the data brings leaves no example of class 1 (cat) for "
            "validation; must hold some, not all",
        ),
        (
            {"val_rows": np.array([0, 4, 5, 6, 7])},
            "made: the validation set that the data brings leaves no example of class 1 (cat) for training; "
            "must hold some, not all",
        ),
        (
            {"train_labels": np.array([0, 0, 0, 0, 0, 0, 0, 1], np.int32)},
            "made: class 1 (cat) has 1 training example; must have 2, one to validate on",
        ),
        (
            # A quarter is one of these groups, and each holds one class.
            {"train_groups": np.array([0, 0, 1, 1, 2, 2, 3, 3]), "test_groups": np.array([4, 4])},
            "val_fraction = 0.25: leaves no example of class 0 (bee) for validation, of 4; groups stay "
            "whole: must be larger, or the class in more groups, or data.split random",
        ),
    ],
    ids=["not in val", "all in val", "one example", "groups"],
)
def test_what_leaves_a_part_without_a_class_is_named(fields, said):
    images = np.zeros((8, 2, 2, 1), np.uint8)
    made = {
        "name": "made",
        "class_names": ("bee", "cat"),
        "train_images": images,
        "train_labels": np.arange(8, dtype=np.int32) // 4,
        "test_images": images[:2],
        "test_labels": np.arange(2, dtype=np.int32),
    }
    with pytest.raises(UserError) as caught:
        loading.split(DataSet(**made | fields), num_train=0, val_fraction=0.25, seed=0)
    assert said in str(caught.value) and "\n" not in str(caught.value)
