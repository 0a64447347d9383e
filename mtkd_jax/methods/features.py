r"""Methods that also compare features of student and teachers, beside their logits.

$$\ell = \alpha\, \ell_\text{hard} + (1 - \alpha)\, \ell_\text{soft} + \lambda \sum_k w_k f_k$$

Here $\ell_\text{soft}$ is that of `loss_avg`, $\lambda$ is `weight`, $f_k$ [B] compares the student with
teacher k, and $w_k = 1/K$. Teachers may differ in architecture. Maps of different sizes meet at the
smaller height and width, the larger one averaged over windows. Stages are the features named "stage...";
those of one name are compared. Unless a method says otherwise its weight is that of RepDistiller's scripts
(Tian et al. 2020, arXiv 1910.10699), which have alpha = 1. No method here needs a label (`ca_mkd` uses
those there are), and each needs teachers whose features are known. What compares examples with one another is
in relations, but for `pkt`, which compares them by their features alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment

from mtkd_jax.methods import maps
from mtkd_jax.methods.maps import HardSoftAnd, OfEachTeacher, Pair, Taps, alone, beside_logits, unit
from mtkd_jax.methods.weights import weigh_by_correctness, weights_by_correctness
from mtkd_jax.models.layers import adaptive_average_pool
from mtkd_jax.types import Array, Context, Outputs, PyTree, Recipe, TrainState, UserError

# What a recipe has prepared that asks the teachers' own: embeddings -> logits. RESCALED are over the factor
# by which the student multiplies what its heads say.
CLASSIFIERS = "classifiers"
RESCALED = "classifiers, rescaled"


def hints(*, student: str = "stage1", teacher: str = "stage1", weight: float = 200.0) -> Recipe:
    r"""Predict a feature of each teacher from one of the student's, by a linear map that is trained along.

    $$f_k = \frac{1}{2}\, \mathrm{mean}_{h,w,d}\, (u_k - r_k(v))^2$$

    Here $u_k$ [B,h,w,d] is the feature `teacher` of teacher k, $v$ is the feature `student` of the student,
    and $r_k$ is a 1x1 convolution, which is not part of the student. The paper sums where this takes the mean
    and has one teacher; its training in two stages begins with `hints_only`. `weight` = 200 is the 100 of
    RepDistiller, whose loss lacks the 1/2. Raises UserError where a network lacks the feature.

    Source: FitNets, Romero et al. 2015, arXiv 1412.6550.
    """
    return beside_logits("hints", _Hint(student, teacher), weight, draw=_Regressor(student, teacher))


def hints_only(*, student: str = "stage1", teacher: str = "stage1") -> Recipe:
    r"""Learn what `hints` adds and nothing else: the first stage of FitNets, before the student is distilled.

    $$\ell = \sum_k w_k f_k$$

    The $f_k$ are those of `hints`. No label is used and alpha is 0. The heads are not trained. Layers between
    the feature and the heads have no gradient, but weight decay and batch statistics reach them.

    Source: FitNets, Romero et al. 2015, arXiv 1412.6550.
    """
    return alone(hints(student=student, teacher=teacher), name="hints_only")


def attention_transfer(*, weight: float = 1000.0) -> Recipe:
    r"""Match where in the image the teachers' features are large, at every stage that both networks have.

    $$f_k = \sum_\text{stages} \mathrm{mean}_{h,w}\, (a(v) - a(u_k))^2, \qquad
    a(x) = \frac{A}{\lVert A \rVert}, \qquad A_{hw} = \mathrm{mean}_d\, x_{hwd}^2$$

    Here $v$ and $u_k$ [B,h,w,d] are features of the student and of teacher k, and $a(x)$ [B,h,w] is the
    strength of a map's pixels as a unit vector, 0 where all are 0. Features named "stage..." count where both
    maps have more than one pixel; a teacher without any such stage adds 0. The paper has the norm in place of
    the mean square. Raises UserError where this leaves no teacher, as with a student that has no convolution.

    Source: Zagoruyko and Komodakis 2017, arXiv 1612.03928.
    """
    lacking = (
        "features.attention_transfer: student and teachers share no stage of more than one pixel; "
        "both must be convolutional"
    )
    return beside_logits("attention_transfer", _attention_distance, weight, lacking=lacking)


def pkt(*, weight: float = 30000 / 64) -> Recipe:
    r"""Match which examples of the batch are neighbours of which, as the embeddings have it.

    $$f_k = \mathrm{KL}(Q_b \parallel P_b), \qquad
    P_{bj} = \frac{\kappa(e_b, e_j)}{\sum_{i \ne b} \kappa(e_b, e_i)}, \qquad
    \kappa(x, y) = \frac{1 + \cos(x, y)}{2}$$

    Here $b$ is the example and $j \ne b$ the other examples of the batch, $P$ is of the student's embeddings
    $e$ [B,D] and $Q$ of those of teacher k; their widths may differ. A vector of zeros has the cosine 0 with
    all. Public code counts $b$ among its own neighbours and divides by B once more: its 30000 at B = 64 is
    30000/64 here.

    Source: probabilistic knowledge transfer, Passalis and Tefas 2018, arXiv 1803.10837.
    """
    return beside_logits("pkt", _neighbour_distance, weight, needs=("embedding",))


def fsp(*, weight: float = 50.0) -> Recipe:
    r"""Match how one stage flows into the next: the products of their channels, averaged over the image.

    $$f_k = \sum_i \mathrm{mean}_{m,n}\, (G_i(v) - G_i(u_k))^2, \qquad
    G_i(x)_{mn} = \frac{1}{h w} \sum_{h,w} x^{(i)}_{hwm}\, x^{(i+1)}_{hwn}$$

    Here $x^{(i)}$ [B,h,w,d] is stage i, and two stages of different size meet at the smaller one. Those two
    neighbouring stages count in which student and teacher are equally wide; a teacher without any adds 0. The
    paper sums where this takes the mean, pools by the maximum, and has one teacher; its training in two
    stages begins with `fsp_only`. Raises UserError where widths leave no teacher.

    Source: a gift from knowledge distillation, Yim et al., CVPR 2017.
    """
    return beside_logits("fsp", _flow_distance, weight, lacking=_NO_FLOW)


def fsp_only() -> Recipe:
    r"""Learn what `fsp` adds and nothing else: its first stage, before the student learns its task.

    $$\ell = \sum_k w_k f_k$$

    The $f_k$ are those of `fsp`; no label is used and alpha is 0. For the plan
    hints_then_distil(hints='features.fsp_only'), whose second stage is the paper's with alpha = 1.

    Source: a gift from knowledge distillation, Yim et al., CVPR 2017.
    """
    return alone(fsp(), name="fsp_only")


def nst(*, weight: float = 50.0) -> Recipe:
    r"""Match the distribution of the channels' patterns over the image, at every stage that both have.

    $$f_k = \sum_\text{stages} (\overline{\kappa}(v, v) + \overline{\kappa}(u_k, u_k)
    - 2\, \overline{\kappa}(v, u_k)), \qquad
    \overline{\kappa}(x, y) = \mathrm{mean}_{i,j}\, (\hat{x}_i \cdot \hat{y}_j)^2$$

    Here $\hat{x}_i$ [B,hw] is channel i of a map as a unit vector, 0 where it is 0 everywhere: the maximum
    mean discrepancy of the channels under a polynomial kernel. It sees neither the order nor the number of
    channels. Stages of one pixel are left out; a teacher without any other adds 0. Raises UserError where
    this leaves no teacher.

    Source: neuron selectivity transfer, Huang and Wang 2017, arXiv 1707.01219.
    """
    lacking = (
        "features.nst: student and teachers share no stage of more than one pixel; both must be convolutional"
    )
    return beside_logits("nst", _pattern_discrepancy, weight, lacking=lacking)


def vid(*, weight: float = 1.0) -> Recipe:
    r"""Predict the teachers' features and how far off one is: a bound on the mutual information.

    $$f_k = \sum_\text{stages} \mathrm{mean}_{h,w,d}\, \frac{1}{2} (\ln \sigma_d^2
    + \frac{(u_k - r_k(v))_d^2}{\sigma_d^2}), \qquad \sigma_d^2 = \ln(1 + e^{a_d}) + 10^{-5}$$

    Here $r_k$, a 1x1 convolution, and $a$ [d] are trained along for every stage and teacher; at first every
    $\sigma^2$ is 5. The paper has up to three convolutions in the place of $r_k$. The loss can be negative.
    Raises UserError where student and teachers share no stage.

    Source: variational information distillation, Ahn et al. 2019, arXiv 1904.05835.
    """
    return beside_logits("vid", _unexplained, weight, draw=_draw_explanations, lacking=_no_stage("vid"))


def ab_only() -> Recipe:
    r"""Learn where the teachers' units are active and where not: a first stage, before distillation.

    $$\ell = \sum_k w_k \sum_\text{stages} \mathrm{mean}_{h,w,d}\, ([u_k > 0]\, (1 - r_k(v))_+^2
    + [u_k \le 0]\, (1 + r_k(v))_+^2)$$

    Here $r_k$ is a 1x1 convolution that is trained along for every stage and teacher, and 1 is the margin.
    The paper sums where this takes the mean. No label is used and alpha is 0. For the plan
    hints_then_distil(hints='features.ab_only'). Raises UserError where student and teachers share no stage.

    Source: activation boundaries, Heo et al. 2019, arXiv 1811.03233.
    """
    recipe = beside_logits("ab", _boundary_distance, 1.0, draw=_draw_connectors, lacking=_no_stage("ab_only"))
    return alone(recipe, name="ab_only")


def mgd(*, weight: float = 1.76, masked: float = 0.5) -> Recipe:
    r"""Generate the teachers' last stage from the student's, of which pixels are hidden at random.

    $$f_k = \mathrm{mean}_{h,w,d}\, (u_k - G_k(M \odot r_k(v)))^2, \qquad
    G_k = \mathrm{conv}_{3 \times 3} \circ \mathrm{ReLU} \circ \mathrm{conv}_{3 \times 3}$$

    Here $v$ and $u_k$ are the last stage that both have, and $r_k$, a 1x1 convolution, and $G_k$ are trained
    along. $M$ [B,h,w] is 0 with probability `masked` and else 1, drawn anew for every example and step. The
    paper's weight is 7e-5 times the sum over a map of 7x7x512, which is 1.76 times its mean. Raises UserError
    for a share outside [0, 1), and where student and teachers share no stage.

    Source: masked generative distillation, Yang et al. 2022, arXiv 2205.01529.
    """
    if not 0 <= masked < 1:
        raise UserError(f"mgd(masked={masked}): it must be in [0, 1)")
    own = (("masked", masked),)
    return beside_logits(
        "mgd", _generated_distance, weight, draw=_draw_generator, lacking=_no_stage("mgd"), hyper=own
    )


def factor_transfer(*, weight: float = 200.0, share: float = 0.5) -> Recipe:
    r"""Match what a small code of the teachers' last stage says, which is learnt beside the student.

    $$f_k = \mathrm{mean}_{h,w,m}\, |n(c_k(u_k)) - n(r_k(v))|
    + \frac{1}{\lambda}\, \mathrm{mean}_{h,w,d}\, (u_k - d_k(c_k(u_k)))^2, \qquad
    n(x) = \frac{x}{\lVert x \rVert}$$

    Here $v$ and $u_k$ are the last stage that both have; the code $c_k$ of $m$ channels, `share` of those of
    $u_k$ and at least 1, its decoder $d_k$ and the translator $r_k$ are 1x1 convolutions that are trained
    along, the code by the second part alone, which $\lambda$, the `weight`, does not touch. The paper trains
    the code before the student, of three convolutions of 3x3. Raises UserError for a share outside (0, 1],
    and where student and teachers share no stage.

    Source: paraphrasing complex networks, factor transfer, Kim et al. 2018, arXiv 1802.04977.
    """
    if not 0 < share <= 1:
        raise UserError(f"factor_transfer(share={share}): it must be in (0, 1]")
    return beside_logits(
        "factor_transfer", _factor_distance, weight, draw=_Coder(share), lacking=_no_stage("factor_transfer")
    )


def review(*, weight: float = 5.0) -> Recipe:
    r"""Match each stage of the teachers by what the student says there and in all deeper stages.

    $$f_k = \sum_i \frac{\sum_l 2^{-l}\, \mathrm{mean}\, (P_l(u_k^{(i)}) - P_l(o_i))^2}{\sum_l 2^{-l}}, \qquad
    x_i = a_i\, r_i(v^{(i)}) + b_i\, \mathrm{up}(x_{i+1}), \qquad
    (a_i, b_i) = \sigma(g_i(r_i(v^{(i)}), \mathrm{up}(x_{i+1})))$$

    Here $i$ runs over the stages that both have, and $x_n = r_n(v^{(n)})$ at the deepest; $r_i$ and $g_i$ are
    1x1 convolutions, $o_i$ is a 3x3 convolution of $x_i$ to the teacher's width, all trained along for every
    teacher, and $x$ is as wide as the student's deepest stage. $P_0$ leaves a map as it is, and $P_1$, $P_2$,
    $P_3$ average it to 4, 2 and 1 pixels a side, where it has more. The paper normalises after each
    convolution and lets the weight, of 0.6 to 8, grow at first. Raises UserError where student and teachers
    share no stage.

    Source: knowledge review, Chen et al. 2021, arXiv 2104.09044.
    """
    return beside_logits("review", _reviewed_distance, weight, draw=_draw_review, lacking=_no_stage("review"))


def ofd(*, weight: float = 1.0) -> Recipe:
    r"""Match the teachers' features, but where a unit is silent and the student's is, too: that is as good.

    $$f_k = \sum_i 2^{i - n}\, \mathrm{mean}_{h,w,d}\, [\neg(r_i(v) \le t_i \le 0)]\, (t_i - r_i(v))^2, \qquad
    t_i = \max(u_k^{(i)}, \mu_i), \qquad \mu_{id} = \mathrm{mean}\{u^{(i)}_{kd} : u^{(i)}_{kd} < 0\}$$

    Here $i = 1, \dots, n$ runs over the stages that both have, $r_i$ is a 1x1 convolution that is trained
    along for every stage and teacher, and the margin $\mu$ [d] is the mean of a channel's negative values in
    the batch, 0 where there are none: of stages that end in a ReLU it is 0. The paper takes features before
    the ReLU, the margin from the statistics of BatchNorm, and sums where this takes the mean. Raises
    UserError where student and teachers share no stage.

    Source: a comprehensive overhaul of feature distillation, Heo et al. 2019, arXiv 1904.01866.
    """
    return beside_logits("ofd", _partial_distance, weight, draw=_draw_connectors, lacking=_no_stage("ofd"))


def ofd_only() -> Recipe:
    r"""Learn what `ofd` adds and nothing else: a first stage, before the student learns its task.

    $$\ell = \sum_k w_k f_k$$

    The $f_k$ are those of `ofd`; no label is used and alpha is 0. For the plan
    hints_then_distil(hints='features.ofd_only'). The paper has one stage, in which both count at once, as
    `ofd` does; its forerunner of activation boundaries, `ab_only`, has two.

    Source: a comprehensive overhaul of feature distillation, Heo et al. 2019, arXiv 1904.01866.
    """
    return alone(ofd(), name="ofd_only")


def semckd(*, weight: float = 400.0, width: int = 32) -> Recipe:
    r"""Match each stage of the student with all of a teacher's, as much as attention finds them alike.

    $$f_k = \sum_s \sum_t a_{st}\, \mathrm{mean}_{h,w,d}\, (u_k^{(t)} - r_{st}(v^{(s)}))^2, \qquad
    a_{st} = \mathrm{softmax}_t(\frac{q_s(\bar{v}^{(s)}) \cdot k_t(\bar{u}_k^{(t)})}{\sqrt{m}})$$

    Here $s$ and $t$ run over all stages of student and teacher k, $\bar{x}$ [B,d] is a map averaged over the
    image, and the 1x1 convolutions $r$ and the linear maps $q$ and $k$ into $m$ numbers, `width`, are trained
    along. $a$ [B] is of every example. In the paper $q$ and $k$ read which examples of a batch are alike, by
    two layers, and $r$ has three convolutions; the weight is that of its scripts. Raises UserError for a
    width below 1, and where a network has no stage.

    Source: cross-layer distillation with semantic calibration, Chen et al. 2021, arXiv 2012.03236.
    """
    if width < 1:
        raise UserError(f"semckd(width={width}): it must be at least 1")
    lacking = "features.semckd: student or teachers have no feature that is called stage..."
    return beside_logits("semckd", _calibrated_distance, weight, draw=_Calibration(width), lacking=lacking)


def ca_mkd(*, weight: float = 50.0) -> Recipe:
    r"""Match embeddings, each teacher weighed by how well its classifier reads what the student predicts.

    $$\ell = \alpha\, \ell_\text{hard} + (1 - \alpha)\, T^2 \sum_k w_k\, \mathrm{KL}(q_k \parallel p)
    + \lambda \sum_k v_k\, \mathrm{mean}_d\, (t_k - r_k(e))^2$$

    $$w_k = \frac{1 - \mathrm{softmax}_k(\mathrm{CE}(y, z_k))}{K - 1}, \qquad
    v_k = \frac{1 - \mathrm{softmax}_k(\mathrm{CE}(y, W_k r_k(e) + b_k))}{K - 1}$$

    Here $e$ [B,D] is the student's embedding, $t_k$ [B,D_k] that of teacher k, who reads it by $W_k$ and
    $b_k$, and $r_k$ a linear map that is trained along. The $w$ are those of `weights.ca_mkd`; neither they
    nor the $v$ pass a gradient on, and both are equal where there is no label. The paper predicts the last
    map by a convolution with BatchNorm and ReLU, and its code leaves the features out of the first epoch.
    Raises UserError unless all teachers read their embedding by linear heads.

    Source: confidence-aware multi-teacher distillation, Zhang et al. 2022, arXiv 2201.00007; the weight is
    that of its scripts.
    """
    return beside_logits(
        "ca_mkd",
        _embedding_apart,
        weight,
        draw=_draw_projector,
        needs=("embedding",),
        term=HardSoftAnd(_OfConfident(OfEachTeacher(_embedding_apart))),
        weigh=weigh_by_correctness,
        prepare=CLASSIFIERS,
        min_teachers=2,
        hears_all=True,
    )


def simkd() -> Recipe:
    r"""Predict the teachers' embeddings by linear maps, and say what their own classifiers say of these.

    $$f_k = \mathrm{mean}_d\, (P_k e + p_k - t_k)^2, \qquad
    z = \frac{1}{K} \sum_k (W_k (P_k e + p_k) + b_k)$$

    Here $e$ [B,D] is the embedding of the student, $t_k$ [B,D_k] that of teacher k, which reads it by $W_k$
    and $b_k$; the student's heads are never trained. Since all of it is linear, what is evaluated and
    deployed is an ordinary network of the student's architecture, with heads $\frac{1}{K} \sum_k W_k P_k$.
    The paper has one teacher and projects the last map by three convolutions, which stay in its student. No
    label and no logit is used, and alpha is 0. Raises UserError unless all networks read their embedding by
    linear heads.

    Source: knowledge distillation with the reused teacher classifier, Chen et al. 2022, arXiv 2203.14001.
    """
    compared = beside_logits("simkd", _embedding_apart, 1.0, draw=_draw_projector, needs=("embedding",))
    reuses = {"init_mem": _own_heads, "after": _reuse_classifiers, "deploy": _deploy_reused}
    return alone(compared, prepare=RESCALED, **reuses)


# --- the teachers' own classifiers --------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _OfConfident:
    """A loss of features in which teachers weigh what their classifiers make of the student's."""

    term: Callable[[Context], Array]

    def __call__(self, context: Context) -> Array:
        embedding = context.student.embedding
        predicted = tuple(maps.linear(parameters, embedding) for parameters in context.aux)
        said = context.prepared[CLASSIFIERS](predicted)
        v = jax.lax.stop_gradient(weights_by_correctness(said, context.batch))
        return self.term(dataclasses.replace(context, targets=dataclasses.replace(context.targets, mass=v)))


