"""No NaN far from the sampling policy: ℓ of ±100, references of −∞, powers of ±50, and long rows."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import Batch, correction, distillation, metrics, penalty, policy_loss, ratio
from rljax.objective import bind, terms
from tests.examples import ALGORITHMS
from tests.laws_test import RATIOS
from tests.metrics_test import CLIP
from tests.together import together

RATIOS = RATIOS | {f"power_mean {p}": partial(ratio.power_mean, p=p) for p in (-50.0, 0.01, 50.0)}
BOUNDED = {  # upper bounds of f for (A > 0, A < 0)
    "clip": (True, True), "position_clip": (True, True), "soft_gate": (True, True), "two_sided_clip": (True, True),
    "clamp": (True, True), "gamma_gate": (True, True), "taper": (True, True),
    "total_variation_mask": (True, True), "kl_mask": (True, True), "log_clip": (True, False),
}  # fmt: skip
BOUNDED |= {name: example.bounded for name, example in ALGORITHMS.items()}
UNBOUNDED = {
    "token", "sequence_mean", "sequence_sum", "cumulative", "prefix_mean", "prefix_min", "power_mean",
    "cumulative_divergence_mask",
}  # fmt: skip
ESTIMATORS = {
    "k1": penalty.k1,
    "k2": penalty.k2,
    "k3": penalty.k3,
    **{
        f"{a.__name__}, gradient of {b.__name__}": penalty.straight_through(a, b)
        for a in (penalty.k1, penalty.k3)
        for b in (penalty.k1, penalty.k2, penalty.k3)
    },
}
NORMALIZED = "batch_normalized"  # takes weights, not a mismatch
CORRECTED = ("weighted", "aggregation_of_kept", "advantage_of_kept")  # return functions
every_ratio = pytest.mark.parametrize("name", RATIOS)


def test_every_ratio_is_known_to_be_bounded_or_not():
    assert {name.split()[0] for name in RATIOS} <= BOUNDED.keys() | UNBOUNDED
    assert not BOUNDED.keys() & UNBOUNDED


def look(logp, batch, f):
    found = terms(logp, batch)
    values = bind(f, batch)(found.log_ratio, batch.advantages, found.segments)
    return values, jax.grad(policy_loss)(logp, batch, f)


@together
def look_at_all(logp, batch):
    return {name: look(logp, batch, f) for name, f in RATIOS.items()}


def far_rows(shape=(8, 10)):
    """ℓ is ±100 or 0.1 in rows 0–3 (> 0 in 2–3), tiny in row 7; references of −∞ in rows 4–6; A < 0 in odd rows."""
    rng = np.random.default_rng(0)
    mask = rng.random(shape) > 0.2
    mask[:, ::5] = True
    old = rng.normal(size=shape) - 3
    l = rng.normal(size=shape) * 0.1
    l[:4] = rng.choice([-100.0, 0.1, 100.0], l[:4].shape)
    l[2:4], l[7] = np.abs(l[2:4]), 1e-3 * l[7]
    logp = old + l
    old[4:7, ::5] = -np.inf
    A = np.where(np.arange(8) % 2 == 0, 1.0, -1.0)[:, None] * rng.uniform(0.5, 1, shape[:1])[:, None]
    divergence = rng.uniform(0, 0.2, shape) * (np.arange(8) != 7)[:, None]
    arrays = logp, old, np.broadcast_to(A, shape), rng.uniform(0.5, 1, shape), divergence
    logp, old, A, w, divergence = (x.astype(np.float32) for x in arrays)
    return logp, Batch(mask=mask, old_logp=old, advantages=A, weights=w, ref_logp=old, divergence=divergence)


@every_ratio
def test_no_nan_and_what_is_bounded_is_finite(name):
    logp, batch = far_rows()
    values, gradient = look_at_all(logp, batch)[name]
    with np.errstate(over="ignore"):
        terms = np.where(batch.mask, batch.weights * batch.advantages * np.exp(values), 0)
    assert not np.isnan(terms).any()
    assert not np.isnan(gradient).any()
    for above, sign in zip(BOUNDED.get(name, (False, False)), (1, -1), strict=True):
        if above:
            assert np.isfinite(terms[batch.advantages == sign * np.abs(batch.advantages)]).all()
            assert np.isfinite(gradient[batch.advantages == sign * np.abs(batch.advantages)]).all()
    assert np.count_nonzero(gradient[7]) > 3


def test_the_unbounded_overflow_token_by_token():
    logp, batch = far_rows()
    _, gradient = look_at_all(logp, batch)["token"]
    infinite = batch.mask & (np.isneginf(batch.old_logp) | (logp - batch.old_logp > 90))
    assert infinite.sum() > 5
    np.testing.assert_array_equal(np.isinf(gradient), infinite)
    with np.errstate(over="ignore"):
        expected = np.where(batch.mask, -batch.weights * batch.advantages * np.exp(logp - batch.old_logp), 0)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-37)


def test_local_gradient_has_the_value_to_the_last_digit():
    """sg(f(ℓ) − ℓ) + ℓ computed literally would round, or give NaN."""
    l, mask = np.array([[1e6, -1e6, np.inf]], np.float32), np.ones((1, 3), bool)
    f = partial(ratio.two_sided_clip, low=0.2, high=0.28)
    local = ratio.local_gradient(f)

    @jax.jit
    def run(l):
        differentiated, pull = jax.vjp(lambda x: local(x, x, mask), l)
        return local(l, l, mask), differentiated, f(l, l, mask), pull(jnp.ones_like(l))[0]

    values, differentiated, expected, gradient = run(l)
    np.testing.assert_array_equal(values, expected)
    np.testing.assert_array_equal(differentiated, expected)
    np.testing.assert_array_equal(gradient, [[1, 1, 1]])


def test_a_token_that_the_old_policy_all_but_excluded_is_dropped():
    """q = e^−110 underflows in float32 and r = e^108 overflows, but p − q = e^−2."""
    one = np.ones((1, 2), np.float32)
    f = jax.jit(partial(ratio.total_variation_mask, low=0.1, high=0.1, old_logp=-110 * one))
    np.testing.assert_array_equal(np.isneginf(f(np.array([[108, 100]], np.float32), one, one > 0)), [[True, False]])


@every_ratio
@pytest.mark.parametrize("held", [np.inf, -np.inf, np.nan])
def test_a_token_that_earns_nothing_gives_exactly_zero(name, held):
    """If w, A or w·A is 0, the gradient of the token is 0 for any ℓ, and its neighbors' are finite."""
    logp, batch = far_rows()
    l = np.clip(logp - batch.old_logp, -1e-4, 1e-4)
    logp, batch = np.where(batch.mask, l, 0), dataclasses.replace(batch, old_logp=np.zeros_like(l))
    w, A = np.where(batch.mask, batch.weights, 0), batch.advantages.copy()
    dead = np.zeros_like(batch.mask)
    for rows, column in ((slice(0, 3), 0), (slice(3, 6), 5), (slice(6, 8), 5)):
        dead[rows, column] = True
    w[:3, 0], A[3:6, 5], w[6:, 5] = 0, 0, 0
    A[7, 5] = 0
    w[0, 0] = A[0, 0] = 1e-30  # the product underflows
    spoilt = np.where(dead, np.float32(held), logp)
    values, gradient = look_at_all(spoilt, dataclasses.replace(batch, weights=w, advantages=A))[name]
    assert np.isfinite(gradient).all()
    assert np.all(gradient[dead] == 0)
    assert np.count_nonzero(gradient) >= 0.3 * batch.mask.sum() or name == "cumulative_divergence_mask"
    assert np.isfinite(values[batch.mask & ~dead]).sum() > 20


