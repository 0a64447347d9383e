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

import mtkd_jax
from mtkd_jax import config as configuration
from mtkd_jax.data.loading import Split
from mtkd_jax.deploy.programs import weights_of
from mtkd_jax.runs import predictions
from mtkd_jax.runs.predictions import Predictions
from mtkd_jax.system import files, onednn, paths, weights
from mtkd_jax.types import UserError

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", onednn.PACKAGE)
LOCK = ".lock"  # held by whoever writes into the folder, and left lying there
REPORT = "report.json"  # written last: where it stands, the run is finished
PREDICTIONS = "predictions.npz"
MANIFEST = "manifest.json"  # SHA-256 of these two
WRITTEN = (  # by a run into its folder, after config.json
    *("checkpoints", "student", "plots", "tensorboard", "metrics.jsonl", PREDICTIONS, MANIFEST),
    *(REPORT, "report.md", "report.html", "results.csv"),
)
REPORTS = ("fusion", "report", "export")  # groups of fields that change the report and not the training
BUDGETS = ("students.max_seeds",)  # fields that may be raised when a run is gone on with
TRAINS_NOTHING = ("runtime", *REPORTS)  # may differ when a run is gone on with; `runtime` says how, not what
VERSION = mtkd_jax.__version__  # not what is installed: the code may run from a checkout
MEND = "restore it, or choose another --workdir"
AGAIN = "give the command of the run again, which makes it again"
LENT_BY = "from_run_sha256"  # the name of the run of teachers.from_run
ABSENT = object()  # no value in a configuration


class InUse(UserError):
    """Another process writes into the folder: it is to be waited for, or left alone."""


def check(workdir: Path, config: ConfigDict, split: Split) -> None:
    """Raise UserError unless `workdir` is free, or has this configuration and this data.

    The groups of TRAINS_NOTHING may differ. A field that did not exist when the run was begun stood at its
    default.
    """
    before = read_config(workdir)
    if before is None:
        if foreign := [name for name in WRITTEN if _holds_something(workdir / name)]:
            raise UserError(
                f"{workdir} holds {foreign[0]}, which a run writes, and no config.json that says of what; "
                "choose another --workdir"
            )
        return
    of_data = read_data_identity(workdir), _plain(_identity(config, split))
    differing = [*_differences(before, _settings(config)), *_differences(*_known_of_both(*of_data))]
    if of_data[0].get(LENT_BY, "") == of_data[1].get(LENT_BY) != "":  # the same one, wherever it lies now
        differing = [one for one in differing if one[0] != "teachers.from_run"]
    if differing:
        listed = told(differing)
        by = f" of mtkd_jax {version}" if (version := read_version(workdir)) != VERSION else ""
        raise UserError(f"{workdir} holds another run{by}: {listed}; choose another --workdir")


def _holds_something(path: Path) -> bool:
    return any(path.iterdir()) if path.is_dir() else path.exists()


