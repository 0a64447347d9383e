"""An encoder and a decoder of tokens: Transformers."""

from __future__ import annotations

from typing import Any

import numpy as np
from flax import linen as nn
from jax import numpy as jnp

from mtkd_jax.data import tokens
from mtkd_jax.models import layers
from mtkd_jax.types import Array, Model, Outputs, Task, UserError

INIT = nn.initializers.xavier_uniform()  # as published
LONGEST_WAVE = 10_000.0  # of the positions, in places


class Transformer(nn.Module):
    """See `transformer`."""

    task: Task
    width: int
    depth: int
    attention_heads: int
    source_tokens: int
    dropout: float
    dtype: str

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Outputs:
        if image.shape[1] != 2 or image.shape[3] != 1:
            raise UserError(
                f"images of {'x'.join(map(str, image.shape[1:]))} are no pairs of sequences: transformer "
                "expects 2xLx1, the tokens of a source and those before each of the target's"
            )
        source, target = image[:, 0, :, 0].astype(jnp.int32), image[:, 1, :, 0].astype(jnp.int32)
        source = jnp.where(source < self.source_tokens, source, tokens.UNKNOWN)
        is_token = source != tokens.PAD
        seen = is_token[:, None, None, :]  # of [B,heads,L,L], who is looked at by whom
        before = np.tri(target.shape[1], dtype=bool)[None, None]

        x = self._embedded(source, self.source_tokens, train, "source")
        for number in range(1, self.depth + 1):
            x = self._attended(x, None, seen, train, f"encoder_block{number}_self")
            x = self._fed_forward(x, train, f"encoder_block{number}")
        encoded = layers.layer_norm(x, name="encoder_norm")

        y = self._embedded(target, self.task.num_classes, train, "target")
        for number in range(1, self.depth + 1):
            y = self._attended(y, None, before, train, f"decoder_block{number}_self")
            y = self._attended(y, encoded, seen, train, f"decoder_block{number}_cross")
            y = self._fed_forward(y, train, f"decoder_block{number}")
        embedding = layers.layer_norm(y, name="decoder_norm").astype(jnp.float32)

        heads = layers.Heads(self.task.num_heads, self.task.num_classes, name="heads")(embedding)
        features = {
            "stage1": jnp.where(is_token[..., None], encoded, 0)[:, None],
            "stage2": embedding[:, None],
        }
        return layers.outputs(embedding, heads, features)

    def _embedded(self, numbers: Array, size: int, train: bool, name: str) -> Array:
        """Token numbers [B,L] -> [B,L,width], with where they stand."""
        init = nn.initializers.normal(self.width**-0.5)
        table = nn.Embed(size, self.width, dtype=self.dtype, embedding_init=init, name=f"{name}_tokens")
        places = jnp.asarray(positions(numbers.shape[1], self.width), self.dtype)
        return self._dropped(table(numbers) * self.width**0.5 + places[None], train)

    def _attended(
        self, x: Array, others: Array | None, mask: Array | np.ndarray, train: bool, name: str
    ) -> Array:
        """x [B,L,width] plus what it looks at of the others [B,L,width], or of itself, where the mask is."""
        y = layers.layer_norm(x, name=f"{name}_norm")
        attention = nn.MultiHeadDotProductAttention(
            self.attention_heads, use_bias=False, kernel_init=INIT, dtype=self.dtype, name=name
        )
        return x + self._dropped(attention(y, y if others is None else others, mask=mask), train)

    def _fed_forward(self, x: Array, train: bool, name: str) -> Array:
        """x plus two dense layers of it."""
        y = layers.layer_norm(x, name=f"{name}_norm")
        y = nn.relu(layers.dense(4 * self.width, INIT, self.dtype, f"{name}_dense1")(y))
        return x + self._dropped(layers.dense(self.width, INIT, self.dtype, f"{name}_dense2")(y), train)

    def _dropped(self, x: Array, train: bool) -> Array:
        return nn.Dropout(self.dropout, deterministic=not train)(x)


def positions(length: int, width: int) -> np.ndarray:
    r"""Where a token stands, [length,width] float32: sines and cosines of waves of growing length.

    $$p_{t,2i} = \sin(t / 10000^{2i/d}), \qquad p_{t,2i+1} = \cos(t / 10000^{2i/d})$$

    Source: Vaswani et al. 2017, arXiv 1706.03762.
    """
    waves = LONGEST_WAVE ** (np.arange(0, width, 2) / width)
    angles = np.arange(length)[:, None] / waves[None]
    return (
        np.stack([np.sin(angles), np.cos(angles)], axis=-1).reshape(length, -1)[:, :width].astype(np.float32)
    )


def transformer(
    task: Task,
    *,
    width: int = 64,
    depth: int = 2,
    attention_heads: int = 4,
    source_tokens: int = 256,
    dropout: float = 0.0,
    dtype: str = "float32",
) -> Model:
    """Transformer of two sequences: which token comes next at every place of a target, of its source.

    An encoder reads the source, a decoder the right tokens before each place.

    Images are [2,L,1] float32 of token numbers, see data/tokens.py; logits are [B,L,C], the embedding is
    [B,L,width]. `depth` blocks in the encoder and as many in the decoder, with `attention_heads` heads,
    `width` channels and ReLU layers of 4 `width` between; normalisation comes first (Xiong et al. 2020, arXiv
    2002.04745), positions are sines. What is behind the end of a source is not seen; of the target a place
    sees those before it. Numbers of `source_tokens` and above are the unknown token. Features "stage1" and
    "stage2", [B,1,L,width], are what encoder and decoder end with, the first 0 behind the end. `dropout` in
    [0,1) follows the tokens and every layer of a block. Raises UserError for values out of range and, once
    it sees an image, when that is no pair of sequences.

    Source: Vaswani et al. 2017, arXiv 1706.03762.

    Examples:
        >>> transformer(Task(num_classes=10, num_heads=1, mean=(0.5,), std=(0.2,)), width=32).name
        'transformer(width=32)'
    """
    layers.check_count("transformer.attention_heads", attention_heads)
    layers.check_count("transformer.width", width)
    expected = f"a multiple of attention_heads = {attention_heads}"
    layers.check_argument("transformer.width", width, width % attention_heads == 0, expected)
    layers.check_count("transformer.depth", depth)
    layers.check_count("transformer.source_tokens", source_tokens)
    layers.check_dropout("transformer.dropout", dropout)
    layers.check_dtype("transformer.dtype", dtype)
    arguments: dict[str, Any] = dict(
        width=width,
        depth=depth,
        attention_heads=attention_heads,
        source_tokens=source_tokens,
        dropout=dropout,
        dtype=dtype,
    )
    return Model(layers.address_of(transformer, **arguments), Transformer(task, **arguments))
