"""A teacher that is trained with branches of its student, which can follow it from each of its stages."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from mtkd_jax.models import layers, stages
from mtkd_jax.system.spelling import hint
from mtkd_jax.types import Array, Model, Outputs, PyTree, UserError

BRANCHES = "student_branches"  # whose variables stand under this name, beside the teacher's own


class Transform(nn.Module):
    """ReLU BN conv_1x1 of a map [B,h,w,d] that is brought to the size of another, bilinearly."""

    shape: tuple[int, int, int]  # of the other

    @nn.compact
    def __call__(self, x: Array, train: bool) -> Array:
        height, width, depth = self.shape
        x = jax.image.resize(x, (len(x), height, width, x.shape[-1]), "linear")
        x = nn.Dense(depth, use_bias=False, kernel_init=layers.HE, name="conv")(x)
        return nn.relu(layers.batch_norm(x, train, name="norm"))


@dataclasses.dataclass(frozen=True)
class StudentFriendly(Model):
    """A teacher and, while it is trained, a branch after some of its stages; made by `with_branches`.

    A branch is a `Transform` of the teacher's map and behind it the stages of the student that follow. What
    is deployed is the teacher, and in evaluation this says what the teacher says. In training `logits` [B,C]
    are the teacher's, and `heads` [1+n,B,C] the teacher's and those of n branches.
    """

    teacher: Model = None  # type: ignore[assignment]
    student: Model = None  # type: ignore[assignment]
    branches: tuple[tuple[str, tuple[int, int, int]], ...] = ()  # a stage, and what enters the student's next

    @property
    def deployed(self) -> Model:
        """The teacher, whose variables `own_variables` are."""
        return self.teacher

    def stage_of(self, name: str) -> str:
        """The teacher's; of branches "", so that they learn as fast as heads do."""
        return "" if name == BRANCHES else super().stage_of(name)

    def init(self, key: Array, image: Array) -> dict[str, PyTree]:
        """Variables for images [B,h,w,c]: the teacher's as it begins with this key, and the branches'."""
        variables = self.teacher.init(key, image)
        outputs, _ = jax.eval_shape(self.teacher.apply, variables, image)
        for number, (stage, shape) in enumerate(self.branches, start=1):
            of_transform, of_tail = jax.random.split(jax.random.fold_in(key, number))
            tail = stages.tail_after(self.student, stage, image.shape[1:])
            blank = jnp.zeros(outputs.features[stage].shape, jnp.float32)
            drawn = {
                "transform": Transform(shape).init(of_transform, blank, False),
                "tail": stages.split(tail, tail.init(of_tail, image))[0],
            }
            variables = _with_branch(variables, stage, drawn)
        return variables

    def apply(
        self, variables: PyTree, image: Array, *, train: bool = False, key: Array | None = None
    ) -> tuple[Outputs, PyTree]:
        """As of the teacher; in training with what the branches say as further heads."""
        if not train:
            outputs, _ = self.teacher.apply(own_variables(variables), image)
            return outputs, {kind: of for kind, of in variables.items() if kind != "params"}
        return self.apply_whole(variables, image, train=True, key=key)

    def apply_whole(
        self, variables: PyTree, image: Array, *, train: bool = False, key: Array | None = None
    ) -> tuple[Outputs, PyTree]:
        """With what the branches say as further heads, be it in training or as in evaluation."""
        outputs, state = self.teacher.apply(own_variables(variables), image, train=train, key=key)
        said = [outputs.logits]
        for number, (stage, shape) in enumerate(self.branches, start=1):
            own_key = None if key is None else jax.random.fold_in(key, number)
            own = {part: _of_branch(variables, stage, part) for part in ("transform", "tail")}
            x, of_transform = Transform(shape).apply(
                own["transform"], outputs.features[stage], train, mutable=["batch_stats"]
            )
            tail = stages.tail_after(self.student, stage, image.shape[1:])
            branch, of_tail = tail.apply(own["tail"], x, train=train, key=own_key)
            said.append(branch.logits)
            state = _with_branch(state, stage, {"transform": of_transform, "tail": of_tail})
        return dataclasses.replace(outputs, heads=jnp.stack(said)), state


def with_branches(
    teacher: Model, student: Model, image: jax.ShapeDtypeStruct, after: tuple[str, ...] = ()
) -> StudentFriendly:
    """A teacher with a branch of the student after each of these stages, for images like [1,h,w,c].

    All stages of blocks that both have, and behind which the student has more than its heads, unless they are
    named. Raises UserError where there is none, for others, and for a teacher that is frozen in part.
    """
    if teacher.trainable:
        raise UserError(f"{teacher.name} is frozen in part; a teacher with branches must be trained whole")
    features = stages.shapes(teacher, image)[1].features
    entering = stages.shapes(student, image)[0] if student.stages else {}
    possible = {
        stage: entering[behind].shape[1:]
        for stage, behind in zip(student.stages, student.stages[1:])
        if stage.startswith("stage") and stage in features and behind != student.stages[-1]
        if getattr(entering.get(behind), "ndim", 0) == 4
    }
    for stage in after:
        if stage not in possible:
            raise UserError(
                f"{student.name} cannot branch from {teacher.name} after {stage!r}{hint(stage, possible)}"
            )
    if not possible:
        raise UserError(
            f"{student.name} cannot branch from {teacher.name}: both must name a stage of blocks behind "
            "which the student has more than its heads, as resnet and cnn do"
        )
    own = {field.name: getattr(teacher, field.name) for field in dataclasses.fields(Model)}
    own["name"] = f"{teacher.name} with branches of {student.name}"
    branches = tuple((stage, shape) for stage, shape in possible.items() if stage in (after or possible))
    return StudentFriendly(**own, teacher=teacher, student=student, branches=branches)


def own_variables(variables: PyTree) -> PyTree:
    """Those of the teacher alone."""
    own = {kind: {n: leaf for n, leaf in of.items() if n != BRANCHES} for kind, of in variables.items()}
    return {kind: of for kind, of in own.items() if of}


def _with_branch(variables: PyTree, stage: str, parts: PyTree) -> PyTree:
    """The variables with those of a branch, {part: {kind: ...}}."""
    found = {kind: dict(of) for kind, of in variables.items()}
    for part, of_part in parts.items():
        for kind, leaves in of_part.items():
            of_kind = found.setdefault(kind, {})
            branches = of_kind.get(BRANCHES, {})
            of_kind[BRANCHES] = {**branches, stage: {**branches.get(stage, {}), part: leaves}}
    return found


def _of_branch(variables: PyTree, stage: str, part: str) -> PyTree:
    """The variables {kind: ...} of one part of a branch."""
    places = {kind: of.get(BRANCHES, {}).get(stage, {}) for kind, of in variables.items()}
    return {kind: of[part] for kind, of in places.items() if part in of}
