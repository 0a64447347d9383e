"""Checkpoints that are trusted only by their own SHA-256 manifest.

Orbax stores the arrays; this module makes a step atomic and checks it, because Orbax restores a flipped bit
without noticing. A step is the folder `directory/<step>/`:

    tree/           Orbax: the leaves as NumPy arrays in nested dicts, so that any device can read them
    info.json       what the caller wants to remember beside the arrays
    manifest.json   {"tree/...": {"bytes", "sha256"}, "tree": null}: every file and every folder, nothing else

Everything is written to `directory/.writing-<process id>` and renamed when it is complete and on the disk.
Nothing here is executed on loading: no pickle.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from mtkd_jax import mesh
from mtkd_jax.types import PyTree, UserError

log = logging.getLogger(__name__)
Leaves = dict[tuple[str, ...], Any]  # {("params", "Dense_0", "kernel"): array}

NUM_FILES = 64  # more than a step has, folders and locks included

# A typed key is stored as its raw data one level deeper, under the name of its dtype.
KEY_IMPLEMENTATIONS = {"key<fry>": "threefry2x32", "key<rbg>": "rbg", "key<urbg>": "unsafe_rbg"}


def save(directory: Path, step: int, tree: PyTree, info: dict[str, Any], *, keep: int = 2) -> None:
    """Write one step atomically, then prune: the newest `keep` good steps up to this one stay.

    `tree` is any pytree of arrays, none of size 0, and typed keys; `info` is what JSON can hold. A step that
    exists is replaced, and is there in one form or the other at every moment. One process writes to
    `directory` at a time; of several that train together it is the first. Raises UserError, with the earlier
    steps unharmed, when the disk refuses.
    """
    if not mesh.is_first():
        return
    if step < 0 or keep < 1:
        raise ValueError(f"step must be >= 0 and keep >= 1, not {step} and {keep}")
    directory = Path(directory).absolute()
    folder, temporary = directory / str(step), _temporary(directory)
    leaves = {name: _encode(leaf) for name, leaf in _named_leaves(tree).items()}
    try:
        directory.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(directory)
        _check_space(directory, sum(leaf.nbytes for leaf in leaves.values()))
        temporary.mkdir()
        _write_arrays(temporary / "tree", leaves)
        (temporary / "info.json").write_text(json.dumps(info, indent=1))
        (temporary / "manifest.json").write_text(json.dumps(_listing(temporary), indent=1))
        _flush(temporary)
        _put_in_place(temporary, folder)
        _prune(folder, keep)
    except OSError as error:
        raise UserError(f"{directory}: cannot save step {step}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def latest(directory: Path) -> list[int]:
    """Every step in `directory`, good or bad, newest first; [] when none was ever saved."""
    return list(dict.fromkeys(_step(folder) for folder in _folders(Path(directory))))


def restore(
    directory: Path,
    like: PyTree | Callable[[dict[str, Any]], PyTree] = None,
    warn: Callable[[str], None] = log.warning,
) -> tuple[int, PyTree, dict[str, Any]] | None:
    """The newest good step as (step, tree, info); None when none was ever saved.

    `like` (arrays or `jax.ShapeDtypeStruct`s, or a function from info to them) gives structure, shapes,
    dtypes and devices; without it the tree comes back as nested dicts of NumPy arrays and typed keys, where
    tuples and records have become dicts by index or field and empty branches are gone. Each bad step is
    passed to `warn` with the file at fault.
    Raises UserError when steps exist and none is good, or when the step is not `like` what was asked for.
    """
    damages = []
    for folder in _folders(Path(directory).absolute()):
        damage = _damage(folder)
        if damage is None:
            leaves = _read_arrays(folder / "tree")
            info = json.loads((folder / "info.json").read_text())
            return _step(folder), _rebuild(leaves, like(info) if callable(like) else like, folder), info
        damages.append(f"{folder}: {damage}")
        warn(f"checkpoint passed over, {damages[-1]}")
    if damages:
        raise UserError(f"no good checkpoint left; remove the folder to start again: {'; '.join(damages)}")
    return None


def discard(directory: Path) -> None:
    """Remove every step of `directory`, and nothing else in it."""
    try:
        for folder in _folders(Path(directory)) if mesh.is_first() else ():
            _remove(folder)
    except OSError as error:
        raise UserError(f"{directory}: cannot remove checkpoints: {error.strerror}") from error


# --- folders ------------------------------------------------------------------------------------------


def _folders(directory: Path) -> list[Path]:
    """Step folders, newest first; `7.old` is step 7 while, or because, its replacement was interrupted."""
    if not directory.exists():
        return []
    try:
        found = [path for path in directory.iterdir() if re.fullmatch(r"\d+(\.old)?", path.name)]
    except OSError as error:
        raise UserError(f"{directory}: cannot read checkpoints: {error.strerror}") from error
    return sorted(found, key=lambda path: (_step(path), not path.suffix), reverse=True)


def _step(folder: Path) -> int:
    return int(folder.stem)


def _put_in_place(temporary: Path, folder: Path) -> None:
    old = folder.with_name(f"{folder.name}.old")
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
        folder.rename(old)
    temporary.rename(folder)
    _flush(folder.parent, deep=False)


def _prune(newest: Path, keep: int) -> None:
    """Remove what is older than the `keep` newest good steps. `newest` was written just now: it is good."""
    kept = 1
    for folder in _folders(newest.parent):
        if folder == newest or _step(folder) > _step(newest):
            continue
        if kept < keep and not folder.suffix and _damage(folder) is None:
            kept += 1
        else:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Rename, then remove: killed half-way, the rest must not look like a damaged step."""
    shutil.rmtree(folder.rename(_temporary(folder.parent)))


