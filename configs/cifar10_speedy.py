"""CIFAR-10 in minutes: teachers that learn in a few epochs, and students of their size and of half of it.

    python -m mtkd_jax.data fetch cifar10
    python -m mtkd_jax.main --config=configs/cifar10_speedy.py --workdir=runs/cifar10_speedy
    python -m mtkd_jax.main --config=configs/cifar10_speedy.py:gpu --workdir=runs/cifar10_speedy_gpu

Data      The archive as published, data/cifar-10-python.tar.gz, all of it.
Recipe    Jordan 2024, arXiv 2404.00498 (airbench94): a frozen first layer that whitens patches, kernels
          that begin as partial identities, Nesterov's momentum with a triangular rate, label smoothing 0.2,
          every image mirrored in every other epoch and moved by up to 2 pixels. Without its Lookahead and
          its views of test images. "" has a quarter of its width, for two cores; "gpu" is the published
          network: eight teachers and their students take two minutes on an H200, see docs/speed.md.
Compares  five teachers with their average in a student of the same network and in one of half its width.
"""

from ml_collections import ConfigDict

from mtkd_jax import config as configuration


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", for two cores; "gpu", the published width, batch and epochs; "smoke"."""
    config = configuration.default()
    config.data.source = "cifar10"
    config.data.path = "data/cifar-10-python.tar.gz"
    config.data.val_fraction = 0.1
    config.data.augment.alternating_flip = True
    config.data.augment.shift = 2
    config.model.name = "speedy(width=16)"
    config.students.models = ("speedy(width=16)", "speedy(width=8)")

    config.train.optimizer = "sgd(momentum=0.85)"
    config.train.schedule = "triangular"
    config.train.batch_size = 512
    config.train.epochs = 6
    config.train.eval_every = 2
    config.train.learning_rate = 4.0
    config.train.weight_decay = 7.6e-4
    config.train.label_smoothing = 0.2

    config.students.modes = ("output_avg",)
    config.students.alphas = (0.25,)
    config.students.num_seeds = 3
    return configuration.variant(config, variant, gpu=_gpu, smoke=_smoke)


def _gpu(config: ConfigDict) -> None:
    """Eight teachers of the published network.

    Published rates and decays are of sums over a batch and decoupled from one another; as they are here, of
    means: rate 11.5 / 1024 / (1 + 1 / (1 - 0.85)) * 1024 = 1.5, decay 0.0153 / 11.5 = 1.33e-3.
    """
    config.model.name = "speedy(width=64, bias_rate=64.0, dtype='bfloat16')"
    config.students.models = (config.model.name,)
    config.teachers.num_members = 8
    config.train.batch_size = 1024
    config.train.epochs = 10
    config.train.learning_rate = 1.5
    config.train.schedule = "triangular(end=0.07)"
    config.train.weight_decay = 1.33e-3
    config.runtime.how = "map"  # the fastest of wide networks on a GPU, and a trial compiles each stage again


def _smoke(config: ConfigDict) -> None:
    config.data.source = "synthetic(num_train=600, num_test=100, size=17, channels=3)"
    config.model.name = "speedy(width=4)"
    config.students.models = ("speedy(width=4)", "speedy(width=2)")
    config.teachers.num_members = 2
    config.train.batch_size = 64
    config.train.epochs = 2
