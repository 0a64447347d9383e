"""From trained populations to predictions: which students are chosen, their logits and their costs.

Selection reads validation only. The test images are seen here, once, by the members that make a row.
"""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from scipy.special import log_softmax

from mtkd_jax import mesh
from mtkd_jax.config import AUTO, COHORT, control_and_mode, positive_class, row_of
from mtkd_jax.data.loading import Split, example_image, flat, flat_logits, scale
from mtkd_jax.engine import forecast, population
from mtkd_jax.engine.training import Fitted
from mtkd_jax.fusion import rules
from mtkd_jax.methods.seams import PLAIN
from mtkd_jax.models.branched import Branched
from mtkd_jax.plans import teachers
from mtkd_jax.plans.plan import Done, Plan, Stage, ensemble_of, left_out
from mtkd_jax.plans.students import PREFERRED_ALPHA, Cell, choose, finite_members, members_of
from mtkd_jax.results import bodies, complexity, linear, lookup, outside
from mtkd_jax.runs.predictions import Group, Predictions
from mtkd_jax.system import interrupts
from mtkd_jax.tasks import kinds
from mtkd_jax.types import Array, DataSet, Ensemble, Images, Model, Outputs, Population, PyTree, Recipe

SAVED = outside.SAVED  # what an interrupted evaluation says
LATENCY_BATCHES = (1, 256)
Cost = TypeVar("Cost", int, float)  # parameters, FLOPs, seconds
ROLES = {"baseline": "baseline", "control": "control"}  # every other mode has the role of its stage


def predict(
    config: ConfigDict, split: Split, stages: Plan, done: Done, notes: Sequence[str] = ()
) -> Predictions:
    """Validation and test logits of every teacher and of the chosen (alpha, T) of every mode, with costs."""
    begun_by = {stage.name: stage.begun_by for stage in stages}
    groups = [
        *(
            _teacher_group(config, name, split, [*(done[one] for one in begun_by.get(name, ())), fitted])
            for name, fitted in done.items()
            if name.startswith(teachers.STAGE_PREFIX)
        ),
        *([] if split.dataset.is_dense else [_linear_group(split)]),
        *_student_groups(config, split, stages, done),
    ]
    diverged = [left_out(name, fitted) for name, fitted in done.items() if fitted.diverged]
    num_teachers = _number_of_teachers(done)
    impossible = [
        f"Left out, for the {num_teachers} teachers that are left: {mode} needs {number} teachers."
        for mode, number in _unfit_modes(stages, num_teachers).items()
    ]
    notes = (
        *split.dataset.notes,
        *notes,
        *_of_what(split.dataset),
        *_balancing(config),
        *dict.fromkeys(stage.note for stage in stages if stage.note),
        *diverged,
        *impossible,
    )
    of_other_images: dict[str, Any] = {}
    if outside.is_asked(config):
        networks = {one.key: networks_of(stages, done, one) for one in groups if one.role != "linear"}
        groups, of_other_images = outside.ask(config, split, groups, networks)
    averages, of_averages = _averages(stages, groups)
    groups += [*averages, *_cohort_groups(split, stages, done, groups)]
    further = {"ensemble_beside": _asked_together(ensemble_of(done), split)}
    predicted = _predictions(config, split, groups, (*notes, *of_averages), **further, **of_other_images)
    measured = complexity_of(config, split, stages, done, predicted)
    return dataclasses.replace(predicted, complexity=measured)


