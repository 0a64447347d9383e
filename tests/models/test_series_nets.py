"""Networks for time series: sizes by hand, an independent forward pass, one-line errors."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax.models.series import fcn, inception_time, lstm, series_resnet, series_vgg
from mtkd_jax.types import Task, UserError

ONE = Task(num_classes=2, num_heads=1, mean=(0.4,), std=(0.3,))
SIX = Task(num_classes=4, num_heads=1, mean=(0.1,) * 6, std=(0.5,) * 6)
SMALL = {
    fcn: dict(widths=(3, 5, 4)),
    inception_time: dict(width=3),
    series_resnet: dict(widths=(3, 5, 5)),
    lstm: dict(widths=(3, 5)),
    series_vgg: dict(widths=(2, 3)),
}


def series(task=ONE, batch=4, steps=13):
    return jax.random.uniform(jax.random.key(7), (batch, steps, 1, len(task.mean)))


def shapes(model, x):
    return jax.eval_shape(model.init, jax.random.key(0), x)


def drawn(model, x):
    """Variables with every entry drawn by NumPy, nothing to compile; statistics are positive."""
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(scale=0.5, size=leaf.shape), leaf.dtype), shapes(model, x)
    )
    return {
        name: jax.tree.map(jnp.abs, own) if name == "batch_stats" else own for name, own in variables.items()
    }


# --- sizes --------------------------------------------------------------------------------------------

FCN = (8 * 128 + 2 * 128) + (5 * 128 * 256 + 2 * 256) + (3 * 256 * 128 + 2 * 128) + (128 * 2 + 2)
FCN_OF_SIX = FCN + 8 * 5 * 128 + 129 * 2  # five channels and two classes more

CONVOLUTIONS = 32 * (40 + 20 + 10)  # for each channel that they read
FIRST = CONVOLUTIONS + 32 + 2 * 128  # one channel: no bottleneck
FIRST_OF_SIX = 6 * 32 + 32 * CONVOLUTIONS + 6 * 32 + 2 * 128
FURTHER = 128 * 32 + 32 * CONVOLUTIONS + 128 * 32 + 2 * 128
SHORTCUTS = (128 + 2 * 128) + (128 * 128 + 2 * 128)
INCEPTION = FIRST + 5 * FURTHER + SHORTCUTS + (128 * 2 + 2)
INCEPTION_OF_SIX = FIRST_OF_SIX + 5 * FURTHER + SHORTCUTS + 5 * 128 + (128 * 4 + 4)

KERNELS = 8 + 5 + 3
RESNET = (8 + 5 * 64 + 3 * 64 + 1) * 64 + (8 * 64 + 5 * 128 + 3 * 128 + 64) * 128 + KERNELS * 128 * 128
RESNET += 4 * 2 * (64 + 128 + 128) + (128 * 2 + 2)  # norms, of the shortcuts, too; heads
RESNET_OF_SIX = RESNET + 5 * (8 + 1) * 64 + 129 * 2
TWELVE = Task(num_classes=2, num_heads=1, mean=(0.1,) * 12, std=(0.5,) * 12)
VGG_OF_TWELVE = 9 * (16 + 16 * 16 + 16 * 32 + 32 * 32) + 4 * (16 + 32) + (12 // 4 * 32 * 2 + 2)
LSTM = 4 * 128 * (1 + 128 + 1) + (128 * 2 + 2)  # four gates that read input, state and 1
LSTM_OF_SIX = LSTM + 4 * 128 * 5 + 129 * 2


@pytest.mark.parametrize(
    "build, task, by_hand, stated",
    [
        (fcn, ONE, FCN, 264_450),
        (fcn, SIX, FCN_OF_SIX, 269_828),
        (inception_time, ONE, INCEPTION, 420_450),
        (inception_time, SIX, INCEPTION_OF_SIX, 491_140),
        (series_resnet, ONE, RESNET, 503_106),
        (series_resnet, SIX, RESNET_OF_SIX, 506_244),
        (lstm, ONE, LSTM, 66_818),
        (lstm, SIX, LSTM_OF_SIX, 69_636),
        (series_vgg, TWELVE, VGG_OF_TWELVE, 16_658),
    ],
)
def test_parameter_counts_by_hand(build, task, by_hand, stated):
    model = build(task)
    found = sum(leaf.size for leaf in jax.tree.leaves(shapes(model, series(task))["params"]))
    assert found == by_hand == stated
    if task is (TWELVE if build is series_vgg else ONE):
        assert f"{found:,}".replace(",", " ") in build.__doc__


WIDTHS = {
    fcn: {"stage1": 128, "stage2": 256, "stage3": 128},
    inception_time: {"stage1": 128, "stage2": 128},
    series_resnet: {"stage1": 64, "stage2": 128, "stage3": 128},
    lstm: {"stage1": 128},
}
BUILDS = (*WIDTHS, series_vgg)


@pytest.mark.parametrize("build", BUILDS)
def test_with_frames_every_step_has_a_class_of_its_own(build):
    """The mean over time of the embedding is that of the network without; the last step's logits by hand."""
    x = series(SIX, steps=7)
    whole, model = (build(SIX, frames=frames, **SMALL[build]) for frames in (False, True))
    variables = drawn(model, x)
    got, expected = (jax.jit(lambda v, one=one: one.apply(v, x)[0])(variables) for one in (model, whole))
    assert got.logits.shape == (4, 7, 4) and got.heads.shape == (1, 4, 7, 4)
    scale = np.abs(got.embedding).max()
    np.testing.assert_allclose(got.embedding.mean(axis=1), expected.embedding, atol=1e-5 * scale)
    own = Reference(variables)
    logits = own.heads(np.asarray(got.embedding[:, -1], np.float64))
    np.testing.assert_allclose(got.logits[:, -1], logits, atol=1e-4 * np.abs(logits).max())
    assert {name: value.shape for name, value in got.features.items()} == {
        name: value.shape for name, value in expected.features.items()
    }
    assert model.name.endswith("frames=True)")


