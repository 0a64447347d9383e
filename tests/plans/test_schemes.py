"""The named plans: what each stage learns from, against the same training written out, and whole runs."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax import addresses, experiment, main
from mtkd_jax.engine import forecast, jobs, population, step, training
from mtkd_jax.fusion import rules
from mtkd_jax.methods import lineage, seams, targets
from mtkd_jax.methods.peers import EACH_HEAD, Correlated
from mtkd_jax.models.interactive import TEACHERS
from mtkd_jax.plans import plan, students, teachers
from mtkd_jax.plans.schemes import adaptive, further_data, moments
from mtkd_jax.report import document
from mtkd_jax.results import evaluation
from mtkd_jax.runs import predictions
from mtkd_jax.runs.logbook import Logbook
from mtkd_jax.types import Recipe, TeacherOutputs, UserError
from tests import small
from tests.contexts import by_student, context, loss
from tests.references import ensembles as reference_of_ensembles
from tests.references import methods as reference

PLANS = {
    "born_again(generations=2)": ["born_again 1", "born_again 2", "BANE"],
    "assistants(models=('mlp(hidden=(12,))',))": ["assistant 1", "assisted"],
    "densely_guided(models=('mlp(hidden=(12,))',))": ["assistant 1", "densely_guided"],
    "weighed_assistants(models=('mlp(hidden=(12,))', 'mlp(hidden=(8, 8))'))": [
        "assistant 1",
        "assistant 2",
        "weighed_assistants",
    ],
    "hints_then_distil": ["hints_then_distil"],
    "fine_tuned(mode='binary.quantised(bits=4)', begin='logit_avg')": ["fine_tuned"],
    "intermediate_heads": ["intermediate_heads"],
    "specialists": [],
    "boosted": [],
    "hyper_deep(searched=5, inits=1)": [],
}
BORN_AGAIN, *_ = PLANS


DIGITS = {
    "data.source": "digits",
    "data.num_train": 300,
    "model.name": "mlp(hidden=(16,))",
    "teachers.num_members": 5,
    "train.batch_size": 50,
    "train.epochs": 12,
    "students.modes": ("logit_avg",),
    "runtime.how": "vmap",
}


def config_of(address, **overrides):
    """Digits with one mode, two seeds and one layout: few programs to compile."""
    return small.config(**{"plan": address, **DIGITS, **overrides})


def stages_and_done(config, workdir, count=None):
    """The plan's stages, and what the first `count` of them train."""
    stages = plan.build(config, experiment.load_split(config))
    with Logbook(workdir, quiet=True) as logbook:
        return stages, plan.run(stages[:count], workdir, logbook, 1e9)


def trained(job, directory):
    with Logbook(directory, quiet=True) as logbook:
        return training.fit(job, directory / "checkpoints", logbook).population


def equal(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def close(a, b, atol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), a, b)


def weighed() -> Recipe:
    """A mode that one teacher can teach and that has a weight of its own for every teacher."""
    return seams.PLAIN._replace(name="weighed", weigh=lambda context: seams.equal_weights(context) / 2)


# --- whole runs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def generations(tmp_path_factory):
    """Two generations: (configuration, stages, what they trained)."""
    config = config_of(BORN_AGAIN)
    return config, *stages_and_done(config, tmp_path_factory.mktemp("generations"))


@pytest.fixture(scope="module", params=PLANS)
def on_digits(request, generations, tmp_path_factory):
    """Each plan on digits: (its address, what is predicted, the report)."""
    config = config_of(request.param)
    stages = plan.build(config, experiment.load_split(config))
    _, _, done = generations  # teachers and baseline are the same in most plans
    done = {} if request.param == "specialists" else done
    workdir = tmp_path_factory.mktemp("run")
    with Logbook(workdir, quiet=True) as logbook:
        done = plan.run([s for s in stages if s.name not in done], workdir, logbook, 1e9, done)
    predicted = evaluation.predict(config, experiment.load_split(config), stages, done)
    return config.plan, predicted, document.build(predicted)


def test_a_run_has_the_rows_of_its_plan_beside_the_baseline(on_digits):
    address, predicted, result = on_digits
    rows = {
        row["name"]: row for row in result["rows"] if row["role"] not in ("teacher", "linear", "ensemble")
    }
    assert set(rows) == {"logit_avg", "baseline", *PLANS[address]}
    compared = {one["a"] for one in result["comparisons"] if one["b"] == "baseline"}
    assert compared == {"logit_avg", *(name for name in PLANS[address] if not name.startswith("assistant "))}
    assert all(row["accuracy"]["mean"] > 0.6 for row in rows.values()), rows
    assert result["chosen_student"]["name"] not in ("BANE", "assistant 1", "assistant 2")
    figures = document.figures(predicted, result, [])
    assert "rows" in figures


@pytest.mark.parametrize("on_digits", [BORN_AGAIN], indirect=True)
def test_bane_is_the_mean_of_its_generations(on_digits):
    _, predicted, _ = on_digits
    groups = {group.name: group for group in predicted.groups}
    both = [groups["born_again 1"], groups["born_again 2"]]
    np.testing.assert_array_equal(groups["BANE"].test, evaluation.average(both, "labelled", "").test)
    assert groups["BANE"].members == both[0].members and groups["BANE"].role == "average"


def group_of(*members):
    """A row of these seeds with random logits."""
    rng = np.random.default_rng(len(members))
    val, test = (3 * rng.normal(size=(len(members), n, 4)).astype(np.float32) for n in (5, 6))
    costs = dict(params=10, flops=None, latency_ms={"1": 2.0}, train_seconds=1.5)
    row = dict(key="", name="", role="student", architecture="mlp", method="", transfer="labelled")
    return predictions.Group(**row, alpha=0.0, temperature=1.0, members=members, val=val, test=test, **costs)


def test_an_average_is_of_probabilities_of_the_members_that_all_have_at_summed_costs():
    groups = group_of("seed 0", "seed 1", "seed 2"), group_of("seed 2", "seed 0")
    found = evaluation.average(groups, "labelled", "both")
    assert found.members == ("seed 0", "seed 2")
    for split in ("val", "test"):
        each = [np.float64(getattr(groups[0], split)[[0, 2]]), np.float64(getattr(groups[1], split)[[1, 0]])]
        probs = [np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True) for z in each]
        np.testing.assert_allclose(np.exp(getattr(found, split)), sum(probs) / 2, atol=1e-6)
    assert (found.params, found.flops, found.latency_ms, found.train_seconds) == (20, None, {"1": 4.0}, 3.0)
    alone = evaluation.average(groups[:1], "labelled", "alone")
    np.testing.assert_allclose(
        np.exp(alone.test).sum(axis=-1), 1.0, rtol=1e-5
    )  # of one member it is that member
    differences = alone.test - groups[0].test
    np.testing.assert_allclose(
        differences, np.broadcast_to(differences[..., :1], differences.shape), atol=1e-5
    )


@pytest.mark.parametrize(
    "seeds, members, notes",
    [
        ([(0, 1), (1,), (1, 0)], (1,), ["BANE is the mean of g 1, g 2, g 3, at the cost of 3 networks."]),
        ([(0, 1), None, (1, 0)], (0, 1), ["BANE is the mean of g 1, g 3, at the cost of 2 networks."]),
        ([(0,), (1,)], None, ["BANE (labelled) is left out: no seed is left in all of its rows."]),
        ([None, None], None, ["BANE (labelled) is left out: no seed is left in all of its rows."]),
    ],
)
def test_a_note_says_of_which_generations_an_average_is(seeds, members, notes):
    """Of a generation whose students all broke down there is no row; None stands for it."""
    stages, groups = [], []
    for number, of_row in enumerate(seeds, start=1):
        family = (students.Member(f"g {number}", seams.PLAIN, students.Cell(0.0, 1.0), 0),)
        stages.append(plan.Stage(f"s{number}", None, family, "labelled", averaged="BANE"))
        if of_row is not None:
            named = {"key": evaluation.group_key("labelled", f"g {number}"), "name": f"g {number}"}
            groups.append(dataclasses.replace(group_of(*(f"seed {seed}" for seed in of_row)), **named))
    found, said = evaluation._averages(stages, groups)
    assert said == notes
    expected = [] if members is None else [tuple(f"seed {seed}" for seed in members)]
    assert [group.members for group in found] == expected


@pytest.mark.parametrize("on_digits", ["specialists"], indirect=True)
def test_specialists_are_one_good_classifier_together_and_none_alone(on_digits):
    _, _, result = on_digits
    rows = {row["name"]: row["accuracy"] for row in result["rows"]}
    assert rows["mean_logits"]["mean"] > 0.75
    assert max(rows["specialist mlp(hidden=(16,))"]["values"]) < 0.55
    assert any("mean_logits" in note for note in result["notes"])


