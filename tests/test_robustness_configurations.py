"""Configurations as somebody might get them wrong: each works, or ends with one line that names the field."""

import contextlib
import math
import random
import re
from collections import Counter

import pytest
from ml_collections import ConfigDict

from mtkd_jax import config as configuration
from mtkd_jax import experiment, validation
from mtkd_jax.types import UserError
from tests import small

# What a field may be given instead: of every type, at the edges, and what no field is.
VALUES = (
    *(None, True, False, "", "labelled", "many", "\u00fcberall", "a\nb", "a\0b", "x" * 10_000, b"bytes"),
    *(0, 1, -1, 2, 3, 7, 2**31 - 1, 2**31, 2**63, 10**400, -(10**400)),
    *(0.0, -0.0, 0.5, 1.0, -1.5, 1e-320, 1e308, 1e39, math.inf, -math.inf, math.nan),
    *((), (0.5,), (0.5, 0.5), (1, 2, 3), (math.nan,), (math.inf,), ("mlp",), (None,), ((),), [0.5], {1: 2}),
    *({}, {"mimic_all": {}}, {"mimic_all": 3}, {"mimic_all": {"beta": ()}}, {3: {}}, object, lambda: 0),
)
LISTED = """
    mlp ; mlp() ; mlp(hidden=()) ; mlp(hidden=(0,)) ; mlp(hidden=(-3,)) ; mlp(hidden=(4, 4)) ;
    mlp(hidden=(2.5,)) ; mlp(hidden=4) ; mlp(hidden=(4,), dropout=nan) ; mlp(dropout=-1.0) ; mlp(4) ;
    mlp(dropout=1e999) ; mlp(hidden=(4,), hidden=(4,)) ; mlp(**{}) ; mlp(hidden=open('x')) ; mlp( ; ( ;
    cnn(widths=()) ; cnn(widths=(0,)) ; cnn(widths=(4,), dense=-1) ; wide_resnet(depth=11) ; m:lp ; : ;
    mimic_al ; vote ; fused ; fused: ; fused:mean_probs ; fused:nothing ; fused(rule=3) ; supernet ;
    logits.dkd(beta=1e400) ; logits.dkd(beta='a') ; logits.dkd(beta=-inf) ; logits.dkd(alpha=None) ;
    mean_probs ; mean_probs() ; borda(3) ; __import__('os') ; f.g.h ; 3 ; 'mlp' ; lambda: 0 ; ☃ ;
    digits ; synthetic ; synthetic(num_train=0) ; synthetic(num_classes=1) ; synthetic(size=-1) ;
    synthetic(num_classes=4, num_train=120, num_test=40, size=4, seed=7) ; npz ; npz(path='') ; tfds: ;
    synthetic(num_train=10**9) ; synthetic(noise=-1.0) ; idx(path='nowhere') ; tfds:mnist ; born_again ;
    born_again(generations=0) ; born_again(generations=2) ; assistants ; hints_then_distil ;
    specialists
"""
ADDRESSES = tuple(map(str.strip, LISTED.split(";")))


def mutated(seed: int) -> ConfigDict:
    """The small configuration with one to three things changed, the same ones for a seed."""
    drawn = random.Random(seed)
    config = small.config()
    config.unlock()
    for _ in range(drawn.choice((1, 1, 2, 3))):
        group, name = _field(config, drawn)
        kind = drawn.random()
        if kind < 0.05:
            del group[name]
        elif kind < 0.1:
            _set(group, drawn.choice((name + "s", name[:-1], "\u00e9", "")), drawn.choice(VALUES))
        else:
            _set(group, name, _other(group[name], drawn))
    return config


def _field(config: ConfigDict, drawn: random.Random) -> tuple[ConfigDict, str]:
    """A group and the name of something in it, itself a group now and then."""
    group = config
    while True:
        name = drawn.choice(sorted(group.keys(), key=str))
        if not isinstance(group[name], ConfigDict) or not len(group[name]) or drawn.random() < 0.05:
            return group, name
        group = group[name]


def _set(group: ConfigDict, name: str, value) -> None:
    """Past what ml_collections would refuse by itself: a configuration file can build anything."""
    with group.ignore_type(), contextlib.suppress(OverflowError, TypeError):  # refused in the file itself
        group[name] = value


def _other(value, drawn: random.Random):
    """Another value: near this one, an address, several of them, or anything."""
    kind = drawn.random()
    if kind < 0.3 and isinstance(value, str):
        return drawn.choice(ADDRESSES)
    if kind < 0.5 and isinstance(value, tuple):
        return tuple(drawn.choices((*value, *ADDRESSES, *VALUES[:40]), k=drawn.randint(0, 3)))
    if kind < 0.3 and isinstance(value, bool):
        return not value
    if kind < 0.7 and isinstance(value, int | float) and abs(value) < 1e6:
        return type(value)(value * drawn.choice((0.5, 1.5, 2, 3)) + drawn.choice((0, 0, 1)))
    return drawn.choice(VALUES)


def outcome(call, config: ConfigDict) -> str:
    """ "" where `call(config)` works, else the one line it ends with; anything else fails the test."""
    try:
        call(config)
    except UserError as error:
        return str(error)
    return ""


def is_one_line_about_a_field(line: str) -> bool:
    return (
        line.isprintable() and "config." in line and len(line) < 2500
    )  # a list of all that is known may be long


def test_300_configurations_are_right_or_one_line_names_the_field():
    lines = [outcome(validation.validate, mutated(seed)) for seed in range(300)]
    assert [line for line in lines if line and not is_one_line_about_a_field(line)] == []
    refused = Counter(line.split("config.", 1)[1].split()[0].rstrip(":;,") for line in lines if line)
    assert sum(refused.values()) < 290 and len(refused) > 40  # neither all nor always the same


def changed(config: ConfigDict) -> tuple[str, ...]:
    """The fields in which a valid configuration is not the small one."""
    before = configuration.fields(small.config())
    return tuple(field for field, value in configuration.fields(config).items() if before[field] != value)


def is_cheap(config: ConfigDict) -> bool:
    """Whether a valid configuration is trained in some seconds: the small one's data, few members."""
    students, teachers, train = config.students, config.teachers, config.train
    per_mode = len(students.alphas) * len(students.temperatures) * students.num_seeds
    return (
        config.data.source.startswith("synthetic(num_classes=4, num_train=120")
        and config.model.name.startswith("mlp")
        and config.runtime.data_shards == 1
        and max(train.epochs, students.epochs) <= 12
        and teachers.num_members <= 6
        and len(students.modes) * per_mode <= 24
    )


@pytest.mark.slow(seconds=100)
def test_20_of_the_valid_ones_run_or_end_with_one_line(tmp_path):
    sound = [c for c in map(mutated, range(600)) if not outcome(validation.validate, c) and is_cheap(c)]
    chosen = list({changed(config): config for config in sound if changed(config)}.items())[:20]
    assert len(chosen) == 20
    ended = {
        fields: outcome(lambda c, at=tmp_path / str(n): experiment.run(c, at, quiet=True), config)
        for n, (fields, config) in enumerate(chosen)
    }
    names = {field.rpartition(".")[2] for field in configuration.fields(small.config())}
    for fields, line in ended.items():  # data may not suit two fields together: it may name the other one
        named = any(re.search(rf"\b{name}\b", line) for name in names)
        assert line == "" or (line.isprintable() and named), (fields, line)
    assert list(ended.values()).count("") >= 10
