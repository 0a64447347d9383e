"""What stands in a cell of a table, and at the head of a row."""

from __future__ import annotations

from collections.abc import Sequence

from mtkd_jax.report import wording
from mtkd_jax.report.wording import interval, place_of, title_of
from mtkd_jax.system.text import short_number

MISSING = "–"
SIGN = {"better": " +", "worse": " -", "equivalent": " =", "undecided": "", "": ""}


def students_of(row: dict, report: dict) -> str:
    """The heading of students of a row's architecture."""
    return f"Students {wording.model_of(row, report)}".strip()


def heading(row: dict, report: dict) -> str:
    """The title above a row and all of its kind."""
    if row["role"] == "teacher":
        return "Teachers, alone (interval over members)"
    if row["role"] == "linear":
        return "A linear model on the same labels, to compare with"
    if row["role"] == "ensemble":
        num_teachers = report["diversity"]["num_teachers"]
        return f"All {num_teachers} teachers, fused (interval over test examples)"
    sizes = report["sizes"]
    images = f"{sizes['train']:,} labelled images"
    further = {"unlabelled": "unlabelled ones", "other": "of another source"}
    if row["transfer"] in further:
        images += f" and {sizes[row['transfer']]:,} {further[row['transfer']]}"
    who = students_of(row, report)
    return f"{who} on {images} (interval over seeds)"


def name_of(row: dict, report: dict, with_model: bool = False) -> str:
    """A row's name; the heading says of which architecture it is, unless `with_model`."""
    kept = report["deploy"]
    is_kept = kept is not None and place_of(row) == place_of(kept)
    apart = " †" if row["apart"] else ""
    arguments = ", ".join(f"{name}={short_number(value)}" for name, value in row.get("arguments", {}).items())
    name = title_of(row, report) if with_model else row["name"]
    return name + (f" ({arguments})" if arguments else "") + apart + (" *" if is_kept else "")


def cost_cells(row: dict) -> list[str]:
    """Parameters, FLOPs and milliseconds of an image."""
    return [short_count(row["params"]), short_count(row["flops"]), short(row["latency_ms"]["1"])]


def share_kept(row: dict) -> str:
    """Of (ensemble - baseline), in per cent."""
    return MISSING if row["gap_share"] is None else f"{row['gap_share']:.0%}"


def with_interval(metric: dict) -> str:
    """A mean in per cent, with its interval where it has one."""
    mean = f"{100 * metric['mean']:.2f}"
    return mean if metric["ci95"] is None else f"{mean} {interval(metric['ci95'], 'accuracy')}"


def in_percent(metric: dict) -> str:
    """A mean in per cent with one digit, with its interval where it has one."""
    return f"{100 * metric['mean']:.1f}{ends(metric['ci95'], 1, 100)}"


def ends(ci95: Sequence[float] | None, digits: int, scale: float = 1) -> str:
    """An interval behind its mean; "" where there is none."""
    if ci95 is None:
        return ""
    return f" [{', '.join(f'{scale * end:.{digits}f}' for end in ci95)}]"


def mean(row: dict, name: str, scale: float = 1) -> str:
    """The mean of one of a row's metrics, without its interval."""
    return MISSING if row[name] is None else scaled(row[name]["mean"], scale)


def scaled(value: float | None, scale: float) -> str:
    """A number with three digits behind the point; in per cent, a scale of 100, with one."""
    return MISSING if value is None else f"{scale * value:.{1 if scale == 100 else 3}f}"


def difference_cells(one: dict) -> list[str]:
    """A paired difference with its interval, p and Holm's p."""
    digits, scale = (2, 100) if one["metric"] == "accuracy" else (3, 1)
    difference = f"{scale * one['mean_difference']:+.{digits}f}"
    if one["ci95"] is not None:
        difference += f" {interval(one['ci95'], one['metric'])}"
    return [difference, p_cell(one["p_value"]), p_cell(one["p_holm"])]


def verdict_cells(one: dict) -> list[str]:
    """The same with its verdict behind the difference."""
    difference, *p_values = difference_cells(one)
    return [difference, one["verdict"], *p_values]


def p_cell(p: float | None) -> str:
    """A p value without "=", which stands in sentences."""
    return MISSING if p is None else wording.p_value(p).removeprefix("= ")


def short(value: float | None) -> str:
    """A number in three digits."""
    return MISSING if value is None else f"{value:.3g}"


def short_count(value: float | None) -> str:
    """A large number in three digits and a unit.

    >>> short_count(12345), short_count(6.02e8), short_count(None)
    ('12.3k', '602M', '–')
    """
    if value is None:
        return MISSING
    for unit in ("", "k", "M", "G", "T"):
        if value < 999.5:
            return f"{value:.3g}{unit}"
        value /= 1000
    return f"{value:.3g}P"
