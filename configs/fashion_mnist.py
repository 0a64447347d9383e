"""Fashion-MNIST: which of thirteen ways of distilling helps on 5 000 labels, and in which regime.

    python -m mtkd_jax.main --config=configs/fashion_mnist.py --workdir=runs/fashion
    python -m mtkd_jax.main --config=configs/fashion_mnist.py:p08 --workdir=runs/fashion_p08
    python -m mtkd_jax.main --config=configs/fashion_mnist.py:unlabelled --workdir=runs/fashion_unlabelled
    python -m mtkd_jax.main --config=configs/fashion_mnist.py:few --workdir=runs/fashion_few
    python -m mtkd_jax.report runs/fashion runs/fashion_p08 runs/fashion_unlabelled runs/fashion_few

Data      The four IDX files of Fashion-MNIST in data/fashion-mnist, such as those of Debian's package
          dataset-fashion-mnist; --config.data.path=FOLDER names another. 5 000 labelled training images,
          2 500 for validation, all 10 000 of the test set.
Compares  seven modes and six published methods at three alphas (where the method has one) and five seeds,
          with baseline and capacity control. Teachers, students and baseline see images shifted by up to two
          pixels and flipped; teachers and student the very same ones.
Variants  "p08": each teacher sees a random 80 % of the training images. "unlabelled": the students also see
          the other 52 500 training images, without their labels, in fewer ways and more steps. "few": the
          same with 500 labels and 57 000 images without, and no augmentation: where one network overfits.
Expected  "": the ensemble 1.4 points ahead of the baseline, no way told apart from it but for the worse.
          "p08": supernet2 0.7 points ahead. "unlabelled": no gain. "few": NLL 0.56, as the ensemble's, where
          the baseline has 0.92.
Takes     On two CPU cores with other work beside it 64, 30, 17 and 5 minutes; 185 students
          twice, 55 and 40.
"""

import os

from ml_collections import ConfigDict

from mtkd_jax import config as configuration


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "p08", "unlabelled", "few" and "smoke", which makes its data up without data.path."""
    config = configuration.default()
    config.data.source = "idx"
    config.data.path = "data/fashion-mnist"
    config.data.num_train = 5000
    config.data.val_fraction = 1 / 24
    config.data.augment.shift = 2
    config.data.augment.flip = True
    config.model.name = "cnn(widths=(8, 16), dense=64)"

    config.teachers.num_members = 5

    config.train.batch_size = 64
    config.train.epochs = 14  # 78 steps each
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
        "logits.dkd",
        "logits.dist",
        "logits.lsk",
        "targets.cwtm",
        "weights.aekd",
        "stimuli.funmatch",
    )
    config.students.alphas = (0.0, 0.25, 0.5)
    config.students.num_seeds = 5
    return configuration.variant(config, variant, p08=_p08, unlabelled=_unlabelled, few=_few, smoke=_smoke)


def _p08(config: ConfigDict) -> None:
    config.teachers.subset_fraction = 0.8


def _unlabelled(config: ConfigDict) -> None:
    config.students.modes = ("mimic_all", "output_avg", "logit_avg", "logits.dkd", "stimuli.funmatch")
    config.students.alphas = (0.0, 0.25)
    config.students.transfer = ("unlabelled",)
    config.students.epochs = 2  # 898 steps each
    config.students.eval_every = 1


def _few(config: ConfigDict) -> None:
    _unlabelled(config)
    config.data.num_train = 500
    config.data.augment.shift = 0
    config.data.augment.flip = False
    config.train.epochs = 120  # 7 steps each
    config.train.eval_every = 10
    config.students.modes = ("mimic_all", "output_avg", "logit_avg")
    config.students.epochs = 1  # 898 steps


def _smoke(config: ConfigDict) -> None:
    if not os.path.isdir(config.data.path):
        config.data.source = "synthetic(num_train=2400, num_test=200, size=12)"
    config.data.num_train = 256
    config.teachers.num_members = 3
    config.train.epochs = 2
    config.students.num_seeds = 2
    config.students.alphas = (0.25,)
    config.students.modes = ("mimic_all", "logits.dkd")
