"""The string task under HölderPO: a power mean of ratios, p annealed from 2 to −2 (2605.12058). About 7 minutes.

p falls over the rollouts of the default recipe: with another number of `--steps`, change it here too.
"""

import dataclasses
from pathlib import Path

from rljax.configs import strings

from rljax import algorithms


def annealed(step):
    """The objective at a rollout's step, which is traced: p falls linearly over the rollouts."""
    return algorithms.holder_po(p=algorithms.holder_schedule(step, start=2.0, end=-2.0, steps=strings.config.steps))


config = dataclasses.replace(strings.config, run=Path("runs/holder_po"), algorithm=annealed)
