"""The critical-difference diagram of Demsar (2006): methods by mean rank, joined where not told apart."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from mtkd_jax.report.style import BLACK, BLUE, COLOUR_OF, STYLE, shortened
from mtkd_jax.results import ranks

_LINE = 0.22  # inches between two names
MOST_TICKS = 16  # ranks that all have their number


def critical_difference(
    names: Sequence[str], mean_ranks: Sequence[float], difference: float, roles: Sequence[str] = ()
) -> Figure:
    """Methods on an axis of mean ranks, 1 at the left: bars join those less than `difference` apart.

    `names` [M] and their `mean_ranks` [M]; `roles` [M], keys of `style.COLOUR_OF`, colour the names.
    """
    groups = ranks.cliques(mean_ranks, difference)
    order = sorted(range(len(names)), key=lambda place: mean_ranks[place])
    half = -(-len(order) // 2)
    bars, rows = 0.14 * (len(groups) + 1), _LINE * (half + 0.5)
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.6, 0.75 + bars + rows), layout="constrained")
        axes = figure.subplots()
        low, high = 1, len(names)
        axes.set_xlim(low - 0.45 * (high - low), high + 0.45 * (high - low))
        axes.set_ylim(bars + rows, -0.75)  # inches, downwards
        axes.axis("off")
        axes.plot([low, high], [0, 0], color=BLACK, linewidth=1)
        step = 1 if high <= MOST_TICKS else 5
        for at in range(low, high + 1):
            axes.plot([at, at], [0, -0.07], color=BLACK, linewidth=1)
            if at == low or at % step == 0:
                axes.text(at, -0.11, str(at), ha="center", va="bottom", fontsize=8)
        axes.plot([low, low + difference], [-0.45, -0.45], color=BLACK, linewidth=1.5, marker="|")
        axes.text(low + difference / 2, -0.5, f"CD = {difference:.2f}", ha="center", va="bottom", fontsize=8)
        for place, method in enumerate(order):
            at_left = place < half
            line = place if at_left else len(order) - 1 - place
            down = bars + _LINE * (line + 0.5)
            end = low - 0.06 * (high - low) if at_left else high + 0.06 * (high - low)
            rank, colour = mean_ranks[method], COLOUR_OF[roles[method]] if roles else BLACK
            axes.plot([rank, rank, end], [0, down, down], color=colour, linewidth=0.8)
            words = [shortened(names[method], 30), f"{rank:.2f}"]
            text = "  ".join(words if at_left else reversed(words))
            axes.text(
                end, down, f" {text} ", ha="right" if at_left else "left", va="center", color=colour,
                fontsize=8, parse_math=False,
            )  # fmt: skip
        for number, group in enumerate(groups, start=1):
            ends = [mean_ranks[group[0]] - 0.04, mean_ranks[group[-1]] + 0.04]
            axes.plot(ends, [0.14 * number] * 2, color=BLUE, linewidth=3, solid_capstyle="butt")
    return figure
