"""A run of the real trainer within the test's own process."""

from pathlib import Path

from rljax.training import Config
from rljax.training.loop import Run
from rljax.training.watcher import Watcher


class Unevaluated(Run):
    """A run that does not measure itself at the ends of its stages: that takes longer than a few steps do."""

    def _evaluate(self, moment: str, params) -> None:
        pass

    def _look(self, state, n: int) -> None:
        pass


def train(config: Config, folder: Path) -> Run:
    """The run, at its end."""
    folder.mkdir(parents=True, exist_ok=True)
    with Watcher(config, folder) as watcher:
        run = Unevaluated(config, folder, watcher)
        run.train()
    return run
