"""`python -m mtkd_jax COMMAND ...`: see commands.py."""

import sys

from mtkd_jax import commands

if __name__ == "__main__":
    sys.exit(commands.main())
