"""Checkpoints of a run, what they belong to, and the folder that holds them."""
