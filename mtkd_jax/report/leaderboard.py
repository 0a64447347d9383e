"""The table of methods over data sets: ranks and what they tell apart, wins and losses, mistakes, costs."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Group
from rich.text import Text

from mtkd_jax.addresses import resolve
from mtkd_jax.config import control_and_mode
from mtkd_jax.report import cell_text, document, rank_plots, rendering, style, wording
from mtkd_jax.report.reads import reads
from mtkd_jax.report.sweeps import STUDENTS
from mtkd_jax.results import analysis, intervals, power, ranks
from mtkd_jax.runs import workdir
from mtkd_jax.system.text import in_markdown
from mtkd_jax.types import UserError

BASELINE = "baseline"
IN_A_TERMINAL = ("", "rank", "better", "worse", "minus baseline", "verdict")
CAPTION = (
    "rank: mean over data sets of the rank by test accuracy, 1 the best. better ... worse: on how many data "
    "sets the verdict against the baseline there is which, corrected within the data set; equivalent: closer "
    "than the margin of the runs, by two one-sided tests. minus baseline: accuracy, points, mean over data "
    "sets [95 % interval over these, not corrected]; verdict: of that, Holm-corrected for the methods of the "
    "table. mistakes: how much more often than the baseline a student says what the ensemble wrongly says, "
    "points of the examples it gets wrong, mean over data sets, and on how many that is more (+) or less (-) "
    "than noise. FLOPs: a forward pass, over the baseline's. s: of training for a student, mean over data "
    "sets, on the machine of the runs. reads: of the teachers, and labels, if the loss does at alpha = 0."
)
BY_DATA_CAPTION = (
    "Test accuracy, %, mean over seeds, and the rank. +, -, =: better than, worse than, equivalent to the "
    "baseline. ensemble: all teachers fused by mean_probs, not ranked."
)


def write(folder: Path, why: Mapping[str, str]) -> dict:
    """Read the finished runs below `folder` and write leaderboard.json, .csv, .md, .svg and .png there.

    `why` says of every data set why it might be missing. Returns the dict of leaderboard.json.
    """
    finished = {name: report for name in why if (report := _read(folder / name)) is not None}
    unfit = {name: what for name, report in finished.items() if (what := _unfit(report))}
    reports = {name: report for name, report in finished.items() if name not in unfit}
    board = build(reports, {name: what for name, what in {**why, **unfit}.items() if name not in reports})
    files = {"leaderboard.json": document.as_json(board), "leaderboard.csv": as_csv(board)}
    if (drawn := figure(board)) is not None:
        files |= {"leaderboard.png": style.png(drawn), "leaderboard.svg": _svg(drawn)}
    files["leaderboard.md"] = f"# Methods over data sets\n\n{markdown(board, 'leaderboard.png')}\n".encode()
    document.write_files(folder, files)
    return board


def _read(run: Path) -> dict | None:
    """The report of a finished run; None where it is none, or one of an earlier version."""
    report = workdir.read_report(run)
    known = report is not None and "negative_transfer" in report and document.can_be_shown(report)
    return report if known else None


def _unfit(report: dict) -> str:
    """Why the table cannot take the report of a finished run; "" where it can."""
    rows = _rows(report)
    if len(report["student_models"]) > 1:
        return "its students are of several architectures; the table is of one"
    if BASELINE not in rows:
        return "it has no baseline, which broke down or was not trained; all others are compared with it"
    if others := [name for name in rows if not _is_of_a_mode(name)]:
        return f"{others[0]} is of another plan; the table is of students whom all teachers teach"
    return ""


def _is_of_a_mode(name: str) -> bool:
    _, mode = control_and_mode(name)
    try:
        return mode in (BASELINE, "control") or bool(resolve("mode", mode, "students.modes"))
    except UserError:
        return False


def build(reports: Mapping[str, dict], left_out: Mapping[str, str]) -> dict:
    """The dict of leaderboard.json from reports by data set; methods that all of them have are ranked."""
    rows = {name: _rows(report) for name, report in reports.items()}
    names = list(dict.fromkeys(method for of_set in rows.values() for method in of_set))
    everywhere = [name for name in names if all(name in of_set for of_set in rows.values())]
    board: dict[str, Any] = {
        "data_sets": [_data_set(name, report) for name, report in reports.items()],
        "left_out": dict(left_out),
        "not_ranked": {
            name: [one for one, of_set in rows.items() if name not in of_set]
            for name in names
            if name not in everywhere
        },
        "friedman": None,
        "critical_difference": None,
        "methods": [],
    }
    if not everywhere:
        return board
    scores = np.array([[of_set[name]["accuracy"]["mean"] for name in everywhere] for of_set in rows.values()])
    of_each = ranks.ranks(np.round(scores, 9))  # equal means may differ by what was rounded on the way
    if min(scores.shape) > 1:
        board["friedman"] = ranks.friedman(of_each)._asdict()
        board["critical_difference"] = ranks.critical_difference(len(everywhere), len(rows))
    found = [
        {
            "name": name,
            "role": next(iter(rows.values()))[name]["role"],
            "mean_rank": of_each[:, place].mean(),
            "ranks": dict(zip(rows, of_each[:, place])),
            "accuracy": {one: of_set[name]["accuracy"] for one, of_set in rows.items()},
            "verdicts": {one: of_set[name]["verdict"] for one, of_set in rows.items()},
            "mistakes": _mistakes(name, rows, reports),
            "cost": _cost(name, rows),
            "reads": reads(name),
        }
        for place, name in enumerate(everywhere)
    ]
    margin = max(report["margin"] for report in reports.values())
    board["margin"] = margin
    board["methods"] = sorted(_against_baseline(found, margin), key=lambda one: one["mean_rank"])
    return analysis.plain(board)


def _rows(report: dict) -> dict[str, dict]:
    """{method: row} of the students on the first transfer set of a run."""
    own = [row for row in report["rows"] if row["role"] in STUDENTS]
    return {wording.title_of(row, report): row for row in own if row["transfer"] == own[0]["transfer"]}


def _data_set(name: str, report: dict) -> dict:
    baseline = _rows(report)[BASELINE]
    (gap,) = (gap for gap in report["gaps"] if gap["transfer"] == baseline["transfer"])
    return {
        "name": name,
        "sizes": report["sizes"],
        "num_classes": report["num_classes"],
        "network": baseline["architecture"],
        "params": baseline["params"],
        "num_teachers": report["diversity"]["num_teachers"],
        "seeds": baseline["n"],
        "ensemble": gap["ensemble"],
        "gap": {key: gap[key] for key in ("difference", "ci95", "verdict")},
    }


def _mistakes(name: str, rows: Mapping[str, dict[str, dict]], reports: Mapping[str, dict]) -> dict | None:
    """How much more often than the baseline a method repeats the ensemble's mistakes, over data sets."""
    found = [
        one
        for data_set, report in reports.items()
        for one in report["negative_transfer"]
        if wording.title_of(one, report) == name and one["transfer"] == rows[data_set][name]["transfer"]
    ]
    if not found:
        return None
    told = [one for one in found if one["p_holm"] is not None and one["p_holm"] < intervals.SIGNIFICANT]
    return {
        "mean_difference": np.mean([one["mean_difference"] for one in found]),
        "num_sets": len(found),
        "more": sum(one["mean_difference"] > 0 for one in told),
        "less": sum(one["mean_difference"] < 0 for one in told),
    }


