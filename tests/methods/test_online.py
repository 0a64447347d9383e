"""Methods of methods/online.py: the loss of every peer by a reference, both forms, and what cannot be."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax.addresses import build_model
from mtkd_jax.engine import jobs, step, training
from mtkd_jax.engine.population import init, take
from mtkd_jax.methods import cohorts, online, peers, seams
from mtkd_jax.models.branched import branched
from mtkd_jax.models.layers import ENTERING
from mtkd_jax.plans import plan, students
from mtkd_jax.types import Peers, Sharing, Task, TrainState, UserError
from tests import small
from tests.contexts import context, loss
from tests.references import online as reference

P, B, C, D = 3, 4, 5, 8
RNG = np.random.default_rng(7)
LOGITS, AVERAGES = 2 * RNG.normal(size=(P, B, C)), 2 * RNG.normal(size=(P, B, C))
EMBEDDINGS, MAPS = RNG.normal(size=(P, B, D)), RNG.normal(size=(P, B, 2, 3, 2))
ENTERS = RNG.normal(size=(B, 2, 2, D))
LABELS, T, EPOCH = np.array([0, 4, 2, 1]), 3.0, 30
TOLD = {"embedding": EMBEDDINGS, "average": AVERAGES, "map": MAPS}
# What runs once: compiled without optimising, which takes a fraction of the time.
jit_once = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def in_float32(tree):
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), tree)


def seen_by(place, aux=None, alpha=1.0, epoch=EPOCH, mem=None):
    """What peer `place` of the cohort sees, 30 of 300 epochs into the training."""
    seen = context(
        LOGITS[place], LOGITS, LABELS, temperature=T, alpha=alpha, progress=epoch / 300, label_smoothing=0.0
    )
    student = dataclasses.replace(
        seen.student,
        embedding=in_float32(EMBEDDINGS[place]),
        features=in_float32({"stage1": MAPS[place], ENTERING: ENTERS}),
    )
    cohort = Peers(in_float32(LOGITS), jnp.int32(place), jnp.ones(P, bool), in_float32(TOLD))
    remembered = {} if mem is None else in_float32(mem)
    state = TrainState({}, in_float32(aux or {}), {}, {}, remembered, jax.random.key(0))
    return dataclasses.replace(seen, student=student, peers=cohort, state=state, teacher=None)


def with_own(recipe, seen):
    own = {name: jnp.float32(value) for name, value in recipe.hyper}
    return dataclasses.replace(seen, hyper={**seen.hyper, **own})


def of_one_branch(recipe):
    """A recipe of branches as each of them has it."""
    return recipe._replace(weigh=recipe.weigh.seam, aim=recipe.aim.seam, term=recipe.term.of_each.seam)


def compare(recipe, expected, aux=None, alpha=1.0, rtol=2e-4, mem=None):
    """The loss [B] of every peer with what a reference says of peer i and example b."""
    for i in range(P):
        found = loss(recipe, with_own(recipe, seen_by(i, aux, alpha, mem=mem)))
        np.testing.assert_allclose(found, [expected(i, b) for b in range(B)], rtol=rtol)


# --- losses -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("target", ["naive", "linear", "minimum"])
def test_kdcl(target):
    recipe = online.kdcl(num_peers=P, target=target)
    of_example = lambda i, b: reference.kdcl(i, LOGITS[:, b], LABELS[b], T, target)  # noqa: E731
    compare(recipe, of_example, rtol=2e-3 if target == "linear" else 2e-4)  # both search for the mixture


def test_kdcl_general():
    covariance = reference.covariance(AVERAGES, LABELS)  # of other predictions than these
    recipe = online.kdcl(num_peers=P, target="general")
    of_example = lambda i, b: reference.kdcl(i, LOGITS[:, b], LABELS[b], T, "general", covariance)  # noqa: E731
    compare(recipe, of_example, mem=covariance)


@pytest.mark.parametrize("shared", ["", "most"])
def test_kdcl_general_in_either_form(shared):
    few = {"students.model": NETWORK, "students.num_seeds": 1}
    plan.trace(small.students_job(f"online.kdcl(target='general', shared={shared!r})", **few))


def test_errors_are_remembered_of_labelled_images_alone():
    seen = with_own(online.kdcl(num_peers=P, target="general"), seen_by(1))
    before = jnp.full((P, P), 0.5, jnp.float32)
    remember = online.kdcl(num_peers=P, target="general").after
    for labelled in ([True] * B, [True, False, False, True], [False] * B):
        known = dataclasses.replace(seen, batch=dataclasses.replace(seen.batch, labelled=jnp.array(labelled)))
        after = remember(dataclasses.replace(seen.state, mem=before), known).mem
        moved = reference.covariance(LOGITS[:, labelled], LABELS[labelled]) if any(labelled) else before
        np.testing.assert_allclose(after, 0.99 * before + 0.01 * moved, rtol=1e-5)


def test_weights_of_the_least_error_by_hand():
    """Of independent errors by their precision; a worse one that errs alike is subtracted; alike at first."""
    for covariance, expected in (
        (np.diag([1.0, 2.0, 4.0]), [4 / 7, 2 / 7, 1 / 7]),
        (np.diag([1.0, 2.0, 4.0]) + 0.5 * np.eye(3)[[1, 0, 2]], None),
        (np.array([[1.0, 1.9, 0.0], [1.9, 4.0, 0.0], [0.0, 0.0, 1.0]]), None),
        (np.zeros((3, 3)), [1 / 3] * 3),
        (np.ones((3, 3)), [1 / 3] * 3),
    ):
        found = online.least_error_weights(in_float32(covariance), jnp.ones(3, bool))
        wanted = reference.least_error_weights(covariance) if expected is None else expected
        np.testing.assert_allclose(found, wanted, atol=3e-3)
    assert online.least_error_weights(in_float32(covariance), jnp.array([True, False, True]))[1] == 0
    left = online.least_error_weights(in_float32(np.diag([1.0, 9.0, 3.0])), jnp.array([True, False, True]))
    np.testing.assert_allclose(left, [0.75, 0.0, 0.25], atol=3e-3)


def test_the_best_mixture_is_the_best():
    """By the cross-entropy that it reaches, of logits far apart too, where the mixture itself may differ."""
    for z in (LOGITS[:, 0], 10 * LOGITS[:, 1], np.stack([LOGITS[0, 2]] * P)):
        a = np.asarray(online.best_mixture(in_float32(z), jnp.int32(1)), np.float64)
        assert a.min() >= 0 and abs(a.sum() - 1) < 1e-5
        reached = reference.cross_entropy(a @ z, 1)
        corners = [reference.cross_entropy(own, 1) for own in z]
        pairs = [reference.cross_entropy(s * x + (1 - s) * y, 1) for x in z for y in z for s in (0.25, 0.5)]
        assert reached <= min(*corners, *pairs) + 1e-3


def test_one():
    kernel = RNG.normal(size=(D, P))
    gates = reference.gates(ENTERS.mean(axis=(1, 2)), kernel)
    recipe = online.one(num_peers=P)
    assert recipe.sharing == Sharing(P, "most")
    compare(
        of_one_branch(recipe),
        lambda i, b: reference.one(i, LOGITS[:, b], LABELS[b], T, gates[b], EPOCH),
        {"kernel": kernel, "scale": np.ones(P), "bias": np.zeros(P)},
    )


def test_cl_ilr():
    recipe = online.cl_ilr(num_peers=P)
    assert recipe.sharing == Sharing(P, "most", rescaled=True)
    compare(
        of_one_branch(recipe), lambda i, b: reference.cl_ilr(i, LOGITS[:, b], LABELS[b], T, 0.5), alpha=0.5
    )


@pytest.mark.parametrize("leader", [0, 2])
def test_okddip(leader):
    query, key = RNG.normal(size=(2, D, 1))
    compare(
        online.okddip(num_peers=P, leader=leader),
        lambda i, b: reference.okddip(
            i, LOGITS[:, b], LABELS[b], T, EMBEDDINGS[:, b], query, key, leader, EPOCH
        ),
        {"query": query, "key": key},
    )


@pytest.mark.parametrize("name", ["pcl", "dkel"])
def test_pcl_and_dkel(name):
    kernel, bias = RNG.normal(size=(P * D, C)), RNG.normal(size=C)
    expected = {"pcl": reference.pcl, "dkel": reference.dkel}[name]
    compare(
        getattr(online, name)(num_peers=P),
        lambda i, b: expected(
            i, LOGITS[:, b], LABELS[b], T, EMBEDDINGS[:, b], kernel, bias, AVERAGES[:, b], EPOCH
        ),
        {"kernel": kernel, "bias": bias},
    )


def test_ffl():
    depthwise, pointwise = RNG.normal(size=(3, 3, 1, P * 2)), RNG.normal(size=(P * 2, 2))
    kernel, bias = RNG.normal(size=(2, C)), RNG.normal(size=C)
    fusion = reference.fused(MAPS, depthwise, pointwise, kernel, bias)
    aux = {
        "depthwise": depthwise,
        "pointwise": {"kernel": pointwise, "scale": np.ones(2), "bias": np.zeros(2)},
        "classifier": {"kernel": kernel, "bias": bias},
    }
    compare(
        online.ffl(num_peers=P), lambda i, b: reference.ffl(i, LOGITS[:, b], LABELS[b], T, fusion[b]), aux
    )


def seen_with_guides(place):
    """What a peer of `ekd` sees, with guided modules of its own, and what all of these say."""
    draw = np.random.default_rng(11).normal
    modules = [
        {
            name: {
                "layer": {"kernel": draw(size=(2, 2)), "scale": np.ones(2), "bias": np.zeros(2)},
                "classifier": {"kernel": draw(size=(2, C)), "bias": draw(size=C)},
            }
            for name in ("stage1", "stage2")
        }
        for _ in range(P)
    ]
    features = {"stage1": MAPS, "stage2": MAPS[..., :1, :] ** 2}
    said = {
        name: [np.stack(x) for x in zip(*map(reference.guided, maps, (own[name] for own in modules)))]
        for name, maps in features.items()
    }
    told = {f"{name} {what}": x for name, of in said.items() for what, x in zip(("map", "logits"), of)}
    seen = seen_by(place, modules[place])
    student = dataclasses.replace(
        seen.student, features=in_float32({name: maps[place] for name, maps in features.items()})
    )
    cohort = dataclasses.replace(seen.peers, told=in_float32(told))
    return dataclasses.replace(seen, student=student, peers=cohort), said


def test_ekd():
    recipe = online.ekd(num_peers=P, weight=0.7, guided_weight=0.4)
    for i in range(P):
        seen, said = seen_with_guides(i)
        for what, x in recipe.tell(seen, None).items():
            np.testing.assert_allclose(x, seen.peers.told[what][i], rtol=1e-4, atol=1e-5)
        found = loss(recipe, with_own(recipe, seen))
        of_example = [[(g[:, b], c[:, b]) for g, c in said.values()] for b in range(B)]
        expected = [reference.ekd(i, LOGITS[:, b], LABELS[b], T, of_example[b], 0.7, 0.4) for b in range(B)]
        np.testing.assert_allclose(found, expected, rtol=2e-4)


def test_teachers_of_ekd_hear_nobody():
    """Whatever the others say: and without teachers that are finite, neither does the student."""
    recipe = online.ekd(num_peers=P)
    for place, finite in ((1, [True] * P), (0, [True] + [False] * (P - 1))):
        seen, _ = seen_with_guides(place)
        heard = dataclasses.replace(seen.peers, finite=jnp.array(finite))
        told = jax.tree.map(jnp.zeros_like, dict(heard.told))
        silent = dataclasses.replace(heard, logits=jnp.zeros_like(heard.logits), told=told)
        found, alone = (
            loss(recipe, with_own(recipe, dataclasses.replace(seen, peers=cohort)))
            for cohort in (heard, silent)
        )
        np.testing.assert_allclose(found, alone, rtol=1e-6)


@pytest.mark.slow
def test_peers_of_ekd_that_match_nothing_are_trained_by_themselves():
    """Both take the steps of networks that learn from labels alone, from the same beginning."""
    few = {"students.alphas": (1.0,), "students.num_seeds": 1, "train.optimizer": "sgd"}
    cohort = small.students_job("online.ekd(weight=0.0, guided_weight=0.0)", **few)
    alone = small.students_job("output_avg", **few)
    alone = dataclasses.replace(jobs.part(alone, [0, 0]), init_keys=cohort.init_keys)
    ended = []
    for job in (cohort, alone):
        steps = training.compiled_part(job.program)
        begun = training.first_progress(job)
        ended.append(steps(begun, job.hyper, job.order(0)[:2], np.int32(0), job.stage_data).train.params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), *ended)


def test_guided_modules_need_stages():
    with pytest.raises(UserError, match="online.ekd reads maps of stages, and the student names no") as error:
        plan.trace(small.students_job("online.ekd", **{"students.model": "mlp(hidden=())"}))
    assert "\n" not in str(error.value)


def test_the_ramp_up_is_the_stated_one():
    """Not that of public code, which divides by another number and is 0 for most of the first 80 epochs."""
    stated = {0: 0.0067, 10: 0.0217, 20: 0.0601, 40: 0.2865, 60: 0.7316, 80: 1.0, 200: 1.0}
    for epoch, value in stated.items():
        np.testing.assert_allclose(seams.ramped_up(jnp.float32(epoch / 300), 80 / 300), value, atol=1e-4)
        np.testing.assert_allclose(reference.ramp_up(epoch), value, atol=1e-4)


def test_the_ensemble_of_dkel_fades_and_is_gone_from_epoch_10():
    for epoch, value in {0: 1.0, 1: 0.6065, 5: 0.0821, 9: 0.0111, 10: 0.0, 200: 0.0}.items():
        found = online.faded(jnp.float32(epoch / 300), jnp.float32(150.0))
        np.testing.assert_allclose(found, value, atol=1e-4)


def test_projections_learn_by_the_distillation_of_the_auxiliary_peers():
    """By its gradient, the same in every peer, whatever the peers' own losses are."""
    aux = in_float32(dict(zip(("query", "key"), RNG.normal(size=(2, D, 1)))))
    term = online.okddip(num_peers=P).term

    def distilled(aux, place):
        seen = seen_by(place, aux)
        mass = jnp.zeros((1, B), jnp.float32)
        targets = seams.targets_of(jax.nn.softmax(seen.peers.logits[:1]), mass)
        hyper = {**seen.hyper, "weight": jnp.float32(1.0)}
        return term(dataclasses.replace(seen, targets=targets, hyper=hyper)).sum()

    slope = jax.grad(distilled)
    of_first, of_last = jit_once(lambda aux: [slope(aux, place) for place in (0, P - 1)])(aux)
    assert float(jnp.abs(of_first["query"]).max()) > 1e-4
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), of_first, of_last)


