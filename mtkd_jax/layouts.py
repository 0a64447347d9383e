"""Which layout a population is trained in: as it is asked for, or, for "auto", what is known to be fast."""

from __future__ import annotations

import jax

from mtkd_jax.mesh import Layout
from mtkd_jax.population import WALKS, natural_walk
from mtkd_jax.types import Model, UserError

HOW = (*WALKS, "shard_map", "pmap")


def choose(how: str, data_shards: int, model: Model, num_members: int) -> Layout:
    """The layout that `runtime.how` and `runtime.data_shards` ask for.

    vmap, map, unroll, loop   on one device (for each data shard), see `population.over_members`
    shard_map                 members spread over all devices, on each walked in the natural way
    pmap                      one member a device
    auto                      shard_map where there is more than one device, else the natural walk

    Raises UserError where there are too few devices.
    """
    num_devices = jax.device_count()
    if num_devices < data_shards:
        raise UserError(f"config.runtime.data_shards: {data_shards}, but there are {num_devices} devices")
    most = num_devices // data_shards
    if how == "auto":
        how = "shard_map" if min(most, num_members) > 1 else natural_walk(model)
    if how == "shard_map":
        return Layout(natural_walk(model), min(most, num_members), data_shards)
    if how == "pmap":
        if num_members > most:
            raise UserError(
                f"config.runtime.how: pmap trains one member a device; {num_members} members in "
                f"{data_shards} data shards need {num_members * data_shards} devices, there are {num_devices}"
            )
        return Layout("unroll", num_members, data_shards)
    if how == "loop" and data_shards > 1:
        raise UserError("config.runtime.how: loop walks members from Python on one device; data_shards must be 1")
    return Layout(how, 1, data_shards)
