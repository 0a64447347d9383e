"""The students: every seed, alpha and temperature of a family of modes trained as one population."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from numpy.typing import DTypeLike

from mtkd_jax.addresses import build_model, build_recipe, canonical
from mtkd_jax.config import (
    LABELLED,
    OTHER,
    UNLABELLED,
    Arguments,
    build_recipes,
    first_seeds,
    number_of_teachers,
    row_of,
    row_of_control,
    student_models,
    students_schedule,
)
from mtkd_jax.data import loading
from mtkd_jax.data.loading import Split
from mtkd_jax.engine import jobs, population
from mtkd_jax.engine.jobs import Job
from mtkd_jax.engine.step import same_family
from mtkd_jax.engine.training import Fitted
from mtkd_jax.fusion import rules
from mtkd_jax.methods.features import CLASSIFIERS, RESCALED, linear_heads
from mtkd_jax.methods.seams import SUPERVISED, identity_view
from mtkd_jax.models.branched import branched
from mtkd_jax.models.levels import round_inputs
from mtkd_jax.plans import controls, pretrained, teachers
from mtkd_jax.system.text import seed_of, short_number, slug
from mtkd_jax.types import Array, Ensemble, Examples, Model, PyTree, Recipe, Task, TeacherOutputs, UserError

PREFERRED_ALPHA = 0.25  # breaks ties, and the one alpha at which all modes are also shown
PEERS_APART = 2**16  # between the initial weights of peers: no seed is that large
BASELINE_OF = "output_avg"  # any one-head mode at alpha = 1 is the network trained without teachers


class Cell(NamedTuple):
    """A point of the grid that validation chooses from."""

    alpha: float
    temperature: float
    arguments: Arguments = ()  # those of the mode's own of which there is a choice


class Member(NamedTuple):
    """One student of the grid; `mode` is also the name of its row in the report."""

    mode: str  # as asked for, or "baseline", "control"
    recipe: Recipe
    cell: Cell
    seed: int
    peer: int = 0  # place in its cohort; the recipe's leader is the student, others are there to learn with
    model: str = ""  # its architecture, where a run has students of several
    control: str = ""  # who teaches it instead of the teachers; see controls.py

    @property
    def is_student(self) -> bool:
        """Whether it is evaluated and exported, and not there to learn with.

        Branches are one member, whose leader's branch is what it deploys.
        """
        are_apart = self.recipe and self.recipe.sharing is None
        return self.peer == (self.recipe.leader if are_apart else 0)


Family = tuple[Member, ...]  # what one program can train


def families(config: ConfigDict) -> tuple[Family, ...]:
    """All students that are trained, grouped into what one program can train.

    What has other teachers, see controls.py, is trained apart. The baseline is always among them, and the
    control where a mode has more than one head: the same heads at alpha = 1, the added capacity without the
    teachers. All of that once for each of `students.models`, families that differ in their architecture alone
    one after the other: they share what the teachers say.
    Without any mode there are no students: a run of teachers and fusion alone.
    """
    if not config.students.modes:
        return ()
    grids = []
    for address in config.students.modes:
        for recipe, arguments in build_recipes(config, address):
            grids.append(grid(config, address, recipe, arguments=arguments))
    for control, address in itertools.product(config.students.controls, controls.controlled(config)):
        row = row_of_control(control, address)
        for recipe, arguments in build_recipes(config, address):
            taught_otherwise = grid(config, row, recipe, arguments=arguments)
            grids.append(tuple(member._replace(control=control) for member in taught_otherwise))
    grids.append(grid(config, "baseline", build_recipe(BASELINE_OF), (1.0,), (1.0,)))
    many_headed = [members[0].recipe for members in grids if members[0].recipe.num_heads(2) > 1]
    if many_headed:
        grids.append(grid(config, "control", many_headed[0], (1.0,), (1.0,)))
    grouped: list[Family] = []
    for members in grids:
        found = next((n for n, family in enumerate(grouped) if _learn_alike(family[0], members[0])), None)
        if found is None:
            grouped.append(members)
        else:
            grouped[found] += members
    return tuple(of_model(family, model) for family in grouped for model in models(config))


def _learn_alike(a: Member, b: Member) -> bool:
    """Whether one program, with the same teachers, can train both."""
    return a.control == b.control and same_family(a.recipe, b.recipe)


def models(config: ConfigDict) -> tuple[str, ...]:
    """What members say of their architecture: its address, or "" where all students have the same.

    So that stages, members and rows of a run with one architecture are called what they always were.
    """
    addresses = student_models(config)
    return addresses if len(addresses) > 1 else ("",)


def of_model(family: Sequence[Member], model: str) -> Family:
    """The members with their architecture set to `model`."""
    return tuple(member._replace(model=model) for member in family)


def grid(
    config: ConfigDict,
    mode: str,
    recipe: Recipe,
    alphas: tuple[float, ...] = (),
    temperatures: tuple[float, ...] = (),
    arguments: Arguments = (),
) -> Family:
    """Every seed (and peer) of one recipe at every alpha and temperature, those of `students` unless given.

    Of a recipe that weighs the hard labels itself there is its own alpha alone, and of one whose loss has no
    temperature, or has its own, one temperature alone.
    """
    students = config.students
    alphas = alphas or (students.alphas if recipe.alpha is None else (recipe.alpha,))
    temperatures = temperatures or (
        students.temperatures if recipe.temperature is None else (recipe.temperature,)
    )
    return tuple(
        Member(mode, recipe, Cell(alpha, temperature, arguments), seed, peer)
        for alpha in alphas
        for temperature in temperatures
        for seed in first_seeds(config)
        for peer in range(recipe.num_peers)
    )


# --- choice -------------------------------------------------------------------------------------------


def choose(members: Sequence[Member], val_nll: Sequence[float] | np.ndarray) -> tuple[Cell, list[dict]]:
    """The cell with the lowest mean validation NLL over seeds, and the whole grid, of one mode's students.

    Ties go to the alpha nearest to 0.25, then to the lowest temperature; where students broke down in every
    cell, to the one where the fewest did. Seeds that the chosen cell alone has were added after it was chosen
    (`plan.more_seeds`), and play no part.
    """
    seeds: dict[Cell, set[int]] = {}
    for member in members:
        seeds.setdefault(member.cell, set()).add(member.seed)
    in_all = set.intersection(*seeds.values())
    cells: dict[Cell, list[float]] = {}  # a diverged member is inf: its cell is chosen last
    for member, nll in zip(members, val_nll):
        if member.seed in in_all:
            cells.setdefault(member.cell, []).append(float(nll))
    means = {cell: float(np.mean(values)) for cell, values in cells.items()}
    broken = {cell: int(np.isinf(values).sum()) for cell, values in cells.items()}  # of several that are inf
    best = min(
        means,
        key=lambda cell: (means[cell], broken[cell], abs(cell.alpha - PREFERRED_ALPHA), cell.temperature),
    )
    points = [
        {
            "alpha": cell.alpha,
            "temperature": cell.temperature,
            **dict(cell.arguments),
            "num_seeds": len(seeds[cell]),  # trained here, those that broke down and were added later too
            "val_nll": nll if np.isfinite(nll) else None,
        }
        for cell, nll in means.items()
    ]
    return best, points


def members_of(family: Sequence[Member], mode: str, cell: Cell | None = None) -> list[int]:
    """Positions in a family of one mode's students, of one cell where given; of peers the leaders alone."""
    return [
        m
        for m, member in enumerate(family)
        if member.mode == mode and member.is_student and (cell is None or member.cell == cell)
    ]