def _draw_projector(key: Array, own: Taps, other: Taps) -> PyTree:
    return maps.draw_linear(key, own.embedding.shape[-1], other.embedding.shape[-1])


def _embedding_apart(pair: Pair) -> Array:
    return maps.square(maps.linear(pair.parameters, pair.own.embedding) - pair.other.embedding).mean(axis=-1)


def _own_heads(variables: PyTree, student: Outputs, num_examples: int) -> PyTree:
    """The heads that the student is drawn with: those of the teachers are known when it has been trained."""
    heads = linear_heads(variables)
    if heads is None:
        raise UserError("features.simkd: the student must read its embedding by linear heads, and does not")
    return heads


def linear_heads(variables: PyTree, stacked: int = 0) -> PyTree | None:
    """{"kernel": [H,D,C], "bias": [H,C]} of a network, behind so many `stacked` axes; None: it has none."""
    heads = variables.get("params", {}).get("heads", {})
    axes = {name: leaf.ndim - stacked for name, leaf in heads.items()}
    return heads if axes == {"kernel": 3, "bias": 2} else None


def _reuse_classifiers(state: TrainState, context: Context) -> TrainState:
    """The state with heads that say what the teachers' classifiers say of the projected embedding."""
    classify = context.prepared[RESCALED]
    at_rows, at_bias, at_zero = (
        classify(points).mean(axis=0)
        for points in (
            tuple(own["kernel"] for own in state.aux),
            tuple(own["bias"][None] for own in state.aux),
            tuple(jnp.zeros_like(own["bias"][None]) for own in state.aux),
        )
    )
    return dataclasses.replace(state, mem={"kernel": (at_rows - at_zero)[None], "bias": at_bias})


