"""CTPO's clip bounds (2605.07331), by simulation: the cumulative log-ratio has spread ∝ √t and mean −KL·t."""

import functools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from rljax import Batch, metrics, ratio

AT = np.array([16, 64, 256, 1024, 4096])
EDGES = tuple(sorted({*AT.tolist(), *(AT - 1).tolist()}))  # bins with one bin per position in AT
CLOSE, FAR = 1e-6, 5e-3  # KL(old ‖ new) per token, in nats
ROWS = 1000


@functools.cache
def log_ratios(kl, rows):
    """ℓ [rows, 4096] of tokens drawn from 50 pairs of categoricals (old, new) with KL(old ‖ new) = kl."""
    rng = np.random.default_rng(0)
    old = rng.dirichlet(np.ones(20), 50)
    noise = rng.normal(size=old.shape)
    scales = np.full((50, 1), 0.1)
    for _ in range(30):
        new = old * np.exp(scales * noise)
        new /= new.sum(-1, keepdims=True)
        scales *= np.sqrt(kl / np.sum(old * np.log(old / new), -1, keepdims=True))
    kinds = rng.integers(0, 50, (rows, AT[-1]))
    picks = np.empty(kinds.shape, np.int64)
    for k in range(50):
        here = kinds == k
        picks[here] = rng.choice(20, here.sum(), p=old[k])
    return np.log(new / old)[kinds, picks].astype(np.float32)


@partial(jax.jit, compiler_options={"xla_backend_optimization_level": 3})  # runs longer than it compiles
def sums(log_ratio, width, power):
    """`metrics.position_sums` with CTPO's ratio and bounds ±width·t^power, for all advantages 1, then all −1."""
    clip = partial(ratio.position_clip, log_low=width, log_high=width, power=power)
    ones = jnp.ones_like(log_ratio)
    f = ratio.chain(ratio.local_gradient(ratio.cumulative), clip)
    batches = [Batch(mask=ones > 0, old_logp=0 * log_ratio, advantages=A, weights=ones) for A in (ones, -ones)]
    return [metrics.position_sums(log_ratio, batch, f, edges=EDGES) for batch in batches]


@functools.cache
def profile(kl, power, width, rows=ROWS):
    """Statistics at the positions AT for both signs of A; width is in standard deviations of one token's ℓ."""
    l = log_ratios(kl, rows)
    parts = [sums(part, width * l.std(), np.float32(power)) for part in np.split(l, rows // 250)]
    up, down = map(metrics.position_summary, jax.tree.map(lambda *x: sum(map(np.asarray, x)), *parts))
    found = {**up, "clip_share_negative": down["clip_share_negative"], "spread": up["spread"] / l.std()}
    return {name: np.asarray(x)[[EDGES.index(t) for t in AT]] for name, x in found.items()}


def interval(share, rows=ROWS):
    return 1.96 * np.sqrt(share * (1 - share) / rows)


def test_the_spread_grows_as_the_root_of_the_position_and_the_mean_falls_with_it():
    found = profile(FAR, 0.5, 2.0)
    flat = found["spread"] / np.sqrt(AT)
    np.testing.assert_allclose(flat, 1, atol=0.08)  # with 1000 rows, the standard error is 2.2 %
    np.testing.assert_allclose(found["drift"][2:], -FAR * AT[2:], rtol=0.06)


def test_bounds_that_widen_with_the_root_clip_equally_at_every_position_for_close_policies():
    widening, fixed = profile(CLOSE, 0.5, 1.0), profile(CLOSE, 0.0, 16.0)
    for side in ("clip_share_positive", "clip_share_negative"):
        assert np.all(np.abs(widening[side] - 0.159) < 2 * interval(0.159))  # normal tail beyond σ
        assert fixed[side][0] == 0
        assert fixed[side][-1] > 0.3
        np.testing.assert_allclose(fixed[side][2], widening[side][2], atol=1e-6)  # equal bounds at t = 256


def test_far_from_the_old_policy_the_drift_makes_the_clip_one_sided():
    found = profile(FAR, 0.5, 2.0)
    below, above = found["clip_share_negative"], found["clip_share_positive"]
    assert np.all(np.diff(below) > 0)
    assert abs(below[-1] - 0.885) < 2 * interval(0.885)  # normal CDF at −2σ√t, mean −KL·t, KL = σ²/2
    assert below[0] < 0.06
    assert above[-1] == 0
    assert above[0] > 0.005