def finite_members(
    fitted: Fitted, family: Sequence[Member], mode: str, cell: Cell | None = None
) -> list[int]:
    """`members_of` without those whose training broke down."""
    return [m for m in members_of(family, mode, cell) if fitted.population.names[m] not in fitted.diverged]


# --- training -----------------------------------------------------------------------------------------


def job(
    config: ConfigDict,
    split: Split,
    transfer: str,
    family: Sequence[Member],
    ensemble: Ensemble,
    prepared: Mapping[str, Callable],
    network: str = "",
    born_anew: int = 0,
    routed: bool = True,
    num_steps: int = 0,
) -> Job:
    """Training one family on one transfer set, all members on the same batches and augmentations.

    A seed sets dropout and the initial weights only: equal bodies in every mode, others for every `born_anew`
    above 0. Where the data says which teachers teach what, and the ensemble is these teachers (`routed`), all
    others are silent. An epoch has `num_steps`, or as many as of all transfer sets. The architecture
    is the family's own of `students.models` unless the address of another `network` is given. With
    `students.init_from` its bodies begin with the weights of a file. Heads remain the seed's: with those of
    the file seeds would be copies of each other, and many heads begin elsewhere than one.
    """
    is_routed = split.dataset.train_teachers is not None or config.teachers.out_of_bag
    expected = number_of_teachers(config)
    if routed and is_routed and expected is not None:
        _check_all_are_left(expected, ensemble)
    recipes = tuple(dict.fromkeys(member.recipe for member in family))
    temperatures = tuple(dict.fromkeys(member.cell.temperature for member in family))
    num_teachers = sum(p.num_members for p in ensemble)
    num_heads = recipes[0].num_heads(num_teachers)
    speaks = teachers.speakers(config, split, num_teachers) if routed else None
    if transfer == OTHER:
        _check_are_asked(ensemble)
    _check_images(recipes, split, transfer)
    mean, std = loading.channel_statistics(split)
    task = Task(split.dataset.num_classes, num_heads, mean, std)
    epochs, eval_every = students_schedule(config)
    own = family[0].model or student_models(config)[0]
    address = network or own
    model = _network(config, address, task, family[0])
    asked = {recipe.prepare for recipe in recipes}
    if asked & {CLASSIFIERS, RESCALED}:
        _check_heads([own.model for own in ensemble], split)
    if CLASSIFIERS in asked:
        prepared = {**prepared, CLASSIFIERS: classifiers(ensemble)}
    if RESCALED in asked:
        _check_heads([model], split)
        prepared = {**prepared, RESCALED: classifiers(ensemble, model.head_scale)}

    def column(values: Iterable[float], dtype: DTypeLike = np.float32) -> np.ndarray:
        return np.asarray(list(values), dtype)

    job = jobs.make(
        config,
        stage=stage_name(transfer, family),
        model=model,
        recipes=recipes,
        members=[member.seed + member.peer * PEERS_APART for member in family],
        names=tuple(member_name(member) for member in family),
        hyper={
            "alpha": column(member.cell.alpha for member in family),
            "temperature": column(member.cell.temperature for member in family),
            "target": column(
                (
                    recipes.index(member.recipe) * len(temperatures)
                    + temperatures.index(member.cell.temperature)
                    for member in family
                ),
                np.int32,
            ),
            "mates": _mates(family),
            "place": column((member.peer for member in family), np.int32),
            **{
                name: column(dict(member.recipe.hyper)[name] for member in family)
                for name, _ in recipes[0].hyper
            },
        },
        temperatures=temperatures,
        order=batches(config, split, transfer, num_steps),
        shown=jobs.show(split, _examples(config, split, transfer, speaks)),
        epochs=epochs,
        eval_every=eval_every,
        patience=0,
        seeded_by="students",
        ensemble=ensemble,
        prepared=prepared,
    )
    if born_anew:
        keys = jax.vmap(lambda key: jax.random.fold_in(key, born_anew))(job.init_keys)
        job = dataclasses.replace(job, init_keys=keys)
    is_own = config.students.init_from and address == own
    files = (config.students.init_from,) if is_own else ()
    return pretrained.initialise(job, split, files, "students.init_from", heads=False)


