r"""Methods that compare the logits of student and teachers in another way: they change the seam `term`.

All share $\ell = \alpha\, \ell_\text{hard} + (1 - \alpha)\, \ell_\text{soft}$ [B] and differ in
$\ell_\text{soft}$. Logits are $z$ of the student and $z_k$ of teacher k; softened probabilities are
$p = \mathrm{softmax}(z / T)$ of the student, $q_k = \mathrm{softmax}(z_k / T)$ of teacher k, and their
mean $q = \frac{1}{K} \sum_k q_k$; all [B,C]. The label is $y$.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln

from mtkd_jax.methods.maps import mean_of
from mtkd_jax.methods.seams import PLAIN, HardAnd, mean_of_probs, of_places, soft_loss
from mtkd_jax.types import (
    Array,
    Context,
    Outputs,
    PyTree,
    Recipe,
    Targets,
    TeacherOutputs,
    UserError,
)

NOWHERE = -1e9  # a logit where there is no place: its share of a map is 0


def dkd(*, target_weight: float = 1.0, nontarget_weight: float = 8.0, warmup: float = 20 / 240) -> Recipe:
    r"""Match the teachers' trust in the true class, and their view of the others, as two separate losses.

    $$\ell_\text{soft} = r\, T^2 (\beta_1\, \mathrm{KL}(b(q) \parallel b(p))
    + \beta_2\, \mathrm{KL}(q' \parallel p')), \qquad b(p) = (p_y,\, 1 - p_y)$$

    Here $\beta_1$ is `target_weight`, $\beta_2$ is `nontarget_weight`, $q$ is the mean softened teacher and
    $p$ the softened student; $q'$ and $p'$ are renormalised without the label $y$. Weights 1 and $1 - q_y$
    would give $\mathrm{KL}(q \parallel p)$, which is the loss of examples without a label. The ramp $r$ grows
    from 0 to 1 over the first `warmup` of the training, a share; 0 switches it off. In the paper there is one
    teacher and the loss is hard + soft: twice that of alpha = 0.5.

    Source: Zhao et al. 2022, arXiv 2203.08679 (nontarget_weight 8 for ResNet-32x4, 2 for ResNet-56).
    """
    if not 0 <= warmup <= 1:
        raise UserError(f"dkd(warmup={warmup}): it must be a share of the training, in [0, 1]")
    weights = (("target_weight", target_weight), ("nontarget_weight", nontarget_weight))
    return PLAIN._replace(name="dkd", term=HardAnd(_Decoupled(warmup)), hyper=weights, hears_all=True)


@dataclasses.dataclass(frozen=True)
class _Decoupled:
    warmup: float

    def __call__(self, context: Context) -> Array:
        ramp = jnp.minimum(context.progress / self.warmup, 1.0) if self.warmup else 1.0
        return ramp * jnp.where(context.batch.labelled, _decoupled(context), soft_loss(context))


def _decoupled(context: Context) -> Array:
    temperature, probs = context.hyper["temperature"], context.targets.probs[0]
    log_student = jax.nn.log_softmax(context.student.logits / temperature)
    is_label = jax.nn.one_hot(context.batch.label, probs.shape[-1], dtype=bool)

    # Sums over the others, not 1 - p_y: that is 0 in float32 long before the others are.
    of_others = jnp.where(is_label, 0.0, probs).sum(axis=-1)
    log_of_others = jax.nn.logsumexp(log_student, axis=-1, where=~is_label)
    target = jnp.stack([jnp.where(is_label, probs, 0.0).sum(axis=-1), of_others])
    log_target = jnp.stack([jnp.where(is_label, log_student, 0.0).sum(axis=-1), log_of_others])

    loss = context.hyper["target_weight"] * _kl(target, log_target, axis=0)
    loss += context.hyper["nontarget_weight"] * _kl(*_without_label(context), axis=-1)
    return temperature**2 * context.targets.mass[0] * loss


def _without_label(context: Context) -> tuple[Array, Array]:
    """q' and ln p' [B,C]: softened predictions among the classes that are not the label, 0 at the label."""
    temperature = context.hyper["temperature"]
    is_label = jax.nn.one_hot(context.batch.label, context.student.logits.shape[-1], dtype=bool)
    log_student = jax.nn.log_softmax(context.student.logits / temperature)
    log_of_others = jax.nn.logsumexp(log_student, axis=-1, where=~is_label)
    # From the teachers' logits: their probabilities underflow where the logits are some 90 T apart.
    log_teachers = jax.nn.log_softmax(context.teacher.logits / temperature)
    log_mixture = jax.nn.logsumexp(log_teachers, axis=0)
    log_mixed_others = jax.nn.logsumexp(log_mixture, axis=-1, where=~is_label)
    nontarget = jnp.where(is_label, 0.0, jnp.exp(log_mixture - log_mixed_others[:, None]))
    return nontarget, jnp.where(is_label, 0.0, log_student - log_of_others[:, None])


def _kl(probs: Array, log_student: Array, axis: int) -> Array:
    return jnp.sum(jax.scipy.special.xlogy(probs, probs) - probs * log_student, axis=axis)


def nkd(*, nontarget_weight: float = 1.5) -> Recipe:
    r"""Match the teachers' trust in the true class as it is, and their view of the others softened.

    $$\ell_\text{soft} = -t_y \ln s_y - \gamma\, T^2 \sum_{c \ne y} q'_c \ln p'_c$$

    Here $t$ is the mean teacher and $s$ the student at temperature 1, $\gamma$ is `nontarget_weight`, and
    $q'$ and $p'$ are the softened predictions renormalised without the label $y$. Examples without a label
    have the loss $\mathrm{KL}(q \parallel p)$ of plain distillation. In the paper there is one teacher and
    the loss is hard + soft: twice that of alpha = 0.5.

    Source: normalised distillation, Yang et al. 2023, arXiv 2303.13005 (T = 1 and weight 1.5 on ImageNet).
    """
    own = (("nontarget_weight", nontarget_weight),)
    return PLAIN._replace(name="nkd", term=HardAnd(_normalised_loss), hyper=own, hears_all=True)


def _normalised_loss(context: Context) -> Array:
    return jnp.where(context.batch.labelled, _normalised(context), soft_loss(context))


def _normalised(context: Context) -> Array:
    label = context.batch.label[:, None]
    trust = jnp.take_along_axis(jax.nn.softmax(context.teacher.logits).mean(axis=0), label, axis=-1)[:, 0]
    log_student = jnp.take_along_axis(jax.nn.log_softmax(context.student.logits), label, axis=-1)[:, 0]
    nontarget, log_nontarget = _without_label(context)
    of_others = -jnp.sum(nontarget * log_nontarget, axis=-1)
    factor = context.hyper["nontarget_weight"] * context.hyper["temperature"] ** 2
    return context.targets.mass[0] * (factor * of_others - trust * log_student)


def dist(*, inter_weight: float = 1.0, intra_weight: float = 1.0) -> Recipe:
    r"""Match correlations instead of values: among the classes of an example, among the examples of a class.

    $$\ell_\text{soft} = T^2 (\beta_1 (1 - \rho(p_b, q_b))
    + \beta_2 (1 - \frac{1}{C} \sum_c \rho(p_{:c}, q_{:c})))$$

    Here $\rho$ is Pearson's correlation, $\beta_1$ is `inter_weight`, $\beta_2$ is `intra_weight`, $p$ [B,C]
    is the softened student, $q$ [B,C] the mean softened teacher and $b$ the example. The second part looks
    down the columns of a batch, which must be large enough to hold some examples of every class. A constant
    row or column has the correlation 0. Where places of an image have labels they are the examples, as in the
    paper's segmentation: each pixel's row, and columns over all pixels of the batch. Columns leave out places
    that are not there, and examples that no teacher speaks of, whose loss is 0.

    Source: Huang et al. 2022, arXiv 2205.10536. The weights are those of its public loss file.
    """
    weights = (("inter_weight", inter_weight), ("intra_weight", intra_weight))
    return PLAIN._replace(name="dist", term=HardAnd(_correlation_loss), hyper=weights)


def cwd(*, weight: float = 3.0, map_temperature: float = 4.0) -> Recipe:
    r"""Match where in an image each class is seen: channel-wise distillation of the maps of logits.

    $$\ell = \alpha\, \ell_\text{hard} + (1 - \alpha)\, \ell_\text{KD} + \lambda\, \frac{\tau^2}{C} \sum_c
    \frac{1}{K} \sum_k \mathrm{KL}(\phi(z_{k,c}) \parallel \phi(z_c)), \qquad
    \phi(z_c)_i = \frac{e^{z_{c,i} / \tau}}{\sum_j e^{z_{c,j} / \tau}}$$

    For tasks whose places have labels: i and j are the places of one image that are there, $z_c$ the map of
    class c, $\lambda$ is `weight` and $\tau$ is `map_temperature`. An image's loss is that of each of its
    places. Of one place an image, $\phi$ is 1 and this is plain distillation. The paper has one teacher, and
    no $\ell_\text{KD}$.

    Source: Shu et al. 2021, arXiv 2011.13256 (weight 3 and temperature 4 on maps of logits).
    """
    own = (("weight", weight), ("map_temperature", map_temperature))
    return PLAIN._replace(name="cwd", term=_with_channels, hyper=own, hears_all=True)


def _with_channels(context: Context) -> Array:
    loss, weight = HardAnd(soft_loss)(context), context.hyper["weight"]
    return loss + weight * of_places(_channel_distance(context), context.batch)


def _channel_distance(context: Context) -> Array:
    """Of each image [B]."""
    batch, temperature = context.batch, context.hyper["map_temperature"]
    num_images = batch.image.shape[-4]

    def log_map(logits: Array) -> Array:  # [...,B*L,C] -> [...,B,L,C]
        if batch.valid is not None:
            logits = jnp.where(jnp.expand_dims(batch.valid, -1), logits, NOWHERE)
        maps = logits.reshape(*logits.shape[:-2], num_images, -1, logits.shape[-1])
        return jax.nn.log_softmax(maps / temperature, axis=-2)

    own, others = log_map(context.student.logits), log_map(context.teacher.logits)
    divergence = jnp.sum(jnp.exp(others) * (others - own[None]), axis=-2)  # [K,B,C]
    return temperature**2 * divergence.mean(axis=(0, 2))


def _correlation_loss(context: Context) -> Array:
    temperature, probs = context.hyper["temperature"], context.targets.probs[0]
    student = jax.nn.softmax(context.student.logits / temperature)
    inter = 1.0 - _correlation(student, probs, axis=1)
    there = _compared(context)
    intra = 1.0 - _correlation(student, probs, axis=0, there=there).mean()
    loss = context.hyper["inter_weight"] * inter + context.hyper["intra_weight"] * intra
    return temperature**2 * context.targets.mass[0] * loss


def _compared(context: Context) -> Array | None:
    """Which examples [B,1] a column has: places that are there, and whom somebody teaches; None: all."""
    there = context.batch.valid
    if context.batch.speaks is not None:
        taught = context.targets.mass[0] > 0
        there = taught if there is None else there & taught
    return None if there is None else there[:, None]


def _correlation(a: Array, b: Array, axis: int, there: Array | None = None) -> Array:
    """Pearson's, along an axis, of what is `there`; 0, and without a gradient, where either hardly varies."""
    a, b = (x - jnp.expand_dims(mean_of(x, there, axis), axis) for x in (a, b))
    if there is not None:
        a, b = jnp.where(there, a, 0.0), jnp.where(there, b, 0.0)
    a_square, b_square = jnp.sum(a**2, axis=axis), jnp.sum(b**2, axis=axis)
    varies = (a_square > 1e-12) & (b_square > 1e-12)
    # A root of 0 has no gradient, and `where` around it would not keep the NaN out.
    norms = jnp.sqrt(jnp.where(varies, a_square, 1.0)) * jnp.sqrt(jnp.where(varies, b_square, 1.0))
    return jnp.where(varies, jnp.sum(a * b, axis=axis) / norms, 0.0)


