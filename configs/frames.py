"""Frames of speech: acoustic models of two families into a small one, frame by frame.

    python -m mtkd_jax.main --config=configs/frames.py --workdir=runs/frames

Data      JapaneseVowels (Kudo et al. 1999; UEA archive, in data/ucr_small.npz): 270 training and 370 test
          recordings of nine speakers, 25 frames of twelve LPC cepstra each. Every frame has the class of its
          recording, the speaker. A fifth of the training recordings is validation.
Compares  what a small convolutional network over time learns from two VGGs and two LSTMs together (Fukuda
          et al. 2017: teachers of different families), by the divergence from their mean at every frame: four
          modes at two weights of the hard labels, over five seeds, with the baseline and the control.
Variants  "narrow_band": the student is given a moving average over five frames, its teachers the frames as
          they are (Fukuda et al. 2017: privileged wide-band input), beside students who hear all of them.
          All are judged on the frames as they are.
          "smoke": the same in small, on teachers and students of a few features; on made-up series where
          data.path is missing.
"""

import os

from ml_collections import ConfigDict

from mtkd_jax import config as configuration


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "", "narrow_band" and "smoke", on made-up series where data.path is missing."""
    config = configuration.default()
    config.data.source = "frames(name='JapaneseVowels_eq')"
    config.data.path = "data/ucr_small.npz"

    config.teachers.models = ("series_vgg(widths=(8, 16), frames=True)", "lstm(widths=(48,), frames=True)")
    config.teachers.num_members = 2

    config.train.batch_size = 24
    config.train.epochs = 40
    config.train.eval_every = 4
    config.train.learning_rate = 5e-3
    config.train.schedule = "cosine"

    config.students.model = "fcn(widths=(8, 12, 8), frames=True)"
    config.students.modes = ("output_avg", "mimic_all", "logits.dist", "weights.ca_mkd")
    config.students.alphas = (0.0, 0.5)
    config.students.temperatures = (2.0,)
    config.students.num_seeds = 5
    return configuration.variant(config, variant, narrow_band=_narrow_band, smoke=_smoke)


def _narrow_band(config: ConfigDict) -> None:
    config.students.modes = ("output_avg", "stimuli.privileged(corruption='low_pass', strength=2)")


def _smoke(config: ConfigDict) -> None:
    if not os.path.isfile(config.data.path):
        config.data.source = "synthetic_series(steps=24, frames=True)"
    config.teachers.models = ("series_vgg(widths=(2,), frames=True)", "lstm(widths=(4,), frames=True)")
    config.train.epochs = 2
    config.train.eval_every = 1
    config.students.model = "fcn(widths=(2, 2, 2), frames=True)"
    config.students.modes = ("output_avg",)
    config.students.num_seeds = 2
