"""The report of a finished run: report.json, results.csv, report.md, report.html and plots/, from
predictions.npz alone.

    python -m mtkd_jax.report RUN [--into FILE]
    python -m mtkd_jax.report RUN RUN ... [--out DIR] [--into FILE]

One RUN rebuilds its report without training anything; several make one table, a row for what they share, and
a plot of what their ensembles cost to train.
"""

from __future__ import annotations

import base64
import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import jinja2
from matplotlib.figure import Figure
from rich.console import RenderableType

from mtkd_jax.config import row_of
from mtkd_jax.report import caveats, findings, plots, rendering, side_by_side, style, tables, wording
from mtkd_jax.results import analysis, cascade, kept, lookup
from mtkd_jax.runs import logbook, workdir
from mtkd_jax.runs.predictions import Predictions
from mtkd_jax.system import terminal
from mtkd_jax.system.files import alone_in, parse, write_atomically
from mtkd_jax.system.text import in_markdown, slug
from mtkd_jax.types import UserError, printable

RESULTS = (  # the columns of results.csv
    *("role", "name", "transfer", "n", "accuracy", "accuracy_low", "accuracy_high", "nll", "ece", "brier"),
    *("params", "flops", "latency_ms", "gap_share", "alpha", "temperature", "verdict", "architecture"),
)
TRAINING = "training"  # the plot of several runs
TRAINING_CAPTION = (
    "What the ensemble of each run is worth, and how its members differ, against the FLOPs of all their "
    "training, by formula. Side by side: what costs the same, give or take a tenth."
)
IN_A_TEXT = ("cost", "rows", "roc", "kept")  # of a run's plots, those that --into shows
MARKS = ("<!-- {} -->", "<!-- end -->")  # in a text file, around what --into writes: "report RUN"

MISTAKES = "mistakes"  # drawn by the run, which has the images; the report only shows it
PLOTS = {
    "cost": "What a network costs and what it is worth. Diamond: the row of the network to deploy. Dashed: "
    "the best there is for so many parameters. keeps: of (ensemble - baseline).",
    "rows": "Every row with its interval. Dotted: the mean of the baseline on the same images.",
    "accuracy_against_k": "What each further teacher brings. Levels: the mode kept and its baseline.",
    "agreement": "How often two teachers decide alike.",
    "learning_curves": "Validation during training: mean over members, shaded from lowest to highest.",
    "homogenisation": "How far networks that learn together are apart while they train: total variation of "
    "their predictions of validation images, 0 where they say the same. To the peers: the mean over these. "
    "To its own teacher: of a student and the average, or other network, that it keeps of itself.",
    "roc": "Recall and false alarms of one network of each kind at all thresholds. Dotted: what is allowed.",
    "reliability": "Confidence and accuracy of one network of each kind in 15 bins of equal mass.",
    "kept": "What students keep of (ensemble - baseline), with 95 % intervals: left line the baseline, right "
    "line the ensemble. Below: accuracy under shift.",
    "cascade": "A student that hands over to the ensemble what it is not sure of, at all thresholds. "
    "Diamond: the threshold that validation sets.",
    MISTAKES: "Test images that the network to deploy is wrong about, surest first: the class, and what it "
    "was taken for with which probability; of a class to be detected, the probability of that class. Where "
    "places of an image have labels: the image, what is right, and what is said.",
}


def build(found: Predictions) -> dict:
    """The dict of report.json: the numbers, what they show ("findings") and on what terms ("notes")."""
    report = analysis.numbers(found)
    report["cascade"] = analysis.plain(cascade.numbers(found))
    report["kept"] = analysis.plain(kept.numbers(found))
    report["complexity"] = found.complexity and analysis.plain(dict(found.complexity))
    report["findings"] = findings.summarise(report)
    report["notes"] = caveats.notes(found, report)
    return report