# --- lineages -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", PLANS)
def test_every_transfer_set_has_stages_of_its_own(address):
    config = config_of(address, **{"students.transfer": ("labelled", "unlabelled")})
    stages = plan.build(config, experiment.load_split(config))
    assert len({stage.name for stage in stages}) == len(stages)
    of = {t: [s.family for s in stages if s.transfer == t] for t in config.students.transfer}
    assert of["labelled"] == of["unlabelled"] and of["labelled"]


@pytest.mark.parametrize("mode", ["targets.cwtm", "features.hints", "relations.crd_memory(width=4)"])
def test_a_seed_learns_from_its_own_teacher_as_if_there_were_no_other(mode, generations, tmp_path):
    """One population, every teacher asked once, against every seed alone with its one teacher."""
    _, _, done = generations
    config = config_of(f"born_again(mode='{mode}')", **{"train.epochs": 1})
    split = experiment.load_split(config)
    _, baseline_stage, stage, *_ = plan.build(config, split)
    found, baseline = trained(stage.make(done), tmp_path / "all"), done[baseline_stage.name].population
    family = students.grid(config, "alone", addresses.build_recipe(mode))
    for seed in range(2):
        parent = baseline.names.index(f"baseline a=1 T=1 seed {seed}")
        ensemble = (population.members(baseline, [parent]),)
        rows = [m for m, member in enumerate(family) if member.seed == seed]
        alone = jobs.part(students.job(config, split, "labelled", family, ensemble, {}), rows)
        keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(alone.init_keys)  # generation 1
        expected = trained(dataclasses.replace(alone, init_keys=keys), tmp_path / f"alone{seed}")
        close(population.take(found.variables, rows), expected.variables, 2e-5)


def test_generations_start_apart_and_learn_from_the_one_before(generations):
    _, stages, done = generations
    assert [stage.name for stage in stages[1:]] == [
        "students-labelled-logit-avg",
        "students-labelled-born-again-1",
        "students-labelled-born-again-2",
    ]
    works = [stage.make(done) for stage in stages[1:]]
    kernels = [training.first_progress(job).train.params["dense1"]["kernel"] for job in works]
    for earlier, later in zip(kernels, kernels[1:]):
        assert float(jnp.abs(earlier[0] - later[0]).max()) > 0.1
    family, fitted = stages[2].family, done[stages[2].name]
    cell, _ = students.choose(family, fitted.val_nll)
    rows = [m for m, member in enumerate(family) if member.cell == cell]
    equal(works[2].stage_data.teachers[0], population.take(fitted.population.variables, rows))
    np.testing.assert_array_equal(works[2].hyper["own_teachers"], [[m.seed] for m in stages[3].family])


def test_a_plan_goes_on_stage_by_stage(generations, tmp_path):
    _, stages, whole = generations
    with Logbook(tmp_path, quiet=True) as logbook:
        for number in (2, 3, 4):
            found = plan.run(stages[:number], tmp_path, logbook, 1e9)
    for name, fitted in whole.items():
        equal(fitted.population.variables, found[name].population.variables)


def test_nobody_learns_from_a_teacher_that_broke_down(generations):
    _, stages, done = generations
    diverged = "baseline a=1 T=1 seed 1"
    broken = {**done, stages[1].name: dataclasses.replace(done[stages[1].name], diverged=(diverged,))}
    with pytest.raises(UserError, match=f"{diverged} stopped being finite.*learning_rate"):
        stages[2].make(broken)


def test_the_cost_of_a_generation_is_known_before_it_is_trained(generations):
    _, stages, done = generations
    (cost,) = plan.costs(stages[2:3], done)
    assert cost.stage == stages[2].name and cost.flops > 0 and cost.num_members == 4


def test_assistants_are_taught_in_turn(generations):
    _, _, done = generations
    config = config_of(
        "assistants(models=('mlp(hidden=(7,))', 'mlp(hidden=(6,))'))",
        **{"students.model": "mlp(hidden=(5,))"},
    )
    stages, done = plan.build(config, experiment.load_split(config)), dict(done)
    works = []
    for stage in stages[2:]:
        works.append(stage.make(done))
        done[stage.name] = training.untrained(works[-1])
    chain = [f"mlp(hidden=({width},))" for width in (16, 7, 6, 5)]
    assert [[model.name for model in job.program.teachers] for job in works] == [
        [name] for name in chain[:-1]
    ]
    assert [job.program.model.name for job in works] == chain[1:]
    assert [len(jax.tree.leaves(job.stage_data.teachers)[0]) for job in works] == [5, 2, 2]
    assert ["own_teachers" in job.hyper for job in works] == [False, True, True]
    assert [stage.role for stage in stages[2:]] == ["assistant", "assistant", "student"]


CHAIN = ("mlp(hidden=(7,))", "mlp(hidden=(6,))")


def made(config, done):
    """{stage: job} of what a plan adds to teachers and students, everybody as they begin."""
    stages, done, works = plan.build(config, experiment.load_split(config)), dict(done), {}
    for stage in stages:
        if stage.name not in done:
            plan.trace(stage.outline(done) if stage.outline else stage.make(done))
            works[stage.name] = stage.make(done)
            done[stage.name] = training.untrained(works[stage.name])
    return works, done


def test_densely_guided_networks_are_taught_by_all_before_them(generations):
    _, _, done = generations
    config = config_of(f"densely_guided(models={CHAIN!r})", **{"students.model": "mlp(hidden=(5,))"})
    works, _ = made(config, {**done, "students-labelled-logit-avg": None})
    models = [[model.name for model in job.program.teachers] for job in works.values()]
    assert models == [
        ["mlp(hidden=(16,))"],
        ["mlp(hidden=(16,))", CHAIN[0]],
        ["mlp(hidden=(16,))", *CHAIN],
    ]
    last = [*works.values()][-1]
    assert last.program.model.name == "mlp(hidden=(5,))"
    seeds = [int(name[-1]) for name in last.names]
    np.testing.assert_array_equal(last.hyper["own_teachers"], [[0] * 5 + [s, s] for s in seeds])
    guided = last.program.recipes[0].weigh
    assert guided.counts == (1,) * 5 + (2, 2) and guided.seam.num_together == 5


@pytest.mark.parametrize("scheme", ["assistants", "densely_guided"])
def test_what_a_method_remembers_after_an_update_is_of_the_own_teachers(scheme, generations):
    """Their embeddings side by side are as many numbers as its projection reads: it is traced."""
    _, _, done = generations
    config = config_of(
        f"{scheme}(models={CHAIN!r}, mode='relations.crd_memory(width=4)')",
        **{"students.model": "mlp(hidden=(5,))"},
    )
    works, _ = made(config, {**done, "students-labelled-logit-avg": None})
    own = [job for job in works.values() if "own_teachers" in job.hyper]
    assert len(own) == 2 and all(len(set(job.names)) > 1 for job in own)


def test_who_guides_is_drawn_and_the_teachers_are_one_of_them():
    student, teachers = np.random.default_rng(0).normal(size=(2, 4)), np.zeros((4, 2, 4))
    drawn = []
    for seed in range(200):
        w = np.asarray(lineage.DenselyGuided(2, 1)(context(student, teachers, seed=seed)))
        assert w.shape == (4, 2) and (w[:, :1] == w).all() and w[0, 0] == w[1, 0]
        drawn.append([w[0, 0] + w[1, 0], w[2, 0], w[3, 0]])
    assert {tuple(sorted(one)) for one in drawn} == {(0.0, 1.0, 1.0)}
    np.testing.assert_allclose(np.mean(drawn, axis=0), 2 / 3, atol=4 * np.sqrt(2 / 9 / 200))
    alone = lineage.DenselyGuided(4, 3)(context(student, teachers))  # there is nobody else
    np.testing.assert_allclose(alone, 0.25)


def test_densely_guided_learns_from_the_sum_over_those_who_guide():
    """The gradient of one mixture and its mass is that of the sum, written out guide by guide."""
    rng = np.random.default_rng(1)
    student, teachers = rng.normal(size=(3, 4)), 2 * rng.normal(size=(4, 3, 4))
    recipe = seams.PLAIN._replace(weigh=lineage.DenselyGuided(2, 0))
    found = by_student(recipe, context(student, teachers, temperature=2.0))
    expected = np.zeros((3, 4))
    for b in range(3):
        p = reference.softmax(student[b], 2.0)
        for q in (
            reference.mixture(teachers[:2, b], 2.0),
            *(reference.softmax(z, 2.0) for z in teachers[2:, b]),
        ):
            expected[b] += 2.0 * (p - q)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_every_place_has_one_teacher_of_its_own_whatever_the_architecture():
    rng = np.random.default_rng(2)
    logits, widths = jnp.asarray(rng.normal(size=(5, 2, 3)), jnp.float32), (4, 6, 6, 5, 5)
    embedding = tuple(jnp.asarray(rng.normal(size=(2, width)), jnp.float32) for width in widths)
    features = tuple({"stage1": e[:, None, None]} for e in embedding)
    boxes = jnp.asarray(rng.uniform(size=(5, 2, 4)), jnp.float32)
    own = lineage.select_teachers(
        TeacherOutputs(logits, embedding, features, {"boxes": boxes}), jnp.array([0, 1, 0]), (1, 2, 2)
    )
    np.testing.assert_array_equal(own.logits, logits[np.array([0, 2, 3])])
    np.testing.assert_array_equal(own.beside["boxes"], boxes[np.array([0, 2, 3])])
    for found, row in zip(own.embedding, (0, 2, 3)):
        np.testing.assert_array_equal(found, embedding[row])
    np.testing.assert_array_equal(own.features[1]["stage1"], features[2]["stage1"])


