"""Where the work goes: devices as a grid with axes ("member", "data"), both manual inside `shard_map`.

Members spread over "member" exchange nothing: left to the compiler, a vmapped convolution is silently
gathered and every device computes every member. Over "data" one batch is split: the networks see their rows,
every seam sees the whole batch, and the gradients of the rows are summed.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import jaxlib.version
import numpy as np
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mtkd_jax.system import interrupts, terminal
from mtkd_jax.types import Array, Outputs, PyTree, TeacherOutputs, UserError

MEMBER, DATA = AXES = ("member", "data")
Said = TypeVar("Said", Outputs, TeacherOutputs)  # what networks make of a batch
WITHOUT_YNNPACK_CONVOLUTIONS = {  # all else that jaxlib 0.10 gives to YNNPACK
    "xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
}

_sharing: ContextVar[int] = ContextVar("sharing", default=1)  # devices of a program in `spread`, see `cores`

MEMBER_LOOPS = ("vmap", "map", "unroll", "loop")  # of the members on one device, see population.over_members
HOW = (*MEMBER_LOOPS, "shard_map", "pmap")  # runtime.how, but for auto


class Layout(NamedTuple):
    """How a population is computed and over which devices it is spread. Hashable: part of a jit key."""

    member_loop: str  # over the members on one device: vmap | map | unroll | loop
    member: int = 1  # devices that share the members
    data: int = 1  # devices that share one batch
    form: str = ""  # of convolutions: "" the platform's | onednn | ynnpack | windows, see `layers.in_form`

    @property
    def num_devices(self) -> int:
        return self.member * self.data

    def __str__(self) -> str:
        form = f", {self.form}" if self.form else ""
        if self.num_devices == 1:
            return self.member_loop + form
        shards = f", {self.data} data shards" if self.data > 1 else ""
        return f"{self.member_loop} on {self.num_devices} devices{shards}{form}"


def use_devices(num_devices: int = 0) -> None:
    """Make a CPU appear as that many devices, 0 = as many as this process has cores. Before JAX starts.

    A core for each device is how populations train fastest on a CPU. Accelerators are what they are, and a
    number in the environment (JAX_NUM_CPU_DEVICES) stands.
    """
    if num_devices or "JAX_NUM_CPU_DEVICES" not in os.environ:
        jax.config.update("jax_num_cpu_devices", num_devices or cores())


def cores() -> int:
    """The cores of this process; inside `spread`, those for each of the devices that share them."""
    if hasattr(os, "sched_getaffinity"):
        number = len(os.sched_getaffinity(0))
    else:  # macOS
        number = os.cpu_count() or 1
    return max(1, number // _sharing.get())


def check_precision() -> None:
    """Raise UserError where JAX was told to compute in 64 bits: networks and their optimisers are float32."""
    if jax.config.jax_enable_x64:  # type: ignore[attr-defined]  # JAX gives its flags names at run time
        raise UserError(
            "jax_enable_x64 is on and everything here is computed in float32; unset JAX_ENABLE_X64, or in "
            "Python jax.config.update('jax_enable_x64', False)"
        )


def jit(function: Callable, ynnpack: bool = False, **options: Any) -> Callable:
    """`jax.jit` for programs of networks, with the kernels that use every core of a CPU.

    `options` are those of `jax.jit`. For the outermost program: JAX refuses the choice within another one.
    XLA of jaxlib 0.10 hands convolutions of more than 16 channels to YNNPACK, which runs each on one core
    however many there are; Eigen's use all of them: a training step of one network on two cores of an AMD
    EPYC took 0.7 times as long, of two WRN-16-2 on a core each 0.8 times. It is asked not to, unless
    `ynnpack`. Of other versions, which may not know the option or choose otherwise, nothing is asked.
    """
    told = chooses_kernels() and not ynnpack
    return jax.jit(function, compiler_options=WITHOUT_YNNPACK_CONVOLUTIONS if told else None, **options)


def chooses_kernels() -> bool:
    """Whether `jit` has a choice between two libraries of convolutions."""
    return jax.default_backend() == "cpu" and jaxlib.version.__version_info__[:2] == (0, 10)


def build(layout: Layout) -> Mesh:
    """The grid of the first devices, both axes left to `shard_map`."""
    devices = jax.devices()[: layout.num_devices]
    return jax.make_mesh((layout.member, layout.data), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices)


def spread(
    function: Callable, layout: Layout, in_axes: tuple[int | None, ...], out_axes: tuple[int, ...]
) -> Callable:
    """`function` of stacked members, each device running it on its own share of them.

    `in_axes` tells where each argument has its member axis (None: the same for all), `out_axes` each result.
    A number of members that does not divide is filled up with copies of the first ones, whose results are
    thrown away.
    """
    if layout.num_devices == 1:
        return function

    def spec(axis: int | None) -> P:
        return P() if axis is None else P(*(None,) * axis, MEMBER)

    def on_one_device(*arguments: PyTree) -> PyTree:
        token = _sharing.set(layout.num_devices)
        try:
            return function(*arguments)
        finally:
            _sharing.reset(token)

    local = jax.shard_map(
        on_one_device,
        mesh=build(layout),
        in_specs=tuple(map(spec, in_axes)),
        out_specs=tuple(map(spec, out_axes)),
        check_vma=False,  # `whole_batch` says by hand what is summed over "data"
    )

    def of_all(*arguments: PyTree) -> PyTree:
        place = next(n for n, axis in enumerate(in_axes) if axis is not None)
        num_members = jax.tree.leaves(arguments[place])[0].shape[in_axes[place]]
        if num_members % layout.member == 0:
            return local(*arguments)
        filled = jnp.arange(num_members + -num_members % layout.member) % num_members
        arguments = tuple(
            argument if axis is None else _take(argument, filled, axis)
            for argument, axis in zip(arguments, in_axes)
        )
        results = tuple(
            _take(result, slice(num_members), axis) for result, axis in zip(local(*arguments), out_axes)
        )
        # Placed like `spread_out` places them: what comes back is handed in again, as the same program.
        return jax.lax.with_sharding_constraint(results, NamedSharding(build(layout), P()))

    return of_all


def on_all(function: Callable, layout: Layout) -> Callable:
    """`function` run by every device on the same arguments, so that it may share out its work."""
    if layout.num_devices == 1:
        return function
    return jax.shard_map(function, mesh=build(layout), in_specs=P(), out_specs=P(), check_vma=False)


def everywhere(tree: PyTree, layout: Layout) -> PyTree:
    """The tree on every device of the layout, so that no call has to send it again."""
    return _place(tree, layout, P())


def on_host(tree: PyTree) -> PyTree:
    """NumPy arrays (and typed keys) of all of the tree, also of what other processes hold."""

    def fetched(leaf: Any) -> Any:
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.wrap_key_data(
                fetched(jax.random.key_data(leaf)), impl=jax.random.key_impl(leaf)
            )
        if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
            return multihost_utils.process_allgather(leaf, tiled=True)
        return jax.device_get(leaf)

    return jax.tree.map(fetched, tree)


def spread_out(tree: PyTree, layout: Layout) -> PyTree:
    """Stacked members [M,...] on the devices that train them; on every device where they do not divide."""
    return _place(tree, layout, _spec_of_members(layout, len(jax.tree.leaves(tree)[0])))


def sharding_of_members(layout: Layout, num_members: int) -> NamedSharding | None:
    """Where `spread_out` puts stacked members; None on one device, where JAX puts them anyway."""
    if layout.num_devices == 1:
        return None
    return NamedSharding(build(layout), _spec_of_members(layout, num_members))


def _spec_of_members(layout: Layout, num_members: int) -> P:
    return P() if num_members % layout.member else P(MEMBER)


def all_members(tree: PyTree, layout: Layout) -> PyTree:
    """What each device holds of its own members [m,...] brought together [M,...]; called inside `spread`."""
    if layout.member == 1:
        return tree
    return jax.tree.map(lambda leaf: lax.all_gather(leaf, MEMBER, tiled=True), tree)


def own_rows(image: Array, layout: Layout) -> Array:
    """This device's share [B/data,...] of a batch [B,...]; called inside `spread`."""
    return image if layout.data == 1 else _rows(image, lax.axis_index(DATA), layout.data)


