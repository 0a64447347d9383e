"""Plans whose students see other images or other labels than those of the data."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from functools import partial

import numpy as np
from ml_collections import ConfigDict
from scipy import special

from mtkd_jax.addresses import build_recipe
from mtkd_jax.config import (
    GIVEN,
    LABELLED,
    OTHER,
    UNLABELLED,
    first_seeds,
    given_teachers,
    number_of_teachers,
)
from mtkd_jax.data import loading
from mtkd_jax.data.loading import Split
from mtkd_jax.engine import inversion, population, teacher_cache
from mtkd_jax.engine.jobs import Job
from mtkd_jax.methods.lineage import OfUnlabelled
from mtkd_jax.methods.seams import SUPERVISED
from mtkd_jax.plans import sequences, students
from mtkd_jax.plans.plan import Done, Plan, Stage, ensemble_of
from mtkd_jax.plans.schemes.direct import recipe_for, with_baseline
from mtkd_jax.plans.schemes.lineages import taught_by_own
from mtkd_jax.plans.students import Family
from mtkd_jax.types import Ensemble, UserError


def noisy_student(
    config: ConfigDict,
    split: Split,
    *,
    rounds: int = 3,
    soft: bool = True,
    threshold: float = 0.0,
    balanced: bool = True,
) -> Plan:
    """Teachers label the unlabelled images for students, who label them for the next students, and so on.

    In round 1 all teachers say what the unlabelled images are, which they see as they are; in round r seed s
    has one teacher, seed s of round r - 1. The students see them, and the labelled ones, with `data.augment`
    and their dropout, which are the noise: without any, little is gained. Labels are `soft` or classes; those
    of less confidence than `threshold` are left out. `balanced` lets every class count alike by weights, n /
    (C n_c) for the n_c kept images of class c, where the source repeats images of rare classes. The loss is
    alpha times that of the labelled images and 1 - alpha times that of the unlabelled ones. Students may be
    larger than their teachers (`students.model`). Rows: "noisy_student 1", ... Raises UserError without
    unlabelled images, and for numbers that cannot be.

    Source: Noisy Student, Xie et al. 2020, arXiv 1911.04252.
    """
    if rounds < 1:
        raise UserError(f"config.plan: noisy_student(rounds={rounds}): must be at least 1")
    _check_of_one_label("noisy_student", split)
    transfers = [transfer for transfer in config.students.transfer if transfer != LABELLED]
    if not transfers:
        raise UserError(
            f"config.students.transfer: {config.students.transfer}, but plan noisy_student learns from "
            f"images without a label; it must have {UNLABELLED!r} or {OTHER!r} in it"
        )
    address = f"targets.pseudo_labels(threshold={float(threshold)}, soft={soft})"
    recipe = build_recipe(address, "plan")
    recipe = recipe._replace(aim=OfUnlabelled(recipe.aim))
    direct = with_baseline("noisy_student", config, split)
    stages = []
    for transfer, model in itertools.product(transfers, students.models(config)):
        before: list[tuple[Stage, str]] = []
        for number in range(1, rounds + 1):
            row, is_first = f"noisy_student {number}", not before
            sure = threshold if balanced else None
            stage = taught_by_own(
                config,
                split,
                transfer,
                before,
                row,
                recipe,
                model,
                born_anew=number - 1,
                with_teachers=is_first,
                numbers=partial(_class_weights, config, split, transfer, sure, is_first),
            )
            stages.append(stage)
            before = [(stage, row)]
    return (*direct, *stages)


def data_free(
    config: ConfigDict,
    split: Split,
    *,
    mode: str = "output_avg",
    num_images: int = 2000,
    num_steps: int = 500,
    statistics: float = 1.0,
    smoothness: float = 1.0,
) -> Plan:
    """Students that see no image of the data: theirs are made from the batch statistics of the teachers.

    `num_images` are made of noise in `num_steps` each, as many of every class, by `engine.inversion`, which
    weighs how far their statistics are off and how rough they are. All teachers teach the row "data_free" on
    these alone by `mode`, without labels, in as many steps as all students have. What they know of the data
    are mean and deviation of its channels, and the validation images by which their best weights are chosen.
    The images are made again when a run is gone on with. Raises UserError for teachers without BatchNorm, for
    numbers that cannot be, or a mode that needs more than one head.

    Source: DeepInversion, Yin et al. 2020, arXiv 1912.08795, without images that the student disagrees on.
    """
    for name, value in (("num_images", num_images), ("num_steps", num_steps)):
        if value < 1:
            raise UserError(f"config.plan: data_free({name}={value}): must be at least 1")
    _check_of_one_label("data_free", split)
    if loading.streamed(split) is not None:
        raise UserError(
            f"config.plan: data_free makes images that are held in memory, and those of {split.dataset.name} "
            'are read as they are needed; must be with stream="never"'
        )
    recipe = recipe_for("data_free", mode, number_of_teachers(config) or 1)
    direct = with_baseline("data_free", config, split)
    own = config.copy_and_resolve_references()
    own.students.labelled_fraction = 0.0
    weights, made = {"statistics": statistics, "smoothness": smoothness}, {}
    note = f"Row data_free has seen {num_images:,} images made from the teachers, and none of the data."
    stages = []
    for model in students.models(config):
        family = students.of_model(students.grid(config, "data_free", recipe, alphas=(0.0,)), model)

        def make(done: Done, family: Family = family, computes: bool = True) -> Job:
            ensemble = ensemble_of(done)
            if not inversion.keeps_statistics(ensemble):
                raise UserError(
                    "config.plan: data_free makes images from the statistics of BatchNorm, and the teachers, "
                    f"{', '.join(own.model.name for own in ensemble)}, keep none; must be networks with it"
                )
            if computes and "images" not in made:
                made["images"] = _images_of(config, split, ensemble, num_images, num_steps, **weights)
            blank = np.zeros((num_images, *split.dataset.train_images.shape[1:]))
            images = made["images"] if computes else blank.astype(split.dataset.train_images.dtype)
            seen = dataclasses.replace(split, other=images)
            as_others = students.steps_of_an_epoch(config, split)
            return students.job(own, seen, OTHER, family, ensemble, {}, num_steps=as_others)

        name, transfer = students.stage_name(OTHER, family), config.students.transfer[0]
        outline = partial(make, computes=False)
        stages.append(Stage(name, make, family, transfer, note=note, outline=outline))
    return (*direct, *stages)


def sequence_level(config: ConfigDict, split: Split, *, num_beams: int = 5, mode: str = "") -> Plan:
    """Students of sequences that learn what all teachers say together, in the place of the references.

    The teachers, fused by mean_probs at every token, search the most probable targets of all labelled sources
    with a beam of `num_beams`. Row "sequence_kd" is trained on the first of each beam, row "sequence_inter"
    on the one that is most like the reference (sequence-level interpolation). Their loss is that of labels
    alone or, with a `mode` such as "output_avg", what that makes of these labels and of what the teachers say
    of every token, over the alphas and temperatures of `students`. Validation is on the references; the
    seconds of these rows are without the search. Raises UserError for data that is no sequences of tokens,
    for teachers that are no networks here, and for a mode that has several heads.

    Source: Kim and Rush 2016, arXiv 1606.07947; one teacher, beam 5. Modes such as "output_avg" without this
    plan are their word-level distillation.
    """
    if num_beams < 1:
        raise UserError(f"config.plan: sequence_level(num_beams={num_beams}): must be at least 1")
    if split.dataset.task != "tokens":
        raise UserError(
            f"config.plan: sequence_level is of sequences of tokens, and {split.dataset.name} has none; must "
            "be of a source such as pairs"
        )
    if given_teachers(config):
        raise UserError(
            "config.plan: sequence_level asks teachers what they would say next, and of those of "
            f"{', '.join(GIVEN)} that is not known; it needs networks"
        )
    recipe = recipe_for("sequence_level", mode, num_teachers=2) if mode else SUPERVISED
    direct = with_baseline("sequence_level", config, split)
    note = (
        "Rows sequence_kd and sequence_inter were trained on what the teachers say together, "
        f"of a beam of {num_beams}, in the place of the references."
    )
    beams, stages = sequences.Beams(split, num_beams), []
    rows = {"sequence_kd": sequences.most_probable, "sequence_inter": sequences.nearest}
    for model, (row, choose) in itertools.product(students.models(config), rows.items()):
        family = students.grid(config, row, recipe, *(() if mode else ((1.0,), (1.0,))))
        family = students.of_model(family, model)

        def learn(done: Done, family: Family = family, choose: Callable = choose, asks: bool = True) -> Job:
            ensemble = ensemble_of(done)
            said = sequences.with_targets(split, beams.of(ensemble), choose) if asks else split
            taught_by = ensemble if mode else ()
            return students.job(config, said, "labelled", family, taught_by, {}, routed=bool(mode))

        name = students.stage_name("labelled", family)
        stages.append(
            Stage(name, learn, family, "labelled", note=note, outline=functools.partial(learn, asks=False))
        )
    return (*direct, *stages)


def _images_of(
    config: ConfigDict, split: Split, ensemble: Ensemble, number: int, num_steps: int, **weights: float
) -> np.ndarray:
    """Images like those of the data in shape and dtype, made from the teachers."""
    like = split.dataset.train_images
    in_bytes = like.dtype == np.uint8
    mean, std = (np.asarray(one, np.float32) for one in loading.channel_statistics(split))
    bounds = None if in_bytes else (mean, std)
    found = inversion.invert(
        ensemble, number, like.shape[1:], bounds, num_steps=num_steps, seed=config.seed, **weights
    )
    return np.round(255 * found).astype(np.uint8) if in_bytes else found


def _class_weights(
    config: ConfigDict,
    split: Split,
    transfer: str,
    threshold: float | None,
    shared: bool,
    ensemble: Ensemble,
    computes: bool,
) -> dict[str, np.ndarray]:
    """{"class_weights": [S,C]}: how much unlabelled images of a class count, by what their teachers say.

    Those are one of each seed, or all of them for all seeds if `shared`. Every class counts alike of those
    images that they are sure enough of; every image does where the threshold is None.
    """
    shape = len(first_seeds(config)), split.dataset.num_classes
    if threshold is None or not computes:
        return {"class_weights": np.ones(shape, np.float32)}
    other = split.other if transfer == OTHER else None
    if other is not None:
        said = np.concatenate([population.logits(own, other) for own in ensemble])
    else:
        said = np.concatenate([teacher_cache.logits_of(own, split, split.pool) for own in ensemble])
    probs = special.softmax(said.astype(np.float64), axis=-1)
    each = probs.mean(axis=0, keepdims=True) if shared else probs
    found = np.stack([_balanced_weights(of_seed, threshold) for of_seed in each])
    return {"class_weights": np.broadcast_to(found, shape).astype(np.float32)}


def _balanced_weights(probs: np.ndarray, threshold: float) -> np.ndarray:
    """[C] n / (C' n_c) for the n_c images of class c, of n whose largest of `probs` [u,C] is at least that.

    C' is the number of classes that there are among them; others, and all where n is 0, weigh 0.

    >>> _balanced_weights(np.array([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.1, 0.9]]), 0.5).round(3).tolist()
    [0.667, 2.0]
    """
    classes, num_classes = probs.argmax(axis=1), probs.shape[1]
    counts = np.bincount(classes[probs.max(axis=1) >= threshold], minlength=num_classes)
    is_there = counts > 0
    return np.where(is_there, counts.sum() / (max(is_there.sum(), 1) * np.maximum(counts, 1)), 0.0)


def _check_of_one_label(plan: str, split: Split) -> None:
    """Raise UserError where places of an example have labels, and not the whole."""
    if split.dataset.is_dense:
        raise UserError(
            f"config.plan: {plan} weighs and makes images by their class, and those of {split.dataset.name} "
            "have one for every place; must be another plan"
        )
