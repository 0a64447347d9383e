"""The configuration: its defaults, addresses of functions, and a validation that runs before any work.

An ADDRESS names a function where it is defined, with arguments if need be: "cnn", "mlp(hidden=(32,))",
"logits.dkd(warmup=0.1)"; "fused:median_probs" gives the first argument a word. There is no registry: a
function is found by what it says it returns, so writing it is all it takes to add it. "mine.py:softer(w=2)",
"package.module:softer" and "__main__:softer" name functions of the user's own. Configuration files and these
are the user's own Python and are executed.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import dataclasses
import importlib
import inspect
import itertools
import pkgutil
import re
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache, partial
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
from ml_collections import ConfigDict, FieldReference

from mtkd_jax.data import checks, fetch
from mtkd_jax.data import corruptions as corruptions_of_images
from mtkd_jax.fusion import rules
from mtkd_jax.mesh import HOW
from mtkd_jax.optimizers import Optimizer, Schedule
from mtkd_jax.system import own_code, own_metrics, paths, weights
from mtkd_jax.system.spelling import hint, likeness, nearest
from mtkd_jax.types import Classifier, Corruption, DataSet, Metric, Model, Recipe, Task, Tracker, UserError

# kind -> (module or package that defines its functions, what they say they return)
KINDS = {
    "mode": ("methods", ("Recipe",)),
    "rule": ("fusion.rules", ("Scores", "Places", "FittedRule")),
    "model": ("models", ("Model",)),
    "source": ("data.sources", ("DataSet",)),
    "plan": ("plans.schemes", ("Plan",)),
    "optimizer": ("optimizers", ("Optimizer",)),
    "schedule": ("optimizers", ("Schedule",)),
    "tracker": ("runs.trackers", ("Tracker",)),
    "corruption": ("data.corruptions", ("Corruption",)),
    "augmentation": ("data.augment", ("Augment",)),  # of the user's own alone; ours are fields
    "metric": ("results.metrics", ("Metric",)),  # likewise
    "classifier": ("models.classifiers", ("Classifier",)),
}
ADDRESSES = {  # field -> the kinds its address, or each in its tuple, may be of
    "model.name": ("model",),
    "teachers.models": ("model",),
    "teachers.classifiers": ("classifier",),
    "students.model": ("model",),
    "students.models": ("model",),
    "students.modes": ("mode",),
    "students.controlled": ("mode",),
    "teachers.method": ("mode",),
    "export.choose": ("mode", "model"),
    "fusion.rules": ("rule",),
    "data.source": ("source",),
    "data.other": ("source",),
    "data.augment.own": ("augmentation",),
    "report.metrics": ("metric",),
    "report.corruptions": ("corruption",),
    "report.ood": ("source",),
    "plan": ("plan",),
    "train.optimizer": ("optimizer",),
    "train.schedule": ("schedule",),
    "students.alpha_schedule": ("schedule",),
    "students.temperature_schedule": ("schedule",),
    "runtime.trackers": ("tracker",),
}
GIVEN = ("teachers.logits", "teachers.programs", "teachers.classifiers")  # of no networks of ours
TRANSFERS = LABELLED, UNLABELLED, OTHER = "labelled", "unlabelled", "other"
AUTO = "auto"
WORDS = {"students.num_seeds": (AUTO,)}  # field of a number -> the words that it may be instead
SEEDS_AT_ONCE = 5  # of a block, where students.num_seeds is "auto"
CONTROLS = ("random_teacher", "shuffled_teacher")  # who teaches instead: plans/controls.py
INNER = "Model"  # annotation of an argument that is a network itself, given by its address
AT = " @ "  # between the name of a row and the architecture it is of
COHORT = " cohort"  # behind the name of a leader's row, of what all its peers say together
ALL = "all"  # of report.corruptions
FORMS = ("onnx", "int8", "onnx_int8")  # of an exported student: deploy/forms.py
Arguments = tuple[tuple[str, Any], ...]  # (name, value) of a function


def default() -> ConfigDict:
    """Every key there is, with the value it has when a configuration file does not set it."""
    config = ConfigDict()
    config.seed = 0  # of weights, orders and augmentation
    config.plan = "teachers_then_students"  # what is trained after what

    config.data = ConfigDict()
    config.data.source = "digits"  # an address; --list names all
    config.data.path = ""  # for sources that read a file or folder
    config.data.num_train = 0  # labelled training examples; 0 = all that validation leaves
    config.data.val_fraction = (
        0.2  # cut from the training set first, stratified; not where the data brings one
    )
    config.data.split = "grouped"  # groups (aircraft, camera) that the data names stay whole; or "random"
    config.data.other = (
        ""  # a source whose images have no label, for students.transfer "other"; with its path
    )
    config.data.sampling = "natural"  # or "balanced": every class as often, whatever it has
    config.data.augment = ConfigDict()
    config.data.augment.shift = 0  # images move by up to so many pixels in each direction
    config.data.augment.flip = False  # mirrors half of the images, left to right
    config.data.augment.cutout = 0  # side of the square that is painted over, in pixels
    config.data.augment.noise = 0.0  # standard deviation of the normal noise that is added
    config.data.augment.alternating_flip = False  # mirrors every image in every other epoch; not with flip
    config.data.augment.rand_augment = ()  # or (operations an image, their magnitude 0 .. 10)
    config.data.augment.own = ()  # addresses of your own, such as mine.py:blur(share=0.5); after all others

    config.model = ConfigDict({"name": "mlp"})  # the architecture, of teachers and students

    config.teachers = ConfigDict()
    config.teachers.num_members = 5  # of each architecture
    config.teachers.models = ()  # architectures; () = (model.name,)
    config.teachers.subset_fraction = 1.0  # each teacher sees a Bernoulli(p) subset of the training set
    config.teachers.bootstrap = False  # each teacher draws n training examples with replacement
    config.teachers.folds = False  # teacher k leaves out the k-th of num_members parts; groups stay whole
    config.teachers.out_of_bag = False  # a labelled image is taught by those alone who have not trained on it
    config.teachers.learning_rates = ()  # per member; () = train.learning_rate, length 1 is for all
    config.teachers.weight_decays = ()
    config.teachers.label_smoothings = ()
    config.teachers.method = ""  # by which they are trained, such as teaching.soteacher; "" = labels alone
    config.teachers.patience = 0  # epochs without a better validation NLL; 0 = train to the end
    config.teachers.init_from = ()  # files of PyTorch weights to begin with, a file each or one for all
    config.teachers.trained = False  # True: those of init_from, a file each, teach as they are
    config.teachers.mean = ()  # a channel, of images in 0..1: what the files' networks were trained with
    config.teachers.std = ()  # both () = those of the training images
    config.teachers.from_run = ""  # a finished workdir whose teachers are used instead of training any
    config.teachers.logits = ()  # .npz files of what teachers from anywhere say, instead of training any
    config.teachers.programs = ()  # teachers that are programs: .onnx, .stablehlo, or a student/ folder
    config.teachers.classifiers = ()  # addresses of what says probabilities, fitted to the training examples

    config.train = ConfigDict()
    config.train.epochs = 60  # of teachers, and of students unless they say otherwise
    config.train.eval_every = 1  # epochs between validations; best weights are chosen among these
    config.train.batch_size = 64  # full batches only
    config.train.optimizer = "adam"  # an address; --list names all
    config.train.learning_rate = 1e-3  # its largest value, where there is a schedule or warmup
    config.train.schedule = "constant"  # of the learning rate; an address
    config.train.warmup = 0.0  # share of the training over which the learning rate rises, before the schedule
    config.train.clip_norm = 0.0  # longer gradients are cut to this length, per member; 0 = off
    config.train.ema_decay = 0.0  # such as 0.999: an average of the weights is what is used; 0 = off
    config.train.depth_decay = 1.0  # factor on the learning rate for each stage nearer to the image; 1 = off
    config.train.accumulate = 1  # steps whose mean gradient makes one update: a batch as many times as large
    config.train.mixup = (
        0.0  # pairs of images and labels are mixed by shares from Beta(mixup, mixup); 0 = off
    )
    config.train.cutmix = 0.0  # or a box of one is cut into the other, by shares from Beta(cutmix, cutmix)
    config.train.weight_decay = 0.0  # as the optimiser has it: decoupled from the gradient, but for sgd
    config.train.label_smoothing = 0.0  # share of a hard label that is spread over all classes
    config.train.class_weights = "none"  # or "balanced": the hard labels of rare classes count more

    config.fusion = ConfigDict({"rules": ("mean_probs", "mean_logits", "plurality", "borda")})  # compared

    config.students = ConfigDict(convert_dict=False)
    config.students.model = ""  # "" = model.name
    config.students.models = ()  # several architectures, each with the whole grid; () = (students.model,)
    config.students.init_from = ""  # a file of PyTorch weights to begin with
    config.students.modes = ("mimic_all", "output_avg", "logit_avg", "vote")  # the methods to compare
    config.students.arguments = {}  # {mode: {argument: value, or a tuple of values to choose from}}
    config.students.controls = ()  # the same taught by a "random_teacher" (untrained), a "shuffled_teacher"
    config.students.controlled = ()  # the modes that have these controls; () = all of students.modes
    config.students.alphas = (0.0, 0.25, 0.5)  # weight of the HARD labels
    config.students.temperatures = (1.0,)  # of the soft targets
    config.students.alpha_schedule = "constant"  # of the teachers' weight 1 - alpha; "linear": they fade out
    config.students.temperature_schedule = "constant"  # of temperature - 1; "linear": down to 1
    config.students.num_seeds = FieldReference(5, field_type=object)  # or "auto": until all is decided
    config.students.max_seeds = 30  # with "auto": where it ends, decided or not; a multiple of 5
    config.students.transfer = ("labelled",)  # "unlabelled" adds what num_train cut away, "other" data.other
    config.students.labelled_fraction = 0.5  # of each batch, when the transfer set has unlabelled images
    config.students.epochs = 0  # 0 = train.epochs
    config.students.eval_every = 0  # 0 = train.eval_every

    config.report = ConfigDict()
    config.report.margin = 0.005  # share of accuracy; closer than that to the baseline is as good as it
    config.report.positive = ""  # of two classes, the one whose misses count; "" = the last one
    config.report.false_alarm_rate = 0.05  # of two classes: at which recall is told
    config.report.cascade_tolerance = 0.02  # share of images that a student with a safety net may lose
    config.report.metrics = ()  # addresses of your own, such as mine.py:cost(miss=10.0)
    config.report.corruptions = ()  # of the test images, under which all are evaluated too; ("all",): fifteen
    config.report.strengths = (1, 2, 3, 4, 5)  # of each corruption
    config.report.complexity = 0  # training images, whose targets a student's kernel measures; 0 = off
    config.report.ood = ""  # a source of images of no class, such as idx(path="letters"): who notices them?

    config.export = ConfigDict()
    config.export.choose = "best"  # of all, by validation NLL; "student", a row's name; "... @ ARCHITECTURE"
    config.export.cascade = False  # True: also the ensemble, to which it hands over where it is not sure
    config.export.forms = ()  # of student/, too: "onnx", "int8", "onnx_int8"; each takes an extra to install

    config.runtime = ConfigDict()  # how, not what: left out of the configuration's hash
    config.runtime.how = "auto"  # auto | vmap | map | unroll | loop | shard_map | pmap
    config.runtime.data_shards = 1  # devices that share one batch
    config.runtime.devices = 0  # virtual devices of a CPU; 0 = one for each core
    config.runtime.members_at_once = 0  # of a population; 0 = as many as fit into memory
    config.runtime.teacher_cache = "auto"  # auto | off | float32 | float16
    config.runtime.frozen_features = (
        "auto"  # auto: frozen stages are run once, where images stay as they are | off
    )
    config.runtime.checkpoint_seconds = 30.0  # between saves inside a stage; 0 = after every chunk
    config.runtime.stream_mb = 256  # of images, and of what is said of them, held at once, where not all are
    config.runtime.trackers = ("tensorboard",)  # where curves go besides metrics.jsonl; addresses
    config.runtime.own_code = ""  # folder to look up files of own functions in first; a file sets its own
    return config


def variant(config: ConfigDict, name: str, **variants: Callable[[ConfigDict], None]) -> ConfigDict:
    """`config` changed into the variant `name` of --config=FILE.py:NAME; "" leaves it as it is."""
    if name and name not in variants:
        raise UserError(f"--config: there is no variant {name!r}{hint(name, variants)}")
    if name:
        variants[name](config)
    return config


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


_POSITIVE = (lambda value: value > 0, "above 0")
_SHARE = (lambda value: 0 <= value < 1, "in [0, 1)")

# field -> what a Range is made of; a tuple is checked entry by entry
RANGES = {
    "seed": (lambda value: 0 <= value < 2**31, "in [0, 2**31)"),
    "data.num_train": _at_least(0),
    "data.val_fraction": (lambda value: 0 < value < 1, "between 0 and 1, both excluded"),
    "data.split": _one_of(("grouped", "random")),
    "data.sampling": _one_of(("natural", "balanced")),
    "data.augment.shift": _at_least(0),
    "data.augment.cutout": _at_least(0),
    "data.augment.noise": _at_least(0),
    "data.augment.rand_augment": (lambda value: 0 <= value <= 10, "in [0, 10]"),
    "teachers.num_members": _at_least(1),
    "teachers.subset_fraction": (lambda value: 0 < value <= 1, "in (0, 1]"),
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
    "train.depth_decay": (lambda value: 0 < value <= 1, "in (0, 1]"),
    "train.accumulate": _at_least(1),
    "train.mixup": _at_least(0),
    "train.cutmix": _at_least(0),
    "train.weight_decay": _at_least(0),
    "train.label_smoothing": _SHARE,
    "train.class_weights": _one_of(("none", "balanced")),
    "students.controls": _one_of(CONTROLS),
    "students.alphas": (lambda value: 0 <= value <= 1, "in [0, 1] (it is the weight of the hard labels)"),
    "students.temperatures": _POSITIVE,
    "students.num_seeds": (lambda value: value == AUTO or value >= 1, 'at least 1, or "auto"'),
    "students.max_seeds": (
        lambda value: value > 0 and value % SEEDS_AT_ONCE == 0,
        f"a multiple of {SEEDS_AT_ONCE}, for so many are added at once",
    ),
    "students.transfer": _one_of(TRANSFERS),
    "students.labelled_fraction": _SHARE,
    "students.epochs": _at_least(0),
    "students.eval_every": _at_least(0),
    "report.margin": (lambda value: 0 < value < 1, "between 0 and 1, both excluded"),
    "report.false_alarm_rate": (lambda value: 0 < value < 1, "between 0 and 1, both excluded"),
    "report.cascade_tolerance": (lambda value: 0 < value < 1, "between 0 and 1, both excluded"),
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
        _validate(config)


@contextlib.contextmanager
def own_files(config: ConfigDict) -> Iterator[None]:
    """Within it addresses such as mine.py:softer are looked up where the configuration says, then here.

    Raises UserError for fields that do not exist, are missing, or are not of their type.
    """
    _check_fields(config.to_dict(), default().to_dict(), "")
    with own_code.beside(config.runtime.own_code):
        yield


def _validate(config: ConfigDict) -> None:
    flat = dict(fields(config))
    for field, made_of in RANGES.items():
        allowed = Range(*made_of)
        for value in flat[field] if isinstance(flat[field], tuple) else (flat[field],):
            if not allowed.is_right(value):
                close = nearest(str(value), allowed.names)
                raise UserError(
                    f"config.{field}: {_quoted(value)} is not possible; it must be {allowed.right}"
                    + (f"; did you mean {close!r}?" if close else "")
                )
    _check_rounds("train", config.train.epochs, config.train.eval_every)
    _check_rounds("students", *students_schedule(config))
    for name in ("learning_rates", "weight_decays", "label_smoothings", "init_from"):
        values = config.teachers[name]
        if len(values) not in (0, 1, config.teachers.num_members):
            raise UserError(
                f"config.teachers.{name} has {len(values)} values for {config.teachers.num_members} members; "
                "give one for each member, or one for all"
            )
    if config.data.augment.flip and config.data.augment.alternating_flip:
        raise UserError("config.data.augment.flip and alternating_flip: an image is mirrored by one of them")
    if len(config.data.augment.rand_augment) not in (0, 2):
        raise UserError(
            f"config.data.augment.rand_augment is {config.data.augment.rand_augment!r}; it must be () or "
            "(operations, magnitude), such as (2, 7)"
        )
    _check_samples(config.teachers)
    if config.data.sampling == config.train.class_weights == "balanced":
        raise UserError(
            "config.data.sampling and train.class_weights are both balanced: rare classes count double; "
            "one of them is enough"
        )
    for field in ("students.alphas", "students.temperatures", "students.transfer"):
        if not flat[field]:
            raise UserError(
                f"config.{field} is empty; name at least one, such as {dict(fields(default()))[field]!r}"
            )
        _check_distinct(field, flat[field], flat[field])
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
    _check_weights(config)
    _check_addresses(config)
    if further_seeds(config) and config.plan.partition("(")[0].strip() != default().plan:
        raise UserError(
            f'config.students.num_seeds: "{AUTO}" adds seeds to plan {default().plan}; give a number with '
            f"plan {config.plan}"
        )


def _check_weights(config: ConfigDict) -> None:
    """Whose weights come from files."""
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
    """Teachers that are no networks of ours: those known by logits are not asked about other images."""
    flat = dict(fields(config))
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
        _check_distinct(field, flat[field], flat[field])


def _check_addresses(config: ConfigDict) -> None:
    task = Task(num_classes=10, num_heads=1, mean=(0.0,), std=(1.0,))
    for field, addresses in (
        ("model.name", (config.model.name,)),
        ("teachers.models", config.teachers.models),
        ("students.model", (config.students.model,) if config.students.model else ()),
        ("students.models", config.students.models),
    ):
        for address in addresses:
            build_model(address, task, field)
    _check_stages(config)
    for address in config.teachers.classifiers:
        build("classifier", address, "teachers.classifiers")
    teaching_recipe(config)
    for address in config.students.arguments:
        _check_key("students.arguments", address, "a mode such as 'vote'")
        if address not in config.students.modes:
            raise UserError(
                f"config.students.arguments: {_quoted(address)} is not among students.modes"
                f"{hint(str(address), config.students.modes)}"
            )
    _check_distinct("students.controls", config.students.controls, config.students.controls)
    for address in config.students.controlled:
        if address not in config.students.modes:
            raise UserError(
                f"config.students.controlled: {_quoted(address)} is not among students.modes"
                f"{hint(str(address), config.students.modes)}"
            )
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
        addresses = dict(fields(config))[field]
        _check_distinct(field, addresses, [canonical(kind, address, field) for address in addresses])
    for name in config.fusion.rules:
        _, arguments = resolve("rule", name, "fusion.rules")
        if arguments:
            raise UserError(f"config.fusion.rules: {name!r}; rules are named without arguments")
    check_number_of_teachers(config, number_of_teachers(config), num_classes=2)
    augmentation(config)
    check_metrics(config, num_classes=2)
    corruptions(config)
    for field in _FURTHER_SOURCES:
        if dict(fields(config))[field]:
            further_source(config, field)
    for field in ("train.schedule", "students.alpha_schedule", "students.temperature_schedule"):
        build("schedule", dict(fields(config))[field], field)
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
    source_call(config)
    resolve("plan", config.plan, "plan")


def given_teachers(config: ConfigDict) -> tuple[str, ...]:
    """Those that are no networks of ours, of logits, programs and classifiers; () where they all are."""
    return (*config.teachers.logits, *config.teachers.programs, *config.teachers.classifiers)


def trains_teachers(config: ConfigDict) -> bool:
    """Whether teachers are trained by this run, and do not come trained."""
    return not (config.teachers.from_run or config.teachers.trained or given_teachers(config))


def _check_stages(config: ConfigDict) -> None:
    """Where weights come from twice or are not there, and learning rates by depth that no network has."""
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


def trained_models(config: ConfigDict) -> dict[str, Model]:
    """{address: network} of all that are trained: of teachers, students, and those that the plan names.

    For some task: what counts is what the addresses say.
    """
    task = Task(num_classes=10, num_heads=1, mean=(0.0,), std=(1.0,))
    asked = trained_addresses(config)
    return {address: build_model(address, task, field) for address, field in asked.items()}


def trained_addresses(config: ConfigDict) -> dict[str, str]:
    """{address: the field that asks for it} of all networks that are trained."""
    field = "teachers.models" if config.teachers.models else "model.name"
    fields = (
        {}
        if config.teachers.from_run or given_teachers(config)
        else dict.fromkeys(teacher_models(config), field)
    )
    if config.students.modes:
        field = "students.model" if config.students.model else "model.name"
        field = "students.models" if config.students.models else field
        fields |= dict.fromkeys(student_models(config), field)
    _, arguments = resolve("plan", config.plan, "plan")
    for word in _words(arguments.values()):
        with contextlib.suppress(UserError):
            resolve("model", word, "plan")
            fields[word] = "plan"
    return fields


def teacher_models(config: ConfigDict) -> tuple[str, ...]:
    """Addresses of the teachers' architectures; () where the teachers are no networks of ours."""
    if given_teachers(config):
        return ()
    return tuple(config.teachers.models) or (config.model.name,)