@pytest.mark.parametrize("rule", ["evolved_mean", "shapley_mean"])
def test_assistants_weigh_what_validation_says_seed_by_seed(rule, generations):
    _, _, done = generations
    config = config_of(f"weighed_assistants(models={CHAIN!r}, rule={rule!r})")
    works, done = made(config, {**done, "students-labelled-logit-avg": None})
    first, second, last = works
    job, split = works[last], experiment.load_split(config)
    assert [model.name for model in job.program.teachers] == [*CHAIN]
    labels = split.dataset.train_labels[split.val]
    for row, name in enumerate(job.names):
        seed = int(name[-1])
        logits = []
        for stage in (first, second):
            own = done[stage].population
            (cell,) = {
                n for n in own.names if n.startswith("assistant") and n.endswith(f"a=0 T=1 seed {seed}")
            }
            alone = population.members(own, [own.names.index(cell)])
            logits.append(population.logits(alone, split.dataset.train_images[split.val])[0])
        w = rules.rule(rule)(np.stack(logits), labels).args[0]
        np.testing.assert_allclose(job.hyper["own_weights"][row], w, rtol=1e-5)
    assert len(np.unique(job.hyper["own_weights"].round(4), axis=0)) == 2  # each seed its own


# --- noisy students -----------------------------------------------------------------------------------


def noisy(address="noisy_student(rounds=2, threshold=0.2)", **overrides):
    return config_of(address, **{"students.transfer": ("unlabelled",), **overrides})


def test_noisy_students_are_taught_by_all_and_then_by_themselves(generations):
    _, _, done = generations
    config = noisy()
    teachers_alone = {name: fitted for name, fitted in done.items() if name.startswith("teachers-")}
    works, done = made(config, teachers_alone)
    one, two = [name for name in works if "noisy" in name]
    split = experiment.load_split(config)
    assert [len(jax.tree.leaves(works[name].stage_data.teachers)[0]) for name in (one, two)] == [5, 2]
    seeds = [int(name[-1]) for name in works[two].names]
    np.testing.assert_array_equal(works[two].hyper["own_teachers"], [[seed] for seed in seeds])
    kernels = [training.first_progress(works[name]).train.params["dense1"]["kernel"] for name in (one, two)]
    assert float(jnp.abs(kernels[0] - kernels[1]).max()) > 0.1  # begun anew
    (own,) = plan.ensemble_of(done)
    probs = jax.nn.softmax(population.logits(own, split.dataset.train_images[split.pool]), axis=-1)
    by_all = further_data._balanced_weights(np.asarray(probs.mean(axis=0), np.float64), 0.2)
    np.testing.assert_allclose(works[one].hyper["class_weights"], np.tile(by_all, (len(seeds), 1)), rtol=1e-4)
    before = done[one].population
    for seed, found in zip(seeds, works[two].hyper["class_weights"]):
        alone = population.members(before, [before.names.index(f"noisy_student 1 a=0 T=1 seed {seed}")])
        said = population.logits(alone, split.dataset.train_images[split.pool])[0]
        by_itself = further_data._balanced_weights(np.asarray(jax.nn.softmax(said), np.float64), 0.2)
        np.testing.assert_allclose(found, by_itself, rtol=1e-4)


@pytest.mark.parametrize("soft", [True, False])
def test_the_loss_of_a_noisy_student_by_hand(soft):
    """Unlabelled images alone, those that are sure enough, weighed by class, over their number."""
    rng = np.random.default_rng(3)
    student, teachers = rng.normal(size=(6, 3)), 2 * rng.normal(size=(2, 6, 3))
    labelled = np.array([True, False, False, True, False, False])
    recipe = targets.pseudo_labels(threshold=0.5, soft=soft)
    recipe = recipe._replace(aim=lineage.OfUnlabelled(recipe.aim))
    weights = np.array([0.5, 1.0, 2.5])
    recipe = recipe._replace(reads_student=("aim",))  # of members with numbers of their own
    seen = context(student, teachers, labelled=labelled, temperature=3.0)
    seen = dataclasses.replace(seen, hyper={**seen.hyper, "class_weights": jnp.asarray(weights, jnp.float32)})
    expected = np.zeros(6)
    for b in np.flatnonzero(~labelled):
        t = reference.mixture(teachers[:, b], 1.0)
        if t.max() >= 0.5:
            label = t if soft else np.eye(3)[t.argmax()]
            own = -(label @ np.log(reference.softmax(student[b])))
            expected[b] = own * weights[t.argmax()] * 6 / 4
    assert 0 < (expected > 0).sum() < 4 or expected.any()
    np.testing.assert_allclose(loss(recipe, seen), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow(seconds=15)
def test_a_run_of_noisy_students(tmp_path):
    config = noisy(
        **{"train.epochs": 6, "students.alphas": (0.5,), "students.num_seeds": 2, "data.augment.shift": 1}
    )
    report = experiment.run(config, tmp_path, quiet=True)
    rows = {row["name"]: row["accuracy"]["mean"] for row in report["rows"] if row["role"] == "student"}
    assert rows.keys() == {"logit_avg", "noisy_student 1", "noisy_student 2"}
    assert min(rows.values()) > 0.6


# --- hints --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hinted(generations, tmp_path_factory):
    """The two stages of hints_then_distil and what the first one trained."""
    _, _, done = generations
    config = config_of("hints_then_distil", **{"train.epochs": 3})
    stages = plan.build(config, experiment.load_split(config))[2:]
    workdir = tmp_path_factory.mktemp("hints")
    with Logbook(workdir, quiet=True) as logbook:
        return stages, plan.run(stages[:1], workdir, logbook, 1e9, done)


def test_students_begin_where_the_hints_ended(hinted):
    stages, done = hinted
    hints, distil = (stage.make(done) for stage in stages)
    before, after = training.first_progress(hints).train.params, done[stages[0].name].population.variables
    equal(after["params"]["heads"], before["heads"])
    assert float(jnp.abs(after["params"]["dense1"]["kernel"] - before["dense1"]["kernel"]).max()) > 1e-2
    begun = training.first_progress(distil).train
    assert begun.aux == {}
    equal(begun.params, population.take(after, [member.seed for member in stages[1].family])["params"])
    part = training.first_progress(jobs.part(distil, [3, 1])).train
    equal(part.params, population.take(begun.params, [3, 1]))


def test_to_begin_with_somebodys_weights_leaves_him_his(hinted, tmp_path):
    stages, done = hinted
    trained(stages[1].make(done), tmp_path)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(done[stages[0].name].population.variables))


def test_hints_keep_the_weights_of_the_last_step(hinted):
    """Not those at the lowest validation NLL of heads that know nothing."""
    stages, done = hinted
    job = stages[0].make(done)
    states, take_step = training.first_progress(job).train, jax.jit(step.make_step(job.program))
    hyper = {name: jnp.asarray(values) for name, values in job.hyper.items()}
    for number, indices in enumerate(np.concatenate([job.order(epoch) for epoch in range(job.epochs)])):
        states, _ = take_step(states, hyper, jnp.asarray(indices), jnp.int32(number), job.stage_data)
    close(done[stages[0].name].population.variables["params"], states.params, 1e-5)


# --- hydra --------------------------------------------------------------------------------------------


def test_every_head_of_a_hydra_begins_as_the_one_there_was(generations):
    _, _, done = generations
    config = config_of("hydra", **{"students.temperatures": (2.0,)})
    works, done = made(config, {**done, "students-labelled-logit-avg": None})
    one, many = works
    job, split = works[many], experiment.load_split(config)
    assert [recipe.name for recipe in job.program.recipes] == ["mimic_all"]
    family = next(s.family for s in plan.build(config, split) if s.name == many)
    image = split.dataset.train_images[:5] / np.float32(255)
    own = done[one].population
    row = own.names.index("hydra with one head a=0 T=2 seed 1")
    before, _ = own.model.apply(population.take(own.variables, row), image)
    place = next(m for m, member in enumerate(family) if member.seed == 1)
    after, _ = job.program.model.apply(population.take(job.start, place), image)
    assert after.heads.shape == (5, 5, 10)
    for head in after.heads:
        np.testing.assert_allclose(head, before.logits, rtol=1e-4, atol=1e-5)


# --- trainings that go on -------------------------------------------------------------------------------

TWICE = (
    "hints_then_distil",
    "interactive",
    "hydra",
    "fine_tuned(mode='pruned.gradual', begin='output_avg')",
)


