"""The command line of the benchmark.

    python -m mtkd_jax.benchmark members [--networks mlp,cnn,...] [--members 1,2,4,8,16]
    python -m mtkd_jax.benchmark distill | start | scale | limit [--networks ...]
    python -m mtkd_jax.benchmark fusion | host | memory | arithmetic

each with [--quick] [--json FILE] [--into FILE], and for a GPU, in parts, as long as there are minutes on it:

    python -m mtkd_jax.benchmark gpu --minutes 9 --json FOLDER [--parts numbers,members,cifar10,published]
        [--data FOLDER] [--toy] [--into FILE]
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from mtkd_jax import mesh
from mtkd_jax.benchmark import (
    arithmetic,
    distill,
    gpu,
    gpu_tables,
    host,
    limit,
    members,
    memory,
    rules,
    scale,
    start,
    tell,
)
from mtkd_jax.benchmark.networks import named
from mtkd_jax.laboratory import rule_study
from mtkd_jax.report import document
from mtkd_jax.report.rendering import Sheet
from mtkd_jax.runs import workdir
from mtkd_jax.system import terminal
from mtkd_jax.types import UserError

NETWORKS = {  # that are measured unless others are asked for
    "members": "mlp,cnn,resnet20,wrn16_2",
    "distill": "cnn",
    "fusion": "",
    "start": "cnn",
    "scale": "cnn",
    "limit": "cnn,resnet20",
    "host": "",
    "memory": "",
    "gpu": "",
    "arithmetic": "",
}
WITHOUT_NETWORKS = ("fusion", "host", "memory", "gpu", "arithmetic")
OF_GPU = ("minutes", "parts", "data", "toy")  # options that no other suite has


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the engine costs beside what one would use instead; returns the exit code."""
    return terminal.answer(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    asked = _parse(argv)
    if asked.suite == "gpu":
        result = gpu.measure(asked.parts, asked.minutes, asked.json, asked.data, asked.toy)
        _tell(asked, gpu_tables.sheets(result), gpu_tables.findings(result), gpu_tables.busiest(result))
        return
    if asked.suite == "arithmetic":
        _tell(asked, arithmetic.sheets(), arithmetic.notes(), None)
        return
    mesh.use_devices()
    workdir.use_compile_cache()
    others = tell.seconds_of_others(), time.perf_counter()
    result = measure_suite(asked)
    result["machine"] = tell.machine(tell.share_of_others(*others))
    if asked.json is not None:
        document.write_files(asked.json.parent, {asked.json.name: document.as_json(result)})
    _tell(asked, tell.sheets(result), tell.findings(result), result["machine"]["taken_by_others"])


def _tell(
    asked: argparse.Namespace, sheets: list[tuple[str, Sheet]], findings: list[str], of_others: float | None
) -> None:
    """To the terminal and, unless others disturbed it, into a page."""
    where = "Every round's extremes: --json FILE" if asked.json is None else f"All numbers: {asked.json}"
    document.say(tell.terminal(sheets), "What this shows", findings, where)
    if asked.into is not None:
        tell.check_quiet(of_others)
        document.put_into(asked.into, f"benchmark {asked.suite}", tell.markdown(sheets, findings))


def measure_suite(asked: argparse.Namespace) -> dict:
    """One suite's numbers; medians are in seconds, multiplied by `scale` in its unit."""
    if asked.suite == "fusion":
        result = rules.measure(**rule_study.COST, quick=asked.quick)
    elif asked.suite in ("host", "memory"):
        result = {"host": host, "memory": memory}[asked.suite].measure(asked.quick)
    elif asked.suite == "members":
        result = members.measure(asked.networks, asked.members, asked.quick)
    else:
        suite = {"distill": distill, "start": start, "scale": scale, "limit": limit}[asked.suite]
        result = suite.measure(asked.networks, asked.quick)
    return {"suite": asked.suite, "quick": asked.quick, **result}


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = terminal.Parser("python -m mtkd_jax.benchmark", __doc__)
    parser.add_argument("suite", choices=NETWORKS, metavar="SUITE", help=", ".join(NETWORKS))
    parser.add_argument("--networks", help="which, such as cnn,resnet20")
    parser.add_argument("--members", help="suite members: which K, such as 1,8")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, networks and K: a first look")
    parser.add_argument("--json", type=terminal.path, metavar="FILE", help="also write the numbers here")
    parser.add_argument("--minutes", type=float, help="suite gpu: of the device (9); 0 tells what is there")
    parser.add_argument("--parts", help=f"suite gpu: which of {', '.join(gpu.SHARES)}")
    parser.add_argument(
        "--data", type=terminal.path, metavar="FOLDER", help="suite gpu: cifar10.npz, cifar100.npz (data)"
    )
    parser.add_argument("--toy", action="store_true", help="suite gpu: a dry run, in a minute on a CPU")
    parser.add_argument(
        "--into", type=terminal.path, metavar="FILE", help="also write the tables between their marks here"
    )
    asked = parser.parse_args(argv)
    if asked.suite in WITHOUT_NETWORKS and asked.networks:
        raise UserError(f"--networks: the suite {asked.suite} has no choice of networks")
    if asked.suite != "members" and asked.members:
        raise UserError(f"--members: the suite {asked.suite} has its own K; only members takes this")
    if asked.suite == "arithmetic" and asked.json:
        raise UserError("--json: the suite arithmetic measures nothing; --into FILE writes its tables")
    given = [name for name in OF_GPU if getattr(asked, name)]
    if asked.suite != "gpu" and given:
        raise UserError(f"--{given[0]}: for the suite gpu alone")
    if asked.suite == "gpu":
        if asked.json is None:
            raise UserError("gpu: --json FOLDER is missing, where results are kept and gone on with")
        asked.minutes = 9.0 if asked.minutes is None else asked.minutes
        if not 0 <= asked.minutes < math.inf:
            raise UserError(f"--minutes {asked.minutes:g}: must be minutes, or 0 to tell what FOLDER holds")
        asked.parts, asked.data = gpu.parse_parts(asked.parts), asked.data or Path("data")
    names = asked.networks or NETWORKS[asked.suite]
    asked.networks = named(names) if names else []
    asked.members = _counts(asked.members) if asked.members else ()
    return asked


def _counts(text: str) -> tuple[int, ...]:
    try:
        counts = tuple(sorted({int(part) for part in text.split(",")}))
    except ValueError:
        counts = (0,)
    if counts[0] < 1:
        raise UserError(f"--members {text}: must be numbers of members, such as 1,8")
    return counts


if __name__ == "__main__":
    sys.exit(main())
