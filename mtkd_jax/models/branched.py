"""Networks that share their first stages: one stem, and from there on a branch for each.

The branches are the peers of a cohort: `Branched` says of all of them what each would say as a network of its
own, and what is deployed is one of these, whole: the stem with its branch.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from mtkd_jax.models import stages
from mtkd_jax.models.layers import ENTERING
from mtkd_jax.system.spelling import nearest
from mtkd_jax.types import Array, Model, Outputs, PyTree, UserError

MOST = "most"


@dataclasses.dataclass(frozen=True)
class Branched(Model):
    """P networks of one architecture with one stem; made by `branched`.

    Variables are called as those of one network; those behind the stem lead with an axis P. So do all leaves
    of `Outputs`: logits [P,B,C], heads [P,H,B,C], features [P,B,h,w,d], those of the stem P times the same;
    "entering" is what enters the branches.
    """

    one: Model = None  # type: ignore[assignment]  # the network of each branch
    num_branches: int = 2
    after: str = ""  # the last stage that is shared
    rescaled: bool = False  # the gradient that enters the stem is the mean over branches, not their sum

    @property
    def deployed(self) -> Model:
        """The network of one branch."""
        return self.one

    @property
    def shared(self) -> tuple[str, ...]:
        """The stages of the stem."""
        return self.stages[: self.stages.index(self.after) + 1]

    def init(self, key: Array, image: Array) -> dict[str, PyTree]:
        """Variables for images [B,h,w,c]; stem and first branch are what `one` begins with from this key."""
        keys = [key, *(jax.random.fold_in(key, branch) for branch in range(1, self.num_branches))]
        drawn = [self.one.init(own, image) for own in keys]
        stems, branches = zip(*map(self.split, drawn))
        return stages.join(jax.tree.map(lambda *leaves: jnp.stack(leaves), *branches), stems[0])

    def apply(
        self, variables: PyTree, image: Array, *, train: bool = False, key: Array | None = None
    ) -> tuple[Outputs, PyTree]:
        """Of images [B,h,w,c] that all branches see, or [P,B,h,w,c] of which each sees its own."""
        stem, branches = self.split(variables)
        own_views = image.ndim == 5
        seen = image.reshape(-1, *image.shape[2:]) if own_views else image
        keys = jax.random.split(jax.random.key(0) if key is None else key, self.num_branches + 1)
        first = jax.tree.map(lambda leaf: leaf[0], branches)  # its values are not used: XLA leaves them out
        entering, features, new_stem = self._run_stem(stages.join(first, stem), seen, train, keys[-1])
        features[ENTERING] = entering
        if own_views:
            split_views = lambda x: x.reshape(self.num_branches, -1, *x.shape[1:])  # noqa: E731
            entering, features = jax.tree.map(split_views, (entering, features))
        else:
            of_all = lambda x: jnp.broadcast_to(x, (self.num_branches, *x.shape))  # noqa: E731
            features = jax.tree.map(of_all, features)
        if self.rescaled:
            entering = jax.tree.map(lambda x: _scale_gradient(x, 1.0 / self.num_branches), entering)
        tail = stages.tail_after(self.one, self.after, image.shape[-3:])

        def run(branch: tuple) -> tuple[Outputs, PyTree]:
            own, view, key = branch
            x = view if own_views else entering
            outputs, state = tail.apply(stages.join(own, stem), x, train=train, key=key)
            return outputs, self.split(state)[1]

        # One after the other: side by side (vmap), their kernels would be those of a grouped convolution.
        outputs, state = jax.lax.map(run, (branches, entering if own_views else None, keys[:-1]))
        outputs = dataclasses.replace(outputs, features={**outputs.features, **features})
        return outputs, stages.join(state, new_stem)

    def branch(self, variables: PyTree, number: int) -> PyTree:
        """Variables of `one`: the stem and a branch, counted from 0."""
        stem, branches = self.split(variables)
        return stages.join(jax.tree.map(lambda leaf: leaf[number], branches), stem)

    def split(self, variables: PyTree) -> tuple[PyTree, PyTree]:
        """(the stem's, the branches'), the same collections in both."""
        return stages.divide(self.one, variables, self.shared)

    def _run_stem(
        self, variables: PyTree, image: Array, train: bool, key: Array
    ) -> tuple[Array, dict[str, Array], PyTree]:
        """What enters the branches, the stem's features, and its state."""
        told, outputs, state = stages.entering_all(self.one, variables, image, train=train, key=key)
        entering = told.get(self.stages[self.stages.index(self.after) + 1])
        if entering is None:
            raise UserError(f"{self.one.name} cannot be cut after {self.after}; take whole networks")
        features = {name: value for name, value in outputs.features.items() if name in self.shared}
        return entering, features, self.split(state)[0]


def branched(one: Model, num_branches: int, after: str = MOST, rescaled: bool = False) -> Branched:
    """P = `num_branches` networks that share the stages of `one` up to and with `after`.

    "most" shares all before the last stage of blocks, and the first stage where that is the last. With
    `rescaled` the stem has the mean of the branches' gradients and not their sum. Raises UserError where the
    network names no stages or not this one, cannot be cut there, or where nothing would be left to branch.
    """
    if not one.stages:
        raise UserError(f"{one.name} names no stages, so nothing of it can be shared; take whole networks")
    of_blocks = [place for place, stage in enumerate(one.stages) if stage.startswith("stage")]
    if after == MOST:
        after = one.stages[max(of_blocks[-1] - 1, 0) if of_blocks else 0]
    if after not in one.stages[:-1]:
        close = nearest(after, one.stages[:-1])
        suggested = f", did you mean {close!r}?" if close else ""
        raise UserError(
            f"{one.name} cannot branch after {after!r}{suggested}; it can after {', '.join(one.stages[:-1])}"
        )
    if one.trainable or one.pretrained:
        raise UserError(f"{one.name} is pretrained or frozen in part; a stem that is shared begins anew")
    own = {field.name: getattr(one, field.name) for field in dataclasses.fields(Model)}
    own["name"] = f"{one.name} x {num_branches} after {after}"
    return Branched(**own, one=one, num_branches=num_branches, after=after, rescaled=rescaled)


def _scale_gradient(x: Array, factor: float) -> Array:
    return factor * x + jax.lax.stop_gradient((1.0 - factor) * x)
