"""Detectors: the stages of a network that they read, and the boxes that their head says."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax import addresses
from mtkd_jax.models import detector, stages
from mtkd_jax.types import Task, UserError

TASK = Task(num_classes=4, num_heads=2, mean=(0.4,), std=(0.3,))
IMAGE = jax.random.uniform(jax.random.key(1), (3, 16, 8, 1))
ADDRESS = "detector(network='resnet(depth=8)', after='stage2', channels=6)"


def build(address=ADDRESS):
    return addresses.build_model(address, TASK)


def variables_of(model):
    return jax.jit(model.init)(jax.random.key(0), IMAGE)


def test_it_speaks_of_every_place():
    """After stage 2 of a resnet images of 16x8 are 8x4 places."""
    model = build()
    outputs, _ = jax.jit(model.apply)(variables_of(model), IMAGE)
    assert outputs.logits.shape == (3, 32, 4) and outputs.heads.shape == (2, 3, 32, 4)
    assert outputs.beside["boxes"].shape == (3, 32, 4) and outputs.embedding.shape == (3, 32, 6)
    assert {name: x.shape[1:3] for name, x in outputs.features.items()} == {
        "stem": (16, 8),
        "stage1": (16, 8),
        "stage2": (8, 4),
    }
    for leaf in jax.tree.leaves(outputs):
        assert leaf.dtype == jnp.float32


def test_what_is_behind_the_stage_is_not_there_and_all_else_is_called_as_in_the_network():
    model, network = build(), addresses.build_model("resnet(depth=8)", TASK)
    own, whole = variables_of(model), jax.eval_shape(network.init, jax.random.key(0), IMAGE)
    kept = {name for name in whole["params"] if network.stage_of(name) in ("stem", "stage1", "stage2")}
    assert set(own["params"]) == {*kept, "heads"}
    assert model.stages == ("stem", "stage1", "stage2", "heads")
    assert [model.stage_of(name) for name in ("stem_conv", "stage2_block1", "stage3_block1", "heads")] == [
        "stem",
        "stage2",
        "",
        "heads",
    ]


def test_its_features_are_those_of_the_network():
    model, network = build(), addresses.build_model("resnet(depth=8)", TASK)
    own, whole = variables_of(model), jax.jit(network.init)(jax.random.key(0), IMAGE)
    joined = {kind: {**whole[kind], **own[kind]} for kind in whole}
    joined["params"]["heads"] = whole["params"]["heads"]
    of_network = jax.jit(network.apply)(joined, IMAGE)[0].features
    for name, x in jax.jit(model.apply)(own, IMAGE)[0].features.items():
        np.testing.assert_allclose(x, of_network[name], atol=1e-5)


def test_a_distance_is_counted_from_the_middle_of_the_place():
    """Of 2 rows and 4 columns: one place wide to each side, and half a place the other way."""
    distances = jnp.ones((1, 8, 4))
    found = np.asarray(detector._corners(distances, 2, 4))[0]
    np.testing.assert_allclose(found[0], [-0.5 / 4, -0.5 / 2, 1.5 / 4, 1.5 / 2], rtol=1e-6)
    np.testing.assert_allclose(found[7], [2.5 / 4, 0.5 / 2, 4.5 / 4, 2.5 / 2], rtol=1e-6)
    sides = jnp.tile(jnp.array([0.0, 0.0, -0.5, 2.0]), (1, 8, 1))
    np.testing.assert_allclose(detector._corners(sides, 2, 4)[0, 0], [1 / 8, 1 / 4, 0, 2.5 / 2], atol=1e-7)


def test_a_box_may_end_before_the_middle_of_its_place_but_by_no_more_than_one():
    model = build()
    variables = variables_of(model)
    variables["params"]["heads"]["boxes"]["bias"] = jnp.full(4, -30.0)
    boxes = np.asarray(jax.jit(model.apply)(variables, IMAGE)[0].beside["boxes"])[0]
    np.testing.assert_allclose(boxes[0], [1.5 / 4, 1.5 / 8, -0.5 / 4, -0.5 / 8], atol=1e-3)


def test_it_can_be_frozen_and_cut_like_the_network():
    model = build(
        "detector(network=\"imagenet_resnet(stem='cifar', trainable='stage1')\", after='stage1', channels=6)"
    )
    variables = jax.jit(model.init)(jax.random.key(0), IMAGE)
    assert model.frozen_stages == ("stem",)
    entering = stages.entering(model, variables, IMAGE)
    tail = stages.tail(model, IMAGE.shape[1:])
    whole, _ = jax.jit(model.apply)(variables, IMAGE)
    np.testing.assert_allclose(tail.apply(variables, entering)[0].logits, whole.logits, atol=1e-5)


def test_every_part_of_it_learns():
    model = build("detector(network='cnn(widths=(3, 4), dense=8)', channels=6)")
    variables = variables_of(model)

    def loss(params):
        outputs, _ = model.apply({**variables, "params": params}, IMAGE, train=True)
        return (outputs.logits**2).mean() + (outputs.beside["boxes"] ** 2).mean()

    grads = jax.jit(jax.grad(loss))(variables["params"])
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert float(jnp.abs(grad).max()) > 0, jax.tree_util.keystr(path)


def test_its_address_has_one_spelling_and_holds_that_of_the_network():
    canonical = addresses.canonical("model", "detector(network='resnet( depth=20 )', depth=1)", "model.name")
    assert canonical == "detector:resnet"
    assert build(ADDRESS).name == ADDRESS
    assert build("detector:resnet").name == "detector(network='resnet')"


@pytest.mark.parametrize(
    "address, said",
    [
        ("detector(network='resnett')", "there is no model 'resnett'.*did you mean 'resnet'"),
        ("detector", "detector needs network="),
        ("detector(network='mlp')", "mlp names no stages"),
        ("detector(network='resnet', after='stage4')", "expected one of stem, stage1, stage2, stage3"),
        ("detector(network='resnet', channels=0)", "detector.channels = 0"),
        ("detector(network=3)", "must be of type Model"),
        ("detector(network=\"imagenet_resnet(trainable='stage4')\", after='stage2')", "is frozen"),
    ],
)
def test_bad_addresses_are_one_line(address, said):
    with pytest.raises(UserError, match=said) as raised:
        build(address)
    assert "\n" not in str(raised.value)


def test_a_stage_without_a_map_is_a_user_error():
    model = build("detector(network='cnn(widths=(4, 4), dense=8)', after='dense')")
    with pytest.raises(UserError, match="'dense': what is there is no map of places"):
        jax.eval_shape(model.init, jax.random.key(0), IMAGE)