def complexity_of(
    config: ConfigDict, split: Split, stages: Plan, done: Done, predicted: Predictions
) -> dict[str, Any] | None:
    """How hard targets are for the student that validation chooses: {"num_images", "student", "rows"}.

    A row {"of", "drawn", "trained"} each: what the labels, one teacher (the mean over all), the teachers by
    mean_probs and the student itself say of `report.complexity` training images, by the kernel of
    a network of the student's architecture that is drawn for this, not of that the student began as, and of
    the student as it is trained. None where that is 0 or there is no student.
    """
    chosen, number = lookup.chosen_student(predicted), config.report.complexity
    if chosen is None or not number:
        return None
    interrupts.check(SAVED)
    group, _ = chosen
    model, trained = network_of(stages, done, *chosen)
    dataset, rows = split.dataset, complexity.rows(split, number)
    images = dataset.train_images[rows]
    drawn = model.init(jax.random.key(config.seed), scale(jnp.asarray(images[:1])))
    said = [logits(own, dataset.train_images, "train", rows) for own in ensemble_of(done)]
    each = np.exp(log_softmax(np.concatenate(said), axis=-1))
    own = model.apply(trained, scale(jnp.asarray(images)))[0].logits
    targets = {
        "labels": [np.eye(dataset.num_classes)[dataset.train_labels[rows]]],
        "one teacher": list(each),
        "mean_probs": [each.mean(axis=0)],
        "the student": [np.exp(log_softmax(np.asarray(own), axis=-1))],
    }
    kernels = {"drawn": complexity.kernel(model, drawn, images)}
    kernels["trained"] = complexity.kernel(model, trained, images)

    def measure(kernel: np.ndarray, of: Sequence[np.ndarray]) -> float:
        each = [complexity.supervision_complexity(kernel, complexity.centred(probs)) for probs in of]
        return float(np.mean(each))

    return {
        "num_images": number,
        "student": {name: getattr(group, name) for name in ("name", "transfer", "architecture")},
        "rows": [
            {"of": name, **{when: measure(kernel, of) for when, kernel in kernels.items()}}
            for name, of in targets.items()
        ],
    }


def predict_students(config: ConfigDict, split: Split, stages: Plan, done: Done) -> Predictions:
    """What `predict` says of the rows of students, which is all that they are compared by."""
    groups = _student_groups(config, split, stages, done)
    averages, _ = _averages(stages, groups)
    return _predictions(config, split, [*groups, *averages])


def _student_groups(config: ConfigDict, split: Split, stages: Plan, done: Done) -> list[Group]:
    groups, unfit = [], _unfit_modes(stages, _number_of_teachers(done))
    for (transfer, mode, model), trained in rows_of(stages, done).items():
        finite = any(finite_members(fitted, stage.family, mode) for stage, fitted in trained)
        if finite and mode not in unfit:
            groups.append(_student_group(config, split, group_key(transfer, mode, model), mode, trained))
    return groups


def _number_of_teachers(done: Done) -> int:
    return sum(one.num_members for one in ensemble_of(done))


def _predictions(
    config: ConfigDict, split: Split, groups: Sequence[Group], notes: Sequence[str] = (), **further: Any
) -> Predictions:
    dataset = split.dataset
    rows, labels = np.arange(len(dataset.test_labels), dtype=np.int32), dataset.test_labels
    val_labels, groups_of_test = dataset.train_labels[split.val], dataset.test_groups
    if groups_of_test is None and dataset.is_dense:
        groups_of_test = rows
    if groups_of_test is not None:
        further["test_groups"] = of_places(groups_of_test, labels)
    if dataset.is_dense:
        further |= {
            "test_places": np.nonzero(labels >= 0)[1].astype(np.int32),
            "num_places": labels.shape[1],
            "test_goals": {name: goal[labels >= 0] for name, goal in (dataset.test_goals or {}).items()},
        }
    return Predictions(
        dataset=dataset.name,
        class_names=dataset.class_names,
        sizes={
            "train": len(split.train),
            "unlabelled": len(split.pool) if "unlabelled" in config.students.transfer else 0,
            **({} if split.other is None else {"other": len(split.other)}),
            "val": len(split.val),
            "test": len(dataset.test_labels),
        },
        val_labels=flat(val_labels, val_labels),
        test_labels=flat(labels, labels),
        val_index=of_places(split.val, val_labels),
        test_index=of_places(rows, labels),
        rules=tuple(config.fusion.rules),
        groups=tuple(groups),
        common_alpha=common_alpha(config),
        notes=tuple(notes),
        positive=positive_class(config, dataset.class_names),
        false_alarm_rate=config.report.false_alarm_rate,
        margin=config.report.margin,
        metrics=tuple(config.report.metrics),
        choose=config.export.choose,
        cascade_tolerance=config.report.cascade_tolerance,
        val_groups=of_places(_groups(split), val_labels),
        task=dataset.task,
        always_valid=config.students.num_seeds == AUTO,
        **further,
    )


