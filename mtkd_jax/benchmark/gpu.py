"""Suite `gpu`: all that has to be known of a GPU, in whatever minutes there are on one.

    python -m mtkd_jax.benchmark gpu --minutes 9 --json FOLDER [--parts numbers,members] [--data FOLDER]

    numbers     losses, weights and a whole run against those of a CPU, and a resume
    members     loops over members and forms of convolutions against what others do and the chip's rate
    cifar10     eight teachers, their ensemble and students on all of CIFAR-10: wall time and accuracy
    published   a cell of a published table of CIFAR-100

In that order, each in processes of its own, so that a part that hangs or breaks the device takes no other
along. FOLDER/gpu.json is written whenever something is known. What stands there is not measured again: the
same command goes on. What would not fit into the time that is left is skipped, which is said. Elsewhere,
--minutes 0 tells what a FOLDER that was brought back holds, and opens no device.
FOLDER/kept-1.zip and its like hold compiled programs and runs that go on, as far as they fit: the folder
travels as a handful of files of 15 MB. A run that does not fit whole begins anew, which is said.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from mtkd_jax.benchmark import parcels, tell
from mtkd_jax.benchmark.gpu_store import FILE, PARTS, Item, Skipped, Store, run_items
from mtkd_jax.system import files, terminal
from mtkd_jax.system.spelling import hint
from mtkd_jax.types import UserError

SHARES = {"numbers": 0.25, "members": 0.4, "cifar10": 0.25, "published": 0.1}  # of the minutes, of all parts
TO_SAVE = 20.0  # seconds that a run is given to save itself
TO_END = 15.0  # seconds past its time until a part is killed
CELL = "crd/cifar-100/resnet20/student-alone"
SEEDS = 3  # of it
KEPT, MOST_KEPT = 15_000_000, 4  # bytes of an archive of programs and runs, and archives


# --- the parent: never opens the GPU --------------------------------------------------------------------


def measure(parts: Sequence[str], minutes: float, folder: Path, data: Path, toy: bool) -> dict:
    """What stands in `folder` when the minutes are over, or all parts are done; 0 minutes only tell it."""
    if not minutes:
        return _brought_back(parts, Store(folder, toy))
    folder.mkdir(parents=True, exist_ok=True)
    begun, store = time.time(), Store(folder, toy)
    ahead = [part for part in PARTS if part in parts and not store.is_done(part)]
    whole = sum(SHARES[part] for part in ahead)
    with tempfile.TemporaryDirectory() as work, _unpacked(folder, Path(work)):
        share = 0.0
        for part in ahead:
            share += SHARES[part] / whole  # what one leaves over, those after it have
            until = begun + 60 * minutes * share
            terminal.tell(f"gpu: {part}, {max(0, until - time.time()):.0f} s")
            others = tell.seconds_of_others(), time.perf_counter()
            _run_part(part, Store(folder, toy), until, Path(work), data)
            Store(folder, toy).describe(part, taken_by_others=tell.share_of_others(*others))
            pack_kept(Path(work), folder)
    return Store(folder, toy).content


def _brought_back(parts: Sequence[str], store: Store) -> dict:
    """What the store has of these parts; UserError for nothing."""
    found = {name: of_part for name, of_part in store.content["parts"].items() if name in parts}
    if not found:
        raise UserError(
            f"{store.folder / FILE}: holds nothing of {', '.join(parts)}; --minutes 0 tells what is there"
        )
    return {**store.content, "parts": found}


def _run_part(part: str, store: Store, until: float, work: Path, data: Path) -> None:
    if part in COMMANDS:
        run_items([COMMANDS[part](work, data, store.toy)], store, part, until)
        store.describe(part, machine=_machine_of(work / "runs" / part))
        return
    command = _child(part, store.folder, until, store.toy, work)
    with _reference(part, work, store.toy):
        ended = _run_until(command, until + TO_END, _environment(work))
    if ended.code or not ended.in_time:
        why = "it failed" if ended.in_time else "its time was over"
        store.refresh().describe(part, ended=f"{why}: {ended.last}")


def _child(part: str, folder: Path, until: float, toy: bool, work: Path) -> list[str]:
    """The command line of `gpu_parts`."""
    arguments = [part, str(folder), str(until), str(int(toy)), str(work)]
    return [sys.executable, "-m", "mtkd_jax.benchmark.gpu_parts", *arguments]


@contextlib.contextmanager
def _reference(part: str, work: Path, toy: bool) -> Iterator[None]:
    """Meanwhile a CPU computes what the numbers are compared with."""
    if part != "numbers" or (work / "reference-run.npz").exists():
        yield
        return
    command = _child("reference", work, 0.0, toy, work)
    cpu = {**_environment(work), "JAX_PLATFORMS": "cpu", "XDG_CACHE_HOME": str(work / "cpu")}
    with subprocess.Popen(command, env=cpu, stderr=subprocess.DEVNULL) as child:
        try:
            yield
        finally:
            child.kill()


class Ended(NamedTuple):
    """How a child process ended."""

    code: int
    in_time: bool
    last: str  # line that it said
    out: str


def _run_until(command: Sequence[str], until: float, environment: Mapping[str, str]) -> Ended:
    """Run it; past its time it is asked to save itself, and then killed."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        child = subprocess.Popen(command, env=environment, stdout=out, stderr=err, text=True)
        in_time = True
        for seconds, end in ((until - time.time(), signal.SIGTERM), (TO_SAVE, signal.SIGKILL)):
            try:
                child.wait(max(1.0, seconds))
                break
            except subprocess.TimeoutExpired:
                in_time = False
                child.send_signal(end)
        child.wait()
        said = {}
        for name, file in (("out", out), ("err", err)):
            file.seek(0)
            said[name] = file.read()
    lines = said["err"].strip().splitlines() or said["out"].strip().splitlines() or [""]
    return Ended(child.returncode, in_time, lines[-1][-300:], said["out"])