def _deploy_reused(state: TrainState, hyper: Mapping[str, Array]) -> PyTree:
    return {"params": {**state.params, "heads": state.mem}, **state.model_state}


# --- hints --------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Regressor:
    student: str
    teacher: str

    def __call__(self, key: Array, own: Taps, other: Taps) -> PyTree:
        guided = _named(own.features, self.student, "student")
        return maps.draw_linear(
            key, guided.shape[-1], _named(other.features, self.teacher, "teacher").shape[-1]
        )


@dataclasses.dataclass(frozen=True)
class _Hint:
    student: str
    teacher: str

    def __call__(self, pair: Pair) -> Array:
        guided, hint = maps.same_size(pair.own.features[self.student], pair.other.features[self.teacher])
        return 0.5 * _mean_square(hint - maps.linear(pair.parameters, guided))


def _named(features: Mapping[str, Array], name: str, owner: str) -> Array:
    if name not in features:
        raise UserError(f"features.hints: the {owner} has no feature {name!r}; it has {', '.join(features)}")
    return features[name]


# --- attention ----------------------------------------------------------------------------------------


def _attention_distance(pair: Pair) -> Array | None:
    return _sum_over([_apart(*both) for both in pair.stages(least_pixels=2).values()])


def _apart(own: Array, other: Array) -> Array:
    own, other = (unit(jnp.mean(maps.near_one(x)[0] ** 2, axis=-1).reshape(len(x), -1)) for x in (own, other))
    return jnp.mean((own - other) ** 2, axis=-1)


