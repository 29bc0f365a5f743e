from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import Batch, policy_loss, ratio
from rljax.objective import required_fields
from tests import papers
from tests.together import together

GRADIENT = jax.jit(jax.grad(policy_loss), static_argnums=2)
CASES = {
    "token": (ratio.token, papers.token),
    "sequence_mean": (ratio.sequence_mean, papers.sequence_mean),
    "sequence_sum": (ratio.sequence_sum, papers.sequence_sum),
    "cumulative": (ratio.cumulative, papers.cumulative),
    "prefix_mean": (ratio.prefix_mean, papers.prefix_mean),
    "prefix_min": (ratio.prefix_min, papers.prefix_min),
    **{f"power_mean {p}": (partial(ratio.power_mean, p=p), papers.power_mean(p)) for p in (-2.0, -1.0, 0.0, 0.5, 3.0)},
    "clip": (partial(ratio.clip, low=0.2, high=0.28), papers.clip(0.2, 0.28)),
    "clip dual": (partial(ratio.clip, low=0.2, high=0.28, dual=1.3), papers.clip(0.2, 0.28, 1.3)),
    "log_clip": (partial(ratio.log_clip, log_low=0.3, log_high=0.4), papers.log_clip(0.3, 0.4)),
    "position_clip": (
        partial(ratio.position_clip, log_low=0.1, log_high=0.2, log_dual=0.15),
        papers.position_clip(0.1, 0.2, 0.15),
    ),
    "position_clip power": (
        partial(ratio.position_clip, log_low=0.1, log_high=0.2, power=-0.5),
        papers.position_clip(0.1, 0.2, power=-0.5),
    ),
    "two_sided_clip": (partial(ratio.two_sided_clip, high=0.28), papers.two_sided_clip(None, 0.28)),
    "two_sided_clip low": (partial(ratio.two_sided_clip, low=0.2, high=0.28), papers.two_sided_clip(0.2, 0.28)),
    "soft_gate": (ratio.soft_gate, papers.soft_gate()),
    **{
        f"{name} {q}": (
            partial(getattr(ratio, name), low=0.03, high=0.05, old_logp=np.full((6, 9), np.log(q))),
            getattr(papers, name)(0.03, 0.05, q),
        )
        for name in ("total_variation_mask", "kl_mask")
        for q in (0.02, 0.3)
    },
    "cumulative_divergence_mask": (
        partial(ratio.cumulative_divergence_mask, limit=0.15, slack=0.02, divergence=np.full((6, 9), 0.1)),
        papers.cumulative_divergence_mask(0.15, 0.02, 0.1),
    ),
    "gamma_gate": (ratio.gamma_gate, papers.gamma_gate()),
    "taper": (ratio.taper, papers.taper),
    "clamp": (partial(ratio.clamp, limit=0.3), papers.clamp(0.3)),
    "chain, local_gradient": (
        ratio.chain(ratio.local_gradient(ratio.cumulative), partial(ratio.clip, low=0.4, high=0.6)),
        papers.chain(papers.local_gradient(papers.cumulative), papers.clip(0.4, 0.6)),
    ),
}


def test_every_ratio_has_a_formula_here():
    assert {name for case in CASES for name in case.replace(",", "").split() if name in ratio.__all__} == set(
        ratio.__all__
    )


@together
def ours(l, A, w, mask):
    batch = Batch(mask=mask, old_logp=jnp.zeros_like(l), advantages=A, weights=w)
    return {name: (f(l, A, mask), *jax.value_and_grad(policy_loss)(l, batch, f)) for name, (f, _) in CASES.items()}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", CASES)
def test_values_losses_and_gradients_are_the_papers(name, seed):
    _, paper = CASES[name]
    l, A, w, mask = papers.random_batch(seed)
    A = A * np.random.default_rng(seed).choice([-1, 1, 2], A.shape) if seed else A
    ids = mask.astype(int)
    with jax.enable_x64(True):
        values, loss, gradient = ours(l, A, w, mask)[name]
    assert values.dtype == loss.dtype == gradient.dtype == jnp.float64
    earning = mask & (A != 0)
    with np.errstate(invalid="ignore"):
        expected = np.where(earning, papers.ratio_values(paper, l, A, ids), 0)
    np.testing.assert_array_equal(np.isneginf(np.where(earning, values, 0)), np.isneginf(expected))
    values, expected = (np.where(earning & ~np.isneginf(expected), x, 0) for x in (values, expected))
    assert papers.agree(values, expected)
    assert papers.agree(loss, papers.policy_loss(paper, l, A, w, ids))
    expected = papers.policy_gradient(paper, l, A, w, ids)
    assert papers.agree(gradient, expected)
    assert not papers.agree(np.zeros_like(gradient), expected)  # a zero gradient fails


