"""How a word is spoken: three Transformers into one of a sixth of their size, by token and by sequence.

    pip install '.[seq]'
    python -m mtkd_jax.main --config=configs/sequences.py --workdir=runs/sequences

Data      the CMU Pronouncing Dictionary: spellings of at most 14 letters and their phonemes, 39 without
          stress. 8 000 words are drawn: 5 760 train, 640 validate, 1 600 test.
Teachers  three encoder-decoder Transformers of 64 channels and two blocks, on the same words.
Students  a Transformer of 32 channels and one block: 40 232 parameters, a teacher has 253 736.
Compares  word-level distillation ("output_avg": at every place what the teachers say of it) with
          sequence-level distillation ("sequence_kd": the target that all teachers find together with a beam
          of 5 stands in the place of the reference) and interpolation ("sequence_inter": of the beam the
          target nearest to the reference), of Kim and Rush 2016, arXiv 1606.07947, and the baseline.
Reports   beside the accuracy of tokens, which reads the reference before each of them: how many words are
          right as a whole, and the phoneme error rate of what a network says by itself.
Expected  no student is told apart from the baseline in whole words or phonemes; docs/evidence/sequences.md.
"""

from ml_collections import ConfigDict

from mtkd_jax import config as configuration


def get_config(variant: str = "") -> ConfigDict:
    """Variants: "" and "smoke", small networks that write made-up numbers as words."""
    config = configuration.default()
    config.plan = "sequence_level(num_beams=5)"
    config.data.source = "cmudict(longest=14, num_pairs=8000, test_fraction=0.2)"
    config.data.val_fraction = 0.1

    config.model.name = "transformer(dropout=0.1)"
    config.teachers.num_members = 3

    config.train.batch_size = 64
    config.train.epochs = 10  # 90 steps each
    config.train.learning_rate = 3e-3
    config.train.schedule = "cosine"
    config.train.warmup = 0.05

    config.fusion.rules = ("mean_probs", "mean_logits")

    config.students.model = "transformer(width=32, depth=1)"
    config.students.modes = ("output_avg",)
    config.students.alphas = (0.0, 0.25)
    config.students.num_seeds = 3
    return configuration.variant(config, variant, smoke=_smoke)


def _smoke(config: ConfigDict) -> None:
    config.plan = "sequence_level(num_beams=2)"
    config.data.source = "numbers(num_train=400, num_test=60)"
    config.data.val_fraction = 0.2
    config.model.name = "transformer(width=16, depth=1)"
    config.teachers.num_members = 2
    config.train.epochs = 2
    config.students.model = "transformer(width=8, depth=1)"
    config.students.alphas = (0.0,)
    config.students.num_seeds = 2
