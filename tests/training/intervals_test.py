import itertools
import json

import numpy as np
import pytest

from rljax.training.evaluation.intervals import (
    Z,
    difference_interval,
    mean_interval,
    pass_at_k,
    reward_interval,
    wilson_interval,
)


def test_pass_at_k_is_the_share_of_subsets_with_a_right_sample():
    n = 6
    for k in range(1, n + 1):
        subsets = list(itertools.combinations(range(n), k))
        expected = [np.mean([any(i < c for i in subset) for subset in subsets]) for c in range(n + 1)]
        np.testing.assert_allclose(pass_at_k(n, np.arange(n + 1), k), expected, rtol=1e-12, atol=1e-12)


def test_pass_at_k_keeps_its_axes_and_does_not_overflow():
    c = np.array([[0, 1], [5000, 10000]])
    value = pass_at_k(10000, c, 100)
    assert value.shape == (2, 2)
    np.testing.assert_allclose(value, [[0.0, 0.01], [1.0, 1.0]], rtol=1e-9)


def test_pass_at_k_is_unbiased_and_the_plug_in_is_not():
    p, n, k = 0.2, 8, 4
    c = np.random.default_rng(0).binomial(n, p, size=200_000)
    truth = 1 - (1 - p) ** k
    assert abs(pass_at_k(n, c, k).mean() - truth) < 3e-3
    assert abs((1 - (1 - c / n) ** k).mean() - truth) > 3e-2


@pytest.mark.parametrize(("n", "c", "k"), [(4, 2, 5), (4, 2, 0), (4, 5, 1), (4, -1, 1)])
def test_pass_at_k_refuses(n, c, k):
    with pytest.raises(ValueError, match=r"^[ck] = .*expected .* n = 4"):
        pass_at_k(n, np.array([c]), k)


def test_wilson_by_hand():
    # the ends solve the quadratic (p̂ − p)² = z² p(1−p)/n
    value, low, high = wilson_interval(8, 10)
    assert value == 0.8
    for end in (low, high):
        assert (0.8 - end) ** 2 == pytest.approx(Z**2 * end * (1 - end) / 10, rel=1e-12)
    assert low < 0.8 < high


@pytest.mark.parametrize("n", [1, 10, 1000])
def test_wilson_at_the_ends_keeps_a_width(n):
    value, low, high = wilson_interval(0, n)
    assert value == low == 0.0 < high < 1.0
    value, low, high = wilson_interval(n, n)
    assert value == high == 1.0 > low > 0.0


@pytest.mark.parametrize(("right", "n"), [(0, 0), (3, 2), (-1, 2)])
def test_wilson_refuses(right, n):
    with pytest.raises(ValueError, match=f"right = {right}, n = {n}"):
        wilson_interval(right, n)


def test_mean_interval_is_wilson_for_yes_or_no_and_normal_in_the_middle():
    np.testing.assert_allclose(mean_interval([1.0] * 7 + [0.0] * 3), wilson_interval(7, 10), rtol=1e-12)
    values = np.random.default_rng(0).uniform(size=2000)
    value, low, high = mean_interval(values)
    half = Z * values.std(ddof=1) / np.sqrt(2000)
    np.testing.assert_allclose([value - low, high - value], [half, half], rtol=1e-2)


def test_the_unit_is_the_problem():
    """Coverage for problems of different difficulty. The mutant, samples taken as independent, covers too little."""
    draw = np.random.default_rng(0)
    problems, samples, truth = 60, 8, 0.3
    held = mutant = 0
    for _ in range(1000):
        solved = draw.binomial(samples, draw.beta(0.3, 0.7, size=problems))
        _, low, high = mean_interval(pass_at_k(samples, solved, 1))
        held += low <= truth <= high
        _, low, high = wilson_interval(int(solved.sum()), problems * samples)
        mutant += low <= truth <= high
    assert 0.93 < held / 1000 < 0.97
    assert mutant / 1000 < 0.75


@pytest.mark.parametrize("values", [[], [0.5, 1.5], [np.nan], [[0.5]]])
def test_mean_interval_refuses(values):
    with pytest.raises(ValueError, match="values of shape"):
        mean_interval(values)


@pytest.mark.parametrize("values", [[0.5], [1.0, 1.0], [0.0], [0.1] * 30])
def test_mean_interval_is_never_without_width(values):
    value, low, high = mean_interval(values)
    assert low <= value <= high
    assert high - low > 1e-3


def test_reward_interval_holds_the_mean_of_any_numbers():
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        value, low, high = reward_interval(draw.exponential(3.0, size=80) - 5)
        assert low < value < high
        held += low <= -2 <= high
    assert 0.92 < held / 1000 < 0.96
    assert reward_interval([-0.5]) == [-0.5] * 3
    assert reward_interval([0.0, 0.95, 1.0]) == mean_interval([0.0, 0.95, 1.0])


@pytest.mark.parametrize("values", [[], [0.5, np.nan], [np.inf], [[0.5]]])
def test_reward_interval_refuses(values):
    with pytest.raises(ValueError, match="values of shape"):
        reward_interval(values)


def test_difference_interval_holds_the_truth():
    draw = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        before, after = (wilson_interval(draw.binomial(80, p), 80) for p in (0.2, 0.5))
        _, low, high = difference_interval(before, after)
        held += low <= 0.3 <= high
    assert 0.93 < held / 1000 < 0.975


def test_intervals_are_json():
    made = [
        mean_interval(np.array([0.0, 0.5])),
        reward_interval([-3.0]),
        wilson_interval(1, 2),
        difference_interval([0, 0, 1], [1, 0, 1]),
    ]
    assert json.loads(json.dumps(made)) == [list(interval) for interval in made]