def test_a_mask_off_by_one_does_not_pass():
    l, A, w, mask = papers.random_batch(0)
    with jax.enable_x64(True):
        found = ours(l, A, w, np.roll(mask, 1, axis=-1))
    for name in ("sequence_mean", "cumulative", "prefix_min", "power_mean 3.0"):
        expected = papers.policy_gradient(CASES[name][1], l, A, w, mask.astype(int))
        assert not papers.agree(found[name][2], expected, 1e-3)


def test_worked_values():
    l = np.array([[0.10, -0.05, 0.10, 0.30], [-0.20, 0.10, -0.30, np.nan]], np.float32)
    mask, A = np.array([[1, 1, 1, 1], [1, 1, 1, 0]], bool), np.ones((2, 4), np.float32)
    cumulative, least = jax.jit(lambda *x: (ratio.cumulative(*x), ratio.prefix_min(*x)))(l, A, mask)
    np.testing.assert_allclose(cumulative, [[0.10, 0.05, 0.15, 0.45], [-0.20, -0.10, -0.40, 0]], 1e-6)
    minimum = np.exp(least - l)
    np.testing.assert_allclose(minimum[0], [1, 1.105171, 0.951229, 0.951229], 2e-6)
    np.testing.assert_allclose(minimum[1, :3], [1, 0.818731, 0.818731], 2e-6)
    first = [1.102394, 1.110567, 1.119072, 1.127858, 1.136856, 1.145987]
    second = [0.852011, 0.863036, 0.875173, 0.888240, 0.901949, 0.915936]
    power_mean = jax.jit(ratio.power_mean)
    for p, expected in zip((-2, -1, 0, 1, 2, 3), zip(first, second, strict=True), strict=True):
        np.testing.assert_allclose(np.exp(power_mean(l, A, mask, p=float(p)))[:, 0], expected, 1e-6)


def test_a_token_of_no_advantage_has_the_bounds_of_a_positive_one():
    """A token with A = 0 adds nothing to the loss, but contributes to the ratio of its sequence if a pool follows."""
    l, none = np.log(np.array([0.5, 2.0], np.float32)), np.zeros(2, np.float32)
    position_clip = partial(ratio.position_clip, log_low=0.2, log_high=0.2)
    for clip in (partial(ratio.clip, low=0.2, high=0.2), position_clip):
        found = clip(l, none, none == 0)
        np.testing.assert_array_equal(found, clip(l, none + 1, none == 0))
        assert found[0] == l[0]
        assert found[1] < l[1]


def test_worked_gradient_of_the_soft_gate():
    one = np.ones((1,), np.float32)
    gradient = jax.jit(jax.grad(lambda l: jnp.exp(ratio.soft_gate(l, one, one > 0))[0]))(np.log(1.3 * one))
    np.testing.assert_allclose(gradient, 1.271183, 1e-6)
    np.testing.assert_allclose(gradient / 1.3, 0.977833, 1e-6)


POWERS = [-300.0, -1e-4, 1e-30, 0.0, 1e-4, 200.0]


@together
def power_means(l, A, mask, share):
    found = {}
    for p in POWERS:
        values, pull = jax.vjp(lambda l, p=p: ratio.power_mean(l, A, mask, p=p), l)
        found[p] = values, pull(share)[0]
    return found


@pytest.mark.parametrize("p", POWERS)
def test_power_mean_is_stable_in_float32(p):
    """Accurate for large |pℓ| and tiny p; the gradient weights r^p / Σ r^p sum to 1."""
    l, A, _, mask = papers.random_batch(1, scale=1.0)
    share = mask / np.maximum(mask.sum(-1, keepdims=True), 1)
    values, gradient = power_means(*(x.astype(np.float32) for x in (l, A)), mask, share.astype(np.float32))[p]
    exact = papers.ratio_values(papers.power_mean(p if abs(p) > 1e-20 else 0.0), l.astype(np.longdouble), A, mask)
    np.testing.assert_allclose(values, exact, rtol=2e-6, atol=2e-6)
    np.testing.assert_allclose(np.sum(gradient, -1), np.any(mask, -1), rtol=1e-5)


