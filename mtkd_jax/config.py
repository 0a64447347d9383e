"""The configuration: every field with its default, and what follows from the fields."""

from __future__ import annotations

import contextlib
import copy
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
from ml_collections import ConfigDict, FieldReference

from mtkd_jax.addresses import (
    SIZES,
    TYPES,
    annotation_of,
    arguments_of,
    build,
    build_model,
    build_recipe,
    canonical,
    canonical_or_same,
    canonical_value,
    catalogue,
    check_argument,
    code_behind,
    map_each,
    quote,
    resolve,
    source_of,
    words_in,
)
from mtkd_jax.system import own_code, own_metrics, paths
from mtkd_jax.system.spelling import hint, likeness, nearest
from mtkd_jax.types import Corruption, DataSet, Metric, Model, Recipe, Task, UserError

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
FURTHER_SOURCES = ("data.other", "report.ood")  # beside data.source
TRANSFERS = LABELLED, UNLABELLED, OTHER = "labelled", "unlabelled", "other"
AUTO = "auto"
WORDS = {"students.num_seeds": (AUTO,)}  # field of a number -> the words that it may be instead
SEEDS_AT_ONCE = 5  # of a block, where students.num_seeds is "auto"
CONTROLS = ("random_teacher", "shuffled_teacher")  # who teaches instead: plans/controls.py
AT = " @ "  # between the name of a row and the architecture it is of
COHORT = " cohort"  # behind the name of a leader's row, of what all its peers say together
ALL = "all"  # of report.corruptions
ANY_TASK = Task(num_classes=10, num_heads=1, mean=(0.0,), std=(1.0,))  # to make networks before there is data
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
    config.data.val_fraction = 0.2  # cut from the training set first, stratified, unless the data brings it
    config.data.split = "grouped"  # groups (aircraft, camera) that the data names stay whole; or "random"
    config.data.other = ""  # a source of images without labels, for students.transfer "other"
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
    config.train.mixup = 0.0  # pairs are mixed by shares from Beta(mixup, mixup); 0 = off
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
    config.runtime.frozen_features = "auto"  # auto: frozen stages run once, where images stay the same | off
    config.runtime.checkpoint_seconds = 30.0  # between saves inside a stage; 0 = after every piece
    config.runtime.stream_mb = 256  # of images, and of their given logits, held at once, where not all are
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


@contextlib.contextmanager
def own_files(config: ConfigDict) -> Iterator[None]:
    """Within it addresses such as mine.py:softer are looked up where the configuration says, then here.

    Raises UserError for fields that do not exist, are missing, or are not of their type.
    """
    _check_fields(config.to_dict(), default().to_dict(), "")
    with own_code.beside(config.runtime.own_code):
        yield


def given_teachers(config: ConfigDict) -> tuple[str, ...]:
    """Those that are no networks of ours, of logits, programs and classifiers; () where they all are."""
    return (*config.teachers.logits, *config.teachers.programs, *config.teachers.classifiers)


def trains_teachers(config: ConfigDict) -> bool:
    """Whether teachers are trained by this run, and do not come trained."""
    return not (config.teachers.from_run or config.teachers.trained or given_teachers(config))


def trained_models(config: ConfigDict) -> dict[str, Model]:
    """{address: network} of all that are trained: of teachers, students, and those that the plan names.

    For some task: what counts is what the addresses say.
    """
    asked = trained_addresses(config)
    return {address: build_model(address, ANY_TASK, field) for address, field in asked.items()}


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
    for word in words_in(arguments.values()):
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


def student_models(config: ConfigDict) -> tuple[str, ...]:
    """Addresses of the students' architectures, each of which is trained with the whole grid."""
    return tuple(config.students.models) or (config.students.model or config.model.name,)


def row_of(name: str, model: str = "") -> str:
    """What a row of one architecture among several is called; "" leaves the name alone.

    Examples:
        >>> row_of("output_avg", "mlp(hidden=(8,))"), row_of("output_avg")
        ('output_avg @ mlp(hidden=(8,))', 'output_avg')
    """
    return f"{name}{AT}{model}" if model else name


def name_and_model(row: str) -> tuple[str, str]:
    """`row_of` the other way round; "" for the architecture where none is named.

    Examples:
        >>> name_and_model("output_avg @ mlp(hidden=(8,))"), name_and_model("best")
        (('output_avg', 'mlp(hidden=(8,))'), ('best', ''))
    """
    name, _, model = row.partition(AT)
    return name, model


def row_of_control(control: str, mode: str) -> str:
    """What the row of a mode's control is called.

    Examples:
        >>> row_of_control("shuffled_teacher", "output_avg")
        'shuffled_teacher:output_avg'
    """
    return f"{control}:{mode}"


