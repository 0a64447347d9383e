"""`python -m mtkd_jax.predict`: see deploy/predict.py. A command line only.

Imported, it would take the place of the function `mtkd_jax.predict`, and so it refuses to be.
"""

import sys

if __name__ != "__main__":
    raise ImportError(
        "mtkd_jax.predict is a function (from mtkd_jax import predict), this file a command line"
    )

from mtkd_jax.deploy import predict

sys.exit(predict.main())
