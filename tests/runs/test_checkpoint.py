"""A step comes back bit for bit, or it is refused by name; a failing save harms nothing that was there."""

from __future__ import annotations

import dataclasses
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mtkd_jax.runs import checkpoint
from mtkd_jax.types import PyTree, UserError, pytree

SMALL = {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "b": np.zeros(4, np.float32)}


@pytree
@dataclasses.dataclass(frozen=True)
class State:
    params: PyTree
    model_state: PyTree
    opt_state: PyTree
    mem: PyTree
    key: jax.Array


def state(seed: int = 0) -> State:
    """Three members, with every kind of leaf and of empty branch that a run may hold."""
    generator = np.random.default_rng(seed)
    kernel = generator.normal(size=(3, 4, 5)).astype(np.float32)
    params = {"Dense_0": {"kernel": jnp.asarray(kernel), "bias": jnp.asarray(kernel[..., 0], jnp.bfloat16)}}
    optimiser = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1, momentum=0.9))
    return State(
        params=params,
        model_state={},
        opt_state=optimiser.init(params),
        mem={"none": None, "few": (np.int8(3), True, np.array([np.nan, -0.0, np.inf], np.float32))},
        key=jax.random.split(jax.random.key(seed), 3),
    )


def host(leaf):
    is_key = jnp.issubdtype(getattr(leaf, "dtype", np.bool_), jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def dtype_of(leaf):
    return leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


def assert_same(actual, expected):
    """Same structure, dtypes and bits (NaN and -0.0 too)."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for got, want in zip(jax.tree.leaves(actual), jax.tree.leaves(expected)):
        assert dtype_of(got) == dtype_of(want)
        assert host(got).shape == host(want).shape
        assert host(got).tobytes() == host(want).tobytes()


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path: Path, position: int, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def no_warning(message: str) -> None:
    raise AssertionError(message)


# --- round trip ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("like", [state(1), jax.eval_shape(lambda: state(1))], ids=["arrays", "shapes"])
def test_a_state_comes_back_bit_for_bit(tmp_path, like):
    info = {"best": [0.1, float("inf")], "stage": "teachers"}
    checkpoint.save(tmp_path, 40, state(0), info)
    step, tree, found = checkpoint.restore(tmp_path, like, warn=no_warning)
    assert (step, found) == (40, info)
    assert_same(tree, state(0))


def test_restored_arrays_can_be_donated_and_used_with_a_strict_step(tmp_path):
    checkpoint.save(tmp_path, 1, state(), {})
    _, tree, _ = checkpoint.restore(tmp_path, state(1))
    step = jax.jit(lambda params: jax.tree.map(lambda x: x * 2, params), donate_argnums=0)
    expected = 2 * np.asarray(state().params["Dense_0"]["kernel"])
    np.testing.assert_array_equal(step(tree.params)["Dense_0"]["kernel"], expected)


def test_variables_come_back_without_their_optimiser_and_without_a_pattern(tmp_path):
    variables = {"params": {"Dense_0": {"kernel": jnp.ones((2, 3))}}, "batch_stats": {"mean": jnp.zeros(2)}}
    tree = {"variables": variables, "key": jax.random.split(jax.random.key(5)), "two": (np.ones(1), None)}
    checkpoint.save(tmp_path, 0, tree, {"names": ["a", "b"]})
    step, found, info = checkpoint.restore(tmp_path)
    assert (step, info) == (0, {"names": ["a", "b"]})
    assert_same(found["variables"], jax.tree.map(np.asarray, variables))
    assert_same(found["key"], tree["key"])
    assert found["two"].keys() == {"0"}


def test_a_sharded_stack_returns_to_its_devices(tmp_path):
    mesh = jax.make_mesh((4,), ("member",), axis_types=(jax.sharding.AxisType.Auto,))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("member"))
    stack = jax.device_put(np.arange(8.0, dtype=np.float32).reshape(4, 2), sharding)
    checkpoint.save(tmp_path, 1, {"w": stack}, {})
    _, tree, _ = checkpoint.restore(tmp_path, {"w": stack})
    assert tree["w"].sharding == sharding
    _, tree, _ = checkpoint.restore(tmp_path, {"w": jnp.zeros((4, 2))})  # and to one device
    assert_same(tree, {"w": jnp.asarray(np.asarray(stack))})
    assert not tree["w"].committed


@pytest.mark.parametrize("dtype, name", checkpoint.KEY_IMPLEMENTATIONS.items())
def test_every_kind_of_key_round_trips(tmp_path, dtype, name):
    key = jax.random.key(3, impl=name)
    assert str(key.dtype) == dtype
    checkpoint.save(tmp_path, 1, {"key": key}, {})
    assert_same(checkpoint.restore(tmp_path, {"key": key})[1], {"key": key})
    assert_same(checkpoint.restore(tmp_path)[1], {"key": key})


@pytest.mark.parametrize(
    "like, message",
    [
        (SMALL | {"w": np.zeros((3, 5), np.float32)}, r"w is float32\[3, 4\], not float32\[3, 5\]"),
        (SMALL | {"w": np.zeros((3, 4), np.int32)}, r"w is float32\[3, 4\], not int32\[3, 4\]"),
        (SMALL | {"c": {"d": np.zeros(2)}}, r"c/d is absent, not float64\[2\]"),
        ({"w": SMALL["w"]}, r"b is float32\[4\], not absent"),
        ({str(i): np.zeros(1) for i in range(5)}, r"and 4 more"),
        (SMALL | {"b": jax.random.key(0)}, r"b is float32\[4\], not absent; b/key<fry> is absent"),
    ],
)
def test_a_step_unlike_what_was_asked_for_is_refused_by_leaf(tmp_path, like, message):
    checkpoint.save(tmp_path, 3, SMALL, {})
    with pytest.raises(UserError, match=message) as caught:
        checkpoint.restore(tmp_path, like)
    assert str(tmp_path / "3") in str(caught.value) and "\n" not in str(caught.value)


# --- which steps stay ---------------------------------------------------------------------------------


def test_nothing_saved_is_none(tmp_path):
    assert checkpoint.restore(tmp_path / "absent") is None
    (tmp_path / "notes.txt").write_text("not a step")
    assert checkpoint.restore(tmp_path) is None and checkpoint.latest(tmp_path) == []


def test_newest_steps_stay(tmp_path):
    for step in (2, 9, 10, 11):  # as text, 9 would sort behind 11
        checkpoint.save(tmp_path, step, SMALL, {"step": step}, keep=3)
    assert checkpoint.latest(tmp_path) == [11, 10, 9]
    assert checkpoint.restore(tmp_path)[2] == {"step": 11}
    assert {path.name for path in tmp_path.iterdir()} == {"9", "10", "11"}


def test_a_damaged_step_does_not_push_out_a_good_one(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, SMALL, {})
    (tmp_path / "2" / "info.json").unlink()
    checkpoint.save(tmp_path, 3, SMALL, {}, keep=2)
    assert checkpoint.latest(tmp_path) == [3, 1]


def test_a_step_can_be_saved_again_over_good_and_bad(tmp_path):
    for value in range(3):
        checkpoint.save(tmp_path, 5, {"w": np.full(3, value)}, {"value": value})
        assert_same(checkpoint.restore(tmp_path, warn=no_warning)[1], {"w": np.full(3, value)})
        if value == 1:
            (tmp_path / "5" / "info.json").unlink()
    assert [path.name for path in tmp_path.iterdir()] == ["5"]


@pytest.mark.parametrize("num_renames", [0, 1, 2])
def test_killed_while_replacing_the_only_step_one_form_of_it_survives(tmp_path, monkeypatch, num_renames):
    checkpoint.save(tmp_path, 5, SMALL, {"form": "first"})
    rename, renames = Path.rename, []

    def dying_rename(self, target):
        if len(renames) == num_renames:
            raise KeyboardInterrupt
        renames.append(target)
        return rename(self, target)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "rename", dying_rename)
        checkpoint.save(tmp_path, 5, SMALL, {"form": "second"})
    form = "second" if num_renames == 2 else "first"
    step, tree, info = checkpoint.restore(tmp_path, SMALL, warn=no_warning)
    assert (step, info, checkpoint.latest(tmp_path)) == (5, {"form": form}, [5])
    assert_same(tree, SMALL)
    checkpoint.save(tmp_path, 6, SMALL, {}, keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["6"]


def test_temporary_folders_of_dead_writers_only_are_removed(tmp_path):
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    for pid in (finished.pid, os.getpid(), os.getppid()):
        (tmp_path / f".writing-{pid}" / "tree").mkdir(parents=True)
    assert checkpoint.latest(tmp_path) == [] and checkpoint.restore(tmp_path) is None
    checkpoint.save(tmp_path, 1, SMALL, {})
    assert {path.name for path in tmp_path.iterdir()} == {"1", f".writing-{os.getppid()}"}


def test_discard_removes_the_steps_and_nothing_else(tmp_path):
    for directory in (tmp_path, tmp_path / "finished"):
        checkpoint.save(directory, 3, SMALL, {})
    checkpoint.discard(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["finished"]
    assert checkpoint.latest(tmp_path / "finished") == [3]
    checkpoint.discard(tmp_path / "absent")


# --- damage -------------------------------------------------------------------------------------------


@pytest.fixture
def two_steps(tmp_path):
    for step in (1, 2):
        checkpoint.save(tmp_path, step, state(step), {"step": step})
    return tmp_path


def assert_step_2_is_refused(directory: Path, name: str) -> None:
    warnings = []
    step, tree, info = checkpoint.restore(directory, state(), warn=warnings.append)
    assert (step, info) == (1, {"step": 1})
    assert_same(tree, state(1))
    (warning,) = warnings
    assert str(directory / "2") in warning and name in warning


def test_flipped_bits_are_detected(two_steps):
    generator = np.random.default_rng(0)
    candidates = files(two_steps / "2")
    for number in range(30):
        path = candidates[number % len(candidates)]
        position, bit = int(generator.integers(path.stat().st_size)), int(generator.integers(8))
        flip(path, position, bit)
        # A flip in the manifest names the file whose entry it hit, or the manifest where it is unreadable.
        name = "" if path.name == "manifest.json" else path.name
        assert_step_2_is_refused(two_steps, name)
        flip(path, position, bit)
    assert checkpoint.restore(two_steps, state(), warn=no_warning)[0] == 2


def test_every_bit_of_the_manifest_matters(two_steps):
    """An edit that JSON would forgive (another space, 1e3 for 1000) must not be within one bit."""
    path = two_steps / "2" / "manifest.json"
    original = path.read_bytes()
    for position in range(0, len(original), 7):
        flip(path, position, position % 8)
        assert checkpoint._damage(two_steps / "2") is not None
        path.write_bytes(original)


def test_truncation_is_detected(two_steps):
    generator = np.random.default_rng(1)
    candidates = files(two_steps / "2")
    for number in range(10):
        path = candidates[number % len(candidates)]
        original = path.read_bytes()
        path.write_bytes(original[: int(generator.integers(len(original)))])
        assert_step_2_is_refused(two_steps, path.name)
        path.write_bytes(original)


def test_every_missing_file_is_detected(two_steps):
    for path in files(two_steps / "2"):
        original = path.read_bytes()
        path.unlink()
        assert_step_2_is_refused(two_steps, path.name)
        path.write_bytes(original)


@pytest.mark.parametrize("place", ["more", "tree/more", "tree/d/more"])
@pytest.mark.parametrize("make", [Path.touch, Path.mkdir], ids=["file", "folder"])
def test_what_the_manifest_does_not_know_is_a_failure(two_steps, place, make):
    make(two_steps / "2" / place)
    assert_step_2_is_refused(two_steps, place)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '{"tree": 3}', "\0"])
def test_a_manifest_that_is_none_is_a_failure(two_steps, text):
    (two_steps / "2" / "manifest.json").write_text(text)
    assert_step_2_is_refused(two_steps, "")


def test_no_good_step_is_an_error_that_names_the_files(two_steps):
    (two_steps / "2" / "manifest.json").unlink()
    (two_steps / "1" / "info.json").write_text("{}")
    with pytest.raises(UserError, match="no good checkpoint left") as caught:
        checkpoint.restore(two_steps, state(), warn=lambda message: None)
    message = str(caught.value)
    assert str(two_steps / "2" / "manifest.json") in message and "info.json" in message
    assert "\n" not in message


# --- saves that fail ----------------------------------------------------------------------------------


def assert_step_1_unharmed(directory: Path, error: UserError) -> None:
    assert str(directory) in str(error) and "\n" not in str(error)
    assert checkpoint.latest(directory) == [1] and [path.name for path in directory.iterdir()] == ["1"]
    assert_same(checkpoint.restore(directory, state(), warn=no_warning)[1], state(1))


def test_too_little_space_is_found_before_writing(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, state(1), {})
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=2**20))
    with pytest.raises(
        UserError, match="cannot save step 2: needs .* MiB of disk space, 1 MiB are free"
    ) as caught:
        checkpoint.save(tmp_path, 2, state(2), {})
    assert_step_1_unharmed(tmp_path, caught.value)


@pytest.mark.parametrize("num_bytes", [64, 4096], ids=["at once", "within the arrays"])
def test_a_disk_that_refuses_half_way_is_one_line(tmp_path, num_bytes):
    checkpoint.save(tmp_path, 1, state(1), {})
    noise = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))  # EFBIG stands in for a full disk
    try:
        with pytest.raises(UserError, match="cannot save step 2: File too large") as caught:
            checkpoint.save(tmp_path, 2, {"w": noise}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert_step_1_unharmed(tmp_path, caught.value)


def test_too_few_free_inodes_are_found_before_writing(tmp_path, monkeypatch):
    checkpoint.save(tmp_path, 1, state(1), {})
    used = sum(1 for _ in (tmp_path / "1").rglob("*"))
    assert used < checkpoint.NUM_FILES / 2
    free = os.statvfs(tmp_path)

    class Few:
        f_files, f_favail, f_frsize, f_bavail = 1000, used, free.f_frsize, free.f_bavail
        f_blocks, f_bfree = free.f_blocks, free.f_bfree

    with monkeypatch.context() as patch, pytest.raises(UserError) as caught:
        patch.setattr(os, "statvfs", lambda path: Few)
        checkpoint.save(tmp_path, 2, state(2), {})
    assert f"cannot save step 2: needs 64 files (inodes) on the disk, {used} are free" in str(caught.value)
    assert_step_1_unharmed(tmp_path, caught.value)


def test_writes_that_were_given_up_say_nothing_and_all_others_do(monkeypatch):
    """TensorStore ends them in threads of its own, some after Orbax has long raised what stopped it."""

    def ends(error: Exception) -> None:
        sys.unraisablehook(types.SimpleNamespace(exc_type=type(error), exc_value=error))

    said = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: said.append(str(what.exc_value)))
    with pytest.raises(OSError), checkpoint._quiet():
        ends(RuntimeError("Event loop is closed"))
        raise OSError("no space")
    ends(RuntimeError("Event loop is closed"))
    ends(RuntimeError("something else"))
    assert said == ["something else"]


def test_a_directory_that_is_a_file_is_one_line(tmp_path):
    path = tmp_path / "checkpoints"
    path.touch()
    with pytest.raises(UserError, match=f"{path}: cannot save step 1"):
        checkpoint.save(path, 1, SMALL, {})
    with pytest.raises(UserError, match=f"{path}: cannot read checkpoints"):
        checkpoint.restore(path)


def test_what_cannot_be_stored_is_the_callers_error(tmp_path):
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path, 1, SMALL, {"array": np.ones(2)})
    with pytest.raises(ValueError, match="zero size") as caught:
        checkpoint.save(tmp_path, 1, {"w": np.zeros((0, 3))}, {})
    assert not isinstance(caught.value, UserError)
    assert list(tmp_path.iterdir()) == []


WRITER = """
import sys
import numpy as np
from mtkd_jax.runs import checkpoint
for step in range(1000):
    checkpoint.save(sys.argv[1], step, {"w": np.full((50, 1000), step, np.float32)}, {"step": step})
    print(step, flush=True)
"""


@pytest.mark.slow
def test_killed_at_any_moment_the_newest_finished_step_is_good(tmp_path):
    generator = np.random.default_rng(0)
    for run in range(6):
        directory = tmp_path / str(run)
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, directory], stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
        )
        for _ in range(2):
            writer.stdout.readline()
        time.sleep(generator.uniform(0, 0.3))
        writer.send_signal(signal.SIGKILL)
        finished = [1, *map(int, writer.communicate()[0].split())][-1]
        step, tree, info = checkpoint.restore(directory, warn=no_warning)
        assert step in (finished, finished + 1) and info == {"step": step}
        np.testing.assert_array_equal(tree["w"], np.full((50, 1000), step, np.float32))
