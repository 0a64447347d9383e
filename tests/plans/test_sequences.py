"""Sequence-level distillation: what stands in the place of the references, and who learns from it."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest

from mtkd_jax import experiment
from mtkd_jax.data import tokens
from mtkd_jax.engine import decoding, population
from mtkd_jax.engine.training import Fitted
from mtkd_jax.plans import checks, plan, sequences, teachers
from mtkd_jax.results import evaluation
from mtkd_jax.tasks.tokens import say
from mtkd_jax.types import Population, UserError
from tests import small
from tests.references import sequences as reference

NUMBERS = {
    "plan": "sequence_level(num_beams=3)",
    "data.source": "numbers(num_train=400, num_test=20)",
    "data.num_train": 200,
    "data.val_fraction": 0.2,
    "model.name": "transformer(width=8, depth=1, attention_heads=2)",
    "teachers.num_members": 2,
    "train.batch_size": 20,
    "students.modes": ("output_avg",),
    "students.num_seeds": 1,
}


@pytest.fixture(scope="module")
def begun():
    """(configuration, split, untrained teachers as what their stage has done)."""
    config = small.config(**NUMBERS)
    split = experiment.load_split(config)
    model = teachers.network(split, config.model.name)
    variables = population.init(
        model, jax.random.split(jax.random.key(5), 2), split.dataset.train_images.shape[1:]
    )
    variables = jax.tree.map(lambda leaf: 3 * leaf, variables)  # sure of something
    trained = Population(model, variables, {}, ("a", "b"))
    done = {teachers.stage_name(config.model.name): Fitted(trained, np.zeros(2), (), 0.0)}
    return config, split, done


def test_of_a_beam_the_nearest_target_is_the_one_with_the_fewest_edits():
    rng = np.random.default_rng(0)
    drawn = [[rng.integers(1, 4, rng.integers(0, 6)).tolist() for _ in range(4)] for _ in range(20)]
    wanted = [rng.integers(1, 4, rng.integers(1, 6)).tolist() for _ in range(20)]
    targets = np.stack([tokens.lay_out([[]] * 4, own, 6)[1] for own in drawn])
    references = tokens.lay_out([[]] * 20, wanted, 6)[1]
    for own, want, beam in zip(sequences.nearest(targets, references), wanted, drawn):
        best = min(beam, key=lambda one, want=want: reference.edit_distance(tuple(one), tuple(want)))
        assert list(tokens.sequence_of(own)) == best  # min takes the first of several, as nearest does
    np.testing.assert_array_equal(sequences.most_probable(targets, references), targets[:, 0])


def test_students_read_what_the_teachers_say_and_are_validated_on_the_references(begun):
    config, split, done = begun
    stages = {stage.family[0].mode: stage for stage in plan.build(config, split)[1:]}
    assert list(stages) == ["output_avg", "sequence_kd", "sequence_inter"]
    ensemble = plan.ensemble_of(done)
    beams = decoding.beams(ensemble, split.dataset.train_images[split.train], 3)
    for row, choose in (("sequence_kd", sequences.most_probable), ("sequence_inter", sequences.nearest)):
        job = stages[row].make(done)
        labels = np.asarray(job.stage_data.examples.label)
        images = np.asarray(job.stage_data.examples.image)
        expected = choose(beams, split.dataset.train_labels[split.train])
        np.testing.assert_array_equal(labels[split.train], expected)
        np.testing.assert_array_equal(images[split.train, 1, 1:, 0], np.maximum(expected[:, :-1], 0))
        np.testing.assert_array_equal(images[:, 0], split.dataset.train_images[:, 0])
        np.testing.assert_array_equal(job.validation[1], split.dataset.train_labels[split.val])
        np.testing.assert_array_equal(job.validation[0], split.dataset.train_images[split.val])
        assert job.program.teachers == () and job.names == (f"{row} a=1 T=1 seed 0",)
    assert not np.array_equal(expected, beams[:, 0])  # the two rows are not the same


def test_with_a_mode_they_also_hear_what_the_teachers_say_of_every_token(begun):
    config, split, done = begun
    config = small.config(**{**NUMBERS, "plan": "sequence_level(num_beams=1, mode='output_avg')"})
    job = plan.build(config, split)[2].make(done)
    assert len(job.program.teachers) == 1
    assert [name for name in job.names if "sequence_kd" in name] == [
        "sequence_kd a=0 T=1 seed 0",
        "sequence_kd a=0.5 T=1 seed 0",
    ]


@pytest.mark.parametrize("mode", ["", "output_avg"])
def test_labels_of_teachers_are_learnt_whoever_has_trained_on_the_image(begun, mode):
    _, split, done = begun
    config = small.config(**NUMBERS, **{"teachers.bootstrap": True, "teachers.out_of_bag": True})
    config.plan = f"sequence_level(num_beams=1, mode={mode!r})"
    plan.trace(plan.build(config, split)[2].outline(done))


def test_one_token_and_a_beam_of_one_are_the_teachers_decisions(begun):
    """Of targets that end at once, the class of the first place: methods.md 8.2's oracle."""
    _, split, done = begun
    images = split.dataset.train_images[:30]
    ensemble = plan.ensemble_of(done)
    logits = population.logits(ensemble[0], images)[:, :, 0].astype(np.float64)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    decided = (weights / weights.sum(axis=-1, keepdims=True)).mean(axis=0).argmax(axis=-1)
    np.testing.assert_array_equal(decoding.beams(ensemble, images, 1)[:, 0, 0], decided)


