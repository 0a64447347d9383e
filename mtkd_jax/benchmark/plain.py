"""The same networks and the same training as a user of Flax and optax would write them.

They are spared whatever could be held against us: batches are drawn, scaled and normalised beforehand, and
pooling is a maximum over a reshaped axis, because the gradient of `nn.max_pool` would double their time on
a CPU. They are compiled as JAX does by default, without the options of `mesh.jit`. Names of layers are those
of `models`, so that tests can put the same weights into both.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn

from mtkd_jax.benchmark import networks
from mtkd_jax.benchmark.clock import LeftOut, Side
from mtkd_jax.benchmark.networks import LEARNING_RATE, MOMENTUM, NUM_CLASSES, WEIGHT_DECAY, Network
from mtkd_jax.benchmark.work import WIDTHS
from mtkd_jax.types import Array, PyTree

AT_A_TIME = 2  # members a loop trains in one call, in turn: its time for one does not depend on how many


def loop(network: Network, num_members: int) -> Side:
    """One compiled step, called from Python for one member after the other."""
    module, transform = build(network), optimizer()
    step = jax.jit(one_step(module, transform), donate_argnums=0)
    members = [_first(module, transform, network, m) for m in range(num_members)]
    images, labels = map(jnp.asarray, networks.batches(network, num_members))
    batches = [[(images[s, m], labels[s, m]) for s in range(len(images))] for m in range(num_members)]
    turns = itertools.cycle(range(num_members))
    at_a_time = min(AT_A_TIME, num_members)

    def run() -> PyTree:
        for m in itertools.islice(turns, at_a_time):
            for batch in batches[m]:
                members[m] = step(members[m], *batch)
        return jax.block_until_ready(members)

    run()
    return Side(run, len(images) * at_a_time)


def vmap_in_scan(network: Network, num_members: int) -> Side:
    """The step vmapped over members, the steps scanned: the obvious way to train them all at once."""
    module, transform = build(network), optimizer()
    step = jax.vmap(one_step(module, transform))

    def chunk(members: PyTree, images: Array, labels: Array) -> PyTree:
        return jax.lax.scan(lambda members, batch: (step(members, *batch), None), members, (images, labels))[
            0
        ]

    first = [_first(module, transform, network, m) for m in range(num_members)]
    members = jax.tree.map(lambda *leaves: jnp.stack(leaves), *first)
    batches = tuple(map(jnp.asarray, networks.batches(network, num_members)))
    # Compiled beforehand and not by a first call, which can take minutes.
    compiled = jax.jit(chunk, donate_argnums=0).lower(members, *batches).compile()

    def run() -> None:
        nonlocal members
        members = jax.block_until_ready(compiled(members, *batches))

    return Side(run, network.num_steps * num_members)


def num_params(network: Network) -> int:
    """Of one member."""
    image = jax.ShapeDtypeStruct((1, *network.shape), jnp.float32)
    variables = jax.eval_shape(partial(build(network).init, train=False), jax.random.key(0), image)
    return sum(leaf.size for leaf in jax.tree.leaves(variables["params"]))


def build(network: Network) -> nn.Module:
    """module(image, train) -> logits [B,C]; LeftOut where we have not written it."""
    families = {"mlp": Mlp, "cnn": Cnn, "resnet": ResNet, "wide_resnet": WideResNet}
    if network.family not in families or network.dtype != "float32":
        raise LeftOut(f"{network.family} in {network.dtype} is not written in plain Flax here")
    return families[network.family](**network.arguments)


def optimizer() -> optax.GradientTransformation:
    """SGD with Nesterov momentum and weight decay."""
    decay = optax.add_decayed_weights(WEIGHT_DECAY)
    return optax.chain(decay, optax.sgd(LEARNING_RATE, momentum=MOMENTUM, nesterov=True))


def _first(
    module: nn.Module, transform: optax.GradientTransformation, network: Network, seed: int
) -> tuple[PyTree, PyTree]:
    variables = module.init(jax.random.key(seed), jnp.zeros((1, *network.shape)), train=False)
    return variables, transform.init(variables["params"])


def one_step(module: nn.Module, transform: optax.GradientTransformation) -> Callable:
    """(member, image, label) -> member, which is variables and the optimiser's state."""

    def step(member: tuple[PyTree, PyTree], image: Array, label: Array) -> tuple[PyTree, PyTree]:
        variables, opt_state = member
        statistics = {name: value for name, value in variables.items() if name != "params"}

        def loss_of(params: PyTree) -> tuple[Array, PyTree]:
            logits, changed = module.apply(
                {"params": params, **statistics}, image, train=True, mutable=list(statistics)
            )
            return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean(), changed

        grads, changed = jax.grad(loss_of, has_aux=True)(variables["params"])
        updates, opt_state = transform.update(grads, opt_state, variables["params"])
        return {"params": optax.apply_updates(variables["params"], updates), **changed}, opt_state

    return step