# --- branches -----------------------------------------------------------------------------------------

NETWORK = "cnn(widths=(2, 3), dense=4, batch_norm=True)"


@pytest.fixture(scope="module")
def two_forms():
    """Gradients of three peers on one stem, and of the joint loss of three networks with equal stems."""
    one = build_model(NETWORK, Task(C, 1, (0.5,), (0.5,)))
    cohort = branched(one, P, "stage1", rescaled=False)
    image = jax.random.uniform(jax.random.key(1), (B, 4, 4, 1))
    variables = jit_once(cohort.init)(jax.random.key(0), image)
    state = {"batch_stats": variables["batch_stats"]}

    def through_seams(params):
        outputs, state_after = cohort.apply({"params": params, **state}, image, train=True)
        seen = seen_by(0, alpha=0.25)
        said = Peers(jax.lax.stop_gradient(outputs.logits), jnp.int32(0), jnp.ones(P, bool))
        seen = dataclasses.replace(seen, student=outputs, peers=said)
        recipe = peers.dml(num_peers=P, shared="stage1")
        fixed = jax.lax.stop_gradient(seen)
        fixed = dataclasses.replace(fixed, teacher=recipe.teach(fixed, None))
        targets = recipe.aim(fixed, recipe.weigh(fixed))
        known = dataclasses.replace(seen, teacher=fixed.teacher, targets=targets)
        return recipe.term(known).mean(), state_after

    def written_out(params):
        said = [one.apply(cohort.branch({"params": params, **state}, p), image, train=True) for p in range(P)]
        total = 0.0
        for i, (own, _) in enumerate(said):
            total += 0.25 * -jax.nn.log_softmax(own.logits)[np.arange(B), LABELS].mean()
            for j, (other, _) in enumerate(said):
                q = jax.lax.stop_gradient(jax.nn.softmax(other.logits / T))
                divergence = (q * (jnp.log(q) - jax.nn.log_softmax(own.logits / T))).sum(axis=-1).mean()
                total += 0.75 * T**2 / (P - 1) * divergence if i != j else 0.0
        return total, [state_after for _, state_after in said]

    both = jit_once(
        lambda params: [jax.value_and_grad(f, has_aux=True)(params) for f in (through_seams, written_out)]
    )
    return cohort, both(variables["params"])


