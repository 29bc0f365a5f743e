"""The string task under CTPO: cumulative ratios, clipped in proportion to √t (2605.07331). About 7 minutes."""

import dataclasses
from pathlib import Path

from rljax.configs import strings

from rljax import algorithms

config = dataclasses.replace(strings.config, run=Path("runs/ctpo"), algorithm=algorithms.ctpo())
