r"""Dual policy distillation: two learners on a pendulum that teach each other, against the same two apart.

    python examples/control/dual_policy.py [SEEDS] [STEPS]

Each learns by DDPG from its own steps. With distillation it also moves its policy towards that of its peer,
on states that the peer has been in, most where the peer's critic thinks more of them than its own does:

$$\ell = \sum_b \omega_b\, (\pi(s_b) - \pi'(s_b))^2, \qquad
\omega_b \propto \mathrm{clip}(e^{\alpha (Q'(s_b, \pi'(s_b)) - Q(s_b, \pi'(s_b)))}, 0.01, 100)$$

Both conditions have the same seeds, initial weights, noise and numbers of steps: differences are paired.
Source: Lai et al. 2020, arXiv 2006.04061, in its DDPG form: alpha = 0.75, distillation at a rate of 1e-4.
"""

from __future__ import annotations

import sys
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mtkd_jax.results import intervals

EPISODE, BATCH, WIDTH, DISCOUNT, FOLLOW = 200, 32, 32, 0.98, 0.01
STRONGEST, FASTEST, NOISE, RANDOM_STEPS = 2.0, 8.0, 0.3, 400
ACTOR, CRITIC, DISTIL = optax.adam(1e-3), optax.adam(2e-3), optax.adam(1e-4)


# --- the pendulum -------------------------------------------------------------------------------------


def begin(key: jax.Array) -> jax.Array:
    """(angle, speed) [2], anywhere and slow; at angle 0 the pendulum stands."""
    return jax.random.uniform(key, (2,), minval=-1.0, maxval=1.0) * jnp.array([jnp.pi, 1.0])


