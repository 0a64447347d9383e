"""Networks that learn together: what do peers teach each other that hard labels alone do not?

    python -m mtkd_jax.main --config=configs/online.py --workdir=runs/online
    python -m mtkd_jax.main --config=configs/online.py:cifar10_vgg16 --workdir=runs/online_vgg16
    python -m mtkd_jax.main --config=configs/online.py:small --workdir=runs/online_small

Data      CIFAR-100 as published, data/cifar-100-python.tar.gz, or CIFAR-10, data/cifar-10-python.tar.gz; the
          variant "small" wants data/emnist47_balanced_sub.npz, 15 604 training and 3 901 test images of
          EMNIST's 47 classes.
Compares  every online method on two to four peers, whole networks and branches on one stem, with the same
          network alone ("baseline"): the same seeds, batches, and number of steps. One of the peers is what
          is evaluated, so that all rows are networks of one size; training costs as many as there are peers.
          Three networks trained apart are the teachers, of "peers.kd_ml" alone; their ensemble is what a
          cohort may be held against.
Recipe    that of the papers: 300 epochs of SGD with batches of 128, a tenth of the rate at 150 and 225,
          T = 3. alpha = 0.5 is half of the loss that dml and cl_ilr have in their papers.
Variants  a network, resnet32, resnet110, vgg16, densenet40 or wrn20, on CIFAR-100, and behind "cifar10_" on
          CIFAR-10; "" is resnet32.
Needs     a GPU; "small" is for two cores.
"""

import os
from collections.abc import Callable

from ml_collections import ConfigDict

from mtkd_jax import config as configuration

METHODS = (
    "peers.dml(num_peers=3)",
    "peers.dml(num_peers=3, shared='most')",
    "peers.kd_ml(shared='most')",
    "online.kdcl(num_peers=3, shared='most')",
    "online.one",
    "online.cl_ilr(num_peers=3)",
    "online.okddip(shared='most')",
    "online.pcl(shared='most')",
    "online.dkel(shared='most')",
    "online.ffl(num_peers=3, shared='most')",
    "online.ekd",
)
NETWORKS = {
    "resnet32": "resnet(depth=32)",
    "resnet110": "resnet(depth=110, bottleneck=True)",
    "vgg16": "vgg(depth=16, dense=512)",
    "densenet40": "densenet(blocks=(6, 6, 6), growth=12, stem='plain')",
    "wrn20": "resnet(depth=20, width=8, bottleneck=True)",
}
SETS = {"": ("cifar100", "cifar-100"), "cifar10_": ("cifar10", "cifar-10")}


def get_config(variant: str = "") -> ConfigDict:
    """Variants: networks on CIFAR, see above; "small" for EMNIST-47 on two cores, and "smoke"."""
    config = configuration.default()
    config.data.augment.shift = 4
    config.data.augment.flip = True

    config.teachers.num_members = 3

    config.train.optimizer = "sgd"
    config.train.batch_size = 128
    config.train.epochs = 300
    config.train.eval_every = 10
    config.train.learning_rate = 0.1
    config.train.weight_decay = 5e-4
    config.train.schedule = "steps(at=(0.5, 0.75))"

    config.students.modes = METHODS
    config.students.alphas = (0.5,)
    config.students.temperatures = (3.0,)
    published = {f"{data}{network}": _published(data, network) for data in SETS for network in NETWORKS}
    published["resnet32"](config)
    return configuration.variant(config, variant, **published, small=_small, smoke=_smoke)


def _published(data: str, network: str) -> Callable[[ConfigDict], None]:
    """What makes a configuration one of a network on a set of the papers' tables."""

    def change(config: ConfigDict) -> None:
        config.data.source, name = SETS[data]
        config.data.path = f"data/{name}-python.tar.gz"
        config.model.name = NETWORKS[network]

    return change


def _small(config: ConfigDict) -> None:
    config.data.source = "npz"
    config.data.path = "data/emnist47_balanced_sub.npz"
    config.data.augment.shift = 2
    config.data.augment.flip = False
    config.model.name = "cnn(widths=(8, 16), dense=64, batch_norm=True)"
    config.train.epochs = 10  # 97 steps each
    config.train.eval_every = 1
    config.train.learning_rate = 0.05
    config.students.num_seeds = 5
    # Averages that 970 steps can move: 0.99 is to them what 0.999 is to 9 700.
    for mode in config.students.modes:
        if ".pcl" in mode or ".dkel" in mode:
            config.students.arguments = {**config.students.arguments, mode: {"decay": 0.99}}


def _smoke(config: ConfigDict) -> None:
    config.students.modes = ("online.one", "online.dkel(shared='most')")
    _small(config)
    if not os.path.isfile(config.data.path):
        config.data.source = "synthetic(num_classes=5, num_train=300, num_test=60, size=8)"
    config.data.num_train = 150
    config.model.name = "cnn(widths=(4, 4), dense=8, batch_norm=True)"
    config.train.batch_size = 32
    config.train.epochs = 2
    config.train.eval_every = 2
    config.students.num_seeds = 2
