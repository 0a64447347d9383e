"""The one loop: against an explicit loop, best weights, early stopping, diverged members, resuming."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtkd_jax import experiment, optimizers
from mtkd_jax.addresses import build_recipe
from mtkd_jax.data import loading
from mtkd_jax.engine import forecast, jobs, population, step, training
from mtkd_jax.engine.step import same_family
from mtkd_jax.engine.tuning import with_layout
from mtkd_jax.mesh import Layout
from mtkd_jax.plans import plan, students, teachers
from mtkd_jax.runs import checkpoint
from mtkd_jax.runs.logbook import Logbook
from mtkd_jax.types import UserError
from tests import small


def teachers_job(**overrides):
    config = small.config(**overrides)
    return teachers.job(config, experiment.load_split(config), config.model.name)


def fitted(job, tmp_path, **arguments):
    with Logbook(tmp_path, quiet=True) as logbook:
        return training.fit(job, tmp_path / "checkpoints" / job.stage, logbook, **arguments)


def in_two_steps(transform):
    """Updates by the mean gradient of two steps, as somebody would write it who does not know MultiSteps."""

    def update(gradient, state, params):
        inner, kept = state
        if kept is None:
            return jax.tree.map(jnp.zeros_like, gradient), (inner, gradient)
        mean = jax.tree.map(lambda a, b: (a + b) / 2, kept, gradient)
        updates, inner = transform.update(mean, inner, params)
        return updates, (inner, None)

    return optax.GradientTransformation(lambda params: (transform.init(params), None), update)


@pytest.mark.parametrize(
    "options, transform, average_decay",
    [
        ({}, optax.adam(3e-2), None),
        ({"clip_norm": 0.3}, optax.chain(optax.clip_by_global_norm(0.3), optax.adam(3e-2)), None),
        ({"ema_decay": 0.2}, optax.adam(3e-2), 0.2),
        ({"accumulate": 2, "optimizer": "sgd", "weight_decay": 0.1}, "sgd in two steps", None),
        (
            {"accumulate": 2, "optimizer": "sgd", "weight_decay": 0.1, "clip_norm": 0.3, "ema_decay": 0.2},
            "sgd in two steps",
            0.2,
        ),
        (
            {"schedule": "cosine", "warmup": 0.25},  # of 12 steps: 1/3, 2/3, then the cosine over the other 9
            optax.adam(
                lambda t: 3e-2 * jnp.minimum((t + 1) / 3, 0.5 + 0.5 * jnp.cos(jnp.pi * (t - 3).clip(0) / 9))
            ),
            None,
        ),
    ],
    ids=lambda value: str(value)[:40],
)
def test_teachers_are_what_a_plain_optax_loop_trains(options, transform, average_decay, tmp_path):
    options = {f"train.{name}": value for name, value in options.items()}
    job = teachers_job(**{"train.epochs": 4, "train.learning_rate": 3e-2, **options})
    assert job.num_steps == 12
    if transform == "sgd in two steps":
        clip = optax.clip_by_global_norm(options.get("train.clip_norm", 1e9))
        sgd = optax.sgd(3e-2, momentum=0.9, nesterov=True)
        transform = in_two_steps(optax.chain(clip, optax.add_decayed_weights(0.1), sgd))
    found = fitted(job, tmp_path)
    model, examples = job.program.model, job.stage_data.examples
    best = None
    for k in range(3):
        variables = model.init(job.init_keys[k], jnp.zeros((1, 4, 4, 1)))
        opt_state, nlls, used, done = transform.init(variables), [], variables, 0

        @jax.jit
        @jax.grad
        def gradient(variables, indices):
            image = examples.image[indices].astype(jnp.float32) / 255
            logits = model.apply(variables, image)[0].logits
            return optax.softmax_cross_entropy_with_integer_labels(logits, examples.label[indices]).mean()

        best = variables
        for epoch in range(4):
            for indices in job.order(epoch)[:, k]:
                with jax.numpy_dtype_promotion("standard"):
                    updates, opt_state = transform.update(gradient(variables, indices), opt_state, variables)
                variables = optax.apply_updates(variables, updates)
                done += 1
                of_update = options.get("train.accumulate", 1)
                if done % of_update == 0:
                    t = done // of_update - 1
                    decay = 0.0 if average_decay is None else min(average_decay, (1 + t) / (10 + t))
                    used = jax.tree.map(lambda a, v, d=decay: d * a + (1 - d) * v, used, variables)
            images, labels = job.validation
            logits = model.apply(used, images.astype(jnp.float32) / 255)[0].logits
            nlls.append(optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean())
            best = used if np.argmin(nlls) == epoch else best
        expected = population.take(found.population.variables, k)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=5e-5), best, expected)
        np.testing.assert_allclose(found.val_nll[k], min(nlls), atol=2e-5)


def test_more_steps_an_update_than_there_are_is_refused():
    with pytest.raises(UserError, match="config.train.accumulate: 99 steps make one update; must be at most"):
        teachers_job(**{"train.accumulate": 99})


def test_what_was_trained_in_parts_is_one_population_that_knows_who_diverged():
    job = teachers_job()
    parts = [
        dataclasses.replace(
            training.untrained(jobs.part(job, rows)), diverged=diverged, seconds=1.5, network_steps=steps
        )
        for rows, diverged, steps in (((0, 1), ("teacher 1",), 8), ((2,), ("teacher 2",), 4))
    ]
    whole = training.concatenate(parts)
    assert whole.population.names == job.names and whole.diverged == ("teacher 1", "teacher 2")
    assert whole.seconds == 3.0 and whole.finite_members.names == ("teacher 0",)
    assert whole.network_steps == 12 and whole.notes == ()
    lent = dataclasses.replace(parts[1], network_steps=None, notes=("of another run",))
    whole = training.concatenate([parts[0], lent])
    assert whole.network_steps is None and whole.notes == ("of another run",)


def test_alpha_and_temperature_half_way():
    """Teachers fade out in a line: a quarter of the way on 3/4 of it is left; T falls from 5 to 1."""
    program = teachers_job().program._replace(
        alpha_schedule=optimizers.linear(), temperature_schedule=optimizers.linear()
    )
    hyper = {"alpha": jnp.float32(0.2), "temperature": jnp.float32(5.0)}
    found = step._annealed(program, hyper, jnp.float32(0.25))
    np.testing.assert_allclose(
        [found["alpha"], found["temperature"]], [1 - 0.8 * 0.75, 1 + 4 * 0.75], rtol=1e-6
    )


def test_averages_that_a_recipe_would_not_deploy_are_refused():
    for optimizer, mode, said in (
        ("schedule_free", "averages.mean_teacher", "deploys weights of its own making"),
        ("schedule_free", "binary.xnor", "of its own after every update or freezes some"),
        ("schedule_free", "averages.temporal_ensembling", "of its own after every update"),
    ):
        with pytest.raises(UserError, match=said):
            small.students_job(mode, **{"train.optimizer": optimizer})


def test_schedules_of_alpha_and_temperature_at_their_ends_are_the_baseline_and_temperature_1(tmp_path):
    """Teachers of weight 0 teach nothing; (T - 1) times 0 makes T = 1, also where each member aims itself."""
    never = "linear(start=0.0, end=0.0)"
    modes = {"students.modes": ("output_avg", "weights.aekd"), "students.alphas": (0.25,)}
    warm = {"students.temperatures": (1.0, 4.0)}

    def students_of(**overrides):
        done = small.train(small.config(**modes, **overrides), tmp_path / str(len(list(tmp_path.iterdir()))))
        stages = [fitted for name, fitted in done.items() if name.startswith("students")]
        return {
            name: population.take(fitted.population.variables, row)
            for fitted in stages
            for row, name in enumerate(fitted.population.names)
        }

    close = lambda a, b: jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), a, b)  # noqa: E731
    silent = students_of(**{"students.alpha_schedule": never})
    close(silent["output_avg a=0.25 T=1 seed 0"], silent["baseline a=1 T=1 seed 0"])
    cold = students_of(**{"students.temperature_schedule": never}, **warm)
    for mode in modes["students.modes"]:
        close(cold[f"{mode} a=0.25 T=4 seed 1"], cold[f"{mode} a=0.25 T=1 seed 1"])


def test_a_student_with_alpha_one_is_the_baseline_and_the_control_is_mimic_all(tmp_path):
    modes = ("mimic_all", "output_avg", "logit_avg", "vote", "loss_avg", "supernet")
    few = {"students.alphas": (1.0,), "students.num_seeds": 1, "train.epochs": 2, "runtime.how": "vmap"}
    done = small.train(small.config(**{"students.modes": modes, **few}), tmp_path)

    def student(stage, name):
        of = done[stage].population
        return population.take(of.variables, of.names.index(f"{name} a=1 T=1 seed 0"))

    close = lambda a, b: jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-6), a, b)  # noqa: E731
    for mode in modes[1:]:
        close(
            student("students-labelled-output-avg", mode), student("students-labelled-output-avg", "baseline")
        )
    close(
        student("students-labelled-mimic-all", "mimic_all"), student("students-labelled-mimic-all", "control")
    )


def test_one_head_modes_are_one_family():
    config = small.config(**{"students.modes": ("mimic_all", "vote", "output_avg", "supernet", "logit_avg")})
    families = students.families(config)
    assert [{member.mode for member in family} for family in families] == [
        {"mimic_all", "control"},
        {"vote", "output_avg", "supernet", "logit_avg", "baseline"},
    ]
    assert not same_family(build_recipe("mimic_all"), build_recipe("output_avg"))


def test_recipes_whose_targets_read_the_student_are_not_mixed():
    first, second = (build_recipe(mode)._replace(reads_student=("aim",)) for mode in ("output_avg", "vote"))
    assert not same_family(first, second) and same_family(first, first._replace(name="again"))


@pytest.mark.parametrize("mode", ["mimic_all", "mimic_all()"])
def test_every_mode_with_more_heads_has_its_control(mode):
    modes = {
        member.mode
        for family in students.families(small.config(**{"students.modes": (mode,)}))
        for member in family
    }
    assert modes == {mode, "control", "baseline"}


def test_a_second_stage_of_the_same_shape_compiles_nothing(tmp_path):
    config = small.config(
        **{"students.transfer": ("labelled", "unlabelled"), "students.modes": ("output_avg",)}
    )
    config.data.num_train = 48
    split = experiment.load_split(config)
    stages = plan.build(config, split)
    with Logbook(tmp_path, quiet=True) as logbook:
        jax.clear_caches()
        with small.compilations() as first:
            done = plan.run(stages[:-1], tmp_path, logbook, 1e9)
        with small.compilations() as second:
            plan.run(stages[-1:], tmp_path, logbook, 1e9, done)
    assert [line for line in first if "training_chunk" in line]
    assert not [line for line in second if "training_chunk" in line]


def curves(workdir):
    """Validation NLL [E,M] from metrics.jsonl."""
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    values = [record["value"] for record in records if record["name"] == "val_nll"]
    return np.array(values, np.float64).reshape(-1, 3)


def a_round_at_once(job):
    return dataclasses.replace(job, steps_at_once=job.steps_per_round)


def test_stopped_members_keep_their_best_and_the_others_go_on(tmp_path):
    job = a_round_at_once(
        teachers_job(**{"train.epochs": 40, "train.learning_rate": 0.3, "teachers.patience": 2})
    )
    patient = fitted(job, tmp_path / "a")
    to_the_end = fitted(dataclasses.replace(job, patience=0), tmp_path / "b")
    nlls = curves(tmp_path / "b")  # of the run to the end: [E,M]
    for m in range(3):
        stop = next(e for e in range(2, 40) if nlls[e - 1 : e + 1, m].min() >= nlls[: e - 1, m].min())
        np.testing.assert_allclose(patient.val_nll[m], nlls[: stop + 1, m].min(), rtol=1e-5)
        assert stop < 39 and nlls[stop, m] > nlls[: stop + 1, m].min()  # it did stop, and not at its best
    assert len(curves(tmp_path / "a")) < 40
    np.testing.assert_allclose(to_the_end.val_nll, nlls.min(axis=0), rtol=1e-5)
    images, labels = job.validation
    logits = population.logits(patient.population, np.asarray(images))
    for m in range(3):
        expected = optax.softmax_cross_entropy_with_integer_labels(logits[m], labels).mean()
        np.testing.assert_allclose(patient.val_nll[m], expected, atol=1e-5)


def test_a_member_that_breaks_down_is_named_and_harms_nobody(tmp_path):
    job = teachers_job(**{"teachers.learning_rates": (1e-2, 1e30, 1e-2)})
    sound = teachers_job()
    broken, whole = fitted(job, tmp_path / "broken"), fitted(sound, tmp_path / "whole")
    assert broken.diverged == ("teacher 1",)
    assert broken.finite_members.names == ("teacher 0", "teacher 2")
    for m in (0, 2):
        a, b = (population.take(f.population.variables, m) for f in (broken, whole))
        jax.tree.map(np.testing.assert_array_equal, a, b)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(broken.population.variables))


@pytest.mark.parametrize(
    "overrides, said",
    [
        ({"train.learning_rate": 1e30}, "lower train.learning_rate (now 1e+30)"),
        ({"train.weight_decay": 1e30}, "lower train.weight_decay (now 1e+30)"),
    ],
)
def test_when_every_member_breaks_down_it_says_what_to_lower(overrides, said, tmp_path):
    with pytest.raises(UserError) as error:
        fitted(teachers_job(**overrides), tmp_path)
    assert said in str(error.value)


def test_when_nothing_was_finite_from_the_beginning_it_is_not_the_learning_rate(tmp_path):
    job = teachers_job()
    images, labels = job.validation
    images = jnp.full(images.shape, jnp.nan, jnp.float32)
    examples = dataclasses.replace(
        job.stage_data.examples, image=jnp.full_like(job.stage_data.examples.image, jnp.nan)
    )
    job = dataclasses.replace(
        job, validation=(images, labels), stage_data=dataclasses.replace(job.stage_data, examples=examples)
    )
    with pytest.raises(UserError, match="not even the first outputs are: look at the images") as error:
        fitted(job, tmp_path)
    assert "learning_rate" not in str(error.value)


@pytest.mark.parametrize("steps_at_once", [2, 3, 6])  # of 3 a round: its parts, a round, two rounds
def test_resumed_training_is_the_training_that_was_never_stopped(tmp_path, monkeypatch, steps_at_once):
    kept = {"train.ema_decay": 0.9, "train.accumulate": 2, "train.mixup": 0.4, "train.optimizer": "muon"}
    job = teachers_job(**{"train.epochs": 6}, **kept)
    job = dataclasses.replace(job, steps_at_once=steps_at_once, checkpoints=3)
    assert job.steps_per_round == 3
    whole = fitted(job, tmp_path / "whole")

    class Stopped(Exception):
        pass

    def stop_after(saves):
        def save(directory, step, tree, info, **arguments):
            checkpoint_save(directory, step, tree, info, **arguments)
            saves.append(step)
            if len(saves) == 2:
                raise Stopped

        return save

    checkpoint_save = checkpoint.save
    monkeypatch.setattr(checkpoint, "save", stop_after(saves := []))
    with pytest.raises(Stopped):
        fitted(job, tmp_path / "cut", checkpoint_seconds=0.0)
    assert saves == [{2: 2, 3: 3, 6: 6}[steps_at_once], {2: 3, 3: 6, 6: 12}[steps_at_once]]
    resumed = fitted(job, tmp_path / "cut", checkpoint_seconds=0.0)
    jax.tree.map(np.testing.assert_array_equal, resumed.population.variables, whole.population.variables)
    jax.tree.map(np.testing.assert_array_equal, resumed.bank.variables, whole.bank.variables)
    records = lambda at: [  # noqa: E731
        line.split('"wall"')[0] for line in (at / "metrics.jsonl").read_text().splitlines()
    ]
    assert records(tmp_path / "cut") == records(tmp_path / "whole")
    restored = fitted(job, tmp_path / "cut")
    jax.tree.map(np.testing.assert_array_equal, restored.population.variables, whole.population.variables)


@pytest.mark.parametrize("how", ["map", "vmap", "loop", "shard_map"])
def test_a_round_in_parts_is_the_round(tmp_path, how):
    job = teachers_job(**{"train.epochs": 4, "train.eval_every": 2, "runtime.how": how})
    whole = fitted(job, tmp_path / "whole")
    in_parts = fitted(dataclasses.replace(job, steps_at_once=4), tmp_path / "parts")  # 3 and 3 of each 6
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6),
        in_parts.population.variables,
        whole.population.variables,
    )
    np.testing.assert_allclose(curves(tmp_path / "parts"), curves(tmp_path / "whole"), rtol=1e-4)


def test_pieces_cover_a_stage_once_and_have_few_sizes():
    job = teachers_job(**{"train.epochs": 12, "train.eval_every": 2})  # rounds of 6 steps
    for at_once, sizes in {1: {1}, 4: {3}, 5: {3}, 6: {6}, 13: {12}, 10**6: {36}}.items():
        job = dataclasses.replace(job, steps_at_once=at_once)
        found = training.pieces(job)
        assert {piece.num_steps for piece in found} == sizes
        steps = [piece.first + n for piece in found for n in range(piece.num_steps)]
        assert steps == list(range(job.num_steps))
    resumed = training.pieces(dataclasses.replace(job, steps_at_once=12), step=4)  # saved by other pieces
    assert [tuple(piece) for piece in resumed] == [(4, 2), (6, 12), (18, 12), (30, 6)]
    orders = np.concatenate([job.order(epoch) for epoch in range(12)])
    np.testing.assert_array_equal(training.indices_of(job, training.Piece(4, 9)), orders[4:13])


class Lazy:
    """Images that remember how many of them were asked for at a time."""

    def __init__(self, images):
        self.images, self.asked = images, []
        self.shape, self.dtype = images.shape, images.dtype

    def __len__(self):
        return len(self.images)

    def __getitem__(self, rows):
        found = self.images[rows]
        self.asked.append(len(found))
        return found

    def identity(self):
        return self.images.tobytes()


def test_images_that_are_read_when_asked_for_train_the_same_members(tmp_path, monkeypatch):
    """Teachers in orders of their own and students that share one, a few images held at a time."""
    monkeypatch.setattr(loading, "MOST_LOOKED_AT", 60)
    few = {"students.modes": ("output_avg",), "students.alphas": (0.5,)}
    config = small.config(**{"train.epochs": 2, "train.eval_every": 2, "runtime.how": "map", **few})
    held = experiment.load_split(config)
    lazy = Lazy(held.dataset.train_images)
    read = dataclasses.replace(held, dataset=dataclasses.replace(held.dataset, train_images=lazy))
    trained = {}
    for name, split in (("held", held), ("read", read)):
        job = teachers.job(config, split, config.model.name)
        trained[name] = [fitted(dataclasses.replace(job, steps_at_once=1), tmp_path / name)]
        ensemble = (trained[name][0].population,)
        for family in students.families(config):
            job = students.job(config, split, "labelled", family, ensemble, {})
            job = dataclasses.replace(job, steps_at_once=1)
            trained[name].append(fitted(job, tmp_path / name / job.stage))
    for a, b in zip(trained["held"], trained["read"]):
        jax.tree.map(np.testing.assert_array_equal, a.population.variables, b.population.variables)
    whole, *windows = lazy.asked  # the first are those that mean and deviation are taken of
    assert whole == 60 and windows and max(windows) <= 48  # three members, sixteen images each


def test_pieces_hold_no_more_images_than_they_may_and_take_some_seconds(monkeypatch):
    config = small.config()
    split = experiment.load_split(config)
    lazy = Lazy(split.dataset.train_images)  # 4x4 bytes each
    split = dataclasses.replace(split, dataset=dataclasses.replace(split.dataset, train_images=lazy))
    job = teachers.job(config, split, config.model.name)  # 3 x 16 images a step
    for stream_bytes, steps in ((16 * 48 * 2, 2), (16 * 48 * 3 - 1, 2), (1, 1), (10**9, 256)):
        assert forecast.in_pieces(dataclasses.replace(job, stream_bytes=stream_bytes)).steps_at_once == steps
    job = dataclasses.replace(job, images=None)
    monkeypatch.setitem(forecast.BUSY, "cpu", 3.5 * forecast.flops(job) / job.num_steps)
    monkeypatch.setattr(forecast, "SECONDS_OF_A_PIECE", 2)
    assert forecast.in_pieces(job).steps_at_once == 7


def test_what_is_restored_stands_where_what_was_just_trained_does(tmp_path):
    """Else another program evaluates it, whose numbers differ by roundings on some processors."""
    config = small.config(**{"teachers.num_members": 4, "runtime.how": "shard_map"})
    places = []
    for _ in range(2):  # the second time all is restored
        done = small.train(config, tmp_path)
        leaves = [leaf for fitted in done.values() for leaf in jax.tree.leaves(fitted.population.variables)]
        places.append([(leaf.sharding, leaf.committed, leaf.weak_type) for leaf in leaves])
    assert places[0] == places[1]
    assert {len(sharding.device_set) for sharding, *_ in places[0]} == {1}


@pytest.mark.parametrize("layout", [Layout("vmap"), Layout("vmap", 3)])
def test_what_members_begin_with_is_put_together_by_one_program_and_the_same_as_call_by_call(layout):
    job = with_layout(small.students_job("features.hints(student='stage1', teacher='stage1')"), layout)
    variables = population.init(job.program.model, job.init_keys, job.image.shape[1:])
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 1))(job.init_keys)
    expected = step.init_state(job.program, variables, keys, job.stage_data)
    training.first_progress(job)  # what is drawn is compiled
    jax.clear_caches()
    with small.compilations() as compiled:
        first = training.first_progress(job)
    assert sum("jit(first)" in line for line in compiled) == 1
    assert not [line for line in compiled if "jit(copy)" in line]
    for found, wanted in zip(jax.tree.leaves(first.train), jax.tree.leaves(expected), strict=True):
        if jnp.issubdtype(found.dtype, jax.dtypes.prng_key):
            found, wanted = jax.random.key_data(found), jax.random.key_data(wanted)
        np.testing.assert_array_equal(found, wanted)
    assert jax.tree.leaves(first.best), "best weights are kept from the beginning"
