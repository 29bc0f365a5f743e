"""GRPO with Balanced Aggregation (2605.04077) on the string task."""

import dataclasses
from pathlib import Path

from rljax.configs import strings

from rljax import algorithms

config = dataclasses.replace(strings.config, run=Path("runs/balanced"), algorithm=algorithms.balanced_grpo())
