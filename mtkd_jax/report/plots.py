"""The plots of the report: a function a plot, from plain arrays or rows of the report to a Figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullLocator

from mtkd_jax.engine import distances
from mtkd_jax.report.style import (
    BLACK,
    BLUE,
    COLOUR_OF,
    CYCLE,
    LOOKS,
    MARKERS,
    RED,
    STYLE,
    draw_dot,
    new_figure,
    shortened,
    told_apart,
    write_legend,
    write_title,
)
from mtkd_jax.results import metrics

MOST_PANELS = 4  # of curves, side by side


# --- training -----------------------------------------------------------------------------------------


class Quantity(NamedTuple):
    """What curves are of."""

    name: str  # of a record of metrics.jsonl
    title: str
    scale: float = 1.0
    is_log: bool = False


LEARNING = (
    # The first epochs are far above the rest; on a logarithmic axis the end can be told apart.
    Quantity("val_nll", "validation NLL", is_log=True),
    Quantity("val_accuracy", "validation accuracy, %", 100.0),
)
HOMOGENISATION = (
    Quantity(distances.TO_PEERS, "distance to the peers"),
    Quantity(distances.TO_OWN_TEACHER, "distance to its own teacher"),
)


def curves(records: Sequence[Mapping], quantities: Sequence[Quantity]) -> Figure | None:
    """A row of quantities against epochs each: the mean of a line's members, shaded over their range.

    records: {"panel", "line", "epoch", "name", "value"}, a value for each member; the names drawn are those
    of quantities, and of these alone what is there. None where nothing is.
    """
    values: dict[tuple[str, str, str], dict[int, list[float]]] = {}
    names = {one.name for one in quantities}
    for record in (record for record in records if record["name"] in names):
        of_line = values.setdefault((record["panel"], record["line"], record["name"]), {})
        of_line.setdefault(record["epoch"], []).append(record["value"])
    if not values:
        return None
    quantities = [one for one in quantities if any(one.name == name for _, _, name in values)]
    panels = list(dict.fromkeys(panel for panel, _, _ in values))
    with matplotlib.rc_context(STYLE):
        num_columns, num_rows = min(len(panels), MOST_PANELS), len(quantities)
        num_bands = -(-len(panels) // num_columns)
        size = max(8.2, 1.0 + 3.6 * num_columns), 2.8 * num_rows * num_bands
        figure, grid = new_figure(*size, num_rows * num_bands, num_columns)
        for axis in grid.flat:
            axis.set_visible(False)
        places = [divmod(number, num_columns) for number in range(len(panels))]
        axes = np.array([[grid[num_rows * band + i, j] for band, j in places] for i in range(num_rows)])
        for (_, column), of_panel in zip(places, axes.T):
            for axis, first in zip(of_panel, axes[:, 0]):
                axis.set_visible(True)
                if axis is not of_panel[0]:
                    axis.sharex(of_panel[0])
                if axis is not first:
                    axis.sharey(first)
                axis.tick_params(labelleft=column == 0, labelbottom=axis is of_panel[-1])
        for j, panel in enumerate(panels):
            lines = list(dict.fromkeys(line for p, line, _ in values if p == panel))
            looks = _looks(lines)
            for axis, one in zip(axes[:, j], quantities):
                for line in lines:
                    epochs = values.get((panel, line, one.name), {})
                    _draw_curve(axis, epochs, one.scale, label=line, **looks[line])
            axes[0, j].set_title(
                "\n".join(shortened(line, 40) for line in panel.split("\n")), parse_math=False
            )
            axes[-1, j].set_xlabel("epoch")
            axes[-1, j].xaxis.set_major_locator(MaxNLocator(6, integer=True))
        for row, one in zip(axes, quantities):
            for axis in row[::num_columns]:
                axis.set_ylabel(one.title)
            if one.is_log:
                row[0].set_yscale("log")
                row[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
                row[0].yaxis.set_major_formatter("{x:g}")
                row[0].yaxis.set_minor_locator(NullLocator())
        drawn = {line.get_label(): line for axis in axes.flat for line in axis.get_lines()}
        write_legend(figure, list(drawn.values()), list(drawn))
    return figure


def _looks(lines: Sequence[str]) -> dict[str, dict[str, str]]:
    """Colour and dashes of every line; baseline and control look the same in every plot."""
    modes = [line for line in lines if line not in COLOUR_OF]
    dashes = ("-", "--", ":")
    looks = {
        line: {"color": CYCLE[k % len(CYCLE)], "linestyle": dashes[k // len(CYCLE) % len(dashes)]}
        for k, line in enumerate(modes)
    }
    return {line: looks.get(line) or {"color": COLOUR_OF[line], "linestyle": "-"} for line in lines}


def _draw_curve(
    axes: Axes, epochs: Mapping[int, Sequence[float]], scale: float, *, color: str, **look: Any
) -> None:
    at = sorted(epochs)
    mean, low, high = (scale * np.array([of(epochs[e]) for e in at]) for of in (np.mean, np.min, np.max))
    axes.plot(at, mean, color=color, linewidth=1.4, **look)
    axes.fill_between(at, low, high, color=color, alpha=0.12, linewidth=0)


# --- results ------------------------------------------------------------------------------------------


def accuracy_against_k(sub_ensembles: Sequence[Mapping], across: Sequence[tuple[str, str, float]]) -> Figure:
    """Accuracy of `mean_probs` against how many teachers are fused: mean and range over sub-ensembles.

    sub_ensembles: {"k", "mean", "min", "max"}; across: (role, name, accuracy) of other rows, drawn as levels.
    """
    k, mean, low, high = (
        np.array([one[name] for one in sub_ensembles]) for name in ("k", "mean", "min", "max")
    )
    with matplotlib.rc_context(STYLE):
        figure, ((axes,),) = new_figure(6.4, 3.6)
        axes.fill_between(
            k, 100 * low, 100 * high, color=BLACK, alpha=0.1, linewidth=0, label="range over subsets"
        )
        axes.plot(k, 100 * mean, "o-", color=BLACK, linewidth=1.6, markersize=4, label="mean over subsets")
        for role, name, accuracy in across:
            axes.axhline(100 * accuracy, color=COLOUR_OF[role], linewidth=1.3, linestyle="--", label=name)
        _sizes_axis(axes, k)
        axes.set_xlabel("teachers fused by mean_probs")
        axes.set_ylabel("test accuracy, %")
        axes.set_title(f"One teacher {100 * mean[0]:.1f} %, all {k[-1]} fused {100 * mean[-1]:.1f} %")
        write_legend(figure, *axes.get_legend_handles_labels(), columns=2)
    return figure


def _sizes_axis(axes: Axes, sizes: Sequence[int] | np.ndarray) -> None:
    """A tick for every size; logarithmic where the sizes grow by a factor."""
    if len(sizes) != sizes[-1] - sizes[0] + 1:
        axes.set_xscale("log")
    axes.set_xticks(sizes, [str(size) for size in sizes])
    axes.xaxis.set_minor_locator(NullLocator())


def all_rows(rows: Sequence[Mapping]) -> Figure:
    """Test accuracy of every row with its 95 % interval: teachers, ensembles, then each transfer set.

    "of" of a row is the architecture, where there are students of several. Within a transfer set, and an
    architecture, a dotted line marks the mean of the baseline.
    """
    sections: dict[str, list[Mapping]] = {}
    for row in rows:
        sections.setdefault(_section(row), []).append(row)
    with matplotlib.rc_context(STYLE):
        figure, ((axes,),) = new_figure(6.4, 1.2 + 0.23 * (len(rows) + len(sections)))
        at = 0
        ticks: dict[int, str] = {}
        for title, members in sections.items():
            axes.text(0.01, at, title, transform=axes.get_yaxis_transform(), color="#555555", va="center")
            for row in members:
                at += 1
                ticks[at] = row["name"]
                draw_dot(axes, row["accuracy"], at, COLOUR_OF[row["role"]])
            baseline = [100 * row["accuracy"]["mean"] for row in members if row["role"] == "baseline"]
            axes.vlines(baseline, at - len(members) + 0.5, at + 0.5, color=RED, linestyle=":", linewidth=1.2)
            at += 1
        axes.set_yticks(list(ticks), told_apart(list(ticks.values())), parse_math=False)
        axes.set_ylim(at - 0.4, -0.7)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("test accuracy, %")
        write_title(figure, "Test accuracy of every row: mean and 95 % interval")  # the axes may be narrow
        roles = [role for role in COLOUR_OF if any(row["role"] == role for row in rows)]
        handles = [
            Line2D([], [], marker="o", color=COLOUR_OF[role], label=role, markersize=4) for role in roles
        ]
        write_legend(figure, handles, [str(one.get_label()) for one in handles], columns=len(handles))
    return figure


Place = tuple[str, str, str]  # of a row: name, transfer set, architecture


def against_cost(rows: Sequence[Mapping], kept: Place | None, chosen: Sequence[Place]) -> Figure | None:
    """Test accuracy against parameters, and NLL where students of several sizes are `chosen`; 95 % intervals.

    Shown are teachers, the ensemble, the chosen students, a line through them, the baseline of each, and the
    row `kept` of the network to deploy as a diamond. Steps mark the Pareto front of what is shown: nothing is
    both cheaper and better. All other students are small dots. Below a student stands its gap share, "keeps".
    None where nothing is known of what any row costs.
    """
    rows = [row for row in rows if row["params"] is not None]
    shown, label_of, others = _what_costs(rows, kept, chosen)
    if not shown:
        return None
    several = len(chosen) > 1
    panels = (("accuracy", 100, "test accuracy, %"), ("nll", 1, "test NLL"))[: 1 + several]
    with matplotlib.rc_context(STYLE):
        sizes = sorted({row["params"] for row in shown})
        low, high = np.log10(sizes[0]), np.log10(sizes[-1])
        span = max(high - low, 0.3)
        fractions = [(np.log10(size) - low + 0.12 * span) / (1.26 * span) for size in sizes]
        ticks = _staggered(fractions, [_told_at(size, shown, chosen) for size in sizes], 6.4 - 0.8)
        height = 0.8 + 2.4 * len(panels) + 0.15 * (1 + max(tick.count("\n") for tick in ticks))
        figure, axes = new_figure(6.4, height, len(panels), 1, sharex=True)
        for panel, (name, scale, title) in zip(axes[:, 0], panels):
            with_metric = [row for row in shown if row[name] is not None]
            _draw_front(panel, with_metric, name, scale)
            for row in others:
                look = dict(color=COLOUR_OF[row["role"]], markersize=2.5, alpha=0.4)
                panel.plot(row["params"], scale * row[name]["mean"], "o", **look)
            for places in (chosen, _baselines(chosen)) if several else ():
                line = sorted(
                    (row for row in shown if _as_place(row) in places), key=lambda row: row["params"]
                )
                look = dict(color=COLOUR_OF[line[0]["role"]], linewidth=0.8, alpha=0.5) if line else {}
                means = [scale * row[name]["mean"] for row in line]
                panel.plot([row["params"] for row in line], means, **look)
            for row in with_metric:
                beside = [one for one in with_metric if one["params"] == row["params"]]
                shift = 0.02 * span * (beside.index(row) - (len(beside) - 1) / 2)
                at, is_kept = row["params"] * 10**shift, _as_place(row) == kept
                _draw_tall_dot(panel, row, name, at, scale, "D" if is_kept else "o", label_of)
            panel.set_ylabel(title)
        panel.set_xscale("log")
        panel.set_xlim(10 ** (low - 0.12 * span), 10 ** (high + 0.14 * span))
        panel.set_xticks(sizes, ticks, parse_math=False, fontsize=8)
        panel.xaxis.set_minor_locator(NullLocator())
        panel.set_xlabel("parameters of what answers")
        axes[0, 0].set_title("Cost and worth: mean and 95 % interval; small: all other students")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        by_label = dict(zip(labels, handles))
        write_legend(figure, list(by_label.values()), list(by_label), columns=2)
    return figure


def against_training(ensembles: Sequence[Mapping]) -> Figure | None:
    """Accuracy of ensembles, and below how their members differ, against the FLOPs of all their training.

    ensembles: {"name", "train_flops", "accuracy": {"mean", "ci95"}, "disagreement": share of test images that
    two members decide otherwise, mean over pairs; None of one member}. Those that cost the same, give or take
    a tenth, stand side by side. None where fewer than two are given.
    """
    if len(ensembles) < 2:
        return None
    cost = np.log10([one["train_flops"] for one in ensembles])
    span = max(np.ptp(cost), 0.3)
    places = 10 ** np.array([_beside_its_like(cost, number, 0.03 * span) for number in range(len(cost))])
    with matplotlib.rc_context(STYLE):
        figure, axes = new_figure(6.4, 5.6, 2, 1, sharex=True, gridspec_kw={"height_ratios": (3, 2)})
        above, below = axes[:, 0]
        for number, one in enumerate(ensembles):
            at = places[number]
            look = dict(color=LOOKS[number % len(LOOKS)], linewidth=1.6, markersize=6)
            marker, accuracy = MARKERS[number % len(MARKERS)], one["accuracy"]
            if accuracy["ci95"] is not None:
                above.plot([at, at], 100 * np.array(accuracy["ci95"]), **look)
            above.plot(at, 100 * accuracy["mean"], marker, label=one["name"], **look)
            if one["disagreement"] is not None:
                below.plot(at, 100 * one["disagreement"], marker, **look)
        above.set_ylabel("accuracy of mean_probs, %")
        above.set_title("Ensembles: accuracy, 95 % interval, and diversity against training")
        below.set_ylabel("two members differ, %")
        below.set_ylim(bottom=0)
        below.set_xscale("log")
        below.set_xlim(places.min() / 10 ** (0.1 * span), places.max() * 10 ** (0.1 * span))
        within_a_decade = np.ptp(below.get_xlim()) < 9 * below.get_xlim()[0]
        below.xaxis.set_major_locator(MaxNLocator(5) if within_a_decade else LogLocator(numticks=8))
        below.xaxis.set_minor_locator(NullLocator())
        below.xaxis.set_major_formatter(EngFormatter(sep=""))
        below.set_xlabel("FLOPs of the training of all members")
        write_legend(figure, *above.get_legend_handles_labels())
    return figure


def _beside_its_like(cost: np.ndarray, number: int, step: float) -> float:
    """Where one of the costs [n], logarithms to base 10, stands among those that are the same."""
    alike = np.flatnonzero(np.abs(cost - cost[number]) < np.log10(1.1)).tolist()
    return cost[number] + min(step, 0.2 / len(alike)) * (alike.index(number) - (len(alike) - 1) / 2)


def cascade(found: Mapping, who: str) -> Figure:
    """Test accuracy against the mean cost of an image, from a student alone to the ensemble alone.

    found: the block "cascade" of the report; who: what its student is called. The line is over all
    thresholds; a diamond with both intervals is the one that validation sets. Dotted: the accuracy below
    which validation promises not to fall.
    """
    curve, test = found["curve"], found["test"]
    colour_of = {"student": BLUE, "cascade": CYCLE[1], "ensemble": BLACK}
    share = test["cascade"]["share"]["mean"]
    doubt = "" if found["certified"] else ": nothing less is certified"
    label_of = {
        "student": f"{who} alone",
        "cascade": f"{who} hands over {100 * share:.1f} %{doubt}",
        "ensemble": f"ensemble ({found['rule']}) alone",
    }
    with matplotlib.rc_context(STYLE):
        figure, ((axes,),) = new_figure(6.4, 3.6)
        axes.plot(
            curve["cost"],
            100 * np.array(curve["accuracy"]),
            color=CYCLE[1],
            linewidth=1.6,
            alpha=0.7,
            label="all thresholds",
        )
        if found["certified"]:
            promised = 100 * (test["ensemble"]["accuracy"]["mean"] - found["tolerance"])
            label = f"ensemble less {100 * found['tolerance']:g} points"
            axes.axhline(promised, color=BLACK, linewidth=1, linestyle=":", label=label)
        for one, metrics_of in test.items():
            at, accuracy = metrics_of["cost"], metrics_of["accuracy"]
            right = 100 * accuracy["mean"]
            bar = {"color": colour_of[one], "linewidth": 1.6}
            if accuracy["ci95"] is not None:
                axes.plot(2 * [at["mean"]], 100 * np.array(accuracy["ci95"]), **bar)
            if at["ci95"] is not None:
                axes.plot(at["ci95"], 2 * [right], **bar)
            axes.plot(
                at["mean"],
                right,
                "D" if one == "cascade" else "o",
                color=colour_of[one],
                markersize=6,
                label=label_of[one],
            )
        axes.set_xlim(left=0)
        what = {"flops": "FLOPs", "params": "parameters"}[found["cost"]["of"]]
        axes.set_xlabel(f"mean cost of an image, {what} in units of the ensemble's")
        axes.set_ylabel("test accuracy, %")
        axes.set_title("A student with a safety net: accuracy against cost, 95 % intervals")
        write_legend(figure, *axes.get_legend_handles_labels(), columns=2)
    return figure


def _what_costs(
    rows: Sequence[Mapping], kept: Place | None, chosen: Sequence[Place]
) -> tuple[list[Mapping], dict[Place, str], list[Mapping]]:
    """Rows that are shown whole, what the legend says of each, and those that are small dots."""
    baselines = _baselines(chosen)
    if not chosen:
        baselines = [_as_place(row) for row in rows if row["role"] == "baseline"][:1]
    ensembles = [row for row in rows if row["role"] == "ensemble"]
    ensembles.sort(key=lambda row: row["rule"] != "mean_probs")  # the others cost the same
    asked = {*chosen, *baselines, *((kept,) if kept else ())}
    shown = [row for row in rows if row["role"] == "teacher"] + ensembles[:1]
    shown += [row for row in rows if _as_place(row) in asked and row not in shown]
    label_of = {}
    for row, name in zip(shown, told_apart([row["name"] for row in shown])):
        where = f" ({row['transfer']})" if row["transfer"] else ""
        label = f"{row['role']}: {name}{where}"
        if row["role"] == "baseline":
            label = f"baseline{where}"
        if len(chosen) > 1 and _as_place(row) in (*chosen, *baselines):
            label = {"student": "student chosen for each size"}.get(row["role"], "its baseline")
        label_of[_as_place(row)] = label + (", to deploy" if _as_place(row) == kept else "")
    others = [row for row in rows if row["role"] in ("student", "control", "baseline") and row not in shown]
    return shown, label_of, others


def _baselines(chosen: Sequence[Place]) -> list[Place]:
    return [("baseline", transfer, architecture) for _, transfer, architecture in chosen]


def _as_place(row: Mapping) -> Place:
    return row["name"], row["transfer"], row["architecture"]


def _draw_front(axes: Axes, rows: Sequence[Mapping], name: str, scale: float) -> None:
    """The best mean that there is for so many parameters or fewer, as steps."""
    best = max if name == "accuracy" else min
    sizes = sorted({row["params"] for row in rows})
    level = [scale * best(row[name]["mean"] for row in rows if row["params"] <= size) for size in sizes]
    look: dict[str, Any] = dict(color="#9A9A9A", linewidth=1.1, linestyle=(0, (4, 2)), zorder=1)
    axes.step([*sizes, 10 * sizes[-1]], [*level, level[-1]], where="post", label="Pareto front", **look)


def _draw_tall_dot(
    axes: Axes, row: Mapping, name: str, at: float, scale: float, marker: str, label_of: Mapping[Place, str]
) -> None:
    metric, colour = row[name], COLOUR_OF[row["role"]]
    if metric["ci95"] is not None:
        axes.plot([at, at], scale * np.array(metric["ci95"]), color=colour, linewidth=1.6)
    label = label_of[_as_place(row)]
    axes.plot(at, scale * metric["mean"], marker, color=colour, markersize=6, label=label)


def _told_at(size: int, shown: Sequence[Mapping], chosen: Sequence[Place]) -> str:
    """The tick of a size: how many parameters, what is kept and, where students are of several, of what."""
    of_size = [row for row in shown if row["params"] == size]
    names = [
        "all teachers" if row["role"] == "ensemble" else shortened(row["architecture"]) for row in of_size
    ]
    kept = [
        f"keeps {row['gap_share']:.0%}"
        for row in of_size
        if _as_place(row) in chosen and row["gap_share"] is not None
    ]
    names = list(dict.fromkeys(names)) if len(chosen) > 1 else []
    return "\n".join([", ".join([f"{size:,}", *kept]), *names])


def _staggered(fractions: Sequence[float], texts: Sequence[str], inches: float) -> list[str]:
    """Texts of ticks at these fractions of an axis, each so many lines down that none touches another."""
    num_lines = max((text.count("\n") for text in texts), default=0) + 1
    found: list[str] = []
    ends: list[float] = []  # of what stands in each storey, in inches
    for fraction, text in zip(fractions, texts):
        half = 0.03 * max(map(len, text.split("\n"))) + 0.04  # letters of 8 points
        begin = fraction * inches - half
        storey = next((n for n, end in enumerate(ends) if end <= begin), len(ends))
        ends[storey : storey + 1] = [begin + 2 * half]
        found.append("\n" * storey * num_lines + text)
    return found


def _section(row: Mapping) -> str:
    over = row["accuracy"]["ci_over"].replace("_", " ")
    if row["role"] == "linear":
        return "to compare with"
    students = ", ".join(word for word in ("students", row.get("of"), row["transfer"]) if word)
    who = {"teacher": "teachers", "ensemble": "ensembles"}.get(row["role"], students)
    return f"{who} (interval over {over})"


def reliability(networks: Mapping[str, tuple[str, np.ndarray]], labels: np.ndarray) -> Figure:
    """Reliability diagrams, one a network: accuracy against confidence in 15 equal-mass bins.

    networks: {role: (name, test logits [N,C])}.
    """
    ticks = [0, 25, 50, 75, 100]
    with matplotlib.rc_context(STYLE):
        figure, (panels,) = new_figure(0.4 + 2.5 * len(networks), 3.3, 1, len(networks), sharey=True)
        write_title(figure, "Above the diagonal a network is too modest, below it too sure")
        for axes, (role, (name, logits)) in zip(panels, networks.items()):
            bins = metrics.reliability(logits, labels)
            axes.plot(ticks, ticks, color="#AAAAAA", linewidth=1, linestyle="--")
            axes.plot(100 * bins["confidence"], 100 * bins["accuracy"], color=COLOUR_OF[role], alpha=0.35)
            axes.plot(
                100 * bins["confidence"], 100 * bins["accuracy"], "o", color=COLOUR_OF[role], markersize=4
            )
            axes.set_title(f"{name}\nECE {100 * metrics.ece(logits, labels):.1f} %", fontsize=8)
            axes.set(xlabel="confidence, %", xticks=ticks, yticks=ticks, aspect="equal")
        panels[0].set_ylabel("accuracy, %")
    return figure


def roc(
    networks: Mapping[str, tuple[str, np.ndarray]],
    is_positive: np.ndarray,
    positive: int,
    title: str,
    rate: float,
) -> Figure:
    """Recall against false alarms of one network of each kind; dotted: the share of false alarms asked for.

    networks: {role: (name, test logits [N,2])}; is_positive [N] bool, of the class `positive`.
    """
    with matplotlib.rc_context(STYLE):
        figure, ((axes,),) = new_figure(6.4, 4.6)
        axes.plot([0, 100], [0, 100], color="#AAAAAA", linewidth=1, linestyle="--")
        axes.axvline(100 * rate, color=BLACK, linewidth=1, linestyle=":")
        for role, (name, logits) in networks.items():
            curve = metrics.roc(metrics.log_odds(logits, positive), is_positive)
            label = f"{name}: AUROC {metrics.auroc(curve):.3f}"
            at = 100 * curve.false_alarm_rate
            axes.plot(at, 100 * curve.recall, color=COLOUR_OF[role], linewidth=1.4, label=label)
        ticks = [0, 25, 50, 75, 100]
        axes.set(xlabel="false alarms, % of the others", ylabel="recall, %", xticks=ticks, yticks=ticks)
        axes.set_title(title, parse_math=False)  # it holds the name of a class
        write_legend(figure, *axes.get_legend_handles_labels(), columns=2)
    return figure


def agreement(disagreement: Sequence[Sequence[float]], names: Sequence[str]) -> Figure:
    """How often two teachers decide alike, in per cent of the test examples."""
    agree = 100 * (1 - np.array(disagreement))
    size = 1.2 + 0.4 * len(names)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure, ((axes,),) = new_figure(max(6.4, size + 0.4), max(3.0, size))
        pairs = agree[np.triu_indices(len(names), k=1)]
        low = pairs.min() if pairs.size else 0.0
        axes.imshow(agree, cmap="Blues", vmin=low - 5, vmax=100 + 5)
        for i, j in np.ndindex(agree.shape):
            dark = agree[i, j] > (low + 100) / 2 + 2
            axes.text(
                j, i, f"{agree[i, j]:.1f}", ha="center", va="center", fontsize=7, color="w" if dark else "k"
            )
        names = told_apart(names)
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", parse_math=False)
        axes.set_yticks(range(len(names)), names, parse_math=False)
        axes.set_title(f"What two of {len(names)} teachers decide alike, % of test")
    return figure


MOST_KEPT = 6  # students that stand side by side


def kept(found: Mapping) -> Figure | None:
    """The share kept of every quantity, a dot a student with its interval; below accuracy at each strength.

    found: "kept" of the report, of whose last section the students are shown, the first six of them. None
    where no share is defined and nothing was shifted.
    """
    section = found["sections"][-1]
    rows = [row for row in section["rows"] if row["role"] != "control"][:MOST_KEPT]
    names = list(section["gaps"])
    shifted = section["by_strength"]["ensemble"] is not None
    if not rows or not (shifted or any(gap["defined"] for gap in section["gaps"].values())):
        return None
    with matplotlib.rc_context(STYLE):
        per_name = 0.16 + 0.11 * len(rows)
        heights = [0.9 + per_name * len(names), *([2.3] if shifted else [])]
        figure, axes = new_figure(
            6.4, 0.5 + sum(heights), len(heights), 1, gridspec_kw={"height_ratios": heights}
        )
        _draw_shares(axes[0, 0], found["quantities"], section["gaps"], rows)
        if shifted:
            _draw_strengths(axes[1, 0], found["strengths"], section, rows)
        write_legend(figure, *axes[-1, 0].get_legend_handles_labels(), columns=min(4, len(rows) + 2))
    return figure


def _draw_shares(axes: Axes, quantities: Mapping, gaps: Mapping, rows: Sequence[Mapping]) -> None:
    """From the top the quantities in their order; shares beyond the axis are cut there."""
    low, high = -50, 150
    for end, colour in ((0, RED), (100, BLACK)):
        axes.axvline(end, color=colour, linewidth=1.2)
    drawn = [name for name in gaps if gaps[name]["defined"]]
    firsts = [next((name for name in drawn if name in row["shares"]), None) for row in rows]
    for at, name in enumerate(gaps):
        if not gaps[name]["defined"]:
            said = "not defined: no gap beyond what is known"
            look: dict[str, Any] = dict(fontsize=7, color="#777777", backgroundcolor="white")
            axes.text(50, at, said, ha="center", va="center", **look)
            continue
        for number, row in enumerate(rows):
            one = row["shares"].get(name)
            if one is None:
                continue
            place = at + 0.7 * ((number + 0.5) / len(rows) - 0.5)
            look = dict(color=CYCLE[number % len(CYCLE)])
            label = row["name"] if name == firsts[number] else None
            axes.plot(np.clip(100 * one["share"], low, high), place, "o", markersize=4, label=label, **look)
            if one["ci95"] is not None:
                ends = np.clip(100 * np.array(one["ci95"]), low, high)
                axes.plot(ends, [place, place], linewidth=1.3, **look)
    axes.set_xlim(low, high)
    axes.set_ylim(len(gaps) - 0.4, -0.6)
    axes.set_yticks(range(len(gaps)), [quantities[name]["title"].replace(" %", "") for name in gaps])
    axes.set_xticks([-50, 0, 50, 100, 150], ["-50", "0\nbaseline", "50", "100\nensemble", "150"])
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("kept, % of (ensemble - baseline)")
    axes.set_title("What students keep of the ensemble")


def _draw_strengths(axes: Axes, strengths: Sequence[int], section: Mapping, rows: Sequence[Mapping]) -> None:
    """Accuracy against the strength of the corruptions, mean over all of them; 0: as the images are."""
    accuracy = section["gaps"]["accuracy"]
    lines = {
        who: (COLOUR_OF[who], accuracy[who], section["by_strength"][who]) for who in ("baseline", "ensemble")
    }
    for number, row in enumerate(rows):
        if row["by_strength"] is not None:
            value = row["shares"]["accuracy"]["value"]
            lines[row["name"]] = (CYCLE[number % len(CYCLE)], value, row["by_strength"])
    for label, (colour, plain, shifted) in lines.items():
        values = 100 * np.array([plain, *shifted])
        axes.plot([0, *strengths], values, "o-", color=colour, markersize=3, linewidth=1.3, label=label)
    axes.set_xticks([0, *strengths])
    axes.set_xlabel("strength of the corruptions; 0: test images as they are")
    axes.set_ylabel("accuracy, %")
