"""Dense tasks: each of the L places of B examples becomes an example, so that every seam sees B * L of them.

A place is a pixel, a part of an image that may hold a box, a token or a frame. Nothing else in the engine
knows that there are several: networks say [B,L,C] and labels are [N,L], and from here on it is [B*L,C].
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from mtkd_jax.types import Array, Batch, Examples, Model, Outputs, Recipe, TeacherOutputs, UserError

MOST_COMPARED = 2**13  # places of a batch whose embeddings may be compared with one another: 256 MiB a matrix
MOVES = ("flip", "alternating_flip", "shift")  # arguments of an augmentation that move pixels


def are_many(examples: Examples) -> bool:
    """Whether an example has several places, each with a label of its own."""
    return examples.label.ndim == 2


def merge(x: Array) -> Array:
    """[...,B,L,D] -> [...,B*L,D]."""
    return x.reshape(*x.shape[:-3], x.shape[-3] * x.shape[-2], x.shape[-1])


def merge_outputs(outputs: Outputs) -> Outputs:
    """A network's outputs with a row for each place; an embedding may be of whole examples."""
    embedding = outputs.embedding
    of_places = embedding is not None and embedding.ndim == outputs.logits.ndim
    return dataclasses.replace(
        outputs,
        logits=merge(outputs.logits),
        heads=merge(outputs.heads),
        embedding=merge(embedding) if of_places else embedding,
        beside={name: merge(x) for name, x in outputs.beside.items()},
    )


def merge_teachers(teacher: TeacherOutputs) -> TeacherOutputs:
    """The same of K teachers."""
    return teacher._replace(
        logits=merge(teacher.logits),
        embedding=tuple(merge(x) if x.ndim == 3 else x for x in teacher.embedding),
        beside={name: merge(x) for name, x in teacher.beside.items()},
    )


def number(batch: Batch) -> Batch:
    """The batch with an index of each place, row * L + place [B,L], instead of one of each example [B]."""
    num_places = batch.label.shape[1]
    place = jnp.arange(num_places, dtype=batch.index.dtype)
    return dataclasses.replace(batch, index=batch.index[:, None] * num_places + place[None, :])


def merge_batch(batch: Batch) -> Batch:
    """A batch whose labels and index are [B,L] as one of B * L places; images stay what they are."""
    num_places = batch.label.shape[1]

    def of_each(leaf: Array | None) -> Array | None:
        return None if leaf is None else jnp.repeat(leaf, num_places, axis=0)

    label = batch.label.reshape(-1)
    return dataclasses.replace(
        batch,
        label=jnp.maximum(label, 0),
        index=batch.index.reshape(-1),
        labelled=jnp.repeat(batch.labelled, num_places) & (label >= 0),
        weight=None if batch.weight is None else batch.weight.reshape(-1),
        speaks=of_each(batch.speaks),
        valid=label >= 0,
        goals={name: goal.reshape(-1, goal.shape[-1]) for name, goal in batch.goals.items()},
    )


def silence(outputs: Any, valid: Array | None) -> Any:
    """Outputs of a student or of teachers with zeros where there is no place: whatever is said there is lost.

    What has no row for each place stays; None, or nobody, comes back as it is.
    """
    if valid is None or outputs is None:
        return outputs

    def kept(leaf: Array) -> Array:
        return jnp.where(valid[:, None], leaf, 0.0) if leaf.shape[-2] == len(valid) else leaf

    spoken = {"logits": outputs.logits, "embedding": outputs.embedding, "beside": outputs.beside}
    if isinstance(outputs, TeacherOutputs):
        return outputs._replace(**jax.tree.map(kept, spoken))
    return dataclasses.replace(outputs, heads=kept(outputs.heads), **jax.tree.map(kept, spoken))


