"""The teachers: K networks of each architecture trained at once, and what makes them differ."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mtkd_jax.addresses import build_model, canonical, code_behind
from mtkd_jax.config import GIVEN, given_teachers, teacher_models, teaching_recipe
from mtkd_jax.data import loading
from mtkd_jax.data.loading import Split
from mtkd_jax.engine import jobs, population
from mtkd_jax.engine.jobs import Job, per_member
from mtkd_jax.engine.training import Fitted, as_fitted, check_owner, concatenate
from mtkd_jax.methods.peers import UNIFIED, Correlated
from mtkd_jax.methods.seams import SUPERVISED
from mtkd_jax.methods.teaching import CLASSIFIER
from mtkd_jax.models.friendly import StudentFriendly
from mtkd_jax.models.intermediate import NETWORK, Intermediate
from mtkd_jax.models.specialists import Specialist
from mtkd_jax.plans import given, pretrained
from mtkd_jax.plans.lending import NOT_LENT
from mtkd_jax.runs import checkpoint, workdir
from mtkd_jax.system import paths
from mtkd_jax.system.text import seed_of, slug
from mtkd_jax.types import Model, Population, PyTree, Recipe, Task, UserError

STAGE_PREFIX = given.STAGE_PREFIX
SAME = 0.01  # published statistics are of whole training sets: those of a part differ by some thousandths


def job(config: ConfigDict, split: Split, address: str, stage: str = "") -> Job:
    """Training K members of the architecture `address` on the labelled examples, each in its own order.

    In the stage of these teachers, or in another `stage`, by which all of them begin otherwise.

    Member k has its own initial weights, data order and augmentation (from the seed, the architecture and
    k alone), its own Bernoulli(p) subset (Zuchniak 2023) or bootstrap sample, and its own learning rate,
    weight decay and label smoothing. Smaller subsets are wrapped to the steps of the largest one. With
    `teachers.init_from` it begins with the weights of a file.
    """
    model, recipe = own_network(config, split, address), teaching_recipe(config) or SUPERVISED
    job = _apart(config, split, address, stage or stage_name(address), model, recipe)
    return pretrained.initialise(job, split, config.teachers.init_from, "teachers.init_from", heads=True)


def classifiers_job(config: ConfigDict, split: Split, address: str, trained: Fitted, after: str) -> Job:
    """Training a classifier after a stage of every teacher, each on the examples which that has seen.

    The teachers are those `trained`, and stay as they are.
    """
    taught = trained.population
    module = Intermediate(taught.model.module, split.dataset.num_classes, after)
    model = Model(f"{taught.model.name} after {after}", module, taught.model.convolutional)
    job = _apart(config, split, address, classifiers_stage(address, after), model, CLASSIFIER)
    drawn = population.init(model, job.init_keys, job.image.shape[1:])
    start = {kind: {**drawn.get(kind, {}), NETWORK: of} for kind, of in taught.variables.items()}
    left = [k for k, name in enumerate(taught.names) if name not in trained.diverged]
    return jobs.part(dataclasses.replace(job, start=start), left)


def friendly_job(
    config: ConfigDict, split: Split, address: str, model: StudentFriendly, recipe: Recipe
) -> Job:
    """Training teachers with branches; they begin as those of `job`, and are all that comes out of it."""
    plain = job(config, split, address)
    made = _apart(config, split, address, stage_name(address), model, recipe)
    if plain.start is None:
        return made
    start = dict(population.init(model, made.init_keys, made.image.shape[1:]))
    for kind, of in plain.start.items():
        start[kind] = {**start.get(kind, {}), **of}
    return dataclasses.replace(made, start=start)


def _apart(config: ConfigDict, split: Split, address: str, stage: str, model: Model, recipe: Recipe) -> Job:
    """K networks, each on the examples of the teacher of its number and in an order of its own."""
    train, num_members = config.train, config.teachers.num_members
    seen = [examples_of(config, split, address, k) for k in range(num_members)]
    num_steps = max(1, max(map(len, seen)) // train.batch_size)

    def order(epoch: int) -> np.ndarray:
        orders = [
            loading.epoch_order(
                indices,
                num_steps=num_steps,
                batch_size=train.batch_size,
                key=(config.seed, seed_of(stage), k, epoch),
                labels=jobs.balanced_by(config, split),
            )
            for k, indices in enumerate(seen)
        ]
        return np.stack(orders, axis=1)

    return jobs.make(
        config,
        stage=stage,
        model=model,
        recipes=(recipe,),
        members=range(num_members),
        names=tuple(f"teacher {k}" for k in range(num_members)),
        hyper={**_hyper(config), **_hyper_of(recipe, num_members)},
        temperatures=(1.0,),
        order=order,
        shown=jobs.show(split, jobs.examples(config, split)),
        epochs=train.epochs,
        eval_every=train.eval_every,
        patience=config.teachers.patience,
        seeded_by=stage,
    )


def specialists_job(config: ConfigDict, split: Split, address: str) -> Job:
    """Training K members of one architecture as one network, of which each answers for its classes alone.

    Member m's logits are multiplied by K/2 where it covers the class and by 0 elsewhere. With two
    specialists a class, the plain mean over the K is then the mean over these two, z_c: the unified
    teacher's logits, whose cross-entropy all are trained on, on the same batches. What one says alone means
    little, so there are no best weights to choose by validation: those of the last step are kept.
    """
    num_members, inner = config.teachers.num_members, network(split, address)
    model = Model(f"specialist {inner.name}", Specialist(inner.module), inner.convolutional)
    job = _together(config, split, specialists_stage(address), model, UNIFIED, "specialist")
    variables: PyTree = pretrained.calibrate(job, split).start  # which a specialist has in any case
    share = coverage(num_members, split.dataset.num_classes) * np.float32(num_members / 2)
    return dataclasses.replace(job, start={**variables, "coverage": {"share": jnp.asarray(share)}})


def correlated_job(config: ConfigDict, split: Split, address: str, strength: float) -> Job:
    """Training K members of one architecture on the same batches by `peers.Correlated`; the last weights."""
    recipe = UNIFIED._replace(name="correlated", term=Correlated(strength))
    job = _together(config, split, stage_name(address), network(split, address), recipe, "teacher")
    return pretrained.initialise(job, split, (), "teachers.init_from", heads=True)


def _together(config: ConfigDict, split: Split, stage: str, model: Model, recipe: Recipe, name: str) -> Job:
    """K networks that are one cohort of `recipe`, each with its own initial weights, on the same batches."""
    train, num_members = config.train, config.teachers.num_members
    num_steps = max(1, len(split.train) // train.batch_size)
    places = np.arange(num_members, dtype=np.int32)
    return jobs.make(
        config,
        stage=stage,
        model=model,
        recipes=(recipe._replace(num_peers=num_members),),
        members=range(num_members),
        names=tuple(f"{name} {k}" for k in range(num_members)),
        hyper={**_hyper(config), "mates": np.tile(places, (num_members, 1)), "place": places},
        temperatures=(1.0,),
        order=lambda epoch: loading.epoch_order(
            split.train,
            num_steps=num_steps,
            batch_size=train.batch_size,
            key=(config.seed, seed_of(stage), epoch),
            labels=jobs.balanced_by(config, split),
        ),
        shown=jobs.show(split, jobs.examples(config, split)),
        epochs=train.epochs,
        eval_every=train.epochs,
        patience=0,
        seeded_by=stage,
    )


def coverage(num_specialists: int, num_classes: int) -> np.ndarray:
    """[K,C] bool: which specialist covers which class; two for every class, C >= K >= 3.

    The classes fall into K runs of one size, give or take a class; specialist m covers runs m and m + 1, the
    last one also the first. For ten classes and five specialists 0-3, 2-5, 4-7, 6-9 and 8, 9, 0, 1; the
    released code has 0-3, 1-4, 4-7, 6-9 and 5, 8, 9, 0 there: as many each, but one pair shares three.

    >>> coverage(3, 4).astype(int).tolist()
    [[1, 1, 1, 0], [0, 0, 1, 1], [1, 1, 0, 1]]
    """
    run_of_class = np.arange(num_classes) * num_specialists // num_classes
    return (run_of_class[None, :] - np.arange(num_specialists)[:, None]) % num_specialists <= 1


def _hyper(config: ConfigDict) -> dict[str, np.ndarray]:
    teachers, train, num_members = config.teachers, config.train, config.teachers.num_members
    return {
        "learning_rate": per_member(teachers.learning_rates, train.learning_rate, num_members),
        "weight_decay": per_member(teachers.weight_decays, train.weight_decay, num_members),
        "label_smoothing": per_member(teachers.label_smoothings, train.label_smoothing, num_members),
        "target": np.zeros(num_members, np.int32),
    }


def _hyper_of(recipe: Recipe, num_members: int) -> dict[str, np.ndarray]:
    """The numbers of the method by which teachers are trained, alike for all; none of labels alone."""
    own = {} if recipe is SUPERVISED else {"alpha": 1.0, "temperature": 1.0, **dict(recipe.hyper)}
    return {name: np.full(num_members, value, np.float32) for name, value in own.items()}


def beginning(config: ConfigDict, split: Split, address: str) -> str:
    """For the report: the files whose weights the teachers began with, and whether their heads did not."""
    files = config.teachers.init_from
    if not files:
        return ""
    model = own_network(config, split, address)
    read = pretrained.variables(files, model, "teachers.init_from", any_classes=True)
    num_classes = split.dataset.num_classes
    anew = any(own["params"]["heads"]["bias"].shape[-1] != num_classes for own in read)
    return f"The teachers began with the weights of {', '.join(files)}" + (
        f"; heads for another number of classes than {num_classes} began anew." if anew else "."
    )


def borrow(
    config: ConfigDict, split: Split, into: Path | None = None
) -> tuple[dict[str, Fitted], tuple[str, ...]]:
    """Teachers that come trained, by stage, and a note for the report; ({}, ()) where there are none.

    Those of the finished run `teachers.from_run`, with `teachers.trained` those of the files
    `teachers.init_from`, or those of `config.GIVEN`, of which the run's own folder `into` may have kept some.
    Raises UserError unless the run that lends them had the same data and the same split: a teacher that has
    seen what is validation here would make every choice of this run worthless. Of files only the user can
    know that.
    """
    if given_teachers(config):
        return given.borrow(config, split, into)
    if config.teachers.trained:
        return _from_files(config, split)
    if not config.teachers.from_run:
        return {}, ()
    source = paths.parse(config.teachers.from_run, "config.teachers.from_run")
    ours = {
        "num_members": config.teachers.num_members,
        "models": [canonical("model", address, "teachers.models") for address in teacher_models(config)],
    }
    their = workdir.read_config(source) if source.is_dir() else None
    if their is None:
        raise UserError(
            f"config.teachers.from_run: {source} holds no run; name the --workdir of a finished one"
        )
    if elsewhere := [field for field in GIVEN if their["teachers"][field.removeprefix("teachers.")]]:
        raise UserError(
            f"config.teachers.from_run: {source} has trained no teachers; name those that it had, in "
            f"{' and '.join(elsewhere)}"
        )
    if other := next((name for name in ("from_run", "trained") if their["teachers"][name]), None):
        raise UserError(
            f"config.teachers.from_run: {source} has trained no teachers, its own came from elsewhere by "
            f"teachers.{other}; name the run or the files that they came from"
        )
    plan = their["plan"].partition("(")[0]
    if plan in NOT_LENT:
        raise UserError(
            f"config.teachers.from_run: {source} has trained teachers of plan {plan}, which are not lent; "
            "name a run of another plan"
        )
    theirs = {
        "num_members": their["teachers"]["num_members"],
        "models": their["teachers"]["models"] or [their["model"]["name"]],
    }
    if config.teachers.out_of_bag:
        mend = "what they have trained on is drawn by it again: set it as that run has it"
        _check_same(source, _drawing(their), _drawing(config), f"{mend}, or out_of_bag=False")
    _check_same(source, theirs, ours, f"set teachers.{', teachers.'.join(ours)} as that run has them")
    code = {place: sha for one in ours["models"] for place, sha in code_behind(("model",), one).items()}
    _check_same(source, their.get("own_code", {}), code, "put that code back, or train these teachers anew")
    check_data(source, split)
    found = {
        stage_name(address): _restore(source, address, split, config.teachers.num_members)
        for address in teacher_models(config)
    }
    count = sum(fitted.population.num_members for fitted in found.values())
    return found, (f"The {count} teachers were trained by an earlier run, {source}.",)


def check_data(source: Path, split: Split) -> None:
    """Raise UserError unless the run in `source` had this data and this split."""
    mend = "use the same data, num_train, val_fraction and seed"
    _check_same(source, workdir.read_data_identity(source), workdir.data_identity(split), mend)


def _drawing(config: Mapping[str, Any]) -> dict[str, Any]:
    """What decides, with the data and the architecture, which examples each teacher sees."""
    teachers = config["teachers"]
    of_teachers = {name: teachers[name] for name in ("bootstrap", "subset_fraction", "folds")}
    return {"seed": config["seed"], "split": config["data"]["split"], **of_teachers}


def _from_files(config: ConfigDict, split: Split) -> tuple[dict[str, Fitted], tuple[str, ...]]:
    files, (address,) = config.teachers.init_from, teacher_models(config)
    model = own_network(config, split, address)
    read = population.stack(pretrained.variables(files, model, "teachers.init_from"))
    names = tuple(f"teacher {k}" for k in range(len(files)))
    unknown = np.full(len(files), np.nan, np.float32)  # no validation has chosen these weights
    found = Fitted(Population(model, read, {}, names), unknown, (), 0.0)
    notes = (f"The teachers are those of {', '.join(files)}, as they are.", _normalised(config, split))
    return {stage_name(address): found}, notes


def _statistics(config: ConfigDict) -> Statistics | None:
    """(mean, std) that the files' networks were trained with, where the configuration says so."""
    return (tuple(config.teachers.mean), tuple(config.teachers.std)) if config.teachers.mean else None