def regression() -> Recipe:
    r"""Regress the teachers' mean logits, without any softmax.

    $$\ell_\text{soft} = \frac{1}{2} \sum_c (z_c - \frac{1}{K} \sum_k z_{kc})^2$$

    Unlike KL it sees a constant added to all logits. The temperature plays no part.

    Source: Ba and Caruana 2014, arXiv 1312.6184.
    """
    return PLAIN._replace(name="regression", term=HardAnd(_squared_distance), hears_all=True, temperature=1.0)


def _squared_distance(context: Context) -> Array:
    return 0.5 * jnp.sum((context.student.logits - context.teacher.logits.mean(axis=0)) ** 2, axis=-1)


def lsk() -> Recipe:
    r"""Standardise every logit vector, teachers' and student's, before the softmax: only their shape counts.

    $$\ell_\text{soft}
    = T^2\, \mathrm{KL}(\frac{1}{K} \sum_k \mathrm{softmax}(n(z_k) / T)
    \parallel \mathrm{softmax}(n(z) / T)), \qquad n(z) = \frac{z - \mathrm{mean}_c\, z}{\mathrm{std}_c\, z}$$

    The deviation is that of a sample (ddof = 1), and $n(z) = 0$ for a constant $z$. The paper's T is 2.
    Raises UserError for two classes: whatever $z$ is, $n(z)$ is then one of two vectors, and the loss has no
    gradient.

    Source: Sun et al. 2024, arXiv 2403.01427.
    """
    aim, term = _MeanOfStandardised("lsk"), HardAnd(_StandardisedLoss("lsk"))
    return PLAIN._replace(name="lsk", aim=aim, term=term)


