r"""Methods that compare how the examples of a batch lie to one another, beside their logits.

$$\ell = \alpha\, \ell_\text{hard} + (1 - \alpha)\, \ell_\text{soft} + \lambda \sum_k w_k f_k$$

Here $\ell_\text{soft}$ is that of `loss_avg`, $\lambda$ is `weight`, $f_k$ [B] compares the student with
teacher k, and $w_k = 1/K$. All read embeddings: $e$ [B,D] of the student and $t$ [B,D_k] of a teacher, whose
widths may differ. None needs a label, though `crd_memory` uses those that there are; each needs teachers
whose features are known, and all but that one a batch of more than one. Where places of an image have labels
and embeddings the examples are the places that are there; a teacher compares those that it speaks of.
`features.pkt` is of the same kind. Unless a method says otherwise its weight is that of RepDistiller's
scripts (Tian et al. 2020, arXiv 1910.10699), which have alpha = 1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mtkd_jax.methods import maps
from mtkd_jax.methods.maps import Pair, Taps, beside_logits, mean_of, unit
from mtkd_jax.methods.modes import each_teacher
from mtkd_jax.methods.seams import PLAIN, check_unmixed, mean_of_same
from mtkd_jax.types import (
    Array,
    Context,
    Outputs,
    PyTree,
    Recipe,
    TeacherOutputs,
    TrainState,
    UserError,
)

ANGLES_AT_ONCE = 2**22  # how many of the B^3 angles of a batch are held at a time: 16 MiB of them
NOBODY = -1e9  # a score that is never chosen


def rkd(*, weight: float = 50.0, distances: float = 0.5) -> Recipe:
    r"""Match all distances between examples, and all angles between three of them.

    $$f_k = \mathrm{mean}_{i,j}\, h(\angle_{bij}(e) - \angle_{bij}(t))
    + \delta\, \mathrm{mean}_{j}\, h(d_{bj}(e) - d_{bj}(t)), \qquad
    \angle_{bij}(x) = \cos(x_i - x_b, x_j - x_b), \qquad
    d_{bj}(x) = \frac{\lVert x_b - x_j \rVert}{\overline{\lVert x_i - x_j \rVert}}$$

    Here $b$ is the example, $\delta$ is `distances`, $h(x) = x^2 / 2$ up to 1 and $|x| - 1/2$ beyond, and the
    mean distance is of examples that differ. Two equal examples have the distance 0, and the cosine 0 with
    all. The paper's RKD-DA: 25 for distances and 50 for angles. Time is that of B^3 angles, memory is not.

    Source: relational knowledge distillation, Park et al. 2019, arXiv 1904.05068.
    """
    own = (("distances", distances),)
    return beside_logits("rkd", _relational_distance, weight, needs=("embedding",), hyper=own)


def sp(*, weight: float = 3000.0) -> Recipe:
    r"""Match which examples are similar to which: the rows of the products of all embeddings.

    $$f_k = \frac{1}{B} \sum_j (G_{bj}(e) - G_{bj}(t))^2, \qquad
    G_{bj}(x) = \frac{x_b \cdot x_j}{\sqrt{\sum_i (x_b \cdot x_i)^2}}$$

    The paper takes the last feature map as the embedding.

    Source: similarity-preserving distillation, Tung and Mori 2019, arXiv 1907.09682.
    """
    return beside_logits("sp", _similarity_distance, weight, needs=("embedding",))


def cc(*, weight: float = 100.0, sharpness: float = 0.4) -> Recipe:
    r"""Match how the examples correlate, by a Gaussian kernel of their directions.

    $$f_k = \frac{1}{B} \sum_j (\kappa(e_b, e_j) - \kappa(t_b, t_j))^2, \qquad
    \kappa(x, y) = \exp(-2 \gamma (1 - \cos(x, y)))$$

    Here $\gamma$ is `sharpness`; it is the kernel $\exp(-\gamma \lVert x - y \rVert^2)$ of unit vectors,
    exactly: the paper expands it to the second order. A vector of zeros has the cosine 0 with all. The weight
    is ours, and was not tuned; RepDistiller's 0.02 is that of another loss.

    Source: correlation congruence, Peng et al. 2019, arXiv 1904.01802.
    """
    own = (("sharpness", sharpness),)
    return beside_logits("cc", _correlation_distance, weight, needs=("embedding",), hyper=own)


def crd(*, weight: float = 0.8, tau: float = 0.07, width: int = 128) -> Recipe:
    r"""Tell from the student's view of an example which of the batch the teacher sees, and the reverse.

    $$f_k = -\frac{1}{2} \ln \frac{e^{s_{bb} / \tau}}{\sum_j e^{s_{bj} / \tau}}
    - \frac{1}{2} \ln \frac{e^{s_{bb} / \tau}}{\sum_j e^{s_{jb} / \tau}}, \qquad
    s_{bj} = \cos(A_k e_b, B_k t_j)$$

    Here $A_k$ and $B_k$ are linear maps to `width` numbers that are trained along. The contrast is with the
    other examples of the batch: the paper contrasts with 16384 drawn from a memory of all, and learns to tell
    each from noise, as `crd_memory` does. Raises UserError for a width below 1
    and a tau that is not above 0.

    Source: contrastive representation distillation, Tian et al. 2020, arXiv 1910.10699; the loss in a batch
    is that of van den Oord et al. 2018, arXiv 1807.03748.
    """
    if width < 1:
        raise UserError(f"crd(width={width}): it must be at least 1")
    if not tau > 0:
        raise UserError(f"crd(tau={tau}): it must be above 0")
    own = (("tau", tau),)
    return beside_logits("crd", _contrast, weight, draw=_Projections(width), needs=("embedding",), hyper=own)


def crd_memory(
    *,
    weight: float = 0.8,
    tau: float = 0.07,
    width: int = 128,
    num_negatives: int = 16384,
    momentum: float = 0.5,
) -> Recipe:
    r"""Tell an example from others of other classes, which a memory of all examples holds, across networks.

    $$f = \ln(1 + e^{-a(u, \bar{v}_b)}) + \sum_{j} \ln(1 + e^{a(u, \bar{v}_j)})
    + \ln(1 + e^{-a(v, \bar{u}_b)}) + \sum_{j} \ln(1 + e^{a(v, \bar{u}_j)}), \qquad
    a(x, y) = \frac{x \cdot y}{\tau} - \ln Z - \ln \frac{m}{N}$$

    Here $u$ is the unit vector of $A e_b$ and $v$ that of $B t_b$, $t$ [B,D_1+...+D_K] being all teachers'
    embeddings side by side; $A$ and $B$ are linear maps to `width` numbers that are trained along. $\bar{u}$
    and $\bar{v}$ [N,`width`] are memories of both, random unit vectors at first: when an example has been
    seen, its row becomes the unit vector of $\mu \bar{u} + (1 - \mu) u$, $\mu$ being `momentum`. The batch
    shares $m$ rows $j$, `num_negatives` or N if that is fewer, drawn with replacement; of these, those of the
    example's own class and itself do not count, and the rest count for $m$. Classes are those of labelled
    examples. $Z$ is the mean of $N e^{x \cdot y / \tau}$ over the first batch, for each side its own. Every
    student remembers 2 N `width` numbers. The paper has one teacher and draws $m$ others for each example.
    Raises UserError for a number out of range, and for mixed images, of none of which a row could be kept.

    Source: contrastive representation distillation, Tian et al. 2020, arXiv 1910.10699.
    """
    for name, value, fits in (
        ("tau", tau, tau > 0),
        ("width", width, width >= 1),
        ("num_negatives", num_negatives, num_negatives >= 1),
        ("momentum", momentum, 0 <= momentum < 1),
    ):
        if not fits:
            right = {"tau": "above 0", "momentum": "in [0, 1)"}.get(name, "at least 1")
            raise UserError(f"crd_memory({name}={value}): it must be {right}")
    return PLAIN._replace(
        name="crd_memory",
        aim=each_teacher,
        term=maps.HardSoftAnd(_ContrastWithMemory(num_negatives)),
        after=_RememberBoth(num_negatives),
        init_mem=_RandomMemory(width),
        init_aux=_JointProjections(width),
        needs=("embedding",),
        hyper=(("weight", weight), ("tau", tau), ("momentum", momentum)),
        hears_all=True,
    )


# --- distances and angles -----------------------------------------------------------------------------


def _relational_distance(pair: Pair) -> Array:
    own, other = (_near_one_together(x) for x in (pair.own.embedding, pair.other.embedding))
    pairs = None if pair.valid is None else pair.valid[:, None] & pair.valid[None, :]

    def from_anchor(anchor: Array) -> tuple[Array, Array, Array]:
        """Mean loss of the angles at an example, and its distances [B] to all, of both networks."""
        (length, angle), (other_length, other_angle) = _seen_from(own, anchor), _seen_from(other, anchor)
        return mean_of(_huber(angle - other_angle), pairs), length, other_length

    # Recomputed on the way back, as B^3 angles are more than fit.
    size = len(own)
    at_once = max(1, min(size, ANGLES_AT_ONCE // size**2))
    of_angles, length, other_length = jax.lax.map(
        jax.checkpoint(from_anchor), jnp.arange(size), batch_size=at_once
    )
    apart = _over_mean(length, pairs) - _over_mean(other_length, pairs)
    of_distances = mean_of(_huber(apart), _columns(pair), axis=1)
    return of_angles + pair.hyper["distances"] * of_distances


def _seen_from(x: Array, anchor: Array) -> tuple[Array, Array]:
    """Distances [B] of all examples [B,D] from one of them, and the cosines [B,B] between the ways there."""
    way = x - x[anchor][None, :]
    squares = jnp.sum(way**2, axis=-1)
    is_apart = squares > 1e-12
    # A root of 0 has no gradient, and `where` around it would not keep the NaN out.
    length = jnp.where(is_apart, jnp.sqrt(jnp.where(is_apart, squares, 1.0)), 0.0)
    direction = jnp.where(is_apart[:, None], way / jnp.where(is_apart, length, 1.0)[:, None], 0.0)
    return length, direction @ direction.T


def _over_mean(length: Array, pairs: Array | None) -> Array:
    """Distances [B,B] over the mean of those that are not 0; of `pairs` [B,B], None: of all."""
    length = length if pairs is None else jnp.where(pairs, length, 0.0)
    num = (length > 0).sum().astype(jnp.float32)
    mean = length.sum() / jnp.maximum(num, 1.0)
    return length / jnp.where(num > 0, mean, 1.0)


def _huber(x: Array) -> Array:
    size = jnp.abs(x)
    return jnp.where(size <= 1.0, 0.5 * x**2, size - 0.5)


# --- similarities -------------------------------------------------------------------------------------


def _similarity_distance(pair: Pair) -> Array:
    own, other = (_similarities(x, _columns(pair)) for x in (pair.own.embedding, pair.other.embedding))
    return mean_of((own - other) ** 2, _columns(pair), axis=1)


def _similarities(embedding: Array, columns: Array | None) -> Array:
    near = _near_one_together(embedding)
    products = near @ near.T
    return unit(products if columns is None else jnp.where(columns, products, 0.0))


def _correlation_distance(pair: Pair) -> Array:
    own, other = (unit(x) for x in (pair.own.embedding, pair.other.embedding))
    factor = 2.0 * pair.hyper["sharpness"]
    kernels = [jnp.exp(-factor * (1.0 - x @ x.T)) for x in (own, other)]
    return mean_of((kernels[0] - kernels[1]) ** 2, _columns(pair), axis=1)


def _columns(pair: Pair) -> Array | None:
    """Which of the others [1,B] are there, of a matrix with a row for each example; None: all."""
    return None if pair.valid is None else pair.valid[None, :]


def _near_one_together(x: Array) -> Array:
    """Embeddings [B,D] over the largest number of all of them, for what does not depend on their scale."""
    near, _ = maps.near_one(x[None])
    return near[0]


# --- contrast -----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Projections:
    """Parameters of `crd`."""

    width: int

    def __call__(self, key: Array, own: Taps, other: Taps) -> PyTree:
        own_key, other_key = jax.random.split(key)
        return {
            "own": maps.draw_linear(own_key, own.embedding.shape[-1], self.width),
            "other": maps.draw_linear(other_key, other.embedding.shape[-1], self.width),
        }


def _contrast(pair: Pair) -> Array:
    own = unit(maps.linear(pair.parameters["own"], pair.own.embedding))
    other = unit(maps.linear(pair.parameters["other"], pair.other.embedding))
    scores = own @ other.T / pair.hyper["tau"]
    of_rows, of_columns = scores, scores
    if pair.valid is not None:  # who is not there is nobody's choice but its own, which does not count
        itself = jnp.eye(len(scores), dtype=bool)
        of_rows = jnp.where(pair.valid[None, :] | itself, scores, NOBODY)
        of_columns = jnp.where(pair.valid[:, None] | itself, scores, NOBODY)
    among_teachers = jnp.diagonal(jax.nn.log_softmax(of_rows, axis=1))
    among_own = jnp.diagonal(jax.nn.log_softmax(of_columns, axis=0))
    return -0.5 * (among_teachers + among_own)


# --- contrast with a memory ---------------------------------------------------------------------------

SIDES = ("own", "other")  # the student's and the teachers', of parameters and of the memory


@dataclasses.dataclass(frozen=True)
class _JointProjections:
    """Parameters of `crd_memory`: those of `crd`, of one teacher with all the embeddings."""

    width: int

    def __call__(self, key: Array, student: Outputs, teacher: TeacherOutputs) -> PyTree:
        widths = student.embedding.shape[-1], sum(one.shape[-1] for one in teacher.embedding)
        keys = jax.random.split(key)
        return {side: maps.draw_linear(own, size, self.width) for side, own, size in zip(SIDES, keys, widths)}


@dataclasses.dataclass(frozen=True)
class _RandomMemory:
    """Before anything is seen: random unit vectors, and no labels."""

    width: int

    def __call__(self, variables: PyTree, student: Outputs, num_examples: int) -> PyTree:
        keys = jax.random.split(jax.random.key(0))
        return {
            **{
                side: unit(jax.random.normal(key, (num_examples, self.width)))
                for side, key in zip(SIDES, keys)
            },
            "label": jnp.full(num_examples, -1, jnp.int32),
            "seen": jnp.zeros(num_examples, bool),
            "log_z": jnp.zeros(len(SIDES), jnp.float32),
        }


class _Seen(NamedTuple):
    """What both networks make of a batch, and how that scores against the memory of the other."""

    projected: Mapping[str, Array]  # {side: [B,width]}
    right: Array  # [2,B] x.y / tau with the example's own row
    others: Array  # [2,B,m] with the rows that were drawn
    counts: Array  # [B,m] bool, which of these are of other classes
    there: Array  # [B] bool, False where a place is none


def _see(context: Context, num_negatives: int) -> _Seen:
    batch, memory, tau = context.batch, context.state.mem, context.hyper["tau"]
    check_unmixed("relations.crd_memory", batch)
    embeddings = context.student.embedding, jnp.concatenate(context.teacher.embedding, axis=-1)
    if len(embeddings[0]) != len(batch.index):
        raise UserError("crd_memory: remembers an embedding of each place, and here whole images have one")
    own, other = (unit(maps.linear(context.aux[side], x)) for side, x in zip(SIDES, embeddings))
    num_examples = len(memory["label"])
    drawn = jax.random.randint(context.key, (min(num_negatives, num_examples),), 0, num_examples)
    label = jnp.where(batch.labelled, batch.label, -1)
    known = memory["label"][drawn]
    same = (label[:, None] == known[None]) & (label[:, None] >= 0)
    same |= batch.index[:, None] == drawn[None]
    there = jnp.ones_like(batch.labelled) if batch.valid is None else batch.valid
    counts = ~same & there[:, None] & (memory["seen"][drawn] | (context.step == 0))[None]
    of_memory = ((own, memory["other"]), (other, memory["own"]))
    right = jnp.stack([jnp.sum(x * rows[batch.index], axis=-1) for x, rows in of_memory]) / tau
    others = jnp.stack([x @ rows[drawn].T for x, rows in of_memory]) / tau
    return _Seen({"own": own, "other": other}, right, others, counts, there)


def _log_z(context: Context, seen: _Seen) -> Array:
    """ln Z [2] of the two sides: of this batch where it is the first one, later as it is remembered."""
    num_examples = jnp.float32(len(context.state.mem["label"]))
    count = jnp.concatenate([seen.there[:, None], seen.counts], axis=1)
    scores = jnp.concatenate([seen.right[:, :, None], seen.others], axis=2)
    scores = jnp.where(count[None], scores, -jnp.inf)
    num = count.sum().astype(jnp.float32)
    of_batch = jax.nn.logsumexp(scores, axis=(1, 2)) - jnp.log(num) + jnp.log(num_examples)
    return jax.lax.stop_gradient(jnp.where(context.step == 0, of_batch, context.state.mem["log_z"]))


@dataclasses.dataclass(frozen=True)
class _ContrastWithMemory:
    num_negatives: int

    def __call__(self, context: Context) -> Array:
        seen = _see(context, self.num_negatives)
        num_drawn, num_examples = jnp.float32(seen.others.shape[-1]), len(context.state.mem["label"])
        noise = _log_z(context, seen)[:, None] + jnp.log(num_drawn / num_examples)
        right = jax.nn.softplus(noise - seen.right)
        wrong = jax.nn.softplus(seen.others - noise[:, :, None])
        wrong = jnp.where(seen.counts[None], wrong, 0.0).sum(axis=-1)
        num = seen.counts.sum(axis=-1).astype(jnp.float32)
        return jnp.sum(right + wrong * (num_drawn / jnp.maximum(num, 1.0))[None], axis=0)


@dataclasses.dataclass(frozen=True)
class _RememberBoth:
    num_negatives: int

    def __call__(self, state: TrainState, context: Context) -> TrainState:
        seen = _see(context, self.num_negatives)
        batch, memory, momentum = context.batch, state.mem, context.hyper["momentum"]
        written = jnp.where(seen.there, batch.index, len(memory["label"]))  # past the end: nowhere

        def moved(side: str) -> Array:
            mean = mean_of_same(batch.index, seen.projected[side])
            rows = unit(momentum * memory[side][batch.index] + (1.0 - momentum) * mean)
            return memory[side].at[written].set(rows, mode="drop")

        label = jnp.where(batch.labelled, batch.label, -1)
        mem = {
            **{side: moved(side) for side in SIDES},
            "label": memory["label"].at[written].set(label, mode="drop"),
            "seen": memory["seen"].at[written].set(True, mode="drop"),
            "log_z": _log_z(context, seen),
        }
        return dataclasses.replace(state, mem=mem)
