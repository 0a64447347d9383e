"""The student's folder as it is read without the code that trained it: the card and the program.

model.stablehlo     images -> logits for any batch on CPU, CUDA and TPU, weights inside, by `jax.export`

Further forms that stand beside it are asked in the same way: see deploy/forms.py, which writes them. Nothing
is executed on loading; the program is checked before it is read, and compiled when it is called.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import export as jax_export

from mtkd_jax.deploy.onnx_runtime import open_model
from mtkd_jax.types import Array, UserError

PROGRAM, ONNX, DEMO = "model.stablehlo", "model.onnx", "demo.html"
INT8_PROGRAM, INT8_ONNX = "model.int8.stablehlo", "model.int8.onnx"
PROGRAMS = {"stablehlo": PROGRAM, "onnx": ONNX, "int8": INT8_PROGRAM, "onnx_int8": INT8_ONNX}  # form -> file
Program = Callable[[np.ndarray | Array], np.ndarray | Array]  # float32 images [b,h,w,c] -> logits [b,C]
PIXELS = "uint8 pixels divided by 255"  # the range, in a card's "input", of a student that reads image files


def load_program(directory: Path, form: str = "stablehlo") -> tuple[Program, dict[str, Any]]:
    """The student as (program, card): `program(images)` returns logits [b,C]; `form` is one of PROGRAMS.

    Images are float32 [b,h,w,c] in the range that the card's "input" says. Raises UserError naming the file
    when one is missing or is not what was saved, or when it cannot be run here.
    """
    directory = Path(directory)
    card, path = read_card(directory / "model.json"), directory / PROGRAMS[form]
    data = read_form(directory, form, card)
    if path.suffix == ".onnx":
        return open_model(data, path).call, card
    try:
        exported = jax_export.deserialize(bytearray(data))
    except Exception as error:  # what an unknown version raises differs from version to version
        raise UserError(
            f"{path}: JAX {jax.__version__} cannot read what JAX {card['jax']} wrote; "
            "use that one, or the weights in model.safetensors"
        ) from error
    return jax.jit(exported.call), card


def read_form(directory: Path, form: str, card: Mapping[str, Any]) -> bytes:
    """The file of a form; UserError where it is not there, or is not as the card says that it was written."""
    file = PROGRAMS[form]
    if "program_sha256" not in card:
        raise UserError(f"{directory}: a student from before there was {PROGRAM}; export it again")
    known = card.get("forms", {}).get("files", {}) | {PROGRAM: {"sha256": card["program_sha256"]}}
    if "sha256" not in known.get(file, {}):
        raise UserError(
            f"{directory}: has no {file}; python -m mtkd_jax.export {directory} --forms {form} writes it"
        )
    data = read(directory / file)
    if sha256(data) != known[file]["sha256"]:
        raise UserError(
            f"{directory / file}: damaged, its SHA-256 is not the one in model.json; export the student again"
        )
    return data


def read_card(path: Path) -> dict[str, Any]:
    """The card model.json; UserError unless it is as it was written."""
    data = read(path)
    try:
        card = json.loads(data)
        intact = card["card_sha256"] == card_digest(card)
    except (ValueError, TypeError, KeyError):
        intact = False
    if not intact:
        raise UserError(f"{path}: damaged or edited, its SHA-256 does not fit; export the student again")
    return card


def read(path: Path) -> bytes:
    """A file of the folder; UserError naming it when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        inside = path.parent / "student"
        hint = f"; the student of this run is {inside}" if (inside / path.name).is_file() else ""
        raise UserError(f"{path}: cannot be read: {error.strerror}{hint}") from error


def card_digest(card: Mapping[str, Any]) -> str:
    """Over all but itself: a changed `task` would change the predictions without touching the weights."""
    rest = {name: value for name, value in card.items() if name != "card_sha256"}
    return sha256(json.dumps(rest, sort_keys=True).encode())


def sha256(data: bytes) -> str:
    """SHA-256 in hexadecimal, as the card holds it."""
    return hashlib.sha256(data).hexdigest()
