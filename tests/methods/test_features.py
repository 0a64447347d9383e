"""Methods of methods/features.py against float64 NumPy, hand-made values and what their papers promise."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax import experiment
from mtkd_jax.engine import population, training
from mtkd_jax.methods import features, modes
from mtkd_jax.plans import students, teachers
from mtkd_jax.runs.logbook import Logbook
from mtkd_jax.types import Population, TrainState, UserError
from tests import small
from tests.contexts import aimed, context
from tests.contexts import loss as eager_loss
from tests.references import features as reference

B = 3
loss = jax.jit(eager_loss, static_argnums=0)
WEIGHTED = (features.hints(weight=2.0), features.attention_transfer(weight=2.0), features.pkt(weight=2.0))
EVERY = (*WEIGHTED, features.hints_only())


def seen(student, teachers, aux=None, embedding=None, embeddings=None, **hyper):
    """A context whose networks have these features {name: [B,h,w,d]} and embeddings [B,D]."""
    size = len(next(iter(student.values()))) if student else len(embedding)
    num_teachers = len(teachers) if teachers else len(embeddings)
    logits = np.broadcast_to([[[1.0, 0.0]]], (num_teachers, size, 2))
    found = context(np.zeros((size, 2)), logits, **hyper)
    own = dataclasses.replace(found.student, features=as_floats(student), embedding=as_floats(embedding))
    told = found.teacher._replace(
        features=tuple(map(as_floats, teachers)), embedding=tuple(map(as_floats, embeddings or ()))
    )
    state = TrainState({}, as_floats(aux), {}, {}, {}, None)
    return dataclasses.replace(found, student=own, teacher=told, state=state)


def as_floats(tree):
    return jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)


def feature_loss(recipe, of):
    """What the recipe adds to hard and soft loss, at weight 1."""
    if recipe.name == "hints_only":
        return loss(recipe, of)
    without = recipe._replace(hyper=(("weight", 0.0),))
    return loss(recipe._replace(hyper=(("weight", 1.0),)), of) - loss(without, of)


def drawn(seed=0):
    """Student and three teachers of different architecture, with regressors: everything a method reads."""
    rng = np.random.default_rng(seed)
    student = {"stem": (8, 8, 2), "stage1": (8, 8, 2), "stage2": (4, 4, 5)}
    teachers = [
        {"stage1": (8, 8, 3), "stage2": (4, 4, 5), "stage3": (2, 2, 6)},
        {"stem": (5, 5, 3), "stage1": (5, 5, 4), "stage2": (3, 6, 1)},
        {"stage1": (1, 1, 7)},
    ]
    maps = lambda shapes: {name: rng.normal(size=(B, *shape)) for name, shape in shapes.items()}  # noqa: E731
    aux = tuple(
        {"kernel": rng.normal(size=(2, t["stage1"][-1])), "bias": rng.normal(size=t["stage1"][-1])}
        for t in teachers
    )
    embeddings = [rng.normal(size=(B, width)) for width in (5, 4, 9)]
    return {
        "student": maps(student),
        "teachers": [maps(shapes) for shapes in teachers],
        "aux": aux,
        "embedding": rng.normal(size=(B, 4)),
        "embeddings": embeddings,
    }


def expected(name, of, b, k):
    """The loss of example b with teacher k."""
    if name == "attention_transfer":
        student, teacher = ({n: x[b] for n, x in maps.items()} for maps in (of["student"], of["teachers"][k]))
        return reference.attention_transfer(student, teacher)
    if name == "pkt":
        return reference.pkt(of["embedding"], of["embeddings"][k], b)
    regressor = of["aux"][k]
    guided, hinted = of["student"]["stage1"][b], of["teachers"][k]["stage1"][b]
    return reference.hint(guided, hinted, regressor["kernel"], regressor["bias"])


@pytest.mark.parametrize("recipe", EVERY, ids=lambda recipe: recipe.name)
def test_loss_is_the_reference(recipe):
    of = drawn()
    found = feature_loss(recipe, seen(**of))
    assert found.shape == (B,)
    for b in range(B):
        mean = np.mean([expected(recipe.name, of, b, k) for k in range(3)])
        np.testing.assert_allclose(found[b], mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("recipe", EVERY, ids=lambda recipe: recipe.name)
def test_teachers_count_as_much_as_they_weigh(recipe):
    of, w = drawn(), np.array([[0.5, 0.0, 0.2], [0.0, 0.0, 0.3], [2.0, 0.0, 0.5]])
    found = feature_loss(recipe._replace(weigh=lambda _: jnp.asarray(w, jnp.float32)), seen(**of))
    for b in range(B):
        sum_k = sum(w[k, b] * expected(recipe.name, of, b, k) for k in range(3))
        np.testing.assert_allclose(found[b], sum_k, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("recipe", WEIGHTED, ids=lambda recipe: recipe.name)
def test_it_is_added_to_hard_and_soft_loss(recipe):
    of = seen(**drawn(), alpha=0.25, temperature=3.0)
    whole = loss(modes.loss_avg(), of) + 2.0 * feature_loss(recipe, of)
    np.testing.assert_allclose(loss(recipe, of), whole, rtol=1e-4)


@functools.partial(jax.jit, static_argnums=0)
def by_features(recipe, of):
    """Gradients of the summed loss by the student's features, its embedding and the method's parameters."""
    fixed = aimed(recipe, of)

    def total(maps, embedding, aux):
        student = dataclasses.replace(fixed.student, features=maps, embedding=embedding)
        state = dataclasses.replace(fixed.state, aux=aux)
        return recipe.term(dataclasses.replace(fixed, student=student, state=state)).sum()

    return jax.jit(jax.grad(total, argnums=(0, 1, 2)))(
        of.student.features, of.student.embedding, of.state.aux
    )


@pytest.mark.parametrize("recipe", EVERY, ids=lambda recipe: recipe.name)
def test_the_student_is_moved_by_several_teachers(recipe):
    """Public multi-teacher code wraps the list of hint losses anew, which cuts their gradient off."""
    maps, embedding, aux = by_features(recipe, seen(**drawn()))
    read = embedding if recipe.name == "pkt" else maps["stage1"]
    assert np.abs(read).max() > 1e-4
    if "hints" in recipe.name:
        assert all(np.abs(leaf).max() > 1e-4 for leaf in jax.tree.leaves(aux))


@pytest.mark.parametrize("recipe", EVERY, ids=lambda recipe: recipe.name)
@pytest.mark.parametrize("of_student, of_teachers", [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (1e-13, 1e-13)])
def test_dead_features_keep_value_and_gradient_finite(recipe, of_student, of_teachers):
    of = drawn()
    for part, factor in (("student", of_student), ("teachers", of_teachers)):
        of[part] = jax.tree.map(lambda x, factor=factor: factor * x, of[part])
    of["embedding"], of["embeddings"] = (
        of_student * of["embedding"],
        [of_teachers * e for e in of["embeddings"]],
    )
    for leaf in jax.tree.leaves((loss(recipe, seen(**of)), by_features(recipe, seen(**of)))):
        assert np.isfinite(leaf).all()


# --- hints --------------------------------------------------------------------------------------------


def scalar(value):
    return np.full((1, 1, 1, 1), value)


def test_hints_by_hand():
    """v = 1, r = 2, u = 3: half the squared distance is 1/2, and r should grow."""
    regressor = ({"kernel": np.array([[2.0]]), "bias": np.zeros(1)},)
    of = seen({"stage1": scalar(1.0)}, [{"stage1": scalar(3.0)}], regressor, np.zeros((1, 1)))
    np.testing.assert_allclose(loss(features.hints_only(), of), [0.5])
    _, _, (gradient,) = by_features(features.hints_only(), of)
    np.testing.assert_allclose([gradient["kernel"][0, 0], gradient["bias"][0]], [-1.0, -1.0])


def test_hints_read_the_features_they_are_told():
    regressor = ({"kernel": np.array([[1.0]]), "bias": np.zeros(1)},)
    student, teacher = (
        {"stage1": scalar(7.0), "stage2": scalar(3.0)},
        {"stage1": scalar(2.0), "stage2": scalar(9.0)},
    )
    of = seen(student, [teacher], regressor, np.zeros((1, 1)))
    np.testing.assert_allclose(loss(features.hints_only(student="stage2", teacher="stage1"), of), [0.5])


def test_every_teacher_has_a_regressor_of_its_own_width():
    of = seen(**drawn())
    aux = features.hints().init_aux(jax.random.key(0), of.student, of.teacher)
    assert [r["kernel"].shape for r in aux] == [(2, 3), (2, 4), (2, 7)]
    assert [r["bias"].shape for r in aux] == [(3,), (4,), (7,)]


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_an_unknown_feature_is_named(side):
    of = seen(**drawn())
    recipe = features.hints(**{side: "stage9"})
    with pytest.raises(UserError, match=f"the {side} has no feature 'stage9'; it has .*stage1"):
        recipe.init_aux(jax.random.key(0), of.student, of.teacher)


# --- attention ----------------------------------------------------------------------------------------


def attention(student, teacher):
    return feature_loss(
        features.attention_transfer(),
        seen({"stage1": student}, [{"stage1": teacher}], None, np.zeros((1, 1))),
    )


def test_attention_by_hand():
    """Fixture of the card: strengths (1,0,0,1) / sqrt 2 and (1,0,0,0)."""
    diagonal, corner = np.eye(2).reshape(1, 2, 2, 1), np.diag([1.0, 0.0]).reshape(1, 2, 2, 1)
    np.testing.assert_allclose(attention(diagonal, corner), [0.146447], atol=1e-6)


def test_attention_sees_neither_scale_nor_order_of_channels_nor_sign():
    rng = np.random.default_rng(3)
    own, other = rng.normal(size=(1, 4, 4, 6)), rng.normal(size=(1, 4, 4, 3))
    first = attention(own, other)
    assert first > 1e-3
    np.testing.assert_allclose(attention(5.0 * own[..., rng.permutation(6)], -0.1 * other), first, rtol=1e-4)


def test_attention_of_single_pixels_is_refused_unless_another_teacher_has_more():
    flat, wide = np.ones((1, 1, 1, 4)), np.arange(4.0).reshape(1, 2, 2, 1)
    with pytest.raises(UserError, match="no stage of more than one pixel"):
        attention(flat, wide)
    both = seen({"stage1": wide}, [{"stage1": flat}, {"stage1": wide[:, ::-1]}], None, np.zeros((1, 1)))
    found = feature_loss(features.attention_transfer(), both)
    np.testing.assert_allclose(found, attention(wide, wide[:, ::-1]) / 2, rtol=1e-5)


# --- neighbours ---------------------------------------------------------------------------------------


def neighbours(own, other):
    return feature_loss(features.pkt(), seen({}, [], None, np.array(own), [np.array(other)]))


def test_neighbours_by_hand():
    """P of examples 0 and 2 is (1/3, 2/3) where the teacher has (1/2, 1/2); example 1 is alike to both."""
    own, other = [[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], [[1.0], [1.0], [1.0]]
    np.testing.assert_allclose(neighbours(own, other), np.log(9 / 8) / 2 * np.array([1, 0, 1]), atol=1e-6)


def test_neighbours_see_neither_length_nor_rotation():
    rng = np.random.default_rng(4)
    own, other = rng.normal(size=(6, 3)), rng.normal(size=(6, 5))
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    first = neighbours(own, other)
    assert (first > 1e-4).all()
    lengths = rng.uniform(0.1, 10.0, size=(6, 1))
    np.testing.assert_allclose(neighbours(lengths * own @ rotation, other / 7), first, rtol=1e-3, atol=1e-6)
    np.testing.assert_allclose(neighbours(other @ np.diag([3.0] * 5), other), 0.0, atol=1e-6)


@pytest.mark.parametrize("own", [[[1.0], [-1.0], [1.0]], [[1.0], [-1.0], [0.0]], [[2.0], [2.0], [2.0]]])
def test_opposite_and_equal_neighbours_keep_value_and_gradient_finite(own):
    of = seen({}, [], None, np.array(own), [np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])])
    _, gradient, _ = by_features(features.pkt(), of)
    assert np.isfinite(loss(features.pkt(), of)).all() and np.isfinite(gradient).all()


# --- in the step --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def setting():
    """(configuration, split, two untrained teachers of two architectures)."""
    config = small.config(
        **{
            "students.model": "cnn(widths=(4,), dense=8)",
            "students.modes": tuple(f"features.{recipe.name}" for recipe in EVERY),
            "students.alphas": (0.5,),
            "students.num_seeds": 1,
            "students.epochs": 10,
            "train.weight_decay": 0.1,
            "runtime.how": "vmap",
        }
    )
    split = experiment.load_split(config)
    ensemble = []
    for address in ("mlp(hidden=(8,))", "cnn(widths=(3,), dense=8)"):
        model = teachers.network(split, address)
        variables = population.init(model, jax.random.split(jax.random.key(5), 1), (4, 4, 1))
        ensemble.append(Population(model, variables, {}, (address,)))
    return config, split, tuple(ensemble)


@pytest.mark.parametrize("recipe", EVERY, ids=lambda recipe: recipe.name)
def test_it_learns_from_teachers_of_two_architectures(recipe, setting, tmp_path):
    config, split, ensemble = setting
    family = next(f for f in students.families(config) if f[0].mode == f"features.{recipe.name}")
    job = students.job(config, split, "labelled", family, ensemble, {})
    with Logbook(tmp_path, quiet=True) as logbook:
        fitted = training.fit(job, tmp_path / "checkpoints", logbook)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    losses = [r["value"] for r in records if r["name"] == "train_loss"]
    assert not fitted.diverged and len(losses) == 10 and losses[-1] < 0.8 * losses[0], losses
    before = population.init(job.program.model, job.init_keys, (4, 4, 1))["params"]
    after = fitted.population.variables["params"]
    heads_moved = not np.array_equal(before["heads"]["kernel"], after["heads"]["kernel"])
    assert heads_moved == (recipe.name != "hints_only")
    assert not np.allclose(before["conv1"]["kernel"], after["conv1"]["kernel"], atol=1e-2)


def test_hints_only_trains_no_head():
    trainable = features.hints_only().trainable
    assert not trainable("params/heads/kernel") and not trainable("params/heads/bias")
    assert trainable("params/conv1/kernel") and trainable("batch_stats/norm1/mean")
