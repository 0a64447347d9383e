"""`python -m mtkd_jax.report`: see document.py."""

import sys

from mtkd_jax.report import document

if __name__ == "__main__":
    sys.exit(document.main())
