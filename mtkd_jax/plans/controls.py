"""Controls: the same students, taught by what knows nothing of their images.

What a mode gains over its controls is what the teachers know of the images; what it shares with them comes
from softer labels, another scale of the loss, or the seeds. A control differs from its mode in the teachers
alone: same recipe, same grid, same seeds, same batches.
"""

from __future__ import annotations

import jax
import numpy as np
from ml_collections import ConfigDict

from mtkd_jax.config import build_recipes
from mtkd_jax.data.loading import Split
from mtkd_jax.engine import population, teacher_cache
from mtkd_jax.methods.features import CLASSIFIERS, RESCALED
from mtkd_jax.methods.seams import configured_stimulus, frozen_teachers
from mtkd_jax.models.given import Given
from mtkd_jax.system.text import seed_of
from mtkd_jax.types import Ensemble, Population, UserError

NOTES = {
    "random_teacher": "Rows random_teacher:MODE were taught by the teachers' networks with weights that "
    "nobody has trained.",
    "shuffled_teacher": "Rows shuffled_teacher:MODE were taught what the teachers say of other training "
    "images, unaugmented: every image has what is said of one other, the same one all the time, so that the "
    "whole has the right frequencies and each image a wrong lesson.",
}
# Batches, and images of each, in which statistics settle: of a momentum of 0.9 nothing of their beginning is
# left after so many, and images of ImageNet's size take 240 MB in all.
NUM_BATCHES, BATCH_SIZE = 50, 32
SHUFFLED = Given("shuffled teachers", None)


def check(config: ConfigDict) -> None:
    """Raise UserError for modes whose controls cannot be: nobody frozen teaches, or more than logits is read.

    Teachers of another's images are known by their logits alone, of images as they are: neither mixed nor
    made. A network that is fitted on the teachers first would be fitted on untrained ones, too, and so teach
    something.
    """
    if config.students.controlled and not config.students.controls:
        raise UserError(
            f"config.students.controlled: {', '.join(config.students.controlled)} would have no controls, "
            "for students.controls is (); must be () with it"
        )
    for field in ("mixup", "cutmix") if "shuffled_teacher" in config.students.controls else ():
        if config.train[field]:
            raise UserError(
                f"config.train.{field}: {config.train[field]:g}, but shuffled_teacher of students.controls "
                "says nothing of mixed images; it must be 0 with it"
            )
    for address in controlled(config):
        for recipe, _ in build_recipes(config, address):
            if recipe.teach is not frozen_teachers:
                why = (
                    "asks its teachers in a way of its own"
                    if recipe.min_teachers
                    else "has no frozen teachers"
                )
                raise UserError(
                    f"config.students.controls: {address} {why}; name other modes in students.controlled"
                )
            is_fitted = recipe.prepare not in (
                "",
                CLASSIFIERS,
                RESCALED,
            )  # those are the control's own teachers'
            if "random_teacher" in config.students.controls and is_fitted:
                raise UserError(
                    f"config.students.controls: {address} fits a network or a rule on its teachers first, "
                    "which random_teacher knows nothing of; name other modes in students.controlled"
                )
            reads_more = recipe.needs or recipe.prepare == "embedding"
            if "shuffled_teacher" in config.students.controls and (
                reads_more or recipe.stimulus is not configured_stimulus
            ):
                raise UserError(
                    f"config.students.controls: {address} asks its teachers for more than the logits of the "
                    "data's images, which is all of shuffled_teacher; name other modes in students.controlled"
                )


def controlled(config: ConfigDict) -> tuple[str, ...]:
    """The modes that have controls."""
    students = config.students
    return (students.controlled or students.modes) if students.controls else ()


def teachers(
    control: str, config: ConfigDict, split: Split, ensemble: Ensemble, computes: bool = True
) -> Ensemble:
    """Who teaches the students of a control; the `ensemble` itself where it is "".

    Where nothing is to be computed only the shapes are right.
    """
    if not control:
        return ensemble
    return {"random_teacher": _untrained, "shuffled_teacher": _shuffled}[control](
        config, split, ensemble, computes
    )


def _untrained(config: ConfigDict, split: Split, ensemble: Ensemble, computes: bool) -> Ensemble:
    """The same networks as they are drawn, none of which any member of this run begins with.

    Their batch statistics are those of training images: without these logits grow with depth, and what should
    be a soft label is a hard one.
    """
    for own in ensemble:
        if not own.model.is_network:
            raise UserError(
                f"config.students.controls: random_teacher is an untrained network, and {own.model.name} are "
                "none that could be; shuffled_teacher alone can be had"
            )
    if not computes:
        return ensemble
    key = jax.random.fold_in(jax.random.key(config.seed), seed_of("random_teacher"))
    images, rng = split.dataset.train_images, np.random.default_rng((config.seed, seed_of("random_teacher")))
    rows = rng.choice(split.train, (NUM_BATCHES, BATCH_SIZE))

    def drawn(place: int, own: Population) -> Population:
        keys = jax.random.split(jax.random.fold_in(key, place), own.num_members)
        variables = population.init(own.model, keys, images.shape[1:])
        if population.STATISTICS in variables:
            seen = images[rows.ravel()].reshape(*rows.shape, *images.shape[1:])
            variables = population.settle_statistics(own.model, variables, seen, keys)
        # What is neither drawn nor learnt, such as the classes of specialists, is the teachers' own.
        given = {name: own.variables[name] for name in set(variables) - {"params", "batch_stats"}}
        return Population(own.model, {**variables, **given}, {}, own.names)

    return tuple(drawn(place, own) for place, own in enumerate(ensemble))


def _shuffled(config: ConfigDict, split: Split, ensemble: Ensemble, computes: bool) -> Ensemble:
    """What all teachers say, of another image of the same set: the labelled ones, or the pool."""
    dataset = split.dataset
    names = tuple(name for own in ensemble for name in own.names)
    said = np.zeros((len(names), *dataset.train_labels.shape, dataset.num_classes), np.float32)
    rng = np.random.default_rng((config.seed, seed_of("shuffled_teacher")))
    pools = (split.pool,) if "unlabelled" in config.students.transfer else ()
    for rows in (split.train, *pools) if computes else ():
        each = np.concatenate([teacher_cache.logits_of(own, split, rows) for own in ensemble])
        said[:, rows] = each[:, others(len(rows), rng)]
    return (Population(SHUFFLED, {"train": said}, {}, names),)


def others(number: int, rng: np.random.Generator) -> np.ndarray:
    """[n] a drawn permutation that is one cycle, so that nothing stays at its place where there are two.

    >>> sorted(others(4, np.random.default_rng(0)).tolist())
    [0, 1, 2, 3]
    """
    order = rng.permutation(number)
    found = np.empty(number, np.int64)
    found[order] = np.roll(order, 1)
    return found
