"""EfficientNets: published sizes, how images come in, frozen stages, PyTorch's names."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from mtkd_jax.models import layers
from mtkd_jax.models.efficientnet import AROUND_ZERO, efficientnet_b0, efficientnet_lite0
from mtkd_jax.types import Task, UserError

IMAGENET = Task(1000, 1, (0.4,) * 3, (0.3,) * 3)


@pytest.mark.parametrize("build, parameters", [(efficientnet_b0, 5_288_548), (efficientnet_lite0, 4_652_008)])
def test_sizes_are_the_published_ones_and_every_variable_has_a_stage_and_a_name(build, parameters):
    model = build(IMAGENET)
    found = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(found["params"])) == parameters
    paths = flatten_dict(found["params"], sep="/")
    assert {model.stage_of(path.split("/")[0]) for path in paths} == set(model.stages)
    names = {model.module.pytorch_module(path.rpartition("/")[0]) for path in paths}
    assert len(names) == len({path.rpartition("/")[0] for path in paths})
    assert {"_conv_stem", "_blocks.0._project_conv", "_blocks.15._bn2", "_conv_head", "_fc"} <= names


def test_a_network_that_ends_early_is_the_first_stages_of_the_whole():
    task = Task(3, 1, (0.4,) * 3, (0.3,) * 3)
    whole, cut = efficientnet_lite0(task), efficientnet_lite0(task, until="stage1")
    assert cut.stages == ("stem", "stage1", "heads") and cut.module.whole == whole.module
    image = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3))
    variables = jax.tree.map(
        lambda leaf: jnp.full(leaf.shape, 0.1), jax.eval_shape(cut.init, jax.random.key(1), image)
    )
    out, _ = cut.apply(variables, image)
    kernel, bias = (np.asarray(variables["params"]["heads"][name][0]) for name in ("kernel", "bias"))
    embedding = np.asarray(out.features["stage1"], np.float64).mean(axis=(1, 2))
    np.testing.assert_allclose(out.embedding, embedding, atol=1e-5)
    np.testing.assert_allclose(out.logits, embedding @ kernel + bias, atol=1e-5)
    shapes = jax.eval_shape(whole.init, jax.random.key(1), image)["params"]
    for name, leaves in variables["params"].items():
        if name != "heads":
            assert jax.tree.map(jnp.shape, leaves) == jax.tree.map(jnp.shape, shapes[name])
    with pytest.raises(UserError, match=r"until = 'stage8': expected one of stage1.*did you mean 'stage\d'"):
        efficientnet_lite0(task, until="stage8")


def test_images_are_normalised_as_the_weights_know_them_and_grey_ones_repeated():
    task = Task(3, 1, (0.2,), (0.5,))
    assert efficientnet_b0(task).module.task == task
    theirs = efficientnet_b0(task, pretrained="any").module.task
    seen = layers.prepare(jnp.full((1, 4, 4, 1), 0.7), theirs, image_size=8, least=1)
    expected = [(0.7 - 0.485) / 0.229, (0.7 - 0.456) / 0.224, (0.7 - 0.406) / 0.225]
    np.testing.assert_allclose(seen, np.broadcast_to(expected, (1, 8, 8, 3)), rtol=1e-5)
    lite = efficientnet_lite0(task, pretrained="any").module.task
    ends = layers.prepare(jnp.array([0.0, 1.0]).reshape(1, 1, 2, 1), lite, image_size=0, least=1)
    np.testing.assert_allclose(ends[0, 0, :, 0], [-127 / 128, 1.0], rtol=1e-5)
    with pytest.raises(UserError, match="images have 4 channels"):
        layers.prepare(jnp.zeros((1, 4, 4, 4)), theirs, image_size=0, least=1)
    for arguments in (dict(image_size=-1), dict(stem="large"), dict(dtype="float16")):
        with pytest.raises(UserError, match="efficientnet_b0"):
            efficientnet_b0(task, **arguments)


@pytest.mark.slow
def test_logits_are_those_of_pytorch():
    """To 1e-4, by the package that published the weights; runs where it and PyTorch are installed."""
    torch = pytest.importorskip("torch")
    published = pytest.importorskip("efficientnet_lite_pytorch")
    from mtkd_jax.models.pytorch import from_state_dict

    image = np.random.default_rng(0).random((2, 224, 224, 3), np.float32)
    for build, name, (mean, std) in (
        (efficientnet_b0, "efficientnet-b0", layers.IMAGENET),
        (efficientnet_lite0, "efficientnet-lite0", AROUND_ZERO),
    ):
        theirs = published.EfficientNet.from_name(name).eval()
        state = {key: value.numpy() for key, value in theirs.state_dict().items()}
        model = build(IMAGENET, pretrained="any")
        said = jax.jit(lambda v, m=model: m.apply(v, image)[0].logits)(from_state_dict(state, model))
        seen = ((image - np.float32(mean)) / np.float32(std)).transpose(0, 3, 1, 2)
        with torch.no_grad():
            expected = theirs(torch.tensor(seen)).numpy()
        np.testing.assert_allclose(said, expected, atol=1e-4 * np.abs(expected).max())
