"""The public face: the names that `mtkd_jax` offers, for arrays as well as for configurations.

They call what the command line calls. Images are [N,h,w,c] or, when grey, [N,h,w]: uint8 (0..255), or
floats that are used as they are; labels [N] are whole numbers 0..C-1; logits are unnormalised. There are K
teachers and C classes. Whatever the user can mend is a `UserError`, one line.

    import mtkd_jax

    teachers = mtkd_jax.train_teachers(images, labels, num_members=5, epochs=30)
    student = mtkd_jax.distil(teachers, mode="output_avg")
    student.logits(more_images), student.save("student")
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import load_file

from mtkd_jax import addresses, experiment
from mtkd_jax import config as configuration
from mtkd_jax.addresses import quote
from mtkd_jax.data import assembly, loading
from mtkd_jax.deploy import deployed, export
from mtkd_jax.deploy import predict as predicting
from mtkd_jax.engine import population
from mtkd_jax.fusion import rules
from mtkd_jax.laboratory import rule_study
from mtkd_jax.plans import lending, plan
from mtkd_jax.report import document
from mtkd_jax.results import evaluation, intervals, lookup, metrics
from mtkd_jax.results.student import NUM_CHECKED, describe_student
from mtkd_jax.runs import workdir as run_folders
from mtkd_jax.runs.predictions import Group, Predictions
from mtkd_jax.system import interrupts, own_code, paths
from mtkd_jax.types import Array, DataSet, Ensemble, Images, Model, PyTree, UserError

__all__ = [
    "Student",
    "Teachers",
    "UserError",
    "compare_rules",
    "data_from_arrays",
    "default_config",
    "distil",
    "evaluate",
    "fuse",
    "load_data",
    "load_student",
    "predict",
    "run",
    "train_teachers",
    "write_report",
]

Part = Sequence  # (images, labels) or (images, labels, groups)
# Where a field is looked for that is given without its group.
OF_TEACHERS = ("train", "teachers", "data", "data.augment", "runtime", "")
OF_STUDENTS = ("students", "train", "export", "runtime", "")


# --- configurations -----------------------------------------------------------------------------------


def default_config() -> ConfigDict:
    """Every field there is with its default; `python -m mtkd_jax.main --help` says what each means.

    Examples:
        >>> config = default_config()
        >>> config.data.source, config.teachers.num_members
        ('digits', 5)
    """
    return configuration.default()


def run(
    config: ConfigDict, workdir: str | Path, data: DataSet | None = None, *, quiet: bool = False
) -> dict[str, Any]:
    """Train teachers and students, compare all of them and write the report; returns the dict of report.json.

    The whole experiment, as `python -m mtkd_jax.main` runs it. All that it makes lies in the folder
    `workdir`; called again, it goes on where it was interrupted, and of a finished run it only reads the
    report. `data`, with a test set, is taken in the place of `config.data.source`. `quiet` says nothing on
    stderr meanwhile.
    Raises UserError for what cannot work, most of it before any work, and Interrupted, with all training
    saved, on Ctrl-C or SIGTERM.

    Examples:
        >>> import tempfile
        >>> config = default_config()
        >>> config.data.source = "synthetic(num_classes=3, num_train=60, num_test=20, size=4)"
        >>> config.model.name, config.train.batch_size, config.train.epochs = "mlp(hidden=(4,))", 16, 1
        >>> config.students.modes = ()  # teachers and fusion alone
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     report = run(config, folder, quiet=True)
        >>> [row["name"] for row in report["rows"]]
        ['mlp(hidden=(4,))', 'linear on pixels', 'mean_probs', 'mean_logits', 'plurality', 'borda']
    """
    _check_is(config, ConfigDict, "run: config", "a ConfigDict, as default_config() makes one")
    if data is not None:
        _check_is(data, DataSet, "run: data", "a DataSet, as load_data and data_from_arrays make one")
        config = _of_arrays(config, data)
    return experiment.run(config, workdir, quiet, data)


def write_report(workdir: str | Path) -> dict[str, Any]:
    """Make the report of a finished run again, from its predictions alone; returns the dict of report.json.

    Writes report.json, .md and .html and plots/ in `workdir`, as `python -m mtkd_jax.report` does. Raises
    UserError where no run was finished there.

    Examples:
        >>> write_report("nowhere")
        Traceback (most recent call last):
        mtkd_jax.types.UserError: nowhere/predictions.npz: no such file; give the --workdir of a finished run
    """
    return document.write(paths.parse(workdir, "the folder of the run"))


# --- data ---------------------------------------------------------------------------------------------


def load_data(source: str, path: str | Path = "") -> DataSet:
    """The data of a source, checked: "digits", "npz", "folder(image_size=(64, 64))", ...; see `--list`.

    `path` is for sources that read a file or folder. Raises UserError naming what is wrong with the data.

    Examples:
        >>> data = load_data("digits")
        >>> data.train_images.shape, data.train_images.dtype, data.num_classes
        ((1437, 8, 8, 1), dtype('uint8'), 10)
    """
    _check_is(source, str, "load_data: source", "text such as 'digits' or 'folder(image_size=(64, 64))'")
    config = default_config()
    _check_is(path, str | os.PathLike, "load_data: path", "a path")
    config.data.source, config.data.path = source, os.fspath(path)
    return configuration.source_call(config)()


def data_from_arrays(
    images: Any,
    labels: Any,
    *,
    val: Part | None = None,
    test: Part | None = None,
    groups: Any = None,
    class_names: Iterable[str] = (),
    layout: str = "",
    name: str = "arrays",
) -> DataSet:
    """Arrays as checked data: `images` [N,h,w,c] or [N,h,w], uint8 or floats, and `labels` [N] in 0..C-1.

    `val` and `test` are pairs (images, labels). Without `val` a part of the training images is kept to
    validate on (`data.val_fraction`), without `test` there is nothing to report on: see `run`. Images of one
    of `groups` [N] (an aircraft, a patient) stay on one side of every cut; val and test then have theirs as a
    third entry. `layout="NCHW"` says that channels come first, where the shapes do not tell. Raises UserError
    naming the array and what it must be.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> images, labels = rng.integers(0, 256, (30, 4, 4, 3), np.uint8), np.arange(30) % 2
        >>> data = data_from_arrays(images, labels, class_names=("cat", "dog"))
        >>> data.train_images.shape, len(data.test_labels)
        ((30, 4, 4, 3), 0)
        >>> data_from_arrays(images, labels + 0.5)
        Traceback (most recent call last):
        mtkd_jax.types.UserError: arrays: train_labels: float64 labels: must be integers
    """
    if layout not in ("", *assembly.LAYOUTS):
        raise UserError(f"{name}: layout = {layout!r}: must be NHWC or NCHW, or '' where the shapes tell")
    train = (images, labels) if groups is None else (images, labels, groups)
    # Where there is no test set that of training stands in for it while everything is checked.
    parts = {"train": train, "test": train if test is None else test}
    parts |= {} if val is None else {"val": val}
    arrays: dict[str, np.ndarray] = {}
    for part, given in parts.items():
        if not isinstance(given, tuple | list) or len(given) != len(train):
            words = "(images, labels)" if groups is None else "(images, labels, groups)"
            raise UserError(f"{name}: {part}: must be {words}, as many as for training")
        for kind, array in zip(("images", "labels", "groups"), given):
            arrays[f"{part}_{kind}"] = _as_array(array, f"{name}: {part}_{kind}")
    if isinstance(class_names, str | bytes | Mapping) or not np.iterable(class_names):
        raise UserError(
            f"{name}: class_names is {quote(class_names)}; must be the names of all classes, in a list"
        )
    if given_names := [str(one) for one in class_names]:
        arrays["class_names"] = np.asarray(given_names)
    found = assembly.assemble(arrays, name=name, where=name, layout=layout)
    if test is not None:
        return found
    none = slice(0, 0)
    return dataclasses.replace(
        found,
        test_images=found.test_images[none],
        test_labels=found.test_labels[none],
        test_groups=None if found.test_groups is None else found.test_groups[none],
    )


# --- teachers and students ----------------------------------------------------------------------------


class Teachers:
    """K trained networks: what `train_teachers` returns.

    `ensemble` holds their weights, a `Population` an architecture; `names` [K] what they are called;
    `validation` the images [V,h,w,c] and labels [V] that no gradient has seen; `workdir` the run's folder.
    """

    def __init__(self, trained: experiment.Trained, data: DataSet | None, workdir: Path):
        self.workdir = workdir
        self._trained, self._data = trained, data

    @property
    def ensemble(self) -> Ensemble:
        return plan.ensemble_of(self._trained.done)

    @property
    def names(self) -> tuple[str, ...]:
        several = len(self.ensemble) > 1
        return tuple(
            f"{own.model.name} {name}" if several else name for own in self.ensemble for name in own.names
        )

    @property
    def class_names(self) -> tuple[str, ...]:
        return self._trained.split.dataset.class_names

    @property
    def validation(self) -> tuple[np.ndarray, np.ndarray]:
        split = self._trained.split
        return split.dataset.train_images[split.val], split.dataset.train_labels[split.val]

    def logits(self, images: Any) -> np.ndarray:
        """Logits [K,N,C] float32 of images like those of training; UserError for others.

        Of teachers who are known by their logits alone nobody knows what they say of other images: UserError.
        """
        for own in self.ensemble:
            if not own.model.can_be_asked:
                raise UserError(
                    f"{own.model.name}: these teachers are known by their logits of the data's own images, "
                    "and cannot be asked about others"
                )
        like = self._trained.split.dataset.train_images
        images = _images(images, like.shape[1:], like.dtype, "the teachers")
        return np.concatenate([population.logits(own, images) for own in self.ensemble])

    def __repr__(self) -> str:
        networks = ", ".join(f"{own.num_members} x {own.model.name}" for own in self.ensemble)
        return f"Teachers({networks}; {self._trained.split.dataset.name})"


@dataclasses.dataclass(frozen=True, eq=False)
class Student:
    """One trained network: what `distil` and `load_student` return.

    `card` says what made it: "model", "class_names", "input", "training", "data", "metrics", ...
    """

    model: Model
    variables: PyTree
    card: Mapping[str, Any]
    checked: np.ndarray  # [n,h,w,c] float32 as the network sees them: what a saved copy is compared on

    def logits(self, images: Any) -> np.ndarray:
        """Logits [N,C] float32 of images like those of training; UserError for others.

        Of a student of L places [N,L,C], and behind the logits what it predicts beside: `Outputs.exported`.
        """

        def ask(part: np.ndarray) -> Array:
            return export.logits_of(self.model, self.variables, loading.scale(jnp.asarray(part)))

        return population.map_blocks(ask, _images(images, *_taken(self.card), "the student"))

    def save(self, folder: str | Path) -> Path:
        """Write weights, StableHLO program and card into `folder`, load them again and compare; see `export`.

        A student that is there is replaced. Raises UserError for a folder that holds anything else, or in
        which the current one lies, and when the disk refuses. Returns the folder.
        """
        folder = paths.parse(folder, "the folder of the student")
        card = {**self.card, "task": self.model.module.task}
        logits = export.logits_of(self.model, self.variables, self.checked)
        export.save_student(folder, self.model, self.variables, card, (self.checked, logits))
        # Of its own network: where a function of the user's own lay then, it need not lie any more.
        export.verify_student(folder, lambda address, task: self.model, self.checked, logits)
        return folder

    def __repr__(self) -> str:
        return f"Student({self.card['model']}; {self.card['name']})"


def train_teachers(
    images: Any = None,
    labels: Any = None,
    *,
    val: Part | None = None,
    config: ConfigDict | None = None,
    model: str | Sequence[str] | None = None,
    num_members: int | None = None,
    workdir: str | Path | None = None,
    quiet: bool = False,
    **fields: Any,
) -> Teachers:
    """Train K networks at once, each from weights and in an order of its own.

    `images` and `labels` as in `data_from_arrays`, or the data it or `load_data` returned in the place of
    both, or nothing: then the data is that of `config`, whose fields (or the defaults: `mlp`, five members,
    60 epochs) are taken for all that is not given here. `model` is an address such as
    "cnn(widths=(16, 32))", or several, of each of which there are `num_members`. `fields` are fields of the
    configuration: `epochs=20`, `learning_rate=2e-3`, `num_train=100`, with the group where a name is in
    several: `train__epochs`.

    With a `workdir` all is kept there and gone on with when the call is made again; a temporary folder is
    removed with the teachers. The best of each member's weights are chosen on validation. Raises UserError
    for what cannot work, and Interrupted on Ctrl-C or SIGTERM.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> images, labels = rng.random((60, 4, 4), np.float32), np.arange(60) % 3
        >>> images[labels == 1, :2] += 1
        >>> small = dict(model="mlp(hidden=(4,))", num_members=2, epochs=2, batch_size=16, quiet=True)
        >>> teachers = train_teachers(images, labels, **small)
        >>> teachers.logits(images).shape
        (2, 60, 3)
        >>> train_teachers(images, labels, epoch=3)
        Traceback (most recent call last):
        mtkd_jax.types.UserError: config.train.epoch does not exist; did you mean 'train.epochs'?
    """
    config = configuration.default() if config is None else config
    _check_is(config, ConfigDict, "train_teachers: config", "a ConfigDict, as default_config() makes one")
    config = config.copy_and_resolve_references()
    data = images if isinstance(images, DataSet) else None
    if images is not None and data is None:
        if labels is None:
            raise UserError("train_teachers: images without labels; give train_teachers(images, labels)")
        data = data_from_arrays(images, labels, val=val)
    elif labels is not None or val is not None:
        raise UserError("train_teachers: labels and val go with images; data has both already")
    if data is not None:
        config = _of_arrays(config, data)
    if model is not None:
        several = isinstance(model, tuple | list)
        configuration.put(config, "model.name", model[0] if several and model else model)
        configuration.put(config, "teachers.models", tuple(model) if several else ())
    if num_members is not None:
        configuration.put(config, "teachers.num_members", num_members)
    _set_fields(config, fields, OF_TEACHERS)
    config.students.modes = config.students.controls = config.students.controlled = ()
    configuration.put(config, "students.arguments", {})  # of modes; other fields are for `distil`
    if config.students.num_seeds == configuration.AUTO:
        configuration.put(config, "students.num_seeds", 1)
    config.export.choose = "best"
    with contextlib.ExitStack() as stack:
        into = stack.enter_context(_folder(workdir))
        teachers = Teachers(experiment.train(config, into, quiet, data), data, into)
        weakref.finalize(teachers, stack.pop_all().close)
        return teachers


def distil(
    teachers: Teachers,
    mode: str = "output_avg",
    *,
    model: str | Sequence[str] | None = None,
    alphas: Sequence[float] = (0.0, 0.25, 0.5),
    temperatures: Sequence[float] = (1.0,),
    num_seeds: int = 1,
    workdir: str | Path | None = None,
    quiet: bool = False,
    **fields: Any,
) -> Student:
    """Train students of all teachers on the same data and return the best, by validation NLL.

    `mode` is the address of a method (`--list` names all), `model` that of the student's network (None: as
    the first teacher), or several, of which the best is returned whatever its size. Every one of `alphas`
    (weights of the HARD labels), `temperatures` and `num_seeds` seeds is a student. `fields` as in
    `train_teachers`: `epochs=20`, `transfer=("labelled", "unlabelled")` where `num_train` cut images away,
    ... `workdir`, another one than that of the teachers, is gone on with where these have a workdir too;
    `quiet` and what is raised are as there.

    Examples:
        >>> data = load_data("synthetic(num_classes=3, num_train=60, num_test=20, size=4)")
        >>> small = dict(epochs=1, batch_size=16, quiet=True)
        >>> teachers = train_teachers(data, model="mlp(hidden=(4,))", num_members=2, **small)
        >>> student = distil(teachers, "logit_avg", alphas=(0.5,), **small)
        >>> student.logits(data.test_images).shape
        (20, 3)
    """
    _check_is(teachers, Teachers, "distil: teachers", "Teachers, as train_teachers makes them")
    _check_is(mode, str, "distil: mode", "the address of one method")
    config = teachers._trained.config.copy_and_resolve_references()
    if configuration.trains_teachers(config):
        lending.borrow(config, teachers.workdir)
    asked = {"modes": (mode,), "alphas": alphas, "temperatures": temperatures, "num_seeds": num_seeds}
    of_teachers = configuration.teacher_models(config) or (config.model.name,)
    model = of_teachers[0] if model is None else model
    asked |= {"model": model, "models": ()} if isinstance(model, str) else {"model": "", "models": model}
    _set_fields(config, {f"students__{name}": value for name, value in asked.items()}, OF_STUDENTS)
    config.export.choose = mode
    _set_fields(config, fields, OF_STUDENTS)
    with _folder(workdir) as into:
        trained = experiment.train(config, into, quiet, teachers._data)
        predicted = evaluation.predict(*trained)
    chosen = lookup.network_to_deploy(predicted)
    if chosen is None or chosen[0].name != trained.config.students.modes[0]:
        raise UserError(
            f"distil: no student of {mode} is left, the loss of all was not finite; look at temperatures and "
            "train.learning_rate"
        )
    network, variables, card = describe_student(trained, predicted, *chosen)
    images = teachers.validation[0][:NUM_CHECKED]
    return Student(network, variables, card, np.asarray(loading.scale(jnp.asarray(images))))


def load_student(folder: str | Path) -> Student:
    """The student that `Student.save`, or a run in its student/, wrote.

    A network of the user's own is looked up where its run did, then in the current folder. Raises UserError
    naming the file when one is missing or is not what was saved.

    Examples:
        >>> load_student("nowhere")
        Traceback (most recent call last):
        mtkd_jax.types.UserError: nowhere/model.json: cannot be read: No such file or directory
    """
    folder = paths.parse(folder, "the folder of the student")
    with own_code.beside(_own_code_of(folder)):
        model, variables, card = export.load_student(folder, addresses.build_model)
    return Student(model, variables, card, load_file(folder / "check.safetensors")["images"])


def _own_code_of(student: Path) -> str:
    """The folder in which the run around a student's looked up files; "" where there is none."""
    _, run = run_folders.around(student)
    return run["runtime"]["own_code"] if run else ""


