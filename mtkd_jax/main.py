"""python -m mtkd_jax.main --config=digits --workdir=runs/digits: a configuration in, experiment.run.

What the user can mend ends with one line on stderr and exit code 2.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from ml_collections import ConfigDict

from mtkd_jax import settings
from mtkd_jax.system import interrupts, paths, terminal
from mtkd_jax.system.spelling import hint
from mtkd_jax.types import UserError

USAGE = (
    "python -m mtkd_jax.main --config=NAME|FILE.py[:VARIANT] --workdir=FOLDER|--plan|--power "
    "[--config.a.b=value ...]"
)
PLANS = ("estimated", "timed")  # --plan alone is the first
EXAMPLES = """\
Train, compare and report; the same command goes on where it was interrupted:

    python -m mtkd_jax.main --config=digits --workdir=runs/digits
    python -m mtkd_jax.main --config=digits:smoke --workdir=runs/try --config.train.epochs=40
    python -m mtkd_jax.main --config=mine.py --workdir=runs/mine \\
        --config.model.name='cnn(widths=(32, 64))' --config.students.modes=mimic_all,logits.dkd \\
        --config.students.alphas=0,0.5 --config.data.augment.flip \\
        --config.students.arguments="{'logits.dkd': {'nontarget_weight': (2.0, 8.0)}}"
    python -m mtkd_jax.main --config=digits --plan        what it would cost; --plan=timed: from timed steps
    python -m mtkd_jax.main --config=digits --power       seeds that comparisons need, from a pilot of two;
        --power=4 of four, --workdir=runs/digits from the run there, which is trained if it is missing
    python -m mtkd_jax.main --list                        every mode, rule, model, source and plan
    python -m mtkd_jax.main --list logits.dkd             all that is known of one of them
    python -m mtkd_jax.main --list --with mine.py         those of your own file or package.module, too
    python -m mtkd_jax.main --list mine.py:softer         all that is known of one of those

Of a field or option given twice the last one counts. Values are literals, and nothing in them is executed
but the files that they name: mine.py:softer(weight=2.0) is the function softer of your file mine.py."""


def main(argv: Sequence[str]) -> int:
    """Run what the command line asks for; returns the exit code.

    0: done; 2: something the user can mend; 128 + signal: asked to stop, saved, and to be gone on with.
    """
    return terminal.answer(lambda: _main(argv))


def _main(argv: Sequence[str]) -> int:
    options = parse(argv)
    if options.help:
        print(f"{USAGE}\n\n{EXAMPLES}\n\n{settings.help_text(shutil.get_terminal_size((100, 24)).columns)}")
        return 0
    if options.list is not None:
        from mtkd_jax import listing

        own = [one.strip() for text in vars(options)["with"] for one in text.split(",")]
        print(listing.listing(options.list, own))
        return 0
    _prepare(options.config, options.processes)
    if options.plan:
        return _plan(options.config, options.plan)
    from mtkd_jax import mesh

    with mesh.together(), interrupts.handle_signals():
        if options.power:
            return _power(options.config, options.power, options.workdir)
        return _run(options.config, options.workdir)


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """The command line's options, `config` as a ConfigDict; UserError on whatever is wrong with it."""
    fields, others = settings.split(argv[1:])
    parser = terminal.Parser(prog="python -m mtkd_jax.main", description=None, add_help=False)
    parser.add_argument("--config")
    parser.add_argument("--workdir")
    parser.add_argument("--list", nargs="?", const="", metavar="NAME")
    parser.add_argument("--with", action="append", default=[], metavar="FILE.py|MODULE")
    parser.add_argument("--plan", nargs="?", const=PLANS[0])
    parser.add_argument("--power", nargs="?", const="2", metavar="SEEDS")
    parser.add_argument("--processes", default="", metavar="auto|PLACE/NUMBER@HOST:PORT")
    parser.add_argument("--help", "-h", action="store_true")
    options, surplus = parser.parse_known_args(others)
    if surplus:
        raise UserError(_surplus(surplus[0], vars(options)))
    if vars(options)["with"] and options.list is None:
        raise UserError("--with names files of your own for --list; give both")
    if options.list is None and not options.help:
        _require(options)
        options.config = settings.load(options.config)
        for field, text in fields.items():
            settings.override(options.config, field, text)
    return options


