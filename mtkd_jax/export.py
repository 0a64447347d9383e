"""`python -m mtkd_jax.export runs/digits --forms onnx int8`: the student in further forms, and their costs.

Reads the student/ of a run, or a student's folder alone; writes the forms into it and measures every form
that is there: bytes on disk, milliseconds of 1 and of 64 images on this machine, how far its logits are from
the student's. Of a run whose data are still where they were also its accuracy on the test set, beside that of
the float32 student; onnx_int8 is made for such a run alone, for it takes the ranges of activations from its
validation images. The table is printed, and stands in the student's README.md and model.json.
--demo writes demo.html, a page for a browser that answers for images, see deploy/demo.py. model.onnx, which
is in it, is made first where there is none; ONNX Runtime Web, also in it, comes from --ort, or through npm.
Exit code 0: done; 2: an error that the user can mend, in one line.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ml_collections import ConfigDict
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from mtkd_jax.system import terminal
from mtkd_jax.system.spelling import hint
from mtkd_jax.types import UserError

if TYPE_CHECKING:
    from mtkd_jax.data.loading import Split


def main(argv: Sequence[str] | None = None) -> int:
    """Export a student in further forms; returns the exit code."""
    return terminal.answer(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    asked = _parse(argv)
    from mtkd_jax import config
    from mtkd_jax.addresses import build_model
    from mtkd_jax.results import forms
    from mtkd_jax.runs import workdir

    student = asked.folder / "student" if (asked.folder / "student").is_dir() else asked.folder
    if not (student / "model.json").exists():
        raise UserError(f"{asked.folder}: holds no student; give a finished run, or its student/")
    run, settings = workdir.around(student)
    found = None if settings is None else config.restored(settings)

    def export(names: Sequence[str]) -> dict[str, Any]:
        split = _split_of(run, found)
        return forms.export_forms(student, names, build_model, split)

    with contextlib.nullcontext() if found is None else config.own_files(found):
        if asked.demo:
            _write_demo(student, asked, export)
        else:
            _tell(export(asked.forms))


def _write_demo(
    student: Path, asked: argparse.Namespace, export: Callable[[Sequence[str]], dict[str, Any]]
) -> None:
    """The page, after the forms that are asked for or missing; nothing is written without its runtime."""
    from mtkd_jax.deploy import demo, deployed, predict
    from mtkd_jax.deploy import forms as made

    card = deployed.read_card(student / "model.json")
    demo.check(card)
    names = [*asked.forms]
    if made.ONNX not in card.get("forms", {}).get("files", {}) and "onnx" not in names:
        names.append("onnx")
    made.check_packages(names)
    if asked.ort is None:
        terminal.tell(f"note: npm fetches {demo.RUNTIME} for the page; --ort FOLDER takes one that is there")
    runtime = demo.fetch_runtime() if asked.ort is None else demo.read_runtime(asked.ort)
    if names:
        _tell(export(names))
    for note in predict.unlike_training(card["input"], "", ()):
        terminal.tell(f"note: {note}")
    path = demo.write(student, runtime)
    print(f"{path}: {path.stat().st_size:_} bytes; open it in a browser")


def _tell(card: Mapping[str, Any]) -> None:
    from mtkd_jax.deploy import export

    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    header, rows = export.forms_table(card)
    for place, column in enumerate(header):
        table.add_column(column, justify="left" if place < 2 else "right", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    terminal.console().print(table)
    print(export.forms_caption(card))


def _split_of(run: Path, config: ConfigDict | None) -> Split | None:
    """The data of the run, of that configuration, that a student lies in; None and a note without them."""
    from mtkd_jax import experiment
    from mtkd_jax.runs import workdir

    try:
        if config is None:
            terminal.tell("note: no run lies around this student: its accuracy is not measured")
            return None
        split = experiment.load_split(config)
        workdir.check(run, config, split)
        return split
    except UserError as error:
        terminal.tell(f"note: the accuracy on the test set is not measured: {error}")
        return None


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = terminal.Parser("python -m mtkd_jax.export", __doc__)
    parser.add_argument("folder", type=terminal.path, metavar="RUN", help="a finished run, or its student/")
    parser.add_argument(
        "--forms",
        nargs="+",
        default=(),
        metavar="FORM",
        help="onnx, int8, onnx_int8; without it those there are told",
    )
    parser.add_argument("--demo", action="store_true", help="write demo.html, a page that classifies images")
    parser.add_argument(
        "--ort", type=terminal.path, metavar="FOLDER", help="onnxruntime-web for --demo, unpacked or its .tgz"
    )
    asked = parser.parse_args(argv)
    if asked.ort is not None and not asked.demo:
        raise UserError("--ort: is for --demo, which is not asked for")
    from mtkd_jax.config import FORMS

    for name in asked.forms:
        if name not in FORMS:
            raise UserError(f"--forms {name}: must be of {', '.join(FORMS)}{hint(name, FORMS)}")
    return asked


if __name__ == "__main__":
    sys.exit(main())
