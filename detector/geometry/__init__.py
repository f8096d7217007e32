"""Pure tensor functions on boxes and priors, and the rules that match priors to ground truths."""
