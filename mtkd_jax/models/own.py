"""Networks of the user's own, written in whatever they like: Linen, NNX, Equinox, or two plain functions.

    def net(task, *, width: int = 32) -> Model:
        return models.nnx(lambda num_outputs, rngs: Net(width, num_outputs, rngs=rngs), task)

A network gets images [B,h,w,c] (Equinox: one image [h,w,c]) and returns logits [B,C], or a dict of what it
knows: "logits" [B,C], "embedding" [B,D] and, by any other name, features [B,D], [B,l,d] or [B,h,w,d].

Heads. Where a dict has an "embedding" and no logits, the tool adds linear heads that read it. A method that
needs H heads takes H * C logits, where the function that makes the network takes `num_outputs`; otherwise
the tool's own heads read the embedding; where there is neither, one line says so. What gives logits alone has
them as its embedding, too.

Everything that the network knows lies in its variables as a dict by name: what is trained under "params" /
"network", what else changes (batch statistics) under "batch_stats" / "network".
"""

# The functions here say `-> types.Model`: they help to make a network and are none that an address may name,
# which those that say `-> Model` are.

from __future__ import annotations

import abc
import dataclasses
import inspect
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtkd_jax import types
from mtkd_jax.models import layers
from mtkd_jax.system.terminal import one_line
from mtkd_jax.types import Array, Outputs, PyTree, Task, UserError

NETWORK = "network"  # the name under which its variables stand
ALTOGETHER = "num_outputs"  # what a function that makes a network may take: C outputs for each of H heads


def linen(
    network: nn.Module | Callable[..., nn.Module],
    task: Task,
    *,
    convolutional: bool = False,
    normalise: bool = True,
) -> types.Model:
    """A Linen module, or a function (num_outputs) that makes one, as a network for `task`.

    Its `__call__` takes images and, if it names one of them, `train`, `training` or `deterministic`; Dropout
    draws from the collection "dropout". Images are normalised by the task's mean and std unless `normalise`
    is False. `convolutional` says that it has convolutions, which a CPU trains one member after the other.
    """
    return _model(_Linen(network), task, convolutional, normalise)


def nnx(
    factory: Callable[..., Any], task: Task, *, convolutional: bool = False, normalise: bool = True
) -> types.Model:
    """What `factory` (rngs, and num_outputs if it names it) makes, an `nnx.Module`, as a network for `task`.

    Its `deterministic` and `use_running_average` are set as it is used; every random stream is seeded anew at
    every step. Variables of the kind `nnx.Param` are trained. The rest as in `linen`.
    """
    from flax import nnx as flax_nnx

    _refuse_made(factory, flax_nnx.Module, "nnx.Module")
    return _model(_Nnx(factory), task, convolutional, normalise)


def equinox(
    factory: Callable[..., Any], task: Task, *, convolutional: bool = False, normalise: bool = True
) -> types.Model:
    """What `factory` (key, and num_outputs if it names it) makes, an `equinox.Module`, as a network.

    It is called with ONE image [h,w,c] (channels last), with `key` if it names it, and, where the factory is
    one of `equinox.nn.make_with_state`, with its state, over the axis "batch". Its arrays of floats are
    trained. The rest as in `linen`. Raises UserError where Equinox is not installed.
    """
    try:
        import equinox as eqx
    except ImportError:
        raise UserError("models.equinox: Equinox is not installed; pip install equinox") from None
    _refuse_made(factory, eqx.Module, "equinox.Module")
    return _model(_Equinox(factory), task, convolutional, normalise)


def functions(
    init: Callable[..., PyTree],
    apply: Callable[..., Any],
    task: Task,
    *,
    stateful: bool = False,
    convolutional: bool = False,
    normalise: bool = True,
) -> types.Model:
    """Two functions as a network for `task`: init(key, images) -> params, apply(params, images) -> logits.

    `init` is given num_outputs, and `apply` num_outputs, `train` and `key`, if they name them. With
    `stateful` they are init(key, images) -> (params, state), apply(params, state, images) -> (logits, state).
    """
    return _model(_Functions(init, apply, stateful), task, convolutional, normalise)


