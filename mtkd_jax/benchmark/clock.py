"""Sides that take turns: medians of rounds, ratios of medians."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

OUT_OF_THE_RACE = 3.0  # times slower than the fastest: one round says enough


class LeftOut(Exception):
    """A side that is not measured, and why."""


class Side(NamedTuple):
    """Something to time."""

    run: Callable[[], object]  # returns when the work is done; the first call is as fast as any other
    units: float = 1  # of work in one call, such as training steps of one member


def measured(
    case: str, makers: Mapping[str, Callable[[], Side]], rounds: int, to_the_end: bool = False
) -> tuple[list[dict], list[dict]]:
    """(records, left out) of the sides of one case; a side is made, and compiled, only here.

    A record holds seconds for one unit of work: {"case", "side", "median", "min", "max", "rounds"}. Unless
    `to_the_end`, sides far behind the fastest leave the race after the first round.
    """
    sides, left_out = {}, []
    for name, make in makers.items():
        try:
            sides[name] = make()
        except LeftOut as reason:
            left_out.append({"case": case, "side": name, "reason": str(reason)})
    seconds = take_turns(sides, rounds, float("inf") if to_the_end else OUT_OF_THE_RACE)
    return [{"case": case, "side": name, **summary(values)} for name, values in seconds.items()], left_out


def take_turns(sides: Mapping[str, Side], rounds: int, behind: float) -> dict[str, list[float]]:
    """Seconds for one unit of work in every round; who is `behind` times slower has only one."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds):
        best = min((values[0] for values in seconds.values() if values), default=0.0)
        for name, side in sides.items():
            if number == 0 or seconds[name][0] <= behind * best:
                seconds[name].append(timed(side.run) / side.units)
    return seconds


def timed(run: Callable[[], object]) -> float:
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


def ratios(records: Iterable[dict], slower: str, faster: str, name: str) -> list[dict]:
    """Median of one side over that of another, of every case that has both: {"case", "ratio", "value"}."""
    median = {(one["case"], one["side"]): one["median"] for one in records}
    return [
        {"case": case, "ratio": name, "value": median[case, slower] / median[case, faster]}
        for case in dict.fromkeys(case for case, _ in median)
        if (case, slower) in median and (case, faster) in median
    ]


def spread(records: Iterable[dict]) -> str:
    """How far apart the rounds of one side were, in words."""
    apart = [(50 * (one["max"] - one["min"]) / one["median"], one) for one in records if one["rounds"] > 1]
    if not apart:
        return "Spread: one round of each."
    worst, one = max(apart, key=lambda pair: pair[0])
    usual = statistics.median(percent for percent, _ in apart)
    return (
        f"Medians of {max(one['rounds'] for _, one in apart)} rounds, the sides taking turns. From the "
        f"median to the ends, half the range: {usual:.0f} % in the middle case, {worst:.0f} % at worst "
        f"({one['case']}, {one['side']})."
    )