def number_of_teachers(config: ConfigDict) -> int | None:
    """How many teachers there are, of all architectures; None where only their files know."""
    if given_teachers(config):
        return None
    return config.teachers.num_members * len(teacher_models(config))


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


def student_models(config: ConfigDict) -> tuple[str, ...]:
    """Addresses of the students' architectures, each of which is trained with the whole grid."""
    return tuple(config.students.models) or (config.students.model or config.model.name,)


def row_of(name: str, model: str = "") -> str:
    """What a row of one architecture among several is called; "" leaves the name alone.

    >>> row_of("output_avg", "mlp(hidden=(8,))"), row_of("output_avg")
    ('output_avg @ mlp(hidden=(8,))', 'output_avg')
    """
    return f"{name}{AT}{model}" if model else name


def name_and_model(row: str) -> tuple[str, str]:
    """`row_of` the other way round; "" for the architecture where none is named.

    >>> name_and_model("output_avg @ mlp(hidden=(8,))"), name_and_model("best")
    (('output_avg', 'mlp(hidden=(8,))'), ('best', ''))
    """
    name, _, model = row.partition(AT)
    return name, model


def row_of_control(control: str, mode: str) -> str:
    """What the row of a mode's control is called.

    >>> row_of_control("shuffled_teacher", "output_avg")
    'shuffled_teacher:output_avg'
    """
    return f"{control}:{mode}"