def _network(config: ConfigDict, address: str, task: Task, first: Member) -> Model:
    """The network that a member trains: of a method whose peers share a stem, all of them in one."""
    model = build_model(address, task, "students.models" if first.model else "students.model")
    if first.recipe.decoupled and hasattr(model.module, "calibrate") and not model.trainable:
        raise UserError(
            f"config.students.modes: {first.mode} draws teachers of its own, which lack what {address} "
            "computes from the images; must be another mode, or that layer frozen"
        )
    if first.recipe.sharing is None:
        return model if first.recipe.view is identity_view else round_inputs(model)
    check_stacked(config, f"peers of {first.mode} that share a stem", "shared=''")
    if config.students.init_from:
        raise UserError(
            f"config.students.init_from: peers of {first.mode} share a stem, which begins anew; must be ''"
        )
    try:
        return branched(model, *first.recipe.sharing)
    except UserError as error:
        raise UserError(f"config.students.modes: {first.mode}: {error}") from None


def check_stacked(config: ConfigDict, who: str, otherwise: str) -> None:
    """Raise UserError for an optimiser that takes layers of several networks, stacked [K,...], for one."""
    name = canonical("optimizer", config.train.optimizer, "train.optimizer").partition("(")[0]
    if name in ("lamb", "muon"):
        raise UserError(
            f"config.train.optimizer: {name} goes by whole layers, and {who} have theirs stacked; take "
            f"another, or {otherwise}"
        )


