"""How well a policy does on problems, and how sure that is: pass@k, and 95 % intervals with problems as the unit.

Several samples of one problem are not independent: what is drawn from the world are the problems. So every interval
here is over problems, and more samples a problem narrow it only as far as they settle those problems.
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

Z = 1.959963984540054
"""The normal's 97.5 % quantile: ± Z standard errors hold 95 %."""

REWARD = "reward"
"""Name of the figure that is not a share of problems or samples: the mean reward."""


def pass_at_k(n: int, c: Int[np.ndarray, "*B"], k: int) -> Float[np.ndarray, "*B"]:
    """The probability that at least one of k samples is right, without bias, from n samples of which c were right.

        pass@k = 1 − C(n−c, k) / C(n, k) = 1 − ∏_{i=n−c+1..n} (1 − k/i),   and 1 where n − c < k

    `c` holds a count for each problem; the benchmark's pass@k is the mean over problems (`mean_interval`). Unlike
    1 − (1 − c/n)^k, which is too low, its expectation is the quantity itself. Raises ValueError unless 1 ≤ k ≤ n and
    0 ≤ c ≤ n. From 2107.03374 (Chen et al.).

    >>> pass_at_k(4, np.array([0, 1, 2, 4]), 2).round(3).tolist()
    [0.0, 0.5, 0.833, 1.0]
    """
    c = np.asarray(c)
    if not 1 <= k <= n:
        raise ValueError(f"k = {k}: expected 1 to n = {n}, the number of samples a problem")
    if np.any((c < 0) | (c > n)):
        raise ValueError(f"c = {c}: expected counts from 0 to n = {n}")
    i = np.arange(1, n + 1)
    factors = np.where(i > n - c[..., None], 1.0 - k / i, 1.0)
    # Where fewer than k samples failed, i = k is among the factors, and is zero.
    return 1.0 - np.prod(factors, axis=-1)


def wilson_interval(right: int, n: int) -> list[float]:
    """`[value, low, high]` of a proportion, right of n independent problems: greedy accuracy.

        (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n),   p = right/n

    It never leaves [0, 1] and keeps a width at 0 and 1, where the normal interval has none. Raises ValueError unless
    0 ≤ right ≤ n and n ≥ 1. From Wilson, 1927 (not verified from the source).

    >>> [round(x, 3) for x in wilson_interval(10, 10)]
    [1.0, 0.722, 1.0]
    """
    if n < 1 or not 0 <= right <= n:
        raise ValueError(f"right = {right}, n = {n}: expected n ≥ 1 problems of which 0 to n are right")
    return _score_interval(right / n, n)


def mean_interval(values: Float[np.ndarray, " n"] | Sequence[float]) -> list[float]:
    """`[value, low, high]` of a mean over problems, each of which has a value in [0, 1]: pass@1, pass@k.

        Wilson's interval at p = mean(values), with n replaced by  n_eff = max(n, p(1−p) / (s²/n)),

    s² the sample variance between problems. n_eff is how many independent yes-or-no trials are worth as much: n where
    every problem is all or nothing (then this is `wilson_interval`), more where samples of a problem differ. Near the
    middle it is the normal interval p ± z s/√n. Raises ValueError for no values, or values outside [0, 1]. Ours, after
    the score interval with an effective sample size of survey statistics (not verified from a source).

    >>> [round(x, 3) for x in mean_interval([0.0, 1.0, 1.0, 1.0])] == [round(x, 3) for x in wilson_interval(3, 4)]
    True
    """
    values = np.asarray(values, dtype=np.float64)
    n = values.size
    if n == 0 or values.ndim != 1 or not np.all((values >= 0) & (values <= 1)):
        raise ValueError(
            f"values of shape {values.shape}: expected one number in [0, 1] for each problem, got {values}"
        )
    p = float(values.mean())
    error = float(values.var(ddof=1)) / n if n > 1 else math.inf
    return _score_interval(p, max(n, p * (1 - p) / error) if error > 1e-12 else n)


def reward_interval(values: Float[np.ndarray, " n"] | Sequence[float]) -> list[float]:
    """`[value, low, high]` of a mean over problems of values of any range: the mean reward.

        m ± z s/√n,   s² the sample variance between problems

    The normal interval: for few problems it is too narrow, and it has no width for one problem or equal values. If all
    values are in [0, 1] it is `mean_interval`, which has one. Raises ValueError for no values, or values that are not
    finite.

    >>> [round(x, 3) for x in reward_interval([0.0, 2.0, 4.0, 2.0])]  # s² = 8/3, s/√n = √(2/3)
    [2.0, 0.4, 3.6]
    """
    values = np.asarray(values, dtype=np.float64)
    n = values.size
    if n == 0 or values.ndim != 1 or not np.all(np.isfinite(values)):
        raise ValueError(f"values of shape {values.shape}: expected one finite number for each problem, got {values}")
    if np.all((values >= 0) & (values <= 1)):
        return mean_interval(values)
    mean, half = float(values.mean()), Z * float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    return [mean, mean - half, mean + half]


def as_text(name: str, interval: Sequence[float]) -> tuple[str, str]:
    """(value, interval) of a figure as a table shows it: percent, and the mean reward as it is.

    >>> as_text("pass@1", [0.5, 0.25, 0.75]), as_text("reward", [0.5, 0.25, 0.75])
    (('50.0', '[25.0, 75.0]'), ('0.500', '[0.250, 0.750]'))
    """
    factor, digits = (1, 3) if name == REWARD else (100, 1)
    value, low, high = (f"{factor * x:.{digits}f}" for x in interval)
    return value, f"[{low}, {high}]"


def difference_interval(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """`[value, low, high]` of after − before, from the `[value, low, high]` of each.

        low  = d − √((after − after_low)² + (before_high − before)²)
        high = d + √((after_high − after)² + (before − before_low)²)

    This takes the two as independent; measured on the same problems they rise and fall together, and the interval is
    wider than it need be. Newcombe's square-and-add method (not verified from the source).

    >>> [round(x, 3) for x in difference_interval([0.2, 0.16, 0.24], [0.5, 0.47, 0.53])]
    [0.3, 0.25, 0.35]
    """
    (p, p_low, p_high), (q, q_low, q_high) = before, after
    d = q - p
    return [d, d - math.hypot(q - q_low, p_high - p), d + math.hypot(q_high - q, p - p_low)]


def _score_interval(p: float, n: float) -> list[float]:
    """Wilson's interval at p and n; the rounding at p = 0 and 1 is cut off."""
    middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    return [p, max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half))]
