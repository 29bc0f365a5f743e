"""Evaluates the newest checkpoint of a run on the held-out problems: `python launch/evaluate.py RUN`."""

from rljax._entry_points import evaluate

if __name__ == "__main__":
    evaluate()