def spherical() -> Recipe:
    r"""Give all logit vectors, teachers' and student's, one length before the softmax: the teachers' mean.

    $$\ell_\text{soft}
    = T^2\, \mathrm{KL}(\frac{1}{K} \sum_k \mathrm{softmax}(l\, u(z_k) / T)
    \parallel \mathrm{softmax}(l\, u(z) / T)), \qquad
    u(z) = \frac{z - \mathrm{mean}_c\, z}{\lVert z - \mathrm{mean}_c\, z \rVert}$$

    Here $l$ is the mean of $\lVert z_k - \mathrm{mean}_c\, z_k \rVert$ over teachers and batch (of places:
    those that are there), and $u(z) = 0$ for a constant $z$: it is `lsk` at a temperature that follows the
    teachers. Raises UserError for two classes, of which $u$ has no gradient.

    Source: spherical distillation, Guo et al. 2020, arXiv 2010.07485; one teacher.
    """
    aim, term = _MeanOfStandardised("spherical"), HardAnd(_StandardisedLoss("spherical"))
    return PLAIN._replace(name="spherical", aim=aim, term=term, hears_all=True)


@dataclasses.dataclass(frozen=True)
class _MeanOfStandardised:
    """The aim of `lsk` and `spherical`. Comparable by value, as jit keys must be."""

    method: str

    def __call__(self, context: Context, w: Array) -> Targets:
        logits = _standardised(context.teacher.logits, self.method) * _scale(context, self.method)
        teacher = context.teacher._replace(logits=logits)
        return mean_of_probs(dataclasses.replace(context, teacher=teacher), w)


