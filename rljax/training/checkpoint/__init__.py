"""Checkpoints of a run, checks that they belong to it, and the run's folder."""
