"""Cells of published tables: what they are repeated by, what is refused, and what is said of the outcome."""

import json

import pytest

from mtkd_jax import addresses, experiment, replicate, validation
from mtkd_jax.models import mobilenet, shufflenet
from mtkd_jax.plans import published
from mtkd_jax.types import UserError
from tests.models import test_mobile_nets, test_resnets

CELL = "crd/cifar-100/resnet56-resnet20/kd"


def test_networks_have_their_published_numbers_of_parameters():
    counted = {model.name: params for model, _, params in test_resnets.PUBLISHED}  # compared there with ours
    task = test_mobile_nets.CIFAR100
    for model in (mobilenet.mobilenet_v2(task, width=0.5), shufflenet.shufflenet_v2(task, width=1.0)):
        counted[model.name] = test_mobile_nets.count(model)
    for network in (*published.NETWORKS.values(), *published.NETWORKS_OF_RECIPE["PCL"].values()):
        name = addresses.canonical("model", network.address, "model.name")
        assert counted[name] == network.params, name


def test_all_cells_that_can_be_repeated_have_a_configuration_that_can_be():
    can = [cell for cell in published.cells().values() if not published.lacking(cell)]
    assert len(can) > 50
    for cell in can:
        validation.validate(published.build(cell, 3))
        assert 0.4 < published.accuracy(cell) < 1
    for cell in {(cell.recipe, cell.method): cell for cell in can}.values():
        config = published.build(cell, 3)
        published.shrink(config)
        validation.validate(config)


def test_a_cell_is_trained_by_its_recipe():
    config = published.build(published.find(CELL), 4)
    assert config.teachers.models == ("resnet(depth=56)",) and config.model.name == "resnet(depth=20)"
    assert config.students.modes == ("output_avg",) and config.students.num_seeds == 4
    train = config.train
    assert (train.epochs, train.eval_every, train.batch_size) == (240, 240, 64)
    assert (train.optimizer, train.learning_rate, train.weight_decay) == ("sgd(nesterov=False)", 0.05, 5e-4)
    assert (train.schedule, config.students.alphas, config.students.temperatures) == ("steps", (0.1,), (4.0,))
    small = published.build(published.find("crd/cifar-100/vgg13-mobilenetv2/kd"), 1)
    assert small.train.learning_rate == 0.01 and small.teachers.learning_rates == (0.05,)
    hinted = published.build(published.find("crd/cifar-100/vgg13-mobilenetv2/fitnet"), 1)
    assert hinted.students.modes == ("features.hints(student='stage2', teacher='stage3')",)
    cohort = published.build(published.find("pcl/cifar-100/wrn-20-8/pcl"), 3)
    assert cohort.model.name == "resnet(depth=20, width=8, bottleneck=True)"
    assert cohort.students.modes == ("online.pcl(shared='most')",) and cohort.students.num_seeds == 3
    train = cohort.train
    assert (train.epochs, train.batch_size, train.learning_rate, train.weight_decay) == (300, 128, 0.1, 5e-4)
    assert (train.optimizer, train.schedule) == ("sgd", "steps(at=(0.5, 0.75))")
    assert cohort.students.temperatures == (3.0,) and cohort.teachers.num_members == 1
    alone = published.build(published.find("crd/cifar-100/resnet20/student-alone"), 4)
    assert alone.teachers.num_members == 4 and alone.students.modes == ()
    assert published.build(published.find(CELL), 1, "my/cifar100.npz").data.source == "npz"


@pytest.mark.parametrize(
    "name, why",
    [
        ("crd/cifar-100/resnet56-resnet20/kb", "did you mean 'crd/cifar-100/resnet56-resnet20/kd'"),
        ("crd/cifar-100/resnet50-vgg8/kd", "no network ResNet50"),
        ("crd/cifar-100/resnet56-resnet20/crd", "no method CRD"),
        ("crd/cifar-100/vgg13-mobilenetv2/at", "AT begins with stage 2 of vgg13 there"),
        ("kd-zoo/cifar-100/resnet-20/baseline", "is not known whole"),
        ("pcl/cifar-100/resnet-32/okddip", "no method OKDDip with its published numbers"),
        ("mimicry/cifar-10/k5-p1.0/mimic-all", "no network ResNet50V2"),
        ("torchdistill/imagenet/resnet-34-resnet-18/kd", "no source for ImageNet"),
    ],
)
def test_what_cannot_be_repeated_is_refused_in_one_line(name, why, tmp_path, capsys):
    assert replicate.main([name, f"--workdir={tmp_path}"]) == 2
    said = capsys.readouterr().err
    assert why in said and len(said.splitlines()) == 1


def report(accuracy, ci95):
    teacher = {"role": "teacher", "n": 1, "accuracy": {"mean": 0.7, "ci95": None}}
    student = {"role": "student", "n": 3, "accuracy": {"mean": accuracy, "ci95": ci95}}
    return {"rows": [teacher, student], "margin": 0.005}


@pytest.mark.parametrize(
    "ci95, verdict, near",
    [  # published: 70.66 %
        ((0.70, 0.72), "inside", False),
        ((0.703, 0.710), "inside", True),
        ((0.69, 0.70), "above", False),
        ((0.708, 0.711), "below", True),
        (None, "", False),
    ],
)
def test_the_verdict_is_where_the_published_number_lies(ci95, verdict, near):
    found = replicate.compare(published.find(CELL), report(0.709, ci95))
    assert (found["verdict"], found["within_margin"]) == (verdict, near)
    assert found["difference"] == pytest.approx(0.0024)