@dataclasses.dataclass(frozen=True)
class _StandardisedLoss:
    """The loss of `lsk` and `spherical`. Comparable by value."""

    method: str

    def __call__(self, context: Context) -> Array:
        heads = _standardised(context.student.heads, self.method) * _scale(context, self.method)
        student = dataclasses.replace(context.student, heads=heads)
        return soft_loss(dataclasses.replace(context, student=student))


def _scale(context: Context, method: str) -> Array | float:
    """What standardised logits are multiplied by: those of `lsk` stay; the mean deviation of the teachers."""
    if method == "lsk":
        return 1.0
    deviation, valid = jnp.sqrt(_variance(context.teacher.logits)), context.batch.valid
    # Of frozen teachers: nobody asks for the gradient of this root.
    return mean_of(deviation, None if valid is None else valid[None, :, None])


def _standardised(logits: Array, method: str) -> Array:
    if logits.shape[-1] == 2:
        raise UserError(
            f"logits.{method}: two standardised logits say only which is larger, and have no gradient; it "
            "needs three classes or more"
        )
    variance = _variance(logits)
    varies = variance > 1e-12  # else rounding errors would be blown up to a deviation of 1
    centred = logits - logits.mean(axis=-1, keepdims=True)
    return jnp.where(varies, centred / jnp.sqrt(jnp.where(varies, variance, 1.0)), 0.0)


