"""Trains from a recipe: `python launch/tpu_train.py [RECIPE] [--field value]`; it has not run on a TPU pod yet."""

from rljax._entry_points import train

if __name__ == "__main__":
    train()
