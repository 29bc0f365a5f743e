"""Levels of held-out problems: order, colors and curves."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from rljax.training.report.metrics_log import series

SERIES = ("#2563c9", "#c2571a", "#2b8a57", "#8250c4", "#a87b12", "#c23b6b", "#5b6b7a")
"""Colors of curves; the first color is for the leading level."""


def leading(levels: Iterable[str], headline: str | None) -> str:
    """The level to show first: `headline` if it is one of `levels`, else the first level.

    >>> leading(["short", "long"], "long"), leading(["short", "long"], None)
    ('long', 'short')
    """
    names = list(levels)
    if not names:
        raise ValueError("levels is empty: expected at least one name")
    return headline if headline is not None and headline in names else names[0]


def level_colors(levels: Sequence[str], headline: str | None) -> dict[str, str]:
    """A color per level: the first color for the leading level, the next colors in order, then gray."""
    levels = list(dict.fromkeys(levels))
    if not levels:
        return {}
    first = leading(levels, headline)
    ordered = sorted(levels, key=lambda level: level != first)
    colors = [*SERIES, *[SERIES[-1]] * len(ordered)]
    return dict(zip(ordered, colors, strict=False))


def by_level(rows: Sequence[Mapping], figure: str = "accuracy") -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """(rollouts, values) per level of `figure`, "accuracy" or "reward", in the quick evaluations of stage 2."""
    looks = [{"phase": "eval", "step": row["step"], **(row.get(figure) or {})} for row in rows
             if row["phase"] == "eval"]  # fmt: skip
    levels = dict.fromkeys(name for look in looks for name in look if name not in ("phase", "step"))
    return {level: series(looks, "eval", level) for level in levels}
