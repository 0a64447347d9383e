r"""Decision fusion: the logits of K members [K,B,C] become one decision an example [B,C].

A rule is a pure function `(logits) -> scores` whose largest entry is the decision. There are three
families, which differ in what they return:

- `Scores`: probabilities; every row sums to 1.
- `Places`: places 0..C-1, C-1 to the winner. These are the rank rules, which read nothing of a member but
  the order of its logits. Only the argmax is promised, so NLL, ECE and Brier score do not apply.
- `FittedRule`: fitted on validation data, `(logits, labels) -> rule`; the rule returns probabilities. What
  was fitted are its arrays, so that a compiled step can be given it.

Symbols: $p_k = \mathrm{softmax}(z_k)$ [B,C] are the probabilities of member k. $r_k(c)$ is the position
of class c on the ballot of member k, 0 for the largest logit; equal logits are ranked by lower index.
$M_{ij}$ is the margin of two classes: how many more ballots put i above j than j above i. All counts are
integers.

$$M_{ij} = |\{k : r_k(i) < r_k(j)\}| - |\{k : r_k(j) < r_k(i)\}|$$

Ties are never decided by the order of the classes alone, as they are in the code released with Zuchniak
2023 (arXiv 2302.07215): a decision goes by integer score, then by mean probability, then to the lower
index; an elimination takes the reverse. Mean probabilities within 1e-6 of the highest (when eliminating:
the lowest) equal it.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import Partial
from scipy import optimize, special

from mtkd_jax.fusion.worth import shapley
from mtkd_jax.types import Array, Scores, UserError

Places = Scores  # another name, so that the annotation says which promise a rule makes
FittedRule = Callable[[Array], Scores]
AnyArray = Array | np.ndarray  # on the device or on the host

EQUAL = 1e-6  # probabilities this close are equal
BELIEF = 0.9  # how much of a member's mass Dempster and Shafer lay on single classes
CHUNK = 64  # examples at a time: [C,C,64] int8 stays in the cache at C = 100
KEMENY_CLASSES = 8  # the table of subsets doubles with every class


# --- probability rules --------------------------------------------------------------------------------


def mean_probs(logits: Array) -> Scores:
    r"""Mean probability of the members: the plain ensemble.

    $$s = \frac{1}{K} \sum_k \mathrm{softmax}(z_k)$$

    Examples:
        >>> print(mean_probs(jnp.log(jnp.array([[[0.8, 0.2]], [[0.4, 0.6]]]))))
        [[0.6 0.4]]
    """
    return _mean_probs(logits, axis=-1)


def mean_logits(logits: Array) -> Scores:
    r"""Softmax of the mean logit: the renormalised geometric mean of the probabilities.

    $$s = \mathrm{softmax}(\frac{1}{K} \sum_k z_k)$$
    """
    return jax.nn.softmax(logits.astype(jnp.float32).mean(0))


def median_probs(logits: Array) -> Scores:
    r"""Median probability of each class (mean of the two middle ones for even K), renormalised.

    $$s_c = \frac{\mathrm{median}_k\, p_k(c)}{\sum_j \mathrm{median}_k\, p_k(j)}$$
    """
    return _middle_probs(logits, cut=(len(logits) - 1) // 2)


def trimmed_mean_probs(logits: Array) -> Scores:
    r"""Mean probability of each class without its max(1, K // 5) lowest and highest, renormalised.

    $$s_c = \frac{t_c}{\sum_j t_j}, \qquad t_c = \sum_{m < i \le K - m} p_{(i)}(c), \qquad
    m = \max(1, \lfloor K / 5 \rfloor)$$

    Here $p_{(1)}(c) \le \dots \le p_{(K)}(c)$ are the probabilities of class c in rising order. Raises
    UserError for K < 3.
    """
    if len(logits) < 3:
        raise UserError(f"trimmed_mean_probs: needs 3 members or more to trim, got {len(logits)}")
    return _middle_probs(logits, cut=max(1, len(logits) // 5))


def max_confidence(logits: Array) -> Scores:
    r"""Probabilities of the one member with the highest top probability (equal ones: the first member).

    $$s = p_{k^*}, \qquad k^* = \mathrm{argmax}_k \max_c p_k(c)$$
    """
    probs = jax.nn.softmax(logits.astype(jnp.float32))
    top = probs.max(-1)
    chosen = jnp.argmax(top >= top.max(0, keepdims=True) - EQUAL, axis=0)
    return jnp.take_along_axis(probs, chosen[None, :, None], axis=0)[0]


def dempster_shafer(logits: Array) -> Scores:
    r"""Dempster's rule over members who doubt themselves by 0.1 (Shafer 1976), as pignistic probabilities.

    Member k believes $m_k(\{c\}) = 0.9\, p_k(c)$ and leaves $m_k(\text{all}) = 0.1$ open. Combined, up to one
    factor:

    $$m(\{c\}) = \prod_k (0.9\, p_k(c) + 0.1) - 0.1^K, \qquad m(\text{all}) = 0.1^K$$

    In units of $0.1^K$ and with $u_c = \sum_k \ln(1 + 9\, p_k(c))$, a class and its share of the doubt get
    $s_c = e^{u_c} - 1 + 1/C$, renormalised.
    """
    probs = jax.nn.softmax(logits.astype(jnp.float32))
    support = jnp.log1p(BELIEF / (1 - BELIEF) * probs).sum(0)
    share = jnp.exp(-support) / logits.shape[-1]
    return jax.nn.softmax(support + jnp.log(share - jnp.expm1(-support)))


def _mean_probs(logits: Array, axis: int) -> Array:
    return jax.nn.softmax(logits.astype(jnp.float32), axis).mean(0)


def _middle_probs(logits: Array, cut: int) -> Array:
    """Mean over the members without the `cut` lowest and highest of each class, renormalised.

    In logs, so that K certain members who disagree do not leave 0/0.
    """

    def middle(logits: Array) -> Array:
        log_probs = jax.nn.log_softmax(logits, axis=1)
        position = _positions(log_probs, axis=0)
        kept = (position >= cut) & (position < len(logits) - cut)
        return jax.nn.softmax(jax.nn.logsumexp(log_probs, axis=0, where=kept), axis=0)

    return _in_chunks(middle, logits)


# --- rank rules: positions on the ballots -------------------------------------------------------------


def plurality(logits: Array) -> Places:
    r"""Most first places.

    $$s_c = |\{k : r_k(c) = 0\}|$$

    Examples:
        >>> members = jnp.array([[[0.40, 0.10, 0.11, 0.39]], [[0.01, 0.02, 0.03, 0.94]]])
        >>> int(plurality(jnp.log(members)).argmax())  # one vote each: the mean probability decides
        3
    """
    return _elect(logits, lambda position, _: _count(position == 0))


def borda(logits: Array) -> Places:
    r"""Borda count (1781): C-1 points for a first place, ..., 0 for a last one.

    $$s_c = \sum_k (C - 1 - r_k(c))$$
    """
    return _elect(logits, lambda position, _: -_total(position, axis=0))


def dowdall(logits: Array) -> Places:
    r"""Dowdall's count (Nauru 1971): 1 point for a first place, 1/2 for a second, 1/3, ...

    $$s_c = \sum_k \frac{1}{r_k(c) + 1}$$

    In units of 1/720720, rounded: integers for K < 2980.
    """
    points = [round(720720 / rank) for rank in range(1, logits.shape[-1] + 1)]
    return _elect(logits, lambda position, _: _total(jnp.array(points)[position], axis=0))


def bucklin(logits: Array) -> Places:
    r"""Bucklin voting: at the first rank where more than K/2 ballots name some class, the most named one.

    $$s_c = |\{k : r_k(c) \le \rho\}|, \qquad \rho = \min \{r : \max_c |\{k : r_k(c) \le r\}| > K / 2\}$$
    """
    return _elect(logits, lambda position, _: _bucklin(position))


def stv(logits: Array) -> Places:
    """Single transferable vote (Hare): drop the class with the fewest first places, count again.

    A class's score is the round in which it is dropped; the last one left wins.
    """
    return _elect(logits, _stv)


def borda_scores(logits: Array) -> Array:
    r"""Borda points as a distribution [B,C]: share of the K C (C-1) / 2 points. The target of mode `vote`.

    $$s_c = \frac{2}{K C (C - 1)} \sum_k (C - 1 - r_k(c))$$

    Examples:
        >>> print(borda_scores(jnp.array([[[3.0, 1.0]], [[2.0, 1.0]]])))
        [[1. 0.]]
    """
    num_members, _, num_classes = logits.shape

    def points(logits: Array) -> Array:
        return _total(num_classes - 1 - _positions(logits, axis=1), axis=0).astype(jnp.float32)

    return _in_chunks(points, logits) / (num_members * num_classes * (num_classes - 1) / 2)


# --- rank rules: pairwise margins ---------------------------------------------------------------------


def symmetric_borda(logits: Array) -> Places:
    r"""Sum of a class's margins: the winner is Borda's.

    $$s_c = \sum_j M_{cj} = 2\, \mathrm{Borda}_c - K (C - 1)$$
    """
    return _elect(logits, lambda position, _: _total(_margins(position), axis=1))


def copeland(logits: Array) -> Places:
    r"""Copeland (1951): duels won minus duels lost.

    $$s_c = \sum_j \mathrm{sign}(M_{cj})$$
    """
    return _elect(logits, lambda position, _: _total(jnp.sign(_margins(position)), axis=1))


def simpson(logits: Array) -> Places:
    r"""Simpson (1969), minimax: the best worst duel.

    $$s_c = \min_{j \ne c} M_{cj}$$
    """
    # M[c,c] = 0 may stay: it only lowers a class that wins every duel, and all others are below 0 then
    return _elect(logits, lambda position, _: _margins(position).min(1))


def condorcet(logits: Array) -> Places:
    r"""The classes that lose no duel tie, all classes where there is none; the mean probability decides.

    $$s_c = [M_{cj} \ge 0 \text{ for all } j]$$
    """
    return _elect(logits, lambda position, _: jnp.all(_margins(position) >= 0, axis=1).astype(jnp.int32))


def baldwin(logits: Array) -> Places:
    r"""Baldwin (1926): drop the class with the lowest Borda count, count again.

    A class's score is the round in which it is dropped; the last one left wins. Among the classes A that are
    left the Borda count orders them as $\sum_{j \in A} M_{cj}$ does.
    """
    return _elect(logits, lambda position, prob: _baldwin(_margins(position), prob))


def nanson(logits: Array) -> Places:
    r"""Nanson (1882): drop all strictly below the mean Borda count, count again; the last ones left tie.

    Among the classes A that are left, c is below the mean where $\sum_{j \in A} M_{cj} < 0$.
    """
    return _elect(logits, lambda position, _: _nanson(_margins(position)))


def schulze(logits: Array) -> Places:
    r"""Schulze (2011) on margins: the classes that no other reaches by a wider path than leads back tie.

    $$s_c = [P_{cj} \ge P_{jc} \text{ for all } j], \qquad
    P_{ij} = \max_\text{paths i to j}\ \min_\text{edges ab of the path} M_{ab}$$
    """
    return _elect(logits, lambda position, _: _schulze(_margins(position)))


def kemeny(logits: Array) -> Places:
    r"""Kemeny (1959): the classes that top an order with the greatest sum of margins tie.

    $$s_c = \max_\text{orders with c on top} \sum_{i \text{ above } j} M_{ij}$$

    Raises UserError for C > 8.
    """
    num_classes = logits.shape[-1]
    if num_classes > KEMENY_CLASSES:
        raise UserError(f"kemeny: weighs every order, so {KEMENY_CLASSES} classes at most, got {num_classes}")
    return _elect(logits, lambda position, _: _kemeny(_margins(position)))


# --- ballots ------------------------------------------------------------------------------------------
# Examples come last, so that every operation below is one sweep over contiguous narrow integers. Shapes in
# this part: position [K,C,b], margins [C,C,b], everything else [C,b].


def _elect(logits: Array, score: Callable[[Array, Array], Array]) -> Places:
    """Places by `score`, which reads (position, mean probability) and returns integers [C,b]."""

    def decide(logits: Array) -> Array:
        prob = _mean_probs(logits, axis=1)
        return _places(score(_positions(logits, axis=1), prob), prob)

    return _in_chunks(decide, logits)


def _in_chunks(decide: Callable[[Array], Array], logits: Array) -> Array:
    """`decide` ([K,C,b] -> [C,b]) over all examples [K,B,C] -> [B,C], CHUNK at a time.

    The last chunk starts early enough to be full: what it shares with the one before is decided twice.
    """
    num_examples = logits.shape[1]
    size = min(num_examples, CHUNK)

    def chunk(start: Array) -> Array:
        part = lax.dynamic_slice_in_dim(logits, start, size, axis=1)
        return decide(part.astype(jnp.float32).swapaxes(1, 2)).T

    starts = np.minimum(np.arange(0, num_examples, size), num_examples - size)
    rows = lax.map(chunk, jnp.asarray(starts)).reshape(-1, logits.shape[-1])
    return jnp.concatenate([rows[: num_examples - size], rows[-size:]])


def _positions(values: Array, axis: int) -> Array:
    """Position of every entry along `axis` by falling value, 0 first, equal values by lower index.

    Counts who stands above: C comparisons an entry, but every one is a vector instruction. On a CPU, K = 64,
    C = 100, 10 000 examples: 1.2 s of processor time, where `lax.sort` with the index took 9 s.
    """
    length = values.shape[axis]
    index = lax.broadcasted_iota(jnp.int32, values.shape, axis)

    def count(rival: Array, above: Array) -> Array:
        value = lax.dynamic_index_in_dim(values, rival, axis)
        return above + jnp.where(rival < index, value >= values, value > values).astype(above.dtype)

    return lax.fori_loop(0, length, count, jnp.zeros(values.shape, _narrow(length)), unroll=8)


def _narrow(largest: int) -> np.dtype:
    """The narrowest signed integers that hold -largest..largest."""
    return np.min_scalar_type(-largest - 1)


def _total(points: Array, axis: int) -> Array:
    return points.sum(axis, dtype=jnp.int32)


def _count(ballots: Array) -> Array:
    """How many ballots are true, [K,...] -> [...]."""
    return ballots.sum(0, dtype=_narrow(len(ballots)))


def _margins(position: Array) -> Array:
    """M[i,j]: ballots with i above j minus ballots with j above i.

    Member after member: one sum over a comparison [K,C,C,b] is not vectorised and took several times as long.
    """
    num_members, num_classes, size = position.shape

    def duel(above: Array, position: Array) -> tuple[Array, None]:
        return above + (position[:, None] < position[None]).astype(above.dtype), None

    nobody = jnp.zeros((num_classes, num_classes, size), _narrow(num_members))
    above, _ = lax.scan(duel, nobody, position, unroll=8)
    return above - above.swapaxes(0, 1)


def _best(score: Array, prob: Array, alive: Array) -> Array:
    """Index [b] of the best living class: highest score, highest mean probability, lowest index."""
    score = jnp.where(alive, score, jnp.iinfo(score.dtype).min)
    prob = jnp.where(alive & (score == score.max(0, keepdims=True)), prob, -jnp.inf)
    index = lax.broadcasted_iota(jnp.int32, prob.shape, 0)
    return jnp.where(prob >= prob.max(0, keepdims=True) - EQUAL, index, len(prob)).min(0)


def _worst(score: Array, prob: Array, alive: Array) -> Array:
    """Index [b] of the living class to drop: lowest score, lowest mean probability, highest index."""
    return len(score) - 1 - _best(-score[::-1], -prob[::-1], alive[::-1])


def _places(score: Array, prob: Array) -> Array:
    """Places: the best class gets C-1, the best of the others C-2, and so on."""
    num_classes = len(score)
    index = lax.broadcasted_iota(jnp.int32, score.shape, 0)

    def place(step: Array, places: Array) -> Array:
        best = _best(score, prob, places < 0)
        return jnp.where(index == best[None], num_classes - 1 - step, places)

    return lax.fori_loop(0, num_classes, place, jnp.full(score.shape, -1, jnp.int32))


def _eliminate(
    count: Array, recount: Callable[[Array, Array, Array], Array], prob: Array, alive: Array, rounds: int
) -> Array:
    """Drops the worst living class `rounds` times; its score is the round it fell in, 0 if never alive.

    `recount(count, fallen, alive)` is the count without the class that fell, [b] indices.
    """
    index = lax.broadcasted_iota(jnp.int32, prob.shape, 0)

    def drop(step: Array, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        alive, count, score = state
        fallen = _worst(count, prob, alive)
        falls = alive & (index == fallen[None])
        alive = alive & ~falls
        return alive, recount(count, fallen, alive), jnp.where(falls, step, score)

    return lax.fori_loop(1, rounds + 1, drop, (alive, count, jnp.zeros(prob.shape, jnp.int32)))[2]


def _stv(position: Array, prob: Array) -> Array:
    """Classes without a first place change nothing when they fall, and fall first: all at once.

    The others keep theirs, so at most min(K, C) rounds are left.
    """
    num_members, num_classes, _ = position.shape

    def first_places(alive: Array) -> Array:
        living = jnp.where(alive[None], position, num_classes)
        return _count(living == living.min(1, keepdims=True))

    count = first_places(jnp.ones(prob.shape, bool))
    rounds = min(num_members, num_classes)
    return _eliminate(count, lambda _count, _fallen, alive: first_places(alive), prob, count > 0, rounds)


def _bucklin(position: Array) -> Array:
    """Finds the rank by bisection: the number of ballots that name a class only grows with it."""
    num_members, num_classes, size = position.shape

    def named(rank: Array) -> Array:
        return _count(position <= rank)

    before = jnp.full((1, 1, size), -1, position.dtype)  # the last rank without a majority
    for power in reversed(range((num_classes - 1).bit_length())):
        later = before + position.dtype.type(2**power)
        before = jnp.where(named(later).max(0, keepdims=True)[None] > num_members // 2, before, later)
    return named(before + position.dtype.type(1)).astype(jnp.int32)


def _baldwin(margins: Array, prob: Array) -> Array:
    """A Borda count orders classes as the sum of margins does, and that sum loses one row a round."""

    def without(total: Array, fallen: Array, _alive: Array) -> Array:
        row = jnp.take_along_axis(margins, fallen[None, None], axis=0)[0]
        return total + row.astype(total.dtype)  # M[c,fallen] = -M[fallen,c]

    return _eliminate(_total(margins, axis=1), without, prob, jnp.ones(prob.shape, bool), rounds=len(prob))


def _nanson(margins: Array) -> Array:
    """A Borda count is below the mean where the margins over the living sum to less than 0."""

    def below_mean(alive: Array) -> Array:
        return alive & (_total(jnp.where(alive[None], margins, 0), axis=1) < 0)

    def drop(state: tuple[Array, Array]) -> tuple[Array, Array]:
        alive, falls = state
        alive = alive & ~falls
        return alive, below_mean(alive)

    everyone = jnp.ones(margins.shape[1:], bool)
    alive, _ = lax.while_loop(lambda state: state[1].any(), drop, (everyone, below_mean(everyone)))
    return alive.astype(jnp.int32)


def _schulze(margins: Array) -> Array:
    """Widest paths by Floyd and Warshall."""

    def through(middle: Array, width: Array) -> Array:
        start = lax.dynamic_index_in_dim(width, middle, 1)
        end = lax.dynamic_index_in_dim(width, middle, 0)
        return jnp.maximum(width, jnp.minimum(start, end))

    width = lax.fori_loop(0, len(margins), through, margins)
    return jnp.all(width >= width.swapaxes(0, 1), axis=1).astype(jnp.int32)


def _kemeny(margins: Array) -> Array:
    """Score of the best order with c on top, by the best order of every subset (Held and Karp 1962).

    best[S] = max over c in S of best[S - c] + sum of M[c,j] over j in S.
    """
    num_classes, _, size = margins.shape
    subsets = np.arange(2**num_classes)
    member = (subsets[:, None] >> np.arange(num_classes)) & 1  # [2^C,C]
    without = subsets[:, None] ^ (1 << np.arange(num_classes))
    margins = margins.astype(jnp.int32)
    on_top = (jnp.asarray(member, jnp.int32)[:, None, :, None] * margins[None]).sum(2)  # [2^C,C,b]

    def extend(subset: Array, best: Array) -> Array:
        totals = best[jnp.asarray(without)[subset]] + on_top[subset]
        totals = jnp.where(jnp.asarray(member, bool)[subset][:, None], totals, jnp.iinfo(jnp.int32).min)
        return best.at[subset].set(totals.max(0))

    best = lax.fori_loop(1, len(subsets), extend, jnp.zeros((len(subsets), size), jnp.int32))
    return best[without[-1]] + on_top[-1]


# --- fitted rules -------------------------------------------------------------------------------------


def weighted_mean(logits: AnyArray, labels: AnyArray) -> FittedRule:
    r"""Mean probability weighted by each member's validation accuracy.

    $$s = \sum_k w_k\, \mathrm{softmax}(z_k), \qquad w_k = \frac{\mathrm{acc}_k}{\sum_j \mathrm{acc}_j}$$

    `logits` [K,N,C] and `labels` [N] are validation data. Raises UserError on bad data and where no member is
    right even once.
    """
    logits, labels = _validated("weighted_mean", logits, labels)
    right = (logits.argmax(-1) == labels).sum(1)
    if not right.any():
        raise UserError("weighted_mean: no member is right on any validation example; check the labels")
    return _weighted(right / right.sum())


def evolved_mean(logits: AnyArray, labels: AnyArray, *, seed: int = 0) -> FittedRule:
    r"""Mean probability weighted by differential evolution (Storn and Price 1997) on validation NLL.

    $$w = \frac{v}{\sum_k v_k}, \qquad
    v = \mathrm{argmin}_{v \in [0,1]^K} -\frac{1}{N} \sum_n \ln\, \sum_k w_k\, p_k(y_n)$$

    `logits` [K,N,C] and `labels` [N] are validation data. Equal weights are one of the first candidates and
    the best is kept, so it never does worse than they. Raises UserError on bad data.
    """
    logits, labels = _validated("evolved_mean", logits, labels)
    num_members = len(logits)
    truth = special.softmax(logits, axis=-1)[:, np.arange(len(labels)), labels]  # [K,N]: all that NLL reads
    tiny = np.finfo(np.float32).tiny

    def nll(v: np.ndarray) -> np.ndarray:  # [K,S] -> [S]
        weights = v / np.maximum(v.sum(0, keepdims=True), tiny)
        return -np.log(np.maximum(weights.T @ truth, tiny)).mean(1)

    best = optimize.differential_evolution(
        nll,
        [(0, 1)] * num_members,
        x0=np.ones(num_members),
        vectorized=True,
        updating="deferred",
        seed=seed,
    )
    return _weighted(best.x / best.x.sum())


def stacking(logits: AnyArray, labels: AnyArray, *, l2: float = 1e-2) -> FittedRule:
    r"""A dense layer on the concatenated logits (stacked generalisation, Wolpert 1992).

    $$s = \mathrm{softmax}(W [z_1, \dots, z_K] + b), \qquad
    \min_{W, b} \frac{1}{N} \sum_n \mathrm{CE}(y_n, s_n) + \frac{\text{l2}}{2} \lVert W \rVert^2$$

    It is fitted to the validation data `logits` [K,N,C], `labels` [N]; the bias is free. The objective is
    convex and the search starts from zero, so there is nothing to seed. Raises UserError on bad data.
    """
    logits, labels = _validated("stacking", logits, labels)
    num_classes = logits.shape[-1]
    inputs = _concatenated(logits)
    truth = np.eye(num_classes)[labels]

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        kernel, bias = _kernel_and_bias(parameters, num_classes)
        log_probs = special.log_softmax(inputs @ kernel + bias, axis=-1)
        loss = -(truth * log_probs).sum() / len(labels) + l2 / 2 * np.square(kernel).sum()
        error = (np.exp(log_probs) - truth) / len(labels)
        gradient = np.concatenate([inputs.T @ error + l2 * kernel, error.sum(0, keepdims=True)])
        return loss, gradient.ravel()

    start = np.zeros((inputs.shape[1] + 1) * num_classes)
    best = optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options={"gtol": 1e-6, "ftol": 0})
    kernel, bias = (jnp.asarray(part, jnp.float32) for part in _kernel_and_bias(best.x, num_classes))
    return Partial(_dense, kernel, bias)


def shapley_mean(logits: AnyArray, labels: AnyArray) -> FittedRule:
    r"""Mean probability weighted by each member's Shapley value for the accuracy of the plain mean.

    $$s = \sum_k w_k\, \mathrm{softmax}(z_k), \qquad
    w_k = \frac{\max(\phi_k, 0)}{\sum_j \max(\phi_j, 0)}$$

    Here $\phi_k$ is what member k adds to the validation accuracy of `mean_probs`, averaged over all orders
    in which members may join (`fusion.worth.shapley`); of more than twelve members over 200 orders that are
    drawn. Weights are equal where no member adds anything. Raises UserError on bad data.

    Source: after Rozemberczki and Sarkar 2021, arXiv 2101.02153, who value members of ensembles so.
    """
    logits, labels = _validated("shapley_mean", logits, labels)
    values, _ = shapley(logits, labels)
    kept = np.maximum(values, 0.0)
    return _weighted(kept / kept.sum() if kept.any() else np.full(len(kept), 1 / len(kept)))


def classwise_mean(logits: AnyArray, labels: AnyArray, *, l2: float = 1e-2) -> FittedRule:
    r"""Mean probability with weights for every class: who is heard of cats may be silent of dogs.

    $$s_c = \frac{\sum_k w_{kc}\, p_k(c)}{\sum_j \sum_k w_{kj}\, p_k(j)}, \qquad
    w_{kc} = \mathrm{softmax}_k(v_{kc}), \qquad
    \min_v -\frac{1}{N} \sum_n \ln s_n(y_n) + \frac{\text{l2}}{2} \lVert v \rVert^2$$

    Here $p_k = \mathrm{softmax}(z_k)$. It is fitted to the validation data `logits` [K,N,C], `labels` [N],
    from equal weights, towards which `l2` draws it; nothing is drawn by lot. Raises UserError on bad data.

    Source: stacked generalisation (Wolpert 1992) restricted to a mean in each class.
    """
    logits, labels = _validated("classwise_mean", logits, labels)
    num_members, _, num_classes = logits.shape
    probs, rows = special.softmax(logits, axis=-1), np.arange(len(labels))
    tiny = np.finfo(np.float32).tiny

    def objective(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        v = parameters.reshape(num_members, num_classes)
        w = special.softmax(v, axis=0)
        mixed = (w[:, None] * probs).sum(0)  # [N,C]
        total, own = mixed.sum(1), np.maximum(mixed[rows, labels], tiny)
        loss = -np.mean(np.log(own / total)) + l2 / 2 * np.square(v).sum()
        by_mixed = np.broadcast_to(1 / total[:, None], mixed.shape).copy()
        by_mixed[rows, labels] -= 1 / own
        by_w = (by_mixed[None] * probs).mean(1)  # [K,C]
        return loss, (w * (by_w - (w * by_w).sum(0)) + l2 * v).ravel()

    start = np.zeros(num_members * num_classes)
    best = optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options={"gtol": 1e-6, "ftol": 0})
    w = special.softmax(best.x.reshape(num_members, num_classes), axis=0)
    return Partial(_mean_in_classes, jnp.asarray(w, jnp.float32))


def _validated(name: str, logits: AnyArray, labels: AnyArray) -> tuple[np.ndarray, np.ndarray]:
    check(name, logits, labels)
    return np.asarray(logits, np.float64), np.asarray(labels)


def _weighted(weights: np.ndarray) -> FittedRule:
    return Partial(_weighted_mean, jnp.asarray(weights, jnp.float32))


def _weighted_mean(w: Array, logits: Array) -> Array:
    return (w[:, None, None] * jax.nn.softmax(logits.astype(jnp.float32))).sum(0)


def _mean_in_classes(w: Array, logits: Array) -> Array:
    mixed = (w[:, None, :] * jax.nn.softmax(logits.astype(jnp.float32))).sum(0)
    return mixed / mixed.sum(-1, keepdims=True)


def _dense(kernel: Array, bias: Array, logits: Array) -> Array:
    return jax.nn.softmax(_concatenated(logits.astype(jnp.float32)) @ kernel + bias[None])


def _concatenated(logits: Any) -> Any:
    """[K,N,C] -> [N,K*C], of either library."""
    return logits.swapaxes(0, 1).reshape(logits.shape[1], -1)


def _kernel_and_bias(parameters: np.ndarray, num_classes: int) -> tuple[np.ndarray, np.ndarray]:
    matrix = parameters.reshape(-1, num_classes)
    return matrix[:-1], matrix[-1]


# --- finding and checking -----------------------------------------------------------------------------


def offer(name: str, function: Callable, returns: str) -> None:
    """Let `rule` find a function of the user's own; `returns` is "Scores", "Places" or "FittedRule"."""
    _OWN[name] = function, returns


def log_probs(probs: Array) -> Array:
    """Logarithms of probabilities; of one that underflows to 0 that of the least normal float32."""
    return jnp.log(jnp.maximum(probs, jnp.finfo(jnp.float32).tiny))


def is_rank(name: str) -> bool:
    """Whether a rule gives places, of which only the argmax means anything."""
    return name in RANK_RULES or (name in _OWN and _OWN[name][1] == "Places")


def is_fitted(name: str) -> bool:
    """Whether a rule is fitted on validation data."""
    return name in FITTED_RULES or (name in _OWN and _OWN[name][1] == "FittedRule")


def rule(name: str) -> Callable:
    """The rule of that name, or the function that fits it; UserError with the nearest name if there is none.

    Examples:
        >>> rule("bordo")
        Traceback (most recent call last):
        mtkd_jax.types.UserError: fusion: there is no rule 'bordo'; did you mean 'borda'?
    """
    if name in _OWN:
        return _OWN[name][0]
    names = sorted(RULES | FITTED_RULES)
    if name not in names and ":" in name:  # of a stored run, which must not have a file executed
        raise UserError(f"fusion: {name} is a rule of somebody's own; the command of the run finds it")
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1, cutoff=0)[0]
        raise UserError(f"fusion: there is no rule {name!r}; did you mean {near!r}?")
    return globals()[name]


