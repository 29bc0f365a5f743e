"""The report of a run: a self-contained HTML page."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from rljax.training.evaluation.intervals import figure_names
from rljax.training.report.collapse import collapses
from rljax.training.report.curves import PARTS, diagnostics, learning_curves, likelihood
from rljax.training.report.levels import by_level, level_colors
from rljax.training.report.metrics_log import series
from rljax.training.report.progress import duration
from rljax.training.report.results import evaluation, learned, sampled
from rljax.training.report.settings import header, name_of, settings
from rljax.training.report.template import page, text


def write_report(
    folder: Path,
    *,
    config: Mapping,
    versions: Mapping[str, str],
    device: str,
    metrics: Sequence[Mapping],
    evaluations: Mapping[str, Mapping],
    samples: Mapping[str, Sequence[Mapping]],
    status: str,
    headline: str | None = None,
    left_out: Mapping[str, Mapping] | None = None,
) -> Path:
    """Writes `folder/report.html` atomically; sections without data are omitted or contain a note.

    Args:
      folder: Folder of the run.
      config: Resolved config as plain JSON.
      versions: Versions of the packages, by name.
      device: Description of the devices.
      metrics: Rows of `metrics.jsonl`.
      evaluations: {name: {level: {"problems": n, "samples": k, figure: [value, low, high], …}}}, oldest first.
      samples: {name: [{"prompt", "completion", "answer", "reward", "solved", "level"}, …]}, shown without selection.
      status: State of the run, such as "finished".
      headline: Level to show first; default: the first level.
      left_out: {kind: {"count", "total", "limit"}}, the numbers of problems that are too long.

    Returns:
      Path of the report.

    Raises:
      ValueError: If a figure is not [value, low, high].
    """
    _check(evaluations)
    levels = [*by_level(metrics), *(level for figures in evaluations.values() for level in figures)]
    colors = level_colors(levels, headline)
    title = f"{name_of(config.get('task', 'run'))}, seed {config.get('seed', '?')}"
    body = "\n".join(
        section
        for section in (
            header(title, config, status),
            _warnings(metrics),
            learned(evaluations, headline),
            _facts(metrics, device, left_out or {}),
            learning_curves(metrics, config, colors),
            evaluation(evaluations, colors),
            diagnostics(metrics),
            likelihood(metrics),
            sampled(samples),
            settings(config, versions, device),
            f"<footer>Written {text(time.strftime('%Y-%m-%d %H:%M:%S %Z'))} by rljax.</footer>",
        )
        if section
    )
    path = Path(folder) / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(page(title, body), encoding="utf-8")
    os.replace(partial, path)
    return path


def _warnings(metrics: Sequence[Mapping]) -> str:
    found = collapses([row for row in metrics if row["phase"] == "rl"]).values()
    return "".join(f'<p class="card warning"><b>Warning</b> {text(f"{w[0].upper()}{w[1:]}.")}</p>' for w in found)


def _check(evaluations: Mapping[str, Mapping]) -> None:
    for moment, levels in evaluations.items():
        for level, figures in levels.items():
            for name in figure_names([figures]):
                if np.shape(figures[name]) != (3,):
                    raise ValueError(f"evaluations[{moment!r}][{level!r}][{name!r}] = {figures[name]!r}: "
                                     "expected [value, low, high]")  # fmt: skip


def _facts(metrics: Sequence[Mapping], device: str, left_out: Mapping[str, Mapping]) -> str:
    facts = []
    for phase, title, unit in (
        ("likelihood", "Stage 1 (likelihood)", "optimizer step"), ("rl", "Stage 2 (RL)", "rollout"),
    ):  # fmt: skip
        steps = [row["step"] for row in metrics if row["phase"] == phase]
        if not steps:
            continue
        about = []
        _, seconds = series(metrics, phase, "seconds")
        if len(seconds):
            about.append(f"in {duration(float(np.nansum(seconds)))}{_split(metrics, phase)}")
        _, rates = series(metrics, phase, "tokens_per_second")
        if np.isfinite(rates).any():
            about.append(f"{np.nanmedian(rates[np.isfinite(rates)]):,.0f} tokens/s (median)")
        done = max(steps) + 1
        facts.append((title, f"{done:,} {unit}{'s' * (done != 1)}", ", ".join(about)))
    peaks = [row["peak_memory_gib"] for row in metrics if row.get("peak_memory_gib") is not None]
    facts.append(("Device", device, f"peak memory {max(peaks):.2f} GiB" if peaks else ""))
    for kind, found in left_out.items():
        if found["count"]:
            facts.append((f"Left out of the {kind}", f"{found['count']:,} of {found['total']:,}",
                          f"longer than {found['limit']} allows"))  # fmt: skip
    shown = "".join(
        f"<div><dt>{text(title)}</dt><dd><b>{text(what)}</b>{text(about)}</dd></div>" for title, what, about in facts
    )
    return f'<dl class="facts card">{shown}</dl>'


def _split(metrics: Sequence[Mapping], phase: str) -> str:
    """The shares of sampling, verification and learning in the time of a stage; empty if they were not measured."""
    spent = {part: float(np.nansum(series(metrics, phase, f"seconds_{part}")[1])) for part in PARTS}
    total = sum(spent.values())
    return f" ({', '.join(f'{part} {x / total:.0%}' for part, x in spent.items())})" if total > 0 else ""
