"""Methods of methods/features.py against float64 NumPy, hand-made values and what their papers promise."""

import dataclasses
import json
from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from mtkd_jax import addresses, experiment
from mtkd_jax.engine import population, training
from mtkd_jax.methods import features, maps, modes, weights
from mtkd_jax.models import layers
from mtkd_jax.plans import students, teachers
from mtkd_jax.runs.logbook import Logbook
from mtkd_jax.types import Model, Population, Task, UserError
from tests import small
from tests.contexts import P1, P2, P3, Q
from tests.contexts import loss as eager_loss
from tests.features import by_features, drawn, seen, with_parameters
from tests.references import features as reference

B = 3
loss = jax.jit(eager_loss, static_argnums=0)
WEIGHTED = (
    features.hints(weight=2.0),
    features.attention_transfer(weight=2.0),
    features.pkt(weight=2.0),
    features.fsp(weight=2.0),
    features.nst(weight=2.0),
    features.vid(weight=2.0),
    features.mgd(weight=2.0),
    features.factor_transfer(weight=2.0),
    features.review(weight=2.0),
    features.ofd(weight=2.0),
    features.semckd(weight=2.0, width=4),
)
EVERY = (
    *WEIGHTED,
    features.hints_only(),
    features.fsp_only(),
    features.ab_only(),
    features.ofd_only(),
    features.simkd(),
)
TRAINED = (*WEIGHTED[:3], features.hints_only())


def everything(recipe, of=None, **hyper):
    """A context of `drawn` with the recipe's parameters."""
    return with_parameters(recipe, seen(**(of or drawn()), **hyper))


def feature_loss(recipe, of):
    """What the recipe adds to hard and soft loss, at weight 1."""
    term = getattr(recipe.term, "feature_loss", recipe.term)
    return loss(recipe._replace(term=term, hyper=tuple((n, v) for n, v in recipe.hyper if n != "weight")), of)


def expected(name, of, seen_of, b, k):
    """The loss of example b with teacher k, at weight 1."""
    student, teacher = ({n: x[b] for n, x in maps.items()} for maps in (of["student"], of["teachers"][k]))
    parameters = seen_of.aux[k] if seen_of.aux else {}
    of_maps = {"attention_transfer": reference.attention_transfer, "nst": reference.nst}
    of_maps |= {"fsp": reference.fsp, "fsp_only": reference.fsp}
    if name in of_maps:
        return of_maps[name](student, teacher)
    if name == "pkt":
        return reference.pkt(of["embedding"], of["embeddings"][k], b)
    if name == "simkd":
        return reference.simkd(of["embedding"][b], of["embeddings"][k][b], parameters)
    if name == "vid":
        return reference.vid(student, teacher, parameters)
    if name == "ab_only":
        return reference.ab_only(student, teacher, parameters)
    if name == "mgd":
        shape = reference.stages(student, teacher)[-1][1].shape[:2]
        is_seen = np.asarray(jax.random.uniform(seen_of.key, (B, *shape, 1))) >= 0.5
        return reference.mgd(student, teacher, parameters, is_seen[b, :, :, 0])
    if name == "review":
        return reference.review(student, teacher, parameters)
    if name in ("ofd", "ofd_only"):
        return reference.ofd(student, of["teachers"][k], parameters, b)
    if name == "semckd":
        return reference.semckd(student, teacher, parameters)
    if name == "factor_transfer":
        return reference.factor_transfer(student, teacher, parameters, 1.0)
    kernel, bias = (np.asarray(parameters[part], float) for part in ("kernel", "bias"))
    return reference.hint(student["stage1"], teacher["stage1"], kernel, bias)