def _temporary(directory: Path) -> Path:
    return directory / f".writing-{os.getpid()}"


def _remove_leftovers(directory: Path) -> None:
    """Remove temporary folders of dead writers; this process's own number was a dead one's before."""
    for path in directory.glob(".writing-*"):
        pid = int(path.name.removeprefix(".writing-"))
        if pid == os.getpid() or not _is_alive(pid):
            shutil.rmtree(path)


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it lives, and belongs to somebody else
        return True
    return True


def _check_space(directory: Path, num_bytes: int) -> None:
    needed, free = int(1.2 * num_bytes) + 2**20, shutil.disk_usage(directory).free
    if free < needed:
        raise OSError(f"needs {needed / 2**20:.0f} MiB of disk space, {free / 2**20:.0f} MiB are free")
    system = os.statvfs(directory)
    if system.f_files and system.f_favail < NUM_FILES:  # some file systems do not count them
        raise OSError(f"needs {NUM_FILES} files (inodes) on the disk, {system.f_favail} are free")


def _flush(folder: Path, *, deep: bool = True) -> None:
    """Make the operating system write to the disk now, names included."""
    for path in [*(folder.rglob("*") if deep else ()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


# --- integrity ----------------------------------------------------------------------------------------


def _listing(folder: Path) -> dict[str, dict[str, Any] | None]:
    """Size and SHA-256 of every file below, None for every folder; the manifest itself is left out."""
    paths = [path for path in sorted(folder.rglob("*")) if path != folder / "manifest.json"]
    return {path.relative_to(folder).as_posix(): None if path.is_dir() else _digest(path) for path in paths}


def _digest(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _damage(folder: Path) -> str | None:
    """The first file that is not as it was saved; None for a good step."""
    try:
        manifest = json.loads((folder / "manifest.json").read_text())
        found = _listing(folder)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    except ValueError as error:
        return f"manifest.json is not JSON ({error})"
    if not isinstance(manifest, dict):
        return "manifest.json does not hold a JSON object"
    for name in sorted(manifest.keys() | found.keys()):
        if name not in found:
            return f"{name} is missing"
        if name not in manifest:
            return f"{name} is not in the manifest"
        if manifest[name] != found[name]:
            return f"{name} is not what was saved (size or SHA-256 differs)"
    return None


# --- arrays -------------------------------------------------------------------------------------------


def _named_leaves(tree: PyTree) -> Leaves:
    leaves = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = tuple(jax.tree_util.keystr((entry,), simple=True) for entry in path)
        kind = str(getattr(leaf, "dtype", ""))
        leaves[(*name, kind) if kind in KEY_IMPLEMENTATIONS else name] = leaf
    return leaves


def _encode(leaf: Any) -> np.ndarray:
    is_key = str(getattr(leaf, "dtype", "")) in KEY_IMPLEMENTATIONS
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def _decode(name: tuple[str, ...], array: np.ndarray) -> Any:
    if name[-1] in KEY_IMPLEMENTATIONS:
        return jax.random.wrap_key_data(jnp.asarray(array), impl=KEY_IMPLEMENTATIONS[name[-1]])
    return array


def _rebuild(leaves: Leaves, like: PyTree, folder: Path) -> PyTree:
    values = {name: _decode(name, array) for name, array in leaves.items()}
    if like is None:
        plain = {
            name[:-1] if name[-1] in KEY_IMPLEMENTATIONS else name: value for name, value in values.items()
        }
        return unflatten_dict(plain)
    wanted = _named_leaves(like)
    differences = [
        f"{'/'.join(name)} is {_describe(values.get(name))}, not {_describe(wanted.get(name))}"
        for name in sorted(values.keys() | wanted.keys())
        if _describe(values.get(name)) != _describe(wanted.get(name))
    ]
    if differences:
        more = f" and {len(differences) - 3} more" if len(differences) > 3 else ""
        raise UserError(f"{folder}: saved by another configuration: {'; '.join(differences[:3])}{more}")
    placed = [_place(values[name], leaf) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(like), placed)


def _describe(leaf: Any) -> str:
    """`float32[3, 4]`, and `absent` for None, which is never a leaf."""
    if leaf is None:
        return "absent"
    dtype = leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype
    return f"{dtype}{list(np.shape(leaf))}"


def _place(value: Any, like: Any) -> Any:
    """Put the value where `like` is; an array that may go anywhere stays free to."""
    if isinstance(like, jax.Array):
        return jax.device_put(value, like.sharding if like.committed else None)
    if isinstance(like, jax.ShapeDtypeStruct):
        return jax.device_put(value, like.sharding)
    return value


# --- Orbax --------------------------------------------------------------------------------------------


def _write_arrays(path: Path, leaves: Leaves) -> None:
    try:
        with _quiet(), _checkpointer() as checkpointer:
            checkpointer.save(path, unflatten_dict(leaves))
    except ValueError as error:  # what TensorStore makes of an errno
        reason = re.search(r"\bos_error_code='(\d+)'", str(error))
        if reason is None:
            raise
        raise OSError(int(reason[1]), os.strerror(int(reason[1]))) from error


def _read_arrays(path: Path) -> Leaves:
    with _quiet(), _checkpointer() as checkpointer:
        return flatten_dict(checkpointer.restore(path))


def _checkpointer() -> Any:
    """Orbax for this process alone: left to itself it waits for the others at every turn."""
    import orbax.checkpoint as ocp  # two seconds, and only a run that saves needs it

    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process{own}"
    )
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hold back Orbax's log: progress lines, and traces of errors that it raises as well.

    After an error the writes that it has given up on go on, and find their event loop closed: nobody is told,
    also not of those that end later.
    """
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    before = sys.unraisablehook
    sys.unraisablehook = lambda what: _is_given_up(what) or before(what)
    try:
        yield
        sys.unraisablehook = before
    finally:
        for logger, level in zip(loggers, levels):
            logger.setLevel(level)


def _is_given_up(what: Any) -> bool:
    return what.exc_type is RuntimeError and str(what.exc_value) == "Event loop is closed"
