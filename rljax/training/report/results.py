"""Results in a report: evaluation figures with their intervals, and sampled completions."""

from collections.abc import Mapping, Sequence

from rljax.training.evaluation.intervals import (
    CONSTANT,
    REWARD,
    STRATEGY,
    as_text,
    difference_interval,
    figure_names,
    strategies,
)
from rljax.training.report.levels import SERIES, leading
from rljax.training.report.template import text


def learned(evaluations: Mapping[str, Mapping], headline: str | None) -> str:
    """The main result: the leading level in the first and the last evaluation, and the gain."""
    moments = [moment for moment, levels in evaluations.items() if levels]
    if not moments:
        return '<section class="card learned"><p>Nothing has been evaluated yet.</p></section>'
    last = evaluations[moments[-1]]
    shared = [level for level in last if all(level in evaluations[moment] for moment in moments)] or list(last)
    level = leading(shared, headline)
    name = figure_names([last[level]])[0]
    rows = [evaluations[moment][level] for moment in moments if level in evaluations[moment]]
    before, after = rows[0][name], rows[-1][name]
    basis = f"{text(name)} over {text(last[level].get('problems', '?'))} problems"
    if len(rows) == 1:
        number = f'<span class="after">{_percent(after)}</span> <small>{_interval(after)}</small>'
        said = f"{basis}, {text(moments[-1])}. Brackets are the 95% interval over problems."
    else:
        gain = difference_interval(before, after)
        number = (f'{_percent(before)} → <span class="after">{_percent(after)}</span> '
                  f"<small>{100 * gain[0]:+.1f} points {_interval(gain, '+')}</small>")  # fmt: skip
        said = (f"{basis}: {text(moments[0])} {_interval(before)}, {text(moments[-1])} {_interval(after)}. "
                "Brackets are 95% intervals over problems. The interval of the gain assumes that the two evaluations "
                "are independent.")  # fmt: skip
    if all(REWARD in row for row in rows):
        ends = [rows[0], rows[-1]] if len(rows) > 1 else rows
        means = " → ".join(as_text(REWARD, row[REWARD])[0] for row in ends)
        said += f" Mean reward: {means} {as_text(REWARD, rows[-1][REWARD])[1]}."
    if CONSTANT in rows[-1]:
        constant = rows[-1][CONSTANT]
        said += f" Best constant strategy, {text(rows[-1][STRATEGY])}: {_percent(constant)} {_interval(constant)}."
    return (f'<section class="card learned"><div><b>{text(level)}</b></div><div class="figure">{number}</div>'
            f'<p class="note">{said}</p></section>')  # fmt: skip


def evaluation(evaluations: Mapping[str, Mapping], colors: Mapping[str, str]) -> str:
    """All levels and evaluations: a chart of the first figure and a table of all figures."""
    moments = {moment: levels for moment, levels in evaluations.items() if levels}
    if not moments:
        return ""
    levels = list(dict.fromkeys(level for figures in moments.values() for level in figures))
    rows = [figures[level] for figures in moments.values() for level in figures]
    names = figure_names(rows)
    samples = sorted({row["samples"] for row in rows if "samples" in row})
    drawn = f" ({' or '.join(map(str, samples))} samples per problem)" if samples else ""
    return (
        f"<h2>Evaluation by level</h2>{_ranges(moments, levels, names[0], colors)}"
        f'<div class="card scroll">{_table(moments, levels, names)}<p class="note">In percent (except for the mean '
        f"reward), with 95% intervals over problems{drawn}. {text(strategies(list(moments.values())[-1]))}</p></div>"
    )