# --- neighbours ---------------------------------------------------------------------------------------


def _neighbour_distance(pair: Pair) -> Array:
    own, other = (_log_neighbours(x, pair.valid) for x in (pair.own.embedding, pair.other.embedding))
    return jnp.sum(jnp.exp(other) * (other - own), axis=1)


def _log_neighbours(embedding: Array, valid: Array | None = None) -> Array:
    """ln P [B,B] of embeddings [B,D], 0 at who is no neighbour, which no difference of two sees.

    That is oneself, and who is not `valid` [B].
    """
    direction, others = unit(embedding), ~np.eye(len(embedding), dtype=bool)
    if valid is not None:
        others = others & valid[None, :]
    kernel = jnp.maximum(
        0.5 * (1.0 + direction @ direction.T), 1e-7
    )  # opposite vectors: 0, or less by rounding
    total = jnp.maximum(kernel.sum(axis=1, keepdims=True, where=others), 1e-7)  # a batch of one has no others
    return jnp.where(others, jnp.log(kernel) - jnp.log(total), 0.0)


# --- flow of one stage into the next ------------------------------------------------------------------

_NO_FLOW = (
    "features.fsp: student and teachers share no two neighbouring stages of equal width; "
    "it needs networks of the same widths, at least there"
)


def _flow_distance(pair: Pair) -> Array | None:
    own, other = ([taps.features[name] for name in maps.stage_names(taps)] for taps in pair[:2])
    both = [(a, b) for a, b in zip(_flows(own), _flows(other)) if a.shape == b.shape]
    return _sum_over([_mean_square(a - b) for a, b in both])


