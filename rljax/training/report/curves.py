"""The curves in a report."""

from collections.abc import Mapping, Sequence

import numpy as np

from rljax.training.report.figures import Curve, level_curves, noisy, panel, smooth, smoothing_window
from rljax.training.report.levels import SERIES, by_level
from rljax.training.report.metrics_log import series
from rljax.training.report.template import text

_NUMBER, _PERCENT, _SHARE = {}, {"percent": True}, {"percent": True, "top": 1.0}
PARTS = "sampling", "verification", "learning"
"""Parts of the time of a rollout; the metric of a part is `seconds_PART`."""
_DIAGNOSTICS = (
    # metric, title, caption, axis
    ("entropy", "Entropy", "of the policy, nats per token", _NUMBER),
    ("kl_start", "KL to the start", "of stage 2, nats per token", _NUMBER),
    ("kl", "KL within a rollout", "from the policy before the optimizer steps, nats per token", _NUMBER),
    ("grad_norm", "Gradient norm", "before clipping", _NUMBER),
    ("clip_share", "Clip fraction", "share of the weight of tokens whose gradient is clipped", _PERCENT),
    ("skipped_steps", "Skipped steps", "optimizer steps per rollout without a learning signal", _NUMBER),
    ("length", "Completion length", "mean, in tokens", _NUMBER),
    ("informative", "Groups with a signal", "share of groups whose rewards differ", _SHARE),
    ("finished", "Finished completions", "share that ended within the token budget", _SHARE),
)


def learning_curves(rows: Sequence[Mapping], config: Mapping, colors: Mapping[str, str]) -> str:
    """Panels of the reward, the held-out accuracy and, if it differs from the accuracy, the held-out reward."""
    rollouts, rewards = series(rows, "rl", "reward")
    if not len(rollouts):
        return '<h2>Learning curves</h2><p class="note">Stage 2 (RL) has not started.</p>'
    figures = [_figure("Reward", "mean per rollout",
                       _panel(noisy(rollouts, rewards), "reward over rollouts", wide=True),
                       _smoothing_legend(smoothing_window(len(rewards))))]  # fmt: skip
    looks = by_level(rows)
    if looks:
        figures.append(_figure(
            "Held-out accuracy by level", _looks(config),
            _panel(level_curves(rows, colors), "held-out accuracy by level over rollouts", wide=True, **_SHARE),
            _legend({level: y[-1] for level, (_, y) in looks.items()}, colors),
        ))  # fmt: skip
    if any(row.get("reward") and row["reward"] != row.get("accuracy") for row in rows if row["phase"] == "eval"):
        figures.append(_figure(
            "Held-out reward by level", "mean, one sample per problem",
            _panel(level_curves(rows, colors, "reward"), "held-out reward by level over rollouts", wide=True),
            _legend({level: y[-1] for level, (_, y) in by_level(rows, "reward").items()}, colors, "{:.3g}"),
        ))  # fmt: skip
    return f'<h2>Learning curves</h2><div class="wide">{"".join(figures)}</div>'


def diagnostics(rows: Sequence[Mapping]) -> str:
    if not any(row["phase"] == "rl" for row in rows):
        return ""
    window, figures = smoothing_window(len(series(rows, "rl", "reward")[0])), []
    for name, title, what, axis in _DIAGNOSTICS:
        curves = [curve for phase in ("rl", "eval") for curve in _one(rows, phase, name)]
        if curves:
            label = f"{title.lower()} over rollouts"
            figures.append(_figure(title, what, _panel(curves, label, **axis)))
    figures += _times(rows, window)
    note = f"Per rollout of stage 2. Thin: each rollout; bold: moving mean over {window} rollouts." if window > 1 else (
        "Per rollout of stage 2.")  # fmt: skip
    return f'<h2>Policy diagnostics</h2><p class="note">{note}</p><div class="small">{"".join(figures)}</div>'


