"""python -m mtkd_jax.sweep --config=digits --over config.students.temperatures=1,2,4 --workdir=runs/sweep

Every combination of the values is a run in a folder of its own below --workdir, and all of them are one
table. Teachers that no swept field reaches are trained once. What the user can mend ends with a line on
stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mtkd_jax import config as configuration
from mtkd_jax import mesh, settings, validation
from mtkd_jax.plans import cells
from mtkd_jax.plans.cells import Cell, Lender
from mtkd_jax.runs import workdir
from mtkd_jax.system import files, interrupts, paths, terminal
from mtkd_jax.types import UserError

USAGE = (
    "python -m mtkd_jax.sweep --config=NAME|FILE.py[:VARIANT] --over config.FIELD=VALUE,VALUE [--over ...] "
    "--workdir=FOLDER [--plan | --slurm[=TASKS[%AT_ONCE]] | --shard=I/N] [--into=FILE.md] "
    "[--config.a.b=value ...]"
)
EXAMPLES = """\
Three widths by three temperatures; the same command goes on where it was interrupted:

    python -m mtkd_jax.sweep --config=digits --workdir=runs/sizes \\
        --over 'config.students.model=mlp(hidden=(16,)),mlp(hidden=(32,)),mlp(hidden=(64,))' \\
        --over config.students.temperatures=1,2,4
    ... --over 'config.students.alphas=0,0.5,(0,0.5)'     a value with commas of its own stands in brackets
    ... --plan                                            the cells, and what each would cost
    ... --shard=0/4                                       every fourth cell, for one of four machines
    ... --slurm=9%3                                       an array job of nine tasks, three at a time
    ... --into=FILE.md                                    also writes table and plot into a page, between
                                                          <!-- sweep FOLDER --> and <!-- end -->

FOLDER/sweep.csv, .json, .md and .png are the table of all cells, made again at the end of every call. A call
with further values adds cells; the best cell is chosen by validation."""
CELLS = "cells.json"  # in the folder of a sweep: what it is of, and all cells that were ever asked for
TRAINED = "trained.json"  # in a lender's folder: its teachers are trained
MEND = "restore it, or choose another --workdir"
SECONDS_BETWEEN_LOOKS = 2.0  # at what another process is to finish
MOST_MAPS = 20_000  # memory maps of compiled programs: Linux gives a process 65 530, and LLVM dies without


class Asked(NamedTuple):
    """What a command line asks for."""

    base: ConfigDict  # what all cells share
    over: Mapping[str, tuple[Any, ...]]
    folder: Path
    shard: tuple[int, int]  # (place, number)
    plan: bool
    slurm: str | None
    into: Path | None
    same: tuple[str, ...]  # the arguments that say all but how the cells are shared out


def main(argv: Sequence[str] | None = None) -> int:
    """Run the cells a command line asks for; returns the exit code.

    0: all are finished; 2: something the user can mend, or cells that failed, which are named; 128 + signal:
    asked to stop, saved, and to be gone on with.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    return terminal.answer(lambda: _main(arguments))


def _main(argv: Sequence[str]) -> int:
    asked = parse(argv)
    if asked is None:
        print(f"{USAGE}\n\n{EXAMPLES}")
        return 0
    found = cells.build(asked.base, asked.over, asked.folder)
    failed = wrong(found)
    if asked.slurm is not None:
        return _write_array_job(asked, len(found))
    _check_page(asked)
    _prepare(asked.base)
    with interrupts.handle_signals():
        return _plan(found, failed) if asked.plan else run(asked, found, failed)


