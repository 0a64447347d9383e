"""The layouts a population may be trained in: the configured one or, for "auto", those known to be fast."""

from __future__ import annotations

import jax

from mtkd_jax import mesh
from mtkd_jax.engine.population import natural_member_loop
from mtkd_jax.mesh import Layout
from mtkd_jax.models import direct_conv
from mtkd_jax.types import Model, UserError


def candidates(how: str, data_shards: int, model: Model, num_members: int) -> tuple[Layout, ...]:
    """The layouts that `runtime.how` and `runtime.data_shards` leave to choose from, the likeliest first.

    vmap, map, unroll, loop   on one device (for each data shard), see `population.over_members`
    shard_map                 members spread over all devices, on each `population.natural_member_loop`
    pmap                      one member a device
    auto                      what may be the fastest: spread or not, vmap or map, in one form or another;
                              first in the likeliest form of convolutions

    Raises UserError where there are too few devices.
    """
    num_devices = jax.device_count()
    if num_devices < data_shards:
        raise UserError(f"config.runtime.data_shards: {data_shards}, but there are {num_devices} devices")
    most = num_devices // data_shards
    spread = min(most, num_members)
    natural, forms = natural_member_loop(model), likely_forms(model)
    if jax.process_count() > 1:  # every process must have a part in it, and no clock may decide
        return (Layout(natural, most, data_shards),)
    if how == "auto":
        loops = (natural,) if natural == "map" or num_members == 1 else (natural, "map")
        widths = dict.fromkeys((spread, 1))
        return tuple(
            Layout(loop, width, data_shards, form) for form in forms for width in widths for loop in loops
        )
    if how == "shard_map":
        return (Layout(natural, spread, data_shards),)
    if how == "pmap" and num_members > most:
        raise UserError(
            f"config.runtime.how: pmap trains one member a device; {num_members} members in {data_shards} "
            f"data shards need {num_members * data_shards} devices, there are {num_devices}"
        )
    if how == "pmap":
        return (Layout("unroll", num_members, data_shards),)
    if how == "loop" and data_shards > 1:
        raise UserError("config.runtime.how: loop is for one device; set config.runtime.data_shards to 1")
    return (Layout(how, 1, data_shards),)


def likely_forms(model: Model) -> tuple[str, ...]:
    """Forms of convolutions, the likeliest first: which is the fastest depends on the processor.

    oneDNN's kernels, where they are installed, were the fastest, or as fast as any, on every convolutional
    network measured (docs/speed.md).
    """
    if not model.convolutional:
        return ("",)
    return (
        ("onednn",) * direct_conv.is_available()
        + ("",)
        + ("ynnpack",) * mesh.chooses_kernels()
        + ("windows",)
    )