def _cost(name: str, rows: Mapping[str, dict[str, dict]]) -> dict:
    own = [of_set[name] for of_set in rows.values()]
    of_baseline = [of_set[BASELINE] for of_set in rows.values()]
    both = [(a["flops"], b["flops"]) for a, b in zip(own, of_baseline)]
    return {
        "settings": max(len(row["grid"]) for row in own),
        "flops_over_baseline": None if None in sum(both, ()) else np.mean([a / b for a, b in both]),
        "seconds": np.mean([row["train_seconds"] / power.students_trained(row) for row in own]),
    }


def _against_baseline(found: list[dict], margin: float) -> list[dict]:
    """The methods with the difference of their accuracies from the baseline's, a pair for each data set."""
    baseline = next(one for one in found if one["name"] == BASELINE)

    def means(one: dict) -> list[float]:
        return [accuracy["mean"] for accuracy in one["accuracy"].values()]

    others = [one for one in found if one is not baseline]
    tested = [intervals.paired_t(means(one), means(baseline)) for one in others]
    for one, test, p in zip(others, tested, intervals.holm([test["p_value"] for test in tested])):
        p_equivalence = intervals.equivalence_p(means(one), means(baseline), margin)
        word = intervals.verdict(test["mean_difference"], p, test["ci95"], p_equivalence, margin)
        one["minus_baseline"] = {**test, "p_holm": p, "p_equivalence": p_equivalence, "verdict": word}
    return found


