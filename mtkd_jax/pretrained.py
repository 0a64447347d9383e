"""Weights from elsewhere: a file of PyTorch tensors, without pickle, into the variables of a model."""

from __future__ import annotations

import zipfile
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
    try:
        if path.suffix == ".safetensors":
            return safetensors.load(path.read_bytes())
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
    except OSError as error:
        raise UserError(f"{path}: cannot read the weights: {error.strerror}") from error
    except (SafetensorError, zipfile.BadZipFile, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: damaged, or not arrays of numbers that NumPy knows, such as float32"
        ) from error
    raise UserError(
        f"{path}: expected a .safetensors or .npz file; other formats of PyTorch run code when they are read"
    )
