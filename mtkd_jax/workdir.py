"""The run directory: what identifies a run, and who may go on with it."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from mtkd_jax import paths
from mtkd_jax.data.loading import Split
from mtkd_jax.predictions import write_atomically
from mtkd_jax.types import UserError

PACKAGES = ("mtkd_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
LOCK = ".lock"  # held by whoever writes into the folder, and left lying there
REPORT = "report.json"  # written last: where it stands, the run is finished


def check(workdir: Path, config: ConfigDict, split: Split) -> None:
    """Raise UserError unless `workdir` is free, or has this configuration and this data.

    `runtime.*` may differ: it says how, not what.
    """
    before = read_config(workdir)
    if before is None:
        if any(workdir.glob("checkpoints/*")):
            raise UserError(
                f"{workdir} holds checkpoints and no config.json that says of what; choose another --workdir"
            )
        return
    differing = [
        *_differences(before, _plain(config.to_dict())),
        *_differences(read_data_identity(workdir), _plain(_identity(config, split))),
    ]
    if differing:
        listed = "; ".join(f"{name} was {old!r} and is {new!r}" for name, old, new in differing)
        raise UserError(f"{workdir} holds another run: {listed}; choose another --workdir")


def describe(workdir: Path, config: ConfigDict, split: Split) -> None:
    """Write config.json, data.json and environment.json; from here on `workdir` is this run's."""
    described = _plain(config.to_dict())
    _write(workdir / "data.json", _identity(config, split))
    _write(workdir / "environment.json", environment(config.seed))
    _write(workdir / "config.json", {"config": described, "sha256": config_hash(described)})


@contextlib.contextmanager
def locked(workdir: Path) -> Iterator[None]:
    """Keep `workdir`, made where it is missing, from every other run; UserError where one has it already.

    The lock is of the open file, so that the system takes it from a run that died, however it died. A
    finished run's report is read without it. On a network file system of several machines it holds as far
    as that passes `flock` on (NFS since Linux 2.6.12 does, unless mounted with local_lock).
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file; name a folder")
    lock = workdir / LOCK
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock.touch()
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error.strerror or error}") from None
    with lock.open("r+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate()
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
        except BlockingIOError:
            owner = file.read() or "which has just begun"
            raise UserError(
                f"--workdir={workdir} is in use by another run, {owner}; wait for it, or choose another"
            ) from None
        except OSError as error:
            raise UserError(f"--workdir={workdir} cannot be locked: {error.strerror or error}") from None
        yield


def read_config(workdir: Path) -> dict[str, Any] | None:
    """The configuration of the run in `workdir`, None where there is none."""
    described = _read(workdir / "config.json")
    return None if described is None else described.get("config", {})


def read_data_identity(workdir: Path) -> dict[str, Any]:
    """What `data_identity` said of the run in `workdir`."""
    return _read(workdir / "data.json") or {}


def read_report(workdir: Path) -> dict[str, Any] | None:
    """The report of a finished run; None where there is none, or none that can be read."""
    try:
        return json.loads((workdir / REPORT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def config_hash(described: dict[str, Any]) -> str:
    """SHA-256 of a configuration without `runtime`."""
    relevant = {name: value for name, value in described.items() if name != "runtime"}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


def data_identity(split: Split) -> dict[str, Any]:
    """What makes data and split the same in two runs."""
    dataset = split.dataset
    arrays = (dataset.train_images, dataset.train_labels, dataset.test_images, dataset.test_labels)
    return {
        "dataset": dataset.name,
        "class_names": list(dataset.class_names),
        "image_shape": list(dataset.train_images.shape[1:]),
        "sizes": {
            "train": len(split.train),
            "pool": len(split.pool),
            "val": len(split.val),
            "test": len(dataset.test_labels),
        },
        "data_sha256": _digest(arrays),
        "split_sha256": _digest((split.train, split.val)),
    }


def _identity(config: ConfigDict, split: Split) -> dict[str, Any]:
    """`data_identity` and, where weights come from files, what these are."""
    files = {
        "teachers.init_from": config.teachers.init_from,
        "students.init_from": (config.students.init_from,) if config.students.init_from else (),
    }
    weights = {path: _digest_of_file(path, field) for field, paths in files.items() for path in paths}
    return data_identity(split) | ({"weights_sha256": weights} if weights else {})


def _digest_of_file(path: str, field: str) -> str:
    try:
        return hashlib.sha256(paths.typed(path, f"config.{field}").read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"config.{field}: {path}: cannot read the weights: {error.strerror}") from None


def environment(seed: int) -> dict[str, Any]:
    """Versions, devices, commit and command line, for whoever wants the same again."""
    return {
        "command": sys.argv,
        "seed": seed,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "devices": [f"{device.platform} {device.device_kind}" for device in jax.devices()],
    }


def _commit() -> str | None:
    asked = ["git", "rev-parse", "HEAD"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, cwd=Path(__file__).parent, check=False)
    except OSError:  # no git on this machine
        return None
    return said.stdout.strip() or None


def use_compile_cache() -> None:
    """Keep compiled programs in the user's cache folder, so that the second start is quick.

    Goes on without where there is no such folder, or none that can be written: a home nobody knows of.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        folder = base / "mtkd_jax" / "xla"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):  # RuntimeError: neither HOME nor the user is known
        return
    if not os.access(folder, os.W_OK):
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    # The small ones too: a run has some 150 of them, compiled in 15 to 25 ms each and read in 2.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def _write(path: Path, content: dict[str, Any]) -> None:
    write_atomically(path, (json.dumps(content, indent=1) + "\n").encode())


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error}); choose another --workdir") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: not what a run writes; choose another --workdir")
    return content


def _digest(arrays: Iterable) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes() if isinstance(array, np.ndarray) else array.identity())
    return digest.hexdigest()


def _differences(old: Any, new: Any, prefix: str = "") -> Iterable[tuple[str, Any, Any]]:
    """(name, old, new) of every leaf that differs, `runtime` left out."""
    for name in sorted({*old, *new}):
        a, b = old.get(name), new.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            if prefix + name != "runtime":
                yield from _differences(a, b, f"{prefix}{name}.")
        elif a != b:
            yield prefix + name, a, b


def _plain(tree: Any) -> Any:
    """As JSON gives it back: tuples as lists."""
    return json.loads(json.dumps(tree))