def _model(network: _Network, task: Task, convolutional: bool, normalise: bool) -> types.Model:
    return types.Model("own", Adapter(task, network, normalise), convolutional)


def _refuse_made(factory: Any, made: type, name: str) -> None:
    if isinstance(factory, made) or not callable(factory):
        raise UserError(
            f"models: {type(factory).__name__} is no function that makes an {name}; give that function, so "
            "that every member begins with weights of its own"
        )


class Adapter(nn.Module):
    """A network of the user's own as the module that `Model` asks for."""

    task: Task
    network: _Network
    normalise: bool

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Outputs:
        x = layers.normalise(image, self.task.mean, self.task.std) if self.normalise else image
        num_outputs = self.task.num_classes * self.task.num_heads
        if self.is_initializing():
            params, state = self.network.told(self.network.init, self.make_rng("params"), x, num_outputs)
            self.put_variable("params", NETWORK, params)
            if state:
                self.put_variable("batch_stats", NETWORK, state)
        params = self.get_variable("params", NETWORK)
        state = self.get_variable("batch_stats", NETWORK, {})
        key = self.make_rng("dropout") if train and self.has_rng("dropout") else None

        def run(images: Array) -> tuple[Any, PyTree]:
            return self.network.told(self.network.apply, params, state, images, num_outputs, train, key)

        if not isinstance(x.shape[0], int) and not train:
            # A program for any number of images, as is exported. It asks about them one by one, for what is
            # common in networks, such as x.reshape(len(x), -1), takes a number.
            return self._outputs(jax.vmap(lambda one: _only(run(one[None])[0]))(x), x.shape[0])
        returned, state = run(x)
        if train and state and self.is_mutable_collection("batch_stats"):
            self.put_variable("batch_stats", NETWORK, _of_the_whole_batch(state))
        return self._outputs(returned, x.shape[0])

    def _outputs(self, returned: Any, batch_size: Any) -> Outputs:
        num_outputs = self.task.num_classes * self.task.num_heads
        taps = dict(returned) if isinstance(returned, Mapping) else {"logits": returned}
        shapes = {name: getattr(tap, "shape", type(tap).__name__) for name, tap in taps.items()}
        logits, embedding = taps.pop("logits", None), taps.pop("embedding", None)
        if logits is None and embedding is None:
            raise UserError(
                f"{self.network.name}: returned {sorted(shapes)}; it must return logits or an 'embedding'"
            )
        for name in ("logits", "embedding"):
            shape = shapes.get(name, (batch_size, 1))
            if not isinstance(shape, tuple) or len(shape) != 2 or shape[0] != batch_size:
                raise UserError(
                    f"{self.network.name}: {name} of {batch_size} images are {shape}; they must be "
                    f"({batch_size}, numbers)"
                )
        heads = self._heads(logits, embedding)
        if embedding is None:
            embedding = jnp.moveaxis(heads, 0, 1).reshape(batch_size, num_outputs)
        return layers.outputs(embedding, heads, {name: self._feature(name, x) for name, x in taps.items()})

    def _heads(self, logits: Any, embedding: Any) -> Array:
        """Of logits [B,C] or of an embedding [B,D]; the other of the two can be None."""
        num_classes, num_heads = self.task.num_classes, self.task.num_heads
        if logits is not None and logits.shape[1] == num_classes * num_heads:
            return jnp.moveaxis(logits.reshape(logits.shape[0], num_heads, num_classes), 1, 0)
        if logits is not None and (embedding is None or logits.shape[1] != num_classes):
            right = f"{num_classes} classes"
            if num_heads > 1:
                right = (
                    f"{num_heads} heads of {num_classes} classes; make it by a function of {ALTOGETHER}, or "
                    "let it return an 'embedding', which the tool reads with as many heads"
                )
            raise UserError(f"{self.network.name}: gives {logits.shape[1]} outputs, and needed are {right}")
        return layers.Heads(num_heads, num_classes, name="heads")(embedding)

    def _feature(self, name: str, x: Any) -> Array:
        axes = {2: (1, 2), 3: (1,), 4: ()}.get(getattr(x, "ndim", 0))
        if axes is None:
            raise UserError(
                f"{self.network.name}: the feature {name!r} is {getattr(x, 'shape', type(x).__name__)}; it "
                "must be [B,D], [B,l,d] or [B,h,w,d]"
            )
        return jnp.expand_dims(x, axes)