def of_places(values: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Values [n] of examples with labels [n] or [n,L] as those of their places that are there, [n] or [P]."""
    return values if labels.ndim == 1 else np.repeat(values, (labels >= 0).sum(axis=1))


def _groups(split: Split) -> np.ndarray:
    """The group of every validation example [V]; each its own where the data names none."""
    groups = split.dataset.train_groups
    return np.arange(len(split.val), dtype=np.int32) if groups is None else groups[split.val]


def _unfit_modes(stages: Plan, num_teachers: int) -> dict[str, int]:
    """{mode: the least teachers it can learn from}, over its arguments, where fewer are left."""
    needed: dict[str, int] = {}
    for member in (member for stage in stages for member in stage.family):
        needed[member.mode] = max(needed.get(member.mode, 0), member.recipe.min_teachers)
    return {mode: number for mode, number in needed.items() if number > num_teachers > 0}


def _of_what(dataset: DataSet) -> list[str]:
    """What a reader must know of numbers that are not of whole images."""
    if not dataset.is_dense:
        return []
    place = kinds.named(dataset.task).place
    return [
        f"Every number is over {place}s, {dataset.test_labels.shape[1]:,} of an image, where there is one "
        "with a label: accuracies, NLL and all that is told of test images in words. What is resampled for "
        "an interval is the image."
    ]


def _balancing(config: ConfigDict) -> list[str]:
    """What a reader must know of a training that made up for rare classes."""
    found = []
    if config.data.sampling == "balanced":
        found.append("Training draws every class equally often (data.sampling).")
    if config.train.class_weights == "balanced":
        found.append("The hard labels of class c weigh n / (C n_c) in training (train.class_weights).")
    if found:
        # One yardstick, the images as they are, for every run and choice; what a detector is worth at the
        # price its false alarms have is told by its operating point, not by the mix of classes.
        found.append("Every choice is by the validation NLL of the images as they are: no class weighs more.")
    return found


def common_alpha(config: ConfigDict) -> float:
    """The grid's alpha nearest to 0.25, at which all modes are shown beside their own choice."""
    return min(config.students.alphas, key=lambda alpha: (abs(alpha - PREFERRED_ALPHA), alpha))


@lru_cache
def costs(model: Model, image_shape: tuple[int, ...], dtype: str) -> dict:
    """Parameters, forward FLOPs of one example, and latency in ms a batch, of one network.

    FLOPs are what the compiler counts in the forward, with all rounds of its loops; latencies are medians on
    this machine, taken once for all rows of the same network. Neither depends on the weights: they are zeros
    here.
    """
    image = np.zeros((1, *image_shape), dtype)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.eval_shape(scale, image))
    variables = jax.device_put(jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes))
    forward = jax.jit(partial(_answers, model))
    traced = forward.trace(variables, image)
    analysis = traced.lower().compile().cost_analysis() or {}
    further = forecast.further_rounds(traced.jaxpr.jaxpr)
    return {
        "params": sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        "flops": float(analysis["flops"]) + further if "flops" in analysis else None,
        "latency_ms": {str(n): _latency(forward, variables, image, n) for n in LATENCY_BATCHES},
    }


def _answers(model: Model, variables: PyTree, image: Array) -> Array:
    """Logits [B,C] of a network; of branches on one stem [P,B,C], which it computes once.

    Written out, for the FLOPs of a loop would be counted once.
    """
    if not isinstance(model, Branched):
        return model.apply(variables, scale(image))[0].logits
    each = (model.branch(variables, number) for number in range(model.num_branches))
    return jnp.stack([model.one.apply(own, scale(image))[0].logits for own in each])


def network_of(stages: Plan, done: Done, group: Group, position: int) -> tuple[Model, PyTree]:
    """Network and variables of one member of a group of teachers or students."""
    trained, _ = networks_of(stages, done, group)
    return trained.model, population.take(trained.variables, position)


def _cell_of(group: Group) -> Cell:
    """The point of the grid that a row of students was chosen at."""
    if group.alpha is None or group.temperature is None:
        raise ValueError(f"{group.key} was chosen at no point of a grid")
    return Cell(group.alpha, group.temperature, tuple(group.arguments.items()))


def networks_of(stages: Plan, done: Done, group: Group) -> outside.Network:
    """The members of a group of teachers or students, and their recipe's `mutual` where they keep members."""
    if group.role == "teacher":
        return done[group.key.replace("/", "-", 1)].finite_members, None
    cell, found, mutual = _cell_of(group), [], None
    for stage in stages:  # several, where seeds were added later
        fitted = done[stage.name]
        if stage.transfer == group.transfer and fitted.population.model.name == group.architecture:
            members = finite_members(fitted, stage.family, group.name, cell)
            if members:
                found.append(population.members(fitted.population, members))
                mutual = _mutual(stage.family[members[0]].recipe)
    if not found:
        raise ValueError(f"{group.key} was not trained by this run")
    return population.concatenate(found), mutual


