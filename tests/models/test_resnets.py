"""ResNets, Wide ResNets, VGGs and small DenseNets: sizes, features, an independent forward pass, learning."""

from __future__ import annotations

import dataclasses
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_digits

from mtkd_jax.engine import population
from mtkd_jax.models.densenet import densenet
from mtkd_jax.models.pytorch import from_state_dict
from mtkd_jax.models.resnet import resnet
from mtkd_jax.models.vgg import vgg
from mtkd_jax.models.wide_resnet import wide_resnet
from mtkd_jax.types import Task, UserError
from tests.references import resnets as reference

CIFAR100 = Task(num_classes=100, num_heads=1, mean=(0.5, 0.5, 0.4), std=(0.3, 0.2, 0.3))
CIFAR10 = CIFAR100._replace(num_classes=10)
GREY = Task(num_classes=10, num_heads=1, mean=(0.4,), std=(0.3,))
NARROW, WIDE = (16, 16, 32, 64), (32, 64, 128, 256)  # the lists of widths of RepDistiller, the stem first

# Each with PyTorch's names and shapes, and the parameters of the published network for CIFAR-100.
PUBLISHED = [
    (resnet(CIFAR100, depth=8), reference.resnet_shapes(8, 16, NARROW[1:]), 83_892),
    (resnet(CIFAR100, depth=14), reference.resnet_shapes(14, 16, NARROW[1:]), 181_108),
    (resnet(CIFAR100), reference.resnet_shapes(20, 16, NARROW[1:]), 278_324),
    (resnet(CIFAR100, depth=32), reference.resnet_shapes(32, 16, NARROW[1:]), 472_756),
    (resnet(CIFAR100, depth=44), reference.resnet_shapes(44, 16, NARROW[1:]), 667_188),
    (resnet(CIFAR100, depth=56), reference.resnet_shapes(56, 16, NARROW[1:]), 861_620),
    (resnet(CIFAR100, depth=110), reference.resnet_shapes(110, 16, NARROW[1:]), 1_736_564),
    (resnet(CIFAR100, depth=8, width=4), reference.resnet_shapes(8, 32, WIDE[1:]), 1_233_540),
    (resnet(CIFAR100, depth=32, width=4), reference.resnet_shapes(32, 32, WIDE[1:]), 7_433_860),
    (wide_resnet(CIFAR100, width=1), reference.wide_resnet_shapes(16, 1), 180_916),
    (wide_resnet(CIFAR100), reference.wide_resnet_shapes(16, 2), 703_284),
    (wide_resnet(CIFAR100, depth=40, width=1), reference.wide_resnet_shapes(40, 1), 569_780),
    (wide_resnet(CIFAR100, depth=40), reference.wide_resnet_shapes(40, 2), 2_255_156),
    (wide_resnet(CIFAR100, depth=28, width=10), reference.wide_resnet_shapes(28, 10), 36_536_884),
    (vgg(CIFAR100), reference.vgg_shapes(8), 3_965_028),
    (vgg(CIFAR100, depth=11), reference.vgg_shapes(11), 9_277_284),
    (vgg(CIFAR100, depth=13), reference.vgg_shapes(13), 9_462_180),
    (vgg(CIFAR100, depth=16), reference.vgg_shapes(16), 14_774_436),
    (vgg(CIFAR100, depth=19), reference.vgg_shapes(19), 20_086_692),
    # The networks of PCL's table (Wu and Gong 2021), but ResNet-32.
    (resnet(CIFAR100, depth=110, bottleneck=True), reference.bottleneck_shapes(110, 1), 1_170_868),
    (resnet(CIFAR100, depth=20, width=8, bottleneck=True), reference.bottleneck_shapes(20, 8), 6_871_220),
    (vgg(CIFAR100, depth=16, dense=512), reference.vgg_shapes(16, dense=512), 15_299_748),
    (
        densenet(CIFAR100, blocks=(6, 6, 6), growth=12, stem="plain"),
        reference.densenet_shapes((6, 6, 6), 12, True, 0.5),
        188_092,
    ),
    # Two of Huang et al. 2017, table 2: 1.0 and 0.8 million parameters, for CIFAR-10.
    (
        densenet(CIFAR10, blocks=(12, 12, 12), growth=12, bottleneck=False, compression=1.0, stem="plain"),
        reference.densenet_shapes((12, 12, 12), 12, False, 1.0, classes=10),
        1_019_722,
    ),
    (
        densenet(CIFAR10, blocks=(16, 16, 16), growth=12, stem="plain"),
        reference.densenet_shapes((16, 16, 16), 12, True, 0.5, classes=10),
        769_162,
    ),
]
SMALL = [resnet(GREY, depth=8), wide_resnet(GREY, depth=10, width=1, dropout=0.3), vgg(GREY)]


