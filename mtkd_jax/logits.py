"""`python -m mtkd_jax.logits runs/digits --into teachers.npz`: what the teachers of a run say, in a file.

All of its teachers speak of all training and test images of its data, as another run learns from them
(config.teachers.logits; data/logit_files.py says what is in the file). The run's data and networks must be
there as they were; nothing is trained. An exported student is asked by `python -m mtkd_jax.predict --logits`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from mtkd_jax.system import interrupts, terminal


def main(argv: Sequence[str] | None = None) -> int:
    """Write what a run's teachers say; returns the exit code."""
    return terminal.answer(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    asked = _parse(argv)
    from mtkd_jax import experiment
    from mtkd_jax.data import logit_files

    with interrupts.handle_signals():
        arrays, data = experiment.said_by_teachers(asked.run)
    logit_files.write(asked.into, arrays, data.class_names)
    num_teachers, num_train, _ = arrays["train_logits"].shape
    num_test = arrays["test_logits"].shape[1]
    print(
        f"{asked.into}: the logits of {num_teachers} teachers for {num_train} training and {num_test} test "
        "images, for config.teachers.logits"
    )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = terminal.Parser("python -m mtkd_jax.logits", __doc__)
    parser.add_argument("run", metavar="RUN", type=terminal.path, help="the --workdir of the run")
    parser.add_argument(
        "--into", required=True, type=terminal.path, metavar="OUT.npz", help="the file to write"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