def test_p_may_be_traced_and_its_gradient_is_finite_at_zero():
    l, A, _, mask = papers.random_batch(1)
    powers = (0.0, 2.0)
    fixed = jax.jit(lambda l, A: [ratio.power_mean(l, A, mask, p=p) for p in powers])(l, A)
    traced = jax.jit(lambda l, A, p: ratio.power_mean(l, A, mask, p=p))
    slope = jax.jit(jax.grad(lambda p: jnp.sum(traced(l, A, p))))
    for p, expected in zip(powers, fixed, strict=True):
        np.testing.assert_allclose(traced(l, A, p), expected, rtol=1e-6, atol=1e-7)
        assert np.isfinite(slope(p))


@pytest.mark.parametrize("name", ["sequence_sum", "cumulative", "prefix_mean"])
def test_bare_prefix_ratios_give_a_tokens_advantage_to_others(name):
    """This is why algorithms use these ratios under `local_gradient` only."""
    l, mask = jnp.zeros((1, 4)), jnp.ones((1, 4), bool)
    batch = Batch(mask=mask, old_logp=l, advantages=jnp.array([[0.0, 0.0, 0.0, 1.0]]), weights=jnp.ones((1, 4)))
    bare = GRADIENT(l, batch, CASES[name][0])
    local = GRADIENT(l, batch, ratio.local_gradient(CASES[name][0]))
    assert bare[0, 0] != 0
    np.testing.assert_array_equal(local, [[0, 0, 0, -1]])


def test_a_pool_spreads_token_advantages_and_local_gradient_does_not():
    l, A = jnp.zeros((1, 4)), jnp.array([[1.0, -1.0, 1.0, -1.0]])
    batch = Batch(mask=A != 0, old_logp=l, advantages=A, weights=jnp.ones((1, 4)))
    np.testing.assert_array_equal(GRADIENT(l, batch, ratio.sequence_mean), jnp.zeros((1, 4)))
    np.testing.assert_array_equal(GRADIENT(l, batch, ratio.local_gradient(ratio.sequence_mean)), -A)


def test_gates_pass_gradients_on_policy_even_with_no_room():
    l, mask = jnp.zeros((2, 3)), jnp.ones((2, 3), bool)
    A = jnp.array([[1.0] * 3, [-1.0] * 3])
    batch = Batch(mask=mask, old_logp=l, advantages=A, weights=jnp.ones((2, 3)))
    for f in (
        partial(ratio.clip, low=0.0, high=0.0, dual=1.0),
        partial(ratio.position_clip, log_low=0.0, log_high=0.0, log_dual=0.0),
        partial(ratio.two_sided_clip, low=0.0, high=0.0),
    ):
        np.testing.assert_array_equal(GRADIENT(l, batch, f), -A)


def test_a_soft_gate_has_no_nan_far_away():
    l, A = np.array([[200.0, -200.0]], np.float32), np.ones((1, 2), np.float32)
    gradient = jax.jit(jax.grad(lambda l: jnp.sum(ratio.soft_gate(l, A, A > 0))))(l)
    np.testing.assert_array_equal(gradient, np.zeros((1, 2)))


def test_no_rows_are_a_loss_of_0():
    none, mask = np.zeros((0, 3, 4), np.float32), np.zeros((0, 3, 4), bool)
    batch = Batch(mask=mask, old_logp=none, advantages=none, weights=none)
    position_clip = partial(ratio.position_clip, log_low=0.1, log_high=0.2)
    for f in (ratio.token, ratio.sequence_mean, ratio.cumulative, ratio.prefix_mean, ratio.prefix_min, position_clip):
        assert policy_loss(none, batch, f) == 0


def test_undecidable_tokens_are_nan():
    nan, A, mask = np.float32([-0.1, np.nan, -0.1]), np.float32([1, 1, 1]), np.ones(3, bool)
    cppo = partial(ratio.cumulative_divergence_mask, limit=0.15, slack=0.02)
    assert np.isnan(ratio.taper(nan, A, mask)[1])
    assert np.isnan(ratio.taper(nan, -A, mask)[1])
    assert np.isnan(cppo(nan, A, mask, divergence=A)[1])
    assert np.isnan(cppo(-A, -A, mask, divergence=nan)[1])
    for f in (ratio.total_variation_mask, ratio.kl_mask):
        assert np.isnan(f(A, A, mask, old_logp=nan, low=0.1, high=0.1)[1])


def needs_divergence(log_ratio, advantages, segments, *, divergence, scale=1.0):
    return log_ratio - scale * divergence


