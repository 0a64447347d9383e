r"""One network that is trained as K of them: what it says of an image has K heads, a network's each.

When it is trained every member is written out as an ordinary network (`members`), so that what comes after
need not know of it.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from mtkd_jax.models import layers
from mtkd_jax.models.stages import is_kernel
from mtkd_jax.types import Array, Model, Outputs, PyTree, UserError, path_of

KERNEL, HEADS = "kernel", "heads"  # the last name of the path of a kernel, the first of what heads have


@dataclasses.dataclass(frozen=True)
class RankOne(Model):
    r"""K networks with the same kernels but for a factor of rank one each; made by `rank_one`.

    $$W_m = W \circ (r_m s_m^\top), \qquad \text{so that} \qquad x W_m = ((x \circ r_m) W) \circ s_m$$

    Variables: "params" has "shared" {path: W [...,in,out]}, "inward" {path: r [K,in]}, "outward" {path: s
    [K,out]}, and "own", all that is no kernel, [K,...]; so has every other collection. r and s begin with
    random signs, W and all else as in the first network alone. Kernels are those of `stages.is_kernel`; the
    last two axes of each are taken for in and out. Of kernels that have them elsewhere, such as [in,heads,d]
    of attention, the factor is of rank one in those two axes, and the equation as a product holds no more.
    """

    one: Model = None  # type: ignore[assignment]  # the network of each member
    num_members: int = 2

    def init(self, key: Array, image: Array) -> dict[str, PyTree]:
        """Variables for images [B,h,w,c]."""
        drawn = self.one.init(key, image)
        leaves, kernels = flatten_dict(drawn["params"], sep="/"), self._kernels(drawn["params"])
        shared = {path: leaf for path, leaf in leaves.items() if path in kernels}
        own = {path: self._of_all(leaf) for path, leaf in leaves.items() if path not in shared}
        signs = {
            path: [
                jax.random.rademacher(side, (self.num_members, size), jnp.float32)
                for side, size in zip(jax.random.split(jax.random.fold_in(key, number)), kernel.shape[-2:])
            ]
            for number, (path, kernel) in enumerate(shared.items())
        }
        inward, outward = ({path: both[side] for path, both in signs.items()} for side in (0, 1))
        params = {"shared": shared, "inward": inward, "outward": outward, "own": own}
        state = {kind: of for kind, of in drawn.items() if kind != "params"}
        return {"params": params, **jax.tree.map(self._of_all, state)}

    def apply(
        self, variables: PyTree, image: Array, *, train: bool = False, key: Array | None = None
    ) -> tuple[Outputs, PyTree]:
        """Of images [B,h,w,c] that all members see: heads [K,B,C], and the mean of what they predict."""
        keys = jax.random.split(jax.random.key(0) if key is None else key, self.num_members)

        def run(member: tuple[PyTree, Array]) -> tuple[Array, Array, PyTree]:
            own, key = member
            outputs, state = self.one.apply(own, image, train=train, key=key)
            return outputs.logits, outputs.embedding, state

        # One after the other: side by side (vmap), their kernels would be those of a grouped convolution.
        heads, embeddings, state = jax.lax.map(run, (self.members(variables), keys))
        return layers.outputs(embeddings[0], heads, {}), state

    def members(self, variables: PyTree) -> PyTree:
        """Variables [K,...] of the networks `one` that the members are."""
        params = variables["params"]

        def kernel(path: str) -> Array:
            inward, outward, shared = (params[name][path] for name in ("inward", "outward", "shared"))
            factor = inward[:, :, None] * outward[:, None, :]
            return shared[None] * factor.reshape(len(factor), *[1] * (shared.ndim - 2), *factor.shape[1:])

        leaves = {**params["own"], **{path: kernel(path) for path in params["shared"]}}
        return {**variables, "params": unflatten_dict(leaves, sep="/")}

    def _kernels(self, params: PyTree) -> set[str]:
        """The paths of what is shared; UserError where nothing is, for all members would be copies."""
        leaves = jax.tree_util.tree_leaves_with_path(params)
        paths = [path for path, leaf in leaves if is_kernel(path, leaf)]
        if not paths:
            raise UserError(
                f"{self.one.name} has no kernel, a parameter of two axes or more that is no bias, so that "
                "its members by rank one would all be the same; must have one"
            )
        return {path_of(path) for path in paths}

    def _of_all(self, leaf: Array) -> Array:
        return jnp.repeat(jnp.asarray(leaf)[None], self.num_members, axis=0)


def rank_one(one: Model, num_members: int) -> RankOne:
    """K = `num_members` networks of the architecture `one` that share their kernels."""
    _check_is_drawn_anew(one)
    own = {field.name: getattr(one, field.name) for field in dataclasses.fields(Model)}
    own["name"] = f"{num_members} of {one.name} by rank one"
    return RankOne(**own, one=one, num_members=num_members)


@dataclasses.dataclass(frozen=True)
class ManyInputs(Model):
    """A network that is given K images at once and says of each what it is; made by `many_inputs`.

    Its module reads K times the channels and has K heads. In training head m answers for an image of its own:
    the batch stands K times side by side in the channels, each time in another order, but for the share
    `alike` of it. What is told is by image again, so that labels need not know. Otherwise all K are the same.
    """

    one: Model = None  # type: ignore[assignment]  # the ordinary network
    num_members: int = 2
    alike: float = 0.0

    def init(self, key: Array, image: Array) -> dict[str, PyTree]:
        """Variables for images [B,h,w,c]."""
        return super().init(key, jnp.concatenate([image] * self.num_members, axis=-1))

    def apply(
        self, variables: PyTree, image: Array, *, train: bool = False, key: Array | None = None
    ) -> tuple[Outputs, PyTree]:
        """Of images [B,h,w,c]: heads [K,B,C], each on the image that it answers for."""
        order = self._draw_order(key, len(image)) if train and key is not None else None
        views = [image] * self.num_members if order is None else [image[own] for own in order]
        outputs, state = super().apply(variables, jnp.concatenate(views, axis=-1), train=train, key=key)
        heads = outputs.heads
        if order is not None:
            heads = jax.vmap(lambda of_rows, place: of_rows[place])(heads, jnp.argsort(order, axis=1))
        return layers.outputs(outputs.embedding, heads, {}), state

    def _draw_order(self, key: Array, size: int) -> Array:
        """[K,B]: which image each head has in a row; the last rows have the same for all, where they are."""
        num_moved = size - round(self.alike * size)
        keys = jax.random.split(jax.random.fold_in(key, 1), self.num_members)  # dropout has the key itself
        moved = jax.vmap(lambda own: jax.random.permutation(own, num_moved))(keys)
        still = jnp.broadcast_to(jnp.arange(num_moved, size), (self.num_members, size - num_moved))
        return jnp.concatenate([moved, still], axis=1)

    def members(self, variables: PyTree, image: jax.ShapeDtypeStruct) -> PyTree:
        r"""Variables [K,...] of networks `one`, which say of an image [1,h,w,c] what each head says of it.

        $$\sum_m W_m x_m = (\sum_m W_m)\, x \qquad \text{where all } x_m = x$$

        The kernel that reads images is the sum of its K parts, and a member has one of the heads. Raises
        UserError unless exactly one kernel reads images.
        """
        drawn = jax.eval_shape(self.one.init, jax.random.key(0), image)
        wanted, wide = (flatten_dict(of, sep="/") for of in (drawn, variables))
        heads = {path for path in wide if path.split("/")[1] == HEADS}
        read_by = [path for path in wide if path not in heads and wide[path].shape != wanted[path].shape]
        if len(read_by) != 1 or not read_by[0].endswith(f"/{KERNEL}"):
            raise UserError(
                f"{self.one.name} reads images by {', '.join(read_by) or 'no kernel'}; one that is shown "
                "several images must read them by one kernel"
            )

        def of_members(path: str, leaf: Array) -> Array:
            if path in heads:
                return leaf[:, None]
            if path in read_by:
                parts = leaf.reshape(*leaf.shape[:-2], -1, self.num_members, image.shape[-1], leaf.shape[-1])
                leaf = parts.sum(axis=-3).reshape(wanted[path].shape)
            return jnp.repeat(leaf[None], self.num_members, axis=0)

        found = {path: of_members(path, jnp.asarray(leaf)) for path, leaf in wide.items()}
        return unflatten_dict(found, sep="/")


def many_inputs(one: Model, wide: Model, num_members: int, alike: float) -> ManyInputs:
    """The network `wide`, of K = `num_members` times the channels of `one` and K heads, as K of `one`."""
    _check_is_drawn_anew(one)
    own = {field.name: getattr(wide, field.name) for field in dataclasses.fields(Model)}
    own["name"] = f"{num_members} of {one.name} in one"
    return ManyInputs(**own, one=one, num_members=num_members, alike=alike)


def _check_is_drawn_anew(one: Model) -> None:
    if one.pretrained or one.trainable or hasattr(one.module, "calibrate"):
        raise UserError(
            f"{one.name} does not begin as it is drawn, or is frozen in part; several networks in one begin "
            "anew, all of which is trained"
        )
