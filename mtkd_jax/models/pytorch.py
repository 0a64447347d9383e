"""Weights that PyTorch programs trained, under the names and axes of this package.

A family knows what PyTorch calls its layers: the method `pytorch_module` of its Linen module turns
"stage1_block2/conv1" into "layer1.1.conv1". What a layer holds is translated here, alike for all families.
Layouts are those of torchvision (github.com/pytorch/vision) for the networks it has, of timm
(github.com/huggingface/pytorch-image-models) for vision transformers, and for the CIFAR ResNets, Wide ResNets
and VGGs those of RepDistiller (github.com/HobbitLong/RepDistiller), which mdistiller and others share.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mtkd_jax.types import Model, PyTree, Task, UserError

LEAVES = {  # of a layer, here and there; what is not in it has one name
    "kernel": "weight",
    "scale": "weight",
    "mean": "running_mean",
    "var": "running_var",
}
SIDE = 224  # pixels, enough for every family; no shape of a variable depends on it


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
    names, biases, shapes = _names(model)
    for name, shape in shapes.items():
        _check(name, tensors, shape, model)
    for name in tensors:
        if name not in shapes:
            raise UserError(f"tensor {name} is left over: {model.name} has no place for it")
    leaves = {path: _converted(path, tensors[name]) for path, name in names.items()}
    for path, name in biases.items():
        leaves[path] -= _converted(name, tensors[name])
    return unflatten_dict(leaves, sep="/")


def state_dict_shapes(model: Model) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the tensors that a state dict for `model` must hold."""
    return _names(model)[2]


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
    named = getattr(model.module, "pytorch_module", None)
    if named is None:
        raise UserError(
            f"{model.name}: no PyTorch program has this network; its module would say which by a method "
            "pytorch_module, as those of resnet, vgg, densenet, convnext, vit and others do"
        )
    return named


def _names(model: Model) -> tuple[dict[str, str], dict[str, str], dict[str, tuple[int, ...]]]:
    """Names by path, those of biases by the path of the means they are taken off, and all their shapes."""
    named = _layout(model)
    image = jax.ShapeDtypeStruct((1, SIDE, SIDE, len(model.module.task.mean)), jnp.float32)
    leaves = flatten_dict(jax.eval_shape(model.init, jax.random.key(0), image), sep="/")
    names = {path: _name(path, named) for path in leaves}
    biases = {path: _bias_before(path, named) for path in leaves if _follows_bias(path, model)}
    pairs = [*names.items(), *biases.items()]
    return names, biases, {name: _pytorch_shape(path, leaves[path].shape) for path, name in pairs}


# --- names --------------------------------------------------------------------------------------------


def _name(path: str, named: Callable[[str], str]) -> str:
    """layer1.1.conv1.weight, for params/stage1_block2/conv1/kernel of a ResNet."""
    module, _, leaf = path.partition("/")[2].rpartition("/")
    theirs = LEAVES.get(leaf, leaf)
    return f"{named(module)}.{theirs}" if named(module) else theirs


def in_block(path: str, prefix: str, words: Mapping[str, str]) -> str:
    """layer1.1.conv1, for stage1_block2/conv1 and the prefix layer{stage}.{block}.

    `words` are other names of layers; norm is bn. What lies in no block has no prefix.
    """
    place, _, layer = path.rpartition("/")
    theirs = words.get(layer, layer.replace("norm", "bn"))
    if not place:
        return theirs
    stage, block = numbers_in(place)
    return prefix.format(stage=stage, block=block - 1) + theirs


def numbers_in(name: str) -> tuple[int, ...]:
    """1 and 2, for stage1_block2/conv."""
    return tuple(map(int, re.findall(r"\d+", name.partition("/")[0])))


def _follows_bias(path: str, model: Model) -> bool:
    """Whether these are means of a BatchNorm before which PyTorch's network has a bias that ours has not."""
    return getattr(model.module, "pytorch_biases", False) and path.endswith("/mean")


def _bias_before(path: str, named: Callable[[str], str]) -> str:
    """block1.0.bias, of the convolution before BatchNorm, for batch_stats/stage2_norm1/mean of a VGG."""
    return _name(re.sub(r"norm(\d*)/mean$", r"conv\1/bias", path), named)


# --- values -------------------------------------------------------------------------------------------


def _pytorch_shape(path: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if path.startswith("params/heads/"):
        return shape[:0:-1]  # [1,D,C] -> [C,D], [1,C] -> [C]
    if path.endswith("/layer_scale"):
        return (*shape, 1, 1)  # there it multiplies [B,c,h,w]
    if path.endswith("/kernel"):
        return (
            *shape[:-3:-1],
            *shape[:-2],
        )  # of a convolution [h,w,i,o] -> [o,i,h,w], of a product [i,o] -> [o,i]
    return shape


def _converted(path: str, value: np.ndarray) -> jax.Array:
    if path.startswith("params/heads/"):
        value = value.T[None]
    elif path.endswith("/layer_scale"):
        value = value.reshape(-1)
    elif path.endswith("/kernel"):
        value = value.transpose(*range(2, value.ndim), 1, 0)
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