# --- in words and pictures ----------------------------------------------------------------------------


def figure(board: dict) -> Figure | None:
    """The critical-difference diagram; None for fewer than two data sets."""
    if board["critical_difference"] is None:
        return None
    names, mean_ranks, roles = (
        [one[key] for one in board["methods"]] for key in ("name", "mean_rank", "role")
    )
    return rank_plots.critical_difference(names, mean_ranks, board["critical_difference"], roles)


def told(board: dict) -> list[str]:
    """What the table shows, a paragraph each."""
    number = len(board["data_sets"])
    found = [f"{number} of {number + len(board['left_out'])} data sets are finished."]
    found += [f"{name}: {what}." for name, what in board["left_out"].items()]
    for name, where in board["not_ranked"].items():
        found.append(f"{name} is not ranked: no row on {', '.join(where)}.")
    if board["friedman"] is None:
        return [*found, "Ranks are compared from two data sets on."]
    test = board["friedman"]
    infinite = test["f"] is None
    found.append(
        f"All {len(board['methods'])} rows alike: Friedman's chi-square {test['chi_square']:.1f}, p "
        f"{wording.p_value(test['p_value'])}; Iman and Davenport's F "
        f"{'infinite' if infinite else format(test['f'], '.2f')}, p {wording.p_value(test['p_value_f'])}. "
        f"Nemenyi's critical difference of mean ranks is {board['critical_difference']:.2f}."
    )
    by_name = {one["name"]: one for one in board["methods"]}
    base = by_name[BASELINE]["mean_rank"]
    apart: dict[str, list[str]] = {"ahead of": [], "behind": []}
    for name, one in by_name.items():
        if abs(one["mean_rank"] - base) >= board["critical_difference"]:
            apart["ahead of" if one["mean_rank"] < base else "behind"].append(name)
    for word, names in apart.items():
        found.append(f"By ranks {word} the baseline ({base:.2f}): {', '.join(names) or 'none'}.")
    found += [
        f"The control {name}: rank {one['mean_rank']:.2f}; against the baseline {_counts(one)}."
        for name, one in by_name.items()
        if control_and_mode(name)[0]
    ]
    return found


def _counts(one: dict) -> str:
    return ", ".join(f"{_count(one, word)} {word}" for word in intervals.VERDICTS if _count(one, word))


def _count(one: dict, word: str) -> int:
    return sum(verdict == word for verdict in one["verdicts"].values())


def table(board: dict) -> rendering.Sheet:
    """A row for each method, by rising mean rank."""
    header = ["", "rank", "better", "equivalent", "undecided", "worse", "minus baseline", "verdict"]
    header += ["mistakes", "FLOPs", "s", "reads"]
    return header, [
        [
            one["name"],
            f"{one['mean_rank']:.2f}",
            *(
                cell_text.MISSING if one["name"] == BASELINE else str(_count(one, word))
                for word in ("better", "equivalent", "undecided", "worse")
            ),
            *_difference(one.get("minus_baseline")),
            _of_mistakes(one["mistakes"]),
            cell_text.MISSING
            if one["cost"]["flops_over_baseline"] is None
            else f"{one['cost']['flops_over_baseline']:.2f}",
            f"{one['cost']['seconds']:.2g}",
            ", ".join(one["reads"]),
        ]
        for one in board["methods"]
    ]