def _flows(stages: list[Array]) -> list[Array]:
    """G [B,m,n] of every two neighbouring stages."""
    pairs = [maps.same_size(*two) for two in zip(stages, stages[1:])]
    return [jnp.einsum("bhwm,bhwn->bmn", a, b) / (a.shape[1] * a.shape[2]) for a, b in pairs]


# --- patterns -----------------------------------------------------------------------------------------


def _pattern_discrepancy(pair: Pair) -> Array | None:
    discrepancies = []
    for both in pair.stages(least_pixels=2).values():
        own, other = map(_patterns, both)
        of_own, of_other, across = _likeness(own, own), _likeness(other, other), _likeness(own, other)
        discrepancies.append(of_own + of_other - 2.0 * across)
    return _sum_over(discrepancies)


def _patterns(x: Array) -> Array:
    """The channels of a map as unit vectors [B,hw,d]."""
    batch_size, height, width, depth = x.shape
    channels = x.transpose(0, 3, 1, 2).reshape(batch_size * depth, height * width)
    return unit(channels).reshape(batch_size, depth, height * width).transpose(0, 2, 1)


def _likeness(a: Array, b: Array) -> Array:
    return jnp.mean(jnp.einsum("bpi,bpj->bij", a, b) ** 2, axis=(1, 2))


