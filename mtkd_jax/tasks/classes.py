"""One label an example: classification of images and of time series."""

from mtkd_jax.tasks.kinds import Kind

KIND = Kind()