def parse(argv: Sequence[str]) -> Asked | None:
    """The command line; None where it asks for help. UserError on whatever is wrong with it."""
    fields, others = settings.split(argv)
    parser = terminal.Parser(prog="python -m mtkd_jax.sweep", description=None, add_help=False)
    parser.add_argument("--config")
    parser.add_argument("--over", action="append", default=[])
    parser.add_argument("--workdir")
    parser.add_argument("--plan", action="store_true")
    parser.add_argument("--shard")
    parser.add_argument("--slurm", nargs="?", const="")
    parser.add_argument("--into")
    parser.add_argument("--help", "-h", action="store_true")
    options = parser.parse_args(others)
    if options.help:
        return None
    for name in ("config", "over", "workdir"):
        if not getattr(options, name):
            raise UserError(f"--{name} is missing; usage: {USAGE}")
    _check_go_together(options)
    base = settings.load(options.config)
    for field, text in fields.items():
        settings.override(base, field, text)
    same = [f"--config={options.config}", *(f"--over={one}" for one in options.over)]
    same += [f"--workdir={options.workdir}", *(f"--config.{name}={text}" for name, text in fields.items())]
    return Asked(
        base,
        cells.parse(options.over, fields),
        paths.parse(options.workdir, "--workdir"),
        _shard("0/1" if options.shard is None else options.shard),
        options.plan,
        options.slurm,
        paths.parse(options.into, "--into") if options.into else None,
        tuple(same),
    )


def _check_go_together(options: argparse.Namespace) -> None:
    """Raise UserError for options of which one would be ignored."""
    does = {
        "plan": "trains and writes nothing, and is of all cells",
        "slurm": "writes an array job, whose tasks get their shards from it",
    }
    for one, others in (("plan", ("slurm", "shard", "into")), ("slurm", ("shard", "into"))):
        given = [other for other in others if getattr(options, other) is not None]
        if given and getattr(options, one) not in (None, False):
            raise UserError(f"--{one} and --{given[0]}: --{one} {does[one]}; leave out one of the two")


def _shard(text: str) -> tuple[int, int]:
    given = re.fullmatch(r"(\d+)/(\d+)", text)
    if given is None or int(given[1]) >= int(given[2]):
        raise UserError(f"--shard={text}: must be I/N with I from 0 to N - 1, such as 0/4")
    return int(given[1]), int(given[2])


def wrong(found: Sequence[Cell]) -> dict[str, str]:
    """{cell's name: what is wrong with its configuration}; nothing is loaded or trained."""
    failed = {}
    for cell in found:
        try:
            validation.validate(cell.config)
        except UserError as error:
            failed[cell.name] = str(error)
    if len(failed) == len(found):
        raise UserError(next(iter(failed.values())))  # nothing of it can work: perhaps not a swept field
    return failed


def _check_page(asked: Asked) -> None:
    """Raise UserError for a page that the table cannot be written into, before hours have gone by."""
    from mtkd_jax.report import document

    if asked.into is not None:
        document.around(asked.into, f"sweep {asked.folder}")


def _prepare(base: ConfigDict) -> None:
    """What has to be settled before JAX looks for devices."""
    mesh.use_devices(base.runtime.devices)
    workdir.use_compile_cache()


# --- running ------------------------------------------------------------------------------------------


def run(asked: Asked, found: Sequence[Cell], failed: Mapping[str, str], quiet: bool = False) -> int:
    """Run the cells of this shard that are not finished, and write the table of all; the exit code."""
    failed = dict(failed)
    with claimed(asked.folder):
        claim(asked.folder, asked.base, [cell.over for cell in found])
    place, number = asked.shard
    mine = [cell for n, cell in enumerate(found) if n % number == place]
    for line in _shared(mine):
        terminal.tell(f"mtkd_jax: {line}")
    try:
        run_cells(asked.folder, mine, failed, quiet)
    except interrupts.Interrupted:
        _write(asked, failed)  # what is finished is in the table
        raise
    _show(asked, *_write(asked, failed))
    own = {cell.name: failed[cell.name] for cell in mine if cell.name in failed}
    for name, why in own.items():
        terminal.tell(f"mtkd_jax: {name} failed: {why}")
    return terminal.MENDABLE if own else 0


