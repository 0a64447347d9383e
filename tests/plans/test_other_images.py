"""Students who learn on images of another source: where these stand, and what is said of them."""

import jax
import numpy as np
import pytest

from mtkd_jax import experiment
from mtkd_jax.engine import population, step
from mtkd_jax.plans import plan, students, teachers
from mtkd_jax.types import Population, UserError
from tests import small

OTHER = {
    "data.other": "synthetic(num_classes=3, num_train=50, num_test=9, size=4, noise=0.1, seed=7)",
    "students.transfer": ("labelled", "other"),
    "students.modes": ("output_avg",),
}


@pytest.fixture(scope="module")
def prepared():
    """(configuration, split, an ensemble nobody has trained)."""
    config = small.config(**OTHER)
    split = experiment.load_split(config)
    model = teachers.network(split, config.model.name)
    variables = population.init(model, jax.random.split(jax.random.key(5), 3), (4, 4, 1))
    return config, split, (Population(model, variables, {}, ("a", "b", "c")),)


def job_of(config, split, ensemble, transfer="other"):
    (family, *_) = students.families(config)
    return students.job(config, split, transfer, family, ensemble, {})


def test_other_images_stand_behind_the_data_and_have_no_label(prepared):
    config, split, ensemble = prepared
    job, first = job_of(config, split, ensemble), len(split.dataset.train_labels)
    examples = job.stage_data.examples
    assert len(split.other) == 50 and examples.image.shape == (first + 50, 4, 4, 1)
    np.testing.assert_array_equal(examples.image[first:], split.other)
    np.testing.assert_array_equal(examples.image[:first], split.dataset.train_images)
    assert not examples.labelled[first:].any() and not examples.label[first:].any()
    assert np.flatnonzero(examples.labelled).tolist() == split.train.tolist()
    without = job_of(config, split, ensemble, "labelled").stage_data.examples
    assert len(without.label) == first
    orders = [students.batches(config, split, transfer)(0) for transfer in ("labelled", "other")]
    assert orders[0].shape == orders[1].shape == ((60 + 50) // 16, 16)
    np.testing.assert_array_equal((orders[1] >= first).sum(axis=1), 8)
    assert set(orders[1][:, :8].ravel()) <= set(split.train.tolist())


def test_with_no_labelled_image_the_hard_loss_is_nothing_and_teachers_speak_of_other_images(prepared):
    _, split, ensemble = prepared
    config = small.config(**{**OTHER, "students.labelled_fraction": 0.0, "students.alphas": (0.0, 0.5)})
    job = job_of(config, split, ensemble)
    indices = job.order(0)[0]
    assert indices.min() >= len(split.dataset.train_labels)
    said = step.compiled_teacher_logits(job.program)(indices[None], job.stage_data)[0]
    other = split.other[indices - len(split.dataset.train_labels)]
    np.testing.assert_allclose(said, population.logits(ensemble[0], other), atol=1e-4)
    variables = population.init(job.program.model, job.init_keys, (4, 4, 1))
    states = step.init_state(job.program, variables, job.init_keys, job.stage_data)
    _, losses = jax.jit(step.make_step(job.program))(states, job.hyper, indices, np.int32(0), job.stage_data)
    by_cell = {(m.cell.alpha, m.seed): loss for m, loss in zip(students.families(config)[0], losses)}
    for seed in range(2):
        np.testing.assert_allclose(by_cell[0.5, seed], by_cell[0.0, seed] / 2, rtol=1e-5)
        assert by_cell[1.0, seed] == 0 < by_cell[0.0, seed]


def test_all_teachers_speak_of_other_images_whatever_they_teach(prepared):
    config, split, ensemble = prepared
    taught = np.zeros((len(split.dataset.train_labels), 3), bool)
    taught[:, 0] = True
    dataset = type(split.dataset)(**{**vars(split.dataset), "train_teachers": taught})
    routed = type(split)(**{**vars(split), "dataset": dataset})
    speaks = job_of(config, routed, ensemble).stage_data.examples.speaks
    assert speaks[len(taught) :].all() and not speaks[: len(taught), 1].any()


def test_a_run_has_rows_of_both_transfer_sets_and_says_where_the_images_are_from(tmp_path):
    config = small.config(**{**OTHER, "train.epochs": 1, "students.num_seeds": 2, "students.alphas": (0.5,)})
    report = experiment.run(config, tmp_path, quiet=True)
    rows = {(row["name"], row["transfer"]) for row in report["rows"] if row["role"] == "student"}
    assert rows == {("output_avg", "labelled"), ("output_avg", "other")}
    assert any("50 of another source" in note for note in report["notes"])
    assert report["sizes"]["other"] == 50


@pytest.mark.parametrize(
    "fields, said",
    [
        ({"data.other": ""}, "config.data.other: is '' and students.transfer"),
        ({"students.transfer": ("labelled",)}, "where 'other' is a transfer set"),
        ({"data.other": "synthetic(size=5)"}, "has images uint8 5x5x1; they must be uint8 4x4x1"),
        ({"data.other": "sinthetic"}, "did you mean 'synthetic'"),
        ({"data.other": "folder"}, "config.data.other: folder needs path="),
        ({"students.controls": ("shuffled_teacher",)}, "shuffled teachers cannot be asked"),
    ],
)
def test_what_cannot_be_is_one_line_before_any_work(fields, said, tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "run", lambda *arguments: pytest.fail("trained"))
    with pytest.raises(UserError) as error:
        experiment.run(small.config(**{**OTHER, **fields}), tmp_path, quiet=True)
    assert said in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).count("config.") == 1
