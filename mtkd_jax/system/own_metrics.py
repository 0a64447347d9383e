"""What a metric of the user's own says of logits, checked."""

from __future__ import annotations

import numpy as np

from mtkd_jax.system.terminal import one_line
from mtkd_jax.types import Metric, UserError


def values(metric: Metric, logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """A value an example [N] or one for all [], float64, of logits [N,C] and labels [N].

    Raises UserError, one line, for whatever comes out of it, another shape, and what is not finite.
    """
    try:
        found = np.asarray(metric.compute(np.asarray(logits), np.asarray(labels)), np.float64)
    except UserError:
        raise
    except Exception as error:  # anything may come out of it
        raise UserError(f"{type(error).__name__}: {one_line(str(error).partition(chr(10))[0])}") from error
    if found.shape not in ((), (len(labels),)):
        raise UserError(
            f"returned {list(found.shape)} of {len(labels)} examples; it must return [{len(labels)}], a "
            "value an example, or one number"
        )
    if not np.all(np.isfinite(found)):
        raise UserError("returned what is not finite")
    return found