def both_trainings(address):
    """The jobs of the first training of a plan and of the one that goes on, everybody as they begin."""
    few = {"model.name": "cnn(widths=(2, 3), dense=4, batch_norm=True)", "teachers.num_members": 2}
    config = small.config(plan=address, **few, **{"students.modes": ("output_avg",), "train.epochs": 2})
    *_, first, second = made(config, {})[0].values()
    return first, second


@pytest.mark.parametrize("address", TWICE)
def test_the_second_training_draws_what_the_first_did_not(address):
    first, second = both_trainings(address)
    batches = [job.order(epoch) for job in (first, second) for epoch in range(job.epochs)]
    for a, b in itertools.combinations(batches, 2):
        assert not np.array_equal(a, b)
    equal(second.order(0), first.order(first.epochs))  # as if the first one went on
    keys = [np.asarray(jax.random.key_data(job.stage_data.key)) for job in (first, second)]
    assert not np.array_equal(*keys)
    own = [{tuple(key) for key in np.asarray(jax.random.key_data(job.init_keys))} for job in (first, second)]
    assert own[0].isdisjoint(own[1]) and len(own[1]) == 2  # a seed has its own wherever it stands


def test_nothing_that_went_before_is_another_for_going_on():
    first, _ = both_trainings("hints_then_distil")
    direct = small.students_job("output_avg", **{"train.epochs": 2})
    equal(jax.random.key_data(first.stage_data.key), jax.random.key_data(direct.stage_data.key))
    equal(first.order(1), direct.order(1))
    of_seed = dict(zip(direct.names, np.asarray(jax.random.key_data(direct.init_keys))))
    for name, key in zip(first.names, np.asarray(jax.random.key_data(first.init_keys))):
        equal(key, next(one for other, one in of_seed.items() if other[-6:] == name[-6:]))


def test_a_training_that_went_on_is_resumed_to_the_same_bits(tmp_path):
    _, second = both_trainings("hints_then_distil")
    small.check_that_it_resumes(second, tmp_path)
    _, again = both_trainings("hints_then_distil")
    equal(second.order(1), again.order(1))
    equal(jax.random.key_data(second.init_keys), jax.random.key_data(again.init_keys))


# --- classifiers after stages of teachers ---------------------------------------------------------------


def test_classifiers_are_trained_beside_their_teachers_and_teach_with_them(generations, tmp_path):
    _, _, done = generations
    config = config_of("intermediate_heads(mode='weights.ebkd')", **{"train.epochs": 1})
    works, done = made(config, {**done, "students-labelled-logit-avg": None})
    job, of_students = list(works.values())
    taught = done[teachers.stage_name(config.model.name)].population
    for kind, of in taught.variables.items():
        equal(job.start[kind]["network"], of)
    after = trained(job, tmp_path)
    equal(after.variables["params"]["network"], taught.variables["params"])
    moved = after.variables["params"]["classifier"]["kernel"] - job.start["params"]["classifier"]["kernel"]
    assert float(jnp.abs(moved).max(axis=(1, 2)).min()) > 1e-3
    assert of_students.program.recipes[0].name == "weights.ebkd"
    said = population.apply_ensemble(
        of_students.program.teachers, of_students.stage_data.teachers, jnp.ones((2, 8, 8, 1))
    )
    assert said.logits.shape == (10, 2, 10)
    for k in range(5):
        own = population.take(taught.variables, k)
        plain, _ = taught.model.apply(own, jnp.ones((2, 8, 8, 1)))
        np.testing.assert_allclose(said.logits[k], plain.logits, atol=1e-5)


def test_a_teacher_that_broke_down_has_no_classifier(generations):
    _, _, done = generations
    config = config_of("intermediate_heads")
    name = teachers.stage_name(config.model.name)
    broken = dataclasses.replace(done[name], diverged=("teacher 1",))
    job = teachers.classifiers_job(config, experiment.load_split(config), config.model.name, broken, "stage1")
    assert job.names == ("teacher 0", "teacher 2", "teacher 3", "teacher 4")
    left = population.take(broken.population.variables, [0, 2, 3, 4])
    equal(job.start["params"]["network"], left["params"])


def test_a_classifier_that_broke_down_leaves_those_after_other_stages():
    config = small.config(**{"plan": "intermediate_heads", "model.name": "mlp(hidden=(8, 6))"})
    stages = plan.build(config, experiment.load_split(config))
    done = plan.rehearse(stages, config, {})
    first, second = (stage.name for stage in stages if stage.name.startswith("classifiers-"))
    done[first] = dataclasses.replace(done[first], diverged=("teacher 1",))
    taught_by = stages[-1].make(done).stage_data.teachers
    assert [len(jax.tree.leaves(own)[0]) for own in taught_by] == [3, 2, 3]
    assert done[second].population.variables["params"]["classifier"]["kernel"].shape == (3, 6, 4)


# --- stages that give way to a teacher's ----------------------------------------------------------------


def test_students_go_on_from_what_they_learnt_among_stages_of_a_teacher():
    """After a first stage of labels alone; of that the student is left, and not the teachers."""
    few = {"model.name": "cnn(widths=(2, 3), dense=4, batch_norm=True)", "teachers.num_members": 2}
    address = "interactive(swapped=0.8, schedule='linear')"
    config = small.config(plan=address, **few, **{"students.modes": ("output_avg",)})
    first, direct, swapped, last = plan.build(config, experiment.load_split(config))
    done = {first.name: training.untrained(first.make({})), direct.name: None}
    job = swapped.make(done)
    assert set(job.hyper["alpha"]) == {1.0} and job.program.teachers == ()
    assert job.program.model.blocks == ("stage1", "stage2") and job.eval_every == job.epochs
    equal(job.stage_data.frozen[TEACHERS], done[first.name].population.variables)
    begun, steps = training.first_progress(job), training.compiled_part(job.program)
    np.testing.assert_allclose(begun.train.mem, 0.8)
    after = steps(begun, job.hyper, job.order(0), np.int32(0), job.stage_data).train
    # As many as an epoch has; the last one began at this share of the stage, and its factor is for the next.
    share = (job.steps_per_epoch - 1) / job.num_steps
    np.testing.assert_allclose(after.mem, 0.8 * (1 - share), rtol=1e-6)
    done[swapped.name] = training.untrained(job)
    learnt = done[swapped.name].population
    assert learnt.model == teachers.network(experiment.load_split(config), config.model.name)
    assert set(learnt.variables) == {"params", "batch_stats"}
    then = last.make(done)
    for row, member in enumerate(last.family):
        equal(population.take(then.start, row), population.take(learnt.variables, member.seed))


# --- channels that are matched --------------------------------------------------------------------------


def test_every_seed_reads_the_channels_of_teachers_in_the_order_of_its_own():
    """Teacher k is seed k as it begins, with its channels shuffled: matched, that seed has its features."""
    config = small.config(
        plan="matched_channels", **{"teachers.num_members": 2, "students.modes": ("output_avg",)}
    )
    first, direct, last = plan.build(config, experiment.load_split(config))
    done = {first.name: training.untrained(first.make({})), direct.name: None}
    plan.trace(last.outline(done))
    job = last.outline(done)
    begun = population.init(job.program.model, job.init_keys, (4, 4, 1))
    rows = [next(m for m, one in enumerate(last.family) if one.seed == seed) for seed in (0, 1)]
    shuffled, rng = [], np.random.default_rng(2)
    for row in rows:
        own, order = population.take(begun, row)["params"], rng.permutation(8)
        dense = jax.tree.map(lambda leaf, order=order: leaf[..., order], own["dense1"])
        heads = {**own["heads"], "kernel": own["heads"]["kernel"][:, order]}
        shuffled.append({"params": {"dense1": dense, "heads": heads}})
    copies = dataclasses.replace(done[first.name].population, variables=population.stack(shuffled))
    job = last.make({**done, first.name: dataclasses.replace(done[first.name], population=copies)})
    image = jnp.asarray(np.random.default_rng(1).random((5, 4, 4, 1)), jnp.float32)
    orders = job.hyper["stage1 channels"]
    assert orders.shape == (len(last.family), 2, 8)
    for row, member in enumerate(last.family):
        own = job.program.model.apply(population.take(begun, row), image)[0].features["stage1"]
        teacher = population.take(copies.variables, member.seed)
        told = job.program.model.apply(teacher, image)[0].features["stage1"]
        np.testing.assert_allclose(told[..., orders[row, member.seed]], own, atol=1e-5)


# --- teachers with branches of their student ------------------------------------------------------------

FRIENDLY = {"model.name": "cnn(widths=(2, 3), dense=4, batch_norm=True)", "teachers.num_members": 2}
FRIENDLY |= {
    "train.epochs": 1,
    "train.optimizer": "sgd",
}  # Adam divides by gradients that may be all rounding


def friendly_job(plan_name, **overrides):
    config = small.config(**{**FRIENDLY, **overrides}, plan=plan_name)
    first, *_ = plan.build(config, experiment.load_split(config))
    return first.make({})


