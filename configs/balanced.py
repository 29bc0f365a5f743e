"""The string task under Balanced Aggregation: each sign has its share of the group (2605.04077). About 7 minutes."""

import dataclasses
from pathlib import Path

from rljax.configs import strings

from rljax import algorithms

config = dataclasses.replace(strings.config, run=Path("runs/balanced"), algorithm=algorithms.balanced_grpo())
