"""The command line of the benchmark.

    python -m mtkd_jax.benchmark members [--networks mlp,cnn,...] [--members 1,2,4,8,16]
    python -m mtkd_jax.benchmark distill | start | scale | limit [--networks ...]
    python -m mtkd_jax.benchmark fusion | host | memory

each with [--quick] [--json FILE] [--into FILE].
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence

from mtkd_jax import mesh
from mtkd_jax.benchmark import distill, host, limit, members, memory, rules, scale, start, tell
from mtkd_jax.benchmark.networks import named
from mtkd_jax.laboratory import rule_study
from mtkd_jax.report import document
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
}
WITHOUT_NETWORKS = ("fusion", "host", "memory")


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what the engine costs beside what one would use instead; returns the exit code."""
    return terminal.answer(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    asked = _parse(argv)
    mesh.use_devices()
    workdir.use_compile_cache()
    begun, others = time.perf_counter(), tell.seconds_of_others()
    result = measure_suite(asked)
    result["machine"] = tell.machine(_share(others, begun))
    where = "Every round's extremes: --json FILE" if asked.json is None else f"All numbers: {asked.json}"
    if asked.json is not None:
        document.write_files(asked.json.parent, {asked.json.name: document.as_json(result)})
    if asked.into is not None:
        document.put_into(asked.into, f"benchmark {asked.suite}", tell.markdown(result))
    document.say(tell.terminal(result), "What this shows", tell.findings(result), where)


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


def _share(others: float | None, begun: float) -> float | None:
    """Of the processors, taken by other programs since `begun`, when they had taken so many seconds."""
    now = tell.seconds_of_others()
    if others is None or now is None:
        return None
    return (now - others) / (time.perf_counter() - begun) / os.cpu_count()


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = terminal.Parser("python -m mtkd_jax.benchmark", __doc__)
    parser.add_argument("suite", choices=NETWORKS, metavar="SUITE", help=", ".join(NETWORKS))
    parser.add_argument("--networks", help="which, such as cnn,resnet20")
    parser.add_argument("--members", help="suite members: which K, such as 1,8")
    parser.add_argument("--quick", action="store_true", help="fewer rounds, networks and K: a first look")
    parser.add_argument("--json", type=terminal.path, metavar="FILE", help="also write the numbers here")
    parser.add_argument(
        "--into", type=terminal.path, metavar="FILE", help="also write the tables between their marks here"
    )
    asked = parser.parse_args(argv)
    if asked.suite in WITHOUT_NETWORKS and asked.networks:
        raise UserError(f"--networks: the suite {asked.suite} has no choice of networks")
    if asked.suite != "members" and asked.members:
        raise UserError(f"--members: the suite {asked.suite} has its own K; only members takes this")
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
