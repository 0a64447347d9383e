"""A student some of whose stages are, from batch to batch, those of a teacher."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mtkd_jax.models import stages
from mtkd_jax.types import Array, Model, Outputs, PyTree, UserError

# Collections in which, in training, variables [K,...] of the teachers stand, and {"share": []}, with which
# probability a stage gives way.
TEACHERS, SWAPPED = "teachers", "swapped"


@dataclasses.dataclass(frozen=True)
class Interactive(Model):
    """A student whose stages of blocks give way to a teacher's in training; made by `swapping`.

    Each of `blocks` does for a whole batch with the probability that stands in `SWAPPED`, drawn apart from
    the others, and all to one of the K teachers, drawn anew; parts of a batch on several devices draw apart.
    A stage that gives way has no gradient, and those before it have theirs through the teacher's, which is as
    in evaluation. Variables are the student's, and `TEACHERS` and `SWAPPED` beside them; without these, and
    in evaluation, it is the student.
    """

    student: Model = None  # type: ignore[assignment]
    teacher: Model = None  # type: ignore[assignment]
    blocks: tuple[str, ...] = ()

    @property
    def deployed(self) -> Model:
        """The student."""
        return self.student

    def init(self, key: Array, image: Array) -> dict[str, PyTree]:
        """The student's variables."""
        return self.student.init(key, image)

    def apply(
        self, variables: PyTree, image: Array, *, train: bool = False, key: Array | None = None
    ) -> tuple[Outputs, PyTree]:
        """As of the student; in training, where there are teachers, ValueError without a `key`."""
        own = {kind: of for kind, of in variables.items() if kind not in (TEACHERS, SWAPPED)}
        if not train or TEACHERS not in variables:
            return self.student.apply(own, image, train=train, key=key)
        if key is None:
            raise ValueError(f"{self.name}: no key; which stages give way in training is drawn")
        who_key, which_key, *keys = jax.random.split(key, 2 + len(self.stages))
        number = len(jax.tree.leaves(variables[TEACHERS])[0])
        who = jax.random.randint(who_key, (), 0, number)
        teacher = jax.tree.map(lambda leaf: leaf[who], variables[TEACHERS])
        drawn = jax.random.uniform(which_key, (len(self.blocks),)) < variables[SWAPPED]["share"]
        gives_way = dict(zip(self.blocks, drawn))
        x: PyTree = image
        shape, features = image.shape[1:], {}
        for stage, own_key in zip(self.stages, keys):
            left, state = stages.run_one(self.student, own, stage, x, shape, train=True, key=own_key)
            own = {**own, **state}
            if stage in gives_way:
                of_teacher, _ = stages.run_one(self.teacher, teacher, stage, x, shape)
                left = jnp.where(gives_way[stage], of_teacher.astype(left.dtype), left)
                features[stage] = left.astype(jnp.float32)
            x = left
        outputs = dataclasses.replace(x, features={**x.features, **features})
        return outputs, {kind: of for kind, of in own.items() if kind != "params"}


def swapping(student: Model, teacher: Model, image: jax.ShapeDtypeStruct) -> Interactive:
    """A student whose stages of blocks give way to those of a teacher, for images like [1,h,w,c].

    Raises UserError for networks whose stages cannot be run one by one, where one of them takes and gives
    maps of other shapes in the two, and for a student that is frozen in part.
    """
    if student.trainable:
        raise UserError(f"{student.name} is frozen in part; a student that is swapped must be trained whole")
    blocks = tuple(stage for stage in student.stages if stage.startswith("stage"))
    ours, theirs = (_takes_and_gives(model, image) for model in (student, teacher))
    if not blocks or not ours:
        raise UserError(f"{student.name} has no stages of blocks that could be another's, as resnet has")
    for stage in blocks:
        if ours.get(stage) != theirs.get(stage):
            raise UserError(
                f"{stage} of {student.name} {_in_words(ours.get(stage))}, and of {teacher.name} "
                f"{_in_words(theirs.get(stage))}; must be alike, as in resnets of one width"
            )
    own = {field.name: getattr(student, field.name) for field in dataclasses.fields(Model)}
    own["name"] = f"{student.name} with stages of {teacher.name}"
    return Interactive(**own, student=student, teacher=teacher, blocks=blocks)


Sizes = tuple[tuple[int, ...], tuple[int, ...]]


def _takes_and_gives(model: Model, image: jax.ShapeDtypeStruct) -> dict[str, Sizes]:
    """{stage: (shape of what enters it, of what leaves it)} of an image, where both are one array."""
    entering = stages.shapes(model, image)[0] if model.stages else {}
    arrays = {stage: x.shape[1:] for stage, x in entering.items() if hasattr(x, "shape")}
    pairs = zip(model.stages, model.stages[1:])
    return {a: (arrays[a], arrays[b]) for a, b in pairs if a in arrays and b in arrays}


def _in_words(sizes: Sizes | None) -> str:
    """
    >>> _in_words(((8, 8, 16), (4, 4, 32))), _in_words(None)
    ('makes 4x4x32 of 8x8x16', 'is not there')
    """
    if sizes is None:
        return "is not there"
    takes, gives = ("x".join(map(str, size)) for size in sizes)
    return f"makes {gives} of {takes}"