def test_beams_are_searched_once_for_both_rows(begun, monkeypatch):
    config, split, done = begun
    asked = []

    def counted(*arguments):
        asked.append(arguments)
        return np.repeat(split.dataset.train_labels[split.train][:, None], 3, axis=1)

    monkeypatch.setattr(decoding, "beams", counted)
    rows = plan.build(config, split)[2:]
    (first, *_), (second, *_) = (
        np.asarray(row.make(done).stage_data.examples.label)[None] for row in (rows[0], rows[1])
    )
    assert len(asked) == 1
    np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    "further, said",
    [
        ({"plan": "sequence_level(num_beams=0)"}, "num_beams=0.*must be at least 1"),
        ({"plan": "sequence_level(mode='mimic_all')"}, "sequence_level cannot train by 'mimic_all'"),
        ({"data.source": "digits"}, "sequence_level is of sequences of tokens, and digits has none"),
    ],
)
def test_what_cannot_be_is_one_line(begun, further, said):
    config, split, _ = begun
    config = small.config(**{**NUMBERS, **further})
    if "data.source" in further:
        split = dataclasses.replace(split, dataset=experiment.load_split(config).dataset)
    with pytest.raises(UserError, match=said) as caught:
        plan.build(config, split)
    assert "\n" not in str(caught.value)


def test_each_network_and_all_together_are_asked_what_they_say_by_themselves(begun):
    """Evaluation keeps it beside the logits of the test places that are there."""
    _, split, done = begun
    ensemble, labels = plan.ensemble_of(done), split.dataset.test_labels
    there = labels >= 0
    each = evaluation._beside(ensemble[0], split)["spoken"]
    together = evaluation._asked_together(ensemble, split)["spoken"]
    assert each.shape == (2, there.sum(), labels.shape[1]) and together.shape == each.shape[1:]
    first = np.append(0, np.cumsum(there.sum(axis=1))[:-1])
    images = split.dataset.test_images
    np.testing.assert_array_equal(together[first], decoding.beams(ensemble, images, 1)[:, 0])
    for member, spoken in enumerate(each):
        alone = population.members(ensemble[0], [member])
        said = say(lambda images, alone=alone: population.logits(alone, images)[0], images)
        np.testing.assert_array_equal(spoken[first], said[:, 0])


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("students.transfer", ("unlabelled",), "cannot be hidden; must be \\('labelled',\\)"),
        ("data.augment.noise", 0.1, "images of numbers are numbers of tokens; must be 0"),
        ("data.augment.cutout", 1, "images of numbers are numbers of tokens; must be 0"),
    ],
)
def test_labels_cannot_be_hidden_and_tokens_not_be_changed(begun, field, value, said):
    _, split, _ = begun
    with pytest.raises(UserError, match=f"config.{field}.*{said}") as caught:
        checks.check_data(small.config(**{**NUMBERS, field: value}), split)
    assert "\n" not in str(caught.value)


def test_a_network_without_a_place_for_every_source_token_is_one_line():
    narrow = {"model.name": "transformer(width=8, depth=1, attention_heads=2, source_tokens=11)"}
    config = small.config(**{**NUMBERS, **narrow})
    with pytest.raises(UserError, match="source_tokens = 11, and sources of numbers are made of 12 numbers"):
        checks.check_data(config, experiment.load_split(config))
