"""What a run has to be, its configuration and its data together: checked before any work."""

from __future__ import annotations

import jax
import numpy as np
from ml_collections import ConfigDict

from mtkd_jax.addresses import canonical
from mtkd_jax.config import (
    AUTO,
    augmentation,
    check_metrics,
    number_of_teachers,
    positive_class,
    row_of,
    student_models,
    teacher_models,
    trained_addresses,
)
from mtkd_jax.data import augment, loading, tokens
from mtkd_jax.data.loading import Split
from mtkd_jax.engine import forecast
from mtkd_jax.plans import controls, students, teachers
from mtkd_jax.plans.plan import Done, Plan, ensemble_of
from mtkd_jax.system.spelling import hint
from mtkd_jax.tasks import kinds
from mtkd_jax.types import DataSet, Model, PyTree, UserError
from mtkd_jax.validation import check_number_of_teachers

SHARE_OF_PREDICTIONS = 0.5  # of memory, for what networks say of places


def check_data(config: ConfigDict, split: Split) -> None:
    """Raise UserError for networks, rules, augmentation, batches and transfer sets that do not fit the data.

    Everything is traced and nothing computed.
    """
    positive_class(config, split.dataset.class_names)
    controls.check(config)
    check_metrics(config, split.dataset.num_classes)
    if config.train.batch_size > len(split.train):
        raise UserError(
            f"config.train.batch_size: {config.train.batch_size} is more than the {len(split.train)} "
            "training examples; batches are full"
        )
    if config.data.augment.rand_augment and split.dataset.train_images.dtype != np.uint8:
        raise UserError(
            "config.data.augment.rand_augment: changes levels from black to white, and "
            f"{split.dataset.train_images.dtype} images have none that are known; must be () for them"
        )
    if split.dataset.is_dense and config.export.cascade:
        raise UserError(
            "config.export.cascade: hands over whole images that have one class, and here places of an image "
            "have labels; must be False"
        )
    _check_size_of_predictions(config, split)
    _check_shows_labels(config, split.dataset)
    image = loading.example_image(split)
    for address in dict.fromkeys(
        (*teacher_models(config), *student_models(config), *trained_addresses(config))
    ):
        model = teachers.network(split, address)
        _check_says_as_labelled(model, image, split.dataset)
        _check_reads_tokens(model, split.dataset)
    try:
        ours = {**augmentation(config), "own": ()}
        ours["flip"] |= ours.pop("alternating_flip")
        jax.eval_shape(lambda *drawn: augment.augment(*drawn, **ours), jax.random.key(0), image)
    except UserError as error:
        alternates = "alternating_" if config.data.augment.alternating_flip else ""
        at = alternates if str(error).startswith("flip") else ""
        raise UserError(f"config.data.augment.{at}{error}") from None
    batch = jax.ShapeDtypeStruct((config.train.batch_size, *image.shape[1:]), image.dtype)
    for address, one in zip(config.data.augment.own, augmentation(config)["own"]):
        try:
            augment.check_own(one, batch)
        except UserError as error:
            raise UserError(f"config.data.augment.own: {address}: {error}") from None
    for transfer in config.students.transfer:
        students.batches(config, split, transfer)(0)


def _check_says_as_labelled(model: Model, image: PyTree, dataset: DataSet) -> None:
    """Raise UserError for a network that does not say a class for each label of an example [1,h,w,c]."""
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    said = jax.eval_shape(lambda *of: model.apply(*of)[0].logits, variables, image).shape[1:-1]
    if said != (labels := dataset.train_labels.shape[1:]):
        told = [f"{of[0]} places" if of else "the whole" for of in (said, labels)]
        raise UserError(
            f"{model.name}: says a class of {told[0]} of an image, and {dataset.name} has labels of "
            f"{told[1]}; must be another network"
        )


def _check_reads_tokens(model: Model, dataset: DataSet) -> None:
    """Raise UserError for a network that has no place for some of the data's source tokens."""
    needed = tokens.RESERVED + len(dataset.token_names)
    known = getattr(model.module, "source_tokens", needed)
    if known < needed:
        raise UserError(
            f"{model.name}: source_tokens = {known}, and sources of {dataset.name} are made of {needed} "
            f"numbers; must be {needed} at least, or fewer source_tokens of the data"
        )


def _check_shows_labels(config: ConfigDict, dataset: DataSet) -> None:
    """Raise UserError for what cannot be done to images that are tokens, those of their labels among them."""
    if not kinds.named(dataset.task).shows_labels:
        return
    if "unlabelled" in config.students.transfer:
        raise UserError(
            f"config.students.transfer: 'unlabelled', but every place of {dataset.name} is shown the labels "
            "of those before, which cannot be hidden; must be ('labelled',)"
        )
    for field in ("cutout", "noise"):
        if config.data.augment[field]:
            raise UserError(
                f"config.data.augment.{field}: changes pixels, and images of {dataset.name} are numbers of "
                "tokens; must be 0"
            )


def _check_size_of_predictions(config: ConfigDict, split: Split) -> None:
    """Raise UserError where what networks say of the places of a dense task would not fit into memory."""
    dataset = split.dataset
    if not dataset.is_dense:
        return
    asked = config.students
    num_seeds = asked.max_seeds if asked.num_seeds == AUTO else asked.num_seeds
    num_students = (len(asked.modes) + 1) * len(asked.transfer) * num_seeds
    num_networks = (number_of_teachers(config) or 1) + len(student_models(config)) * num_students
    num_places = (len(dataset.test_labels) + len(split.val)) * dataset.test_labels.shape[1]
    needed = 4 * num_places * dataset.num_classes * num_networks
    limit = SHARE_OF_PREDICTIONS * forecast.memory_limit()
    if needed > limit:
        raise UserError(
            f"{dataset.name}: what {num_networks} networks say of {num_places:,} places takes "
            f"{needed / 2**30:.1f} GiB, {limit / 2**30:.1f} are there for it; must be fewer test images, "
            "places of an image, or networks"
        )


def check_teachers(config: ConfigDict, split: Split, borrowed: Done) -> None:
    """Raise UserError where there are too few teachers for a mode or rule, or too many classes for a rule."""
    number = number_of_teachers(config)
    if number is None:
        number = sum(teachers.num_members for teachers in ensemble_of(borrowed))
    check_number_of_teachers(config, number, split.dataset.num_classes)


def check_choice(config: ConfigDict, plan: Plan) -> None:
    """Raise UserError where `export.choose` names no row that the plan's stages make."""
    rows = list(dict.fromkeys(member.mode for stage in plan for member in stage.family))
    addresses = [canonical("model", address, "teachers.models") for address in teacher_models(config)]
    of_no_address = (teachers.specialists_stage, teachers.thinned_stage)
    specialised = {stage.name for stage in plan} & {name(one) for name in of_no_address for one in addresses}
    of_students = ["student", *rows] if rows else []
    known = ["best", *of_students, *([] if specialised else addresses)]
    models = [canonical("model", address, "students.models") for address in student_models(config)]
    known += [row_of(row, model) for model in models for row in of_students]
    asked = config.export.choose
    if asked not in known:
        raise UserError(f"config.export.choose: there will be no row {asked!r}{hint(asked, known)}")
