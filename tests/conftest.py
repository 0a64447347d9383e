"""A strict session: several virtual devices, no silent dtype or rank promotion, warnings are errors."""

import gc
import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_collection_modifyitems(items):
    """The longest first: one that is left for the end runs alone, and the other processors wait."""

    def seconds(item):
        mark = item.get_closest_marker("slow")
        return mark.kwargs.get("seconds", 0) if mark else 0

    items.sort(key=seconds, reverse=True)


@pytest.fixture(scope="module", autouse=True)
def programs_let_go():
    """Forget what a module compiled.

    A program on a CPU holds about five memory maps, of which Linux gives a process 65 530 (vm.max_map_count).
    A worker that kept all of its programs ended with 60 000 and 5.6 GB; one that lets go has at most 15 000
    and 2.8 GB. Where the maps run out LLVM ends in a segmentation fault.
    """
    yield
    jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="module")
def quickly_compiled():
    """For a module whose programs take longer to compile than to run, and whose times nobody looks at."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)
