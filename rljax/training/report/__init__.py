"""What a person sees of a run: progress, metrics, figures and the report."""
