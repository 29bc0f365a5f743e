from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from rljax import advantage
from rljax.advantage import token_baseline
from rljax.objective import required_fields
from tests import papers
from tests.together import together

TOKEN_BASELINES = ["optimal_token_baseline", "leave_one_out_token_baseline"]
BATCH_WIDE = [
    "multi_reward",
    "reinforce_plus_plus",
    "reinforce_plus_plus_baseline",
    "task_relative",
    "without_negatives",
]
COMBINATORS = ["standardized", "whiten", "whitened", "without_negatives"]
CASES = {
    name: (getattr(advantage, name), getattr(papers, name)) for name in advantage.__all__ if name not in COMBINATORS
}
CASES |= {
    "standardized pass_at_k": (advantage.standardized(advantage.pass_at_k), papers.standardized(papers.pass_at_k)),
    "discounted_returns .9": (
        partial(advantage.discounted_returns, gamma=0.9), partial(papers.discounted_returns, gamma=0.9),
    ),
    "generalized_advantage_estimation .9": (
        partial(advantage.generalized_advantage_estimation, gamma=0.9, lam=0.7),
        partial(papers.generalized_advantage_estimation, gamma=0.9, lam=0.7),
    ),
}  # fmt: skip
CASES["without_negatives"] = (
    advantage.without_negatives(advantage.task_relative), papers.without_negatives(papers.task_relative),
)  # fmt: skip
every_case = pytest.mark.parametrize("name", CASES)


def programs(*names):
    @together
    def run(rewards, mask, fields):
        found = {}
        for name in names:
            f = CASES[name][0]
            found[name] = f(rewards, mask, **{field: fields[field] for field in required_fields(f)})
        return found

    def apply(rewards, mask, proxy=None, **fields):
        given = {"proxy": proxy} if proxy is not None else {}
        return run(rewards, mask, papers.random_fields(0, rewards, mask) | given | fields)

    return apply


every = programs(*CASES)
token_baselines = programs(*TOKEN_BASELINES)


def expected(name, rewards, mask):
    f, fields = CASES[name][1], papers.random_fields(0, rewards, mask)
    named = {field: fields[field] for field in required_fields(CASES[name][0])}
    if name in BATCH_WIDE:
        return f(rewards, mask, **named)
    if "improvement" in named:
        f, named = partial(f, **named), {}
    return papers.over_groups(f)(rewards, mask, **named)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("dense", [False, True])
@every_case
def test_values_are_the_papers(name, dense, seed):
    rewards, mask, _ = papers.random_rollouts(seed, dense=dense)
    with jax.enable_x64(True):
        A, shifted = (every(rewards, m)[name] for m in (mask, np.roll(mask, 1, axis=-1)))
    answer = expected(name, rewards, mask)
    assert A.dtype == jnp.float64
    assert papers.agree(A, answer)
    assert not papers.agree(shifted, answer, 1e-3)


@together
def with_importance(rewards, mask, fields):
    return {name: getattr(advantage, name)(rewards, mask, **fields) for name in TOKEN_BASELINES}


@pytest.mark.parametrize("name", TOKEN_BASELINES)
def test_importance_weights_enter_the_energy_squared(name):
    rewards, mask, _ = papers.random_rollouts(0)
    fields = {name: papers.random_fields(0, rewards, mask)[name] for name in ("proxy", "importance")}
    weighed = papers.over_groups(getattr(papers, name))(rewards, mask, **fields)
    with jax.enable_x64(True):
        ours = with_importance(rewards, mask, fields)[name]
    assert papers.agree(ours, weighed)
    assert not papers.agree(expected(name, rewards, mask), weighed, 1e-3)


@pytest.mark.parametrize("name", TOKEN_BASELINES)
def test_rewards_and_proxies_at_masked_tokens_are_not_read(name):
    rewards, mask, proxy = papers.random_rollouts(3, dense=True)
    spoilt = token_baselines(np.where(mask, rewards, np.nan), mask, np.where(mask, proxy, np.nan))[name]
    np.testing.assert_array_equal(spoilt, token_baselines(rewards, mask, proxy)[name])


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("name", [*TOKEN_BASELINES, "exact_energy_baseline"])
def test_completions_without_holes_need_no_packing(name, dense):
    """Completions that begin at one column take the fast path; one misplaced token selects the other path."""
    rewards, mask, _ = papers.random_rollouts(0, dense=dense)
    columns, lengths = np.arange(mask.shape[-1]), np.random.default_rng(0).integers(0, 6, mask.shape[:2])
    mask = (columns >= 1) & (columns < 1 + lengths[..., None])
    assert token_baseline._aligned(mask)
    assert not token_baseline._aligned(mask | (columns == 0) & (np.arange(5) == 1)[:, None])
    with jax.enable_x64(True):
        assert papers.agree(every(rewards, mask)[name], expected(name, rewards, mask))


