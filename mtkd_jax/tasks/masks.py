"""A label for every pixel: semantic segmentation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mtkd_jax.tasks.kinds import Kind, Measure, PlaceOutputs

SHOWN = 0.45  # how much of a pixel's colour is that of its class
COLOURS = np.array(  # of classes 1, 2, ...; 0 is drawn as the image is. Distinct also without red and green.
    [
        (0, 114, 178),
        (230, 159, 0),
        (0, 158, 115),
        (204, 121, 167),
        (213, 94, 0),
        (86, 180, 233),
        (240, 228, 66),
    ],
    np.float64,
)


def confusion(said: PlaceOutputs) -> np.ndarray:
    """[E,C,C], how many pixels of each image have the row's class and are taken for the column's."""
    num_classes = said.logits.shape[-1]
    flat = (said.example * num_classes + said.labels) * num_classes + said.logits.argmax(axis=-1)
    counts = np.bincount(flat, minlength=said.num_examples * num_classes**2)
    return counts.reshape(-1, num_classes, num_classes).astype(np.float64)


def mean_iou(matrix: np.ndarray) -> float:
    r"""Mean intersection over union of the classes, of their confusion [C,C] summed over images.

    $$\frac{1}{\lvert P \rvert} \sum_{c \in P} \frac{m_{cc}}{\sum_j m_{cj} + \sum_j m_{jc} - m_{cc}}$$

    Here P are the classes that are there or are said to be. Source: Everingham et al. 2010, the PASCAL VOC
    challenge, of segmentations.

    Examples:
        >>> mean_iou(np.array([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))  # 2/3 and 1/2
        0.5833333333333333
    """
    right = np.diagonal(matrix)
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - right
    return float((right[union > 0] / union[union > 0]).mean())


def pixel_accuracy(matrix: np.ndarray) -> float:
    """The share of all pixels whose class is found, of their confusion [C,C]."""
    return float(np.trace(matrix) / matrix.sum())


def draw(
    image: np.ndarray, classes: np.ndarray, class_names: Sequence[str], beside: Mapping[str, np.ndarray]
) -> np.ndarray:
    """The image [h,w,3] uint8 with the pixels of every class but 0 in its colour, and what is none black."""
    classes = classes.reshape(image.shape[:2])
    painted = (1 - SHOWN) * image + SHOWN * COLOURS[(classes - 1) % len(COLOURS)]
    shown = np.where((classes > 0)[..., None], painted, image)
    return np.where((classes < 0)[..., None], 0, shown).astype(np.uint8)


def tell(logits: np.ndarray, class_names: Sequence[str], beside: Mapping[str, np.ndarray]) -> list[str]:
    """The share of the image that each class takes, the largest first; without those that have no pixel."""
    areas = np.bincount(logits.argmax(axis=-1), minlength=len(class_names)) / len(logits)
    return [f"{class_names[c]} {100 * areas[c]:.1f} %" for c in np.argsort(-areas, kind="stable") if areas[c]]


KIND = Kind(
    place="pixel",
    measures=(
        Measure("mIoU", confusion, mean_iou, ends=(0.0, 1.0)),
        Measure("pixel accuracy", confusion, pixel_accuracy, ends=(0.0, 1.0)),
    ),
    draw=draw,
    tell=tell,
)
