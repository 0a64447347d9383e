"""The plots of the report. One function a plot; each takes plain arrays or report rows and returns a Figure."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mtkd_jax import metrics

# Okabe and Ito (2008): told apart by colour-blind readers too.
BLACK, ORANGE, SKY, GREEN, YELLOW, BLUE, RED, PINK = (
    "#000000", "#E69F00", "#56B4E9", "#009E73", "#F0E442", "#0072B2", "#D55E00", "#CC79A7",
)  # fmt: skip
CYCLE = (BLUE, RED, GREEN, PINK, ORANGE, SKY, BLACK)
COLOUR_OF = {"teacher": "#7A7A7A", "ensemble": BLACK, "student": BLUE, "baseline": RED, "control": ORANGE}
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#888888",
    "axes.labelcolor": "#333333",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.8,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "legend.fontsize": 8,
}


def png(figure: Figure) -> bytes:
    """The figure as a PNG, sharp at twice its size."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=144)
    return buffer.getvalue()


# --- training -----------------------------------------------------------------------------------------


def learning_curves(records: Sequence[Mapping]) -> Figure:
    """Validation NLL and accuracy against epochs: the mean of a stage's members and their range.

    records: {"panel", "line", "epoch", "name", "value"}, a value for each member; the names drawn are
    val_nll and val_accuracy.
    """
    values: dict[tuple[str, str, str], dict[int, list[float]]] = {}
    for record in records:
        line = values.setdefault((record["panel"], record["line"], record["name"]), {})
        line.setdefault(record["epoch"], []).append(record["value"])
    panels = list(dict.fromkeys(panel for panel, _, _ in values))
    metrics_drawn = (("val_nll", "validation NLL", 1), ("val_accuracy", "validation accuracy, %", 100))
    with matplotlib.rc_context(STYLE):
        figure, axes = _figure(4.2 * len(panels), 5.6, 2, len(panels))
        for i, (name, label, scale) in enumerate(metrics_drawn):
            axes[i, 0].set_ylabel(label)
            for j, panel in enumerate(panels):
                own = {line: epochs for (p, line, n), epochs in values.items() if (p, n) == (panel, name)}
                for k, (line, epochs) in enumerate(own.items()):
                    _draw_curve(axes[i, j], line, epochs, scale, k)
        for j, panel in enumerate(panels):
            axes[0, j].set_title(panel)
            axes[0, j].legend(ncols=2)
            axes[1, j].set_xlabel("epoch")
    return figure


