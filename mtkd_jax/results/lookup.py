"""Who stands in the predictions of a run, what its teachers decide together, and which network is kept."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import jax
import numpy as np

from mtkd_jax.config import CONTROLS, control_and_mode, name_and_model, row_of_control
from mtkd_jax.fusion import rules
from mtkd_jax.models.thinned import THINNED
from mtkd_jax.results import metrics
from mtkd_jax.runs.predictions import Group, Predictions
from mtkd_jax.tasks import kinds

OF_NO_ADDRESS = ("specialist ", THINNED)  # networks that nothing could be exported of
BLOCK = 2048  # examples fused at a time, so that memory does not grow with their number


def teachers(predictions: Predictions) -> list[Group]:
    """The teacher groups, one an architecture."""
    return [group for group in predictions.groups if group.role == "teacher"]


def teacher_names(predictions: Predictions) -> list[str]:
    """A name for each of the K teachers, with the architecture where there are several."""
    groups = teachers(predictions)
    return [
        name if len(groups) == 1 else f"{group.name} {name}" for group in groups for name in group.members
    ]


def transfers(predictions: Predictions) -> list[str]:
    """The transfer sets students were trained on, in the order of the run."""
    return list(dict.fromkeys(group.transfer for group in predictions.groups if group.transfer))


def student_models(predictions: Predictions) -> list[str]:
    """The architectures of the students that are compared, in the order of the run.

    Assistants are there to teach, and mean probabilities of several networks are of the same ones.
    """
    compared = ("student", "baseline", "control")
    return list(dict.fromkeys(group.architecture for group in predictions.groups if group.role in compared))


def find(
    predictions: Predictions, transfer: str, *, role: str = "", name: str = "", architecture: str = ""
) -> Group | None:
    """The first group of `transfer` with that role, name and architecture, where they are given; or None."""
    for group in predictions.groups:
        asked = ((role, group.role), (name, group.name), (architecture, group.architecture))
        if group.transfer == transfer and all(one in ("", own) for one, own in asked):
            return group
    return None


def baseline_of(predictions: Predictions, group: Group, transfer: str = "") -> Group | None:
    """The baseline that a group of students is compared with: of its architecture, and of its transfer set.

    Or of another `transfer`; None where there is none.
    """
    return find(predictions, transfer or group.transfer, role="baseline", architecture=group.architecture)


def controls_of(predictions: Predictions, group: Group) -> list[Group]:
    """The same students taught by an untrained or a shuffled teacher, where the run has them."""
    names = [row_of_control(control, group.name) for control in CONTROLS]
    found = (find(predictions, group.transfer, name=name, architecture=group.architecture) for name in names)
    return [one for one in found if one is not None]


def detected(predictions: Predictions) -> int | None:
    """The class to be detected; None unless there are two classes, both in validation and in test.

    Nor of a dense task, of whose places most are as often as not of one class.
    """
    if predictions.is_dense:
        return None
    present = [np.unique(labels).tolist() for labels in (predictions.val_labels, predictions.test_labels)]
    if len(predictions.class_names) != 2 or present != [[0, 1], [0, 1]]:
        return None
    return predictions.class_names.index(predictions.positive) if predictions.positive else 1


def teacher_logits(predictions: Predictions, split: str = "test") -> np.ndarray:
    """The logits of every teacher of every architecture, [K,N,C]; split is "test" or "val"."""
    of_groups = [getattr(group, split) for group in teachers(predictions)]
    return of_groups[0] if len(of_groups) == 1 else np.concatenate(of_groups)  # they may be large


def mean_beside(predictions: Predictions) -> dict[str, np.ndarray]:
    """What all teachers predict of test places beside logits, averaged, {name: [N,d]}; {} if any does not.

    What they say when they are asked in another way has no mean.
    """
    groups = teachers(predictions)
    names = set.intersection(*(set(group.beside) for group in groups)) if groups else set()
    names -= set(kinds.named(predictions.task).asks)
    return {name: np.concatenate([group.beside[name] for group in groups]).mean(axis=0) for name in names}


def fused(predictions: Predictions, rule: str) -> dict[str, np.ndarray]:
    """All teachers' decision by `rule`, {"val": [V,C], "test": [N,C]}.

    Log-probabilities, or places for the rank rules. A fitted rule is fitted on the validation split.
    """
    logits = {split: teacher_logits(predictions, split) for split in ("val", "test")}
    return fuse(rule, logits, predictions.val_labels)


def fuse(
    rule: str, logits: Mapping[str, np.ndarray], val_labels: np.ndarray | None = None
) -> dict[str, np.ndarray]:
    """The decision by `rule` of the members' logits [K,n,C] of every part, {part: [n,C]}.

    Log-probabilities, or places for the rank rules. A fitted rule is fitted on the part "val".
    """
    decide = rules.rule(rule)
    if rules.is_fitted(rule):
        decide = decide(logits["val"], val_labels)
    decide, size = jax.jit(decide), min(BLOCK, max(part.shape[1] for part in logits.values()))
    scores = {split: _in_blocks(decide, part, size) for split, part in logits.items()}
    if rules.is_rank(rule):
        return scores
    tiny = np.finfo(np.float32).tiny  # a probability may underflow to 0
    return {split: np.log(np.maximum(probs, tiny)) for split, probs in scores.items()}


def _in_blocks(decide: Callable, logits: np.ndarray, size: int) -> np.ndarray:
    """`decide` of logits [K,N,C], `size` examples at a time; the last block is filled up: one compilation."""
    parts = []
    for start in range(0, logits.shape[1], size):
        part = logits[:, start : start + size]
        filled = np.pad(part, ((0, 0), (0, size - part.shape[1]), (0, 0)))
        parts.append(np.asarray(decide(filled))[: part.shape[1]])
    return np.concatenate(parts)


def chosen_student(predictions: Predictions, architecture: str = "") -> tuple[Group, int] | None:
    """The student to keep: the row with the lowest mean validation NLL, and of its seeds the lowest.

    Of an `architecture`, or "" of any. Baselines and controls are there to compare with and are never chosen;
    None when there is no student.
    """
    students = [
        group
        for group in predictions.groups
        if group.role == "student" and architecture in ("", group.architecture)
    ]
    if not students:
        return None
    nlls = [[metrics.nll(logits, predictions.val_labels) for logits in group.val] for group in students]
    best = _lowest([float(np.mean(values)) for values in nlls])
    return students[best], _lowest(nlls[best])


def network_to_deploy(predictions: Predictions) -> tuple[Group, int] | None:
    """The single network that `predictions.choose` asks for; None where there is none.

    "best": that with the lowest validation NLL of all; "student": `chosen_student`; a row's name: the lowest
    of that row, whatever its transfer set and its architecture, unless "NAME @ ARCHITECTURE" says which.
    Where none of these is left, as when all broke down, the best.
    """
    single, (name, model) = single_networks(predictions), name_and_model(predictions.choose)
    if name == "student" and (student := chosen_student(predictions, model)) is not None:
        return student
    asked = [one for one in single if one[0].name == name and model in ("", one[0].architecture)] or single
    return best_of(asked, predictions) if asked else None


def single_networks(predictions: Predictions) -> list[tuple[Group, int]]:
    """Every network that answers alone and could be deployed.

    Not averages of several, specialists, which know no more than their classes, draws of dropout, which no
    address makes, students of a control, and teachers of whom logits alone are known.
    """
    return [
        (group, member)
        for group in predictions.groups
        if group.role not in ("average", "cohort", "linear")
        and not group.architecture.startswith(OF_NO_ADDRESS)
        if not control_and_mode(group.name)[0]
        if group.params is not None
        for member in range(len(group.members))
    ]


def best_of(networks: list[tuple[Group, int]], predictions: Predictions) -> tuple[Group, int]:
    """The network with the lowest NLL on validation, of [(group, member)]."""
    nlls = [metrics.nll(group.val[member], predictions.val_labels) for group, member in networks]
    return networks[_lowest(nlls)]


def _lowest(values: list[float]) -> int:
    return int(np.argmin(np.nan_to_num(values, nan=np.inf)))  # NaN would win an argmin
