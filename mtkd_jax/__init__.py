"""Multi-teacher knowledge distillation: train an ensemble at once, fuse it, compress it, measure it."""

__version__ = "0.1.0"
