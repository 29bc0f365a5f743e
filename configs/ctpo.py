"""CTPO (2605.07331: cumulative ratios, clip bounds ∝ √t) on the string task."""

import dataclasses
from pathlib import Path

from rljax.configs import strings

from rljax import algorithms

config = dataclasses.replace(strings.config, run=Path("runs/ctpo"), algorithm=algorithms.ctpo())
