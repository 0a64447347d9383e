r"""Methods in which a cohort of networks makes its own teacher while all of them learn.

The P peers are whole networks, or branches on one stem where `shared` names the last stage that they share
("most": all but the last stage of blocks); see `methods.cohorts`. One of them, peer 0 unless a method says
otherwise, is the student that is evaluated and exported. Hard labels weigh 1, so alpha plays no part but in
`cl_ilr`; the temperature T is `students.temperatures`. Softened predictions are
$p_i = \mathrm{softmax}(z_i / T)$ of peer i, all [B,C];
$\mathrm{KD}(t, z) = T^2\, \mathrm{KL}(\mathrm{softmax}(t / T) \parallel \mathrm{softmax}(z / T))$ has no
gradient by its target t, and $\mathrm{CE}(z)$ is the hard loss. A peer whose logits are not finite is left
out.

The ramp-up is $r(e) = \exp(-5 (1 - \min(e, 80) / 80)^2)$ of 300 epochs e; `ramp` = 80/300 is that as a share
of the training. (Public code of two of these papers divides by another number, which switches distillation
off for most of the first 80 epochs; here it is as stated.)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from mtkd_jax.methods.averages import deploy_average, move_average, start_average, update_average
from mtkd_jax.methods.cohorts import ViewForEach, cohort, of_cohort, once, others, with_own
from mtkd_jax.methods.maps import draw_linear, linear, square, stage_names, taps_of_student
from mtkd_jax.methods.seams import (
    PLAIN,
    SUPERVISED,
    check_ramp,
    hard_loss,
    hard_loss_of,
    ramped_up,
    soft_loss,
    targets_of,
)
from mtkd_jax.methods.weights import project_on_capped_simplex
from mtkd_jax.models.layers import ENTERING, conv
from mtkd_jax.system.spelling import hint
from mtkd_jax.types import (
    Array,
    Context,
    Networks,
    Outputs,
    PyTree,
    Recipe,
    Targets,
    TeacherOutputs,
    TrainState,
    UserError,
)

ONLINE = SUPERVISED._replace(alpha=1.0, hyper=(("weight", 1.0),))


def kdcl(
    *,
    num_peers: int = 2,
    target: str = "minimum",
    weight: float = 1.0,
    decay: float = 0.99,
    shared: str = "",
) -> Recipe:
    r"""Match the best that the labels let one make of all peers, each with an augmentation of its own.

    $$\ell_i = \mathrm{CE}(z_i) + \lambda\, \mathrm{KD}(t, z_i)$$

    Here $\lambda$ is `weight`, and for each example `target` makes t of the peers' logits and its label y:

    - "naive": $t = z_k$ of the peer with the lowest $\mathrm{CE}(z_k)$;
    - "linear": $t = \sum_k a_k z_k$ with $a \ge 0$, $\sum_k a_k = 1$, that has the lowest
      $\mathrm{CE}(t)$, a convex problem, by 200 steps of accelerated projected gradient descent;
    - "minimum": $t_c = \min_k (z_{kc} - z_{ky})$, for each class the peer that is surest it is not this one;
    - "general": $t = \sum_k w_k z_k$ with $w = C^{-1} 1 / (1^\top C^{-1} 1)$, which add up to 1 and may be
      negative, where $C_{kl}$ is the mean of $(p_k - e_y) \cdot (p_l - e_y)$ over labelled images, $p_k$ the
      prediction (T = 1) and $e_y$ the label as a vector: with these weights $\sum_k w_k p_k$ has the least
      squared error.

    An image whose label is hidden has no target but that of "general". Of one that is mixed (`train.mixup`,
    `train.cutmix`) y is the label that counts most, and the target knows nothing of the other one. Raises
    UserError for one peer, for another target and for a decay out of range.

    In the paper C is taken after every epoch, over a validation set of images drawn from the training set.
    Here it is the running average over the training batches before this one, $C \leftarrow d\, C + (1 - d)\,
    C_\text{batch}$ with d = `decay`, which nothing else reads; 0.001 of the mean of its diagonal is added to
    that, so that peers that have become the same weigh alike. That is not the paper's C: no seam sees
    validation, which is there to choose by, and what peers have said of a batch costs nothing more. Peers err
    less on images that they learn from than on others, each by its own measure: a peer that fits its batches
    best weighs most, whether or not it generalises best.

    Source: KDCL, Guo et al., CVPR 2020.
    """
    if target not in _KDCL_TARGETS:
        raise UserError(f"kdcl(target={target!r}): there is no such target{hint(target, _KDCL_TARGETS)}")
    _check_decay("kdcl", decay)
    remembers: dict[str, Any] = {}
    if target == "general":
        remembers = {"init_mem": _NoErrors(num_peers), "after": _remember_errors}
    return cohort(
        ONLINE,
        "kdcl",
        num_peers=num_peers,
        shared=shared,
        stimulus=ViewForEach(num_peers),
        aim=_KDCL_TARGETS[target],
        term=_HardAndSoft(0.0),
        reads_student=("aim",),
        hyper=(("weight", weight), ("decay", decay)),
        **remembers,
    )


def one(*, num_peers: int = 3, ramp: float = 80 / 300, weight: float = 1.0, shared: str = "most") -> Recipe:
    r"""Match an ensemble of all branches, weighed by a gate that reads what they share and is trained along.

    $$\ell = \sum_i (\mathrm{CE}(z_i) + \lambda\, r(e)\, \mathrm{KD}(z_e, z_i)) + \mathrm{CE}(z_e), \qquad
    z_e = \sum_i g_i z_i, \qquad g = \mathrm{softmax}(\mathrm{ReLU}(\mathrm{BN}(W f)))$$

    Here f [B,D] is the mean over the image of what enters the branches, $\lambda$ is `weight` and r the
    ramp-up; the gate's BatchNorm takes the statistics of the batch, and the gate is not deployed. Raises
    UserError for one peer, and where nothing is shared.

    Source: ONE, Lan et al. 2018, arXiv 1806.04606: three branches, T = 3.
    """
    check_ramp("one", ramp)
    _check_shared("one", shared)
    return cohort(
        ONLINE,
        "one",
        num_peers=num_peers,
        shared=shared,
        aim=_aim_at_gated,
        term=_HardAndSoft(ramp, ensemble=_gated),
        init_aux=_Gate(num_peers),
        reads_student=("aim",),
        needs=(ENTERING,),
        hyper=(("weight", weight),),
    )


def cl_ilr(*, num_peers: int = 2, shared: str = "most") -> Recipe:
    r"""Match the mean of the other branches' logits; their stem has the mean of their gradients, not the sum.

    $$\ell = \sum_i (\alpha\, \mathrm{CE}(z_i) + (1 - \alpha)\, \mathrm{KD}(\frac{1}{P - 1} \sum_{j \ne i}
    z_j,\, z_i)), \qquad \frac{\partial \ell}{\partial f} \leftarrow
    \frac{1}{P} \frac{\partial \ell}{\partial f}$$

    Here f is what enters the branches, and the second equation is the rescaling of the backward pass there.
    Raises UserError for one peer, and where nothing is shared.

    Source: collaborative learning with intermediate-level representation sharing, Song and Chai 2018,
    arXiv 1805.11761: alpha = 0.5, T = 2.
    """
    _check_shared("cl_ilr", shared)
    return cohort(
        PLAIN._replace(teach=SUPERVISED.teach, weigh=SUPERVISED.weigh, min_teachers=0),
        "cl_ilr",
        num_peers=num_peers,
        shared=shared,
        rescaled=True,
        aim=_aim_at_mean_of_others,
        reads_student=("aim",),
    )


def okddip(
    *, num_peers: int = 4, leader: int = 0, ramp: float = 80 / 300, weight: float = 1.0, shared: str = ""
) -> Recipe:
    r"""Match a mixture of peers that is each one's own, by attention; a leader learns from all of them.

    $$\ell_a = \mathrm{CE}(z_a) + \lambda\, r(e)\, \mathrm{KD}(\sum_b A_{ab} z_b, z_a), \qquad
    A_a = \mathrm{softmax}_b((W_q f_a) \cdot (W_k f_b))$$
    $$\ell_L = \mathrm{CE}(z_L) + \lambda\, r(e)\, \mathrm{KD}(\frac{1}{P - 1} \sum_a z_a, z_L)$$

    Here a and b are the P - 1 auxiliary peers, L is peer `leader`, which alone is deployed and whom nobody
    reads, $f_a$ [B,D] are embeddings, and both projections are to D/8 numbers. The projections learn by the
    auxiliary peers' distillation, of which they alone have the gradient by the target. $\lambda$ is `weight`
    and r the ramp-up. Raises UserError for fewer than three peers and for a leader that is none.

    Source: OKDDip, Chen et al., AAAI 2020, arXiv 1912.00350: T = 3, three auxiliary peers; its two forms are
    `shared` = "most" and "".
    """
    check_ramp("okddip", ramp)
    if num_peers == 2:
        raise UserError(
            "okddip(num_peers=2): a leader and a single peer to learn from; it must be at least 3"
        )
    return cohort(
        ONLINE,
        "okddip",
        num_peers=num_peers,
        shared=shared,
        leader=leader,
        tell=_tell_embedding,
        aim=_AttendedTarget(leader),
        term=_HardSoftAndAttention(ramp, leader),
        init_aux=_draw_projections,
        reads_student=("aim",),
        needs=("embedding",),
        hyper=(("weight", weight),),
    )


def pcl(
    *,
    num_peers: int = 3,
    decay: float = 0.999,
    ramp: float = 80 / 300,
    weight: float = 1.0,
    shared: str = "",
) -> Recipe:
    r"""Match a classifier that reads the features of all peers, and the running averages of the other peers.

    $$\ell = \mathrm{CE}(z_t) + \sum_j (\mathrm{CE}(z_j) + \lambda\, r(e)\, (\mathrm{KD}(z_t, z_j)
    + \frac{1}{P - 1} \sum_{l \ne j} \mathrm{KD}(z'_l, z_j))), \qquad z_t = W_t\, [f_1; \dots; f_P]$$

    Here $f_j$ are the embeddings, each peer sees an augmentation of its own, $z'_l$ are the logits of the
    running average of peer l on its view, made as that of `averages.mean_teacher` with `decay`, $\lambda$
    is `weight` and r the ramp-up. The average of peer 0 is deployed; what the averages of all peers say
    together, for the ensemble PCL-E of the paper, is the row "... cohort" of a report. Raises UserError for
    one peer, and for a decay or ramp out of range.

    Source: PCL, Wu and Gong 2021, arXiv 2006.04147: three branches, T = 3.
    """
    _check_decay("pcl", decay)
    check_ramp("pcl", ramp)
    return _with_averages(
        "pcl",
        num_peers,
        shared,
        ramp,
        aim=_aim_at_ensemble_and_averages,
        after=update_average,
        deploy=deploy_average,
        hyper=(("weight", weight), ("decay", decay)),
    )


def dkel(
    *,
    num_peers: int = 3,
    decay: float = 0.999,
    fading: float = 150.0,
    ramp: float = 80 / 300,
    weight: float = 0.1,
    shared: str = "",
) -> Recipe:
    r"""As `pcl`, with teachers that begin apart from the peers, and an ensemble of them that fades.

    $$\ell = \mathrm{CE}(z_t) + \sum_j (\mathrm{CE}(z_j) + \lambda\, r(e)\, (\mathrm{KD}(z_t, z_j) + w_E\,
    \mathrm{KD}(\tilde z_j, z_j) + \frac{1 - w_E}{P - 1} \sum_{l \ne j} \mathrm{KD}(z'_l, z_j)))$$

    Here $\tilde z_j$ is the mean of the logits $z'_l$ of the other peers' teachers, and
    $w_E = \exp(-\text{fading} \cdot s)$ at the share s of the training, 0 from where it is 0.01 on; 150 is
    $\exp(-0.5 e)$ of 300 epochs. A teacher is drawn on its own, and follows its peer by
    $a' \leftarrow d\, a' + (1 - d)\, a$ with d = `decay` from the first update on: it is never the peer.
    Peer 0 is deployed. Raises UserError for one peer, and for numbers out of range.

    Public code overwrites the teacher by the student in its first step, and has the ensemble at a time when
    its weight is 0; both are here as the paper states them. The two steps that this code trains the teachers
    before they are teachers are left out.

    Source: DKEL, Shao et al. 2023, arXiv 2312.11218.
    """
    _check_decay("dkel", decay)
    check_ramp("dkel", ramp)
    if fading < 0:
        raise UserError(f"dkel(fading={fading}): it must be at least 0")
    return _with_averages(
        "dkel",
        num_peers,
        shared,
        ramp,
        aim=_aim_at_fading_ensemble,
        after=_follow,
        decoupled=True,
        hyper=(("weight", weight), ("decay", decay), ("fading", fading)),
    )


def _with_averages(name: str, num_peers: int, shared: str, ramp: float, **seams: Any) -> Recipe:
    """Peers with a classifier that reads all of them, and an average of each as a teacher of the others."""
    return cohort(
        ONLINE,
        name,
        num_peers=num_peers,
        shared=shared,
        stimulus=ViewForEach(num_peers),
        tell=_tell_embedding_and_average,
        term=_HardAndSoft(ramp, ensemble=_classified_together),
        init_mem=start_average,
        own_teacher=deploy_average,
        init_aux=_Classifier(num_peers),
        reads_student=("aim",),
        needs=("embedding",),
        **seams,
    )


def ffl(*, num_peers: int = 2, weight: float = 1.0, shared: str = "") -> Recipe:
    r"""Match a classifier that reads the peers' maps fused, which itself matches the mean of the peers.

    $$\ell = \sum_k (\mathrm{CE}(z_k) + \lambda\, \mathrm{KD}(z_f, z_k)) + \mathrm{CE}(z_f)
    + \lambda\, \mathrm{KD}(\frac{1}{P} \sum_k z_k, z_f)$$

    Here $z_f$ [B,C] is a linear classifier of the mean over the image of
    $\mathrm{ReLU}(\mathrm{BN}(\mathrm{conv}_{1 \times 1}(\mathrm{conv}_{3 \times 3}(u))))$, u [B,h,w,Pd]
    are the maps of the last stage of all peers, the first convolution is depthwise, the second goes back to d
    channels, and BatchNorm takes the statistics of the batch; $\lambda$ is `weight`. Peer 0 is deployed,
    which the paper calls FFL-S. Raises UserError for one peer, and for networks without stages.

    Source: feature fusion learning, Kim et al. 2019, arXiv 1904.09058: T = 3.
    """
    return cohort(
        ONLINE,
        "ffl",
        num_peers=num_peers,
        shared=shared,
        tell=_tell_map,
        aim=_aim_at_fused,
        term=_FusedToo(),
        init_aux=_Fusion(num_peers),
        reads_student=("aim",),
        needs=("features",),
        hyper=(("weight", weight),),
    )


def ekd(*, num_peers: int = 2, weight: float = 1.0, guided_weight: float = 1.0) -> Recipe:
    r"""Match teachers that grow beside the student, in what they say at the end and after every stage.

    $$\ell_0 = \mathrm{CE}(z_0) + \frac{1}{P - 1} \sum_{t > 0} (\lambda\, \mathrm{KD}(z_t, z_0)
    + \mu \sum_s (\mathrm{KD}(c_{ts}, c_{0s}) + \mathrm{mean}_{h,w,d}\, (g_{ts} - g_{0s})^2))
    + \mu \sum_s \mathrm{CE}(c_{0s})$$
    $$\ell_t = \mathrm{CE}(z_t) + \mu \sum_s \mathrm{CE}(c_{ts}), \qquad
    g_{is} = \mathrm{ReLU}(\mathrm{BN}(\mathrm{conv}_{1 \times 1}(v_{is})))$$

    Peer 0 is the student and all others are teachers, who hear nobody. Here $v_{is}$ [B,h,w,d] is what peer i
    has after its stage s, $g_{is}$, as large, and $c_{is}$ [B,C], a linear classifier of its mean over the
    image, are the peer's guided module there, $\lambda$ is `weight` and $\mu$ is `guided_weight`. Each peer
    trains guided modules of its own, which begin alike, take the statistics of the batch and are not
    deployed. Where both weights are 0 every peer is trained by itself. Peers are whole networks of the
    student's architecture; the plan `checkpoint_bank` has teachers of another one, as they were at the same
    share of their training. Raises UserError for one peer, and for networks without stages.

    Source: evolutionary knowledge distillation, Zhang et al. 2021, arXiv 2103.13811, of whose paper the
    abstract was at hand: a teacher that is trained online and guided modules between blocks are its; the form
    of the modules, their losses and the weights are ours.
    """
    return cohort(
        ONLINE,
        "ekd",
        num_peers=num_peers,
        shared="",
        tell=_tell_guided,
        aim=_aim_at_teachers,
        term=_hard_soft_and_guided,
        init_aux=_draw_guided,
        reads_student=("aim",),
        needs=("features",),
        hyper=(("weight", weight), ("guided_weight", guided_weight)),
    )


def _check_shared(name: str, shared: str) -> None:
    if not shared:
        raise UserError(
            f"{name}(shared=''): its peers share a stem; it must be a stage of the network, or 'most'"
        )


def _check_decay(name: str, decay: float) -> None:
    if not 0 <= decay < 1:
        raise UserError(f"{name}(decay={decay}): it must be in [0, 1)")


# --- terms and targets --------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _HardAndSoft:
    """CE(z_i) + weight r KD(targets, z_i), and the CE of what `ensemble` makes of the cohort, if anything."""

    ramp: float
    ensemble: Callable[[Context], Array] | None = None

    def __call__(self, context: Context) -> Array:
        loss = hard_loss(context) + _strength(context, self.ramp) * soft_loss(context)
        if self.ensemble is None:
            return loss
        return loss + of_cohort(context, hard_loss_of(context, self.ensemble(context)))


def _strength(context: Context, ramp: float) -> Array:
    return context.hyper["weight"] * ramped_up(context.progress, ramp)


def _distance_to(context: Context, target: Array, logits: Array) -> Array:
    """KD(target, logits) [...,B] of targets [...,B,C], with a gradient by both."""
    temperature = context.hyper["temperature"]
    log_target, log_own = (jax.nn.log_softmax(z / temperature) for z in (target, logits))
    return temperature**2 * jnp.sum(jnp.exp(log_target) * (log_target - log_own), axis=-1)


def _softened(context: Context, logits: Array, mass: Array | None = None) -> Targets:
    """Targets [Q,B,C] of logits, of mass [Q] or [Q,B]; 1 unless given."""
    probs = jax.nn.softmax(logits / context.hyper["temperature"], axis=-1)
    mass = jnp.ones(len(logits), jnp.float32) if mass is None else mass
    mass = mass[:, None] if mass.ndim == 1 else mass
    return targets_of(probs, jnp.broadcast_to(mass, logits.shape[:2]))


def _cohort_logits(context: Context) -> Array:
    """Logits [P,B,C] of all peers, with the reader's own gradient."""
    return with_own(context, context.peers.logits, context.student.logits)


def _mean_of(weights: Array, told: Array) -> Array:
    """The mean [B,...] of what peers told [P,B,...] by weights [P], which need not add up to 1."""
    weights = weights / jnp.maximum(weights.sum(), 1e-12)
    return jnp.tensordot(weights, told, axes=1)


def _aim_at_mean_of_others(context: Context, w: Array) -> Targets:
    weights = others(context)
    return _softened(context, _mean_of(weights, context.peers.logits)[None], weights.sum()[None])


# --- KDCL ---------------------------------------------------------------------------------------------


def _of_labelled(context: Context, logits: Array) -> Targets:
    return _softened(context, logits[None], context.batch.labelled.astype(jnp.float32)[None])


def _at_label(context: Context, logits: Array) -> Array:
    """The label's entry [...,B,1] of logits [...,B,C]."""
    label = jnp.broadcast_to(context.batch.label[:, None], (*logits.shape[:-1], 1))
    return jnp.take_along_axis(logits, label, axis=-1)


def _aim_at_best(context: Context, w: Array) -> Targets:
    peers = context.peers
    losses = -_at_label(context, jax.nn.log_softmax(peers.logits))[..., 0]
    best = jnp.where(peers.finite[:, None], losses, jnp.inf).argmin(axis=0)
    return _of_labelled(context, jnp.take_along_axis(peers.logits, best[None, :, None], axis=0)[0])


def _aim_at_best_mixture(context: Context, w: Array) -> Targets:
    peers = context.peers
    # Who broke down takes the place of nobody: the mean of the others adds nothing to what they can mix.
    mean = _mean_of(peers.finite.astype(jnp.float32), peers.logits)
    logits = jnp.where(peers.finite[:, None, None], peers.logits, mean[None])
    a = jax.vmap(best_mixture, (1, 0))(logits, context.batch.label)
    return _of_labelled(context, jnp.einsum("bp,pbc->bc", a, logits))


def best_mixture(logits: Array, label: Array, num_steps: int = 200) -> Array:
    """a [P] on the simplex with the lowest cross-entropy of a @ logits with the label; logits [P,C]."""
    steepest = jnp.sum((logits - logits.mean(axis=1, keepdims=True)) ** 2, axis=0).max()
    size = 1.0 / jnp.maximum(steepest, 1e-6)  # the curvature is never above `steepest`

    def descend(step: Array, last_two: tuple[Array, Array]) -> tuple[Array, Array]:
        before, a = last_two
        ahead = a + step / (step + 3.0) * (a - before)
        slope = logits @ jax.nn.softmax(ahead @ logits) - logits[:, label]
        return a, project_on_capped_simplex(ahead - size * slope, 1.0)

    equal = jnp.full(len(logits), 1.0 / len(logits), jnp.float32)
    return jax.lax.fori_loop(0, num_steps, descend, (equal, equal))[1]


def _aim_at_minimum(context: Context, w: Array) -> Targets:
    peers = context.peers
    above = peers.logits - _at_label(context, peers.logits)
    lowest = jnp.where(peers.finite[:, None, None], above, jnp.inf).min(axis=0)
    return _of_labelled(context, jnp.where(jnp.isfinite(lowest), lowest, 0.0))


@dataclasses.dataclass(frozen=True)
class _NoErrors:
    num_peers: int

    def __call__(self, variables: PyTree, student: Outputs, num_examples: int) -> PyTree:
        return jnp.zeros((self.num_peers, self.num_peers), jnp.float32)


def _remember_errors(state: TrainState, context: Context) -> TrainState:
    """The state with the covariance of all peers' errors on a batch taken into the running average."""
    probs, batch, decay = jax.nn.softmax(context.peers.logits), context.batch, context.hyper["decay"]
    errors = probs - jax.nn.one_hot(batch.label, probs.shape[-1])[None]
    labelled = batch.labelled.astype(jnp.float32)
    of_batch = jnp.einsum("b,pbc,qbc->pq", labelled, errors, errors) / jnp.maximum(labelled.sum(), 1.0)
    moved = decay * state.mem + (1.0 - decay) * of_batch
    return dataclasses.replace(state, mem=jnp.where(labelled.sum() > 0, moved, state.mem))


def least_error_weights(covariance: Array, finite: Array) -> Array:
    """w [P], of sum 1, for the least error of the mixture of those that are finite [P]; alike before any."""
    heard = finite.astype(jnp.float32)
    both = heard[:, None] * heard[None, :]
    ridge = 1e-3 * jnp.trace(both * covariance) / jnp.maximum(heard.sum(), 1.0) + 1e-12
    regular = both * covariance + ridge * jnp.eye(len(finite), dtype=jnp.float32)
    w = heard * jnp.linalg.solve(regular, heard)
    return w / jnp.where(w.sum() > 0, w.sum(), 1.0)


def _aim_at_least_error(context: Context, w: Array) -> Targets:
    peers = context.peers
    weights = least_error_weights(context.state.mem, peers.finite)
    mixture = jnp.tensordot(weights, peers.logits, axes=1)
    return _softened(context, mixture[None])


_KDCL_TARGETS = {
    "naive": _aim_at_best,
    "linear": _aim_at_best_mixture,
    "minimum": _aim_at_minimum,
    "general": _aim_at_least_error,
}


# --- ONE ----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Gate:
    num_peers: int

    def __call__(self, key: Array, student: Outputs, teacher: TeacherOutputs) -> PyTree:
        entering = student.features[ENTERING]
        if isinstance(entering, tuple):
            raise UserError("online.one weighs branches by the map that enters them, and here several do")
        return _dense_and_norm(key, entering.shape[-1], self.num_peers)


def _dense_and_norm(key: Array, width: int, features: int) -> PyTree:
    kernel = jax.nn.initializers.lecun_normal()(key, (width, features), jnp.float32)
    return {
        "kernel": kernel,
        "scale": jnp.ones(features, jnp.float32),
        "bias": jnp.zeros(features, jnp.float32),
    }


def _normalised(x: Array, layer: Mapping[str, Array]) -> Array:
    """BatchNorm of x [...,D] by its own mean and variance over all axes but the last."""
    axes = tuple(range(x.ndim - 1))
    mean, variance = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    scale, bias = (layer[name].reshape(mean.shape[:-1] + (-1,)) for name in ("scale", "bias"))
    return (x - mean) / jnp.sqrt(variance + 1e-5) * scale + bias


def _gated(context: Context) -> Array:
    """z_e [B,C], with gradients by the gate, by what it reads, and by the reader's own logits."""
    entering, gate = once(context, context.student.features[ENTERING]), context.aux
    pooled = entering.mean(axis=tuple(range(1, entering.ndim - 1)))
    g = jax.nn.softmax(jax.nn.relu(_normalised(pooled @ gate["kernel"], gate)))
    return jnp.einsum("bp,pbc->bc", g, _cohort_logits(context))


def _aim_at_gated(context: Context, w: Array) -> Targets:
    return _softened(context, _gated(context)[None])


# --- OKDDip -------------------------------------------------------------------------------------------


def _tell_embedding(context: Context, networks: Networks) -> Mapping[str, Array]:
    return {"embedding": context.student.embedding}


def _draw_projections(key: Array, student: Outputs, teacher: TeacherOutputs) -> PyTree:
    width, draw = student.embedding.shape[-1], jax.nn.initializers.lecun_normal()
    query, to_key = (draw(own, (width, max(1, width // 8)), jnp.float32) for own in jax.random.split(key))
    return {"query": query, "key": to_key}


def _attended(context: Context, leader: int) -> Array:
    """Logits [P,B,C] of the target of every auxiliary peer; with a gradient by the projections alone."""
    peers = context.peers
    asks, answers = (peers.told["embedding"] @ context.aux[name] for name in ("query", "key"))
    scores = jnp.einsum("abd,cbd->bac", asks, answers)
    heard = peers.finite & (jnp.arange(len(peers.finite)) != leader)
    attention = jax.nn.softmax(scores, axis=-1, where=heard[None, None, :])
    return jnp.einsum("bac,cbk->abk", attention, peers.logits)


@dataclasses.dataclass(frozen=True)
class _AttendedTarget:
    leader: int

    def __call__(self, context: Context, w: Array) -> Targets:
        peers = context.peers
        auxiliary = (peers.finite & (jnp.arange(len(peers.finite)) != self.leader)).astype(jnp.float32)
        own = _attended(context, self.leader)[peers.place]
        logits = jnp.where(peers.place == self.leader, _mean_of(auxiliary, peers.logits), own)
        return _softened(context, logits[None], jnp.minimum(auxiliary.sum(), 1.0)[None])


@dataclasses.dataclass(frozen=True)
class _HardSoftAndAttention:
    ramp: float
    leader: int

    def __call__(self, context: Context) -> Array:
        of_attention = of_cohort(context, self._distilled(context))
        value_is_told = of_attention - jax.lax.stop_gradient(of_attention)  # in the soft losses of the peers
        return _HardAndSoft(self.ramp)(context) + value_is_told

    def _distilled(self, context: Context) -> Array:
        """What the auxiliary peers' distillation is to the projections [B]."""
        peers = context.peers
        distance = _distance_to(context, _attended(context, self.leader), peers.logits)
        learns = peers.finite & (jnp.arange(len(peers.finite)) != self.leader)
        total = jnp.where(learns[:, None], distance, 0.0).sum(axis=0)
        return _strength(context, self.ramp) * total


# --- PCL and DKEL -------------------------------------------------------------------------------------


def _tell_embedding_and_average(context: Context, networks: Networks) -> Mapping[str, Array]:
    outputs, _ = networks.student(context.state.mem, context.batch.image, train=True, key=context.key)
    return {"embedding": context.student.embedding, "average": outputs.logits}


@dataclasses.dataclass(frozen=True)
class _Classifier:
    num_peers: int

    def __call__(self, key: Array, student: Outputs, teacher: TeacherOutputs) -> PyTree:
        width, num_classes = self.num_peers * student.embedding.shape[-1], student.logits.shape[-1]
        return draw_linear(key, width, num_classes)


def _classified_together(context: Context) -> Array:
    """z_t [B,C], with gradients by the classifier and by the reader's own embedding."""
    embeddings = with_own(context, context.peers.told["embedding"], context.student.embedding)
    together = jnp.concatenate(tuple(embeddings), axis=-1)
    return linear(context.aux, together)


def _aim_at_ensemble_and_averages(context: Context, w: Array) -> Targets:
    ensemble, averages = _classified_together(context), context.peers.told["average"]
    mass = jnp.concatenate([jnp.ones(1, jnp.float32), others(context)])
    return _softened(context, jnp.concatenate([ensemble[None], averages]), mass)


def _aim_at_fading_ensemble(context: Context, w: Array) -> Targets:
    ensemble, averages, weights = (
        _classified_together(context),
        context.peers.told["average"],
        others(context),
    )
    together = _mean_of(weights, averages)
    share = faded(context.progress, context.hyper["fading"])
    mass = jnp.concatenate([jnp.stack([1.0, share * weights.sum()]), (1.0 - share) * weights])
    return _softened(context, jnp.concatenate([jnp.stack([ensemble, together]), averages]), mass)


def faded(progress: Array, fading: Array) -> Array:
    """w_E = exp(-fading progress), and 0 from 0.01 on."""
    share = jnp.exp(-fading * progress)
    return jnp.where(share > 0.01, share, 0.0)


def _follow(state: TrainState, context: Context) -> TrainState:
    return move_average(state, context, context.hyper["decay"])


# --- FFL ----------------------------------------------------------------------------------------------


def _maps(name: str, outputs: Outputs) -> dict[str, Array]:
    """The maps of all stages, from the image on, for a method that classifies what they show of an image."""
    names = stage_names(taps_of_student(outputs))
    if not names:
        raise UserError(f"online.{name} reads maps of stages, and the student names no stages")
    if outputs.logits.shape[-2] != outputs.features[names[-1]].shape[-4]:
        raise UserError(f"online.{name} says one class of an image, and here places of an image have labels")
    return {stage: outputs.features[stage] for stage in names}


def _last_map(outputs: Outputs) -> Array:
    return list(_maps("ffl", outputs).values())[-1]


def _tell_map(context: Context, networks: Networks) -> Mapping[str, Array]:
    return {"map": _last_map(context.student)}


@dataclasses.dataclass(frozen=True)
class _Fusion:
    num_peers: int

    def __call__(self, key: Array, student: Outputs, teacher: TeacherOutputs) -> PyTree:
        depth, num_classes = _last_map(student).shape[-1], student.logits.shape[-1]
        of_maps, of_layer, of_classes = jax.random.split(key, 3)
        draw, width = jax.nn.initializers.lecun_normal(), self.num_peers * depth
        return {
            "depthwise": draw(of_maps, (3, 3, 1, width), jnp.float32),
            "pointwise": _dense_and_norm(of_layer, width, depth),
            "classifier": draw_linear(of_classes, depth, num_classes),
        }


def _fused(context: Context) -> Array:
    """z_f [B,C], with gradients by the fusion and by the reader's own map."""
    maps = with_own(context, context.peers.told["map"], _last_map(context.student))
    together, fusion = jnp.concatenate(tuple(maps), axis=-1), context.aux
    x = conv(together, fusion["depthwise"], groups=together.shape[-1]) @ fusion["pointwise"]["kernel"]
    pooled = jax.nn.relu(_normalised(x, fusion["pointwise"])).mean(axis=(1, 2))
    return linear(fusion["classifier"], pooled)


def _aim_at_fused(context: Context, w: Array) -> Targets:
    return _softened(context, _fused(context)[None])


@dataclasses.dataclass(frozen=True)
class _FusedToo:
    def __call__(self, context: Context) -> Array:
        peers, fused = context.peers, _fused(context)
        mean = _mean_of(peers.finite.astype(jnp.float32), peers.logits)
        distance = _distance_to(context, mean, fused)
        of_fused = hard_loss_of(context, fused) + context.hyper["weight"] * distance
        return _HardAndSoft(0.0)(context) + of_cohort(context, of_fused)


# --- EKD ----------------------------------------------------------------------------------------------


def _draw_guided(key: Array, student: Outputs, teacher: TeacherOutputs) -> PyTree:
    stages, num_classes = _maps("ekd", student), student.logits.shape[-1]

    def of_stage(key: Array, depth: int) -> PyTree:
        of_layer, of_classes = jax.random.split(key)
        return {
            "layer": _dense_and_norm(of_layer, depth, depth),
            "classifier": draw_linear(of_classes, depth, num_classes),
        }

    keys = jax.random.split(key, len(stages))
    return {name: of_stage(own, x.shape[-1]) for own, (name, x) in zip(keys, stages.items())}


def _guided(context: Context) -> dict[str, tuple[Array, Array]]:
    """The map g [B,h,w,d] and the logits c [B,C] of the reader's guided module after every stage."""
    found = {}
    for name, x in _maps("ekd", context.student).items():
        layer, classifier = context.aux[name]["layer"], context.aux[name]["classifier"]
        guided = jax.nn.relu(_normalised(x @ layer["kernel"], layer))
        found[name] = guided, linear(classifier, guided.mean(axis=(1, 2)))
    return found


def _tell_guided(context: Context, networks: Networks) -> Mapping[str, Array]:
    told: dict[str, Array] = {}
    for name, (guided, logits) in _guided(context).items():
        told |= {f"{name} map": guided, f"{name} logits": logits}
    return told


def _teachers_of(context: Context) -> Array:
    """Weights [P] of the student's teachers, alike; 0 for all of a teacher."""
    return jnp.where(context.peers.place == 0, others(context), 0.0)


def _aim_at_teachers(context: Context, w: Array) -> Targets:
    return _softened(context, context.peers.logits, _teachers_of(context))


def _hard_soft_and_guided(context: Context) -> Array:
    told, teachers = context.peers.told, _teachers_of(context)
    of_modules = jnp.zeros(len(context.batch.label), jnp.float32)
    for name, (guided, logits) in _guided(context).items():
        apart = square(told[f"{name} map"] - guided[None]).mean(axis=(2, 3, 4))
        distance = apart + _distance_to(context, told[f"{name} logits"], logits[None])
        of_modules += hard_loss_of(context, logits) + teachers @ distance
    return _HardAndSoft(0.0)(context) + context.hyper["guided_weight"] * of_modules