def _check_all_are_left(expected: int, ensemble: Ensemble) -> None:
    """Raise UserError where a teacher broke down that has examples of its own to teach."""
    left = sum(population.num_members for population in ensemble)
    if left < expected:
        raise UserError(
            f"{left} of {expected} teachers are left, and each has examples of its own to "
            "teach; train them with another rate, or without train_teachers and teachers.out_of_bag"
        )


def _mates(family: Sequence[Member]) -> np.ndarray:
    """[M,P] int32: the rows of every member's cohort, in the order of their places."""
    rows: dict[Member, list[int]] = {}
    for row, member in enumerate(family):
        rows.setdefault(member._replace(peer=0), []).append(row)
    return np.asarray([rows[member._replace(peer=0)] for member in family], np.int32)


def stage_name(transfer: str, family: Sequence[Member]) -> str:
    """The stage, and so the checkpoint folder, of one family on one transfer set.

    Named by its first member, with the arguments of which there is a choice: no other family trains that one.

    >>> stage_name("labelled", (Member("vote", None, Cell(0.0, 1.0), seed=0, model="mlp(hidden=(8,))"),))
    'students-labelled-vote-at-mlp-hidden-8'
    """
    mode, arguments, model = family[0].mode, family[0].cell.arguments, family[0].model
    chosen = ", ".join(f"{name}={value!r}" for name, value in arguments)
    at = f"-at-{slug(model)}" if model else ""
    return f"students-{transfer}-{slug(f'{mode}({chosen})' if chosen else mode)}{at}"


def member_name(member: Member) -> str:
    """The name of one student in metrics.jsonl and checkpoints.

    >>> member_name(Member("mimic_all", None, Cell(0.5, 4.0, (("weight", 2.0),)), seed=1))
    'mimic_all a=0.5 T=4 weight=2 seed 1'
    """
    cell = member.cell
    numbers = {"a": cell.alpha, "T": cell.temperature, **dict(cell.arguments)}
    told = " ".join(f"{name}={short_number(value)}" for name, value in numbers.items())
    peer = f" peer {member.peer}" if member.peer else ""
    return f"{row_of(member.mode, member.model)} {told} seed {member.seed}{peer}"


