"""How far apart networks are that learn together, against the predictions of each written out."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax import mesh
from mtkd_jax.engine import distances, training
from mtkd_jax.engine.population import take
from mtkd_jax.mesh import Layout
from mtkd_jax.models import stages
from mtkd_jax.runs.logbook import Logbook
from tests import small

NETWORK = "cnn(widths=(2, 3), dense=4)"
FEW = {"students.num_seeds": 1, "students.alphas": (0.5,), "train.epochs": 2, "students.temperatures": (1.0,)}


def measured(job, states, layout=None):
    program = job.program if layout is None else job.program._replace(layout=layout)
    hyper = {name: jnp.asarray(values) for name, values in job.hyper.items()}

    def look(states, hyper, frozen, validation):
        return (distances.distances(program, states, hyper, (frozen, validation)),)

    spread = mesh.spread(look, program.layout, (0, 0, None, None), (0,))
    return jax.jit(spread)(states, hyper, job.stage_data.frozen, job.validation)[0]


def predictions(job, variables, frozen):
    """Probabilities in float64 of one network on the validation images."""
    images = np.asarray(job.validation[0], np.float32) / 255
    whole = stages.join(variables, job.stage_data.frozen, frozen)
    logits = np.asarray(job.program.model.apply(whole, images)[0].logits, np.float64)
    return np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)


def apart(p, q):
    return np.abs(p - q).sum(axis=-1).mean() / 2


def scaled(tree, factor=3.0):
    return jax.tree.map(lambda leaf: factor * leaf, tree)


@pytest.mark.parametrize("layout", [None, Layout("vmap", member=4, data=1)])
def test_networks_side_by_side(layout):
    """Two cohorts of three; on four devices, none of which holds a whole one."""
    job = small.students_job("peers.dml(num_peers=3)", **{**FEW, "students.num_seeds": 2})
    states = training.first_progress(job).train
    states = dataclasses.replace(states, params=scaled(states.params))  # opinionated
    found = measured(job, states, layout)
    assert found.keys() == {distances.TO_PEERS}
    said = [predictions(job, {"params": take(states.params, m)}, {}) for m in range(6)]
    for m in range(6):
        others = [n for n in range(6) if n // 3 == m // 3 and n != m]
        expected = np.mean([apart(said[m], said[n]) for n in others])
        np.testing.assert_allclose(found[distances.TO_PEERS][m], expected, rtol=1e-4)
        assert expected > 0.01


def test_branches_and_their_averages():
    """The mean over all pairs, and over the branches of their distances to their averages."""
    mode = "online.pcl(num_peers=3, shared='most')"
    job = small.students_job(mode, **{**FEW, "students.model": NETWORK})
    states = training.first_progress(job).train
    states = dataclasses.replace(states, params=scaled(states.params))
    found = measured(job, states)
    said, kept = (
        predictions(job, take(tree, 0), {})  # [P,B,C]
        for tree in ({"params": states.params, **states.model_state}, states.mem)
    )
    pairs = [apart(said[i], said[j]) for i in range(3) for j in range(3) if i != j]
    np.testing.assert_allclose(found[distances.TO_PEERS], [np.mean(pairs)], rtol=1e-4)
    np.testing.assert_allclose(found[distances.TO_OWN_TEACHER], [apart(said, kept)], rtol=1e-4)
    assert min(found[distances.TO_PEERS][0], found[distances.TO_OWN_TEACHER][0]) > 1e-3


def test_an_average_begins_with_its_student_and_a_decoupled_teacher_does_not():
    for mode, same in (("averages.mean_teacher", True), ("online.dkel(num_peers=2)", False)):
        job = small.students_job(mode, **FEW)
        found = measured(job, training.first_progress(job).train)[distances.TO_OWN_TEACHER]
        assert bool(np.abs(found).max() < 1e-6) is same


def test_who_broke_down_is_near_to_nobody_and_nobody_near_to_it():
    job = small.students_job("peers.dml(num_peers=3)", **FEW)
    states = training.first_progress(job).train
    broken = jax.tree.map(lambda leaf: leaf.at[2].set(jnp.nan), states.params)
    found = measured(job, dataclasses.replace(states, params=broken))[distances.TO_PEERS]
    said = [predictions(job, {"params": take(states.params, m)}, {}) for m in range(2)]
    np.testing.assert_allclose(found[:2], 2 * [apart(*said)], rtol=1e-4)
    assert np.isnan(found[2])


def test_of_many_images_some_are_looked_at_and_who_learns_alone_has_no_distance(monkeypatch):
    monkeypatch.setattr(distances, "MOST_IMAGES", 5)
    job = small.students_job("peers.dml", **FEW)
    images, labels = job.validation
    few = dataclasses.replace(job, validation=(images[:: -(-len(images) // 5)], labels))
    states = training.first_progress(job).train
    found, expected = measured(job, states), measured(few, states)
    assert len(few.validation[0]) <= 5
    np.testing.assert_array_equal(found[distances.TO_PEERS], expected[distances.TO_PEERS])
    alone = small.students_job("output_avg", **FEW)
    assert measured(alone, training.first_progress(alone).train) == {}


def test_of_many_places_fewer_images_are_looked_at_and_never_none(monkeypatch):
    job = small.students_job("peers.dml", **FEW)
    images, labels = job.validation
    states, looked_at = training.first_progress(job).train, []
    scaled_up = distances.scale
    monkeypatch.setattr(distances, "scale", lambda image: looked_at.append(len(image)) or scaled_up(image))
    monkeypatch.setattr(distances, "MOST_PLACES", 20)
    monkeypatch.setattr(distances.places, "merge", lambda logits: logits)  # the network says one of each
    for num_places in (4, 10, 1000):
        of_places = np.zeros((len(labels), num_places), np.int32)
        measured(dataclasses.replace(job, validation=(images, of_places)), states)
    assert looked_at == [5, 2, 1]


def test_of_few_bits_are_the_weights_that_are_computed_with():
    """An apprentice of two bits is as far from its real peer as its rounded weights are."""
    mode = "binary.apprentice(bits=2)"
    job = small.students_job(mode, **{**FEW, "students.model": "mlp(hidden=(6, 6))"})
    states = training.first_progress(job).train
    states = dataclasses.replace(states, params=scaled(states.params))
    recipe, told = job.program.recipes[0], []
    for m in range(2):
        state = take(states, m)
        hyper = {name: jnp.asarray(values[m]) for name, values in job.hyper.items()}
        told.append(predictions(job, recipe.deploy(state, hyper), {}))
    found = measured(job, states)[distances.TO_PEERS]
    np.testing.assert_allclose(found, 2 * [apart(*told)], rtol=1e-4)
    real = [predictions(job, {"params": take(states.params, m)}, {}) for m in range(2)]
    assert abs(apart(*told) - apart(*real)) > 1e-3


def test_every_validation_tells_them(tmp_path):
    job = small.students_job("online.pcl(num_peers=2)", **FEW)
    with Logbook(tmp_path, quiet=True) as logbook:
        training.fit(job, tmp_path / "checkpoints", logbook)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for name in (distances.TO_PEERS, distances.TO_OWN_TEACHER):
        of_name = [one for one in records if one["name"] == name]
        assert {one["epoch"] for one in of_name} == {1, 2} and len(of_name) == 4
        assert all(0 < one["value"] < 1 for one in of_name)
