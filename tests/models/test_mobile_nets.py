"""MobileNetV2 and ShuffleNetV2: published sizes, features, an independent forward pass, training and not."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax.models import mobilenet, shufflenet
from mtkd_jax.models.mobilenet import mobilenet_v2
from mtkd_jax.models.shufflenet import shufflenet_v2
from mtkd_jax.types import Task, UserError

CIFAR100 = Task(num_classes=100, num_heads=1, mean=(0.5, 0.5, 0.4), std=(0.3, 0.2, 0.3))
GREY = Task(num_classes=10, num_heads=2, mean=(0.4,), std=(0.3,))
BOTH = [mobilenet_v2, shufflenet_v2]

# Fifty layers run once or twice: compiled without optimising, in half the time.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

# Of every block of mobile_half: channels, stride, expansion.
MOBILE_HALF = [
    (8, 1, 1),
    (12, 1, 6), (12, 1, 6),
    (16, 2, 6), (16, 1, 6), (16, 1, 6),
    (32, 2, 6), (32, 1, 6), (32, 1, 6), (32, 1, 6),
    (48, 1, 6), (48, 1, 6), (48, 1, 6),
    (80, 2, 6), (80, 1, 6), (80, 1, 6),
    (160, 1, 6),
]  # fmt: skip
SHUFFLE = {0.5: (48, 96, 192), 1.0: (116, 232, 464), 1.5: (176, 352, 704), 2.0: (244, 488, 976)}
ENDS = {"stage1": 3, "stage2": 6, "stage3": 13, "stage4": 17}  # the last MobileNet block of a stage


def images(batch=16, size=17):
    return jax.random.uniform(jax.random.key(7), (batch, size, size, 1))


def shapes_of(model, size=32):
    return jax.eval_shape(
        model.init, jax.random.key(0), jnp.zeros((1, size, size, len(model.module.task.mean)))
    )


def count(model):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes_of(model)["params"]))


def drawn(model):
    """Variables drawn by NumPy, nothing to compile: kernels keep the scale, the rest is not at its start."""
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        if name == "kernel":
            return rng.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))
        return rng.uniform(*{"bias": (-0.3, 0.3), "mean": (-0.3, 0.3)}.get(name, (0.5, 1.5)), leaf.shape)

    draws = jax.tree_util.tree_map_with_path(draw, shapes_of(model))
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), draws)


@functools.cache
def evaluated(build, dtype):
    """Outputs for `images()` in evaluation, as a function of the variables: one program for all tests."""
    return quick_jit(lambda variables: build(GREY, dtype=dtype).apply(variables, images())[0])


# --- sizes --------------------------------------------------------------------------------------------


def mobilenet_parameters(blocks, stem, last, num_classes):
    """A convolution and its BatchNorm, whose scale and bias are 2 numbers a channel, layer by layer."""
    total, into = 3 * 9 * stem + 2 * stem, stem
    for channels, _, expansion in blocks:
        hidden = expansion * into
        total += (into + 2) * hidden + (9 + 2) * hidden + (hidden + 2) * channels
        into = channels
    return total + (into + 2) * last + (last + 1) * num_classes


def shufflenet_parameters(stages, last, num_classes):
    total, into = 3 * 24 + 2 * 24, 24
    for channels, num_units in zip(stages, (3, 7, 3), strict=True):
        half = channels // 2
        unit = (half + 2) * half + (9 + 2) * half + (half + 2) * half
        short = (9 + 2) * into + (into + 2) * half
        total += short + unit + (into - half) * half  # its first convolution reads `into` channels, not half
        total += num_units * unit
        into = channels
    return total + (into + 2) * last + (last + 1) * num_classes


def test_as_many_parameters_as_published():
    """RepDistiller's `mobile_half` and `ShuffleV2` for CIFAR-100."""
    assert mobilenet_parameters(MOBILE_HALF, 16, 1280, 100) == 812_836
    assert shufflenet_parameters(SHUFFLE[1.0], 1024, 100) == 1_355_528
    assert count(mobilenet_v2(CIFAR100)) == 812_836
    assert count(shufflenet_v2(CIFAR100)) == 1_355_528


def test_other_widths_have_the_parameters_of_their_channels():
    double, quadruple = ([(k * c, stride, t) for c, stride, t in MOBILE_HALF] for k in (2, 4))
    assert count(mobilenet_v2(CIFAR100, width=1.0)) == mobilenet_parameters(double, 32, 1280, 100)
    assert count(mobilenet_v2(CIFAR100, width=2)) == mobilenet_parameters(quadruple, 64, 2560, 100)
    for width, last in ((0.5, 1024), (1.5, 1024), (2.0, 2048)):
        expected = shufflenet_parameters(SHUFFLE[width], last, 100)
        assert count(shufflenet_v2(CIFAR100, width=width)) == expected