def control_and_mode(row: str) -> tuple[str, str]:
    """`row_of_control` the other way round; "" for the control of every other row.

    Examples:
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
    check_distinct("report.metrics", names)


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
    check_distinct(field, asked)
    strengths = config.report.strengths
    if asked and not strengths:
        raise UserError("config.report.strengths is empty; name at least one, such as (1, 3, 5)")
    check_distinct("report.strengths", strengths)
    return {address: build("corruption", address, field) for address in asked}


def students_schedule(config: ConfigDict) -> tuple[int, int]:
    """(epochs, eval_every) of the students' stages."""
    students, train = config.students, config.train
    return students.epochs or train.epochs, students.eval_every or train.eval_every


def own_code_digests(config: ConfigDict) -> tuple[dict[str, str], dict[str, dict[str, str]]]:
    """`code_behind` all addresses: of what is trained, and {group: of what is told}, rules and metrics.

    That of `runtime` says how and not what, as do its fields.
    """
    trained: dict[str, str] = {}
    told: dict[str, dict[str, str]] = {"fusion": {}, "report": {}}
    flat = fields(config)
    for field, kinds in ADDRESSES.items():
        value = flat[field]
        found = {**told, "runtime": {}}.get(field.partition(".")[0], trained)
        for address in value if isinstance(value, tuple) else (value,):
            if field != "export.choose":  # a row, whose address stands elsewhere
                found |= code_behind(kinds, address, field)
            if field == "plan":  # whose words are addresses, too
                for word in words_in(resolve("plan", address, field)[1].values()):
                    found |= code_behind(("mode", "model"), word, field)
    return trained, told


def canonicalise(settings: dict[str, Any]) -> dict[str, Any]:
    """`ConfigDict.to_dict()`, or the same read from a file, with every address in its one spelling.

    What no longer is an address stays as it is.
    """
    settings = copy.deepcopy(settings)
    for field, kinds in ADDRESSES.items():
        *groups, name = field.split(".")
        group: Any = settings
        for inner in groups:
            group = group.get(inner) if isinstance(group, dict) else None
        if isinstance(group, dict) and name in group:
            spell = partial(canonical_or_same, kinds)
            group[name] = map_each(group[name], _canonical_row if field == "export.choose" else spell)
    students = settings.get("students")
    if isinstance(students, dict) and isinstance(students.get("arguments"), dict):
        students["arguments"] = {
            canonical_or_same(("mode",), mode): _canonical_arguments(mode, given)
            for mode, given in students["arguments"].items()
        }
    return settings


def _canonical_arguments(mode: Any, given: Any) -> Any:
    """The arguments of a mode, as `students.arguments` has them: a value each, or several to choose from."""
    try:
        function, _ = resolve("mode", str(mode), "students.arguments")
    except UserError:
        return given
    if not isinstance(given, dict):
        return given
    return {name: canonical_value("mode", function, name, value) for name, value in given.items()}


def in_one_spelling(config: ConfigDict) -> ConfigDict:
    """A copy of a valid configuration with every address as `canonical` writes it.

    So that what differs in spelling alone has one name: of stages, rows, folders, and in config.json.
    """
    config = config.copy_and_resolve_references()
    for field, value in _leaves(canonicalise(config.to_dict())):
        put(config, field, value)
    return config


def _canonical_row(row: Any) -> Any:
    """A row's name, and the architecture after it, each in its one spelling."""
    if not isinstance(row, str):
        return row
    name, model = name_and_model(row)
    return row_of(
        canonical_or_same(ADDRESSES["export.choose"], name.strip()),
        canonical_or_same(("model",), model.strip()),
    )


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
        raise UserError(f"config.{field} is {quote(given)}; it must be a dict of arguments")
    choices, open_to_choice = [], set()
    for name, value in given.items():
        check_key(field, name, "an argument of the mode")
        if name in arguments:
            raise UserError(f"config.{field}: the address gives {name} already")
        annotation = annotation_of(arguments_of(function)[name]) if name in arguments_of(function) else ""
        is_choice = isinstance(value, tuple) and not annotation.startswith("tuple")
        values = value if is_choice else (value,)
        if not values:
            raise UserError(f"config.{field}: no value for {name}")
        for one in values:
            check_argument(function, "mode", address, name, one, field)
        check_distinct(f"{field}[{name!r}]", values)
        choices.append([(name, one) for one in values])
        open_to_choice |= {name} if len(values) > 1 else set()
    return tuple(
        (
            build_recipe(address, field, **dict(chosen)),
            tuple((name, one) for name, one in chosen if name in open_to_choice),
        )
        for chosen in itertools.product(*choices)
    )


