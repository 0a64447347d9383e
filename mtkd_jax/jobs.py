"""A `Job` is one stage's work, ready to run; here the configuration and the data become one."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mtkd_jax import layouts
from mtkd_jax.population import frozen_parts
from mtkd_jax.step import Lessons, Program
from mtkd_jax.types import Array, Ensemble, Examples, Model, Recipe


@dataclasses.dataclass(frozen=True)
class Job:
    """What `training.fit` needs: what is trained, from what, in which order, for how long."""

    stage: str  # also the name of its checkpoint folder
    program: Program
    lessons: Lessons
    names: tuple[str, ...]  # [M]
    hyper: Mapping[str, np.ndarray]  # {name: [M,...]}
    init_keys: Array  # [M] typed keys: initial weights and each member's own randomness
    order: Callable[[int], np.ndarray]  # epoch -> indices [S,B], or [S,M,B] when members have their own
    validation: tuple[Array, Array]  # images [V,h,w,c], labels [V]
    epochs: int
    eval_every: int  # epochs between validations
    patience: int  # epochs without a better validation NLL before a member stops; 0 = never


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
    examples: Examples,
    validation: tuple[Array, Array],
    epochs: int,
    eval_every: int,
    patience: int,
    seeded_by: str,
    ensemble: Ensemble = (),
    prepared: Mapping[str, Callable] | None = None,
    augment: bool = True,
) -> Job:
    """A Job; member m starts from key (seed, seeded_by, members[m]), whoever stands beside it."""
    key = jax.random.fold_in(jax.random.key(config.seed), word(seeded_by))
    members = jnp.asarray(tuple(members), jnp.uint32)
    teacher_models, teacher_variables = frozen_parts(ensemble)
    program = Program(
        model=model,
        recipes=recipes,
        teachers=teacher_models,
        optimizer=config.train.optimizer,
        schedule=config.train.schedule,
        num_steps=epochs * len(order(0)),
        augmentation=tuple(sorted(config.data.augment.items())) if augment else (),
        layout=layouts.choose(config.runtime.how, config.runtime.data_shards, model, len(members)),
    )
    lessons = Lessons(
        examples=examples,
        teachers=teacher_variables,
        said=None,
        prepared=dict(prepared or {}),
        temperatures=jnp.asarray(temperatures, jnp.float32),
        key=jax.random.fold_in(key, word("lessons")),
    )
    return Job(
        stage=stage,
        program=program,
        lessons=lessons,
        names=names,
        hyper=hyper,
        init_keys=jax.vmap(lambda m: jax.random.fold_in(key, m))(members),
        order=order,
        validation=validation,
        epochs=epochs,
        eval_every=eval_every,
        patience=patience,
    )


def word(text: str) -> int:
    """A stable 31-bit number for a name, to seed by it."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") >> 1


def slug(address: str) -> str:
    """An address as a file name: "mlp(hidden=(32,))" -> "mlp-hidden-32".

    >>> slug("mlp(hidden=(32,))")
    'mlp-hidden-32'
    """
    return re.sub(r"[^A-Za-z0-9.]+", "-", address).strip("-")


def per_member(values: tuple[float, ...], default: float, num_members: int) -> np.ndarray:
    """[M] float32: one value each, one value for all, or the default."""
    return np.broadcast_to(np.asarray(values or (default,), np.float32), (num_members,)).copy()