def own_key(key: Array, layout: Layout) -> Array:
    """A key of this device's own rows, so that dropout differs between them; called inside `spread`."""
    return key if layout.data == 1 else jax.random.fold_in(key, lax.axis_index(DATA))


def whole_batch(outputs: Outputs, layout: Layout) -> Outputs:
    """The whole batch's outputs from every device's rows; called inside `spread`.

    A gradient flows back to the device's own rows alone, so that the sum over "data" of what each device
    makes of it is the gradient of the whole.
    """
    if layout.data == 1:
        return outputs
    return _over_rows(lambda leaf, axis: _whole(leaf, axis), outputs)


def sum_over_data(tree: PyTree, layout: Layout) -> PyTree:
    """The sum over the devices that share a batch; called inside `spread`."""
    return tree if layout.data == 1 else lax.psum(tree, DATA)


def shared_out(teachers: Callable[..., TeacherOutputs], layout: Layout) -> Callable:
    """`teachers` of images [B,...] and what else has a row for each, every device asking about its share.

    Called inside `spread`.

    Rows divide better than K, and need no other device's activations: only what teachers answer is gathered.
    Not for gradients with respect to the image.
    """
    num_devices = layout.num_devices
    if num_devices == 1:
        return teachers

    def ask(*asked: PyTree) -> TeacherOutputs:
        num_rows = len(asked[0])
        rows = jnp.arange(num_rows + -num_rows % num_devices) % num_rows
        share = jax.tree.map(lambda leaf: _rows(leaf[rows], lax.axis_index(AXES), num_devices), asked)
        answers = teachers(*share)
        return _over_rows(
            lambda leaf, axis: lax.slice_in_dim(
                lax.all_gather(leaf, AXES, axis=axis, tiled=True), 0, num_rows, axis=axis
            ),
            answers,
        )

    return ask


# --- several processes --------------------------------------------------------------------------------


