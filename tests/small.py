"""The smallest run that still has everything: K = 3 teachers, two seeds, made-up images."""

import contextlib
import dataclasses
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from mtkd_jax import config as configuration
from mtkd_jax import experiment, validation
from mtkd_jax.engine import population, training
from mtkd_jax.engine.jobs import Job
from mtkd_jax.plans import plan, students, teachers
from mtkd_jax.runs import checkpoint
from mtkd_jax.runs.logbook import Logbook
from mtkd_jax.system import interrupts
from mtkd_jax.types import Population

CONFIGS = Path(__file__).parent.parent / "configs"


def config(**overrides) -> ConfigDict:
    """A configuration of a second or two; overrides as {"students.modes": ...}."""
    small = configuration.default()
    small.data.source = "synthetic(num_classes=4, num_train=120, num_test=40, size=4, noise=0.4)"
    small.data.num_train = 60
    small.model.name = "mlp(hidden=(8,))"
    small.teachers.num_members = 3
    small.train.batch_size = 16
    small.train.epochs = 4
    small.train.learning_rate = 1e-2
    small.students.modes = ("mimic_all", "output_avg")
    small.students.alphas = (0.0, 0.5)
    small.students.num_seeds = 2
    small.runtime.how = "vmap"  # on one device: spread over several, a program takes longer to compile
    for field, value in overrides.items():
        *groups, name = field.split(".")
        group = small
        for part in groups:
            group = group[part]
        group[name] = value
    validation.validate(small)
    return small


def train(small: ConfigDict, workdir: Path) -> plan.Done:
    """Everything `experiment.run` trains, without evaluation and report."""
    split = experiment.load_split(small)
    stages = plan.build(small, split)
    with Logbook(workdir, quiet=True) as logbook:
        return plan.run(stages, workdir, logbook, checkpoint_seconds=1e9)


def students_job(*modes: str, **overrides) -> Job:
    """A job of one family of modes, whose three teachers are as they begin: none is trained for it."""
    small = config(**{"students.modes": modes, **overrides})
    split = experiment.load_split(small)
    model = teachers.network(split, small.model.name)
    variables = population.init(model, jax.random.split(jax.random.key(5), 3), (4, 4, 1))
    ensemble = (Population(model, variables, {}, ("a", "b", "c")),)
    (family, *_) = students.families(small)
    return students.job(small, split, "labelled", family, ensemble, {})


def check_that_it_resumes(job: Job, workdir: Path) -> None:
    """Trained at one go, and stopped within its first round, saved and resumed: to the same bits.

    Of all that is kept of it, and of all that is logged at every validation.
    """
    job = dataclasses.replace(job, steps_at_once=job.steps_per_round - 1)

    def fit(at: str) -> training.Fitted:
        with Logbook(workdir / at, quiet=True) as logbook:
            return training.fit(job, workdir / at / "checkpoints", logbook)

    whole = fit("whole")
    with pytest.MonkeyPatch.context() as patch, interrupts.handle_signals():
        patch.setattr(Logbook, "progress", lambda *of: interrupts.request_stop())
        with pytest.raises(interrupts.Interrupted):
            fit("cut")
    assert 0 < checkpoint.latest(workdir / "cut" / "checkpoints")[0] < job.steps_per_round
    resumed = fit("cut")
    for kept in ("population", "branched", "bank"):
        a, b = (getattr(one, kept) and getattr(one, kept).variables for one in (whole, resumed))
        jax.tree.map(np.testing.assert_array_equal, a, b)
    np.testing.assert_array_equal(resumed.val_nll, whole.val_nll)
    logged = (
        [line.partition('"wall"')[0] for line in (workdir / at / "metrics.jsonl").read_text().splitlines()]
        for at in ("whole", "cut")
    )
    assert next(logged) == next(logged)


def numbers(workdir: Path) -> tuple[str, dict[str, bytes]]:
    """All that report.json and predictions.npz say of a finished run, byte for byte but for times."""
    timeless = re.compile(r'"(latency_ms|train_seconds)": (\{[^}]*\}|[^,}\s]+)')
    report = timeless.sub(r'"\1": null', (workdir / "report.json").read_text(encoding="utf-8"))
    with np.load(workdir / "predictions.npz", allow_pickle=False) as archive:
        stored = {name: archive[name] for name in archive.files}
    meta = timeless.sub(r'"\1": null', str(stored.pop("meta")))
    return report + meta, {name: array.tobytes() for name, array in stored.items()}


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """What JAX says it compiles meanwhile, a line a program: "Compiling jit(chunk) with ..."."""
    said: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record):
            if record.getMessage().startswith("Compiling "):
                said.append(record.getMessage())

    log, listener = logging.getLogger("jax"), Listener()
    log.addHandler(listener)
    try:
        with jax.log_compiles():
            yield said
    finally:
        log.removeHandler(listener)