def run_cells(folder: Path, mine: Sequence[Cell], failed: dict[str, str], quiet: bool = False) -> None:
    """Run cells one after the other in folders of their names; {name: why} of those that fail is added to.

    Raises Interrupted, with all that was trained saved, when the process is asked to stop.
    """
    from mtkd_jax import experiment

    useless: dict[Path, str] = {}  # lenders that failed, and why
    for number, cell in enumerate(mine, start=1):
        interrupts.check(f"{number - 1} of {len(mine)} cells are done with")
        if cell.name in failed:
            terminal.tell(f"mtkd_jax: cell {number} of {len(mine)}, {cell.name}: {failed[cell.name]}")
            continue
        terminal.tell(f"mtkd_jax: cell {number} of {len(mine)}, {cell.name}")
        lender = cell.lender
        try:
            if lender is not None and lender.folder in useless:
                raise UserError(useless[lender.folder])
            if lender is not None:
                with _noting(useless, lender.folder):
                    lend(lender, quiet)
            experiment.run(cell.config, folder / cell.name, quiet)
        except interrupts.Interrupted:
            raise
        except Exception as error:
            line = terminal.what_to_mend(error)
            if line is None:
                raise
            failed[cell.name] = line
            terminal.tell(f"mtkd_jax: {cell.name}: {line}")
        _forget_programs()


@contextlib.contextmanager
def _noting(useless: dict[Path, str], folder: Path) -> Iterator[None]:
    """Note why a lender fails, whatever of it the user can mend; to be asked to stop is no failure."""
    try:
        yield
    except interrupts.Interrupted:
        raise
    except Exception as error:
        if (why := terminal.what_to_mend(error)) is not None:
            useless[folder] = why
        raise


def lend(lender: Lender, quiet: bool = False) -> None:
    """Have the teachers of a lender trained, by this process or by another one that is at it already."""
    from mtkd_jax import experiment

    told = False
    while files.read_sealed(lender.folder / TRAINED, MEND) is None:
        try:
            with workdir.lock(lender.folder):
                pass  # free; `train` asks only once it has loaded the data, which may take minutes
            experiment.train(lender.config, lender.folder, quiet)
            files.write_sealed(lender.folder / TRAINED, {"run": workdir.read_run(lender.folder)})
        except workdir.InUse:
            if not told:
                terminal.tell(f"mtkd_jax: another process trains {lender.folder}; waiting for it")
            told = True
            time.sleep(SECONDS_BETWEEN_LOOKS)
            interrupts.check("nothing of this cell is begun")


def _shared(found: Sequence[Cell]) -> list[str]:
    """A line on every folder of teachers that several cells share."""
    of_folder: dict[Path, list[str]] = {}
    for cell in found:
        if cell.lender is not None:
            of_folder.setdefault(cell.lender.folder, []).append(cell.name)
    return [
        f"{len(names)} cell{'s share' if len(names) > 1 else ' has'} the teachers of {folder}, which are "
        "trained once: what these cells differ in does not reach them"
        for folder, names in of_folder.items()
    ]


def _forget_programs() -> None:
    """Forget what was compiled once there is much of it; the cache on disk has it."""
    import gc

    import jax

    try:
        with open(os.path.join(os.sep, "proc", "self", "maps"), "rb") as maps:
            many = sum(1 for _ in maps) > MOST_MAPS
    except OSError:  # not Linux
        many = True
    if many:
        jax.clear_caches()
        gc.collect()


# --- the folder ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Within it no other process writes the sweep's own files; waits for one that does."""
    while True:
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(workdir.lock(folder))
            except workdir.InUse:
                time.sleep(0.1)
                interrupts.check("no cell is at work")
                continue
            yield
            return


