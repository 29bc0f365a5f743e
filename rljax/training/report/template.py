"""HTML template of a report, with light and dark colors and without scripts or network access."""

import html


def page(title: str, body: str) -> str:
    """A complete HTML document; `title` is text and `body` is markup."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title>
<style>{STYLE}</style>
</head>
<body><main>
{body}
</main></body>
</html>
"""


def text(value: object) -> str:
    return html.escape(str(value), quote=True)


STYLE = """
:root {
  color-scheme: light dark;
  --page: #f7f7f4; --card: #ffffff; --ink: #1d2329; --muted: #66707a; --line: #e4e4df;
  --c0: #2563c9; --c1: #c2571a; --c2: #2b8a57; --c3: #8250c4; --c4: #a87b12; --c5: #c23b6b; --c6: #5b6b7a;
  --right: #1d7a46; --right-tint: #e3f3e9; --wrong: #b3362e; --wrong-tint: #f9e8e6; --partly-tint: #f6efd9;
  --mono: ui-monospace, SFMono-Regular, Menlo, Consolas, "Liberation Mono", monospace;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #14171a; --card: #1c2024; --ink: #e6e8ea; --muted: #99a3ad; --line: #30363c;
    --c0: #74a9ff; --c1: #f0935a; --c2: #5cc78a; --c3: #b996f5; --c4: #dcb548; --c5: #f27ba5; --c6: #9aa9b8;
    --right: #6bd398; --right-tint: #1d3528; --wrong: #f28b82; --wrong-tint: #3d2523; --partly-tint: #38321f;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Liberation Sans", Arial, sans-serif;
}
main { max-width: 1060px; margin: 0 auto; padding: 40px 24px 64px; }
h1 { font-size: 30px; line-height: 1.2; margin: 6px 0 10px; letter-spacing: -0.01em; overflow-wrap: anywhere; }
h2 { font-size: 19px; margin: 44px 0 4px; }
h3 { font-size: 15px; margin: 0 0 2px; }
p { margin: 0 0 12px; max-width: 72ch; }
.note, figcaption small, caption { color: var(--muted); font-size: 13px; max-width: 110ch; }
code, .mono { font-family: var(--mono); font-size: 0.92em; overflow-wrap: anywhere; }
.top { display: flex; flex-wrap: wrap; gap: 8px 12px; align-items: center; color: var(--muted); font-size: 13px; }
.status { padding: 2px 11px; border-radius: 99px; font-weight: 600; color: var(--c0);
  background: color-mix(in srgb, var(--c0) 13%, transparent); }
.status.finished { color: var(--right); background: var(--right-tint); }
.algorithm { margin: 0; padding: 0; list-style: none; color: var(--muted); font-size: 14px; }
.algorithm code { color: var(--ink); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 12px; padding: 18px 20px; }
.warning { margin: 20px 0 0; max-width: none; padding: 12px 20px; background: var(--partly-tint); }
.warning b { margin-right: 6px; }
.learned { margin: 24px 0 16px; padding: 22px 24px; }
.learned .figure { font-size: 44px; font-weight: 650; line-height: 1.15; letter-spacing: -0.02em;
  font-variant-numeric: tabular-nums; margin: 2px 0 6px; }
.learned .figure small { font-size: 20px; font-weight: 500; letter-spacing: 0; color: var(--muted); }
.learned .figure .after { color: var(--c0); }
.learned p:last-child { margin-bottom: 0; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(240px, 100%), 1fr)); gap: 12px 24px;
  margin: 0; }
.facts dt { color: var(--muted); font-size: 13px; }
.facts dd { margin: 0; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.facts dd b { display: block; font-weight: 600; }
.wide, .small { display: grid; gap: 16px; margin-top: 12px; }
.wide { grid-template-columns: repeat(auto-fit, minmax(min(340px, 100%), 1fr)); }
.small { grid-template-columns: repeat(auto-fill, minmax(min(236px, 100%), 1fr)); }
figure { margin: 0; min-width: 0; display: flex; flex-direction: column; }
.wide figcaption { margin-bottom: 0; }
.small figure { padding: 14px 14px 8px; }
figcaption { margin-bottom: auto; padding-bottom: 8px; }
figcaption b { display: block; }
figcaption small { display: block; line-height: 1.4; }
svg { display: block; width: 100%; height: auto; overflow: visible; stroke-linejoin: round; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; margin: 8px 0 0; padding: 0; list-style: none;
  font-size: 13px; }
.legend i { display: inline-block; width: 14px; height: var(--thick, 3px); border-radius: 2px; margin-right: 6px;
  vertical-align: middle; background: var(--color); }
.legend .headline { font-weight: 650; }
.ranges { margin-top: 12px; }
.range { display: grid; grid-template-columns: minmax(150px, 23%) 1fr 128px; gap: 4px 18px; align-items: center;
  padding: 5px 0; }
.range .track { position: relative; height: 22px;
  background: linear-gradient(var(--line), var(--line)) center / 100% 1px no-repeat,
    repeating-linear-gradient(90deg, var(--line) 0 1px, transparent 1px 25%); border-right: 1px solid var(--line); }
.range .interval { position: absolute; top: 8px; height: 6px; border-radius: 3px; opacity: .3;
  background: var(--color); }
.range .dot { position: absolute; top: 5px; width: 12px; height: 12px; margin-left: -6px; border-radius: 50%;
  border: 2px solid var(--color); background: var(--card); }
.range .dot.last { background: var(--color); }
.range .values { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.range.axis { color: var(--muted); font-size: 12px; padding: 0; }
.range.axis .track { background: none; border: 0; height: 16px; }
.range.axis span { position: absolute; transform: translateX(-50%); white-space: nowrap; }
.scroll { overflow-x: auto; margin-top: 12px; padding: 6px 20px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
caption { text-align: left; caption-side: bottom; padding: 10px 0; }
th { text-align: left; font-weight: 600; }
thead th { color: var(--muted); font-size: 13px; font-weight: 500; }
th, td { padding: 5px 18px 5px 0; vertical-align: baseline; white-space: nowrap; }
td.number, th.number { text-align: right; padding: 5px 0 5px 18px; }
.evaluation tbody { border-top: 1px solid var(--line); }
.evaluation tbody tr.last td { font-weight: 600; }
.evaluation td small { color: var(--muted); font-weight: 400; font-size: 12px; display: block; }
.samples { margin: 12px 0 0; padding: 4px 20px; list-style: none; }
.samples li { display: grid; grid-template-columns: 74px 1fr 1.35fr 0.8fr; gap: 2px 18px; padding: 9px 0;
  border-top: 1px solid var(--line); align-items: baseline; }
.samples li:first-child { border-top: 0; }
section + section { margin-top: 28px; }
.samples .mono { white-space: pre-wrap; }
.samples span.what { display: block; color: var(--muted); font-size: 12px; }
.mark { justify-self: start; padding: 1px 10px; border-radius: 99px; font-weight: 650; font-size: 13px;
  white-space: nowrap; }
.mark.right { color: var(--right); background: var(--right-tint); }
.mark.wrong { color: var(--wrong); background: var(--wrong-tint); }
.mark.partly { color: var(--ink); background: var(--partly-tint); }
details { margin-top: 12px; }
summary { cursor: pointer; font-weight: 600; }
.fields { margin-top: 10px; font-size: 13.5px; }
.fields th { font-family: var(--mono); font-weight: 400; color: var(--muted); width: 1%; }
.fields td { font-family: var(--mono); white-space: normal; overflow-wrap: anywhere; }
.fields tr { border-top: 1px solid var(--line); }
footer { margin-top: 44px; color: var(--muted); font-size: 13px; }
@media (max-width: 640px) {
  main { padding: 24px 14px 48px; }
  h1 { font-size: 24px; }
  .learned { padding: 16px; } .learned .figure { font-size: 34px; }
  .learned .figure small { display: block; font-size: 16px; }
  .card { padding: 14px; } .scroll, .samples { padding: 4px 14px; }
  .small svg { max-width: 330px; }
  .range { grid-template-columns: 1fr auto; } .range .track { grid-column: 1 / -1; grid-row: 2; }
  .range.axis > :first-child, .range.axis > :last-child { display: none; }
  .samples li { grid-template-columns: 1fr; gap: 6px; padding: 12px 0; }
  .evaluation { font-size: 13px; } .evaluation th[rowspan] { white-space: normal; min-width: 84px; }
  .evaluation th, .evaluation td { padding-right: 10px; } .evaluation .number { padding-left: 8px; }
  .fields th, .fields td { display: block; width: auto; padding: 2px 0; white-space: normal; }
}
@media print { body { background: #fff; } .card { break-inside: avoid; } }
"""
