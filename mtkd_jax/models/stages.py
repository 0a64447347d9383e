"""Networks in two parts: the stages that are frozen, and those that are trained.

The frozen part is data, not state: it has no gradient, no place in the optimiser, and can be run once for
all members and all epochs where they see the same images.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtkd_jax.models.layers import ENTERED, ENTERING, cut_after
from mtkd_jax.types import Array, Model, Outputs, PyTree, UserError


def split(model: Model, variables: PyTree) -> tuple[PyTree, PyTree]:
    """(those of the stages that are trained, those of the frozen ones), the same collections in both.

    Of a network without frozen stages the second is {}.
    """
    if not model.trainable:
        return variables, {}
    frozen, trained = divide(model, variables, model.frozen_stages)
    return trained, frozen


def divide(model: Model, variables: PyTree, first: tuple[str, ...]) -> tuple[PyTree, PyTree]:
    """(those of the stages `first`, those of all others), the same collections in both."""
    parts = [
        {
            kind: {name: leaf for name, leaf in of.items() if (model.stage_of(name) in first) is is_first}
            for kind, of in variables.items()
        }
        for is_first in (True, False)
    ]
    return parts[0], parts[1]


def join(trained: PyTree, *frozen: PyTree) -> PyTree:
    """The whole of what `split` took apart; {} adds nothing."""
    if not any(frozen):
        return trained
    whole = {kind: dict(of) for kind, of in trained.items()}
    for part in frozen:
        for kind, of in part.items():
            whole[kind] = {**whole.get(kind, {}), **of}
    return whole


@contextlib.contextmanager
def still(model: Model) -> Iterator[None]:
    """Within it frozen stages run as in evaluation, whatever `train` says: stored statistics, no dropout.

    Raises UserError for a BatchNorm that does not let the call say which statistics it takes.
    """

    def as_in_evaluation(call: Callable, args: tuple, kwargs: dict, context: Any) -> Any:
        layer = context.module
        is_frozen = bool(layer.path) and model.stage_of(layer.path[0]) in model.frozen_stages
        if is_frozen and isinstance(layer, nn.Dropout):
            return args[0]
        if is_frozen and isinstance(layer, nn.BatchNorm) and context.method_name == "__call__":
            if layer.use_running_average is not None:
                raise UserError(
                    f"{model.name}: BatchNorm {'/'.join(layer.path)} of a frozen stage says itself which "
                    "statistics it takes; must say it in the call, as models.layers.batch_norm does"
                )
            kwargs = {**kwargs, "use_running_average": True}
        return call(*args, **kwargs)

    with nn.intercept_methods(as_in_evaluation) if model.frozen_stages else contextlib.nullcontext():
        yield


def depth_of(model: Model, name: str) -> int:
    """Stages from that of the variables `name` to the heads, which are 0 away, as is what is of no stage."""
    stage = model.stage_of(name)
    return len(model.stages) - 1 - model.stages.index(stage) if stage else 0


def entering(model: Model, variables: PyTree, image: Array) -> PyTree:
    """What enters the first stage that is trained, of images [B,h,w,c], in evaluation.

    Of a network whose stages do not all go through `layers.through`, and which can therefore not be cut, {}.
    """
    told, _, _ = entering_all(model, variables, image)
    return told.get(model.trainable, {})


def entering_all(
    model: Model, variables: PyTree, image: Array, *, train: bool = False, key: Array | None = None
) -> tuple[PyTree, Outputs, PyTree]:
    """({stage: what enters it}, outputs, new state) of images [B,h,w,c]; `train` and `key` as in `apply`."""
    state = [name for name in variables if name != "params"] if train else []
    rngs = {} if key is None or not train else {"dropout": key}
    outputs, told = model.module.apply(variables, image, train=train, mutable=[ENTERING, *state], rngs=rngs)
    entering = told.pop(ENTERING, {})
    return entering, outputs, told if train else {n: v for n, v in variables.items() if n != "params"}


def shapes(model: Model, image: jax.ShapeDtypeStruct) -> tuple[PyTree, Outputs]:
    """({stage: what enters it}, outputs) as shapes, of images [B,h,w,c]; see `entering_all`."""
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    told, outputs, _ = jax.eval_shape(lambda *of: entering_all(model, *of), variables, image)
    return told, outputs


def run_one(
    model: Model,
    variables: PyTree,
    stage: str,
    x: Array,
    image_shape: tuple[int, ...],
    *,
    train: bool = False,
    key: Array | None = None,
) -> tuple[PyTree, PyTree]:
    """What leaves one stage, of what enters it [B,...], and the whole network's state; images are [h,w,c].

    Of a network whose stages all go through `layers.through`; of its last one `Outputs` come out.
    """
    is_first = stage == model.stages[0]
    blank = jnp.zeros((1, *image_shape), jnp.float32)
    given = variables if is_first else {**variables, ENTERED: {stage: x}}
    with cut_after(stage):
        left, state = model.apply(given, x if is_first else blank, train=train, key=key)
    return left, {kind: of for kind, of in state.items() if kind != ENTERED}


@dataclasses.dataclass(frozen=True)
class Tail(Model):
    """The trained part of a network: its images are what enters that part, see `entering`.

    Variables are still those of the whole network, so that they can take its place; `image_shape` is [h,w,c]
    of the images that it reads.
    """

    image_shape: tuple[int, ...] = ()

    def init(self, key: Array, image: Array) -> dict[str, PyTree]:
        """Variables of the whole network."""
        return super().init(key, self._blank)

    def apply(
        self, variables: PyTree, image: Array, *, train: bool = False, key: Array | None = None
    ) -> tuple[Outputs, PyTree]:
        """As of the whole network, for what enters the trained part [B,...]; features are of that part."""
        given = {**variables, ENTERED: {self.trainable: image}}
        outputs, state = super().apply(given, self._blank, train=train, key=key)
        return outputs, {name: value for name, value in state.items() if name != ENTERED}

    @property
    def _blank(self) -> Array:
        return jnp.zeros((1, *self.image_shape), jnp.float32)


def tail(model: Model, image_shape: tuple[int, ...]) -> Tail:
    """The trained part of a network for images [h,w,c]."""
    own = {field.name: getattr(model, field.name) for field in dataclasses.fields(Model)}
    return Tail(**own, image_shape=tuple(image_shape))


def tail_after(model: Model, stage: str, image_shape: tuple[int, ...]) -> Tail:
    """The part of a network behind a stage, as if all before that were frozen, for images [h,w,c]."""
    return tail(
        dataclasses.replace(model, trainable=model.stages[model.stages.index(stage) + 1]), image_shape
    )


def is_kernel(path: tuple, parameter: Array) -> bool:
    """Whether a parameter, at a path of `jax.tree_util`, is weights: of two axes or more, and no bias.

    Heads have biases [H,C], and attention [heads,width].
    """
    return parameter.ndim >= 2 and path[-1].key != "bias"


# Layers that read the input and are not called "stem...": that of `speedy`, the convolutions of a first stage
# and of the way past it, and the gates of a first layer of long short-term memory.
_READS_INPUT = re.compile(r"(.*/)?(stem[^/]*|whiten|stage1_conv1|stage1_shortcut_conv|stage1/i[ifgo])/.*")
_READS_TOKENS = re.compile(r"(.*_)?tokens/embedding")


def first_kernels(parameters: Iterable[str]) -> set[str]:
    """Those of a network's parameters, by their paths, that are kernels and read its input.

    They are told by their names, since whoever has the parameters alone knows no more: all in layers called
    "stem..." or as in networks of the package; of tokens, which a table reads, none; else the first by name.
    """
    paths = list(parameters)
    kernels = [path for path in paths if path.endswith("/kernel") and not path.startswith("heads/")]
    first = {path for path in kernels if _READS_INPUT.fullmatch(path)}
    if first or any(map(_READS_TOKENS.fullmatch, paths)):
        return first
    return set(sorted(kernels, key=_by_number)[:1])


def _by_number(path: str) -> list[str | int]:
    """Texts and numbers in turn, so that "conv2" stands before "conv10"."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path)]
