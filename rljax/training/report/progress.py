"""Progress display of a run: live in a terminal, plain lines elsewhere."""

import math
import time
from collections import deque
from collections.abc import Callable, Mapping

from rich.console import Console, Group
from rich.live import Live
from rich.markup import escape
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from rljax.training.report.levels import leading

# The metrics of a step to display, in this order: name, label, format.
_SHOWN: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("reward", "reward", "{:.3f}".format),
    ("loss", "loss", "{:.4f}".format),
    ("accuracy", "accuracy", "{:.3f}".format),
    ("kl", "KL", "{:.1e}".format),
    ("clip_share", "clipped", "{:.2%}".format),
    ("skipped_steps", "skipped steps", lambda skipped: f"{skipped:.0f}" if skipped else ""),
    ("tokens_per_second", "tokens/s", "{:,.0f}".format),
)
_WINDOW = 32  # steps


class Progress:
    """Context manager that displays the progress of a run whose stages have `totals` steps.

    A terminal shows one bar per stage and the latest metrics. Elsewhere, a line is printed for the first and the last
    step of a stage and every `every` seconds. `enabled=False` shows nothing. The time left in a stage is estimated from
    its last 32 steps. The accuracy is that of the level `headline` in the newest quick evaluation.
    """

    def __init__(self, totals: Mapping[str, int], *, headline: str | None = None, enabled: bool = True,
                 every: float = 10.0, console: Console | None = None,
                 clock: Callable[[], float] = time.monotonic):  # fmt: skip
        self._console = console or Console(highlight=False)
        self._headline, self._enabled, self._every, self._clock = headline, enabled, every, clock
        self._totals = dict(totals)
        self._done = dict.fromkeys(totals, 0)
        self._stage, self._shown = "", {}
        self._accuracy: dict[str, float] = {}
        self._times: deque[float] = deque(maxlen=_WINDOW + 1)
        self._last_line = -math.inf
        self._live: Live | None = None

    def __enter__(self):
        if self._enabled and self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._render, refresh_per_second=4)
            self._live.start()
        return self

    def __exit__(self, *error):
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self, stage: str, step: int, metrics: Mapping) -> None:
        """Displays the metrics of a step, counted from 0; `stage` "eval" is for the accuracies of quick evaluations."""
        if stage == "eval":
            if metrics.get("accuracy"):
                self._accuracy = {"accuracy": metrics["accuracy"][leading(metrics["accuracy"], self._headline)]}
            return
        if stage not in self._totals:
            raise ValueError(f"stage = {stage!r}: expected one of {sorted(self._totals)}, or 'eval'")
        first = stage != self._stage
        if first:
            self._stage = stage
            self._times.clear()
            names = list(self._totals)
            self._done |= {name: self._totals[name] for name in names[: names.index(stage)]}  # also after resuming
        self._done[stage] = step + 1
        self._times.append(self._clock())
        self._shown = {**(self._accuracy if "reward" in metrics else {}), **metrics}
        self._plain_line(force=first or step + 1 == self._totals[stage])

    def say(self, text: str) -> None:
        if self._live is not None:
            self._live.console.print(escape(text))
        else:
            self._print(text)

    def _plain_line(self, force: bool) -> None:
        now = self._times[-1]
        if self._live is None and (force or now - self._last_line >= self._every):
            self._last_line = now
            numbers = [f"{label} {value}" for label, value in self._numbers()]
            self._print("  ".join([f"{self._stage} {self._done[self._stage]}/{self._totals[self._stage]}", *numbers]))

    def _print(self, text: str) -> None:
        if self._enabled:
            print(text, file=self._console.file, flush=True)

    def _numbers(self) -> list[tuple[str, str]]:
        """(label, value) of the metrics to display: those that are finite; the loss only if there is no reward."""
        absent = {"loss"} if "reward" in self._shown else set()
        shown = [(label, form(float(self._shown[name]))) for name, label, form in _SHOWN
                 if name not in absent and math.isfinite(self._shown.get(name, math.nan))]  # fmt: skip
        shown = [(label, text) for label, text in shown if text]
        left = self._time_left()
        return shown if left is None else [*shown, ("time left", duration(left))]

    def _time_left(self) -> float | None:
        """Estimated seconds to the end of the stage; None before its second step."""
        if len(self._times) < 2:
            return None
        pace = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        return pace * (self._totals[self._stage] - self._done[self._stage])

    def _render(self) -> Group:
        bars = Table.grid(padding=(0, 1))
        for stage, total in self._totals.items():
            done = self._done[stage]
            bar = ProgressBar(total=total, completed=done, width=40)
            bars.add_row(Text(stage, style="bold" if stage == self._stage else "dim"), bar, Text(f"{done}/{total}"))
        numbers = Text("   ").join(
            Text.assemble((f"{label} ", "dim"), (value, "bold")) for label, value in self._numbers()
        )
        return Group(bars, numbers)


def duration(seconds: float) -> str:
    """Seconds as short text.

    >>> [duration(x) for x in (8.6, 83, 7325)]
    ['9s', '1:23', '2:02:05']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
