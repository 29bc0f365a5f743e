import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import Batch, penalty, policy_loss, ratio
from tests import papers
from tests.together import together


def random_case(seed=0):
    l, A, w, mask = papers.random_batch(seed)
    ref = np.where(mask, np.random.default_rng(seed + 1).normal(size=l.shape), np.nan)
    logp = np.where(mask, ref + l, np.nan)
    return logp, Batch(mask=mask, old_logp=l, advantages=A, weights=w, ref_logp=ref), l, w * mask


ESTIMATORS = {
    "k1": (penalty.k1, lambda l: l, lambda l: np.ones_like(l)),
    "k2": (penalty.k2, lambda l: l**2 / 2, lambda l: l),
    "k3": (penalty.k3, lambda l: np.exp(-l) - 1 + l, lambda l: 1 - np.exp(-l)),
    "straight_through": (penalty.straight_through(penalty.k3), lambda l: np.exp(-l) - 1 + l, lambda l: l),
    "straight_through k1 k3": (
        penalty.straight_through(penalty.k1, penalty.k3),
        lambda l: l,
        lambda l: 1 - np.exp(-l),
    ),
}


@together
def kls(logp, batch):
    return {name: jax.value_and_grad(penalty.kl)(logp, batch, estimator=f) for name, (f, *_) in ESTIMATORS.items()}


@pytest.mark.parametrize("name", ESTIMATORS)
def test_kl_is_a_weighted_sum_of_the_estimator(name):
    logp, batch, l, w = random_case()
    _, value, slope = ESTIMATORS[name]
    with jax.enable_x64(True):
        loss, gradient = kls(logp, batch)[name]
    assert papers.agree(loss, np.sum(w * value(l)))
    assert papers.agree(gradient, w * slope(l))
    assert not papers.agree(np.zeros_like(gradient), w * slope(l))


