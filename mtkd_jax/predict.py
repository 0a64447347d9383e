"""`python -m mtkd_jax.predict`: see deploy/predict.py. A command line only: nobody imports it."""

import sys

from mtkd_jax.deploy import predict

if __name__ == "__main__":
    sys.exit(predict.main())
