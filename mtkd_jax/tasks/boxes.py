"""Object detection: at each place of a grid a class, the first of which is the background, and a box."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from scipy.special import softmax

from mtkd_jax.data.boxes import Boxes, collect, detect, intersection_over_union, runs
from mtkd_jax.tasks.kinds import Kind, Measure, PlaceOutputs
from mtkd_jax.types import Array, Context

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of the overlap from which a box is found: COCO's .5:.95
RECALLS = np.linspace(0.0, 1.0, 101)  # at which COCO reads the precision
SHOWN = 0.3  # the probability from which a box is printed
WIDTH = 128  # pixels of the longer side of a picture, about
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
    """Match boxes with those that are there, of the same image and class.

    In `said` the surest of an image must stand first.

    One after the other takes, of those not yet taken, the one that it overlaps most, if that is as much as
    the threshold at least: each threshold for itself. What finds none left is wrong. So does COCO's
    evaluation (Lin et al. 2014, arXiv 1405.0312).
    """
    right = np.zeros((len(thresholds), len(said.label)), bool)
    least = np.minimum(thresholds, 1 - 1e-10)
    there = there.take(np.lexsort((there.label, there.image)))
    of_each = {(there.image[start], there.label[start]): np.arange(start, end) for start, end in runs(there)}
    of_said = np.lexsort((said.label, said.image))  # stable: the surest still stand first
    for start, end in runs(said.take(of_said)):
        rows = of_said[start:end]
        goals = of_each.get((said.image[rows[0]], said.label[rows[0]]))
        if goals is not None:
            overlaps = intersection_over_union(said.corners[rows], there.corners[goals])
            right[:, rows] = _taken(overlaps, least)
    order = np.argsort(-said.score, kind="stable")
    return Matched(said.image[order], said.label[order], right[:, order], there.image, there.label)


def _taken(overlaps: np.ndarray, least: np.ndarray) -> np.ndarray:
    """Which of n boxes find one of m that is left, [T,n], of overlaps [n,m] and T thresholds."""
    right = np.zeros((len(least), len(overlaps)), bool)
    free = np.ones((len(least), overlaps.shape[1]), bool)
    for row in np.flatnonzero((overlaps >= least.min()).any(axis=1)):
        left = np.where(free, overlaps[row], -1.0)
        best = left.shape[1] - 1 - left[:, ::-1].argmax(axis=1)  # of equals the last, as in COCO's
        right[:, row] = left[np.arange(len(least)), best] >= least
        free[right[:, row], best[right[:, row]]] = False
    return right


def average_precision(matched: Matched, drawn: np.ndarray | None = None) -> np.ndarray:
    r"""The area under precision over recall, of T thresholds and each class that is there, [T,C].

    $$\mathrm{AP} = \frac{1}{101} \sum_{r \in \{0, 0.01, \dots, 1\}} \max_{i:\, R_i \ge r} P_i, \qquad
    P_i = \frac{t_i}{i}, \qquad R_i = \frac{t_i}{G}$$

    Here $t_i$ of the i surest boxes are right, $G$ are to be found, and the maximum of nothing is 0. `drawn`
    [E] is how often each image counts, as in a resample; without it each counts once. A class of which no
    image counts has NaN.

    Source: COCO's evaluation (Lin et al. 2014, arXiv 1405.0312), without its sizes of boxes and its crowds;
    as many boxes of an image count as are given. Its own program gave the numbers that the tests compare
    with.
    """
    found, there = _by_class(matched)
    return _areas(found, there, np.ones(_num_images(matched)) if drawn is None else drawn)


def _num_images(matched: Matched) -> int:
    return 1 + max(matched.image.max(initial=-1), matched.known_image.max(initial=-1))


def _by_class(matched: Matched) -> tuple[list[tuple[np.ndarray, np.ndarray]], list[np.ndarray]]:
    """Of each class that is there (images [D], right [T,D]) up to the last right box, and images to be found.

    What is wrong behind the last right box lowers the precision where no recall reads it.
    """
    found, there = [], []
    for label in np.unique(matched.known_label):
        own = np.flatnonzero(matched.label == label)
        right = matched.right[:, own]
        end = 1 + np.flatnonzero(right.any(axis=0)).max(initial=-1)
        found.append((matched.image[own[:end]], right[:, :end].astype(np.float64)))
        there.append(matched.known_image[matched.known_label == label])
    return found, there


def _areas(
    found: Sequence[tuple[np.ndarray, np.ndarray]], there: Sequence[np.ndarray], times: np.ndarray
) -> np.ndarray:
    """`average_precision` [T,C] where images count so many times [E]."""
    areas = []
    for (image, right), known_image in zip(found, there):
        number = times[known_image].sum()
        if not number:
            areas.append([np.nan] * len(right))
            continue
        counts = times[image]
        hits = np.cumsum(right * counts, axis=1)
        precision = hits / np.maximum(np.cumsum(counts), 1e-9)
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        padded = np.pad(best, ((0, 0), (0, 1)))  # a recall that is never reached has the precision 0
        at = [np.searchsorted(one, RECALLS) for one in hits / number]
        areas.append([row[where].mean() for row, where in zip(padded, at)])
    return np.transpose(areas)


@dataclasses.dataclass(frozen=True)
class MeanPrecision:
    """mAP over thresholds: a `Measure.compute`, which returns a function of how often each image counts.

    The boxes to be found are those that places answer for: without the few that have no place left, and two
    of one image and class that are the same are one. The mean is always over the classes that are there when
    all images count: NaN where no image of one of them does, for without it another mean would be told.
    """

    thresholds: tuple[float, ...]

    def __call__(self, said: PlaceOutputs) -> Callable[[np.ndarray], float]:
        there = collect(said.labels, said.goals["boxes"], said.example)
        boxes = detect(softmax(said.logits, axis=-1), said.beside["boxes"], said.example)
        prepared = _by_class(match(boxes, there, np.asarray(self.thresholds)))

        def precision(drawn: np.ndarray) -> float:
            areas = _areas(*prepared, drawn)
            return float(areas.mean()) if areas.size else np.nan

        return precision


# --- one image ----------------------------------------------------------------------------------------


def of_image(logits: np.ndarray, corners: np.ndarray, least: float = SHOWN) -> Boxes:
    """The boxes that a network says of one image, of logits [L,C] and corners [L,4], the surest first."""
    image = np.zeros(len(logits), int)
    return detect(softmax(logits, axis=-1), corners, image, least=least)


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
    boxes = detect(certain, beside["boxes"], np.zeros(len(classes), int))
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


def mirror(goals: Mapping[str, Array]) -> Mapping[str, Array]:
    """Corners [B,L,4] as a mirrored image has them: what was left is as far from the right side."""
    sides = goals["boxes"][:, :, np.array([2, 1, 0, 3])]
    across = np.array([[[1, 0, 1, 0]]], np.float32)
    return {**goals, "boxes": sides * (1 - 2 * across) + across}


KIND = Kind(
    place="place",
    measures=(
        Measure("mAP@.5", MeanPrecision((0.5,)), beside=("boxes",), ends=(0.0, 1.0)),
        Measure("mAP@.5:.95", MeanPrecision(tuple(THRESHOLDS.tolist())), beside=("boxes",), ends=(0.0, 1.0)),
    ),
    draw=draw,
    tell=tell,
    beside_loss=beside_loss,
    mirror=mirror,
)