# --- decisions ----------------------------------------------------------------------------------------


class Predicted(NamedTuple):
    """What a student says of N images."""

    classes: tuple[str, ...]  # [N] names
    probabilities: np.ndarray  # [N,C] float64, rows sum to 1


def predict(student: Student | str | Path, images: Any) -> Predicted:
    """The class of every image, and how probable each class is.

    `student` may be the folder of a saved one, of which only the exported program is read: no network's code
    is needed. `images` are arrays like those of training, or files: a path, a folder, or a list of them; for
    a student of a table or of series these are such files, of which every line is told.
    Raises UserError for images of another kind, files that cannot be read, and a student that says a class of
    every place of an image (pixels, boxes, tokens, frames), which `Student.logits` and
    `python -m mtkd_jax.predict` ask.

    Examples:
        >>> data = load_data("synthetic(num_classes=3, num_train=60, num_test=20, size=4)")
        >>> small = dict(epochs=1, batch_size=16, quiet=True)
        >>> teachers = train_teachers(data, model="mlp(hidden=(4,))", num_members=2, **small)
        >>> found = predict(distil(teachers, alphas=(0.5,), **small), data.test_images)
        >>> len(found.classes), found.probabilities.shape, sorted(set(found.classes) - {"0", "1", "2"})
        (20, (20, 3), [])
    """
    if isinstance(student, Student):
        card, ask = student.card, student.logits
    else:
        _check_is(student, str | os.PathLike, "predict: student", "a Student, or the folder of one")
        program, card = deployed.load_program(paths.parse(student, "the folder of the student"))

        def ask(images: np.ndarray) -> np.ndarray:
            scaled = lambda part: program(loading.scale(jnp.asarray(part)))  # noqa: E731
            return population.map_blocks(scaled, images)

    predicting.check_says_one_class(card, "predict")
    shape, dtype = _taken(card)
    if _are_paths(images):
        given = [images] if isinstance(images, str | Path) else images
        files = [paths.parse(one, "the path", any_name=True) for one in given]
        if not predicting.reads_lines(card):
            predicting.check_reads_files(card)
            files = predicting.files(files)
        asked = predicting.inputs(card, files, card["input"].get("fit", "crop"))
        images = np.stack([one.read() for one in asked])
    logits = ask(_images(images, shape, dtype, "the student"))
    probabilities = predicting.softmax(logits.astype(np.float64))
    return Predicted(tuple(card["class_names"][c] for c in probabilities.argmax(-1)), probabilities)