def figures(found: Predictions, report: dict, curves: Sequence[Mapping]) -> dict[str, Figure]:
    """The plots by name, in the order of the report; learning curves only where any were logged."""
    lines = _lines(found, curves)
    chosen = report["chosen_student"]
    across = []
    if chosen is not None:
        for row in report["rows"]:
            place = wording.place_of(row)
            if place in (wording.place_of(chosen), wording.place_of(chosen, name="baseline")):
                title = f"{wording.title_of(row, report)} ({row['transfer']})"
                across.append((row["role"], title, row["accuracy"]["mean"]))
    disagreement = report["diversity"]["disagreement"]["matrix"]
    drawn = {
        "cost": _cost(report),
        "rows": plots.all_rows([{**row, "of": wording.model_of(row, report)} for row in report["rows"]]),
        "accuracy_against_k": plots.accuracy_against_k(report["sub_ensembles"], across),
        "agreement": plots.agreement(disagreement, report["diversity"]["members"]),
        "learning_curves": plots.curves(lines, plots.LEARNING),
        "homogenisation": plots.curves(lines, plots.HOMOGENISATION),
        "roc": _roc(found, report),
        "reliability": plots.reliability(analysis.one_of_each(found), found.test_labels),
        "kept": plots.kept(report["kept"]) if _asked_more(report) else None,
        "cascade": report["cascade"]
        and plots.cascade(report["cascade"], wording.title_of(report["cascade"]["student"], report)),
    }
    return {name: figure for name, figure in drawn.items() if figure is not None}


def _asked_more(report: dict) -> bool:
    """Whether networks were asked about other images than the data's: what else is kept is in the table."""
    found = report["kept"]
    return found is not None and bool(found["corruptions"] or found["ood"])


def _cost(report: dict) -> Figure | None:
    deploy, chosen = report["deploy"], map(wording.place_of, report["students_by_size"])
    return plots.against_cost(report["rows"], deploy and wording.place_of(deploy), list(chosen))


def _roc(found: Predictions, report: dict) -> Figure | None:
    positive = lookup.detected(found)
    if positive is None:
        return None
    is_positive = found.test_labels == positive
    title = tables.detection_title(report)
    return plots.roc(analysis.one_of_each(found), is_positive, positive, title, found.false_alarm_rate)


def _lines(found: Predictions, curves: Sequence[Mapping]) -> list[dict]:
    """The records of what has a row, each with the panel and the line it belongs to.

    Of a mode that is the chosen (alpha, T): its spread is over seeds, not over the grid.
    """
    place_of, several = {}, len(lookup.student_models(found)) > 1
    for group in found.groups:
        if group.role == "teacher":
            place_of[group.key.replace("/", "-", 1), ""] = ("teachers", group.name)
        elif group.alpha is not None:
            model = group.architecture if several and group.role != "assistant" else ""
            cell = f"{row_of(group.name, model)} a={group.alpha:g} T={group.temperature:g}"
            panel = f"students, {group.transfer}" + (f"\n{model}" if model else "")
            place_of[f"students-{group.transfer}", cell] = (panel, group.name)
    placed = []
    for record in curves:
        stage, cell = record["stage"], record["member"].rpartition(" seed ")[0]
        place = place_of.get(("-".join(stage.split("-")[:2]) if cell else stage, cell))
        if place is not None and record["value"] is not None:
            placed.append({**record, "panel": place[0], "line": place[1]})
    return placed


def write(run_dir: str | Path) -> dict:
    """Build the report of `run_dir` and write its files there; returns the dict of report.json."""
    run_dir = Path(run_dir)
    found = workdir.read_predictions(run_dir)
    curves = _read_curves(run_dir / "metrics.jsonl")
    config = _read_json(run_dir / "config.json")
    report = build(found)
    images = {name: style.png(figure) for name, figure in figures(found, report, curves).items()}
    drawn = run_dir / "plots" / f"{MISTAKES}.png"
    if drawn.is_file():
        images[MISTAKES] = drawn.read_bytes()
    files = {f"plots/{name}.png": data for name, data in images.items()}
    files["report.md"] = _markdown(report, list(images)).encode()
    files["report.html"] = _html(run_dir.resolve().name, report, images, config).encode()
    files["results.csv"] = as_csv({"": report})
    files["report.json"] = as_json(report)  # last: where it stands, the run is finished
    write_files(run_dir, files)
    for name in PLOTS.keys() - images.keys():  # of an earlier report, with other fields
        (run_dir / "plots" / f"{name}.png").unlink(missing_ok=True)
    workdir.seal(run_dir, workdir.REPORT)
    return report


