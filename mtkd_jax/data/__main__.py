"""`python -m mtkd_jax.data`: see overview.py."""

import sys

from mtkd_jax.data import overview

if __name__ == "__main__":
    sys.exit(overview.main())
