"""Optimisers and schedules against their papers' equations in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax import addresses, optimizers, validation
from mtkd_jax import config as configuration
from mtkd_jax.types import Task, UserError

RATE, DECAY, STEPS = 0.05, 0.3, 6


def sgd(gradient, w, momentum=0.9, nesterov=True):
    velocity = np.zeros_like(w)
    for t in range(STEPS):
        g = gradient(t, w) + DECAY * w
        velocity = momentum * velocity + g
        w = w - RATE * (g + momentum * velocity if nesterov else velocity)
    return w


def adam_like(length):
    """Adam with decoupled decay; `length(w, step)` is what a step is multiplied by beside the rate."""

    def run(gradient, w, b1=0.9, b2=0.999, eps=1e-8):
        m = v = np.zeros_like(w)
        for t in range(STEPS):
            g = gradient(t, w)
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            step = (m / (1 - b1 ** (t + 1))) / (np.sqrt(v / (1 - b2 ** (t + 1))) + eps) + DECAY * w
            w = w - RATE * length(w, step) * step
        return w

    return run


adamw = adam_like(lambda w, step: 1.0)
lamb = adam_like(lambda w, step: np.linalg.norm(w) / np.linalg.norm(step))


def lion(gradient, w, b1=0.9, b2=0.99):
    m = np.zeros_like(w)
    for t in range(STEPS):
        g = gradient(t, w)
        w, m = w - RATE * (np.sign(b1 * m + (1 - b1) * g) + DECAY * w), b2 * m + (1 - b2) * g
    return w


def schedule_free_sgd(gradient, w, b1=0.8):
    """Defazio et al. 2024, equations 1 to 3, equal weights for a constant rate; returns the average x."""
    x = z = w
    for t in range(STEPS):
        y = (1 - b1) * z + b1 * x
        z = z - RATE * (gradient(t, y) + DECAY * y)
        x = x + (z - x) / (t + 1)
    return x


@pytest.mark.parametrize(
    "address, reference",
    [
        ("sgd", sgd),
        ("sgd(nesterov=False)", lambda g, w: sgd(g, w, nesterov=False)),
        ("sgd(momentum=0.0)", lambda g, w: sgd(g, w, momentum=0.0, nesterov=False)),
        ("adam", adamw),
        ("adamw(b1=0.8, b2=0.95)", lambda g, w: adamw(g, w, b1=0.8, b2=0.95)),
        ("lamb", lambda g, w: lamb(g, w, eps=1e-6)),
        ("lion", lion),
        ("schedule_free(base='sgd', b1=0.8)", schedule_free_sgd),
    ],
)
def test_optimisers_are_their_papers(address, reference):
    """Some steps down a bowl whose gradient also moves; rate and decay traced, other ones for each member."""
    optimizer = addresses.build("optimizer", address, "train.optimizer")
    begin, scale = np.array([[1.0, -2.0, 0.5]]), np.array([[1.0, 3.0, 0.2]])
    gradient = lambda t, w: scale * w + np.sin(t)  # noqa: E731

    @jax.jit
    def run(rate, decay):
        w = jnp.asarray(begin, jnp.float32)
        state = optimizer(rate, decay).init(w)
        for t in range(STEPS):
            g = jnp.asarray(scale, jnp.float32) * w + jnp.float32(np.sin(t))
            with jax.numpy_dtype_promotion("standard"):
                updates, state = optimizer(rate, decay).update(g, state, w)
                w = w + updates
        with jax.numpy_dtype_promotion("standard"):
            return optimizer.averaged(state, w)

    rates, decays = jnp.array([RATE, 0.0]), jnp.array([DECAY, DECAY])
    found = jax.vmap(run)(rates, decays)
    np.testing.assert_allclose(found[0], reference(gradient, begin), rtol=2e-5)
    np.testing.assert_allclose(found[1], begin, rtol=1e-6)  # without a rate nothing moves


def test_muon_makes_the_steps_of_matrices_orthogonal_and_leaves_the_rest_to_adam():
    """Of a network as it is here: heads are [H,D,C] with biases [H,C], which are no matrices."""
    optimizer = addresses.build("optimizer", "muon", "train.optimizer")
    task = Task(num_classes=3, num_heads=2, mean=(0.0,), std=(1.0,))
    network = addresses.build_model("mlp(hidden=(5,))", task)
    params = network.init(jax.random.key(0), jnp.zeros((1, 2, 2, 1)))["params"]
    gradient = jax.tree.map(lambda leaf: jax.random.normal(jax.random.key(1), leaf.shape), params)
    with jax.numpy_dtype_promotion("standard"):
        transform = optimizer(0.1, 0.0)
        updates, _ = transform.update((gradient, {}), transform.init((params, {})), (params, {}))
    updates = updates[0]
    kernel = updates["dense1"].pop("kernel")
    lengths = np.linalg.svd(kernel, compute_uv=False)
    assert lengths.min() / lengths.max() > 0.6
    assert np.linalg.cond(gradient["dense1"].pop("kernel")) > 2
    first = 1 + 0.9 * 0.1 / (1 - 0.9**2)  # step of Adam with Nesterov momentum, in units of the rate
    jax.tree.map(
        lambda update, of: np.testing.assert_allclose(update, -0.01 * first * np.sign(of), rtol=1e-3),
        updates,
        gradient,
    )


def test_they_are_jit_keys_by_value():
    for kind in ("optimizer", "schedule"):
        for address in addresses.catalogue(kind):
            one, other = (addresses.build(kind, address, "train") for _ in range(2))
            assert one == other and hash(one) == hash(other)
    assert len({optimizers.sgd(), optimizers.sgd(momentum=0.8), optimizers.adam()}) == 3


HALF_COSINE = lambda p: 0.5 + 0.5 * np.cos(np.pi * p)  # noqa: E731


@pytest.mark.parametrize(
    "address, factor",
    [
        ("constant", lambda p: 1.0),
        ("cosine", HALF_COSINE),
        ("cosine(end=0.2)", lambda p: 0.2 + 0.8 * HALF_COSINE(p)),
        ("linear", lambda p: 1 - p),
        ("linear(start=0.5, end=1.0)", lambda p: 0.5 + 0.5 * p),
        ("sawtooth", lambda p: 1 - 2 * p if p < 0.5 else 2 - 2 * p if p < 1 else 1),
        ("triangular(peak=0.5, start=0.1, end=0.1)", lambda p: 0.1 + 0.9 * (1 - abs(2 * p - 1))),
        ("steps", lambda p: 0.1 ** ((p >= 0.625) + (p >= 0.75) + (p >= 0.875))),
        ("steps(at=(0.5,), factor=0.0)", lambda p: float(p < 0.5)),
        (
            "triangular(peak=0.25, start=0.2, end=0.1)",
            lambda p: 0.2 + 3.2 * p if p < 0.25 else 0.1 + 1.2 * (1 - p),
        ),
        (
            "one_cycle(peak=0.25, start=0.1, end=0.01)",
            lambda p: (
                1 - 0.9 * HALF_COSINE(4 * p) if p < 0.25 else 0.01 + 0.99 * HALF_COSINE((p - 0.25) / 0.75)
            ),
        ),
    ],
)
def test_schedules_are_their_formulas(address, factor):
    schedule = addresses.build("schedule", address, "train.schedule")
    points = [0.0, 0.1, 0.25, 0.4, 0.5, 0.625, 0.7, 0.75, 0.875, 0.999]
    found = [schedule(jnp.float32(point)) for point in points]
    np.testing.assert_allclose(found, [factor(point) for point in points], atol=2e-6)


def test_a_warm_up_rises_from_the_first_step_and_the_schedule_takes_over():
    factors = [optimizers.warmed_up(optimizers.linear(), 0.4, jnp.int32(step), 10) for step in range(10)]
    rest = [1 - step / 6 for step in range(6)]
    np.testing.assert_allclose(factors, [0.25, 0.5, 0.75, 1.0, *rest], rtol=1e-5)


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("train.optimizer", "adan", "there is no optimizer 'adan'; did you mean 'adam'"),
        ("train.optimizer", "schedule_free(base='lion')", "must be adamw or sgd"),
        ("train.optimizer", "schedule_free(b1=0.0)", "must be between 0 and 1"),
        ("train.optimizer", "adamw(b2=1.0)", r"adamw\(b2=1.0\): must be in \[0, 1\)"),
        ("train.schedule", "cosine(end=2.0)", r"cosine\(end=2.0\): must lie in \[0, 1\]"),
        ("train.schedule", "steps(at=(0.5, 0.2))", "must be rising shares"),
        (
            "train.schedule",
            "triangular(peak=0.0)",
            r"triangular\(peak=0.0\): must be a share of the training",
        ),
        ("train.schedule", "sawtooth(teeth=0)", r"sawtooth\(teeth=0\): must be at least 1"),
        ("train.schedule", "triangular(end=2.0)", r"triangular\(end=2.0\): must lie in \[0, 1\]"),
        ("students.alpha_schedule", "one_cycle(peak=1.0)", "config.students.alpha_schedule: one_cycle"),
        ("train.warmup", 1.0, r"train.warmup: 1.0 is not possible; it must be in \[0, 1\)"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(field, value, said):
    config = configuration.default()
    *groups, name = field.split(".")
    config[groups[0]][name] = value
    with pytest.raises(UserError, match=said):
        validation.validate(config)


def test_two_averages_are_refused():
    config = configuration.default()
    config.train.optimizer, config.train.ema_decay = "schedule_free", 0.99
    with pytest.raises(UserError, match="ema_decay: schedule_free averages the weights itself"):
        validation.validate(config)
