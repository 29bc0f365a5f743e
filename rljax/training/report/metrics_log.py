"""`metrics.jsonl`: what a run measured, one JSON object a line, in the order in which it happened.

    {"phase": "rl", "step": 12, "reward": 0.41, …}

A step is counted from 0 within its phase. A value that is not finite is written as null, so that every line is JSON.
A process killed while writing leaves at most its last line torn; readers pass over it, and the next log removes it.
"""

import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

FILE = "metrics.jsonl"


def read(folder: Path) -> list[dict]:
    """The rows of a run's log, oldest first; none where there is no log yet.

    A torn last line is passed over. Raises ValueError, with the line's number, for any other line that is not a row.
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
                         "delete that line to go on")  # fmt: skip
    return [row for row in rows if row is not None]


def series(rows: Sequence[Mapping], phase: str, name: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps, values), float64, of one metric of one phase; rows without it are left out, nulls become NaN."""
    found = [(row["step"], math.nan if row[name] is None else row[name])
             for row in rows if row["phase"] == phase and name in row]  # fmt: skip
    steps, values = zip(*found, strict=True) if found else ((), ())
    return np.array(steps, np.float64), np.array(values, np.float64)


class MetricsLog:
    """The log of a run, opened for appending; on disk, or in the system's hands, line by line.

    `resume_from` gives for each phase how many of its steps are kept: rows of that phase with `step` at or past it are
    dropped, since those steps come again; phases that it does not name are kept whole. With `tensorboard` every number
    also goes to `folder/tensorboard/<phase>`; raises ValueError where the extra `tb` is not installed.
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
        """Appends a row; values are numbers (Python's, NumPy's or JAX's) or mappings of them."""
        values = _numbers(metrics)
        clash = {"phase", "step"} & values.keys()
        if clash:
            raise ValueError(f"metrics has {sorted(clash)}: expected other names, these are the row's own")
        self._file.write(_line({"phase": phase, "step": int(step), **values}))
        if self._show is not None:
            self._show(phase, step, values)

    def close(self) -> None:
        """Closes the file and TensorBoard's."""
        self._file.close()
        for board in self._boards.values():
            board.close()

    def _replace(self, rows: list[dict]) -> None:
        """The file with these rows alone: the old one or the new one, whenever the process ends."""
        path = self._folder / FILE
        partial = path.with_suffix(".partial")
        with partial.open("w", encoding="utf-8") as file:
            file.writelines(map(_line, rows))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)

    def _to_tensorboard(self, writer: Callable) -> Callable[[str, int, Mapping], None]:
        """One TensorBoard run a phase, for each phase counts its own steps; what comes again is purged."""

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
    """The row, or None where the line is not one."""
    try:
        row = json.loads(line)
    except json.JSONDecodeError:
        return None
    return row if isinstance(row, dict) and "phase" in row and "step" in row else None


def _line(row: Mapping) -> str:
    return json.dumps(row, allow_nan=False) + "\n"


def _numbers(metrics: Mapping) -> dict:
    """Python floats, null where not finite, mappings within mappings kept; raises TypeError for anything else."""
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
    """TensorBoard's writer, imported only where it is asked for."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        raise ValueError("tensorboard = True needs tensorboardX, which is not installed: install the extra `tb` "
                         "(from a checkout, `pip install -e '.[tb]'`), or leave it False") from None  # fmt: skip
    return SummaryWriter