def name_of(value):
    return getattr(value, "name", None)


def shapes_of(model, size=32):
    image = jnp.zeros((1, size, size, len(model.module.task.mean)))
    return jax.eval_shape(model.init, jax.random.key(0), image)


def initial(model):
    return population.take(population.init(model, jax.random.key(0)[None], (8, 8, 1)), 0)


def drawn(model):
    """Variables with every entry drawn by NumPy, nothing to compile; statistics are positive."""
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(scale=0.3, size=leaf.shape), leaf.dtype), shapes_of(model)
    )
    return variables | {"batch_stats": jax.tree.map(jnp.abs, variables["batch_stats"])}


def images(batch=6, size=8, channels=1):
    return jax.random.uniform(jax.random.key(7), (batch, size, size, channels))


@pytest.mark.parametrize("model,pytorch_shapes,published", PUBLISHED, ids=name_of)
def test_as_many_parameters_as_published(model, pytorch_shapes, published):
    theirs = {name: shape for name, shape in pytorch_shapes.items() if "running" not in name}
    assert sum(int(np.prod(shape)) for shape in theirs.values()) == published
    ours = sum(leaf.size for leaf in jax.tree.leaves(shapes_of(model)["params"]))
    # Of the VGGs' convolutions the bias, one a feature, is left out: the BatchNorm after it takes it out.
    biases = sum(shape[0] for shape in theirs.values() if len(shape) == 4) if "vgg" in model.name else 0
    assert ours + biases == published