def claim(folder: Path, base: ConfigDict, overs: Sequence[Mapping[str, Any]]) -> None:
    """Note in `folder` what it is a sweep of, with these cells among those that are there already.

    Raises UserError where it is a run's, or another sweep's.
    """
    if (folder / "config.json").exists():
        raise UserError(f"{folder} holds a run and no sweep; choose another --workdir")
    before, over = files.read_sealed(folder / CELLS, MEND), list(overs[0])
    now = _without(configuration.canonicalise(base.to_dict()), over)
    known: list[dict[str, Any]] = []
    if before is not None:
        if before.get("over") != over:
            raise UserError(
                f"{folder} holds another sweep: it is over {', '.join(before.get('over', ()))} and not over "
                f"{', '.join(over)}; choose another --workdir"
            )
        was = _without(configuration.canonicalise(configuration.completed(before["config"])), over)
        if differing := workdir.differences(was, now):
            raise UserError(f"{folder} holds another sweep: {differing}; choose another --workdir")
        known = read_cells(folder)
    asked = (configuration.as_tuples(dict(one)) for one in overs)
    together = [*known, *(one for one in asked if one not in known)]
    files.write_sealed(
        folder / CELLS,
        {"config": now, "over": over, "cells": cells.distinct(together), "version": workdir.VERSION},
    )


def read_cells(folder: Path) -> list[dict[str, Any]]:
    """{field: value} of every cell that was ever asked for in a sweep's folder."""
    found = files.read_sealed(folder / CELLS, MEND)
    if found is None or not isinstance(found.get("cells"), list):
        raise UserError(f"{folder / CELLS}: not what a sweep writes; {MEND}")
    known = [configuration.as_tuples(one) for one in found["cells"]]
    return [one for place, one in enumerate(known) if one not in known[:place]]


def _without(tree: dict[str, Any], over: Sequence[str]) -> dict[str, Any]:
    """A configuration as a dict, without some of its fields."""
    for field in over:
        *groups, name = field.split(".")
        group = tree
        for inner in groups:
            group = group[inner]
        group.pop(name, None)
    return tree


def _write(asked: Asked, failed: Mapping[str, str]) -> tuple[list, list]:
    """Make the table of all cells again; (what is told of each, its rows)."""
    from mtkd_jax.report import document, sweeps

    with claimed(asked.folder):
        told = sweeps.read(asked.folder, read_cells(asked.folder), failed)
        found = sweeps.write(asked.folder, told, list(asked.over))
    if asked.into is not None:
        text, images = sweeps.page(asked.folder, told, found, list(asked.over))
        document.put_into(asked.into, f"sweep {asked.folder}", text, images)
    return told, found


def _show(asked: Asked, told: list, found: list) -> None:
    from mtkd_jax.report import sweeps

    out = terminal.console()
    if found:
        out.print(sweeps.terminal(found, list(asked.over)))
        out.print(sweeps.caption(told, found), style="dim", markup=False, highlight=False)
        out.print(f"\n{sweeps.best_line(found)}", markup=False, highlight=False)
    for line in sweeps.state(told):
        out.print(line, markup=False, highlight=False)
    out.print(f"The table and its plot: {asked.folder / 'sweep.md'}", markup=False, highlight=False)


# --- before it is run ---------------------------------------------------------------------------------


def _plan(found: Sequence[Cell], failed: Mapping[str, str]) -> int:
    """Print every cell, and what it would cost by formula."""
    from mtkd_jax import experiment
    from mtkd_jax.report import cell_text, rendering, tables

    rows, total = [], [0.0, 0.0]
    lenders = {cell.lender.folder: cell.lender for cell in found if cell.lender is not None}
    asked: list[tuple[str, Callable[[], Iterable]]] = [
        (folder.name, partial(experiment.costs, lender.config)) for folder, lender in lenders.items()
    ]
    asked += [(cell.name, partial(_costs, cell)) for cell in found if cell.name not in failed]
    for name, costs in asked:
        interrupts.check("nothing is begun")
        terminal.tell(f"mtkd_jax: tracing {name}")
        stages = list(costs())
        flops, seconds = (sum(getattr(stage, part) for stage in stages) for part in ("flops", "seconds"))
        total = [total[0] + flops, total[1] + seconds]
        rows.append([name, str(len(stages)), cell_text.short_count(flops), f"{seconds:.1f}"])
    rows.append(["all", "", cell_text.short_count(total[0]), f"{total[1]:.1f}"])
    terminal.console().print(rendering.render(["cell", "stages", "FLOPs ~", "s ~"], rows))
    print(f"{tables.ESTIMATED_CAPTION}{tables.COSTS_CAPTION}")
    if lenders:
        print(f"{cells.TEACHERS}: trained once, for all cells that no swept field gives other teachers.")
    for name, why in failed.items():
        terminal.tell(f"mtkd_jax: {name} would fail: {why}")
    return terminal.MENDABLE if failed else 0


