"""The plots of a study of fusion rules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from mtkd_jax.report.style import (
    BLACK,
    BLUE,
    COLOUR_OF,
    LOOKS,
    RED,
    STYLE,
    draw_dot,
    new_figure,
    write_legend,
)
from mtkd_jax.results import metrics


def rule_differences(rules: Sequence[Mapping]) -> Figure:
    """Accuracy of every rule minus that of mean_probs, with its 95 % interval.

    rules: {"rule", "mean_difference", "ci95", "verdict": "better" | "worse" | other}.
    """
    colour_of = {"better": BLUE, "worse": RED}
    with matplotlib.rc_context(STYLE):
        figure, ((axes,),) = new_figure(6.4, 1.2 + 0.23 * len(rules))
        axes.axvline(0, color=BLACK, linewidth=1)
        for at, one in enumerate(rules):
            metric = {"mean": one["mean_difference"], "ci95": one["ci95"]}
            draw_dot(axes, metric, at, colour_of.get(one["verdict"], COLOUR_OF["teacher"]))
        axes.set_yticks(range(len(rules)), [one["rule"] for one in rules])
        axes.set_ylim(len(rules) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel("test accuracy minus that of mean_probs, points")
        axes.set_title("Blue: better, red: worse than mean_probs, grey: not told apart")
    return figure


def accuracy_by_rule(sizes: Sequence[int], lines: Mapping[str, Sequence[Mapping]], over: str) -> Figure:
    """Accuracy against the number of voters; lines: {rule: [{"mean", "ci95" or None}]}, one a size."""
    with matplotlib.rc_context(STYLE):
        figure, ((axes,),) = new_figure(6.4, 3.8)
        places = np.arange(len(sizes))
        for number, (rule, points) in enumerate(lines.items()):
            # Side by side at each size, so that intervals can be told apart.
            at = places + 0.06 * (number - (len(lines) - 1) / 2)
            colour = LOOKS[number % len(LOOKS)]
            axes.plot(at, [100 * one["mean"] for one in points], "o-", color=colour, markersize=4, label=rule)
            for x, one in zip(at, points):
                if one["ci95"] is not None:
                    axes.plot([x, x], 100 * np.array(one["ci95"]), color=colour, linewidth=1.2)
        axes.set_xticks(places, [str(size) for size in sizes])
        axes.set_xlabel("voters fused")
        axes.set_ylabel("test accuracy, %")
        axes.set_title(f"Mean {over}")
        write_legend(figure, *axes.get_legend_handles_labels(), columns=min(len(lines), 5))
    return figure


def teacher_values(values: Sequence[Mapping]) -> Figure:
    """Shapley value (dot, with twice its standard error) and leave-one-out (cross) of every teacher.

    values: {"name", "shapley", "standard_error" or None, "leave_one_out"}, shares of accuracy.
    """
    ordered = sorted(values, key=lambda one: -one["shapley"])
    shapley, left_out = (
        100 * np.array([one[name] for one in ordered]) for name in ("shapley", "leave_one_out")
    )
    error = 200 * np.array([one["standard_error"] or 0.0 for one in ordered])
    at = np.arange(len(ordered))
    with matplotlib.rc_context(STYLE):
        figure, ((axes,),) = new_figure(6.4, 3.6)
        axes.axhline(0, color=BLACK, linewidth=1)
        axes.errorbar(
            at, shapley, error, fmt="o", color=BLUE, markersize=4, linewidth=1, label="Shapley value"
        )
        axes.plot(at, left_out, "x", color=RED, markersize=4, label="lost when left out")
        if len(ordered) <= metrics.MOST_IN_PAIRS:
            axes.set_xticks(at, [one["name"] for one in ordered], rotation=45, ha="right")
        else:
            axes.set_xlabel("teachers, by falling Shapley value")
        axes.set_ylabel("validation accuracy, points")
        axes.set_title("What each teacher brings to mean_probs")
        write_legend(figure, *axes.get_legend_handles_labels(), columns=2)
    return figure