def join(processes: str) -> None:
    """Make this process one of several that train together, before JAX starts; each runs the same command.

    "auto" asks the cluster (Cloud TPU, Slurm, Open MPI); "1/2@localhost:9999" is the second of two, which
    meet at the first one's address. Raises UserError for anything else.
    """
    watchers: list[subprocess.Popen] = []
    # Registered first, so that it is called last: JAX may abort the process while it leaves the others.
    atexit.register(lambda: [watcher.communicate(b"done") for watcher in watchers])
    if processes == "auto":
        jax.distributed.initialize()
        watchers.append(_watcher())
        return
    given = re.fullmatch(r"(\d+)/(\d+)@(\S+:\d+)", processes)
    if given is None or int(given[1]) >= int(given[2]):
        raise UserError(
            f"--processes={processes}: must be auto or PLACE/NUMBER@HOST:PORT, such as 0/2@node1:9999"
        )
    jax.distributed.initialize(given[3], int(given[2]), int(given[1]))
    watchers.append(_watcher())


@contextlib.contextmanager
def together() -> Iterator[None]:
    """End this process at once where another one of several has died, which its next collective reveals.

    Left to itself it would wait at its exit for a minute, and be aborted with a hundred lines of C++.
    """
    try:
        yield
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # a ValueError where NumPy asked for the result
        is_ours = isinstance(error, ValueError) and "Gloo" not in str(error)
        if is_ours or jax.process_count() == 1:
            raise
        # The watcher says that a process was ended; this one may know why, and then it is of no other one.
        terminal.tell(f"mtkd_jax: {terminal.what_to_mend(error) or terminal.one_line(error)}")
        sys.stdout.flush()
        os._exit(1)


# Reads until this process has no standard input left to give: "done" before its end, nothing if it was ended.
WATCHER = "import sys; sys.stdin.read() or print(sys.argv[1], file=sys.stderr)"


def _watcher() -> subprocess.Popen:
    """A process that says, as the last line, that this one was ended, unless it is told "done" before.

    JAX aborts a process when another one dies, from a thread of its own and with a hundred lines of C++; no
    handler of Python's is called then, so a process beside this one has to speak.
    """
    who = f"mtkd_jax: process {jax.process_index()} of {jax.process_count()}"
    line = (
        f"{who} was ended, for another one died or it was killed; give all their commands again: they go on "
        "from what is saved"
    )
    command = [sys.executable, "-SEc", WATCHER, line]
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def is_first() -> bool:
    """Whether this process writes for all."""
    return jax.process_index() == 0


def take_from_first(value: int) -> int:
    """The value of the first process, so that all do the same; also for a bool."""
    if jax.process_count() == 1:
        return value
    return int(multihost_utils.broadcast_one_to_all(np.asarray(value, np.int32)))


def any_asked(value: int) -> int:
    """The largest of what the processes say, so that all do what any of them is asked to; also for a bool."""
    if jax.process_count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.asarray(value, np.int32))))


def check_interrupts(saved: str) -> None:
    """Raise Interrupted where a process alone has been asked to stop; several agree by `any_asked`."""
    if jax.process_count() == 1:
        interrupts.check(saved)


def wait_for_all(what: str) -> None:
    """Go on when every process has come here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def _place(tree: PyTree, layout: Layout, spec: P) -> PyTree:
    if layout.num_devices == 1:
        return tree
    sharding = NamedSharding(build(layout), spec)
    if jax.process_count() == 1:
        return jax.device_put(tree, sharding)

    def from_own_copy(leaf: Any) -> Array:  # every process has the whole and gives its devices their parts
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            data = from_own_copy(jax.random.key_data(leaf))
            return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
        if isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated):
            # Members that are spread already: no process has the whole.
            return jax.jit(lambda same: same, out_shardings=sharding)(leaf)
        host = np.asarray(leaf)
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

    return jax.tree.map(from_own_copy, tree)


def _take(tree: PyTree, index: Array | slice, axis: int) -> PyTree:
    return jax.tree.map(lambda leaf: leaf[(slice(None),) * axis + (index,)], tree)


def _rows(image: Array, place: Array, num_parts: int) -> Array:
    size = len(image) // num_parts
    return lax.dynamic_slice_in_dim(image, place * size, size)


def _whole(rows: Array, axis: int) -> Array:
    others = lax.stop_gradient(lax.all_gather(rows, DATA, axis=axis, tiled=True))
    place = lax.axis_index(DATA) * rows.shape[axis]
    return lax.dynamic_update_slice_in_dim(others, rows, place, axis)


def _over_rows(function: Callable, outputs: Said) -> Said:
    """`function(leaf, axis of the batch)` of every leaf: one further on where heads or teachers are stacked.

    All of a network's outputs are stacked where they are those of its branches.
    """
    is_students = isinstance(outputs, Outputs)
    stacked = ("heads",) if is_students else ("logits", "beside")
    first = outputs.logits.ndim - 2 if is_students else 0

    def of_leaf(path: tuple, leaf: Array) -> Array:
        name = getattr(path[0], "name", None)
        return function(leaf, first + (name in stacked))

    return jax.tree_util.tree_map_with_path(of_leaf, outputs)