def _costs(cell: Cell) -> list:
    """Of what the cell trains itself: its own teachers only where it is lent none."""
    from mtkd_jax import experiment
    from mtkd_jax.plans import teachers

    if cell.lender is None:
        return list(experiment.costs(cell.config))
    alone = cell.config.copy_and_resolve_references()
    configuration.put(alone, "teachers.from_run", "")
    for name in ("init_from", "mean", "std"):
        configuration.put(alone, f"teachers.{name}", cell.lender.config.teachers[name])
    of_all = experiment.costs(alone)
    return [stage for stage in of_all if not stage.stage.startswith(teachers.STAGE_PREFIX)]


ARRAY_JOB = """\
#!/usr/bin/env bash
# Written by mtkd_jax.sweep --slurm. Resources are given to sbatch:
#     sbatch --time=2:00:00 --gres=gpu:1 {file}
#SBATCH --job-name={name}
#SBATCH --array=0-{last}{at_once}
#SBATCH --chdir={here}
#SBATCH --output={folder}/slurm-%a.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@120
# Two minutes before the time is over Slurm sends SIGTERM to this shell; the sweep saves and ends with 143,
# and the task goes back into the queue, where the same command goes on.
set -u
{command} --shard="$SLURM_ARRAY_TASK_ID/{number}" &
child=$!
trap 'kill -TERM "$child"' TERM
while true; do
  wait "$child"
  code=$?
  if [ "$code" -le 128 ] || ! kill -0 "$child" 2>/dev/null; then break; fi  # a trap ends a wait, too
done
if [ "$code" = 143 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
"""


def array_job(arguments: Sequence[str], slurm: str, num_cells: int, folder: Path, here: Path) -> str:
    """The text of an sbatch file whose tasks run the shards of what a command line asks for.

    slurm: "", "TASKS" or "TASKS%AT_ONCE"; without TASKS a task for each cell.
    """
    given = re.fullmatch(r"(\d*)(%\d+)?", slurm)
    number = int(given[1] or num_cells) if given else 0
    if not given or number < 1 or given[2] == "%0":
        raise UserError(f"--slurm={slurm}: must be TASKS or TASKS%AT_ONCE, such as 9%3")
    if re.search(r"[\s%\\]", f"{here}{folder}"):
        raise UserError(f"--slurm: sbatch does not take {str(here / folder)!r}, for blanks, % or \\ in it")
    return ARRAY_JOB.format(
        file=folder / "sweep.sbatch",
        name=re.sub(r"[^\w.-]", "-", folder.name) or "sweep",
        last=number - 1,
        at_once=given[2] or "",
        here=here,
        folder=folder,
        number=number,
        command=shlex.join([sys.executable, "-m", "mtkd_jax.sweep", *arguments]),
    )


def _write_array_job(asked: Asked, num_cells: int) -> int:
    text = array_job(asked.same, asked.slurm or "", num_cells, asked.folder, Path.cwd())
    path = asked.folder / "sweep.sbatch"
    with claimed(asked.folder):
        files.write_atomically(path, text.encode())
    print(f"sbatch {path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
