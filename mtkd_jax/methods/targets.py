"""Methods that change what the student matches, or keep only a part of what the teachers predict."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mtkd_jax.methods.seams import (
    PLAIN,
    SUPERVISED,
    HardAnd,
    check_unmixed,
    hard_loss,
    label_counts,
    mean_of_probs,
    teachers_of_own_view,
)
from mtkd_jax.types import (
    Array,
    Augment,
    Batch,
    Context,
    Networks,
    Recipe,
    Targets,
    UserError,
)


def dkpp() -> Recipe:
    r"""Keep the teachers' top probability in place and shuffle all others: dark knowledge without its order.

    $$q'_c = q_{\pi(c)}, \qquad \pi(c^*) = c^* = \mathrm{argmax}_c\, q_c$$

    Here $q$ [B,C] is the mean softened teacher, and the permutation $\pi$ of the other C - 1 classes is drawn
    anew for every example and step. With two classes it changes nothing.

    Source: dark knowledge with permuted predictions, Furlanello et al. 2018, arXiv 1805.04770; one teacher.
    """
    return PLAIN._replace(name="dkpp", aim=_permute_others)


def _permute_others(context: Context, w: Array) -> Targets:
    targets = mean_of_probs(context, w)
    probs = targets.probs
    classes, top = jnp.arange(probs.shape[-1])[None, None, :], probs.argmax(axis=-1, keepdims=True)
    # The top class first, the others behind it in random order; then back to a place for every class.
    lots = jnp.where(classes == top, -1.0, jax.random.uniform(context.key, probs.shape))
    shuffled = jnp.take_along_axis(probs, lots.argsort(axis=-1), axis=-1)
    places = jnp.where(classes == top, 0, jnp.where(classes < top, classes + 1, classes))
    return dataclasses.replace(targets, probs=jnp.take_along_axis(shuffled, places, axis=-1))


def label_smoothing(*, smoothing: float = 0.1) -> Recipe:
    r"""Match the smoothed label, as if it came from a teacher; no teacher is asked.

    $$\ell_\text{soft} = \mathrm{CE}((1 - \epsilon)\, \text{onehot}(y)
    + \frac{\epsilon}{C},\, \mathrm{softmax}(z))$$

    Here $\epsilon$ is `smoothing`, T is 1, and only labelled examples count: a teacher who knows nothing,
    hence a control for those who know something. Raises UserError for a smoothing outside [0, 1).

    Source: Szegedy et al. 2016, arXiv 1512.00567.
    """
    if not 0 <= smoothing < 1:
        raise UserError(f"label_smoothing(smoothing={smoothing}): it must be in [0, 1)")
    own = (("smoothing", smoothing),)
    return SUPERVISED._replace(
        name="label_smoothing", term=HardAnd(_smoothed_loss), hyper=own, temperature=1.0
    )


def _smoothed_loss(context: Context) -> Array:
    hyper = {**context.hyper, "label_smoothing": context.hyper["smoothing"]}
    return hard_loss(dataclasses.replace(context, hyper=hyper))


def cwtm() -> Recipe:
    r"""Hard labels alone, each weighed by how sure the teachers are of the example: no dark knowledge at all.

    $$\ell_\text{soft} = B\, w_b\, \mathrm{CE}(y_b, \mathrm{softmax}(z_b)), \qquad
    w_b = \frac{\max_c q_{bc}}{\sum_u \max_c q_{uc}}$$

    Here $q$ [B,C] is the mean softened teacher: the mean over the batch is the paper's sum. Loss and weights
    leave out unlabelled examples, and those that no teacher speaks of.

    Source: confidence weighted by teacher max, Furlanello et al. 2018, arXiv 1805.04770; one teacher.
    """
    return PLAIN._replace(name="cwtm", term=HardAnd(_confidence_weighted_loss))


def pseudo_labels(*, threshold: float = 0.95, soft: bool = False) -> Recipe:
    r"""Take the class that the teachers are sure of as the label of an image that the student sees augmented.

    $$\ell_\text{soft} = [\max_c t_c \ge \tau]\, \mathrm{CE}(\mathrm{argmax}_c\, t_c, \mathrm{softmax}(z))$$

    Here $t$ is the mean teacher at T = 1 on the image as it is, $\tau$ is `threshold`, and $z$ are the
    student's logits on its draw of the configured augmentation (`data.augment`), which should be strong. With
    `soft` all of $t$ is the label, and not its class alone. No label is needed; the configured temperature
    plays no part. FixMatch takes these labels from the student itself, on a slightly augmented image, and of
    unlabelled images alone. Raises UserError for a threshold outside [0, 1), and for mixed images, which have
    no class that teachers could be sure of.

    Source: FixMatch, Sohn et al. 2020, arXiv 2001.07685, with an ensemble as the teacher; soft labels as in
    Noisy Student, Xie et al. 2020, arXiv 1911.04252, which plan `noisy_student` repeats in rounds.
    """
    if not 0 <= threshold < 1:
        raise UserError(f"pseudo_labels(threshold={threshold}): it must be in [0, 1)")
    return PLAIN._replace(
        name="pseudo_labels",
        stimulus=_student_augmented,
        teach=teachers_of_own_view,
        aim=_mean_unsoftened,
        term=HardAnd(_PseudoLabelled(threshold, soft)),
        temperature=1.0,
    )


def _student_augmented(key: Array, batch: Batch, augment: Augment, networks: Networks) -> Batch:
    check_unmixed("targets.pseudo_labels", batch)
    return dataclasses.replace(batch, image=augment(key, batch.image), views={"teacher": batch.image})


def _mean_unsoftened(context: Context, w: Array) -> Targets:
    return mean_of_probs(
        dataclasses.replace(context, hyper={**context.hyper, "temperature": jnp.float32(1.0)}), w
    )


@dataclasses.dataclass(frozen=True)
class _PseudoLabelled:
    threshold: float
    soft: bool

    def __call__(self, context: Context) -> Array:
        probs, mass = context.targets.probs[0], context.targets.mass[0]
        label = probs if self.soft else jax.nn.one_hot(probs.argmax(axis=-1), probs.shape[-1])
        loss = -jnp.sum(label * jax.nn.log_softmax(context.student.logits), axis=-1)
        return jnp.where(probs.max(axis=-1) >= self.threshold, mass * loss, 0.0)


def _confidence_weighted_loss(context: Context) -> Array:
    counts = label_counts(context.batch)
    probs, mass = context.targets.probs[0], context.targets.mass[0]
    confidence = jnp.where(mass > 0, probs.max(axis=-1), 0.0)  # nobody is sure of what nobody speaks of
    # hard_loss already multiplies by B / (number of labelled): what is left is confidence over its mean.
    num = counts.sum()
    mean = (counts * confidence).sum() / jnp.where(num > 0, num, 1.0)
    return hard_loss(context) * confidence / jnp.where(mean > 0, mean, 1.0)
