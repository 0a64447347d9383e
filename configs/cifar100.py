"""CIFAR-100 by the recipes of cifar10.py.

    python -m mtkd_jax.main --config=configs/cifar100.py --workdir=runs/cifar100
    python -m mtkd_jax.main --config=configs/cifar100.py:kd --workdir=runs/cifar100_kd

Data      The archive as published, data/cifar-100-python.tar.gz.
Compares  what cifar10.py compares; "kd" is the recipe that most tables of CIFAR-100 are made by.
Needs     a GPU for both.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

CIFAR10 = runpy.run_path(str(Path(__file__).with_name("cifar10.py")))


def get_config(variant: str = "") -> ConfigDict:
    """Variants: those of cifar10.py."""
    config = CIFAR10["get_config"](variant)
    config.data.source = config.data.source.replace("cifar10", "cifar100")
    config.data.path = config.data.path.replace("cifar10", "cifar100").replace("cifar-10", "cifar-100")
    return config
