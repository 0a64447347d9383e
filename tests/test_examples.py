"""The examples of functions of one's own: all of them in one run; augmentation and metric one by one."""

import csv
import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import mtkd_jax
from mtkd_jax import config as configuration
from mtkd_jax import experiment, settings
from mtkd_jax.data import augment
from mtkd_jax.plans import checks
from mtkd_jax.results import intervals
from mtkd_jax.runs import workdir
from mtkd_jax.types import UserError
from tests import small

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    config = settings.load(str(EXAMPLES / "own.py"))
    for field, text in (("train.epochs", "2"), ("runtime.how", "map"), ("teachers.num_members", "2")):
        settings.override(config, field, text)
    into = tmp_path_factory.mktemp("own")
    return config, into, experiment.run(config, into, quiet=True)


def test_every_example_is_in_the_run(done):
    config, into, report = done
    kinds = {address.partition(":")[0] for address in workdir.read_config(into)["own_code"]}
    told = {"rules.py", "metrics.py"}
    assert kinds | told == {one.name for one in EXAMPLES.glob("*.py")} - {"own.py"}
    names = [row["name"] for row in report["rows"]]
    assert {"networks.py:narrow(width=8)", "rules.py:least", "methods.py:smoothed(share=0.2)"} <= {*names}


def test_a_metric_is_told_with_its_interval_everywhere(done):
    config, into, report = done
    (asked,) = report["metrics"]
    assert asked["name"] == "cost" and not asked["higher_is_better"]
    found = workdir.read_predictions(into)
    labels = found.test_labels

    def cost(logits):  # by hand
        wrong = logits.argmax(-1) != labels
        return 10.0 * (wrong & (labels == 1)).mean() + 1.0 * (wrong & (labels == 0)).mean()

    rows = {row["name"]: row["own"]["cost"] for row in report["rows"]}
    for group in found.groups:
        each = [cost(logits) for logits in group.test]
        np.testing.assert_allclose(rows[group.name]["mean"], np.mean(each), rtol=1e-12)
        if group.role == "linear":  # one model has no spread
            assert rows[group.name]["ci95"] is None
            continue
        np.testing.assert_allclose(rows[group.name]["ci95"], intervals.t_interval(each), rtol=1e-12)
    low, high = rows["rules.py:least"]["ci95"]
    assert (
        low <= rows["rules.py:least"]["mean"] <= high and rows["rules.py:least"]["ci_over"] == "test_examples"
    )
    cells = next(csv.DictReader((into / "results.csv").read_text().splitlines()))
    assert float(cells["cost"]) == report["rows"][0]["own"]["cost"]["mean"]
    for name in ("report.md", "report.html"):
        text = (into / name).read_text(encoding="utf-8")
        assert "Metrics of your own" in text and "lower is better" in text
    assert json.loads((into / "report.json").read_text())["metrics"] == report["metrics"]


def test_another_metric_trains_nothing_and_a_report_built_again_executes_nothing(done, monkeypatch):
    config, into, _ = done
    begun = (into / "metrics.jsonl").read_text()
    config = config.copy_and_resolve_references()
    config.report.metrics = ("metrics.py:cost(miss=1.0)",)
    report = experiment.run(config, into, quiet=True)
    assert (into / "metrics.jsonl").read_text() == begun
    for row in report["rows"]:
        np.testing.assert_allclose(row["own"]["cost"]["mean"], 1 - row["accuracy"]["mean"], atol=1e-12)
    monkeypatch.setattr(configuration, "_metrics", {})  # as another process has it
    again = mtkd_jax.write_report(into)
    assert again["metrics"] == [] and again["rows"][0]["own"] == {}
    assert any("cost(miss=1.0) is a metric of somebody's own" in note for note in again["notes"])


MINE = """
import jax.numpy as jnp
import numpy as np
from mtkd_jax.types import Metric

def made(compute):
    return Metric("made", compute, True)

def nan() -> Metric:
    return made(lambda logits, labels: np.nan)

def long() -> Metric:
    return made(lambda logits, labels: logits)

def fails() -> Metric:
    return made(lambda logits, labels: logits.nothing)

def none() -> Metric:
    return 3

def half() -> "Augment":
    return lambda key, images: images[:, ::2]

def whole() -> "Augment":
    return lambda key, images: (images > 0).astype(jnp.int32)

def broken() -> "Augment":
    return lambda key, images: images.nothing

def bright() -> "Augment":
    return lambda key, images: images + 1
"""


@pytest.mark.parametrize(
    "field, name, said",
    [
        ("report.metrics", "nan", "returned what is not finite"),
        (
            "report.metrics",
            "long",
            r"returned \[8, 2\] of 8 examples; it must return \[8\], a value an example",
        ),
        ("report.metrics", "fails", "AttributeError: .*nothing"),
        ("report.metrics", "none", "returned int; it must be a Metric"),
        (
            "data.augment.own",
            "half",
            r"made float32\[16, 2, 4, 1\] of images float32\[16, 4, 4, 1\]; it must",
        ),
        ("data.augment.own", "whole", r"made int32\[16, 4, 4, 1\] of images"),
        ("data.augment.own", "broken", "AttributeError: .*nothing"),
        ("data.augment.own", "nowhere", "has no function 'nowhere'"),
    ],
)
def test_what_cannot_be_is_one_line_before_any_work(field, name, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)
    with pytest.raises(UserError, match=f"config.{field}: .*{said}") as error:
        config = small.config(**{field: (f"mine.py:{name}",)})
        checks.check_data(config, experiment.load_split(config))
    assert "\n" not in str(error.value)


def test_own_augmentations_follow_ours_and_are_made_once(tmp_path, monkeypatch):
    import jax

    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)
    config = small.config(
        **{"data.augment.own": ("mine.py:bright", "mine.py:bright()"), "data.augment.flip": True}
    )
    asked = configuration.augmentation(config)
    assert asked == configuration.augmentation(config)  # the same functions: the same program
    del asked["alternating_flip"]  # the step makes a flip of it, epoch by epoch
    images = jnp.arange(32.0).reshape(2, 4, 4, 1)
    ours = augment.augment(jax.random.key(0), images, flip=True)
    np.testing.assert_allclose(augment.augment(jax.random.key(0), images, **asked), ours + 2)
