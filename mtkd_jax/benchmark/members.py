"""Suite `members`: a training step of one of K members, in each loop over members, beside what others do."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from functools import partial

import jax

from mtkd_jax.benchmark import clock, engine, plain, pytorch, work
from mtkd_jax.benchmark.clock import Case, LeftOut, Side
from mtkd_jax.benchmark.networks import Network
from mtkd_jax.engine import tuning
from mtkd_jax.engine.jobs import Job
from mtkd_jax.mesh import HOW, Layout
from mtkd_jax.system import terminal
from mtkd_jax.types import UserError

UNIT = "ms, one step of one member"
RIVALS = {
    "jit loop": plain.loop,
    "vmap in scan": plain.vmap_in_scan,
    "torch loop": pytorch.loop,
    "torch vmap": pytorch.vmap,
    "torch graphs": pytorch.replay_graphs,
}
# Known to be hopeless for convolutions on a CPU: vmapped over its kernels one is a grouped convolution (3
# times slower; in a scan 30 times), `unroll` compiles a copy of the network for every member, and `loop` is
# the reference, not made to be fast. They are measured up to this many operations a call, which take a
# minute or so, and left out beyond.
WORTH_THE_WAIT = {"vmap in scan": 6e10, "vmap": 2e11, "torch vmap": 2e11, "unroll": 2e11, "loop": 2e11}
QUICK = 0.15  # of the above
ON_AN_ACCELERATOR = {"loop": 1, "unroll": 4}  # members at most: that long their compilation takes, or a call


def measure(networks: Sequence[Network], members: Sequence[int], quick: bool) -> dict:
    """Every network at every K; `members` () stands for each network's own."""
    records, left_out, notes = [], [], []
    for network in networks:
        check_same_size(network)
        own = network.quick if quick else network.members
        if not (members or own):
            left_out.append({"of": "", "case": "", "side": network.name, "reason": "--quick"})
        for num_members in members or own:
            jax.clear_caches()  # all programs of a process are more memory maps than Linux gives it
            found, missing, note = measure_case(network, num_members, 3 if quick else 7, quick)
            records += found
            left_out += missing
            notes.append(note)
    return {
        "unit": UNIT,
        "scale": 1e3,
        "records": records,
        "ratios": ratios(records),
        "left_out": left_out,
        "notes": [f"auto chose: {'; '.join(notes)}.", clock.spread(records)],
    }


def ratios(records: Sequence[dict]) -> list[dict]:
    """How many times slower everybody else is than `auto`, and how near `auto` is to the best by hand."""
    best = {}
    for one in sorted(records, key=lambda one: -one["median"]):
        if one["side"] not in RIVALS:
            best[one["of"], one["case"]] = {**one, "side": "best by hand"}
    sides = [*RIVALS, "best by hand"]
    return [one for side in sides for one in clock.ratios([*records, *best.values()], side, "auto")]


def check_same_size(network: Network) -> None:
    """Raise RuntimeError unless every side trains as many parameters."""
    counts = {"ours": engine.num_params(network)}
    for name, side in (("flax", plain), ("torch", pytorch)):
        with contextlib.suppress(LeftOut):  # said with every side that needs it
            counts[name] = side.num_params(network)
    if len(set(counts.values())) > 1:
        raise RuntimeError(f"{network.name}: the sides train different networks, parameters {counts}")


def measure_case(
    network: Network, num_members: int, rounds: int, quick: bool = False, until: float = math.inf
) -> tuple[list[dict], list[dict], str]:
    """(records, left out, what auto chose) of one network at one K.

    `until`, of the epoch, is when no further side is begun; what auto chose is "" where no time was left.
    """
    case = Case(network.name, f"K = {num_members}")
    job = engine.teachers(network, num_members)
    layouts, left_out = _layouts(job.candidates, network, num_members)
    name_of: dict[Layout, str] = {}  # two of them may be one program
    for how, layout in layouts.items():
        name_of.setdefault(layout, how)
    makers: dict[str, Callable[[], Side]] = {
        how: partial(_side_in, layout, job) for layout, how in name_of.items()
    }
    makers |= {name: partial(_make_rival, make, network, num_members) for name, make in RIVALS.items()}
    for name in (*WORTH_THE_WAIT, *(how for how in layouts if how in ON_AN_ACCELERATOR)):
        reason = _why_hopeless(name, network, num_members, quick)
        if reason and name in makers:
            del makers[name]
            left_out.append({"side": name, "reason": reason})
    records, missing = clock.measure(case, makers, rounds, until=until)
    if time.time() > until:
        return records, [{**case._asdict(), **one} for one in left_out] + missing, ""
    chosen = engine.fastest(job)
    measured = {one["side"]: one for one in records}
    for name, layout in {**layouts, "auto": chosen}.items():
        if name not in measured and name_of[layout] in measured:
            records.append({**measured[name_of[layout]], "side": name})
    left_out = [{**case._asdict(), **one} for one in left_out]
    return records, left_out + missing, f"{case.of}, {case.case}: {chosen}"


def _side_in(layout: Layout, job: Job) -> Side:
    """The job in a layout."""
    return engine.side(tuning.with_layout(job, layout))


def _make_rival(make: Callable[..., Side], network: Network, num_members: int) -> Side:
    """What others do; where it fails in their code, all that was measured beside it is kept."""
    try:
        return make(network, num_members)
    except LeftOut:
        raise
    except Exception as error:  # torch, in bfloat16 on a GPU: RuntimeError of types in a backward pass
        raise LeftOut(f"it failed: {terminal.one_line(error)[:200]}") from error


def _layouts(
    candidates: Sequence[Layout], network: Network, num_members: int
) -> tuple[dict[str, Layout], list[dict]]:
    """Every `runtime.how` and whatever else `auto` may choose, by name; and those that cannot be here."""
    layouts, left_out = {}, []
    for how in HOW:
        try:
            (layouts[how],) = engine.teachers(network, num_members, how).candidates
        except UserError as error:
            left_out.append({"side": how, "reason": str(error)})
    for layout in candidates:
        if layout not in layouts.values():
            loop = f"{layout.member_loop} spread" if layout.num_devices > 1 else layout.member_loop
            layouts[", ".join(filter(None, (loop, layout.form)))] = layout
    return layouts, left_out


def _why_hopeless(side: str, network: Network, num_members: int, quick: bool) -> str:
    """Why a side is not worth waiting for; "" if it is."""
    if jax.default_backend() != "cpu":
        most = ON_AN_ACCELERATOR.get(side, num_members)
        return "" if num_members <= most else f"of more than {most} members, on an accelerator"
    if not network.convolutional or side not in WORTH_THE_WAIT:
        return ""
    call = work.of_training(network) * network.num_steps * num_members
    limit = WORTH_THE_WAIT[side] * (QUICK if quick else 1)
    if call <= limit:
        return ""
    return f"hopeless on a CPU with more than {limit:.0e} operations a call"