def check(name: str, logits: AnyArray, labels: AnyArray | None = None, asked_by: str = "") -> None:
    """Raises UserError where rule `name` cannot fuse `logits` [K,B,C], or not be fitted to `labels` [B].

    On the host: it looks at the values, which the pure rules do not. Messages begin with the rule's name, or
    with that of whom it is `asked_by`.
    """
    function, who = rule(name), asked_by or name
    logits = np.asarray(logits)
    if logits.ndim != 3 or logits.size == 0:
        raise UserError(f"{who}: logits must be [members, examples, classes], got shape {logits.shape}")
    num_examples, num_classes = logits.shape[1:]
    if num_classes < 2:
        raise UserError(f"{who}: needs 2 classes or more, got {num_classes}")
    finite = np.isfinite(logits)
    if not finite.all():
        member, example, _ = np.argwhere(~finite)[0]
        raise UserError(f"{who}: logits must be finite; member {member}, example {example} is not")
    if not is_fitted(name):
        found = jax.eval_shape(function, logits)  # raises what the rule itself demands of K and C
        if getattr(found, "shape", None) != logits.shape[1:]:
            raise UserError(f"{who}: must return scores {logits.shape[1:]} of logits {logits.shape}")
    if labels is None:
        return
    labels = np.asarray(labels)
    if labels.shape != (num_examples,):
        raise UserError(f"{who}: logits are of {num_examples} examples, labels of shape {labels.shape}")
    if labels.dtype.kind not in "iu":
        raise UserError(
            f"{who}: labels must be integers, got {labels.dtype}; labels.astype(int) makes them so"
        )
    if not np.isin(labels, np.arange(num_classes)).all():
        raise UserError(f"{who}: labels must be in 0..{num_classes - 1}, got {labels.min()}..{labels.max()}")


def _returning(annotation: str) -> frozenset[str]:
    """Names of the public functions that say they return `annotation`."""
    functions = [value for value in globals().values() if inspect.isfunction(value)]
    named = [one.__name__ for one in functions if one.__annotations__.get("return") == annotation]
    return frozenset(name for name in named if not name.startswith("_"))


RANK_RULES = _returning("Places")  # only the argmax of what they return means anything
RULES = _returning("Scores") | RANK_RULES
FITTED_RULES = _returning("FittedRule")
_OWN: dict[str, tuple[Callable, str]] = {}  # {address: (function, what it returns)}
