"""The tables of the report as text: one set of cells, drawn by rich, Markdown and HTML alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.console import Group
from rich.text import Text

from mtkd_jax.deploy.export import NEARLY_REAL
from mtkd_jax.report import cell_text, rendering, wording
from mtkd_jax.results import power

MAIN_HEADER = [
    *("", "accuracy %", "verdict", "NLL", "ECE %", "Brier", "gap"),
    *("alpha", "T", "n", "params", "FLOPs", "ms"),
]
IN_FILES_ALONE = ("FLOPs", "ms")  # columns for which a terminal of 100 has no place
BALANCED = "balanced"  # in the place of the Brier score, where accuracy alone misleads
COMPARISON_HEADER = [
    *("", "accuracy, points", "verdict", "p", "p (Holm)"),
    *("NLL", "verdict", "p", "p (Holm)", "n"),
]
CAPTION = (
    "accuracy: mean [95 % interval], over what each heading says. verdict: on accuracy, against the baseline "
    "on the same images; equivalent: closer than {margin:g} points. gap: share of (ensemble - baseline) "
    "kept. alpha: weight of the hard labels. {cost}*: the row of the network to deploy. †: a member ends far "
    "from its siblings on validation."
)
COST_CAPTION = "FLOPs, ms: one image, forward. "
SIZE_WORDS = {"undecided": "not told apart"}  # of a student and the ensemble
BY_SIZE_CAPTION = (
    "Of each architecture of students the row that validation chooses, smallest first. minus ensemble: "
    "accuracy against all teachers fused by mean_probs [95 % interval over seeds and test images]. "
    "equivalent: two one-sided tests at 5 % show a difference closer than {margin:g} points; not told apart "
    "is less than that."
)
BALANCED_CAPTION = " balanced: accuracy if every class were as large, the mean recall of the classes, %."
COMPARISON_CAPTION = (
    "Mean difference [95 % interval, not corrected] over paired seeds. better, worse: Holm p below 0.05. "
    "equivalent: {tests} at 5 % show a difference of accuracy closer than {margin:g} points."
)
WITH_PEERS_TITLE = "Students with peers, against one another"
WITH_PEERS_CAPTION = (
    "Accuracy of the row's method minus that of the column's, points, over paired seeds. +, -: better, "
    "worse, Holm p below 0.05 over all {number} pairs. =: equivalent, closer than {margin:g} points. "
    "Intervals, and the same of NLL, are in report.json."
)
NEGATIVE_TRANSFER_CAPTION = (
    "repeats: of the {num_wrong} test images that all teachers fused by mean_probs get wrong, the share of "
    "which a student says the same wrong class, mean [95 % interval over seeds]. baseline: the same of the "
    "network that nobody taught. difference: over paired seeds; above 0 the teachers' mistakes were handed "
    "down. The images are held fixed: the intervals are of the seeds alone."
)
BODIES_TITLE = "What the networks are made of"
BODIES_CAPTION = (
    "bits: of a weight as it could be stored, first and last layer with it, and of a number that a rounded "
    "layer reads. zeros: share of the weights. bytes: that the parameters could be stored in. Means over "
    "members; files hold the same weights as float32."
)
SPIKES_CAPTION = (
    " spikes: for an image, over all neurons and time steps. active: share of the neurons that spike for it."
)
OWN_TITLE = "Metrics of your own"
TASK_TITLE = "Metrics of the task"
DETECTION_CAPTION = (
    "recall at: at the threshold that has at most so many false alarms on the test images themselves. "
    "recall, false alarms, misses: of the test images, at the threshold that has at most so many on "
    "validation; means over seeds or members."
)
KEPT_TITLE = "What is kept of the ensemble"
KEPT_CAPTION = (
    "baseline, ensemble (mean_probs): what they have. Students: the share of (ensemble - baseline) that they "
    "keep [95 % interval over seeds and test images, paired]. not defined: the ensemble is not better than "
    "the baseline by more than noise, or there is one seed, or one group of test images. scaled: by a "
    "temperature fitted on validation, one a network. AURC: area under the risk-coverage curve, the mean "
    "error of the surest images over all shares of them."
)
MANY_CORRUPTIONS = 5  # are counted and not named
COMPLEXITY_TITLE = "How hard targets are for the student"
COMPLEXITY_CAPTION = (
    "Supervision complexity (Harutyunyan et al. 2023) of targets p - 1/C of {number} training images, "
    "unaugmented: sqrt(y' K^-1 y tr K) / n by the tangent kernel K of the logits of {student}, as trained, "
    "and of a network of its architecture drawn anew. Lower: targets lie where this network learns fast. one "
    "teacher: the mean over all."
)
CASCADE_CAPTION = (
    "Of test images; accuracy and the share handed over with a 95 % interval over test examples. cost: of an "
    "image, in units of the ensemble's. lost: the share that the ensemble has right and this has not. over "
    "seeds: mean and Student's t interval, each seed with the threshold of its own validation."
)
ESTIMATED_CAPTION = (
    "~: estimated, seconds from the FLOPs at the rate of one matrix product here and from the memory "
    "traffic of the state. "
)
BY_RUNNING = "--plan=timed compiles every stage and runs some steps. "
TIMED_CAPTION = (
    "FLOPs of the networks by formula, memory as the compiler plans it, seconds from steps that ran. "
)
COSTS_CAPTION = (
    "Of training steps alone: compiling, validation, teachers whose answers are kept, evaluation and report "
    "come on top."
)
SEEDS_CAPTION = (
    "std: of the differences in accuracy over the pilot's seeds, points. planned: its bound. to differ: "
    "seeds with which a true difference of {margin:g} points (report.margin) is told four times in five, at "
    "the level of Holm's first test. equivalent: those with which no difference is found to be less than "
    "that, as often. s: of training both, with their grids, as the pilot took, compiling included; of the "
    "seeds that it lacks."
)
FEW_ZEROS = 0.01  # may be in any network, such as those of dead neurons


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


_BODY = {  # of a row's body: heading and form
    "weight_bits": ("bits of weights", "{:.3g}".format),
    "activation_bits": ("of activations", "{:.3g}".format),
    "zeros": ("zeros %", _percent),
    "num_bytes": ("bytes", cell_text.short_count),
    "spikes": ("spikes", cell_text.short_count),
    "active": ("active %", _percent),
}


def main_header(report: dict) -> list[str]:
    """MAIN_HEADER, with the balanced accuracy where the classes of the test set are of unequal size."""
    return [BALANCED if name == "Brier" and report["imbalanced"] else name for name in MAIN_HEADER]


def caption(report: dict, cost: str = COST_CAPTION) -> str:
    """What has to be known to read the main table."""
    text = CAPTION.format(margin=100 * report["margin"], cost=cost)
    return text + (BALANCED_CAPTION if report["imbalanced"] else "")


def by_size_caption(report: dict) -> str:
    """What has to be known to read the table of the students' architectures."""
    return BY_SIZE_CAPTION.format(margin=100 * report["margin"])