def _normalised(config: ConfigDict, split: Split) -> str:
    """For the report: what teachers that come trained see, which should be what they were trained with."""
    own, given = loading.channel_statistics(split), _statistics(config)
    if given is None:
        return (
            "The teachers' images are normalised by mean and std of this run's training images; if they were "
            "trained with others, set teachers.mean and teachers.std."
        )
    differ = ""
    if not np.allclose(given, own, rtol=0, atol=SAME):
        differ = f" Those of this run's training images, as the students have them, differ: {_in_words(own)}."
    return f"The teachers' images are normalised by {_in_words(given)} (teachers.mean, teachers.std).{differ}"


def _in_words(statistics: Statistics) -> str:
    """
    >>> _in_words(((0.5, 0.25), (0.2, 0.1)))
    'mean 0.5, 0.25; std 0.2, 0.1'
    """
    return "; ".join(
        f"{name} {', '.join(f'{value:.3g}' for value in values)}"
        for name, values in zip(("mean", "std"), statistics)
    )


def _check_same(source: Path, theirs: dict, ours: dict, mend: str) -> None:
    for name in ours:
        if ours[name] != theirs.get(name):
            raise UserError(
                f"config.teachers.from_run: {source} has another {name}: {theirs.get(name)!r} there, "
                f"{ours[name]!r} here; {mend}"
            )