@pytest.mark.parametrize("steps", [1, 24])
@pytest.mark.parametrize("build", WIDTHS)
def test_features_of_every_length(build, steps):
    task = SIX._replace(num_heads=3)
    model, x = build(task), series(task, steps=steps)
    got = jax.eval_shape(lambda v: model.apply(v, x)[0], shapes(model, x))
    assert got.logits.shape == (4, 4) and got.heads.shape == (3, 4, 4) and got.embedding.shape == (4, 128)
    assert {name: value.shape for name, value in got.features.items()} == {
        name: (4, steps, 1, width) for name, width in WIDTHS[build].items()
    }


# --- numbers ------------------------------------------------------------------------------------------


def convolved(x, kernel):
    """[B,h,c] by [k,c,d] in float64, padded with zeros: (k-1)//2 before and the others after."""
    steps, before = x.shape[1], (len(kernel) - 1) // 2
    padded = np.pad(x, ((0, 0), (before, len(kernel) - 1 - before), (0, 0)))
    return sum(padded[:, k : k + steps] @ tap for k, tap in enumerate(kernel))


class Reference:
    """The layers of drawn variables by their names, in float64."""

    def __init__(self, variables):
        wide = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), variables)
        self.params, self.stats = wide["params"], wide.get("batch_stats")

    def conv(self, x, *names):
        leaf = self.params
        for name in names:
            leaf = leaf[name]
        return convolved(x, leaf["kernel"])

    def norm(self, x, *names):
        params, stats = self.params, self.stats
        for name in names:
            params, stats = params[name], stats[name]
        return (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5) * params["scale"] + params["bias"]

    def heads(self, embedding):
        return embedding @ self.params["heads"]["kernel"][0] + self.params["heads"]["bias"][0]


def fcn_reference(own, x):
    features = {}
    for stage in (1, 2, 3):
        x = np.maximum(own.norm(own.conv(x, f"conv{stage}"), f"norm{stage}"), 0)
        features[f"stage{stage}"] = x
    return features


def inception_reference(own, x):
    features = {}
    for block in (1, 2):
        before = x
        for module in (1, 2, 3):
            name, stem = f"stage{block}_module{module}", "stem_" if block == module == 1 else ""
            narrow = x if x.shape[-1] == 1 else own.conv(x, name, f"{stem}bottleneck")
            inner = stem if x.shape[-1] == 1 else ""
            around = np.stack(
                [x[:, [max(0, t - 1), t, min(x.shape[1] - 1, t + 1)]].max(1) for t in range(x.shape[1])], 1
            )
            branches = [own.conv(narrow, name, f"{inner}conv{steps}") for steps in (40, 20, 10)]
            joined = np.concatenate([*branches, own.conv(around, name, f"{stem}pool_conv")], -1)
            x = np.maximum(own.norm(joined, name, "norm"), 0)
        shortcut_conv = "stem_shortcut_conv" if block == 1 else f"stage{block}_shortcut_conv"
        shortcut = own.norm(own.conv(before, shortcut_conv), f"stage{block}_shortcut_norm")
        x = np.maximum(x + shortcut, 0)
        features[f"stage{block}"] = x
    return features


def resnet_reference(own, x):
    features = {}
    for stage in (1, 2, 3):
        before = x
        for place in (1, 2, 3):
            x = own.norm(own.conv(x, f"stage{stage}_conv{place}"), f"stage{stage}_norm{place}")
            x = np.maximum(x, 0) if place < 3 else x
        shortcut = before if stage == 3 else own.conv(before, f"stage{stage}_shortcut_conv")
        x = np.maximum(x + own.norm(shortcut, f"stage{stage}_shortcut_norm"), 0)
        features[f"stage{stage}"] = x
    return features


def lstm_reference(own, x):
    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    features = {}
    for stage in (1, 2):
        gates = own.params[f"stage{stage}"]
        state = memory = np.zeros((len(x), len(gates["hi"]["bias"])))
        said = []
        for now in np.moveaxis(x, 1, 0):
            i, f, g, o = (
                now @ gates[f"i{gate}"]["kernel"]
                + state @ gates[f"h{gate}"]["kernel"]
                + gates[f"h{gate}"]["bias"]
                for gate in "ifgo"
            )
            memory = sigmoid(f) * memory + sigmoid(i) * np.tanh(g)
            state = sigmoid(o) * np.tanh(memory)
            said.append(state)
        x = np.stack(said, axis=1)
        features[f"stage{stage}"] = x
    return features


