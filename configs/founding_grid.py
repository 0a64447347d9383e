"""The grid of the founding paper, all else alike: K teachers, each on a random share p of the labels.

    python -m mtkd_jax.sweep --config=configs/founding_grid.py --workdir=runs/founding_grid \
        --over config.teachers.num_members=2,3,4,5 --over config.teachers.subset_fraction=1,0.9,0.8,0.7,0.6

Data      scikit-learn's 8x8 digits, all training images with their labels.
Compares  output_avg, loss_avg and mimic_all, students of the teachers' architecture, in the twenty cells of
          the paper (Zuchniak 2023, arXiv 2302.07215): same seeds, batches and steps everywhere, and alpha
          chosen on validation in each cell, where the paper pools runs of different alphas and teachers.
Expected  output_avg and loss_avg are one method: their losses have the same gradient.
"""

from ml_collections import ConfigDict

from mtkd_jax import config as configuration


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "" and "smoke", the small size."""
    config = configuration.default()
    config.data.source = "digits"
    config.model.name = "mlp(hidden=(64, 64))"

    config.train.batch_size = 50
    config.train.epochs = 40  # 23 steps each
    config.train.eval_every = 2
    config.train.learning_rate = 2e-3

    config.students.modes = ("output_avg", "loss_avg", "mimic_all")
    config.students.alphas = (0.0, 0.25, 0.5, 0.75)
    config.students.num_seeds = 10
    return configuration.variant(config, variant, smoke=_smoke)


def _smoke(config: ConfigDict) -> None:
    config.data.num_train = 200
    config.train.epochs = 2
    config.train.eval_every = 1
    config.students.num_seeds = 2