def _mutual(recipe: Recipe) -> Callable[[Outputs], Array] | None:
    """How a student tells what it disagrees about; None of one head that says nothing else of it."""
    keeps_members = recipe.num_heads(2) > 1 or recipe.mutual is not PLAIN.mutual
    return recipe.mutual if keeps_members else None


def decide(ensemble: Ensemble, rule: str) -> Callable[[Array], Array]:
    """Images [b,h,w,c] as networks see them -> log-probabilities [b,C] of all teachers fused by a rule.

    The rule has probabilities and is not fitted. Members are computed one after the other, which is the fast
    way for convolutions on a CPU and no slow one elsewhere, and makes a small program.
    """
    fuse = rules.rule(rule)
    parts = [(one.model, jax.tree.map(np.asarray, one.variables)) for one in ensemble]

    def log_probs(images: Array) -> Array:
        each = [
            jax.lax.map(lambda own, model=model: model.apply(own, images)[0].logits, variables)
            for model, variables in parts
        ]
        return rules.log_probs(fuse(jnp.concatenate(each)))

    return log_probs


def _teacher_group(config: ConfigDict, stage: str, split: Split, trained: Sequence[Fitted]) -> Group:
    """The row of the teachers that the last of several stages ended with; the others came before it."""
    own = trained[-1].finite_members
    return Group(
        key=stage.replace("-", "/", 1),
        name=own.model.name,
        role="teacher",
        method="",
        transfer="",
        alpha=None,
        temperature=None,
        members=own.names,
        train_seconds=None if not own.model.is_network else sum(fitted.seconds for fitted in trained),
        train_flops=_train_flops(config, split, trained),
        **_outputs(own, split),
    )


def _train_flops(config: ConfigDict, split: Split, trained: Sequence[Fitted]) -> float | None:
    """FLOPs of all training steps of stages, with what is not deployed; None of any not trained here.

    None as well where the compiler counts none.
    """
    image, found = example_image(split), 0.0
    for fitted in trained:
        if fitted.network_steps is None or fitted.network is None:
            return None
        of_image = forecast.step_flops(fitted.network, image.shape)
        found += fitted.network_steps * config.train.batch_size * of_image
    return found or None


def _linear_group(split: Split) -> Group:
    """The row of a linear model on the pixels, of the labels that the teachers have."""
    interrupts.check(SAVED)
    dataset = split.dataset
    begun = time.perf_counter()
    num_features = linear.pixels(dataset.train_images, split.train[:1]).shape[1]
    rows = linear.sample(split.train, num_features, dataset.num_classes)
    train = linear.pixels(dataset.train_images, rows)
    val, test = linear.linear_logits(
        train,
        dataset.train_labels[rows],
        linear.pixels(dataset.train_images, split.val),
        dataset.train_labels[split.val],
        linear.pixels(dataset.test_images, np.arange(len(dataset.test_labels))),
        num_classes=dataset.num_classes,
    )
    size = train.shape[1]
    return Group(
        key="linear/pixels",
        name="linear on pixels",
        role="linear",
        architecture=f"linear on {size} pixels",
        method="",
        transfer="",
        alpha=None,
        temperature=None,
        members=("linear",),
        val=val[None],
        test=test[None],
        params=(size + 1) * dataset.num_classes,
        flops=2.0 * size * dataset.num_classes,
        train_seconds=time.perf_counter() - begun,
    )


def rows_of(stages: Plan, done: Done) -> dict[tuple[str, str, str], list[tuple[Stage, Fitted]]]:
    """{(transfer, mode, architecture as members say it): the stages that trained its students}, a row each.

    There are several stages where a choice of arguments makes several programs. The rows of one architecture
    follow each other.
    """
    rows: dict[tuple[str, str, str], list[tuple[Stage, Fitted]]] = {}
    for stage in stages:
        for mode, model in dict.fromkeys((member.mode, member.model) for member in stage.family):
            rows.setdefault((stage.transfer, mode, model), []).append((stage, done[stage.name]))
    models = list(dict.fromkeys(model for _, _, model in rows))
    return dict(sorted(rows.items(), key=lambda row: models.index(row[0][2])))


