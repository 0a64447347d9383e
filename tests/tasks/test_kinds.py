"""Tasks: found by their files, and what their measures are given."""

import re
from pathlib import Path

import numpy as np
import pytest

from mtkd_jax.tasks import kinds, masks
from mtkd_jax.tasks.kinds import PlaceOutputs
from mtkd_jax.types import UserError

CONFUSED = np.array([[2.0, 0, 0], [1, 1, 0], [0, 0, 0]])


def said(labels, classes, example, num_classes=3, **further):
    logits = np.eye(num_classes)[np.asarray(classes)]
    place = np.arange(len(labels)) - np.searchsorted(example, example)
    return PlaceOutputs(logits, np.asarray(labels), np.asarray(example), place, **further)


def test_every_file_is_a_task():
    assert {"classes", "masks"} <= {*kinds.names()} and "kinds" not in kinds.names()
    assert all(isinstance(kinds.named(name), kinds.Kind) for name in kinds.names())
    assert kinds.named("classes") == kinds.Kind()
    with pytest.raises(UserError, match=r"^task 'mask': must be of .*masks.*did you mean 'masks'"):
        kinds.named("mask")


def test_the_task_that_the_documentation_writes_is_one():
    text = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
    written = {}
    exec(re.search(r"```python\n(.*?)```", text, re.S)[1], written)
    kind, logits = written["KIND"], np.eye(3, dtype=np.float32)[[0, 1, 2, 2]]
    said = PlaceOutputs(logits, np.array([0, 1, 2, 0]), np.array([0, 0, 1, 1]), np.array([0, 1, 0, 1]))
    assert kind.measures[0].compute(said).tolist() == [1.0, 0.0]
    assert kind.tell(logits, ("a", "b", "c"), {}) == ["a", "b", "c", "c"]


def test_examples_are_taken_whole_and_twice():
    told = said([0, 1, 2, 0], [0, 1, 1, 2], [0, 0, 1, 2], goals={"size": np.arange(4.0)[:, None]})
    assert told.num_examples == 3
    drawn = told.take(np.array([2, 0, 2]))
    np.testing.assert_array_equal(drawn.labels, [0, 0, 1, 0])
    np.testing.assert_array_equal(drawn.example, [0, 1, 1, 2])
    np.testing.assert_array_equal(drawn.place, [0, 0, 1, 0])
    np.testing.assert_array_equal(drawn.goals["size"][:, 0], [3, 0, 1, 3])


def test_confusion_of_each_image_adds_up_to_that_of_all():
    told = said([0, 0, 1, 1, 2], [0, 0, 0, 1, 2], [0, 0, 0, 1, 1])
    matrix = masks.confusion(told)
    assert matrix.shape == (2, 3, 3)
    np.testing.assert_array_equal(matrix.sum(axis=(1, 2)), [3, 2])
    np.testing.assert_array_equal(matrix.sum(axis=0), [[2, 0, 0], [1, 1, 0], [0, 0, 1]])


def test_mean_iou_by_hand():
    """Class 0: 2 of 3; class 1: 1 of 2; class 2 is neither there nor said."""
    np.testing.assert_allclose(masks.mean_iou(CONFUSED), (2 / 3 + 1 / 2) / 2)
    np.testing.assert_allclose(masks.pixel_accuracy(CONFUSED), 3 / 4)


def test_mean_iou_is_that_of_scikit_learn():
    from sklearn.metrics import jaccard_score

    rng = np.random.default_rng(0)
    labels, classes = rng.integers(0, 3, 200), rng.integers(0, 3, 200)
    told = said(labels, classes, np.repeat(np.arange(4), 50))
    expected = jaccard_score(labels, classes, average="macro")
    np.testing.assert_allclose(masks.mean_iou(masks.confusion(told).sum(axis=0)), expected)


def test_pixels_are_painted_and_told():
    image = np.full((2, 2, 3), 100, np.uint8)
    drawn = masks.draw(image, np.array([0, 1, -1, 2]), ("ground", "a", "b"), {})
    np.testing.assert_array_equal(drawn[0, 0], [100, 100, 100])
    np.testing.assert_array_equal(drawn[1, 0], [0, 0, 0])
    assert drawn.dtype == np.uint8 and len({tuple(pixel) for pixel in drawn.reshape(-1, 3)}) == 4
    logits = np.eye(3)[[0, 2, 2, 2]]
    assert masks.tell(logits, ("ground", "a", "b"), {}) == ["b 75.0 %", "ground 25.0 %"]
