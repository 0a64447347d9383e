"""Cohorts round by round, and the loss in a plane through three networks."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax import experiment
from mtkd_jax.addresses import build_model
from mtkd_jax.engine import training
from mtkd_jax.engine.population import take
from mtkd_jax.laboratory import trajectories
from mtkd_jax.runs.logbook import Logbook
from mtkd_jax.types import Task, UserError
from tests import small

MODEL = build_model("mlp(hidden=(3,))", Task(4, 1, (0.5,), (0.5,)))
IMAGES = np.random.default_rng(0).integers(0, 256, size=(6, 2, 2, 1), dtype=np.uint8)


def networks(number):
    return [MODEL.init(jax.random.key(k), jnp.zeros((1, 2, 2, 1))) for k in range(number)]


def close(a, b, atol=1e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def test_the_plane_goes_through_all_three():
    a, b, c, other = networks(4)
    plane = trajectories.plane_through(a, b, c)
    np.testing.assert_allclose(plane.axes @ plane.axes.T, np.eye(2), atol=1e-6)
    for network in (a, b, c):
        close(plane.at(plane.coordinates(network)), network)
    np.testing.assert_allclose(plane.coordinates(a), [0, 0], atol=1e-6)
    assert abs(plane.coordinates(b)[1]) < 1e-6 and plane.coordinates(c)[1] > 0
    back = plane.at(plane.coordinates(other))  # the closest of the plane, not the network itself
    np.testing.assert_allclose(plane.coordinates(back), plane.coordinates(other), atol=1e-5)


def test_three_networks_on_a_line_have_no_plane():
    a, b = networks(2)
    middle = jax.tree.map(lambda x, y: (x + y) / 2, a, b)
    for c in (middle, a):
        with pytest.raises(UserError, match="lie on one line"):
            trajectories.plane_through(a, b, c)


def test_the_surface_is_the_loss_of_each_network_of_the_plane():
    plane, labels = trajectories.plane_through(*networks(3)), np.arange(6) % 4
    xs, ys = (-0.5, 0.0, 1.0), (0.0, 2.0)
    found = trajectories.surface(MODEL, plane, (IMAGES, labels), xs, ys)
    assert found.shape == (2, 3)
    for i, y in enumerate(ys):
        for j, x in enumerate(xs):
            variables = plane.at(np.float32([x, y]))
            logits = np.asarray(MODEL.apply(variables, IMAGES.astype(np.float32) / 255)[0].logits, float)
            log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
            np.testing.assert_allclose(found[i, j], -log_probs[np.arange(6), labels].mean(), rtol=1e-5)


def test_what_is_followed_is_the_training_itself(tmp_path):
    whoever_teaches = {"teachers.folds": True, "teachers.out_of_bag": True}
    few = {"students.modes": ("peers.dml",), "train.epochs": 3, "students.alphas": (0.5,)}
    config = small.config(**few, **whoever_teaches)
    job = trajectories.cohorts(config, experiment.load_split(config), "peers.dml(num_peers=2)")
    assert len(job.names) == 4 and job.names[1].endswith("seed 0 peer 1")
    rounds = list(trajectories.follow(job))
    assert [epoch for epoch, _, _ in rounds] == [0, 1, 2, 3]
    with Logbook(tmp_path, quiet=True) as logbook:
        fitted = training.fit(job, tmp_path / "at", logbook)
    told = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    expected = [one["value"] for one in told if one["name"] == "val_nll"]
    np.testing.assert_allclose(
        [told["val_nll"] for *_, told in rounds[1:]], np.reshape(expected, (3, 4)), rtol=1e-5
    )
    best = 1 + int(np.argmin([told["val_nll"][0] for *_, told in rounds[1:]]))
    close(take(rounds[best][1].params, 0), take(fitted.population.variables["params"], 0), atol=1e-6)


def test_without_trained_teachers_who_needs_some_is_refused():
    config = small.config()
    with pytest.raises(UserError, match="output_avg learns from trained teachers") as error:
        trajectories.cohorts(config, experiment.load_split(config), "output_avg")
    assert "\n" not in str(error.value)
