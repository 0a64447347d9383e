"""Digits: what do a hundred labels give, and what do a thousand images without labels add?

    python -m mtkd_jax.main --config=configs/digits.py --workdir=runs/digits
    python -m mtkd_jax.main --config=configs/digits.py:sizes --workdir=runs/digits_sizes
    python -m mtkd_jax.main --config=configs/digits.py:kept --workdir=runs/digits_kept

Data      scikit-learn's 8x8 digits, embedded: 100 labelled training images, about 1 000 more whose labels
          are hidden, a fifth of the training set for validation, 360 test images.
Compares  every mode at alpha 0 and 0.25 over the seeds, on the labelled images alone and with the others as
          transfer set, each with its baseline and its capacity control.
Expected  with the unlabelled images mimic_all, output_avg and logit_avg beat the baseline by more than a
          point of accuracy; on the labelled images alone mimic_all does, by 1.4 points, and no other mode.
Variants  "sizes": how small may the student be? Two modes for each of three networks, from 310 parameters to
          the 8 970 of a teacher: the smallest learns most from its teachers and stays far behind them.
          "kept": what is kept of the ensemble beyond accuracy, also under fifteen corruptions of the test
          images at five strengths, and of its doubt about images of no class? Two modes and EnD2.
Takes     40 s the first time and 26 s with a warm compile cache, on 2 CPU cores.
"""

from ml_collections import ConfigDict

from mtkd_jax import config as configuration


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "sizes" (students of three sizes), "kept" (and its smoke, "kept_smoke") and "smoke"."""
    config = configuration.default()
    config.data.source = "digits"
    config.data.num_train = 100
    config.data.val_fraction = 0.2
    config.model.name = "mlp(hidden=(64, 64))"

    config.teachers.num_members = 5

    config.train.batch_size = 50
    config.train.epochs = 200  # 2 steps each
    config.train.eval_every = 10
    config.train.learning_rate = 2e-3

    config.students.modes = (
        "mimic_all",
        "output_avg",
        "loss_avg",
        "logit_avg",
        "vote",
        "supernet",
        "supernet2",
    )
    config.students.alphas = (0.0, 0.25)
    config.students.num_seeds = 10
    config.students.transfer = ("labelled", "unlabelled")
    config.students.epochs = 16  # 23 steps each
    config.students.eval_every = 2
    variants = dict(sizes=_sizes, kept=_kept, kept_smoke=_kept_smoke, smoke=_smoke)
    return configuration.variant(config, variant, **variants)


def _sizes(config: ConfigDict) -> None:
    config.students.models = ("mlp(hidden=(4,))", "mlp(hidden=(16,))", "mlp(hidden=(64, 64))")
    config.students.modes = ("output_avg", "logit_avg")
    config.students.transfer = ("unlabelled",)
    config.report.margin = 0.01


def _kept(config: ConfigDict) -> None:
    config.students.modes = ("mimic_all", "output_avg", "logits.end2")
    config.students.temperatures = (1.0, 4.0)
    config.students.temperature_schedule = "linear"  # down to 1, as EnD2 wants it
    config.students.transfer = ("unlabelled",)
    config.report.corruptions = ("all",)
    config.report.ood = "synthetic(num_test=360)"


def _kept_smoke(config: ConfigDict) -> None:
    _kept(config)
    _smoke(config)
    config.students.modes = ("mimic_all", "logits.end2")
    config.report.corruptions = ("contrast", "pixelate")
    config.report.strengths = (1, 5)


def _smoke(config: ConfigDict) -> None:
    config.teachers.num_members = 3
    config.train.epochs = 20
    config.students.modes = ("mimic_all", "output_avg")
    config.students.epochs = 2
    config.students.alphas = (0.0, 0.5)
    config.students.num_seeds = 2
