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

from mtkd_jax.methods.seams import PLAIN, HardAnd, mean_of_probs, soft_loss
from mtkd_jax.types import Array, Context, Outputs, Recipe, Targets, UserError


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

    # Sums over the others, not 1 - p_y: that is 0 in float32 long before the others are. And q' from the
    # teachers' logits: their probabilities of the others underflow where the logits are some 90 T apart.
    of_others = jnp.where(is_label, 0.0, probs).sum(axis=-1)
    log_of_others = jax.nn.logsumexp(log_student, axis=-1, where=~is_label)
    target = jnp.stack([jnp.where(is_label, probs, 0.0).sum(axis=-1), of_others])
    log_target = jnp.stack([jnp.where(is_label, log_student, 0.0).sum(axis=-1), log_of_others])

    log_teachers = jax.nn.log_softmax(context.teacher.logits / temperature)
    log_mixture = jax.nn.logsumexp(log_teachers, axis=0)
    log_mixed_others = jax.nn.logsumexp(log_mixture, axis=-1, where=~is_label)
    nontarget = jnp.where(is_label, 0.0, jnp.exp(log_mixture - log_mixed_others[:, None]))
    log_nontarget = jnp.where(is_label, 0.0, log_student - log_of_others[:, None])

    loss = context.hyper["target_weight"] * _kl(target, log_target, axis=0)
    loss += context.hyper["nontarget_weight"] * _kl(nontarget, log_nontarget, axis=-1)
    return temperature**2 * context.targets.mass[0] * loss


def _kl(probs: Array, log_student: Array, axis: int) -> Array:
    return jnp.sum(jax.scipy.special.xlogy(probs, probs) - probs * log_student, axis=axis)


def dist(*, inter_weight: float = 1.0, intra_weight: float = 1.0) -> Recipe:
    r"""Match correlations instead of values: among the classes of an example, among the examples of a class.

    $$\ell_\text{soft} = T^2 (\beta_1 (1 - \rho(p_b, q_b))
    + \beta_2 (1 - \frac{1}{C} \sum_c \rho(p_{:c}, q_{:c})))$$

    Here $\rho$ is Pearson's correlation, $\beta_1$ is `inter_weight`, $\beta_2$ is `intra_weight`, $p$ [B,C]
    is the softened student, $q$ [B,C] the mean softened teacher and $b$ the example. The second part looks
    down the columns of a batch, which must be large enough to hold some examples of every class. A constant
    row or column has the correlation 0.

    Source: Huang et al. 2022, arXiv 2205.10536. The weights are those of its public loss file.
    """
    weights = (("inter_weight", inter_weight), ("intra_weight", intra_weight))
    return PLAIN._replace(name="dist", term=HardAnd(_correlation_loss), hyper=weights)


def _correlation_loss(context: Context) -> Array:
    temperature, probs = context.hyper["temperature"], context.targets.probs[0]
    student = jax.nn.softmax(context.student.logits / temperature)
    inter = 1.0 - _correlation(student, probs, axis=1)
    intra = 1.0 - _correlation(student, probs, axis=0).mean()
    loss = context.hyper["inter_weight"] * inter + context.hyper["intra_weight"] * intra
    return temperature**2 * context.targets.mass[0] * loss


def _correlation(a: Array, b: Array, axis: int) -> Array:
    """Pearson's, along an axis; 0, and without a gradient, where either hardly varies."""
    a, b = a - a.mean(axis=axis, keepdims=True), b - b.mean(axis=axis, keepdims=True)
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
    return PLAIN._replace(name="regression", term=HardAnd(_squared_distance), hears_all=True)


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
    return PLAIN._replace(name="lsk", aim=_mean_of_standardised, term=HardAnd(_standardised_loss))


def _mean_of_standardised(context: Context, w: Array) -> Targets:
    teacher = context.teacher._replace(logits=_standardised(context.teacher.logits))
    return mean_of_probs(dataclasses.replace(context, teacher=teacher), w)


def _standardised_loss(context: Context) -> Array:
    student = dataclasses.replace(context.student, heads=_standardised(context.student.heads))
    return soft_loss(dataclasses.replace(context, student=student))


def _standardised(logits: Array) -> Array:
    if logits.shape[-1] == 2:
        raise UserError(
            "logits.lsk: two standardised logits say only which is larger, and have no gradient; it needs "
            "three classes or more"
        )
    centred = logits - logits.mean(axis=-1, keepdims=True)
    variance = jnp.sum(centred**2, axis=-1, keepdims=True) / (logits.shape[-1] - 1)
    varies = variance > 1e-12  # else rounding errors would be blown up to a deviation of 1
    return jnp.where(varies, centred / jnp.sqrt(jnp.where(varies, variance, 1.0)), 0.0)


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


def _evidence(logits: Array) -> Array:
    """The parameters [B,C] of the Dirichlet: exp(z), scaled down where their sum is above the largest."""
    log_sum = jax.nn.logsumexp(logits, axis=-1, keepdims=True)
    return jnp.exp(logits - jnp.maximum(log_sum - math.log(LARGEST_EVIDENCE), 0.0)).clip(LEAST_EVIDENCE)


def mutual_of_dirichlet(outputs: Outputs) -> Array:
    r"""Mutual information [B] of the decision and of the opinion that is drawn, of a student of `end2`.

    $$-\sum_c p_c (\ln p_c - \psi(a_c + 1) + \psi(a_0 + 1)), \qquad p = a / a_0$$

    Source: Malinin and Gales 2018, arXiv 1802.10501.
    """
    evidence = _evidence(outputs.logits)
    total = evidence.sum(axis=-1, keepdims=True)
    probs = evidence / total
    inner = jnp.log(probs) - digamma(evidence + 1) + digamma(total + 1)
    return jnp.maximum(-jnp.sum(probs * inner, axis=-1), 0.0)
