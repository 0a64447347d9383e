"""A teacher with branches of its student: what a branch is by hand, and which networks can have one."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax.addresses import build_model
from mtkd_jax.models import friendly, stages
from mtkd_jax.types import Task, UserError

TASK = Task(5, 1, (0.5,), (0.5,))
TEACHER = build_model("cnn(widths=(4, 4), dense=4, batch_norm=True)", TASK)
STUDENT = build_model("cnn(widths=(2, 3), dense=4)", TASK)
KEY = jax.random.key(0)
IMAGE = jax.random.uniform(jax.random.key(1), (6, 8, 8, 1))


def test_a_branch_is_a_transform_and_the_later_stages_of_the_student():
    one = friendly.with_branches(TEACHER, STUDENT, IMAGE[:1], after=("stage2",))
    assert one.branches == (("stage2", (2, 2, 3)),)
    model = friendly.with_branches(TEACHER, STUDENT, IMAGE[:1])
    assert model.branches == (("stage1", (4, 4, 2)), ("stage2", (2, 2, 3)))

    def all_of_it(key):
        variables = model.init(key, IMAGE)
        outputs, state = model.apply(variables, IMAGE, train=True)
        own = friendly.own_variables(variables)
        plain, of_plain = TEACHER.apply(own, IMAGE, train=True)
        tails = []
        for stage, _ in model.branches:
            branch = variables["params"][friendly.BRANCHES][stage]
            x = plain.features[stage] @ branch["transform"]["conv"]["kernel"]
            mean, var = (getattr(x, which)(axis=(0, 1, 2), keepdims=True) for which in ("mean", "var"))
            x = jnp.maximum((x - mean) / jnp.sqrt(var + 1e-5), 0.0)
            tail = stages.tail_after(STUDENT, stage, (8, 8, 1))
            tails.append(tail.apply({"params": branch["tail"]}, x, train=True)[0].logits)
        evaluated = model.apply(variables, IMAGE)[0].logits, TEACHER.apply(own, IMAGE)[0].logits
        begun = own, TEACHER.init(key, IMAGE)
        return outputs, [plain.logits, *tails], (friendly.own_variables(state), of_plain), evaluated, begun

    once = jax.jit(all_of_it, compiler_options={"xla_backend_optimization_level": 0})
    outputs, said, *pairs = once(KEY)
    np.testing.assert_array_equal(outputs.logits, outputs.heads[0])
    for head, expected in zip(outputs.heads, said, strict=True):
        np.testing.assert_allclose(head, expected, atol=2e-4)
    for found, expected in pairs:  # statistics, evaluation and beginning are the teacher's
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), found, expected)


@pytest.mark.parametrize("shape", [(2, 2, 3), (7, 7, 3)])
def test_a_map_is_brought_to_the_size_of_the_student(shape):
    transform = friendly.Transform(shape)
    said = jax.eval_shape(lambda key: transform.init_with_output(key, jnp.ones((6, 4, 4, 2)), False), KEY)
    assert said[0].shape == (6, *shape)


@pytest.mark.parametrize(
    "teacher, student, after, expected",
    [
        (TEACHER, "mlp", (), "mlp cannot branch from"),
        (
            build_model("mlp", TASK),
            "cnn(widths=(2, 3), dense=4)",
            ("stage3",),
            "after 'stage3'; did you mean",
        ),
        (TEACHER, "resnet(depth=8)", ("stage3",), "after 'stage3'"),
    ],
)
def test_what_cannot_branch_is_one_line(teacher, student, after, expected):
    with pytest.raises(UserError) as error:
        friendly.with_branches(teacher, build_model(student, TASK), IMAGE[:1], after)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_branches_are_of_no_stage_and_all_else_of_the_teachers():
    model = friendly.with_branches(TEACHER, STUDENT, IMAGE[:1])
    assert [stages.depth_of(model, name) for name in (friendly.BRANCHES, "heads", "conv1")] == [0, 0, 3]