# --- maps of the student that predict the teacher's ---------------------------------------------------


def _no_stage(name: str) -> str:
    return f"features.{name}: student and teachers share no stage of one name"


def _draw_connectors(key: Array, own: Taps, other: Taps) -> PyTree:
    """A 1x1 convolution for every stage that both have."""
    names = maps.common_stage_names(own, other)
    return {
        name: maps.draw_linear(k, own.features[name].shape[-1], other.features[name].shape[-1])
        for name, k in zip(names, jax.random.split(key, len(names)))
    }


def _draw_explanations(key: Array, own: Taps, other: Taps) -> PyTree:
    spread = float(np.log(np.expm1(5.0)))
    return {
        name: {"map": connector, "spread": jnp.full_like(connector["bias"], spread)}
        for name, connector in _draw_connectors(key, own, other).items()
    }


def _unexplained(pair: Pair) -> Array | None:
    losses = []
    for name, (own, other) in pair.stages().items():
        parameters = pair.parameters[name]
        variance = (jax.nn.softplus(parameters["spread"]) + 1e-5)[None, None, None, :]
        off = maps.square(other - maps.linear(parameters["map"], own))
        losses.append(jnp.mean(0.5 * (jnp.log(variance) + off / variance), axis=(1, 2, 3)))
    return _sum_over(losses)


def _boundary_distance(pair: Pair) -> Array | None:
    losses = []
    for name, (own, other) in pair.stages().items():
        guess, is_active = maps.linear(pair.parameters[name], own), other > 0
        losses.append(_mean_square(jax.nn.relu(1.0 - jnp.where(is_active, guess, -guess))))
    return _sum_over(losses)


def _draw_generator(key: Array, own: Taps, other: Taps) -> PyTree:
    stages = maps.common_stage_names(own, other)
    if not stages:
        return {}
    width, depth = own.features[stages[-1]].shape[-1], other.features[stages[-1]].shape[-1]
    map_key, first_key, second_key = jax.random.split(key, 3)
    return {
        "map": maps.draw_linear(map_key, width, depth),
        "first": maps.draw_linear(first_key, 9 * depth, depth),
        "second": maps.draw_linear(second_key, 9 * depth, depth),
    }


