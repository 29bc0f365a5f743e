"""pass@k, and 95 % intervals over problems: only the results of different problems are treated as independent."""

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from jaxtyping import Float, Int

Z = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""

REWARD = "reward"
"""Name of the mean reward among the figures; all other figures are shares in [0, 1]."""

CONSTANT = "best constant"
"""Name of the accuracy of the best constant strategy among the figures."""

STRATEGY = "strategy"
"""Name of that strategy in a level's results."""


def figure_names(rows: Iterable[Mapping]) -> list[str]:
    """Names of the figures [value, low, high] in the results of several levels."""
    names = dict.fromkeys(name for row in rows for name in row)
    return [name for name in names if name not in ("problems", "samples", STRATEGY)]


def strategies(levels: Mapping[str, Mapping]) -> str:
    """A sentence that names the best constant strategy of each level; empty if the task has none.

    >>> strategies({"sums": {"strategy": "a + b"}, "words": {"strategy": "last word"}, "rest": {}})
    'Best constant strategies: a + b (sums); last word (words).'
    """
    named: dict[str, list[str]] = {}
    for level, row in levels.items():
        if STRATEGY in row:
            named.setdefault(row[STRATEGY], []).append(level)
    shown = "; ".join(f"{strategy} ({', '.join(of)})" for strategy, of in named.items())
    return f"Best constant strategies: {shown}." if shown else ""


def pass_at_k(n: int, c: Int[np.ndarray, "*B"], k: int) -> Float[np.ndarray, "*B"]:
    """Unbiased estimate of the probability that at least one of k samples is correct (Chen et al., 2107.03374).

        pass@k = 1 − C(n−c, k) / C(n, k) = 1 − ∏_{i=n−c+1..n} (1 − k/i),   and 1 if n − c < k

    `n` is the number of samples per problem and `c` the number of correct samples of each problem, of any shape; the
    result has the shape of c, and `mean_interval` averages it. Raises ValueError unless 1 ≤ k ≤ n and 0 ≤ c ≤ n.

    >>> pass_at_k(4, np.array([0, 1, 2, 4]), 2).round(3).tolist()
    [0.0, 0.5, 0.833, 1.0]
    """
    c = np.asarray(c)
    if not 1 <= k <= n:
        raise ValueError(f"k = {k}: expected 1 to n = {n}, the number of samples per problem")
    if np.any((c < 0) | (c > n)):
        raise ValueError(f"c = {c}: expected counts from 0 to n = {n}")
    i = np.arange(1, n + 1)
    factors = np.where(i > n - c[..., None], 1.0 - k / i, 1.0)
    # If fewer than k samples failed, the factor at i = k is 0.
    return 1.0 - np.prod(factors, axis=-1)


def wilson_interval(right: int, n: int) -> list[float]:
    """Wilson's score interval [value, low, high] of the proportion right/n, for `right` of `n` independent problems.

        (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n),   p = right/n

    The interval is inside [0, 1] and, unlike the normal interval, has a positive width at p = 0 and 1. Raises
    ValueError unless 0 ≤ right ≤ n and n ≥ 1. Source: Wilson, 1927 (not verified).

    >>> [round(x, 3) for x in wilson_interval(10, 10)]
    [1.0, 0.722, 1.0]
    """
    if n < 1 or not 0 <= right <= n:
        raise ValueError(f"right = {right}, n = {n}: expected n ≥ 1 and 0 ≤ right ≤ n")
    return _score_interval(right / n, n)


def mean_interval(values: Float[np.ndarray, " n"] | Sequence[float]) -> list[float]:
    """Interval [value, low, high] of the mean of `values` in [0, 1], one value per problem, such as pass@k.

        Wilson's interval at p = mean(values), with n replaced by  n_eff = max(n, p(1−p) / (s²/n)),

    where s² is the sample variance over problems; p(1−p) / (s²/n) yes-or-no trials would have the same standard error.
    If all values are 0 or 1, n_eff = n and the result equals `wilson_interval`. Raises ValueError if there are no
    values or a value is outside [0, 1]. Adapted from the effective sample size of surveys (source not verified).

    >>> [round(x, 3) for x in mean_interval([0.0, 1.0, 1.0, 1.0])] == [round(x, 3) for x in wilson_interval(3, 4)]
    True
    """
    values = np.asarray(values, dtype=np.float64)
    n = values.size
    if n == 0 or values.ndim != 1 or not np.all((values >= 0) & (values <= 1)):
        raise ValueError(f"values of shape {values.shape}: expected one number in [0, 1] per problem, got {values}")
    p = float(values.mean())
    error = float(values.var(ddof=1)) / n if n > 1 else math.inf
    return _score_interval(p, max(n, p * (1 - p) / error) if error > 1e-12 else n)


def reward_interval(values: Float[np.ndarray, " n"] | Sequence[float]) -> list[float]:
    """Interval [value, low, high] of the mean reward; `values` has the reward of each problem.

        m ± z s/√n,   where s² is the sample variance over problems

    The interval is too narrow for few problems, and has width 0 for one problem or equal values. If all values are in
    [0, 1], `mean_interval` is used instead. Raises ValueError if there are no values or one is not finite.

    >>> [round(x, 3) for x in reward_interval([0.0, 2.0, 4.0, 2.0])]  # s² = 8/3, s/√n = √(2/3)
    [2.0, 0.4, 3.6]
    """
    values = np.asarray(values, dtype=np.float64)
    n = values.size
    if n == 0 or values.ndim != 1 or not np.all(np.isfinite(values)):
        raise ValueError(f"values of shape {values.shape}: expected one finite number per problem, got {values}")
    if np.all((values >= 0) & (values <= 1)):
        return mean_interval(values)
    mean, half = float(values.mean()), Z * float(values.std(ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    return [mean, mean - half, mean + half]


def as_text(name: str, interval: Sequence[float]) -> tuple[str, str]:
    """(value, interval) as text, in percent except for the mean reward.

    >>> as_text("pass@1", [0.5, 0.25, 0.75]), as_text("reward", [0.5, 0.25, 0.75])
    (('50.0', '[25.0, 75.0]'), ('0.500', '[0.250, 0.750]'))
    """
    factor, digits = (1, 3) if name == REWARD else (100, 1)
    value, low, high = (f"{factor * x:.{digits}f}" for x in interval)
    return value, f"[{low}, {high}]"


def difference_interval(before: Sequence[float], after: Sequence[float]) -> list[float]:
    """Interval [value, low, high] of d = after − before, from the intervals of `before` and `after`.

        low  = d − √((after − after_low)² + (before_high − before)²)
        high = d + √((after_high − after)² + (before − before_low)²)

    `before` and `after` are assumed independent; on the same problems, the interval is usually wider than necessary.
    Source: Newcombe's square-and-add method (not verified).

    >>> [round(x, 3) for x in difference_interval([0.2, 0.16, 0.24], [0.5, 0.47, 0.53])]
    [0.3, 0.25, 0.35]
    """
    (p, p_low, p_high), (q, q_low, q_high) = before, after
    d = q - p
    return [d, d - math.hypot(q - q_low, p_high - p), d + math.hypot(q_high - q, p - p_low)]


def _score_interval(p: float, n: float) -> list[float]:
    """Wilson's interval, clipped so that despite rounding it contains p and is inside [0, 1]."""
    middle = (p + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z * math.sqrt(p * (1 - p) / n + Z**2 / (4 * n**2)) / (1 + Z**2 / n)
    return [p, max(0.0, min(p, middle - half)), min(1.0, max(p, middle + half))]