def test_required_keywords_pass_through_chain_local_gradient_and_partial():
    wrapped = ratio.local_gradient(ratio.chain(ratio.token, partial(needs_divergence, scale=2.0)))
    assert required_fields(wrapped) == {"divergence"}
    assert required_fields(partial(wrapped, divergence=jnp.ones((1, 2)))) == frozenset()
    mask, zero = jnp.ones((1, 2), bool), jnp.zeros((1, 2))
    batch = Batch(mask=mask, old_logp=zero, advantages=zero + 1, weights=zero + 1, divergence=zero + 0.5)
    loss = jax.jit(policy_loss, static_argnums=2)
    np.testing.assert_allclose(loss(zero, batch, wrapped), -2 * np.exp(-1), 1e-6)
    bound = partial(wrapped, divergence=zero)
    np.testing.assert_allclose(loss(zero, batch, bound), -2, 1e-6)


@pytest.mark.parametrize(
    ("f", "name"),
    [
        (partial(ratio.clip, low=-0.1, high=0.2), "low = -0.1"),
        (partial(ratio.clip, low=1.0, high=0.2), "low = 1.0"),
        (partial(ratio.clip, low=0.2, high=-0.2), "high = -0.2"),
        (partial(ratio.clip, low=0.2, high=0.2, dual=0.5), "dual = 0.5"),
        (partial(ratio.log_clip, log_low=-1.0, log_high=0.2), "log_low"),
        (partial(ratio.position_clip, log_low=0.1, log_high=-1.0), "log_high"),
        (partial(ratio.two_sided_clip, low=1.5, high=0.2), "low"),
        (partial(ratio.soft_gate, positive=0.0), "positive"),
        (partial(ratio.clamp, limit=-1.0), "limit"),
        (partial(ratio.total_variation_mask, low=-0.1, high=0.1, old_logp=jnp.zeros((2, 3))), "low = -0.1"),
        (partial(ratio.kl_mask, low=0.1, high=0.1, cap=0.5, old_logp=jnp.zeros((2, 3))), "cap = 0.5"),
        (partial(ratio.kl_mask, low=0.1, high=0.1, old_logp=jnp.zeros((2, 2))), "old_logp has shape"),
        (partial(ratio.cumulative_divergence_mask, limit=-1, slack=0, divergence=jnp.zeros((2, 3))), "limit = -1"),
        (partial(ratio.clip, low=float("nan"), high=0.2), "low"),
    ],
)
def test_hyper_parameters_out_of_range(f, name):
    l = jnp.zeros((2, 3))
    with pytest.raises(ValueError, match=name):
        f(l, l, l == 0)


def test_arguments_that_do_not_fit():
    l, mask = jnp.zeros((2, 3)), jnp.ones((2, 3), bool)
    with pytest.raises(ValueError, match=r"advantages has shape \(2, 1\): expected \(2, 3\)"):
        ratio.sequence_mean(l, jnp.zeros((2, 1)), mask)
    with pytest.raises(ValueError, match=r"log_ratio has shape \(3,\)"):
        ratio.token(l[0], l, mask)
    with pytest.raises(ValueError, match="segments has shape"):
        ratio.token(l[0, 0], l[0, 0], mask[0, 0])
    with pytest.raises(TypeError, match="segments has dtype float32"):
        ratio.cumulative(l, l, l)


def test_divergence_masks_drop_by_the_change_of_probability_not_by_the_ratio():
    """At r = 1.5 a rare token is kept and a likely token is dropped; if A < 0 both are kept."""
    l, A, mask = jnp.full((2, 2), jnp.log(1.5)), jnp.array([[1.0, 1.0], [-1.0, -1.0]]), jnp.ones((2, 2), bool)
    old_logp = jnp.log(jnp.array([[0.01, 0.6]] * 2))
    batch = Batch(mask=mask, old_logp=old_logp, advantages=A, weights=jnp.ones((2, 2)))
    for f in (ratio.total_variation_mask, ratio.kl_mask):
        gradient = GRADIENT(old_logp + l, batch, partial(f, low=0.1, high=0.1))
        np.testing.assert_allclose(gradient, [[-1.5, 0], [1.5, 1.5]], rtol=1e-5)


def test_worked_cumulative_divergence():
    """The budget is .15 + .02·W_{t−1}. D = .1 with weights 1, .9, .8: S_2 = .19 > .17 and S_3 = .27 > .188."""
    l, one, mask = (np.full((1, 3), x, np.float32) for x in (0.2, 1.0, 1.0))
    divergence = np.full((1, 3), 0.1, np.float32)
    f = jax.jit(partial(ratio.cumulative_divergence_mask, limit=0.15, slack=0.02, divergence=divergence))
    np.testing.assert_array_equal(np.isneginf(f(l, one, mask > 0)), [[False, True, True]])
    np.testing.assert_array_equal(f(l, -one, mask > 0), l)
