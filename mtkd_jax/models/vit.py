"""Vision transformers."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtkd_jax.models import layers
from mtkd_jax.models.pytorch import numbers_in
from mtkd_jax.types import Array, Model, Outputs, Task, UserError

INIT = nn.initializers.truncated_normal(0.02)
NUM_STAGES = 4
PATCH = {"imagenet": 16, "cifar": 4}  # pixels
GRID = {"imagenet": 14, "cifar": 8}  # patches a side that positions are kept for: images of 224 and 32 pixels
PYTORCH_WORDS = {
    "stem_patches": "patch_embed.proj",
    "stem_tokens": "",
    "last_norm": "norm",
    "heads": "head",
    "qkv": "attn.qkv",
    "project": "attn.proj",
    "dense1": "mlp.fc1",
    "dense2": "mlp.fc2",
}


class Vit(nn.Module):
    """See `vit`."""

    task: Task
    width: int
    depth: int
    attention_heads: int
    image_size: int
    stem: str
    dtype: str

    stages = ("stem", *(f"stage{number}" for number in range(1, NUM_STAGES + 1)), "last", "heads")

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Outputs:
        patch, features = PATCH[self.stem], {}
        height, width = (self.image_size or side for side in image.shape[1:3])

        def as_image(x: Array) -> Array:
            return x[:, 1:].reshape(x.shape[0], height // patch, width // patch, -1)

        def stem(image: Array) -> Array:
            x = layers.prepare(image, self.task, self.image_size, least=patch)
            if height % patch or width % patch:
                raise UserError(
                    f"images of {height}x{width} do not divide into patches of {patch}x{patch}; set "
                    f"image_size to a multiple of {patch}"
                )
            x = layers.Conv(
                self.width,
                (patch, patch),
                (patch, patch),
                "VALID",
                dtype=self.dtype,
                kernel_init=INIT,
                name="stem_patches",
            )(x)
            x = Tokens(GRID[self.stem], name="stem_tokens")(x)
            features["stem"] = as_image(x)
            return x

        def blocks(stage: int, x: Array) -> Array:
            for block in range(1, self.depth // NUM_STAGES + 1):
                x = Block(self.attention_heads, self.dtype, name=f"stage{stage}_block{block}")(x)
            features[f"stage{stage}"] = as_image(x)
            return x

        def last(x: Array) -> Array:
            return layers.layer_norm(x[:, 0], name="last_norm").astype(jnp.float32)

        def heads(embedding: Array) -> Outputs:
            heads = layers.Heads(self.task.num_heads, self.task.num_classes, name="heads")(embedding)
            return layers.outputs(embedding, heads, features)

        stages = (functools.partial(blocks, stage) for stage in range(1, NUM_STAGES + 1))
        return layers.in_turn(self, image, stem, *stages, last, heads)

    def pytorch_module(self, path: str) -> str:
        """The name of a layer in timm, where blocks are not parted into stages."""
        place, _, layer = path.rpartition("/")
        theirs = PYTORCH_WORDS.get(layer, layer)
        if not place:
            return theirs
        stage, block = numbers_in(place)
        return f"blocks.{(stage - 1) * (self.depth // NUM_STAGES) + block - 1}.{theirs}"


class Tokens(nn.Module):
    """Patches [B,h,w,d] -> [B,1+h*w,d]: a token for the class before them, and to each its position.

    Positions are kept for grid x grid patches and resized, bicubically, where there are others.
    """

    grid: int

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, rows, columns, width = x.shape
        token = self.param("cls_token", nn.initializers.normal(1e-6), (1, 1, width), jnp.float32)
        position = self.param("pos_embed", INIT, (1, 1 + self.grid**2, width), jnp.float32)
        if (rows, columns) != (self.grid, self.grid):
            kept = position[:, 1:].reshape(1, self.grid, self.grid, width)
            resized = jax.image.resize(kept, (1, rows, columns, width), "cubic")
            position = jnp.concatenate([position[:, :1], resized.reshape(1, -1, width)], axis=1)
        token = jnp.broadcast_to(token.astype(x.dtype), (batch, 1, width))
        return jnp.concatenate([token, x.reshape(batch, -1, width)], axis=1) + position.astype(x.dtype)


class Block(nn.Module):
    """x plus attention of its LayerNorm, plus two dense layers of the LayerNorm of that; x [B,n,d]."""

    attention_heads: int
    dtype: str

    @nn.compact
    def __call__(self, x: Array) -> Array:
        batch, length, width = x.shape
        y = layers.layer_norm(x, name="norm1")
        y = layers.dense(3 * width, INIT, self.dtype, "qkv")(y)
        y = _attend(*jnp.moveaxis(y.reshape(batch, length, 3, self.attention_heads, -1), 2, 0))
        x = x + layers.dense(width, INIT, self.dtype, "project")(y.reshape(batch, length, width))
        y = layers.layer_norm(x, name="norm2")
        y = nn.gelu(layers.dense(4 * width, INIT, self.dtype, "dense1")(y), approximate=False)
        return x + layers.dense(width, INIT, self.dtype, "dense2")(y)


def _attend(query: Array, key: Array, value: Array) -> Array:
    """Each token's mean of the values [B,n,a,d], weighed by how much its query meets their keys."""
    scores = jnp.einsum("bnad,bmad->banm", query * query.shape[-1] ** -0.5, key)
    share = jax.nn.softmax(scores.astype(jnp.float32)).astype(value.dtype)
    return jnp.einsum("banm,bmad->bnad", share, value)