def _generated_distance(pair: Pair) -> Array | None:
    if not pair.stages():
        return None
    own, other = list(pair.stages().values())[-1]
    aligned = maps.linear(pair.parameters["map"], own)
    is_seen = jax.random.uniform(pair.key, (*own.shape[:3], 1)) >= pair.hyper["masked"]
    hidden = jax.nn.relu(_convolved(pair.parameters["first"], jnp.where(is_seen, aligned, 0.0)))
    return _mean_square(other - _convolved(pair.parameters["second"], hidden))


def _convolved(parameters: Mapping[str, Array], x: Array) -> Array:
    """A 3x3 convolution, as a product with shifted maps: a kernel a member is slow as a convolution."""
    _, height, width, _ = x.shape
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    shifted = [padded[:, i : i + height, j : j + width] for i in range(3) for j in range(3)]
    return maps.linear(parameters, jnp.concatenate(shifted, axis=-1))


@dataclasses.dataclass(frozen=True)
class _Coder:
    """Parameters of `factor_transfer`."""

    share: float

    def __call__(self, key: Array, own: Taps, other: Taps) -> PyTree:
        stages = maps.common_stage_names(own, other)
        if not stages:
            return {}
        width, depth = own.features[stages[-1]].shape[-1], other.features[stages[-1]].shape[-1]
        size, keys = max(1, round(self.share * depth)), jax.random.split(key, 3)
        return {
            "code": maps.draw_linear(keys[0], depth, size),
            "decoder": maps.draw_linear(keys[1], size, depth),
            "translator": maps.draw_linear(keys[2], width, size),
        }


def _factor_distance(pair: Pair) -> Array | None:
    if not pair.stages():
        return None
    own, other = list(pair.stages().values())[-1]
    code = maps.linear(pair.parameters["code"], other)
    told, translated = jax.lax.stop_gradient(code), maps.linear(pair.parameters["translator"], own)
    told, translated = (unit(x.reshape(len(x), -1)) for x in (told, translated))
    lost = _mean_square(other - maps.linear(pair.parameters["decoder"], code))
    weight = pair.hyper["weight"]
    return jnp.mean(jnp.abs(told - translated), axis=-1) + lost / jnp.where(weight > 0, weight, 1.0)


# --- silent units, attention over stages --------------------------------------------------------------


def _partial_distance(pair: Pair) -> Array | None:
    losses = []
    for name, (own, other) in pair.stages().items():
        is_negative = other < 0
        num = jnp.sum(is_negative, axis=(0, 1, 2), keepdims=True, dtype=jnp.float32)
        negative = jnp.sum(jnp.where(is_negative, other, 0.0), axis=(0, 1, 2), keepdims=True)
        margin = negative / jnp.maximum(num, 1.0)
        target, guess = jnp.maximum(other, margin), maps.linear(pair.parameters[name], own)
        both_silent = (guess <= target) & (target <= 0)
        losses.append(_mean_square(jnp.where(both_silent, 0.0, target - guess)))
    return _sum_over([loss * 0.5**place for place, loss in enumerate(reversed(losses))])


@dataclasses.dataclass(frozen=True)
class _Calibration:
    """Parameters of `semckd`."""

    width: int

    def __call__(self, key: Array, own: Taps, other: Taps) -> PyTree:
        ours, theirs = maps.stage_names(own), maps.stage_names(other)
        keys = iter(jax.random.split(key, len(ours) + len(theirs) + len(ours) * len(theirs)))

        def linear(width: int, into: int) -> dict[str, Array]:
            return maps.draw_linear(next(keys), width, into)

        depths = [{name: taps.features[name].shape[-1] for name in taps.features} for taps in (own, other)]
        return {
            "query": {s: linear(depths[0][s], self.width) for s in ours},
            "key": {t: linear(depths[1][t], self.width) for t in theirs},
            "map": {s: {t: linear(depths[0][s], depths[1][t]) for t in theirs} for s in ours},
        }


def _calibrated_distance(pair: Pair) -> Array | None:
    own, other = pair.own.features, pair.other.features
    ours, theirs = maps.stage_names(pair.own), maps.stage_names(pair.other)
    if not (ours and theirs):
        return None
    queries, keys = (
        jnp.stack([maps.linear(pair.parameters[kind][name], of[name].mean(axis=(1, 2))) for name in names])
        for kind, of, names in (("query", own, ours), ("key", other, theirs))
    )
    scores = jnp.einsum("sbm,tbm->stb", queries, keys) / np.float32(np.sqrt(queries.shape[-1]))
    attention, losses = jax.nn.softmax(scores, axis=1), []
    for s in ours:
        for t in theirs:
            a, b = maps.same_size(own[s], other[t])
            losses.append(_mean_square(b - maps.linear(pair.parameters["map"][s][t], a)))
    return jnp.sum(attention.reshape(len(losses), -1) * jnp.stack(losses), axis=0)


