"""Networks, losses, the training loop, checkpoints, prediction, scoring and the choice of the ensemble."""
