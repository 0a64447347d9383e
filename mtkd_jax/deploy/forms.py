"""Further forms of the student in its folder, beside the float32 program and weights.

model.onnx               for ONNX Runtime, in a browser too: see deploy/onnx.py
model.int8.stablehlo     the program with kernels of 8 bits: see deploy/int8.py
model.int8.safetensors   these kernels and their scales
model.int8.onnx          kernels and activations of 8 bits: see deploy/onnx_int8.py

A form is kept once it has been asked about the images that the folder holds for checking. The card, and the
README with it, names every file, its SHA-256 and what was measured of it.
"""

from __future__ import annotations

import importlib.util
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors.numpy import load_file, save

from mtkd_jax.deploy import export, int8, onnx, onnx_int8
from mtkd_jax.deploy.deployed import (
    INT8_ONNX,
    INT8_PROGRAM,
    ONNX,
    PROGRAM,
    PROGRAMS,
    Program,
    card_digest,
    load_program,
    read_card,
    sha256,
)
from mtkd_jax.system import files
from mtkd_jax.types import Array, Model, PyTree, UserError

INT8_WEIGHTS, WEIGHTS = "model.int8.safetensors", "model.safetensors"
PROC = Path("/proc")
Ask = Callable[[np.ndarray], np.ndarray]  # float32 images [b,h,w,c] -> logits [b,C]


class Given(NamedTuple):
    """What a form is made of."""

    model: Model
    variables: PyTree
    images: np.ndarray  # [n,h,w,c] float32, of check.safetensors
    logits: np.ndarray  # [n,C], of these
    seen: np.ndarray | None  # [v,h,w,c] float32, of the validation set; None where it is not there


class Form(NamedTuple):
    """What a form is made by."""

    extra: str  # of the installation, which brings
    packages: tuple[str, ...]  # these: they are no requirement of mtkd_jax
    write: Callable[[Given], dict[str, bytes]]  # -> {file: content}


def add(directory: Path, names: Sequence[str], build: export.Build, seen: np.ndarray | None = None) -> None:
    """Write the forms of these names into the student's folder `directory`, and into its card.

    `build` makes a network of its address, as in `load_student`; `seen` are images of the validation set, as
    the network sees them. A form that is there is replaced. Raises UserError, one line, before anything is
    written, for a form whose packages or images are missing and for one that cannot be made of this network.
    """
    check_packages(names)
    model, variables, card = export.load_student(directory, build)
    checked = load_file(directory / "check.safetensors")
    given = Given(model, variables, checked["images"], checked["logits"], seen)
    written: dict[str, bytes] = {}
    for name in names:
        written |= FORMS[name].write(given)
    for file, data in written.items():
        files.write_atomically(directory / file, data)
    if written:
        rewrite_card(directory, card, {file: {"sha256": sha256(data)} for file, data in written.items()})


def check_packages(names: Sequence[str]) -> None:
    """Raise UserError naming the extra that brings what a form is made by, where it is missing."""
    for name in names:
        for package in FORMS[name].packages:
            if importlib.util.find_spec(package) is None:
                raise UserError(
                    f"the form {name} is made by {package}, which is missing: "
                    f"pip install 'mtkd_jax[{FORMS[name].extra}]'"
                )


def rewrite_card(
    directory: Path, card: Mapping[str, Any], told: Mapping[str, Mapping[str, Any]], on: str = ""
) -> None:
    """Write `card`, and the README, with what is told of files of the folder; `on` names the machine."""
    before = card.get("forms", {})
    of_files = before.get("files", {})
    of_files = {file: {**of_files.get(file, {}), **told.get(file, {})} for file in {**of_files, **told}}
    card = {**card, "forms": {"on": on or before.get("on", ""), "files": of_files}}
    card["card_sha256"] = card_digest(card)
    files.write_atomically(directory / "model.json", json.dumps(card, indent=2).encode())
    files.write_atomically(directory / "README.md", export.readme(card, directory.resolve().name).encode())


def programs(directory: Path) -> dict[str, Ask]:
    """{file: what it says} of every form of the folder that can be asked.

    Raises UserError naming a file that is not what was written, and where ONNX Runtime is missing.
    """
    told = {PROGRAM, *read_card(directory / "model.json").get("forms", {}).get("files", {})}
    return {
        file: _on_host(load_program(directory, form)[0]) for form, file in PROGRAMS.items() if file in told
    }


def _on_host(program: Program) -> Ask:
    return lambda images: np.asarray(program(images))


def machine() -> str:
    """The processor, as far as the system tells it, and how many cores this process sees."""
    names = [line.split(":", 1)[1].strip() for line in _cpuinfo() if line.startswith("model name")]
    name = names[0] if names else platform.processor() or platform.machine()
    return f"{name}, {len(names) or '?'} cores, JAX on {jax.default_backend()}"


def _cpuinfo() -> list[str]:
    try:
        return (PROC / "cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # another system than Linux
        return []


def _write_onnx(given: Given) -> dict[str, bytes]:
    return {ONNX: onnx.onnx_of(given.model, given.variables, given.images, given.logits)}


def _write_onnx_int8(given: Given) -> dict[str, bytes]:
    if given.seen is None:
        raise UserError(
            "the form onnx_int8 takes the ranges of activations from validation images; the run's data must "
            "be there"
        )
    (data,) = _write_onnx(given).values()
    try:
        return {INT8_ONNX: onnx_int8.rounded(data, given.seen)}
    except UserError as error:
        raise UserError(f"{given.model.name}: {error}") from error


def _write_int8(given: Given) -> dict[str, bytes]:
    arrays, model = int8.rounded(given.variables), given.model

    def exported(images: Array) -> Array:
        return model.apply(int8.multiplied_out(arrays), images)[0].exported

    program = export.stablehlo_of(exported, given.images.shape[1:])
    return {INT8_WEIGHTS: save(arrays), INT8_PROGRAM: program}


FORMS = {
    "onnx": Form("onnx", ("jax2onnx", "onnxruntime"), _write_onnx),
    "int8": Form("int8", ("qwix",), _write_int8),
    "onnx_int8": Form("onnx", ("jax2onnx", "onnxruntime"), _write_onnx_int8),
}