def _only(returned: Any) -> Any:
    """What is returned for the image, from what is returned for a batch of that one."""
    return jax.tree.map(lambda leaf: leaf[0], returned)


def _of_the_whole_batch(state: PyTree) -> PyTree:
    """Where devices share a batch, the mean of what each has seen; the same on all of them."""
    axis = layers.data_axis()
    if axis is None:
        return state
    mean = lambda leaf: jax.lax.pmean(leaf, axis) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf  # noqa: E731
    return jax.tree.map(mean, state)


# --- frameworks ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Network(abc.ABC):
    """What a framework does; hashable, for it is compiled into a program by what it is made of."""

    @property
    def made_by(self) -> Any:
        """What the user gave: the first of the fields."""
        return getattr(self, dataclasses.fields(self)[0].name)

    @property
    def name(self) -> str:
        made_by = self.made_by
        return f"models: {getattr(made_by, '__qualname__', type(made_by).__name__)}"

    def told(self, function: Callable, *arguments: Any) -> Any:
        """What a function of the user's returns; UserError, with the line, for whatever comes out of it.

        How strict the session is about dtypes and ranks is no affair of theirs.
        """
        try:
            with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                return function(*arguments)
        except UserError:
            raise
        except Exception as error:
            code = getattr(self.made_by, "__code__", None)
            file = code.co_filename if code else _file_of(type(self.made_by))
            lines = [one.lineno for one in traceback.extract_tb(error.__traceback__) if one.filename == file]
            line = f" (line {lines[-1]})" if lines else ""
            problem = one_line(str(error).partition("\n")[0])
            raise UserError(f"{self.name}{line}: {type(error).__name__}: {problem}") from error

    @abc.abstractmethod
    def init(self, key: Array, images: Array, num_outputs: int) -> tuple[PyTree, PyTree]:
        """(params, state), dicts by name, for images [B,h,w,c]."""

    @abc.abstractmethod
    def apply(
        self, params: PyTree, state: PyTree, images: Array, num_outputs: int, train: bool, key: Array | None
    ) -> tuple[Any, PyTree]:
        """(what the network returns, the new state)."""


@dataclasses.dataclass(frozen=True)
class _Linen(_Network):
    network: nn.Module | Callable[..., nn.Module]

    def _module(self, num_outputs: int) -> nn.Module:
        if isinstance(self.network, nn.Module):
            return self.network
        return self.network(**_named(self.network, num_outputs=num_outputs))

    def init(self, key: Array, images: Array, num_outputs: int) -> tuple[PyTree, PyTree]:
        module = self._module(num_outputs)
        variables = dict(module.init({"params": key, "dropout": key}, images, **_mode(module, False)))
        return variables.pop("params", {}), variables

    def apply(
        self, params: PyTree, state: PyTree, images: Array, num_outputs: int, train: bool, key: Array | None
    ) -> tuple[Any, PyTree]:
        module = self._module(num_outputs)
        variables, mode = {"params": params, **state}, _mode(module, train)
        rngs = {} if key is None else {"dropout": key}
        if not train or not state:
            return module.apply(variables, images, **mode, rngs=rngs), state
        return module.apply(variables, images, **mode, rngs=rngs, mutable=list(state))


