"""One table of several runs."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Group
from rich.text import Text

from mtkd_jax.config import name_and_model
from mtkd_jax.report import cell_text, rendering, wording

NAME = 18  # columns of a terminal that are enough for names, folded
MERGED_TITLES = {
    "teacher": "Teachers, alone",
    "linear": "A linear model on the same labels",
    "ensemble": "All teachers, fused",
    "labelled": "Students on labelled images",
    "unlabelled": "Students on labelled and unlabelled images",
    "other": "Students on labelled images and those of another source",
}
MOST_BESIDE = 4  # runs that stand beside one another in a table
MERGED_CAPTION = (
    "%: accuracy [95 % interval], over seeds and members, of ensembles over test examples. +, -: better, "
    "worse than the baseline of that run on the same images, Holm p below 0.05. =: equivalent to it, within "
    "the margin of that run. gap: share of (ensemble - baseline) kept."
)


def merge(reports: Mapping[str, dict]) -> rendering.Sections:
    """(header, sections) of several runs by name: columns for each run, or lines where there are many."""
    return _beside(reports) if len(reports) <= MOST_BESIDE else _below(reports)


def _beside(reports: Mapping[str, dict]) -> rendering.Sections:
    """A row for all that share a name, columns for each run."""
    with_gap = {run for run, report in reports.items() if _has_gap(report)}
    header = [""]
    for run in reports:
        header += [f"{run}, %", "NLL", *(["gap"] if run in with_gap else [])]
    sections = []
    for place, title in MERGED_TITLES.items():
        rows = [
            [
                name,
                *(
                    cell
                    for run in reports
                    for cell in _merged_cells(reports[run], place, name, run in with_gap)
                ),
            ]
            for name in _names_at(place, reports)
        ]
        sections += [(title, rows)] if rows else []
    return header, sections


def _below(reports: Mapping[str, dict]) -> rendering.Sections:
    """A section for all that share a name, a line for each run; one for all where they say the same."""
    with_gap = any(map(_has_gap, reports.values()))
    header, sections = ["", "%", "NLL", *(["gap"] if with_gap else [])], []
    for place, title in MERGED_TITLES.items():
        for name in _names_at(place, reports):
            rows = [[run, *_merged_cells(own, place, name, with_gap)] for run, own in reports.items()]
            if all(row[1:] == rows[0][1:] for row in rows):
                rows = [["every run", *rows[0][1:]]]
            there = [row for row in rows if row[1] != cell_text.MISSING]
            sections.append((f"{title}: {name}", there))
    return header, sections


def _has_gap(report: dict) -> bool:
    return any(row["gap_share"] is not None for row in report["rows"])


def _names_at(place: str, reports: Mapping[str, dict]) -> list[str]:
    """The names of all rows of a section, those that others are compared with below the others."""
    names = dict.fromkeys(
        wording.title_of(row, report)
        for report in reports.values()
        for row in report["rows"]
        if _place(row) == place
    )
    return sorted(names, key=_is_reference)


def terminal(reports: Mapping[str, dict], width: int) -> Group:
    """The table of several runs for a terminal of `width` columns; what is too wide goes on below."""
    left, parts = dict(reports), []
    while left:
        at_once = [dict(list(left.items())[:num]) for num in range(1, len(left) + 1)]
        fit = [
            some for some in at_once if NAME + sum(rendering.column_widths(*merge(some))[1:]) <= width
        ] or at_once[:1]
        parts += rendering.render_sections(*merge(fit[-1]))
        left = {run: report for run, report in left.items() if run not in fit[-1]}
    return Group(*parts, Text(MERGED_CAPTION, style="dim"))


def _is_reference(name: str) -> bool:
    return name_and_model(name)[0] in ("baseline", "control")


def _place(row: dict) -> str:
    """The section of the merged table, a key of MERGED_TITLES."""
    return row["transfer"] or row["role"]


def _merged_cells(report: dict, place: str, name: str, with_gap: bool) -> list[str]:
    asked = (place, name)
    row = next((row for row in report["rows"] if (_place(row), wording.title_of(row, report)) == asked), None)
    if row is None:
        return [cell_text.MISSING] * (2 + with_gap)
    pair = (place, row["name"], "baseline", row["architecture"])
    against = {
        one["metric"]: cell_text.SIGN[one["verdict"]]
        for one in report["comparisons"]
        if (one["family"], one["a"], one["b"], one["architecture"]) == pair
    }
    cells = [cell_text.with_interval(row["accuracy"]), cell_text.mean(row, "nll")]
    cells = [cell + against.get(metric, "") for cell, metric in zip(cells, ("accuracy", "nll"))]
    return cells + ([cell_text.share_kept(row)] if with_gap else [])