def _difference(test: dict | None) -> list[str]:
    if test is None:
        return [cell_text.MISSING, cell_text.MISSING]
    text = f"{100 * test['mean_difference']:+.2f}"
    if test["ci95"] is not None:
        text += f" {wording.interval(test['ci95'], 'accuracy')}"
    return [text, test["verdict"]]


def _of_mistakes(found: dict | None) -> str:
    if found is None:
        return cell_text.MISSING
    signs = " ".join(f"{found[key]}{sign}" for key, sign in (("more", "+"), ("less", "-")) if found[key])
    return f"{100 * found['mean_difference']:+.1f}" + (f" ({signs})" if signs else "")


def by_data_set(board: dict) -> rendering.Sheet:
    """Accuracy and rank of every method on every data set."""
    names = [one["name"] for one in board["data_sets"]]
    ensemble = ["ensemble", *(f"{100 * one['ensemble']:.2f}" for one in board["data_sets"])]
    cells = [
        [
            one["name"],
            *(
                f"{100 * one['accuracy'][name]['mean']:.2f}{cell_text.SIGN[one['verdicts'][name] or '']} "
                f"({one['ranks'][name]:g})"
                for name in names
            ),
        ]
        for one in board["methods"]
    ]
    return ["", *names], [*cells, ensemble]


def of_data_sets(board: dict) -> rendering.Sheet:
    """What the runs were of, and what there was to gain."""
    header = ["data set", "classes", "train", "val", "test", "network", "params", "teachers", "seeds"]
    return [*header, "ensemble - baseline, points"], [
        [
            one["name"],
            str(one["num_classes"]),
            *(f"{one['sizes'][part]:,}" for part in ("train", "val", "test")),
            one["network"],
            cell_text.short_count(one["params"]),
            str(one["num_teachers"]),
            str(one["seeds"]),
            " ".join(_difference({"mean_difference": one["gap"]["difference"], **one["gap"]})),
        ]
        for one in board["data_sets"]
    ]


def markdown(board: dict, plot: str) -> str:
    """The whole table as text that links to its plot."""
    parts = [document.bullets(told(board))]
    if board["critical_difference"] is not None:
        parts.append(
            "![Mean ranks, the best at the left. Bars join methods that are not told apart, closer than the "
            f"critical difference (CD).]({plot})"
        )
    if board["methods"]:
        parts += [rendering.markdown(*table(board)), in_markdown(CAPTION)]
        parts += [rendering.markdown(*by_data_set(board)), in_markdown(BY_DATA_CAPTION)]
        parts.append(rendering.markdown(*of_data_sets(board)))
    return "\n\n".join(parts)


def page(board: dict, name: str) -> tuple[str, dict[str, bytes]]:
    """What --into writes into a page, and the plot beside it, in a folder of the table's name."""
    drawn, plot = figure(board), f"plots/{name}/ranks.png"
    return markdown(board, plot), {} if drawn is None else {plot: style.png(drawn)}


def terminal(board: dict) -> Group:
    """The ranks for a terminal of 100 columns, and what they show."""
    header, cells = table(board)
    shown = [i for i, name in enumerate(header) if name in IN_A_TERMINAL]
    rows = [[row[i] for i in shown] for row in cells]
    lines = [Text(f"- {line}") for line in told(board)]
    return Group(*([rendering.render([header[i] for i in shown], rows)] if rows else []), *lines)


def as_csv(board: dict) -> bytes:
    """A line for each method on each data set."""
    text = io.StringIO()
    lines = csv.writer(text, lineterminator="\n")
    lines.writerow(
        ["data_set", "method", "role", "accuracy", "accuracy_low", "accuracy_high", "rank", "verdict"]
    )
    for one in board["methods"]:
        for name, accuracy in one["accuracy"].items():
            low, high = accuracy["ci95"] or (None, None)
            lines.writerow(
                [name, one["name"], one["role"], accuracy["mean"], low, high, one["ranks"][name]]
                + [one["verdicts"][name]]
            )
    return text.getvalue().encode()


def _svg(drawn: Figure) -> bytes:
    buffer = io.BytesIO()
    drawn.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()
