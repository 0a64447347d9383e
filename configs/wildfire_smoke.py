"""Wildfire smoke on cameras that were never seen: four ResNets into a network of a quarter of one's work.

    python -m mtkd_jax.main --config=configs/wildfire_smoke.py --workdir=runs/wildfire_smoke

Data      Crops of 64x64 pixels from the HPWREN cameras (AI For Mankind) in data/wildfire_smoke64.npz: 2 180
          for training and 788 for the test, half of them with smoke. No camera sequence is in two of
          training, validation and test. About one in twenty crops without smoke shows some faintly.
Compares  every student mode at alpha = 0.25 over three seeds, with baseline and capacity control.
Reports   recall of smoke at 5 % false alarms, and at the threshold that validation gives: what is missed is
          what counts.
Expected  nothing that is ready for a camera: training has twelve sequences, and what is learnt of them does
          not carry over to seven others. No student is told apart from its baseline.
Takes     16 minutes on two CPU cores that had other work as well.
"""

import os

from ml_collections import ConfigDict

from mtkd_jax import config as configuration


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "" and "smoke", the small size; it makes its data up where data.path is missing."""
    config = configuration.default()
    config.data.source = "npz"
    config.data.path = "data/wildfire_smoke64.npz"
    config.data.augment.shift = 4
    config.data.augment.flip = True
    config.model.name = "resnet(depth=8, stem_stride=2)"
    config.report.positive = "smoke"

    config.teachers.num_members = 4

    config.train.batch_size = 64
    config.train.epochs = 12  # 26 steps each
    config.train.eval_every = 2
    config.train.learning_rate = 2e-3
    config.train.schedule = "cosine"

    config.students.model = "cnn(widths=(8, 16, 32), dense=32)"
    config.students.modes = (
        "mimic_all",
        "output_avg",
        "loss_avg",
        "logit_avg",
        "vote",
        "supernet",
        "supernet2",
    )
    config.students.alphas = (0.25,)
    config.students.num_seeds = 3
    return configuration.variant(config, variant, smoke=_smoke)


def _smoke(config: ConfigDict) -> None:
    if not os.path.isfile(config.data.path):
        config.data.source = "synthetic(num_classes=2, num_train=240, num_test=60, size=16, channels=3)"
        config.report.positive = "1"
    config.data.num_train = 150
    config.train.epochs = 2
    config.students.modes = ("output_avg",)
    config.students.alphas = (0.25,)
    config.students.num_seeds = 2
