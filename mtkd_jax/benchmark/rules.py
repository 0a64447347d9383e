"""Suite `fusion`: what every fusion rule costs."""

from __future__ import annotations

from functools import partial

import jax

from mtkd_jax.benchmark import clock
from mtkd_jax.benchmark.clock import Case, LeftOut, Side
from mtkd_jax.fusion import rules
from mtkd_jax.laboratory import rule_study
from mtkd_jax.types import Array, UserError

UNIT = "ms, all examples"


def measure(num_members: int, num_examples: int, num_classes: int, quick: bool) -> dict:
    """Every rule that needs no fit, on the same made-up logits."""
    logits = jax.random.normal(jax.random.key(0), (num_members, num_examples, num_classes))
    names = [name for names in rule_study.families().values() for name in names if name in rules.RULES]
    makers = {name: partial(_side, name, logits) for name in names}
    case = Case(f"{num_members} members, {num_examples:,} examples, {num_classes} classes")
    records, left_out = clock.measure(case, makers, 3 if quick else 7, to_the_end=True)
    return {
        "unit": UNIT,
        "scale": 1e3,
        "records": records,
        "ratios": [one for name in names for one in clock.ratios(records, name, rule_study.REFERENCE)],
        "left_out": left_out,
        "notes": [clock.spread(records)],
    }


def _side(name: str, logits: Array) -> Side:
    try:
        rules.check(name, logits[:, :1])
    except UserError as error:
        raise LeftOut(str(error)) from None
    decide = jax.jit(rules.rule(name))
    decide(logits).block_until_ready()
    return Side(lambda: decide(logits).block_until_ready())