def test_teachers_with_branches_that_weigh_nothing_are_plain_ones(tmp_path):
    """They begin alike and take the same steps, and else take others; what is left of them is the teacher."""
    with_branches, plain = friendly_job("student_friendly"), friendly_job("teachers_then_students")
    nothing = {name: np.zeros(2, np.float32) for name in ("hard_weight", "soft_weight")}
    without = dataclasses.replace(with_branches, hyper={**with_branches.hyper, **nothing})
    jobs_done = plain, without, with_branches
    plain, alike, friendly = (trained(job, tmp_path / str(n)) for n, job in enumerate(jobs_done))
    assert plain.model == alike.model == friendly.model and plain.names == friendly.names
    close(plain.variables, alike.variables, 1e-5)
    kernels = (own.variables["params"]["conv1"]["kernel"] for own in (plain, friendly))
    assert float(jnp.abs(jnp.subtract(*kernels)).max()) > 1e-3


def test_teachers_with_branches_begin_with_what_they_ever_begin_with():
    """Such as what a network computes from the images."""
    network = {"model.name": "speedy(width=4, blocks=1, trainable='')"}
    job = friendly_job("student_friendly(student='cnn(widths=(2, 3), dense=4)')", **network)
    begun = friendly_job("teachers_then_students", **network).start
    for kind, of in begun.items():
        equal({name: job.start[kind][name] for name in of}, of)
    plan.trace(job)


def test_what_the_training_of_teachers_with_branches_took_is_that_of_the_branches_too():
    config = small.config(**{**FRIENDLY, "plan": "student_friendly"})
    split = experiment.load_split(config)
    (stage,) = (one for one in plan.build(config, split) if not one.family)
    job = stage.make({})
    done = {stage.name: dataclasses.replace(training.untrained(job), network_steps=6)}
    (group, _) = evaluation.predict(config, split, (stage,), done).groups
    of_teacher, whole = (forecast.forward_flops(one, (1, 4, 4, 1)) for one in (job.model, job.network))
    assert group.train_flops == 6 * 16 * 3 * whole and whole > 1.2 * of_teacher


# --- from real weights to few bits --------------------------------------------------------------------


def test_students_are_tuned_from_the_chosen_weights_of_their_seed_at_a_lower_rate(generations):
    _, _, done = generations
    config = config_of("fine_tuned(mode='pruned.gradual', begin='logit_avg', rate=0.25)")
    stages = plan.build(config, experiment.load_split(config))
    job = stages[-1].make(done)
    begun = training.first_progress(job).train
    real = done[stages[1].name]
    family = stages[1].family
    for row, member in enumerate(stages[-1].family):
        of_seed = [m for m, one in enumerate(family) if (one.mode, one.seed) == ("logit_avg", member.seed)]
        means = {  # over seeds, as validation chooses
            family[m].cell: np.mean([n for n, one in zip(real.val_nll, family) if one.cell == family[m].cell])
            for m in of_seed
        }
        best = min(of_seed, key=lambda m: means[family[m].cell])
        equal(population.take(begun.params, row), population.take(real.population.variables["params"], best))
    np.testing.assert_allclose(job.hyper["learning_rate"], 0.25 * config.train.learning_rate)
    assert job.program.recipes[0].name == "pruned.gradual"


@pytest.mark.parametrize(
    "address, words",
    [
        ("fine_tuned(begin='mimic_all')", "begins with the students of 'mimic_all', which must be in"),
        ("fine_tuned(begin='logit_avg', rate=1.0)", r"fine_tuned\(rate=1.0\): must be a share"),
        ("fine_tuned(begin='logit_avg', mode='mimic_all')", "one head"),
    ],
)
def test_what_cannot_be_tuned_is_refused(address, words):
    config = config_of(address)
    with pytest.raises(UserError, match=words):
        plan.build(config, experiment.load_split(config))


# --- specialists --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "num_specialists, num_classes", [(3, 3), (3, 4), (4, 10), (5, 10), (7, 100), (5, 101)]
)
def test_every_class_is_covered_by_exactly_two(num_specialists, num_classes):
    covered = teachers.coverage(num_specialists, num_classes)
    assert covered.shape == (num_specialists, num_classes)
    np.testing.assert_array_equal(covered.sum(axis=0), 2)
    sizes = covered.sum(axis=1)
    assert sizes.max() - sizes.min() <= 1 and sizes.min() >= 1
    assert len({row.tobytes() for row in covered}) == num_specialists


def specialists_job(**overrides):
    config = small.config(
        **{
            "plan": "specialists",
            "data.source": "synthetic(num_classes=5, num_train=120, num_test=40, size=4, noise=0.4)",
            "model.name": "mlp(hidden=(8,), batch_norm=True)",
            "teachers.num_members": 4,
            "train.optimizer": "sgd",
            "train.learning_rate": 0.1,
            "train.epochs": 1,
            "runtime.how": "vmap",
            **overrides,
        }
    )
    return teachers.specialists_job(config, experiment.load_split(config), config.model.name)


def test_one_step_of_specialists_is_that_of_one_network_written_out():
    job = specialists_job()
    states = training.first_progress(job).train
    hyper = {name: jnp.asarray(values) for name, values in job.hyper.items()}
    indices = job.order(0)[0]
    found, losses = jax.jit(step.make_step(job.program))(
        states, hyper, jnp.asarray(indices), jnp.int32(0), job.stage_data
    )
    network = job.program.model.module.network  # without any share
    image = job.stage_data.examples.image[indices].astype(jnp.float32) / 255
    label = job.stage_data.examples.label[indices]
    covered = jnp.asarray(teachers.coverage(4, 5))

    def joint(params):
        def own(params, stats):
            variables = {"params": params["network"], "batch_stats": stats["network"]}
            return network.apply(variables, image, train=True, mutable=["batch_stats"])[0].logits

        logits = jax.vmap(own)(params, states.model_state["batch_stats"])  # [K,B,C]
        unified = jnp.where(covered[:, None], logits, 0.0).sum(axis=0) / 2  # of the two that cover a class
        return -jnp.take_along_axis(jax.nn.log_softmax(unified), label[:, None], axis=1).mean()

    loss, gradients = jax.value_and_grad(joint)(states.params)
    np.testing.assert_allclose(losses, jnp.full(4, loss), rtol=1e-5)
    expected = jax.tree.map(lambda p, g: p - 0.1 * (1 + 0.9) * g, states.params, gradients)
    close(found.params, expected, 1e-6)
    np.testing.assert_array_equal(
        found.model_state["coverage"]["share"], states.model_state["coverage"]["share"]
    )


def test_where_one_specialist_breaks_down_so_does_the_whole(tmp_path):
    job = specialists_job(**{"teachers.learning_rates": (0.1, 0.1, 1e30, 0.1)})
    with pytest.raises(UserError, match="all 4 members"):
        trained(job, tmp_path)


# --- moments of one training --------------------------------------------------------------------------

MOMENTS = {
    "plan": "snapshots",
    "model.name": "mlp(hidden=(8,), batch_norm=True)",
    "teachers.num_members": 2,
    "students.num_seeds": 1,
    "students.alphas": (0.5,),
    "students.modes": ("output_avg",),
    "runtime.how": "vmap",
}


@pytest.fixture(scope="module")
def snapshots(tmp_path_factory):
    """(configuration, stages, what those of the teachers trained): two cycles of two epochs."""
    config = small.config(**MOMENTS)
    return config, *stages_and_done(config, tmp_path_factory.mktemp("snapshots"), count=3)


def weights_of(fitted, member=0):
    return population.take(fitted.population.variables["params"], member)


def test_snapshots_are_the_ends_of_cycles_and_each_cycle_goes_on_from_the_last(snapshots):
    config, stages, done = snapshots
    first, second, gathered = (done[stage.name] for stage in stages[:3])
    assert stages[2].name == teachers.stage_name(config.model.name)
    assert gathered.population.names == ("teacher 0", "teacher 1")
    for member, fitted in enumerate((first, second)):
        equal(weights_of(gathered, member), weights_of(fitted))  # no weight changes at a rate of 0
    statistics = [population.take(one.population.variables["batch_stats"], 0) for one in (first, gathered)]
    moved = [float(np.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, statistics))]
    assert max(moved) > 0
    job = stages[1].make(done)
    equal(population.take(job.start["params"], 0), weights_of(first))
    np.testing.assert_array_equal(job.order(0), stages[0].make({}).order(2))
    np.testing.assert_allclose(
        [job.program.schedule(jnp.float32(at)) for at in (0.0, 1.0)], [1, 0], atol=1e-6
    )
    assert job.program == stages[0].make({}).program  # and so compiled once
    assert [teachers.num_members for teachers in plan.ensemble_of(done)] == [2]


