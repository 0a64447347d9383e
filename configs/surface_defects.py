"""Surface defects of hot-rolled steel: three networks into one of the same size.

    python -m mtkd_jax.main --config=configs/surface_defects.py --workdir=runs/surface_defects
    python -m mtkd_jax.main --config=configs/surface_defects.py:folder --config.data.path=FOLDER --workdir=W

Data      NEU-DET (Song and Yan 2013) as 64x64 grey images in data/neu_steel64.npz: 1 440 training and 360
          test images of six defects. It stands in for the aircraft corrosion images of Zuchniak et al. (ICCS
          2021), which are not public. The variant "folder" takes images of one's own, FOLDER/CLASS/*.png or
          FOLDER/SPLIT/CLASS/*.png; where several show one object, data.source names a table of groups.
Compares  every student mode at alpha = 0.25 over three seeds, with baseline and capacity control. Students
          have the teachers' architecture.
Expected  95 % for one network and no more for three: nothing to hand down, no student told apart from it.
"""

import os

from ml_collections import ConfigDict

from mtkd_jax import config as configuration


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "folder" and "smoke", which makes its data up where data.path is missing."""
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
    return configuration.variant(config, variant, folder=_folder, smoke=_smoke)


def _folder(config: ConfigDict) -> None:
    config.data.source = "folder(image_size=(64, 64))"


def _smoke(config: ConfigDict) -> None:
    if not os.path.isfile(config.data.path):
        config.data.source = "synthetic(num_classes=6, num_train=240, num_test=60, size=16)"
    config.data.num_train = 150
    config.train.epochs = 2
    config.students.modes = ("output_avg",)
    config.students.alphas = (0.25,)
    config.students.num_seeds = 2
