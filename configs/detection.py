"""Object detection: three detectors of surface defects into a smaller one.

    python -m mtkd_jax.main --config=configs/detection.py --workdir=runs/detection
    python -m mtkd_jax.main --config=configs/detection.py:folder --config.data.path=FOLDER --workdir=W

Data      NEU-DET (Song and Yan 2013) as 64x64 grey images in data/neu_steel64.npz, with the 4 189 boxes of
          its six defects: 1 440 training and 360 test images. The variant "folder" takes images of one's
          own, FOLDER/Annotations/*.xml and FOLDER/JPEGImages in the form of Pascal VOC; data.source = "coco"
          reads those of COCO.
Teachers  three small residual networks with a dense head on a map of 8x8 places, without anchors.
Students  a convolutional network of 15 587 parameters with such a head: distilled by soft labels alone, with
          the teachers' boxes as a bound, and as Chen et al. (NIPS 2017) do it, with weighted classes and a
          hint; alpha = 0.5 over three seeds, beside a baseline.
Reports   mAP at an overlap of 0.5, and over 0.5 to 0.95 as COCO counts it; accuracy and NLL are of places.
"""

import os

from ml_collections import ConfigDict

from mtkd_jax import config as configuration


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "folder" and "smoke", on made-up data where data.path is missing."""
    config = configuration.default()
    config.data.source = "npz_boxes"
    config.data.path = "data/neu_steel64.npz"

    config.teachers.models = ("detector(network='resnet(depth=8, stem_stride=2)')",)
    config.teachers.num_members = 3

    config.train.batch_size = 32
    config.train.epochs = 80  # 36 steps each; students are flat by then, teachers at their best after 16
    config.train.eval_every = 8
    config.train.optimizer = "adamw"
    config.train.weight_decay = 0.01
    config.train.learning_rate = 2e-3
    config.train.schedule = "cosine"

    config.students.model = "detector(network='cnn(widths=(8, 16, 32), batch_norm=True)', channels=32)"
    config.students.modes = (
        "loss_avg",
        "detection.bounded_boxes",
        "detection.chen(student='stage3', teacher='stage3')",
    )
    config.students.alphas = (0.5,)
    config.students.num_seeds = 3
    return configuration.variant(config, variant, folder=_folder, smoke=_smoke)


def _folder(config: ConfigDict) -> None:
    config.data.source = "voc(image_size=(64, 64))"


def _smoke(config: ConfigDict) -> None:
    if not os.path.isfile(config.data.path):
        config.data.source = "synthetic_boxes"
    config.data.num_train = 100
    config.train.epochs = 2
    config.train.eval_every = 1
    config.teachers.num_members = 2
    config.students.modes = ("detection.chen(student='stage3', teacher='stage3')",)
    config.students.num_seeds = 2
