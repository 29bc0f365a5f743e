"""Plots the learning curve of the string task: `python benchmarks/learning_curve.py RUN docs/learning_curve.png`."""

import sys
from pathlib import Path

from rljax.training.report.figures import learning_curve
from rljax.training.report.metrics_log import read

if __name__ == "__main__":
    run, picture = map(Path, sys.argv[1:])
    print(learning_curve(read(run), picture, headline="level 2 held-out pairs"))
