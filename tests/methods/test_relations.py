"""Methods of methods/relations.py against float64 NumPy, hand-made values and what their papers promise."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax.methods import relations
from mtkd_jax.methods.features import pkt
from mtkd_jax.types import UserError
from tests.contexts import aimed
from tests.contexts import loss as eager_loss
from tests.features import by_features, drawn, seen, with_parameters
from tests.references import relations as reference

B = 3
loss = jax.jit(eager_loss, static_argnums=0)
EVERY = (relations.rkd(), relations.sp(), relations.cc(), relations.crd(width=4))


def alone(recipe):
    return recipe._replace(term=recipe.term.feature_loss)


def between(own, others):
    """A context of embeddings [B,D] alone."""
    return seen({}, [], None, np.array(own, float), [np.array(other, float) for other in others])


def expected(name, own, other, b, parameters):
    if name == "rkd":
        return reference.rkd(own, other, b, 0.5)
    if name == "sp":
        return reference.sp(own, other, b)
    if name == "cc":
        return reference.cc(own, other, b, 0.4)
    return reference.crd(own, other, b, parameters, 0.07)


@pytest.mark.parametrize("recipe", EVERY, ids=lambda recipe: recipe.name)
def test_loss_is_the_reference(recipe):
    of = drawn()
    seen_of = with_parameters(recipe, seen(**of))
    found = loss(alone(recipe), seen_of)
    assert found.shape == (B,)
    for b in range(B):
        each = [
            expected(recipe.name, of["embedding"], other, b, seen_of.aux[k] if seen_of.aux else None)
            for k, other in enumerate(of["embeddings"])
        ]
        np.testing.assert_allclose(found[b], np.mean(each), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("recipe", EVERY, ids=lambda recipe: recipe.name)
def test_degenerate_batches_keep_value_and_gradient_finite_and_others_move_the_student(recipe):
    rng = np.random.default_rng(2)
    some = rng.normal(size=(4, 3))
    cases = [
        (own, others)
        for own in (np.zeros((4, 3)), np.ones((4, 3)), some[[0, 0, 1, 1]], 1e-13 * some, 1e15 * some)
        for others in (np.zeros((4, 2)), rng.normal(size=(4, 2))[[2, 2, 2, 3]])
    ]
    for own, other in [*cases, (some, rng.normal(size=(4, 2)))]:
        of = with_parameters(recipe, between(own, [other]))
        _, moved, by_aux = by_features(recipe, of)
        for leaf in jax.tree.leaves((loss(recipe, of), moved, by_aux)):
            assert np.isfinite(leaf).all(), (own, other)
    assert np.abs(moved).max() > 1e-4
    assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(by_aux))


@pytest.mark.parametrize("recipe", [*EVERY, pkt()], ids=lambda recipe: recipe.name)
def test_places_that_are_none_are_compared_with_nobody(recipe):
    """The others have the loss, and the gradient, of a batch that never held them."""
    rng, there = np.random.default_rng(5), np.array([True, False, True, True, False, True])
    own, other = rng.normal(size=(6, 4)), rng.normal(size=(6, 3))
    without = with_parameters(recipe, between(own[there], [other[there]]))
    silent = lambda x: np.where(there[:, None], x, 0.0)  # noqa: E731
    held = with_parameters(recipe, between(silent(own), [silent(other)]))
    batch = dataclasses.replace(held.batch, valid=jnp.asarray(there))
    held = dataclasses.replace(held, batch=batch)

    def total(seen, embedding):
        fixed = aimed(alone(recipe), seen)
        student = dataclasses.replace(fixed.student, embedding=embedding)
        loss = alone(recipe).term(dataclasses.replace(fixed, student=student))
        return loss.sum() if seen.batch.valid is None else jnp.where(seen.batch.valid, loss, 0.0).sum()

    found, expected = (
        jax.value_and_grad(lambda embedding, seen=seen: total(seen, embedding))(seen.student.embedding)
        for seen in (held, without)
    )
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found[1][there], expected[1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("recipe", EVERY, ids=lambda recipe: recipe.name)
def test_a_batch_of_one_teaches_nothing(recipe):
    of = with_parameters(recipe, between([[1.0, 2.0]], [[[3.0]]]))
    np.testing.assert_allclose(loss(alone(recipe), of), [0.0], atol=1e-6)
    assert np.isfinite(by_features(recipe, of)[1]).all()


def test_distances_and_angles_by_hand():
    """The fixture of the card: 25 x 0.071699 + 50 x 0.129630."""
    of = between([[0, 0], [1, 0], [2, 0]], [[[0, 0], [1, 0], [0, 1]]])
    angles, both = (loss(alone(relations.rkd(distances=share)), of).mean() for share in (0.0, 0.5))
    np.testing.assert_allclose([angles, both - angles], [0.129630, 0.5 * 0.071699], atol=1e-5)


def embeddings(of):
    return of.student.embedding, of.teacher.embedding[0]


@pytest.mark.parametrize("at_once", [1, 98])
def test_angles_are_the_same_however_many_are_held_at_a_time(at_once, monkeypatch):
    rng = np.random.default_rng(3)
    of = between(rng.normal(size=(7, 3)), [rng.normal(size=(7, 2))])
    expected = [reference.rkd(*(np.asarray(x, float) for x in embeddings(of)), b, 0.5) for b in range(7)]
    monkeypatch.setattr(relations, "ANGLES_AT_ONCE", at_once)  # read when the program is made: a new one
    found = jax.jit(lambda of: eager_loss.__wrapped__(alone(relations.rkd()), of))(of)
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_relations_see_neither_place_nor_rotation_nor_scale():
    rng = np.random.default_rng(4)
    own, other = rng.normal(size=(4, 3)), rng.normal(size=(4, 2))
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    for recipe, moved in (
        (relations.rkd(), 7.0 * own @ rotation + 3.0),
        (relations.sp(), -5.0 * own @ rotation),
        (relations.cc(), rng.uniform(0.1, 10.0, size=(4, 1)) * own @ rotation),
    ):
        here, there = (loss(alone(recipe), between(x, [other])) for x in (own, moved))
        assert (here > 1e-4).all()
        np.testing.assert_allclose(there, here, rtol=1e-3)


def test_similarities_by_hand():
    """The fixture of the card: embeddings at right angles where the teacher's are equal."""
    found = loss(alone(relations.sp()), between(np.eye(2), [np.ones((2, 1))]))
    np.testing.assert_allclose(found, 0.292893, atol=1e-6)


