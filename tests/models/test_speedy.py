"""The whitening layer against its definition in float64, the kernels it begins with, rates of biases."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax.addresses import build_model
from mtkd_jax.models.speedy import partial_identity, speedy, whitening
from mtkd_jax.types import Task, UserError

TASK = Task(num_classes=3, num_heads=1, mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.25))


@pytest.fixture(scope="module")
def images():
    """Neighbouring pixels and channels alike, as in photographs; more of them than one block of patches."""
    rng = np.random.default_rng(0)
    rough = rng.normal(size=(300, 7, 6, 3)) @ np.array([[1.0, 0.5, 0.2], [0.0, 0.8, 0.4], [0.0, 0.0, 0.3]])
    smooth = rough + np.roll(rough, 1, axis=1) + np.roll(rough, 1, axis=2)
    return (0.5 + 0.1 * smooth).astype(np.float32)


def patches(images):
    """[P,kkc] float64, one by one."""
    _, height, width, _ = images.shape
    normalised = (np.asarray(images, np.float64) - TASK.mean) / TASK.std
    windows = [
        normalised[:, row : row + 2, column : column + 2].reshape(len(images), -1)
        for row in range(height - 1)
        for column in range(width - 1)
    ]
    return np.concatenate(windows)


def test_whitened_patches_are_uncorrelated_and_come_with_their_negatives(images):
    normalised = (np.asarray(images, np.float64) - TASK.mean) / TASK.std
    kernel = whitening(normalised, window=2, epsilon=0.0)
    assert kernel.shape == (2, 2, 3, 24) and kernel.dtype == np.float32
    answers = patches(images) @ kernel.reshape(12, 24)
    np.testing.assert_allclose(answers[:, :12].T @ answers[:, :12] / len(answers), np.eye(12), atol=1e-5)
    np.testing.assert_array_equal(kernel[..., 12:], -kernel[..., :12])


def test_the_kernel_is_that_of_the_definition(images):
    """The largest direction first, each as long as its variance says, whatever sign a solver gives it."""
    second_moment = patches(images).T @ patches(images) / (300 * 6 * 5)
    values, vectors = np.linalg.eigh(second_moment)
    found = speedy(TASK).module.calibrate(images)["params/whiten/kernel"].reshape(12, 24)
    for place, (value, vector) in enumerate(zip(values[::-1], vectors.T[::-1])):
        large = vector[np.abs(vector) >= np.abs(vector).max() / 2]
        vector = vector if large[0] > 0 else -vector
        np.testing.assert_allclose(found[:, place], vector / np.sqrt(value + 5e-4), rtol=2e-4, atol=2e-4)


def test_a_direction_without_any_variance_stays_finite():
    grey = np.repeat(np.random.default_rng(0).normal(size=(20, 4, 4, 1)), 3, axis=-1)
    assert np.abs(whitening(grey, window=2, epsilon=5e-4)).max() <= 5e-4**-0.5


@pytest.mark.parametrize("features", [3, 5, 9])
def test_the_first_features_are_the_channels_as_they_are(features):
    kernel = np.asarray(partial_identity(jax.random.key(0), (3, 3, 5, features)))
    image = np.random.default_rng(0).normal(size=(2, 4, 4, 5)).astype(np.float32)
    answers = jax.lax.conv_general_dilated(
        image, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    same = min(5, features)
    np.testing.assert_array_equal(answers[..., :same], image[..., :same])
    others = kernel[..., same:]
    if features > 5:
        assert others.min() < 0 < others.max() and np.abs(others).max() <= 45**-0.5


def test_a_rate_of_biases_is_that_many_times_the_step_of_sgd():
    """With 9 they move nine times as far where they count, and all else is the same."""
    image, moved = jax.random.uniform(jax.random.key(0), (8, 6, 6, 3)), {}
    for rate in (1.0, 9.0):
        model = speedy(TASK, width=2, blocks=1, bias_rate=rate)

        @jax.jit
        def gradient(key, model=model):
            variables = model.init(key, image)

            def first_logits(params):
                outputs, _ = model.apply({**variables, "params": params}, image, train=True)
                return outputs.logits[:, 0].sum()

            return jax.grad(first_logits)(variables["params"])

        moved[rate] = gradient(jax.random.key(1))
    first, ninth = (moved[rate]["stage1_layer2"]["bias"] * rate**0.5 for rate in (1.0, 9.0))
    np.testing.assert_allclose(ninth, 9 * first, rtol=1e-3)
    np.testing.assert_allclose(
        moved[9.0]["stage1_layer2"]["conv"]["kernel"],
        moved[1.0]["stage1_layer2"]["conv"]["kernel"],
        rtol=1e-3,
        atol=1e-6,
    )


def test_sizes_by_hand():
    """CIFAR's images: 31, 15, 7 and 3 pixels; 24 whitened channels, then 16, 64 and 64."""
    model = speedy(TASK._replace(num_classes=10))
    image = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    outputs, _ = jax.eval_shape(model.apply, variables, image)
    sizes = {name: value.shape for name, value in outputs.features.items()}
    assert sizes == {"stage1": (2, 15, 15, 16), "stage2": (2, 7, 7, 64), "stage3": (2, 3, 3, 64)}
    assert outputs.embedding.shape == (2, 64)
    kernels = 12 * 24 + 9 * (24 * 16 + 16 * 16 + 16 * 64 + 64 * 64 + 64 * 64 + 64 * 64)
    biases = 2 * (16 + 64 + 64)
    total = sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))
    assert total == kernels + biases + 64 * 10 + 10
    assert model.frozen_stages == ("whiten",)


@pytest.mark.parametrize(
    "address, said",
    [
        ("speedy(width=0)", "speedy.width = 0: expected a whole number >= 1"),
        ("speedy(blocks=0)", "speedy.blocks = 0: expected a whole number >= 1"),
        ("speedy(bias_rate=0.0)", "speedy.bias_rate = 0.0: expected a number above 0"),
        ("speedy(trainable='stage4')", "speedy.trainable = 'stage4': expected one of whiten, stage1"),
        ("speedy(dtype='half')", "speedy.dtype = 'half': expected float32 or bfloat16"),
    ],
)
def test_arguments_out_of_range_are_one_line(address, said):
    with pytest.raises(UserError, match=said) as caught:
        build_model(address, TASK)
    assert "\n" not in str(caught.value)


def test_an_image_too_small_is_one_line():
    with pytest.raises(UserError, match="images of 8x8 are too small: expected images of at least 9x9"):
        jax.eval_shape(speedy(TASK).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))
