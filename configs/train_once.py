r"""Train once, teach many: can the moments of one training teach as well as networks that share its budget?

    for way in seeds snapshots fast_geometric horizontal stochastic_averages swag dropout \
        batch_ensemble mimo boosted hyper_deep single full; do
      python -m mtkd_jax.main --config=configs/train_once.py:$way --workdir=runs/once/$way
    done
    python -m mtkd_jax.report runs/once/seeds runs/once/snapshots ... --into docs/evidence/train-once.md

Data      EMNIST, 47 letters and digits in equal numbers, data/emnist47_balanced_sub.npz: 15 604 images for
          training, of which a fifth validates and 2 350 have labels, and 3 901 for the test.
Compares  ways to spend 60 epochs on the teachers of one student, "full" with five times as many:
            seeds                five networks of 12 epochs, each with its own initial weights and order
            snapshots            one training in five cycles of 12 epochs
            fast_geometric       one of 45 epochs, then five short cycles of 3
            horizontal           one of 45 epochs, then five parts of 3 at half the rate
            stochastic_averages  five networks of 12 epochs, each the mean of its last three moments
            swag                 one of 45 epochs, then 15 of 1 at half the rate: draws about their mean
            dropout              one network of 60 epochs, five draws of its dropout
            batch_ensemble       five of 12 epochs with the same kernels but for factors of rank one
            mimo                 five heads of one network of 60 epochs, which is shown five images at once
            boosted              five networks of 12 epochs, one after the other, each on what was hard
            hyper_deep           ten networks of 4 epochs, with learning rates and label smoothings of their
                                 own, then five with the best of these: more settings, less time for each
            single               one network of 60 epochs
            full                 five networks of 60 epochs: what a larger budget buys
          Moments of one training take one epoch more, at a rate of 0, in which batch statistics settle.
          Students, their baseline and the five seeds are the same in all runs. A student is compared with its
          baseline seed by seed, on the same test images.
Variants  these thirteen; "" is seeds, "smoke" is seeds in small.
"""

import os
from collections.abc import Callable

from ml_collections import ConfigDict

from mtkd_jax import config as configuration

BUDGET = 60  # epochs of all teachers together
NUMBER = 5  # teachers


def get_config(variant: str = "") -> ConfigDict:
    """Variants: see above; "smoke" makes its data up where data.path is missing."""
    config = configuration.default()
    config.data.source = "npz"
    config.data.path = "data/emnist47_balanced_sub.npz"
    config.data.num_train = 2350
    config.data.augment.shift = 1
    config.model.name = "mlp(hidden=(256,), batch_norm=True, dropout=0.3)"

    config.teachers.num_members = NUMBER
    config.train.batch_size = 64
    config.train.epochs = BUDGET // NUMBER  # 36 steps each
    config.train.eval_every = 3
    config.train.learning_rate = 2e-3
    config.train.schedule = "cosine"

    config.students.modes = ("output_avg",)
    config.students.alphas = (0.0, 0.25)
    config.students.temperatures = (2.0,)
    config.students.num_seeds = 5
    config.students.epochs = 40
    config.students.eval_every = 4
    ways = {
        "seeds": lambda config: None,
        "stochastic_averages": _of("stochastic_averages(moments=3)", BUDGET // NUMBER),
        "snapshots": _of("snapshots", BUDGET),
        "fast_geometric": _of("fast_geometric", BUDGET),
        "horizontal": _of("horizontal", BUDGET),
        "swag": _of("swag(moments=15)", BUDGET),
        "dropout": _of("dropout_draws", BUDGET),
        "batch_ensemble": _of("batch_ensemble", BUDGET // NUMBER),
        "mimo": _of("mimo", BUDGET),
        "boosted": _of("boosted", BUDGET // NUMBER),
        "hyper_deep": _of("hyper_deep(searched=10, inits=1)", BUDGET // 15, eval_every=2),
        "single": _of("teachers_then_students", BUDGET, number=1),
        "full": _of("teachers_then_students", BUDGET),
    }
    return configuration.variant(config, variant, smoke=_smoke, **ways)


def _of(plan: str, epochs: int, number: int = NUMBER, eval_every: int = 3) -> Callable[[ConfigDict], None]:
    """The variant of a plan with so many epochs a training."""

    def change(config: ConfigDict) -> None:
        config.plan, config.teachers.num_members = plan, number
        config.train.epochs, config.train.eval_every = epochs, eval_every

    return change


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
