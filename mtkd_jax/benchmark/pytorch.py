"""The same networks and the same training as a user of PyTorch would write them; torch need not be there.

On a CPU in channels-last memory, the fast way there, with the threads PyTorch chooses for itself; on an
NVIDIA GPU where JAX is on one.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from typing import Any

import jax

from mtkd_jax.benchmark import networks
from mtkd_jax.benchmark.clock import LeftOut, Side
from mtkd_jax.benchmark.networks import LEARNING_RATE, MOMENTUM, NUM_CLASSES, WEIGHT_DECAY, Network
from mtkd_jax.benchmark.plain import AT_A_TIME
from mtkd_jax.benchmark.work import WIDTHS


def loop(network: Network, num_members: int) -> Side:
    """One member after the other."""
    torch, device = _torch()
    members = [_member(network, device) for _ in range(num_members)]
    optimizers = [optimizer(member.parameters()) for member in members]
    images, labels = _batches(network, num_members, device)
    if network.convolutional:
        members = [member.to(memory_format=torch.channels_last) for member in members]
    batches = [
        [(_channels_last(images[s, m], network), labels[s, m]) for s in range(len(images))]
        for m in range(num_members)
    ]
    turns = itertools.cycle(range(num_members))
    at_a_time = min(AT_A_TIME, num_members)

    def run() -> None:
        for m in itertools.islice(turns, at_a_time):
            for image, label in batches[m]:
                _step(network, members[m], optimizers[m], image, label)
        _finish(device)

    run()
    return Side(run, len(images) * at_a_time)


def _step(network: Network, member: Any, optimizer: Any, image: Any, label: Any) -> None:
    import torch

    optimizer.zero_grad(set_to_none=True)
    with _autocast(network, image.device.type):
        loss = torch.nn.functional.cross_entropy(member(image), label)
    loss.backward()
    optimizer.step()


def _autocast(network: Network, device: str) -> Any:
    """PyTorch's way of computing in bfloat16."""
    import torch

    return torch.autocast(device, torch.bfloat16, enabled=network.dtype == "bfloat16")


def replay_graphs(network: Network, num_members: int) -> Side:
    """One member after the other, the whole step of each captured as a CUDA graph."""
    torch, device = _torch()
    if device != "cuda":
        raise LeftOut("CUDA graphs are for NVIDIA GPUs")
    images, labels = _batches(network, num_members, device)
    graphs, held = [], []
    for m in range(num_members):
        member = _member(network, device)
        if network.convolutional:
            member = member.to(memory_format=torch.channels_last)
        image, label = _channels_last(images[0, m].clone(), network), labels[0, m].clone()
        own_optimizer, aside = optimizer(member.parameters()), torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):  # what is allocated once must be before the capture
            for _ in range(3):
                _step(network, member, own_optimizer, image, label)
        torch.cuda.current_stream().wait_stream(aside)
        own_optimizer.zero_grad(set_to_none=True)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            _step(network, member, own_optimizer, image, label)
        graphs.append(graph)
        held.append((image, label, member, own_optimizer))

    def run() -> None:
        for m, graph in enumerate(graphs):
            for image, label in zip(images[:, m], labels[:, m]):
                held[m][0].copy_(image)
                held[m][1].copy_(label)
                graph.replay()
        _finish(device)

    run()
    return Side(run, len(images) * num_members)


def vmap(network: Network, num_members: int) -> Side:
    """All members at once by `torch.func`; without running statistics, which it cannot keep for them."""
    torch, device = _torch()
    members = [_member(network, device) for _ in range(num_members)]
    for member in members:
        torch.func.replace_all_batch_norm_modules_(member)
    params, buffers = torch.func.stack_module_state(members)
    stateless = copy.deepcopy(members[0]).to("meta")

    def loss_of(params: Any, buffers: Any, image: Any, label: Any) -> Any:
        with _autocast(network, device):
            logits = torch.func.functional_call(stateless, (params, buffers), (image,))
            return torch.nn.functional.cross_entropy(logits, label)

    grads_of = torch.func.vmap(torch.func.grad(loss_of))
    own_optimizer = optimizer(params.values())
    batches = list(zip(*_batches(network, num_members, device)))

    def run() -> None:
        for image, label in batches:
            for name, grad in grads_of(params, buffers, image, label).items():
                params[name].grad = grad
            own_optimizer.step()
        _finish(device)

    run()
    return Side(run, len(batches) * num_members)


def num_params(network: Network) -> int:
    """Of one member; LeftOut without torch."""
    _torch()
    return sum(leaf.numel() for leaf in build(network).parameters())


def build(network: Network) -> Any:
    """module(image [B,c,h,w]) -> logits [B,C]; LeftOut where we have not written it."""
    families: dict[str, Callable[..., Any]] = {
        "mlp": mlp,
        "cnn": cnn,
        "resnet": resnet,
        "wide_resnet": wide_resnet,
    }
    if network.family not in families:
        raise LeftOut(f"{network.family} is not written in PyTorch here")
    return families[network.family](network.shape, **network.arguments)


