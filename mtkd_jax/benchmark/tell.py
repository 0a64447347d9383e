"""The results of a suite as tables and sentences, and the machine they were measured on."""

from __future__ import annotations

import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.text import Text

from mtkd_jax.report import document, rendering
from mtkd_jax.report.cell_text import MISSING
from mtkd_jax.report.rendering import Sheet
from mtkd_jax.runs import workdir
from mtkd_jax.system import onednn
from mtkd_jax.types import UserError

ONCE = "*"
MUCH = 0.1  # of the processors; where others took more, a measurement is spoilt
OF_A_RUN = ("commit", "python", "packages", "platform", "devices")  # of a run's environment
PROC = Path("/proc")  # where Linux tells of itself


def machine(of_others: float | None) -> dict:
    """Where and with what it was measured; `of_others` is the share of the processors they took meanwhile."""
    found = workdir.environment(seed=0)
    found = {name: found[name] for name in OF_A_RUN}
    torch = sys.modules.get("torch")
    if torch is not None:
        found["packages"] |= {"torch": torch.__version__}
        found["torch_threads"] = torch.get_num_threads()
    return {"processor": processor(), "cores": os.cpu_count(), "taken_by_others": of_others, **found}


def sheets(result: dict) -> list[tuple[str, Sheet]]:
    """(title, table) of everything that was measured: first all ratios, then what they are ratios of."""

    def ratio(one: dict) -> str:
        return f"{one['value']:.2f}"

    def median(one: dict) -> str:
        value = result["scale"] * one["median"]
        return (f"{value:.3g}" if value < 100 else f"{value:,.0f}") + (ONCE if one["rounds"] == 1 else "")

    return [
        (f"{of}: {title}", table([one for one in entries if one["of"] == of], cell))
        for title, entries, cell in (
            ("ratios of medians", result["ratios"], ratio),
            (result["unit"], result["records"], median),
        )
        for of in dict.fromkeys(one["of"] for one in entries)
    ]


def table(entries: Sequence[dict], cell: Callable[[dict], str]) -> Sheet:
    """A row for every side, a column for every case.

    >>> table([{"side": "a", "case": "x"}, {"side": "b", "case": "y"}], lambda one: "1")
    (['', 'x', 'y'], [['a', '1', '–'], ['b', '–', '1']])
    """
    at = {(one["side"], one["case"]): cell(one) for one in entries}
    sides, cases = (list(dict.fromkeys(names)) for names in zip(*at))
    return ["", *cases], [[side, *(at.get((side, case), MISSING) for case in cases)] for side in sides]


def findings(result: dict) -> list[str]:
    """What has to be known beside the tables."""
    once = [f"{ONCE}: one round, far behind the fastest."]
    return [
        *result["notes"],
        *(once if any(one["rounds"] == 1 for one in result["records"]) else []),
        *left_out(result["left_out"]),
        on(result["machine"]),
    ]


def terminal(sheets: Iterable[tuple[str, Sheet]]) -> Group:
    """The tables for a terminal."""
    parts: list[RenderableType] = []
    for title, sheet in sheets:
        parts += [Text(f"\n{title}", style="bold"), rendering.render(*sheet)]
    return Group(*parts)


def markdown(sheets: Iterable[tuple[str, Sheet]], findings: Sequence[str]) -> str:
    """The tables and findings for a text file."""
    parts = [f"**{title}**\n\n{rendering.markdown(*sheet)}" for title, sheet in sheets]
    return "\n\n".join([*parts, document.bullets(findings)])


def check_quiet(of_others: float | None) -> None:
    """Raise UserError where others took so much that the numbers belong into no document."""
    if (of_others or 0.0) > MUCH:
        raise UserError(
            f"--into: other programs took {of_others:.0%} of the processors, more than {MUCH:.0%}: these "
            "numbers are not written into a document; measure again when the machine is quiet"
        )


def share_of_others(before: float | None, begun: float) -> float | None:
    """Of the processors, taken by others since `begun`, when they had taken `before` seconds."""
    now = seconds_of_others()
    if before is None or now is None:
        return None
    return (now - before) / (time.perf_counter() - begun) / (os.cpu_count() or 1)


def seconds_of_others() -> float | None:
    """Processor time of everything but this process and its children, since the machine was started.

    None where the system does not tell.
    """
    try:
        first = (PROC / "stat").read_text(encoding="utf-8").splitlines()[0]
    except OSError:
        return None
    user, nice, system, _idle, _waiting, *stolen = map(int, first.split()[1:9])
    everybody = (user + nice + system + sum(stolen)) / os.sysconf("SC_CLK_TCK")
    return everybody - sum(os.times()[:4])


def left_out(left_out: Iterable[dict]) -> list[str]:
    """One sentence for every side and reason."""
    where: dict[tuple[str, str], list[str]] = {}
    for one in left_out:
        name = f"{one['of']}, {one['case']}" if one["case"] else one["of"]
        where.setdefault((one["side"], one["reason"]), []).append(name)
    return [
        f"Left out: {side}{' at ' if any(names) else ''}{'; '.join(filter(None, names))} ({reason})."
        for (side, reason), names in where.items()
    ]


def on(machine: dict) -> str:
    """One sentence: where, with what, and how much others did meanwhile."""
    devices, taken = machine["devices"], machine["taken_by_others"] or 0.0
    commit, dash, changed = (machine["commit"] or "unknown").partition("-")
    versions = ", ".join(
        f"{name} {version}"
        for name, version in machine["packages"].items()
        if name in ("jax", "flax", "torch", onednn.PACKAGE)
    )
    return (
        f"On {machine['processor']}, {machine['cores']} cores, {len(devices)} x {devices[0]}; {versions}; "
        f"commit {commit[:7]}{dash}{changed}."
        + (f" Other programs took {taken:.0%} of the processors: not to be trusted." if taken > MUCH else "")
    )


def processor() -> str:
    """The name of the processor, as far as the system tells it."""
    try:
        told = (PROC / "cpuinfo").read_text(encoding="utf-8")
    except OSError:
        told = ""
    names = [line.split(":", 1)[1].strip() for line in told.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
