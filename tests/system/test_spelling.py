"""What is meant by a name that does not exist: slips, abbreviations, and words that are left out or added."""

import pytest

from mtkd_jax import config as configuration
from mtkd_jax.system import spelling

GROUPS = ("train.", "students.", "data.")
FIELDS = [
    name.rpartition(".")[2]
    for name in configuration.fields(configuration.default())
    if name.startswith(GROUPS)
]


@pytest.mark.parametrize(
    "typed, meant",
    [
        ("lr", "learning_rate"),
        ("wd", "weight_decay"),
        ("bs", "batch_size"),
        ("batchsize", "batch_size"),
        ("batch", "batch_size"),
        ("learn_rate", "learning_rate"),
        ("lrate", "learning_rate"),
        ("LearningRate", "learning_rate"),
        ("lerning_rate", "learning_rate"),
        ("temp", "temperatures"),
        ("temprature", "temperatures"),
        ("opt", "optimizer"),
        ("epoch", "epochs"),
        ("num_epochs", "epochs"),
        ("seeds", "num_seeds"),
        ("ls", "label_smoothing"),
        ("modes", "modes"),
    ],
)
def test_the_nearest_is_what_was_meant(typed, meant):
    assert spelling.nearest(typed, FIELDS) == meant


def test_what_is_like_nothing_is_answered_with_all():
    assert spelling.nearest("xyzzy", ["train", "data"]) is None
    assert spelling.hint("xyzzy", ["train", "data"]) == "; known are data, train"
    assert spelling.nearest("", ["train"]) is None and spelling.nearest("a", []) is None


def test_likeness_is_a_share():
    for typed in ("", "lr", "learning_rate", "Ü", "x" * 50):
        for known in FIELDS:
            assert 0 <= spelling.likeness(typed, known) <= 1
    assert spelling.likeness("epochs", "epochs") == 1
