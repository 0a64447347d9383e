"""The table of a sweep: the rows of all its cells under one head, as text, CSV and JSON, and its plot."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Group

from mtkd_jax.plans import cells as naming
from mtkd_jax.report import cell_text, document, rendering, style, sweep_plots, wording
from mtkd_jax.runs import workdir
from mtkd_jax.system.text import in_markdown
from mtkd_jax.types import UserError

STUDENTS = ("student", "average", "baseline", "control")  # roles that the table shows, where there are any
IN_FILES_ALONE = ("FLOPs", "n", "gain")  # columns for which a terminal of 100 has no place
CAPTION = (
    "accuracy: test, mean [95 % interval] over seeds. gain: points of accuracy over the baseline of the same "
    "cell, paired, its interval not corrected. verdict: on accuracy, against the baseline of the same "
    "cell, corrected for the comparisons within a cell and not for the number of cells. val NLL: validation, "
    "by which *, the best {kind} of all {number} in the table, is chosen; the test set chose nothing. s: of "
    "training a row."
)
ON_OTHER_IMAGES = (
    " The cells were validated on different images: that one has a lower NLL than another may be chance of "
    "the images."
)


class Told(NamedTuple):
    """What is known of a cell."""

    name: str
    over: Mapping[str, Any]  # {swept field: its value here}
    report: dict | None  # None: not finished
    why: str  # it failed; "" where it did not, or nobody knows
    validated_on: str = ""  # what names the validation images; "" where it is not known


def read(folder: Path, cells: Sequence[Mapping[str, Any]], failed: Mapping[str, str]) -> list[Told]:
    """What stands in a sweep's `folder` of its cells, {field: value} each; failed: {name: why}."""
    found = []
    for over in cells:
        name = naming.name(over)
        report = workdir.read_report(folder / name)
        if report is not None and not document.can_be_shown(report):  # an earlier version's
            report = None
        try:
            identity = workdir.read_data_identity(folder / name)
        except UserError:
            identity = {}
        validated_on = f"{identity.get('data_sha256', '')}{identity.get('split_sha256', '')}"
        found.append(Told(name, over, report, failed.get(name, ""), validated_on if report else ""))
    return found


def rows(told: Sequence[Told]) -> list[dict[str, Any]]:
    """A row for each of every finished cell's report: {"cell", "over", "best", "gain", ...}.

    The others are those of `results.scoring`.

    "best" is one row's: that of the lowest validation NLL among students, or where there are none teachers.
    "gain" is the accuracy less that of the cell's baseline, paired: {"mean", "ci95"}, or None.
    """
    found = [
        {"cell": one.name, "over": dict(one.over), **row}
        | {"name": _title(row, one.report), "gain": _gain(row, one.report), "best": False}
        for one in told
        if one.report is not None
        for row in one.report["rows"]
    ]
    chosen = min(_candidates(found), key=lambda row: row["val"]["nll"], default=None)
    if chosen is not None:
        chosen["best"] = True
    return found


def _title(row: dict, report: dict) -> str:
    """A row's name; of a report of an earlier version, which knows one architecture of students, as it is."""
    return wording.title_of(row, report) if "student_models" in report else row["name"]


def _gain(row: dict, report: dict) -> dict[str, Any] | None:
    """A student's over its baseline."""
    asked = {"a": row["name"], "a_transfer": row["transfer"], "b": "baseline", "metric": "accuracy"}
    for one in report["comparisons"]:
        of_row = one.get("architecture", row["architecture"]) == row["architecture"]
        if of_row and one["b_transfer"] == row["transfer"] and asked.items() <= one.items():
            return {"mean": one["mean_difference"], "ci95": one["ci95"]}
    return None


def _candidates(found: Sequence[dict]) -> list[dict]:
    for role in ("student", "teacher"):
        known = [row for row in found if row["role"] == role and row["val"]["nll"] is not None]
        if known:
            return known
    return []


def shown(found: Sequence[dict]) -> list[dict]:
    """The rows that the table is about: those of students, or all where there are none."""
    return [row for row in found if row["role"] in STUDENTS] or list(found)


def drawn(told: Sequence[Told], found: Sequence[dict]) -> list[dict]:
    """The rows of the plot: those of the table, and the ensembles, beside each of their baselines."""
    gaps = {one.name: one.report["gaps"] for one in told if one.report is not None}
    ensembles = [
        {**row, "transfer": gap["transfer"], "gain": {"mean": gap["difference"], "ci95": gap["ci95"]}}
        for row in found
        if row["role"] == "ensemble" and row["name"] == sweep_plots.ENSEMBLE
        for gap in gaps[row["cell"]]
    ]
    return [*shown(found), *ensembles] if ensembles else shown(found)


def table(found: Sequence[dict], fields: Sequence[str]) -> rendering.Sheet:
    """(header, cells): what was set, then what came out."""
    with_transfer = len({row["transfer"] for row in shown(found)}) > 1
    header = [
        *naming.short_names(fields),
        *("", *(["transfer"] if with_transfer else [])),
        *("accuracy %", "gain", "verdict", "val NLL", "NLL", "n", "params", "FLOPs", "s"),
    ]
    return header, [
        [
            *(naming.spelled(row["over"][field]) for field in fields),
            row["name"] + (" *" if row["best"] else ""),
            *([row["transfer"]] if with_transfer else []),
            cell_text.with_interval(row["accuracy"]),
            _points(row["gain"]),
            row["verdict"] or cell_text.MISSING,
            _number(row["val"]["nll"]),
            _number(row["nll"] and row["nll"]["mean"]),
            str(row["n"]),
            cell_text.short_count(row["params"]),
            cell_text.short_count(row["flops"]),
            cell_text.MISSING if row["train_seconds"] is None else f"{row['train_seconds']:.1f}",
        ]
        for row in shown(found)
    ]