def test_correlations_by_hand():
    found = loss(alone(relations.cc(sharpness=0.5)), between(np.eye(2), [np.ones((2, 1))]))
    np.testing.assert_allclose(found, (1 - np.exp(-1)) ** 2 / 2, rtol=1e-5)


def test_contrast_of_equals_is_the_logarithm_of_their_number():
    of = with_parameters(relations.crd(width=4), between(np.ones((4, 3)), [np.ones((4, 2))]))
    np.testing.assert_allclose(loss(alone(relations.crd(width=4)), of), np.log(4), rtol=1e-5)
    with pytest.raises(UserError, match="crd.width=0.: it must be at least 1"):
        relations.crd(width=0)


# --- a memory of all examples -------------------------------------------------------------------------

N = 7
LABELS, INDEX = [0, 1, 0], [5, 2, 6]
SEEN = [True, True, True, False, True, True, False]


def remembering(recipe, step=0, labelled=(True, True, True), **of):
    """A context of three of seven examples, its method's parameters drawn and a memory of unit vectors."""
    of = of or drawn()
    seen_of = with_parameters(recipe, seen(**of, step=step, **dict(recipe.hyper)))
    mem = recipe.init_mem({}, seen_of.student, N)
    mem = {**mem, "label": jnp.asarray([0, 0, 1, -1, 1, -1, -1], jnp.int32), "seen": jnp.asarray(SEEN)}
    batch = dataclasses.replace(
        seen_of.batch,
        label=jnp.asarray(LABELS, jnp.int32),
        index=jnp.asarray(INDEX, jnp.int32),
        labelled=jnp.asarray(labelled),
    )
    return dataclasses.replace(seen_of, batch=batch, state=dataclasses.replace(seen_of.state, mem=mem))


def sides(recipe, seen_of):
    """In float64: {side: (unit vectors [B,D], the other's memory [N,D])}, drawn rows, which do not count."""
    embeddings = np.asarray(seen_of.student.embedding), np.concatenate(seen_of.teacher.embedding, axis=-1)
    found = {}
    for side, other, x in zip(("own", "other"), ("other", "own"), embeddings):
        kernel, bias = (np.asarray(seen_of.aux[side][name], float) for name in ("kernel", "bias"))
        projected = x @ kernel + bias
        projected /= np.linalg.norm(projected, axis=1, keepdims=True)
        found[side] = projected, np.asarray(seen_of.state.mem[other], float)
    rows = np.asarray(jax.random.randint(seen_of.key, (recipe.term.feature_loss.num_negatives,), 0, N))
    known, labelled = np.asarray(seen_of.state.mem["label"]), np.asarray(seen_of.batch.labelled)
    step = int(seen_of.step)
    same = [
        [j == i or (bool(seen) and known[j] == y) or (step > 0 and not SEEN[j]) for j in rows]
        for i, y, seen in zip(INDEX, LABELS, labelled)
    ]
    return found, rows, np.array(same)


