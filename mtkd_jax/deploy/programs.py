"""Programs of others that are to teach: ONNX and StableHLO files, and the folders of exported students.

A program takes images as float32 in 0..1 (floats of the data as they are), [N,h,w,c] or [N,c,h,w], which the
shape of its input tells, and returns logits [N,C]. Normalising them is the program's own affair. Classes are
in the order of the data's; the card of a student says their names, and then these are looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import export as jax_export

from mtkd_jax.data.checks import first_line
from mtkd_jax.deploy.deployed import PIXELS, PROGRAM, load_program, read
from mtkd_jax.deploy.onnx_runtime import open_model
from mtkd_jax.models.programs import in_blocks
from mtkd_jax.types import UserError

Call = Callable[[Any], Any]  # images [B,h,w,c] float32 -> logits [B,C]


class Program(NamedTuple):
    """One file, ready to be asked."""

    call: Call
    compiled: bool  # whether it can be asked inside a program of ours; else from the host alone
    class_names: tuple[str, ...] | None  # in the order of its logits, where it says so


def load(path: Path, shape: tuple[int, ...], dtype: np.dtype, num_classes: int) -> Program:
    """A program for images of this `shape` (h, w, c) and of the data's `dtype`; nothing in it is unpickled.

    Raises UserError that begins with the path, where it is no such program.
    """
    if path.is_dir():
        found = _of_student(path, shape, dtype)
    elif path.suffix in READERS:
        found = READERS[path.suffix](path, shape)
    else:
        raise UserError(f"{path}: must end in {' or '.join(READERS)}, or be the student/ folder of a run")
    blank = np.zeros((2, *shape), np.float32)
    try:
        said = jax.eval_shape(found.call, blank) if found.compiled else found.call(blank)
    except Exception as error:  # every runtime has errors of its own
        raise UserError(f"{path}: cannot be asked about images {shape}: {first_line(error)}") from error
    if not hasattr(said, "shape") or said.shape != (2, num_classes):
        raise UserError(
            f"{path}: says {getattr(said, 'shape', 'several things')} of two images; must say "
            f"(2, {num_classes}), a logit for every class of the data"
        )
    return found


def weights_of(path: Path) -> Path:
    """The file that is the program: itself, or that in the folder of a student."""
    return path / PROGRAM if path.is_dir() else path


def _of_student(folder: Path, shape: tuple[int, ...], dtype: np.dtype) -> Program:
    call, card = load_program(folder)
    taken = card["input"]
    if tuple(taken["shape"]) != shape:
        raise UserError(f"{folder}: sees images {tuple(taken['shape'])}; those of the data are {shape}")
    if (taken["range"] == PIXELS) != (dtype == np.uint8):
        raise UserError(f"{folder}: sees images as {taken['range']}; those of the data are {dtype}")
    return Program(call, True, tuple(card["class_names"]))


def _of_stablehlo(path: Path, shape: tuple[int, ...]) -> Program:
    data = read(path)
    try:
        exported = jax_export.deserialize(bytearray(data))
    except Exception as error:  # what is raised differs with the version and the damage
        raise UserError(f"{path}: damaged, or no program that JAX {jax.__version__} can read") from error
    here = {"gpu": "cuda"}.get(jax.default_backend(), jax.default_backend())
    if here not in exported.platforms:
        raise UserError(f"{path}: was exported for {', '.join(exported.platforms)}; export it for {here} too")
    if len(exported.in_avals) != 1 or exported.in_avals[0].dtype != np.float32:
        kinds = ", ".join(str(one) for one in exported.in_avals)
        raise UserError(f"{path}: takes {kinds}; must take one array of images as float32")
    sizes = tuple(size if isinstance(size, int) else None for size in exported.in_avals[0].shape)
    return Program(_as_ours(path, exported.call, sizes, shape, jnp), True, None)


def _of_onnx(path: Path, shape: tuple[int, ...]) -> Program:
    call, sizes = open_model(read(path), path)
    return Program(_as_ours(path, call, sizes, shape, np), False, None)


READERS = {".onnx": _of_onnx, ".stablehlo": _of_stablehlo}


def _as_ours(path: Path, call: Call, sizes: tuple[int | None, ...], shape: tuple[int, ...], xp: Any) -> Call:
    """`call` of images [B,h,w,c] for any B, whatever it takes: `sizes` are those of its input, None any."""
    height, width, channels = shape
    orders = {"NHWC": (height, width, channels), "NCHW": (channels, height, width)}
    fit = [
        name
        for name, ours in orders.items()
        if len(sizes) == 4 and all(size in (None, one) for size, one in zip(sizes[1:], ours))
    ]
    said = [size or "any" for size in sizes]
    if not fit:
        raise UserError(f"{path}: sees images {said}; those of the data are [N,h,w,c] with h, w, c = {shape}")
    if len(fit) > 1:
        raise UserError(f"{path}: sees images {said}: must say where the channels are, by their number")
    first = call if fit == ["NHWC"] else lambda images: call(xp.moveaxis(images, -1, 1))
    if sizes[0] is None:
        return first
    return in_blocks(first, sizes[0], xp)