def _require(options: argparse.Namespace) -> None:
    if options.plan not in (None, *PLANS):
        raise UserError(f"--plan={options.plan} must be one of {', '.join(PLANS)}{hint(options.plan, PLANS)}")
    if options.power is not None:
        if not options.power.isdecimal() or int(options.power) < 2:
            raise UserError(f"--power={options.power} must be a number of seeds, 2 or more")
        options.power = int(options.power)
        if options.plan:
            raise UserError("--plan and --power: one trains nothing, the other a pilot; give one of them")
        if options.processes and options.workdir is None:
            raise UserError("--power with --processes: --workdir is missing; name a folder that all share")
    for name in ("config",) if options.plan or options.power else ("config", "workdir"):
        if getattr(options, name) is None:
            raise UserError(f"--{name} is missing; usage: {USAGE}")
    if options.workdir is not None:
        options.workdir = paths.parse(options.workdir, "--workdir")


def _surplus(argument: str, known: Iterable[str]) -> str:
    if not argument.startswith("-"):
        return f"{argument!r} is not understood; options start with --; usage: {USAGE}"
    name = argument.lstrip("-").partition("=")[0]
    return f"--{name} does not exist{hint(f'--{name}', [f'--{option}' for option in known])}"


def _prepare(config: ConfigDict, processes: str) -> None:
    """What has to be settled before JAX looks for devices."""
    from mtkd_jax import mesh, validation
    from mtkd_jax.runs import workdir

    validation.validate(config)
    mesh.use_devices(config.runtime.devices)
    if processes:
        mesh.join(processes)
    workdir.use_compile_cache()


def _plan(config: ConfigDict, how: str) -> int:
    terminal.tell("mtkd_jax: reading the data, tracing every stage")
    from mtkd_jax import config as configuration
    from mtkd_jax import experiment
    from mtkd_jax.report import rendering, tables

    stages = []
    for cost in experiment.costs(config, timed=how == "timed"):
        stages.append(cost._asdict())
        terminal.tell(f"mtkd_jax: {tables.cost_line(stages[-1])}")
    terminal.console().print(rendering.render(*tables.costs(stages)))
    print(tables.costs_caption(stages))
    if configuration.further_seeds(config):
        first, most = len(configuration.first_seeds(config)), config.students.max_seeds
        print(
            f"Of the first {first} seeds; at most {most} are trained, those after the first without the grid."
        )
    return 0


def _power(config: ConfigDict, num_seeds: int, into: Path | None) -> int:
    from mtkd_jax import experiment
    from mtkd_jax.report import findings, rendering, tables
    from mtkd_jax.results import power

    report = experiment.pilot(config, num_seeds, into)
    planned = power.plan(report)
    if planned:
        terminal.console().print(rendering.render(*tables.seeds_needed(planned)))
        print(tables.SEEDS_CAPTION.format(margin=100 * report["margin"]))
    print("\n".join(findings.seeds_needed(planned, report)))
    return 0


def _run(config: ConfigDict, into: Path) -> int:
    from mtkd_jax import experiment
    from mtkd_jax.report import document

    begun = time.perf_counter()
    result = experiment.run(config, into)
    try:
        document.show(result, into)
        print(f"Took {time.perf_counter() - begun:.0f} s.", flush=True)
    except (
        OSError
    ) as error:  # all is done and written: whoever looks at the terminal has gone, or a log is full
        terminal.redirect_to_null(sys.stdout)
        if not isinstance(error, BrokenPipeError):
            terminal.tell(f"mtkd_jax: not shown ({error.strerror}); it is in {into}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