def _draw_curve(axes: Axes, label: str, epochs: dict[int, list[float]], scale: float, k: int) -> None:
    at = sorted(epochs)
    mean, low, high = (scale * np.array([of(epochs[e]) for e in at]) for of in (np.mean, np.min, np.max))
    colour = CYCLE[k % len(CYCLE)]
    style = ("-", "--", ":")[k // len(CYCLE) % 3]
    axes.plot(at, mean, style, color=colour, linewidth=1.4, label=label)
    axes.fill_between(at, low, high, color=colour, alpha=0.12, linewidth=0)


# --- results ------------------------------------------------------------------------------------------


def accuracy_against_k(sub_ensembles: Sequence[Mapping], across: Sequence[tuple[str, str, float]]) -> Figure:
    """Accuracy of `mean_probs` against how many teachers are fused: mean and range over sub-ensembles.

    sub_ensembles: {"k", "mean", "min", "max"}; across: (role, name, accuracy) of other rows, drawn as levels.
    """
    k, mean, low, high = (np.array([one[name] for one in sub_ensembles]) for name in ("k", "mean", "min", "max"))
    with matplotlib.rc_context(STYLE):
        figure, ((axes,),) = _figure(6.4, 3.6)
        axes.fill_between(k, 100 * low, 100 * high, color=BLUE, alpha=0.15, linewidth=0, label="range")
        axes.plot(k, 100 * mean, "o-", color=BLUE, linewidth=1.6, markersize=4, label="mean")
        for role, name, accuracy in across:
            axes.axhline(100 * accuracy, color=COLOUR_OF[role], linewidth=1.3, linestyle="--", label=name)
        axes.set_xticks(k)
        axes.set_xlabel("teachers fused by mean_probs")
        axes.set_ylabel("test accuracy, %")
        axes.set_title(f"One teacher {100 * mean[0]:.1f} %, all {k[-1]} fused {100 * mean[-1]:.1f} %")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def all_rows(rows: Sequence[Mapping]) -> Figure:
    """Test accuracy of every row with its 95 % interval: teachers, ensembles, then each transfer set."""
    sections: dict[str, list[Mapping]] = {}
    for row in rows:
        sections.setdefault(row["transfer"] or "teachers", []).append(row)
    with matplotlib.rc_context(STYLE):
        figure, ((axes,),) = _figure(6.4, 1.1 + 0.24 * (len(rows) + len(sections)))
        at, ticks, names = 0.0, [], []
        for title, members in sections.items():
            heading = title if title == "teachers" else f"students, {title}"
            axes.text(0.0, at, heading, transform=axes.get_yaxis_transform(), fontweight="bold", va="center")
            at += 1
            for row in members:
                _draw_dot(axes, row["accuracy"], at, COLOUR_OF[row["role"]])
                ticks.append(at)
                names.append(row["name"])
                at += 1
        axes.set_yticks(ticks, names)
        axes.set_ylim(at - 0.4, -0.7)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("test accuracy, %, with 95 % interval")
        axes.set_title("Accuracy of every row")
        handles = [
            matplotlib.lines.Line2D([], [], marker="o", linestyle="-", color=colour, label=role, markersize=4)
            for role, colour in COLOUR_OF.items()
            if any(row["role"] == role for row in rows)
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(handles))
    return figure


def _draw_dot(axes: Axes, metric: Mapping, at: float, colour: str) -> None:
    if metric["ci95"] is not None:
        axes.plot(100 * np.array(metric["ci95"]), [at, at], color=colour, linewidth=1.6)
    axes.plot(100 * metric["mean"], at, "o", color=colour, markersize=5)


def reliability(networks: Mapping[str, tuple[str, np.ndarray]], labels: np.ndarray) -> Figure:
    """Reliability diagrams, one a network: accuracy against confidence in 15 equal-mass bins.

    networks: {role: (name, test logits [N,C])}.
    """
    with matplotlib.rc_context(STYLE):
        figure, (panels,) = _figure(2.6 * len(networks), 3.1, 1, len(networks))
        for axes, (role, (name, logits)) in zip(panels, networks.items()):
            bins = metrics.reliability(logits, labels)
            axes.plot([0, 100], [0, 100], color="#BBBBBB", linewidth=1, linestyle="--")
            axes.plot(100 * bins["confidence"], 100 * bins["accuracy"], "o-", color=COLOUR_OF[role], markersize=3)
            axes.set_title(f"{name}\nECE {100 * metrics.ece(logits, labels):.1f} %", fontsize=8)
            axes.set_xlabel("confidence, %")
            axes.set_ylabel("accuracy, %" if axes is panels[0] else "")
            axes.set_aspect("equal")
    return figure


def agreement(disagreement: Sequence[Sequence[float]], names: Sequence[str]) -> Figure:
    """How often two teachers decide alike, in per cent of the test examples."""
    agree = 100 * (1 - np.array(disagreement))
    size = 1.6 + 0.42 * len(names)
    with matplotlib.rc_context({**STYLE, "axes.grid": False}):
        figure, ((axes,),) = _figure(max(3.6, size + 0.6), max(2.8, size - 0.2))
        pairs = agree[np.triu_indices(len(names), k=1)]
        low = pairs.min() if pairs.size else 0.0
        axes.imshow(agree, cmap="Blues", vmin=low - 5, vmax=100 + 5)
        for i, j in np.ndindex(agree.shape):
            dark = agree[i, j] > (low + 100) / 2 + 2
            axes.text(j, i, f"{agree[i, j]:.1f}", ha="center", va="center", fontsize=7, color="w" if dark else "k")
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right")
        axes.set_yticks(range(len(names)), names)
        axes.set_title("Teachers that decide alike, % of test")
    return figure


def _figure(width: float, height: float, num_rows: int = 1, num_columns: int = 1) -> tuple[Figure, np.ndarray]:
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(num_rows, num_columns, squeeze=False)