def steps_of_an_epoch(config: ConfigDict, split: Split) -> int:
    """The number of steps that every transfer set of a run gets in an epoch."""
    num_further = max(len(_unlabelled(split)[name]) for name in config.students.transfer)
    return max(1, (len(split.train) + num_further) // config.train.batch_size)


def batches(
    config: ConfigDict, split: Split, transfer: str, num_steps: int = 0
) -> Callable[[int], np.ndarray]:
    """epoch -> indices [S,B] of so many steps; 0: as many as `steps_of_an_epoch`.

    With unlabelled images each batch holds a fixed share of labelled ones, drawn again and again, so
    that no batch is without labels; with a share of 0 none has any.
    """
    batch_size = config.train.batch_size
    num_steps = num_steps or steps_of_an_epoch(config, split)
    key, labels = (config.seed, seed_of("students")), jobs.balanced_by(config, split)
    if transfer == "labelled":
        return lambda epoch: loading.epoch_order(
            split.train, num_steps=num_steps, batch_size=batch_size, key=(*key, epoch), labels=labels
        )
    share = config.students.labelled_fraction
    labelled_per_batch = min(batch_size - 1, max(1, round(batch_size * share))) if share else 0
    return lambda epoch: loading.mixed_order(
        split.train,
        _unlabelled(split)[transfer],
        num_steps=num_steps,
        batch_size=batch_size,
        labelled_per_batch=labelled_per_batch,
        key=(*key, epoch),
        labels=labels,
    )


def _unlabelled(split: Split) -> dict[str, np.ndarray]:
    """The rows without a label of each transfer set."""
    return {LABELLED: split.pool[:0], UNLABELLED: split.pool, OTHER: _rows_of_other(split)}


def _rows_of_other(split: Split) -> np.ndarray:
    """The rows of the images of another source, which stand behind all of the data's."""
    first = len(split.dataset.train_labels)
    return np.arange(first, first + (0 if split.other is None else len(split.other)), dtype=np.int32)


def _examples(config: ConfigDict, split: Split, transfer: str, speaks: Any) -> Examples:
    """What the students of a transfer set see.

    `speaks` [N,K], an array of the host or None, says which teachers teach them what.
    """
    examples = dataclasses.replace(jobs.examples(config, split), speaks=speaks)
    other = split.other if transfer == OTHER else None
    return examples if other is None else loading.with_other_images(examples, other)


def _check_images(recipes: Sequence[Recipe], split: Split, transfer: str) -> None:
    """Raise UserError for images of the transfer set that a recipe cannot be given."""
    for recipe in recipes:
        if recipe.check_images is not None:
            recipe.check_images(split.dataset.train_images)
            if transfer == OTHER and split.other is not None:
                recipe.check_images(split.other)


def _check_are_asked(ensemble: Ensemble) -> None:
    """Raise UserError for teachers who are known by what they say of the data's images, and of no others."""
    for own in ensemble:
        if not own.model.can_be_asked:
            raise UserError(
                f"config.students.transfer: {OTHER!r} asks the teachers about other images than the data's, "
                f"and {own.model.name} cannot be asked; must be without it"
            )


# --- what some modes need before they start: what fuses the teachers, or is theirs ----------------------


def fitted_rules(family: Sequence[Member]) -> tuple[str, ...]:
    """The rules, fitted on validation, that a family's recipes read."""
    asked = (member.recipe.prepare for member in family)
    return tuple(dict.fromkeys(name for name in asked if name in rules.FITTED_RULES))


def fit_rule(name: str, logits: np.ndarray, labels: np.ndarray) -> Callable[[TeacherOutputs], Array]:
    """teacher outputs -> fused logits [B,C], by a rule fitted to what teachers say [K,V,C] and labels [V]."""
    return jax.tree_util.Partial(_fused_by, rules.rule(name)(logits, labels))


def _fused_by(rule: Callable[[Array], Array], teacher: TeacherOutputs) -> Array:
    return rules.log_probs(rule(teacher.logits))


@dataclasses.dataclass(frozen=True)
class Fuser:
    """(variables, teacher outputs) -> fused logits [B,C]: one Dense layer on the teachers' `tap`."""

    model: Model
    tap: str  # "logits" | "embedding"

    def __call__(self, variables: PyTree, teacher: TeacherOutputs) -> Array:
        return self.model.apply(variables, concatenated(teacher, self.tap))[0].logits


def fused_networks(family: Sequence[Member]) -> tuple[str, ...]:
    """The taps whose fused network a family's recipes read."""
    asked = (member.recipe.prepare for member in family)
    others = ("", CLASSIFIERS, RESCALED, *rules.FITTED_RULES)
    return tuple(dict.fromkeys(name for name in asked if name not in others))


def classifiers(ensemble: Ensemble, scale: float = 1.0) -> Callable[[tuple[Array, ...]], Array]:
    """K embeddings [B,D_k] -> logits [K,B,C], by the linear layer with which each teacher reads its own.

    Over `scale`: what the heads must say of a student that multiplies this by its own `head_scale`. Raises
    UserError for a teacher without such a layer.
    """
    kernels, biases, scales = [], [], []
    for own in ensemble:
        heads = linear_heads(own.variables, stacked=1)
        if heads is None:
            raise UserError(f"{own.model.name}: as a teacher it has no linear layer that reads its embedding")
        kernels += list(heads["kernel"][:, 0])
        biases += list(heads["bias"])
        scales += [np.float32(own.model.head_scale / scale)] * len(heads["bias"])
    return jax.tree_util.Partial(_classify, tuple(kernels), tuple(biases), tuple(scales))


def _classify(
    kernels: tuple[Array, ...],
    biases: tuple[Array, ...],
    scales: tuple[np.float32, ...],
    embeddings: tuple[Array, ...],
) -> Array:
    each = zip(embeddings, kernels, biases, scales)
    return jnp.stack([scale * (x @ kernel + bias) for x, kernel, bias, scale in each])


def _check_heads(models: Sequence[Model], split: Split) -> None:
    """Raise UserError for a network that says something else than its linear heads do, of drawn weights.

    Networks without such heads are refused where these are read.
    """
    image = loading.scale(split.dataset.train_images[:1])
    for model in dict.fromkeys(models):
        if not model.is_network:
            continue
        if linear_heads(jax.eval_shape(model.init, jax.random.key(0), image)) is None:
            continue
        logits, expected = map(np.asarray, _by_heads(model, image))
        if not np.allclose(logits, expected, rtol=0.0, atol=1e-2 * np.abs(expected).max()):
            raise UserError(
                f"config.students.modes: the logits of {model.name} are not what its heads say of its "
                "embedding; to reuse classifiers they must be, but for a factor `head_scale` of its module"
            )


@partial(jax.jit, static_argnums=0)
def _by_heads(model: Model, image: Array) -> tuple[Array, Array]:
    """What a network says of images by its first head, drawn anew, and what that says of the embedding."""
    variables, keys = model.init(jax.random.key(0), image), jax.random.split(jax.random.key(1))
    params = variables["params"]
    heads = {
        name: jax.random.normal(key, params["heads"][name].shape)
        for name, key in zip(("kernel", "bias"), keys)
    }
    outputs, _ = model.apply({**variables, "params": {**params, "heads": heads}}, image)
    bias = heads["bias"][0].reshape((1,) * (outputs.embedding.ndim - 1) + (-1,))
    read = jnp.tensordot(outputs.embedding, heads["kernel"][0], axes=1) + bias
    return outputs.heads[0], model.head_scale * read


def fuser_stage(tap: str) -> str:
    """The stage, and so the checkpoint folder, of one fused network."""
    return f"fuser-{tap}"


def fuser_job(
    config: ConfigDict, split: Split, tap: str, ensemble: Ensemble, ask: Callable = population.map_blocks
) -> Job:
    """Fitting the Dense layer on the labelled images, as the paper does: <= 50 epochs, patience 5.

    With `population.zeros_like_output` no teacher is asked: only the shapes are right.
    """
    dataset = split.dataset
    if dataset.is_dense:
        raise UserError(
            f"config.students.modes: a network on the teachers' {tap} is fitted first, which can be where an "
            "image has one label, and not where its places have; must be other modes"
        )
    seen, ensemble = jobs.with_given_logits(jobs.examples(config, split), ensemble)
    models, variables = population.frozen_parts(ensemble)
    needs = ("embedding",) if tap == "embedding" else ()

    @jax.jit
    def taps(variables: tuple[PyTree, ...], image: Array, given_logits: Array | None) -> Array:
        image = loading.scale(image)
        return concatenated(population.apply_ensemble(models, variables, image, needs, given_logits), tap)

    images = ask(lambda *part: taps(variables, *part), dataset.train_images, seen.given_logits)
    num_classes, width = dataset.num_classes, images.shape[-1]
    model = build_model("mlp(hidden=())", Task(num_classes, 1, (0.0,) * width, (1.0,) * width))
    stage = fuser_stage(tap)
    num_steps = max(1, len(split.train) // config.train.batch_size)
    return jobs.make(
        config,
        stage=stage,
        model=model,
        recipes=(SUPERVISED,),
        members=(0,),
        names=(f"Dense on {tap}",),
        hyper={
            "weight_decay": np.zeros(1, np.float32),
            "label_smoothing": np.zeros(1, np.float32),
            "target": np.zeros(1, np.int32),
        },
        temperatures=(1.0,),
        order=lambda epoch: loading.epoch_order(
            split.train,
            num_steps=num_steps,
            batch_size=config.train.batch_size,
            key=(config.seed, seed_of(stage), epoch),
            labels=jobs.balanced_by(config, split),
        ),
        shown=jobs.Shown(
            dataclasses.replace(seen, image=jnp.asarray(images), given_logits=None),
            (jnp.asarray(images[split.val]), jnp.asarray(dataset.train_labels[split.val])),
        ),
        epochs=50,
        eval_every=1,
        patience=5,
        seeded_by=stage,
        augment=False,
    )


def concatenated(teacher: TeacherOutputs, tap: str) -> Array:
    """All teachers' logits or embeddings side by side, as images [B,1,1,D] for a linear network."""
    parts = tuple(teacher.logits) if tap == "logits" else teacher.embedding
    return jnp.concatenate(parts, axis=-1)[:, None, None, :]
