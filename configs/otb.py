"""The optimal token baseline (2602.07078) on the string task.

The baseline needs an extra forward pass per rollout.
"""

import dataclasses
from pathlib import Path

from rljax.configs import strings

from rljax import algorithms

config = dataclasses.replace(strings.config, run=Path("runs/otb"), algorithm=algorithms.otb())