def move(batch: Batch, moved: Callable[[Array], Array]) -> Batch:
    """The batch with images [B,h,w,c] and labels, weights, index of their pixels [B,h*w] moved together."""
    image, depth = batch.image, batch.image.shape[-1]
    place = batch.index % batch.label.shape[1]
    of_pixels = [batch.label.astype(jnp.float32), place.astype(jnp.float32)]  # exact up to 2^24 of each
    of_pixels += [] if batch.weight is None else [batch.weight]
    layers = (one.reshape(*image.shape[:3], 1) for one in of_pixels)
    together = moved(jnp.concatenate([image, *layers], axis=-1))
    of_each = (together[..., depth + n].reshape(batch.label.shape) for n in range(len(of_pixels)))
    label, moved_place, *weight = of_each
    return dataclasses.replace(
        batch,
        image=together[..., :depth],
        label=label.astype(jnp.int32),
        index=batch.index - place + moved_place.astype(batch.index.dtype),
        weight=weight[0] if weight else None,
    )


def mirror(
    batch: Batch,
    mirrored: Array,
    of_goals: Callable[[Mapping[str, Array]], Mapping[str, Array]],
    grid: tuple[int, int],
) -> Batch:
    """The batch whose images `mirrored` [B] bool are so, left for right, with the places [B,L] of their grid.

    `of_goals` says what goals {name: [B,L,d]} are then; `grid` is (rows, columns), L in all.
    """
    place = jnp.arange(batch.label.shape[1]).reshape(grid)
    seen = jnp.where(mirrored[:, None], place[:, ::-1].reshape(1, -1), place.reshape(1, -1))  # [B,L]

    def moved(leaf: Array) -> Array:
        return jnp.take_along_axis(leaf, seen.reshape(*seen.shape, *(1,) * (leaf.ndim - 2)), axis=1)

    goals = jax.tree.map(
        lambda new, old: jnp.where(mirrored[:, None, None], new, old), of_goals(batch.goals), batch.goals
    )
    return dataclasses.replace(
        batch,
        image=jnp.where(mirrored[:, None, None, None], batch.image[:, :, ::-1], batch.image),
        label=moved(batch.label),
        index=moved(batch.index),
        weight=None if batch.weight is None else moved(batch.weight),
        goals=jax.tree.map(moved, goals),
    )


def moves(augmentation: Mapping[str, Any]) -> dict[str, Any]:
    """What of an augmentation's arguments moves pixels, and is switched on."""
    known = {name: value for name, value in augmentation.items() if name in MOVES}
    return {name: value for name, value in known.items() if isinstance(value, Array) or value}


def check_embeddings(examples: Examples, model: Model, recipes: Sequence[Recipe], batch_size: int) -> None:
    """Raise UserError for recipes that would compare the embeddings of too many places with one another."""
    names = [recipe.name for recipe in recipes if "embedding" in recipe.needs]
    if not names or not are_many(examples) or examples.label.shape[1] * batch_size <= MOST_COMPARED:
        return
    image = jax.ShapeDtypeStruct((1, *examples.image.shape[1:]), jnp.float32)
    said = jax.eval_shape(lambda image: model.apply(model.init(jax.random.key(0), image), image)[0], image)
    if said.embedding.ndim == said.logits.ndim:
        raise UserError(
            f"config.students.modes: {names[0]} compares the embeddings of all places of a batch, which are "
            f"{examples.label.shape[1] * batch_size:,} here; must be at most {MOST_COMPARED:,}, by a smaller "
            "train.batch_size, or be another mode"
        )


def check(
    examples: Examples,
    images: tuple[int, ...],
    augmentation: Mapping[str, Any],
    mixing: bool,
    grid: tuple[int, int] | None = None,
) -> None:
    """Raise UserError for what cannot be done to images [N,h,w,c] whose places have labels.

    `grid` is that of the places where the task knows how a mirrored image's goals are; None: it is not known.
    """
    if not are_many(examples):
        return
    if mixing:
        raise UserError(
            "config.train.mixup: images whose places have labels cannot be mixed; mixup and cutmix must be 0"
        )
    num_places, (_, height, width, _) = examples.label.shape[1], images
    of_pixels = num_places == height * width and not examples.goals
    names = list(moves(augmentation))
    if grid is not None:
        names = [name for name in names if name == "shift"]
    if names and not of_pixels:
        raise UserError(
            f"config.data.augment.{names[0]}: moves pixels, and labels here are of {num_places} places of an "
            f"image of {height}x{width}; must be off"
        )
    for name in ("rand_augment", "own"):
        if augmentation.get(name):
            raise UserError(
                f"config.data.augment.{name}: may move pixels without their labels; must be off where places "
                "of an image have labels"
            )