def _variance(logits: Array) -> Array:
    """That of a sample, along the classes, [...,1]."""
    centred = logits - logits.mean(axis=-1, keepdims=True)
    return jnp.sum(centred**2, axis=-1, keepdims=True) / (logits.shape[-1] - 1)


def mixed_temperatures(*, teacher_temperature: float = 4.0) -> Recipe:
    r"""Soften the teachers at a temperature of their own; `temperature` is the student's alone.

    $$\ell_\text{soft}
    = T_t\, T\, \mathrm{KL}(\frac{1}{K} \sum_k \mathrm{softmax}(z_k / T_t)
    \parallel \mathrm{softmax}(z / T))$$

    Here $T_t$ is `teacher_temperature`. The factor is ours: it is $T^2$ where the two are equal, and keeps
    the scale of the teachers' pull on the logits whatever they are. Raises UserError for a temperature that
    is not above 0.

    Source: heterogeneous temperatures for spiking students, 2021, arXiv 2106.07172.
    """
    if teacher_temperature <= 0:
        raise UserError(f"mixed_temperatures(teacher_temperature={teacher_temperature}): it must be above 0")
    own = (("teacher_temperature", teacher_temperature),)
    return PLAIN._replace(name="mixed_temperatures", aim=_mean_at_teacher_temperature, hyper=own)


def _mean_at_teacher_temperature(context: Context, w: Array) -> Targets:
    own, shared = context.hyper["teacher_temperature"], context.hyper["temperature"]
    targets = mean_of_probs(dataclasses.replace(context, hyper={**context.hyper, "temperature": own}), w)
    return dataclasses.replace(targets, mass=targets.mass * (own / shared))  # soft_loss multiplies by T^2


def ttm() -> Recipe:
    r"""Soften the teachers alone: the student matches them at temperature 1, at which it is used.

    $$\ell_\text{soft} = \mathrm{KL}(\frac{1}{K} \sum_k q_k \parallel \mathrm{softmax}(z))$$

    It is plain distillation with a penalty on a student who is surer than the teachers, of Renyi entropy.

    Source: transformed teacher matching, Zheng and Yang 2024, arXiv 2402.11148; one teacher.
    """
    return PLAIN._replace(name="ttm", term=HardAnd(_transformed_loss))


def wttm() -> Recipe:
    r"""Soften the teachers alone, as `ttm`, and learn more from examples of which they are less sure.

    $$\ell_\text{soft} = U\, \mathrm{KL}(\frac{1}{K} \sum_k q_k \parallel \mathrm{softmax}(z)), \qquad
    U = \frac{1}{K} \sum_k \sum_c \mathrm{softmax}(z_k)_c^{1 / T}$$

    Here $U$ [B] is 1 for teachers who are certain, or at T = 1, and up to $C^{1 - 1/T}$ for those who know
    nothing.

    Source: weighted transformed teacher matching, Zheng and Yang 2024, arXiv 2402.11148; one teacher.
    """
    return PLAIN._replace(name="wttm", term=HardAnd(_weighted_transformed_loss), hears_all=True)


def _transformed_loss(context: Context) -> Array:
    return soft_loss(dataclasses.replace(context, hyper={**context.hyper, "temperature": jnp.float32(1.0)}))