def _restore(source: Path, address: str, split: Split, num_members: int) -> Fitted:
    folder = source / "checkpoints" / stage_name(address)
    whole = checkpoint.latest(folder / "finished")
    parts = sorted(folder.glob("part-*"), key=lambda part: (len(part.name), part.name))  # -10 after -9
    their = (workdir.read_config(source) or {}).get("teachers", {})
    statistics = (tuple(their["mean"]), tuple(their["std"])) if their.get("mean") else None
    model, run = network(split, address, statistics), workdir.read_run(source)
    each = [_restored_part(part, model, split, run) for part in ([folder] if whole else parts)]
    found = [part for part in each if part is not None]
    if len(found) < len(each) or sum(part.population.num_members for part in found) != num_members:
        raise UserError(f"config.teachers.from_run: {folder} holds no finished teachers; let that run finish")
    return concatenate(found)


def _restored_part(folder: Path, model: Model, split: Split, run: str) -> Fitted | None:
    """Teachers that were trained at the same time; None where they have not been finished."""
    image = loading.example_image(split)

    def like(info: dict) -> dict:
        check_owner(info, folder, folder.as_posix().rpartition("checkpoints/")[2], run)
        keys = jax.random.split(jax.random.key(0), len(info["members"]))
        found = {
            "variables": jax.eval_shape(jax.vmap(model.init, in_axes=(0, None)), keys, image),
            "val_nll": jax.ShapeDtypeStruct(keys.shape, np.float32),
            "alive": jax.ShapeDtypeStruct(keys.shape, bool),
        }
        if number := info.get("checkpoints"):
            found["bank"] = jax.tree.map(
                lambda leaf: jax.ShapeDtypeStruct((len(keys), number, *leaf.shape[1:]), leaf.dtype),
                found["variables"],
            )
        return found

    stored = checkpoint.restore(folder / "finished", like)
    if stored is None:
        return None
    _, result, info = stored
    return as_fitted(
        Population(model, result["variables"], {}, tuple(info["members"])), result, info["seconds"]
    )


