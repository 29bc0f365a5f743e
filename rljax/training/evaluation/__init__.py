"""Evaluation on held-out problems, with confidence intervals."""
