"""The results of the suite `gpu` as tables and sentences."""

from __future__ import annotations

from collections.abc import Sequence

from mtkd_jax.benchmark import members, tell
from mtkd_jax.benchmark.gpu_store import PARTS
from mtkd_jax.report import cell_text, wording
from mtkd_jax.report.cell_text import MISSING
from mtkd_jax.report.rendering import Sheet
from mtkd_jax.results import intervals


def sheets(content: dict) -> list[tuple[str, Sheet]]:
    """(title, table) of everything that is known."""
    parts = content["parts"]
    found = {part: parts[part]["items"] for part in PARTS if part in parts and parts[part]["items"]}
    told = []
    if "numbers" in found:
        told.append(("numbers: relative difference from float32 on a CPU", _numbers(found["numbers"])))
    if "members" in found:
        told += tell.sheets(merge_cases(found["members"]))
        told += _rates(found["members"])
    for one in found.get("cifar10", {}).values():
        rows = [
            [row["role"], row["name"], str(row["n"]), cell_text.with_interval(row["accuracy"])]
            for row in one["rows"]
        ]
        told.append((f"CIFAR-10 in {one['seconds']:.0f} s", (["role", "name", "networks", "accuracy"], rows)))
    for name, one in found.get("published", {}).items():
        cells = [
            name,
            f"{100 * one['published']:.2f}",
            f"{100 * one['ours']:.2f}",
            str(one["n"]),
            f"{one['seconds']:.0f}",
        ]
        told.append(("a published cell", (["cell", "published", "ours", "seeds", "s"], [cells])))
    return told


def findings(content: dict) -> list[str]:
    """What has to be known beside the tables: notes, what was skipped, and where it was measured."""
    told = []
    for part, of_part in content["parts"].items():
        told += [
            f"{part}, {name}: {one['note']}" for name, one in of_part["items"].items() if one.get("note")
        ]
        told += [gain for one in of_part["items"].values() for gain in _gains(one.get("rows", ()))]
        told += tell.left_out([left for one in of_part["items"].values() for left in one.get("left_out", ())])
        told += [f"{part}: skipped {'; '.join(names)}: {why}." for why, names in _by_reason(of_part).items()]
        told += [f"{part}: {of_part['ended']}."] if of_part.get("ended") else []
        if of_part.get("machine"):
            machine = {**of_part["machine"], "taken_by_others": of_part.get("taken_by_others")}
            told.append(f"{part}: {tell.on(machine)}")
    return [*told, *(["--toy: these numbers mean nothing."] if content["toy"] else [])]


def _by_reason(of_part: dict) -> dict[str, list[str]]:
    """{why: the items that were skipped for it}."""
    names: dict[str, list[str]] = {}
    for name, why in of_part["skipped"].items():
        names.setdefault(why, []).append(name)
    return names


def _gains(rows: Sequence[dict]) -> list[str]:
    """What students gained over the baseline of the same network, images and seeds, a sentence each."""

    def where(row: dict) -> tuple:
        return row.get("transfer"), row.get("architecture")

    baselines = {where(row): row["accuracy"]["values"] for row in rows if row["role"] == "baseline"}
    told = []
    for row in rows:
        if row["role"] == "student" and where(row) in baselines:
            gain = intervals.paired_t(row["accuracy"]["values"], baselines[where(row)])
            between = f" {wording.interval(gain['ci95'], 'accuracy')}" if gain["ci95"] else ""
            name = " of ".join(filter(None, (row["name"], row.get("architecture"))))
            points = wording.points(gain["mean_difference"])
            told.append(f"{name} over its baseline, the same {gain['n']} seeds: {points}{between}.")
    return told


def busiest(content: dict) -> float:
    """The largest share of the processors that others took while a part was measured."""
    return max((part.get("taken_by_others") or 0.0 for part in content["parts"].values()), default=0.0)


def _numbers(items: dict) -> Sheet:
    header = list(dict.fromkeys(way for one in items.values() for way in one["differences"]))
    rows = []
    for name, one in items.items():
        cells = [_agreement(one["differences"].get(way)) for way in header]
        rows.append([name, *cells])
    return ["", *header], rows


def _agreement(one: dict | None) -> str:
    if one is None:
        return MISSING
    return f"{one['value']:.1e}" + ("" if one["value"] <= one["bound"] else f", above {one['bound']:g}")


def merge_cases(items: dict) -> dict:
    """The cases of `members` as one result of that suite."""
    records = [record for one in _cases(items) for record in one["records"]]
    return {"unit": members.UNIT, "scale": 1e3, "records": records, "ratios": members.ratios(records)}


def _rates(items: dict) -> list[tuple[str, Sheet]]:
    """The chip's own rate, what `auto` makes of it, and what several members cost beside one."""
    rates, cases = items.get("rates", {}).get("rates", {}), _cases(items)
    auto = {
        (record["of"], one["num_members"]): (one, record)
        for one in cases
        for record in one["records"]
        if record["side"] == "auto"
    }
    shares, times = [], []
    for (network, number), (one, record) in auto.items():
        entry = {"side": network, "case": record["case"]}
        if one["dtype"] in rates:
            shares.append({**entry, "value": one["gflop"] / record["median"] / rates[one["dtype"]]})
        if number > 1 and (network, 1) in auto:
            times.append({**entry, "value": number * record["median"] / auto[network, 1][1]["median"]})
    rows = [[name, f"{rate:,.0f}"] for name, rate in rates.items()]
    told = [
        ("products of matrices, GFLOP/s", rows and (["", "rate"], rows)),
        ("auto: share of the rate of products", shares and tell.table(shares, _value)),
        ("auto: time of K members, in times of one", times and tell.table(times, _value)),
    ]
    return [(title, sheet) for title, sheet in told if sheet]


def _cases(items: dict) -> list[dict]:
    """The networks that were measured, small K first."""
    return sorted((one for one in items.values() if "records" in one), key=lambda one: one["num_members"])


def _value(one: dict) -> str:
    return f"{one['value']:.2f}"
