"""What a run says while it goes: metrics.jsonl, TensorBoard events, and a progress line.

metrics.jsonl is the record of truth, one line a record; the rest is for looking at.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

SECONDS_BETWEEN_LINES = 5.0
MOST_MEMBERS_IN_TENSORBOARD = 16  # beyond that only the mean over members is drawn


class Logbook:
    """Writes into `workdir`; speaks on stderr, a bar on a terminal and a plain line elsewhere."""

    def __init__(self, workdir: Path, quiet: bool = False):
        from tensorboardX import SummaryWriter  # slow to import, and only a run needs it

        self._path = workdir / "metrics.jsonl"
        self._begun = self._spoken = time.perf_counter()
        self._console = Console(stderr=True, quiet=quiet, soft_wrap=True)
        self._events = SummaryWriter(str(workdir / "tensorboard"), flush_secs=30)
        self._bar: Progress | None = None
        self._tasks: dict[str, int] = {}

    def __enter__(self) -> Logbook:
        return self

    def __exit__(self, *_) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._events.close()

    def say(self, line: str) -> None:
        """One plain line, at once."""
        self._console.print(line, markup=False, highlight=False)

    def warn(self, line: str) -> None:
        """One plain line that asks for attention."""
        self.say(f"warning: {line}")

    def record(
        self, stage: str, epoch: int, step: int, names: Sequence[str], values: dict[str, np.ndarray]
    ) -> None:
        """Append {name: [M]} of one validation, a line for every member and name."""
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
        with self._path.open("a", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
        for name, of_members in values.items():
            finite = of_members[np.isfinite(of_members)]
            if len(finite):
                self._events.add_scalar(f"{stage}/{name}", float(finite.mean()), epoch)
            if len(names) <= MOST_MEMBERS_IN_TENSORBOARD:
                for member, value in zip(names, of_members):
                    if np.isfinite(value):
                        self._events.add_scalar(f"{stage}/{name}/{member}", float(value), epoch)

    def cut_back(self, stage: str, epoch: int) -> None:
        """Drop what an interrupted run wrote of `stage` after `epoch`, so that nothing stands twice."""
        if not self._path.exists():
            return
        kept = []
        for line in self._path.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except json.JSONDecodeError:  # the half line of a run that was killed while it wrote
                continue
            if record["stage"] != stage or record["epoch"] <= epoch:
                kept.append(line + "\n")
        temporary = self._path.with_suffix(".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        os.replace(temporary, self._path)

    def progress(self, stage: str, epoch: int, epochs: int) -> None:
        """How far `stage` is: a bar with the time left on a terminal, else a line now and then."""
        if sys.stderr.isatty() and not self._console.quiet:
            self._draw(stage, epoch, epochs)
            return
        now = time.perf_counter()
        if now - self._spoken >= SECONDS_BETWEEN_LINES:
            self._spoken = now
            self.say(f"[{now - self._begun:5.0f} s] {stage}: epoch {epoch} of {epochs}")

    def _draw(self, stage: str, epoch: int, epochs: int) -> None:
        if self._bar is None:
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
            self._bar = Progress(*columns, TextColumn("epochs"), TimeRemainingColumn(), console=self._console)
            self._bar.start()
        if stage not in self._tasks:
            self._tasks[stage] = self._bar.add_task(stage, total=epochs)
        self._bar.update(self._tasks[stage], completed=epoch)


def _finite(value: float) -> float | None:
    return float(f"{value:.7g}") if np.isfinite(value) else None