def can_be_shown(report: dict) -> bool:
    """Whether a report has the form of this version's, as far as `show` reads it."""
    try:
        tables.terminal(report)
        return all(isinstance(paragraph, str) for paragraph in report["findings"])
    except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError):
        return False


def show(report: dict, run_dir: str | Path) -> None:
    """Print the main table, where the rest is, and what the run shows, on stdout."""
    more = f"Plots, comparisons, notes: {Path(run_dir) / 'report.html'}"
    say(tables.terminal(report), "What this run shows", report["findings"], more)


def say(table: RenderableType, heading: str, paragraphs: Sequence[str], more: str) -> None:
    """Print a table, where there is more, and paragraphs under a heading, on stdout."""
    out = terminal.console()
    out.print(table)
    if more:  # before what is said, whose last sentence is the one to remember
        out.print(f"\n{printable(more)}", markup=False, highlight=False)
    out.print(f"\n[bold]{heading}[/bold]")
    for paragraph in paragraphs:
        out.print(f"- {printable(paragraph)}", markup=False, highlight=False)


def main(argv: Sequence[str] | None = None) -> int:
    """Rebuild and show the report of one run, or merge the tables of several; returns the exit code."""
    return terminal.answer(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    parser = terminal.Parser("python -m mtkd_jax.report", __doc__)
    parser.add_argument(
        "runs", nargs="+", metavar="RUN", type=terminal.path, help="the --workdir of a finished run"
    )
    parser.add_argument(
        "--out",
        type=terminal.path,
        help="several runs: also write report.md, results.csv and report.json here",
    )
    parser.add_argument(
        "--into",
        type=terminal.path,
        help="write table and findings between <!-- report RUN ... --> and <!-- end --> of this file, and "
        "the main plots, of several runs that of their ensembles, into plots/ beside it",
    )
    parser.add_argument(
        "--brief", action="store_true", help="--into writes ten lines of one run's table and its first plot"
    )
    asked = parser.parse_args(argv)
    if asked.brief and len(asked.runs) > 1:
        raise UserError("--brief is of one run; name one")
    if asked.brief and asked.into is None:
        raise UserError("--brief is of what --into writes, which is missing; name a page by --into FILE")
    if asked.out is not None and len(asked.runs) == 1:
        raise UserError(f"--out is of several runs; what it writes of one lies in {asked.runs[0]}")
    if len({run.resolve() for run in asked.runs}) < len(asked.runs):
        raise UserError(f"{' '.join(map(str, asked.runs))}: a run is named twice; once is enough")
    text, images, tell = (
        _one(asked.runs[0], asked.brief) if len(asked.runs) == 1 else _merge(asked.runs, asked.out)
    )
    if asked.into is not None:
        what = f"report {' '.join(map(str, asked.runs))}{' --brief' if asked.brief else ''}"
        put_into(asked.into, what, text, images)
    tell()  # last: whoever reads it may have gone


Told = tuple[str, dict[str, bytes], Callable[[], None]]  # Markdown, {path: plot} it links to, what shows it


def _one(run: Path, brief: bool = False) -> Told:
    """Rebuild the report of a run."""
    report = write(run)
    names = IN_A_TEXT[:1] if brief else (*IN_A_TEXT, *((MISTAKES,) if report["task"] != "classes" else ()))
    files = (run / "plots" / f"{name}.png" for name in names)
    images = {f"plots/{run.resolve().name}/{file.name}": file.read_bytes() for file in files if file.exists()}
    links = [f"![{PLOTS[Path(path).stem]}]({path})" for path in images]
    if brief:
        text = "\n\n".join([*links, rendering.markdown(*tables.brief(report))])
    else:
        parts = [_main_markdown(report), *_by_size_markdown(report)]
        parts += [_kept_markdown(report)] if _asked_more(report) else []
        parts += _with_peers_markdown(report)
        parts += [bullets(report["findings"])]
        text = "\n\n".join([*parts, *links])
    return text, images, lambda: show(report, run)


def put_into(
    file: Path, what: str, text: str | Callable[[str], str], images: Mapping[str, bytes] | None = None
) -> None:
    """Replace what stands between the marks of `what` in a text file: no number there is ever typed.

    `text` may be a function of what stands there. `images`, which it links to, are written beside the file,
    {relative path: bytes}. Processes that write into one page, each between marks of its own, take turns.
    """
    with alone_in(file.parent):
        before, now, after = around(file, what)
        said = text if isinstance(text, str) else text(now)
        whole = f"{before}{MARKS[0].format(what)}\n\n{said}\n\n{MARKS[1]}{after}"
        write_files(file.parent, {**(images or {}), file.name: whole.encode()})


def around(file: Path, what: str) -> tuple[str, str, str]:
    """What stands before, between and after the marks of `what` in a text file.

    UserError where they are not there.
    """
    begin, end = MARKS[0].format(what), MARKS[1]
    try:
        before, rest = file.read_text(encoding="utf-8").split(begin)
        now, after = rest.split(end, 1)
    except (OSError, ValueError):
        raise UserError(f"--into {file}: the lines {begin!r} and {end!r} must stand in it, once") from None
    return before, now, after


def _merge(runs: Sequence[Path], out: Path | None) -> Told:
    """One table of several runs, written where `out` is given."""
    reports = {name: build(workdir.read_predictions(run)) for name, run in _names(runs).items()}
    lines = _by_what_is_said({name: findings.conditions(report) for name, report in reports.items()})
    shown = [f"{name}: {findings.in_one_line(report)}" for name, report in reports.items()]
    more = "" if out is None else f"Every number: {out / 'report.json'}"
    header, sections = side_by_side.merge(reports)
    figure = plots.against_training(ensembles(reports))
    images = {} if figure is None else {f"plots/{slug(' '.join(reports))}/{TRAINING}.png": style.png(figure)}
    links = [f"![{TRAINING_CAPTION}]({path})" for path in images]
    parts = [_in_one(header, sections), side_by_side.MERGED_CAPTION, bullets(lines), bullets(shown)]
    text = "\n\n".join([*parts, *links])
    if out is not None:
        files = {"report.md": (text + "\n").encode(), "results.csv": as_csv(reports), **images}
        write_files(out, {**files, "report.json": as_json({"runs": reports})})

    def tell() -> None:
        table = side_by_side.terminal(reports, terminal.console().width)
        say(table, "The runs, and what each shows", [*lines, *shown], more)

    return text, images, tell


def _by_what_is_said(sentences: Mapping[str, str]) -> list[str]:
    """A line for each sentence, behind the names of all of whom it is said.

    >>> _by_what_is_said({"a": "one network", "b": "two", "c": "one network"})
    ['a, c: one network.', 'b: two.']
    """
    names: dict[str, list[str]] = {}
    for name, sentence in sentences.items():
        names.setdefault(sentence, []).append(name)
    return [f"{', '.join(own)}: {sentence}." for sentence, own in names.items()]


def ensembles(reports: Mapping[str, dict]) -> list[dict]:
    """The ensembles of runs as `plots.against_training` has them, where they can be compared.

    Left out are those of which it is not known what their training took. [] where runs have other test sets.
    """
    tests = {
        (report["dataset"], report["sizes"]["test"], report["test_labels_sha256"])
        for report in reports.values()
    }
    if len(tests) > 1:
        return []
    return [
        {
            "name": name,
            "train_flops": row["train_flops"],
            "accuracy": row["accuracy"],
            "disagreement": report["diversity"]["disagreement"]["mean"],
        }
        for name, report in reports.items()
        for row in report["rows"]
        if row["rule"] == "mean_probs" and row["train_flops"]
    ]


def _names(runs: Sequence[Path]) -> dict[str, Path]:
    """The runs by the names of their folders, or by their whole paths where two folders have one name."""
    names = [run.resolve().name for run in runs]
    return dict(zip(names if len(set(names)) == len(runs) else map(str, runs), runs))


# --- reading ------------------------------------------------------------------------------------------


def _read_curves(path: Path) -> list[dict]:
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(logbook.lines_of(path), start=1):
        record = logbook.record_of(line)
        if record is None:
            raise UserError(f"{path}, line {number}: no record of a run; remove the line")
        records.append(record)
    return records


def _read_json(path: Path) -> dict | None:
    try:
        return parse(path.read_text(encoding="utf-8")) if path.exists() else None
    except ValueError as error:
        raise UserError(f"{path}: not JSON; restore it or remove it") from error


# --- writing ------------------------------------------------------------------------------------------


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write {name: bytes} into a folder, made where it is missing; UserError where that cannot be."""
    try:
        for name, data in files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / name, data)
    except OSError as error:
        raise UserError(f"{folder}: the report cannot be written here ({error.strerror})") from error


def as_json(value: dict) -> bytes:
    """A report as a JSON file; ValueError where a number is not finite."""
    return json.dumps(value, indent=1, allow_nan=False).encode()


def as_csv(reports: Mapping[str, dict]) -> bytes:
    """The rows of reports by name, a line each, under RESULTS; first the run, unless its name is "".

    Means as in report.json, shares not in per cent; accuracy_low and accuracy_high are the ends of the 95 %
    interval, latency_ms is that of one image. Metrics of the user's own follow, three columns each, with the
    ends of theirs. What does not exist is empty.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    own = own_metrics(reports.values())
    table.writerow([*(["run"] if any(reports) else []), *RESULTS, *own_columns(own)])
    for run, report in reports.items():
        table.writerows(
            [*([printable(run)] if run else []), *result(row), *own_result(row, own)]
            for row in report["rows"]
        )
    return text.getvalue().encode()


def own_metrics(reports: Iterable[dict]) -> list[str]:
    """The names of the user's own metrics in any of these reports, each once."""
    return list(dict.fromkeys(one["name"] for report in reports for one in report.get("metrics", ())))


def own_columns(own: Sequence[str]) -> list[str]:
    """The columns of these metrics: mean and ends of the interval."""
    return [f"{name}{end}" for name in map(printable, own) for end in ("", "_low", "_high")]


def own_result(row: dict, own: Sequence[str]) -> list:
    """The cells of a row of the report under `own_columns`."""
    cells: list = []
    for metric in (row.get("own", {}).get(name) for name in own):
        cells += [None] * 3 if metric is None else [metric["mean"], *(metric["ci95"] or (None, None))]
    return cells


def result(row: dict) -> list:
    """The cells of a row of the report under RESULTS."""
    low, high = row["accuracy"]["ci95"] or (None, None)
    cells = {
        **row,
        **{name: row[name] and row[name]["mean"] for name in ("accuracy", "nll", "ece", "brier")},
        "accuracy_low": low,
        "accuracy_high": high,
        "latency_ms": row["latency_ms"]["1"],
    }
    return [cells[name] for name in RESULTS]


def _markdown(report: dict, plot_names: Sequence[str]) -> str:
    parts = [
        f"# {in_markdown(report['dataset'])}: what distillation gained",
        "## What this run shows\n\n" + bullets(report["findings"]),
        "## All rows\n\n" + _main_markdown(report),
        *_by_size_markdown(report),
        *(f"![{PLOTS[name]}](plots/{name}.png)" for name in plot_names),
    ]
    sections = tables.comparison_sections(report)
    if sections:
        text = _sectioned(tables.COMPARISON_HEADER, sections)
        parts.append(f"## Comparisons\n\n{text}\n\n{tables.comparison_caption(report)}")
    parts += _with_peers_markdown(report)
    if report["negative_transfer"]:
        text = f"{rendering.markdown(*tables.negative_transfer(report))}\n\n"
        parts.append(f"## The teachers' mistakes\n\n{text}{tables.negative_transfer_caption(report)}")
    if report["common_alpha"] is not None:
        heading = f"## Every mode at alpha = {report['common_alpha']['alpha']:g}"
        parts.append(f"{heading}\n\n{rendering.markdown(*tables.common(report))}")
    if report["kept"] is not None:
        parts.append(f"## {tables.KEPT_TITLE}\n\n{_kept_markdown(report)}")
    if report["cascade"] is not None:
        text = f"{rendering.markdown(*tables.cascade(report))}\n\n{tables.CASCADE_CAPTION}"
        parts.append(f"## A student with a safety net\n\n{text}")
    if report["complexity"] is not None:
        text = f"{rendering.markdown(*tables.complexity(report))}\n\n{tables.complexity_caption(report)}"
        parts.append(f"## {tables.COMPLEXITY_TITLE}\n\n{text}")
    parts.append("## Recall of each class\n\n" + rendering.markdown(*tables.recall(report)))
    parts.append("## How the teachers differ\n\n" + rendering.markdown(*tables.diversity(report)))
    parts.append("## Notes\n\n" + bullets(report["notes"]))
    if findings.advice(report):
        parts.append(f"## Advice\n\n{in_markdown(report['findings'][-1])}")
    return "\n\n".join(parts) + "\n"


def _main_markdown(report: dict) -> str:
    """The main table, and below it those of a detector, of bodies and of own metrics, where there are any."""
    text = (
        _sectioned(tables.main_header(report), tables.main_sections(report)) + f"\n\n{tables.caption(report)}"
    )
    if report["detection"] is not None:
        text += f"\n\n### {in_markdown(tables.detection_title(report))}\n\n"
        text += f"{_sectioned(*tables.detection(report))}\n\n{tables.DETECTION_CAPTION}"
    bodies = tables.bodies(report)
    if bodies is not None:
        text += f"\n\n### {tables.BODIES_TITLE}\n\n{_sectioned(*bodies)}\n\n{tables.bodies_caption(report)}"
    if report["metrics"]:
        text += f"\n\n### {tables.own_title(report)}\n\n{_sectioned(*tables.own_metrics(report))}\n\n"
        text += in_markdown(tables.own_caption(report))
    return text


def _kept_markdown(report: dict) -> str:
    return f"{_sectioned(*tables.kept(report))}\n\n{in_markdown(tables.kept_caption(report))}"


def _by_size_markdown(report: dict) -> list[str]:
    """Heading, table and caption of the students' architectures, where there are several."""
    if len(report["students_by_size"]) < 2:
        return []
    table = rendering.markdown(*tables.by_size(report))
    return [f"## How small a student may be\n\n{table}\n\n{tables.by_size_caption(report)}"]


def _with_peers_markdown(report: dict) -> list[str]:
    """Heading, tables and caption of students with peers against one another, where there are two."""
    triangles = tables.with_peers(report)
    if not triangles:
        return []
    text = "\n\n".join(_sectioned(header, [(title, cells)]) for title, header, cells in triangles)
    return [f"## {tables.WITH_PEERS_TITLE}\n\n{text}\n\n{tables.with_peers_caption(report)}"]


def _in_one(header: Sequence[str], sections: Sequence[tuple[str, rendering.Cells]]) -> str:
    """All sections as one Markdown table, each under a row that holds its title alone."""
    rows = [row for title, cells in sections for row in ([f"**{title}**", *[""] * (len(header) - 1)], *cells)]
    return rendering.markdown(header, rows)


def _sectioned(header: Sequence[str], sections: Sequence[tuple[str, rendering.Cells]]) -> str:
    return "\n\n".join(
        f"**{in_markdown(title)}**\n\n{rendering.markdown(header, cells)}" for title, cells in sections
    )


def bullets(paragraphs: Sequence[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {in_markdown(paragraph)}" for paragraph in paragraphs)


def _html(run: str, report: dict, images: Mapping[str, bytes], config: dict | None) -> str:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mtkd_jax.report"),
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,  # before it is escaped
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html.jinja").render(
        run=run,
        report=report,
        advice=findings.advice(report),
        tables=tables,
        plots=[(name, PLOTS[name], base64.b64encode(data).decode()) for name, data in images.items()],
        config=None if config is None else json.dumps(config, indent=1),
    )


if __name__ == "__main__":
    sys.exit(main())