def test_estimators_are_unbiased_and_k2_has_the_gradient_of_the_kl():
    theta, ref = np.array([0.3, -0.5, 1.0]), np.log([0.2, 0.5, 0.3])

    def exact(theta):
        return jnp.sum(jax.nn.softmax(theta) * (jax.nn.log_softmax(theta) - ref))

    def expectation(theta, estimator):
        return jnp.sum(jax.lax.stop_gradient(jax.nn.softmax(theta)) * estimator(jax.nn.log_softmax(theta) - ref))

    @jax.jit
    def run(theta):
        estimators = {name: f for name, (f, *_) in ESTIMATORS.items()}
        estimators["straight_through k1"] = penalty.straight_through(penalty.k1)
        found = {name: (expectation(theta, f), jax.grad(expectation)(theta, f)) for name, f in estimators.items()}
        return jax.value_and_grad(exact)(theta), found

    with jax.enable_x64(True):
        (value, gradient), found = run(theta)
    for name in ("k1", "k3", "straight_through"):
        np.testing.assert_allclose(found[name][0], value, rtol=1e-12)
    for name in ("k2", "straight_through k1"):
        np.testing.assert_allclose(found[name][1], gradient, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(found["k1"][1], np.zeros(3), atol=1e-15)


POLICIES = {"on-policy": np.zeros(4), "off-policy": np.array([0.6, -0.4, 0.3, -0.8])}


@pytest.mark.parametrize("name", POLICIES)
def test_the_gradient_of_the_kl_by_enumeration(name):
    """KL(π ‖ π_ref) over a vocabulary of four tokens, with the sampling policy's probabilities as weights."""
    theta, ref = np.array([0.3, -0.5, 1.0, 0.1]), np.log([0.1, 0.4, 0.2, 0.3])
    old = np.asarray(theta + POLICIES[name])
    old = old - np.log(np.sum(np.exp(old)))

    def exact(theta):
        return jnp.sum(jax.nn.softmax(theta) * (jax.nn.log_softmax(theta) - ref))

    def forward(theta):
        return jnp.sum(np.exp(ref) * (ref - jax.nn.log_softmax(theta)))

    @jax.jit
    def run(theta):
        batch = Batch(mask=np.ones(4, bool), old_logp=old, advantages=ref, weights=np.exp(old), ref_logp=ref)
        estimates = {"default": penalty.kl, "k2": partial(penalty.kl, estimator=penalty.k2),
                     "k3": partial(penalty.kl, estimator=penalty.k3), "corrected": penalty.kl_corrected}  # fmt: skip
        found = {
            k: jax.value_and_grad(lambda t, f=f: f(jax.nn.log_softmax(t), batch))(theta) for k, f in estimates.items()
        }
        return jax.value_and_grad(exact)(theta), jax.grad(forward)(theta), found

    with jax.enable_x64(True):
        (value, gradient), forwards, found = jax.device_get(run(theta))
    off = {k: np.linalg.norm(slope - gradient) / np.linalg.norm(gradient) for k, (_, slope) in found.items()}
    np.testing.assert_allclose(found["corrected"][0], value, rtol=1e-12)
    assert off["corrected"] < 1e-12
    assert off["k3"] > 0.2
    if name == "on-policy":
        np.testing.assert_allclose(found["default"][0], value, rtol=1e-12)
        assert off["default"] < 1e-12
        np.testing.assert_allclose(found["k3"][1], forwards, rtol=1e-12)
    else:
        assert off["default"] == off["k2"] > 0.2


def test_the_corrected_kl_far_from_either_policy():
    """With r = e^λ, r k3 = e^{λ − ℓ} (1 − e^ℓ + ℓ e^ℓ); each factor alone is outside the range of float32."""
    batch = Batch(mask=np.ones(3, bool), old_logp=np.float32([0, -100, 0]), advantages=np.ones(3, np.float32),
                  weights=np.ones(3, np.float32), ref_logp=np.float32([0, 0, 5]))  # fmt: skip
    logp = np.float32([-100, -100, 5])
    value, gradient = jax.jit(jax.value_and_grad(penalty.kl_corrected))(logp, batch)
    assert np.isposinf(value)
    np.testing.assert_allclose(gradient, [-100 * np.exp(-100), -100, 0], rtol=1e-6, atol=1e-37)
    held = dataclasses.replace(batch, weights=np.float32([1, 0, 1]))
    np.testing.assert_allclose(jax.jit(penalty.kl_corrected)(logp, held), 1.0, rtol=1e-6)


def test_k3_keeps_its_gradient_far_from_the_reference():
    np.testing.assert_allclose(jax.jit(jax.grad(penalty.k3))(-5.0), 1 - np.exp(5.0), rtol=1e-6)


def test_entropy_bonus_is_minus_a_weighted_sum():
    logp, batch, _, w = random_case()
    bonus, gradient = jax.jit(jax.value_and_grad(penalty.entropy_bonus))(np.abs(logp), batch)
    np.testing.assert_allclose(bonus, -np.sum(w * np.nan_to_num(np.abs(logp))), rtol=1e-5)
    np.testing.assert_allclose(gradient, -w, rtol=1e-6)


def test_value_loss_is_the_greater_of_two_squares():
    _, batch, v, w = random_case()
    rng = np.random.default_rng(5)
    old, target = v + rng.normal(size=v.shape) * 0.4, rng.normal(size=v.shape)
    near = np.clip(v, old - 0.2, old + 0.2)
    plain, clipped = (v - target) ** 2, (near - target) ** 2
    run = jax.jit(jax.value_and_grad(partial(penalty.value_loss, limit=0.2)))
    with jax.enable_x64(True):
        loss, gradient = run(v, batch, returns=target, old_values=old)
    assert papers.agree(loss, np.sum(w * 0.5 * np.maximum(plain, clipped)))
    inside = np.abs(v - old) <= 0.2
    assert papers.agree(gradient, w * np.where((clipped <= plain) | inside, v - target, 0))


def test_a_penalty_on_a_batch_is_the_sum_of_its_parts_and_empty_masks_give_zero():
    logp, batch, _, _ = random_case()
    run = jax.jit(jax.value_and_grad(penalty.kl))
    parts = [run(*jax.tree.map(lambda x, s=s: x[s], (logp, batch)))[0] for s in (slice(0, 3), slice(3, 6))]
    np.testing.assert_allclose(parts[0] + parts[1], run(logp, batch)[0], rtol=1e-5)
    empty = dataclasses.replace(batch, mask=np.zeros_like(batch.mask))
    loss, gradient = run(logp, empty)
    assert loss == 0
    np.testing.assert_array_equal(gradient, np.zeros_like(logp))


def test_arguments_that_do_not_fit():
    logp, batch, _, _ = random_case()
    with pytest.raises(ValueError, match=r"Batch\.ref_logp = None: expected log"):
        penalty.kl(logp, dataclasses.replace(batch, ref_logp=None))
    with pytest.raises(ValueError, match=r"entropy has shape \(6,\): expected \(6, 9\)"):
        penalty.entropy_bonus(logp[:, 0], batch)
    with pytest.raises(ValueError, match="limit = -1"):
        penalty.value_loss(logp, batch, returns=logp, old_values=logp, limit=-1.0)


def covariances(logp, batch):
    A, mask = batch.advantages, batch.mask
    mean_A, mean = (sum(x[mask]) / mask.sum() for x in (A, logp))
    c = np.zeros(mask.shape)
    for place in zip(*np.nonzero(mask), strict=True):
        c[place] = (A[place] - mean_A) * (logp[place] - mean)
    return c, mask


def test_covariance_is_its_formula():
    logp, batch, _, _ = random_case()
    with jax.enable_x64(True):
        assert papers.agree(jax.jit(penalty.covariance)(logp, batch), covariances(logp, batch)[0])


SHARES = [2e-4, 0.2, 1.0]


@together
def kl_covs(logp, batch):
    return {share: jax.value_and_grad(penalty.kl_cov)(logp, batch, share=share) for share in SHARES}


@pytest.mark.parametrize("share", SHARES)
def test_kl_cov_moves_the_tokens_of_largest_covariance(share):
    logp, batch, _, w = random_case()
    c, mask = covariances(logp, batch)
    k = max(1, int(share * mask.sum()))
    chosen = mask & (c >= np.sort(c[mask])[-k])
    l = np.where(mask, logp - batch.old_logp, 0)
    with jax.enable_x64(True):
        loss, gradient = kl_covs(logp, batch)[share]
    assert papers.agree(loss, np.sum(w * chosen * np.abs(l)))
    assert papers.agree(gradient, w * chosen * np.sign(l))
    assert np.count_nonzero(gradient) == k


def test_clip_cov_drops_random_candidates_by_its_key():
    rng = np.random.default_rng(0)
    shape, clip = (40, 25), partial(ratio.clip, low=0.2, high=0.2)
    logp, A, noise = (rng.normal(size=shape).astype(np.float32) for _ in range(3))
    batch = Batch(mask=np.ones(shape, bool), old_logp=logp - np.float32(0.3) * noise, advantages=A,
                  weights=np.ones(shape, np.float32))  # fmt: skip
    c, _ = covariances(logp, batch)
    clipped = np.asarray(jax.jit(jax.grad(policy_loss), static_argnums=2)(logp, batch, clip)) == 0
    candidates = ~clipped & (c > 1) & (c < 5)
    drop = jax.jit(lambda key, share: ~penalty.clip_cov(logp, batch, clip, key, share=share))
    for share, expected in ((0.02, 20), (1.0, candidates.sum())):
        dropped = np.asarray(drop(jax.random.key(0), share))
        assert dropped.sum() == expected
        assert not np.any(dropped & ~candidates)
    assert candidates.sum() > 60
    assert np.any(drop(jax.random.key(0), 0.02) != drop(jax.random.key(1), 0.02))
    np.testing.assert_array_equal(drop(jax.random.key(0), 0.02), drop(jax.random.key(0), 0.02))


def test_confident_negatives():
    batch = Batch(mask=np.ones((1, 4), bool), old_logp=np.zeros((1, 4)), weights=np.ones((1, 4)),
                  advantages=np.array([[1.0, -1.0, -1.0, 0.0]]))  # fmt: skip
    confident = jax.jit(partial(penalty.confident_negatives, threshold=2.0))
    kept = confident(np.array([[3.0, 3.0, 1.0, 3.0]]), batch)
    np.testing.assert_array_equal(kept, [[True, False, True, True]])


def test_the_quadratic_term_is_dros():
    """With f = 0 under `local_gradient` the gradient is that of −Σ w (A log π − ½βℓ²)."""
    logp, batch, _, w = random_case()
    constant = ratio.local_gradient(partial(ratio.clamp, limit=0.0))

    @jax.jit
    @jax.grad
    def run(logp, batch):
        return policy_loss(logp, batch, constant) + 0.3 * penalty.quadratic(logp, batch)

    with jax.enable_x64(True):
        gradient = run(logp, batch)
    l = np.where(batch.mask, logp - batch.old_logp, 0)
    assert papers.agree(gradient, -w * (batch.advantages - 0.3 * l))


def test_the_exact_kl_is_weighted():
    kl = np.array([[0.5, np.nan], [1.0, 2.0]])
    weights = np.array([[0.5, 0.5], [0.25, 0.0]])
    batch = Batch(mask=np.array([[True, False], [True, True]]), old_logp=kl, advantages=kl, weights=weights)
    loss, gradient = jax.jit(jax.value_and_grad(penalty.exact_kl))(kl, batch)
    assert loss == 0.5
    np.testing.assert_array_equal(gradient, [[0.5, 0], [0.25, 0]])
