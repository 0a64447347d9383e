"""`python -m mtkd_jax.data`: see report/overview.py."""

import sys

from mtkd_jax.report import overview

if __name__ == "__main__":
    sys.exit(overview.main())
