"""Classes of unequal size: orders that make up for it, weights that do, and what a run says of either."""

import dataclasses
from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mtkd_jax import config as configuration
from mtkd_jax import experiment
from mtkd_jax.data import loading
from mtkd_jax.engine import jobs
from mtkd_jax.methods.seams import SUPERVISED, hard_loss
from mtkd_jax.plans import checks, plan, students, teachers
from mtkd_jax.results import evaluation
from mtkd_jax.types import DataSet, UserError
from tests import small
from tests.contexts import context
from tests.references import losses as reference

few = settings(max_examples=40, deadline=None)
RARE = (90, 20, 10)  # images of each class


def dataset(sizes=RARE, test_sizes=(20, 10, 5)) -> DataSet:
    """Noisy images of as many classes as there are sizes, the last ones rare."""
    rng = np.random.default_rng(0)

    def images(labels):
        centres = np.random.default_rng(1).normal(size=(len(sizes), 4, 4, 1))
        return (centres[labels] + 1.5 * rng.normal(size=(len(labels), 4, 4, 1))).astype(np.float32)

    labels, test_labels = (
        np.repeat(np.arange(len(of_class)), of_class).astype(np.int32) for of_class in (sizes, test_sizes)
    )
    names = tuple(f"class {c}" for c in range(len(sizes)))
    return DataSet("rare", images(labels), labels, images(test_labels), test_labels, names)


def split_of(rare: DataSet, num_train: int = 60) -> loading.Split:
    return loading.split(rare, num_train=num_train, val_fraction=0.2, seed=0)


# --- orders -------------------------------------------------------------------------------------------


