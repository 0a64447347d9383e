"""A `Job` is one stage's work, ready to run; here the configuration and the data become one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mtkd_jax.addresses import build
from mtkd_jax.config import augmentation
from mtkd_jax.data import loading
from mtkd_jax.data.loading import Split
from mtkd_jax.engine import layouts, places
from mtkd_jax.engine.population import frozen_parts, take
from mtkd_jax.engine.step import Program, StageData
from mtkd_jax.mesh import Layout
from mtkd_jax.methods.seams import (
    configured_stimulus,
    deploy_params,
    every_leaf,
    frozen_teachers,
    identity_view,
    no_mem,
    nothing_after,
)
from mtkd_jax.system.text import seed_of
from mtkd_jax.tasks import kinds
from mtkd_jax.types import (
    Array,
    Ensemble,
    Examples,
    Images,
    Model,
    Population,
    PyTree,
    Recipe,
    UserError,
)


@dataclasses.dataclass(frozen=True)
class Job:
    """What `training.fit` needs: what is trained, from what, in which order, for how long."""

    stage: str  # also the name of its checkpoint folder
    program: Program
    stage_data: StageData
    names: tuple[str, ...]  # [M]
    hyper: Mapping[str, np.ndarray]  # {name: [M,...]}
    init_keys: Array  # [M] typed keys: initial weights and each member's own randomness
    order: Callable[[int], np.ndarray]  # epoch -> indices [S,B], or [S,M,B] when members have their own
    validation: tuple[Array, Array]  # images [V,h,w,c], labels [V]
    epochs: int
    eval_every: int  # epochs between validations
    patience: int  # epochs without a better validation NLL before a member stops; 0 = never
    candidates: tuple[Layout, ...] = ()  # layouts to choose from by timing; program.layout is the first guess
    at_once: int = 0  # members trained at the same time; 0 = as many as fit into memory
    teacher_cache: str = "off"  # as config.runtime.teacher_cache
    frozen_features: str = "auto"  # as config.runtime.frozen_features
    # of which a piece's are on the device at once; None: all, in stage_data
    images: np.ndarray | Images | None = None
    stream_bytes: int = 2**28  # of them, with their given logits, held at once
    steps_at_once: int = 256  # of a piece: enough to hide the host, few enough to be asked to stop
    start: PyTree | None = None  # variables [M,...] to begin with; None = drawn from init_keys
    checkpoints: int = 0  # how often its best weights are kept, after equal shares of its rounds; see Fitted
    run: str = ""  # what names the run in its checkpoints; "" = none in particular
    whole: Model | None = None  # of which program.model is the trained part; None = it is the whole

    @property
    def num_steps(self) -> int:
        return self.program.num_steps

    @property
    def steps_per_epoch(self) -> int:
        return self.num_steps // self.epochs

    @property
    def steps_per_round(self) -> int:
        return self.steps_per_epoch * self.eval_every

    @property
    def network(self) -> Model:
        """The whole network that is trained, with what is not deployed of it."""
        return self.whole or self.program.model

    @property
    def model(self) -> Model:
        """The whole network that comes out of it."""
        return self.network.deployed

    @property
    def num_peers(self) -> int:
        return self.program.recipes[0].num_peers

    @property
    def image(self) -> jax.ShapeDtypeStruct:
        """One image [1,h,w,c] as the networks see it."""
        return jax.eval_shape(lambda images: loading.scale(images[:1]), self.validation[0])


class Shown(NamedTuple):
    """What the networks of a stage see."""

    examples: Examples
    validation: tuple[Array, Array]  # images [V,h,w,c], labels [V]
    # those of training, where they are read when they are asked for
    images: np.ndarray | Images | None = None
    task: str = "classes"  # of the data set, as its grid
    grid: tuple[int, int] | None = None


def show(split: Split, examples: Examples) -> Shown:
    """These examples of a data set, with what it keeps to validate on."""
    data = split.dataset
    return Shown(examples, loading.validation_set(split), loading.streamed(split), data.task, data.grid)


def make(
    config: ConfigDict,
    *,
    stage: str,
    model: Model,
    recipes: tuple[Recipe, ...],
    members: Iterable[int],
    names: tuple[str, ...],
    hyper: Mapping[str, np.ndarray],
    temperatures: tuple[float, ...],
    order: Callable[[int], np.ndarray],
    shown: Shown,
    epochs: int,
    eval_every: int,
    patience: int,
    seeded_by: str,
    ensemble: Ensemble = (),
    prepared: Mapping[str, Callable] | None = None,
    augment: bool = True,
) -> Job:
    """A Job; member m starts from key (seed, seeded_by, members[m]), whoever stands beside it."""
    examples, validation, images, task, grid = shown
    train, num_steps = config.train, epochs * len(order(0))
    if train.batch_size % config.runtime.data_shards:
        raise UserError(
            f"config.train.batch_size: {train.batch_size} does not divide over "
            f"config.runtime.data_shards = {config.runtime.data_shards} devices"
        )
    if num_steps < train.accumulate:
        raise UserError(
            f"config.train.accumulate: {train.accumulate} steps make one update; must be at most the "
            f"{num_steps} of {stage}"
        )
    _check_averages(config, recipes[0])
    arguments = augmentation(config) if augment else {}
    mixes = augment and bool(train.mixup or train.cutmix)
    shape, kind = (images if images is not None else examples.image).shape, kinds.named(task)
    places.check(examples, shape, arguments, mixes, grid=None if kind.mirror is None else grid)
    places.check_embeddings(examples, model, recipes, train.batch_size)
    if model.frozen_stages and recipes[0].view is not identity_view:
        raise UserError(
            f"{recipes[0].name} changes all weights of a network, and stages of {model.name} are frozen; "
            "trainable must be '' with it"
        )
    key = jax.random.fold_in(jax.random.key(config.seed), seed_of(seeded_by))
    members = np.asarray(tuple(members), np.uint32)
    examples, ensemble = with_given_logits(examples, ensemble)
    if not all(teachers.model.can_be_asked for teachers in ensemble):
        _check_hears_alone(recipes)
    stream_bytes = config.runtime.stream_mb * 2**20
    if images is None and examples.given_logits is not None and examples.given_logits.nbytes > stream_bytes:
        images = np.asarray(examples.image)  # a piece's at once, for the sake of their given logits
    if examples.speaks is not None:
        _check_may_be_silent(recipes, config)
    teacher_models, teacher_variables = frozen_parts(ensemble)
    candidates = layouts.candidates(config.runtime.how, config.runtime.data_shards, model, len(members))
    program = Program(
        model=model,
        recipes=recipes,
        teachers=teacher_models,
        optimizer=build("optimizer", train.optimizer, "train.optimizer"),
        schedule=build("schedule", train.schedule, "train.schedule"),
        num_steps=num_steps,
        augmentation=tuple(sorted(arguments.items())),
        layout=candidates[0],
        warmup=train.warmup,
        clips=train.clip_norm > 0,
        averages=train.ema_decay > 0,
        accumulate=train.accumulate,
        mixup=train.mixup if augment else 0.0,
        cutmix=train.cutmix if augment else 0.0,
        alpha_schedule=build("schedule", config.students.alpha_schedule, "students.alpha_schedule"),
        temperature_schedule=build(
            "schedule", config.students.temperature_schedule, "students.temperature_schedule"
        ),
        depth_decay=train.depth_decay if model.stages else 1.0,
        epochs=epochs,
        beside_loss=kind.beside_loss,
        mirror=kind.mirror,
        grid=grid,
    )
    stage_data = StageData(
        examples=examples,
        teachers=teacher_variables,
        cached_logits=None,
        prepared=dict(prepared or {}),
        temperatures=jnp.asarray(temperatures, jnp.float32),
        key=jax.random.fold_in(key, seed_of("lessons")),
    )
    return Job(
        stage=stage,
        program=program,
        stage_data=stage_data,
        names=names,
        hyper={**_common_hyper(config, len(names)), **hyper},
        init_keys=_keys_of_members(key, members),
        order=order,
        validation=validation,
        epochs=epochs,
        eval_every=eval_every,
        patience=patience,
        candidates=candidates,
        at_once=config.runtime.members_at_once,
        teacher_cache=config.runtime.teacher_cache,
        frozen_features=config.runtime.frozen_features,
        images=images,
        stream_bytes=stream_bytes,
    )


@jax.jit  # a program instead of one for every operation
def _keys_of_members(key: Array, members: np.ndarray) -> Array:
    return jax.vmap(partial(jax.random.fold_in, key))(members)


def with_given_logits(examples: Examples, ensemble: Ensemble) -> tuple[Examples, Ensemble]:
    """The examples with the logits [N,K,C] of given teachers, and the ensemble with the column of each."""
    given: list[np.ndarray] = []
    found: list[Population] = []
    for teachers in ensemble:
        if not teachers.model.can_be_asked:
            first, own = sum(map(len, given)), teachers.variables["train"]
            given.append(own)
            columns = np.arange(first, first + len(own), dtype=np.int32)
            teachers = dataclasses.replace(teachers, variables={"place": columns})
        found.append(teachers)
    if given:
        # An array of the host, as `loading.gather` takes them too: it may be more than a device holds.
        by_example: Any = np.ascontiguousarray(np.moveaxis(np.concatenate(given), 0, 1))
        examples = dataclasses.replace(examples, given_logits=by_example)
    return examples, tuple(found)


def _check_hears_alone(recipes: Sequence[Recipe]) -> None:
    """Raise UserError for recipes that want more of frozen teachers than logits of the data's images."""
    for recipe in recipes:
        if recipe.teach is frozen_teachers and recipe.stimulus is not configured_stimulus:
            raise UserError(
                f"{recipe.name} makes images of its own, and these teachers' logits are of the data's alone"
            )
        if recipe.teach is frozen_teachers and (recipe.needs or recipe.prepare == "embedding"):
            raise UserError(
                f"{recipe.name} reads more of the teachers than logits, and nothing else is known of these"
            )