def test_where_all_students_broke_down_the_teacher_does_not_stand_for_them():
    teachers = {**report(0.709, None), "rows": report(0.709, None)["rows"][:1]}
    with pytest.raises(UserError, match="all students broke down"):
        replicate.compare(published.find(CELL), teachers)
    alone = published.find("crd/cifar-100/resnet20/student-alone")
    assert replicate.compare(alone, teachers)["ours"] == 0.7


def test_the_outcome_is_told_in_english():
    found = replicate.compare(published.find(CELL), report(0.709, (0.703, 0.710)))
    assert replicate.in_words(found).splitlines()[0] == (
        f"{CELL}: published 70.66, ours 70.90 [70.30, 71.00] over 3 seeds: the published number lies inside "
        "our interval, ours minus published is +0.24 points; all of our interval is within 0.5 points of the "
        "published number."
    )
    one = replicate.in_words({**found, "n": 1, "ci95": None, "verdict": ""})
    assert "ours 70.90 over one seed: ours minus published is +0.24 points.\n" in one


def test_an_error_rate_is_compared_as_an_accuracy():
    cell = published.find("mcl-okd/cifar-100/peers-x4-resnet-32/dml")
    assert cell.metric == "top1 error" and published.accuracy(cell) == pytest.approx(0.7508)


def test_a_row_is_added_to_a_page_and_replaced(tmp_path, monkeypatch, capsys):
    page, folder = tmp_path / "page.md", tmp_path / "run"
    page.write_text("Before.\n\n<!-- replications -->\n<!-- end -->\n\nAfter.\n", encoding="utf-8")
    folder.mkdir()
    told = {"devices": ["gpu H", "gpu H"], "packages": {"mtkd_jax": "1", "jax": "2"}}
    (folder / "environment.json").write_text(json.dumps(told), encoding="utf-8")
    asked, outcomes = [], iter([(0.6, (0.5, 0.7)), (0.7, None), (0.709, (0.7, 0.72))])

    def run(config, into):
        asked.append(config.data.source)
        return report(*next(outcomes))

    monkeypatch.setattr(experiment, "run", run)
    other = "crd/cifar-100/vgg13-vgg8/kd"
    for name in (CELL, other, CELL):
        assert replicate.main([name, f"--workdir={folder}", f"--into={page}"]) == 0
    text = page.read_text(encoding="utf-8")
    assert text.startswith("Before.") and text.rstrip().endswith("After.")
    assert text.count(CELL) == text.count(other) == 1
    assert "| 70.66 | 70.90 [70.00, 72.00] | 3 | inside our interval | +0.24 | gpu H |" in text
    assert json.loads((folder / "replication.json").read_text(encoding="utf-8"))["n"] == 3
    assert asked == 3 * ["cifar100"]
    assert "published 70.66, ours 70.90 [70.00, 72.00] over 3 seeds" in capsys.readouterr().out


def test_cells_are_listed_with_what_is_missing(capsys):
    assert replicate.main(["--list", "crd/cifar-100/resnet56-resnet20"]) == 0
    can, cannot = capsys.readouterr().out.split("cannot:")
    assert CELL in can and "no method CRD with its published numbers" in cannot
    assert replicate.main(["--list", "kd_ml"]) == 2
    assert "no published cell has 'kd_ml' in its name" in capsys.readouterr().err


def test_a_page_without_a_place_for_the_row_is_refused_before_anything_is_trained(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("nothing")
    command = [CELL, "--smoke", f"--workdir={tmp_path / 'w'}", f"--into={page}"]
    assert replicate.main(command) == 2 and not (tmp_path / "w").exists()
    assert "must stand in it, once" in capsys.readouterr().err


def test_a_smoke_run_shrinks_everything_but_the_method(tmp_path):
    config = published.build(published.find("crd/cifar-100/resnet56-resnet20/at"), 2)
    published.shrink(config)
    assert config.students.modes == ("features.attention_transfer(weight=1000.0)",)
    assert config.data.source.startswith("synthetic") and config.train.epochs == 1


def test_cells_of_pcl_are_those_of_its_networks():
    can = [
        cell for cell in published.cells().values() if cell.recipe == "PCL" and not published.lacking(cell)
    ]
    assert len(can) == 2 * 5 * 2  # data sets, networks, methods
    of_vgg = published.method(published.find("pcl/cifar-10/vgg-16/one"))
    assert of_vgg.note.startswith("three branches") and of_vgg.note.endswith("not before them")
    assert published.method(published.find("pcl/cifar-10/resnet-32/pcl")).note == ""


def test_a_cell_of_an_unknown_network_has_no_configuration():
    with pytest.raises(UserError, match="cannot be repeated"):
        published.build(published.find("crd/cifar-100/resnet50-vgg8/kd"), 1)


@pytest.mark.slow(60)
def test_the_machinery_runs_on_a_cpu(tmp_path):
    assert replicate.main([CELL, f"--workdir={tmp_path}", "--smoke", "--seeds=2"]) == 0
    assert json.loads((tmp_path / "replication.json").read_text(encoding="utf-8"))["smoke"]