def test_branches_learn_as_networks_whose_stems_are_one(two_forms):
    """The same loss; a branch has the gradient of its own, the stem that of all."""
    _, (((value, _), grads), ((expected_value, _), expected)) = two_forms
    np.testing.assert_allclose(value, expected_value, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grads, expected)
    assert float(jnp.abs(grads["conv1"]["kernel"]).max()) > 1e-4


def test_every_branch_keeps_its_own_statistics_and_the_stem_one(two_forms):
    cohort, (((_, after), _), ((_, afters), _)) = two_forms
    for number, expected in enumerate(afters):
        found = cohort.branch(after, number)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


def test_a_view_of_each_goes_through_the_stem_at_once_and_the_rescaled_stem_has_the_mean():
    one = build_model("cnn(widths=(2, 3), dense=4)", Task(C, 1, (0.5,), (0.5,)))
    summed, mean = branched(one, P, "stage1"), branched(one, P, "stage1", True)
    views = jax.random.uniform(jax.random.key(1), (P, B, 4, 4, 1))
    variables = jit_once(summed.init)(jax.random.key(0), views[0])

    @jit_once
    def both(params):
        def total(params, model):
            return (model.apply({"params": params}, views)[0].logits ** 2).sum()

        own = [one.apply(summed.branch({"params": params}, p), views[p])[0].logits for p in range(P)]
        grads = [jax.grad(total)(params, model) for model in (summed, mean)]
        return summed.apply({"params": params}, views)[0].logits, jnp.stack(own), grads

    found, expected, (of_sum, of_mean) = both(variables["params"])
    np.testing.assert_allclose(found, expected, atol=1e-5)
    np.testing.assert_allclose(of_mean["conv1"]["kernel"], of_sum["conv1"]["kernel"] / P, rtol=1e-5)
    np.testing.assert_allclose(of_mean["conv2"]["kernel"], of_sum["conv2"]["kernel"], rtol=1e-5)


