"""CIFAR-10 by the founding recipe of simultaneous mimicry, and by the usual recipe of distillation.

    python -m mtkd_jax.main --config=configs/cifar10.py --workdir=runs/cifar10
    python -m mtkd_jax.main --config=configs/cifar10.py:kd --workdir=runs/cifar10_kd

Data      The archive as published, data/cifar-10-python.tar.gz.
Recipes   "": Zuchniak 2023, Adam at 1e-3, batches of 128, up to 300 epochs with patience 30, five teachers of
          the student's architecture, RandAugment (3, 7), alpha in 0, 0.25, 0.5, 0.75. resnet(depth=20) stands
          for its ResNet50V2, whose stem was made for larger images.
          "kd": Tian et al. 2020 (CRD), as most tables of CIFAR-100 have it: resnet32x4 into resnet8x4.
Needs     a GPU for both; cifar10_speedy.py is for two cores.
"""

from ml_collections import ConfigDict

from mtkd_jax import config as configuration


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "" and "kd", the two recipes; "smoke", which makes its data up."""
    config = configuration.default()
    config.data.source = "cifar10"
    config.data.path = "data/cifar-10-python.tar.gz"
    config.data.augment.rand_augment = (3, 7)
    config.model.name = "resnet(depth=20)"

    config.teachers.num_members = 5
    config.teachers.patience = 30

    config.train.batch_size = 128
    config.train.epochs = 300
    config.train.learning_rate = 1e-3

    config.students.modes = ("mimic_all", "output_avg", "loss_avg", "supernet", "supernet2")
    config.students.alphas = (0.0, 0.25, 0.5, 0.75)
    config.students.num_seeds = 5
    return configuration.variant(config, variant, kd=_kd, smoke=_smoke)


def _kd(config: ConfigDict) -> None:
    """240 epochs of SGD, a tenth at 150, 180 and 210; T = 4, 0.1 hard and 0.9 soft labels."""
    _shifts_and_flips(config)
    config.model.name = "resnet(depth=32, width=4)"
    config.teachers.num_members = 3
    config.teachers.patience = 0
    config.train.optimizer = "sgd"
    config.train.batch_size = 64
    config.train.epochs = 240
    config.train.learning_rate = 0.05
    config.train.weight_decay = 5e-4
    config.train.schedule = "steps"
    config.students.model = "resnet(depth=8, width=4)"
    config.students.modes = ("output_avg", "logits.dkd", "logits.dist", "weights.aekd", "weights.ca_mkd")
    config.students.alphas = (0.1,)
    config.students.temperatures = (4.0,)


def _shifts_and_flips(config: ConfigDict) -> None:
    config.data.augment.rand_augment = ()
    config.data.augment.shift = 4
    config.data.augment.flip = True


def _smoke(config: ConfigDict) -> None:
    config.data.source = "synthetic(num_train=600, num_test=100, size=12, channels=3)"
    config.data.num_train = 256
    config.data.augment.rand_augment = (1, 7)
    config.model.name = "cnn(widths=(16, 32), dense=64, batch_norm=True)"
    config.teachers.num_members = 3
    config.teachers.patience = 0
    config.train.epochs = 2
    config.students.modes = ("mimic_all", "output_avg")
    config.students.alphas = (0.0, 0.25)
    config.students.num_seeds = 2