def comparison_caption(report: dict) -> str:
    """What has to be known to read the table of comparisons."""
    tests = "mixtures of t tests" if wording.bears_looking(report) else "two one-sided tests"
    return COMPARISON_CAPTION.format(tests=tests, margin=100 * report["margin"])


def main_sections(report: dict) -> list[tuple[str, rendering.Cells]]:
    """(title, cells under `main_header`) of teachers, ensembles, and the students of each transfer set."""
    sections: dict[str, rendering.Cells] = {}
    for row in report["rows"]:
        sections.setdefault(cell_text.heading(row, report), []).append(_main_cells(row, report))
    return list(sections.items())


def brief(report: dict) -> rendering.Sheet:
    """Teachers, one ensemble, and the students of the last transfer set, in the columns that say most."""
    rows = report["rows"]
    last = rows[-1]["transfer"]
    ensemble = [row for row in rows if row["role"] == "ensemble"][:1]
    shown = [row for row in rows if row["role"] in ("linear", "teacher")] + ensemble
    shown += [row for row in rows if row["transfer"] == last and last]
    several = len(report["student_models"]) > 1
    header = ["", "what", "n", "accuracy %", "verdict", "NLL", "gap", "params", "FLOPs"]
    kinds = {
        "teacher": "one teacher",
        "linear": "to compare with",
        "ensemble": f"all {report['diversity']['num_teachers']} fused",
    }
    cells = [
        [
            cell_text.name_of(row, report, several),
            kinds.get(row["role"], row["role"]),
            str(row["n"]),
            cell_text.with_interval(row["accuracy"]),
            row["verdict"] or cell_text.MISSING,
            cell_text.mean(row, "nll"),
            cell_text.share_kept(row),
            cell_text.short_count(row["params"]),
            cell_text.short_count(row["flops"]),
        ]
        for row in shown
    ]
    return header, cells


