"""Warnings about a policy that has stopped exploring, or that learns from almost no group any more."""

import math
from collections.abc import Mapping, Sequence

ROLLOUTS = 5
"""Rollouts averaged at the start and at the end of stage 2 so far; warnings need at least 2 · ROLLOUTS."""
FALL = 0.1
"""A metric has collapsed if its mean over the last rollouts is below this multiple of its mean over the first ones."""
FEW_GROUPS = 0.05
"""The share of groups with a signal has also collapsed if it is below this value."""
SOLVED = 0.9
"""The task counts as solved, and nothing is reported, if at least this share of the last completions is correct."""


def collapses(rollouts: Sequence[Mapping]) -> dict[str, str]:
    """Warnings by metric, "entropy" or "informative", from the rows of stage 2 in the metrics log, oldest first.

        collapsed = last < FALL · first,   and for groups with a signal also   last < FEW_GROUPS

    `first` and `last` are means over ROLLOUTS rollouts at each end. A policy that solves its problems is certain of its
    answers and has no groups with a signal either, so the result is empty then. An absent `solved` counts as 0, and an
    absent entropy or share of groups is not judged.

    >>> rows = [{"entropy": 0.5, "informative": 0.6, "solved": 0.2}] * 5
    >>> list(collapses([*rows, *[{"entropy": 0.01, "informative": 0.5, "solved": 0.3}] * 5]))
    ['entropy']
    >>> collapses([*rows, *[{"entropy": 0.01, "informative": 0.0, "solved": 1.0}] * 5])
    {}
    """
    solved = _mean(rollouts[-ROLLOUTS:], "solved", absent=0.0)
    if len(rollouts) < 2 * ROLLOUTS or solved >= SOLVED:
        return {}
    warnings, span = {}, f"mean of the last {ROLLOUTS} rollouts"
    first, last = (_mean(rows, "entropy") for rows in (rollouts[:ROLLOUTS], rollouts[-ROLLOUTS:]))
    if last < FALL * first:
        warnings["entropy"] = (
            f"the entropy has collapsed from {first:.3g} to {last:.3g} nats per token ({span}) while "
            f"{solved:.0%} of the completions are correct: the policy hardly explores. A lower learning rate, a higher "
            "upper clipping bound or an entropy bonus may prevent this"
        )
    first, last = (_mean(rows, "informative") for rows in (rollouts[:ROLLOUTS], rollouts[-ROLLOUTS:]))
    if last < FALL * first or last < FEW_GROUPS:
        warnings["informative"] = (
            f"only {last:.1%} of the groups have a signal ({span}; {first:.1%} in the first {ROLLOUTS}) while "
            f"{solved:.0%} of the completions are correct: hardly anything is learned. Problems of another difficulty, "
            "more completions per prompt or a higher temperature may help"
        )
    return warnings


def _mean(rows: Sequence[Mapping], name: str, absent: float = math.nan) -> float:
    """Mean of the finite values of a metric, or `absent` if no value is finite."""
    found = [row[name] for row in rows if row.get(name) is not None and math.isfinite(row[name])]
    return sum(found) / len(found) if found else absent
