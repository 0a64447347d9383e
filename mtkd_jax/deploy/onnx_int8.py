"""The student as ONNX with kernels and activations of 8 bits, which runtimes multiply as whole numbers.

`onnxruntime.quantization` rounds what the float32 model multiplies: kernels with one scale for each output
feature, activations with one each, between the least and the largest value that they have on images of the
validation set. Test images set nothing. Tried and dropped: qwix, see deploy/int8.py.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mtkd_jax.deploy.onnx import silent
from mtkd_jax.deploy.onnx_runtime import open_model
from mtkd_jax.system.terminal import one_line
from mtkd_jax.types import UserError

MOST_SEEN = 512  # images, evenly spaced, that activations' ranges are taken from
BLOCK = 64  # of them computed at once


def rounded(data: bytes, seen: np.ndarray) -> bytes:
    """A float32 model with kernels and activations of 8 bits, of their ranges on images `seen` [n,h,w,c].

    Raises UserError, one line, where it cannot be made or says something that is no number.
    """
    try:
        made = _quantised(data, np.asarray(seen, np.float32))
        said = open_model(made, "the int8 model").call(seen[:2])
    except Exception as error:  # almost anything comes out of it
        raise UserError(f"cannot be rounded by onnxruntime.quantization: {one_line(error)[:200]}") from error
    if not np.all(np.isfinite(said)):
        raise UserError("rounded by onnxruntime.quantization it says NaN or infinity")
    return made


def _quantised(data: bytes, seen: np.ndarray) -> bytes:
    from onnxruntime import quantization
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Seen(quantization.CalibrationDataReader):
        def __init__(self) -> None:
            self.blocks: Iterator[np.ndarray] = (
                seen[start : start + BLOCK] for start in range(0, len(seen), BLOCK)
            )

        def get_next(self) -> dict[str, np.ndarray] | None:
            block = next(self.blocks, None)
            return None if block is None else {"images": block}

    with silent(), tempfile.TemporaryDirectory() as folder:
        plain, folded, int8 = (Path(folder) / f"{name}.onnx" for name in ("plain", "folded", "int8"))
        plain.write_bytes(data)
        quant_pre_process(plain, folded, skip_symbolic_shape=True)
        _without_empty_biases(folded)
        quantization.quantize_static(
            folded,
            int8,
            Seen(),
            quant_format=quantization.QuantFormat.QDQ,
            per_channel=True,
            activation_type=quantization.QuantType.QInt8,
            weight_type=quantization.QuantType.QInt8,
        )
        return int8.read_bytes()


def _without_empty_biases(path: Path) -> None:
    """Take biases that are a single 0 from products: jax2onnx writes them, and the quantiser wants a row."""
    import onnx

    model = onnx.load(path)
    numbers, taken = {one.name: one for one in model.graph.initializer}, set()
    for node in model.graph.node:
        bias = numbers.get(node.input[2]) if node.op_type == "Gemm" and len(node.input) == 3 else None
        if bias is not None and not bias.dims and onnx.numpy_helper.to_array(bias) == 0:
            taken.add(node.input.pop())
    used = {name for node in model.graph.node for name in node.input}
    for name in taken - used:
        model.graph.initializer.remove(numbers[name])
    onnx.save(model, path)