def _torch() -> tuple[Any, str]:
    """The package, and the device that stands for the one JAX is on."""
    try:
        import torch
    except ImportError:
        raise LeftOut("torch is not installed") from None
    platform = jax.default_backend()
    if platform == "cpu":
        return torch, "cpu"
    if platform == "gpu" and torch.cuda.is_available():
        return torch, "cuda"
    raise LeftOut(f"torch {torch.__version__} cannot use the {platform} that JAX is on")


def _finish(device: str) -> None:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


def _member(network: Network, device: str) -> Any:
    return build(network).to(device).train()


def optimizer(params: Any) -> Any:
    """SGD with Nesterov momentum and weight decay."""
    import torch

    return torch.optim.SGD(
        params, lr=LEARNING_RATE, momentum=MOMENTUM, nesterov=True, weight_decay=WEIGHT_DECAY
    )


def _batches(network: Network, num_members: int, device: str) -> tuple[Any, Any]:
    """Images [S,M,B,c,h,w] and labels."""
    import torch

    images, labels = networks.batches(network, num_members)
    channels_first = torch.from_numpy(images).permute(0, 1, 2, 5, 3, 4).contiguous()
    return channels_first.to(device), torch.from_numpy(labels).long().to(device)


def _channels_last(image: Any, network: Network) -> Any:
    import torch

    return image.contiguous(memory_format=torch.channels_last) if network.convolutional else image


# --- networks -----------------------------------------------------------------------------------------


def mlp(shape: tuple[int, int, int], *, hidden: tuple[int, ...]) -> Any:
    """Dense layers."""
    from torch import nn

    height, width, channels = shape
    sizes = [height * width * channels, *hidden]
    dense = [layer for pair in zip(sizes, sizes[1:]) for layer in (nn.Linear(*pair), nn.ReLU())]
    return nn.Sequential(nn.Flatten(), *dense, nn.Linear(sizes[-1], NUM_CLASSES))


def cnn(shape: tuple[int, int, int], *, widths: tuple[int, ...] = (32, 64), dense: int = 128) -> Any:
    """3x3 convolutions, each followed by 2x2 pooling, and two dense layers."""
    from torch import nn

    height, width, channels = shape
    layers = []
    for features in widths:
        layers += [nn.Conv2d(channels, features, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        height, width, channels = height // 2, width // 2, features
    dense_layers = [nn.Linear(height * width * channels, dense), nn.ReLU(), nn.Linear(dense, NUM_CLASSES)]
    return nn.Sequential(*layers, nn.Flatten(), *dense_layers)


def resnet(shape: tuple[int, int, int], *, depth: int, width: int = 1) -> Any:
    """relu(x + BN conv relu BN conv x)."""
    from torch import nn

    class Block(nn.Module):
        def __init__(self, before: int, after: int, stride: int):
            super().__init__()
            self.body = nn.Sequential(
                _conv(before, after, 3, stride),
                nn.BatchNorm2d(after),
                nn.ReLU(),
                _conv(after, after, 3, 1),
                nn.BatchNorm2d(after),
            )
            shortcut = [_conv(before, after, 1, stride), nn.BatchNorm2d(after)]
            self.shortcut = nn.Sequential(*(shortcut if stride > 1 or before != after else []))

        def forward(self, x: Any) -> Any:
            return nn.functional.relu(self.body(x) + self.shortcut(x))

    stem = max(16, 8 * width)
    blocks, channels = _blocks(Block, stem, width, (depth - 2) // 6)
    first = [_conv(shape[-1], stem, 3, 1), nn.BatchNorm2d(stem), nn.ReLU()]
    return nn.Sequential(*first, *blocks, *_last(channels))


def wide_resnet(shape: tuple[int, int, int], *, depth: int, width: int) -> Any:
    """x + conv relu BN conv relu BN x."""
    from torch import nn

    class Block(nn.Module):
        def __init__(self, before: int, after: int, stride: int):
            super().__init__()
            self.first = nn.Sequential(nn.BatchNorm2d(before), nn.ReLU())
            self.body = nn.Sequential(
                _conv(before, after, 3, stride), nn.BatchNorm2d(after), nn.ReLU(), _conv(after, after, 3, 1)
            )
            self.shortcut = _conv(before, after, 1, stride) if before != after else None

        def forward(self, x: Any) -> Any:
            a = self.first(x)
            return self.body(a) + (x if self.shortcut is None else self.shortcut(a))

    blocks, channels = _blocks(Block, 16, width, (depth - 4) // 6)
    norm = [nn.BatchNorm2d(channels), nn.ReLU()]
    return nn.Sequential(_conv(shape[-1], 16, 3, 1), *blocks, *norm, *_last(channels))


def _conv(before: int, after: int, window: int, stride: int) -> Any:
    from torch import nn

    return nn.Conv2d(before, after, window, stride, padding=window // 2, bias=False)


def _blocks(block: Any, channels: int, width: int, num_blocks: int) -> tuple[list[Any], int]:
    """The blocks of the three stages, and the channels after them."""
    blocks = []
    for stage, features in enumerate(width * own for own in WIDTHS):
        for number in range(num_blocks):
            blocks.append(block(channels, features, 2 if stage and not number else 1))
            channels = features
    return blocks, channels


def _last(channels: int) -> list[Any]:
    from torch import nn

    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, NUM_CLASSES)]
