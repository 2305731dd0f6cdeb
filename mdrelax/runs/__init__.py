"""runs: one training run, from its config and data to its model file and results."""
