"""Evaluation of a run's newest checkpoint by the evaluation command."""

import jax
from rich.console import Console
from rich.table import Table

from rljax.training.checkpoint.compatibility import read_params
from rljax.training.checkpoint.folder import write_json
from rljax.training.components import make_components
from rljax.training.config import Config
from rljax.training.errors import RunError
from rljax.training.evaluation.evaluator import Evaluator
from rljax.training.evaluation.intervals import as_text
from rljax.training.keys import decode_key, purpose_key


def evaluate_run(config: Config) -> dict[str, dict]:
    """Evaluates the run's newest checkpoint, prints a table, writes `evaluation.json` and returns the figures.

    Raises RunError if the run has no checkpoint, or if its model or tokenizer differs.
    """
    parts, where = make_components(config), f"run = {str(config.run)!r}"
    restored = read_params(config.run / "checkpoints", parts.model.abstract_params(parts.mesh), parts.data.tokenizer,
                           where)  # fmt: skip
    if restored is None:
        raise RunError(f"{where} has no checkpoint yet: train the run first")
    record, key = restored.record, decode_key(restored.record["key"])
    figures = Evaluator(config, parts).evaluate(restored.tree["params"], purpose_key(key, "evaluate"))
    if jax.process_index() == 0:
        measured = {"phase": record["phase"], "step": record["step"]}
        console = Console(width=None if Console().is_terminal else 160)
        console.print(table(f"{config.run}: {measured['phase']} step {measured['step']}", figures))
        write_json(config.run / "evaluation.json", {**measured, "levels": figures})
    return figures


def table(title: str, figures: dict[str, dict]) -> Table:
    shown = Table(title=title, caption="in percent (reward: mean), with the 95 % interval over problems in brackets")
    names = [name for name in next(iter(figures.values()), {}) if name not in ("problems", "samples")]
    for column in ("level", "problems", "samples", *names):
        shown.add_column(column, justify="left" if column == "level" else "right")
    for level, row in figures.items():
        cells = [" ".join(as_text(name, row[name])) for name in names]
        shown.add_row(level, str(row["problems"]), str(row["samples"]), *cells)
    return shown