# --- networks -----------------------------------------------------------------------------------------


class Mlp(nn.Module):
    """Dense layers."""

    hidden: tuple[int, ...]

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Array:
        x = image.reshape(len(image), -1)
        for number, width in enumerate(self.hidden, start=1):
            x = nn.relu(nn.Dense(width, name=f"dense{number}")(x))
        return nn.Dense(NUM_CLASSES, name="heads")(x)


class Cnn(nn.Module):
    """3x3 convolutions, each followed by 2x2 pooling, and two dense layers."""

    widths: tuple[int, ...] = (32, 64)
    dense: int = 128

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Array:
        x = image
        for number, channels in enumerate(self.widths, start=1):
            x = nn.relu(nn.Conv(channels, (3, 3), name=f"conv{number}")(x))
            batch, height, width, _ = x.shape
            x = x[:, : height // 2 * 2, : width // 2 * 2]
            x = x.reshape(batch, height // 2, 2, width // 2, 2, channels).max(axis=(2, 4))
        x = nn.relu(nn.Dense(self.dense, name="dense")(x.reshape(len(x), -1)))
        return nn.Dense(NUM_CLASSES, name="heads")(x)


def _conv(channels: int, window: int, stride: int, name: str) -> nn.Conv:
    pads = window // 2  # on every side, as PyTorch does
    return nn.Conv(channels, (window, window), stride, padding=pads, use_bias=False, name=name)


def _norm(train: bool, name: str) -> nn.BatchNorm:
    return nn.BatchNorm(use_running_average=not train, momentum=0.9, name=name)


class ResNet(nn.Module):
    """relu(x + BN conv relu BN conv x)."""

    depth: int
    width: int = 1

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Array:
        x = _conv(max(16, 8 * self.width), 3, 1, "stem_conv")(image)
        x = nn.relu(_norm(train, "stem_norm")(x))
        for stage, channels in enumerate(WIDTHS, start=1):
            for block in range(1, (self.depth - 2) // 6 + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                x = ResNetBlock(channels * self.width, stride, name=f"stage{stage}_block{block}")(x, train)
        return nn.Dense(NUM_CLASSES, name="heads")(x.mean(axis=(1, 2)))


class ResNetBlock(nn.Module):
    channels: int
    stride: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        y = _conv(self.channels, 3, self.stride, "conv1")(x)
        y = _conv(self.channels, 3, 1, "conv2")(nn.relu(_norm(train, "norm1")(y)))
        y = _norm(train, "norm2")(y)
        if x.shape != y.shape:
            x = _norm(train, "shortcut_norm")(_conv(self.channels, 1, self.stride, "shortcut_conv")(x))
        return nn.relu(x + y)


class WideResNet(nn.Module):
    """x + conv relu BN conv relu BN x."""

    depth: int
    width: int

    @nn.compact
    def __call__(self, image: Array, train: bool) -> Array:
        x = _conv(16, 3, 1, "stem_conv")(image)
        for stage, channels in enumerate(WIDTHS, start=1):
            for block in range(1, (self.depth - 4) // 6 + 1):
                stride = 2 if stage > 1 and block == 1 else 1
                x = WideBlock(channels * self.width, stride, name=f"stage{stage}_block{block}")(x, train)
        x = nn.relu(_norm(train, "last_norm")(x))
        return nn.Dense(NUM_CLASSES, name="heads")(x.mean(axis=(1, 2)))


class WideBlock(nn.Module):
    channels: int
    stride: int

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        a = nn.relu(_norm(train, "norm1")(x))
        y = _conv(self.channels, 3, self.stride, "conv1")(a)
        y = _conv(self.channels, 3, 1, "conv2")(nn.relu(_norm(train, "norm2")(y)))
        if x.shape[-1] != self.channels:
            x = _conv(self.channels, 1, self.stride, "shortcut_conv")(a)
        return x + y
