"""Figures of a run: SVG panels for the report, and a learning curve as an image file."""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from rljax.training.report.levels import SERIES, by_level, level_colors
from rljax.training.report.metrics_log import series

INK, MUTED, GRID = "#1d2329", "#66707a", "#e4e4df"

# In panels, each color becomes a CSS variable of the page, with a light and a dark value.
_VARIABLES = {color: f"var(--c{i})" for i, color in enumerate(SERIES)}
_VARIABLES |= {INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--line)"}


class Curve(NamedTuple):
    x: Float[np.ndarray, " n"]
    y: Float[np.ndarray, " n"]
    color: str = SERIES[0]
    width: float = 1.6
    alpha: float = 1.0
    marker: str = ""


def smooth(y: Float[np.ndarray, " n"], window: int) -> Float[np.ndarray, " n"]:
    """Centered moving mean over `window` values, an odd number; fewer values near the ends. NaNs are ignored.

        out[i] = mean(y[max(0, i−h) : i+h+1]),   h = (window − 1)/2

    >>> smooth(np.array([0.0, 3.0, 6.0, 3.0]), 3).tolist()
    [1.5, 3.0, 4.0, 4.5]
    """
    if window < 1 or window % 2 == 0:
        raise ValueError(f"window = {window}: expected an odd number, 1 or more")
    ones = np.ones(window)
    full = slice(window // 2, window // 2 + len(y))
    total = np.convolve(np.nan_to_num(y, nan=0.0), ones)[full]
    count = np.convolve(np.isfinite(y).astype(float), ones)[full]
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def smoothing_window(n: int) -> int:
    """Window for the moving mean of n values: an odd number near n/15."""
    return 2 * (n // 30) + 1


def noisy(x: Float[np.ndarray, " n"], y: Float[np.ndarray, " n"], color: str = SERIES[0]) -> list[Curve]:
    window = smoothing_window(len(y))
    if window == 1:
        return [Curve(x, y, color)]
    return [Curve(x, y, color, width=0.8, alpha=0.35), Curve(x, smooth(y, window), color, width=1.9)]


def level_curves(rows: Sequence[Mapping], colors: Mapping[str, str], figure: str = "accuracy") -> list[Curve]:
    """Curves of the held-out `figure`, "accuracy" or "reward", of each level; the leading level is bold, drawn last."""
    curves = [Curve(x, y, colors[level], 2.2 if colors[level] == SERIES[0] else 1.3, marker="o")
              for level, (x, y) in by_level(rows, figure).items()]  # fmt: skip
    return sorted(curves, key=lambda curve: curve.width)


def panel(curves: Sequence[Curve], label: str, *, size: tuple[float, float] = (3.5, 2.0),
          percent: bool = False, top: float | None = None, logarithmic: bool = False) -> str:  # fmt: skip
    """The curves as an `<svg>` element for a page, which sets its font and its colors; screen readers read `label`."""
    import matplotlib  # imported here because it is slow; pyplot would create global state
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": label, "font.size": 9.5}):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.add_subplot()
        _draw(axes, curves, percent, top)
        if logarithmic and (_finite(curves) > 0).all():
            axes.set_yscale("log")
            axes.autoscale(axis="y")
            _plain_logarithmic(axes)
        out = io.StringIO()
        figure.savefig(out, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format")))
    return _page_svg(out.getvalue(), label)


def learning_curve(rows: Sequence[Mapping], path: Path, headline: str | None = None) -> Path:
    """Writes an image of the reward and the held-out accuracy per level in stage 2; the suffix of `path` is the format.

    `headline` is the level to emphasize. Raises ValueError if the rows have no reward of stage 2.
    """
    import matplotlib
    from matplotlib.figure import Figure

    rollouts, rewards = series(rows, "rl", "reward")
    if not len(rollouts):
        raise ValueError('rows: expected at least one with phase "rl" and a reward, as in a run that reached stage 2')
    colors = level_colors(list(by_level(rows)), headline)
    with matplotlib.rc_context({"svg.fonttype": "path", "font.size": 10}):
        figure = Figure(figsize=(9.6, 3.4), layout="constrained", dpi=200)
        left, right = figure.subplots(1, 2, width_ratios=(1, 1 if not colors else 1.45))
        _draw(left, noisy(rollouts, rewards), percent=False)
        window = smoothing_window(len(rewards))
        left.set_title("Reward", **_TITLE)
        left.set_xlabel("rollouts" + (f" (bold: moving mean over {window})" if window > 1 else ""), color=MUTED)
        _draw(right, level_curves(rows, colors), percent=True, top=1.0)
        right.set_title("Held-out accuracy", **_TITLE)
        _name_ends(right, rows, colors)
        right.set_xlabel("rollouts", color=MUTED)
        figure.savefig(path, facecolor="white")
    return Path(path)


_TITLE = {"loc": "left", "fontsize": 11, "fontweight": "bold", "color": INK}


def _draw(axes, curves: Sequence[Curve], percent: bool, top: float | None = None) -> None:
    """Draws the curves on axes without a frame; the y axis starts at 0 if no value is negative."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    for curve in curves:
        axes.plot(curve.x, curve.y, color=curve.color, linewidth=curve.width, alpha=curve.alpha, marker=curve.marker,
                  markersize=3.5, solid_capstyle="round")  # fmt: skip
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)
    axes.grid(axis="y", color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, colors=MUTED)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    if max((len(curve.x) for curve in curves), default=0) == 1:
        axes.set_xlim(curves[0].x[0] - 0.1, curves[0].x[0] + 1.1)
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    scale, unit = (100, "%") if percent else (1, "")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{scale * value:.4g}{unit}"))
    values = _finite(curves)
    if values.size and values.min() >= 0:
        highest = top or values.max() or 1.0
        axes.set_ylim(-0.02 * highest, 1.04 * highest)


def _finite(curves: Sequence[Curve]) -> np.ndarray:
    values = np.concatenate([curve.y for curve in curves]) if curves else np.zeros(0)
    return values[np.isfinite(values)]


def _plain_logarithmic(axes) -> None:
    """Labels a logarithmic axis with plain numbers: 0.05, not 5 × 10⁻²."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axes.get_ylim()
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if high > 20 * low else (1.0, 2.0, 5.0), numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _name_ends(axes, rows: Sequence[Mapping], colors: Mapping[str, str]) -> None:
    """Writes each level's name and last accuracy at the end of its curve, without overlaps."""
    ends = sorted((y[-1], level) for level, (_, y) in by_level(rows).items() if np.isfinite(y[-1]))
    height = -1.0
    for value, level in ends:
        height = max(value, height + 0.085)
        axes.annotate(f"{level}  {value:.0%}", (1.02, height), xycoords=axes.get_yaxis_transform(), va="center",
                      color=colors[level], fontweight="bold" if colors[level] == SERIES[0] else "normal")  # fmt: skip


def _page_svg(text: str, label: str) -> str:
    """The `<svg>` element of Matplotlib's output, without ids, and with size and colors from the page."""
    body = text[text.index("<svg") :]
    body = re.sub(r"<(metadata|style)\b.*?</\1>", "", body, flags=re.DOTALL)  # <style> would apply to the whole page
    body = re.sub(r"font-family: [^;]*; ", "", body)
    body = re.sub(r"<g id=\"[^\"]*\"", "<g", body)
    body = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", body, count=1)
    body = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", body, count=1)
    for color, variable in _VARIABLES.items():
        body = body.replace(color, variable)
    named = label.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")
    return body.replace("<svg", f'<svg role="img" aria-label="{named}"', 1).strip()
