"""The folder of a run: its lock, checkpoints, learning curves and predictions."""
