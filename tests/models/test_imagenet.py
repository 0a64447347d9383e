"""Families published for ImageNet: sizes, layouts, features, errors, and the same logits as PyTorch."""

from __future__ import annotations

import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax.addresses import build_model
from mtkd_jax.models import layers, mobilenet, resnet, stages
from mtkd_jax.models.pytorch import from_state_dict, state_dict_shapes
from mtkd_jax.types import Task, UserError

TASK = Task(num_classes=7, num_heads=1, mean=(0.5, 0.4, 0.3), std=(0.3, 0.2, 0.25))
PUBLISHED = {  # address: parameters as published for 1000 classes, and the digest of a state dict's layout
    "imagenet_resnet": (11689512, "efcc90900c72"),
    "imagenet_resnet(depth=34)": (21797672, "27a12c09c7f3"),
    "imagenet_resnet(depth=50)": (25557032, "138c8c8ccc17"),
    "imagenet_resnet(depth=50,width=2)": (68883240, "e017736c35d8"),
    "densenet": (7978856, "b192360cfa58"),
    "imagenet_mobilenet_v2": (3504872, "8aec9e720e48"),
    "mobilenet_v3": (5483032, "4a311cb4819c"),
    "mobilenet_v3(size='small')": (2542856, "9cc3d7fe15e4"),
    "convnext": (28589128, "00f52956e8df"),
    "alexnet": (61100840, "58e71d46cc5e"),
    "imagenet_vgg(depth=11)": (132863336, "0aec3dcb5ca3"),
    "imagenet_vgg(depth=11,batch_norm=True)": (132868840, "fa457ebf25b6"),
    "imagenet_vgg": (138357544, "63f9f2f4402f"),
    "imagenet_vgg(batch_norm=True)": (138365992, "8929ade7db57"),
    "vit": (5717416, "83c47e22f0fa"),
    "vit(width=384,attention_heads=6)": (22050664, "2759c0778f6c"),
}


def layout(shapes):
    """A digest of names and shapes; where there is PyTorch, its own networks have the same below."""
    text = "".join(f"{name} {list(shape)}\n" for name, shape in sorted(shapes.items()))
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def traced(model, *shape):
    return jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, jnp.float32))


# --- without PyTorch ------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", PUBLISHED)
def test_sizes_and_layouts_are_the_published_ones(address):
    model = build_model(address, TASK._replace(num_classes=1000))
    shapes = state_dict_shapes(model)
    statistics = ("running_mean", "running_var")
    sizes = [np.prod(shape, dtype=int) for name, shape in shapes.items() if not name.endswith(statistics)]
    assert (sum(sizes), layout(shapes)) == PUBLISHED[address]
    for path in traced(model, 1, 224, 224, 3)["params"]:
        assert sum(path.startswith(stage) for stage in model.module.stages) == 1


@pytest.mark.parametrize(
    "address, size, message",
    [
        ("alexnet", 62, "images of 62x62 are too small for this network: expected at least 63x63"),
        ("imagenet_vgg", 31, "images of 31x31 are too small"),
        ("densenet", 28, "images of 28x28 are too small"),
        ("convnext", 31, "images of 31x31 are too small"),
        ("vit", 40, "images of 40x40 do not divide into patches of 16x16; set image_size"),
    ],
)
def test_an_image_that_does_not_fit_is_one_line(address, size, message):
    model = build_model(address, TASK)
    with pytest.raises(UserError, match=message) as caught:
        traced(model, 1, size, size, 3)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("depth=20", "depth = 20: expected one of 18, 34, 50, 101, 152"),
        ("width=2", "width = 2: expected 1 below depth 50"),
        ("stem='mnist'", "stem = 'mnist': expected imagenet or cifar"),
        ("trainable='stage7'", "trainable = 'stage7': expected one of stem, stage1"),
        ("image_size=-1", "image_size = -1: expected a number of pixels"),
    ],
)
def test_arguments_out_of_range_are_one_line(arguments, message):
    with pytest.raises(UserError, match=f"imagenet_resnet.{message}"):
        build_model(f"imagenet_resnet({arguments})", TASK)