def _method(config: ConfigDict, mode: str, cell: Cell) -> str:
    """A mode with those of its `students.arguments` of which there is no choice."""
    _, asked = control_and_mode(mode)
    given, chosen = config.students.arguments.get(asked, {}), dict(cell.arguments)
    fixed = ", ".join(f"{name}={value!r}" for name, value in given.items() if name not in chosen)
    return f"{mode}({fixed})" if fixed else mode


def _student_group(
    config: ConfigDict, split: Split, key: str, mode: str, trained: Sequence[tuple[Stage, Fitted]]
) -> Group:
    """The row of one mode's students, at the point of the grid that validation chooses over its stages."""
    members, val_nll, seconds = [], [], 0.0
    for stage, fitted in trained:
        own = members_of(stage.family, mode)
        members += [stage.family[m] for m in own]
        val_nll += fitted.val_nll[own].tolist()
        with_peers = sum(member.mode == mode for member in stage.family)
        seconds += fitted.seconds * with_peers / len(stage.family)
    cell, grid = choose(members, val_nll)
    with_cell = _stages_with(trained, mode, cell)
    stage = with_cell[0][0]
    role = ROLES.get(mode, stage.role)
    chosen, seeds = _students_at(with_cell, mode, cell)
    at_common, common_cell = None, cell._replace(alpha=common_alpha(config))
    if role == "student" and (with_common := _stages_with(trained, mode, common_cell)):
        common, _ = _students_at(with_common, mode, common_cell)
        if common.num_members:
            at_common = _logits_of_test(common, split)
    return Group(
        key=key,
        name=mode,
        role=role,
        method=_method(config, mode, cell),
        transfer=stage.transfer,
        alpha=cell.alpha,
        temperature=cell.temperature,
        arguments=dict(cell.arguments),
        members=tuple(f"seed {seed}" for seed in seeds),
        common_test=at_common,
        grid=tuple(grid),
        train_seconds=seconds,
        num_in_cohort=stage.family[0].recipe.num_in_cohort,
        **_outputs(chosen, split),
    )


def _stages_with(
    trained: Sequence[tuple[Stage, Fitted]], mode: str, cell: Cell
) -> list[tuple[Stage, Fitted]]:
    """The stage that has a cell of a row and those that added seeds to it; none where no stage has it."""
    return [(stage, fitted) for stage, fitted in trained if members_of(stage.family, mode, cell)]


def _students_at(own: Sequence[tuple[Stage, Fitted]], mode: str, cell: Cell) -> tuple[Population, list[int]]:
    """The students of a row at one cell, of the stages that have it, and their seeds; no broken-down ones."""
    finite = [finite_members(fitted, stage.family, mode, cell) for stage, fitted in own]
    parts = [population.members(fitted.population, rows) for (_, fitted), rows in zip(own, finite)]
    seeds = [stage.family[m].seed for (stage, _), rows in zip(own, finite) for m in rows]
    return population.concatenate(parts), seeds


def _averages(stages: Plan, groups: Sequence[Group]) -> tuple[list[Group], list[str]]:
    """The rows that several stages make together: their students' mean probabilities, seed by seed.

    And a note on each, of which rows it is: one whose students broke down is not there.
    """
    named: dict[tuple[str, str, str], list[str]] = {}
    for stage in stages:
        if stage.averaged:
            for mode, model in dict.fromkeys((member.mode, member.model) for member in stage.family):
                keys = named.setdefault((stage.transfer, stage.averaged, model), [])
                keys.append(group_key(stage.transfer, mode, model))
    found: list[Group] = []
    notes: dict[str, None] = {}
    for (transfer, name, model), keys in named.items():
        own = [group for group in groups if group.key in keys]
        if _shared(own):
            of = ", ".join(group.name for group in own)
            found.append(average(own, transfer, name, model))
            notes[f"{name} is the mean of {of}, at the cost of {len(own)} networks."] = None
        else:
            notes[f"{name} ({transfer}) is left out: no seed is left in all of its rows."] = None
    return found, list(notes)


def _shared(groups: Sequence[Group]) -> list[str]:
    """The members that all groups have; of no groups none."""
    first = groups[0].members if groups else ()
    return [member for member in first if all(member in group.members for group in groups)]