def control_and_mode(row: str) -> tuple[str, str]:
    """`row_of_control` the other way round; "" for the control of every other row.

    >>> control_and_mode("shuffled_teacher:fused:median_probs"), control_and_mode("fused:median_probs")
    (('shuffled_teacher', 'fused:median_probs'), ('', 'fused:median_probs'))
    """
    control, _, mode = row.partition(":")
    return (control, mode) if control in CONTROLS else ("", row)


def augmentation(config: ConfigDict) -> dict[str, Any]:
    """The fields of `data.augment`, with own functions made: arguments of `data.augment.augment`.

    All but `alternating_flip`, of which the step makes a flip by the epoch.
    """
    field = "data.augment.own"
    own = tuple(build("augmentation", address, field) for address in config.data.augment.own)
    return {**config.data.augment.to_dict(), "own": own}


def check_metrics(config: ConfigDict, num_classes: int) -> None:
    """Make the metrics of the user's own and ask each about made-up logits; what it says must be a number.

    From here on `metric` finds them. Raises UserError, one line, where one fails or says something else.
    """
    labels = np.arange(4 * num_classes, dtype=np.int32) % num_classes
    logits = np.random.default_rng(0).standard_normal((len(labels), num_classes)).astype(np.float32)
    names = []
    for address in config.report.metrics:
        made = build("metric", address, "report.metrics")
        names.append(made.name)
        _metrics[canonical("metric", address, "report.metrics")] = made
        try:
            own_metrics.values(made, logits, labels)
        except UserError as error:
            raise UserError(f"config.report.metrics: {address}: {error}") from None
    _check_distinct("report.metrics", names, names)