def fuse(
    logits: Any, rule: str = "mean_probs", *, val_logits: Any = None, val_labels: Any = None
) -> np.ndarray:
    """K decisions made one: logits [K,N,C] of any teachers, trained here or elsewhere, to scores [N,C].

    The scores are log-probabilities, so that their argmax is the decision and `evaluate` takes them; of rank
    rules (plurality, borda, ...) they are places, of which only the argmax means anything. Rules that are
    fitted, such as weighted_mean, need `val_logits` [K,V,C] and `val_labels` [V], which no
    teacher was trained on. Raises UserError for a rule there is not, and for logits or labels it cannot take.

    Examples:
        >>> logits = np.log([[[0.8, 0.2]], [[0.4, 0.6]]])
        >>> np.exp(fuse(logits)).round(2).tolist()
        [[0.6000000238418579, 0.4000000059604645]]
        >>> fuse(logits, "borda").argmax(-1)
        array([0])
    """
    logits, rule = np.asarray(logits), _rule(rule)
    rules.check(rule, logits)
    parts = {"asked": logits}
    if rules.is_fitted(rule):
        if val_logits is None or val_labels is None:
            raise UserError(f"fuse: {rule} is fitted; give it val_logits [K,V,C] and val_labels [V]")
        parts["val"] = np.asarray(val_logits)
        rules.check(rule, parts["val"], val_labels)
        if (len(parts["val"]), parts["val"].shape[-1]) != (len(logits), logits.shape[-1]):
            raise UserError(
                f"fuse: val_logits are {parts['val'].shape} and logits {logits.shape}; "
                "must be of as many teachers and classes"
            )
    return lookup.fuse(rule, parts, None if val_labels is None else np.asarray(val_labels))["asked"]


