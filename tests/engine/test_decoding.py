"""Searches find what an exhaustive and an independent one find; networks go on together from one prefix."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax.data import tokens
from mtkd_jax.engine import decoding, population
from mtkd_jax.models.decoding import search
from mtkd_jax.models.transformer import transformer
from mtkd_jax.tasks.tokens import say as say_greedily
from mtkd_jax.types import Population, Task
from tests.references import sequences as reference

C, L = 3, 4
RNG = np.random.default_rng(3)
OF_PLACE, OF_TOKEN, OF_SOURCE = (RNG.normal(scale=1.5, size=size) for size in ((L, C), (L, C, C), (5, C)))


def say(images, place):
    """Made up: what comes next depends on place, source and every token before."""
    source, target = (images[:, row, :, 0].astype(jnp.int32) for row in (0, 1))
    before = jnp.arange(L) <= place
    of_tokens = jnp.asarray(OF_TOKEN, jnp.float32)[jnp.arange(L)[None], target]
    logits = jnp.where(before[None, :, None], of_tokens, 0.0).sum(axis=1)
    of_source = jnp.asarray(OF_SOURCE, jnp.float32)[source[:, 0]]
    return jax.nn.log_softmax(logits + jnp.asarray(OF_PLACE, jnp.float32)[place][None] + of_source)


def say_one(source, prefix):
    """The same of one source and one prefix, in float64."""
    read = (tokens.END, *prefix)
    logits = (
        OF_PLACE[len(prefix)] + OF_SOURCE[source] + sum(OF_TOKEN[t][token] for t, token in enumerate(read))
    )
    return logits - np.logaddexp.reduce(logits)


def found(num_beams, sources=range(5)):
    rows = np.zeros((len(sources), L), np.int32)
    rows[:, 0] = sources
    labels, log_prob = jax.jit(lambda rows: search(say, rows, num_beams))(rows)
    return [
        [(float(p), tokens.sequence_of(np.asarray(label))) for p, label in zip(ps, own) if p > -np.inf]
        for ps, own in zip(log_prob, labels)
    ]


def assert_same(got, expected):
    assert [target for _, target in got] == [target for _, target in expected]
    np.testing.assert_allclose([p for p, _ in got], [p for p, _ in expected], rtol=1e-4, atol=1e-5)


def test_a_beam_as_wide_as_all_there_is_finds_all_there_is():
    every = (C - 1) ** np.arange(L)  # targets of 0, 1, ... tokens
    beyond, _ = search(say, np.zeros((1, L), np.int32), 40)
    np.testing.assert_array_equal(beyond[0, 15:], np.repeat(beyond[0, :1], 25, axis=0))
    for source, got in enumerate(found(num_beams=40)):
        assert len(got) == every.sum() == 15
        assert_same(got, reference.exhaustive(say_one, source, C, L))
        assert np.exp([p for p, _ in got]).sum() < 1  # what would go on beyond the last place is lost


@pytest.mark.parametrize("num_beams", [1, 2, 3])
def test_a_beam_finds_what_an_independent_one_does(num_beams):
    for source, got in enumerate(found(num_beams)):
        assert_same(got, reference.beam(say_one, source, C, L, num_beams))


def test_these_made_up_problems_tell_the_searches_apart():
    best = [reference.exhaustive(say_one, source, C, L)[0][1] for source in range(5)]
    first = {k: [own[0][1] for own in found(k)] for k in (1, 3)}
    assert first[1] != best  # greedy misses some
    assert sum(a == b for a, b in zip(first[3], best)) > sum(a == b for a, b in zip(first[1], best))


# --- networks -----------------------------------------------------------------------------------------

TASK = Task(num_classes=C, num_heads=1, mean=(0.0,), std=(1.0,))
SMALL = dict(width=8, depth=1, attention_heads=2, source_tokens=6)


@pytest.fixture(scope="module")
def networks():
    model = transformer(TASK, **SMALL)
    variables = population.init(model, jax.random.split(jax.random.key(0), 3), (2, L, 1))
    variables = jax.tree.map(lambda leaf: 4 * leaf, variables)  # so that they are sure of something
    return Population(model, variables, {}, ("a", "b", "c"))


def sources(number=7):
    drawn = np.random.default_rng(1).integers(2, 6, (number, L))
    drawn[np.arange(L)[None] >= 1 + np.arange(number)[:, None] % L] = tokens.PAD
    return drawn


def probs_of(networks, images):
    logits = population.logits(networks, images).astype(np.float64)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def test_a_beam_of_one_network_is_what_its_task_finds_greedily(networks):
    """The task's own search asks programs that are not traced; it knows no beams."""
    images = tokens.as_images(sources())
    for member in range(3):
        one = population.members(networks, [member])
        said = say_greedily(lambda images, one=one: population.logits(one, images)[0], images)
        np.testing.assert_array_equal(said, np.repeat(said[:, :1], L, axis=1))
        np.testing.assert_array_equal(said[:, 0], decoding.beams((one,), images, 1)[:, 0])
    assert tokens.lengths(said[:, 0]).max() > 0


def test_beams_of_an_ensemble_go_on_together_and_blocks_change_nothing(networks, monkeypatch):
    images = tokens.as_images(sources())
    got = decoding.beams((networks,), images, 2)

    def mean_of(source, prefix):
        label = np.full((1, L), tokens.NONE)
        label[0, : len(prefix)] = prefix
        image = tokens.with_targets(tokens.as_images(sources()[source][None]), label)
        return np.log(probs_of(networks, image)[:, 0, len(prefix)].mean(axis=0))

    for source, own in enumerate(got):
        expected = reference.beam(mean_of, source, C, L, 2)
        assert [tokens.sequence_of(label) for label in own] == [target for _, target in expected]
    monkeypatch.setattr(decoding, "BLOCK", 3)
    np.testing.assert_array_equal(decoding.beams((networks,), images, 2), got)