# --- DKEL ---------------------------------------------------------------------------------------------


def test_the_teacher_of_dkel_is_never_the_student():
    """Neither before nor after a step: public code copies the student into it in the first one."""
    job = small.students_job("online.dkel(shared='most')", **{"model.name": NETWORK, "students.num_seeds": 1})
    variables = init(job.program.model, job.init_keys, (4, 4, 1))
    begin = jit_once(lambda *begun: step.init_state(job.program, *begun, job.stage_data))
    state = take(begin(variables, job.init_keys), 0)
    after = jit_once(job.program.recipes[0].after)(state, seen_of_first_step())
    for mem in (state.mem, after.mem):
        for layer in ("conv1", "conv2"):
            apart = jnp.abs(mem["params"][layer]["kernel"] - state.params[layer]["kernel"])
            assert float(apart.max()) > 0.05
    moved = 0.999 * state.mem["params"]["conv1"]["kernel"] + 0.001 * state.params["conv1"]["kernel"]
    np.testing.assert_allclose(after.mem["params"]["conv1"]["kernel"], moved, rtol=1e-5)


def test_teachers_of_dkel_have_no_frozen_stages_of_their_own():
    few = {"students.model": "speedy(width=4, blocks=1)", "students.num_seeds": 1}
    plan.trace(small.students_job("online.dkel(num_peers=2)", **few))
    with pytest.raises(UserError, match="which lack what speedy.* computes from the images") as error:
        small.students_job("online.dkel", **{**few, "students.model": "speedy(trainable='')"})
    assert "\n" not in str(error.value)