def metric(address: str) -> Metric:
    """A metric that this process has checked; UserError otherwise, for reading a run executes nothing."""
    if address not in _metrics:
        raise UserError(f"{address} is a metric of somebody's own; the command of the run finds it")
    return _metrics[address]


_metrics: dict[str, Metric] = {}  # by address in its one spelling


def first_seeds(config: ConfigDict) -> range:
    """The seeds of students that are trained first, with the whole grid: all, unless they are "auto"."""
    students = config.students
    return range(SEEDS_AT_ONCE if students.num_seeds == AUTO else students.num_seeds)


def further_seeds(config: ConfigDict) -> tuple[range, ...]:
    """The blocks of seeds that `students.num_seeds` "auto" may add; none where it is a number."""
    if config.students.num_seeds != AUTO:
        return ()
    starts = range(SEEDS_AT_ONCE, config.students.max_seeds, SEEDS_AT_ONCE)
    return tuple(range(first, first + SEEDS_AT_ONCE) for first in starts)


def corruptions(config: ConfigDict) -> dict[str, Corruption]:
    """{address: corruption} of `report.corruptions`, where "all" stands for every one that comes with us."""
    field = "report.corruptions"
    asked = [
        one
        for address in config.report.corruptions
        for one in (catalogue("corruption") if address == ALL else (canonical("corruption", address, field),))
    ]
    _check_distinct(field, asked, asked)
    strengths = config.report.strengths
    if asked and not strengths:
        raise UserError("config.report.strengths is empty; name at least one, such as (1, 3, 5)")
    _check_distinct("report.strengths", strengths, strengths)
    return {address: build("corruption", address, field) for address in asked}


def students_schedule(config: ConfigDict) -> tuple[int, int]:
    """(epochs, eval_every) of the students' stages."""
    students, train = config.students, config.train
    return students.epochs or train.epochs, students.eval_every or train.eval_every


# --- addresses ----------------------------------------------------------------------------------------


@lru_cache
def catalogue(kind: str) -> dict[str, Callable]:
    """{address: function} of every mode, rule, model, source or plan there is.

    Functions of methods/modes.py go by their bare name, other methods by "file.name".
    """
    place, returns = KINDS[kind]
    found = {}
    for module in _modules(importlib.import_module(f"mtkd_jax.{place}")):
        family = module.__name__.rsplit(".", 1)[-1]
        for name, function in inspect.getmembers(module, inspect.isfunction):
            own = function.__module__ == module.__name__ and not name.startswith("_")
            own &= all(p.kind is not p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())
            if own and function.__annotations__.get("return") in returns:
                found[f"{family}.{name}" if kind == "mode" and family != "modes" else name] = function
    return found


def resolve(kind: str, address: str, field: str) -> tuple[Callable, dict[str, Any]]:
    """The function an address names and its arguments, checked against the function's signature.

    An address of the user's own (see system/own_code.py) has its file executed.
    """
    name, arguments = _named(address, field, kind)
    where = _own(kind, address)
    if not where and name not in catalogue(kind):
        known = hint(name, catalogue(kind)) if catalogue(kind) else "; write one of your own, mine.py:name"
        raise UserError(f"config.{field}: there is no {kind} {_quoted(name)}{known}")
    function = _found(kind, where, name, field) if where else catalogue(kind)[name]
    for argument, value in arguments.items():
        _check_argument(function, kind, name, argument, value, field)
    if where:
        _check_call(kind, function, arguments, name, field)
    if where and kind == "rule":
        rules.offer(canonical(kind, address, field), function, _returned(function))
    return function, arguments


# Arguments that a function of the kind is given; else none.
_POSITIONAL = {"rule": 1, "model": 1, "plan": 2, "tracker": 1}


def _own(kind: str, address: str) -> str:
    """The file or module of an address of the user's own; "" for every other text."""
    where, _ = own_code.split(address) or ("", "")
    return "" if where in catalogue(kind) else where


def _found(kind: str, where: str, name: str, field: str) -> Callable:
    """The user's function `name`, WHERE:FUNCTION, which says that it returns what this kind does."""
    try:
        function = own_code.find(where, name.removeprefix(f"{where}:"))
    except UserError as error:
        if where.isidentifier():  # perhaps a short form, mistyped
            error = f"{error}, and there is no {kind} {where!r}{hint(where, catalogue(kind))}"
        raise UserError(f"config.{field}: {name}: {error}") from None
    _, returns = KINDS[kind]
    if _returned(function) not in returns:
        raise UserError(
            f"config.{field}: {name} must say that it returns what a {kind} does: write "
            + " or ".join(f"-> '{one}'" for one in returns)
        )
    return function


