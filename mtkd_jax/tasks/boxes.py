"""Object detection: at each place of a grid a class, the first of which is the background, and a box."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy.special import softmax

from mtkd_jax.data.boxes import Boxes, found, intersection_over_union, known
from mtkd_jax.tasks.kinds import Kind, Measure, Said
from mtkd_jax.types import Array, Context

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of the overlap from which a box is found: COCO's .5:.95
RECALLS = np.linspace(0.0, 1.0, 101)  # at which COCO reads the precision
SHOWN = 0.3  # the probability from which a box is printed
WIDTH = 256  # pixels of the longer side of a picture, about
COLOURS = (  # of classes 1, 2, ...; distinct also without red and green
    (86, 180, 233),
    (230, 159, 0),
    (0, 158, 115),
    (240, 228, 66),
    (204, 121, 167),
    (213, 94, 0),
    (0, 114, 178),
)


class Matched(NamedTuple):
    """Which of D boxes, the surest first, are right, of T thresholds; and the boxes that are to be found."""

    image: np.ndarray  # [D]
    label: np.ndarray  # [D]
    right: np.ndarray  # [T,D] bool
    known_image: np.ndarray  # [G]
    known_label: np.ndarray  # [G]


def match(said: Boxes, there: Boxes, thresholds: np.ndarray = THRESHOLDS) -> Matched:
    """Match boxes with those that are there, of the same image and class; in `said` the surest stand first.

    One after the other takes, of those not yet taken, the one that it overlaps most, if that is as much as
    the threshold at least: each threshold for itself. What finds none left is wrong. So does COCO's
    evaluation (Lin et al. 2014, arXiv 1405.0312).
    """
    right = np.zeros((len(thresholds), len(said.label)), bool)
    least = np.minimum(thresholds, 1 - 1e-10)
    of_each: dict[tuple[int, int], np.ndarray] = {}
    for key in set(zip(there.image.tolist(), there.label.tolist())):
        of_each[key] = np.flatnonzero((there.image == key[0]) & (there.label == key[1]))
    taken = {key: np.zeros((len(thresholds), len(rows)), bool) for key, rows in of_each.items()}
    for n, key in enumerate(zip(said.image.tolist(), said.label.tolist())):
        if key not in of_each:
            continue
        overlaps = intersection_over_union(said.corners[n : n + 1], there.corners[of_each[key]])
        free = np.where(taken[key], -1.0, overlaps)
        best = free.shape[1] - 1 - free[:, ::-1].argmax(axis=1)  # of equals the last, as in COCO's
        is_right = free[np.arange(len(least)), best] >= least
        taken[key][is_right, best[is_right]] = True
        right[:, n] = is_right
    order = np.argsort(-said.score, kind="stable")
    return Matched(said.image[order], said.label[order], right[:, order], there.image, there.label)


def average_precision(matched: Matched, drawn: np.ndarray | None = None) -> np.ndarray:
    r"""The area under precision over recall, of T thresholds and each class that is there, [T,C].

    $$\mathrm{AP} = \frac{1}{101} \sum_{r \in \{0, 0.01, \dots, 1\}} \max_{i:\, R_i \ge r} P_i, \qquad
    P_i = \frac{t_i}{i}, \qquad R_i = \frac{t_i}{G}$$

    Here $t_i$ of the i surest boxes are right, $G$ are to be found, and the maximum of nothing is 0. `drawn`
    [E] is how often each image counts, as in a resample; without it each counts once.

    Source: COCO's evaluation (Lin et al. 2014, arXiv 1405.0312), without its sizes of boxes and its crowds;
    as many boxes of an image count as are given. Its own program gave the numbers that the tests compare
    with.
    """
    times = np.ones(_num_images(matched)) if drawn is None else np.asarray(drawn, np.float64)
    there = times[matched.known_image]
    areas = []
    for label in np.unique(matched.known_label[there > 0]):
        number = there[matched.known_label == label].sum()
        own = matched.label == label
        counts = times[matched.image[own]]
        right = np.cumsum(matched.right[:, own] * counts, axis=1)
        precision = right / np.maximum(np.cumsum(counts), 1e-9)
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        padded = np.pad(best, ((0, 0), (0, 1)))  # a recall that is never reached has the precision 0
        at = [np.searchsorted(one / number, RECALLS) for one in right]
        areas.append([row[where].mean() for row, where in zip(padded, at)])
    return np.reshape(areas, (-1, len(matched.right))).T


def _num_images(matched: Matched) -> int:
    return 1 + max(matched.image.max(initial=-1), matched.known_image.max(initial=-1))


class MeanPrecision(NamedTuple):
    """mAP over thresholds: a `Measure.compute`, which returns a function of how often each image counts."""

    thresholds: tuple[float, ...]

    def __call__(self, said: Said) -> Callable[[np.ndarray], float]:
        there = known(said.labels, said.goals["boxes"], said.example)
        boxes = found(softmax(said.logits, axis=-1), said.beside["boxes"], said.example)
        matched = match(boxes, there, np.asarray(self.thresholds))
        return lambda drawn: float(average_precision(matched, drawn).mean())


# --- one image ----------------------------------------------------------------------------------------


def of_image(logits: np.ndarray, corners: np.ndarray, least: float = SHOWN) -> Boxes:
    """The boxes that a network says of one image, of logits [L,C] and corners [L,4], the surest first."""
    image = np.zeros(len(logits), int)
    return found(softmax(logits, axis=-1), corners, image, least=least)


def tell(logits: np.ndarray, class_names: Sequence[str], beside: Mapping[str, np.ndarray]) -> list[str]:
    """A line for each box of an image: class, probability, and where, in parts of the image's sides."""
    boxes = of_image(logits, beside["boxes"])
    if not len(boxes.label):
        return [f"no box of a probability of {SHOWN:g}"]
    sides = ("left", "top", "right", "bottom")
    where = [", ".join(f"{side} {at:.3f}" for side, at in zip(sides, box)) for box in boxes.corners]
    return [f"{class_names[c]} {p:.3f}: {box}" for c, p, box in zip(boxes.label, boxes.score, where)]