@pytest.mark.parametrize("size,channels", [(32, 3), (28, 1), (8, 1), (9, 3)])
@pytest.mark.parametrize("build", [resnet, wide_resnet, vgg])
def test_features_of_every_size_of_image(build, size, channels):
    task = Task(num_classes=10, num_heads=3, mean=(0.5,) * channels, std=(0.2,) * channels)
    model = build(task)
    image = jnp.zeros((2, size, size, channels))
    got = jax.eval_shape(lambda v: model.apply(v, image)[0], shapes_of(model))
    assert got.logits.shape == (2, 10) and got.heads.shape == (3, 2, 10)
    sides = {name: value.shape[1:3] for name, value in got.features.items()}
    widths = {name: value.shape[3] for name, value in got.features.items()}
    if build is vgg:
        expected = {32: (32, 16, 8, 4, 4), 28: (28, 14, 7, 3, 3), 8: (8, 4, 4, 4, 4), 9: (9, 4, 4, 4, 4)}
        assert sides == {f"stage{n}": (side, side) for n, side in enumerate(expected[size], start=1)}
        assert widths == {"stage1": 64, "stage2": 128, "stage3": 256, "stage4": 512, "stage5": 512}
        assert got.embedding.shape == (2, 512)
    else:
        half, quarter = -(-size // 2), -(-size // 4)
        expected = {"stem": size, "stage1": size, "stage2": half, "stage3": quarter}
        assert sides == {name: (side, side) for name, side in expected.items()}
        factor = 2 if build is wide_resnet else 1
        assert widths == {"stem": 16, "stage1": 16 * factor, "stage2": 32 * factor, "stage3": 64 * factor}
        assert got.embedding.shape == (2, 64 * factor)


@pytest.mark.parametrize(
    "model,shapes,forward,size",
    [
        (resnet(GREY, depth=14), reference.resnet_shapes(14, 16, NARROW[1:], 1, 10), reference.resnet, 8),
        (
            resnet(GREY, depth=8, width=4),
            reference.resnet_shapes(8, 32, WIDE[1:], 1, 10),
            reference.resnet,
            9,
        ),
        (wide_resnet(GREY), reference.wide_resnet_shapes(16, 2, 1, 10), reference.wide_resnet, 9),
        (wide_resnet(GREY, width=1), reference.wide_resnet_shapes(16, 1, 1, 10), reference.wide_resnet, 8),
        (vgg(GREY, depth=11), reference.vgg_shapes(11, 1, 10), reference.vgg, 9),
        (vgg(GREY, dense=20), reference.vgg_shapes(8, 1, 10, dense=20), reference.vgg, 32),
        (
            resnet(GREY, depth=20, width=2, bottleneck=True),
            reference.bottleneck_shapes(20, 2, 1, 10),
            partial(reference.resnet, bottleneck=True),
            9,
        ),
        (
            densenet(GREY, blocks=(2, 2), growth=4, stem="plain"),
            reference.densenet_shapes((2, 2), 4, True, 0.5, 1, 10),
            reference.densenet,
            9,
        ),
        (
            densenet(GREY, blocks=(1, 2), growth=5, bottleneck=False, compression=0.7, stem="plain"),
            reference.densenet_shapes((1, 2), 5, False, 0.7, 1, 10),
            reference.densenet,
            8,
        ),
    ],
    ids=name_of,
)
def test_equal_to_numpy_with_the_weights_of_pytorch(model, shapes, forward, size):
    """Odd and even images: a stride of 2 begins at another pixel in the two frameworks unless told to."""
    tensors, x = reference.drawn(shapes), images(batch=3, size=size)
    got = jax.jit(lambda v: model.apply(v, x)[0])(from_state_dict(tensors, model))
    normalised = (np.asarray(x, np.float64) - 0.4) / 0.3
    length = getattr(model.module, "depth", None) or model.module.blocks
    logits, embedding, features = forward(tensors, normalised.transpose(0, 3, 1, 2), length)
    np.testing.assert_allclose(got.logits, logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(got.embedding, embedding, rtol=1e-4, atol=1e-5)
    names = sorted(got.features, key=lambda name: (name != "stem", name))
    for name, expected in zip(names, features, strict=True):
        np.testing.assert_allclose(
            got.features[name].transpose(0, 3, 1, 2), expected, rtol=1e-4, atol=1e-4, err_msg=name
        )


@pytest.mark.parametrize("model", SMALL, ids=name_of)
def test_all_convolutions_are_of_the_dtype_and_bfloat16_stays_close(model):
    variables, x = drawn(model), images()
    results = {}
    for dtype, short in (("float32", "f32"), ("bfloat16", "bf16")):
        same = dataclasses.replace(model, module=model.module.clone(dtype=dtype))
        text = str(jax.make_jaxpr(lambda v, same=same: same.apply(v, x)[0])(variables))
        assert set(re.findall(r"(\w+)\[[\d,]+\] = conv_general_dilated", text)) == {short}
        results[dtype] = jax.jit(lambda v, same=same: same.apply(v, x)[0])(variables)
    full, half = results["float32"], results["bfloat16"]
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("float32")}
    assert np.isfinite(full.logits).all() and not np.array_equal(half.embedding, full.embedding)
    np.testing.assert_allclose(half.embedding, full.embedding, atol=0.05 * float(full.embedding.max()))


def test_kernels_start_he_normal_over_what_leaves_them():
    params = initial(resnet(GREY, depth=8, width=4))["params"]
    for name, window, features in (("conv1", 3, 256), ("conv2", 3, 256), ("shortcut_conv", 1, 256)):
        kernel = np.asarray(params["stage3_block1"][name]["kernel"])
        np.testing.assert_allclose(kernel.std(), np.sqrt(2 / (window**2 * features)), rtol=0.02)
        assert abs(kernel.mean()) < 0.02 * kernel.std() + 4 * kernel.std() / np.sqrt(kernel.size)


@pytest.mark.parametrize(
    "build", [partial(wide_resnet, depth=10, width=1), partial(vgg, dense=16)], ids=["wide_resnet", "vgg"]
)
def test_dropout_only_acts_in_training(build):
    model, without = (build(GREY, dropout=rate) for rate in (0.5, 0.0))
    variables, x = drawn(model), images()
    apply = jax.jit(lambda key: model.apply(variables, x, train=True, key=key)[0].logits)
    one, two, again = (apply(jax.random.key(k)) for k in (1, 2, 1))
    np.testing.assert_array_equal(one, again)
    assert not np.array_equal(one, two)
    programs = [jax.make_jaxpr(lambda v, m=m: m.apply(v, x))(variables) for m in (model, without)]
    assert str(programs[0]) == str(programs[1])


@pytest.mark.parametrize("model", SMALL[:2], ids=name_of)
def test_all_of_a_residual_network_learns_the_digits(model):
    digits = load_digits()
    x = jnp.asarray(digits.images[:128, :, :, None] / 16, jnp.float32)
    wanted = jax.nn.one_hot(digits.target[:128], 10)

    def loss_of(params, state, key):
        got, state = model.apply({"params": params, **state}, x, train=True, key=key)
        return -(jax.nn.log_softmax(got.logits) * wanted).sum(axis=-1).mean(), state

    @jax.jit
    def step(params, state, key):
        (loss, state), gradients = jax.value_and_grad(loss_of, has_aux=True)(params, state, key)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients), state, loss

    variables = initial(model)
    params, state = variables["params"], {"batch_stats": variables["batch_stats"]}
    losses = []
    for key in jax.random.split(jax.random.key(1), 25):
        params, state, loss = step(params, state, key)
        losses.append(float(loss))
    assert losses[0] > 2.0 and losses[-1] < 0.6 * losses[0], losses
    after = {"params": params, **state}
    for path, same in jax.tree_util.tree_leaves_with_path(jax.tree.map(np.array_equal, variables, after)):
        assert not same, jax.tree_util.keystr(path)


