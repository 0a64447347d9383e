"""A network with stages that is quickly traced: two convolutions with BatchNorm, dropout, heads."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from mtkd_jax.models import layers
from mtkd_jax.types import Array, Model, Outputs, Task

PYTORCH = {
    "stem_conv": "conv1",
    "stem_norm": "bn1",
    "stage1_conv": "conv2",
    "stage1_norm": "bn2",
    "heads": "fc",
}


class Staged(nn.Module):
    task: Task
    widths: tuple[int, ...]
    dropout: float

    @property
    def stages(self) -> tuple[str, ...]:
        return ("stem", "stage1", "heads")

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Outputs:
        features = {}

        def block(name, x):
            x = layers.Conv(self.widths[name != "stem"], (3, 3), use_bias=False, name=f"{name}_conv")(x)
            x = nn.relu(layers.batch_norm(x, train, name=f"{name}_norm"))
            if name == "stem":
                x = nn.Dropout(self.dropout, deterministic=not train, name="stem_dropout")(x)
            features[name] = x
            return x

        def heads(x):
            embedding = x.mean(axis=(1, 2))
            logits = layers.Heads(self.task.num_heads, self.task.num_classes, name="heads")(embedding)
            return layers.outputs(embedding, logits, features)

        x = layers.normalise(image, self.task.mean, self.task.std)
        x = layers.through(self, "stem", x, lambda x: block("stem", x))
        x = layers.through(self, "stage1", x, lambda x: block("stage1", x))
        return layers.through(self, "heads", x, heads)

    def pytorch_module(self, path: str) -> str:
        return PYTORCH[path]


def staged(
    task: Task,
    *,
    widths: tuple[int, ...] = (5, 6),
    dropout: float = 0.0,
    pretrained: str = "",
    trainable: str = "",
) -> Model:
    name = f"staged({pretrained!r}, {trainable!r})"
    return Model(name, Staged(task, widths, dropout), True, pretrained, trainable)


def tensors(channels: int = 1, classes: int = 7, widths: tuple[int, ...] = (5, 6), seed: int = 0) -> dict:
    """Weights of it as PyTorch names and lays them out."""
    rng, found, before = np.random.default_rng(seed), {}, channels
    for number, width in enumerate(widths, start=1):
        found[f"conv{number}.weight"] = rng.normal(size=(width, before, 3, 3)) / 3 / np.sqrt(before)
        for leaf, low in (("weight", 0.5), ("bias", -0.5), ("running_mean", -0.5), ("running_var", 0.5)):
            found[f"bn{number}.{leaf}"] = rng.uniform(low, low + 1, width)
        before = width
    found["fc.weight"], found["fc.bias"] = rng.normal(size=(classes, before)), rng.normal(size=classes)
    return {name: np.float32(value) for name, value in found.items()}


def evaluated(variables: dict, image: np.ndarray, mean: float, std: float) -> np.ndarray:
    """Logits [B,C] in float64, BatchNorm by its stored statistics, of variables {kind: {layer: ...}}."""
    wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    x = (np.asarray(image, np.float64) - mean) / std
    for name in ("stem", "stage1"):
        kernel, padded = wide["params"][f"{name}_conv"]["kernel"], np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        rows, columns = x.shape[1:3]
        x = sum(padded[:, i : i + rows, j : j + columns] @ kernel[i, j] for i in range(3) for j in range(3))
        norm, seen = wide["params"][f"{name}_norm"], wide["batch_stats"][f"{name}_norm"]
        x = (x - seen["mean"]) / np.sqrt(seen["var"] + 1e-5) * norm["scale"] + norm["bias"]
        x = np.maximum(x, 0)
    heads = wide["params"]["heads"]
    return x.mean(axis=(1, 2)) @ heads["kernel"][0] + heads["bias"][0]


def image(size: int = 6, batch: int = 4) -> Array:
    return jnp.asarray(np.random.default_rng(1).random((batch, size, size, 1)), jnp.float32)