def _weighted_transformed_loss(context: Context) -> Array:
    log_teachers = jax.nn.log_softmax(context.teacher.logits) / context.hyper["temperature"]
    power_sum = jnp.exp(jax.nn.logsumexp(log_teachers, axis=-1)).mean(axis=0)
    return power_sum * _transformed_loss(context)


def mlkd(
    *,
    batch_weight: float = 1.0,
    class_weight: float = 1.0,
    temperatures: tuple[float, ...] = (2.0, 3.0, 4.0, 5.0, 6.0),
) -> Recipe:
    r"""Match predictions, their likeness among examples and among classes, each at several temperatures.

    $$\ell_\text{soft} = \mathrm{mean}_T\, (T^2\, \mathrm{KL}(q_b \parallel p_b)
    + \beta_1 \sum_j (p_b \cdot p_j - q_b \cdot q_j)^2
    + \frac{\beta_2}{C} \lVert P^\top P - Q^\top Q \rVert^2)$$

    Here $p$ and $q$ are the student and the mean teacher at each of `temperatures`, as rows of $P$ and $Q$
    [B,C]; $b$ is the example, $j$ runs over the batch, $\beta_1$ is `batch_weight` and $\beta_2$ is
    `class_weight`. The configured temperature plays no part. The paper sums over temperatures; its code also
    leaves unsure examples out. Raises UserError for no temperature or one that is not above 0.

    Source: multi-level logit distillation, Jin et al., CVPR 2023.
    """
    if not temperatures or min(temperatures) <= 0:
        raise UserError(f"mlkd(temperatures={temperatures}): it must name at least one, and all above 0")
    weights = (("batch_weight", batch_weight), ("class_weight", class_weight))
    term = HardAnd(_LevelsLoss(tuple(temperatures)))
    return PLAIN._replace(name="mlkd", term=term, hyper=weights, hears_all=True, temperature=1.0)


@dataclasses.dataclass(frozen=True)
class _LevelsLoss:
    temperatures: tuple[float, ...]

    def __call__(self, context: Context) -> Array:
        losses = jnp.stack([self._at(context, temperature) for temperature in self.temperatures])
        return context.targets.mass[0] * losses.mean(axis=0)

    def _at(self, context: Context, temperature: float) -> Array:
        log_student = jax.nn.log_softmax(context.student.logits / temperature)
        student = jnp.exp(log_student)
        teacher = jax.nn.softmax(context.teacher.logits / temperature).mean(axis=0)
        loss = temperature**2 * _kl(teacher, log_student, axis=-1)
        of_batch = jnp.sum((student @ student.T - teacher @ teacher.T) ** 2, axis=-1)
        of_classes = jnp.sum((student.T @ student - teacher.T @ teacher) ** 2) / student.shape[-1]
        return loss + context.hyper["batch_weight"] * of_batch + context.hyper["class_weight"] * of_classes


def ctkd(*, span: float = 20.0, ramp: float = 10 / 240) -> Recipe:
    r"""Learn the temperature against the student: it goes where the loss rises, ever more so in training.

    $$\ell_\text{soft} = T^2\, \mathrm{KL}(\frac{1}{K} \sum_k \mathrm{softmax}(z_k / T)
    \parallel \mathrm{softmax}(z / T)), \qquad T = 1 + \frac{s}{1 + e^{-\theta}}$$

    Here $s$ is `span`, and $\theta$, 1 at first, one number that is trained along by the gradient of the loss
    times $-\lambda$: $\lambda$ grows from 0 to 1 along half a cosine over the first `ramp` of the training,
    a share; 0 makes it 1 throughout. The configured temperature plays no part. The paper's global form.
    Raises UserError for a ramp out of range.

    Source: curriculum temperature, Li et al. 2023, arXiv 2211.16231; one teacher.
    """
    if not 0 <= ramp <= 1:
        raise UserError(f"ctkd(ramp={ramp}): it must be a share of the training, in [0, 1]")
    own, term = (("span", span),), HardAnd(_AtLearntTemperature(ramp))
    return PLAIN._replace(
        name="ctkd", term=term, init_aux=_first_theta, hyper=own, hears_all=True, temperature=1.0
    )


