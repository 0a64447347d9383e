"""Weights of PyTorch: what is read, what is refused, and the same logits as PyTorch itself."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax.models.cnn import cnn
from mtkd_jax.models.pytorch import from_state_dict, task_of
from mtkd_jax.models.resnet import resnet
from mtkd_jax.models.vgg import vgg
from mtkd_jax.models.wide_resnet import wide_resnet
from mtkd_jax.plans import pretrained
from mtkd_jax.types import Task, UserError
from tests.references import resnets as reference

TASK = Task(num_classes=100, num_heads=1, mean=(0.5, 0.4, 0.3), std=(0.3, 0.2, 0.25))
RESNET, RESNET_SHAPES = resnet(TASK, depth=8), reference.resnet_shapes(8, 16, (16, 32, 64))
VGG, VGG_SHAPES = vgg(TASK), reference.vgg_shapes(8)


@pytest.fixture(scope="module")
def tensors():
    return reference.drawn(RESNET_SHAPES)


# --- without PyTorch; that the numbers land where they belong is in test_resnets.py ------------------------


@pytest.mark.parametrize(
    "model,shapes",
    [
        (RESNET, RESNET_SHAPES),
        (resnet(TASK, depth=110), reference.resnet_shapes(110, 16, (16, 32, 64))),
        (resnet(TASK, depth=32, width=4), reference.resnet_shapes(32, 32, (64, 128, 256))),
        (wide_resnet(TASK, depth=40), reference.wide_resnet_shapes(40, 2)),
        (vgg(TASK, depth=13), reference.vgg_shapes(13)),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_variables_are_those_of_the_model(model, shapes):
    image = jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
    wanted = jax.eval_shape(model.init, jax.random.key(0), image)
    got = from_state_dict(reference.drawn(shapes), model)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), got) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), wanted
    )


def test_both_kinds_of_file_give_the_same_variables(tensors, tmp_path):
    from safetensors.numpy import save_file

    counted = {**tensors, "bn1.num_batches_tracked": np.array(7, np.int64)}
    save_file(counted, tmp_path / "network.safetensors")
    np.savez(tmp_path / "network.npz", **counted)
    expected = from_state_dict(tensors, RESNET)
    for name in ("network.safetensors", "network.npz"):
        got = pretrained.from_pytorch(tmp_path / name, RESNET)
        jax.tree.map(np.testing.assert_array_equal, got, expected)


@pytest.mark.parametrize(
    "change,message",
    [
        (
            lambda t: {n: v for n, v in t.items() if n != "layer2.0.downsample.1.running_var"},
            r"tensor layer2.0.downsample.1.running_var is missing: resnet\(depth=8\) needs it .* \[32\]",
        ),
        (
            lambda t: {**t, "layer1.1.conv1.weight": t["layer1.0.conv1.weight"]},
            r"tensor layer1.1.conv1.weight is left over: resnet\(depth=8\) has no place for it",
        ),
        (
            lambda t: {**t, "fc.weight": t["fc.weight"][:10]},
            r"tensor fc.weight has shape \[10, 64\]: resnet\(depth=8\) needs \[100, 64\]",
        ),
        (
            lambda t: {**t, "conv1.weight": t["conv1.weight"].transpose(2, 3, 1, 0)},
            r"tensor conv1.weight has shape \[3, 3, 3, 16\]: resnet\(depth=8\) needs \[16, 3, 3, 3\]",
        ),
    ],
)
def test_a_tensor_too_few_too_many_or_of_another_shape_is_one_line(tensors, tmp_path, change, message):
    np.savez(tmp_path / "network.npz", **change(tensors))
    with pytest.raises(UserError, match=r"network.npz: " + message) as caught:
        pretrained.from_pytorch(tmp_path / "network.npz", RESNET)
    assert "\n" not in str(caught.value)


def prefixed(tensors, body, head):
    """Names with one prefix for the body and one for the heads."""
    return {f"{head if name.startswith('fc') else body}{name}": value for name, value in tensors.items()}


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda t: prefixed(t, "module.", "module."),
        lambda t: prefixed(t, "my_own_attribute.", "my_own_attribute."),
        lambda t: prefixed(t, "ema.", "ema."),
        lambda t: prefixed(t, "module.ema.module.", "module.ema.module."),
        lambda t: prefixed(t, "backbone.", ""),
        lambda t: prefixed(t, "model.backbone.", "model."),
        lambda t: prefixed(t, "model_state_dict/module.", "model_state_dict/module."),
        lambda t: {name.replace("layer1.", "layer1._orig_mod."): value for name, value in t.items()},
        lambda t: {
            **prefixed(t, "state_dict.", "state_dict."),
            "epoch": np.array(7),
            "optimizer.state.0.exp_avg": np.full(3, np.nan),
            "n_averaged": np.array(2),
            "state_dict.bn1.num_batches_tracked": np.array(9),
        },
    ],
)
def test_names_of_wrappers_and_what_checkpoints_hold_beside_weights_are_passed_over(wrapped, tensors):
    expected, got = from_state_dict(tensors, RESNET), from_state_dict(wrapped(tensors), RESNET)
    jax.tree.map(np.testing.assert_array_equal, got, expected)
    assert task_of(wrapped(tensors), RESNET).num_classes == 100


@pytest.mark.parametrize(
    "name, change, message",
    [
        ("conv1.weight", lambda v: v * np.float32(np.nan), "holds NaN or infinite numbers"),
        ("conv1.weight", lambda v: v.astype(np.float64) + 1e300, "holds NaN or infinite numbers"),
        ("bn1.running_var", lambda v: -v, "holds variances below 0"),
        ("conv1.weight", lambda v: v.astype(np.complex64), "is of complex64: must be floating point"),
        ("conv1.weight", lambda v: v.astype(np.int8), "is of int8: must be floating point"),
        ("conv1.weight", lambda v: v.astype(str), "is of <U32: must be floating point"),
        ("conv1.weight", lambda v: v.astype(np.float16).view("V2"), r"is of \|V2: must be floating point"),
    ],
)
def test_numbers_that_are_no_weights_are_one_line(name, change, message, tensors):
    with pytest.raises(UserError, match=f"tensor {name} {message}") as caught:
        from_state_dict({**tensors, name: change(tensors[name])}, RESNET)
    assert "\n" not in str(caught.value)


def test_two_networks_in_one_file_are_not_mixed(tensors):
    both = prefixed(tensors, "model.", "model.") | prefixed(tensors, "ema.", "ema.")
    with pytest.raises(UserError, match="2 networks are in it, under 'model.' and 'ema.'; save one"):
        from_state_dict(both, RESNET)
    with pytest.raises(UserError, match="tensor conv1.weight is in it twice, once as ema.conv1.weight"):
        from_state_dict({**tensors, "ema.conv1.weight": tensors["conv1.weight"]}, RESNET)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, np.float16])
def test_halves_are_read_as_the_numbers_they_are(dtype, tensors, tmp_path):
    from safetensors.flax import save_file

    narrow = {name: jnp.asarray(value).astype(dtype) for name, value in tensors.items()}
    save_file({**narrow, "bn1.num_batches_tracked": jnp.int32(5)}, tmp_path / "w.safetensors")
    got = pretrained.from_pytorch(tmp_path / "w.safetensors", RESNET)
    exact = from_state_dict({name: np.asarray(v.astype(jnp.float32)) for name, v in narrow.items()}, RESNET)
    jax.tree.map(np.testing.assert_array_equal, got, exact)
    kernel = got["params"]["stem_conv"]["kernel"]
    error = np.abs(kernel - tensors["conv1.weight"].transpose(2, 3, 1, 0))
    assert 0 < (error / np.abs(kernel)).max() <= 2.0**-8  # rounded to 8 bits at the least


def test_a_bias_of_a_vgg_is_not_optional():
    tensors = reference.drawn(VGG_SHAPES)
    del tensors["block3.0.bias"]
    with pytest.raises(UserError, match=r"tensor block3.0.bias is missing: vgg needs it with shape \[512\]"):
        from_state_dict(tensors, VGG)


@pytest.mark.parametrize(
    "model, message",
    [
        (cnn(TASK), "cnn: no PyTorch program has this network"),
        (resnet(TASK._replace(num_heads=2), depth=8), "a network with one head"),
    ],
)
def test_other_networks_have_no_such_layout(model, message, tensors):
    with pytest.raises(UserError, match=message):
        from_state_dict(tensors, model)


def test_files_that_cannot_be_read_are_one_line(tmp_path):
    (tmp_path / "torn.safetensors").write_bytes(b"\x07torn")
    (tmp_path / "torn.npz").write_bytes(b"PK\x03\x04torn")
    np.savez(tmp_path / "objects.npz", weight=np.array([{}], dtype=object))
    np.savez_compressed(tmp_path / "flipped.npz", weight=np.arange(1000.0))
    flipped = bytearray((tmp_path / "flipped.npz").read_bytes())
    flipped[200:300] = bytes(100)
    (tmp_path / "flipped.npz").write_bytes(flipped)
    (tmp_path / "network.pth").write_bytes(b"anything")
    for name, message in (
        ("torn.safetensors", "damaged"),
        ("torn.npz", "damaged"),
        ("flipped.npz", "damaged"),
        ("objects.npz", "damaged, or not arrays of numbers"),
        ("network.pth", "damaged"),
        ("network.h5", "expected a file of weights: .pth, .pt, .safetensors, .npz"),
        ("absent.npz", "cannot read the weights: No such file"),
    ):
        with pytest.raises(UserError, match=f"{name}: {message}") as caught:
            pretrained.read_state_dict(tmp_path / name)
        assert "\n" not in str(caught.value)


# --- with PyTorch ---------------------------------------------------------------------------------------


def torch_networks():
    """The published architectures in plain torch.nn, under the names their state dicts are known by."""
    torch = pytest.importorskip("torch")
    from torch import nn

    def conv(inputs, outputs, stride=1, size=3):
        return nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)

    class Residual(nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.conv1, self.bn1 = conv(inputs, outputs, stride), nn.BatchNorm2d(outputs)
            self.conv2, self.bn2 = conv(outputs, outputs), nn.BatchNorm2d(outputs)
            if inputs != outputs:
                self.downsample = nn.Sequential(conv(inputs, outputs, stride, 1), nn.BatchNorm2d(outputs))

        def forward(self, x):
            y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
            return (y + (self.downsample(x) if hasattr(self, "downsample") else x)).relu()

    class Preactivated(nn.Module):
        def __init__(self, inputs, outputs, stride):
            super().__init__()
            self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv(inputs, outputs, stride)
            self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv(outputs, outputs)
            if inputs != outputs:
                self.convShortcut = conv(inputs, outputs, stride, 1)

        def forward(self, x):
            active = self.bn1(x).relu()
            y = self.conv2(self.bn2(self.conv1(active)).relu())
            return y + (self.convShortcut(active) if hasattr(self, "convShortcut") else x)

    def stage(block, inputs, outputs, stride, num_blocks):
        rest = [block(outputs, outputs, 1) for _ in range(num_blocks - 1)]
        return nn.Sequential(block(inputs, outputs, stride), *rest)

    class ResNet(nn.Module):
        def __init__(self, depth, widths):
            super().__init__()
            num_blocks = (depth - 2) // 6
            self.conv1, self.bn1 = conv(3, widths[0]), nn.BatchNorm2d(widths[0])
            self.layer1 = stage(Residual, widths[0], widths[1], 1, num_blocks)
            self.layer2 = stage(Residual, widths[1], widths[2], 2, num_blocks)
            self.layer3 = stage(Residual, widths[2], widths[3], 2, num_blocks)
            self.fc = nn.Linear(widths[3], 100)

        def forward(self, x):
            x = self.layer3(self.layer2(self.layer1(self.bn1(self.conv1(x)).relu())))
            return self.fc(x.mean(dim=(2, 3)))

    class Group(nn.Module):
        def __init__(self, *sizes):
            super().__init__()
            self.layer = stage(Preactivated, *sizes)

        def forward(self, x):
            return self.layer(x)

    class WideResNet(nn.Module):
        def __init__(self, depth, width):
            super().__init__()
            num_blocks = (depth - 4) // 6
            self.conv1 = conv(3, 16)
            self.block1 = Group(16, 16 * width, 1, num_blocks)
            self.block2 = Group(16 * width, 32 * width, 2, num_blocks)
            self.block3 = Group(32 * width, 64 * width, 2, num_blocks)
            self.bn1, self.fc = nn.BatchNorm2d(64 * width), nn.Linear(64 * width, 100)

        def forward(self, x):
            x = self.bn1(self.block3(self.block2(self.block1(self.conv1(x))))).relu()
            return self.fc(x.mean(dim=(2, 3)))

    class Vgg(nn.Module):
        def __init__(self, stages):
            super().__init__()
            before = 3
            for number, widths in enumerate(stages):
                layers = []
                for width in widths:
                    layers += [nn.Conv2d(before, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
                    before = width
                self.add_module(f"block{number}", nn.Sequential(*layers))
            self.classifier = nn.Linear(before, 100)

        def forward(self, x):
            for number in range(5):
                x = self.get_submodule(f"block{number}")(x)
                if number < 3:
                    x = nn.functional.max_pool2d(x, 2)
            return self.classifier(x.mean(dim=(2, 3)))

    torch.manual_seed(0)
    return [
        (ResNet(20, (16, 16, 32, 64)), resnet(TASK)),
        (ResNet(8, (32, 64, 128, 256)), resnet(TASK, depth=8, width=4)),
        (WideResNet(16, 2), wide_resnet(TASK)),
        (WideResNet(10, 1), wide_resnet(TASK, depth=10, width=1)),
        (Vgg([[64], [128], [256], [512], [512]]), VGG),
    ]


@pytest.mark.parametrize("number", range(5), ids=["resnet20", "resnet8x4", "wrn-16-2", "wrn-10-1", "vgg8"])
@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_logits_are_those_of_pytorch(number, suffix, tmp_path):
    network, model = torch_networks()[number]
    import torch
    from safetensors.torch import save_file

    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for tensor in (module.weight, module.running_var):
                    tensor.uniform_(0.5, 1.5)
                for tensor in (module.bias, module.running_mean):
                    tensor.normal_(0.0, 0.3)
        path = tmp_path / f"network{suffix}"
        if suffix == ".npz":
            np.savez(path, **{name: tensor.numpy() for name, tensor in network.state_dict().items()})
        else:
            save_file(network.state_dict(), path)
        x = torch.rand(4, 3, 32, 32)
        mean, std = (torch.tensor(values)[:, None, None] for values in (TASK.mean, TASK.std))
        expected = network.eval()((x - mean) / std).numpy()
    variables = pretrained.from_pytorch(path, model)
    got, _ = model.apply(variables, x.numpy().transpose(0, 2, 3, 1))
    np.testing.assert_allclose(got.logits, expected, rtol=1e-4, atol=1e-4)
