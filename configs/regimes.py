"""When does a student gain? By length of training, labels, number of teachers, and the shared view.

    sweep="python -m mtkd_jax.sweep --config=configs/regimes.py"
    $sweep --workdir=runs/regimes_length --over config.students.epochs=5,20,80
    $sweep --workdir=runs/regimes_labels --over config.data.num_train=470,2350,9400
    $sweep --workdir=runs/regimes_teachers --over config.teachers.num_members=1,2,4,8
    $sweep --workdir=runs/regimes_view --over config.data.augment.shift=0,1,2,4
    python -m mtkd_jax.sweep --config=configs/regimes.py:cifar10 --workdir=runs/regimes_cifar10 \\
        --over config.data.num_train=500,2000
    python -m mtkd_jax.sweep --config=configs/regimes.py:fashion --workdir=runs/regimes_fashion \\
        --over config.data.num_train=500,2000

Data      EMNIST, 47 letters and digits in equal numbers, data/emnist47_balanced_sub.npz: 15 604 images for
          training, of which a fifth validates, and 3 901 for the test. 2 350 have labels, unless the sweep
          says otherwise; the others have none. "cifar10": the whole of CIFAR-10, for a
          convolutional network: 40 000 images train, 2 000 have labels; three seeds. "fashion": the whole of
          Fashion-MNIST for the same network: 48 000 train; data/fashion-mnist is a folder of its four files,
          fetched or from Debian's package dataset-fashion-mnist.
Compares  a student of the ensemble's mean with its baseline, on the labelled images alone and with the
          others, five seeds each. The plot of a sweep has the points over the baseline, paired, beside those
          of the ensemble.
Expected  on all images students are ahead by 1.3 to 3.3 points; on the labelled ones alone hardly, unless
          they are trained for long. 14 runs of some two minutes each on two cores. On CIFAR-10, with 2 000
          labels, by more than 3 points on both, on Fashion-MNIST by about one; two runs of some ten minutes
          each.
"""

import os

from ml_collections import ConfigDict

from mtkd_jax import config as configuration


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "cifar10", "fashion" and "smoke", in small, with data made up where there is no file."""
    config = configuration.default()
    config.data.source = "npz"
    config.data.path = "data/emnist47_balanced_sub.npz"
    config.data.num_train = 2350
    config.data.augment.shift = 1
    config.model.name = "mlp(hidden=(256,), batch_norm=True, dropout=0.3)"

    config.teachers.num_members = 5

    config.train.batch_size = 64
    config.train.epochs = 110  # 36 steps each: as many as students take, who are not to know more for that
    config.train.eval_every = 10
    config.train.learning_rate = 2e-3
    config.train.schedule = "cosine"

    config.students.modes = ("output_avg",)
    config.students.alphas = (0.0,)
    config.students.transfer = ("labelled", "unlabelled")
    config.students.num_seeds = 5
    config.students.epochs = 20
    config.students.eval_every = 5
    return configuration.variant(config, variant, cifar10=_cifar10, fashion=_fashion, smoke=_smoke)


def _cifar10(config: ConfigDict) -> None:
    config.data.source = "cifar10"
    config.data.path = "data/cifar-10-python.tar.gz"
    config.data.num_train = 2000
    config.data.augment.shift = 2
    config.data.augment.flip = True
    config.model.name = "cnn(widths=(16, 32), dense=64, batch_norm=True)"
    config.train.epochs = 120  # 31 steps each
    config.train.eval_every = 20
    config.students.epochs = 6  # of 625 steps
    config.students.eval_every = 2
    config.students.num_seeds = 3


def _fashion(config: ConfigDict) -> None:
    _cifar10(config)
    config.data.source = "idx"
    config.data.path = "data/fashion-mnist"
    config.students.epochs = 5  # of 750 steps
    config.students.eval_every = 1


def _smoke(config: ConfigDict) -> None:
    if not os.path.isfile(config.data.path):
        config.data.source = "synthetic(num_classes=10, num_train=240, num_test=60, size=16)"
    config.data.num_train = 150
    config.teachers.num_members = 2
    config.train.epochs = 2
    config.train.eval_every = 1
    config.students.num_seeds = 2
    config.students.epochs = 2
    config.students.eval_every = 1