def differences(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Where two configurations, in the form of `read_config`, would not train the same; "" if nowhere."""
    return told(_differences(_plain(before), _plain(now)))


def told(differing: Iterable[tuple[str, Any, Any]]) -> str:
    """(name, old, new) of what differs, ABSENT where there is no value, in words."""
    return "; ".join(
        f"{name} {f'was {old!r}' if old is not ABSENT else 'did not exist'} and "
        f"{f'is {new!r}' if new is not ABSENT else 'does not exist any more'}"
        for name, old, new in differing
    )


def check_stages(workdir: Path, names: Iterable[str]) -> None:
    """Raise UserError where `workdir` has checkpoints of a stage that is none of these.

    An earlier version may have named a stage otherwise: it would be trained again, for students that others
    have taught.
    """
    known = set(names)
    for name in begun_stages(workdir):
        if name not in known:
            raise UserError(
                f"{workdir / 'checkpoints' / name}: no stage of this run is called {name!r} (it was begun by "
                f"mtkd_jax {read_version(workdir) or 'of an earlier version'}, this is {VERSION}); choose "
                "another --workdir"
            )


def begun_stages(workdir: Path) -> list[str]:
    """The names of the stages of which `workdir` has checkpoints."""
    folders = sorted(workdir.glob("checkpoints/*"))
    return [one.name for one in folders if one.is_dir() and not one.name.startswith(".")]


def describe(workdir: Path, config: ConfigDict, split: Split) -> None:
    """Write config.json, data.json and environment.json; from here on `workdir` is this run's.

    A report that is there already is of other fields, and removed first: where a report stands, it is the one
    that config.json asks for.
    """
    described, identity = _settings(config), _identity(config, split)
    # An upgrade may add fields: a run that was begun keeps its name.
    run = read_run(workdir) or run_hash(described, identity)
    for path in (workdir / REPORT, workdir / MANIFEST):
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise UserError(f"{path}: cannot be replaced: {error.strerror or error}") from None
    files.write_sealed(workdir / "data.json", identity)
    files.write_sealed(workdir / "environment.json", environment(config.seed))
    files.write_sealed(workdir / "config.json", {"config": described, "run": run, "version": VERSION})


@contextlib.contextmanager
def lock(workdir: Path) -> Iterator[None]:
    """Keep `workdir`, made where it is missing, from every other run; UserError where one has it already.

    The lock is of the open file, so that the system takes it from a run that died, however it died. A
    finished run's report is read without it. On a network file system of several machines it holds as far
    as that passes `flock` on (NFS since Linux 2.6.12 does, unless mounted with local_lock).
    """
    if workdir.exists() and not workdir.is_dir():
        raise UserError(f"--workdir={workdir} is a file; name a folder")
    path = workdir / LOCK
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        path.touch()
        file = path.open("r+", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--workdir={workdir} cannot be written: {error.strerror or error}") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            file.truncate()
            file.write(f"process {os.getpid()} on {platform.node()}")
            file.flush()
        except BlockingIOError:
            owner = file.read() or "which has just begun"
            raise InUse(
                f"--workdir={workdir} is in use by another run, {owner}; wait for it, or choose another"
            ) from None
        except OSError as error:
            raise UserError(f"--workdir={workdir} cannot be locked: {error.strerror or error}") from None
        yield


def read_config(workdir: Path) -> dict[str, Any] | None:
    """The configuration of the run in `workdir`, None where there is none.

    In today's form: addresses in their one spelling, fields that did not exist then at their defaults. Raises
    UserError where the file is damaged or holds something else.
    """
    described = _described(workdir)
    if not described:
        return None
    try:
        return configuration.canonicalise(configuration.completed(described["config"]))
    except UserError as error:
        raise UserError(f"{workdir / 'config.json'}: {error}; {MEND}") from None


def around(student: Path) -> tuple[Path, dict[str, Any] | None]:
    """The folder around a student's, and the configuration of the run there; None where there is none.

    A student may be given as ".", and may have been copied beside a config.json of somebody else's.
    """
    folder = student.resolve().parent
    try:
        return folder, read_config(folder)
    except UserError:
        return folder, None


def read_run(workdir: Path) -> str:
    """What names the run of `workdir` in its checkpoints; "" where there is none."""
    return _described(workdir).get("run", "")


def name_here(workdir: Path) -> str:
    """What names the run in this folder: the same configuration and data elsewhere is another run."""
    return hashlib.sha256(f"{read_run(workdir)} {workdir.resolve()}".encode()).hexdigest()


def read_version(workdir: Path) -> str:
    """The version of this package that wrote config.json last; "" where there is none."""
    return _described(workdir).get("version", "")


def read_data_identity(workdir: Path) -> dict[str, Any]:
    """What `data_identity` said of the run in `workdir`, which has a config.json.

    Raises UserError where the file is missing, damaged or holds something else.
    """
    found = files.read_sealed(workdir / "data.json", MEND)
    if found is None:
        raise UserError(f"{workdir / 'data.json'}: is missing; {MEND}")
    return found


def read_report(workdir: Path) -> dict[str, Any] | None:
    """The report of a finished run; None where there is none, or none that is as it was written."""
    try:
        data = (workdir / REPORT).read_bytes()
        digests = _sealed(workdir)
        report = files.parse(data)
    except (OSError, ValueError):  # a UserError is one
        return None
    # Of a run that stopped before its student was written, `mtkd_jax.report` seals a report alone.
    of_all = PREDICTIONS in digests and digests.get(REPORT) == hashlib.sha256(data).hexdigest()
    intact = of_all or not digests
    return report if intact and isinstance(report, dict) and "rows" in report else None


def finished_report(workdir: Path, config: ConfigDict) -> dict[str, Any] | None:
    """`read_report`, where it is the one that `config` asks for; it may ask for other rules, say."""
    report = read_report(workdir)
    if report is None or (before := read_config(workdir)) is None:
        return None
    now = _settings(config)
    same = all(before[name] == now[name] for name in REPORTS if name in now)
    return report if same and before["students"]["max_seeds"] == now["students"]["max_seeds"] else None


def seal(workdir: Path, name: str) -> None:
    """Write the SHA-256 of a file of the result into manifest.json."""
    digests = _sealed(workdir) | {name: hashlib.sha256((workdir / name).read_bytes()).hexdigest()}
    files.write_sealed(workdir / MANIFEST, digests)


def read_predictions(workdir: Path) -> Predictions:
    """The predictions of a run; UserError where they are missing, damaged or those of another run."""
    path = workdir / PREDICTIONS
    found, sealed = predictions.load(path), _sealed(workdir).get(PREDICTIONS)
    if sealed is not None and sealed != hashlib.sha256(path.read_bytes()).hexdigest():
        raise UserError(f"{path}: not what the run wrote, its SHA-256 is another one; {AGAIN}")
    return found


def _sealed(workdir: Path) -> dict[str, Any]:
    return files.read_sealed(workdir / MANIFEST, AGAIN) or {}


def config_hash(described: dict[str, Any]) -> str:
    """SHA-256 of what a configuration trains: without the groups of TRAINS_NOTHING."""
    relevant = {name: value for name, value in described.items() if name not in TRAINS_NOTHING}
    return hashlib.sha256(json.dumps(relevant, sort_keys=True).encode()).hexdigest()


def run_hash(described: dict[str, Any], identity: dict[str, Any]) -> str:
    """What names a run in its checkpoints: equal where the same is trained on the same data."""
    return hashlib.sha256(json.dumps([config_hash(described), identity], sort_keys=True).encode()).hexdigest()


def _described(workdir: Path) -> dict[str, Any]:
    path = workdir / "config.json"
    found = files.read_object(path, MEND)
    if found is None:
        return {}
    if not isinstance(found.get("config"), dict):
        raise UserError(f"{path}: not what a run writes; {MEND}")
    if "version" not in found:  # the first ones had another seal
        return found
    return files.read_sealed(path, MEND) or {}


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
    """`data_identity`, and the SHA-256 of all else that a run depends on and no field holds.

    Which teacher teaches what, files of weights, the run that lends teachers, images of another source.
    """
    routed = split.dataset.train_teachers
    named = {
        "teachers.init_from": config.teachers.init_from,
        "teachers.logits": config.teachers.logits,
        "teachers.programs": config.teachers.programs,
        "students.init_from": (config.students.init_from,) if config.students.init_from else (),
    }
    found = {path: _digest_of_file(path, field) for field, those in named.items() for path in those}
    asked = configuration.trained_addresses(config)
    for address, model in configuration.trained_models(config).items():
        if model.pretrained:
            file = str(weights.find(model.pretrained))
            found[model.pretrained] = _digest_of_file(file, asked[address])
    lent_by = _lent_by(config.teachers.from_run)
    return (
        data_identity(split)
        | ({"weights_sha256": found} if found else {})
        | ({LENT_BY: lent_by} if lent_by else {})
        | ({"who_teaches_sha256": _digest((routed,))} if routed is not None else {})
        | ({"other_sha256": _digest((split.other,))} if split.other is not None else {})
    )


def _lent_by(from_run: str) -> str:
    """What names the run that lends its teachers; "" where there is none, or none that can be asked."""
    try:
        return read_run(paths.parse(from_run, "config.teachers.from_run")) if from_run else ""
    except UserError:
        return ""


def _known_of_both(old: dict[str, Any], new: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Two identities; a run that was lent from and is gone, or never had a name, is the one it was."""
    if LENT_BY in old and LENT_BY in new:
        return old, new
    old, new = ({name: value for name, value in one.items() if name != LENT_BY} for one in (old, new))
    return old, new


def _digest_of_file(path: str, field: str) -> str:
    try:
        file = weights_of(paths.parse(path, f"config.{field}"))
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"config.{field}: {path}: cannot be read: {error.strerror}") from None