def average(groups: Sequence[Group], transfer: str, name: str, model: str = "") -> Group:
    """The row of log mean_g softmax(z_g) over groups g, of the members that all have; costs are sums."""
    shared = _shared(groups)

    def mean(split: str) -> np.ndarray:
        return _log_mean_probs(
            [getattr(group, split)[[group.members.index(one) for one in shared]] for group in groups]
        )

    return Group(
        key=group_key(transfer, name, model),
        name=name,
        role="average",
        architecture=" + ".join(dict.fromkeys(group.architecture for group in groups)),
        method=name,
        transfer=transfer,
        alpha=None,
        temperature=None,
        members=tuple(shared),
        val=mean("val"),
        test=mean("test"),
        params=_total([group.params for group in groups]),
        flops=_total([group.flops for group in groups]),
        latency_ms={size: sum(group.latency_ms[size] for group in groups) for size in groups[0].latency_ms},
        train_seconds=_total([group.train_seconds for group in groups]),
    )


def _total(values: Sequence[Cost | None]) -> Cost | None:
    """Their sum; None as soon as one is not known."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _log_mean_probs(each: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """log mean_k softmax(z_k), [...,C], of logits z_k [...,C] of K networks."""
    log_probs = [logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True) for logits in each]
    return np.logaddexp.reduce(log_probs, axis=0) - np.float32(np.log(len(each)))


def _cohort_groups(split: Split, stages: Plan, done: Done, groups: Sequence[Group]) -> list[Group]:
    """A row of reference for each row of students that learned with peers: what all of these say together."""
    leaders = {group.key: group for group in groups if group.role == "student" and group.num_in_cohort > 1}
    rows = {group_key(*row): trained for row, trained in rows_of(stages, done).items()}
    return [_cohort_group(split, group, rows[key]) for key, group in leaders.items()]


def _cohort_group(split: Split, leader: Group, trained: Sequence[tuple[Stage, Fitted]]) -> Group:
    """The row of log mean_p softmax(z_p) over the peers p of each student, without any that broke down."""
    interrupts.check(SAVED)
    cell = _cell_of(leader)
    cohorts = [
        _cohort_of(stage, fitted, m)
        for stage, fitted in trained
        for m in finite_members(fitted, stage.family, leader.name, cell)
    ]
    ends = np.cumsum([cohort.num_members for cohort in cohorts])[:-1]
    everybody = population.concatenate(cohorts)
    val = logits(everybody, split.dataset.train_images, "train", split.val)
    test = np.split(logits(everybody, split.dataset.test_images, "test"), ends)
    return Group(
        key=f"{leader.key}{COHORT}",
        name=f"{leader.name}{COHORT}",
        role="cohort",
        architecture=leader.architecture,
        method=f"mean probabilities of the peers of {leader.method}",
        transfer=leader.transfer,
        alpha=None,
        temperature=None,
        members=leader.members,
        val=np.stack([_log_mean_probs(cohort) for cohort in np.split(val, ends)]),
        test=np.stack([_log_mean_probs(cohort) for cohort in test]),
        peers_apart=np.array([_apart(cohort) for cohort in test], np.float32),
        num_in_cohort=leader.num_in_cohort,
        train_seconds=leader.train_seconds,
        **_costs_of_cohort(leader, trained[0][1].branched, split),
    )


def _cohort_of(stage: Stage, fitted: Fitted, m: int) -> Population:
    """The finite peers of a student, itself among them: members of its population, or its branches."""
    if fitted.branched is not None and isinstance(model := fitted.branched.model, Branched):
        whole = population.take(fitted.branched.variables, m)
        each = population.stack([model.branch(whole, number) for number in range(model.num_branches)])
        return Population(model.deployed, each, {}, tuple(map(str, range(model.num_branches))))
    names, student = fitted.population.names, stage.family[m]
    of_cohort = [n for n, one in enumerate(stage.family) if one._replace(peer=student.peer) == student]
    finite = [n for n in of_cohort if names[n] not in fitted.diverged]
    return population.members(fitted.population, finite)


def _apart(cohort: np.ndarray) -> float:
    """The mean total variation of two peers' predictions, of logits [P,N,C]; NaN of one peer."""
    probs = np.exp(cohort - np.logaddexp.reduce(cohort, axis=-1, keepdims=True))
    pairs = [np.abs(p - q).sum(axis=-1).mean() / 2 for p, q in itertools.combinations(probs, 2)]
    return float(np.mean(pairs)) if pairs else float("nan")


