"""Multilayer perceptrons."""

from __future__ import annotations

from typing import Any

from flax import linen as nn

from mtkd_jax.models import layers
from mtkd_jax.types import Array, Model, Outputs, Task


class Mlp(nn.Module):
    """See `mlp`."""

    task: Task
    hidden: tuple[int, ...]
    batch_norm: bool
    dropout: float
    bottleneck: int
    dtype: str

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Outputs:
        x = layers.normalise(image, self.task.mean, self.task.std)
        x = x.reshape(x.shape[0], -1)
        features = {}
        for number, width in enumerate(self.hidden, start=1):
            if self.bottleneck:
                name = f"bottleneck{number}"
                x = nn.Dense(self.bottleneck, use_bias=False, dtype=self.dtype, name=name)(x)
            x = nn.Dense(
                width,
                use_bias=not self.batch_norm,
                kernel_init=layers.HE,
                dtype=self.dtype,
                name=f"dense{number}",
            )(x)
            if self.batch_norm:
                x = layers.batch_norm(x, train, name=f"norm{number}")
            x = nn.relu(x)
            x = nn.Dropout(self.dropout, deterministic=not train)(x)
            features[f"stage{number}"] = x[:, None, None, :]
        heads = layers.Heads(self.task.num_heads, self.task.num_classes, name="heads")(x)
        return layers.outputs(x, heads, features)


def mlp(
    task: Task,
    *,
    hidden: tuple[int, ...] = (64, 64),
    batch_norm: bool = False,
    dropout: float = 0.0,
    bottleneck: int = 0,
    dtype: str = "float32",
) -> Model:
    r"""Multilayer perceptron: flattened image, ReLU layers of the given widths, linear heads.

    `hidden=()` is a linear classifier. Features "stage1", "stage2", ... are [B,1,1,width]; the embedding
    is the last of them. `dropout` in [0,1) follows every ReLU. Raises UserError for values out of range.

    With `bottleneck` k > 0 the matrix [D,H] of every ReLU layer is a product of two, [D,k] and [k,H], without
    anything between them: $k (D + H)$ numbers in the place of $D H$. With one wide layer, `hidden=(4000,)`,
    it is the shallow student of Ba and Caruana 2014, arXiv 1312.6184, who teach it by `logits.regression`.

    Examples:
        >>> mlp(Task(num_classes=10, num_heads=1, mean=(0.5,), std=(0.2,)), hidden=(32,)).name
        'mlp(hidden=(32,))'
    """
    layers.check_widths("mlp.hidden", hidden)
    layers.check_dropout("mlp.dropout", dropout)
    layers.check_dtype("mlp.dtype", dtype)
    expected = "a whole number of units, or 0 for none"
    layers.check_argument(
        "mlp.bottleneck", bottleneck, isinstance(bottleneck, int) and bottleneck >= 0, expected
    )
    arguments: dict[str, Any] = dict(
        hidden=hidden, batch_norm=batch_norm, dropout=dropout, bottleneck=bottleneck, dtype=dtype
    )
    return Model(layers.address_of(mlp, **arguments), Mlp(task, **arguments))
