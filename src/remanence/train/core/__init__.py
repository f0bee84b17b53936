"""The training loop, its checkpoints and its log, and the runner of stages; knows no recipe."""