def evaluate(logits: Any, labels: Any) -> dict[str, Any]:
    """How good logits [N,C] are on labels [N], as in the report.

    {"accuracy", "accuracy_ci95", "nll", "ece", "brier", "balanced_accuracy"}: shares in [0,1], NLL in nats,
    and a 95 % bootstrap interval over the examples. Log-probabilities are logits too; of places, as rank
    rules give them, only the accuracies mean anything. Raises UserError for arrays that do not fit.

    Examples:
        >>> found = evaluate([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0]], [0, 1, 1])
        >>> round(found["accuracy"], 3), round(found["nll"], 3)
        (0.667, 0.794)
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    if logits.ndim != 2:
        raise UserError(f"evaluate: logits must be [examples, classes], got shape {logits.shape}")
    rules.check("mean_probs", logits[None], labels, "evaluate")
    right = metrics.per_example(logits, labels)["accuracy"]
    interval = intervals.bootstrap_interval(right, ends=(0.0, 1.0))
    return metrics.summary(logits, labels) | {"accuracy_ci95": interval}


def compare_rules(
    logits: Any, labels: Any, *, val_logits: Any, val_labels: Any, names: Sequence[str] = ()
) -> dict[str, Any]:
    """Which rule should fuse these teachers? Every rule on logits [K,N,C] and labels [N], as plain numbers.

    {"rules", "skipped", "teachers", "diversity", "against_k", "findings", ...}: each rule's accuracy with its
    interval and its paired difference from the mean of the probabilities, what each teacher is worth, and
    sentences that say what of it is more than noise. `val_logits` [K,V,C] and `val_labels` [V], which no
    teacher was trained on, are what rules are fitted and teachers valued on. `names` are the rules to look
    at, () for all. It is the study of `python -m mtkd_jax.fusion`. Raises UserError for arrays that do not
    fit, and for a rule that there is not.

    Examples:
        >>> rng = np.random.default_rng(0)
        >>> labels = rng.integers(0, 2, 40)
        >>> logits = 2.0 * np.eye(2)[labels] + rng.standard_normal((3, 40, 2))
        >>> val = dict(val_logits=logits[:, 20:], val_labels=labels[20:])
        >>> found = compare_rules(logits[:, :20], labels[:20], **val, names=("plurality",))
        >>> [one["rule"] for one in found["rules"]]
        ['mean_probs', 'plurality']
    """
    logits, val = np.asarray(logits), np.asarray(val_logits)
    labels, val_labels = np.asarray(labels), np.asarray(val_labels)
    names = (names,) if isinstance(names, str) else names
    _check_is(names, Iterable, "compare_rules: names", "names of rules")
    names = [_rule(name) for name in names]
    for one, of in ((val, val_labels), (logits, labels)):
        rules.check(rule_study.REFERENCE, one, of, "compare_rules")
    if (len(val), val.shape[-1]) != (len(logits), logits.shape[-1]):
        raise UserError(
            f"compare_rules: val_logits are {val.shape} and logits {logits.shape}; "
            "must be of as many teachers and classes"
        )
    teachers = Group(
        key="teachers/given",
        name="given",
        role="teacher",
        architecture="given",
        method="",
        transfer="",
        alpha=None,
        temperature=None,
        members=tuple(f"teacher {k}" for k in range(len(logits))),
        val=val,
        test=logits,
    )
    found = Predictions(
        dataset="arrays",
        class_names=tuple(map(str, range(logits.shape[-1]))),
        sizes={"train": 0, "unlabelled": 0, "val": len(val_labels), "test": len(labels)},
        val_labels=val_labels,
        test_labels=labels,
        val_index=np.arange(len(val_labels)),
        test_index=np.arange(len(labels)),
        rules=(),
        groups=(teachers,),
    )
    return rule_study.study(found, names=names)


# --- what all of them share ---------------------------------------------------------------------------


def _rule(name: str) -> str:
    """The name of a rule, which may be an address of the user's own; UserError where there is none."""
    _check_is(name, str, "rule", "a name such as 'mean_probs'")
    if ":" in name:
        addresses.resolve("rule", name, "fusion.rules")
        return addresses.canonical("rule", name, "fusion.rules")
    rules.rule(name)
    return name


