"""`python -m mtkd_jax.main --config=configs/digits.py --workdir=runs/digits`: flags in, experiment.run.

What the user can mend ends with one line on stderr and exit code 2.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import warnings
from collections.abc import Sequence

from absl import flags
from ml_collections import ConfigDict, config_flags

from mtkd_jax import interrupts
from mtkd_jax.types import UserError

USAGE = "python -m mtkd_jax.main --config=FILE.py[:VARIANT] --workdir=FOLDER|--plan [--config.a.b=value ...]"


def main(argv: Sequence[str]) -> int:
    """Run what the command line asks for; returns the exit code.

    0: done; 2: something the user can mend; 128 + signal: asked to stop, saved, and to be gone on with.
    """
    try:
        options = parse(argv)
        if options.list:
            from mtkd_jax import config

            print(config.listing())
            return 0
        _prepare(options.config, options.processes)
        if options.plan:
            return _plan(options.config)
        with interrupts.listening():
            return _run(options.config, options.workdir)
    except interrupts.Interrupted as stopped:
        name = signal.Signals(stopped.signal).name
        print(f"mtkd_jax: stopped by {name}; {stopped}; the same command goes on from there", file=sys.stderr)
        return 128 + stopped.signal
    except UserError as error:
        print(f"mtkd_jax: {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that has become read-only
        print(f"mtkd_jax: {error.filename or 'writing'}: {error.strerror or error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("mtkd_jax: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 128 + signal.SIGINT


def parse(argv: Sequence[str]) -> flags.FlagValues:
    """The command line's flags; UserError on whatever is wrong with it."""
    values = flags.FlagValues()
    config_flags.DEFINE_config_file(
        "config", None, "FILE.py or FILE.py:VARIANT", lock_config=True, flag_values=values
    )
    flags.DEFINE_string("workdir", None, "the folder the run lives in", flag_values=values)
    flags.DEFINE_bool("list", False, "print every mode, rule, model, source and plan", flag_values=values)
    flags.DEFINE_bool("plan", False, "print what every stage would cost, and end", flag_values=values)
    flags.DEFINE_string(
        "processes", "", "one of several: auto, or PLACE/NUMBER@HOST:PORT of the first", flag_values=values
    )
    flags.DEFINE_bool("help", False, "print this", short_name="h", flag_values=values)
    path = _config_file(argv)
    try:
        surplus = _parsed(values, argv)
    except flags.Error as error:
        if "Traceback" in str(error):  # out of the configuration file, which is the user's own code
            raise UserError(f"{path}: {_last_line(error)}") from None
        raise UserError(f"{_one_line(error)}; usage: {USAGE}") from None
    except AttributeError as error:
        raise UserError(_unknown_field(argv, path, error)) from None
    except Exception as error:  # as above: anything may come out of it
        raise UserError(f"{path}: {type(error).__name__}: {_one_line(error)}") from None
    if surplus:
        raise UserError(f"{surplus[0]!r} is not understood; options start with --; usage: {USAGE}")
    if values.help:
        print(f"{__doc__}\n\n{USAGE}\n\n{values.main_module_help() or values.get_help()}")
        raise SystemExit(0)
    if not values.list:
        _require(values)
    return values


def _parsed(values: flags.FlagValues, argv: Sequence[str]) -> list[str]:
    """Parse `argv` into `values`; returns what is no flag.

    ml_collections reads overrides from sys.argv, whatever it is given, and loads files by a deprecated call.
    """
    before = sys.argv
    sys.argv = list(argv)
    try:
        with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
            return values(list(argv))[1:]
    finally:
        sys.argv = before


def _config_file(argv: Sequence[str]) -> str:
    """The file --config names, checked to be there before anything runs it."""
    given = list(argv)
    for place, argument in enumerate(given):
        name, _, value = argument.lstrip("-").partition("=")
        if argument.startswith("-") and name == "config":
            value = value or (given[place + 1] if place + 1 < len(given) else "")
            path = value.partition(":")[0]
            if not os.path.isfile(path):
                raise UserError(
                    f"--config={value}: there is no file {path!r}; configs/ holds some to start from"
                )
            return path
    return ""


def _require(values: flags.FlagValues) -> None:
    for name in ("config",) if values.plan else ("config", "workdir"):
        if values[name].value is None:
            raise UserError(f"--{name} is missing; usage: {USAGE}")
    if not isinstance(values.config, ConfigDict):
        raise UserError(f"--config: get_config() returned {type(values.config).__name__}, not a ConfigDict")


def _unknown_field(argv: Sequence[str], path: str, error: AttributeError) -> str:
    from mtkd_jax import config

    known = {name for name, _ in config.fields(config.default())}
    for argument in argv:
        name = argument.lstrip("-").partition("=")[0].removeprefix("noconfig.").removeprefix("config.")
        if argument.lstrip("-").startswith(("config.", "noconfig.")) and name not in known:
            return f"config.{name} does not exist{config.nearest_field(name)}"
    return f"{path}: AttributeError: {_one_line(error)}"


def _last_line(error: Exception) -> str:
    # What comes out of the file is a traceback, on one line if the last of it was a UserError.
    lines = str(error).replace("\\n", "\n").strip().splitlines()
    return lines[-1].removeprefix(f"{UserError.__module__}.{UserError.__name__}: ")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _prepare(config: ConfigDict, processes: str) -> None:
    """What has to be settled before JAX looks for devices."""
    from mtkd_jax import config as configuration
    from mtkd_jax import mesh, workdir

    configuration.validate(config)
    mesh.use_devices(config.runtime.devices)
    if processes:
        mesh.join(processes)
    workdir.use_compile_cache()


def _plan(config: ConfigDict) -> int:
    from mtkd_jax import experiment, report, tables

    stages = [cost._asdict() for cost in experiment.costs(config)]
    report.console().print(tables.drawn(*tables.costs(stages)))
    print("Of training alone, without compiling; evaluation and report come on top.")
    return 0


def _run(config: ConfigDict, into: str) -> int:
    from mtkd_jax import experiment, report

    begun = time.perf_counter()
    result = experiment.run(config, into)
    report.show(result, into)
    print(f"Took {time.perf_counter() - begun:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