@pytest.mark.parametrize("size", [32, 9, 1])
@pytest.mark.parametrize("build", BOTH)
def test_features_of_every_size_of_image(build, size):
    model = build(CIFAR100._replace(num_heads=3))
    image = jnp.zeros((2, size, size, 3))
    got = jax.eval_shape(lambda variables: model.apply(variables, image)[0], shapes_of(model, size))
    half, quarter, eighth, sixteenth = (-(-size // side) for side in (2, 4, 8, 16))
    expected = {
        mobilenet_v2: {
            "stem": (2, half, half, 16),
            "stage1": (2, half, half, 12),
            "stage2": (2, quarter, quarter, 16),
            "stage3": (2, eighth, eighth, 48),
            "stage4": (2, sixteenth, sixteenth, 160),
        },
        shufflenet_v2: {
            "stem": (2, size, size, 24),
            "stage1": (2, half, half, 116),
            "stage2": (2, quarter, quarter, 232),
            "stage3": (2, eighth, eighth, 464),
        },
    }[build]
    assert {name: value.shape for name, value in got.features.items()} == expected
    assert got.embedding.shape == (2, 1280 if build is mobilenet_v2 else 1024)
    assert got.logits.shape == (2, 100) and got.heads.shape == (3, 2, 100)


# --- values -------------------------------------------------------------------------------------------


def numpy_layer(variables, name, x, stride=1):
    """Convolution as PyTorch pads it and BatchNorm in evaluation; depthwise where its name says so."""
    *places, last = name.split("/")
    params, stats = variables["params"], variables["batch_stats"]
    for place in places:
        params, stats = params[place], stats[place]
    kernel, norm, seen = params[f"{last}_conv"]["kernel"], params[f"{last}_norm"], stats[f"{last}_norm"]
    margin = len(kernel) // 2
    x = np.pad(x, ((0, 0), (margin, margin), (margin, margin), (0, 0)))
    rows, columns = (1 + (side - len(kernel)) // stride for side in x.shape[1:3])
    y = 0.0
    for i in range(len(kernel)):
        for j in range(len(kernel)):
            seen_by_ij = x[:, i::stride, j::stride][:, :rows, :columns]
            y = y + (seen_by_ij * kernel[i, j, 0] if "depthwise" in name else seen_by_ij @ kernel[i, j])
    return (y - seen["mean"]) / np.sqrt(seen["var"] + 1e-5) * norm["scale"] + norm["bias"]


def relu(x):
    return np.maximum(x, 0)


def numpy_mobilenet(layer, x):
    x = relu(layer("stem", x, 2))
    features = {"stem": x}
    for number, (_, stride, _) in enumerate(MOBILE_HALF, start=1):
        y = relu(layer(f"block{number}/expand", x))
        y = relu(layer(f"block{number}/depthwise", y, stride))
        y = layer(f"block{number}/project", y)
        x = x + y if stride == 1 and x.shape[-1] == y.shape[-1] else y
        features |= {stage: x for stage, end in ENDS.items() if end == number}
    return features, relu(layer("last", x)).mean(axis=(1, 2))


def numpy_shufflenet(layer, x):
    def branch(unit, y, stride):
        y = layer(f"{unit}/depthwise", relu(layer(f"{unit}/expand", y)), stride)
        return relu(layer(f"{unit}/project", y))

    x = relu(layer("stem", x))
    features = {"stem": x}
    for stage, num_units in (("stage1", 4), ("stage2", 8), ("stage3", 4)):
        for number in range(1, num_units + 1):
            unit = f"{stage}_block{number}"
            if number == 1:
                short = relu(layer(f"{unit}/short_project", layer(f"{unit}/short_depthwise", x, 2)))
                y = np.concatenate([short, branch(unit, x, 2)], axis=-1)
            else:
                kept, changed = np.split(x, 2, axis=-1)
                y = np.concatenate([kept, branch(unit, changed, 1)], axis=-1)
            x = y.reshape(*y.shape[:3], 2, -1).swapaxes(3, 4).reshape(y.shape)
        features[stage] = x
    return features, relu(layer("last", x)).mean(axis=(1, 2))


@pytest.mark.parametrize("build", BOTH)
def test_equal_to_numpy_with_the_padding_of_pytorch(build):
    variables = drawn(build(GREY))
    got = evaluated(build, "float32")(variables)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    forward = numpy_mobilenet if build is mobilenet_v2 else numpy_shufflenet
    features, embedding = forward(
        functools.partial(numpy_layer, exact), (np.asarray(images(), np.float64) - 0.4) / 0.3
    )
    assert set(got.features) == set(features)
    for name, expected in features.items():
        np.testing.assert_allclose(got.features[name], expected, atol=1e-4 * expected.max(), err_msg=name)
    np.testing.assert_allclose(got.embedding, embedding, atol=1e-4 * embedding.max())
    last = exact["params"]["heads"]
    heads = embedding @ last["kernel"] + last["bias"][:, None]
    np.testing.assert_allclose(got.heads, heads, atol=1e-4 * np.abs(heads).max())


@pytest.mark.parametrize("build", BOTH)
def test_stride_begins_at_the_same_pixel_in_images_of_even_size(build):
    """The first layer with a stride: images of 17x17, as above, would not show it."""
    model, x = build(GREY), images(batch=1, size=8)
    variables = drawn(model)
    exact = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
    layer = functools.partial(numpy_layer, exact)
    normalised = (np.asarray(x, np.float64) - 0.4) / 0.3
    if build is mobilenet_v2:
        name, expected = "stem", relu(layer("stem", normalised, 2))
    else:
        name, (features, _) = "stage1", numpy_shufflenet(layer, normalised)
        expected = features[name]
    got = quick_jit(lambda v: model.apply(v, x)[0].features[name])(variables)
    np.testing.assert_allclose(got, expected, atol=1e-4 * expected.max())


@pytest.mark.parametrize("build", BOTH)
def test_convolutions_of_bfloat16_are_of_bfloat16_and_stay_close(build):
    variables = drawn(build(GREY))
    for dtype, short in (("float32", "f32"), ("bfloat16", "bf16")):
        program = str(evaluated(build, dtype).trace(variables).jaxpr)
        found = re.findall(r"(\w+)\[[\d,]+\] = (?:conv_general_dilated|dot_general)", program)
        assert len(found) > 30 and set(found[:-1]) == {short} and found[-1] == "f32"  # the heads come last
    full, half = (evaluated(build, dtype)(variables) for dtype in ("float32", "bfloat16"))
    assert {leaf.dtype for leaf in jax.tree.leaves(half)} == {jnp.dtype("float32")}
    assert not np.array_equal(half.embedding, full.embedding)
    np.testing.assert_allclose(half.embedding, full.embedding, atol=0.1 * float(full.embedding.max()))


# --- training -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", BOTH)
def test_training_uses_the_batch_and_evaluation_the_running_statistics(build, monkeypatch):
    """From statistics of zero one step leaves a tenth of the batch's own: given these, both agree."""
    rows = {name: tuple((c, 1, s, e) for c, _, s, e in row) for name, row in mobilenet.STAGES.items()}
    monkeypatch.setattr(mobilenet, "STAGES", rows)  # one block of a kind
    monkeypatch.setattr(shufflenet, "BLOCKS", (2, 2, 2))
    model = build(GREY)
    train = quick_jit(lambda variables: model.apply(variables, images(), train=True))
    evaluate = quick_jit(lambda variables: model.apply(variables, images())[0])
    variables = drawn(model)
    nothing = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    in_training, state = train({**variables, "batch_stats": nothing})
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        assert np.abs(leaf).max() > 0, jax.tree_util.keystr(path)
    of_batch = jax.tree.map(lambda leaf: 10 * leaf, state["batch_stats"])
    same = evaluate({"params": variables["params"], "batch_stats": of_batch})
    other = evaluate(variables)
    scale = float(in_training.embedding.max())
    np.testing.assert_allclose(same.embedding, in_training.embedding, atol=1e-4 * scale)
    assert np.abs(other.embedding - in_training.embedding).max() > 0.1 * scale


# --- arguments ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "build,arguments,message",
    [
        (mobilenet_v2, {"width": 0.06}, "mobilenet_v2.width = 0.06: expected a number >= 1/16"),
        (mobilenet_v2, {"width": float("nan")}, "mobilenet_v2.width = nan"),
        (mobilenet_v2, {"width": float("inf")}, "mobilenet_v2.width = inf"),
        (mobilenet_v2, {"width": "1"}, "mobilenet_v2.width = '1'"),
        (mobilenet_v2, {"dtype": "float16"}, "mobilenet_v2.dtype = 'float16': expected float32 or bfloat16"),
        (shufflenet_v2, {"width": 0.75}, "shufflenet_v2.width = 0.75: expected 0.5, 1.0, 1.5 or 2.0"),
        (shufflenet_v2, {"width": (1.0,)}, r"shufflenet_v2.width = \(1.0,\): expected"),
        (shufflenet_v2, {"width": [1.0]}, r"shufflenet_v2.width = \[1.0\]: expected"),
        (shufflenet_v2, {"dtype": None}, "shufflenet_v2.dtype = None"),
    ],
)
def test_arguments_out_of_range_are_one_line(build, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        build(GREY, **arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("build", BOTH)
def test_equal_models_are_one_jit_key(build):
    one, same, other = build(GREY, width=1), build(GREY, width=1.0), build(GREY, width=2)
    assert one.module == same.module and hash(one.module) == hash(same.module) and one != other