def _costs_of_cohort(leader: Group, branched: Population | None, split: Split) -> dict:
    """What an image costs that all peers are asked about; branches share their stem."""
    if branched is not None:
        images = split.dataset.test_images
        return costs(branched.model, images.shape[1:], str(images.dtype))
    number = leader.num_in_cohort
    return {
        "params": None if leader.params is None else number * leader.params,
        "flops": None if leader.flops is None else number * leader.flops,
        "latency_ms": {size: number * latency for size, latency in leader.latency_ms.items()},
    }


def group_key(transfer: str, mode: str, model: str = "") -> str:
    """The key of one mode's row."""
    return f"students/{transfer}/{row_of(mode, model)}"


def _outputs(own: Population, split: Split) -> dict:
    """Logits and costs, as fields of a Group; Interrupted where the process has been asked to stop.

    Of teachers who are known by what they say it is that, and nobody knows what they cost.
    """
    mesh.check_interrupts(SAVED)
    images = split.dataset.test_images
    known = own.model.is_network
    return {
        "architecture": own.model.name,
        "val": flat_logits(
            logits(own, split.dataset.train_images, "train", split.val), split.dataset.train_labels[split.val]
        ),
        "test": _logits_of_test(own, split),
        **({"beside": _beside(own, split)} if split.dataset.is_dense and known else {}),
        **(costs(own.model, images.shape[1:], str(images.dtype)) if known else {"params": None}),
        "body": bodies.of_members(own, images) if known else {},
    }


def _logits_of_test(own: Population, split: Split) -> np.ndarray:
    dataset = split.dataset
    return flat_logits(logits(own, dataset.test_images, "test"), dataset.test_labels)


def _beside(own: Population, split: Split) -> dict[str, np.ndarray]:
    """What else members predict of the test places, {name: [M,P,d]}."""
    dataset = split.dataset
    found = population.beside(own, dataset.test_images) | _asked(own, split)
    return {name: flat_logits(one, dataset.test_labels) for name, one in found.items()}


def _asked(own: Population, split: Split) -> dict[str, np.ndarray]:
    """What every member says where its task asks in another way, {name: [M,n,L,d]}."""
    members = [population.members(own, [m]) for m in range(own.num_members)]
    networks = [lambda images, one=one: population.logits(one, images)[0] for one in members]
    return {
        name: np.stack([ask(network, split.dataset.test_images[:]) for network in networks])
        for name, ask in kinds.named(split.dataset.task).asks.items()
    }


def _asked_together(ensemble: Ensemble, split: Split) -> dict[str, np.ndarray]:
    """The same of all teachers fused by mean_probs, {name: [P,d]} of the test places that are there."""
    dataset = split.dataset
    if not ensemble or not all(one.model.can_be_asked for one in ensemble):
        return {}

    def fused(images: np.ndarray) -> np.ndarray:
        logits = np.concatenate([population.logits(one, images) for one in ensemble])
        return np.asarray(rules.log_probs(rules.mean_probs(jnp.asarray(logits))))

    asks = kinds.named(dataset.task).asks
    return {name: flat(ask(fused, dataset.test_images[:]), dataset.test_labels) for name, ask in asks.items()}


def logits(
    own: Population, images: np.ndarray | Images, part: str, rows: np.ndarray | slice = slice(None)
) -> np.ndarray:
    """Logits [M,n,C] of every member on rows of the data's images of a part, "train" or "test".

    They are computed, or looked up where the members are known by what they say.
    """
    if not own.model.can_be_asked:
        return own.variables[part][:, rows]
    return population.logits(own, images[rows])


def _latency(
    forward: Callable[..., Array], variables: PyTree, image: np.ndarray, batch_size: int, num_calls: int = 50
) -> float:
    batch = jax.device_put(np.repeat(image, batch_size, axis=0))
    forward(variables, batch).block_until_ready()
    seconds = []
    for _ in range(num_calls):
        begun = time.perf_counter()
        forward(variables, batch).block_until_ready()
        seconds.append(time.perf_counter() - begun)
    return 1e3 * statistics.median(seconds)
