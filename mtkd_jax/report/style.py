"""What all plots share: colours, looks, legends, names that fit, and how a figure becomes a file."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito (2008): told apart by colour-blind readers too. One colour means one thing in every plot.
BLACK, BLUE, RED, ORANGE = "#000000", "#0072B2", "#D55E00", "#E69F00"
COLOUR_OF = {"teacher": "#7A7A7A", "ensemble": BLACK, "student": BLUE, "baseline": RED, "control": ORANGE}
COLOUR_OF |= {"average": "#009E73", "assistant": "#CC79A7", "linear": "#B8860B", "cohort": "#56B4E9"}
CYCLE = (BLUE, "#009E73", "#CC79A7", "#56B4E9", "#7A7A7A")
LOOKS, MARKERS = (BLACK, *CYCLE, RED, ORANGE), "osD^vP*X<>p"  # of what is alike, and many
STYLE: dict[Any, Any] = {  # matplotlib has a type of its own for all the names that it knows
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


def new_figure(
    width: float, height: float, num_rows: int = 1, num_columns: int = 1, **shared: Any
) -> tuple[Figure, np.ndarray]:
    """A figure of its own, outside pyplot, so that nothing has to be closed; axes [rows, columns]."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(num_rows, num_columns, squeeze=False, **shared)


def png(figure: Figure) -> bytes:
    """The figure as a PNG, sharp at twice its size."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():  # a name in a script that the font lacks is boxes, and no news
        warnings.filterwarnings("ignore", message="Glyph .* missing from font", category=UserWarning)
        figure.set_dpi(144)
        FigureCanvasAgg(figure).print_png(buffer)  # drawn once: `savefig` lays out in a drawing of its own
    return buffer.getvalue()


def write_title(figure: Figure, text: str) -> None:
    """A title of the whole figure, in the look of those of axes."""
    figure.suptitle(text, x=0.01, ha="left", fontsize=10, fontweight="bold")


def write_legend(
    figure: Figure, handles: Sequence[Artist], labels: Sequence[str], *, columns: int = 0
) -> None:
    """A legend below all axes, of names as they are: none of them is a formula. 0 columns: as many as fit."""
    columns = columns or _legend_columns(figure, labels)
    legend = figure.legend(handles, labels, loc="outside lower center", ncols=columns)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _legend_columns(figure: Figure, labels: Sequence[str]) -> int:
    """How many entries of a legend stand side by side: rows that fit, as few and as even as can be."""
    inches = 0.6 + 0.07 * max(map(len, labels))  # the line, and letters of 8 points
    num_rows = -(-len(labels) // max(1, int(figure.get_figwidth() / inches)))
    return -(-len(labels) // num_rows)


def draw_dot(axes: Axes, metric: Mapping, at: float, colour: str) -> None:
    """An accuracy with its interval, lying at a height."""
    if metric["ci95"] is not None:
        axes.plot(100 * np.array(metric["ci95"]), [at, at], color=colour, linewidth=1.6)
    axes.plot(100 * metric["mean"], at, "o", color=colour, markersize=5)


def shortened(name: str, most: int = 26) -> str:
    """A long name without its middle.

    >>> shortened("shufflenet_v2(width=1.0, stem='cifar')"), shortened("mlp")
    ("shufflenet_v…tem='cifar')", 'mlp')
    """
    half = (most - 1) // 2
    return name if len(name) <= most else f"{name[:half]}…{name[-half:]}"


def told_apart(names: Sequence[str], most: int = 34) -> list[str]:
    """Names as short as networks are told apart by: without the arguments that all of them have.

    >>> told_apart(["vit(depth=2, stem='cifar') 0", "vit(depth=4, stem='cifar') 0", "baseline"])
    ['vit(depth=2) 0', 'vit(depth=4) 0', 'baseline']
    """
    calls = {name: call for name in names if (call := re.fullmatch(r"(\w+)\((.*)\)(.*)", name))}
    arguments = {name: re.split(r", (?=\w+=)", call[2]) for name, call in calls.items()}
    several = len(set(map(tuple, arguments.values()))) > 1
    common = set.intersection(*map(set, arguments.values())) if several else set()
    short = {
        name: f"{calls[name][1]}({', '.join(one for one in own if one not in common)}){calls[name][3]}"
        for name, own in arguments.items()
    }
    return [shortened(short.get(name, name).replace("()", ""), most) for name in names]
