"""What makes teachers differ: each option reaches the member it is for, and nobody else."""

import dataclasses

import jax
import numpy as np
import pytest

from mtkd_jax import experiment
from mtkd_jax.engine import population, training
from mtkd_jax.plans import plan, students, teachers
from mtkd_jax.runs.logbook import Logbook
from mtkd_jax.types import UserError
from tests import small


def seen_by(job):
    """Indices [M][...] of everything each member is shown in all epochs."""
    orders = np.stack([job.order(epoch) for epoch in range(job.epochs)])
    return [orders[:, :, m].ravel() for m in range(orders.shape[2])]


def job(**overrides):
    config = small.config(**{"train.batch_size": 8, "train.epochs": 20, **overrides})
    split = experiment.load_split(config)
    return teachers.job(config, split, config.model.name), split


def kernels(work, tmp_path):
    with Logbook(tmp_path, quiet=True) as logbook:
        fitted = training.fit(work, tmp_path / "checkpoints", logbook)
    return np.asarray(fitted.population.variables["params"]["dense1"]["kernel"])


def test_by_default_every_teacher_sees_everything_in_its_own_order():
    work, split = job()
    seen = seen_by(work)
    for indices in seen:
        assert set(indices) == set(split.train)
    assert not np.array_equal(seen[0], seen[1])
    assert not np.array_equal(work.order(0), work.order(1))


def test_each_teacher_sees_its_own_bernoulli_subset():
    work, split = job(**{"teachers.subset_fraction": 0.5, "teachers.num_members": 8})
    subsets = [set(indices) for indices in seen_by(work)]
    sizes = [len(subset) / len(split.train) for subset in subsets]
    assert all(subset < set(split.train) for subset in subsets)
    assert len({frozenset(subset) for subset in subsets}) == 8 and len(set(sizes)) > 1
    np.testing.assert_allclose(np.mean(sizes), 0.5, atol=0.1)


def test_each_teacher_sees_its_own_bootstrap_sample():
    work, split = job(**{"teachers.bootstrap": True, "train.batch_size": 60, "teachers.num_members": 8})
    samples = [np.bincount(indices, minlength=200) for indices in seen_by(work)]
    shares = [np.mean(counts[split.train] > 0) for counts in samples]
    np.testing.assert_allclose(np.mean(shares), 1 - np.exp(-1), atol=0.05)
    assert len({counts.tobytes() for counts in samples}) == 8
    for counts in samples:  # drawn with replacement: some twice as often as others, all epochs alike
        assert set(counts[split.train] % 20) == {0} and counts.max() >= 40


@pytest.mark.parametrize(
    "field, values",
    [
        ("learning_rates", (1e-2, 0.1, 1e-2)),
        ("weight_decays", (0.0, 1.0, 0.0)),
        ("label_smoothings", (0.0, 0.3, 0.0)),
    ],
)
def test_a_hyper_parameter_of_one_member_changes_that_member_alone(field, values, tmp_path):
    few = {"train.epochs": 2, "train.batch_size": 16}
    plain = kernels(job(**few)[0], tmp_path / "plain")
    mixed = kernels(job(**few, **{f"teachers.{field}": values})[0], tmp_path / "mixed")
    np.testing.assert_array_equal(plain[[0, 2]], mixed[[0, 2]])
    assert not np.array_equal(plain[1], mixed[1])


@pytest.mark.parametrize("augment", [{"shift": 1}, {"flip": True}, {"cutout": 2}, {"noise": 0.2}])
def test_every_augmentation_reaches_training(augment, tmp_path):
    few = {"train.epochs": 1, "train.batch_size": 16}
    plain = kernels(job(**few)[0], tmp_path / "plain")
    options = {f"data.augment.{name}": value for name, value in augment.items()}
    assert not np.array_equal(plain, kernels(job(**few, **options)[0], tmp_path / "augmented"))


