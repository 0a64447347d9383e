"""From trained populations to predictions: which students are chosen, what they say, what they cost.

Selection reads validation only. The test images are seen here, once, by the members that make a row.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from functools import lru_cache

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mtkd_jax import population, students, teachers
from mtkd_jax.data.loading import Split, scale
from mtkd_jax.plan import Done
from mtkd_jax.predictions import Group, Predictions
from mtkd_jax.students import Cell, Member
from mtkd_jax.training import Fitted
from mtkd_jax.types import Model, Population, PyTree

PREFERRED_ALPHA = 0.25  # breaks ties, and the one alpha at which all modes are also shown
LATENCY_BATCHES = (1, 256)
ROLES = {"baseline": "baseline", "control": "control"}  # every other mode is a student


def predict(config: ConfigDict, split: Split, done: Done, notes: Sequence[str] = ()) -> Predictions:
    """Validation and test logits of every teacher and of the chosen (alpha, T) of every mode, with costs."""
    dataset = split.dataset
    groups = [
        _teacher_group(name, fitted, split)
        for name, fitted in done.items()
        if name.startswith(teachers.STAGE_PREFIX)
    ]
    for transfer in config.students.transfer:
        for family in students.families(config):
            fitted = done.get(students.stage_name(transfer, family))
            if fitted is None:
                continue
            for mode in dict.fromkeys(member.mode for member in family):
                if sound_members(fitted, family, mode):
                    groups.append(_student_group(config, split, transfer, family, mode, fitted))
    lost = [
        f"{name}: {', '.join(f.lost)} left out, the loss was not finite" for name, f in done.items() if f.lost
    ]
    return Predictions(
        dataset=dataset.name,
        class_names=dataset.class_names,
        sizes={
            "train": len(split.train),
            "unlabelled": len(split.pool) if "unlabelled" in config.students.transfer else 0,
            "val": len(split.val),
            "test": len(dataset.test_labels),
        },
        val_labels=dataset.train_labels[split.val],
        test_labels=dataset.test_labels,
        val_index=split.val,
        test_index=np.arange(len(dataset.test_labels), dtype=np.int32),
        rules=tuple(config.fusion.rules),
        groups=tuple(groups),
        common_alpha=common_alpha(config),
        notes=(*notes, *lost),
    )


def common_alpha(config: ConfigDict) -> float:
    """The grid's alpha nearest to 0.25, at which all modes are shown beside their own choice."""
    return min(config.students.alphas, key=lambda alpha: (abs(alpha - PREFERRED_ALPHA), alpha))


def choose(members: Sequence[Member], val_nll: np.ndarray) -> tuple[Cell, list[dict]]:
    """The cell with the lowest mean validation NLL over seeds, and the whole grid.

    Ties go to the alpha nearest to 0.25, then to the lowest temperature.
    """
    cells: dict[Cell, list[float]] = {}  # a lost member is inf: its cell is chosen last
    for member, nll in zip(members, val_nll):
        cells.setdefault(member.cell, []).append(float(nll))
    means = {cell: float(np.mean(values)) for cell, values in cells.items()}
    best = min(means, key=lambda cell: (means[cell], abs(cell.alpha - PREFERRED_ALPHA), cell.temperature))
    grid = [
        {
            "alpha": cell.alpha,
            "temperature": cell.temperature,
            **dict(cell.arguments),
            "val_nll": nll if np.isfinite(nll) else None,
        }
        for cell, nll in means.items()
    ]
    return best, grid


def members_of(family: Sequence[Member], mode: str, cell: Cell | None = None) -> list[int]:
    """Positions in a family of one mode's students, of one cell where given; peers are no students."""
    return [
        m
        for m, member in enumerate(family)
        if member.mode == mode and member.peer == 0 and (cell is None or member.cell == cell)
    ]