@pytest.mark.parametrize("name", ["ctpo", "minpro", "gspo", "power_mean -50.0"])
def test_long_rows(name):
    """T = 32768 and sums of ℓ in the millions: 16 packed sequences, or one sequence."""
    T = 32768
    rng = np.random.default_rng(0)
    l = rng.choice([-100.0, 0.0, 100.0], (2, T)).astype(np.float32)
    mask, zeros = rng.random((2, T)) > 0.1, np.zeros((2, T), np.float32)
    ids = np.stack([np.repeat(np.arange(1, 17), T // 16), np.ones(T)]).astype(np.int32)
    batch = Batch(mask=mask, old_logp=zeros, advantages=zeros + 1, weights=zeros + 1, segment_ids=ids)
    run = jax.jit(look, static_argnums=2)
    for sign in (1, -1):
        values, gradient = run(l, dataclasses.replace(batch, advantages=zeros + sign), RATIOS[name])
        assert not np.isnan(values).any()
        assert not np.isnan(gradient).any()


@together
def penalties(logp, batch):
    return {name: jax.value_and_grad(penalty.kl)(logp, batch, estimator=f) for name, f in ESTIMATORS.items()}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_no_penalty_is_nan(name):
    logp, batch = far_rows()
    value, gradient = penalties(logp, batch)[name]
    assert not np.isnan(value)
    assert not np.isnan(gradient).any()
    dead = dataclasses.replace(batch, weights=np.where(np.isfinite(batch.ref_logp), batch.weights, 0))
    value, gradient = penalties(np.clip(logp, -9, 0), dead)[name]
    assert np.isfinite(value) or name.startswith("k3")
    np.testing.assert_array_equal(gradient[dead.weights == 0], 0)


def test_no_other_penalty_is_nan():
    logp, batch = far_rows()

    @jax.jit
    def run(logp, batch, key):
        losses = [jax.value_and_grad(f)(logp, batch) for f in (penalty.quadratic, penalty.kl_cov, penalty.kl_corrected)]
        return losses, penalty.clip_cov(logp, batch, ratio=CLIP, share=0.5, key=key)

    losses, kept = run(logp, batch, jax.random.key(0))
    for value, gradient in losses:
        assert not np.isnan(value)
        assert not np.isnan(gradient).any()
    assert kept.all()  # here no covariance is between 1 and 5


@together
def corrections(mismatch, mask):
    opsm = partial(correction.opsm, sign=jnp.full(mask.shape[:-1], -1), limit=0.1)
    functions = {name: getattr(correction, name) for name in correction.__all__} | {"opsm": opsm}
    found = {n: f(mismatch, mask) for n, f in functions.items() if n not in (NORMALIZED, *CORRECTED)}
    return found | {NORMALIZED: correction.batch_normalized(found["icepop"], mask)}


@pytest.mark.parametrize("sign", [1, -1])
def test_no_correction_is_nan(sign):
    logp, batch = far_rows()
    found = corrections(sign * (logp - batch.old_logp), batch.mask)
    assert found.keys() | set(CORRECTED) == set(correction.__all__)
    for name, out in found.items():
        for x in jax.tree.leaves(out):
            assert not np.isnan(x).any()
            if name not in ("report",):
                assert np.isfinite(x).all()
    assert 1 / batch.mask.sum() - 1e-6 <= found["report"]["effective_samples"] <= 1


def test_no_metric_is_nan():
    logp, batch = far_rows()
    sums = jax.jit(lambda *x: (metrics.policy_sums(*x, CLIP), metrics.position_sums(*x, CLIP, edges=(4,))))
    whole, by_position = sums(logp, batch)
    summary, by_position = metrics.policy_summary(whole), metrics.position_summary(by_position)
    assert not any(np.isnan(x).any() for x in jax.tree.leaves((summary, by_position)))
    assert np.isinf(summary["kl"])
    assert summary["clip_share"] > 0.1


def test_a_teacher_of_no_mass_and_far_logits_give_no_nan():
    student = np.array([[0.0, 1.0, -np.inf], [100.0, -100.0, 0.0], [0.0, 1.0, 2.0]], np.float32)
    teacher = np.array([[0.0, 1.0, -np.inf], [-100.0, 100.0, 0.0], [-np.inf, 0.0, 1.0]], np.float32)
    support = distillation.teachers(jnp.zeros((3, 3), jnp.int32))

    @jax.jit
    def run(student, teacher):
        kl, pull = jax.vjp(lambda x: distillation.support_kl(x, teacher, support), student)
        return distillation.support_kl(student, teacher, support), kl, pull(jnp.ones_like(kl))[0]

    kl, differentiated, gradient = run(student, teacher)
    assert np.sum(differentiated) > 1e20
    assert not np.isnan(gradient).any()
    np.testing.assert_allclose(kl[:2], [0, 200], rtol=1e-6)