def seen_of_first_step():
    seen = seen_by(0)
    return dataclasses.replace(seen, hyper={**seen.hyper, "decay": jnp.float32(0.999)})


# --- stopped and resumed ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mode",
    [
        "online.pcl(num_peers=2, decay=0.5)",
        "online.dkel(num_peers=2, decay=0.5, shared='most')",
        "online.kdcl(target='general', decay=0.5)",
        "online.kdcl(target='general', decay=0.5, shared='most')",
    ],
)
def test_what_a_cohort_remembers_is_resumed_to_the_same_bits(mode, tmp_path):
    """Averages of peers, the classifier on all of them, the running covariance; augmented views."""
    few = {"students.model": NETWORK, "students.num_seeds": 1, "train.epochs": 2, "data.augment.shift": 1}
    small.check_that_it_resumes(small.students_job(mode, **few), tmp_path)


# --- what cannot be -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["kdcl", "one", "cl_ilr", "okddip", "pcl", "dkel", "ffl", "ekd"])
def test_nobody_is_a_cohort_alone(method):
    with pytest.raises(UserError, match=rf"{method}\(num_peers=1\): a cohort has at least 2"):
        getattr(online, method)(num_peers=1)


@pytest.mark.parametrize(
    "address, expected",
    [
        ("online.okddip(leader=4)", "okddip(leader=4): peers are numbered 0 to 3"),
        ("online.okddip(num_peers=2)", "it must be at least 3"),
        ("online.kdcl(target='linaer')", "did you mean 'linear'?"),
        ("online.kdcl(target='general', decay=1.0)", "kdcl(decay=1.0): it must be in [0, 1)"),
        ("online.one(shared='')", "one(shared=''): its peers share a stem"),
        ("peers.dml(shared='stage11')", "cannot branch after 'stage11', did you mean 'stage1'?"),
        ("online.pcl(shared='heads')", "it can after stage1, stage2, dense"),
        ("online.pcl(decay=1.0)", "pcl(decay=1.0): it must be in [0, 1)"),
        ("online.dkel(ramp=2.0)", "dkel(ramp=2.0): it must be a share of the training"),
    ],
)
def test_what_cannot_be_is_one_line(address, expected):
    with pytest.raises(UserError) as error:
        small.students_job(address, **{"model.name": NETWORK})
    assert expected in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("shared, members", [("", (1,)), ("most", (0,))])
