"""`mtkd COMMAND ...`, and `python -m mtkd_jax COMMAND ...`: every command line of the package under one name.

They are the same as `python -m mtkd_jax.main`, `.report` and so on.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from mtkd_jax.system import terminal


class Command(NamedTuple):
    module: str  # whose `main` answers it
    what: str
    example: str


COMMANDS = {
    "run": Command("main", "train, compare and report", "--config=digits --workdir=runs/digits"),
    "sweep": Command(
        "sweep",
        "the same for every combination of some fields' values, in one table",
        "--config=digits --over config.students.temperatures=1,2,4 --workdir=runs/temperatures",
    ),
    "leaderboard": Command(
        "leaderboard",
        "twenty-one modes on several data sets, ranked, with controls",
        "--workdir=runs/leaderboard --data=digits,usps",
    ),
    "report": Command("report.document", "rebuild the report of a run, or merge several", "runs/digits"),
    "data": Command("report.overview", "look at data before it is trained on", "npz --path mine.npz"),
    "predict": Command("deploy.predict", "ask an exported student", "--student runs/digits/student photos/"),
    "logits": Command("logits", "write what the teachers of a run say", "runs/digits --into teachers.npz"),
    "export": Command("export", "a student as ONNX or int8, and its costs", "runs/digits --forms onnx int8"),
    "fusion": Command("laboratory.rule_study", "compare rules of fusion on a finished run", "runs/digits"),
    "replicate": Command(
        "replicate",
        "train a cell of a published table again",
        "crd/cifar-100/resnet56-resnet20/kd --workdir=runs/r56",
    ),
    "benchmark": Command("benchmark.__main__", "measure what the engine costs", "members --quick"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Do what a command says with the arguments behind it; returns its exit code."""
    terminal.begin()
    command, *arguments = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if command not in COMMANDS:
        return terminal.answer(lambda: _without_command(command))
    module = importlib.import_module(f"mtkd_jax.{COMMANDS[command].module}")
    return module.main([f"mtkd {command}", *arguments] if command == "run" else arguments)


def _without_command(asked: str) -> None:
    if asked in ("--help", "-h"):
        print(_usage())
        return
    from mtkd_jax import __version__
    from mtkd_jax.system.spelling import hint
    from mtkd_jax.types import UserError

    if asked != "--version":
        raise UserError(f"there is no command {asked!r}{hint(asked, COMMANDS)}")
    print(__version__)


def _usage() -> str:
    lines = [f"  {command.what}:\n      mtkd {name} {command.example}" for name, command in COMMANDS.items()]
    return "\n".join(["mtkd COMMAND ...", *lines, "mtkd COMMAND --help shows what a command takes."])


if __name__ == "__main__":
    sys.exit(main())
