"""The Transformer: size by hand, an independent forward pass, what a place may see, one-line errors."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax.data import tokens
from mtkd_jax.engine import population
from mtkd_jax.engine.population import over_members
from mtkd_jax.models.transformer import positions, transformer
from mtkd_jax.types import Task, UserError

TASK = Task(num_classes=5, num_heads=1, mean=(0.0,), std=(1.0,))
SMALL = dict(width=8, depth=1, attention_heads=2, source_tokens=7)
SOURCES, TARGETS = [[2, 3, 4], [6, 2], [5]], [[1, 2], [3, 4, 1, 2], []]


def pairs(length=6):
    images, _ = tokens.lay_out(SOURCES, TARGETS, length)
    return jnp.asarray(images)


def drawn(model, x, scale=0.5):
    """Variables with every entry drawn by NumPy, nothing to compile."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), x)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(scale=scale, size=leaf.shape), leaf.dtype), shapes
    )


def test_parameter_count_by_hand():
    d, tables = 64, (256 + 40) * 64
    attention, dense, norm = 4 * d * d, d * 4 * d + 4 * d + 4 * d * d + d, 2 * d
    encoder = 2 * (attention + dense + 2 * norm) + norm
    decoder = 2 * (2 * attention + dense + 3 * norm) + norm
    shapes = jax.eval_shape(
        transformer(TASK._replace(num_classes=40)).init, jax.random.key(0), jnp.zeros((1, 2, 9, 1))
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    assert count == tables + encoder + decoder + 40 * d + 40


# --- an independent forward pass ----------------------------------------------------------------------


def softmax(x):
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def normed(x, p):
    x = x - x.mean(axis=-1, keepdims=True)
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6) * p["scale"] + p["bias"]


def attended(x, values, p):
    """One sequence [n,d] that looks at another [m,d]: head by head, place by place."""
    found = 0.0
    for head in range(p["query"]["kernel"].shape[1]):
        query, key, value = (
            rows @ p[name]["kernel"][:, head]
            for name, rows in (("query", x), ("key", values), ("value", values))
        )
        share = softmax(query @ key.T / np.sqrt(query.shape[-1]))
        found = found + share @ value @ p["out"]["kernel"][head]
    return found


def dense(x, p):
    return x @ p["kernel"] + p["bias"]


def expected_logits(p, source, target_row, depth=1):
    """Logits at the last place of `target_row`, of unpadded sequences: nothing is masked because nothing
    that may not be seen is there."""
    width = p["heads"]["kernel"].shape[1]

    def embedded(numbers, table):
        return table[numbers] * np.sqrt(width) + positions(len(numbers), width).astype(np.float64)

    x = embedded(source, p["source_tokens"]["embedding"])
    for n in range(1, depth + 1):
        own = normed(x, p[f"encoder_block{n}_self_norm"])
        x = x + attended(own, own, p[f"encoder_block{n}_self"])
        hidden = np.maximum(dense(normed(x, p[f"encoder_block{n}_norm"]), p[f"encoder_block{n}_dense1"]), 0)
        x = x + dense(hidden, p[f"encoder_block{n}_dense2"])
    encoded = normed(x, p["encoder_norm"])
    states = [embedded(target_row, p["target_tokens"]["embedding"])]
    for n in range(1, depth + 1):
        y, name = states[-1], f"decoder_block{n}"
        own = normed(y, p[f"{name}_self_norm"])
        # one place after the other, each of what stands up to it
        y = y + np.stack(
            [attended(own[t : t + 1], own[: t + 1], p[f"{name}_self"])[0] for t in range(len(y))]
        )
        y = y + attended(normed(y, p[f"{name}_cross_norm"]), encoded, p[f"{name}_cross"])
        y = y + dense(
            np.maximum(dense(normed(y, p[f"{name}_norm"]), p[f"{name}_dense1"]), 0), p[f"{name}_dense2"]
        )
        states.append(y)
    embedding = normed(states[-1], p["decoder_norm"])
    return embedding @ p["heads"]["kernel"][0] + p["heads"]["bias"][0]


def test_equals_numpy_on_sequences_without_padding():
    model, x = transformer(TASK, **SMALL), pairs()
    variables = drawn(model, x)
    got = jax.jit(model.apply)(variables, x)[0]
    assert got.logits.shape == (3, 6, 5) and got.heads.shape == (1, 3, 6, 5)
    assert got.embedding.shape == (3, 6, 8)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables["params"])
    for row, (source, target) in enumerate(zip(SOURCES, TARGETS)):
        read = [tokens.END, *target]
        np.testing.assert_allclose(
            got.logits[row, : len(read)], expected_logits(p, source, read), rtol=2e-4, atol=2e-4
        )


