"""What is said of machines that nothing was run on, by hand."""

import jax
import pytest

from mtkd_jax.benchmark import __main__, arithmetic
from mtkd_jax.benchmark.arithmetic import Cluster


def test_operations_are_three_forward_passes_of_the_published_network():
    """5.2 GMAC an image of 32x32 (Zagoruyko and Komodakis 2016), four times as many of 64x64."""
    assert arithmetic.flops(32) == pytest.approx(6 * 5.25e9, rel=0.01)
    assert arithmetic.flops(64) == pytest.approx(4 * arithmetic.flops(32), rel=0.01)


def test_a_cluster_by_hand(monkeypatch):
    monkeypatch.setattr(arithmetic, "_bytes_of_member", lambda size: (2e9, 3e9))
    monkeypatch.setattr(arithmetic, "flops", lambda size: 4e9)
    found = arithmetic._training(Cluster("x", 64, 100e12, 16e9, 1e12, 4), 32)
    assert found["images a second and chip"] == "10,000"  # 0.4 of 100 TFLOP/s over 4 GFLOP
    assert found["teachers on a chip"] == "4" and found["GB of state on a chip"] == "8.0"
    assert found["hours for 40 epochs"] == "6"  # 40 * 256 * 1 281 167 images at 640 000 a second
    assert found["MB/s of images from a host"] == "123"  # 4 chips, 3072 bytes an image
    assert found["share of a step for memory's rate"] == "78%"  # 10 GB in 10 ms, of 12.8
    assert found["GB of the whole set on a chip"] == "3.9"


def test_logits_on_a_disk_by_hand():
    assert arithmetic.logit_bytes() == {"float32": 4000, "float16": 2000, "top 16": 64}
    all_teachers = arithmetic.NUM_TEACHERS * 2000 * arithmetic.NUM_IMAGES
    assert all_teachers == pytest.approx(656e9, rel=1e-3)


def test_a_member_is_its_weights_four_times_and_what_a_backward_pass_keeps(monkeypatch):
    monkeypatch.setattr(arithmetic, "BATCH", 2)
    monkeypatch.setattr(arithmetic.forecast, "kept_bytes", lambda model, shape: (model.name, shape))
    state, (name, shape) = arithmetic._bytes_of_member(32)
    assert state == pytest.approx(16 * (36.5e6 + 640 * 990), rel=0.01)  # 36.5 M for ten classes, as published
    assert shape == (2, 32, 32, 3) and "bfloat16" in name


def test_the_command_writes_tables_into_a_page(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(arithmetic, "_bytes_of_member", lambda size: (2e9, 3e9))
    monkeypatch.setattr(jax, "devices", lambda *args: pytest.fail("no device is needed"))
    page = tmp_path / "page.md"
    page.write_text("<!-- benchmark arithmetic -->\n<!-- end -->\n")
    assert __main__.main(["arithmetic", "--into", str(page)]) == 0
    text = page.read_text()
    assert "| top 16 | 21 | 0.1 |" in text and "TPU v5e-256, 64x64" in text and "not measured" in text
    assert __main__.main(["arithmetic", "--json", str(tmp_path / "x.json")]) == 2
    assert "--json: the suite arithmetic measures nothing" in capsys.readouterr().err