def _first_theta(key: Array, student: Outputs, teacher: TeacherOutputs) -> PyTree:
    return {"theta": jnp.ones((), jnp.float32)}


@dataclasses.dataclass(frozen=True)
class _AtLearntTemperature:
    ramp: float

    def __call__(self, context: Context) -> Array:
        share = jnp.minimum(context.progress / self.ramp, 1.0) if self.ramp else jnp.float32(1.0)
        reversal = 0.5 * (1.0 - jnp.cos(jnp.pi * share))
        learnt = 1.0 + context.hyper["span"] * jax.nn.sigmoid(context.aux["theta"])
        # The value is the temperature, the gradient -reversal times its own.
        temperature = (1.0 + reversal) * jax.lax.stop_gradient(learnt) - reversal * learnt
        log_student = jax.nn.log_softmax(context.student.logits / temperature)
        log_teachers = jax.nn.log_softmax(context.teacher.logits / temperature)
        log_teacher = jax.nn.logsumexp(log_teachers, axis=0) - math.log(len(log_teachers))
        loss = jnp.sum(jnp.exp(log_teacher) * (log_teacher - log_student), axis=-1)
        return temperature**2 * context.targets.mass[0] * loss


LARGEST_EVIDENCE = 1e4  # the alpha_0 of a student that is as sure as it may be
LEAST_EVIDENCE = 1e-12  # of a class; its ln Gamma is 28


def end2(*, smoothing: float = 1e-3) -> Recipe:
    r"""Keep the teachers' differences: the logits are a Dirichlet distribution that they are drawn from.

    $$\ell_\text{soft} = T^2 (\sum_c \ln \Gamma(a_c) - \ln \Gamma(a_0)
    - \sum_c (a_c - 1) \frac{1}{K} \sum_k \ln \tilde{q}_{kc}), \qquad
    a = e^{z / T}, \quad a_0 = \sum_c a_c$$

    It is the negative log-density of what the teachers say. $\tilde{q}_k = (1 - \gamma) q_k + \gamma / C$ is
    drawn towards the centre by $\gamma$, `smoothing`, for a density at the border may be infinite. What the
    student predicts is the mean, $\mathrm{softmax}(z)$; what it disagrees about is the mutual information of
    the Dirichlet (`mutual_of_dirichlet`). The paper begins with a high T and lowers it to 1:
    `students.temperature_schedule = "linear"`.

    Teachers that agree would let $a_0$ grow without an end, and the loss fall with it: $a_0$ is cut at 10 000
    by a common factor, after which only the proportions have a gradient. Raises UserError for a smoothing
    outside (0, 1).

    Source: ensemble distribution distillation, Malinin et al. 2020, arXiv 1905.00076.
    """
    if not 0 < smoothing < 1:
        raise UserError(f"end2(smoothing={smoothing}): it must be between 0 and 1, both excluded")
    return PLAIN._replace(
        name="end2",
        term=HardAnd(_dirichlet_loss),
        hyper=(("smoothing", smoothing),),
        min_teachers=2,
        hears_all=True,
        mutual=mutual_of_dirichlet,
    )


def _dirichlet_loss(context: Context) -> Array:
    temperature, smoothing = context.hyper["temperature"], context.hyper["smoothing"]
    evidence = _evidence(context.student.logits / temperature)
    probs = jax.nn.softmax(context.teacher.logits / temperature, axis=-1)
    said = jnp.log((1 - smoothing) * probs + smoothing / probs.shape[-1]).mean(axis=0)
    log_density = gammaln(evidence.sum(axis=-1)) - gammaln(evidence).sum(axis=-1)
    return -(temperature**2) * (log_density + jnp.sum((evidence - 1) * said, axis=-1))


