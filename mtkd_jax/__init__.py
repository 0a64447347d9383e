"""Multi-teacher knowledge distillation: train an ensemble at once, fuse it, compress it, measure it."""

import sys

__version__ = "0.1.0"

if sys.argv[:1] == ["-m"]:  # what Python says while it looks for the module of `python -m mtkd_jax.X`
    from mtkd_jax.system import terminal

    terminal.begin()
