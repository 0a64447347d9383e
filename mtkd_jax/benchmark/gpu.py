"""Suite `gpu`: all that has to be known of a GPU, in whatever minutes there are on one.

    python -m mtkd_jax.benchmark gpu --minutes 9 --json FOLDER [--parts numbers,members] [--data FOLDER]

    numbers     losses, weights and a whole run against those of a CPU, and a resume
    members     loops over members and forms of convolutions against what others do and the chip's rate
    cifar10     eight teachers, their ensemble and students on all of CIFAR-10: wall time and accuracy
    published   a cell of a published table of CIFAR-100

In that order, each in processes of its own, so that a part that hangs or breaks the device takes no other
along. FOLDER/gpu.json is written whenever something is known. What stands there is not measured again: the
same command goes on. What would not fit into the time that is left is skipped, which is said.
FOLDER/kept-1.zip and its like hold compiled programs and runs that go on: the folder travels as a handful of
files of 15 MB.

Run as a module it measures one part: `python -m mtkd_jax.benchmark.gpu PART FOLDER UNTIL TOY WORK`.
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
import traceback
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from mtkd_jax.benchmark import children, parcels, tell
from mtkd_jax.report import document
from mtkd_jax.system import files, terminal
from mtkd_jax.system.spelling import hint
from mtkd_jax.types import UserError

FILE = "gpu.json"
SHARES = {
    "numbers": 0.25,
    "members": 0.4,
    "cifar10": 0.25,
    "published": 0.1,
}  # of the minutes, when all are asked for
PARTS = tuple(SHARES)
TO_SAVE = 20.0  # seconds that a run is given to save itself
TO_END = 15.0  # seconds past its time until a part is killed
CELL = "crd/cifar-100/resnet20/student-alone"
SEEDS = 3  # of it
KEPT, MOST_KEPT = 15_000_000, 4  # bytes of an archive of programs and runs, and archives


class Item(NamedTuple):
    """One thing to measure."""

    name: str
    least: float  # seconds: with fewer left it is not begun
    run: Callable[[float], dict]  # given the time (of the epoch) when it has to end


# --- the parent: never opens the GPU --------------------------------------------------------------------


def measure(parts: Sequence[str], minutes: float, folder: Path, data: Path, toy: bool) -> dict:
    """What stands in `folder` when the minutes are over, or all parts are done."""
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


def _run_part(part: str, store: Store, until: float, work: Path, data: Path) -> None:
    if part in COMMANDS:
        run_items([COMMANDS[part](work, data, store.toy)], store, part, until)
        store.describe(part, machine=_ask_machine(work))
        return
    command = _child(part, store.folder, until, store.toy, work)
    with _reference(part, work, store.toy):
        ended = _run_until(command, until + TO_END, _environment(work))
    if ended.code or not ended.in_time:
        why = "it failed" if ended.in_time else "its time was over"
        store.refresh().describe(part, ended=f"{why}: {ended.last}")


def _child(part: str, folder: Path, until: float, toy: bool, work: Path) -> list[str]:
    """The command line of `measure_part`."""
    arguments = [part, str(folder), str(until), str(int(toy)), str(work)]
    return [sys.executable, "-m", "mtkd_jax.benchmark.gpu", *arguments]


@contextlib.contextmanager
def _reference(part: str, work: Path, toy: bool) -> Iterator[None]:
    """Meanwhile a CPU computes what the numbers are compared with."""
    if part != "numbers" or (work / "reference.npz").exists():
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
        for seconds, end in ((until - time.time(), signal.SIGTERM), (TO_SAVE, signal.SIGKILL), (None, None)):
            try:
                child.wait(None if seconds is None else max(1.0, seconds))
                break
            except subprocess.TimeoutExpired:
                in_time = False
                child.send_signal(end)
        said = {}
        for name, file in (("out", out), ("err", err)):
            file.seek(0)
            said[name] = file.read()
    lines = said["err"].strip().splitlines() or said["out"].strip().splitlines() or [""]
    return Ended(child.returncode, in_time, lines[-1][-300:], said["out"])


def _environment(work: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(work / "cache")}


def _ask_machine(work: Path) -> dict:
    """Of a child, for whoever opens a GPU holds most of its memory."""
    return children.ask("gpu", ["machine", work, 0, 0, work], _environment(work))


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
        names = ("role", "name", "n", "accuracy")
        return {"seconds": seconds, "rows": [{name: row[name] for name in names} for row in report["rows"]]}

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
            archive.extractall(work)
    yield


def pack_kept(work: Path, folder: Path) -> None:
    """Runs, then programs, the newest first, into as many archives as are kept; what is over is left out."""
    found = [path for part in ("runs", "cache") for path in (work / part).rglob("*") if path.is_file()]
    found.sort(key=lambda path: (path.relative_to(work).parts[0] != "runs", -path.stat().st_mtime))
    entries = (
        (str(path.relative_to(work)), path.read_bytes()) for path in found if path.stat().st_size < KEPT
    )
    for number, held in enumerate(parcels.in_parcels(entries, KEPT), start=1):
        if number > MOST_KEPT:
            break
        files.write_atomically(folder / f"kept-{number}.zip", parcels.as_zip(held))


class Skipped(Exception):
    """Something that the time was too short for, and what there is of it."""


class Store:
    """FOLDER/gpu.json: {"toy", "parts": {part: {"items": {name: found}, "skipped": {name: why}}}}."""

    def __init__(self, folder: Path, toy: bool):
        self.folder, self.toy = folder, toy
        self.refresh()
        if self.content["toy"] != toy:
            kind = "the results of --toy" if self.content["toy"] else "no results of --toy"
            raise UserError(f"{folder / FILE}: holds {kind}; name another folder")

    def refresh(self) -> Store:
        """Read what a child has written meanwhile."""
        read = files.read_object(self.folder / FILE, "remove it, to measure again")
        self.content = read or {"suite": "gpu", "toy": self.toy, "parts": {}}
        return self

    def is_done(self, part: str) -> bool:
        """Whether all of it is there."""
        return self.content["parts"].get(part, {}).get("done", False)

    def has(self, part: str, item: str) -> bool:
        return item in self._of(part)["items"]

    def put(self, part: str, item: str, found: dict) -> None:
        """Keep a result, at once."""
        self._of(part)["skipped"].pop(item, None)
        self._of(part)["items"][item] = found
        self._write()

    def skip(self, part: str, item: str, why: str) -> None:
        """Keep why there is none; the next time it is tried again."""
        self._of(part)["skipped"][item] = why
        self._write()

    def describe(self, part: str, **facts: Any) -> None:
        """Keep what is known of the part as a whole: done, machine, taken_by_others, ended."""
        self._of(part).update(facts)
        self._write()

    def _of(self, part: str) -> dict:
        return self.content["parts"].setdefault(part, {"items": {}, "skipped": {}})

    def _write(self) -> None:
        document.write_files(self.folder, {FILE: document.as_json(self.content)})


def run_items(items: Sequence[Item], store: Store, part: str, until: float) -> None:
    """Measure what is not there yet, one after the other; nothing that one of them does ends the others."""
    for item in items:
        left = until - time.time()
        if store.has(part, item.name):
            continue
        if left < item.least:
            store.skip(part, item.name, f"{max(0, left):.0f} s were left, and it takes {item.least:.0f}")
            continue
        terminal.tell(f"gpu: {part}: {item.name}")
        begun = time.perf_counter()
        try:
            found = item.run(until)
        except Skipped as skipped:
            store.skip(part, item.name, str(skipped))
        except Exception as error:  # whatever it is, there are other things to find out on this device
            terminal.tell(traceback.format_exc())
            store.skip(part, item.name, f"it failed: {terminal.one_line(error)[:300]}")
        else:
            store.put(part, item.name, {"took": time.perf_counter() - begun, **found})
    store.describe(part, done=all(store.has(part, item.name) for item in items))


# --- the children ---------------------------------------------------------------------------------------


def measure_part(part: str, folder: Path, until: float, toy: bool, work: Path) -> None:
    """What a child does: one part, the reference of numbers on a CPU, or the machine."""
    from mtkd_jax import mesh
    from mtkd_jax.benchmark import gpu_parts
    from mtkd_jax.runs import workdir

    mesh.use_devices()
    workdir.use_compile_cache()
    if part == "machine":
        children.answer(tell.machine(None))
    elif part == "reference":
        gpu_parts.write_reference(folder, toy)
    else:
        store = Store(folder, toy)
        store.describe(part, machine=tell.machine(None), ended="")
        items = {"numbers": partial(gpu_parts.numbers, work), "members": gpu_parts.members_of}[part](toy)
        run_items(items, store, part, until)


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


if __name__ == "__main__":
    measure_part(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), sys.argv[4] == "1", Path(sys.argv[5]))