@pytest.mark.parametrize("name", TOKEN_BASELINES)
def test_the_longest_completion_gains_nothing_from_its_length(name):
    """R = 1 with lengths 5 and 3: the paper's code gives the longer completion A = [0, 0, 0, 1, 1]."""
    mask = np.arange(5) < np.array([[5], [3]])
    rewards, proxy = np.ones(2), np.ones((2, 5))
    np.testing.assert_array_equal(papers.reference_token_baseline(rewards, mask, proxy)[0], [0, 0, 0, 1, 1])
    A = token_baselines(rewards[None], mask[None], proxy[None])[name]
    np.testing.assert_array_equal(A, np.zeros((1, 2, 5)))


def test_past_the_other_completions_the_baseline_uses_their_last_tokens():
    mask = np.arange(4)[None] < np.array([[4], [2], [1]])
    proxy = np.array([[[1.0] * 4, [1.0, 0.5, 9.0, 9.0], [0.5, 9.0, 9.0, 9.0]]])
    for A in token_baselines(np.array([[1.0, 0.5, 0.0]]), mask[None], proxy).values():
        np.testing.assert_allclose(A[0, 0, 2:], 1 - (0.5 * 1.5 + 0.0 * 0.5) / 2.0, rtol=1e-6)


def test_own_sample_form_is_the_leave_one_out_form_shortened_by_its_own_share():
    """A = (1 − W_i / ΣW) · A_loo: the shorter step is the bias."""
    rewards, mask, proxy = np.array([[1.0, 0.0, 0.3]]), np.ones((1, 3, 4), bool), np.ones((1, 3, 4))
    A = token_baselines(rewards, mask, proxy)
    np.testing.assert_allclose(A["optimal_token_baseline"], A["leave_one_out_token_baseline"] * (2 / 3), rtol=1e-6)


def test_equal_energies_give_the_mean_baselines():
    rewards, _, _ = papers.random_rollouts(4)
    mask, proxy = np.ones((4, 5, 8), bool), np.ones((4, 5, 8))
    plain = ("mean_baseline", "leave_one_out")
    A = programs(*TOKEN_BASELINES, *plain)(rewards, mask, proxy)
    for token, name in zip(TOKEN_BASELINES, plain, strict=True):
        np.testing.assert_allclose(A[token], A[name], atol=1e-6)


def test_tiny_energies_of_the_others_survive_a_large_own_energy():
    """Subtracting the own energy from the total would leave rounding errors."""
    proxy = np.array([[[2.0], [1e-9], [3e-9]]])
    A = token_baselines(np.array([[0.0, 1.0, 2.0]]), np.ones((1, 3, 1), bool), proxy)
    np.testing.assert_allclose(A["leave_one_out_token_baseline"][0, 0, 0], -1.75, rtol=1e-6)


def test_worked_group():
    rewards, mask = np.array([[1.0, 0.0, 0.0]]), np.arange(3) < np.array([[[1], [2], [3]]])
    at_first = {"group_relative": 2 / 3 / (np.sqrt(1 / 3) + 1e-6), "mean_baseline": 2 / 3, "leave_one_out": 1.0,
                "length_weighted": 5 / 6, "pass_at_k": 1.0, "discounted_returns": 1.0,
                "standardized pass_at_k": 1 / (np.sqrt(1 / 3) + 1e-6)}  # fmt: skip
    A = programs(*at_first)(rewards, mask)
    for name, value in at_first.items():
        np.testing.assert_allclose(A[name][0, 0], [value, 0, 0], rtol=1e-6)


@every_case
def test_integer_rewards_are_numbers_too(name):
    rewards, mask = np.array([[2, 0, 1]], np.int32), np.ones((1, 3, 2), bool)
    A = every(rewards, mask, np.ones((1, 3, 2), np.float32))[name]
    assert A.dtype == jnp.float32
    assert np.max(np.abs(A)) > 0


@every_case
def test_arguments_that_do_not_fit(name):
    rewards, mask, proxy = papers.random_rollouts(0)
    apply = programs(name)
    with pytest.raises(TypeError, match="mask has dtype float32: expected bool"):
        apply(rewards, mask.astype(np.float32), proxy)
    with pytest.raises(ValueError, match=r"rewards has shape \(4, 4\): expected \(4, 5\)"):
        apply(rewards[:, :4], mask, proxy)
    with pytest.raises(ValueError, match=r"rewards has shape \(4,\): expected \[P, G\] or \[P, G, T\]"):
        apply(rewards[:, 0], mask, proxy)
    with pytest.raises(ValueError, match=r"mask has shape \(4, 5\): expected \[P, G, T\]"):
        apply(rewards, mask[..., 0], proxy)
    if name in TOKEN_BASELINES:
        with pytest.raises(ValueError, match=r"proxy has shape \(4, 5\)"):
            apply(rewards, mask, proxy[..., 0])
    if name == "prefix_tree":
        with pytest.raises(ValueError, match=r"tokens has shape \(4, 5\)"):
            apply(rewards, mask, tokens=np.zeros((4, 5), np.int32))
    if name == "remax":
        with pytest.raises(ValueError, match=r"greedy_rewards has shape \(3,\): expected \(4,\)"):
            apply(rewards, mask, greedy_rewards=np.zeros(3))