def by_size(report: dict) -> rendering.Sheet:
    """(header, cells): each architecture of students, from the smallest on, and the ensemble.

    By the row that validation chooses for it, what that is worth, what it costs, and how far from the
    ensemble it is.
    """
    header = ["", "row", "accuracy %", "NLL", "gap", "params", "FLOPs", "ms", "minus ensemble, points", ""]
    rows = {wording.place_of(row): row for row in report["rows"]}
    students = [(rows[wording.place_of(one)], one) for one in report["students_by_size"]]
    ensemble = [row for row in report["rows"] if row["rule"] == "mean_probs"]

    def cells(row: dict) -> list[str]:
        metrics = [
            cell_text.with_interval(row["accuracy"]),
            cell_text.mean(row, "nll"),
            cell_text.share_kept(row),
        ]
        return [*metrics, *cell_text.cost_cells(row)]

    return header, [
        *(
            [
                row["architecture"],
                f"{row['name']} ({row['transfer']})",
                *cells(row),
                f"{100 * one['difference']:+.2f} {wording.interval(one['ci95'], 'accuracy')}",
                SIZE_WORDS.get(one["verdict"], one["verdict"]),
            ]
            for row, one in students
        ),
        *(
            [
                f"all {report['diversity']['num_teachers']} teachers",
                row["name"],
                *cells(row),
                cell_text.MISSING,
                cell_text.MISSING,
            ]
            for row in ensemble
        ),
    ]


def detection(report: dict) -> rendering.Sections:
    """(header, sections as in `main_sections`): what rows with probabilities are worth as detectors."""
    asked = report["detection"]
    at = f"recall at {100 * asked['false_alarm_rate']:g} %"
    header = ["", "AUROC", at, "recall %", "false alarms %", f"misses of {asked['num_positive']}"]
    sections: dict[str, rendering.Cells] = {}
    for row in report["rows"]:
        if row["auroc"] is not None:
            sections.setdefault(cell_text.heading(row, report), []).append(_detection_cells(row, report))
    return header, list(sections.items())


def cascade(report: dict) -> rendering.Sheet:
    """The student alone, with the ensemble as its safety net, and the ensemble alone."""
    found = report["cascade"]
    name, num_seeds = wording.title_of(found["student"], report), len(found["seeds"]["accuracy"]["values"])
    rows = {
        f"{name} alone": found["test"]["student"],
        f"{name}, then the ensemble": found["test"]["cascade"],
        f"the same, over {num_seeds} seeds": found["seeds"],
        f"ensemble ({found['rule']})": found["test"]["ensemble"],
    }
    cells = [
        [
            title,
            cell_text.with_interval(row["accuracy"]),
            f"{row['nll']['mean']:.3f}",
            cell_text.with_interval(row["share"]),
            f"{100 * row['lost']['mean']:.2f}",
            f"{row['cost']['mean']:.3f}",
        ]
        for title, row in rows.items()
    ]
    return ["", "accuracy %", "NLL", "handed over %", "lost %", "cost"], cells


def kept(report: dict) -> rendering.Sections:
    """(header, sections as in `main_sections`): what students keep of the ensemble, quantity by quantity.

    A section begins with what baseline and ensemble are worth.
    """
    found = report["kept"]
    quantities = found["quantities"]
    header = ["", *(one["title"] for one in quantities.values())]
    sections = []
    for section in found["sections"]:
        gaps = section["gaps"]
        cells = [
            [who, *(_worth(gaps.get(name), who, one) for name, one in quantities.items())]
            for who in ("baseline", "ensemble")
        ]
        cells += [
            [row["name"], *(_kept_share(row["shares"].get(name)) for name in quantities)]
            for row in section["rows"]
        ]
        title = cell_text.students_of({**section, "role": "student"}, report)
        sections.append((f"{title}, {section['transfer']}", cells))
    return header, sections