def swing(state: jax.Array, torque: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The next (angle, speed) after 0.05 s of a rod of 1 m and 1 kg under 10 m/s2, and the reward."""
    angle, speed = state
    away = (angle + jnp.pi) % (2 * jnp.pi) - jnp.pi
    reward = -(away**2 + 0.1 * speed**2 + 0.001 * torque**2)
    speed = jnp.clip(speed + 0.05 * (15.0 * jnp.sin(angle) + 3.0 * torque), -FASTEST, FASTEST)
    return jnp.stack([angle + 0.05 * speed, speed]), reward


def seen(state: jax.Array) -> jax.Array:
    """What a learner sees of a state [...,2]: [...,3]."""
    angle, speed = state[..., 0], state[..., 1]
    return jnp.stack([jnp.cos(angle), jnp.sin(angle), speed / FASTEST], axis=-1)


# --- learners -----------------------------------------------------------------------------------------


class Learner(NamedTuple):
    """One learner; two of them lead with an axis of 2."""

    actor: dict
    critic: dict
    late_actor: dict  # the targets of DDPG, which follow slowly
    late_critic: dict
    opt: tuple  # of actor, critic, and of the actor when it distils
    pendulum: jax.Array  # [2]
    memory: dict  # {"state": [S,3], "action": [S], "reward": [S], "next": [S,3]}


def draw(key: jax.Array, num_inputs: int) -> dict:
    """A network with two hidden layers."""
    widths = (num_inputs, WIDTH, WIDTH, 1)
    init = jax.nn.initializers.lecun_normal()
    pairs = zip(jax.random.split(key, 3), zip(widths, widths[1:]))
    return {str(n): (init(own, shape), jnp.zeros(shape[1])) for n, (own, shape) in enumerate(pairs)}


def run(network: dict, x: jax.Array) -> jax.Array:
    """[...] of inputs [...,D]."""
    for n, (kernel, bias) in sorted(network.items()):
        x = (jax.nn.relu(x) if int(n) else x) @ kernel
        x = x + jnp.broadcast_to(bias, x.shape)
    return x[..., 0]


def act(actor: dict, state: jax.Array) -> jax.Array:
    """The torque [...] in a state [...,3]."""
    return STRONGEST * jnp.tanh(run(actor, state))


def value(critic: dict, state: jax.Array, action: jax.Array) -> jax.Array:
    """Q [...] of a state [...,3] and an action [...]."""
    return run(critic, jnp.concatenate([state, action[..., None]], axis=-1))


def new_learner(key: jax.Array, num_steps: int) -> Learner:
    """A learner that knows nothing."""
    of_actor, of_critic, of_pendulum = jax.random.split(key, 3)
    actor, critic = draw(of_actor, 3), draw(of_critic, 4)
    memory = {name: jnp.zeros((num_steps, 3)) for name in ("state", "next")}
    memory |= {name: jnp.zeros(num_steps) for name in ("action", "reward")}
    opt = (ACTOR.init(actor), CRITIC.init(critic), DISTIL.init(actor))
    return Learner(actor, critic, actor, critic, opt, begin(of_pendulum), memory)


def move(learner: Learner, key: jax.Array, step: jax.Array) -> Learner:
    """A step in the pendulum, remembered; a new one begins after every episode."""
    of_noise, of_lot, of_begin = jax.random.split(key, 3)
    state = seen(learner.pendulum)
    torque = act(learner.actor, state) + NOISE * STRONGEST * jax.random.normal(of_noise)
    torque = jnp.clip(torque, -STRONGEST, STRONGEST)
    lot = jax.random.uniform(of_lot, (), minval=-STRONGEST, maxval=STRONGEST)
    torque = jnp.where(step < RANDOM_STEPS, lot, torque)
    pendulum, reward = swing(learner.pendulum, torque)
    found = {"state": state, "action": torque, "reward": reward, "next": seen(pendulum)}
    memory = {name: learner.memory[name].at[step].set(one) for name, one in found.items()}
    ends = (step + 1) % EPISODE == 0  # by the clock: what follows is as good as before
    return learner._replace(memory=memory, pendulum=jnp.where(ends, begin(of_begin), pendulum))


def learn(learner: Learner, batch: dict) -> Learner:
    """An update of critic and actor by DDPG, Lillicrap et al. 2016, arXiv 1509.02971."""
    state, after = batch["state"], batch["next"]
    wanted = batch["reward"] + DISCOUNT * value(learner.late_critic, after, act(learner.late_actor, after))
    slope = jax.grad(lambda critic: jnp.mean((value(critic, state, batch["action"]) - wanted) ** 2))
    critic, of_critic = _apply(CRITIC, slope(learner.critic), learner.opt[1], learner.critic)
    slope = jax.grad(lambda actor: -jnp.mean(value(critic, state, act(actor, state))))
    actor, of_actor = _apply(ACTOR, slope(learner.actor), learner.opt[0], learner.actor)
    follow = partial(jax.tree.map, lambda late, now: (1 - FOLLOW) * late + FOLLOW * now)
    return learner._replace(
        actor=actor,
        critic=critic,
        late_actor=follow(learner.late_actor, actor),
        late_critic=follow(learner.late_critic, critic),
        opt=(of_actor, of_critic, learner.opt[2]),
    )


def weights(gap: jax.Array, alpha: float = 0.75) -> jax.Array:
    """omega [B], of sum 1, of how much more [B] the peer thinks of what it would do."""
    omega = jnp.clip(jnp.exp(alpha * gap), 0.01, 100.0)
    return omega / omega.sum()


def distil(learner: Learner, actor: dict, critic: dict, state: jax.Array, share: jax.Array) -> Learner:
    """An update of the actor towards a peer's on states [B,3] of this; with a share of 0 nothing moves."""
    wanted = act(actor, state)
    omega = weights(value(critic, state, wanted) - value(learner.critic, state, wanted))
    slope = jax.grad(lambda own: jnp.sum(omega * (act(own, state) - wanted) ** 2))(learner.actor)
    moved, of_distil = _apply(DISTIL, slope, learner.opt[2], learner.actor)
    kept = jax.tree.map(lambda new, old: old + share * (new - old), moved, learner.actor)
    return learner._replace(actor=kept, opt=(*learner.opt[:2], of_distil))


def _apply(optimizer, slope, opt, network):
    updates, opt = optimizer.update(slope, opt, network)
    return optax.apply_updates(network, updates), opt


# --- the experiment -----------------------------------------------------------------------------------


def train(key: jax.Array, share: jax.Array, num_steps: int) -> Learner:
    """Two learners after so many steps each; share 1: they distil, 0: they do not."""

    def one_step(both: Learner, step: jax.Array) -> tuple[Learner, None]:
        of_moves, of_batches = jax.random.split(jax.random.fold_in(key, step))
        both = jax.vmap(move, (0, 0, None))(both, jax.random.split(of_moves, 2), step)
        rows = jax.random.randint(of_batches, (2, BATCH), 0, step + 1)
        batches = jax.vmap(lambda memory, own: {name: leaf[own] for name, leaf in memory.items()})(
            both.memory, rows
        )
        both = jax.vmap(learn)(both, batches)
        peer = jax.tree.map(lambda leaf: leaf[::-1], (both.actor, both.critic, batches["state"]))
        return jax.vmap(distil, (0, 0, 0, 0, None))(both, *peer, share), None

    both = jax.vmap(partial(new_learner, num_steps=num_steps))(jax.random.split(key, 2))
    return jax.lax.scan(one_step, both, jnp.arange(num_steps))[0]


def returns(actor: dict, num_episodes: int = 10) -> jax.Array:
    """The mean return over episodes that begin alike for everybody, without noise."""

    def episode(pendulum: jax.Array) -> jax.Array:
        step = lambda state, _: swing(state, act(actor, seen(state)))  # noqa: E731
        return jax.lax.scan(step, pendulum, None, EPISODE)[1].sum()

    return jax.vmap(episode)(jax.vmap(begin)(jax.random.split(jax.random.key(1), num_episodes))).mean()


def compare(num_seeds: int, num_steps: int) -> dict:
    """Mean returns {"dual", "apart"} [seeds] of two learners each, and the paired test of these."""

    @jax.jit
    @partial(jax.vmap, in_axes=(0, None))
    @partial(jax.vmap, in_axes=(None, 0))
    def of_both(key: jax.Array, share: jax.Array) -> jax.Array:
        return jax.vmap(returns)(train(key, share, num_steps).actor).mean()

    found = np.asarray(of_both(jax.random.split(jax.random.key(0), num_seeds), jnp.array([1.0, 0.0])))
    dual, apart = found.T
    return {"dual": dual, "apart": apart, **intervals.paired_t(dual, apart)}


def main(num_seeds: int = 8, num_steps: int = 6000) -> None:
    """Print what came of it."""
    found = compare(num_seeds, num_steps)
    low, high = found["ci95"]
    verdict = "dual is better" if low > 0 else "apart is better" if high < 0 else "not told apart"
    print(
        f"mean return after {num_steps} steps each: dual {found['dual'].mean():.0f}, apart "
        f"{found['apart'].mean():.0f}; dual - apart {found['mean_difference']:+.0f} "
        f"[{low:+.0f}, {high:+.0f}] over {num_seeds} seeds, p = {found['p_value']:.3f}: {verdict}"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