def draw(
    image: np.ndarray, classes: np.ndarray, class_names: Sequence[str], beside: Mapping[str, np.ndarray]
) -> np.ndarray:
    """The image [h,w,3] uint8, enlarged, with the boxes of the places [L] whose class is not the background.

    Of boxes of one class that overlap by more than a half that of the first place is drawn.
    """
    certain = np.eye(len(class_names))[np.maximum(classes, 0)]
    boxes = found(certain, beside["boxes"], np.zeros(len(classes), int))
    scale = max(1, WIDTH // max(image.shape[:2]))
    picture = Image.fromarray(image.repeat(scale, axis=0).repeat(scale, axis=1))
    pen = ImageDraw.Draw(picture)
    for label, corners in zip(boxes.label, boxes.corners):
        left, top, right, bottom = (corners * np.tile(picture.size, 2)).tolist()
        colour = COLOURS[(label - 1) % len(COLOURS)]
        pen.rectangle((left, top, max(left, right - 1), max(top, bottom - 1)), outline=colour, width=2)
        pen.text((left + 4, top + 2), class_names[label], fill=colour)
    return np.asarray(picture)


def beside_loss(context: Context) -> Array:
    """The hard loss of the boxes [P], see `methods.detection.box_loss`."""
    from mtkd_jax.methods import detection  # here: who is told boxes by `predict` needs no JAX

    return detection.box_loss(context)


KIND = Kind(
    place="place",
    measures=(
        Measure("mAP@.5", MeanPrecision((0.5,)), beside=("boxes",)),
        Measure("mAP@.5:.95", MeanPrecision(tuple(THRESHOLDS.tolist())), beside=("boxes",)),
    ),
    draw=draw,
    tell=tell,
    beside_loss=beside_loss,
)