def _ranges(moments: Mapping[str, Mapping], levels: Sequence[str], name: str, colors: Mapping[str, str]) -> str:
    """Chart of one figure per level: hollow dots for the first evaluation, filled dots for the last, interval bars."""
    first, last = next(iter(moments)), list(moments)[-1]
    shown = []
    for level in levels:
        color = f"var(--c{SERIES.index(colors[level])})"
        triples = [(kind, moments[moment][level][name]) for kind, moment in (("", first), (" last", last))
                   if name in moments[moment].get(level, {})]  # fmt: skip
        if first == last:
            triples = triples[-1:]
        marks = "".join(
            f'<i class="interval" style="left:{100 * low:.2f}%;width:{100 * (high - low):.2f}%"></i>'
            f'<i class="dot{kind}" style="left:{100 * value:.2f}%"></i>'
            for kind, (value, low, high) in triples
        )
        values = " → ".join(f"{100 * triple[0]:.1f}" for _, triple in triples)
        shown.append(
            f'<div class="range" style="--color:{color}"><div>{text(level)}</div>'
            f'<div class="track">{marks}</div><div class="values">{values}</div></div>'
        )
    ticks = "".join(f'<span style="left:{tick}%">{tick}%</span>' for tick in (0, 25, 50, 75, 100))
    what = f"○ {text(first)}, ● {text(last)}" if first != last else f"● {text(last)}"
    axis = f'<div class="range axis"><div></div><div class="track">{ticks}</div><div></div></div>'
    note = f'<p class="note"><b>{text(name)}</b>: {what}; bars are 95% intervals.</p>'
    return f'<div class="card ranges">{note}{"".join(shown)}{axis}</div>'


def _table(moments: Mapping[str, Mapping], levels: Sequence[str], names: Sequence[str]) -> str:
    head = "".join(f'<th class="number">{text(name)}</th>' for name in ("problems", *names))
    bodies = []
    for level in levels:
        present = [moment for moment in moments if level in moments[moment]]
        rows = []
        for i, moment in enumerate(present):
            row = moments[moment][level]
            label = f'<th rowspan="{len(present)}">{text(level)}</th>' if i == 0 else ""
            cells = "".join(f'<td class="number">{_cell(name, row.get(name))}</td>' for name in names)
            kind = ' class="last"' if moment == list(moments)[-1] else ""
            rows.append(f'<tr{kind}>{label}<td>{text(moment)}</td><td class="number">{text(row.get("problems", "–"))}'
                        f"</td>{cells}</tr>")  # fmt: skip
        bodies.append(f"<tbody>{''.join(rows)}</tbody>")
    return f'<table class="evaluation"><thead><tr><th>level</th><th></th>{head}</tr></thead>{"".join(bodies)}</table>'


def sampled(samples: Mapping[str, Sequence[Mapping]]) -> str:
    shown = []
    for moment, drawn in samples.items():
        if not drawn:
            continue
        right = sum(sample["solved"] for sample in drawn)
        title = {"start": "At the start of RL", "latest": "Latest", "end": "At the end of RL"}.get(moment, moment)
        shown.append(f"<h3>{text(title)}</h3><p class=\"note\">{right} of these {len(drawn)} are correct.</p>"
                     f'<ul class="card samples">{"".join(map(_sample, drawn))}</ul>')  # fmt: skip
    if not shown:
        return '<h2>Sampled completions</h2><p class="note">None yet.</p>'
    return "<h2>Sampled completions</h2>" + "".join(f"<section>{part}</section>" for part in shown)


def _sample(sample: Mapping) -> str:
    reward = sample["reward"]
    kind, sign = ("right", "✓") if sample["solved"] else ("partly", "~") if reward > 0 else ("wrong", "✗")
    parts = (("prompt", "level"), ("completion", ""), ("answer", ""))
    cells = []
    for name, extra in parts:
        about = f" · {text(sample[extra])}" if sample.get(extra) else ""
        shown = text(sample.get(name, "")) or "<i>empty</i>"
        cells.append(f'<div><span class="what">{name}{about}</span><span class="mono">{shown}</span></div>')
    return f'<li><span class="mark {kind}">{sign} {reward:g}</span>{"".join(cells)}</li>'


def _percent(triple: Sequence[float]) -> str:
    return f"{100 * triple[0]:.1f}%"


def _interval(triple: Sequence[float], sign: str = "") -> str:
    return f"[{100 * triple[1]:{sign}.1f}, {100 * triple[2]:{sign}.1f}]"


def _cell(name: str, triple: Sequence[float] | None) -> str:
    return "–" if triple is None else "{}<small>{}</small>".format(*as_text(name, triple))