def _returned(function: Callable) -> str:
    """The last word of what a function says it returns, which may be the class itself or text."""
    said = function.__annotations__.get("return")
    return said.rpartition(".")[2] if isinstance(said, str) else getattr(said, "__name__", "")


def _check_call(kind: str, function: Callable, arguments: dict[str, Any], name: str, field: str) -> None:
    """Raise UserError unless a function of the user's own can be called as its kind is."""
    signature = inspect.signature(function)
    number = 2 if _returned(function) == "FittedRule" else _POSITIONAL.get(kind, 0)
    bind = signature.bind_partial if kind == "source" else signature.bind
    try:
        bind(*[None] * number, **arguments)
    except TypeError as error:
        raise UserError(f"config.{field}: {name} called as a {kind} is: {error}") from None


def own_code_digests(config: ConfigDict) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """`code_behind` all addresses: of what is trained, and {group: of what is told}, rules and metrics.

    That of `runtime` says how and not what, as do its fields.
    """
    trained: dict[str, str] = {}
    told: dict[str, dict[str, str]] = {"fusion": {}, "report": {}}
    flat = dict(fields(config))
    for field, kinds in ADDRESSES.items():
        value = flat[field]
        found = {**told, "runtime": {}}.get(field.partition(".")[0], trained)
        for address in value if isinstance(value, tuple) else (value,):
            if field != "export.choose":  # a row, whose address stands elsewhere
                found |= code_behind(kinds, address, field)
            if field == "plan":  # whose words are addresses, too
                for word in _words(resolve("plan", address, field)[1].values()):
                    found |= code_behind(("mode", "model"), word, field)
    return trained, told


def code_behind(kinds: Sequence[str], address: str, field: str = "") -> dict[str, str]:
    """{file, module or notebook's function: its SHA-256} of an address of the user's own; {} for others."""
    where, call = own_code.split(address) or ("", "")
    if not where or any(where in catalogue(kind) for kind in kinds):
        return _code_of_inner(kinds, address, field)
    name, _ = _parse(call, field)
    return {f"{where}:{name}" if where == own_code.MAIN else where: own_code.digest(where, name)}


def _code_of_inner(kinds: Sequence[str], address: str, field: str) -> dict[str, str]:
    """`code_behind` the networks that a network's address names, such as that of a detector."""
    if "model" not in kinds or not address:
        return {}
    with contextlib.suppress(UserError):
        function, arguments = resolve("model", address, field)
        inner = [arguments[name] for name in _inner_models(function, arguments)]
        return {place: sha for one in inner for place, sha in code_behind(("model",), one, field).items()}
    return {}


def _words(values: Iterable[Any]) -> Iterable[str]:
    for value in values:
        yield from (one for one in (value if isinstance(value, tuple) else (value,)) if isinstance(one, str))


def _annotation(parameter: inspect.Parameter) -> str:
    """As text: of the user's own functions it may be a class."""
    said = parameter.annotation
    return said.__name__ if inspect.isclass(said) and not hasattr(said, "__args__") else str(said)


def _arguments(function: Callable) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def _check_argument(function: Callable, kind: str, name: str, argument: str, value: Any, field: str) -> None:
    known = _arguments(function)
    if argument not in known:
        raise UserError(
            f"config.{field}: {kind} {name} has no argument {argument!r}{hint(str(argument), known)}"
        )
    annotation = _annotation(known[argument])
    if not _fits(value, annotation):
        raise UserError(f"config.{field}: {name}({argument}={_quoted(value)}) must be of type {annotation}")
    if annotation == INNER:
        resolve("model", value, field)


def canonical(kind: str, address: str, field: str) -> str:
    """An address in one spelling: arguments by name, without those at their defaults.

    >>> canonical("model", "mlp( hidden=(8, ), dropout=0.0 )", "model.name")
    'mlp(hidden=(8,))'
    >>> canonical("mode", "fused(rule='median_probs')", "students.modes")
    'fused:median_probs'
    >>> canonical("plan", "born_again(mode='logits.dkd( warmup=2 )')", "plan")
    "born_again(mode='logits.dkd(warmup=2.0)')"
    """
    name, arguments = _named(address, field, kind)
    if _own(kind, address):  # as it is written: nothing is executed to spell it
        said = ", ".join(f"{n}={arguments[n]!r}" for n in sorted(arguments))
        return f"{name}({said})" if said else name
    function, arguments = resolve(kind, address, field)
    arguments = {n: _canonical_value(kind, function, n, value) for n, value in arguments.items()}
    parameters = inspect.signature(function).parameters
    given = {n: arguments[n] for n in parameters if n in arguments and arguments[n] != parameters[n].default}
    if given and list(given) == list(_arguments(function))[:1] and _is_word(*given.values()):
        return f"{name}:{next(iter(given.values()))}"
    return f"{name}({', '.join(f'{n}={value!r}' for n, value in given.items())})" if given else name


def canonicalise(settings: dict[str, Any]) -> dict[str, Any]:
    """`ConfigDict.to_dict()`, or the same read from a file, with every address in its one spelling.

    What no longer is an address stays as it is.
    """
    settings = copy.deepcopy(settings)
    for field, kinds in ADDRESSES.items():
        *groups, name = field.split(".")
        group = settings
        for inner in groups:
            group = group.get(inner) if isinstance(group, dict) else None
        if isinstance(group, dict) and name in group:
            spell = partial(_canonical_or_same, kinds)
            group[name] = _each(group[name], _canonical_row if field == "export.choose" else spell)
    students = settings.get("students")
    if isinstance(students, dict) and isinstance(students.get("arguments"), dict):
        students["arguments"] = {
            _canonical_or_same(("mode",), mode): _canonical_arguments(mode, given)
            for mode, given in students["arguments"].items()
        }
    return settings


def _canonical_value(kind: str, function: Callable, argument: str, value: Any) -> Any:
    """A whole number for a float is one; the words of plans are addresses, of modes and models."""
    if kind == "plan":
        return _each(value, partial(_canonical_or_same, ("mode", "model")))
    known = _arguments(function)
    if argument in known and _annotation(known[argument]) == INNER:
        return _canonical_or_same(("model",), value)
    is_float = argument in known and _annotation(known[argument]) in ("float", "tuple[float, ...]")
    return _each(value, lambda one: float(one) if type(one) is int else one) if is_float else value


def _canonical_arguments(mode: Any, given: Any) -> Any:
    """The arguments of a mode, as `students.arguments` has them: a value each, or several to choose from."""
    try:
        function, _ = resolve("mode", str(mode), "students.arguments")
    except UserError:
        return given
    if not isinstance(given, dict):
        return given
    return {name: _canonical_value("mode", function, name, value) for name, value in given.items()}


def in_one_spelling(config: ConfigDict) -> ConfigDict:
    """A copy of a valid configuration with every address as `canonical` writes it.

    So that what differs in spelling alone has one name: of stages, rows, folders, and in config.json.
    """
    config = config.copy_and_resolve_references()
    with config.unlocked():
        for field, value in _leaves(canonicalise(config.to_dict())):
            *groups, name = field.split(".")
            group = config
            for inner in groups:
                group = group[inner]
            group[name] = value
    return config


