"""Multi-teacher knowledge distillation: train an ensemble at once, fuse it, compress it, measure it.

What is offered here is told in `mtkd_jax/api.py`; it is imported when it is first asked for, and JAX with it.
"""

import sys
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = [
    "Student",
    "Teachers",
    "UserError",
    "compare_rules",
    "data_from_arrays",
    "default_config",
    "distil",
    "evaluate",
    "fuse",
    "load_data",
    "load_student",
    "predict",
    "run",
    "train_teachers",
    "write_report",
]

if TYPE_CHECKING:
    from mtkd_jax.api import (
        Student,
        Teachers,
        UserError,
        compare_rules,
        data_from_arrays,
        default_config,
        distil,
        evaluate,
        fuse,
        load_data,
        load_student,
        predict,
        run,
        train_teachers,
        write_report,
    )

if sys.argv[:1] == ["-m"]:  # what Python says while it looks for the module of `python -m mtkd_jax.X`
    from mtkd_jax.system import terminal

    terminal.begin()


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from mtkd_jax import api

    return getattr(api, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
