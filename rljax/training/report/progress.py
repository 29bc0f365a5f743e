"""The display of a run: live in a terminal, plain lines elsewhere."""

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

# What is shown of a step, in this order, where it was measured: name, label, format.
_SHOWN: tuple[tuple[str, str, Callable[[float], str]], ...] = (
    ("reward", "reward", "{:.3f}".format),
    ("loss", "loss", "{:.4f}".format),
    ("accuracy", "accuracy", "{:.3f}".format),
    ("kl", "KL", "{:.1e}".format),
    ("clip_share", "clipped", "{:.2%}".format),
    ("skipped_steps", "steps skipped", lambda skipped: f"{skipped:.0f}" if skipped else ""),
    ("tokens_per_second", "tokens/s", "{:,.0f}".format),
)
_WINDOW = 32  # steps over which the pace is measured


class Progress:
    """The display of a run whose phases have `totals` steps; use it as a context manager.

    In a terminal it is one bar a phase with the latest numbers under it; elsewhere a plain line for a phase's first
    step, its last, and every `every` seconds between. Where `enabled` is false (every process but the first) nothing
    is shown. The time left is that of the current phase, at the pace of the last 32 steps, evaluations included.
    `accuracy` is the newest look at the held-out problems, at the level `headline` (or the first), once a phase "eval"
    has reported one.
    """

    def __init__(self, totals: Mapping[str, int], *, headline: str | None = None, enabled: bool = True,
                 every: float = 10.0, console: Console | None = None,
                 clock: Callable[[], float] = time.monotonic):  # fmt: skip
        self._console = console or Console(highlight=False)
        self._headline, self._enabled, self._every, self._clock = headline, enabled, every, clock
        self._totals = dict(totals)
        self._done = dict.fromkeys(totals, 0)
        self._phase, self._shown = "", {}
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

    def update(self, phase: str, step: int, metrics: Mapping) -> None:
        """Step `step` of a phase, counted from 0, is done; phase "eval" brings held-out accuracies by level."""
        if phase == "eval":
            if metrics.get("accuracy"):
                self._accuracy = {"accuracy": metrics["accuracy"][leading(metrics["accuracy"], self._headline)]}
            return
        if phase not in self._totals:
            raise ValueError(f"phase = {phase!r}: expected one of {sorted(self._totals)}, or 'eval'")
        first = phase != self._phase
        if first:
            self._phase = phase
            self._times.clear()
            names = list(self._totals)
            self._done |= {name: self._totals[name] for name in names[: names.index(phase)]}  # also where it resumed
        self._done[phase] = step + 1
        self._times.append(self._clock())
        self._shown = {**(self._accuracy if "reward" in metrics else {}), **metrics}
        self._plain_line(force=first or step + 1 == self._totals[phase])

    def say(self, text: str) -> None:
        """A line that stays."""
        if self._live is not None:
            self._live.console.print(escape(text))
        else:
            self._print(text)

    def _plain_line(self, force: bool) -> None:
        now = self._times[-1]
        if self._live is None and (force or now - self._last_line >= self._every):
            self._last_line = now
            numbers = [f"{label} {value}" for label, value in self._numbers()]
            self._print("  ".join([f"{self._phase} {self._done[self._phase]}/{self._totals[self._phase]}", *numbers]))

    def _print(self, text: str) -> None:
        """A line as it is: no wrapping at a width that nobody sees."""
        if self._enabled:
            print(text, file=self._console.file, flush=True)

    def _numbers(self) -> list[tuple[str, str]]:
        """(label, value) of the metrics shown of the last step: not of a NaN, and of the loss only without a reward."""
        absent = {"loss"} if "reward" in self._shown else set()
        shown = [(label, form(float(self._shown[name]))) for name, label, form in _SHOWN
                 if name not in absent and math.isfinite(self._shown.get(name, math.nan))]  # fmt: skip
        shown = [(label, text) for label, text in shown if text]
        left = self._time_left()
        return shown if left is None else [*shown, ("left", duration(left))]

    def _time_left(self) -> float | None:
        """Seconds to the end of the phase; None before there is a pace."""
        if len(self._times) < 2:
            return None
        pace = (self._times[-1] - self._times[0]) / (len(self._times) - 1)
        return pace * (self._totals[self._phase] - self._done[self._phase])

    def _render(self) -> Group:
        bars = Table.grid(padding=(0, 1))
        for phase, total in self._totals.items():
            done = self._done[phase]
            bar = ProgressBar(total=total, completed=done, width=40)
            bars.add_row(Text(phase, style="bold" if phase == self._phase else "dim"), bar, Text(f"{done}/{total}"))
        numbers = Text("   ").join(
            Text.assemble((f"{label} ", "dim"), (value, "bold")) for label, value in self._numbers()
        )
        return Group(bars, numbers)


def duration(seconds: float) -> str:
    """Seconds as a person says them.

    >>> [duration(x) for x in (8.6, 83, 7325)]
    ['9s', '1:23', '2:02:05']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