@pytest.mark.parametrize(
    "address, trainable",
    [
        ("imagenet_resnet(stem='cifar'", "heads"),
        ("densenet(stem='cifar', blocks=(2, 1), growth=4", "stage2"),
        ("imagenet_mobilenet_v2(stem='cifar', width=0.1, dropout=0.5", "heads"),
        ("convnext(stem='cifar', blocks=(1, 1), widths=(8, 16)", "last"),
        ("alexnet(stem='cifar', dense=8", "last"),
        ("imagenet_vgg(stem='cifar', depth=11, dense=8", "stage5"),
        ("vit(stem='cifar', width=16, depth=4, attention_heads=2", "stage3"),
    ],
)
def test_a_network_begun_at_any_stage_says_what_the_whole_says(address, trainable, monkeypatch):
    monkeypatch.setitem(resnet.IMAGENET_BLOCKS, 18, (1, 1, 1, 1))  # fewer blocks, which all are alike
    monkeypatch.setattr(mobilenet, "IMAGENET_V2", dict(list(mobilenet.IMAGENET_V2.items())[:2]))
    model = build_model(f"{address}, trainable={trainable!r})", TASK)
    rng, shape = np.random.default_rng(0), (2, 16, 16, 3)

    def drawn(leaf):
        fan = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 1
        return (
            rng.uniform(0.2, 1.5, leaf.shape).astype(np.float32)
            * rng.choice([-1, 1][leaf.ndim < 2 :], leaf.shape)
            / fan**0.5
        )

    variables = jax.tree.map(drawn, traced(model, *shape))
    image = rng.random(shape, np.float32)
    told = jax.eval_shape(
        lambda *given: model.module.apply(*given, train=False, mutable=[layers.ENTERING])[1], variables, image
    )
    assert set(told[layers.ENTERING]) == set(model.stages)

    def whole_and_part(variables, image):
        entered = stages.entering(model, variables, image)
        part, _ = stages.tail(model, shape[1:]).apply(variables, entered)
        return model.apply(variables, image)[0].logits, part.logits

    quickly_compiled = {"xla_backend_optimization_level": 0}
    whole, part = jax.jit(whole_and_part, compiler_options=quickly_compiled)(variables, image)
    assert np.abs(whole[0] - whole[1]).max() > 1e-3 * np.abs(whole).max()  # the image is seen
    np.testing.assert_allclose(part, whole, rtol=0, atol=1e-5 * np.abs(whole).max())


def test_pooling_by_hand():
    """Windows that overlap, and parts of an image, of numbers below 0: what is padded is no maximum."""
    x = -np.random.default_rng(0).uniform(1, 2, (2, 7, 6, 3)).astype(np.float32)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(1, 2))[:, ::2, ::2]
    found = layers.overlapping_max_pool(jnp.asarray(x), 3, 2, padding=1)
    np.testing.assert_array_equal(found, windows.max(axis=(-2, -1)))
    rows, columns = [(0, 2), (1, 4), (3, 6), (5, 7)], [(0, 2), (1, 3), (3, 5), (4, 6)]  # of 7 and of 6, in 4
    expected = [[x[:, a:b, c:d].mean(axis=(1, 2)) for c, d in columns] for a, b in rows]
    found = layers.adaptive_average_pool(jnp.asarray(x), 4, 4)
    np.testing.assert_allclose(found, np.moveaxis(expected, 2, 0), rtol=1e-5)


# --- with PyTorch ---------------------------------------------------------------------------------------


def randomise(network):
    """No two channels alike, statistics neither, and all of a size that keeps the signal."""
    import torch

    torch.manual_seed(0)
    with torch.no_grad():
        for name, tensor in network.state_dict().items():
            if name.endswith(("running_var", "layer_scale")) or (
                name.endswith("weight") and tensor.ndim == 1
            ):
                tensor.uniform_(0.5, 1.5)
            elif name.endswith(("bias", "running_mean")):
                tensor.normal_(0.0, 0.2)
            elif name in ("cls_token", "pos_embed"):
                tensor.normal_(0.0, 1.0)
            elif tensor.ndim > 1:
                tensor.normal_(0.0, (1.5 / tensor[0].numel()) ** 0.5)
    return network.eval()


def torchvision_network(name, **arguments):
    return getattr(pytest.importorskip("torchvision").models, name)(num_classes=7, **arguments)


