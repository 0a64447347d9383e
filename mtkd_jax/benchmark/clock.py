"""Sides that take turns: medians of rounds, ratios of medians."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from mtkd_jax.system import terminal

OUT_OF_THE_RACE = 3.0  # times slower than the fastest: one round says enough


class LeftOut(Exception):
    """A side that is not measured, and why."""


class Case(NamedTuple):
    """What the sides of a comparison have in common: a table and a column in it."""

    of: str  # such as a network
    case: str = ""  # such as a number of members


class Side(NamedTuple):
    """Something to time."""

    run: Callable[[], object]  # returns when the work is done; the first call is as fast as any other
    units: float = 1  # of work in one call, such as training steps of one member


def measure(
    of: Case,
    makers: Mapping[str, Callable[[], Side]],
    rounds: int,
    to_the_end: bool = False,
    until: float = math.inf,
) -> tuple[list[dict], list[dict]]:
    """(records, left out) of the sides of one case; a side is made, and compiled, only here.

    A record holds seconds for one unit of work: {"of", "case", "side", "median", "min", "max", "rounds"}.
    Says on stderr what is measured. Unless `to_the_end`, sides far behind the fastest leave the race after
    the first round. After the time `until`, of the epoch, no further side is made and no further round begun.
    """
    terminal.tell(f"measuring {', '.join(filter(None, of))}: {', '.join(makers)}")
    sides: dict[str, Side] = {}
    left_out = []
    for name, make in makers.items():
        try:
            if sides and time.time() > until:
                raise LeftOut("no time was left")
            sides[name] = make()
        except LeftOut as reason:
            left_out.append({**of._asdict(), "side": name, "reason": str(reason)})
    seconds = take_turns(sides, rounds, math.inf if to_the_end else OUT_OF_THE_RACE, until)
    records = [{**of._asdict(), "side": name, **summary(values)} for name, values in seconds.items()]
    return records, left_out


def take_turns(
    sides: Mapping[str, Side], rounds: int, behind: float, until: float = math.inf
) -> dict[str, list[float]]:
    """Seconds for one unit of work in every round; who is `behind` times slower has only one."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        if number and time.time() > until:
            break
        best = min((values[0] for values in seconds.values() if values), default=0.0)
        for name, side in sides.items():
            if number == 0 or seconds[name][0] <= behind * best:
                seconds[name].append(time_call(side.run) / side.units)
    return seconds


def time_call(run: Callable[[], object]) -> float:
    """Seconds of one call."""
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def summary(values: Sequence[float]) -> dict:
    """
    >>> summary([3.0, 1.0, 2.0])
    {'median': 2.0, 'min': 1.0, 'max': 3.0, 'rounds': 3}
    """
    return {
        "median": statistics.median(values),
        "min": min(values),
        "max": max(values),
        "rounds": len(values),
    }


def ratios(records: Iterable[dict], slower: str, faster: str) -> list[dict]:
    """Median of one side over that of another, wherever both are: {"of", "case", "side", "value"}."""
    median = {(one["of"], one["case"], one["side"]): one["median"] for one in records}
    return [
        {"of": of, "case": case, "side": f"{slower} / {faster}", "value": median[of, case, slower] / value}
        for (of, case, side), value in median.items()
        if side == faster and (of, case, slower) in median
    ]


def spread(records: Sequence[dict]) -> str:
    """How far apart the rounds of one side were, in words."""
    apart = [
        (50 * (one["max"] - one["min"]) / one["median"], f"{one['of']}, {one['case']}, {one['side']}")
        for one in records
        if one["rounds"] > 1
    ]
    if not apart:
        return "One round of each."
    worst, where = max(apart)
    usual = statistics.median(percent for percent, _ in apart)
    return (
        f"Medians of up to {max(one['rounds'] for one in records)} rounds, the sides taking turns. Half the "
        f"range of the rounds is {usual:.0f} % of the median in the middle case, {worst:.0f} % at worst "
        f"({where.replace(', , ', ', ')})."
    )
