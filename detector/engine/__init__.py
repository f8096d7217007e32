"""The training loop, with its optimizers, number formats, checkpoints and run folder."""