@few
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=6),
    num_steps=st.integers(1, 7),
    batch_size=st.integers(1, 9),
    seed=st.integers(0, 99),
)
def test_balanced_order_gives_classes_and_their_indices_floor_or_ceil(sizes, num_steps, batch_size, seed):
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    rows = np.arange(len(labels))
    asked = {"num_steps": num_steps, "batch_size": batch_size, "key": (seed, 3)}
    order = loading.epoch_order(rows, **asked, labels=labels)
    assert order.shape == (num_steps, batch_size) and order.dtype == np.int32
    np.testing.assert_array_equal(order, loading.epoch_order(rows, **asked, labels=labels))
    num = num_steps * batch_size
    of_class = np.bincount(labels[order.ravel()], minlength=len(sizes))
    assert set(of_class) <= {num // len(sizes), -(-num // len(sizes))} and of_class.sum() == num
    for c, size in enumerate(sizes):
        times = np.bincount(order.ravel(), minlength=len(rows))[labels == c]
        assert times.max() - times.min() <= 1 and len(times) == size


def test_who_is_drawn_once_more_is_a_matter_of_lot_and_order_is_shuffled():
    labels = np.repeat([0, 1, 2], (50, 5, 5))
    orders = [
        loading.epoch_order(np.arange(60), num_steps=1, batch_size=10, key=(k,), labels=labels)
        for k in range(300)
    ]
    most = Counter(int(np.argmax(np.bincount(labels[order.ravel()]))) for order in orders)
    assert min(most[c] for c in range(3)) > 60  # 100 expected
    first = np.bincount(labels[[order[0, 0] for order in orders]])
    assert first.min() > 60


def test_without_labels_the_order_is_what_it_always_was():
    """Numbers of runs from before there was any balancing: the permutations of the key's generator."""
    rng = np.random.default_rng(np.random.SeedSequence((2, 7, 1)))
    expected = np.concatenate([rng.permutation(np.arange(5)) for _ in range(2)])[:8].reshape(2, 4)
    np.testing.assert_array_equal(
        loading.epoch_order(np.arange(5), num_steps=2, batch_size=4, key=(7, 1)), expected
    )


def test_teachers_and_students_draw_every_class_equally_often_and_hidden_labels_are_not_looked_at():
    rare = dataset()
    split = split_of(rare)
    config = small.config(
        **{
            "data.sampling": "balanced",
            "students.transfer": ("labelled", "unlabelled"),
            "train.batch_size": 12,
        }
    )
    labels = rare.train_labels
    of_teachers = teachers.job(config, split, "mlp(hidden=(8,))").order(0)
    for k in range(3):
        assert np.ptp(np.bincount(labels[of_teachers[:, k].ravel()])) <= 1
    labelled = students.batches(config, split, "labelled")(0)
    assert np.ptp(np.bincount(labels[labelled.ravel()])) <= 1
    mixed = students.batches(config, split, "unlabelled")(0)
    assert np.ptp(np.bincount(labels[mixed[:, :6].ravel()])) <= 1
    assert not np.isin(mixed[:, 6:], split.train).any()
    relabelled = rare.train_labels.copy()
    relabelled[split.pool] = 0
    hidden = dataclasses.replace(split, dataset=dataclasses.replace(rare, train_labels=relabelled))
    np.testing.assert_array_equal(mixed, students.batches(config, hidden, "unlabelled")(0))


# --- weights ------------------------------------------------------------------------------------------


def test_class_weights_by_hand():
    split = split_of(dataset(), num_train=60)
    own = split.dataset.train_labels[split.train]
    counts = np.bincount(own)
    weights = loading.class_weights(split)
    assert weights[split.train].mean() == pytest.approx(1, rel=1e-6)
    for c, count in enumerate(counts):
        np.testing.assert_allclose(weights[split.train][own == c], 60 / (3 * count), rtol=1e-6)
    others = np.setdiff1d(np.arange(len(weights)), split.train)
    assert not weights[others].any()  # of hidden labels nothing can be read here either


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_weighted_hard_loss_is_the_reference(smoothing):
    rng = np.random.default_rng(0)
    student, label = 2 * rng.normal(size=(6, 3)), rng.integers(3, size=6)
    weight, labelled = rng.uniform(0.2, 3, size=6).astype(np.float32), np.arange(6) != 2
    seen = context(student, np.zeros((1, 6, 3)), label, labelled=labelled, label_smoothing=smoothing)
    seen = dataclasses.replace(seen, batch=dataclasses.replace(seen.batch, weight=jnp.asarray(weight)))
    entropies = [
        reference.cross_entropy(reference.softmax(z), y, smoothing) if known else 0.0
        for z, y, known in zip(student, label, labelled)
    ]
    np.testing.assert_allclose(hard_loss(seen), weight * entropies * 6 / 5, rtol=1e-5)
    unweighted = dataclasses.replace(seen, batch=dataclasses.replace(seen.batch, weight=None))
    ones = dataclasses.replace(seen, batch=dataclasses.replace(seen.batch, weight=jnp.ones(6)))
    np.testing.assert_array_equal(hard_loss(unweighted), hard_loss(ones))


def test_a_run_without_weights_carries_none_and_one_with_them_hands_them_to_every_stage():
    split = split_of(dataset())
    plain, weighted = small.config(), small.config(**{"train.class_weights": "balanced"})
    assert jobs.examples(plain, split).weight is None  # no leaf: the very program of before
    assert loading.gather(jobs.examples(plain, split), jnp.arange(3)).weight is None
    family = students.families(weighted)[0]
    made = [
        teachers.job(weighted, split, "mlp(hidden=(8,))"),
        students.job(weighted, split, "labelled", family, (), {}),
    ]
    for job in made:
        batch = jax.jit(loading.gather)(job.stage_data.examples, jnp.asarray(split.train[:5]))
        np.testing.assert_array_equal(batch.weight, loading.class_weights(split)[split.train[:5]])


def test_a_window_of_examples_keeps_their_weights():
    split = split_of(dataset())
    examples = loading.examples(split, weighted=True)
    indices = split.train[[[5, 2], [7, 5]]]
    images = split.dataset.train_images[loading.rows_of(indices)]
    window, local = loading.window(examples, images, indices)
    np.testing.assert_array_equal(np.asarray(window.weight)[local], np.asarray(examples.weight)[indices])


@pytest.mark.parametrize("field", ["data.sampling", "train.class_weights"])
def test_balancing_finds_more_of_the_rare_class(field, tmp_path, monkeypatch):
    """Of overlapping classes a network that pays for the common one alone calls nearly everything common."""
    rare = dataset((300, 15), (100, 100))
    monkeypatch.setattr(configuration, "source_call", lambda config: lambda: rare)
    found = {}
    for value in (configuration.fields(configuration.default())[field], "balanced"):
        config = small.config(
            **{field: value, "data.num_train": 0, "students.modes": (), "teachers.num_members": 2}
        )
        split = experiment.load_split(config)
        stages = plan.build(config, split)
        done = small.train(config, tmp_path / value)
        group = evaluation.predict(config, split, stages, done)
        decided = group.groups[0].test.argmax(axis=-1)
        found[value] = float((decided[:, 100:] == 1).mean())
        assert any(f"({field})" in note for note in group.notes) == (value == "balanced")
    before, after = found.values()
    assert after > before + 0.1


def test_one_way_of_balancing_is_enough():
    with pytest.raises(UserError, match="one of them is enough"):
        small.config(**{"data.sampling": "balanced", "train.class_weights": "balanced"})


def test_recipes_have_no_weights_in_them():
    assert SUPERVISED.term is hard_loss  # a closure over weights would be another program for every data set


# --- the class to be detected ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "positive, names, said",
    [
        ("smok", ("no smoke", "smoke"), "did you mean 'smoke'?"),
        ("cat", ("no smoke", "smoke"), "known are no smoke, smoke"),
        ("smoke", ("none", "smoke", "fire"), "3 classes"),
    ],
)
def test_a_wrong_positive_class_is_told_before_training(positive, names, said):
    config = small.config(**{"report.positive": positive})
    with pytest.raises(UserError, match="config.report.positive") as told:
        configuration.positive_class(config, names)
    assert said in str(told.value) and "\n" not in str(told.value)
    rare = dataset((40,) * len(names), (10,) * len(names))
    split = split_of(dataclasses.replace(rare, class_names=names), num_train=0)
    with pytest.raises(UserError, match="config.report.positive"):
        checks.check_data(config, split)


def test_the_positive_class_is_the_last_of_two_unless_named():
    names = ("smoke", "no smoke")
    assert configuration.positive_class(small.config(), names) == "no smoke"
    assert configuration.positive_class(small.config(**{"report.positive": "smoke"}), names) == "smoke"
    assert configuration.positive_class(small.config(), ("a", "b", "c")) == ""