def _check_is(value: Any, kind: Any, what: str, hint: str) -> None:
    """Raise UserError unless a value is of this kind; the hint says what would be right."""
    if not isinstance(value, kind):
        raise UserError(f"{what} is {quote(value)}; must be {hint}")


def _as_array(values: Any, what: str) -> np.ndarray:
    """What stands for an array as one; UserError where nothing does."""
    try:
        found = np.asarray(values)
    except ValueError:  # rows of different lengths
        raise UserError(f"{what}: must be an array, of which all rows are of one shape") from None
    if found.ndim == 0:
        raise UserError(f"{what}: is {quote(values)}; must be an array")
    return found


def _of_arrays(config: ConfigDict, data: DataSet) -> ConfigDict:
    """The configuration, which says of its data that it was given in Python."""
    config = config.copy_and_resolve_references()
    configuration.put(config, "data.source", f"in_memory(name={data.name!r})")
    configuration.put(config, "data.path", "")
    return config


def _set_fields(config: ConfigDict, given: Mapping[str, Any], groups: Sequence[str]) -> None:
    """Set fields by keyword: `train__epochs`, or `epochs` for the first of `groups` that has it."""
    defaults = configuration.fields(configuration.default())
    for name, value in given.items():
        field = name.replace("__", ".")
        if "__" not in name:
            known = (f"{group}.{name}" if group else name for group in groups)
            field = next((one for one in known if one in defaults), f"{groups[0]}.{name}")
        if field not in defaults:
            raise UserError(configuration.unknown_field(field))
        if isinstance(defaults[field], tuple) and isinstance(value, list | np.ndarray):
            value = tuple(value)
        if isinstance(defaults[field], float) and type(value) is int:
            value = float(value)
        configuration.put(config, field, value)


