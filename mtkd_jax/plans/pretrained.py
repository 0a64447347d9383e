"""Weights from elsewhere: a file of PyTorch tensors into the variables of a model."""

from __future__ import annotations

import dataclasses
import io
import zipfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors import SafetensorError, deserialize

from mtkd_jax.data import loading
from mtkd_jax.data.loading import Split
from mtkd_jax.engine import population
from mtkd_jax.engine.jobs import Job
from mtkd_jax.models.pytorch import from_state_dict, task_of
from mtkd_jax.plans import torch_file
from mtkd_jax.system import paths, weights
from mtkd_jax.types import Array, Model, PyTree, UserError

TYPES = {  # of safetensors; float8 is left out, because it means nothing without the scales beside it
    **{f"F{bits}": np.dtype(f"float{bits}") for bits in (16, 32, 64)},
    **{f"I{bits}": np.dtype(f"int{bits}") for bits in (8, 16, 32, 64)},
    **{f"U{bits}": np.dtype(f"uint{bits}") for bits in (8, 16, 32, 64)},
    "BF16": jnp.dtype(jnp.bfloat16),
    "BOOL": np.dtype(bool),
}


MOST_CALIBRATED_BY = 5000  # training images that a network is calibrated by


def initialise(job: Job, split: Split, files: Sequence[str], field: str, *, heads: bool) -> Job:
    """The job with members that begin with the weights of files, each with its own or all with the only one.

    Heads for another number of classes are drawn as ever; without `heads`, all of them are. With no files
    members begin with the body that their model is `pretrained` with, if any, or `calibrate` what of it can
    be computed from the training images. Raises UserError that names the field of the configuration and the
    file.
    """
    if not files:
        return _with_body(job) if job.program.model.pretrained else calibrate(job, split)
    drawn = population.init(job.program.model, job.init_keys, job.image.shape[1:])
    read = variables(files, job.program.model, field, any_classes=True)

    def of_members(drawn: Array, *read: np.ndarray) -> Array:
        pairs = zip(read, np.asarray(drawn))
        return jnp.asarray(np.stack([own if own.shape == new.shape else new for own, new in pairs]))

    start = jax.tree.map(of_members, drawn, *read * (len(job.names) // len(read)))
    if not heads:
        start["params"]["heads"] = drawn["params"]["heads"]
    return dataclasses.replace(job, start=start)


def calibrate(job: Job, split: Split) -> Job:
    """The job with members that begin with what their network computes from the labelled training images.

    Such a network's module has a method `calibrate`, of images [n,h,w,c] as the network sees them (at most
    5000, evenly spaced), that returns values by their paths in the variables: {"params/whiten/kernel": ...}.
    All else is drawn as ever, and jobs of other networks are returned as they are.
    """
    model = job.program.model
    if not hasattr(model.module, "calibrate"):
        return job
    drawn = job.start
    if drawn is None:
        drawn = population.init(model, job.init_keys, job.image.shape[1:])
    leaves = flatten_dict(drawn, keep_empty_nodes=True, sep="/")
    for path, value in _calibration(model, split).items():
        leaves[path] = np.broadcast_to(value, leaves[path].shape)
    return dataclasses.replace(job, start=unflatten_dict(leaves, sep="/"))


@lru_cache(maxsize=4)
def _calibration(model: Model, split: Split) -> Mapping[str, np.ndarray]:
    rows = loading.evenly(split.train, MOST_CALIBRATED_BY)
    return model.module.calibrate(loading.scale(split.dataset.train_images[rows]))


def _with_body(job: Job) -> Job:
    """The job with the body of its network's published weights, and heads as drawn."""
    model = job.program.model
    path = weights.find(model.pretrained)
    body = _body(path, path.stat().st_mtime_ns, model)
    num_members = len(job.names)
    # Views: it is not there M times, and nothing has to be compiled for so many shapes.
    start = jax.tree.map(lambda leaf: np.broadcast_to(leaf, (num_members, *leaf.shape)), body)
    heads = _heads(model, job.image.shape[1:])
    start["params"]["heads"] = population.stack([heads(key) for key in job.init_keys])
    return dataclasses.replace(job, start=start)


@lru_cache(maxsize=4)
def _body(path: Path, changed: int, model: Model) -> PyTree:
    """Variables of one network, heads of the file's classes among them; read again where the file changed.

    Of a network that ends early they are the first stages of the whole one.
    """
    whole = dataclasses.replace(model, module=getattr(model.module, "whole", model.module))
    read = from_pytorch(path, whole, any_classes=True)
    if whole.module == model.module:
        return read
    return {
        kind: {name: leaves for name, leaves in variables.items() if model.stage_of(name)}
        for kind, variables in read.items()
    }


@lru_cache
def _heads(model: Model, image_shape: tuple[int, ...]) -> Callable:
    """A key -> the heads that `model.init` draws; what it draws beside them is not computed."""
    image = jnp.zeros((1, *image_shape), jnp.float32)
    draw = lambda key: model.init(key, image)["params"]["heads"]  # noqa: E731
    return jax.jit(draw, compiler_options={"xla_backend_optimization_level": 0})


def variables(files: Sequence[str], model: Model, field: str, any_classes: bool = False) -> list[PyTree]:
    """Those of every file, see `from_pytorch`; a UserError names the field of the configuration as well."""
    try:
        return [from_pytorch(paths.parse(file, "the path"), model, any_classes) for file in files]
    except UserError as error:
        raise UserError(f"config.{field}: {error}") from None


def from_pytorch(path: Path, model: Model, any_classes: bool = False) -> PyTree:
    """Variables of `model` from a PyTorch state dict, see `models.pytorch.from_state_dict`.

    In PyTorch: `torch.save(network.state_dict(), "network.pth")`, or `safetensors.torch.save_file` or
    `numpy.savez` of the same. With `any_classes` they are those of `model` with one head for as many classes
    as the file has. Raises UserError, one line that begins with the file.
    """
    tensors = read_state_dict(path)
    try:
        if any_classes:
            module = model.module.clone(task=task_of(tensors, model))
            model = dataclasses.replace(model, module=module)
        return from_state_dict(tensors, model)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def read_state_dict(path: Path) -> dict[str, np.ndarray]:
    """{name: array} of a .pth, .pt, .safetensors or .npz file; nothing in it is executed.

    Raises UserError when the file is of another kind, cannot be read, is damaged or asks for more than
    tensors.
    """
    path = Path(path)
    if path.suffix not in READERS:
        raise UserError(f"{path}: expected a file of weights: {', '.join(READERS)}")
    try:
        return READERS[path.suffix](path.read_bytes())
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read the weights: {error.strerror}") from error
    except (SafetensorError, zipfile.BadZipFile, zlib.error, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{path}: damaged, or not arrays of numbers that NumPy knows, such as float32"
        ) from error


def _read_safetensors(data: bytes) -> dict[str, np.ndarray]:
    """The arrays; bfloat16, which NumPy does not know, as float32."""
    found = {}
    for name, tensor in deserialize(data):
        array = np.frombuffer(tensor["data"], TYPES[tensor["dtype"]]).reshape(tensor["shape"])
        found[name] = array.astype(np.float32) if tensor["dtype"] == "BF16" else array
    return found


def _read_npz(data: bytes) -> dict[str, np.ndarray]:
    damaged = zipfile.ZipFile(io.BytesIO(data)).testzip()  # checksums first: NumPy parses what it reads
    if damaged:
        raise zipfile.BadZipFile(damaged)
    with np.lib.npyio.NpzFile(io.BytesIO(data), allow_pickle=False) as arrays:
        return {name: np.asarray(arrays[name]) for name in arrays.files}


READERS = {
    ".pth": torch_file.read,
    ".pt": torch_file.read,
    ".safetensors": _read_safetensors,
    ".npz": _read_npz,
}
