"""The controlled table: twenty-one ways of distilling on ten data sets, with everything else alike.

    python -m mtkd_jax.leaderboard --workdir=runs/leaderboard
    python -m mtkd_jax.leaderboard --workdir=runs/leaderboard --data=digits,usps --seeds=10 --minutes=60
    python -m mtkd_jax.main --config=configs/leaderboard.py:usps --workdir=runs/usps

Data      A variant a data set: digits is embedded, the others are files in data/, and the command names
          those that are missing. 1 000 labelled training images each, where there are as many (2 000 of the
          47 classes of EMNIST); the publisher's test set.
Compares  what one student learns from logits or embeddings of frozen teachers, over ten seeds, at four points
          each: two weights of the hard labels by two temperatures, where the loss has one, chosen on
          validation. The teachers are five networks of the student's own architecture, the same for all. With
          the baseline, the capacity control, and output_avg taught by untrained networks and by what is said
          of other images.
Left out  loss_avg, which has the gradients of output_avg; what makes images of its own, what peers learn
          from each other, averages of weights and binary networks, whose budget is another one.
Variants  digits, usps, mnist, fashion_mnist, emnist47 and the series japanese_vowels, osu_leaf, trace,
          refrigeration_devices and acsf1 make the table: some two minutes each on two cores. Asked for by
          name alone: pneumonia and wildfire_smoke, whose two classes logits.lsk cannot learn from; cifar10,
          cifar100 and neu_steel, whose convolutions take hours. "smoke" is digits in small.
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from mtkd_jax import config as configuration

MODES = (
    "output_avg",
    "logit_avg",
    "vote",
    "mimic_all",
    "fused:median_probs",
    "supernet",
    "supernet2",
    "logits.dkd",
    "logits.dist",
    "logits.lsk",
    "logits.mixed_temperatures",
    "logits.regression",
    "targets.cwtm",
    "targets.dkpp",
    "targets.label_smoothing",
    "weights.aekd",
    "weights.ca_mkd",
    "weights.ebkd",
    "weights.random_drop",
    "weights.switch",
    "features.pkt",
)
TWO_CLASSES = tuple(mode for mode in MODES if mode != "logits.lsk")
VARIANTS = (  # the data sets of the table, in this order
    "digits",
    "usps",
    "mnist",
    "fashion_mnist",
    "emnist47",
    "japanese_vowels",
    "osu_leaf",
    "trace",
    "refrigeration_devices",
    "acsf1",
)


def get_config(variant: str = "") -> ConfigDict:
    """A data set, see above; "" is digits."""
    config = configuration.default()
    config.data.source = "digits"
    config.data.num_train = 1000
    config.model.name = "mlp(hidden=(48,))"

    config.teachers.num_members = 5

    config.train.batch_size = 50
    config.train.epochs = 40  # 20 steps each
    config.train.eval_every = 2
    # Settled with `epochs` on digits and usps by the teachers' validation NLL: val.nll of role "teacher" in
    # report.json, under other --config.train.learning_rate and --config.train.epochs.
    config.train.learning_rate = 5e-3
    config.train.schedule = "cosine"

    config.students.modes = MODES
    config.students.controls = ("random_teacher", "shuffled_teacher")
    config.students.controlled = ("output_avg",)
    config.students.alphas = (0.0, 0.5)
    config.students.temperatures = (1.0, 4.0)
    config.students.num_seeds = 10
    return configuration.variant(
        config,
        variant,
        digits=lambda config: None,
        usps=_set(data={"path": "data/usps.npz"}),
        mnist=_set(data={"path": "data/mnist.npz"}),
        fashion_mnist=_set(data={"source": "idx", "path": "data/fashion-mnist"}),
        emnist47=_set(data={"path": "data/emnist47_balanced_sub.npz", "num_train": 2000}),
        japanese_vowels=_series("JapaneseVowels_eq"),
        osu_leaf=_series("OSULeaf"),
        trace=_series("Trace"),
        refrigeration_devices=_series("RefrigerationDevices"),
        acsf1=_series("ACSF1"),
        pneumonia=_set(data={"path": "data/pneumoniamnist_imb.npz"}, students={"modes": TWO_CLASSES}),
        wildfire_smoke=_convolutions("wildfire_smoke64", students={"modes": TWO_CLASSES}),
        cifar10=_convolutions("cifar10_small"),
        cifar100=_convolutions("cifar100_small"),
        neu_steel=_convolutions("neu_steel64"),
        smoke=_smoke,
    )


def _set(**groups: dict[str, Any]) -> Callable[[ConfigDict], None]:
    """What sets these fields: of an .npz archive, unless they say otherwise."""

    def change(config: ConfigDict) -> None:
        config.data.source = "npz"
        for group, fields in groups.items():
            config[group].update(fields)

    return change


def _series(name: str) -> Callable[[ConfigDict], None]:
    """A set of the UCR archive, whole: a few hundred series, 3 or 4 steps an epoch."""
    data = {"source": f"ucr(name={name!r})", "path": "data/ucr_small.npz", "num_train": 0}
    return _set(data=data, train={"epochs": 150, "eval_every": 10})


def _convolutions(name: str, **groups: dict[str, Any]) -> Callable[[ConfigDict], None]:
    data = {"path": f"data/{name}.npz", "num_train": 1000}
    return _set(data=data, model={"name": "cnn(widths=(8, 16), dense=32)"}, **groups)


def _smoke(config: ConfigDict) -> None:
    config.data.num_train = 100
    config.teachers.num_members = 2
    config.train.epochs = 4
    config.students.modes = ("output_avg", "mimic_all")
    config.students.alphas = (0.0,)
    config.students.num_seeds = 2
