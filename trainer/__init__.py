"""The training run: configuration, engines, the loop, checkpoints, export and the command line."""
