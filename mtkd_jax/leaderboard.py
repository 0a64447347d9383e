"""python -m mtkd_jax.leaderboard --workdir=runs/leaderboard [--data=digits,usps] [--seeds=10] [--minutes=60]

The modes of a configuration on its data sets: a run for each, below --workdir, and one table of all, with
ranks. Data sets, modes and seeds are those of the configuration file: its VARIANTS, students.modes and
students.num_seeds. What the user can mend ends with a line on stderr and exit code 2.
"""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from ml_collections import ConfigDict

from mtkd_jax import config as configuration
from mtkd_jax import mesh, settings, sweep, validation
from mtkd_jax.data import fetch
from mtkd_jax.plans.cells import Cell
from mtkd_jax.runs import workdir
from mtkd_jax.system import interrupts, paths, terminal
from mtkd_jax.types import UserError

USAGE = (
    "python -m mtkd_jax.leaderboard --workdir=FOLDER [--config=leaderboard] [--data=NAME,NAME,...] "
    "[--modes=MODE,MODE,...] [--seeds=N] [--minutes=M] [--into=FILE.md] [--config.a.b=value ...]"
)
EXAMPLES = """\
The table of configs/leaderboard.py; the same command goes on where it was interrupted or ran out of time:

    python -m mtkd_jax.leaderboard --workdir=runs/leaderboard --minutes=120
    ... --data=digits,usps                the variants of the configuration file to run; the others, too, are
                                          in the table where they are finished
    ... --modes=output_avg,logits.dkd     these alone; controls of those among them
    ... --seeds=3                         of students
    ... --config=series --workdir=...     another table: thirteen sets of time series
    ... --into=FILE.md                    writes the table into a page as well, between
                                          <!-- leaderboard FOLDER --> and <!-- end -->
    ... --minutes=0                       runs nothing, and makes the table again

FOLDER/leaderboard.md, .csv, .json, .svg and .png are made again at the end of every call. --config names a
file of one's own, with a get_config(variant) and the names of its variants in VARIANTS."""


class Asked(NamedTuple):
    """What a command line asks for."""

    folder: Path
    cells: tuple[Cell, ...]
    missing: dict[str, str]  # {data set: what is not there}
    known: tuple[str, ...]  # all data sets of the configuration, and those asked for
    minutes: float | None
    into: Path | None