def kept_caption(report: dict) -> str:
    """What the shares are of, and what was asked of the networks."""
    found, parts = report["kept"], [KEPT_CAPTION]
    if found["corruptions"]:
        names = found["corruptions"]
        named = ", ".join(names) if len(names) < MANY_CORRUPTIONS else f"{len(names)} corruptions"
        strengths = ", ".join(map(str, found["strengths"]))
        parts.append(
            f"Under shift: test images under {named}, at strengths {strengths} of 5; the mean of all."
        )
    if found["ood"]:
        parts.append(
            f"OOD: test images against those of {found['ood']}, by the largest probability, the entropy and "
            "the mutual information of a prediction; who keeps no members has 0 of the latter."
        )
    return " ".join(parts)


def _worth(gap: dict | None, who: str, quantity: dict) -> str:
    return cell_text.MISSING if gap is None else f"{quantity['scale'] * gap[who]:.{_digits(quantity)}f}"


def _digits(quantity: dict) -> int:
    return 1 if quantity["scale"] == 100 else 3


def _kept_share(share: dict | None) -> str:
    if share is None:
        return cell_text.MISSING
    if share["share"] is None:
        return "not defined"
    return f"{share['share']:.0%}{cell_text.ends(share['ci95'], 0, 100)}"


def bodies(report: dict) -> rendering.Sections | None:
    """(header, sections as in `main_sections`) of all networks; None where all are real ones."""
    rows = [row for row in report["rows"] if row["body"]]
    if not any(_is_special(row["body"]) for row in rows):
        return None
    columns = {name: own for name, own in _BODY.items() if any(name in row["body"] for row in rows)}
    sections: dict[str, rendering.Cells] = {}
    for row in rows:
        own = row["body"]
        told = [show(own[name]) if name in own else cell_text.MISSING for name, (_, show) in columns.items()]
        cells = [cell_text.name_of(row, report), cell_text.with_interval(row["accuracy"]), *told]
        sections.setdefault(cell_text.heading(row, report), []).append(cells)
    return ["", "accuracy %", *(title for title, _ in columns.values())], list(sections.items())


def bodies_caption(report: dict) -> str:
    """What has to be known to read the table of bodies."""
    spiking = any("spikes" in row["body"] for row in report["rows"])
    return BODIES_CAPTION + (SPIKES_CAPTION if spiking else "")


def _is_special(body: Mapping[str, float]) -> bool:
    bits = min(body["weight_bits"], body["activation_bits"])
    return bits < NEARLY_REAL or body["zeros"] > FEW_ZEROS or "spikes" in body


def complexity(report: dict) -> rendering.Sheet:
    """(header, cells): what labels, teachers and the student say, by how hard it is for the student."""
    found = report["complexity"]["rows"]
    cells = [[one["of"], *(f"{one[when]:.3f}" for when in ("drawn", "trained"))] for one in found]
    return ["targets of", "as drawn", "as trained"], cells


def complexity_caption(report: dict) -> str:
    """What has to be known to read the table of targets."""
    found = report["complexity"]
    student = f"{wording.title_of(found['student'], report)} ({found['student']['transfer']})"
    return COMPLEXITY_CAPTION.format(number=found["num_images"], student=student)


def own_metrics(report: dict) -> rendering.Sections:
    """(header, sections as in `main_sections`): the metrics of the user's own, with their intervals."""
    asked = report["metrics"]
    header = ["", *(f"{one['name']} {one['unit']}".strip() for one in asked)]
    sections: dict[str, rendering.Cells] = {}
    for row in report["rows"]:
        cells = [
            cell_text.name_of(row, report),
            *(_own_cell(row["own"][one["name"]], one["digits"]) for one in asked),
        ]
        sections.setdefault(cell_text.heading(row, report), []).append(cells)
    return header, list(sections.items())


def own_title(report: dict) -> str:
    """The heading of that table: a task has metrics, to which those of the user's own are added."""
    return OWN_TITLE if report["task"] == "classes" else TASK_TITLE


def own_caption(report: dict) -> str:
    """What is better, and where the metrics come from."""
    said = (
        f"{one['name']} ({one['address']}): {'higher' if one['higher_is_better'] else 'lower'} is better"
        for one in report["metrics"]
    )
    measured = [metric for row in report["rows"] for metric in row["own"].values() if metric]
    by = "by a jackknife" if any(metric.get("ci_by") == "jackknife" for metric in measured) else "resampled"
    return f"{'; '.join(said)}. 95 % intervals over members, seeds, or test examples ({by})."


