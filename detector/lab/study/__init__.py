"""Studies: experiments with runs of several variants, levels and random seeds, and their results."""
