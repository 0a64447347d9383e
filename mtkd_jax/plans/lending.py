"""Teachers that one run trains and other runs are taught by."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from ml_collections import ConfigDict

from mtkd_jax import config as configuration
from mtkd_jax.types import UserError

# Plans whose teachers are their own and cannot come from another run.
WITH_OWN_TEACHERS = (
    *("specialists", "snapshots", "fast_geometric", "stochastic_averages", "swag", "horizontal"),
    *("dropout_draws", "batch_ensemble", "mimo", "negative_correlation", "boosted", "hyper_deep"),
    "student_friendly",
)
BANK = "checkpoint_bank"  # can, but only from a run that had this plan
NOT_LENT = ("specialists", "dropout_draws")  # teachers that no other plan can have


def plan_of(config: ConfigDict) -> str:
    """The name of the plan, without its arguments."""
    return str(config.plan).partition("(")[0].strip()


def lends(config: ConfigDict) -> bool:
    """Whether a run trains teachers that one of the default plan could have trained for it."""
    return configuration.trains_teachers(config) and plan_of(config) not in (*WITH_OWN_TEACHERS, BANK)


def borrow(config: ConfigDict, lender: str | Path) -> None:
    """Make the teachers of a configuration those of the run in the folder `lender`.

    What these began with is the lender's, and a plan that would make teachers otherwise has done so. Raises
    UserError for teachers that are not lent.
    """
    if (plan := plan_of(config)) in NOT_LENT:
        raise UserError(
            f"{lender} has trained teachers of plan {plan}, which are not lent; those of other plans are"
        )
    lent = {"from_run": os.fspath(lender), "init_from": (), "mean": (), "std": ()}
    for name, value in lent.items():
        configuration.put(config, f"teachers.{name}", value)
    if plan_of(config) in WITH_OWN_TEACHERS:
        config.plan = configuration.default().plan


def teachers_alone(config: ConfigDict) -> ConfigDict:
    """The configuration of a run that trains the teachers of this one and nothing else.

    Whatever teachers do not depend on stands at its default: it must not make another run of it.
    """
    alone, defaults = config.copy_and_resolve_references(), configuration.default()
    if config.teachers.models:
        alone.model.name = config.teachers.models[0]
    for group in ("students", "export"):
        with alone.unlocked():
            alone[group] = defaults[group]
    alone.plan, alone.students.modes, alone.data.other = defaults.plan, (), defaults.data.other
    if config.train.depth_decay != 1:
        with contextlib.suppress(UserError), configuration.own_files(alone):  # what is wrong is told later
            if not any(model.stages for model in configuration.trained_models(alone).values()):
                alone.train.depth_decay = 1.0  # it reaches students alone
    return alone
