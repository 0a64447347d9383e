"""`python -m mtkd_jax.laboratory`: see rule_study.py."""

import sys

from mtkd_jax.laboratory import rule_study

if __name__ == "__main__":
    sys.exit(rule_study.main())