def check_key(field: str, key: Any, right: str) -> None:
    """Raise UserError for a key of a dict that is no text."""
    if not isinstance(key, str):
        raise UserError(f"config.{field}: the key {quote(key)} is no text; it must be {right}")


def source_call(config: ConfigDict) -> Callable[[], DataSet]:
    """The configured source with its arguments bound, not yet called."""
    address = config.data.source
    function, arguments = resolve("source", address, "data.source")
    parameters = inspect.signature(function).parameters
    if "path" in parameters and "path" not in arguments:
        if not config.data.path:
            raise UserError(f"config.data.path is empty; data.source {address} reads a path")
        arguments = {**arguments, "path": config.data.path}
    return source_of(address, function, arguments, "data.source")


def further_source(config: ConfigDict, field: str) -> Callable[[], DataSet]:
    """The source of `data.other` or `report.ood`, not yet called; a path it reads stands in its address."""
    address = fields(config)[field]
    function, arguments = resolve("source", address, field)
    return source_of(address, function, arguments, field)


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


def fields(config: ConfigDict) -> dict[str, Any]:
    """{dotted name: value} of every leaf."""
    return dict(_leaves(config.to_dict()))


def put(config: ConfigDict, field: str, new: Any) -> None:
    """Set a field that there is to a value, whose type is checked by `validate`."""
    *groups, name = field.split(".")
    group = config
    for depth, part in enumerate(groups, start=1):
        group = group.get(part)
        if not isinstance(group, ConfigDict):
            where = ".".join(groups[:depth])
            raise UserError(f"config.{where} is no group of fields; start from mtkd_jax.config.default()")
    with group.unlocked(), group.ignore_type():
        group[name] = new


def unknown_field(field: str) -> str:
    """What to say of a field that does not exist: which part of it, and what is like it.

    Examples:
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
        (likeness(name, f.rpartition(".")[2]), f.startswith("train."), f) for f in fields(default())
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
                raise UserError(f"config.{field} is {quote(group)}; it must be a group of fields")
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
    known = fields(config)
    for field, value in _leaves(described):
        if field in known:
            put(config, field, as_tuples(value))
    return config


def as_tuples(value: Any) -> Any:
    """A value of a field as JSON gives it back, with tuples in the place of lists, in dicts as well.

    Examples:
        >>> as_tuples({"logits.dkd": {"nontarget_weight": [2.0, 8.0]}})
        {'logits.dkd': {'nontarget_weight': (2.0, 8.0)}}
    """
    if isinstance(value, dict):
        return {name: as_tuples(inner) for name, inner in value.items()}
    return tuple(map(as_tuples, value)) if isinstance(value, list) else value


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
            raise UserError(f"config.{prefix}{name} is {quote(given[name])}; it must be {kind}")
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
    default_value = fields(default())[field]
    if isinstance(default_value, tuple):
        return f"a tuple of {entry_type(field)}"
    kind = type(default_value).__name__
    words = "".join(f' or "{word}"' for word in WORDS.get(field, ()))
    return f"{'an' if kind == 'int' else 'a'} {kind}{SIZES.get(kind, '')}{words}"


def entry_type(field: str) -> str:
    """The type of the entries of a field that is a tuple."""
    return _ENTRY_TYPES.get(field) or type(fields(default())[field][0]).__name__


def _check_type(field: str, value: Any, expected: Any) -> None:
    if isinstance(expected, tuple):
        entry = entry_type(field)
        right = isinstance(value, tuple) and all(map(TYPES[entry], value))
        example: Any = expected or ((value,) if TYPES[entry](value) else _ENTRY_EXAMPLES[entry])
    else:
        is_word = isinstance(value, str) and value in WORDS.get(field, ())
        right = is_word or TYPES[type(expected).__name__](value)
        example = {"vote": {}} if expected == {} else expected
    if not right:
        raise UserError(
            f"config.{field} is {quote(value)}; it must be {type_of_field(field)}, such as {example!r}"
        )
    for text in value if isinstance(value, tuple) else (value,):
        if isinstance(text, str) and ("\0" in text or not paths.is_text(text)):
            raise UserError(f"config.{field} is {quote(value)}; text must be UTF-8 without NUL")


def check_distinct(field: str, values: Sequence, meanings: Sequence | None = None) -> None:
    """Raise UserError where two of the values, or what they mean, are the same."""
    meanings = values if meanings is None else meanings
    for n, meaning in enumerate(meanings):
        if meaning in meanings[:n]:
            raise UserError(f"config.{field} names {values[n]!r} twice; once is enough")