def _own_cell(metric: dict | None, digits: int) -> str:
    if metric is None or metric["mean"] is None:
        return cell_text.MISSING
    return f"{metric['mean']:.{digits}f}{cell_text.ends(metric['ci95'], digits)}"


def comparison_sections(report: dict) -> list[tuple[str, rendering.Cells]]:
    """(title, cells under COMPARISON_HEADER) of each Holm family: accuracy and NLL of a pair on one row.

    Without students with peers against one another, which have a table of their own.
    """
    sections = []
    compared = [one for one in report["comparisons"] if one["family"] != power.WITH_PEERS]
    for family, model in dict.fromkeys((one["family"], one["architecture"]) for one in compared):
        own = [one for one in compared if (one["family"], one["architecture"]) == (family, model)]
        on_accuracy, on_nll = ([one for one in own if one["metric"] == name] for name in ("accuracy", "nll"))
        cells = [
            [
                f"{a['a']} - {a['b']}",
                *(cell for one in (a, n) for cell in cell_text.verdict_cells(one)),
                str(a["n"]),
            ]
            for a, n in zip(on_accuracy, on_nll)
        ]
        title = cell_text.students_of(own[0], report)
        sections.append((f"{title}, {family}", cells))
    return sections


def with_peers(report: dict) -> list[tuple[str, list[str], rendering.Cells]]:
    """(title, header, cells) of students with peers against one another, a triangle each.

    One for each transfer set and architecture that has two of them; columns are the numbers of rows.
    """
    return [_triangle(tested, report) for tested in wording.with_peers(report)]


def with_peers_caption(report: dict) -> str:
    """What has to be known to read them."""
    number = sum(map(len, wording.with_peers(report)))
    return WITH_PEERS_CAPTION.format(number=number, margin=100 * report["margin"])


def _triangle(tested: Sequence[dict], report: dict) -> tuple[str, list[str], rendering.Cells]:
    names = list(dict.fromkeys(one[side] for side in "ab" for one in tested))
    below = {(one["a"], one["b"]): one for one in map(wording.turned, tested)}

    def cell(row: str, column: str) -> str:
        one = below.get((row, column))
        return f"{100 * one['mean_difference']:+.2f}{cell_text.SIGN[one['verdict']]}" if one else ""

    cells = [
        [f"{number} {name}", *(cell(name, column) for column in names[:-1])]
        for number, name in enumerate(names, start=1)
    ]
    title = cell_text.students_of(tested[0], report)
    return f"{title}, {tested[0]['a_transfer']}", ["", *map(str, range(1, len(names)))], cells


def negative_transfer(report: dict) -> rendering.Sheet:
    """How often each row repeats what the ensemble gets wrong, beside its baseline."""
    with_transfer = len({one["transfer"] for one in report["negative_transfer"]}) > 1
    header = ["", *(["transfer set"] if with_transfer else [])]
    header += ["repeats %", "baseline %", "difference, points", "p", "p (Holm)", "n"]
    return header, [
        [
            wording.title_of(one, report),
            *([one["transfer"]] if with_transfer else []),
            cell_text.in_percent(one["repeats"]),
            cell_text.scaled(one["baseline"], 100),
            *cell_text.difference_cells({**one, "metric": "accuracy"}),
            str(one["n"]),
        ]
        for one in report["negative_transfer"]
    ]


def negative_transfer_caption(report: dict) -> str:
    """What has to be known to read it."""
    return NEGATIVE_TRANSFER_CAPTION.format(num_wrong=report["negative_transfer"][0]["num_wrong"])


def common(report: dict) -> rendering.Sheet:
    """(header, cells): every mode at the one common alpha."""
    header = ["", "transfer set", "T", "n", "accuracy %", "NLL"]
    return header, [
        [
            wording.title_of(row, report),
            row["transfer"],
            cell_text.short(row["temperature"]),
            str(row["n"]),
            cell_text.with_interval(row["accuracy"]),
            cell_text.mean(row, "nll"),
        ]
        for row in report["common_alpha"]["rows"]
    ]