def _each(value: Any, function: Callable) -> Any:
    return type(value)(map(function, value)) if isinstance(value, tuple | list) else function(value)


def _canonical_or_same(kinds: Sequence[str], address: Any) -> Any:
    for kind in kinds if isinstance(address, str) and address else ():
        with contextlib.suppress(UserError):
            return canonical(kind, address, "")
    return address


def _canonical_row(row: Any) -> Any:
    """A row's name, and the architecture after it, each in its one spelling."""
    if not isinstance(row, str):
        return row
    name, model = name_and_model(row)
    return row_of(
        _canonical_or_same(ADDRESSES["export.choose"], name.strip()),
        _canonical_or_same(("model",), model.strip()),
    )


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\w.]+", value) is not None


def _named(address: str, field: str, kind: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of an address; the argument of the short form goes by the name of the first."""
    if where := _own(kind, address):
        name, arguments = _parse(own_code.split(address)[1], field)
        return f"{where}:{name}", arguments
    short = re.fullmatch(r"([\w.]+):([\w.]+)", address)
    if short is None:
        return _parse(address, field)
    if short[1] not in catalogue(kind):
        return short[1], {}  # to be told with what it could mean
    known = _arguments(catalogue(kind)[short[1]])
    if not known:
        raise UserError(
            f"config.{field}: {kind} {short[1]} takes no argument, {address!r} gives it {short[2]!r}"
        )
    return short[1], {next(iter(known)): short[2]}


MADE = {  # kind -> what its functions return
    "model": Model,
    "mode": Recipe,
    "source": DataSet,
    "optimizer": Optimizer,
    "schedule": Schedule,
    "tracker": Tracker,
    "corruption": Callable,
    "augmentation": Callable,
    "metric": Metric,
    "classifier": Classifier,
}


def build(kind: str, address: str, field: str, *given: Any, **further: Any) -> Any:
    """What the function of an address makes, called with `given` and with further arguments: one of MADE.

    A function of the user's own is called once for the same arguments, and its code: what it makes may hold
    functions that it defines at every call, and programs are found again by what they were made from.
    """
    function, arguments = resolve(kind, address, field)
    _check_complete(_arguments(function), arguments | further, address, field)
    for name in _inner_models(function, arguments):
        arguments = {**arguments, name: build_model(arguments[name], *given, field)}
    key = None
    if (where := _own(kind, address)) and kind not in ("tracker", "classifier"):  # every run has its own
        name = own_code.name_of(address)
        key = (function, own_code.digest(where, name), given, repr(sorted((arguments | further).items())))
    if key in _made_by_own:
        return _made_by_own[key]
    try:
        made = function(*given, **arguments, **further)
    except UserError as error:
        raise UserError(f"config.{field}: {error}") from None
    _check_made(kind, made, address, field)
    if key is not None:
        _made_by_own[key] = made
    return made


_made_by_own: dict[tuple, Any] = {}  # by function, code and arguments


def _check_complete(
    known: Mapping[str, inspect.Parameter], arguments: Mapping[str, Any], address: str, field: str
) -> None:
    """Raise UserError for an argument that has no default and is not given."""
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in arguments:
            raise UserError(f"config.{field}: {address} needs {name}=...")


def _inner_models(function: Callable, arguments: Mapping[str, Any]) -> list[str]:
    """The arguments that are networks themselves, given by their addresses."""
    return [
        n
        for n, parameter in _arguments(function).items()
        if n in arguments and _annotation(parameter) == INNER
    ]


def _check_made(kind: str, made: Any, address: str, field: str) -> None:
    if not isinstance(made, MADE[kind]):
        found, right = type(made).__name__, MADE[kind].__name__
        raise UserError(f"config.{field}: {address} returned {found}; it must be a {right}")


def build_model(address: str, task: Task, field: str = "model.name") -> Model:
    """The network an address names, for a task."""
    model = build("model", address, field, task)
    if model.trainable and model.trainable not in model.stages:
        known = model.stages or ("none: this network names no stages",)
        close = nearest(model.trainable, model.stages)
        suggested = f", did you mean {close!r}?" if close else ""
        raise UserError(
            f"config.{field}: {address}: there is no stage {_quoted(model.trainable)}"
            f"{suggested}; stages are {', '.join(known)}"
        )
    if not _own("model", address):
        return model
    return dataclasses.replace(model, name=canonical("model", address, field))  # by which it is found again


def build_recipe(address: str, field: str = "students.modes", **further: Any) -> Recipe:
    """The method an address names, with further arguments; its name is the address."""
    return build("mode", address, field, **further)._replace(name=address)


def teaching_recipe(config: ConfigDict) -> Recipe | None:
    """The method that trains teachers, None: labels alone; UserError for one with teachers or peers."""
    address = config.teachers.method
    if not address:
        return None
    recipe = build_recipe(address, "teachers.method")
    if recipe.min_teachers or recipe.num_in_cohort > 1 or recipe.num_heads(2) > 1:
        raise UserError(
            f"config.teachers.method: {address} does not train one network by itself; must be one that needs "
            "neither teachers nor peers, such as 'teaching.soteacher'"
        )
    return recipe


def build_recipes(config: ConfigDict, address: str) -> tuple[tuple[Recipe, Arguments], ...]:
    """A mode of the configuration with every combination of its `students.arguments`.

    A tuple for an argument that takes one value stands for a choice, made by validation like that of alpha;
    beside each recipe stand the arguments of which there is a choice.
    """
    function, arguments = resolve("mode", address, "students.modes")
    given = config.students.arguments.get(address, {})
    field = f"students.arguments[{address!r}]" if given else "students.modes"
    if not isinstance(given, dict):
        raise UserError(f"config.{field} is {_quoted(given)}; it must be a dict of arguments")
    choices, open_to_choice = [], set()
    for name, value in given.items():
        _check_key(field, name, "an argument of the mode")
        if name in arguments:
            raise UserError(f"config.{field}: the address gives {name} already")
        annotation = _annotation(_arguments(function)[name]) if name in _arguments(function) else ""
        is_choice = isinstance(value, tuple) and not annotation.startswith("tuple")
        values = value if is_choice else (value,)
        if not values:
            raise UserError(f"config.{field}: no value for {name}")
        for one in values:
            _check_argument(function, "mode", address, name, one, field)
        _check_distinct(f"{field}[{name!r}]", values, values)
        choices.append([(name, one) for one in values])
        open_to_choice |= {name} if len(values) > 1 else set()
    return tuple(
        (
            build_recipe(address, field, **dict(chosen)),
            tuple((name, one) for name, one in chosen if name in open_to_choice),
        )
        for chosen in itertools.product(*choices)
    )


def _check_key(field: str, key: Any, right: str) -> None:
    if not isinstance(key, str):
        raise UserError(f"config.{field}: the key {_quoted(key)} is no text; it must be {right}")


def source_call(config: ConfigDict) -> Callable[[], DataSet]:
    """The configured source with its arguments bound, not yet called."""
    address = config.data.source
    function, arguments = resolve("source", address, "data.source")
    parameters = inspect.signature(function).parameters
    if "path" in parameters and "path" not in arguments:
        if not config.data.path:
            raise UserError(f"config.data.path is empty; data.source {address} reads a path")
        arguments = {**arguments, "path": config.data.path}
    return _source_call(address, function, arguments, "data.source")


_FURTHER_SOURCES = ("data.other", "report.ood")


def further_source(config: ConfigDict, field: str) -> Callable[[], DataSet]:
    """The source of `data.other` or `report.ood`, not yet called; a path it reads stands in its address."""
    address = dict(fields(config))[field]
    function, arguments = resolve("source", address, field)
    return _source_call(address, function, arguments, field)


def _source_call(
    address: str, function: Callable, arguments: dict[str, Any], field: str
) -> Callable[[], DataSet]:
    _check_complete(inspect.signature(function).parameters, arguments, address, field)
    is_own = _own("source", address)

    def checked() -> DataSet:
        try:
            found = function(**arguments)
        except UserError as error:
            raise UserError(f"{error}{fetch.remedy(arguments.get('path', ''))}") from error
        if is_own:
            _check_made("source", found, address, field)
        return checks.check(found, where=address) if is_own else found

    return checked


def positive_class(config: ConfigDict, class_names: Sequence[str]) -> str:
    """The class to be detected, of data with two: `report.positive` or the last one; "" for more classes.

    Raises UserError where the data has no such class, or has more than two.
    """
    positive, names = config.report.positive, list(class_names)
    if positive and len(names) != 2:
        raise UserError(
            f"config.report.positive: {positive!r}, but the data has {len(names)} classes; it must be empty "
            "unless there are two"
        )
    if positive and positive not in names:
        raise UserError(f"config.report.positive: there is no class {positive!r}{hint(positive, names)}")
    return (positive or names[-1]) if len(names) == 2 else ""


def listing(name: str = "", own: Sequence[str] = ()) -> str:
    """Every mode, rule, model, ... as it is written, with the first line of its docstring; modes by family.

    After ours those of files or modules of the user's `own`, such as "mine.py". With a `name`, which may be
    an address of such a file, all that is known of what goes by it; UserError where nothing does.
    """
    if name:
        return _told(name, own)
    lines = []
    for kind in KINDS:
        for family, found in _families(catalogue(kind)).items():
            lines += _listed(f"{kind}s, {family}:" if family else f"{kind}s:", found)
    for where in map(_place_of_own, own):
        found = {kind: _own_catalogue(kind, where) for kind in KINDS}
        if not any(found.values()):
            raise UserError(
                f"--with {where}: none of its functions says that it returns what can be named: "
                + ", ".join(dict.fromkeys(one for _, returns in KINDS.values() for one in returns))
            )
        for kind in KINDS:
            lines += _listed(f"{kind}s of {where}:", found[kind])
    return "\n".join(lines)


def _families(found: dict[str, Callable]) -> dict[str, dict[str, Callable]]:
    """What is in a catalogue, by the file before the point where an address has one."""
    families: dict[str, dict[str, Callable]] = {}
    for address in sorted(found, key=lambda address: ("." in address, address)):
        families.setdefault(address.rpartition(".")[0], {})[address] = found[address]
    return families


def _listed(heading: str, found: dict[str, Callable]) -> list[str]:
    lines = [heading] if found else []
    for address, function in sorted(found.items()):
        lines += [
            f"  {address}{_signature(function)}",
            f"      {documentation(function).splitlines()[0]}",
        ]
    return lines


def _place_of_own(where: str) -> str:
    """A file or module as `own_code.split` writes it."""
    place = own_code.split(f"{where}:any")
    if place is None:
        raise UserError(f"--with {where}: is no file of Python and no module; name mine.py or package.module")
    return place[0]


def _own_catalogue(kind: str, where: str) -> dict[str, Callable]:
    """{address: function} of a kind, in a file or module of the user's own, which is executed."""
    _, returns = KINDS[kind]
    return {
        f"{where}:{name}": function
        for name, function in own_code.functions(where).items()
        if _returned(function) in returns
    }


def documentation(function: Callable) -> str:
    """The docstring, out of the source where Python was told to leave docstrings out (-OO)."""
    if text := inspect.getdoc(function):
        return text
    node = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    return ast.get_docstring(node) or "Not documented."


def _told(name: str, own: Sequence[str]) -> str:
    where, call = own_code.split(name) or ("", "")
    if where and not any(where in catalogue(kind) for kind in KINDS):  # fused:median_probs is no file
        name, own = f"{where}:{_parse(call, 'list')[0]}", (where,)
    there_is = [(kind, address, one) for kind in KINDS for address, one in catalogue(kind).items()]
    for place in map(_place_of_own, own):
        there_is += [(kind, *found) for kind in KINDS for found in _own_catalogue(kind, place).items()]
    asked = [one for one in there_is if name in (one[1], own_code.name_of(one[1]))]
    if not asked:
        known = [address for _, address, _ in there_is]
        raise UserError(f"--list: there is nothing named {_quoted(name)}{hint(name, known)}")
    return "\n\n".join(
        f"{kind} {address}{_signature(function)}\n\n{textwrap.indent(documentation(function), '    ')}"
        for kind, address, function in asked
    )


def _signature(function: Callable) -> str:
    """What an address can say in brackets, with the defaults; "" where there is nothing to say."""
    known = _arguments(function).items()
    said = (f"{name}={'...' if p.default is p.empty else _short(p.default)}" for name, p in known)
    return f"({', '.join(said)})" if known else ""


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) and len(repr(value)) > 8 else repr(value)