@lru_cache
def costs(model: Model, image_shape: tuple[int, ...], dtype: str) -> dict:
    """Parameters, forward FLOPs of one example, and latency in ms a batch, of one network.

    FLOPs are what the compiler counts in the loop-free forward; latencies are medians on this machine,
    taken once for all rows of the same network. Neither depends on the weights: they are zeros here.
    """
    image = np.zeros((1, *image_shape), dtype)
    shapes = jax.eval_shape(model.init, jax.random.key(0), jax.eval_shape(scale, image))
    variables = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    forward = jax.jit(lambda variables, image: model.apply(variables, scale(image))[0].logits)
    analysis = forward.lower(variables, image).compile().cost_analysis() or {}
    return {
        "params": sum(leaf.size for leaf in jax.tree.leaves(variables["params"])),
        "flops": float(analysis["flops"]) if "flops" in analysis else None,
        "latency_ms": {str(n): _latency(forward, variables, image, n) for n in LATENCY_BATCHES},
    }


def sound_members(fitted: Fitted, family: Sequence[Member], mode: str, cell: Cell | None = None) -> list[int]:
    """`members_of` without those whose training broke down."""
    return [m for m in members_of(family, mode, cell) if fitted.population.names[m] not in fitted.lost]


def student_of(config: ConfigDict, done: Done, group: Group, position: int) -> tuple[Model, PyTree]:
    """Network and variables of one member of a student group."""
    for family in students.families(config):
        fitted = done.get(students.stage_name(group.transfer, family))
        if fitted is None:
            continue
        cell = Cell(group.alpha, group.temperature, tuple(group.arguments.items()))
        found = sound_members(fitted, family, group.method, cell)
        if found:
            return fitted.population.model, population.take(fitted.population.variables, found[position])
    raise ValueError(f"{group.key} is not a student of this run")


def _teacher_group(stage: str, fitted: Fitted, split: Split) -> Group:
    own = fitted.sound
    return Group(
        key=stage.replace("-", "/", 1),
        name=own.model.name,
        role="teacher",
        method="",
        transfer="",
        alpha=None,
        temperature=None,
        members=own.names,
        train_seconds=fitted.seconds,
        **_outputs(own, split),
    )


def _student_group(config, split, transfer, family, mode, fitted: Fitted) -> Group:
    own = members_of(family, mode)
    cell, grid = choose([family[m] for m in own], fitted.val_nll[own])
    chosen = sound_members(fitted, family, mode, cell)
    role = ROLES.get(mode, "student")
    common = sound_members(fitted, family, mode, cell._replace(alpha=common_alpha(config)))
    at_common = None
    if role == "student" and common:
        at_common = population.logits(
            population.members(fitted.population, common), split.dataset.test_images
        )
    return Group(
        key=group_key(transfer, mode),
        name=mode,
        role=role,
        method=mode,
        transfer=transfer,
        alpha=cell.alpha,
        temperature=cell.temperature,
        arguments=dict(cell.arguments),
        members=tuple(f"seed {family[m].seed}" for m in chosen),
        common_test=at_common,
        grid=tuple(grid),
        train_seconds=fitted.seconds * len(own) / len(family),
        **_outputs(population.members(fitted.population, chosen), split),
    )


def group_key(transfer: str, mode: str) -> str:
    """The key of one mode's row."""
    return f"students/{transfer}/{mode}"


def _outputs(own: Population, split: Split) -> dict:
    """Logits and costs, as fields of a Group."""
    images = split.dataset.test_images
    return {
        "architecture": own.model.name,
        "val": population.logits(own, split.dataset.train_images[split.val]),
        "test": population.logits(own, images),
        **costs(own.model, images.shape[1:], str(images.dtype)),
    }


def _latency(forward, variables: PyTree, image: np.ndarray, batch_size: int, num_calls: int = 50) -> float:
    batch = jnp.repeat(image, batch_size, axis=0)
    forward(variables, batch).block_until_ready()
    seconds = []
    for _ in range(num_calls):
        begun = time.perf_counter()
        forward(variables, batch).block_until_ready()
        seconds.append(time.perf_counter() - begun)
    return 1e3 * statistics.median(seconds)