Statistics = tuple[tuple[float, ...], tuple[float, ...]]  # mean and std of every channel, of images in 0..1


def network(split: Split, address: str, statistics: Statistics | None = None) -> Model:
    """The one-headed network of a teacher for this data, which normalises by its own statistics or others.

    Raises UserError where these are of another number of channels, or of another scale than 0..1.
    """
    mean, std = own = loading.channel_statistics(split)
    for name, values in zip(("mean", "std"), statistics or ()):
        if len(values) != len(mean):
            raise UserError(
                f"config.teachers.{name}: has {len(values)} values for images of {len(mean)} channels; give "
                "one each"
            )
    if statistics is not None and split.dataset.train_images.dtype == np.uint8:
        for name, values in zip(("mean", "std"), statistics):
            if any(not 0 <= value <= 1 for value in values):
                raise UserError(
                    f"config.teachers.{name}: {values} is not of images in 0..1, which networks see; divide "
                    "what is of images in 0..255 by 255"
                )
    mean, std = statistics or own
    return build_model(address, Task(split.dataset.num_classes, 1, mean, std), "teachers.models")


def own_network(config: ConfigDict, split: Split, address: str) -> Model:
    """`network`, which normalises by `teachers.mean` and `teachers.std` where these are set."""
    return network(split, address, _statistics(config))