def test_what_the_training_of_moments_took_is_the_sum_over_its_stages(snapshots):
    config, stages, done = snapshots
    assert [done[stage.name].network_steps for stage in stages[:3]] == [2 * 3, 2 * 3, 2 * 3]
    split = experiment.load_split(config)
    (group, _) = evaluation.predict(config, split, stages[:3], done).groups
    forward = forecast.forward_flops(done[stages[0].name].population.model, (1, 4, 4, 1))
    assert group.train_flops == 18 * 16 * 3 * forward
    lent = dataclasses.replace(done[stages[2].name], network_steps=None)
    (group, _) = evaluation.predict(config, split, stages[:3], {**done, stages[2].name: lent}).groups
    assert group.train_flops is None


def test_teachers_that_are_moments_are_the_weights_themselves_where_students_average_theirs():
    config = small.config(**{**MOMENTS, "train.ema_decay": 0.9})
    stages = plan.build(config, experiment.load_split(config))
    done = plan.rehearse(stages, config, {})
    averages = [(stage.make(done).program.averages, bool(stage.family)) for stage in stages]
    assert [has_average for has_average, _ in averages] == [is_of_students for _, is_of_students in averages]


def test_horizontal_teachers_are_the_ends_of_parts_at_one_rate():
    config = small.config(**{**MOMENTS, "plan": "horizontal(burn_in=0.5, rate=0.25)"})
    stages = plan.build(config, experiment.load_split(config))
    done = plan.rehearse(stages, config, {})
    jobs_of = [stage.make(done) for stage in stages[:4]]
    assert [job.epochs for job in jobs_of] == [2, 1, 1, 1]
    assert [len(job.names) for job in jobs_of] == [1, 1, 1, 2]
    for job in jobs_of[1:3]:
        rates = [job.program.schedule(jnp.float32(at)) for at in (0.0, 0.5, 1.0)]
        np.testing.assert_allclose(rates, [0.25] * 3)


# --- draws of dropout ---------------------------------------------------------------------------------


def test_draws_have_one_networks_weights_and_masks_of_their_own(tmp_path):
    overrides = {"plan": "dropout_draws", "model.name": "mlp(hidden=(8,), batch_norm=True, dropout=0.5)"}
    config = small.config(**{**MOMENTS, **overrides})
    stages, done = stages_and_done(config, tmp_path, count=2)
    whole, drawn = (done[stage.name].population for stage in stages[:2])
    assert stages[1].name == teachers.thinned_stage(config.model.name) and drawn.num_members == 2
    assert drawn.model.name == f"thinned {whole.model.name}"
    for m in range(2):
        one = population.take(drawn.variables, m)
        equal(one["params"]["network"], weights_of(done[stages[0].name]))
        assert set(np.unique(one["masks"]["Dropout_0"])) == {0.0, 2.0}
    first, second = drawn.variables["masks"]["Dropout_0"]
    assert (first != second).any()
    assert [one.num_members for one in plan.ensemble_of(done)] == [2]
    # What a draw says: the units of its mask twice, the others not at all.
    image = jax.random.uniform(jax.random.key(0), (3, 4, 4, 1))
    one = population.take(drawn.variables, 0)
    said = drawn.model.apply(one, image)[0]
    within = {kind: of["network"] for kind, of in one.items() if kind != "masks"}
    units = np.asarray(whole.model.apply(within, image)[0].embedding) * np.asarray(one["masks"]["Dropout_0"])
    heads = jax.tree.map(np.asarray, within["params"]["heads"])
    np.testing.assert_allclose(said.logits, units @ heads["kernel"][0] + heads["bias"][0], atol=1e-5)


def test_draws_of_a_network_without_dropout_are_refused():
    config = small.config(**{**MOMENTS, "plan": "dropout_draws"})
    with pytest.raises(UserError, match="leaves out none; teachers.models must have dropout"):
        plan.build(config, experiment.load_split(config))


# --- several networks in one --------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["batch_ensemble", "mimo(alike=0.25)"])
def in_one(request, tmp_path_factory):
    """(configuration, stages, what those of the teachers trained): two networks in one, four epochs."""
    config = small.config(**{**MOMENTS, "plan": request.param})
    return config, *stages_and_done(config, tmp_path_factory.mktemp("in_one"), count=2)


def test_networks_in_one_are_written_out_as_ordinary_teachers(in_one):
    config, stages, done = in_one
    split = experiment.load_split(config)
    whole, (teachers_of,) = done[stages[0].name], plan.ensemble_of(done)
    assert stages[1].name == teachers.stage_name(config.model.name) and stages[1].begun_by == (
        stages[0].name,
    )
    assert teachers_of.model == teachers.network(split, config.model.name) and teachers_of.num_members == 2
    written_out = 0 if "mimo" in config.plan else 2 * 3  # which trains nothing, or statistics of two
    assert [done[stage.name].network_steps for stage in stages[:2]] == [4 * 3, written_out]
    images = jnp.asarray(split.dataset.test_images, jnp.float32) / 255
    said = whole.population.model.apply(population.take(whole.population.variables, 0), images)[0].heads
    assert np.abs(said[0] - said[1]).max() > 0.1
    for member in range(2):
        own = population.take(teachers_of.variables, member)
        if "mimo" not in config.plan:  # batch statistics have settled
            statistics = population.take(whole.population.variables["batch_stats"], 0)
            own = {**own, "batch_stats": population.take(statistics, member)}
        np.testing.assert_allclose(teachers_of.model.apply(own, images)[0].logits, said[member], atol=1e-4)


def test_what_networks_in_one_took_is_the_training_of_the_one(in_one):
    config, stages, done = in_one
    (group, _) = evaluation.predict(config, experiment.load_split(config), stages[:2], done).groups
    whole, one = (
        forecast.forward_flops(done[stage.name].population.model, (1, 4, 4, 1)) for stage in stages[:2]
    )
    if "mimo" in config.plan:
        assert group.train_flops == 3 * 16 * 12 * whole
    else:  # as two networks, whose statistics then settle
        assert whole == 2 * one and group.train_flops == 3 * 16 * (12 * 2 + 6) * one
    assert group.flops < whole


def test_networks_in_one_learn_each_by_the_labels_until_the_last_step(in_one):
    config, stages, _ = in_one
    job = stages[0].make({})
    assert job.program.recipes == (EACH_HEAD,) and job.names == ("teacher 0",)
    assert job.eval_every == job.epochs == config.train.epochs


@pytest.mark.parametrize(
    "overrides, told",
    [
        ({"plan": "mimo(alike=1.5)"}, "mimo\\(alike=1.5\\): must be a share of a batch"),
        (
            {"plan": "batch_ensemble", "teachers.patience": 1},
            "teachers.patience: 1 does not go with .* whose teachers are parts of one network",
        ),
        ({"plan": "batch_ensemble", "train.optimizer": "muon"}, "train.optimizer: muon goes by whole layers"),
        ({"plan": "batch_ensemble", "train.optimizer": "lamb"}, "train.optimizer: lamb goes by whole layers"),
        (
            {
                "plan": "batch_ensemble",
                "train.depth_decay": 0.5,
                "model.name": "cnn(widths=(4,), dense=8)",
            },
            "depth_decay: plan batch_ensemble has one",
        ),
        ({"plan": "mimo", "teachers.num_members": 1}, "num_members: 1, and .*; must be at least 2"),
    ],
)
def test_what_several_networks_in_one_cannot_be_is_refused(overrides, told):
    config = small.config(**{**MOMENTS, **overrides})
    with pytest.raises(UserError, match=told):
        plan.build(config, experiment.load_split(config))


# --- teachers trained together ------------------------------------------------------------------------


def test_correlated_teachers_are_one_cohort_of_ordinary_networks():
    config = small.config(**{**MOMENTS, "plan": "negative_correlation(strength=0.25)"})
    stages = plan.build(config, experiment.load_split(config))
    done = plan.rehearse(stages, config, {})
    job = stages[0].make(done)
    assert job.program.recipes[0].term == Correlated(0.25) and job.num_peers == 2
    assert stages[0].name == teachers.stage_name(config.model.name)
    assert job.eval_every == job.epochs and job.order(0).ndim == 2
    kernel = training.first_progress(job).train.params["dense1"]["kernel"]
    assert (np.asarray(kernel[0]) != np.asarray(kernel[1])).any()


def test_fast_geometric_teachers_are_the_ends_of_cycles_after_a_burn_in():
    config = small.config(**{**MOMENTS, "plan": "fast_geometric(burn_in=0.5)", "train.schedule": "cosine"})
    stages = plan.build(config, experiment.load_split(config))
    assert [stage.name.partition("-mlp")[0] for stage in stages[:4]] == [
        *(f"moment-{number}" for number in range(3)),
        "teachers",
    ]
    done = plan.rehearse(stages, config, {})
    jobs_of = [stage.make(done) for stage in stages[:4]]
    assert [job.epochs for job in jobs_of] == [2, 1, 1, 1]
    assert [len(job.names) for job in jobs_of] == [1, 1, 1, 2]
    rates = [jobs_of[1].program.schedule(jnp.float32(at)) for at in (0.0, 0.25, 0.5, 0.75, 1.0)]
    np.testing.assert_allclose(rates, [0.05, 0.525, 1.0, 0.525, 0.05], rtol=1e-5)
    assert not jobs_of[3].hyper["learning_rate"].any() and not jobs_of[3].hyper["weight_decay"].any()


