"""A plan: teachers, then students, which is also the default; a list of stages that could be longer."""

from mtkd_jax.plans.plan import train_students, train_teachers


def plain(config, split) -> "Plan":  # noqa: F821
    """Teachers, then their students."""
    return (*train_teachers(config, split), *train_students(config, split))
