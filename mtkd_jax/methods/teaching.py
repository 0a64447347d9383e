r"""Methods by which teachers are trained to teach: without teachers of their own, see `teachers.method`.

Hard labels weigh 1, alpha and temperature play no part. As modes of `students.modes` they train students that
nobody teaches.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from mtkd_jax.methods.seams import (
    SUPERVISED,
    check_unmixed,
    deploy_params,
    hard_loss,
    hard_loss_of,
    no_predictions,
    remember_predictions,
)
from mtkd_jax.models.friendly import own_variables
from mtkd_jax.models.intermediate import is_of_classifier
from mtkd_jax.types import Array, Context, PyTree, Recipe, TrainState, UserError

EPSILON = 1e-5  # of BatchNorm, beside its variance


def soteacher(*, lipschitz: float = 1e-5, consistency: float = 1.0) -> Recipe:
    r"""Learn smoothly, and say of an image what one has said of it before, so that a student can learn it.

    $$\ell = \mathrm{CE}(z) + \lambda_c\, s \sum_c (\mathrm{softmax}(z)_c - m_c)^2 + \lambda_l R, \qquad
    R = \sum_\text{conv} \|W\|_1 + \sum_\text{BN} \max_c \frac{|\gamma_c|}{\sqrt{v_c + \epsilon}}
    + \sum_\text{dense} \max_i \sum_o |W_{io}|$$

    Here m [C] is the mean of the network's own earlier predictions of the image, whatever augmentation it
    saw, and nothing at the first time; where a batch holds an image twice it has been seen once, and its
    prediction is the mean of both. Here s is the share of the training that is over, $\lambda_l$ is
    `lipschitz`, $\lambda_c$ is `consistency`, v are running variances, i and o a dense layer's inputs and
    outputs. Every network remembers N (C + 1) numbers. Raises UserError for negative weights, and for mixed
    images, of none of which there is a prediction.

    Source: SoTeacher, Dong et al. 2022, arXiv 2206.06661.
    """
    for name, weight in (("lipschitz", lipschitz), ("consistency", consistency)):
        if weight < 0:
            raise UserError(f"soteacher({name}={weight}): it must be at least 0")
    return SUPERVISED._replace(
        name="soteacher",
        term=_hard_and_consistent,
        after=_remember_mean,
        init_mem=no_predictions,
        penalty=_weighted_bound,
        hyper=(("lipschitz", lipschitz), ("consistency", consistency)),
        alpha=1.0,
        temperature=1.0,
    )


# A classifier of a frozen network (models.intermediate) learns from labels; see the plan of that name.
CLASSIFIER = SUPERVISED._replace(name="intermediate_heads", trainable=is_of_classifier, alpha=1.0)


def _hard_and_followed(context: Context) -> Array:
    hyper, loss = context.hyper, hard_loss(context)
    log_own = jax.nn.log_softmax(context.student.logits)
    for branch in context.student.heads[1:]:
        # With a gradient by both: a teacher that can be followed says what its branches can say.
        divergence = jnp.sum(jnp.exp(log_own) * (log_own - jax.nn.log_softmax(branch)), axis=-1)
        loss += hyper["hard_weight"] * hard_loss_of(context, branch) + hyper["soft_weight"] * divergence
    return loss


def _deploy_teacher(state: TrainState, hyper: Mapping[str, Array]) -> PyTree:
    return own_variables(deploy_params(state, hyper))


# A network with branches (models.friendly), of which it alone is kept; see the plan `student_friendly`.
FOLLOWED = SUPERVISED._replace(
    name="student_friendly",
    term=_hard_and_followed,
    deploy=_deploy_teacher,
    hyper=(("hard_weight", 1.0), ("soft_weight", 3.0)),
    alpha=1.0,
)


def _hard_and_consistent(context: Context) -> Array:
    rows, memory = context.batch.index, context.state.mem
    distance = jnp.sum((jax.nn.softmax(context.student.logits) - memory["rows"][rows]) ** 2, axis=-1)
    weight = context.hyper["consistency"] * context.progress
    return hard_loss(context) + weight * jnp.where(memory["num_seen"][rows] > 0, distance, 0.0)


def _remember_mean(state: TrainState, context: Context) -> TrainState:
    check_unmixed("teaching.soteacher", context.batch)
    return remember_predictions(
        state, context, lambda before, now, num_seen: before + (now - before) / num_seen[:, None]
    )


def _weighted_bound(state: TrainState, hyper: Mapping[str, Array]) -> Array:
    return hyper["lipschitz"] * lipschitz_bound(state.params, state.model_state.get("batch_stats", {}))


def lipschitz_bound(params: PyTree, batch_stats: PyTree) -> Array:
    """R of `soteacher` [], over kernels [...,d] of convolutions, [i,o] of dense layers, and scales [C] of BN.

    The heads' kernel [H,i,o] is H dense layers; other parameters have no part in it.
    """
    variance_of = {path[:-1]: leaf for path, leaf in _leaves(batch_stats) if path[-1] == "var"}
    total = jnp.zeros((), jnp.float32)
    for path, leaf in _leaves(params):
        if path[-1] == "kernel" and path[0] == "heads":
            total += jnp.abs(leaf).sum(axis=-1).max(axis=-1).sum()
        elif path[-1] == "kernel":
            total += jnp.abs(leaf).sum(axis=-1).max() if leaf.ndim == 2 else jnp.abs(leaf).sum()
        elif path[-1] == "scale" and path[:-1] in variance_of:
            variance = jax.lax.stop_gradient(variance_of[path[:-1]])
            total += (jnp.abs(leaf) / jnp.sqrt(variance + EPSILON)).max()
    return total


def _leaves(tree: PyTree) -> list[tuple[tuple[str, ...], Array]]:
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    return [(tuple(str(entry.key) for entry in path), leaf) for path, leaf in found]
