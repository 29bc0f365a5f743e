"""The metrics log of a run, `metrics.jsonl`: one JSON object per line, in chronological order.

    {"phase": "rl", "step": 12, "reward": 0.41, …}

`phase` is the stage, "likelihood" or "rl", or "eval" for quick evaluations; `step` counts from 0 within a phase.
Values that are not finite are written as null. An incomplete last line, as a killed process may leave, is ignored.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

FILE = "metrics.jsonl"


def read(folder: Path) -> list[dict]:
    """The rows of a run's log, oldest first; empty if there is no log.

    Raises ValueError with the line number if a line other than the last is not a row.
    """
    path = Path(folder) / FILE
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    rows = [_parse(line) for line in lines]
    if rows and rows[-1] is None:
        rows.pop()
    if None in rows:
        raise ValueError(f'{path}, line {rows.index(None) + 1}: expected a JSON object with "phase" and "step"; '
                         "delete that line to continue")  # fmt: skip
    return [row for row in rows if row is not None]


def series(rows: Sequence[Mapping], phase: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values) of metric `name` in one phase, float64; rows without the metric are skipped, null becomes NaN."""
    found = [(row["step"], math.nan if row[name] is None else row[name])
             for row in rows if row["phase"] == phase and name in row]  # fmt: skip
    steps, values = zip(*found, strict=True) if found else ((), ())
    return np.array(steps, np.float64), np.array(values, np.float64)


class MetricsLog:
    """The log of a run, opened for appending; every row is written to the file immediately.

    `resume_from` maps a phase to the number of its steps to keep; the rows of later steps, which will run again, are
    deleted. With `tensorboard`, numbers are also written to `folder/tensorboard/<phase>`; raises ValueError if the
    extra `tb` is not installed.
    """

    def __init__(self, folder: Path, tensorboard: bool = False, resume_from: Mapping[str, int] | None = None):
        self._folder = Path(folder)
        self._kept = dict(resume_from or {})
        self._show = self._to_tensorboard(_summary_writer()) if tensorboard else None
        self._boards: dict = {}
        self._folder.mkdir(parents=True, exist_ok=True)
        rows = [row for row in read(self._folder) if row["step"] < self._kept.get(row["phase"], math.inf)]
        self._replace(rows)
        self._file = (self._folder / FILE).open("a", buffering=1, encoding="utf-8")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def write(self, phase: str, step: int, metrics: Mapping) -> None:
        """Appends a row; values are Python, NumPy or JAX numbers, or mappings of numbers."""
        values = _numbers(metrics)
        clash = {"phase", "step"} & values.keys()
        if clash:
            raise ValueError(f"metrics has the names {sorted(clash)}: expected other names, since every row has these")
        self._file.write(_line({"phase": phase, "step": int(step), **values}))
        if self._show is not None:
            self._show(phase, step, values)

    def close(self) -> None:
        self._file.close()
        for board in self._boards.values():
            board.close()

    def _replace(self, rows: list[dict]) -> None:
        path = self._folder / FILE
        partial = path.with_suffix(".partial")
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(map(_line, rows))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)

    def _to_tensorboard(self, writer: Callable) -> Callable[[str, int, Mapping], None]:
        """Returns a function that writes one TensorBoard run per phase, since each phase has its own steps."""

        def show(phase: str, step: int, values: Mapping, prefix: str = "") -> None:
            if phase not in self._boards:
                folder = str(self._folder / "tensorboard" / phase)
                self._boards[phase] = writer(folder, purge_step=self._kept.get(phase))
            for name, value in values.items():
                if isinstance(value, Mapping):
                    show(phase, step, value, f"{prefix}{name}/")
                elif value is not None:
                    self._boards[phase].add_scalar(f"{prefix}{name}".replace(" ", "_"), value, step)

        return show


def _parse(line: str) -> dict | None:
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) and "phase" in row and "step" in row else None


def _line(row: Mapping) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _numbers(metrics: Mapping) -> dict:
    """Converts numbers, also in nested mappings, to floats (None if not finite); raises TypeError for other values."""
    values = {}
    for name, value in metrics.items():
        if isinstance(value, Mapping):
            values[name] = _numbers(value)
            continue
        try:
            number = float(value)
        except (TypeError, ValueError):
            raise TypeError(f"metrics[{name!r}] = {value!r}: expected a number, or a mapping of numbers") from None
        values[name] = number if math.isfinite(number) else None
    return values


def _summary_writer():
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ValueError("tensorboard = True: expected tensorboardX to be installed; install the extra `tb` "
                         "(from a checkout, `pip install -e '.[tb]'`), or set tensorboard=False") from None  # fmt: skip
    return SummaryWriter
