"""MixUp and CutMix: an image takes over a part of another one of its batch, and the same share of its label.

Partners, shares and boxes are drawn once a batch; every view of the batch is mixed by the same.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from mtkd_jax.data import places
from mtkd_jax.types import Array, Batch, Mixed, UserError, pytree


@pytree
@dataclasses.dataclass(frozen=True)
class Mixture:
    """How the images of a batch are mixed: each with a partner, as a whole or in a box."""

    partner: Array  # [B] int32, a row of the batch
    share: Array  # [B] float32 in [0.5, 1]: the image's own share
    inside: Array  # [B,h,w,1] bool, the box that shows the partner
    cut: Array  # [B] bool: a box is cut (CutMix); False: the whole images are mixed (MixUp)


def draw(key: Array, shape: tuple[int, ...], *, mixup: float, cutmix: float) -> Mixture:
    """How to mix a batch of images `shape` [B,h,w,c]: shares from Beta(a, a); a = 0 is off.

    With both, each image takes one or the other with probability 1/2. The image's own share is at least
    1/2: of a pair of MixUp the one is the other with the shares turned round, so nothing is left out; boxes
    of CutMix are at most half of the image. `label` is always the one that counts most. Raises UserError for
    CutMix of images of one pixel.

    Sources: Zhang et al. 2018, arXiv 1710.09412 (MixUp); Yun et al. 2019, arXiv 1905.04899 (CutMix).
    """
    num, height, width, _ = shape
    if cutmix and height == width == 1:
        raise UserError("config.train.cutmix: images of one pixel cannot be cut; must be 0 for them")
    partner_key, mixup_key, cutmix_key, place_key, coin_key = jax.random.split(key, 5)
    partner = jax.random.permutation(partner_key, num)
    if mixup and cutmix:
        cut = jax.random.bernoulli(coin_key, shape=(num,))
    else:
        cut = jnp.full(num, bool(cutmix))
    mixed, in_box = _shares(mixup_key, mixup, num), _shares(cutmix_key, cutmix, num)
    inside = _boxes(place_key, in_box, height, width) & cut[:, None, None]
    shown = 1.0 - inside.mean(axis=(1, 2))  # what the borders leave of a box counts
    return Mixture(partner, jnp.where(cut, shown, mixed), inside[..., None], cut)


def _shares(key: Array, concentration: float, num: int) -> Array:
    if not concentration:
        return jnp.ones(num)
    share = jax.random.beta(key, concentration, concentration, (num,))
    return jnp.maximum(share, 1.0 - share)


def _boxes(key: Array, share: Array, height: int, width: int) -> Array:
    """[B,h,w] bool: boxes of at most the area 1 - share around random pixels, cut off at the borders.

    A side of one pixel (a time series) is not cut, the other one then takes it all.
    """
    side = 1.0 - share if 1 in (height, width) else jnp.sqrt(1.0 - share)
    down, right = jax.vmap(lambda one: jnp.stack(places.below(one, height, width)))(
        jax.random.split(key, len(share))
    ).T

    def between(place: Array, size: int) -> Array:
        length = jnp.floor(side * size).astype(jnp.int32) if size > 1 else jnp.ones_like(place)
        behind = jnp.arange(size)[None, :] - (place - length // 2)[:, None]
        return (behind >= 0) & (behind < length[:, None])

    return between(down, height)[:, :, None] & between(right, width)[:, None, :]


def mix_images(mixture: Mixture, images: Array) -> Array:
    """The images [B,h,w,c] of a batch, or of a view of it, mixed."""
    others = images[mixture.partner]
    own = jnp.where(mixture.cut, 1.0, mixture.share)[:, None, None, None]
    return jnp.where(mixture.inside, others, own * images + (1.0 - own) * others)


def mix_after(augment: Callable, mixture: Mixture) -> Callable:
    """`augment` (key, images) -> images, with the images mixed when that is done."""
    return lambda key, images: mix_images(mixture, augment(key, images))


def mix_labels(mixture: Mixture, batch: Batch) -> Batch:
    """The batch with the labels of the partners beside its own; images are as they were.

    Only teachers who speak of both images speak of what is mixed from them.
    """
    partner = mixture.partner
    weight = None if batch.weight is None else batch.weight[partner]
    others = Mixed(mixture.share, batch.label[partner], batch.labelled[partner], weight)
    speaks = None if batch.speaks is None else batch.speaks & batch.speaks[partner]
    return dataclasses.replace(batch, mixed=others, speaks=speaks)