@dataclasses.dataclass(frozen=True)
class _Nnx(_Network):
    factory: Callable[..., Any]

    def _parts(self, key: Array, num_outputs: int) -> tuple:
        """(graph, trained, random, all else) of a module as it begins."""
        from flax import nnx as flax_nnx

        offered = {"rngs": flax_nnx.Rngs(key), ALTOGETHER: num_outputs}
        module = self.factory(**_named(self.factory, **offered))
        return flax_nnx.split(module, flax_nnx.Param, flax_nnx.RngState, ...)

    def init(self, key: Array, images: Array, num_outputs: int) -> tuple[PyTree, PyTree]:
        from flax import nnx as flax_nnx

        _, params, _, state = self._parts(key, num_outputs)
        return _by_name(flax_nnx.to_pure_dict(params)), _by_name(flax_nnx.to_pure_dict(state))

    def apply(
        self, params: PyTree, state: PyTree, images: Array, num_outputs: int, train: bool, key: Array | None
    ) -> tuple[Any, PyTree]:
        from flax import nnx as flax_nnx

        drawn = jax.random.key(0) if key is None else key
        graph, of_params, of_random, of_state = self._parts_as_shapes(num_outputs)
        module = flax_nnx.merge(
            graph,
            _with(of_params, _filled(flax_nnx.to_pure_dict(of_params), params)),
            _with(of_random, _seeded(flax_nnx.to_pure_dict(of_random), drawn)),
            _with(of_state, _filled(flax_nnx.to_pure_dict(of_state), state)),
        )
        module.set_attributes(
            deterministic=not train, use_running_average=not train, raise_if_not_found=False
        )
        returned = module(images, **_mode(module, train))
        new = flax_nnx.split(module, flax_nnx.Param, flax_nnx.RngState, ...)[-1]
        return returned, _by_name(flax_nnx.to_pure_dict(new))

    def _parts_as_shapes(self, num_outputs: int) -> tuple:
        from flax import nnx as flax_nnx

        offered = {ALTOGETHER: num_outputs}
        shapes = flax_nnx.eval_shape(
            lambda: self.factory(**_named(self.factory, rngs=flax_nnx.Rngs(0), **offered))
        )
        return flax_nnx.split(shapes, flax_nnx.Param, flax_nnx.RngState, ...)


def _with(state: Any, values: dict) -> Any:
    """A copy of an nnx.State with other values; its variables keep their kinds."""
    from flax import nnx as flax_nnx

    copy = flax_nnx.from_flat_state([(path, one.replace()) for path, one in flax_nnx.to_flat_state(state)])
    flax_nnx.replace_by_pure_dict(copy, values)
    return copy