def _check_may_be_silent(recipes: Sequence[Recipe], config: ConfigDict) -> None:
    """Raise UserError for recipes that read what teachers say who do not speak of an example."""
    for recipe in recipes:
        if recipe.hears_all:
            raise UserError(
                f"{recipe.name} reads what all teachers say of an image, and some teach some images only, by "
                f"{'teachers.out_of_bag' if config.teachers.out_of_bag else 'train_teachers of the data'}"
            )


def _check_averages(config: ConfigDict, recipe: Recipe) -> None:
    """Raise UserError where an average of the weights cannot be what a recipe deploys."""
    optimizer = build("optimizer", config.train.optimizer, "train.optimizer")
    of_its_own = recipe.init_mem is not no_mem and recipe.deploy is not deploy_params
    if (optimizer.averages or config.train.ema_decay) and of_its_own:
        raise UserError(
            f"config.students.modes: {recipe.name} deploys weights of its own making; train.ema_decay must "
            "be 0 with it, and train.optimizer none that averages"
        )
    changes = recipe.after is not nothing_after or recipe.trainable is not every_leaf
    if optimizer.averages and changes:
        raise UserError(
            f"config.train.optimizer: {config.train.optimizer} averages weights that it alone may change, "
            f"and {recipe.name} does something of its own after every update or freezes some; use another, "
            "with train.ema_decay for an average"
        )