def stage_name(address: str) -> str:
    """The stage, and so the checkpoint folder, of one architecture's teachers."""
    return f"{STAGE_PREFIX}{slug(address)}"


def specialists_stage(address: str) -> str:
    """The stage that trains the specialists of an architecture."""
    return f"{STAGE_PREFIX}specialists-{slug(address)}"


def thinned_stage(address: str) -> str:
    """The stage that draws the dropout of one network of an architecture."""
    return f"{STAGE_PREFIX}thinned-{slug(address)}"


def classifiers_stage(address: str, after: str) -> str:
    """The stage that trains classifiers after a stage of the teachers of an architecture."""
    return f"classifiers-{slug(address)}-{after}"


def examples_of(config: ConfigDict, split: Split, address: str, k: int) -> np.ndarray:
    """The training examples that teacher k of an architecture sees, as rows of the data."""
    options, groups = config.teachers, split.dataset.train_groups
    labels = loading.strata(split.dataset.train_labels)
    key = (config.seed, seed_of(stage_name(address)), k)
    if options.folds:
        whole = groups if config.data.split == "grouped" else None
        return loading.all_but_one_part(split.train, labels, whole, k, options.num_members, config.seed)
    if options.bootstrap:
        return loading.bootstrap(split.train, labels, key)
    if options.subset_fraction < 1:
        return loading.subset(split.train, labels, options.subset_fraction, key)
    return split.train


def speakers(config: ConfigDict, split: Split, num_teachers: int) -> np.ndarray | None:
    """[N,K] bool, which of K teachers teach which training images; None where all teach all of them.

    With `teachers.out_of_bag` those who have not trained on an image, so that what they say of it is no
    memory of its label (cross-fitting: Dao et al. 2021, arXiv 2104.09732); images without labels are taught
    by all. Raises UserError as `loading.speakers` does.
    """
    by_data = loading.speakers(split.dataset, num_teachers)
    if not config.teachers.out_of_bag:
        return by_data
    speaks = np.ones((len(split.dataset.train_labels), num_teachers), bool)
    members = itertools.product(teacher_models(config), range(config.teachers.num_members))
    for column, (address, k) in enumerate(members):
        speaks[examples_of(config, split, address, k), column] = False
    return speaks if by_data is None else speaks & by_data


def out_of_bag(config: ConfigDict, split: Split) -> str:
    """For the report: who teaches the labelled images, where that is not all teachers."""
    num_teachers = len(teacher_models(config)) * config.teachers.num_members
    speaks = speakers(config, split, num_teachers) if config.teachers.out_of_bag else None
    if speaks is None:
        return ""
    voices = speaks[split.train].sum(axis=1)
    return (
        f"A labelled image is taught by the teachers that have not trained on it: {voices.mean():.1f} of "
        f"{num_teachers} on average; {np.count_nonzero(voices == 0)} of {len(voices)} have none, and their "
        "labels count alone."
    )