def environment(seed: int) -> dict[str, Any]:
    """Versions, devices, commit and command line, for whoever wants the same again."""
    return {
        "command": sys.argv,
        "seed": seed,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {"mtkd_jax": VERSION} | _installed(PACKAGES),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "devices": [f"{device.platform} {device.device_kind}" for device in jax.devices()],
    }


def _installed(packages: Iterable[str]) -> dict[str, str]:
    """The versions of those that are there."""
    found = {}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def _commit() -> str | None:
    """The commit that this package is of, "-dirty" where its files differ; None where git knows none of them.

    Installed into somebody's environment it may lie within a repository of theirs.
    """
    here = Path(__file__)
    if _git("ls-files", "--error-unmatch", here.name, cwd=here.parent) is None:
        return None
    commit = _git("rev-parse", "HEAD", cwd=here.parent)
    asked = ("--no-optional-locks", "status", "--porcelain", "--untracked-files=no", "--", ".")
    return f"{commit}-dirty" if commit and _git(*asked, cwd=here.parents[1]) else commit


def _git(*asked: str, cwd: Path) -> str | None:
    """What git says; None where there is none, or it refuses."""
    try:
        said = subprocess.run(["git", *asked], capture_output=True, text=True, cwd=cwd, check=False)
    except OSError:
        return None
    return said.stdout.strip() or None if said.returncode == 0 else None


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


def _digest(arrays: Iterable) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(f"{array.dtype}{array.shape}".encode())
        digest.update(array.tobytes() if isinstance(array, np.ndarray) else array.identity())
    return digest.hexdigest()


def _differences(old: Any, new: Any, prefix: str = "") -> Iterable[tuple[str, Any, Any]]:
    """(name, old, new) of every leaf that differs, the groups of TRAINS_NOTHING left out."""
    for name in sorted({*old, *new}):
        a, b = old.get(name, ABSENT), new.get(name, ABSENT)
        if (not prefix and name in TRAINS_NOTHING) or prefix + name in BUDGETS:
            continue
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differences(a, b, f"{prefix}{name}.")
        elif a != b:
            yield prefix + name, a, b


def _settings(config: ConfigDict) -> dict[str, Any]:
    """The fields and, where functions of the user's own are among them, what their code was."""
    settings = _plain(configuration.canonicalise(config.to_dict()))
    trained, told = configuration.own_code_digests(config)
    if trained:
        settings["own_code"] = trained
    for group, code in told.items():
        if code:
            settings[group]["own_code"] = code
    return settings


def _plain(tree: Any) -> Any:
    """As JSON gives it back: tuples as lists."""
    return json.loads(json.dumps(tree))
