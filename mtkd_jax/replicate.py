"""`python -m mtkd_jax.replicate crd/cifar-100/resnet56-resnet20/kd --workdir=runs/r56`: a number, again.

Trains what a cell of a published table was trained by (plans/published.py), and says whether the published
number lies inside the interval of ours, over seeds. Meant for a GPU; --smoke runs the same machinery in
seconds, and its number means nothing. --list names all cells, and why some cannot be repeated. Writes
replication.json beside the report; --into adds the row to the table of a page, or replaces it.
Exit code 0: done; 2: an error that the user can mend, in one line.
"""

from __future__ import annotations

import argparse
import datetime
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mtkd_jax.system import interrupts, paths, terminal
from mtkd_jax.system.spelling import nearest
from mtkd_jax.types import UserError

MARK = "replications"  # the table on a page stands between <!-- replications --> and <!-- end -->
HEADER = ("cell", "published", "ours", "n", "published lies", "difference", "device", "date", "versions")
LIES = {
    "inside": "inside our interval",
    "above": "above it",
    "below": "below it",
    "": "(one seed: no interval)",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Repeat a published cell; returns the exit code."""
    return terminal.answer(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    asked = _parse(argv)
    from mtkd_jax import mesh
    from mtkd_jax.plans import published
    from mtkd_jax.runs import workdir

    if asked.list is not None:
        print(listing(published.cells(), asked.list))
        return
    cell = published.find(asked.cell)
    from mtkd_jax.report import document

    if asked.into is not None:
        document.around(asked.into, MARK)  # whether the row has a place, before hours of training
    config = published.build(cell, asked.seeds, asked.data)
    if asked.smoke:
        published.shrink(config)
    mesh.use_devices(config.runtime.devices)
    workdir.use_compile_cache()
    from mtkd_jax import experiment

    with mesh.together(), interrupts.handle_signals():
        report = experiment.run(config, asked.workdir)
    found = compare(cell, report, asked.smoke) | _where(asked.workdir)
    document.write_files(asked.workdir, {"replication.json": document.as_json(found)})
    if asked.into is not None:
        document.put_into(asked.into, MARK, lambda now: _with_row(now, found))
    print(in_words(found))


def compare(cell: Any, report: Mapping[str, Any], smoke: bool = False) -> dict[str, Any]:
    """The published number of a cell against the report of its repetition.

    {"cell", "paper", "table", "published" and "ours" (shares), "ci95" (over seeds; None of one), "n",
    "difference" (ours - published), "verdict": where the published number lies, "inside" our interval,
    "above" or "below" it, "" where there is none, "within_margin" (whether all of the interval is nearer to
    it than "margin"), "note", "smoke"}. Raises UserError where every network of ours broke down.
    """
    from mtkd_jax.plans import published

    role = "teacher" if cell.method in published.ALONE else "student"
    row = next((row for row in report["rows"] if row["role"] == role), None)
    if row is None:
        raise UserError(f"{cell.cell}: all {role}s broke down: there is no number of ours")
    theirs, ours = published.accuracy(cell), row["accuracy"]
    margin, verdict, is_within = report["margin"], "", False
    if ours["ci95"] is not None:
        low, high = ours["ci95"]
        verdict = "above" if theirs > high else "below" if theirs < low else "inside"
        is_within = theirs - margin < low and high < theirs + margin
    method = published.method(cell)
    return {
        "cell": cell.cell,
        "paper": cell.paper,
        "table": cell.table,
        "published": theirs,
        "ours": ours["mean"],
        "ci95": ours["ci95"],
        "n": row["n"],
        "difference": ours["mean"] - theirs,
        "verdict": verdict,
        "margin": margin,
        "within_margin": is_within,
        "note": method.note if method else "",
        "smoke": smoke,
    }


def in_words(found: Mapping[str, Any]) -> str:
    """What `compare` found, in a paragraph."""
    shown = _cells(found)
    seeds = "one seed" if found["n"] == 1 else f"{found['n']} seeds"
    lies, near = "", ""
    if found["ci95"] is not None:
        lies = f"the published number lies {shown[4]}, "
        share = "all" if found["within_margin"] else "not all"
        near = f"; {share} of our interval is within {100 * found['margin']:g} points of the published number"
    lines = [
        f"{found['cell']}: published {shown[1]}, ours {shown[2]} over {seeds}: {lies}ours minus published is "
        f"{shown[5]} points{near}."
    ]
    lines += [f"Published by {found['paper']}: {found['table']}." if found["paper"] else f"{found['table']}."]
    if found["note"]:
        lines.append(f"Not to the letter: {found['note']}.")
    if found["smoke"]:
        lines.append("This was --smoke: made-up images and other networks; these numbers mean nothing.")
    return "\n".join(lines)


def listing(cells: Mapping[str, Any], text: str = "") -> str:
    """Every cell whose name holds a text: those that can be repeated, then the others with the reason."""
    from mtkd_jax.plans import published

    chosen = {name: cell for name, cell in cells.items() if text.lower() in name}
    if not chosen:
        close = nearest(text, cells)
        like = f"; did you mean {close!r}?" if close else "; --list names all"
        raise UserError(f"no published cell has {text!r} in its name{like}")
    why = {name: published.lacking(cell) for name, cell in chosen.items()}
    told = {name: f"  {name}  {100 * published.accuracy(cell):.2f} %" for name, cell in chosen.items()}
    can, cannot = [n for n in why if not why[n]], [n for n in why if why[n]]
    lines = [f"{len(can)} of {len(chosen)} can be repeated:", *(told[name] for name in can)]
    return "\n".join([*lines, "cannot:", *(f"{told[name]}  {why[name]}" for name in cannot)])


def _cells(found: Mapping[str, Any]) -> list[str]:
    """The row of a page, under HEADER; what a smoke run says is marked."""
    percent, bounds = f"{100 * found['ours']:.2f}", found["ci95"]
    if bounds is not None:
        percent += f" [{100 * bounds[0]:.2f}, {100 * bounds[1]:.2f}]"
    return [
        found["cell"] + (" (smoke)" if found["smoke"] else ""),
        f"{100 * found['published']:.2f}",
        percent,
        str(found["n"]),
        "(smoke: nowhere)" if found["smoke"] else LIES[found["verdict"]],
        f"{100 * found['difference']:+.2f}",
        *(found.get(name, "") for name in ("device", "date", "versions")),
    ]


def _with_row(page: str, found: Mapping[str, Any]) -> str:
    """The table of a page with this row added, or put in the place of an earlier one of the same cell."""
    from mtkd_jax.report import rendering

    new = _cells(found)
    table = [line.strip().strip("|").split("|") for line in page.splitlines() if line.startswith("|")][2:]
    rows = {cells[0].strip(): [cell.strip() for cell in cells] for cells in table}
    return rendering.markdown(HEADER, list({**rows, new[0]: new}.values()))


def _where(folder: Path) -> dict[str, str]:
    """On which device, when and with which versions a run was made."""
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    packages = environment["packages"]
    return {
        "device": ", ".join(dict.fromkeys(environment["devices"])),
        "date": datetime.date.today().isoformat(),
        "versions": ", ".join(f"{name} {packages[name]}" for name in ("mtkd_jax", "jax") if name in packages),
    }


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = terminal.Parser(prog="python -m mtkd_jax.replicate", description=__doc__)
    parser.add_argument("cell", nargs="?", default="", metavar="NAME", help="a cell, as --list names it")
    parser.add_argument("--workdir", help="folder of the run; the same command goes on where it stopped")
    parser.add_argument(
        "--data", default="", metavar="PATH", help="the archive as published, or an .npz of it"
    )
    parser.add_argument("--seeds", type=int, default=5, help="how many students (default: 5)")
    parser.add_argument("--smoke", action="store_true", help="in seconds, with made-up images")
    parser.add_argument("--list", nargs="?", const="", metavar="TEXT", help="the cells whose name holds TEXT")
    parser.add_argument(
        "--into", type=Path, metavar="FILE.md", help="add or replace the row of a page's table"
    )
    asked = parser.parse_args(argv)
    if asked.list is None and not (asked.cell and asked.workdir):
        raise UserError("give the NAME of a cell and --workdir=FOLDER, or --list")
    if asked.seeds < 1:
        raise UserError(f"--seeds={asked.seeds}: must be 1 or more")
    if asked.workdir:
        asked.workdir = paths.parse(asked.workdir, "--workdir")
    return asked


if __name__ == "__main__":
    sys.exit(main())
