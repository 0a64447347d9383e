"""What a configuration has to be: all that is checked before anything is loaded or trained."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict

from mtkd_jax.addresses import (
    build,
    build_model,
    canonical,
    quote,
    resolve,
)
from mtkd_jax.config import (
    ADDRESSES,
    ANY_TASK,
    AUTO,
    CONTROLS,
    FORMS,
    FURTHER_SOURCES,
    GIVEN,
    OTHER,
    SEEDS_AT_ONCE,
    TRANSFERS,
    augmentation,
    build_recipes,
    check_distinct,
    check_key,
    check_metrics,
    corruptions,
    default,
    fields,
    further_seeds,
    further_source,
    number_of_teachers,
    own_files,
    source_call,
    student_models,
    students_schedule,
    teacher_models,
    teaching_recipe,
    trained_addresses,
    trained_models,
)
from mtkd_jax.data import corruptions as corruptions_of_images
from mtkd_jax.fusion import rules
from mtkd_jax.mesh import HOW
from mtkd_jax.system import weights
from mtkd_jax.system.spelling import hint, nearest
from mtkd_jax.types import UserError


class Range(NamedTuple):
    """What a field may be."""

    is_right: Callable[[Any], bool]
    right: str  # in words
    names: tuple[str, ...] = ()  # of which one was perhaps meant


def _at_least(least: float) -> Range:
    return Range(lambda value: value >= least, f"at least {least}")


def _one_of(names: Iterable[Any]) -> Range:
    known = tuple(map(str, names))
    return Range(lambda value: value in names, f"one of {', '.join(known)}", known)


_POSITIVE = Range(lambda value: value > 0, "above 0")
_SHARE = Range(lambda value: 0 <= value < 1, "in [0, 1)")
_BETWEEN = Range(lambda value: 0 < value < 1, "between 0 and 1, both excluded")

RANGES = {  # of a field; a tuple is checked entry by entry
    "seed": Range(lambda value: 0 <= value < 2**31, "in [0, 2**31)"),
    "data.num_train": _at_least(0),
    "data.val_fraction": _BETWEEN,
    "data.split": _one_of(("grouped", "random")),
    "data.sampling": _one_of(("natural", "balanced")),
    "data.augment.shift": _at_least(0),
    "data.augment.cutout": _at_least(0),
    "data.augment.noise": _at_least(0),
    "data.augment.rand_augment": Range(lambda value: 0 <= value <= 10, "in [0, 10]"),
    "teachers.num_members": _at_least(1),
    "teachers.subset_fraction": Range(lambda value: 0 < value <= 1, "in (0, 1]"),
    "teachers.learning_rates": _POSITIVE,
    "teachers.weight_decays": _at_least(0),
    "teachers.label_smoothings": _SHARE,
    "teachers.patience": _at_least(0),
    "teachers.std": _POSITIVE,
    "train.epochs": _at_least(1),
    "train.eval_every": _at_least(1),
    "train.batch_size": _at_least(1),
    "train.learning_rate": _POSITIVE,
    "train.warmup": _SHARE,
    "train.clip_norm": _at_least(0),
    "train.ema_decay": _SHARE,
    "train.depth_decay": Range(lambda value: 0 < value <= 1, "in (0, 1]"),
    "train.accumulate": _at_least(1),
    "train.mixup": _at_least(0),
    "train.cutmix": _at_least(0),
    "train.weight_decay": _at_least(0),
    "train.label_smoothing": _SHARE,
    "train.class_weights": _one_of(("none", "balanced")),
    "students.controls": _one_of(CONTROLS),
    "students.alphas": Range(
        lambda value: 0 <= value <= 1, "in [0, 1] (it is the weight of the hard labels)"
    ),
    "students.temperatures": _POSITIVE,
    "students.num_seeds": Range(lambda value: value == AUTO or value >= 1, 'at least 1, or "auto"'),
    "students.max_seeds": Range(
        lambda value: value > 0 and value % SEEDS_AT_ONCE == 0,
        f"a multiple of {SEEDS_AT_ONCE}, for so many are added at once",
    ),
    "students.transfer": _one_of(TRANSFERS),
    "students.labelled_fraction": _SHARE,
    "students.epochs": _at_least(0),
    "students.eval_every": _at_least(0),
    "report.margin": _BETWEEN,
    "report.false_alarm_rate": _BETWEEN,
    "report.cascade_tolerance": _BETWEEN,
    "report.complexity": _at_least(0),
    "report.strengths": _one_of(corruptions_of_images.STRENGTHS),
    "export.forms": _one_of(FORMS),
    "runtime.how": _one_of(("auto", *HOW)),
    "runtime.data_shards": _at_least(1),
    "runtime.devices": _at_least(0),
    "runtime.members_at_once": _at_least(0),
    "runtime.teacher_cache": _one_of(("auto", "off", "float32", "float16")),
    "runtime.frozen_features": _one_of(("auto", "off")),
    "runtime.checkpoint_seconds": _at_least(0),
    "runtime.stream_mb": _at_least(1),
}


def validate(config: ConfigDict) -> None:
    """Raise UserError, one line, on the first field that cannot work; nothing is loaded or trained."""
    with own_files(config):
        _check_ranges(config)
        _check_rounds("train", config.train.epochs, config.train.eval_every)
        _check_rounds("students", *students_schedule(config))
        _check_values_of_members(config)
        _check_examples(config)
        _check_samples(config.teachers)
        _check_students(config)
        _check_weights(config)
        _check_models(config)
        _check_modes(config)
        _check_distinct_addresses(config)
        _check_rules(config)
        _check_other_addresses(config)
        _check_optimizer(config)
        source_call(config)
        resolve("plan", config.plan, "plan")
        _check_further_seeds(config)


def _check_ranges(config: ConfigDict) -> None:
    flat = fields(config)
    for field, allowed in RANGES.items():
        for value in flat[field] if isinstance(flat[field], tuple) else (flat[field],):
            if not allowed.is_right(value):
                close = nearest(str(value), allowed.names)
                raise UserError(
                    f"config.{field}: {quote(value)} is not possible; it must be {allowed.right}"
                    + (f"; did you mean {close!r}?" if close else "")
                )


def _check_values_of_members(config: ConfigDict) -> None:
    for name in ("learning_rates", "weight_decays", "label_smoothings", "init_from"):
        values = config.teachers[name]
        if len(values) not in (0, 1, config.teachers.num_members):
            raise UserError(
                f"config.teachers.{name} has {len(values)} values for {config.teachers.num_members} members; "
                "give one for each member, or one for all"
            )


def _check_examples(config: ConfigDict) -> None:
    """Raise UserError where augmentation or the weights of classes contradict themselves."""
    augment = config.data.augment
    if augment.flip and augment.alternating_flip:
        raise UserError("config.data.augment.flip and alternating_flip: an image is mirrored by one of them")
    if len(augment.rand_augment) not in (0, 2):
        raise UserError(
            f"config.data.augment.rand_augment is {augment.rand_augment!r}; it must be () or "
            "(operations, magnitude), such as (2, 7)"
        )
    if config.data.sampling == config.train.class_weights == "balanced":
        raise UserError(
            "config.data.sampling and train.class_weights are both balanced: rare classes count double; "
            "one of them is enough"
        )


def _check_students(config: ConfigDict) -> None:
    """Raise UserError where what students are trained at or on is empty or named twice."""
    for field in ("students.alphas", "students.temperatures", "students.transfer"):
        values = fields(config)[field]
        if not values:
            raise UserError(
                f"config.{field} is empty; name at least one, such as {fields(default())[field]!r}"
            )
        check_distinct(field, values)
    check_distinct("students.controls", config.students.controls)
    if bool(config.data.other) != (OTHER in config.students.transfer):
        raise UserError(
            f"config.data.other: is {config.data.other!r} and students.transfer {config.students.transfer}; "
            f"it must name a source where {OTHER!r} is a transfer set, and be '' where it is none"
        )
    if config.students.model and config.students.models:
        raise UserError(
            f"config.students.model and students.models: {config.students.model} and "
            f"{', '.join(config.students.models)}; students are of one or the other"
        )


def _check_further_seeds(config: ConfigDict) -> None:
    if further_seeds(config) and config.plan.partition("(")[0].strip() != default().plan:
        raise UserError(
            f'config.students.num_seeds: "{AUTO}" adds seeds to plan {default().plan}; give a number with '
            f"plan {config.plan}"
        )


def _check_weights(config: ConfigDict) -> None:
    """Raise UserError where the fields that name files of weights contradict one another."""
    teachers = config.teachers
    if teachers.init_from and len(teacher_models(config)) > 1:
        raise UserError(
            "config.teachers.init_from: files are of one architecture, teachers.models has "
            f"{len(teachers.models)}; name one, or none of the files"
        )
    if config.students.init_from and len(student_models(config)) > 1:
        raise UserError(
            "config.students.init_from: a file is of one architecture, students.models has "
            f"{len(student_models(config))}; name one, or no file"
        )
    if teachers.init_from and teachers.from_run:
        raise UserError("config.teachers.init_from and from_run: teachers come from one or the other")
    _check_given(config)
    if (teachers.mean or teachers.std) and not teachers.init_from:
        raise UserError(
            "config.teachers.mean and std: are for the networks of teachers.init_from, which is empty"
        )
    if len(teachers.mean) != len(teachers.std):
        raise UserError(
            f"config.teachers.mean and std: have {len(teachers.mean)} and {len(teachers.std)} values; "
            "give one of each for every channel"
        )
    if teachers.trained and len(teachers.init_from) != teachers.num_members:
        raise UserError(
            f"config.teachers.trained: teachers.init_from names {len(teachers.init_from)} files for "
            f"{teachers.num_members} members; give one for each member"
        )


def _check_given(config: ConfigDict) -> None:
    """Raise UserError for what teachers cannot do who are no networks of ours."""
    flat = fields(config)
    of_files = [field for field in GIVEN if flat[field]]
    for field in ("teachers.init_from", "teachers.from_run", "teachers.models"):
        if of_files and flat[field]:
            raise UserError(f"config.{of_files[0]} and {field}: teachers come from one or the other")
    # Programs of StableHLO can be asked about any image; those of ONNX are run before the training.
    of_data = [field for field in of_files if field != "teachers.programs"]
    of_data += ["teachers.programs"] * any(name.endswith(".onnx") for name in config.teachers.programs)
    if of_data:
        for field in ("train.mixup", "train.cutmix"):
            if flat[field]:
                raise UserError(
                    f"config.{field}: {flat[field]:g}, but {of_data[0]} says nothing of mixed images; "
                    "it must be 0 with them"
                )
    if of_files and config.export.cascade:
        raise UserError(
            f"config.export.cascade: True, but the teachers of {of_files[0]} are no networks that can be "
            "exported; it must be False with them"
        )
    for field in of_files:
        check_distinct(field, flat[field])


def _check_models(config: ConfigDict) -> None:
    """Raise UserError for networks and classifiers that cannot be made."""
    student = (config.students.model,) if config.students.model else ()
    for field, addresses in (
        ("model.name", (config.model.name,)),
        ("teachers.models", config.teachers.models),
        ("students.model", student),
        ("students.models", config.students.models),
    ):
        for address in addresses:
            build_model(address, ANY_TASK, field)
    _check_stages(config)
    for address in config.teachers.classifiers:
        build("classifier", address, "teachers.classifiers")


def _check_modes(config: ConfigDict) -> None:
    """Raise UserError for what is said of modes that are not there; the modes themselves are made later."""
    teaching_recipe(config)
    for address in config.students.arguments:
        check_key("students.arguments", address, "a mode such as 'vote'")
    for field, addresses in (
        ("students.arguments", config.students.arguments),
        ("students.controlled", config.students.controlled),
    ):
        for address in addresses:
            if address not in config.students.modes:
                raise UserError(
                    f"config.{field}: {quote(address)} is not among students.modes"
                    f"{hint(str(address), config.students.modes)}"
                )


def _check_distinct_addresses(config: ConfigDict) -> None:
    for field in (
        "teachers.models",
        "students.models",
        "students.modes",
        "students.controlled",
        "fusion.rules",
        "report.metrics",
        "runtime.trackers",
    ):
        (kind,) = ADDRESSES[field]
        addresses = fields(config)[field]
        check_distinct(field, addresses, [canonical(kind, address, field) for address in addresses])


def _check_rules(config: ConfigDict) -> None:
    for name in config.fusion.rules:
        _, arguments = resolve("rule", name, "fusion.rules")
        if arguments:
            raise UserError(f"config.fusion.rules: {name!r}; rules are named without arguments")
    check_number_of_teachers(config, number_of_teachers(config), num_classes=2)


def _check_other_addresses(config: ConfigDict) -> None:
    augmentation(config)
    check_metrics(config, num_classes=2)
    corruptions(config)
    for field in FURTHER_SOURCES:
        if fields(config)[field]:
            further_source(config, field)
    for field in ("train.schedule", "students.alpha_schedule", "students.temperature_schedule"):
        build("schedule", fields(config)[field], field)


def _check_optimizer(config: ConfigDict) -> None:
    optimizer = build("optimizer", config.train.optimizer, "train.optimizer")
    if optimizer.averages and config.train.ema_decay:
        raise UserError(
            f"config.train.ema_decay: {config.train.optimizer} averages the weights itself; must be 0 with it"
        )
    if optimizer.averages and config.train.depth_decay != 1:
        raise UserError(
            f"config.train.depth_decay: {config.train.optimizer} has one learning rate for all that it "
            "averages; must be 1 with it"
        )


def _check_stages(config: ConfigDict) -> None:
    """Raise UserError where weights come from twice or are missing, or no network names stages."""
    models = trained_models(config)
    for address, field in trained_addresses(config).items():
        try:
            if models[address].pretrained:
                weights.find(models[address].pretrained)
        except UserError as error:
            raise UserError(f"config.{field}: {address}: {error}") from None
    for field, init_from in (
        ("teachers.init_from", config.teachers.init_from),
        ("students.init_from", config.students.init_from),
    ):
        of_field = teacher_models(config) if field.startswith("teachers") else student_models(config)
        for address in of_field if init_from else ():
            if address in models and models[address].pretrained:
                raise UserError(
                    f"config.{field}: {address} is pretrained; weights come from one or the other"
                )
    if config.train.depth_decay != 1 and not any(model.stages for model in models.values()):
        raise UserError(
            f"config.train.depth_decay: {config.train.depth_decay:g}, but {', '.join(models)} names no "
            "stages; must be 1 with it"
        )


def check_number_of_teachers(config: ConfigDict, num_teachers: int | None, num_classes: int) -> None:
    """Raise UserError where a mode or rule cannot do with so many teachers, or a rule with so many classes.

    Where their number is not known yet, the modes' arguments are checked alone.
    """
    for address in config.students.modes:
        least = max(recipe.min_teachers for recipe, _ in build_recipes(config, address))
        if num_teachers is not None and num_teachers < least:
            raise UserError(
                f"config.students.modes: {address} needs at least {least} teachers, "
                f"config.teachers gives {num_teachers}"
            )
    if num_teachers is None:
        return
    logits = np.zeros((num_teachers, 1, num_classes), np.float32)
    for rule in config.fusion.rules:
        try:
            rules.check(canonical("rule", rule, "fusion.rules"), logits)
        except UserError as error:
            raise UserError(f"config.fusion.rules: {error}") from None


def _check_samples(teachers: ConfigDict) -> None:
    """Raise UserError unless a teacher's examples are drawn in one way, and known where they must be."""
    ways = {"bootstrap": teachers.bootstrap, "subset_fraction < 1": teachers.subset_fraction < 1}
    ways["folds"] = teachers.folds
    asked = [way for way, is_set in ways.items() if is_set]
    if len(asked) > 1:
        raise UserError(f"config.teachers.{asked[0]} and {asked[1]}: a teacher has one or the other")
    if teachers.folds and teachers.num_members < 2:
        raise UserError("config.teachers.folds: one teacher would be left without examples; num_members >= 2")
    if not teachers.out_of_bag:
        return
    if not asked:
        raise UserError(
            "config.teachers.out_of_bag: every teacher trains on all labelled images, and none could teach "
            "them; set folds, bootstrap or subset_fraction"
        )
    if teachers.trained or teachers.logits or teachers.programs or teachers.classifiers:
        raise UserError(
            "config.teachers.out_of_bag: what teachers from elsewhere have trained on is not known; name who "
            "teaches what in the data (train_teachers)"
        )


def _check_rounds(group: str, epochs: int, eval_every: int) -> None:
    if epochs % eval_every:
        raise UserError(
            f"config.{group}.eval_every: {eval_every} does not divide the {epochs} epochs; "
            f"{_largest_divisor(epochs, eval_every)} does"
        )


def _largest_divisor(number: int, at_most: int) -> int:
    return max(n for n in range(1, min(at_most, number) + 1) if number % n == 0)
