"""The linear model beside the networks: a minimum of its loss, chosen on validation alone."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from sklearn.datasets import load_digits

from mtkd_jax.report import document
from mtkd_jax.results import linear, scoring
from tests.references.predictions import make


def drawn(num, size, seed=0, noise=2.0):
    """Three overlapping classes in `size` dimensions, whose features have scales and means of their own."""
    rng = np.random.default_rng(seed)
    labels = np.arange(num) % 3
    centres = np.random.default_rng(9).normal(size=(3, size))
    return (centres[labels] + noise * rng.normal(size=(num, size))) * (1 + np.arange(size)) + 5, labels


def softmax(logits):
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("num_classes", [2, 3])
def test_the_gradient_of_the_penalised_loss_is_zero_there(num_classes, monkeypatch):
    train, labels = drawn(60, 4)
    train, labels = train[labels < num_classes], labels[labels < num_classes]
    monkeypatch.setattr(linear, "STRENGTHS", (0.1,))
    logits, again = linear.linear_logits(train, labels, train, labels, train, num_classes=num_classes)
    np.testing.assert_array_equal(logits, again)
    x = (train - train.mean(axis=0)) / train.std(axis=0)
    weights = np.linalg.lstsq(np.c_[x, np.ones(len(x))], logits.astype(np.float64), rcond=None)[0]
    np.testing.assert_allclose(np.c_[x, np.ones(len(x))] @ weights, logits, rtol=1e-4, atol=1e-4)
    errors = (softmax(logits) - np.eye(num_classes)[labels]) / len(x)
    # Of two classes there is one vector of weights, w = w_1 - w_0, and the penalty is of it alone.
    penalised = weights[:-1] if num_classes > 2 else 2 * weights[:-1]
    np.testing.assert_allclose(x.T @ errors, -0.1 * penalised, atol=2e-4)
    np.testing.assert_allclose(errors.sum(axis=0), 0, atol=2e-4)


def test_a_class_without_an_example_is_never_chosen():
    train, labels = drawn(60, 4)
    val, val_labels = drawn(30, 4, seed=1)
    keep = labels != 1
    [logits] = linear.linear_logits(train[keep], labels[keep], val, val_labels, num_classes=3)
    assert logits.shape == (30, 3) and (logits[:, 1] == logits.min(axis=1)).all()


def test_validation_chooses_and_the_test_set_does_not():
    train, labels = drawn(60, 7)
    val, val_labels = drawn(40, 7, seed=1)
    one, two = (
        linear.linear_logits(train, labels, val, val_labels, test, num_classes=3)[0]
        for test in (val[:1], val)
    )
    np.testing.assert_array_equal(one, two)

    def nll(logits):
        shifted = logits - logits.max(axis=1, keepdims=True)
        log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
        return -log_probs[np.arange(len(val_labels)), val_labels].mean()

    assert nll(one) < min(nll(0.2 * one), nll(5 * one), np.log(3))


def test_digits_by_a_linear_model():
    digits = load_digits()
    images, labels = digits.images[..., None], digits.target
    features = linear.pixels(images, np.arange(len(images)))
    assert features.shape == (1797, 64)
    logits = linear.linear_logits(
        *(features[:1000], labels[:1000], features[1000:1300], labels[1000:1300], features[1300:]),
        num_classes=10,
    )[1]
    assert 0.88 < (logits.argmax(axis=1) == labels[1300:]).mean() < 0.97


@pytest.mark.parametrize(
    "shape,expected",
    [
        ((2, 64, 64, 3), 16 * 16 * 3),
        ((2, 32, 32, 1), 256),
        ((2, 70, 33, 1), 14 * 6),
        ((2, 200, 1, 2), 15 * 2),
    ],
)
def test_pixels_are_means_of_squares(shape, expected):
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    found = linear.pixels(images, [1, 0])
    assert found.shape == (2, expected) and found.dtype == np.float32
    window = -(-max(shape[1:3]) // 16)
    first = images[1, :window, : min(window, shape[2]), 0].astype(np.float64).mean()
    assert found[0, 0] == pytest.approx(first, rel=1e-5)


def with_linear(predictions, accuracy):
    """The made-up run with a linear model that is right on that share of validation."""
    labels, classes = predictions.val_labels, np.arange(10)
    said = np.where(np.arange(len(labels)) < accuracy * len(labels), labels, (labels + 1) % 10)
    val = 5.0 * (said[None, :, None] == classes).astype(np.float32)
    test = np.zeros((1, len(predictions.test_labels), 10), np.float32)
    group = dataclasses.replace(
        predictions.groups[0],
        key="linear/pixels",
        name="linear on pixels",
        role="linear",
        members=("linear",),
    )
    group = dataclasses.replace(group, val=val, test=test)
    return dataclasses.replace(predictions, groups=(*predictions.groups, group))


def test_a_report_names_the_networks_that_are_far_behind_it_and_never_deploys_it():
    made = make(transfers=("labelled",))
    reached = {row["role"]: row["val"]["accuracy"] for row in scoring.rows(made)}
    built = document.build(with_linear(made, 1.0))
    [found] = [one for one in built["findings"] if one.startswith("Behind a linear model")]
    assert "mlp with" in found and "baseline (labelled) with" in found and reached["teacher"] < 0.95
    assert [row["role"] for row in built["rows"]][:3] == ["teacher", "linear", "ensemble"]
    assert built["deploy"]["role"] != "linear"
    close = document.build(with_linear(made, reached["baseline"] + 0.01))
    assert not [one for one in close["findings"] if "baseline (labelled) with" in one]
