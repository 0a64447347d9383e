"""A class for every pixel: shapes, what each pixel can see, and where the network is cut."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax.models import stages
from mtkd_jax.models.unet import unet
from mtkd_jax.types import Task, UserError

TASK = Task(num_classes=3, num_heads=2, mean=(0.4,), std=(0.3,))


def test_shapes_of_maps_logits_and_embedding():
    model = unet(TASK, width=2, depth=3)
    image = jnp.zeros((2, 8, 12, 1))
    outputs = jax.eval_shape(lambda key: model.apply(model.init(key, image), image)[0], jax.random.key(0))
    assert outputs.logits.shape == (2, 96, 3) and outputs.heads.shape == (2, 2, 96, 3)
    assert outputs.embedding.shape == (2, 96, 2)
    shapes = {name: one.shape[1:] for name, one in outputs.features.items()}
    assert shapes == {
        "stage1": (8, 12, 2),
        "stage2": (4, 6, 4),
        "stage3": (2, 3, 8),
        "up2": (4, 6, 4),
        "up1": (8, 12, 2),
    }
    assert model.stages == ("stage1", "stage2", "stage3", "up2", "up1", "heads")


def test_logits_are_of_pixels_row_after_row():
    """With one size of map a pixel sees two to each side of it: another one is changed by nothing else."""
    model = unet(TASK, width=2, depth=1)
    image = jax.random.uniform(jax.random.key(1), (1, 8, 10, 1))
    variables = model.init(jax.random.key(0), image)
    say = lambda image: np.asarray(model.apply(variables, image)[0].logits).reshape(8, 10, 3)  # noqa: E731
    changed = np.abs(say(image) - say(image.at[0, 2, 7].add(1.0))).max(axis=-1) > 0
    rows, columns = np.nonzero(changed)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (0, 4, 5, 9)


def test_every_variable_has_a_stage():
    model = unet(TASK, width=2, depth=3)
    params = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))["params"]
    assert {stages.depth_of(model, name) for name in params} <= set(range(6))
    assert {model.stage_of(name) for name in params} == set(model.stages)


@pytest.mark.parametrize(
    "arguments, why",
    [({"width": 0}, "unet.width = 0"), ({"depth": 0}, "unet.depth = 0"), ({"dtype": "int8"}, "unet.dtype")],
)
def test_arguments_out_of_range_are_refused(arguments, why):
    with pytest.raises(UserError, match=why):
        unet(TASK, **arguments)


def test_images_that_cannot_be_halved_are_refused():
    with pytest.raises(
        UserError, match=r"^unet.depth = 3: images of 8x10 cannot be halved 2 times: .* 4 divides"
    ):
        unet(TASK).init(jax.random.key(0), jnp.zeros((1, 8, 10, 1)))