def vit(
    task: Task,
    *,
    width: int = 192,
    depth: int = 12,
    attention_heads: int = 3,
    image_size: int = 0,
    stem: str = "imagenet",
    pretrained: str = "",
    trainable: str = "",
    dtype: str = "float32",
) -> Model:
    """Vision transformer of patches of 16 pixels; as it is, ViT-Tiny, which is DeiT-Tiny too.

    `depth` pre-normalised blocks of `attention_heads` heads and `width` channels, read from a token of the
    class (Dosovitskiy et al. 2021, arXiv 2010.11929; Touvron et al. 2021, arXiv 2012.12877, without their
    token of distillation); width 384 with 6 heads is ViT-Small. The stem "cifar", for images of 32 pixels,
    has patches of 4. Sides of images must be multiples of the patch; positions are kept for 224 pixels (32
    with the stem "cifar") and resized for others, so that the same weights fit all. Blocks are parted into
    four stages: features "stem" and "stage1" to "stage4" are [B,h/16,w/16,width]; the embedding is the
    normalised token of the class. With `image_size` images are first resized to squares of that side,
    bilinearly; 0 leaves them as they are. `pretrained` and `trainable`: see `types.Model`. For 1000 classes 5
    717 416 parameters. Raises UserError for values out of range and, once it sees an image, when that does
    not divide into patches.

    Examples:
        >>> vit(Task(num_classes=10, num_heads=1, mean=(0.5,), std=(0.2,)), width=384, attention_heads=6).name
        'vit(width=384, attention_heads=6)'
    """
    layers.check_count("vit.attention_heads", attention_heads)
    layers.check_count("vit.width", width)
    expected = f"a multiple of attention_heads = {attention_heads}"
    layers.check_argument("vit.width", width, width % attention_heads == 0, expected)
    layers.check_count("vit.depth", depth)
    layers.check_argument("vit.depth", depth, depth % NUM_STAGES == 0, f"a multiple of {NUM_STAGES}")
    return layers.published(
        vit,
        Vit,
        task,
        width=width,
        depth=depth,
        attention_heads=attention_heads,
        image_size=image_size,
        stem=stem,
        pretrained=pretrained,
        trainable=trainable,
        dtype=dtype,
    )