def recall(report: dict) -> rendering.Sheet:
    """(header, cells): the share of each class that is found, per cent."""
    header = ["class", *(one["name"] for one in report["confusion"])]
    by_class = zip(report["class_names"], *(one["recall"] for one in report["confusion"]))
    return header, [[name, *(cell_text.scaled(value, 100) for value in values)] for name, *values in by_class]


def confusion(report: dict, one: dict) -> rendering.Sheet:
    """(header, cells) of one confusion matrix: a row a true class, a column a decision."""
    counts = [[name, *map(str, row)] for name, row in zip(report["class_names"], one["matrix"])]
    return ["", *report["class_names"]], counts


def diversity(report: dict) -> rendering.Sheet:
    """(header, cells): how the teachers differ, means over pairs."""
    names = {
        "disagreement": "decisions that differ, %",
        "q_statistic": "Q statistic of being right (0: independent, 1: same)",
        "kl": "symmetrised KL divergence, nats",
        "error_correlation": "correlation of errors",
    }
    found = report["diversity"]
    num_teachers, num_paired = found["num_teachers"], len(found["members"])
    who = "teachers" if num_paired == num_teachers else f"the first {num_paired} of {num_teachers} teachers"
    return ["measure", f"mean over pairs of {who}"], [
        [title, cell_text.scaled(found[name]["mean"], 100 if name == "disagreement" else 1)]
        for name, title in names.items()
    ]


def fusion_rules(study: dict) -> rendering.Sheet:
    """Every rule on the test examples, and against mean_probs."""
    cells = []
    for one in study["rules"]:
        difference, _, p_holm = cell_text.difference_cells(one["against"])
        said = wording.better_or_worse(one["against"]) or "noise"
        against = 3 * [cell_text.MISSING] if one["rule"] == "mean_probs" else [difference, p_holm, said]
        cells.append(
            [one["rule"], cell_text.with_interval(one["accuracy"]), cell_text.scaled(one["nll"], 1), *against]
        )
    return ["rule", "accuracy %", "NLL", "minus mean_probs, points", "p (Holm)", ""], cells


def fusion_sizes(study: dict) -> rendering.Sheet:
    """Mean accuracy in per cent of every rule at every size; + and -: better and worse than mean_probs."""

    def cell(rule: str, point: dict | None) -> str:
        if point is None:
            return cell_text.MISSING
        verdict = "" if rule == "mean_probs" else wording.better_or_worse(point["against"])
        return cell_text.in_percent(point) + cell_text.SIGN[verdict]

    header = ["rule", *(f"N = {size}" for size in study["sizes"])]
    return header, [[one["rule"], *(cell(one["rule"], p) for p in one["points"])] for one in study["rules"]]


def fusion_cost(measured: dict) -> rendering.Sheet:
    """Seconds of every rule."""
    return ["rule", "seconds"], [[one["rule"], f"{one['seconds']:.3f}"] for one in measured["rules"]]


def teacher_values(study: dict) -> rendering.Sheet:
    """What each teacher is worth on validation, by falling Shapley value, in points of accuracy."""
    header = ["teacher", "alone, %", "Shapley value, points", "lost when left out, points"]
    values = sorted(study["teachers"]["values"], key=lambda one: -one["shapley"])
    return header, [
        [
            one["name"],
            f"{100 * one['accuracy']:.2f}",
            f"{100 * one['shapley']:.2f}"
            + ("" if one["standard_error"] is None else f" ± {100 * one['standard_error']:.2f}"),
            f"{100 * one['leave_one_out']:+.2f}",
        ]
        for one in values
    ]


def costs(stages: Sequence[Mapping]) -> rendering.Sheet:
    """(header, cells): what every stage of a run would cost, from the fields of `forecast.Cost`."""
    mark = "" if stages[0]["timed"] else " ~"  # by formula alone
    header = ["stage", "M", "params", "steps", "FLOPs", f"memory{mark}", f"s{mark}", "layout"]
    total = sum(stage["flops"] for stage in stages), sum(stage["seconds"] for stage in stages)
    cells = [
        [
            stage["stage"],
            str(stage["num_members"])
            + (f" by {stage['num_at_once']}" if stage["num_at_once"] < stage["num_members"] else ""),
            cell_text.short_count(stage["num_params"]),
            str(stage["num_steps"]),
            cell_text.short_count(stage["flops"]),
            cell_text.short_count(stage["num_bytes"]) + "B",
            f"{stage['seconds']:.1f}",
            str(stage["layout"]),
        ]
        for stage in stages
    ]
    return header, [*cells, ["all", *[""] * 3, cell_text.short_count(total[0]), "", f"{total[1]:.1f}", ""]]