def _seeded(random: PyTree, key: Array) -> PyTree:
    """Streams of random numbers that begin anew: counts at 0, every key another one."""
    leaves, structure = jax.tree.flatten(random)
    begun = [
        jax.random.split(jax.random.fold_in(key, number), leaf.shape or (1,)).reshape(leaf.shape)
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        else jnp.zeros(leaf.shape, leaf.dtype)
        for number, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(structure, begun)


@dataclasses.dataclass(frozen=True)
class _Equinox(_Network):
    factory: Callable[..., Any]

    def _made(self, key: Array, num_outputs: int) -> Any:
        return self.factory(**_named(self.factory, key=key, **{ALTOGETHER: num_outputs}))

    def init(self, key: Array, images: Array, num_outputs: int) -> tuple[PyTree, PyTree]:
        arrays = _arrays(self._made(key, num_outputs))
        trained = {names: leaf for names, leaf in arrays.items() if _is_trained(names, leaf)}
        return _nested(trained), _nested({names: arrays[names] for names in arrays if names not in trained})

    def apply(
        self, params: PyTree, state: PyTree, images: Array, num_outputs: int, train: bool, key: Array | None
    ) -> tuple[Any, PyTree]:
        import equinox as eqx

        shapes = eqx.filter_eval_shape(lambda key: self._made(key, num_outputs), jax.random.key(0))
        paths, structure = jax.tree_util.tree_flatten_with_path(shapes)
        leaves = [leaf if not _is_array(leaf) else _at(params, state, _names(path)) for path, leaf in paths]
        made = jax.tree.unflatten(structure, leaves)
        module, memory = made if isinstance(made, tuple) else (made, None)
        module = eqx.nn.inference_mode(module, value=not train)
        keys = None if key is None else jax.random.split(key, len(images))

        def one(image: Array, key: Array | None, memory: Any) -> Any:
            state = () if memory is None else (memory,)
            returned = module(image, *state, **_named(module.__call__, key=key))
            return returned if state else (returned, None)

        axes = (0, None if key is None else 0, None)
        over_batch = jax.vmap(one, in_axes=axes, out_axes=(0, None), axis_name="batch")
        returned, memory = over_batch(images, keys, memory)
        if memory is None:
            return returned, state
        new = {names: leaf for names, leaf in _arrays((None, memory)).items()}
        return returned, _nested({**_flat(state), **new})


def _is_array(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and hasattr(leaf, "shape")


def _arrays(made: Any) -> dict[tuple[str, ...], Array]:
    paths, _ = jax.tree_util.tree_flatten_with_path(made)
    return {_names(path): leaf for path, leaf in paths if _is_array(leaf)}


def _is_trained(names: tuple[str, ...], leaf: Array) -> bool:
    """Of a pair (module, state) the floats of the first; of a module all floats."""
    return jnp.issubdtype(leaf.dtype, jnp.floating) and names[0] != "1"


def _at(params: PyTree, state: PyTree, names: tuple[str, ...]) -> Array:
    flat = _flat(params)
    return flat[names] if names in flat else _flat(state)[names]


@dataclasses.dataclass(frozen=True)
class _Functions(_Network):
    of_init: Callable[..., PyTree]
    of_apply: Callable[..., Any]
    stateful: bool

    def _made(self, key: Array, images: Array, num_outputs: int) -> tuple[PyTree, PyTree]:
        made = self.of_init(key, images, **_named(self.of_init, **{ALTOGETHER: num_outputs}))
        if self.stateful and not (isinstance(made, tuple) and len(made) == 2):
            raise UserError(f"{self.name}: of a stateful network init must return (params, state)")
        return made if self.stateful else (made, {})

    def init(self, key: Array, images: Array, num_outputs: int) -> tuple[PyTree, PyTree]:
        params, state = self._made(key, images, num_outputs)
        return _by_name(params), _by_name(state)

    def apply(
        self, params: PyTree, state: PyTree, images: Array, num_outputs: int, train: bool, key: Array | None
    ) -> tuple[Any, PyTree]:
        shapes = jax.eval_shape(lambda key: self._made(key, images, num_outputs), jax.random.key(0))
        params, own = _filled(shapes[0], params), _filled(shapes[1], state)
        further = _named(self.of_apply, train=train, key=key, **{ALTOGETHER: num_outputs})
        if not self.stateful:
            return self.of_apply(params, images, **further), state
        returned, new = self.of_apply(params, own, images, **further)
        return returned, _by_name(new)


# --- names --------------------------------------------------------------------------------------------


def _named(function: Callable, **offered: Any) -> dict[str, Any]:
    """Of what is offered, what a function or the `__init__` of a class takes by name."""
    known = inspect.signature(function.__init__ if inspect.isclass(function) else function).parameters
    return {name: value for name, value in offered.items() if name in known}


def _mode(module: Any, train: bool) -> dict[str, Any]:
    return _named(module.__call__, train=train, training=train, deterministic=not train)


def _file_of(kind: type) -> str:
    try:
        return inspect.getfile(kind)
    except (TypeError, OSError):
        return ""


def _names(path: Sequence[Any]) -> tuple[str, ...]:
    """A path of JAX as the names that a file of weights could have."""
    return tuple(jax.tree_util.keystr((one,), simple=True) for one in path) or ("",)


def _by_name(tree: PyTree) -> dict[str, Any]:
    """A tree of dicts, lists and records as a dict by name, which is what is stored."""
    paths, _ = jax.tree_util.tree_flatten_with_path(tree)
    return _nested({_names(path): leaf for path, leaf in paths})


def _filled(tree: PyTree, named: PyTree) -> PyTree:
    """A tree of the form of `tree` with the leaves of what `_by_name` made of one."""
    paths, structure = jax.tree_util.tree_flatten_with_path(tree)
    flat = _flat(named)
    return jax.tree.unflatten(structure, [flat[_names(path)] for path, _ in paths])


def _nested(flat: Mapping[tuple[str, ...], Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for names, leaf in flat.items():
        inner = found
        for name in names[:-1]:
            inner = inner.setdefault(name, {})
        inner[names[-1]] = leaf
    return found


def _flat(nested: Mapping[str, Any], prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    found: dict[tuple[str, ...], Any] = {}
    for name, value in nested.items():
        if isinstance(value, Mapping):
            found |= _flat(value, (*prefix, name))
        else:
            found[(*prefix, name)] = value
    return found