def test_stochastic_averages_are_the_means_of_moments_of_each_teacher():
    address = "stochastic_averages(burn_in=0.5, moments=2)"
    config = small.config(**{**MOMENTS, "plan": address})
    stages = plan.build(config, experiment.load_split(config))
    done = plan.rehearse(stages, config, {})
    for number, stage in enumerate(stages[:3]):  # as if every weight were the number of its stage
        zeros = done[stage.name]
        filled = jax.tree.map(lambda leaf, number=number: leaf + number, zeros.population.variables)
        done[stage.name] = dataclasses.replace(
            zeros, population=dataclasses.replace(zeros.population, variables=filled)
        )
    jobs_of = [stage.make(done) for stage in stages[:4]]
    assert [job.epochs for job in jobs_of] == [2, 1, 1, 1] and {len(job.names) for job in jobs_of} == {2}
    np.testing.assert_allclose([jobs_of[1].program.schedule(jnp.float32(at)) for at in (0.0, 1.0)], 0.5)
    for leaf in jax.tree.leaves(jobs_of[3].start):
        np.testing.assert_array_equal(leaf, 1.5)
        assert leaf.dtype == np.float32


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_draws_of_swag_have_the_mean_and_the_covariance_of_the_reference(scale):
    """Those between layers, too: what is of low rank is shared by all weights of a draw."""
    rng = np.random.default_rng(0)
    sizes = {"dense1": (2, 2), "heads": (3,)}
    ends = [
        {
            "params": {
                name: rng.normal(2.0, 1.0, (1, *size)).astype(np.float32) for name, size in sizes.items()
            },
            "batch_stats": rng.uniform(1.0, 2.0, (1, 3)).astype(np.float32),
        }
        for _ in range(3)
    ]
    number = 40_000
    found = moments.draw_about_mean(ends, number, scale, np.random.default_rng(1))
    flat = lambda tree, rows: np.concatenate(  # noqa: E731
        [np.asarray(leaf, np.float64).reshape(rows, -1) for leaf in jax.tree.leaves(tree["params"])], axis=1
    )
    mean, covariance = reference_of_ensembles.swag(np.concatenate([flat(end, 1) for end in ends]), scale)
    draws = flat(found, number)
    deviation = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((draws.mean(axis=0) - mean) / deviation, 0, atol=4 / np.sqrt(number))
    apart = (np.cov(draws, rowvar=False) - covariance) / np.outer(deviation, deviation)
    np.testing.assert_allclose(apart, 0, atol=5 * np.sqrt(2 / number))
    assert np.abs(covariance[:4, 4:]).max() > 0.1 * scale
    of_mean = np.mean([end["batch_stats"][0] for end in ends], axis=0)
    np.testing.assert_allclose(found["batch_stats"], np.tile(of_mean, (number, 1)), rtol=1e-6)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {np.dtype(np.float32)}


def test_teachers_of_swag_are_draws_about_the_moments_of_one_training():
    config = small.config(**{**MOMENTS, "plan": "swag(burn_in=0.5, moments=2)"})
    stages = plan.build(config, experiment.load_split(config))
    done = plan.rehearse(stages, config, {})
    for number, stage in enumerate(stages[:3]):
        zeros = done[stage.name]
        filled = jax.tree.map(lambda leaf, number=number: leaf + number, zeros.population.variables)
        done[stage.name] = dataclasses.replace(
            zeros, population=dataclasses.replace(zeros.population, variables=filled)
        )
    jobs_of = [stage.make(done) for stage in stages[:4]]
    assert [len(job.names) for job in jobs_of] == [1, 1, 1, 2]
    np.testing.assert_allclose([jobs_of[1].program.schedule(jnp.float32(at)) for at in (0.0, 1.0)], 0.5)
    equal(jobs_of[3].start, stages[3].make(done).start)  # and so the same when a run is gone on with
    kernel = jobs_of[3].start["params"]["dense1"]["kernel"]  # about 1.5, of moments 1 and 2
    assert (kernel[0] != kernel[1]).all() and abs(kernel.mean() - 1.5) < 1.5
    for leaf in jax.tree.leaves(jobs_of[3].start["batch_stats"]):
        np.testing.assert_array_equal(leaf, 1.5)


# --- teachers that depend on those before them --------------------------------------------------------


@pytest.mark.parametrize("rate", [1.0, 0.3])
def test_weights_of_boosting_are_those_of_the_reference(rate):
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0.0, 2.0, (3, 20, 4)).astype(np.float32), rng.integers(0, 4, 20)
    expected = reference_of_ensembles.samme_r(logits, labels, rate)
    np.testing.assert_allclose(adaptive.boosting_weights(logits, labels, rate), expected, rtol=1e-9)
    far = adaptive.boosting_weights(80 * np.eye(4, dtype=np.float32)[None, labels], labels, rate)
    np.testing.assert_allclose(far, 1 / 20)


def test_who_is_boosted_draws_by_what_those_before_say(tmp_path):
    config = small.config(**{**MOMENTS, "plan": "boosted(rate=0.5)", "teachers.num_members": 3})
    split = experiment.load_split(config)
    stages, done = stages_and_done(config, tmp_path, count=4)
    steps = len(split.train) // config.train.batch_size
    first, second, third = (stage.make(done) for stage in stages[:3])
    plain = teachers.job(config, split, config.model.name)
    np.testing.assert_array_equal(first.order(1), plain.order(1)[:, :1])
    equal(jax.random.key_data(second.init_keys), jax.random.key_data(plain.init_keys[1:2]))

    before = [done[stage.name].population for stage in stages[:2]]
    said = np.concatenate([population.logits(own, split.dataset.train_images[split.train]) for own in before])
    chances = reference_of_ensembles.samme_r(said, split.dataset.train_labels[split.train], 0.5)
    assert chances.max() > 3 * chances.min()  # some are harder than others
    epochs = np.stack([third.order(epoch) for epoch in range(400)])
    assert epochs.shape == (400, steps, 1, config.train.batch_size)
    drawn = (epochs.reshape(-1, 1) == split.train).mean(axis=0)
    deviation = np.sqrt(chances * (1 - chances) / epochs.size)
    assert (np.abs(drawn - chances) < 5 * deviation + 1e-6).all()
    np.testing.assert_array_equal(third.order(7), stages[2].make(done).order(7))  # when it is gone on with

    (gathered,) = plan.ensemble_of(done)
    assert gathered.names == ("teacher 0", "teacher 1", "teacher 2")
    for member, stage in enumerate(stages[:3]):
        own = done[stage.name].population.variables
        equal(population.take(gathered.variables, member), population.take(own, 0))


def test_selection_is_that_of_the_reference():
    chances = np.random.default_rng(1).uniform(0.01, 0.99, (7, 30))
    assert adaptive.select(np.log(chances), 4) == reference_of_ensembles.greedy(chances, 4)
    assert adaptive.select(np.full((2, 3), -2000.0), 2) == [0, 1]  # chances that no float holds


def test_hyper_deep_teachers_are_the_best_of_the_best_settings(tmp_path):
    own = {"plan": "hyper_deep(searched=5, inits=2, spread=3.0)", "train.weight_decay": 1e-3}
    config = small.config(**{**MOMENTS, **own})
    split = experiment.load_split(config)
    stages, done = stages_and_done(config, tmp_path, count=3)
    searched, again = (done[stage.name].population for stage in stages[:2])
    labels = split.dataset.train_labels[split.val]

    def chosen_of(these):
        said = population.logits(these, split.dataset.train_images[split.val]).astype(np.float64)
        chances = np.exp(said) / np.exp(said).sum(axis=-1, keepdims=True)
        return reference_of_ensembles.greedy(chances[:, np.arange(len(labels)), labels], 2)

    for name, middle in (("learning_rate", config.train.learning_rate), ("weight_decay", 1e-3)):
        assert len(set(searched.hyper[name].tolist())) == 5
        assert (searched.hyper[name] > middle / 3).all() and (searched.hyper[name] < middle * 3).all()
    assert (searched.hyper["label_smoothing"] < 0.2).all()
    for name in ("learning_rate", "weight_decay", "label_smoothing"):
        expected = np.repeat(searched.hyper[name][chosen_of(searched)], 2)
        np.testing.assert_array_equal(again.hyper[name], expected)
    jobs_of = [stages[0].make({}), stages[1].make(done)]
    assert (jobs_of[0].order(0)[:, 0] != jobs_of[1].order(0)[:, 0]).any()
    (gathered,) = plan.ensemble_of(done)
    equal(gathered.variables, population.take(again.variables, chosen_of(again)))
    assert stages[2].begun_by == (stages[0].name, stages[1].name)


