"""What makes teachers differ: each option reaches the member it is for, and nobody else."""

import dataclasses

import jax
import numpy as np
import pytest

from mtkd_jax import experiment
from mtkd_jax.engine import population, training
from mtkd_jax.plans import plan, students, teachers
from mtkd_jax.runs.logbook import Logbook
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