@contextlib.contextmanager
def _folder(workdir: str | Path | None) -> Iterator[Path]:
    """The folder of a run; a temporary one where none is given, of which Ctrl-C leaves nothing."""
    if workdir is not None:
        yield paths.parse(workdir, "workdir")
        return
    with contextlib.ExitStack() as stack:
        folder = tempfile.mkdtemp(prefix="mtkd_jax-")
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        try:
            yield Path(folder)
        except interrupts.Interrupted as stopped:
            raise interrupts.Interrupted(stopped.signal, "without a workdir nothing is kept", False) from None


def _taken(card: Mapping[str, Any]) -> tuple[tuple[int, ...], np.dtype]:
    """Shape [h,w,c] and kind of the images a student was trained on."""
    pixels = card["input"]["range"] == deployed.PIXELS
    return tuple(card["input"]["shape"]), np.dtype(np.uint8 if pixels else np.float32)


def _images(images: Any, shape: Sequence[int], dtype: np.dtype, who: str) -> np.ndarray | Images:
    """Images [N,h,w,c] of the kind that networks were trained on; UserError for others."""
    shape = tuple(shape)
    if hasattr(images, "identity"):  # read when they are asked for
        found = images
    else:
        found = np.asarray(images)
        found = found[..., None] if found.ndim == 3 and shape[-1] == 1 else found
        found = found.astype(np.float32) if found.dtype.kind == "f" else found
    if found.shape[1:] != shape or found.dtype != dtype:
        sides = ",".join(map(str, shape))
        raise UserError(
            f"{who} learned from images [N,{sides}] of {dtype}, these are {found.shape} of {found.dtype}; "
            "must be as in training"
        )
    if isinstance(found, np.ndarray) and dtype.kind == "f":
        bad = np.flatnonzero(~np.isfinite(found).all(axis=(1, 2, 3)))
        if len(bad):
            raise UserError(
                f"{len(bad)} of {len(found)} images hold NaN or infinite pixels, the first is image "
                f"{bad[0]}; must be finite"
            )
    return found


def _are_paths(images: Any) -> bool:
    if isinstance(images, str | Path):
        return True
    return isinstance(images, list | tuple) and bool(images) and isinstance(images[0], str | Path)