def _environment(work: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(work / "cache")}


def _machine_of(run: Path) -> dict:
    """Where a run was made, as `tell.machine` has it; who asks JAX opens the GPU."""
    environment = files.read_object(run / "environment.json", "remove it") or {}
    found = {name: environment.get(name) for name in tell.OF_A_RUN}
    return {**found, "processor": tell.processor(), "cores": os.cpu_count()} if environment else {}


def _cifar10(work: Path, data: Path, toy: bool) -> Item:
    variant = "smoke" if toy else "gpu"
    command = [
        "mtkd_jax.main",
        f"--config=cifar10_speedy:{variant}",
        f"--workdir={work / 'runs' / 'cifar10'}",
    ]

    def run(until: float) -> dict:
        source = (
            [] if toy else ["--config.data.source=npz", f"--config.data.path={_npz(data, 'cifar10', work)}"]
        )
        seconds = _whole_run([*command, *source], until, work)
        report = json.loads((work / "runs" / "cifar10" / "report.json").read_text(encoding="utf-8"))
        names = ("role", "name", "transfer", "architecture", "n", "accuracy")
        return {
            "seconds": seconds,
            "rows": [{name: row.get(name, "") for name in names} for row in report["rows"]],
        }

    return Item("eight teachers, their ensemble and students", 1.0 if toy else 60.0, run)


def _published(work: Path, data: Path, toy: bool) -> Item:
    command = ["mtkd_jax.replicate", CELL, f"--workdir={work / 'runs' / 'published'}"]
    command += ["--smoke", "--seeds=2"] if toy else [f"--seeds={SEEDS}"]

    def run(until: float) -> dict:
        source = [] if toy else [f"--data={_npz(data, 'cifar100', work)}"]
        seconds = _whole_run([*command, *source], until, work)
        found = json.loads((work / "runs" / "published" / "replication.json").read_text(encoding="utf-8"))
        return {"seconds": seconds, **found}

    return Item(CELL, 1.0 if toy else 30.0, run)


COMMANDS = {"cifar10": _cifar10, "published": _published}


def _whole_run(arguments: Sequence[str], until: float, work: Path) -> float:
    """Seconds of a command line of ours; Skipped where it was stopped, and goes on next time."""
    begun = time.perf_counter()
    ended = _run_until([sys.executable, "-m", *arguments], until - TO_SAVE, _environment(work))
    if not ended.in_time:
        raise Skipped(f"its time was over: {ended.last or 'it had not begun'}")
    if ended.code:
        raise RuntimeError(ended.last)
    return time.perf_counter() - begun


def _npz(data: Path, name: str, work: Path) -> Path:
    """A data set, as it lies in `data` or made of its parcels there."""
    whole = data / f"{name}.npz"
    return whole if whole.exists() else parcels.unpack(data, name, work / "data")


# --- what travels ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def _unpacked(folder: Path, work: Path) -> Iterator[None]:
    """The programs and runs that an earlier day kept, in `work`."""
    for path in sorted(folder.glob("kept-*.zip")):
        with contextlib.suppress(OSError, zipfile.BadZipFile), zipfile.ZipFile(path) as archive:
            _put_back(archive, work.resolve())
    yield


def _put_back(archive: zipfile.ZipFile, work: Path) -> None:
    """The files of an archive below `work`, and none elsewhere, whatever their names say."""
    for entry in archive.infolist():
        file = (work / entry.filename).resolve()
        if file.is_relative_to(work) and not entry.is_dir():
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(archive.read(entry))


def pack_kept(work: Path, folder: Path) -> None:
    """Runs, then programs, the newest first, into as many archives as are kept, in the place of those there.

    What is over is left out: of runs whole ones, since the rest of one could not go on.
    """
    found: list[Path] = []
    for run in sorted((work / "runs").glob("*"), key=lambda run: -max(map(_changed, _files(run)), default=0)):
        if _fit(found + _files(run)):
            found += _files(run)
        else:
            terminal.tell(f"gpu: the run {run.name} is too large to be kept: it begins anew another day")
    programs = [path for path in _files(work / "cache") if path.stat().st_size < KEPT]
    found += sorted(programs, key=_changed, reverse=True)
    entries = ((str(path.relative_to(work)), path.read_bytes()) for path in found)
    written = []
    for number, held in enumerate(islice(parcels.in_parcels(entries, KEPT), MOST_KEPT), start=1):
        written.append(folder / f"kept-{number}.zip")
        files.write_atomically(written[-1], parcels.as_zip(held))
    for path in {*folder.glob("kept-*.zip")} - {*written}:
        path.unlink()  # it would be put back over newer files


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _changed(path: Path) -> float:
    return path.stat().st_mtime


def _fit(paths: Sequence[Path]) -> bool:
    """Whether all of these files, one after the other, fit into the archives that are kept."""
    sizes = [path.stat().st_size for path in paths]
    if max(sizes, default=0) >= KEPT or sum(sizes) > KEPT * MOST_KEPT:
        return False
    entries = ((str(path), path.read_bytes()) for path in paths)
    return sum(1 for _ in parcels.in_parcels(entries, KEPT)) <= MOST_KEPT


def parse_parts(text: str | None) -> tuple[str, ...]:
    """The parts of "numbers,members", all for None; UserError for one that is not known."""
    if text is None:
        return PARTS
    for name in text.split(","):
        if name not in PARTS:
            raise UserError(
                f"--parts {text}: no part {name!r}; known are {', '.join(PARTS)}{hint(name, PARTS)}"
            )
    return tuple(text.split(","))
