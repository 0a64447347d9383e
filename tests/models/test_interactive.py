"""A student whose stages give way to a teacher's: by hand where none or all do, and who may stand in."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax.addresses import build_model
from mtkd_jax.models import stages
from mtkd_jax.models.interactive import SWAPPED, TEACHERS, swapping
from mtkd_jax.types import Task, UserError

TASK = Task(5, 1, (0.5,), (0.5,))
STUDENT = build_model("cnn(widths=(2, 3), dense=4, batch_norm=True)", TASK)
TEACHER = build_model("cnn(widths=(2, 3), dense=6, kernel_size=5)", TASK)
IMAGE = jax.random.uniform(jax.random.key(1), (6, 8, 8, 1))


@pytest.fixture(scope="module")
def both():
    """Of a student of whose stages none, or all, give way to one of two teachers, under eight keys."""

    def all_of_it(key):
        own = STUDENT.init(key, IMAGE)
        theirs = jax.vmap(TEACHER.init, (0, None))(jax.random.split(key), IMAGE)

        def run(swapped, key):
            model = swapping(STUDENT, TEACHER, IMAGE[:1])

            def total(params):
                known = {**own, "params": params, TEACHERS: theirs, SWAPPED: {"share": swapped}}
                outputs, state = model.apply(known, IMAGE, train=True, key=key)
                return (outputs.logits**2).sum(), (outputs, state)

            (_, said), grads = jax.value_and_grad(total, has_aux=True)(own["params"])
            return *said, grads

        none = run(0.0, key)
        everything = jax.lax.map(lambda key: run(1.0, key), jax.random.split(key, 8))
        plain = STUDENT.apply(own, IMAGE, train=True)
        tail = stages.tail_after(STUDENT, "stage2", (8, 8, 1))
        maps = jax.vmap(lambda one: TEACHER.apply(one, IMAGE)[0].features["stage2"])(theirs)
        behind = jax.lax.map(lambda x: tail.apply(own, x, train=True)[0].logits, maps)
        return none, plain, everything, behind

    return jax.jit(all_of_it, compiler_options={"xla_backend_optimization_level": 0})(jax.random.key(0))


def test_where_no_stage_gives_way_it_is_the_student(both):
    (outputs, state, _), (expected, of_plain), *_ = both
    for found, wanted in ((outputs, expected), (state, of_plain)):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, wanted)


def test_where_all_give_way_the_student_reads_what_a_teacher_makes_of_the_image(both):
    """Of one of the two, both of whom are drawn; what gives way has no gradient, and what is left has."""
    *_, (outputs, _, grads), behind = both
    apart = np.abs(np.asarray(outputs.logits)[:, None] - np.asarray(behind)[None]).max(axis=(2, 3))
    assert (apart.min(axis=1) < 1e-4).all() and (apart.max(axis=1) > 1e-2).all()
    assert set(apart.argmin(axis=1)) == {0, 1}
    sizes = {
        name: max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(of)) for name, of in grads.items()
    }
    assert {name for name, size in sizes.items() if size > 0} == {"dense", "dense_norm", "heads"}


def test_with_teachers_it_is_not_trained_without_a_key():
    model = swapping(STUDENT, TEACHER, IMAGE[:1])
    own = jax.eval_shape(STUDENT.init, jax.random.key(0), IMAGE)
    with pytest.raises(ValueError, match="with stages of cnn.*: no key; which stages give way"):
        model.apply({**own, TEACHERS: {}, SWAPPED: {}}, IMAGE, train=True)


def test_without_teachers_and_in_evaluation_it_is_the_student():
    model = swapping(STUDENT, TEACHER, IMAGE[:1])
    own = jax.eval_shape(STUDENT.init, jax.random.key(0), IMAGE)
    for train in (True, False):
        found, expected = (
            jax.make_jaxpr(lambda v, m=m, t=train: m.apply(v, IMAGE, train=t))(own) for m in (model, STUDENT)
        )
        assert str(found) == str(expected)
    assert model.deployed is STUDENT


@pytest.mark.parametrize(
    "student, teacher, expected",
    [
        ("mlp", "mlp", "mlp has no stages of blocks that could be another's"),
        (
            "cnn(widths=(2, 4), dense=4)",
            "cnn(widths=(2, 3), dense=4)",
            "stage2 of cnn(widths=(2, 4), dense=4) makes 2x",
        ),
        (
            "cnn(widths=(2, 3), dense=4)",
            "cnn(widths=(2,), dense=4)",
            "of cnn(widths=(2,), dense=4) is not there",
        ),
        ("tests.staged:staged(trainable='heads')", "tests.staged:staged", "is frozen in part"),
    ],
)
def test_who_cannot_stand_in_is_told_in_one_line(student, teacher, expected):
    with pytest.raises(UserError) as error:
        swapping(build_model(student, TASK), build_model(teacher, TASK), IMAGE[:1])
    assert expected in str(error.value) and "\n" not in str(error.value)
