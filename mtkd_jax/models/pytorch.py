"""Weights that PyTorch programs trained, under the names and axes of this package.

Read are the layouts of RepDistiller (github.com/HobbitLong/RepDistiller), which mdistiller and the programs
built on them share: their CIFAR ResNets, Wide ResNets and VGGs with BatchNorm.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mtkd_jax.models.resnet import ResNet
from mtkd_jax.models.vgg import Vgg
from mtkd_jax.models.wide_resnet import WideResNet
from mtkd_jax.types import Model, PyTree, Task, UserError

LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}


def from_state_dict(tensors: Mapping[str, np.ndarray], model: Model) -> PyTree:
    """Variables of a one-headed `model` from a PyTorch state dict {name: array}, in float32.

    Every tensor must be there, none may be left over, and each must have the shape that PyTorch gives it;
    only counters and what a checkpoint holds beside the weights are passed over, and prefixes of wrappers,
    such as `module.`. A bias before BatchNorm, which the VGGs have, is taken off the running mean: the same
    function with fewer numbers. The network goes on normalising its images with the mean and std of its task,
    so these should be the ones the weights were trained with. Raises UserError naming the tensor, also one
    that is no floating point or not finite in float32, or the model when it has no such layout.
    """
    named = _layout(model)
    if model.module.task.num_heads != 1:
        raise UserError(f"{model.name}: weights of PyTorch are read into a network with one head")
    tensors = _unwrapped(tensors, _name("params/heads/bias", named))
    shapes = {path: leaf.shape for path, leaf in flatten_dict(_shapes(model), sep="/").items()}
    names = {path: _name(path, named) for path in shapes}
    biases = {path: _bias_before(path) for path in shapes if named is _vgg and path.endswith("/mean")}
    for path, name in [*names.items(), *biases.items()]:
        _check(name, tensors, _pytorch_shape(path, shapes[path]), model)
    for name in tensors:
        if name not in {*names.values(), *biases.values()}:
            raise UserError(f"tensor {name} is left over: {model.name} has no place for it")
    leaves = {path: _converted(path, tensors[name]) for path, name in names.items()}
    for path, name in biases.items():
        leaves[path] -= _converted(name, tensors[name])
    return unflatten_dict(leaves, sep="/")


def task_of(tensors: Mapping[str, np.ndarray], model: Model) -> Task:
    """The task of `model` with one head, and as many classes as a state dict has."""
    task, bias = model.module.task, _name("params/heads/bias", _layout(model))
    tensors = _unwrapped(tensors, bias)
    num_classes = tensors[bias].size if bias in tensors else task.num_classes
    return task._replace(num_classes=num_classes, num_heads=1)


# Parts of a name that are no layer of the network: of what wraps it, or of a checkpoint that holds it.
WRAPPERS = (
    *("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"),
    *("model", "network", "net", "backbone", "encoder", "ema", "ema_model", "model_ema", "averaged_model"),
    *("state_dict", "model_state_dict", "student", "teacher"),
)
ANYWHERE = WRAPPERS[1:4]  # these stand around parts of a network too
COUNTERS = ("num_batches_tracked", "n_averaged")  # of batches and averages: nothing here counts them
BESIDE = (  # what checkpoints hold beside the weights
    *("epoch", "step", "global_step", "iteration", "best_acc", "best_acc1", "loss", "args"),
    *("optimizer", "optimizer_state_dict", "optimizer_states", "scheduler", "lr_scheduler", "scaler"),
    *("hyper_parameters", "callbacks"),
)


def _unwrapped(tensors: Mapping[str, np.ndarray], bias: str) -> dict[str, np.ndarray]:
    """The tensors by the names they have in the network itself, without prefixes such as `module.`.

    `bias` is the name of the heads' bias there: whatever stands before it is a prefix too. What a checkpoint
    holds beside the weights is left out. Raises UserError where several prefixes hold networks.
    """
    kept = {}
    for name, value in tensors.items():
        words = [word for word in name.replace("/", ".").split(".") if word not in ANYWHERE]
        if words and words[-1] not in COUNTERS and words[0] not in BESIDE:
            kept[name] = ".".join(words), value
    prefixes = [name.removesuffix(bias) for name, _ in kept.values() if f".{name}".endswith(f".{bias}")]
    if len(prefixes) > 1:
        raise UserError(
            f"{len(prefixes)} networks are in it, under {' and '.join(repr(prefix) for prefix in prefixes)}; "
            "save one of them alone"
        )
    found: dict[str, np.ndarray] = {}
    for name, (plain, value) in kept.items():
        words = plain.removeprefix(*prefixes or ("",)).split(".")
        while len(words) > 1 and words[0] in WRAPPERS:
            del words[0]
        plain = ".".join(words)
        if plain in found:
            raise UserError(f"tensor {plain} is in it twice, once as {name}; save one network alone")
        found[plain] = value
    return found


def _layout(model: Model) -> Callable[[str], str]:
    """What PyTorch calls the modules of such a network."""
    named = {ResNet: _resnet, WideResNet: _wide_resnet, Vgg: _vgg}.get(type(model.module))
    named = named or getattr(model.module, "pytorch_module", None)
    if named is None:
        raise UserError(
            f"{model.name}: weights of PyTorch can be read into a resnet, wide_resnet, vgg or efficientnet"
        )
    return named


def _shapes(model: Model) -> PyTree:
    """Shapes of the variables; the three families average over the image, so that any size will do."""
    image = jax.ShapeDtypeStruct((1, 32, 32, len(model.module.task.mean)), jnp.float32)
    return jax.eval_shape(model.init, jax.random.key(0), image)


# --- names --------------------------------------------------------------------------------------------


def _name(path: str, named: Callable[[str], str]) -> str:
    """layer1.1.conv1.weight, for params/stage1_block2/conv1/kernel of a ResNet."""
    _, module, leaf = re.fullmatch(r"(\w+)/(.+)/(\w+)", path).groups()
    return f"{named(module)}.{LEAVES[leaf]}"


def _resnet(module: str) -> str:
    words = {"stem_conv": "conv1", "stem_norm": "bn1", "heads": "fc"}
    shortcut = {"shortcut_conv": "downsample.0", "shortcut_norm": "downsample.1"}
    return _in_block(module, "layer{}.{}.", words | shortcut)


def _wide_resnet(module: str) -> str:
    words = {"stem_conv": "conv1", "last_norm": "bn1", "heads": "fc", "shortcut_conv": "convShortcut"}
    return _in_block(module, "block{}.layer.{}.", words)


def _in_block(module: str, prefix: str, words: Mapping[str, str]) -> str:
    place, _, layer = module.rpartition("/")
    theirs = words.get(layer, layer.replace("norm", "bn"))
    if not place:
        return theirs
    stage, block = re.fullmatch(r"stage(\d)_block(\d+)", place).groups()
    return prefix.format(stage, int(block) - 1) + theirs


def _vgg(module: str) -> str:
    if module == "heads":
        return "classifier"
    stage, kind, number = re.fullmatch(r"stage(\d)_(conv|norm)(\d)", module).groups()
    # Convolution, BatchNorm and ReLU take turns in one numbered sequence.
    return f"block{int(stage) - 1}.{3 * (int(number) - 1) + (kind == 'norm')}"


def _bias_before(path: str) -> str:
    """block1.0.bias, of the convolution before BatchNorm, for batch_stats/stage2_norm1/mean of a VGG."""
    return _vgg(path.split("/")[1].replace("norm", "conv")) + ".bias"


# --- values -------------------------------------------------------------------------------------------


def _pytorch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if path.startswith("params/heads/"):
        return shape[:0:-1]  # [1,D,C] -> [C,D], [1,C] -> [C]
    return (shape[3], shape[2], *shape[:2]) if len(shape) == 4 else shape


def _converted(path: str, value: np.ndarray) -> jax.Array:
    if path.startswith("params/heads/"):
        value = value.T[None]
    elif value.ndim == 4:
        value = value.transpose(2, 3, 1, 0)
    return jnp.asarray(value, jnp.float32)


def _check(name: str, tensors: Mapping[str, np.ndarray], shape: tuple[int, ...], model: Model) -> None:
    if name not in tensors:
        raise UserError(f"tensor {name} is missing: {model.name} needs it with shape {list(shape)}")
    if tensors[name].shape != shape:
        raise UserError(
            f"tensor {name} has shape {list(tensors[name].shape)}: {model.name} needs {list(shape)}"
        )
    _check_numbers(name, tensors[name])


def _check_numbers(name: str, value: np.ndarray) -> None:
    if value.dtype.kind != "f":
        raise UserError(f"tensor {name} is of {value.dtype}: must be floating point, such as float32")
    with np.errstate(over="ignore"):
        narrow = value.astype(np.float32)
    if not np.isfinite(narrow).all():
        raise UserError(f"tensor {name} holds NaN or infinite numbers; must be sound weights")
    if name.endswith(f".{LEAVES['var']}") and (narrow < 0).any():
        raise UserError(f"tensor {name} holds variances below 0; must be sound weights")