@pytest.mark.parametrize("step", [0, 3])
@pytest.mark.parametrize("labelled", [(True, True, True), (True, False, False)])
def test_contrast_with_a_memory_is_the_reference(step, labelled):
    recipe = relations.crd_memory(width=4, num_negatives=6)
    seen_of = remembering(recipe, step, labelled)
    remembered = np.array([2.5, 1.5])
    seen_of.state.mem["log_z"] = jnp.asarray(remembered, jnp.float32)
    of_sides, rows, same = sides(recipe, seen_of)
    assert same.any() and not same.all()
    found, log_z = loss(alone(recipe), seen_of), recipe.after(seen_of.state, seen_of).mem["log_z"]
    for b in range(B):
        each = [
            reference.crd_memory(x, memory, b, INDEX, rows, same, 0.07, remembered[number] if step else None)
            for number, (x, memory) in enumerate(of_sides.values())
        ]
        np.testing.assert_allclose(found[b], sum(one for one, _ in each), rtol=1e-4)
        np.testing.assert_allclose(log_z, [own for _, own in each], rtol=1e-4)


def test_where_every_score_is_that_of_noise_each_side_is_a_guess():
    """P = m / N everywhere: (1 + m) ln 2 a side, as of the paper's equation."""
    recipe = relations.crd_memory(width=4, num_negatives=3)
    seen_of = remembering(recipe, step=1)
    zero = jax.tree.map(jnp.zeros_like, seen_of.state.aux)
    mem = {**seen_of.state.mem, "log_z": jnp.full(2, np.log(N / 3), jnp.float32), "seen": jnp.ones(N, bool)}
    seen_of = dataclasses.replace(seen_of, state=dataclasses.replace(seen_of.state, aux=zero, mem=mem))
    np.testing.assert_allclose(loss(alone(recipe), seen_of), B * [2 * 4 * np.log(2)], rtol=1e-5)


def test_what_has_been_seen_is_remembered_and_nothing_else():
    recipe = relations.crd_memory(width=4, num_negatives=3)
    seen_of = remembering(recipe, labelled=(True, True, False))
    before, after = seen_of.state.mem, recipe.after(seen_of.state, seen_of).mem
    of_sides, _, _ = sides(recipe, seen_of)
    for side, (projected, _) in of_sides.items():
        expected = np.asarray(before[side], float)
        moved = (expected[INDEX] + projected) / 2
        expected[INDEX] = moved / np.linalg.norm(moved, axis=1, keepdims=True)
        np.testing.assert_allclose(after[side], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(after["label"], [0, 0, 1, -1, 1, 0, -1])  # of the third none may be known
    twice = dataclasses.replace(seen_of.batch, index=jnp.asarray([5, 5, 6], jnp.int32))
    after = recipe.after(seen_of.state, dataclasses.replace(seen_of, batch=twice)).mem
    np.testing.assert_allclose(np.linalg.norm(after["own"], axis=1), np.ones(N), rtol=1e-5)


def test_a_place_that_is_none_leaves_the_memory_and_all_others_as_they_are():
    recipe = relations.crd_memory(width=4, num_negatives=6)
    seen_of = remembering(recipe)

    def of(there, moved):
        embedding = seen_of.student.embedding.at[2].add(moved)
        batch = dataclasses.replace(seen_of.batch, valid=jnp.asarray([True, True, there]))
        changed = dataclasses.replace(
            seen_of, batch=batch, student=dataclasses.replace(seen_of.student, embedding=embedding)
        )
        return loss(alone(recipe), changed)[:2], recipe.after(seen_of.state, changed).mem

    losses, mem = of(False, 0.0)
    others, same = of(False, 3.0)
    np.testing.assert_array_equal(losses, others)
    jax.tree.map(np.testing.assert_array_equal, mem, same)
    assert not mem["seen"][INDEX[2]] and mem["seen"][INDEX[0]]
    np.testing.assert_array_equal(mem["own"][INDEX[2]], seen_of.state.mem["own"][INDEX[2]])
    assert np.abs(losses - of(True, 3.0)[0]).max() > 1e-3  # its scores are in Z where it is a place


def test_it_moves_the_student_and_both_projections():
    recipe = relations.crd_memory(width=4, num_negatives=6)
    _, embedding, aux = by_features(recipe, remembering(recipe))
    assert all(np.abs(leaf).max() > 1e-3 for leaf in (embedding, *jax.tree.leaves(aux)))


@pytest.mark.parametrize("wrong", [{"width": 0}, {"num_negatives": 0}, {"momentum": 1.0}, {"tau": 0}])
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match="crd_memory.*it must be"):
        relations.crd_memory(**wrong)


def test_a_temperature_that_divides_by_nothing_is_refused():
    with pytest.raises(UserError, match="crd.tau=0.0.: it must be above 0"):
        relations.crd(tau=0.0)