def with_cifar_stem(network, name):
    from torch.nn import Conv2d, Identity

    if name.startswith("resnet"):
        network.conv1, network.maxpool = Conv2d(3, 64, 3, 1, 1, bias=False), Identity()
    elif name == "densenet121":
        network.features.conv0, network.features.pool0 = Conv2d(3, 64, 3, 1, 1, bias=False), Identity()
    elif name.startswith("mobilenet"):
        network.features[0][0].stride = (1, 1)
    elif name == "convnext_tiny":
        network.features[0][0] = Conv2d(3, 96, 3, 1, 1)
    elif name == "alexnet":
        network.features[0], network.features[2] = Conv2d(3, 64, 3, 1, 1), Identity()
    elif name == "vgg11":
        network.features[2] = Identity()
    return network


NETWORKS = {
    "imagenet_resnet": "resnet18",
    "imagenet_resnet(depth=34)": "resnet34",
    "imagenet_resnet(depth=50)": "resnet50",
    "imagenet_resnet(depth=50,width=2)": "wide_resnet50_2",
    "densenet": "densenet121",
    "imagenet_mobilenet_v2": "mobilenet_v2",
    "mobilenet_v3": "mobilenet_v3_large",
    "mobilenet_v3(size='small')": "mobilenet_v3_small",
    "convnext": "convnext_tiny",
    "alexnet": "alexnet",
    "imagenet_vgg(depth=11)": "vgg11",
    "imagenet_vgg(depth=11,batch_norm=True)": "vgg11_bn",
    "imagenet_vgg": "vgg16",
    "imagenet_vgg(batch_norm=True)": "vgg16_bn",
    "vit": "vit_tiny_patch16_224",
    "vit(width=384,attention_heads=6)": "deit_small_patch16_224",
}
CIFAR = ("resnet18", "densenet121", "mobilenet_v2", "mobilenet_v3_large", "convnext_tiny", "alexnet", "vgg11")


def state_dict(network):
    return {name: tensor.numpy() for name, tensor in network.state_dict().items()}


def assert_same_logits(address, network, *size):
    import torch

    randomise(network)
    model = build_model(address, TASK)
    x = torch.rand(2, 3, *size)
    mean, std = (torch.tensor(values)[:, None, None] for values in (TASK.mean, TASK.std))
    with torch.no_grad():
        expected = network((x - mean) / std).numpy()
    variables = from_state_dict(state_dict(network), model)
    got = jax.jit(lambda *inputs: model.apply(*inputs)[0].logits)(variables, x.numpy().transpose(0, 2, 3, 1))
    assert np.abs(expected[0] - expected[1]).max() > 1e-2 * np.abs(expected).max()  # the image is seen
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.parametrize("address", [name for name in NETWORKS if not name.startswith("vit")])
def test_logits_are_those_of_torchvision(address):
    assert_same_logits(address, torchvision_network(NETWORKS[address]), 67, 74)


@pytest.mark.slow
@pytest.mark.parametrize("address", [name for name in NETWORKS if NETWORKS[name] in CIFAR])
def test_logits_with_the_stem_for_small_images_are_those_of_torchvision(address):
    name = NETWORKS[address]
    network = with_cifar_stem(torchvision_network(name), name)
    separator = ",stem='cifar')" if "(" in address else "(stem='cifar')"
    assert_same_logits(address.rstrip(")") + separator, network, 32, 35)


@pytest.mark.slow
@pytest.mark.parametrize(
    "address, name, arguments, size",
    [
        ("vit", "vit_tiny_patch16_224", {}, (224, 224)),
        ("vit", "deit_tiny_patch16_224", dict(dynamic_img_size=True), (64, 96)),
        ("vit", "vit_tiny_patch16_224", dict(dynamic_img_size=True), (256, 240)),
        ("vit(width=384,attention_heads=6)", "deit_small_patch16_224", {}, (224, 224)),
        ("vit(stem='cifar')", "vit_tiny_patch16_224", dict(patch_size=4, img_size=32), (32, 32)),
    ],
)
def test_logits_are_those_of_timm(address, name, arguments, size):
    timm = pytest.importorskip("timm")
    network = timm.create_model(name, pretrained=False, num_classes=7, **arguments)
    assert_same_logits(address, network, *size)


@pytest.mark.slow
@pytest.mark.parametrize("address", NETWORKS)
def test_digests_of_layouts_are_those_of_pytorch(address):
    import_from = pytest.importorskip("timm" if address.startswith("vit") else "torchvision")
    build = import_from.create_model if address.startswith("vit") else import_from.models.get_model
    tensors = build(NETWORKS[address], num_classes=1000).state_dict().items()
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors if not name.endswith("tracked")}
    assert PUBLISHED[address][1] == layout(shapes)
