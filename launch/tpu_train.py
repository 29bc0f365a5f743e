"""Trains from a recipe on one host or as one worker of a pod: `python launch/tpu_train.py [RECIPE] [--field value]`."""

from rljax._entry_points import train

if __name__ == "__main__":
    train()