def test_positions_by_hand():
    found = positions(3, 4)
    angles = np.array([[0, 0], [1, 0.01], [2, 0.02]])
    np.testing.assert_allclose(found[:, ::2], np.sin(angles), rtol=1e-6)
    np.testing.assert_allclose(found[:, 1::2], np.cos(angles), rtol=1e-6)


# --- what a place sees --------------------------------------------------------------------------------


def test_a_place_sees_nothing_of_the_target_behind_it_and_nothing_behind_the_end_of_the_source():
    model, x = transformer(TASK, **SMALL), pairs()
    variables = drawn(model, x)
    apply = jax.jit(model.apply)
    before = apply(variables, x)[0]
    later = apply(variables, x.at[:, 1, 3:].set(4.0))[0].logits
    np.testing.assert_array_equal(before.logits[:, :3], later[:, :3])
    assert not np.array_equal(before.logits[:, 3:], later[:, 3:])
    longer = jnp.concatenate([x, jnp.zeros((3, 2, 4, 1))], axis=2)
    np.testing.assert_allclose(apply(variables, longer)[0].logits[:, :6], before.logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(before.features["stage1"][1, 0, 2:], 0.0)
    assert np.all(np.abs(before.features["stage1"][1, 0, :2]).sum(axis=-1) > 0)


def test_numbers_that_the_table_lacks_are_the_unknown_token():
    model, x = transformer(TASK, **SMALL), pairs()
    variables = drawn(model, x)
    apply = jax.jit(lambda x: model.apply(variables, x)[0].logits)
    unknown = apply(x.at[:, 0, 0].set(float(tokens.UNKNOWN)))
    np.testing.assert_array_equal(apply(x.at[:, 0, 0].set(7.0)), unknown)
    assert not np.array_equal(apply(x), unknown)


def test_several_heads_dropout_and_bfloat16():
    model = transformer(TASK._replace(num_heads=3), **SMALL, dropout=0.5, dtype="bfloat16")
    x = pairs()
    variables = drawn(model, x, 0.1)

    def loss(params, key):
        got, state = model.apply({"params": params}, x, train=True, key=key)
        return jnp.square(got.logits).mean(), (got, state)

    step = jax.jit(jax.grad(loss, has_aux=True))
    gradients, (got, state) = step(variables["params"], jax.random.key(1))
    _, (other, _) = step(variables["params"], jax.random.key(2))
    assert got.heads.shape == (3, 3, 6, 5) and state == {}
    log_mean = np.log(np.mean(softmax(np.asarray(got.heads, np.float64)), axis=0))
    np.testing.assert_allclose(softmax(np.asarray(got.logits, np.float64)), np.exp(log_mean), rtol=1e-4)
    assert not np.array_equal(got.logits, other.logits)
    leaves = jax.tree.leaves((variables, got, gradients))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("float32")}
    assert all(np.isfinite(leaf).all() for leaf in leaves)


# --- one-line errors ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, said",
    [
        (dict(width=10), "transformer.width = 10: expected a multiple of attention_heads = 4"),
        (dict(depth=0), "transformer.depth = 0: expected a whole number >= 1"),
        (dict(source_tokens=0), "transformer.source_tokens = 0: expected a whole number >= 1"),
        (dict(dropout=1.0), r"transformer.dropout = 1.0: expected a number in \[0, 1\)"),
    ],
)
def test_arguments_out_of_range(arguments, said):
    with pytest.raises(UserError, match=said):
        transformer(TASK, **arguments)


def test_pictures_are_refused():
    with pytest.raises(
        UserError, match="images of 8x8x3 are no pairs of sequences: transformer expects 2xLx1"
    ):
        jax.eval_shape(transformer(TASK).init, jax.random.key(0), jnp.zeros((1, 8, 8, 3)))


def test_members_learn_the_same_together_and_one_after_the_other():
    model, x = transformer(TASK, **SMALL), pairs()
    drawn_twice = [drawn(model, x), jax.tree.map(jnp.negative, drawn(model, x))]

    def gradient(variables, x):
        return jax.grad(lambda own: jnp.square(model.apply(own, x)[0].logits).mean())(variables)

    found, expected = (
        jax.jit(over_members(gradient, loop))(population.stack(drawn_twice), x) for loop in ("map", "vmap")
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * np.abs(b).max()), found, expected
    )
