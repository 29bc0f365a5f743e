"""Held-out problems: sampled, scored, and reported with intervals."""