def main(argv: Sequence[str] | None = None) -> int:
    """Run the data sets a command line asks for; returns the exit code.

    0: all are finished, or the time is over; 2: something the user can mend, or data sets that failed, also
    before the time was over, which are named; 128 + signal: asked to stop, saved, and to be gone on with.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    return terminal.answer(lambda: _main(arguments))


def _main(argv: Sequence[str]) -> int:
    asked = parse(argv)
    if asked is None:
        print(f"{USAGE}\n\n{EXAMPLES}")
        return 0
    if asked.into is not None:
        from mtkd_jax.report import document

        document.around(asked.into, _mark(asked))  # a page without marks is refused before hours have gone by
    for name, what in asked.missing.items():
        terminal.tell(f"mtkd_jax: {name} is left out: {what}")
    if asked.cells:
        mesh.use_devices(asked.cells[0].config.runtime.devices)
        workdir.use_compile_cache()
    with interrupts.handle_signals():
        return run(asked)


def parse(argv: Sequence[str]) -> Asked | None:
    """The command line; None where it asks for help. UserError on whatever is wrong with it."""
    fields, others = settings.split(argv)
    parser = terminal.Parser(prog="python -m mtkd_jax.leaderboard", description=None, add_help=False)
    for name in ("--workdir", "--data", "--modes", "--into"):
        parser.add_argument(name, default="")
    parser.add_argument("--config", default="leaderboard")
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--help", "-h", action="store_true")
    options = parser.parse_args(others)
    if options.help:
        return None
    if not options.workdir:
        raise UserError(f"--workdir is missing; usage: {USAGE}")
    if options.minutes is not None and not 0 <= options.minutes < math.inf:
        raise UserError(f"--minutes={options.minutes:g}: must be a number of at least 0")
    if options.modes:
        fields["students.modes"] = options.modes
    if options.seeds is not None:
        fields["students.num_seeds"] = str(options.seeds)
    offered = settings.variants(options.config)
    names = tuple(filter(None, (name.strip() for name in options.data.split(",")))) or offered
    if not names:
        raise UserError(f"--config={options.config}: offers no VARIANTS; name some with --data")
    folder = paths.parse(options.workdir, "--workdir")
    cells, missing = [], {}
    for name in dict.fromkeys(names):
        cell = _cell(options.config, name, fields)
        path = cell.config.data.path
        if path and not os.path.exists(os.path.expanduser(path)):
            missing[name] = f"there is no {path}{fetch.remedy(path)}"
        else:
            validation.validate(cell.config)
            _check(cell.config)
            cells.append(cell)
    into = paths.parse(options.into, "--into") if options.into else None
    known = tuple(dict.fromkeys((*offered, *names)))
    return Asked(folder, tuple(cells), missing, known, options.minutes, into)


def _check(config: ConfigDict) -> None:
    """Raise UserError where a run of this configuration would have no place in the table."""
    plan = configuration.default().plan
    if not config.students.modes:
        raise UserError("config.students.modes is empty: the table is of modes; name some with --modes")
    if len(models := configuration.student_models(config)) > 1:
        raise UserError(
            f"config.students.models: {', '.join(models)}: the table is of students of one architecture; "
            "give config.students.model, and each architecture a --workdir of its own"
        )
    if config.plan.partition("(")[0].strip() != plan:
        raise UserError(f"config.plan: {config.plan}: the table is of the plan {plan} alone")


def _cell(config: str, name: str, fields: dict[str, str]) -> Cell:
    """A data set as a cell of a sweep, with a folder of its name."""
    found = settings.load(f"{config}:{name}").copy_and_resolve_references()
    for field, text in fields.items():
        settings.override(found, field, text)
    if "students.modes" in fields:  # what the file says of modes that are not asked for
        students = found.students
        kept = tuple(mode for mode in students.controlled if mode in students.modes)
        controls = students.controls if kept or not students.controlled else ()
        configuration.put(found, "students.controls", controls)
        configuration.put(found, "students.controlled", kept)
    return Cell(name, {}, found, None)


def run(asked: Asked) -> int:
    """Run what is not finished as far as the time goes, and write the table of all; the exit code."""
    failed: dict[str, str] = {}
    left, over = asked.minutes, threading.Event()

    def end() -> None:
        over.set()
        interrupts.request_stop()

    timer = threading.Timer(60 * (left or 0), end)
    timer.daemon = True
    try:
        if left is not None and left > 0:
            timer.start()
        if left is None or left > 0:
            sweep.run_cells(asked.folder, asked.cells, failed)
    except interrupts.Interrupted:
        _write(asked, failed)  # what is finished is in the table
        if not over.is_set():
            raise
        terminal.tell("mtkd_jax: the time is over; the same command goes on from here")
        return terminal.MENDABLE if failed else 0
    finally:
        timer.cancel()
    _write(asked, failed)
    return terminal.MENDABLE if failed else 0


def _mark(asked: Asked) -> str:
    return f"leaderboard {asked.folder}"


def _write(asked: Asked, failed: dict[str, str]) -> None:
    """Make the table again, of every data set that is finished in the folder."""
    from mtkd_jax.report import document, leaderboard

    why = {**dict.fromkeys(asked.known, "not finished"), **asked.missing, **failed}
    with sweep.claimed(asked.folder):
        board = leaderboard.write(asked.folder, why)
    if asked.into is not None:
        text, images = leaderboard.page(board, asked.folder.resolve().name)
        document.put_into(asked.into, _mark(asked), text, images)
    terminal.console().print(leaderboard.terminal(board))
    print(f"The table, and what it says: {asked.folder / 'leaderboard.md'}")


if __name__ == "__main__":
    sys.exit(main())
