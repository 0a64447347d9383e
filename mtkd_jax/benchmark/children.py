"""Child processes: for a JAX that has not started yet, or with another number of devices."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence


def ask(module: str, arguments: Sequence[object], environment: Mapping[str, str]) -> dict:
    """What `python -m mtkd_jax.benchmark.MODULE ARGUMENTS` answers; RuntimeError where it fails."""
    command = [sys.executable, "-m", f"mtkd_jax.benchmark.{module}", *map(str, arguments)]
    environment = {**os.environ, **environment}
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if said.returncode:
        raise RuntimeError(f"{' '.join(command)}: {said.stderr.strip()[-2000:]}")
    return json.loads(said.stdout.splitlines()[-1])


def answer(said: dict) -> None:
    """Print what `ask` reads, on the last line."""
    print(json.dumps(said), flush=True)
