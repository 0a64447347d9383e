"""ONNX models as functions of images, run by ONNX Runtime on the CPU: the one place that opens them."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mtkd_jax.types import Array, UserError

QUIET = 4  # of its levels: what it logs as errors comes back as exceptions, too


class Opened(NamedTuple):
    """A model that can be asked."""

    call: Callable[[np.ndarray | Array], np.ndarray]  # images, float32 or what becomes it -> its first output
    sizes: tuple[int | None, ...]  # of its input; None is any


def open_model(data: bytes, name: object) -> Opened:
    """A model of one input, images as float32.

    Raises UserError, one line that begins with `name`, for other bytes, for a model of other inputs, and
    where ONNX Runtime is missing.
    """
    try:
        import onnxruntime
    except ImportError:
        raise UserError(f"{name}: ONNX Runtime, which runs it, is missing: pip install onnxruntime") from None
    options, run_options = onnxruntime.SessionOptions(), onnxruntime.RunOptions()
    options.log_severity_level = run_options.log_severity_level = QUIET
    try:
        session = onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors have no common class
        raise UserError(f"{name}: damaged, or no model that ONNX Runtime can run") from error
    inputs = session.get_inputs()
    if len(inputs) != 1 or inputs[0].type != "tensor(float)":
        kinds = ", ".join(one.type for one in inputs)
        raise UserError(f"{name}: takes {kinds}; must take one tensor(float), images as float32")

    def call(images: np.ndarray | Array) -> np.ndarray:
        given = {inputs[0].name: np.ascontiguousarray(images, np.float32)}
        return session.run(None, given, run_options)[0]

    return Opened(call, tuple(size if isinstance(size, int) else None for size in inputs[0].shape))
