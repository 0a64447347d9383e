"""What trained networks say of images that the data does not have: test images corrupted, and outliers.

Nothing is trained for it, and nothing is chosen by it. It is asked of networks that have weights here: of
teachers that are known by their logits alone there is nothing to be had, nor of an ensemble that they are in.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from mtkd_jax import config as configuration
from mtkd_jax.data import checks, corruptions
from mtkd_jax.data.loading import Split
from mtkd_jax.engine import population
from mtkd_jax.results import lookup, metrics
from mtkd_jax.runs.predictions import Group
from mtkd_jax.system import interrupts
from mtkd_jax.types import Array, DataSet, Outputs, Population, UserError

SAVED = "all training is saved"
ENSEMBLE = "ensemble"  # beside the keys of groups, all of which have a "/"
Network = tuple[Population, Callable[[Outputs], Array] | None]  # and how it tells what it disagrees about


def is_asked(config: ConfigDict) -> bool:
    """Whether the configuration asks about other images than the data's."""
    return bool(config.report.corruptions or config.report.ood)


def check(config: ConfigDict, split: Split) -> None:
    """Raise UserError, before any work, where the test images cannot be corrupted or outliers do not fit."""
    for field in ("corruptions", "ood"):
        if split.dataset.is_dense and config.report[field]:
            raise UserError(
                f"config.report.{field}: is about classes of whole images, and here places of an image have "
                "labels; must be empty"
            )
    if config.report.corruptions:
        try:
            corruptions.check(split.dataset.test_images)
        except UserError as error:
            raise UserError(f"config.report.corruptions: {error}") from None
    if config.report.ood:
        outliers(config, split.dataset)


def outliers(config: ConfigDict, dataset: DataSet) -> np.ndarray:
    """Images of `report.ood` [O,h,w,c], drawn from its test images: at most as many as the data has itself.

    Raises UserError unless they have the shape and the dtype of the data's.
    """
    images, own = configuration.further_source(config, "report.ood")().test_images, dataset.test_images
    checks.check_alike(images, dataset, f"config.report.ood: {config.report.ood}")
    if len(images) == 0:
        raise UserError(f"config.report.ood: {config.report.ood} has no test images; name one that has some")
    drawn = np.random.default_rng(0).permutation(len(images))[: len(own)]
    return images[np.sort(drawn)]


def ask(
    config: ConfigDict, split: Split, groups: Sequence[Group], networks: Mapping[str, Network]
) -> tuple[list[Group], dict]:
    """The groups with what their networks, by key, say of other images, and the fields of `Predictions` that
    are the run's and the ensemble's. Raises Interrupted where the process has been asked to stop."""
    asked = {key: one for key, one in networks.items() if one[0].model.can_be_asked}
    teachers = [group.key for group in groups if group.role == "teacher"]
    fused = teachers if all(key in asked for key in teachers) else []
    fields: dict[str, dict[str, Any]] = {key: {} for key in (*asked, ENSEMBLE)}
    if config.report.corruptions:
        populations = {key: own for key, (own, _) in asked.items()}
        for key, found in _under_shift(config, split, groups, populations, fused).items():
            fields[key] |= found
    if config.report.ood:
        images = outliers(config, split.dataset)
        for key, (own, mutual) in asked.items():
            fields[key]["outliers"] = population.logits(own, images)
            if mutual is not None:
                fields[key]["mutual"] = population.mutual(own, split.dataset.test_images, mutual)
                fields[key]["mutual_outliers"] = population.mutual(own, images, mutual)
    of_run = {f"ensemble_{name}": values[0] for name, values in fields[ENSEMBLE].items()}
    if config.report.corruptions:
        strengths = tuple(config.report.strengths)
        of_run |= {"corruptions": tuple(configuration.corruptions(config)), "strengths": strengths}
    of_run["ood"] = config.report.ood
    return [dataclasses.replace(group, **fields.get(group.key, {})) for group in groups], of_run


def _under_shift(
    config: ConfigDict,
    split: Split,
    groups: Sequence[Group],
    networks: Mapping[str, Population],
    fused: Sequence[str],
) -> dict[str, dict[str, np.ndarray]]:
    """{key: {"shifted", "by_shift"}} as `Group` has them, of the networks and of the `fused` teachers.

    One corrupted set of images at a time, about which all are asked.
    """
    images, labels = split.dataset.test_images, split.dataset.test_labels
    asked, strengths = configuration.corruptions(config), config.report.strengths
    temperatures = _temperatures(split, groups, fused)
    terms: dict[str, np.ndarray] = {}  # [S,6,N], summed over the shifts
    tables: dict[str, list[np.ndarray]] = {}  # [S,6] of each shift
    for name, corruption in asked.items():
        for strength in strengths:
            interrupts.check(SAVED)
            shifted = corruptions.corrupted(name, corruption, images, strength)
            said = {key: population.logits(own, shifted) for key, own in networks.items()}
            if fused:
                of_teachers = np.concatenate([said[key] for key in fused])
                said[ENSEMBLE] = lookup.fuse("mean_probs", {"test": of_teachers})["test"][None]
            for key, logits in said.items():
                each = (metrics.terms(one, labels, at) for one, at in zip(logits, temperatures[key]))
                found = np.array([[one[name] for name in metrics.TERMS] for one in each])
                terms[key] = terms[key] + found if key in terms else found
                tables.setdefault(key, []).append(found.mean(axis=2))
    shape = (len(asked), len(strengths))
    return {
        key: {
            "shifted": (terms[key] / np.prod(shape)).astype(np.float32),
            "by_shift": np.stack(tables[key], axis=-1).reshape(*tables[key][0].shape, *shape),
        }
        for key in terms
    }


def _temperatures(split: Split, groups: Sequence[Group], fused: Sequence[str]) -> dict[str, list[float]]:
    """The temperature of every member, and of the ensemble, that validation asks for: as the images are."""
    labels = split.dataset.train_labels[split.val]
    logits = {group.key: group.val for group in groups}
    if fused:
        of_teachers = np.concatenate([logits[key] for key in fused])
        logits[ENSEMBLE] = lookup.fuse("mean_probs", {"val": of_teachers})["val"][None]
    return {key: [metrics.fit_temperature(one, labels) for one in each] for key, each in logits.items()}