def cost_line(stage: Mapping) -> str:
    """One stage's cost as a line, for whoever waits for the table."""
    return (
        f"{stage['stage']}: {cell_text.short_count(stage['flops'])} FLOPs, "
        f"{cell_text.short_count(stage['num_bytes'])}B, "
        f"{'' if stage['timed'] else 'about '}{stage['seconds']:.1f} s"
    )


def costs_caption(stages: Sequence[Mapping]) -> str:
    """What stands in the table, and what does not."""
    return (TIMED_CAPTION if stages[0]["timed"] else ESTIMATED_CAPTION + BY_RUNNING) + COSTS_CAPTION


def seeds_needed(planned: Sequence[Mapping]) -> rendering.Sheet:
    """(header, cells): how many seeds every comparison needs, from `power.plan`."""
    header = ["comparison", "n", "std", "planned", "to differ", "equivalent", "s a seed", "s more"]

    def number(value: int | None) -> str:
        return f"> {power.MOST_SEEDS:,}" if value is None else f"{value:,}"

    cells = [
        [
            f"{one['a']} - {one['b']} ({wording.transfers_of(one)})",
            str(one["n"]),
            *(f"{100 * one[name]:.2f}" for name in ("std", "planned_std")),
            *(number(one[name]) for name in ("to_differ", "to_be_equivalent")),
            f"{one['seconds_a'] + one['seconds_b']:.1f}",
            cell_text.MISSING if one["cost"] is None else f"{one['cost']:,.0f}",
        ]
        for one in planned
    ]
    return header, cells


def terminal(report: dict) -> Group:
    """The main table for a terminal of 100 columns, and the detector's below it where there is one."""
    header = main_header(report)
    shown = [i for i, name in enumerate(header) if name not in IN_FILES_ALONE]
    sections = [(title, [[row[i] for i in shown] for row in cells]) for title, cells in main_sections(report)]
    parts = [
        *rendering.render_sections([header[i] for i in shown], sections),
        Text(caption(report, cost=""), style="dim"),
    ]
    if report["detection"] is not None:
        parts += [
            Text(f"\n{detection_title(report)}", style="bold"),
            *rendering.render_sections(*detection(report)),
            Text(DETECTION_CAPTION, style="dim"),
        ]
    if report["metrics"]:
        parts += [
            Text(f"\n{own_title(report)}", style="bold"),
            *rendering.render_sections(*own_metrics(report)),
            Text(own_caption(report), style="dim"),
        ]
    return Group(*parts)


def detection_title(report: dict) -> str:
    """The heading of the detector's table."""
    return f"Detection of {report['detection']['positive']}"


def _main_cells(row: dict, report: dict) -> list[str]:
    return [
        cell_text.name_of(row, report),
        cell_text.with_interval(row["accuracy"]),
        row["verdict"] or cell_text.MISSING,
        cell_text.mean(row, "nll"),
        cell_text.mean(row, "ece", 100),
        cell_text.mean(row, "balanced_accuracy", 100)
        if report["imbalanced"]
        else cell_text.mean(row, "brier"),
        cell_text.share_kept(row),
        cell_text.short(row["alpha"]),
        cell_text.short(row["temperature"]),
        str(row["n"]),
        *cell_text.cost_cells(row),
    ]


def _detection_cells(row: dict, report: dict) -> list[str]:
    auroc, recall, point = row["auroc"], row["recall_at_false_alarm_rate"], row["operating_point"]
    return [
        cell_text.name_of(row, report),
        f"{auroc['mean']:.3f}{cell_text.ends(auroc['ci95'], 3)}",
        cell_text.in_percent(recall),
        cell_text.scaled(point["recall"]["mean"], 100),
        cell_text.scaled(point["false_alarm_rate"]["mean"], 100),
        wording.count(point["misses"]["mean"]),
    ]
