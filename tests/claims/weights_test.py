"""Weights of Balanced Aggregation (2605.04077), and the cases that equal other aggregations."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np

from rljax import advantage, aggregation, metrics

FUNCTIONS = (aggregation.token_mean, aggregation.sequence_mean, aggregation.group_mean, aggregation.balanced)
weights = jax.jit(lambda mask, sign: {f.__name__: f(mask, sign) for f in FUNCTIONS})


def every_group(rewards, longest=4, members=4):
    """Rewards [M, G] and masks [M, G, T] of all groups with these rewards, not all equal, and lengths 1 to 4."""
    kinds = list(itertools.product(range(1, longest + 1), rewards))
    groups = np.array(list(itertools.combinations_with_replacement(kinds, members)))
    lengths, rewards = groups[..., 0], groups[..., 1]
    some = np.ptp(rewards, axis=1) > 0
    return rewards[some], np.arange(longest) < lengths[some][..., None]


@jax.jit
@jax.vmap
def push(rewards, mask):
    """Of one group: Σ w A by aggregation, the length gap of the two signs of A, and Σ_{A>0} A per token."""
    rewards, mask = rewards[None], mask[None]
    A = advantage.mean_baseline(rewards, mask)
    sign = aggregation.side(A, mask)
    pushes = {
        f.__name__: jnp.sum(f(mask, sign) * A)
        for f in (aggregation.token_mean, aggregation.sequence_mean, aggregation.balanced)
    }
    return (
        pushes,
        metrics.sign_length_gap(A, mask),
        jnp.sum(jnp.max(A, -1, where=A > 0, initial=0.0)) / jnp.sum(mask.astype(A.dtype)),
    )


def coupling(rewards):
    with jax.enable_x64(True):
        return jax.tree.map(np.asarray, push(*every_group(rewards)))


def test_a_token_mean_pushes_by_the_gap_in_length_and_balanced_does_not():
    pushes, gap, positive = coupling((0.0, 1.0))
    np.testing.assert_allclose(pushes["token_mean"], gap * positive, atol=1e-15)
    assert np.mean(np.abs(pushes["token_mean"]) > 0.05) > 0.4
    np.testing.assert_allclose(pushes["balanced"], 0, atol=1e-15)


def test_within_a_side_of_unequal_advantages_balanced_still_prefers_the_long():
    pushes, gap, _ = coupling((0.0, 0.5, 1.0))
    sizes = {name: np.sqrt(np.mean(x**2)) for name, x in pushes.items()}
    assert sizes["sequence_mean"] < 1e-15
    assert 0.1 < sizes["balanced"] / sizes["token_mean"] < 0.5
    assert abs(np.corrcoef(pushes["balanced"], gap)[0, 1]) < 0.25 < 0.8 < np.corrcoef(pushes["token_mean"], gap)[0, 1]


def test_balanced_weights_do_not_know_a_sides_length():
    lengths, sign = np.array([[4, 4, 8, 8], [4, 4, 4, 8]]), np.array([[1, 1, -1, -1], [1, 1, 1, -1]])
    mask = np.arange(8) < lengths[..., None]
    w = {name: np.asarray(x).sum(-1) for name, x in weights(mask, sign).items()}
    np.testing.assert_allclose(w["token_mean"][0, 2:].sum() / w["token_mean"][0, :2].sum(), 2)
    np.testing.assert_allclose(w["balanced"][0, 2:].sum() / w["balanced"][0, :2].sum(), 1)
    np.testing.assert_allclose(w["balanced"][1, 3:].sum() / w["balanced"][1, :3].sum(), 1 / 3, rtol=1e-6)


SIDES = ((1, 1, -1, -1),) * 2


def same(lengths, other, sides=SIDES):
    w = weights(np.arange(8) < np.array(lengths)[..., None], np.array(sides))
    return np.allclose(w["balanced"], w[other.__name__], atol=1e-7)


def test_balanced_equals_each_other_aggregation_for_special_lengths():
    each_side = [[4, 4, 8, 8], [2, 2, 6, 6]]  # equal lengths within each sign, equal group sizes
    mean_sides = [[2, 6, 3, 5], [1, 3, 2, 2]]  # equal mean lengths of both signs
    equal_tokens = [[2, 6, 3, 5], [4, 4, 4, 4]]
    assert same(each_side, aggregation.sequence_mean)
    assert not same(mean_sides, aggregation.sequence_mean)
    assert same(mean_sides, aggregation.group_mean)
    assert not same(each_side, aggregation.group_mean)
    assert same(equal_tokens, aggregation.token_mean)
    assert not same(mean_sides, aggregation.token_mean)


def test_balanced_over_groups_of_unequal_size_is_a_sequence_mean_within_each_only():
    lengths, sides = [[4, 4, 8, 8], [2, 6, 0, 0]], [[1, 1, -1, -1], [1, -1, 0, 0]]
    assert not same(lengths, aggregation.sequence_mean, sides)
    mask = np.arange(8) < np.array(lengths)[..., None]
    w = np.asarray(weights(mask, np.array(sides))["balanced"]).sum(-1)
    np.testing.assert_allclose(w, [[1 / 8] * 4, [1 / 4, 1 / 4, 0, 0]], rtol=1e-6)  # 1/(P·G) per completion


def test_a_completion_on_neither_side_counts_in_its_group_alone():
    sides = [[1, 1, -1, 0], [1, -1, -1, -1]]
    mask = np.arange(8) < np.full((2, 4, 1), 4)
    w = np.asarray(weights(mask, np.array(sides))["balanced"]).sum(-1)
    np.testing.assert_allclose(w, [[1 / 8] * 3 + [0], [1 / 8] * 4], rtol=1e-6)
    for other in (aggregation.sequence_mean, aggregation.group_mean, aggregation.token_mean):
        assert not same([[4] * 4] * 2, other, sides)
        assert same([[4] * 4] * 2, other)
