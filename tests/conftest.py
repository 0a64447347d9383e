"""A strict session: several virtual devices, no silent dtype or rank promotion, warnings are errors."""

import gc
import itertools
import os
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")
os.environ.setdefault("MPLBACKEND", "Agg")
# XLA's older emitter of fused loops (--xla_cpu_use_fusion_emitters=false) compiles in two thirds of the time
# and was taken out again: two steps of a network with BatchNorm on images of 4x4 pixels end in NaN with it.

import jax
import pytest

from mtkd_jax.runs import workdir

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Programs of tests take longer to compile than to run. Child processes, and so the command lines, optimise.
jax.config.update("jax_disable_most_optimizations", True)
# Tracing makes many small objects: the collector, which looks at them every 700, took 8 % of the time.
gc.freeze()
gc.set_threshold(50_000, 20, 20)

MOST_MAPS = 20_000


def pytest_collection_modifyitems(items):
    """The longest first: one that is left for the end runs alone, and the other processors wait."""

    def seconds(item):
        mark = item.get_closest_marker("slow")
        return mark.kwargs.get("seconds", 0) if mark else 0

    items.sort(key=seconds, reverse=True)


def pytest_configure(config):
    """Keep programs beside pytest's own cache, for the other worker, child processes and the next run.

    They are found by their text, so that nothing of an earlier version is.
    """
    if hasattr(config, "cache"):  # not with -p no:cacheprovider
        os.environ["XDG_CACHE_HOME"] = str(config.cache.mkdir("of_programs"))
        workdir.use_compile_cache()


@pytest.fixture(autouse=True)
def forget_programs():
    """Forget what was compiled, now and then.

    A program on a CPU holds about five memory maps, of which Linux gives a process 65 530 (vm.max_map_count).
    A worker that kept all of its programs ended with 60 000 and 5.6 GB. Where the maps run out LLVM ends in a
    segmentation fault. Until then the next test has what this one compiled. To count the maps takes some
    milliseconds: looked at after every tenth test, and after each of some seconds, which may add thousands.
    """
    begun = time.monotonic()
    yield
    is_long = time.monotonic() - begun > 2.0
    if (is_long or next(_ENDED) % 10 == 9) and _num_maps() > MOST_MAPS:
        _forget_programs()


_ENDED = itertools.count()  # tests of this process


def _num_maps() -> int:
    try:
        with open(os.path.join(os.sep, "proc", "self", "maps"), "rb") as maps:
            return sum(1 for _ in maps)
    except OSError:  # not Linux
        return MOST_MAPS + 1


def _forget_programs() -> None:
    jax.clear_caches()
    gc.collect()


@pytest.fixture
def compiled_as_shipped():
    """For a test that looks at what the compiler makes of a program: optimised, as users have it."""
    _forget_programs()
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
    _forget_programs()
