"""HölderPO (2605.12058) on the string task, with p annealed from 2 to −2.

The annealing lasts as many rollouts as the default recipe; with another `--steps`, change `annealed` too.
"""

import dataclasses
from pathlib import Path

from rljax.configs import strings

from rljax import algorithms


def annealed(step):
    """The algorithm for rollout `step`, with p decreasing linearly."""
    return algorithms.holder_po(p=algorithms.holder_schedule(step, start=2.0, end=-2.0, steps=strings.config.steps))


config = dataclasses.replace(strings.config, run=Path("runs/holder_po"), algorithm=annealed)
