"""A label for every pixel: semantic segmentation."""

from mtkd_jax.tasks.kinds import Kind

KIND = Kind(place="pixel")