@pytest.mark.parametrize("recipe", EVERY, ids=lambda recipe: recipe.name)
def test_loss_is_the_reference_and_teachers_count_as_much_as_they_weigh(recipe):
    of, w = drawn(), np.array([[0.5, 0.0, 0.2], [0.0, 0.0, 0.3], [2.0, 0.0, 0.5]])
    seen_of = everything(recipe, of, weight=1.0)
    found = feature_loss(recipe._replace(weigh=lambda _: jnp.asarray(w, jnp.float32)), seen_of)
    assert found.shape == (B,)
    for b in range(B):
        sum_k = sum(w[k, b] * expected(recipe.name, of, seen_of, b, k) for k in range(3))
        np.testing.assert_allclose(found[b], sum_k, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("recipe", TRAINED, ids=lambda recipe: recipe.name)
def test_teachers_weigh_alike(recipe):
    of = drawn()
    seen_of = everything(recipe, of)
    found = feature_loss(recipe, seen_of)
    for b in range(B):
        mean = np.mean([expected(recipe.name, of, seen_of, b, k) for k in range(3)])
        np.testing.assert_allclose(found[b], mean, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("recipe", TRAINED[:3], ids=lambda recipe: recipe.name)
def test_it_is_added_to_hard_and_soft_loss(recipe):
    of = everything(recipe, alpha=0.25, temperature=3.0)
    whole = loss(modes.loss_avg(), of) + 2.0 * feature_loss(recipe, of)
    np.testing.assert_allclose(loss(recipe, of), whole, rtol=1e-4)


@pytest.mark.parametrize("recipe", EVERY, ids=lambda recipe: recipe.name)
def test_the_student_is_moved_by_several_teachers(recipe):
    """Public multi-teacher code wraps the list of hint losses anew, which cuts their gradient off."""
    by_maps, embedding, aux = by_features(recipe, everything(recipe))
    reads_last_stage = recipe.name in ("mgd", "factor_transfer")
    read = (
        embedding if recipe.name in ("pkt", "simkd") else by_maps["stage2" if reads_last_stage else "stage1"]
    )
    assert np.abs(read).max() > 1e-4
    if recipe.name == "semckd":  # there is nothing to choose from in a teacher of one stage
        aux = (*aux[:2], aux[2]["map"])
    assert all(np.abs(leaf).max() > 1e-5 for leaf in jax.tree.leaves(aux))


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
    seen_of = everything(recipe, of)
    for leaf in jax.tree.leaves((loss(recipe, seen_of), by_features(recipe, seen_of))):
        assert np.isfinite(leaf).all()


# --- the teachers' classifiers --------------------------------------------------------------------------


def test_what_is_deployed_says_what_the_teachers_classifiers_say_of_the_projected_embedding():
    recipe, num_classes = features.simkd(), 2
    of = everything(recipe)
    heads = drawn_heads(num_classes)
    prepared = {features.RESCALED: students.classifiers(by_heads(heads))}
    own = {"kernel": jnp.zeros((1, 4, num_classes)), "bias": jnp.zeros((1, num_classes))}
    state = dataclasses.replace(of.state, params={"heads": own, "body": jnp.ones(3)}, mem=own)
    state = recipe.after(state, dataclasses.replace(of, prepared=prepared))
    found = recipe.deploy(state, {})["params"]
    embedding = np.asarray(of.student.embedding, np.float64)
    said = embedding @ np.asarray(found["heads"]["kernel"], float)[0] + found["heads"]["bias"]
    each = []
    for (w, b), parameters in zip(heads, of.aux):
        p, q = (np.asarray(parameters[name], float) for name in ("kernel", "bias"))
        each.append((embedding @ p + q) @ w + b)
    np.testing.assert_allclose(said, np.mean(each, axis=0), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found["body"], np.ones(3))


def judged(label, labelled, heads=None):
    """The recipe, its context on `drawn`, and what that is made from."""
    recipe, of, heads = features.ca_mkd(weight=2.0), drawn(), heads or drawn_heads()
    seen_of = everything(recipe, of, label=label, labelled=labelled, alpha=0.25, temperature=3.0)
    prepared = {features.CLASSIFIERS: students.classifiers(by_heads(heads))}
    return recipe, dataclasses.replace(seen_of, prepared=prepared), of, heads


def test_teachers_count_whose_classifiers_find_the_label_in_what_the_student_makes_of_them():
    label = np.array([1, 0, 1])
    recipe, seen_of, of, heads = judged(label, np.array([True, True, False]))
    parameters = jax.tree.map(lambda leaf: np.asarray(leaf, float), seen_of.aux)
    added = feature_loss(recipe, seen_of)
    for b in range(B):
        theirs = [e[b] for e in of["embeddings"]]
        classifiers = [(kernel, bias[0]) for kernel, bias in heads]
        expected_loss, w = reference.ca_mkd(of["embedding"][b], theirs, parameters, classifiers, label[b])
        assert np.ptp(w) > 0.05
        if b == 2:  # without a label all count alike
            alike = [reference.simkd(of["embedding"][b], t, own) for t, own in zip(theirs, parameters)]
            expected_loss = np.mean(alike)
        np.testing.assert_allclose(added[b], expected_loss, rtol=1e-4)
    rest = loss(weights.ca_mkd(), seen_of)
    np.testing.assert_allclose(loss(recipe, seen_of) - 2.0 * added, rest, rtol=1e-4)


@pytest.mark.parametrize(
    "logits, expected_v",
    [((P1, P2), np.array([2, 1]) / 3), ((P1, P2, P3), np.array([0.362069, 0.224138, 0.413793]))],
)
def test_classifiers_by_hand(logits, expected_v):
    """The card's fixture, as what classifiers say of what the student predicts, which is Q; label 0."""
    apart = np.arange(1.0, 1.0 + len(logits))
    unchanged = [{"kernel": np.eye(3), "bias": np.zeros(3)}] * len(logits)
    of = seen({}, [], unchanged, Q[None], [(Q + one)[None] for one in apart])
    heads = [(np.outer(Q, z) / (Q @ Q), np.zeros((1, 3))) for z in logits]
    of = dataclasses.replace(of, prepared={features.CLASSIFIERS: students.classifiers(by_heads(heads))})
    np.testing.assert_allclose(feature_loss(features.ca_mkd(), of), [expected_v @ apart**2], rtol=1e-5)


@pytest.mark.parametrize("factor", [1.0, 80.0])
def test_what_teachers_count_for_passes_no_gradient_on(factor):
    """It is that of the distances at fixed weights; with sure classifiers it is finite, too."""
    label, labelled = np.array([1, 0, 1]), np.ones(B, bool)
    heads = [(factor * kernel, factor * bias) for kernel, bias in drawn_heads()]
    recipe, seen_of, of, _ = judged(label, labelled, heads)
    _, found, aux = by_features(recipe, seen_of)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((loss(recipe, seen_of), aux)))
    parameters = jax.tree.map(lambda leaf: np.asarray(leaf, float), seen_of.aux)
    for b, own in enumerate(of["embedding"]):
        theirs = [e[b] for e in of["embeddings"]]
        classifiers = [(kernel, bias[0]) for kernel, bias in heads]
        _, v = reference.ca_mkd(own, theirs, parameters, classifiers, label[b])
        each = [
            2 * one["kernel"] @ (reference.linear(one, own) - t) / len(t)
            for one, t in zip(parameters, theirs)
        ]
        np.testing.assert_allclose(found[b], 2.0 * v @ np.array(each), rtol=1e-3, atol=1e-5)


def test_a_factor_on_the_logits_is_of_those_who_are_reused_and_of_those_who_reuse():
    """As measured on networks: what classifiers say of the teacher's embedding is what the teacher says."""
    images = jax.random.uniform(jax.random.key(0), (4, 8, 8, 1))
    task = Task(3, 1, (0.4,), (0.2,))
    model = addresses.build_model("speedy(width=2, blocks=1)", task)
    apply = jax.jit(model.apply)
    variables = [jax.jit(model.init)(jax.random.key(seed), images[:1]) for seed in (1, 2)]
    variables[0]["params"]["heads"]["bias"] = jnp.arange(3.0)[None]
    theirs, own = (apply(of_one, images)[0] for of_one in variables)
    teacher = Population(model, jax.tree.map(lambda leaf: leaf[None], variables[0]), {}, ("a",))
    classify = students.classifiers((teacher,))
    np.testing.assert_allclose(classify((theirs.embedding,))[0], theirs.logits, rtol=1e-4, atol=1e-5)

    recipe, width = features.simkd(), own.embedding.shape[-1]
    projector = maps.draw_linear(jax.random.key(3), width, width)
    of = everything(recipe)
    state = dataclasses.replace(of.state, params=variables[1]["params"], aux=(projector,), model_state={})
    prepared = {features.RESCALED: students.classifiers((teacher,), model.head_scale)}
    state = recipe.after(state, dataclasses.replace(of, state=state, prepared=prepared))
    found = apply({**variables[1], **recipe.deploy(state, {})}, images)[0].logits
    expected = classify((maps.linear(projector, own.embedding),))[0]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_networks_whose_logits_are_not_what_their_heads_say_are_refused():
    class Halved(nn.Module):
        @nn.compact
        def __call__(self, image, train):
            embedding = image.reshape(len(image), -1)
            return layers.outputs(embedding, layers.Heads(1, 2, name="heads")(embedding) / 2, {})

    split = experiment.load_split(small.config())
    with pytest.raises(UserError, match="logits of halved are not what its heads say") as error:
        students._check_heads((Model("halved", Halved()),), split)
    assert "\n" not in str(error.value)
    students._check_heads((teachers.network(split, "speedy(width=2, blocks=1)"),), split)


def drawn_heads(num_classes=2):
    """What the teachers of `drawn` read their embeddings by."""
    rng = np.random.default_rng(8)
    return [(rng.normal(size=(w, num_classes)), rng.normal(size=(1, num_classes))) for w in (5, 4, 9)]


def by_heads(heads):
    """Teachers that have nothing but heads; two of one architecture would share an axis, here they do not."""
    return tuple(
        Population(
            teachers_model(),
            {"params": {"heads": {"kernel": jnp.float32(w)[None, None], "bias": jnp.float32(b)[None]}}},
            {},
            ("a",),
        )
        for w, b in heads
    )


def teachers_model():
    return Model("by hand", None)


def test_networks_without_linear_heads_cannot_reuse_or_be_reused():
    with pytest.raises(
        UserError, match="features.simkd: the student must read its embedding by linear heads"
    ):
        features.simkd().init_mem({"params": {"body": jnp.ones(3)}}, None, 1)
    other = Population(teachers_model(), {"params": {"network": {}}}, {}, ("a",))
    with pytest.raises(UserError, match="by hand: as a teacher it has no linear layer"):
        students.classifiers((other,))


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
    assert [r["kernel"].shape for r in aux] == [(2, 2), (2, 4), (2, 7)]
    assert [r["bias"].shape for r in aux] == [(2,), (4,), (7,)]


@pytest.mark.parametrize("side", ["student", "teacher"])
def test_an_unknown_feature_is_named(side):
    of = seen(**drawn())
    recipe = features.hints(**{side: "stage9"})
    with pytest.raises(UserError, match=f"the {side} has no feature 'stage9'; it has .*stage1"):
        recipe.init_aux(jax.random.key(0), of.student, of.teacher)


# --- attention ----------------------------------------------------------------------------------------


def attention(student, teacher):
    return added(features.attention_transfer(), {"stage1": student}, {"stage1": teacher})


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


# --- flow, patterns, spread, boundaries, masks --------------------------------------------------------


def pixels(values):
    """A map [1,h,1,d] of rows of numbers, a row a pixel."""
    return np.array(values, float)[None, :, None, :]


def added(recipe, student, teacher, aux=None):
    return feature_loss(recipe, seen(student, [teacher], aux, np.zeros((1, 1)), weight=1.0))


def test_flow_by_hand():
    """The fixture of the card: G = (2.5, 1.5), against a teacher who is 0 everywhere."""
    student = {"stage1": pixels([[1], [3]]), "stage2": pixels([[2, 0], [1, 1]])}
    nothing = {name: np.zeros_like(x) for name, x in student.items()}
    np.testing.assert_allclose(added(features.fsp(), student, nothing), [(2.5**2 + 1.5**2) / 2])
    turned = {name: -x[:, ::-1] for name, x in student.items()}  # pixels in another order, both signs changed
    np.testing.assert_allclose(added(features.fsp(), student, turned), [0.0], atol=1e-6)


def test_flow_between_networks_of_other_widths_is_refused():
    wide, narrow = ({f"stage{i}": np.ones((1, 2, 2, width)) for i in (1, 2)} for width in (3, 4))
    with pytest.raises(UserError, match="no two neighbouring stages of equal width"):
        added(features.fsp(), wide, narrow)


@pytest.mark.parametrize(
    "own, other, discrepancy", [([[1], [0]], [[0], [1]], 2.0), (np.eye(2), [[1, 1], [0, 0]], 0.5)]
)
def test_patterns_by_hand(own, other, discrepancy):
    """Fixtures of the card; a channel is a column."""
    found = added(features.nst(), {"stage1": pixels(own)}, {"stage1": pixels(other)})
    np.testing.assert_allclose(found, [discrepancy], atol=1e-6)


def test_spread_begins_at_five_and_is_that_of_the_errors_at_the_least_loss():
    of = everything(features.vid())
    aux = features.vid().init_aux(jax.random.key(0), of.student, of.teacher)
    assert [sorted(of_teacher) for of_teacher in aux] == [["stage1", "stage2"]] * 2 + [["stage1"]]
    np.testing.assert_allclose(jax.nn.softplus(aux[0]["stage1"]["spread"]), 5.0, rtol=1e-6)
    own, other = np.zeros((1, 2, 1, 1)), pixels([[2.0], [-2.0]])

    def at(variance):
        spread = np.log(np.expm1(np.array([variance])))
        aux = ({"stage1": {"map": {"kernel": np.zeros((1, 1)), "bias": np.zeros(1)}, "spread": spread}},)
        return added(features.vid(), {"stage1": own}, {"stage1": other}, aux)

    np.testing.assert_allclose(at(4.0), [np.log(4) / 2 + 0.5], rtol=1e-4)
    assert at(4.0) < min(at(3.0), at(5.0))


@pytest.mark.parametrize(
    "value, active, lost", [(1.0, 2.0, 0.0), (-1.0, 2.0, 4.0), (0.5, 0.0, 2.25), (-3.0, 0.0, 0.0)]
)
def test_boundaries_by_hand(value, active, lost):
    aux = ({"stage1": {"kernel": np.ones((1, 1)), "bias": np.zeros(1)}},)
    found = added(features.ab_only(), {"stage1": scalar(value)}, {"stage1": scalar(active)}, aux)
    np.testing.assert_allclose(found, [lost])


@pytest.mark.parametrize(
    "value, target, lost",
    [(-3.0, [-1.0, -2.0], 0.0), (0.0, [-1.0, -2.0], 2.25), (-3.0, [2.0, 2.0], 25.0), (-1.0, [0.0, 0.0], 0.0)],
)
def test_silent_units_by_hand(value, target, lost):
    """The first teacher's margin is -1.5: where the student is below the target nothing is lost."""
    aux = ({"stage1": {"kernel": np.ones((1, 1)), "bias": np.zeros(1)}},)
    teacher = {"stage1": np.array(target).reshape(2, 1, 1, 1)}
    of = seen({"stage1": np.full((2, 1, 1, 1), value)}, [teacher], aux, np.zeros((2, 1)))
    found = feature_loss(features.ofd(), of)
    np.testing.assert_allclose(found[1], lost)


def test_attention_over_stages_prefers_those_it_finds_alike():
    """Equal queries weigh stages alike; one with a larger product takes all of it."""
    student = {"stage1": scalar(1.0)}
    teacher = {"stage1": scalar(2.0), "stage2": scalar(5.0)}
    one = {"kernel": np.ones((1, 1)), "bias": np.zeros(1)}
    maps_of = {"stage1": {"stage1": one, "stage2": one}}

    def at(query):
        aux = ({"query": {"stage1": query}, "key": {"stage1": one, "stage2": one}, "map": maps_of},)
        return added(features.semckd(width=1), student, teacher, aux)

    np.testing.assert_allclose(at({**one, "kernel": np.zeros((1, 1))}), [(1.0 + 16.0) / 2], rtol=1e-5)
    np.testing.assert_allclose(at({**one, "kernel": np.full((1, 1), 20.0)}), [16.0], rtol=1e-5)
    with pytest.raises(UserError, match="width=0"):
        features.semckd(width=0)


@pytest.mark.parametrize("wrong", [features.mgd, features.factor_transfer])
def test_shares_out_of_range_are_refused(wrong):
    with pytest.raises(UserError, match="must be in"):
        wrong(**{"masked" if wrong is features.mgd else "share": 1.5})


@pytest.mark.parametrize(
    "recipe",
    [
        *(features.vid(), features.ab_only(), features.mgd(), features.factor_transfer()),
        *(features.review(), features.ofd()),
    ],
)
def test_networks_without_a_common_stage_are_refused(recipe):
    of = seen({"stem": np.ones((1, 1, 1, 1))}, [{"stage1": np.ones((1, 1, 1, 1))}], None, np.zeros((1, 1)))
    with pytest.raises(UserError, match=f"features.{recipe.name}: student and teachers share no stage"):
        loss(recipe, with_parameters(recipe, of))


# --- in the step --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def setting():
    """(configuration, split, two untrained teachers of two architectures)."""
    config = small.config(
        **{
            "students.model": "cnn(widths=(4,), dense=8)",
            "students.modes": tuple(f"features.{recipe.name}" for recipe in TRAINED),
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


@pytest.mark.parametrize("recipe", TRAINED, ids=lambda recipe: recipe.name)
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


# --- matched channels ---------------------------------------------------------------------------------


def test_channels_are_matched_by_the_permutation_of_the_least_distance():
    """By hand for two, and as no other of all permutations of five; a permuted copy is put back in order."""
    root = np.sqrt(2.0)
    np.testing.assert_array_equal(features.matching(np.array([[0.0, root]]), np.array([[root, 0.0]])), [1, 0])
    rng = np.random.default_rng(3)
    own, other = rng.normal(size=(2, 7, 5))
    found = features.matching(own, other)
    distances = {order: ((other[:, order] - own) ** 2).sum() for order in permutations(range(5))}
    assert min(distances, key=distances.get) == tuple(found)
    shuffled = rng.permutation(5)
    np.testing.assert_array_equal(own[:, shuffled][:, features.matching(own, own[:, shuffled])], own)


def test_matched_channels():
    """Teacher 0 has both stages as wide as the student, in another order; the others have none."""
    of, orders = drawn(), {"stage1": np.array([1, 0]), "stage2": np.array([4, 2, 0, 1, 3])}
    seen_of = seen(**of)
    hyper = {features.channels_of(s): jnp.tile(jnp.asarray(o, jnp.int32), (3, 1)) for s, o in orders.items()}
    plain = loss(features.MATCHED._replace(hyper=(("weight", 0.0),)), with_hyper(seen_of, hyper))
    found = loss(features.MATCHED._replace(hyper=(("weight", 6.0),)), with_hyper(seen_of, hyper))
    for b in range(B):
        wanted = [
            reference.matched_channels(of["student"][s][b], of["teachers"][0][s][b], order)
            for s, order in orders.items()
        ]
        np.testing.assert_allclose(found[b] - plain[b], 6.0 / 3 * sum(wanted), rtol=1e-4)


def with_hyper(seen_of, hyper):
    return dataclasses.replace(seen_of, hyper={**seen_of.hyper, **hyper})
