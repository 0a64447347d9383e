"""How a report names networks, comparisons and figures in its sentences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mtkd_jax.config import row_of
from mtkd_jax.results import intervals, power


def better_or_worse(comparison: dict) -> str:
    """ "better" | "worse" | "" (inside the noise, or not testable), of a comparison without a margin."""
    sign = 1 if comparison["metric"] == "accuracy" else -1
    said = intervals.verdict(sign * comparison["mean_difference"], comparison["p_holm"])
    return "" if said == "undecided" else said


def model_of(row: dict, report: dict) -> str:
    """The architecture of what stands at a place of the report, where that has students of several; else "".

    Of rows of teachers and ensembles, and of assistants, it is said elsewhere.
    """
    models = report["student_models"]
    students = row.get("role", "student") not in ("teacher", "linear", "ensemble", "assistant")
    return row["architecture"] if len(models) > 1 and students else ""


def title_of(row: dict, report: dict) -> str:
    """What a row is called where those of other architectures are called the same: see `config.row_of`."""
    return row_of(row["name"], model_of(row, report))


def where(one: dict, report: dict) -> str:
    """The transfer set of a gap or comparison and, where there are several, the architecture."""
    return listed(one["transfer"], model_of(one, report))


def listed(*words: str) -> str:
    """Those that are not empty, with commas between."""
    return ", ".join(word for word in words if word)


def within(margin: float) -> str:
    """What it is to be equivalent by this margin of accuracy."""
    return f"closer than {100 * margin:g} points"


def with_peers(report: dict) -> list[list[dict]]:
    """The comparisons of accuracies of students with peers, a list a transfer set and architecture."""
    found: dict[tuple[str, str], list[dict]] = {}
    for one in report["comparisons"]:
        if (one["family"], one["metric"]) == (power.WITH_PEERS, "accuracy"):
            found.setdefault((one["a_transfer"], one["architecture"]), []).append(one)
    return list(found.values())


def turned(one: dict) -> dict:
    """A comparison of two rows of one transfer set with its sides in the other order."""
    return {
        **one,
        "a": one["b"],
        "b": one["a"],
        "mean_difference": 0.0 - one["mean_difference"],  # not -0.0
        "ci95": one["ci95"] and [-end for end in reversed(one["ci95"])],
        "verdict": {"better": "worse", "worse": "better"}.get(one["verdict"], one["verdict"]),
    }


def place_of(row: dict, **changed: str) -> tuple[str, str, str]:
    """What tells a row of the report from all others."""
    row = {**row, **changed}
    return row["name"], row["transfer"], row["architecture"]


def bears_looking(report: dict) -> bool:
    """Whether seeds were added until it was decided, and the comparisons are tested accordingly."""
    return any("decided_at" in one for one in report["comparisons"])


def transfers_of(one: Mapping) -> str:
    """The transfer set of a comparison, or both where it is across them."""
    return " / ".join(dict.fromkeys((one["a_transfer"], one["b_transfer"])))


def percent(value: float) -> str:
    """
    >>> percent(0.91667)
    '91.67 %'
    """
    return f"{100 * value:.2f} %"


def points(difference: float) -> str:
    """
    >>> points(0.0125)
    '+1.25 points'
    """
    return f"{100 * difference:+.2f} points"


def count(number: float) -> str:
    """
    >>> count(1234), count(12.4)
    ('1,234', '12.4')
    """
    return f"{number:,.1f}".removesuffix(".0")


def interval(bounds: Sequence[float] | None, metric: str) -> str:
    """Accuracies in per cent or points, everything else as it is.

    >>> interval((0.004, 0.02), "accuracy"), interval((-0.1, 0.2), "nll"), interval(None, "nll")
    ('[0.40, 2.00]', '[-0.100, 0.200]', '[unknown]')
    """
    if bounds is None:
        return "[unknown]"
    low, high = bounds
    return f"[{100 * low:.2f}, {100 * high:.2f}]" if metric == "accuracy" else f"[{low:.3f}, {high:.3f}]"


def p_value(p: float) -> str:
    """
    >>> p_value(0.0123), p_value(0.00001)
    ('= 0.012', '< 0.001')
    """
    return "< 0.001" if p < 0.001 else f"= {p:.3f}"
