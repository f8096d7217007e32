"""The training loop and what keeps it: optimisation, precision, checkpoints, the run folder."""
