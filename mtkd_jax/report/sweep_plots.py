"""The plot of a sweep: lines over a number, a map over two fields, dots for all else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import NullLocator

from mtkd_jax.config import name_and_model
from mtkd_jax.plans.cells import short_names, spelled
from mtkd_jax.report.style import BLACK, COLOUR_OF, CYCLE, STYLE, write_legend, write_title

MOST_PANELS, MOST_DOTS = 6, 60
ENSEMBLE = "mean_probs"  # the row of the ensemble that students are measured by
RING = "ringed: lowest validation NLL"


def draw(rows: Sequence[Mapping], fields: Sequence[str]) -> Figure:
    """Test accuracy of rows, as `report.sweeps.rows` has them, over the fields that were swept."""
    values = {field: _in_order([row["over"][field] for row in rows]) for field in fields}
    with matplotlib.rc_context(STYLE):
        if len(fields) == 1 and len(values[fields[0]]) > 1 and all(map(_is_number, values[fields[0]])):
            return lines(rows, fields[0])
        rows = [row for row in rows if row["role"] != "ensemble"] or rows
        if len(fields) == 2 and min(map(len, values.values())) > 1:
            return heat_map(rows, fields, values)
        return dots(rows)


def lines(rows: Sequence[Mapping], field: str) -> Figure:
    """A line for each row's name with 95 % intervals, a column of panels for each transfer set.

    Above: test accuracy; below, where any is known: the gain over the baseline of the same cell, paired.
    x: the field's values, the rows' dots side by side at each.
    """
    transfers = list(dict.fromkeys(row["transfer"] for row in rows))
    names = list(dict.fromkeys(row["name"] for row in rows))
    xs = sorted({_number(row["over"][field]) for row in rows})
    logarithmic = xs[0] > 0 and xs[-1] >= 8 * xs[0]
    span = np.log(xs[-1] / xs[0]) if logarithmic else xs[-1] - xs[0]
    drawn = {"accuracy": "test accuracy, %", "gain": "points over the baseline"}
    if not any(row["gain"] for row in rows):
        del drawn["gain"]
    width = 6.4 if len(transfers) == 1 else 1.0 + 4.0 * len(transfers)
    figure = Figure(figsize=(width, 0.6 + 3.0 * len(drawn)), layout="constrained")
    panels = figure.subplots(len(drawn), len(transfers), squeeze=False, sharex=True, sharey="row")
    for above, (metric, title) in zip(panels, drawn.items()):
        above[0].set_ylabel(title)
        for axes, transfer in zip(above, transfers):
            for place, name in enumerate(names):
                own = [row for row in rows if (row["name"], row["transfer"]) == (name, transfer)]
                own = [row for row in own if row[metric]]
                own.sort(key=lambda row: _number(row["over"][field]))
                aside = 0.06 * span * ((place + 0.5) / len(names) - 0.5)
                at = [_number(row["over"][field]) for row in own]
                at = [x * np.exp(aside) if logarithmic else x + aside for x in at]
                _draw_line(axes, at, own, metric, *_look(name, names))
    for axes, transfer in zip(panels[0], transfers):
        if len(transfers) > 1:
            axes.set_title(f"transfer set: {transfer}", fontsize=9, weight="normal")
    for axes in panels[-1]:
        if logarithmic:
            axes.set_xscale("log")
        axes.set_xticks(xs, [f"{x:g}" for x in xs])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel(field)
    if "gain" in drawn:
        for axes in panels[1]:
            axes.axhline(0, color=COLOUR_OF["baseline"], linewidth=1.0, linestyle=":")
    write_title(figure, f"Mean and 95 % interval; {RING}")
    write_legend(figure, *panels[0, 0].get_legend_handles_labels(), columns=4)
    return figure


def _draw_line(
    axes: Axes, at: Sequence[float], rows: Sequence[Mapping], metric: str, colour: str, dash: str
) -> None:
    """One row's name over the field's values `at`, in hundredths, with its intervals."""
    mean = [100 * row[metric]["mean"] for row in rows]
    label = rows[0]["name"] if rows else None
    axes.plot(at, mean, dash, marker="o", color=colour, markersize=4, linewidth=1.4, label=label)
    for x, row in zip(at, rows):
        _draw_interval(axes, [x, x], row[metric], colour, along_x=False)
        if row["best"] and metric == "accuracy":
            axes.plot(x, 100 * row[metric]["mean"], **_RING)


def heat_map(rows: Sequence[Mapping], fields: Sequence[str], values: Mapping[str, Sequence]) -> Figure:
    """A panel for each row's name: the first field's values down, the second one's across."""
    down, across = (values[field] for field in fields)
    keys = _lowest_first(rows)[:MOST_PANELS]
    num_columns = min(len(keys), max(1, int(10 / (1.6 + 0.75 * len(across)))))
    num_rows = -(-len(keys) // num_columns)
    labels = [[spelled(value) or "–" for value in side] for side in (down, across)]
    width = 0.4 + 0.065 * max(map(len, labels[0])) + num_columns * (0.5 + 0.75 * len(across))
    figure = Figure(figsize=(max(6.4, width), 0.8 + num_rows * (1.0 + 0.4 * len(down))), layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False, sharex=True, sharey=True)
    shown = [row for row in rows if _key(row) in keys]
    drawn = [100 * row["accuracy"]["mean"] for row in shown]
    low, high = min(drawn), max(drawn)
    span = max(high - low, 0.1)
    for axes, key in zip(panels.flat, keys):
        grid = np.full((len(down), len(across)), np.nan)
        for row in (row for row in shown if _key(row) == key):
            i, j = (side.index(row["over"][field]) for side, field in zip((down, across), fields))
            grid[i, j] = 100 * row["accuracy"]["mean"]
            dark = grid[i, j] > low + 0.6 * span
            axes.text(j, i, f"{grid[i, j]:.1f}", ha="center", va="center", color="w" if dark else "k")
            if row["best"]:
                box = Rectangle(
                    (j - 0.46, i - 0.42), 0.92, 0.84, fill=False, edgecolor=COLOUR_OF["control"], lw=2.4
                )
                axes.add_patch(box)
        axes.imshow(grid, cmap="Blues", vmin=low - 0.25 * span, vmax=high + 0.25 * span, aspect="auto")
        axes.grid(visible=False)
        axes.set_title(key, parse_math=False)
        axes.set_xticks(range(len(across)), labels[1], parse_math=False)
        axes.set_yticks(range(len(down)), labels[0], parse_math=False)
        axes.tick_params(length=0)
    for axes in panels.flat[len(keys) :]:
        axes.set_visible(False)
    names = short_names(fields)
    left_out = len(set(map(_key, rows))) - len(keys)
    of_all = f"; {left_out} more rows in the table" if left_out else ""
    write_title(figure, f"Test accuracy, %; framed: lowest validation NLL{of_all}")
    figure.supylabel(names[0], fontsize=9)
    figure.supxlabel(names[1], fontsize=9)
    return figure


def dots(rows: Sequence[Mapping]) -> Figure:
    """A dot with its 95 % interval for each row of each cell, the lowest validation NLL first where many."""
    shown = list(rows)
    if len(shown) > MOST_DOTS:
        shown = sorted(shown, key=_val_nll)[:MOST_DOTS]
    figure = Figure(figsize=(7.6, 1.2 + 0.2 * len(shown)), layout="constrained")
    axes = figure.subplots()
    for at, row in enumerate(shown):
        colour = COLOUR_OF[row["role"]]
        _draw_interval(axes, [at, at], row["accuracy"], colour, along_x=True)
        axes.plot(100 * row["accuracy"]["mean"], at, "o", color=colour, markersize=5)
        if row["best"]:
            axes.plot(100 * row["accuracy"]["mean"], at, **_RING)
    names = [f"{row['cell']}: {_key(row)}" for row in shown]
    axes.set_yticks(range(len(shown)), names, parse_math=False)
    axes.set_ylim(len(shown) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("test accuracy, %")
    write_title(figure, f"Mean and 95 % interval; {RING}")
    roles = [role for role in COLOUR_OF if any(row["role"] == role for row in shown)]
    dots = [Line2D([], [], marker="o", linestyle="", color=COLOUR_OF[role]) for role in roles]
    write_legend(figure, dots, roles, columns=4)
    return figure


_RING: dict[str, Any] = {
    "marker": "o",
    "markersize": 11,
    "linestyle": "",
    "markerfacecolor": "none",
    "markeredgecolor": BLACK,
    "markeredgewidth": 1.4,
}


def _key(row: Mapping) -> str:
    """What a row is called in every cell."""
    return row["name"] + (f" ({row['transfer']})" if row["transfer"] not in ("", "labelled") else "")


def _val_nll(row: Mapping) -> float:
    return np.inf if row["val"]["nll"] is None else row["val"]["nll"]


def _lowest_first(rows: Sequence[Mapping]) -> list[str]:
    """The rows' names by their lowest validation NLL; the baseline, to compare with, among the first."""
    keys = dict.fromkeys(map(_key, rows))
    lowest = {key: min(_val_nll(row) for row in rows if _key(row) == key) for key in keys}
    ordered = sorted(keys, key=lambda key: lowest[key])
    baselines = [key for key in ordered if key.split()[0] == "baseline"]
    others = [key for key in ordered if key not in baselines]
    return others[: MOST_PANELS - len(baselines)] + baselines + others[MOST_PANELS - len(baselines) :]


def _in_order(values: Sequence[Any]) -> list[Any]:
    """Each once; numbers by size, all else as they come."""
    found: list[Any] = []
    for value in values:
        if value not in found:
            found.append(value)
    return sorted(found, key=_number) if all(map(_is_number, found)) else found


def _is_number(value: Any) -> bool:
    """A number, or a tuple of one."""
    if isinstance(value, tuple | list) and len(value) == 1:
        (value,) = value
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> float:
    return float(value[0] if isinstance(value, tuple | list) else value)


def _look(name: str, names: Sequence[str]) -> tuple[str, str]:
    """Colour and dashes of a line; baseline and control look as in every plot."""
    known = name_and_model(name)[0]
    if known in COLOUR_OF:
        return COLOUR_OF[known], "--"
    if known == ENSEMBLE:
        return BLACK, "-"
    place = [one for one in names if name_and_model(one)[0] not in (*COLOUR_OF, ENSEMBLE)].index(name)
    return CYCLE[place % len(CYCLE)], ("-", "-.", ":")[place // len(CYCLE) % 3]


def _draw_interval(axes: Axes, at: Sequence[float], found: Mapping, colour: str, along_x: bool) -> None:
    interval = found["ci95"]
    if interval is not None:
        ends = [100 * end for end in interval]
        axes.plot(*((ends, at) if along_x else (at, ends)), color=colour, linewidth=1.3, alpha=0.8)
