"""What the engine costs, beside what one would use instead: `python -m mtkd_jax.benchmark SUITE`.

A file a suite. `networks` says what is trained, `work` how many operations that takes; `engine` runs our
side, `plain` and `pytorch` the same networks as a user of Flax or PyTorch would write them; `clock` lets the
sides take turns, so that what else the machine does meets all of them alike.
"""
