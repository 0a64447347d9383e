"""Methods that change the images on which teachers and student meet."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from mtkd_jax.data import corruptions
from mtkd_jax.data.augment import resized_crop
from mtkd_jax.methods.seams import PLAIN, soft_loss, teachers_of_own_view
from mtkd_jax.types import Array, Augment, Batch, Corruption, Images, Networks, Recipe, UserError

CROPS = 2**30  # folded into a stimulus's key
LOW_PASS = "low_pass"  # of series, beside data.corruptions for pictures


def funmatch(*, least_area: float = 1.0) -> Recipe:
    r"""Match the teachers on mixtures of two images, the very same for both sides; no label is used.

    $$x'_i = r_i\, x_i + (1 - r_i)\, x_j, \qquad r_i \in U(0, 1)$$

    Every example i has a partner j of the same batch. Images [B,h,w,D] are mixed after the configured
    augmentation and, with `least_area` below 1, after a crop of each of at least this share of its area,
    brought back to size (`augment.resized_crop`; the paper's least is 0.08 for ImageNet). Only the soft loss
    counts: alpha is 0, whatever the configuration says. For long training. Raises UserError for a
    `least_area` outside (0, 1].

    Source: function matching, the patient and consistent teacher, Beyer et al. 2022, arXiv 2106.05237.
    """
    if not 0 < least_area <= 1:
        raise UserError(f"funmatch(least_area={least_area}): it must be in (0, 1]")
    return PLAIN._replace(name="funmatch", stimulus=_PairsMixed(least_area), term=soft_loss, alpha=0.0)


@dataclasses.dataclass(frozen=True)
class _PairsMixed:
    least_area: float

    def __call__(self, key: Array, batch: Batch, augment: Augment, networks: Networks) -> Batch:
        augment_key, partner_key, share_key = jax.random.split(key, 3)
        image = augment(augment_key, batch.image)
        if self.least_area < 1:
            keys = jax.random.split(jax.random.fold_in(key, CROPS), len(image))
            image = jax.vmap(partial(resized_crop, least_area=self.least_area))(image, keys)
        partner = jax.random.permutation(partner_key, image)
        share = jax.random.uniform(share_key, (len(image), 1, 1, 1))
        # A mixture of two images has no label.
        speaks = batch.speaks
        if speaks is not None:  # of a mixture those who speak of both
            speaks = speaks & jax.random.permutation(partner_key, speaks)
        return dataclasses.replace(
            batch,
            image=share * image + (1.0 - share) * partner,
            labelled=jnp.zeros_like(batch.labelled),
            speaks=speaks,
        )


def gaussian(*, step_size: float = 1 / 255) -> Recipe:
    r"""Add normal noise to the images, the same for both sides: what `ods` is compared with.

    $$x' = \mathrm{clip}(x + \epsilon\, n, 0, 1), \qquad n \in N(0, 1)^D$$

    Here $\epsilon$ is `step_size`: the images are moved about as far as by `ods`, in no direction of
    interest. Images with a value outside [0,1] are not clipped.

    Source: Nam et al. 2021, arXiv 2110.14149.
    """
    return PLAIN._replace(name="gaussian", stimulus=_Noisy(step_size))


@dataclasses.dataclass(frozen=True)
class _Noisy:
    step_size: float

    def __call__(self, key: Array, batch: Batch, augment: Augment, networks: Networks) -> Batch:
        augment_key, noise_key = jax.random.split(key)
        image = augment(augment_key, batch.image)
        moved = image + self.step_size * jax.random.normal(noise_key, image.shape)
        return dataclasses.replace(batch, image=_clipped_if_unit(image, moved))


def privileged(*, corruption: str = "gaussian_noise", strength: int = 3) -> Recipe:
    r"""Teachers see the image as it is, the student a degraded one: it learns to know what it cannot see.

    $$\ell_\text{soft} = T^2\, \mathrm{KL}(\frac{1}{K} \sum_k \mathrm{softmax}(z_k(x) / T) \parallel
    \mathrm{softmax}(z(c(x)) / T))$$

    Of pictures, whose values must be in [0,1], $c$ is one of `data.corruptions` by its name, drawn anew for
    every image and step, after the configured augmentation. Of series [T,1,D], such as the frames of a
    recording, it is "low_pass": the student is given the narrow band of what teachers hear in full,

    $$c(x)_t = \frac{1}{\lvert N_t \rvert} \sum_{s \in N_t} x_s, \qquad
    N_t = \{s : \lvert s - t \rvert \le r,\ 1 \le s \le T\},$$

    in whatever units it is. The `strength` is from 1 to 5, and $r$. Students are validated and reported on
    the data as they are: how good one is on corrupted images `report.corruptions` tells. Raises UserError for
    a corruption there is not, another strength, and images that are no pictures, or no series.

    Source: generalised distillation, Lopez-Paz et al. 2016, arXiv 1511.03643; Fukuda et al., Interspeech
    2017, for wide-band teachers of a narrow-band student.
    """
    if strength not in corruptions.STRENGTHS:
        raise UserError(f"privileged(strength={strength}): it must be one of {corruptions.STRENGTHS}")
    of_series = corruption == LOW_PASS
    degraded = (
        _Averaged(strength) if of_series else _Corrupted(corruptions.named(corruption, (LOW_PASS,)), strength)
    )
    return PLAIN._replace(
        name="privileged",
        stimulus=_Degraded(degraded),
        teach=teachers_of_own_view,
        check_images=_check_series if of_series else corruptions.check,
    )


@dataclasses.dataclass(frozen=True)
class _Degraded:
    degrade: Callable[[Array, Array], Array]  # (key, images) -> images

    def __call__(self, key: Array, batch: Batch, augment: Augment, networks: Networks) -> Batch:
        augment_key, corruption_key = jax.random.split(key)
        image = augment(augment_key, batch.image)
        seen = self.degrade(corruption_key, image)
        return dataclasses.replace(batch, image=seen, views={"teacher": image})


@dataclasses.dataclass(frozen=True)
class _Corrupted:
    corruption: Corruption
    strength: int

    def __call__(self, key: Array, images: Array) -> Array:
        return corruptions.corrupt(self.corruption, key, images, self.strength)


@dataclasses.dataclass(frozen=True)
class _Averaged:
    """A moving average along time, over the steps that there are. By sums of the shifted series."""

    reach: int

    def __call__(self, key: Array, images: Array) -> Array:
        num_steps, width = images.shape[1], 2 * self.reach + 1
        padded = jnp.pad(images, ((0, 0), (self.reach, self.reach), (0, 0), (0, 0)))
        total = jnp.stack([padded[:, i : i + num_steps] for i in range(width)]).sum(axis=0)
        step = np.arange(num_steps)
        num_near = np.minimum(step, self.reach) + np.minimum(step[::-1], self.reach) + 1
        return total / num_near.astype(np.float32)[None, :, None, None]


def _check_series(images: np.ndarray | Images) -> None:
    _, height, width, _ = images.shape
    if width != 1:
        raise UserError(f"{LOW_PASS} is of series, images of width 1, and these are {height}x{width}")


def ods(*, step_size: float = 1 / 255, teacher_temperature: float = 1.0) -> Recipe:
    r"""Move the images to where the teachers' answers differ most: output diversified sampling.

    $$x' = \mathrm{clip}(x + \epsilon \sqrt{D}\, \frac{g}{\lVert g \rVert}, 0, 1), \qquad
    g = \nabla_x (r \cdot \mathrm{softmax}(z_i(x) / T))$$

    Here $\epsilon$ is `step_size`, D the number of values of an image, i one teacher for the batch and
    $r \in U(-1, 1)^C$ drawn for every example. T is `teacher_temperature`: all students of a batch see one
    $x'$, whatever temperatures they are distilled at; the paper's is that of the loss. Images with a value
    outside [0,1] are not clipped. Teachers and student see $x'$ alone: the paper keeps the hard loss on $x$,
    which is no further than $\epsilon \sqrt{D}$ away, and matches teacher k with member k of a student
    ensemble. Raises UserError for a temperature that is not above 0.

    Source: Nam et al. 2021, arXiv 2110.14149, after Tashiro et al. 2020, arXiv 2003.06878.
    """
    return PLAIN._replace(
        name="ods", stimulus=_make_diversified("ods", step_size, teacher_temperature, False)
    )


def conf_ods(*, step_size: float = 1 / 255, teacher_temperature: float = 1.0) -> Recipe:
    r"""Move the images as `ods` does, but the less so the less sure the teacher is of them.

    $$x' = \mathrm{clip}(x
    + \epsilon \sqrt{D}\, \max_c \mathrm{softmax}(z_i(x) / T)_c\, \frac{g}{\lVert g \rVert}, 0, 1)$$

    The symbols are those of `ods`. Raises UserError for a temperature that is not above 0.

    Source: Nam et al. 2021, arXiv 2110.14149.
    """
    return PLAIN._replace(
        name="conf_ods", stimulus=_make_diversified("conf_ods", step_size, teacher_temperature, True)
    )


def _make_diversified(name: str, step_size: float, temperature: float, by_confidence: bool) -> _Diversified:
    if temperature <= 0:
        raise UserError(f"{name}(teacher_temperature={temperature}): it must be above 0")
    return _Diversified(step_size, temperature, by_confidence)


@dataclasses.dataclass(frozen=True)
class _Diversified:
    step_size: float
    temperature: float
    by_confidence: bool

    def __call__(self, key: Array, batch: Batch, augment: Augment, networks: Networks) -> Batch:
        augment_key, teacher_key, direction_key = jax.random.split(key, 3)
        image = augment(augment_key, batch.image)
        there = batch.label >= 0 if batch.label.ndim > 1 else None  # places are merged after the stimulus

        def answer(image: Array) -> tuple[Array, Array]:
            logits = networks.teachers(image).logits
            of_one = logits[jax.random.randint(teacher_key, (), 0, len(logits))]
            probs = jax.nn.softmax(of_one / self.temperature)  # [B,C], of a dense task [B,L,C]
            if there is not None:
                probs = jnp.where(there[..., None], probs, 0.0)
            direction = jax.random.uniform(direction_key, probs.shape, minval=-1.0, maxval=1.0)
            return jnp.sum(direction * probs), probs.max(axis=-1)

        gradient, confidence = jax.grad(answer, has_aux=True)(image)
        square = jnp.sum(gradient**2, axis=(1, 2, 3), keepdims=True)
        direction = gradient / jnp.sqrt(jnp.maximum(square, 1e-30))
        length = self.step_size * image[0].size ** 0.5
        if self.by_confidence:
            if there is not None:  # the mean over the places of an image
                confidence = confidence.sum(axis=1) / jnp.maximum(there.sum(axis=1, dtype=jnp.float32), 1.0)
            length = length * confidence[:, None, None, None]
        return dataclasses.replace(batch, image=_clipped_if_unit(image, image + length * direction))


def _clipped_if_unit(image: Array, moved: Array) -> Array:
    """Moved images [B,h,w,c], cut off at 0 and 1 where the image was within."""
    unit = jnp.all((image >= 0) & (image <= 1), axis=(1, 2, 3), keepdims=True)
    return jnp.where(unit, moved.clip(0, 1), moved)
