"""Teachers known by what they say: whoever learns from their files learns what it would have from them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax import addresses, experiment, logits
from mtkd_jax.data import logit_files
from mtkd_jax.engine import forecast, jobs, population, step, teacher_cache, training
from mtkd_jax.engine.tuning import with_layout
from mtkd_jax.mesh import Layout
from mtkd_jax.plans import given, students, teachers
from mtkd_jax.report import document
from mtkd_jax.results import lookup
from mtkd_jax.runs import predictions, workdir
from mtkd_jax.types import Population, UserError
from tests import small

BOTH = {"students.transfer": ("labelled", "unlabelled"), "students.alphas": (0.5,), "students.num_seeds": 1}


def untrained(config):
    """Three teachers as they begin, and what they say of all images of the data."""
    split = experiment.load_split(config)
    model = teachers.network(split, "mlp(hidden=(8,))")
    variables = population.init(model, jax.random.split(jax.random.key(5), 3), (4, 4, 1))
    own = Population(model, jax.tree.map(lambda leaf: 3 * leaf, variables), {}, ("a", "b", "c"))
    logits = {
        f"{part}_logits": population.logits(own, getattr(split.dataset, f"{part}_images"))
        for part in ("train", "test")
    }
    return split, own, logits


def write(folder, logits, split, name="cube"):
    logit_files.write(folder / f"{name}.npz", logits, split.dataset.class_names)
    return str(folder / f"{name}.npz")


@pytest.fixture(scope="module")
def cube(tmp_path_factory):
    """A file of three teachers."""
    split, _, logits = untrained(small.config())
    return write(tmp_path_factory.mktemp("said"), logits, split)


def states_after_two_steps(config, split, ensemble, mode, layout):
    (family, *_) = students.families(config)
    assert family[0].mode == mode
    job = students.job(config, split, config.students.transfer[-1], family, ensemble, {})
    job = with_layout(teacher_cache.fill(job, {}), layout)
    variables = population.init(job.program.model, job.init_keys, job.image.shape[1:])
    states = step.init_state(job.program, variables, job.init_keys, job.stage_data)
    one_step = jax.jit(step.make_step(job.program))
    for number in range(2):
        states, losses = one_step(states, job.hyper, job.order(0)[number], jnp.int32(number), job.stage_data)
    return states.params, losses


@pytest.mark.parametrize("mode", ["mimic_all", "weights.aekd", "peers.kd_ml"])
def test_a_step_taught_by_a_file_is_the_step_taught_by_its_teachers(mode, tmp_path):
    config = small.config(**{**BOTH, "students.modes": (mode,)})
    split, own, logits = untrained(config)
    parts = [write(tmp_path, {n: cube[k] for n, cube in logits.items()}, split, f"t{k}") for k in range(3)]
    found, notes = given.from_logits(parts, split.dataset)
    assert found.names == ("t0", "t1", "t2") and notes == ()
    expected = states_after_two_steps(config, split, (own,), mode, Layout("vmap"))
    two_files = population.members(found, (0, 1)), population.members(found, (2,))
    got = states_after_two_steps(config, split, two_files, mode, Layout("vmap"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), got, expected)


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_pseudo_labels_of_a_file_are_those_of_its_teachers_whatever_the_student_sees(noise, tmp_path):
    """The teachers' view is the image as the data has it, of which the file is; the student's is not."""
    mode = "targets.pseudo_labels"
    fields = {"data.augment.noise": noise, "students.arguments": {mode: {"threshold": 0.3}}}
    config = small.config(**{**BOTH, **fields, "students.modes": (mode,), "students.alphas": (0.0,)})
    split, own, logits = untrained(config)
    found, _ = given.from_logits([write(tmp_path, logits, split)], split.dataset)
    expected, losses = states_after_two_steps(config, split, (own,), mode, Layout("vmap"))
    got, same_losses = states_after_two_steps(config, split, (found,), mode, Layout("vmap"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-4), got, expected)
    np.testing.assert_allclose(same_losses, losses, rtol=1e-4)
    assert (losses > 0).all()  # they were sure of some


def test_files_and_networks_teach_side_by_side_and_over_devices(tmp_path):
    config = small.config(**{**BOTH, "students.modes": ("mimic_all",), "data.augment.noise": 0.1})
    split, own, logits = untrained(config)
    found, _ = given.from_logits([write(tmp_path, logits, split)], split.dataset)
    mixed = population.members(found, (0,)), population.members(own, (1, 2))
    (family, *_) = students.families(config)
    job = students.job(config, split, "unlabelled", family, mixed, {})
    alone = students.job(config, split, "unlabelled", family, (own,), {})
    said_by = {}
    for name, one in (("mixed", job), ("alone", alone)):
        spread = with_layout(one, Layout("map", 2))
        said_by[name] = teacher_cache.fill(spread, {}).stage_data.cached_logits
    np.testing.assert_allclose(said_by["mixed"][1:], said_by["alone"][1:], atol=1e-5)
    rows = np.concatenate([job.order(epoch) for epoch in range(job.epochs)]).ravel()
    np.testing.assert_array_equal(said_by["mixed"][0], found.variables["train"][0, rows])


def test_a_whole_run_learns_from_the_file_and_its_report_says_who_taught(cube, tmp_path):
    config = small.config(
        **{
            "teachers.logits": (cube,),
            "students.modes": ("output_avg", "supernet"),
            "students.alphas": (0.5,),
            "data.augment.shift": 1,
            "train.epochs": 2,
        }
    )
    report = experiment.run(config, tmp_path / "run", quiet=True)
    teacher, _, ensemble, *_ = report["rows"]
    assert (teacher["name"], teacher["role"], teacher["n"]) == ("logits files", "teacher", 3)
    for row in (teacher, ensemble):
        assert row["params"] is row["flops"] is row["latency_ms"]["1"] is row["train_seconds"] is None
    assert {row["name"] for row in report["rows"]} >= {"output_avg", "supernet", "baseline", "mean_probs"}
    split, _, logits = untrained(config)
    found = predictions.load(tmp_path / "run" / "predictions.npz")
    np.testing.assert_allclose(found.groups[0].test, logits["test_logits"], atol=1e-5)
    np.testing.assert_allclose(found.groups[0].val, logits["train_logits"][:, split.val], atol=1e-5)
    assert found.groups[0].members == ("cube[0]", "cube[1]", "cube[2]")
    assert "logits files" not in {group.name for group, _ in lookup.single_networks(found)}
    notes = " ".join(report["notes"])
    assert "cube.npz says" in notes and "as it is: fixed teachers" in notes
    text = (tmp_path / "run" / "report.md").read_text(encoding="utf-8")
    assert "logits files" in text
    document.write(tmp_path / "run")  # again, from predictions.npz alone

    changed = untrained(config)[2]
    changed["train_logits"] = changed["train_logits"] + 1
    write(tmp_path, changed, split, "other")
    (tmp_path / "other.npz").replace(cube)
    with pytest.raises(UserError, match=r"weights_sha256.*was.*and is.*choose another --workdir") as error:
        experiment.run(config, tmp_path / "run", quiet=True)
    assert "\n" not in str(error.value)
    write(tmp_path, logits, split, "cube")
    (tmp_path / "cube.npz").replace(cube)


@pytest.mark.parametrize(
    "fields, words",
    [
        (
            {"students.modes": ("stimuli.funmatch",)},
            "students.modes: stimuli.funmatch: stimuli.funmatch makes images",
        ),
        (
            {"students.modes": ("stimuli.ods",)},
            "students.modes: stimuli.ods: stimuli.ods makes images of its own",
        ),
        ({"students.modes": ("supernet2",)}, "students.modes: supernet2: reads features of the teachers"),
        (
            {"students.modes": ("features.attention_transfer",)},
            "attention_transfer reads more of the teachers",
        ),
        ({"students.modes": ("weights.random_drop",)}, "random_drop needs at least 4 teachers, .* gives 3"),
        ({"plan": "specialists"}, "teachers.logits: .* does not go with plan specialists"),
        ({"plan": "hints_then_distil"}, "plan: hints_then_distil begins with features of the teachers"),
        ({"export.choose": "mlp(hidden=(8,))"}, "export.choose: there will be no row"),
        ({"data.num_train": 3}, "data.num_train"),
    ],
)
def test_what_asks_more_of_teachers_than_logits_is_refused_before_any_work(fields, words, cube, tmp_path):
    arguments = {"weights.random_drop": {"num_dropped": 3}} if "needs at least" in words else {}
    config = small.config(**{"teachers.logits": (cube,), "students.arguments": arguments, **fields})
    with pytest.raises(UserError, match=words) as error:
        experiment.run(config, tmp_path / "run", quiet=True)
    assert "\n" not in str(error.value) and not list(tmp_path.glob("run/checkpoints/*"))


@pytest.mark.parametrize(
    "fields, words",
    [
        ({"train.mixup": 0.2}, "train.mixup: 0.2, but teachers.logits says nothing of mixed images"),
        ({"train.cutmix": 1.0}, "train.cutmix: 1"),
        ({"teachers.init_from": ("w.npz",)}, "teachers.logits and teachers.init_from"),
        ({"teachers.from_run": "runs/x"}, "teachers.logits and teachers.from_run"),
        ({"teachers.models": ("mlp",)}, "teachers.logits and teachers.models"),
        ({"teachers.logits": ("a.npz", "a.npz")}, "names 'a.npz' twice"),
    ],
)
def test_fields_that_say_otherwise_are_refused_by_validation(fields, words):
    with pytest.raises(UserError, match=words):
        small.config(**{"teachers.logits": ("a.npz",), **fields})


def test_a_seam_that_asks_about_another_image_is_refused(tmp_path):
    config = small.config(**{**BOTH, "students.modes": ("output_avg",)})
    split, _, logits = untrained(config)
    found, _ = given.from_logits([write(tmp_path, logits, split)], split.dataset)
    recipe = addresses.build_recipe("output_avg")
    recipe = recipe._replace(teach=lambda context, networks: networks.teachers(context.batch.image + 1))
    family = students.grid(config, "mine", recipe)
    job = students.job(config, split, "labelled", family, (found,), {})
    variables = population.init(job.program.model, job.init_keys, (4, 4, 1))
    states = step.init_state(job.program, variables, job.init_keys, job.stage_data)
    one_step = jax.jit(step.make_step(job.program))
    with pytest.raises(UserError, match="asks the teachers about images that it makes"):
        one_step.lower(states, job.hyper, job.order(0)[0], np.int32(0), job.stage_data)


def test_a_run_of_files_lends_no_teachers(cube, tmp_path):
    config = small.config(**{"teachers.logits": (cube,), "students.modes": (), "train.epochs": 1})
    experiment.run(config, tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match="has trained no teachers"):
        teachers.borrow(
            small.config(**{"teachers.from_run": str(tmp_path / "run")}), experiment.load_split(config)
        )


def test_examples_that_are_read_when_they_are_asked_for_bring_what_is_said_of_them(tmp_path):
    config = small.config(**BOTH)
    split, _, logits = untrained(config)
    found, _ = given.from_logits([write(tmp_path, logits, split)], split.dataset)
    examples, (columns,) = jobs.with_given_logits(jobs.examples(config, split), (found,))
    np.testing.assert_array_equal(columns.variables["place"], [0, 1, 2])
    indices = np.array([[7, 3], [3, 90]])
    window, local = experiment.loading.window(examples, np.zeros((3, 4, 4, 1), np.uint8), indices)
    batch = experiment.loading.gather(dataclasses.replace(window, image=jnp.zeros((4, 4, 4, 1))), local[1])
    np.testing.assert_allclose(
        batch.given_logits, np.moveaxis(logits["train_logits"][:, [3, 90]], 0, 1), atol=1e-5
    )


def test_what_is_said_of_more_images_than_may_be_held_comes_by_pieces(monkeypatch):
    """600 teachers: what a piece brings is what stands at the rows that its steps point to."""
    config = small.config(**{**BOTH, "students.modes": ("output_avg",), "runtime.stream_mb": 1})
    split = experiment.load_split(config)
    logits = np.random.default_rng(0).normal(size=(600, 120, 4)).astype(np.float32)
    found = Population(given.LOGITS, {"train": logits, "test": logits[:, :40]}, {}, ("t",) * 600)
    (family, *_) = students.families(config)
    job = forecast.in_pieces(students.job(config, split, "unlabelled", family, (found,), {}))
    of_example = 600 * 4 * 4 + 16
    assert job.steps_at_once == 2**20 // (of_example * 16) and isinstance(
        job.stage_data.examples.given_logits, np.ndarray
    )
    (piece, local, held), *_ = training.iterate_pieces(job, training.pieces(job))
    rows = training.indices_of(job, piece)
    batch = experiment.loading.gather(held.examples, local[1])
    np.testing.assert_array_equal(batch.given_logits, np.moveaxis(logits[:, rows[1]], 0, 1))
    np.testing.assert_allclose(batch.image, split.dataset.train_images[rows[1]] / 255, atol=1e-6)
    assert held.examples.given_logits.nbytes <= 2**20


def test_specialists_are_not_lent_and_the_line_says_so(tmp_path, capsys):
    config = small.config(plan="specialists")
    split = experiment.load_split(config)
    (tmp_path / "run").mkdir()
    workdir.describe(tmp_path / "run", config, split)
    lent = small.config(**{"teachers.from_run": str(tmp_path / "run")})
    with pytest.raises(UserError, match="^config.teachers.from_run: .*trained teachers of plan specialists"):
        teachers.borrow(lent, split)
    assert logits.main([str(tmp_path / "run"), "--into", str(tmp_path / "t.npz")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "run has trained teachers of plan specialists" in line and "config." not in line


def test_a_runs_teachers_teach_another_run_from_the_file_of_what_they_say(tmp_path, capsys):
    config = small.config(
        **{**BOTH, "students.modes": ("output_avg",), "train.epochs": 2, "students.num_seeds": 2}
    )
    report = experiment.run(config, tmp_path / "own", quiet=True)
    assert logits.main([str(tmp_path / "own"), "--into", str(tmp_path / "t.npz")]) == 0
    assert "3 teachers for 120 training and 40 test images" in capsys.readouterr().out
    config.teachers.logits = (str(tmp_path / "t.npz"),)
    other = experiment.run(config, tmp_path / "other", quiet=True)
    assert len(report["rows"]) == len(other["rows"])
    own, again = (predictions.load(tmp_path / name / "predictions.npz") for name in ("own", "other"))
    for one, two in zip(own.groups, again.groups):
        np.testing.assert_allclose(one.test, two.test, atol=1e-3)
        np.testing.assert_allclose(one.val, two.val, atol=1e-3)
    assert logits.main([str(tmp_path / "other"), "--into", str(tmp_path / "u.npz")]) == 0
    with np.load(tmp_path / "t.npz") as first, np.load(tmp_path / "u.npz") as second:
        np.testing.assert_array_equal(first["train_logits"], second["train_logits"])
    assert logits.main([str(tmp_path / "none"), "--into", str(tmp_path / "v.npz")]) == 2