def _modules(module: ModuleType) -> list[ModuleType]:
    """A module and, of a package, the public modules in it."""
    names = sorted(info.name for info in pkgutil.iter_modules(getattr(module, "__path__", [])))
    inner = [name for name in names if not name.startswith("_")]
    return [module, *(importlib.import_module(f"{module.__name__}.{name}") for name in inner)]


def _parse(address: str, field: str) -> tuple[str, dict[str, Any]]:
    right = "write a name, or a call with literal keyword arguments such as mlp(hidden=(32, 32))"
    try:
        node = ast.parse(address, mode="eval").body
        if isinstance(node, ast.Call) and not node.args and all(keyword.arg for keyword in node.keywords):
            # literal_eval reads numbers, strings, tuples and the like; it runs nothing.
            arguments = {keyword.arg: ast.literal_eval(keyword.value) for keyword in node.keywords}
            return ast.unparse(node.func), arguments
        if isinstance(node, ast.Name | ast.Attribute):
            return ast.unparse(node), {}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):  # as ast documents them
        pass
    raise UserError(f"config.{field}: {_quoted(address)} is not an address; {right}")


_TYPES = {
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31,
    "float": lambda value: (
        isinstance(value, int | float) and not isinstance(value, bool) and _in_float32(value)
    ),
    "str": lambda value: isinstance(value, str),
    "dict": lambda value: isinstance(value, dict),
    INNER: lambda value: isinstance(value, str),
}
_SIZES = {"int": ", below 2**31", "float": ", of a size that float32 holds"}


def _in_float32(value: float) -> bool:
    """Whether the number is one where it is used: neither NaN nor infinite there, nor 0 for being tiny."""
    return value == 0 or 2.0**-126 <= abs(value) < 2.0**128


def _quoted(value: Any) -> str:
    """A value as Python would write it, on one line of bearable length."""
    try:
        text = repr(value)
    except ValueError:  # Python writes no number of more than some thousand digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:60]} ... ({len(text)} characters)"


