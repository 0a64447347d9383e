"""Every configuration of configs/ runs, at its smoke size."""

import pytest

from mtkd_jax import main
from tests import small

CONFIGS = sorted(small.CONFIGS.glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_config_has_a_smoke_size_and_says_how_to_run_it(path, tmp_path):
    assert f"--config=configs/{path.name}" in path.read_text()
    assert main.main(["main", f"--config={path}:smoke", f"--workdir={tmp_path}"]) == 0