def vgg_reference(own, x):
    features, x = {}, x[..., None]
    for stage in (1, 2):
        for place in (1, 2):
            kernel = own.params[f"stage{stage}_conv{place}"]["kernel"]
            padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
            _, steps, channels, _ = x.shape
            x = sum(
                padded[:, i : i + steps, j : j + channels] @ kernel[i, j] for i in range(3) for j in range(3)
            )
            x = np.maximum(own.norm(x, f"stage{stage}_norm{place}"), 0)
        features[f"stage{stage}"] = x
        pairs = x.shape[2] // 2
        if pairs:
            x = x[:, :, : 2 * pairs].reshape(*x.shape[:2], pairs, 2, -1).max(axis=3)
    return {**features, "left": x.reshape(*x.shape[:2], -1)}


REFERENCES = {
    fcn: fcn_reference,
    inception_time: inception_reference,
    series_resnet: resnet_reference,
    lstm: lstm_reference,
    series_vgg: vgg_reference,
}


@pytest.mark.parametrize("task", [ONE, SIX], ids=["one channel", "six"])
@pytest.mark.parametrize("build, reference", REFERENCES.items())
def test_equal_to_numpy(build, reference, task):
    model, x = build(task, **SMALL[build]), series(task)
    variables = drawn(model, x)
    got = jax.jit(lambda v: model.apply(v, x)[0])(variables)
    own = Reference(variables)
    steps = (np.asarray(x[:, :, 0], np.float64) - task.mean) / task.std
    features = reference(own, steps)
    embedding = list(features.values())[-1].mean(axis=1)
    features.pop("left", None)
    for name, expected in features.items():
        scale, found = np.abs(expected).max(), got.features[name]
        found = found if expected.ndim == 4 else found[:, :, 0]
        np.testing.assert_allclose(found, expected, atol=1e-5 * scale, err_msg=name)
    np.testing.assert_allclose(got.embedding, embedding, rtol=1e-4, atol=1e-4 * np.abs(embedding).max())
    logits = own.heads(embedding)
    np.testing.assert_allclose(got.logits, logits, atol=1e-4 * np.abs(logits).max())
    assert list(got.features) == list(features)


@pytest.mark.parametrize("build", SMALL)
def test_all_products_but_the_heads_are_of_the_dtype(build):
    x = series()
    variables = drawn(build(ONE, **SMALL[build]), x)
    product = r"(\w+)\[[\d,]+\] = " + ("dot_general" if build is lstm else "conv_general_dilated")
    for dtype, short in (("float32", "f32"), ("bfloat16", "bf16")):
        model = build(ONE, dtype=dtype, **SMALL[build])
        text = str(jax.make_jaxpr(lambda v, model=model: model.apply(v, x)[0])(variables))
        found = re.findall(product, text)
        assert set(found[:-1] if build is lstm else found) == {short}


# --- errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("build", SMALL)
def test_a_picture_is_one_line(build):
    with pytest.raises(UserError, match="images of 8x9: expected time series, images of width 1") as caught:
        shapes(build(ONE), jnp.zeros((1, 8, 9, 1)))
    assert "\n" not in str(caught.value) and str(caught.value).startswith(build.__name__)


@pytest.mark.parametrize(
    "build, arguments, message",
    [
        (fcn, {"widths": (8, 8)}, r"fcn.widths = \(8, 8\): expected three of them"),
        (fcn, {"widths": 8}, "fcn.widths = 8: expected a tuple of whole numbers"),
        (fcn, {"dtype": "float16"}, "fcn.dtype = 'float16': expected float32 or bfloat16"),
        (inception_time, {"depth": 4}, "inception_time.depth = 4: expected a multiple of 3, such as 6"),
        (inception_time, {"depth": 0}, "inception_time.depth = 0: expected a multiple of 3"),
        (inception_time, {"width": 0}, "inception_time.width = 0: expected a whole number >= 1"),
        (inception_time, {"dtype": None}, "inception_time.dtype = None"),
        (series_resnet, {"widths": ()}, r"series_resnet.widths = \(\): expected one of them at least"),
        (series_resnet, {"dtype": "int8"}, "series_resnet.dtype = 'int8'"),
        (lstm, {"widths": (0,)}, r"lstm.widths = \(0,\): expected a tuple of whole numbers >= 1"),
        (lstm, {"widths": ()}, r"lstm.widths = \(\): expected one of them at least"),
        (series_vgg, {"widths": ()}, r"series_vgg.widths = \(\): expected one of them at least"),
        (fcn, {"frames": 1}, "fcn.frames = 1: expected True or False"),
    ],
)
def test_arguments_out_of_range_are_one_line(build, arguments, message):
    with pytest.raises(UserError, match=message) as caught:
        build(ONE, **arguments)
    assert "\n" not in str(caught.value)
