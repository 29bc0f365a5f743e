"""The output of a run for people: progress, metrics, figures and the report."""
