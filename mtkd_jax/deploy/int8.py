"""The student with kernels of 8 bits: a quarter of the bytes, computed in float32.

Every kernel, see `stages.is_kernel`, is rounded by `qwix.quantize` to whole numbers in -127..127, with one
scale for each output feature (of heads: for each of each head). The program holds these numbers and
multiplies them out when it is called, so that it needs neither qwix nor mtkd_jax.

Activations stay float32; deploy/onnx_int8.py rounds them, too. qwix 0.1.8 can do that as well, from ranges it
has seen, but not of these networks: its `QtProvider` lets go of a tracer where a convolution's range is
recorded inside `jax.jit`, and its `PtqProvider` cannot convert a kernel that it has rounded
(`kernel.astype`), as all convolutions here do.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from mtkd_jax.models.stages import is_kernel
from mtkd_jax.types import PyTree, path_of

SCALE = ".scale"  # behind the name of a parameter: what its whole numbers are multiplied by


def rounded(variables: PyTree) -> dict[str, np.ndarray]:
    """{path: array} of the variables; a kernel is int8, and stands beside its scale under path + SCALE."""
    import qwix

    found: dict[str, np.ndarray] = {}
    for place, leaf in jax.tree_util.tree_leaves_with_path(variables):
        path, leaf = path_of(place), jnp.asarray(leaf)
        rounds = path.startswith("params/") and is_kernel(place, leaf)
        if not rounds or not jnp.issubdtype(leaf.dtype, jnp.floating):
            found[path] = np.asarray(leaf)
            continue
        axes = (0, leaf.ndim - 1) if leaf.ndim == 3 and "heads/" in path else (leaf.ndim - 1,)
        with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
            whole = qwix.quantize(leaf.astype(jnp.float32), jnp.int8, channelwise_axes=axes)
        found[path], found[path + SCALE] = np.asarray(whole.qvalue), np.asarray(whole.scale)
    return found


def multiplied_out(arrays: dict[str, np.ndarray]) -> PyTree:
    """The variables again: float32 kernels, of at most 255 values a feature.

    Converted by `astype`, which is traced: `jnp.asarray` would convert here and now, and a
    program would hold float32.
    """
    return unflatten_dict(
        {
            path: jnp.asarray(leaf).astype(jnp.float32) * arrays[path + SCALE]
            if path + SCALE in arrays
            else jnp.asarray(leaf)
            for path, leaf in arrays.items()
            if not path.endswith(SCALE)
        },
        sep="/",
    )