def _times(rows: Sequence[Mapping], window: int) -> list[str]:
    """The panel of the parts of a rollout's time, smoothed; none if they were not measured."""
    curves: dict[str, Curve] = {}
    colors: dict[str, str] = dict(zip(PARTS, SERIES[1:], strict=False))
    for part in PARTS:
        x, y = series(rows, "rl", f"seconds_{part}")
        if np.isfinite(y).any():
            curves[part] = Curve(x, smooth(y, window), colors[part])
    if not curves:
        return []
    means = {part: float(np.nanmean(curve.y)) for part, curve in curves.items()}
    return [_figure("Time per rollout", "in seconds; mean in the legend",
                    _panel(list(curves.values()), "seconds per rollout over rollouts"),
                    _legend(means, colors, "{:.3g} s"))]  # fmt: skip


def likelihood(rows: Sequence[Mapping]) -> str:
    figures = []
    for name, title, what, axis in (
        ("loss", "Loss", "nats per token, logarithmic scale", {"logarithmic": True}),
        ("confident", "Confident tokens", "share of tokens with probability above 50%", _SHARE),
        ("grad_norm", "Gradient norm", "before clipping", _NUMBER),
    ):
        curves = _one(rows, "likelihood", name)
        if curves:
            figures.append(_figure(title, what, _panel(curves, f"{title.lower()} over optimizer steps", **axis)))
    if not figures:
        return ""
    window = smoothing_window(len(series(rows, "likelihood", "loss")[0]))
    note = f" Thin: each step; bold: moving mean over {window} steps." if window > 1 else ""
    return (f'<h2>Stage 1: maximum likelihood on demonstrations</h2><p class="note">Per optimizer step.{note}</p>'
            f'<div class="small">{"".join(figures)}</div>')  # fmt: skip


def _one(rows: Sequence[Mapping], phase: str, name: str) -> list[Curve]:
    """The curves of a metric in one phase; empty if the metric was never finite."""
    x, y = series(rows, phase, name)
    if not np.isfinite(y).any():
        return []
    return [Curve(x, y, marker="o")] if phase == "eval" else noisy(x, y)


def _looks(config: Mapping) -> str:
    """Caption with the number of problems and the 95 % interval of one point of the held-out curves."""
    problems = (config.get("evaluation") or {}).get("watch_problems")
    if not problems:
        return "one sample per problem"
    points = 98 / np.sqrt(problems)  # Wilson's interval is near p ± 1.96 √(p(1−p)/n), at most ± 0.98/√n
    return (f"one sample per problem, up to {problems:,} problems per level "
            f"(95% interval for {problems:,} problems: ± {points:.0f} points)")  # fmt: skip


def _smoothing_legend(window: int) -> str:
    if window == 1:
        return ""
    thin, bold = "--color:var(--c0);--thick:1px;opacity:.5", "--color:var(--c0);--thick:3px"
    return (f'<ul class="legend"><li><i style="{thin}"></i>each rollout</li>'
            f'<li><i style="{bold}"></i>moving mean over {window} rollouts</li></ul>')  # fmt: skip


def _legend(last: Mapping[str, float], colors: Mapping[str, str], form: str = "{:.0%}") -> str:
    items = []
    for level, value in sorted(last.items(), key=lambda item: -np.nan_to_num(item[1])):
        name = ' class="headline"' if colors[level] == SERIES[0] else ""
        color = f"var(--c{SERIES.index(colors[level])})"
        items.append(f'<li{name}><i style="--color:{color}"></i>{text(level)} {form.format(value)}</li>')
    return f'<ul class="legend">{"".join(items)}</ul>'


def _panel(curves: Sequence[Curve], label: str, *, wide: bool = False, **options) -> str:
    return panel(curves, label, size=(5.0, 2.35) if wide else (3.3, 1.9), **options)


def _figure(title: str, note: str, svg: str, legend: str = "") -> str:
    caption = f"<figcaption><b>{text(title)}</b><small>{text(note)}</small></figcaption>"
    return f'<figure class="card">{caption}{svg}{legend}</figure>'