@pytest.mark.parametrize(
    "build,arguments,message",
    [
        (resnet, {"depth": 18}, r"resnet.depth = 18: expected 6n \+ 2, such as 8"),
        (resnet, {"depth": 2}, "resnet.depth = 2: expected 6n"),
        (resnet, {"depth": 32, "bottleneck": True}, r"resnet.depth = 32: expected 9n \+ 2 with bottlenecks"),
        (resnet, {"width": 0}, "resnet.width = 0: expected a whole number >= 1"),
        (resnet, {"dtype": "float16"}, "resnet.dtype = 'float16': expected float32 or bfloat16"),
        (wide_resnet, {"depth": 20}, r"wide_resnet.depth = 20: expected 6n \+ 4, such as 10"),
        (wide_resnet, {"width": 1.5}, "wide_resnet.width = 1.5: expected a whole number"),
        (wide_resnet, {"dropout": 1.0}, r"wide_resnet.dropout = 1.0: expected a number in \[0, 1\)"),
        (vgg, {"depth": 9}, "vgg.depth = 9: expected one of 8, 11, 13, 16, 19"),
        (vgg, {"dtype": None}, "vgg.dtype = None"),
        (vgg, {"dense": -1}, "vgg.dense = -1: expected a number of units, or 0 for no dense layers"),
        (vgg, {"dense": 8, "dropout": 1.0}, r"vgg.dropout = 1.0: expected a number in \[0, 1\)"),
        (vgg, {"dropout": 0.5}, "vgg.dropout = 0.5: expected 0 without dense layers"),
        (densenet, {"compression": 0.0}, r"densenet.compression = 0.0: expected a share in \(0, 1\]"),
        (densenet, {"stem": "bare"}, "densenet.stem = 'bare': expected imagenet or cifar or plain"),
    ],
)
def test_arguments_out_of_range_are_one_line(build, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        build(GREY, **arguments)
    assert "\n" not in str(caught.value)