def proxy_end2(*, smoothing: float = 1e-3) -> Recipe:
    r"""Keep the teachers' differences by way of one Dirichlet distribution that stands for all of them.

    $$\ell_\text{soft} = T^2 (-\sum_c \bar{q}_c (\psi(a_c) - \psi(a_0))
    + \frac{1}{\beta}\, \mathrm{KL}(\mathrm{Dir}(a) \parallel \mathrm{Dir}(1))), \qquad a = e^{z / T} + 1,
    \qquad \beta = \frac{C - 1}{2 \sum_c \bar{q}_c (\ln \bar{q}_c - \frac{1}{K} \sum_k \ln \tilde{q}_{kc})}$$

    It is the reverse divergence from the proxy, whose mean $\bar{q}$ is that of the $\tilde{q}_k$ and whose
    precision $\beta$ is Stirling's estimate, at most 10 000: the more the teachers differ the smaller. The
    $\tilde{q}_k$ are those of `end2`, and so is the bound on $a_0$; here the loss has a least value. What the
    student predicts is $\mathrm{softmax}(z)$: the 1 is for its disagreement alone (`mutual_of_proxy`). Made
    for many classes. Raises UserError for a smoothing outside (0, 1).

    Source: Ryabinin, Malinin and Gales 2021, arXiv 2105.06987, who predict $a / a_0$.
    """
    if not 0 < smoothing < 1:
        raise UserError(f"proxy_end2(smoothing={smoothing}): it must be between 0 and 1, both excluded")
    return PLAIN._replace(
        name="proxy_end2",
        term=HardAnd(_proxy_loss),
        hyper=(("smoothing", smoothing),),
        min_teachers=2,
        hears_all=True,
        mutual=mutual_of_proxy,
    )


def _proxy_loss(context: Context) -> Array:
    temperature, smoothing = context.hyper["temperature"], context.hyper["smoothing"]
    a = _evidence(context.student.logits / temperature) + 1.0
    total, num_classes = a.sum(axis=-1, keepdims=True), a.shape[-1]
    each = jax.nn.softmax(context.teacher.logits / temperature, axis=-1)
    each = (1 - smoothing) * each + smoothing / num_classes
    mean, log_mean = each.mean(axis=0), jnp.log(each).mean(axis=0)
    apart = jnp.sum(mean * (jnp.log(mean) - log_mean), axis=-1)
    doubt = jnp.maximum(2.0 * apart / (num_classes - 1), 1.0 / LARGEST_EVIDENCE)  # 1 / beta
    expected = digamma(a) - digamma(total)
    from_flat = (
        gammaln(total[:, 0])
        - gammaln(a).sum(axis=-1)
        - math.lgamma(num_classes)
        + jnp.sum((a - 1.0) * expected, axis=-1)
    )
    return temperature**2 * (doubt * from_flat - jnp.sum(mean * expected, axis=-1))


def _evidence(logits: Array) -> Array:
    """The parameters [B,C] of the Dirichlet: exp(z), scaled down where their sum is above the largest."""
    log_sum = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    return jnp.exp(logits - jnp.maximum(log_sum - math.log(LARGEST_EVIDENCE), 0.0)).clip(LEAST_EVIDENCE)


def mutual_of_dirichlet(outputs: Outputs) -> Array:
    r"""Mutual information [B] of the decision and of the opinion that is drawn, of a student of `end2`.

    $$-\sum_c p_c (\ln p_c - \psi(a_c + 1) + \psi(a_0 + 1)), \qquad p = a / a_0$$

    Source: Malinin and Gales 2018, arXiv 1802.10501.
    """
    return _mutual(_evidence(outputs.logits))


def mutual_of_proxy(outputs: Outputs) -> Array:
    """The same [B] of a student of `proxy_end2`, whose Dirichlet has one more of each class."""
    return _mutual(_evidence(outputs.logits) + 1.0)


def _mutual(evidence: Array) -> Array:
    total = evidence.sum(axis=-1, keepdims=True)
    probs = evidence / total
    inner = jnp.log(probs) - digamma(evidence + 1) + digamma(total + 1)
    return jnp.maximum(-jnp.sum(probs * inner, axis=-1), 0.0)