def test_hyper_parameters_out_of_range():
    rewards, mask, _ = papers.random_rollouts(0)
    for gamma in (99, -1, float("nan"), 1 + 1e-6):
        with pytest.raises(ValueError, match=rf"gamma = {gamma}: expected a number in \[0, 1\]"):
            advantage.reinforce_plus_plus(rewards, mask, gamma=gamma)
    with pytest.raises(ValueError, match=r"gamma = 1\.2"):
        advantage.discounted_returns(rewards, mask, gamma=1.2)
    with pytest.raises(ValueError, match=r"lam = -0\.1"):
        advantage.generalized_advantage_estimation(rewards, mask, values=np.zeros(mask.shape), lam=-0.1)
    with pytest.raises(ValueError, match="slope = -1"):
        advantage.policy_improvement(rewards, mask, improvement=1.0, slope=-1)


def test_worked_returns():
    """Three trained tokens around a tool token: R = 1 at the last; γ = ½, λ = ½, V = ½."""
    rewards, mask = np.array([[1.0]]), np.array([[[True, False, True, True]]])

    @jax.jit
    def worked(rewards, mask, values, greedy_rewards):
        return (
            advantage.discounted_returns(rewards, mask, gamma=0.5),
            advantage.generalized_advantage_estimation(rewards, mask, values=values, gamma=0.5, lam=0.5),
            advantage.remax(rewards, mask, greedy_rewards=greedy_rewards),
        )

    returns, estimated, less_greedy = worked(rewards, mask, np.full((1, 1, 4), 0.5), np.array([0.25]))
    np.testing.assert_allclose(returns[0, 0], [0.25, 0, 0.5, 1])
    np.testing.assert_allclose(estimated[0, 0], [-0.28125, 0, -0.125, 0.5])  # δ = −¼, −¼, ½
    np.testing.assert_allclose(less_greedy[0, 0], [0.75, 0, 0.75, 0.75])


def test_worked_prefix_tree():
    """ab → 1, ac → 0: the first token changes nothing, the second decides."""
    rewards, mask, tokens = np.array([[1.0, 0.0]]), np.ones((1, 2, 2), bool), np.array([[[0, 1], [0, 2]]], np.int32)
    A = jax.jit(advantage.prefix_tree)(rewards, mask, tokens=tokens)
    np.testing.assert_allclose(A[0], np.array([[0.5, 1.0], [-0.5, -1.0]]) / (np.sqrt(0.5) + 1e-6), rtol=1e-6)


def test_negatives_are_left_out_while_dropping():
    rewards, mask = np.array([[1.0, 0.0, 0.0]]), np.ones((1, 3, 2), bool)
    controlled = jax.jit(advantage.without_negatives(advantage.leave_one_out))
    for dropping, expected in ((True, [1.0, 0.0, 0.0]), (False, [1.0, -0.5, -0.5])):
        A = controlled(rewards, mask, dropping=np.array(dropping))
        np.testing.assert_allclose(A[0], np.repeat(np.array(expected)[:, None], 2, axis=1), rtol=1e-6)


def test_worked_batch_statistics():
    rewards, mask = np.array([[1.0, 0.0], [1.0, 1.0]]), np.ones((2, 2, 1), bool)

    @jax.jit
    def worked(rewards, mask, components):
        return (
            advantage.task_relative(rewards, mask, task=np.array([7, 7], np.int32)),
            advantage.reinforce_plus_plus(rewards, mask),
            advantage.policy_improvement(rewards, mask, improvement=-2.0),
            advantage.multi_reward(rewards, mask, components=components),
        )

    found = worked(rewards, mask, np.stack([rewards, 100 * rewards], -1))
    task_relative, plus_plus, improvement, multi_reward = (x[..., 0] for x in map(np.asarray, found))
    np.testing.assert_allclose(task_relative[0], np.array([0.5, -0.5]) / (0.5 + 1e-6), rtol=1e-6)
    np.testing.assert_allclose(plus_plus, np.array([[0.25, -0.75], [0.25, 0.25]]) / np.sqrt(0.25 + 1e-8), rtol=1e-6)
    np.testing.assert_allclose(improvement, [[-0.2, 0.2], [0, 0]], rtol=1e-6)
    np.testing.assert_allclose(multi_reward[0], np.array([1, -1]) * np.sqrt(3 / 2), rtol=1e-5)