@pytest.mark.parametrize("network", ["mlp(hidden=(4,))", "speedy(width=4, blocks=1)"])
def test_networks_that_are_trained_again_begin_as_none_did(network):
    """Also those of which a part is computed, and which begin with that."""
    own = {"plan": "hyper_deep(searched=3, inits=2)", "model.name": network, "train.epochs": 1}
    source = "synthetic(num_classes=3, num_train=90, num_test=20, size=8, channels=3)"
    config = small.config(**{**own, "data.source": source, "teachers.num_members": 2})
    stages = plan.build(config, experiment.load_split(config))
    begun = []
    for job in (stages[0].make({}), stages[1].outline({})):
        drawn = job.start or population.init(job.program.model, job.init_keys, job.image.shape[1:])
        begun.append(np.asarray(drawn["params"]["heads"]["kernel"]))
    assert len(np.unique(np.concatenate(begun), axis=0)) == 3 + 4


def test_a_network_that_broke_down_is_not_chosen(generations):
    config, stages, done = generations
    split, trained = experiment.load_split(config), done[stages[0].name]
    best = adaptive.choose(trained, split, 1)[0]
    broken = dataclasses.replace(trained, diverged=(trained.population.names[best],))
    assert best not in adaptive.choose(broken, split, trained.population.num_members - 1)
    with pytest.raises(UserError, match=f"{trained.population.names[best]} stopped being finite"):
        adaptive.choose(broken, split, trained.population.num_members)


# --- what cannot be -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address, overrides, expected",
    [
        ("born_agen", {}, "did you mean 'born_again'"),
        ("born_again(generations=0)", {}, "at least 1"),
        ("born_again(generations='many')", {}, "generations='many'"),
        ("born_again(mode='mimic_all')", {}, "one head"),
        ("born_again(mode='peers.dml')", {}, "one frozen teacher"),
        ("born_again(mode='supernet')", {}, "one frozen teacher"),
        ("born_again(mode='weights.aekd')", {}, "one frozen teacher"),
        ("born_again(mode='output_av')", {}, "'output_avg'"),
        ("born_again", {"students.modes": ()}, "students.modes"),
        ("assistants", {}, "name the networks"),
        ("assistants(models=('mlp(hiden=(3,))',))", {}, "hiden"),
        ("densely_guided", {}, "densely_guided(models=()): name the networks"),
        ("densely_guided(models=('mlp',), num_dropped=-1)", {}, "must be at least 0"),
        ("weighed_assistants(models=('mlp',), rule='borda')", {}, "one weight: evolved_mean"),
        ("weighed_assistants", {}, "name the networks"),
        (
            "weighed_assistants(models=('mlp',), mode='tests.plans.test_schemes:weighed')",
            {},
            "weighed_assistants weighs those who teach, and so does 'tests.plans.test_schemes:weighed'",
        ),
        (
            "densely_guided(models=('mlp',), mode='weights.aekd')",
            {},
            "densely_guided weighs those who teach, and so does 'weights.aekd'",
        ),
        (
            "densely_guided(models=('mlp',))",
            {"teachers.out_of_bag": True, "teachers.folds": True},
            "densely_guided hears all teachers of every image, and by teachers.out_of_bag some",
        ),
        ("intermediate_heads(after=('stage2',))", {}, "has no stage 'stage2'; did you mean 'stage1'?"),
        (
            "intermediate_heads",
            {"model.name": "mlp(hidden=())"},
            "stages of the teachers, and mlp(hidden=()) has",
        ),
        ("intermediate_heads(mode='mimic_all')", {}, "one head"),
        (
            "intermediate_heads",
            {"train.optimizer": "schedule_free"},
            "and intermediate_heads does something of its own after every update or freezes some",
        ),
        (
            "intermediate_heads",
            {"teachers.out_of_bag": True, "teachers.folds": True},
            "hears all teachers of",
        ),
        ("student_friendly(soft_weight=-1.0)", {}, "student_friendly(soft_weight=-1.0): must be at least 0"),
        ("student_friendly", {}, "student_friendly: mlp(hidden=(8,)) cannot branch from"),
        (
            "student_friendly",
            {"teachers.method": "teaching.soteacher"},
            "does not go with plan student_friendly",
        ),
        ("student_friendly", {"students.models": ("mlp", "cnn")}, "there are several; name student"),
        ("interactive(swapped=1.0)", {}, "interactive(swapped=1.0): must be a share"),
        ("interactive(schedule='growing')", {}, "config.plan: there is no schedule"),
        ("interactive", {}, "interactive: mlp(hidden=(8,)) has no stages of blocks"),
        ("interactive", {"teachers.models": ("mlp", "cnn")}, "teachers.models must name one"),
        ("interactive(mode='mimic_all')", {}, "one head"),
        ("matched_channels(weight=-1.0)", {}, "matched_channels(weight=-1.0): must be at least 0"),
        ("matched_channels", {"students.model": "mlp(hidden=(9,))"}, "share no stage of the same number of"),
        ("hydra(mode='output_avg')", {}, "hydra cannot end with 'output_avg'"),
        ("hydra(first='mimic_all')", {}, "one head"),
        ("noisy_student", {}, "without a label; it must have 'unlabelled' or 'other' in it"),
        ("noisy_student(rounds=0)", {"students.transfer": ("unlabelled",)}, "rounds=0"),
        ("noisy_student(threshold=1.0)", {"students.transfer": ("unlabelled",)}, "in [0, 1)"),
        ("hints_then_distil(hints='features.hints_only(student=\"stage2\")')", {}, "no feature 'stage2'"),
        ("hints_then_distil(mode='mimic_all')", {}, "one head"),
        (
            "hints_then_distil(mode='peers.kd_ml(shared=\"most\")')",
            {},
            "from frozen teachers and nobody else",
        ),
        ("specialists", {"teachers.num_members": 2}, "needs 3 to 4"),
        ("specialists", {"teachers.num_members": 5}, "needs 3 to 4"),
        ("specialists", {"teachers.patience": 3}, "config.teachers.patience: 3"),
        ("specialists", {"teachers.subset_fraction": 0.5}, "subset_fraction"),
        ("specialists", {"teachers.bootstrap": True}, "bootstrap"),
        ("snapshots", {"teachers.num_members": 5}, "config.train.epochs: 4 are too few"),
        ("snapshots", {"teachers.patience": 3}, "moments of one training"),
        ("fast_geometric(low=0.0)", {}, "fast_geometric(low=0.0): must be a share"),
        ("fast_geometric", {"teachers.learning_rates": (0.1, 0.2, 0.3)}, "config.teachers.learning_rates"),
        ("horizontal(burn_in=0.9)", {}, "horizontal; must be more: burn_in leaves 0 for 3"),
        ("negative_correlation(strength=1.0)", {}, "negative_correlation(strength=1.0): must be a share"),
        ("negative_correlation", {"teachers.bootstrap": True}, "config.teachers.bootstrap: True does not go"),
        ("fast_geometric(burn_in=0.9)", {}, "burn_in leaves 0 for 3"),
        ("stochastic_averages(moments=0)", {}, "moments=0"),
        ("swag(moments=1)", {}, "swag(moments=1): must be at least 2"),
        ("swag(scale=-1.0)", {}, "swag(scale=-1.0): must be at least 0"),
        (
            "swag(burn_in=0.5, moments=3)",
            {},
            "are too few for plan swag; must be more: burn_in leaves 2 for 3",
        ),
        ("stochastic_averages(rate=1.5)", {}, "stochastic_averages(rate=1.5): must be a share"),
        ("boosted(rate=0.0)", {}, "boosted(rate=0.0): must be in (0, 1]"),
        ("boosted", {"teachers.patience": 2}, "config.teachers.patience: 2 does not go with plan boosted"),
        ("boosted", {"data.sampling": "balanced"}, "config.data.sampling: 'balanced', and plan boosted"),
        ("hyper_deep(searched=1)", {}, "searched=1): must be at least the"),
        ("hyper_deep(inits=0)", {}, "hyper_deep(inits=0): must be at least 1"),
        ("hyper_deep(spread=0.5)", {}, "hyper_deep(spread=0.5): must be at least 1"),
        ("hyper_deep(smoothing=1.0)", {}, "hyper_deep(smoothing=1.0): must be in [0, 1)"),
        ("hyper_deep", {"teachers.learning_rates": (1e-3, 2e-3, 3e-3)}, "does not go with plan hyper_deep"),
        (
            "specialists",
            {"model.name": "tests.staged:staged(trainable='heads')"},
            "cannot be tests.staged:staged(trainable='heads'): they are drawn anew",
        ),
    ],
)
def test_what_cannot_be_is_one_line_before_anything_is_written(address, overrides, expected, tmp_path):
    with pytest.raises(UserError) as error:
        experiment.run(small.config(**{"plan": address, **overrides}), tmp_path, quiet=True)
    assert expected in str(error.value) and "\n" not in str(error.value)
    assert str(error.value).count("config.") == 1
    assert {path.name for path in tmp_path.iterdir()} <= {".lock"}


def test_plans_are_listed(capsys):
    assert main.main(["main", "--list"]) == 0
    printed = capsys.readouterr().out
    assert all(name.partition("(")[0] in printed for name in PLANS)
