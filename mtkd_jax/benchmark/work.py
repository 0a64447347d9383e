"""Floating-point operations by formula: multiply-adds of one image, layer by layer, the first layer first."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mtkd_jax.benchmark.networks import NUM_CLASSES, Network

WIDTHS = (16, 32, 64)  # channels of the three stages of a residual network for small images


def of_training(network: Network) -> int:
    """Operations of one training step on one batch, two for each multiply-add.

    Backwards every layer takes its forward work twice, for its weights and for its input; the first layer
    has no use for the gradient of the image.
    """
    layers = products(network)
    return 2 * network.batch_size * (3 * sum(layers) - layers[0])


def products(network: Network) -> list[int]:
    """Multiply-adds of one image through every convolution and dense layer; nothing else is counted."""
    families: dict[str, Callable[..., list[int]]] = {
        "mlp": mlp,
        "cnn": cnn,
        "resnet": resnet,
        "wide_resnet": wide_resnet,
        "speedy": speedy,
    }
    family = families[network.family]
    return family(network.shape, **network.arguments)


def mlp(shape: Sequence[int], *, hidden: Sequence[int]) -> list[int]:
    """Dense layers."""
    height, width, channels = shape
    sizes = [height * width * channels, *hidden, NUM_CLASSES]
    return [before * after for before, after in zip(sizes, sizes[1:])]


def cnn(shape: Sequence[int], *, widths: Sequence[int] = (32, 64), dense: int = 128) -> list[int]:
    """3x3 convolutions, each followed by 2x2 pooling, and two dense layers."""
    height, width, channels = shape
    layers = []
    for features in widths:
        layers.append(height * width * 9 * channels * features)
        height, width, channels = height // 2, width // 2, features
    return [*layers, height * width * channels * dense, dense * NUM_CLASSES]


def resnet(shape: Sequence[int], *, depth: int, width: int = 1) -> list[int]:
    """3x3 convolutions in blocks of two, a 1x1 convolution beside a block that changes the shape."""
    return _residual(shape, max(16, 8 * width), width, num_blocks=(depth - 2) // 6)


def wide_resnet(shape: Sequence[int], *, depth: int, width: int) -> list[int]:
    """The same with another stem."""
    return _residual(shape, 16, width, num_blocks=(depth - 4) // 6)


def speedy(shape: Sequence[int], *, width: int) -> list[int]:
    """Patches of 2x2, then three blocks of two 3x3 convolutions, the first before 2x2 pooling."""
    rows, columns, channels = shape[0] - 1, shape[1] - 1, 24
    layers = [rows * columns * 4 * shape[-1] * channels]
    for features in (width, 4 * width, 4 * width):
        layers.append(rows * columns * 9 * channels * features)
        rows, columns, channels = rows // 2, columns // 2, features
        layers.append(rows * columns * 9 * features * features)
    return [*layers, channels * NUM_CLASSES]


def _residual(shape: Sequence[int], stem: int, width: int, num_blocks: int) -> list[int]:
    rows, columns, channels = shape
    layers, channels = [rows * columns * 9 * channels * stem], stem
    for stage, features in enumerate(width * own for own in WIDTHS):
        for block in range(num_blocks):
            stride = 2 if stage and not block else 1
            rows, columns = -(-rows // stride), -(-columns // stride)
            changes = stride > 1 or channels != features
            layers += [rows * columns * 9 * channels * features, rows * columns * 9 * features * features]
            layers += [rows * columns * channels * features] if changes else []
            channels = features
    return [*layers, channels * NUM_CLASSES]
