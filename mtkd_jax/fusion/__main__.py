"""`python -m mtkd_jax.fusion`: see laboratory.py."""

import sys

from mtkd_jax import laboratory

if __name__ == "__main__":
    sys.exit(laboratory.main())