def _fits(value: Any, annotation: str) -> bool:
    """Whether a literal fits an annotation; what is not in the table is left to the function."""
    if annotation.startswith("tuple[") and annotation.endswith(", ...]"):
        entry = _TYPES.get(annotation[len("tuple[") : -len(", ...]")])
        return isinstance(value, tuple) and (entry is None or all(map(entry, value)))
    return annotation not in _TYPES or _TYPES[annotation](value)


# --- fields -------------------------------------------------------------------------------------------


def fields(config: ConfigDict) -> list[tuple[str, Any]]:
    """[(dotted name, value)] of every leaf."""
    return list(_leaves(config.to_dict()))


def unknown_field(field: str) -> str:
    """What to say of a field that does not exist: which part of it, and what is like it.

    >>> unknown_field("trian.epochs")
    "config.trian does not exist; did you mean 'train'?"
    >>> unknown_field("train.lr")
    "config.train.lr does not exist; did you mean 'train.learning_rate'?"
    """
    known, prefix, (part, *inner) = default().to_dict(), "", field.split(".")
    while inner and isinstance(known.get(part), dict) and f"{prefix}{part}" not in _PLAIN_DICTS:
        known, prefix, (part, *inner) = known[part], f"{prefix}{part}.", inner
    here = f"config.{prefix}{part}"
    if part in known and inner:
        return f"{here} is one field and has no {'.'.join(inner)!r} inside it"
    if part in known:
        return f"{here} is a group of fields; set one of them: {', '.join(known[part])}"
    beside = nearest(part, [name for name in known if not inner or isinstance(known[name], dict)])
    name = field.rpartition(".")[2]  # perhaps it stands in another group, that of training first
    everywhere = [
        (likeness(name, f.rpartition(".")[2]), f.startswith("train."), f) for f, _ in fields(default())
    ]
    alike, _, elsewhere = max(everywhere)
    if beside and (inner or alike <= likeness(part, beside)):
        return f"{here} does not exist; did you mean {prefix + beside!r}?"
    if alike >= _ELSEWHERE:
        return f"{here} does not exist; did you mean {elsewhere!r}?"
    return f"{here} does not exist; known are {', '.join(sorted(known))}"


_ELSEWHERE = 0.7  # likeness from which a field of another group is suggested


def _leaves(tree: dict, prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict) and f"{prefix}{name}" not in _PLAIN_DICTS:
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def completed(given: dict[str, Any], prefix: str = "", right: dict[str, Any] | None = None) -> dict[str, Any]:
    """A configuration as JSON gives it back, with the fields it has not at their defaults, in lists as well.

    Fields that do not exist are left in it. Raises UserError where one that exists is not of its type.
    """
    found = dict(given)
    for name, value in (default().to_dict() if right is None else right).items():
        field = f"{prefix}{name}"
        if isinstance(value, dict) and field not in _PLAIN_DICTS:
            group = given.get(name, {})
            if not isinstance(group, dict):
                raise UserError(f"config.{field} is {_quoted(group)}; it must be a group of fields")
            found[name] = completed(group, f"{field}.", value)
        elif name in given:
            is_tuple = isinstance(value, tuple) and isinstance(given[name], list)
            _check_type(field, tuple(given[name]) if is_tuple else given[name], value)
        else:
            found[name] = list(value) if isinstance(value, tuple) else value
    return found


def restored(described: dict[str, Any]) -> ConfigDict:
    """The configuration of `completed` fields: tuples in the place of lists, and nothing but fields."""
    config = default()

    def tuples(value: Any) -> Any:
        if isinstance(value, dict):
            return {name: tuples(inner) for name, inner in value.items()}
        return tuple(map(tuples, value)) if isinstance(value, list) else value

    for field, _ in fields(config):
        *groups, name = field.split(".")
        theirs, ours = described, config
        for group in groups:
            theirs, ours = theirs[group], ours[group]
        ours[name] = tuples(theirs[name])
    return config


def _check_fields(given: dict, right: dict, prefix: str) -> None:
    for name in given:
        if name not in right:
            raise UserError(unknown_field(f"{prefix}{name}"))
    for name, value in right.items():
        if name not in given:
            raise UserError(f"config.{prefix}{name} is missing; start from mtkd_jax.config.default()")
        if f"{prefix}{name}" in _PLAIN_DICTS:
            _check_type(f"{prefix}{name}", given[name], value)
        elif isinstance(value, dict) != isinstance(given[name], dict):
            kind = "a group of fields" if isinstance(value, dict) else f"like {value!r}"
            raise UserError(f"config.{prefix}{name} is {_quoted(given[name])}; it must be {kind}")
        elif isinstance(value, dict):
            _check_fields(given[name], value, f"{prefix}{name}.")
        else:
            _check_type(f"{prefix}{name}", given[name], value)


# Tuples whose default is empty, or whose entries are whole by chance, say here what they hold.
_ENTRY_TYPES = {
    "export.forms": "str",
    "data.augment.rand_augment": "int",
    "data.augment.own": "str",
    "report.metrics": "str",
    "report.corruptions": "str",
    "teachers.models": "str",
    "students.models": "str",
    "students.controls": "str",
    "students.controlled": "str",
    "teachers.init_from": "str",
    "teachers.logits": "str",
    "teachers.programs": "str",
    "teachers.classifiers": "str",
    "teachers.learning_rates": "float",
    "teachers.weight_decays": "float",
    "teachers.label_smoothings": "float",
    "teachers.mean": "float",
    "teachers.std": "float",
}
_ENTRY_EXAMPLES = {"int": (2, 7), "float": (0.001,), "str": ("mlp", "cnn")}
_PLAIN_DICTS = ("students.arguments",)  # one value, whatever its keys


def type_of_field(field: str) -> str:
    """What a value of the field has to be, in words."""
    default_value = dict(fields(default()))[field]
    if isinstance(default_value, tuple):
        return f"a tuple of {entry_type(field)}"
    kind = type(default_value).__name__
    words = "".join(f' or "{word}"' for word in WORDS.get(field, ()))
    return f"{'an' if kind == 'int' else 'a'} {kind}{_SIZES.get(kind, '')}{words}"


def entry_type(field: str) -> str:
    """The type of the entries of a field that is a tuple."""
    return _ENTRY_TYPES.get(field) or type(dict(fields(default()))[field][0]).__name__


def _check_type(field: str, value: Any, expected: Any) -> None:
    if isinstance(expected, tuple):
        entry = entry_type(field)
        right = isinstance(value, tuple) and all(map(_TYPES[entry], value))
        example = expected or _ENTRY_EXAMPLES[entry]
    else:
        is_word = isinstance(value, str) and value in WORDS.get(field, ())
        right = is_word or _TYPES[type(expected).__name__](value)
        example = {"vote": {}} if expected == {} else expected
    if not right:
        raise UserError(
            f"config.{field} is {_quoted(value)}; it must be {type_of_field(field)}, such as {example!r}"
        )
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, str) and ("\0" in text or not paths.is_text(text)):
            raise UserError(f"config.{field} is {_quoted(value)}; text must be UTF-8 without NUL")


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


def _check_distinct(field: str, values: Sequence, meanings: Sequence) -> None:
    for n, meaning in enumerate(meanings):
        if meaning in meanings[:n]:
            raise UserError(f"config.{field} names {values[n]!r} twice; once is enough")
