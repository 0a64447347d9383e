"""Methods that change the images on which teachers and student meet."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mtkd_jax.methods.seams import PLAIN, soft_loss
from mtkd_jax.types import Array, Augment, Batch, Networks, Recipe, UserError


def funmatch() -> Recipe:
    r"""Match the teachers on mixtures of two images, the very same for both sides; no label is used.

    $$x'_i = r_i\, x_i + (1 - r_i)\, x_j, \qquad r_i \in U(0, 1)$$

    Every example i has a partner j of the same batch. Images [B,h,w,D] are mixed after the configured
    augmentation. Only the soft loss counts: alpha is 0, whatever the configuration says. For long training.

    Source: function matching, the patient and consistent teacher, Beyer et al. 2022, arXiv 2106.05237.
    """
    return PLAIN._replace(name="funmatch", stimulus=_mix_pairs, term=soft_loss, alpha=0.0)


def _mix_pairs(key: Array, batch: Batch, augment: Augment, networks: Networks) -> Batch:
    augment_key, partner_key, share_key = jax.random.split(key, 3)
    image = augment(augment_key, batch.image)
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

        def answer(image: Array) -> tuple[Array, Array]:
            logits = networks.teachers(image).logits
            of_one = logits[jax.random.randint(teacher_key, (), 0, len(logits))]
            probs = jax.nn.softmax(of_one / self.temperature)
            direction = jax.random.uniform(direction_key, probs.shape, minval=-1.0, maxval=1.0)
            return jnp.sum(direction * probs), probs.max(axis=-1)

        gradient, confidence = jax.grad(answer, has_aux=True)(image)
        square = jnp.sum(gradient**2, axis=(1, 2, 3), keepdims=True)
        direction = gradient / jnp.sqrt(jnp.maximum(square, 1e-30))
        length = self.step_size * image[0].size ** 0.5
        if self.by_confidence:
            of_image = confidence.reshape(len(image), -1).mean(axis=1)  # of a dense task over its places
            length = length * of_image[:, None, None, None]
        moved = image + length * direction
        unit = jnp.all((image >= 0) & (image <= 1), axis=(1, 2, 3), keepdims=True)
        return dataclasses.replace(batch, image=jnp.where(unit, moved.clip(0, 1), moved))
