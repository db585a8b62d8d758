"""What a person sees of finished runs: plots, comparisons, and pages."""
