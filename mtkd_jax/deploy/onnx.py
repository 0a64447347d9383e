"""The student as ONNX, for ONNX Runtime and browsers: float32 images [b,h,w,c] -> logits [b,C] for any b.

`jax2onnx` translates what JAX traces. It does not take every way of writing a convolution, nor is what it
writes always right, so that each way is tried and only a file that ONNX Runtime loads and that says what the
student says is kept.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from mtkd_jax.deploy.onnx_runtime import open_model
from mtkd_jax.models import layers
from mtkd_jax.system.terminal import one_line
from mtkd_jax.types import Model, PyTree, UserError

TOLERANCE = 1e-4  # of the largest logit (and of 1): ONNX Runtime sums in another order
WAYS = ("gpu", "cpu")  # whose forms of convolutions are traced: plain ones first, which runtimes know best


def onnx_of(model: Model, variables: PyTree, images: np.ndarray, logits: np.ndarray) -> bytes:
    """The network with its weights as an ONNX model, checked: of `images` it says `logits` [n,C].

    It is asked for all images at once and for the first alone. Raises UserError, one line, where none of the
    ways of tracing gives a model that loads and agrees to TOLERANCE.
    """
    images, said = np.asarray(images, np.float32), []
    for way in WAYS:
        try:
            data = _translated(model, variables, images.shape[1:], way)
            ask = open_model(data, model.name).call
            found = max(_difference(ask(images), logits), _difference(ask(images[:1]), logits[:1]))
        # A translator that fails raises almost anything, and so does a runtime that meets what it made.
        except Exception as error:
            said.append(f"as on a {way}: {one_line(error)[:160]}")
            continue
        if found <= TOLERANCE:
            return data
        said.append(f"as on a {way}: differs by {found:.2g} of the largest logit, more than {TOLERANCE:g}")
    raise UserError(f"{model.name}: cannot be written as ONNX by jax2onnx ({'; '.join(said)})")


def _translated(model: Model, variables: PyTree, shape: tuple[int, ...], way: str) -> bytes:
    import jax2onnx

    variables = jax.tree.map(np.asarray, variables)
    with silent(), _lenient(), layers.forms_of(way), jax.default_matmul_precision("highest"):
        found: Any = jax2onnx.to_onnx(
            lambda images: model.apply(variables, images)[0].exported,
            inputs=[("batch", *shape)],
            model_name="student",
            input_names=["images"],
            output_names=["logits"],
        )
    # Of values between its ends jax2onnx 0.17 writes wrong shapes; without them runtimes work them out.
    del found.graph.value_info[:]
    return found.SerializeToString()


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Without what translators log and warn of: what counts is whether the result is right."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@contextlib.contextmanager
def _lenient() -> Iterator[None]:
    """JAX as other people's code expects it, whatever this process has asked for."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def _difference(found: np.ndarray, wanted: np.ndarray) -> float:
    largest = max(1.0, float(np.max(np.abs(wanted))))
    difference = np.abs(np.asarray(found, np.float64) - np.asarray(wanted, np.float64))
    return float(np.max(difference)) / largest if np.all(np.isfinite(found)) else np.inf
