"""What every form of an exported student costs and says, measured on this machine."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from mtkd_jax.data import loading
from mtkd_jax.data.loading import Split
from mtkd_jax.deploy import export, forms
from mtkd_jax.deploy.deployed import PROGRAM, read_card
from mtkd_jax.deploy.onnx_int8 import MOST_SEEN
from mtkd_jax.results import intervals
from mtkd_jax.runs.predictions import sum_by_unit
from mtkd_jax.types import DataSet

BATCHES = (1, 64)  # images asked for at once, where latency is measured
CALLS = 50  # whose median it is
SECONDS = 2.0  # or as many calls as are begun in this time, and five at least
BLOCK = 256  # images computed at once


def export_forms(
    directory: Path, names: Sequence[str], build: export.Build, split: Split | None
) -> dict[str, Any]:
    """Add the forms of these names to the student's folder and measure all that are there; its card.

    Of every file: "bytes"; of one that can be asked also "ms" {batch: milliseconds}, "difference" (the
    largest of any logit, and "same_class", the share of images with the same class, from what the student
    said of the images of check.safetensors) and, with the data of the run, "accuracy" on its test set and
    "accuracy_minus_float32" {"value", "ci95"}, paired over its examples. Of a dense task both are over all
    places. What is resampled are examples, or the groups that the data names. Raises UserError as
    `forms.add`.
    """
    forms.add(directory, names, build, None if split is None else _seen(split))
    told = measure(directory, None if split is None else split.dataset)
    forms.rewrite_card(directory, read_card(directory / "model.json"), told, forms.machine())
    return read_card(directory / "model.json")


def _seen(split: Split) -> np.ndarray:
    """Images of the validation set as networks see them, at most MOST_SEEN."""
    rows = loading.evenly(split.val, MOST_SEEN)
    return np.asarray(loading.scale(jnp.asarray(split.dataset.train_images[rows])))


def measure(directory: Path, dataset: DataSet | None) -> dict[str, dict[str, Any]]:
    """{file: what was measured of it}, as `export_forms` says; nothing is written."""
    asked = forms.programs(directory)
    checked, number = load_file(directory / "check.safetensors"), _num_classes(directory)
    right: dict[str, np.ndarray] = {}  # [E,2]: places that are right, and all of them
    told: dict[str, dict[str, Any]] = {}
    for file in export.FORMS:
        if not (directory / file).exists() or (
            file != forms.WEIGHTS and file not in _known(directory, asked)
        ):
            continue
        told[file] = {"bytes": (directory / file).stat().st_size}
        if file in asked:
            said = asked[file](checked["images"])
            told[file] |= {
                "ms": {str(size): latency(asked[file], checked["images"], size) for size in BATCHES},
                "difference": float(np.max(np.abs(said - checked["logits"]))),
                "same_class": float(np.mean(_class_of(said, number) == _class_of(checked["logits"], number))),
            }
            if dataset is not None and len(dataset.test_labels):
                right[file] = _right(asked[file], dataset)
                told[file]["accuracy"] = _share(right[file], (0.0, 1.0))
                if file != PROGRAM:
                    behind = right[PROGRAM] * (1, 0)  # the places are the same ones
                    told[file]["accuracy_minus_float32"] = _share(right[file] - behind, (-1.0, 1.0))
    return told


def latency(ask: forms.Ask, images: np.ndarray, size: int) -> float:
    """Milliseconds that `size` images take: the median of CALLS calls after the first, which compiles."""
    batch = np.resize(images, (size, *images.shape[1:]))
    ask(batch)
    seconds: list[float] = []
    while len(seconds) < CALLS and (sum(seconds) < SECONDS or len(seconds) < 5):
        begun = time.perf_counter()
        ask(batch)
        seconds.append(time.perf_counter() - begun)
    return 1e3 * statistics.median(seconds)


def _known(directory: Path, asked: dict[str, forms.Ask]) -> set[str]:
    return {*asked, *read_card(directory / "model.json").get("forms", {}).get("files", {})}


def _num_classes(directory: Path) -> int:
    return len(read_card(directory / "model.json")["class_names"])


def _class_of(said: np.ndarray, num_classes: int) -> np.ndarray:
    """The class of what a program says [...,C + ...]: beside logits may stand boxes."""
    return said[..., :num_classes].argmax(-1)


def _right(ask: forms.Ask, dataset: DataSet) -> np.ndarray:
    """[E,2] of test examples, or of their groups: places that are given their class, and all of them.

    Of a task that is not dense an example is one place.
    """
    images = dataset.test_images
    parts = [images[start : start + BLOCK] for start in range(0, len(images), BLOCK)]
    said = [ask(np.asarray(loading.scale(jnp.asarray(part)))) for part in parts]
    classes = np.concatenate([_class_of(one, dataset.num_classes) for one in said])
    labels = dataset.test_labels
    there = labels >= 0
    found = np.stack([(classes == labels) & there, there], axis=-1)
    of_examples = found.reshape(len(labels), -1, 2).sum(axis=1).astype(np.float64)
    if dataset.test_groups is None:
        return of_examples
    _, units = np.unique(dataset.test_groups, return_inverse=True)
    return sum_by_unit(of_examples, units)


def _share(right: np.ndarray, ends: intervals.Interval) -> dict[str, Any]:
    """The share of all places, of [E,2] right ones and all of them; its interval is over the E."""

    def share(total: np.ndarray) -> float:
        return float(total[0] / total[1])

    return {"value": share(right.sum(axis=0)), "ci95": intervals.bootstrap_sums(right, share, ends=ends)}
