"""Supervision complexity: the card's values, kernels against ones by hand, and what the report tells."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from mtkd_jax import experiment
from mtkd_jax.addresses import build_model
from mtkd_jax.engine import training
from mtkd_jax.engine.population import take
from mtkd_jax.plans import plan
from mtkd_jax.report import document
from mtkd_jax.results import complexity, evaluation
from mtkd_jax.runs import predictions
from mtkd_jax.types import Task, UserError
from tests import small

IMAGES = np.random.default_rng(3).integers(0, 256, size=(7, 2, 3, 1), dtype=np.uint8)


@pytest.mark.parametrize(
    "kernel, targets, expected",
    [
        (np.eye(2), [1, -1], 1.0),
        ([[2, 1], [1, 2]], [1, -1], 2**0.5),
        ([[2, 1], [1, 2]], [1, 1], (2 / 3) ** 0.5),
        (np.eye(2), [0, 0], 0.0),
    ],
)
def test_complexity_by_hand_whatever_the_scale(kernel, targets, expected):
    for scale in (1e-6, 1.0, 1e6):
        found = complexity.supervision_complexity(scale * np.asarray(kernel, float), np.asarray(targets))
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_targets_of_several_classes_are_counted_by_the_image():
    """Outputs that do not know of each other: the squares of their complexities add up, times C."""
    of_one = np.array([[2.0, 1.0], [1.0, 2.0]])
    targets = np.array([[1.0, 1.0], [-1.0, 1.0]])
    found = complexity.supervision_complexity(np.kron(of_one, np.eye(2)), targets)
    np.testing.assert_allclose(found, np.sqrt(2 * (2 + 2 / 3)), rtol=1e-5)


@pytest.mark.parametrize("at_once", [0, 3, 32])
def test_the_kernel_of_a_linear_network_by_hand(at_once):
    """Each output by its own weights: (x_i . x_j + 1) where c = d, of normalised pixels; 0 elsewhere."""
    model = build_model("mlp(hidden=())", Task(4, 1, (0.4,), (0.2,)))
    variables = model.init(jax.random.key(0), jnp.zeros((1, 2, 3, 1)))
    x = (IMAGES.reshape(7, -1) / 255 - 0.4) / 0.2
    of_one = complexity.bytes_of_an_image(variables["params"], 4)
    assert of_one == 2 * 4 * 4 * (6 * 4 + 4)  # float32 rows and columns, by a kernel [6,4] and a bias
    found = complexity.kernel(model, variables, IMAGES, at_once * of_one)
    np.testing.assert_allclose(found, np.kron(x @ x.T + 1, np.eye(4)), rtol=1e-4, atol=1e-4)


def test_the_kernel_of_a_network_is_that_of_its_jacobian():
    """Forward over all parameters at once, with batch statistics as in evaluation."""
    model = build_model("mlp(hidden=(5,), batch_norm=True)", Task(3, 1, (0.4,), (0.2,)))
    variables = model.init(jax.random.key(0), jnp.zeros((1, 2, 3, 1)))
    flat, shaped = ravel_pytree(variables["params"])

    def logits(flat):
        whole = {**variables, "params": shaped(flat)}
        return model.apply(whole, IMAGES.astype(np.float32) / 255)[0].logits.reshape(-1)

    jacobian = np.asarray(jax.jit(jax.jacfwd(logits))(flat), np.float64)
    found = complexity.kernel(model, variables, IMAGES)
    np.testing.assert_allclose(found, jacobian @ jacobian.T, rtol=1e-4, atol=1e-4)


def test_complexity_does_not_depend_on_how_many_images_fit():
    """A kernel of few parameters has no full rank: what lies outside is divided by the ridge alone."""
    model = build_model("cnn(widths=(8,))", Task(4, 1, (0.4,), (0.2,)))
    images = np.random.default_rng(5).integers(0, 256, size=(64, 6, 6, 1), dtype=np.uint8)
    variables = model.init(jax.random.key(0), jnp.zeros((1, 6, 6, 1)))
    of_one = complexity.bytes_of_an_image(variables["params"], 4)
    targets = np.eye(4)[np.random.default_rng(6).integers(0, 4, size=64)] - 0.25
    found = [
        complexity.supervision_complexity(
            complexity.kernel(model, variables, images, at_once * of_one), targets
        )
        for at_once in (4, 16, 32)
    ]
    np.testing.assert_allclose(found, found[0], rtol=1e-4)


@pytest.fixture(scope="module")
def evaluated():
    few = {"students.modes": ("output_avg",), "students.alphas": (0.5,), "report.complexity": 9}
    config = small.config(**few)
    split = experiment.load_split(config)
    stages, done = plan.build(config, split), {}
    for stage in stages:
        done[stage.name] = training.untrained(stage.make(done))
    return split, stages, done, evaluation.predict(config, split, stages, done)


def test_what_is_measured_is_what_they_say_of_training_images(evaluated):
    split, stages, done, predicted = evaluated
    found = predicted.complexity
    assert (found["num_images"], found["student"]["name"]) == (9, "output_avg")
    assert [row["of"] for row in found["rows"]] == ["labels", "one teacher", "mean_probs", "the student"]
    rows = complexity.rows(split, 9)
    assert len(set(rows)) == 9 and set(rows) <= set(split.train)
    images, teachers = split.dataset.train_images[rows], done[stages[0].name].population
    model, seen = teachers.model, images.astype(np.float32) / 255
    drawn = model.init(jax.random.key(0), jnp.zeros((1, 4, 4, 1)))
    kernel = complexity.kernel(model, drawn, images)
    each = np.stack(
        [jax.nn.softmax(model.apply(take(teachers.variables, k), seen)[0].logits) for k in range(3)]
    )
    of_labels = np.eye(4)[split.dataset.train_labels[rows]]
    of_one, of_all, labels = (
        np.mean([complexity.supervision_complexity(kernel, y - 0.25) for y in of])
        for of in (each, [each.mean(axis=0)], [of_labels])
    )
    told = [row["drawn"] for row in found["rows"][:3]]
    np.testing.assert_allclose(told, [labels, of_one, of_all], rtol=1e-3)
    assert len({round(value, 3) for value in told}) == 3


def test_the_report_has_its_table_after_saving_too(evaluated, tmp_path):
    *_, predicted = evaluated
    predictions.save(tmp_path / "predictions.npz", predicted)
    report = document.write(tmp_path)
    assert report["complexity"] == predicted.complexity
    for name in ("report.md", "report.html"):
        text = (tmp_path / name).read_text()
        assert "How hard targets are for the student" in text and "one teacher" in text
        assert f"{report['complexity']['rows'][1]['trained']:.3f}" in text


def test_too_many_images_are_refused_in_one_line():
    config = small.config(**{"report.complexity": 61})
    with pytest.raises(UserError, match="config.report.complexity: 61 images .* must be at most") as error:
        complexity.check(config, experiment.load_split(config))
    assert "\n" not in str(error.value)


def test_networks_whose_derivatives_do_not_fit_are_refused_in_one_line(monkeypatch):
    config = small.config(**{"report.complexity": 9, "students.model": "mlp(hidden=(1000,))"})
    split = experiment.load_split(config)
    experiment.planned(config, split)
    # 16 pixels, 1000 hidden units, 4 classes: 21 004 float32 parameters.
    needed = 2 * 4 * 4 * 21_004
    monkeypatch.setattr(complexity.forecast, "memory_limit", lambda: needed - 1)
    with pytest.raises(UserError, match="config.report.complexity: .* 4 classes .* take 1 MiB") as error:
        experiment.planned(config, split)
    assert "\n" not in str(error.value)
    config.report.complexity = 0
    experiment.planned(config, split)


def test_networks_that_are_no_students_need_not_fit(monkeypatch):
    """The assistants between teachers and students are large, and no kernel is theirs."""
    asked = {"report.complexity": 9, "plan": "assistants(models=('mlp(hidden=(1000,))',))"}
    config = small.config(**asked)
    split = experiment.load_split(config)
    monkeypatch.setattr(complexity.forecast, "memory_limit", lambda: 2 * 4 * 4 * 21_004 - 1)
    experiment.planned(config, split)
