"""Time series: five InceptionTime networks into one small FCN, on thirteen sets of the UCR and UEA archives.

    python -m mtkd_jax.leaderboard --config=series --workdir=runs/series
    python -m mtkd_jax.main --config=configs/series.py:GunPoint --workdir=runs/gunpoint

Data      A variant a set, all of them in data/ucr_small.npz: series of 24 to 1460 steps, 1 to 12 channels,
          23 to 1 800 for training, the archive's test series. A fifth of the training series is validation.
Compares  what one FCN of one or two thousand parameters learns from the ensemble of Ismail Fawaz et al.
          (2020, arXiv 1909.04939), made narrow so that two cores are enough: four modes over five seeds, at
          two weights of the hard labels each, chosen on validation, with the baseline, the capacity control
          and output_avg taught by what is said of other series. Distillation for series: Ay et al. 2022.
Takes     some twenty minutes on two cores.
Variants  the thirteen sets make the table; "" is GunPoint. By name alone "families": a speaker is told from
          25 frames of a vowel, twelve cepstra each (JapaneseVowels_eq), by teachers of three families, two
          InceptionTime networks, two ResNets and two LSTMs, to two students, an FCN and a ResNet. "smoke" is
          ItalyPowerDemand in small, or made-up series where data.path is missing.
"""

import os
from collections.abc import Callable

from ml_collections import ConfigDict

from mtkd_jax import config as configuration

MODES = ("output_avg", "vote", "mimic_all", "weights.ca_mkd")
EPOCHS = {  # of each set, the quickest first: some hundreds of steps of 16 series each
    "ItalyPowerDemand": 150,
    "JapaneseVowels_eq": 60,
    "TwoLeadECG": 300,
    "BasicMotions": 150,
    "ECG200": 100,
    "GunPoint": 300,
    "PhalangesOutlinesCorrect": 20,
    "ArrowHead": 600,
    "Coffee": 600,
    "Trace": 150,
    "OSULeaf": 60,
    "RefrigerationDevices": 30,
    "ACSF1": 100,
}
VARIANTS = tuple(EPOCHS)  # the data sets of the table, in this order


def get_config(variant: str = "") -> ConfigDict:
    """A data set of the archive, see above; "" is GunPoint."""
    config = configuration.default()
    config.data.path = "data/ucr_small.npz"

    config.model.name = "inception_time(depth=3, width=8)"
    config.teachers.num_members = 5

    config.train.batch_size = 16
    config.train.learning_rate = 5e-3
    config.train.schedule = "cosine"

    config.students.model = "fcn(widths=(8, 16, 8))"
    config.students.modes = MODES
    config.students.controls = ("shuffled_teacher",)
    config.students.controlled = ("output_avg",)
    config.students.alphas = (0.0, 0.5)
    config.students.temperatures = (4.0,)
    config.students.num_seeds = 5
    sets = {name: _set(name) for name in VARIANTS}
    sets["GunPoint"](config)
    return configuration.variant(config, variant, **sets, families=_families, smoke=_smoke)


def _set(name: str) -> Callable[[ConfigDict], None]:
    """What makes a configuration one of the set that the archive calls so."""

    def change(config: ConfigDict) -> None:
        config.data.source = f"ucr(name={name!r})"
        config.train.epochs = EPOCHS[name]
        config.train.eval_every = EPOCHS[name] // 10

    return change


def _families(config: ConfigDict) -> None:
    _set("JapaneseVowels_eq")(config)
    config.teachers.models = (config.model.name, "series_resnet(widths=(8, 16))", "lstm(widths=(24,))")
    config.teachers.num_members = 2
    config.students.model = ""
    config.students.models = ("fcn(widths=(8, 16, 8))", "series_resnet(widths=(6, 12))")


def _smoke(config: ConfigDict) -> None:
    _set("ItalyPowerDemand")(config)
    if not os.path.isfile(config.data.path):
        config.data.source = "synthetic_series(steps=24)"
    config.teachers.num_members = 2
    config.train.epochs = 4
    config.train.eval_every = 2
    config.students.modes = ("output_avg", "features.pkt")
    config.students.num_seeds = 2