# --- matched channels ---------------------------------------------------------------------------------


def matching(own: np.ndarray, other: np.ndarray) -> np.ndarray:
    r"""For each channel of `own` another one of `other`, [d] int32, so that pairs are as near as can be.

    $$\arg\min_\pi \sum_j \mathrm{mean}_b\, (\text{other}_{b \pi(j)} - \text{own}_{bj})^2$$

    Over all permutations, of activations [B,d].
    """
    apart = ((other[:, None, :].astype(np.float64) - own[:, :, None]) ** 2).mean(axis=0)
    return linear_sum_assignment(apart)[1].astype(np.int32)


def channels_of(stage: str) -> str:
    """The name in hyper of the order [K,d] in which a member reads the teachers' channels of a stage."""
    return f"{stage} channels"


def _distance_by_channel(pair: Pair) -> Array | None:
    pairs = [(own, other) for own, other in pair.stages().values() if own.shape == other.shape]
    return _sum_over([_mean_square(other - own) for own, other in pairs])


@dataclasses.dataclass(frozen=True)
class _OfMatched:
    """A term whose teachers have their channels in the order that the student reads them in."""

    term: Callable[[Context], Array]

    def __call__(self, context: Context) -> Array:
        def in_order(k: int, name: str, x: Array) -> Array:
            order = context.hyper.get(channels_of(name))
            if order is None or order.shape[-1] != x.shape[-1]:
                return x
            return jnp.take(x, order[k], axis=-1)

        features = tuple(
            {name: in_order(k, name, x) for name, x in of_one.items()}
            for k, of_one in enumerate(context.teacher.features)
        )
        return self.term(dataclasses.replace(context, teacher=context.teacher._replace(features=features)))


# Feature by feature, without a regressor, of channels that the plan `matched_channels` has matched.
_BY_CHANNEL = beside_logits(
    "matched_channels",
    _distance_by_channel,
    100.0,
    lacking="student and teachers share no stage of the same number of channels",
)
MATCHED = _BY_CHANNEL._replace(term=_OfMatched(_BY_CHANNEL.term))


# --- review -------------------------------------------------------------------------------------------


def _draw_review(key: Array, own: Taps, other: Taps) -> PyTree:
    names = maps.common_stage_names(own, other)
    if not names:
        return {}
    inner = own.features[names[-1]].shape[-1]

    def of_stage(name: str, key: Array) -> PyTree:
        own_key, gate_key, out_key = jax.random.split(key, 3)
        return {
            "own": maps.draw_linear(own_key, own.features[name].shape[-1], inner),
            "gate": maps.draw_linear(gate_key, 2 * inner, 2),
            "out": maps.draw_linear(out_key, 9 * inner, other.features[name].shape[-1]),
        }

    drawn = {name: of_stage(name, k) for name, k in zip(names, jax.random.split(key, len(names)))}
    del drawn[names[-1]]["gate"]  # nothing is deeper
    return drawn


def _reviewed_distance(pair: Pair) -> Array | None:
    losses, deeper = [], None
    for name, (own, other) in reversed(pair.stages().items()):
        parameters = pair.parameters[name]
        own = maps.linear(parameters["own"], own)
        if deeper is not None:
            deeper = _resized(deeper, *own.shape[1:3])
            gates = jax.nn.sigmoid(maps.linear(parameters["gate"], jnp.concatenate([own, deeper], axis=-1)))
            own = gates[..., :1] * own + gates[..., 1:] * deeper
        deeper = own
        losses.append(_pyramid_distance(_convolved(parameters["out"], own), other))
    return _sum_over(losses)


def _resized(x: Array, height: int, width: int) -> Array:
    """A map of another size, each pixel the one that lies there."""
    rows, columns = (np.arange(new) * old // new for new, old in zip((height, width), x.shape[1:3]))
    return x[:, rows][:, :, columns]


def _pyramid_distance(own: Array, other: Array) -> Array:
    height, width = own.shape[1:3]
    sizes = [(height, width), *((size, size) for size in (4, 2, 1) if size < min(height, width))]
    shares = 0.5 ** np.arange(len(sizes), dtype=np.float32)
    parts = [[adaptive_average_pool(x, *size) for x in (own, other)] for size in sizes]
    distances = [_mean_square(mine - theirs) for mine, theirs in parts]
    return jnp.tensordot(shares / shares.sum(), jnp.stack(distances), axes=1)


# --- all ----------------------------------------------------------------------------------------------


def _sum_over(losses: list[Array]) -> Array | None:
    """Of the stages [B]; None where there is none."""
    return sum(losses[1:], losses[0]) if losses else None


def _mean_square(x: Array) -> Array:
    """[B] of differences [B,...]."""
    return jnp.mean(maps.square(x), axis=tuple(range(1, x.ndim)))
