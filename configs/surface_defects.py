"""Surface defects of hot-rolled steel: four pretrained networks into one of 56 thousand parameters.

    pip install 'mtkd_jax[pretrained]'
    python -m mtkd_jax.main --config=configs/surface_defects.py --workdir=runs/surface_defects
    python -m mtkd_jax.main --config=configs/surface_defects.py:folder --config.data.path=FOLDER --workdir=W

Data      NEU-DET (Song and Yan 2013) as 64x64 grey images in data/neu_steel64.npz: 1 440 training and 360
          test images of six defects. It stands in for the aircraft corrosion images of Zuchniak et al. (ICCS
          2021), which are not public. The variant "folder" takes images of one's own, FOLDER/CLASS/*.png or
          FOLDER/SPLIT/CLASS/*.png; where several show one object, data.source names a table of groups.
Teachers  EfficientNet-Lite0 with its ImageNet weights, all of it fine-tuned: two see 64 pixels, two see the
          images enlarged to 96.
Students  the first stages of the same network, with the same weights to begin with; so has their baseline.
"""

import os

from ml_collections import ConfigDict

from mtkd_jax import config as configuration

BACKBONE = "efficientnet_lite0(pretrained='efficientnet_lite0', image_size={size}{more})"


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "folder" and "smoke", small networks from scratch, which makes its data up if need be."""
    config = configuration.default()
    config.data.source = "npz"
    config.data.path = "data/neu_steel64.npz"
    config.data.augment.shift = 4
    config.data.augment.flip = True

    config.teachers.models = tuple(BACKBONE.format(size=size, more="") for size in (64, 96))
    config.teachers.num_members = 2

    config.train.batch_size = 32
    config.train.epochs = 8  # 36 steps each
    config.train.optimizer = "adamw"
    config.train.learning_rate = 1e-3
    config.train.depth_decay = 0.8
    config.train.weight_decay = 0.02
    config.train.schedule = "cosine"
    config.train.warmup = 0.1
    config.train.label_smoothing = 0.1

    config.students.model = BACKBONE.format(size=64, more=", until='stage3'")
    config.students.modes = ("output_avg",)
    config.students.alphas = (0.0,)
    config.students.num_seeds = 5
    config.students.epochs = 16
    config.students.eval_every = 2
    return configuration.variant(config, variant, folder=_folder, smoke=_smoke)


def _folder(config: ConfigDict) -> None:
    config.data.source = "folder(image_size=(64, 64))"


def _smoke(config: ConfigDict) -> None:
    if not os.path.isfile(config.data.path):
        config.data.source = "synthetic(num_classes=6, num_train=240, num_test=60, size=16)"
    config.data.num_train = 150
    config.teachers.models = ("resnet(depth=8, stem_stride=2)",)
    config.train.batch_size = 64
    config.train.epochs = 2
    config.train.depth_decay = 1.0
    config.students.model = "cnn(widths=(8, 16, 32), dense=32)"
    config.students.num_seeds = 2
    config.students.epochs = 0
    config.students.eval_every = 0
