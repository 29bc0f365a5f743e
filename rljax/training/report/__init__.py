"""Output of a run: progress display, metrics log, figures and report."""
