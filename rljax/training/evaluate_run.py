"""The evaluation command: a run's newest checkpoint, measured and shown as a table."""

import jax
from rich.console import Console
from rich.table import Table

from rljax.training.checkpoint import Checkpoints, RunError
from rljax.training.config import Config
from rljax.training.evaluation import Evaluator
from rljax.training.record import decode_key, require_same_shapes, require_same_tokenizer
from rljax.training.run_folder import write_json
from rljax.training.setting import Setting, make_setting, purpose_key


def evaluate_run(config: Config) -> dict[str, dict]:
    """Measures the run's newest checkpoint, prints the table and writes `evaluation.json`; returns the figures."""
    setting = make_setting(config)
    params, key, record = newest_params(config, setting)
    figures = Evaluator(config, setting).evaluate(params, purpose_key(key, "evaluate"))
    if jax.process_index() == 0:
        where = {"phase": record["phase"], "step": record["step"]}
        console = Console(width=None if Console().is_terminal else 120)
        console.print(table(f"{config.run}: {where['phase']} step {where['step']}", figures))
        write_json(config.run / "evaluation.json", {**where, "levels": figures})
    return figures


def newest_params(config: Config, setting: Setting):
    """(params, key, record) of the newest readable checkpoint; raises RunError where the run has none."""
    checkpoints, where = Checkpoints(config.run / "checkpoints", read_only=True), f"run = {str(config.run)!r}"

    def target(record):
        require_same_tokenizer(record, setting.data, where)
        params = setting.model.abstract_params(setting.mesh)
        require_same_shapes(record, params, where)
        return params

    restored = checkpoints.restore_params(target, print)
    checkpoints.close()
    if restored is None:
        raise RunError(f"{where} has no checkpoint yet: let it train first")
    return restored.tree["params"], decode_key(restored.record["key"]), restored.record


def table(title: str, figures: dict[str, dict]) -> Table:
    """Figures by level, in percent, with their 95 % intervals."""
    shown = Table(title=title, caption="percent, [95 % interval]")
    names = [name for name in next(iter(figures.values()), {}) if name not in ("problems", "samples")]
    for column in ("level", "problems", "samples", *names):
        shown.add_column(column, justify="left" if column == "level" else "right")
    for level, row in figures.items():
        cells = [f"{100 * v:.1f} [{100 * lo:.1f}, {100 * hi:.1f}]" for v, lo, hi in (row[name] for name in names)]
        shown.add_row(level, str(row["problems"]), str(row["samples"]), *cells)
    return shown
