"""The network to deploy: which one it is, its card, and that what is written says what was trained."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from mtkd_jax import addresses
from mtkd_jax import config as configuration
from mtkd_jax.data import images, loading
from mtkd_jax.deploy import cascade as deployed_cascade
from mtkd_jax.deploy import deployed, export
from mtkd_jax.plans import teachers
from mtkd_jax.plans.plan import Trained
from mtkd_jax.results import bodies, cascade, evaluation, forms, intervals, lookup, measured, metrics
from mtkd_jax.runs import workdir
from mtkd_jax.runs.predictions import Group, Predictions
from mtkd_jax.tasks import kinds
from mtkd_jax.types import DataSet, Model, PyTree

NUM_CHECKED = 64  # images on which the exported student is compared with the trained one
SAME_DECISION = 1e-2  # in probability: what networks in bfloat16 may differ by, compiled otherwise
_TERMS = ("rule", "score", "threshold", "certified", "tolerance", "level", "units", "num_units")


def save_student(trained: Trained, predicted: Predictions, into: Path) -> None:
    """Write the network to deploy to `into`/student, load it again and check that it says the same."""
    chosen = lookup.network_to_deploy(predicted)
    if chosen is None:
        return
    model, variables, card = describe_student(trained, predicted, *chosen)
    images = trained.split.dataset.test_images
    checked = np.asarray(loading.scale(jnp.asarray(images[:NUM_CHECKED])))
    logits = export.logits_of(model, variables, checked)
    export.save_student(into / "student", model, variables, card, (checked, logits))
    export.verify_student(into / "student", addresses.build_model, checked, logits)
    if trained.config.export.forms:
        wanted = trained.config.export.forms
        forms.export_forms(into / "student", wanted, addresses.build_model, trained.split)
    if trained.config.export.cascade:
        _save_ensemble(trained, predicted, chosen, card, into / "student", checked)


def _save_ensemble(
    trained: Trained,
    predicted: Predictions,
    chosen: tuple[Group, int],
    of_student: dict[str, Any],
    into: Path,
    checked: np.ndarray,
) -> None:
    """Write the ensemble that the network to deploy hands over to, load both and compare what it says."""
    found = cascade.of(predicted, *chosen)
    names = lookup.teacher_names(predicted)
    ensemble = tuple(
        fitted.finite_members
        for name, fitted in trained.done.items()
        if name.startswith(teachers.STAGE_PREFIX)
    )
    percent, tolerance = f"{100 * found['threshold']:.2f} %", f"{100 * found['tolerance']:g} points"
    terms = {name: found[name] for name in _TERMS} | {"val_share": found["val"]["share"]}
    told = [
        f"All {len(names)} teachers fused by {found['rule']}, as one program: the safety net of the network "
        f"in the folder above, which answers what it is more than {percent} sure of (largest probability).",
        f"Set on {found['num_units']:,} validation {found['units']}, so that the two together are, 95 % "
        f"sure, at most {tolerance} less often right than the ensemble. Validation had chosen the student "
        "before, so that 95 % is not quite that."
        if found["certified"]
        else f"Nothing less than handing over everything is certified: 95 % sure of {tolerance} at most "
        f"takes {found['units_needed']:,} validation {found['units']}, there were {found['num_units']:,}.",
    ]
    kept = ("class_names", "input", "data", "source")
    card = {
        "name": f"{predicted.dataset}: ensemble {found['rule']}",
        "training": f"{', '.join(names)}, fused by {found['rule']}",
        **{name: of_student[name] for name in kept},
        "cascade": terms,
    }
    export.save_ensemble(into, evaluation.decide(ensemble, found["rule"]), card, told)
    said = deployed_cascade.load(into).ensemble(checked)
    wanted = lookup.fused(predicted, found["rule"])["test"][: len(checked)]
    difference = float(np.max(np.abs(np.exp(np.asarray(said)) - np.exp(wanted))))
    if not difference <= SAME_DECISION:  # NaN is a failure too
        raise RuntimeError(
            f"{into}: reloaded, the ensemble's probabilities differ by {difference:g}, more than "
            f"{SAME_DECISION:g}"
        )


def describe_student(
    trained: Trained, predicted: Predictions, group: Group, position: int
) -> tuple[Model, PyTree, dict[str, Any]]:
    """The network to deploy, a member of a group: as a network, its variables and its card.

    The card says how good it is on the test set, where there is one.
    """
    model, variables = evaluation.network_of(trained.stages, trained.done, group, position)
    dataset, config = trained.split.dataset, trained.config
    on_test = {}
    if len(dataset.test_labels):
        on_test = metrics.per_example(group.test[position], predicted.test_labels)
        on_test = {name: predicted.by_unit(values) for name, values in on_test.items()}
    card: dict[str, Any] = {
        "name": f"{dataset.name}: {group.role} {group.name}",
        "model": group.architecture,
        "task": model.module.task,
        "class_names": list(dataset.class_names),
        "input": {
            "shape": list(dataset.train_images.shape[1:]),
            "dtype": "float32",
            "range": deployed.PIXELS if dataset.train_images.dtype == np.uint8 else "as in the data",
            **({"fit": dataset.fit, "files": images.READING} if dataset.fit else {}),
            **({"columns": list(dataset.column_names)} if dataset.column_names else {}),
            **({"tokens": list(dataset.token_names)} if dataset.token_names else {}),
            **({"unit": dataset.token_unit} if dataset.token_unit else {}),
        },
        **({"places": _places(dataset, group)} if dataset.is_dense else {}),
        "training": _training(config, predicted, group, position),
        "data": f"{dataset.name}: {json.dumps(dict(predicted.sizes))}",
        "weights": bodies.of_weights(variables),
        "source": f"configuration {workdir.config_hash(config.to_dict())[:12]}",
        "metrics": {
            f"test {name}": {
                "value": float(np.mean(values)),
                "ci95": intervals.bootstrap_interval(values, ends=measured.ends_of(name)),
                "over": "test examples",
            }
            for name, values in on_test.items()
        },
    }
    return model, variables, card


def _places(dataset: DataSet, group: Group) -> dict[str, Any]:
    """For the card: what a network says of, where an image has several labels."""
    kind = kinds.named(dataset.task)
    return {
        "task": dataset.task,
        "place": kind.place,
        "number": dataset.train_labels.shape[1],
        "beside": {name: one.shape[-1] for name, one in group.beside.items() if name not in kind.asks},
    }


def _training(config: ConfigDict, predicted: Predictions, group: Group, position: int) -> str:
    """For the card: what made a network, and why it was chosen."""
    chosen = f"{group.members[position]}; export.choose = {predicted.choose}, by validation NLL"
    if group.role == "teacher":
        trained = "on the labels alone, as a teacher"
        if config.teachers.trained:
            number = int(group.members[position].split()[-1])  # of "teacher 2"
            trained = f"elsewhere, as in {config.teachers.init_from[number]}"
        elif config.teachers.from_run:
            trained += f" of the run {config.teachers.from_run}"
        return f"{trained}: {chosen}"
    num_teachers = sum(len(teacher.members) for teacher in lookup.teachers(predicted))
    control, _ = configuration.control_and_mode(group.name)
    nobody = dict.fromkeys(("baseline", "control"), "no teacher")
    taught = nobody.get(group.name, control.replace("_", " ") or f"{num_teachers} teachers")
    return (
        f"{taught}, {config.plan}: {group.method}, alpha {group.alpha:g} (weight of the hard labels), "
        f"T {group.temperature:g}, {group.transfer} transfer set, {chosen}"
    )
