"""Defects of steel, pixel by pixel: three small U-Nets into one.

    python -m mtkd_jax.main --config=configs/segmentation.py --workdir=runs/segmentation
    python -m mtkd_jax.main --config=configs/segmentation.py:folder --config.data.path=FOLDER --workdir=W

Data      NEU-DET (Song and Yan 2013), data/neu_steel64.npz: 1 440 training and 360 test images of six
          defects, averaged to 32x32 pixels. Its boxes stand in for masks: every pixel of a box has the box's
          class, so that borders are rougher than those of drawn masks. The variant
          "folder" takes images/ and masks/ of one's own.
Compares  the mean of the teachers' predictions for each pixel (output_avg), DIST and channel-wise
          distillation with a baseline of the labels alone, at alpha = 0.25 over three seeds. The student has
          half the teachers' width.
Expected  mIoU and pixel accuracy stand in a table of their own; their intervals are over seeds, those of the
          ensemble over images.
"""

import os

from ml_collections import ConfigDict

from mtkd_jax import config as configuration


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "folder" and "smoke", on made-up discs where data.path is missing."""
    config = configuration.default()
    config.data.source = "masks(size=32)"
    config.data.path = "data/neu_steel64.npz"
    config.data.augment.flip = True
    config.model.name = "unet(width=8)"
    config.teachers.num_members = 3
    config.train.batch_size = 32
    config.train.epochs = 12
    config.train.eval_every = 2
    config.train.learning_rate = 3e-3
    config.train.schedule = "cosine"
    config.students.model = "unet(width=4)"
    config.students.modes = ("output_avg", "logits.dist", "logits.cwd")
    config.students.alphas = (0.25,)
    config.students.num_seeds = 3
    config.fusion.rules = ("mean_probs", "plurality")
    return configuration.variant(config, variant, folder=_folder, smoke=_smoke)


def _folder(config: ConfigDict) -> None:
    config.data.source = "masks"


def _smoke(config: ConfigDict) -> None:
    if not os.path.isfile(config.data.path):
        config.data.source = "synthetic_masks"
    config.data.num_train = 64
    config.train.batch_size = 16
    config.train.epochs = 2
    config.model.name = config.students.model = "unet(width=2, depth=2)"
    config.students.modes = ("output_avg",)
    config.students.num_seeds = 2
