"""Studies: experiments with runs of several variants, levels of imbalance and random seeds, and their results."""
