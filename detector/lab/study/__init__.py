"""Many runs as one experiment: variants x levels of imbalance x seeds, and what their results say."""
