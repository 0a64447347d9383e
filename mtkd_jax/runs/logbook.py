"""What a run writes while it trains: metrics.jsonl, what trackers make of it, and a progress line.

metrics.jsonl is the record of truth, one line a record; the rest is for looking at.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, cast

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mtkd_jax.system import terminal
from mtkd_jax.system.files import parse, write_atomically
from mtkd_jax.types import Point, Tracker, UserError, printable

SECONDS_BETWEEN_LINES = 5.0
FIELDS = {"stage", "epoch", "step", "member", "name", "value", "wall"}  # of a record
NO_TRACKERS: Mapping[str, Callable[[], Tracker]] = {}


class Logbook:
    """Writes into `workdir`; speaks on stderr, a bar on a terminal and a plain line elsewhere.

    What stderr does not take is lost: a terminal that has gone away, a full disk behind a log or a pipe that
    nobody reads ends no training. Nor does one of `trackers`, {name: what begins it}, whatever it raises:
    that is said once, and the run goes on without it. Only a UserError from its beginning is raised.
    """

    def __init__(
        self, workdir: Path, quiet: bool = False, trackers: Mapping[str, Callable[[], Tracker]] = NO_TRACKERS
    ):
        self._path = workdir / "metrics.jsonl"
        self._begun = self._spoken = time.perf_counter()
        stderr = cast(IO[str], terminal.Stderr())
        # Plain text in a notebook too, where rich would make a block of HTML of every line.
        self._console = Console(file=stderr, quiet=quiet, soft_wrap=True, force_jupyter=False)
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            # Held open: as long as it is, no folder made anew is given its number.
            self._folder = os.open(workdir, os.O_RDONLY)
        except OSError as error:
            raise _write_error(workdir, error) from error
        self._bar: Progress | None = None
        self._redrawn = False  # a line that the next one takes the place of
        self._tasks: dict[str, TaskID] = {}
        self._trackers: dict[str, Tracker] = {}
        self._told: dict[str, int] = {}  # of every stage: the epoch that trackers were told of last
        try:
            for name, begin in trackers.items():
                with self._harmless(name, refusable=True):
                    self._trackers[name] = begin()
        except UserError:
            self.__exit__()
            raise

    def __enter__(self) -> Logbook:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        os.close(self._folder)
        for name, tracker in list(self._trackers.items()):
            with self._harmless(name):
                tracker.close()

    def say(self, line: str) -> None:
        """One plain line, at once."""
        if self._redrawn:
            self._redrawn = False
            terminal.Stderr().write("\n")
        self._console.print(printable(line), markup=False, highlight=False)

    def warn(self, line: str) -> None:
        """One plain line that asks for attention."""
        self.say(f"warning: {line}")

    def record(
        self, stage: str, epoch: int, step: int, names: Sequence[str], values: dict[str, np.ndarray]
    ) -> None:
        """Append {name: [M]} of one validation, a line for every member and name.

        Raises UserError when the disk refuses.
        """
        wall = round(time.time(), 3)
        lines = [
            json.dumps(
                {
                    "stage": stage,
                    "epoch": epoch,
                    "step": step,
                    "member": member,
                    "name": name,
                    "value": _finite(of_members[m]),
                    "wall": wall,
                }
            )
            for name, of_members in values.items()
            for m, member in enumerate(names)
        ]
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write("\n".join(lines) + "\n")
        except OSError as error:
            self.check()
            raise _write_error(self._path, error) from error
        points = _points(stage, epoch, step, names, values, wall)
        for name, tracker in list(self._trackers.items()):
            is_new = tracker.cut_back is not None or epoch > self._told.get(stage, 0)
            if points and is_new:
                with self._harmless(name):
                    tracker.write(points)

    @contextlib.contextmanager
    def _harmless(self, name: str, refusable: bool = False) -> Iterator[None]:
        """Within it a tracker that fails is named and given up; `refusable`: a UserError is raised."""
        try:
            yield
        except Exception as error:  # anything may come out of it
            if refusable and isinstance(error, UserError):
                raise
            said = f"{type(error).__name__}: {terminal.one_line(error)}"
            self.warn(f"runtime.trackers: {name} failed ({said}); the run goes on without it")
            self._trackers.pop(name, None)

    def cut_back(self, stage: str, epoch: int) -> None:
        """Drop what an interrupted run wrote of `stage` after `epoch`, so that nothing stands twice.

        Says so: a stage that was further than its newest checkpoint must not start again in silence.
        """
        if not self._path.exists():
            return
        lines = lines_of(self._path)
        found = [record for record in map(record_of, lines) if record is not None]
        if len(found) < len(lines):  # such as the half line of a run that was killed while it wrote
            self.say(f"{self._path}: {len(lines) - len(found)} lines are no records and are dropped")
        of_stage = [record["epoch"] for record in found if record["stage"] == stage]
        self._told[stage] = max(of_stage, default=0)
        if max(of_stage, default=0) > epoch:
            self.say(f"{stage}: had come to epoch {max(of_stage)}, saved up to {epoch}; goes on from there")
        kept = [record for record in found if record["stage"] != stage or record["epoch"] <= epoch]
        write_atomically(self._path, "".join(json.dumps(record) + "\n" for record in kept).encode())
        for name, tracker in list(self._trackers.items()):
            if tracker.cut_back is not None:
                with self._harmless(name):
                    tracker.cut_back(stage, epoch)

    def check(self) -> None:
        """Raise UserError where the folder was removed, or another put in its place, meanwhile."""
        try:
            same = os.path.samestat(os.fstat(self._folder), os.stat(self._path.parent))
        except OSError:
            same = False
        if not same:
            folder = self._path.parent
            raise UserError(f"{folder} was removed while the run wrote into it; start again where it stays")

    def progress(self, stage: str, step: int, num_steps: int) -> None:
        """How far `stage` is: a bar with the time left on a terminal, else a line now and then.

        Raises UserError as `check` does.
        """
        self.check()
        in_notebook = terminal.in_notebook()  # whose output says that it is a terminal
        if self._console.is_terminal and not self._console.quiet and not in_notebook:
            self._draw(stage, step, num_steps)
            return
        now = time.perf_counter()
        line = f"[{now - self._begun:5.0f} s] {stage}: step {step} of {num_steps}"
        if in_notebook and not self._console.quiet:
            self._redraw(line)
        elif now - self._spoken >= SECONDS_BETWEEN_LINES:
            self._spoken = now
            self.say(line)

    def _redraw(self, line: str) -> None:
        """One line in the place of the last one, which is all that the output below a cell can do."""
        self._redrawn = True
        terminal.Stderr().write(f"\r{line:<100}")

    def _draw(self, stage: str, step: int, num_steps: int) -> None:
        if self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._bar = Progress(*columns, TextColumn("steps"), TimeRemainingColumn(), console=self._console)
            self._bar.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, total=num_steps)
        self._bar.update(self._tasks[stage], completed=step)


def lines_of(path: Path) -> list[str]:
    """The lines of a metrics.jsonl, also of a damaged one; UserError where it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from error


def record_of(line: str) -> dict | None:
    """The record that stands in a line of metrics.jsonl; None where none does."""
    try:
        record = parse(line)
    except ValueError:
        return None
    return record if isinstance(record, dict) and record.keys() == FIELDS else None


def _points(
    stage: str, epoch: int, step: int, names: Sequence[str], values: dict[str, np.ndarray], wall: float
) -> list[Point]:
    """What is finite of {name: [M]}: the mean over members, then every member."""
    found = []
    for name, of_members in values.items():
        finite = of_members[np.isfinite(of_members)]
        drawn = [("", finite.mean()), *zip(names, of_members)] if len(finite) else []
        found += [
            Point(stage, epoch, step, member, name, float(f"{value:.7g}"), wall)
            for member, value in drawn
            if np.isfinite(value)
        ]
    return found


def _write_error(path: Path, error: OSError) -> UserError:
    return UserError(f"{path}: cannot be written: {error.strerror or error}")


def _finite(value: float) -> float | None:
    return float(f"{value:.7g}") if np.isfinite(value) else None
