"""A student with a safety net: where it is not sure enough, the ensemble answers in its place.

    student/model.stablehlo          the student
    student/cascade/model.stablehlo  all teachers and their fusion rule: images -> log-probabilities
    student/cascade/model.json       its card; "cascade" says up to which confidence the student hands over

Written by a run with `export.cascade`; `results/cascade.py` sets the threshold. From Python:

    cascade = load(Path("runs/digits/student"))
    logits, handed_over = answer(cascade, images)
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mtkd_jax.deploy.deployed import Program, load_program
from mtkd_jax.types import UserError

FOLDER = "cascade"
PARTS = 8  # of a batch: so many images fewer does the ensemble compute at a time than the student


class Cascade(NamedTuple):
    """Two programs, and the confidence up to which the second one is asked."""

    student: Program  # images [b,h,w,c], as `card` says -> logits [b,C]
    ensemble: Program  # the same images -> log-probabilities [b,C]
    threshold: float  # in [0,1]: handed over is whom the student gives no class a larger probability
    card: Mapping[str, Any]  # of the student
    terms: Mapping[str, Any]  # "cascade" of the ensemble's card: how the threshold was set


class Answers(NamedTuple):
    """What a cascade says of N images."""

    logits: np.ndarray  # [N,C] float64, of whoever answered; their softmax is its probabilities
    handed_over: np.ndarray  # [N] bool: the ensemble answered


def confidence(logits: np.ndarray) -> np.ndarray:
    r"""How sure a network is of its decision, [N] in (0,1] of logits [N,C]: the largest probability.

    $$c_n = \max_c\, \mathrm{softmax}(z_n)_c$$

    Of the scores in use (this one, the margin of the best two, the entropy) it is the one that Chow (1970)
    shows to be the best for probabilities that are right, the usual yardstick for finding one's own mistakes
    (Hendrycks and Gimpel 2017, arXiv 1610.02136), and the number that stands beside every answer anyway. Of
    two classes all three order images alike.

    Examples:
        >>> confidence(np.log([[0.25, 0.75], [0.5, 0.5]])).round(2).tolist()
        [0.75, 0.5]
    """
    logits = np.asarray(logits, np.float64)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return 1 / weights.sum(axis=-1)  # the largest weight is exp(0)


def load(directory: Path) -> Cascade:
    """The cascade in a student's folder.

    Raises UserError where there is none, where a file is missing or is not what was saved, and where the
    student is another than the one that the threshold was set for.
    """
    directory = Path(directory)
    student, card = load_program(directory)
    folder = directory / FOLDER
    if not folder.is_dir():
        raise UserError(
            f"{directory}: has no {FOLDER}/; give the command of the run again with "
            "--config.export.cascade=True"
        )
    ensemble, own = load_program(folder)
    terms = own.get("cascade", {})
    if terms.get("student_sha256") != card["program_sha256"]:
        raise UserError(f"{folder}: is the safety net of another student; export both again")
    return Cascade(student, ensemble, terms["threshold"], card, terms)


def answer(cascade: Cascade, images: np.ndarray, rows: np.ndarray | None = None) -> Answers:
    """The student's answers to images [N,h,w,c] float32, and the ensemble's where the student is not sure.

    The ensemble sees those alone, ceil(N / 8) at a time and the last ones filled up: nothing is compiled
    again for another number of images handed over. `rows` [N] bool are those that may be (None: all).
    """
    logits = np.array(cascade.student(images), np.float64)
    handed_over = confidence(logits) <= cascade.threshold
    if rows is not None:
        handed_over &= rows
    at, size = np.flatnonzero(handed_over), -(-len(images) // PARTS)
    for start in range(0, len(at), size):
        part = at[start : start + size]
        filled = np.pad(part, (0, size - len(part)), mode="edge")
        logits[part] = np.asarray(cascade.ensemble(images[filled]), np.float64)[: len(part)]
    return Answers(logits, handed_over)