def test_a_cohort_in_either_form_has_its_leader_as_its_student(shared, members):
    mode = f"online.okddip(leader=1, shared={shared!r})"
    config = small.config(**{"students.modes": (mode,), "students.num_seeds": 1, "students.alphas": (1.0,)})
    family = next(found for found in students.families(config) if found[0].mode == mode)
    assert tuple(students.members_of(family, mode)) == members


@pytest.mark.parametrize("optimizer", ["muon", "lamb(b1=0.8)"])
def test_an_optimizer_of_whole_layers_has_no_branches(optimizer):
    few = {"model.name": NETWORK, "train.optimizer": optimizer}
    with pytest.raises(UserError, match="train.optimizer: .* goes by whole layers") as error:
        small.students_job("peers.dml(shared='most')", **few)
    assert "\n" not in str(error.value)


def test_a_network_without_stages_shares_nothing():
    with pytest.raises(
        UserError, match="names no stages, so nothing of it can be shared; take whole networks"
    ):
        small.students_job("peers.dml(shared='most')")


# --- pieces -------------------------------------------------------------------------------------------


def test_the_last_map_is_that_of_the_deepest_stage():
    seen = seen_by(0).student
    features = {"stage10": jnp.ones((B, 1, 1, 2)), "stage9": jnp.zeros((B, 2, 2, 2))}
    found = online._last_map(dataclasses.replace(seen, features=features))
    assert found is features["stage10"]


def test_a_loss_of_the_cohort_counts_once_and_is_felt_by_all():
    for place, value in ((0, 5.0), (1, 0.0)):
        seen = seen_by(place)
        found, slope = jax.value_and_grad(lambda x, seen=seen: cohorts.of_cohort(seen, x))(jnp.float32(5.0))
        assert (float(found), float(slope)) == (value, 1.0)


def test_who_broke_down_is_no_target():
    seen = seen_by(0)
    broken = dataclasses.replace(
        seen.peers, finite=jnp.array([True, True, False]), logits=seen.peers.logits.at[2].set(0.0)
    )
    seen = dataclasses.replace(seen, peers=broken)
    for target in ("naive", "minimum"):
        found = loss(online.kdcl(num_peers=P, target=target), seen)
        expected = [reference.kdcl(0, LOGITS[:2, b], LABELS[b], T, target) for b in range(B)]
        np.testing.assert_allclose(found, expected, rtol=2e-4)