def test_a_fused_network_is_fitted_and_says_what_the_aim_reads(tmp_path):
    config = small.config(**{"students.modes": ("supernet", "supernet2"), "train.epochs": 2})
    split = experiment.load_split(config)
    done = small.train(config, tmp_path)
    ensemble = plan.ensemble_of(done)
    models, variables = population.frozen_parts(ensemble)
    image = np.asarray(split.dataset.train_images[split.val], np.float32) / 255
    outputs = population.apply_ensemble(models, variables, image)
    for tap in ("logits", "embedding"):
        fitted = done[students.fuser_stage(tap)]
        fuser = students.Fuser(fitted.population.model, tap)
        fused = fuser(population.take(fitted.population.variables, 0), outputs)
        log_probs = jax.nn.log_softmax(fused)
        nll = -np.take_along_axis(log_probs, split.dataset.train_labels[split.val][:, None], axis=1).mean()
        np.testing.assert_allclose(nll, fitted.val_nll[0], rtol=1e-4)
        untrained = dataclasses.replace(students.fuser_job(config, split, tap, ensemble), epochs=0)
        start = population.init(
            untrained.program.model, untrained.init_keys, (1, 1, outputs_width(outputs, tap))
        )
        before = jax.nn.log_softmax(fuser(population.take(start, 0), outputs))
        assert (
            nll < -np.take_along_axis(before, split.dataset.train_labels[split.val][:, None], axis=1).mean()
        )


def outputs_width(outputs, tap):
    return students.concatenated(outputs, tap).shape[-1]


def with_groups(split, groups):
    dataset = dataclasses.replace(split.dataset, train_groups=groups, test_groups=groups[:1])
    return dataclasses.replace(split, dataset=dataset)


def test_every_teacher_leaves_out_another_part_of_whole_groups():
    config = small.config(**{"teachers.folds": True, "teachers.num_members": 4})
    split = experiment.load_split(config)
    for groups in (None, np.arange(len(split.dataset.train_labels)) // 5):
        own = split if groups is None else with_groups(split, groups)
        seen = [teachers.examples_of(config, own, config.model.name, k) for k in range(4)]
        left_out = [np.setdiff1d(split.train, one) for one in seen]
        np.testing.assert_array_equal(np.sort(np.concatenate(left_out)), split.train)
        assert max(map(len, left_out)) - min(map(len, left_out)) <= (4 if groups is None else 12)
        if groups is not None:
            assert not any(set(groups[one]) & set(groups[out]) for one, out in zip(seen, left_out))


@pytest.mark.parametrize("options", [{"folds": True}, {"bootstrap": True}, {"subset_fraction": 0.6}])
def test_who_has_trained_on_a_labelled_image_does_not_teach_it(options):
    fields = {f"teachers.{name}": value for name, value in options.items()}
    few = {"teachers.num_members": 3, "data.num_train": 60, "train.batch_size": 8}
    config = small.config(**few, **fields, **{"teachers.out_of_bag": True})
    split = experiment.load_split(config)
    speaks = teachers.speakers(config, split, 3)
    for k, rows in enumerate(seen_by(teachers.job(config, split, config.model.name))):
        assert not speaks[rows, k].any()
        assert speaks[np.setdiff1d(split.train, rows), k].all()
    assert len(split.pool) and speaks[split.pool].all()
    voices = speaks[split.train].sum(axis=1)
    note = teachers.out_of_bag(config, split)
    assert f"{voices.mean():.1f} of 3" in note and f"; {np.sum(voices == 0)} of 60 have none" in note
    if options == {"folds": True}:
        assert set(voices) == {1}


def test_what_cannot_be_left_out_of_a_bag_is_refused():
    def error(**options):
        with pytest.raises(UserError) as caught:
            config = small.config(**{f"teachers.{name}": value for name, value in options.items()})
            teachers.job(config, experiment.load_split(config), config.model.name)
        return str(caught.value)

    assert "set folds, bootstrap or subset_fraction" in error(out_of_bag=True)
    assert "num_members >= 2" in error(folds=True, num_members=1)
    assert "one or the other" in error(folds=True, bootstrap=True)
    assert "199 parts cannot be dealt" in error(folds=True, num_members=199)
