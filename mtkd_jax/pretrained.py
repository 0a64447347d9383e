"""Weights from elsewhere: a file of PyTorch tensors, without pickle, into the variables of a model."""

from __future__ import annotations

import io
import zipfile
import zlib
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors import numpy as safetensors

from mtkd_jax.models.pytorch import from_state_dict
from mtkd_jax.types import Model, PyTree, UserError


def from_pytorch(path: Path, model: Model) -> PyTree:
    """Variables of `model` from a PyTorch state dict, see `models.pytorch.from_state_dict`.

    In PyTorch: `safetensors.torch.save_file(network.state_dict(), "network.safetensors")`, or `numpy.savez`
    of the same names. Raises UserError, one line that begins with the file.
    """
    tensors = read_state_dict(path)
    try:
        return from_state_dict(tensors, model)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """{name: array} of a .safetensors or .npz file; nothing in it is executed.

    Raises UserError when the file is of another kind, cannot be read or is damaged.
    """
    path = Path(path)
    readers = {".safetensors": safetensors.load, ".npz": _read_npz}
    if path.suffix not in readers:
        raise UserError(
            f"{path}: expected a .safetensors or .npz file; PyTorch's other formats can run code when read"
        )
    try:
        return readers[path.suffix](path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: cannot read the weights: {error.strerror}") from error
    except (SafetensorError, zipfile.BadZipFile, zlib.error, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: damaged, or not arrays of numbers that NumPy knows, such as float32"
        ) from error


def _read_npz(data: bytes) -> dict[str, np.ndarray]:
    damaged = zipfile.ZipFile(io.BytesIO(data)).testzip()  # checksums first: NumPy parses what it reads
    if damaged:
        raise zipfile.BadZipFile(damaged)
    with np.lib.npyio.NpzFile(io.BytesIO(data), allow_pickle=False) as arrays:
        return {name: np.asarray(arrays[name]) for name in arrays.files}
