"""Boxes as labels of places: which place of a grid answers for which box, and back from places to boxes.

A place is a cell of a grid that lies over the image, row by row, L in all. A box is its corners (left, top,
right, bottom), parts of the image's width and height: 0 is one edge of the image and 1 the other.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

BACKGROUND = "background"  # class 0 of every detector: a place that answers for no box
CENTRE = 0.6  # the middle part of a box, of its width and height, whose places answer for it


class Boxes(NamedTuple):
    """n boxes of several images, side by side."""

    image: np.ndarray  # [n] int, which image it is of: 0, 1, ...
    label: np.ndarray  # [n] int, its class, 1 or more
    corners: np.ndarray  # [n,4], see above
    score: np.ndarray  # [n] in [0,1]; of what is known, 1

    def take(self, rows: np.ndarray) -> Boxes:
        """Those at some rows."""
        return Boxes(*(field[rows] for field in self))


class Places(NamedTuple):
    """What the places of one image are to say."""

    label: np.ndarray  # [L] int32, the class of the box a place answers for, 0 where it answers for none
    corners: np.ndarray  # [L,4] float32 of that box, zeros where there is none
    without: np.ndarray  # [k] int, rows of the boxes that no place answers for


def assign(label: np.ndarray, corners: np.ndarray, grid: tuple[int, int]) -> Places:
    r"""The places of a grid (rows, columns) that answer for boxes of classes [n] with corners [n,4].

    Those whose middle lies in the middle part of a box, CENTRE of its width and height; where there are none,
    the one that the middle of the box lies in. Of several boxes a place answers for the smallest. A box
    that has none left then gets the one that its middle lies in, unless it is another box's only one: then
    the box is among `without`.

    Source: centre sampling of FCOS (Tian et al. 2019, arXiv 1904.01355), whose part is a number of strides.
    """
    rows, columns = grid
    middle = (corners[:, :2] + corners[:, 2:]) / 2
    size = corners[:, 2:] - corners[:, :2]
    x, y = (np.arange(columns) + 0.5) / columns, (np.arange(rows) + 0.5) / rows
    of_places = np.stack([np.tile(x, rows), np.repeat(y, columns)], axis=-1)
    inside = (np.abs(of_places[None] - middle[:, None]) <= CENTRE / 2 * size[:, None]).all(axis=-1)
    cell = np.clip((middle * (columns, rows)).astype(int), 0, (columns - 1, rows - 1))
    nearest = cell[:, 1] * columns + cell[:, 0]
    inside[~inside.any(axis=1), nearest[~inside.any(axis=1)]] = True

    owner = np.full(rows * columns, -1)
    for box in np.argsort(-size.prod(axis=1), kind="stable"):
        owner[inside[box]] = box
    for box in np.setdiff1d(np.arange(len(label)), owner):
        place = nearest[box]
        if owner[place] < 0 or np.count_nonzero(owner == owner[place]) > 1:
            owner[place] = box
    return Places(  # row -1, that of no box, is appended
        label=np.append(label, 0).astype(np.int32)[owner],
        corners=np.append(corners, np.zeros((1, 4)), axis=0).astype(np.float32)[owner],
        without=np.setdiff1d(np.arange(len(label)), owner),
    )


def collect(label: np.ndarray, corners: np.ndarray, image: np.ndarray) -> Boxes:
    """The boxes that places answer for: of their labels [P], corners [P,4] and images [P]."""
    rows = np.flatnonzero(label > 0)
    of_each = np.column_stack([image[rows], label[rows], corners[rows]])
    _, first = np.unique(of_each, axis=0, return_index=True)
    rows = rows[np.sort(first)]
    return Boxes(image[rows], label[rows], corners[rows].astype(np.float64), np.ones(len(rows)))


def detect(
    probs: np.ndarray,
    corners: np.ndarray,
    image: np.ndarray,
    *,
    least: float = 0.05,
    overlap: float = 0.5,
    most: int = 100,
) -> Boxes:
    """The boxes that places say: of their classes' probabilities [P,C], corners [P,4] and images [P].

    Every class but the background counts at every place where it has a probability of `least`. Of boxes of
    one class that overlap by more than `overlap` the surest stays, and of an image no more than the `most`
    surest. In the order of images, and in each the surest first.
    """
    place, label = np.nonzero(probs[:, 1:] >= least)
    score, label = probs[place, label + 1], label + 1
    inside = np.clip(corners[place].astype(np.float64), 0.0, 1.0)
    has_area = np.flatnonzero((inside[:, 2:] > inside[:, :2]).all(axis=-1))
    there = Boxes(image[place], label, inside, score.astype(np.float64)).take(has_area)
    alike = there.take(np.lexsort((-there.score, there.label, there.image)))
    kept = [start + _not_suppressed(alike.corners[start:end], overlap) for start, end in runs(alike)]
    left = alike.take(np.concatenate(kept) if kept else np.zeros(0, int))
    left = left.take(np.lexsort((-left.score, left.image)))
    rank = np.arange(len(left.image)) - np.searchsorted(left.image, left.image)
    return left.take(np.flatnonzero(rank < most))


def runs(boxes: Boxes) -> list[tuple[int, int]]:
    """(first row, row behind the last) of boxes that stand side by side and have one image and one class."""
    changes = (np.diff(boxes.image) != 0) | (np.diff(boxes.label) != 0)
    starts = [0, *(np.flatnonzero(changes) + 1).tolist(), len(boxes.label)]
    return [(start, end) for start, end in zip(starts, starts[1:]) if end > start]


def _not_suppressed(corners: np.ndarray, overlap: float) -> np.ndarray:
    """Rows of what non-maximum suppression leaves of boxes [n,4], of which the surest stand first."""
    overlaps = intersection_over_union(corners, corners) > overlap
    stays = np.ones(len(corners), bool)
    for row in range(len(corners)):
        if stays[row]:
            stays[row + 1 :] &= ~overlaps[row, row + 1 :]
    return np.flatnonzero(stays)


def intersection_over_union(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    r"""$|A \cap B| / |A \cup B|$ [n,m] of every box of a [n,4] with every one of b [m,4]; 0 without area."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    both = np.clip(high - low, 0.0, None).prod(axis=-1)
    areas = [np.clip(one[:, 2:] - one[:, :2], 0.0, None).prod(axis=-1) for one in (a, b)]
    union = areas[0][:, None] + areas[1][None] - both
    return both / np.where(union > 0, union, 1.0)
