"""Banned tokens (bias or logits of −∞, or too low for their dtype) against NumPy in float64 over the other tokens."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

from pallas_kernels import TokenStats, token_kl, token_stats, token_topk
from pallas_kernels._vocabulary import statistics, tiles, vjp
from pallas_kernels._vocabulary.arguments import inputs_of
from pallas_kernels._vocabulary.types import Tile
from pallas_kernels._vocabulary.vjp import Passes, Plan, rule
from pallas_kernels.token_kl import chunked as kl_chunked
from pallas_kernels.token_stats import gpu
from tests.kernels.token_stats_tpu_test import interpreter

N, D, V = 9, 5, 24
ALLOWED = np.r_[9:14, 17, 20:23]  # the first tile of 8 columns is banned, and so is the last column
BANNED = np.setdiff1d(np.arange(V), ALLOWED)
TARGETS = np.int32([9, 13, 17, 20, 22, 10, 3, 0, 11])  # target 6 is banned, target 7 is banned and masked
MASK = np.arange(N) != 7
LOWEST = {"-inf": -np.inf, "-1e38": -1e38, "finfo.min": np.finfo(np.float32).min}
CASES = [("-inf", 1.0, None), ("-1e38", 0.5, None), ("finfo.min", 0.5, None), ("-inf", 0.8, 2.0)]
COTANGENTS = np.cos(np.arange(3 * N).reshape(3, N) + 1)


@cache
def head(seed=0):
    rng = np.random.default_rng(seed)
    hidden, unembedding, bias = rng.normal(size=(N, D)), rng.normal(size=(V, D)), rng.normal(size=V)
    return hidden.astype(np.float32), unembedding.astype(np.float32), bias.astype(np.float32)


def bans(case, seed=0, columns=BANNED):
    bias = head(seed)[2].copy()
    bias[columns] = LOWEST[case[0]]
    return bias


def log_pi_of(hidden, unembedding, bias, tau, cap, allowed=ALLOWED):
    """(log π, ∂x/∂z) of the allowed tokens, [N, allowed]."""
    z = np.float64(hidden) @ np.float64(unembedding[allowed]).T + np.float64(bias[allowed])
    t = np.zeros_like(z) if cap is None else np.tanh(z / cap)
    x = (z if cap is None else cap * t) / tau
    top = x.max(axis=1, keepdims=True)
    return x - top - np.log(np.exp(x - top).sum(axis=1, keepdims=True)), (1 - t**2) / tau


def gradients_of(dz):
    """(∂hidden, ∂unembedding, ∂bias) from ∂z of the allowed tokens; ∂z of banned tokens is 0."""
    hidden, unembedding, _ = map(np.float64, head())
    whole = np.zeros((N, V))
    whole[:, ALLOWED] = dz
    return whole @ unembedding, whole.T @ hidden, whole.sum(axis=0)


@cache
def expected_stats(case):
    _, tau, cap = case
    log_pi, slope = log_pi_of(*head(), tau, cap)
    pi, is_target = np.exp(log_pi), TARGETS[:, None] == ALLOWED[None]
    logp = np.where(is_target.any(axis=1), np.sum(is_target * log_pi, axis=1), -np.inf)
    entropy, collision = -np.sum(pi * log_pi, axis=1), np.sum(pi**2, axis=1)
    stats = np.stack([logp, entropy, 1 - 2 * np.exp(logp) + collision])
    g, k, q = (c[:, None] for c in np.where(MASK, COTANGENTS, 0))
    g = np.where(np.isinf(logp)[:, None], 0, g)  # −∞ is a constant
    at_target, H, Q = np.exp(logp)[:, None], entropy[:, None], collision[:, None]
    dx = g * (is_target - pi) - k * pi * (log_pi + H) - 2 * q * at_target * (is_target - pi) + 2 * q * pi * (pi - Q)
    return np.where(MASK, stats, 0), gradients_of(dx * slope)


def weighted(stats: TokenStats):
    logp = jnp.where(stats.logp == -jnp.inf, 0, stats.logp)
    return sum(jnp.sum(np.float32(c) * x) for c, x in zip(COTANGENTS, (logp, *stats[1:]), strict=True))


def measured(function, bias):
    def loss(hidden, unembedding, bias):
        stats = function(hidden, unembedding, bias)
        return weighted(stats), stats

    (_, stats), found = jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(*head()[:2], bias)
    return stats, found


def agree(found, expected, tolerance=2e-5):
    for a, e in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(
            a, e, rtol=tolerance, atol=tolerance * np.max(np.abs(e), where=np.isfinite(e), initial=1)
        )


def check_stats(function, case):
    stats, gradients = measured(function, bans(case))
    right, right_gradients = expected_stats(case)
    agree(tuple(stats), tuple(right))
    agree(gradients, right_gradients)
    np.testing.assert_array_equal(gradients[1][BANNED], 0)
    np.testing.assert_array_equal(gradients[2][BANNED], 0)
    assert min(np.abs(gradient).max() for gradient in gradients) > 0.1


def stats_of(case, **options):
    _, tau, cap = case
    return lambda h, w, b: token_stats(h, w, TARGETS, bias=b, temperature=tau, softcap=cap, mask=MASK, **options)


def on_gpu(case):
    """As `stats_of`, with the Triton kernel in Pallas' interpreter and XLA's gradients."""
    _, tau, cap = case
    passes = Passes(partial(gpu.sums, launch=gpu.Launch(width=64, interpret=True)), gpu.gradients)
    run = rule(Plan(passes, Tile(16, 16), V, None, None))
    scalars = {"temperature": tau, "softcap": cap}
    return lambda h, w, b: run(*inputs_of(h, w, jnp.asarray(TARGETS), b, jnp.asarray(MASK), scalars, V, None))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize(("implementation", "tile"), [("reference", None), ("chunked", None), ("chunked", (4, 8))])
def test_token_stats_is_that_of_the_other_tokens(implementation, tile, case):
    check_stats(stats_of(case, implementation=implementation, tile=tile), case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_on_a_tpu(case, monkeypatch):
    with interpreter(monkeypatch, checked=False):
        check_stats(stats_of(case, implementation="tpu"), case)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_on_a_gpu(case):
    check_stats(on_gpu(case), case)


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_a_vocabulary_split_over_devices(implementation):
    case = CASES[0]
    mesh = jax.make_mesh((3,), ("v",), axis_types=(AxisType.Auto,), devices=jax.devices()[:3])
    run = stats_of(case, implementation=implementation, axis_name="v")
    check_stats(jax.shard_map(run, mesh=mesh, in_specs=(P(), P("v"), P("v")), out_specs=P()), case)


def nothing_allowed(function):
    stats, gradients = measured(function, bans(CASES[0], columns=np.arange(V)))
    agree(tuple(stats), tuple(np.where(MASK, np.float32([[-np.inf], [0], [1]]), 0)))
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("implementation", ["reference", "chunked", "tpu", "gpu"])
def test_all_tokens_banned(implementation, monkeypatch):
    if implementation == "gpu":
        return nothing_allowed(on_gpu(CASES[0]))
    with interpreter(monkeypatch, checked=False):
        nothing_allowed(stats_of(CASES[0], implementation=implementation))
    return None


@pytest.mark.parametrize("implementation", ["reference", "chunked", "tpu", "gpu"])
@pytest.mark.parametrize("banned", [False, True])
def test_nan_gives_nan(implementation, banned, monkeypatch):
    row = 6 if banned else 0
    bias = bans(CASES[0])
    bias[11] = np.nan
    run = on_gpu(CASES[0]) if implementation == "gpu" else stats_of(CASES[0], implementation=implementation)
    with interpreter(monkeypatch, checked=False):
        stats, (dh, _, _) = measured(run, bias)
    assert all(np.isnan(stat[row]) for stat in stats)
    assert np.isnan(dh[row]).all()
    assert all(stat[7] == 0 for stat in stats)
    np.testing.assert_array_equal(dh[7], 0)


def test_second_derivatives_are_finite():
    case = CASES[0]

    def slope(hidden):
        return jnp.sum(jax.grad(lambda h: weighted(stats_of(case, tile=(4, 8))(h, head()[1], bans(case))))(hidden) ** 2)

    second = jax.jit(jax.grad(slope))(head()[0])
    assert np.isfinite(second).all()
    assert np.abs(second).max() > 1e-2


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_token_topk_is_that_of_the_other_tokens(implementation, case):
    """With k above the number of allowed tokens, banned tokens come last, in order of ids, with logp −∞."""
    _, tau, cap = case
    k = len(ALLOWED) + 3
    stats, top = jax.jit(
        partial(token_topk, k=k, temperature=tau, softcap=cap, mask=MASK, tile=(4, 8), implementation=implementation)
    )(*head()[:2], TARGETS, bias=bans(case))
    agree(tuple(stats), tuple(expected_stats(case)[0]))
    log_pi, _ = log_pi_of(*head(), tau, cap)
    order = np.argsort(-log_pi, axis=1)
    ids = np.concatenate([ALLOWED[order], np.tile(BANNED[:3], (N, 1))], axis=1)
    logp = np.concatenate([np.take_along_axis(log_pi, order, 1), np.full((N, 3), -np.inf)], axis=1)
    np.testing.assert_array_equal(top.ids, np.where(MASK[:, None], ids, 0))
    agree(top.logp, np.where(MASK[:, None], logp, 0))


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_token_topk_of_nothing_and_of_nan(implementation):
    for value, logp in ((-np.inf, -np.inf), (np.nan, np.nan)):
        bias = bans(CASES[0], columns=np.arange(V) if np.isinf(value) else BANNED)
        bias[11] = value
        run = jax.jit(partial(token_topk, k=4, mask=MASK, tile=(4, 8), implementation=implementation))
        _, top = run(*head()[:2], TARGETS, bias=bias)
        np.testing.assert_array_equal(top.logp, np.where(MASK[:, None], np.full((N, 4), logp), 0))
        if np.isinf(value):
            np.testing.assert_array_equal(top.ids, np.where(MASK[:, None], np.arange(4), 0))


def kl_loss(implementation, tile, tau, softcap):
    run = kl_chunked.token_kl if implementation == "chunked" else token_kl
    run = partial(run, **({"tile": tile} if implementation == "chunked" else {"implementation": implementation}))

    def loss(hidden, unembedding, bias, ref_bias):
        kl = run(hidden, unembedding, *head(1)[:2], MASK, temperature=tau, softcap=softcap, bias=(bias, ref_bias))
        return jnp.sum(jnp.where(jnp.isinf(kl), 0, kl) * np.float32(COTANGENTS[0])), kl

    return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_token_kl_is_that_of_the_other_tokens(implementation, case):
    """The policy bans more tokens than the reference, both have a bias, and the reference has no soft cap."""
    _, tau, cap = case
    ref_bias = bans(case, 1, np.r_[0:8])
    gradients, kl = kl_loss(implementation, Tile(4, 8), tau, (cap, None))(*head()[:2], bans(case), ref_bias)
    log_pi, slope = log_pi_of(*head(), tau, cap)
    log_rho, _ = log_pi_of(*head(1), tau, None, allowed=np.arange(8, V))
    log_ratio, pi = log_pi - log_rho[:, ALLOWED - 8], np.exp(log_pi)
    right = np.sum(pi * log_ratio, axis=1, keepdims=True)
    agree(kl, np.where(MASK, right[:, 0], 0))
    agree(gradients, gradients_of(np.where(MASK, COTANGENTS[0], 0)[:, None] * pi * (log_ratio - right) * slope))
    np.testing.assert_array_equal(gradients[1][BANNED], 0)
    np.testing.assert_array_equal(gradients[2][BANNED], 0)
    assert min(np.abs(gradient).max() for gradient in gradients) > 0.1


@pytest.mark.parametrize("implementation", ["reference", "chunked"])
def test_token_kl_where_only_the_reference_bans(implementation):
    """∞ without a gradient; 0 if the policy bans all tokens; NaN if a logit of either policy is NaN."""
    run = kl_loss(implementation, Tile(4, 8), 1.0, (None, None))
    no_bans, all_bans = head()[2], bans(CASES[0], columns=np.arange(V))
    for bias, ref_bias, right in ((no_bans, bans(CASES[0], 1), np.inf), (all_bans, bans(CASES[0], 1), 0)):
        gradients, kl = run(*head()[:2], bias, ref_bias)
        np.testing.assert_array_equal(kl, np.where(MASK, right, 0))
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, 0)
    spoilt = bans(CASES[0])
    spoilt[11] = np.nan
    for biases in ((spoilt, bans(CASES[0], 1)), (bans(CASES[0]), spoilt)):
        (dh, _, _), kl = run(*head()[:2], *biases)
        np.testing.assert_array_equal(np.isnan(kl), MASK)
        np.testing.assert_array_equal(np.isnan(dh).all(axis=1), MASK)
        np.testing.assert_array_equal(dh[7], 0)


def unclamped(z, beta, softcap):
    x, uncapped = (z, None) if softcap is None else (softcap * jnp.tanh(z / softcap), 1 - jnp.tanh(z / softcap) ** 2)
    return x * beta, uncapped


@pytest.mark.parametrize("case", [CASES[0], CASES[3]], ids=str)
def test_mutants_fail(monkeypatch, case):
    jax.clear_caches()
    monkeypatch.setattr(tiles, "scaled", unclamped)
    with pytest.raises(AssertionError):
        check_stats(stats_of(case, implementation="chunked", tile=(4, 8)), case)


def test_a_gradient_of_a_banned_targets_logp_fails(monkeypatch):
    def leaking(cotangents, stats, *others):
        return statistics.slope_of(cotangents, stats._replace(logp=jnp.maximum(stats.logp, -1e4)), *others)

    monkeypatch.setattr(vjp, "slope_of", leaking)

    def loss(hidden):
        return stats_of(CASES[0], implementation="chunked", tile=(9, 24))(hidden, head()[1], bans(CASES[0])).logp[6]

    assert np.abs(jax.grad(loss)(head()[0])).max() > 0.1
    monkeypatch.undo()
    np.testing.assert_array_equal(jax.grad(loss)(head()[0]), 0)


@pytest.mark.parametrize("implementation", [None, "reference", "chunked"])
@pytest.mark.parametrize("output", ["logp", "entropy", "proxy"])
def test_a_row_of_the_unembedding_may_ban_its_token(implementation, output):
    W = np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32)
    W[2] = [-np.inf, 0, 0, 0]
    hidden, targets, kept = np.ones((2, 4), np.float32), np.array([0, 1]), [0, 1, 3, 4, 5]

    def value(hidden, W):
        return jnp.sum(getattr(token_stats(hidden, W, targets, implementation=implementation), output))

    (found, (dh, dw)), (expected, (dh_kept, dw_kept)) = (
        jax.value_and_grad(value, (0, 1))(hidden, w) for w in (W, W[kept])
    )
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    np.testing.assert_allclose(dh, dh_kept, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(np.asarray(dw)[kept], dw_kept, rtol=1e-4, atol=1e-6)
    assert np.all(np.asarray(dw)[2] == 0)
    assert np.any(np.asarray(dh) != 0)