def _points(gain: dict | None) -> str:
    if gain is None:
        return cell_text.MISSING
    ends = "" if gain["ci95"] is None else " [{:+.2f}, {:+.2f}]".format(*(100 * end for end in gain["ci95"]))
    return f"{100 * gain['mean']:+.2f}{ends}"


def _number(value: float | None) -> str:
    return cell_text.MISSING if value is None else f"{value:.3f}"


def terminal(found: Sequence[dict], fields: Sequence[str]) -> Group:
    """The table for a terminal of 100 columns: a section for each cell."""
    header, cells = table(found, fields)
    places = [i for i, name in enumerate(header) if i >= len(fields) and name not in IN_FILES_ALONE]
    sections: dict[str, rendering.Cells] = {}
    for line in cells:
        over = ", ".join(f"{name} = {value}" for name, value in zip(header, line[: len(fields)]))
        sections.setdefault(over, []).append([line[i] for i in places])
    return Group(*rendering.render_sections([header[i] for i in places], list(sections.items())))


def caption(told: Sequence[Told], found: Sequence[dict]) -> str:
    """What has to be known to read the table."""
    chosen = next((row for row in found if row["best"]), None)
    kind = "network" if chosen is None else chosen["role"]
    text = CAPTION.format(kind=kind, number=len(_candidates(found)))
    return text + (ON_OTHER_IMAGES if len({one.validated_on for one in told if one.validated_on}) > 1 else "")


def state(told: Sequence[Told]) -> list[str]:
    """A line on how many cells are finished, then one on each that is not."""
    left = [one for one in told if one.report is None]
    lines = [f"{len(told) - len(left)} of {len(told)} cells are finished."]
    return lines + [f"{one.name}: {f'failed: {one.why}' if one.why else 'not finished'}" for one in left]


def best_line(found: Sequence[dict]) -> str:
    """The chosen row in words; "" where there is none."""
    for row in found:
        if row["best"]:
            where = f" ({row['transfer']})" if row["transfer"] else ""
            return (
                f"Lowest validation NLL, {row['val']['nll']:.3f}: {row['name']}{where} of {row['cell']}, "
                f"with {cell_text.with_interval(row['accuracy'])} % of the test images right."
            )
    return ""


def write(folder: Path, told: Sequence[Told], fields: Sequence[str]) -> list[dict[str, Any]]:
    """Write sweep.csv, sweep.json, sweep.md and, where a cell is finished, sweep.png; returns the rows."""
    found = rows(told)
    own = document.own_metrics(one.report for one in told if one.report is not None)
    files = {"sweep.csv": as_csv(found, fields, own), "sweep.json": _as_json(told, found, fields)}
    figure = sweep_plots.draw(drawn(told, found), fields) if found else None
    if figure is not None:
        files["sweep.png"] = style.png(figure)
    files["sweep.md"] = _markdown(told, found, fields, figure is not None).encode()
    document.write_files(folder, files)
    return found


def as_csv(found: Sequence[dict], fields: Sequence[str], own: Sequence[str] = ()) -> bytes:
    """Every row of every cell, of teachers and ensembles too; the columns of results.csv and some more.

    Metrics of the user's own, of these names, come last, as there.
    """
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    more = ["val_nll", "val_accuracy", "train_seconds", "best"]
    lines.writerow(["cell", *fields, *document.RESULTS, *more, *document.own_columns(own)])
    for row in found:
        over = [naming.spelled(row["over"][field]) for field in fields]
        validated = [row["val"]["nll"], row["val"]["accuracy"], row["train_seconds"], int(row["best"])]
        lines.writerow(
            [row["cell"], *over, *document.result(row), *validated, *document.own_result(row, own)]
        )
    return text.getvalue().encode()


def _as_json(told: Sequence[Told], found: Sequence[dict], fields: Sequence[str]) -> bytes:
    cells = [
        {
            "name": one.name,
            "over": dict(one.over),
            "finished": one.report is not None,
            "failed": one.why or None,
            "rows": [
                {k: v for k, v in row.items() if k != "over"} for row in found if row["cell"] == one.name
            ],
        }
        for one in told
    ]
    best = next(
        (
            {"cell": row["cell"], "name": row["name"], "transfer": row["transfer"]}
            for row in found
            if row["best"]
        ),
        None,
    )
    return document.as_json({"fields": list(fields), "selection": "val", "best": best, "cells": cells})


def _markdown(told: Sequence[Told], found: Sequence[dict], fields: Sequence[str], drawn: bool) -> str:
    plot = "sweep.png" if drawn else ""
    return f"# Over {in_markdown(', '.join(fields))}\n\n{_body(told, found, fields, plot)}\n"


def _body(told: Sequence[Told], found: Sequence[dict], fields: Sequence[str], plot: str) -> str:
    parts = [document.bullets(state(told))]
    if found:
        parts += [best_line(found), rendering.markdown(*table(found, fields)), caption(told, found)]
    if plot:
        parts.append(f"![Test accuracy over what was swept, and the gain over the baseline]({plot})")
    return "\n\n".join(part for part in parts if part)


def page(
    folder: Path, told: Sequence[Told], found: Sequence[dict], fields: Sequence[str]
) -> tuple[str, dict[str, bytes]]:
    """What `write` has written into the folder for a page: its text, and {path: plot} that it links to."""
    plot = folder / "sweep.png"
    images = {f"plots/{folder.resolve().name}/{plot.name}": plot.read_bytes()} if plot.exists() else {}
    return _body(told, found, fields, next(iter(images), "")), images