def _common_hyper(config: ConfigDict, num_members: int) -> dict[str, np.ndarray]:
    """The numbers of the optimiser that are alike for all members unless a stage says otherwise: [M]."""
    names = ["learning_rate", "weight_decay", "label_smoothing"]
    names += [name for name in ("clip_norm", "ema_decay") if config.train[name]]
    return {name: np.full(num_members, config.train[name], np.float32) for name in names}


def examples(config: ConfigDict, split: Split) -> Examples:
    """The training examples with the weights that `train.class_weights` asks for."""
    return loading.examples(split, weighted=config.train.class_weights == "balanced")


def balanced_by(config: ConfigDict, split: Split) -> np.ndarray | None:
    """The labels [N] by which orders draw every class equally often; None for `data.sampling` natural."""
    return loading.strata(split.dataset.train_labels) if config.data.sampling == "balanced" else None


def part(job: Job, rows: Sequence[int] | np.ndarray) -> Job:
    """The job of some members alone; they are the same there, down to their randomness.

    Whole cohorts only: a peer without its mates raises KeyError.
    """
    rows = np.asarray(rows)
    hyper = {name: values[rows] for name, values in job.hyper.items()}
    if "mates" in hyper:
        place = {row: place for place, row in reversed(list(enumerate(rows.tolist())))}
        hyper["mates"] = np.vectorize(place.__getitem__, otypes=[np.int32])(hyper["mates"])
    own_batches = job.order(0).ndim == 3
    return dataclasses.replace(
        job,
        names=tuple(job.names[row] for row in rows),
        hyper=hyper,
        init_keys=job.init_keys[rows],
        start=None if job.start is None else take(job.start, rows),
        order=(lambda epoch: job.order(epoch)[:, rows]) if own_batches else job.order,
    )


def parts(job: Job, at_once: int) -> list[Job]:
    """The job in parts of at most `at_once` members, a whole number of cohorts; itself if all fit."""
    num_members = len(job.names)
    if at_once >= num_members:
        return [job]
    size = max(1, at_once // job.num_peers) * job.num_peers
    starts = range(0, num_members, size)
    pieces = [part(job, range(first, min(first + size, num_members))) for first in starts]
    return [
        dataclasses.replace(piece, stage=f"{job.stage}/part-{number}")
        for number, piece in enumerate(pieces, start=1)
    ]


def go_on(job: Job, start: PyTree, begun: int) -> Job:
    """A job as the later part of a training of which `begun` epochs are over: from variables [M,...] on.

    Its order is that of the epochs after these, and its keys are others than theirs: what it draws, for
    batches, augmentations, dropout or a method's own parameters, is not what was drawn before.
    """
    lessons = dataclasses.replace(job.stage_data, key=jax.random.fold_in(job.stage_data.key, begun))
    return dataclasses.replace(
        job,
        start=start,
        init_keys=jax.vmap(lambda key: jax.random.fold_in(key, begun))(job.init_keys),
        stage_data=lessons,
        order=lambda epoch: job.order(begun + epoch),
    )


def per_member(values: tuple[float, ...], default: float, num_members: int) -> np.ndarray:
    """[M] float32: one value each, one value for all, or the default."""
    return np.broadcast_to(np.asarray(values or (default,), np.float32), (num_members,)).copy()
