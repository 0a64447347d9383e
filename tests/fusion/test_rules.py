"""Fusion rules against one-election-at-a-time references, their invariants, and the fitted rules."""

from __future__ import annotations

import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax.fusion import rules
from mtkd_jax.types import UserError
from tests.references import fusion as reference

RANK = sorted(rules.RANK_RULES)
PROBABILITY = sorted(rules.RULES - rules.RANK_RULES)
CONDORCET_METHODS = ("condorcet", "copeland", "simpson", "baldwin", "nanson", "schulze", "kemeny")
# (K, C): a rule is compiled once for each, which is what these tests cost
SIZES = ((5, 4), (4, 5), (6, 2))
OTHER_SIZES = tuple((num_members, 2 + num_members % 5) for num_members in range(1, 10))
NUM_ELECTIONS = 700  # of each of SIZES: 2100 in all; ten chunks of 64 and a last one that overlaps


@cache
def jitted(name):
    return jax.jit(rules.rule(name))


def fuse(name, logits):
    return np.asarray(jitted(name)(jnp.asarray(logits, jnp.float32)))


def decisions(name, logits):
    return fuse(name, logits).argmax(-1)


def elections(num_members, num_classes, num_elections=NUM_ELECTIONS, seed=0):
    """Integer logits [K,B,C] of three kinds in turn, so that every tie-break has work to do.

    Few values: ties within a ballot. One order of values for all: ties of mean probability. Pairs of equal
    ballots: ties of counts.
    """
    rng = np.random.default_rng([seed, num_members, num_classes])
    shape = (num_elections, num_members, num_classes)
    few = rng.integers(0, 3, shape)
    orders = rng.permuted(np.broadcast_to(np.arange(num_classes), shape), axis=-1)
    pairs = rng.integers(0, 4, shape)[:, np.arange(num_members) // 2]
    kind = np.arange(num_elections)[:, None, None] % 3
    return np.choose(kind, [few, orders, pairs]).swapaxes(0, 1)


def smooth_elections(num_members, num_classes):
    """Normal logits: no ballot, and no mean probability, has ties."""
    rng = np.random.default_rng([1, num_members, num_classes])
    return rng.normal(size=(num_members, NUM_ELECTIONS, num_classes))


def one_at_a_time(name, logits):
    return np.array([getattr(reference, name)(election) for election in logits.swapaxes(0, 1)])


def assert_as_defined(name, logits):
    if name in RANK:
        places = fuse(name, logits)
        np.testing.assert_array_equal(np.sort(places), np.broadcast_to(range(places.shape[-1]), places.shape))
        np.testing.assert_array_equal(places.argmax(-1), one_at_a_time(name, logits))
    elif not (name == "trimmed_mean_probs" and len(logits) < 3):
        np.testing.assert_allclose(fuse(name, logits), one_at_a_time(name, logits), atol=2e-6)


# --- every rule against its definition ----------------------------------------------------------------


def test_rank_rules_are_those_of_the_design():
    expected = (
        "baldwin borda bucklin condorcet copeland dowdall kemeny nanson plurality schulze simpson stv "
        "symmetric_borda"
    )
    assert expected.split() == RANK


@pytest.mark.parametrize("num_members, num_classes", SIZES)
@pytest.mark.parametrize("name", RANK + PROBABILITY)
def test_rule_is_as_defined(name, num_members, num_classes):
    assert_as_defined(name, elections(num_members, num_classes))


def cast(ballots):
    """Logits [K,1,C] of ballots given as {"CAB": how many}; class 0 is A."""
    votes = [
        [ord(letter) - ord("A") for letter in vote] for vote, count in ballots.items() for _ in range(count)
    ]
    return -np.argsort(votes, axis=-1)[:, None, :]


@pytest.mark.parametrize(
    "name, winner",
    [("plurality", "A"), ("borda", "B"), ("bucklin", "B"), ("copeland", "B"), ("kemeny", "B"), ("stv", "D")],
)
def test_capital_of_tennessee(name, winner):
    """The textbook election; A is Memphis, B Nashville, C Chattanooga, D Knoxville."""
    logits = cast({"ABCD": 42, "BCDA": 26, "CDBA": 15, "DCBA": 17})
    assert "ABCD"[decisions(name, logits).item()] == winner


def test_schulze_on_his_own_example():
    """Schulze (2011), 45 voters and no Condorcet winner: E."""
    ballots = {"ACBED": 5, "ADECB": 5, "BEDAC": 8, "CABED": 3, "CAEBD": 7, "CBADE": 2, "DCEBA": 7, "EBADC": 8}
    assert "ABCDE"[decisions("schulze", cast(ballots)).item()] == "E"


@pytest.mark.slow
@pytest.mark.parametrize("num_members, num_classes", OTHER_SIZES)
def test_every_rule_is_as_defined(num_members, num_classes):
    for name in RANK + PROBABILITY:
        assert_as_defined(name, elections(num_members, num_classes, num_elections=250))


@pytest.mark.slow
@pytest.mark.parametrize("num_members, num_classes", [(127, 3), (128, 3), (3, 127), (3, 128)])
@pytest.mark.parametrize("name", [name for name in RANK if name not in ("schulze", "kemeny")])
def test_counts_beyond_eight_bits(name, num_members, num_classes):
    logits = elections(num_members, num_classes, num_elections=9)
    np.testing.assert_array_equal(decisions(name, logits), one_at_a_time(name, logits))


@pytest.mark.slow
@pytest.mark.parametrize("num_members", [127, 128])
@pytest.mark.parametrize("name", ["schulze", "kemeny"])
def test_margins_beyond_eight_bits(name, num_members):
    logits = elections(num_members, 3, num_elections=9)
    np.testing.assert_array_equal(decisions(name, logits), one_at_a_time(name, logits))


@pytest.mark.parametrize("name", RANK + PROBABILITY)
def test_vmapped_is_jitted(name):
    logits = jnp.asarray(elections(4, 5), jnp.float32)
    two = jax.jit(jax.vmap(rules.rule(name)))(jnp.stack([logits, -logits]))
    np.testing.assert_allclose(two, [fuse(name, logits), fuse(name, -logits)], atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", RANK + PROBABILITY)
def test_plain_is_jitted(name):
    logits = jnp.asarray(elections(4, 5), jnp.float32)
    np.testing.assert_allclose(rules.rule(name)(logits), fuse(name, logits), atol=1e-6)


@pytest.mark.parametrize("name", PROBABILITY)
def test_certain_members_who_disagree(name):
    """Probabilities that underflow to 0 leave a distribution all the same."""
    logits = 300.0 * np.eye(5)[:, None, :]
    np.testing.assert_allclose(fuse(name, logits).sum(-1), 1, rtol=1e-6)


# --- ties ---------------------------------------------------------------------------------------------


def test_one_vote_each_is_decided_by_mean_probability():
    """The example on which the released code of Zuchniak 2023 elects class 0."""
    probs = np.array([[[0.40, 0.10, 0.11, 0.39]], [[0.01, 0.02, 0.03, 0.94]]])
    assert decisions("plurality", np.log(probs)).item() == 3


@pytest.mark.parametrize("name", ["plurality", "baldwin", "stv"])
@pytest.mark.parametrize("lead, winner", [(4e-7, 0), (4e-6, 1), (-4e-6, 0)])
def test_mean_probabilities_within_a_millionth_are_equal(name, lead, winner):
    probs = np.array([[[0.6, 0.4]], [[0.4 - lead, 0.6 + lead]]])
    assert decisions(name, np.log(probs)).item() == winner


def test_closeness_is_to_the_highest_and_does_not_chain():
    """Means rise by 0.8e-6 from class to class: 0 is close to 1 but not to 2, the highest."""
    votes = 0.3 + 0.1 * np.eye(3) + np.diag([0, 2.4e-6, 4.8e-6])
    logits = np.log(votes)[:, None, :]
    assert decisions("plurality", logits).item() == 1


# --- invariants ---------------------------------------------------------------------------------------


def test_symmetric_borda_is_borda():
    logits = elections(4, 5)
    np.testing.assert_array_equal(fuse("symmetric_borda", logits), fuse("borda", logits))


@pytest.mark.parametrize("name", RANK)
def test_two_classes_are_a_majority_vote(name):
    logits = elections(6, 2)
    votes_for_0 = (logits[..., 0] >= logits[..., 1]).sum(0)
    decided = votes_for_0 != 3
    assert 100 < decided.sum() < NUM_ELECTIONS
    np.testing.assert_array_equal(decisions(name, logits)[decided], (votes_for_0 < 3)[decided])


@cache
def with_condorcet_winner():
    logits = elections(4, 5)
    winners = [reference.condorcet_winner(election) for election in logits.swapaxes(0, 1)]
    there = np.array([winner is not None for winner in winners])
    assert 100 < there.sum() < NUM_ELECTIONS
    return logits, there, np.array([winner for winner in winners if winner is not None])


@pytest.mark.parametrize("name", CONDORCET_METHODS)
def test_strict_condorcet_winner_is_elected(name):
    logits, there, winners = with_condorcet_winner()
    np.testing.assert_array_equal(decisions(name, logits)[there], winners)


@pytest.mark.parametrize("name", ["plurality", "borda"])
def test_plurality_and_borda_may_pass_a_condorcet_winner_over(name):
    logits, there, winners = with_condorcet_winner()
    assert (decisions(name, logits)[there] != winners).any()


@pytest.mark.parametrize("name", RANK + PROBABILITY)
def test_order_of_members_changes_nothing(name):
    logits = elections(4, 5)
    if name == "max_confidence":  # equally confident members are told apart by their order alone
        top = np.sort(jax.nn.softmax(jnp.asarray(logits, jnp.float32)).max(-1), axis=0)
        logits = np.where((top[-1] - top[-2] > 1e-4)[:, None], logits, logits[:1])
    np.testing.assert_allclose(fuse(name, logits[[3, 0, 2, 1]]), fuse(name, logits), atol=1e-6)


@pytest.mark.parametrize("name", RANK + PROBABILITY)
def test_unanimous_members_win(name):
    order = smooth_elections(1, 5)
    logits = order * np.array([0.1, 1.0, 3.0, 9.0])[:, None, None]  # one order, different certainty
    np.testing.assert_array_equal(decisions(name, logits), order[0].argmax(-1))


@pytest.mark.parametrize("name", RANK + PROBABILITY)
def test_renaming_classes_renames_the_decision(name):
    logits = smooth_elections(4, 5)
    names = np.array([2, 4, 0, 1, 3])
    np.testing.assert_array_equal(names[decisions(name, logits[..., names])], decisions(name, logits))


def test_borda_scores_are_shares_of_the_points():
    logits = elections(4, 5)
    points = [reference.borda_points(reference.ballots(election)) for election in logits.swapaxes(0, 1)]
    expected = np.array([[one[c] for c in range(5)] for one in points]) / (4 * 10)
    scores = jax.jit(rules.borda_scores)(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(scores, expected, rtol=1e-6)
    np.testing.assert_allclose(scores.sum(-1), 1, rtol=1e-6)


# --- fitted rules -------------------------------------------------------------------------------------


def validation(num_members=3, num_examples=60, num_classes=3):
    """Members of falling skill: the label's logit is raised by 3, 2, 1, ..."""
    rng = np.random.default_rng(7)
    labels = rng.integers(0, num_classes, num_examples)
    skill = np.arange(num_members, 0, -1)[:, None, None]
    logits = rng.normal(size=(num_members, num_examples, num_classes)) + skill * np.eye(num_classes)[labels]
    return jnp.asarray(logits, jnp.float32), labels


def test_weighted_mean_by_hand():
    """Accuracies 1 and 1/2: weights 2/3 and 1/3."""
    logits = jnp.array([[[2.0, 0.0], [0.0, 2.0]], [[2.0, 0.0], [2.0, 0.0]]])
    rule = rules.weighted_mean(logits, np.array([0, 1]))
    probs = np.array([[[0.9, 0.1]], [[0.3, 0.7]]])
    np.testing.assert_allclose(rule(jnp.asarray(np.log(probs), jnp.float32)), [[0.7, 0.3]], rtol=1e-5)


def test_evolved_mean_finds_the_best_weights_of_two():
    logits, labels = validation(num_members=2)
    probs = np.array([reference.softmax(member) for member in np.asarray(logits)])
    grid = [reference.nll(w * probs[0] + (1 - w) * probs[1], labels) for w in np.linspace(0, 1, 1001)]
    fused = rules.evolved_mean(logits, labels)(logits)
    assert min(grid) < grid[500] - 1e-3  # equal weights are not the answer
    np.testing.assert_allclose(reference.nll(fused, labels), min(grid), atol=1e-4)


def test_evolved_mean_is_no_worse_than_equal_weights_and_reproducible():
    logits, labels = validation(num_members=5)
    fused = rules.evolved_mean(logits, labels, seed=3)(logits)
    assert reference.nll(fused, labels) <= reference.nll(rules.mean_probs(logits), labels) + 1e-6
    np.testing.assert_array_equal(fused, rules.evolved_mean(logits, labels, seed=3)(logits))


def test_shapley_mean_weighs_by_what_members_add_and_never_below_nothing():
    """Values of accuracy by all six orders: of two equal members and one that is always wrong."""
    right, wrong = np.array([[4.0, 0.0], [0.0, 4.0]]), np.array([[0.0, 9.0], [9.0, 0.0]])
    labels = np.array([0, 1])
    gains, orders = np.zeros(3), list(itertools.permutations(range(3)))
    members = np.array([right, right, wrong])

    def worth(coalition):
        if not coalition:
            return 0.5
        probs = sum(np.array(reference.softmax(members[k])) for k in coalition)
        return np.mean(probs.argmax(-1) == labels)

    for order in orders:
        for place, k in enumerate(order):
            gains[k] += (worth(order[: place + 1]) - worth(order[:place])) / len(orders)
    assert gains[2] < 0 < gains[0]
    probs = np.array([[[0.9, 0.1]], [[0.6, 0.4]], [[0.2, 0.8]]])
    found = rules.shapley_mean(members, labels)(jnp.asarray(np.log(probs), jnp.float32))
    np.testing.assert_allclose(found, [[0.75, 0.25]], rtol=1e-5)
    nobody = rules.shapley_mean(np.array([wrong, wrong]), labels)  # adds anything
    np.testing.assert_allclose(nobody(jnp.asarray(np.log(probs[:2]), jnp.float32)), [[0.75, 0.25]], rtol=1e-5)


def test_classwise_mean_hears_each_member_of_its_own_classes():
    """At the optimum by finite differences of the objective written out; weights read back from outputs."""
    logits, labels = validation(num_members=3)
    num_members, _, num_classes = logits.shape
    probs = [reference.softmax(member) for member in np.asarray(logits)]
    rule = rules.classwise_mean(logits, labels, l2=1e-2)
    (w,) = rule.args
    v = np.log(np.asarray(w, np.float64))
    v -= v.mean(axis=0)  # the optimum is centred: L2 would shrink any common part

    def objective(v):
        weights = np.exp(v) / np.exp(v).sum(axis=0)
        mixed = sum(own * np.array(member) for own, member in zip(weights, probs))
        losses = [-np.log(row[label] / row.sum()) for row, label in zip(mixed, labels)]
        return np.mean(losses) + 1e-2 / 2 * np.sum(v**2)

    steps = 1e-4 * np.eye(v.size).reshape(-1, num_members, num_classes)
    gradient = [(objective(v + step) - objective(v - step)) / 2e-4 for step in steps]
    np.testing.assert_allclose(gradient, 0, atol=1e-5)
    assert np.ptp(v, axis=1).max() > 0.1
    assert objective(v) < objective(np.zeros_like(v))


def test_stacking_is_at_the_optimum():
    """The layer is read back through its outputs; then no step along any parameter lowers the objective."""
    logits, labels = validation()
    num_members, _, num_classes = logits.shape
    num_inputs = num_members * num_classes
    rule = rules.stacking(logits, labels)
    probes = np.concatenate([np.zeros((1, num_inputs)), np.eye(num_inputs)])
    probes = probes.reshape(-1, num_members, num_classes).swapaxes(0, 1)
    outputs = np.log(np.asarray(rule(jnp.asarray(probes, jnp.float32)), np.float64))
    outputs -= outputs.mean(-1, keepdims=True)  # the optimum is centred: L2 would shrink any common part
    kernel, bias = outputs[1:] - outputs[:1], outputs[0]

    def objective(step):
        return reference.stacking_objective(kernel + step[:-1], bias + step[-1], np.asarray(logits), labels)

    steps = 1e-4 * np.eye((num_inputs + 1) * num_classes).reshape(-1, num_inputs + 1, num_classes)
    gradient = [(objective(step) - objective(-step)) / 2e-4 for step in steps]
    assert np.abs(kernel).max() > 0.1
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


@pytest.mark.parametrize("name", sorted(rules.FITTED_RULES))
def test_fitted_rule_returns_probabilities_plain_jitted_and_vmapped(name):
    logits, labels = validation()
    rule = rules.rule(name)(logits, labels)
    expected = rule(logits[:, :10])
    np.testing.assert_allclose(expected.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(rule)(logits[:, :10]), expected, rtol=1e-5)
    np.testing.assert_allclose(jax.vmap(rule)(logits[None, :, :10])[0], expected, rtol=1e-5)


def test_weighted_mean_refuses_members_that_are_never_right():
    with pytest.raises(UserError, match="no member is right"):
        rules.weighted_mean(jnp.array([[[1.0, 0.0]]]), np.array([1]))


# --- bad input ----------------------------------------------------------------------------------------


def spoiled(value):
    logits = np.zeros((3, 4, 3), np.float32)
    logits[1, 2, 0] = value
    return logits


@pytest.mark.parametrize(
    "name, logits, labels, message",
    [
        ("schultze", np.zeros((3, 4, 3)), None, "did you mean 'schulze'"),
        ("borda", np.zeros((4, 3)), None, r"\[members, examples, classes\], got shape \(4, 3\)"),
        ("borda", np.zeros((0, 4, 3)), None, r"got shape \(0, 4, 3\)"),
        ("borda", np.zeros((3, 4, 1)), None, "2 classes or more"),
        ("trimmed_mean_probs", np.zeros((2, 4, 3)), None, "3 members or more"),
        ("kemeny", np.zeros((2, 4, 9)), None, "8 classes at most, got 9"),
        ("mean_probs", spoiled(np.nan), None, "member 1, example 2"),
        ("mean_probs", spoiled(np.inf), None, "member 1, example 2"),
        ("stacking", np.zeros((3, 4, 3)), np.zeros(5, int), r"4 examples, labels of shape \(5,\)"),
        ("stacking", np.zeros((3, 4, 3)), np.array([0, 1, 2, 3]), r"must be in 0\.\.2, got 0\.\.3"),
    ],
)
def test_check_refuses_in_one_line(name, logits, labels, message):
    with pytest.raises(UserError, match=message) as error:
        rules.check(name, logits, labels)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", sorted(rules.RULES | rules.FITTED_RULES))
def test_check_passes_the_smallest_good_input(name):
    num_members = 3 if name == "trimmed_mean_probs" else 1
    rules.check(name, np.zeros((num_members, 1, 2)), np.array([0]))


def test_rules_themselves_refuse_shapes_they_cannot_fuse():
    with pytest.raises(UserError, match="3 members or more"):
        rules.trimmed_mean_probs(jnp.zeros((2, 4, 3)))
    with pytest.raises(UserError, match="8 classes at most"):
        rules.kemeny(jnp.zeros((2, 4, 9)))
