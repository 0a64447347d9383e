"""Sweeps: which cells there are, what they share, what is kept, and the one table of all of them."""

import copy
import csv
import json
import os
import subprocess
import sys

import numpy as np
import pytest

from mtkd_jax import experiment, sweep, validation
from mtkd_jax.plans import cells
from mtkd_jax.report import document, sweep_plots, sweeps
from mtkd_jax.runs import workdir
from mtkd_jax.system.interrupts import Interrupted
from mtkd_jax.types import UserError
from tests import small

TEMPERATURES = "config.students.temperatures=1,3"
CONFIG = """
from tests import small
def get_config():
    return small.config(**{"students.modes": ("output_avg",), "students.alphas": (0.0,), "train.epochs": 2})
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "tiny.py"
    path.write_text(CONFIG)
    return path


@pytest.fixture(scope="module")
def command(file):
    """The arguments of a sweep, without the folder and what it is over."""
    return [f"--config={file}"]


@pytest.fixture(scope="module")
def swept(command, tmp_path_factory):
    """Two cells that are really run."""
    folder = tmp_path_factory.mktemp("sweep") / "two"
    assert sweep.main([*command, f"--workdir={folder}", "--over", TEMPERATURES]) == 0
    return folder


@pytest.fixture
def fake(monkeypatch, swept):
    """In place of runs: notes them, and copies the report of a real one with other numbers."""
    report = json.loads((swept / "temperatures=1.0" / "report.json").read_text())
    ran, trained = [], []

    def run(config, into, quiet=False):
        if (into / "report.json").exists():
            return
        ran.append(into.name)
        own = copy.deepcopy(report)
        for row in own["rows"]:
            if row["role"] == "student":  # the larger the epochs, the lower the NLL, and the accuracy
                row["val"]["nll"] = 1 / config.students.epochs if config.students.epochs else 1.0
                row["accuracy"]["mean"] = 0.9 - 0.001 * config.students.epochs
        into.mkdir(parents=True, exist_ok=True)
        (into / "report.json").write_text(json.dumps(own))

    def train(config, into, quiet=False):
        with workdir.lock(into):
            trained.append(into.name)

    monkeypatch.setattr(experiment, "run", run)
    monkeypatch.setattr(experiment, "train", train)
    run.ran, run.trained = ran, trained
    return run


def build(over, **overrides):
    return cells.build(small.config(**overrides), over, small.CONFIGS / "nowhere")


def refusal(arguments, capsys):
    capsys.readouterr()
    assert sweep.main(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


# --- which cells ---------------------------------------------------------------------------------------


def test_values_are_read_as_single_fields_are():
    over = cells.parse(
        [
            "config.students.temperatures=1,(2,4)",
            "config.students.model=mlp(hidden=(8, 8)),'cnn'",
            "config.data.augment.flip=true,false",
            "config.students.arguments={'vote': {}},{}",
        ],
        {},
    )
    assert over == {
        "students.temperatures": ((1.0,), (2.0, 4.0)),
        "students.model": ("mlp(hidden=(8, 8))", "cnn"),
        "data.augment.flip": (True, False),
        "students.arguments": ({"vote": {}}, {}),
    }
    found = build({name: over[name] for name in ("students.temperatures", "students.model")})
    assert [cell.name for cell in found] == [
        "temperatures=1.0,model=mlp-hidden-8-8",
        "temperatures=1.0,model=cnn",
        "temperatures=2.0-4.0,model=mlp-hidden-8-8",
        "temperatures=2.0-4.0,model=cnn",
    ]
    assert found[3].config.students.temperatures == (2.0, 4.0) and found[3].config.students.model == "cnn"


@pytest.mark.parametrize(
    "over, said",
    [
        ("config.students.temperature=1", "did you mean 'students.temperatures'?"),
        ("config.train.epochs=1,x", "config.train.epochs=x: must be an int"),
        ("config.train.epochs=1,2,1", "names '1' twice"),
        ("config.train.epochs=", "has no value"),
        ("config.train.epochs=(1", "brackets or quotes do not match"),
        ("train.epochs=1", "must be config.FIELD=VALUE,VALUE"),
        ("config.seed=1,2", "is swept over, and set as well"),
        ("config.runtime.devices=1,2", "settled once for all cells"),
    ],
)
def test_what_is_mistyped_is_one_line_that_names_it(over, said, command, tmp_path, capsys):
    line = refusal([*command, f"--workdir={tmp_path}", f"--over={over}", "--config.seed=1"], capsys)
    assert said in line and not list(tmp_path.iterdir())


def test_what_every_cell_has_wrong_is_refused_at_once(command, tmp_path, capsys):
    arguments = [*command, f"--workdir={tmp_path}", f"--over={TEMPERATURES}", "--config.train.epochs=0"]
    assert "config.train.epochs: 0 is not possible" in refusal(arguments, capsys)


def test_names_tell_all_values_apart_and_are_folders():
    values = (1e-5, -1.0, 1.0, 0.1)
    names = [cells.name({"train.weight_decay": value}) for value in values]
    assert len(set(names)) == 4 and all("/" not in name and " " not in name for name in names)
    assert cells.name({"students.epochs": 1, "train.epochs": 2}) == "students.epochs=1,train.epochs=2"
    long = [cells.name({"students.model": "mlp" + 90 * "x", "model.name": 150 * "y" + end}) for end in "ab"]
    assert len(set(long)) == 2 and max(map(len, long)) < 255


# --- teachers ------------------------------------------------------------------------------------------


def test_cells_share_teachers_where_what_they_differ_in_does_not_reach_them():
    of_students = build({"students.model": ("mlp", "cnn"), "students.temperatures": ((1.0,), (2.0,))})
    of_both = build({"train.epochs": (2, 4), "students.num_seeds": (1, 2)})
    assert {cell.lender.folder.name for cell in of_students} == {"teachers"}
    assert [cell.lender.folder.name for cell in of_both] == 2 * ["teachers,epochs=2"] + 2 * [
        "teachers,epochs=4"
    ]
    for shared in (of_students, of_both[:2], of_both[2:]):  # one run: nothing of a cell makes it another
        hashes = {workdir.config_hash(cell.lender.config.to_dict()) for cell in shared}
        assert len(hashes) == 1
        assert all(cell.config.teachers.from_run == str(cell.lender.folder) for cell in shared)
    assert [cell.lender for cell in build({"train.epochs": (2, 4)})] == [None, None]


def test_images_of_another_source_are_of_students_alone():
    other = {"data.other": "synthetic(num_classes=4, size=4)", "students.transfer": ("labelled", "other")}
    for over in ({"students.num_seeds": (1, 2)}, {"data.other": ("synthetic(size=4)", "synthetic(size=5)")}):
        for cell in build(over, **other):
            assert cell.lender.folder.name == "teachers" and cell.lender.config.data.other == ""
            validation.validate(cell.lender.config)


def test_the_network_of_both_reaches_teachers_unless_they_have_their_own():
    over = {"model.name": ("mlp", "cnn"), "students.num_seeds": (1,)}
    assert [cell.lender.folder.name for cell in build(over)] == ["teachers,name=mlp", "teachers,name=cnn"]
    own = build(over, **{"teachers.models": ("mlp(hidden=(4,))",)})
    assert [cell.lender.folder.name for cell in own] == 2 * ["teachers"]
    assert len({workdir.config_hash(cell.lender.config.to_dict()) for cell in own}) == 1


def test_teachers_that_are_lent_or_cannot_be_are_left_alone(tmp_path):
    over = {"students.num_seeds": (1, 2)}
    for overrides in ({"teachers.from_run": "elsewhere"}, {"plan": "specialists"}):
        assert all(cell.lender is None for cell in build(over, **overrides))


def test_values_that_are_added_leave_a_cell_the_run_that_it_was():
    first = build({"students.num_seeds": (1,), "train.epochs": (2,)})
    later = build({"students.num_seeds": (1, 2), "train.epochs": (4, 2)})
    (same,) = (cell for cell in later if cell.name == first[0].name)
    assert same.config.to_dict() == first[0].config.to_dict()


def test_a_shard_waits_for_teachers_that_another_one_trains(fake, tmp_path, monkeypatch, capsys):
    lender = cells.Lender(tmp_path / "teachers", small.config())
    other = workdir.lock(lender.folder)
    other.__enter__()
    waits = []

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 2:
            other.__exit__(None, None, None)  # it died: its lock is free, and nothing is trained

    monkeypatch.setattr(sweep.time, "sleep", sleep)
    sweep.lend(lender)
    assert len(waits) == 2 and fake.trained == ["teachers"]
    assert capsys.readouterr().err.count("another process trains") == 1
    sweep.lend(lender)  # done with: not even looked at
    assert fake.trained == ["teachers"]


def test_data_are_not_loaded_while_another_shard_has_the_teachers(tmp_path, monkeypatch):
    """`experiment.train` asks for the lock only once it has the data."""
    lender, tried, waits = cells.Lender(tmp_path / "teachers", small.config()), [], []
    other = workdir.lock(lender.folder)
    other.__enter__()

    def sleep(seconds):
        waits.append(seconds)
        if len(waits) == 3:
            other.__exit__(None, None, None)

    monkeypatch.setattr(sweep.time, "sleep", sleep)
    monkeypatch.setattr(experiment, "train", lambda config, into, quiet=False: tried.append(len(waits)))
    sweep.lend(lender)
    assert tried == [3]


@pytest.mark.parametrize(
    "error, said",
    [
        (UserError("no such teachers"), "no such teachers"),
        (OSError(28, "No space left on device"), "writing: No space left on device"),
        (MemoryError(), "out of memory: no more to be had; make batches or networks smaller"),
        (RuntimeError("RESOURCE_EXHAUSTED: 9 GiB"), "out of memory: RESOURCE_EXHAUSTED: 9 GiB; make batches"),
    ],
)
def test_teachers_that_fail_fail_once(error, said, fake, command, tmp_path, monkeypatch, capsys):
    tried = []

    def train(config, into, quiet=False):
        tried.append(into)
        raise error

    monkeypatch.setattr(experiment, "train", train)
    assert sweep.main([*command, f"--workdir={tmp_path}", f"--over={TEMPERATURES}"]) == 2
    assert len(tried) == 1 and not fake.ran
    assert capsys.readouterr().err.count(f"failed: {said}") == 2


# --- a sweep that is really run ------------------------------------------------------------------------


def test_a_cell_is_the_run_that_it_would_be_alone_and_teachers_are_trained_once(swept, file, tmp_path):
    assert {path.name for path in swept.iterdir()} == {
        *("cells.json", "teachers", "temperatures=1.0", "temperatures=3.0", ".lock"),
        *("sweep.csv", "sweep.json", "sweep.md", "sweep.png"),
    }
    trained = {path.name: sorted(p.name for p in path.glob("checkpoints/*")) for path in swept.iterdir()}
    students = ["students-labelled-output-avg"]
    assert trained["temperatures=1.0"] == trained["temperatures=3.0"] == students
    assert trained["teachers"] == ["teachers-mlp-hidden-8"]
    config = sweep.settings.load(str(file))
    config.students.temperatures = (3.0,)
    alone = experiment.run(config, tmp_path / "alone", quiet=True)
    cell = json.loads((swept / "temperatures=3.0" / "report.json").read_text())
    for a, b in zip(alone["rows"], cell["rows"], strict=True):
        assert a["name"] == b["name"]
        np.testing.assert_allclose(a["accuracy"]["values"], b["accuracy"]["values"], atol=1e-6)
        np.testing.assert_allclose(a["val"]["nll"] or 0, b["val"]["nll"] or 0, rtol=1e-4)


def test_metrics_of_ones_own_have_columns_in_the_table_of_cells(swept):
    report = json.loads((swept / "temperatures=1.0" / "report.json").read_text())
    report["metrics"] = [{"name": "cost"}]
    for row in report["rows"]:
        row["own"] = {"cost": {"mean": 2.5, "ci95": [2.0, 3.0]}} if row["role"] == "student" else {}
    told = [sweeps.Told("one", {"seed": 1}, report, "")]
    own = document.own_metrics(one.report for one in told)
    rows = list(csv.DictReader(sweeps.as_csv(sweeps.rows(told), ["seed"], own).decode().splitlines()))
    found = {row["role"]: (row["cost"], row["cost_low"], row["cost_high"]) for row in rows}
    assert found["student"] == ("2.5", "2.0", "3.0") and found["teacher"] == ("", "", "")


def test_the_table_has_every_row_of_every_cell_and_marks_the_lowest_validation_nll(swept):
    rows = list(csv.DictReader((swept / "sweep.csv").read_text().splitlines()))
    reports = {
        cell: json.loads((swept / cell / "report.json").read_text())
        for cell in ("temperatures=1.0", "temperatures=3.0")
    }
    assert [(row["cell"], row["name"]) for row in rows] == [
        (cell, row["name"]) for cell, report in reports.items() for row in report["rows"]
    ]
    of_students = {
        cell: row["val"]["nll"]
        for cell, report in reports.items()
        for row in report["rows"]
        if row["role"] == "student"
    }
    (best,) = (row for row in rows if row["best"] == "1")
    assert best["cell"] == min(of_students, key=of_students.get) and best["role"] == "student"
    assert float(best["val_nll"]) == min(of_students.values())
    text = (swept / "sweep.md").read_text()
    assert "2 of 2 cells are finished" in text and text.count("output_avg *") == 1
    said = json.loads((swept / "sweep.json").read_text())
    assert said["best"] == {"cell": best["cell"], "name": "output_avg", "transfer": "labelled"} and said[
        "fields"
    ] == ["students.temperatures"]


def test_finished_cells_are_kept_and_values_are_added(swept, command, tmp_path, fake, monkeypatch):
    folder = tmp_path / "more"
    over = "config.students.epochs=2,4"
    arguments = [*command, f"--workdir={folder}"]
    assert sweep.main([*arguments, f"--over={over}"]) == 0
    assert fake.ran == ["epochs=2", "epochs=4"] and fake.trained == ["teachers"]
    assert sweep.main([*arguments, f"--over={over},6", "--config.report.margin=0.01"]) == 0
    assert fake.ran == ["epochs=2", "epochs=4", "epochs=6"] and fake.trained == ["teachers"]
    # A call that asks for one cell shows all of them.
    assert sweep.main([*arguments, "--over=config.students.epochs=2"]) == 0
    rows = list(csv.DictReader((folder / "sweep.csv").read_text().splitlines()))
    assert {row["students.epochs"] for row in rows} == {"2", "4", "6"}
    (best,) = (row for row in rows if row["best"] == "1")
    assert best["students.epochs"] == "6"  # the lowest accuracy on the test set of the three


def test_values_that_are_tuples_within_a_dict_find_their_cells_again(fake, command, tmp_path, capsys):
    """JSON has lists for tuples: a cell's folder is named by the value that was asked for."""
    mode, values = "logits.dkd", ("(2.0, 8.0)", "(1.0, 4.0)")
    given = ",".join(f"{{'{mode}': {{'nontarget_weight': {one}}}}}" for one in values)
    arguments = [*command, f"--workdir={tmp_path}", f"--over=config.students.arguments={given}"]
    arguments.append(f"--config.students.modes={mode}")
    for _ in range(2):
        assert sweep.main(arguments) == 0
        assert "2 of 2 cells are finished" in capsys.readouterr().out
    assert len(fake.ran) == 2 and {one.name for one in tmp_path.glob("arguments=*")} == set(fake.ran)
    assert [one["students.arguments"] for one in sweep.read_cells(tmp_path)] == [
        {mode: {"nontarget_weight": (2.0, 8.0)}},
        {mode: {"nontarget_weight": (1.0, 4.0)}},
    ]


def test_another_sweep_or_a_run_in_the_folder_is_one_line(swept, command, capsys):
    arguments = [*command, f"--workdir={swept}"]
    line = refusal([*arguments, f"--over={TEMPERATURES}", "--config.train.epochs=4"], capsys)
    assert "holds another sweep: train.epochs was 2 and is 4; choose another --workdir" in line
    line = refusal([*arguments, "--over=config.students.num_seeds=1,2"], capsys)
    assert "it is over students.temperatures and not over students.num_seeds" in line
    line = refusal([*command, f"--workdir={swept / 'temperatures=1.0'}", f"--over={TEMPERATURES}"], capsys)
    assert "holds a run and no sweep" in line


def test_a_sweep_that_was_moved_is_gone_on_with(swept, command, tmp_path, monkeypatch):
    """The teachers lie elsewhere now, and are the same."""
    moved = tmp_path / "moved"
    subprocess.run(["cp", "-r", swept, moved], check=True)
    (moved / "temperatures=3.0" / "report.json").unlink()
    assert sweep.main([*command, f"--workdir={moved}", f"--over={TEMPERATURES}"]) == 0
    one, two = (folder / "temperatures=3.0" / "report.json" for folder in (swept, moved))
    one, two = (json.loads(path.read_text())["rows"] for path in (one, two))
    assert [row["accuracy"] for row in one] == [row["accuracy"] for row in two]


# --- what goes wrong -----------------------------------------------------------------------------------


def test_a_cell_that_fails_is_named_and_the_others_go_on(fake, command, tmp_path, capsys):
    """One that cannot be valid, and one that fails when it is run."""
    run = experiment.run

    def failing(config, into, quiet=False):
        if config.students.epochs == 4:
            raise UserError("no room for it")
        run(config, into, quiet)

    experiment.run = failing  # the fixture puts it back
    arguments = [*command, f"--workdir={tmp_path}", "--over=config.students.epochs=2,-1,4,6"]
    assert sweep.main(arguments) == 2
    assert fake.ran == ["epochs=2", "epochs=6"]
    out, err = capsys.readouterr()
    last = err.strip().splitlines()[-2:]
    assert last[0].startswith("mtkd_jax: epochs=-1 failed: config.students.epochs: -1 is not possible")
    assert last[1] == "mtkd_jax: epochs=4 failed: no room for it"
    assert "2 of 4 cells are finished" in out and "epochs=4: failed: no room for it" in out
    assert "epochs=4: failed: no room for it" in (tmp_path / "sweep.md").read_text()


def test_a_sweep_that_is_asked_to_stop_has_its_table_and_goes_on(fake, command, tmp_path, capsys):
    run = experiment.run

    def stopped(config, into, quiet=False):
        if config.students.epochs == 4:
            raise Interrupted(15, "students are saved at step 3")
        run(config, into, quiet)

    experiment.run = stopped
    arguments = [*command, f"--workdir={tmp_path}", "--over=config.students.epochs=2,4,6"]
    assert sweep.main(arguments) == 143
    assert "stopped by SIGTERM; students are saved at step 3" in capsys.readouterr().err
    assert "1 of 3 cells are finished" in (tmp_path / "sweep.md").read_text()
    experiment.run = run
    assert sweep.main(arguments) == 0
    assert fake.ran == ["epochs=2", "epochs=4", "epochs=6"]


def test_every_cell_belongs_to_exactly_one_shard(fake, command, tmp_path, capsys):
    over = "--over=config.students.epochs=1,2,3,4,5"
    for place in range(3):
        assert sweep.main([*command, f"--workdir={tmp_path}", over, f"--shard={place}/3"]) == 0
    assert sorted(fake.ran) == [f"epochs={n}" for n in range(1, 6)] and fake.trained == ["teachers"]
    assert "5 of 5 cells are finished" in capsys.readouterr().out
    for wrong in ("3/3", "1", "-1/3"):
        assert "must be I/N" in refusal([*command, f"--workdir={tmp_path}", over, f"--shard={wrong}"], capsys)


# --- table and plots -----------------------------------------------------------------------------------


def rows(*overs, role="student", gains=None):
    """A row for each {field: value}; the later, the lower the validation NLL and the test accuracy."""
    return [
        {
            "cell": cells.name(over),
            "over": over,
            "role": role,
            "name": "vote",
            "transfer": "labelled",
            "accuracy": {"mean": 0.9 - 0.1 * n, "ci95": (0.85 - 0.1 * n, 0.95 - 0.1 * n)},
            "gain": None if gains is None else {"mean": gains[n], "ci95": (gains[n] - 0.01, gains[n] + 0.01)},
            "val": {"nll": 1.0 - 0.1 * n},
            "best": n == len(overs) - 1,
        }
        for n, over in enumerate(overs)
    ]


def test_a_number_is_a_line_two_fields_are_a_map_and_all_else_are_dots():
    numbers = rows(*({"students.temperatures": (t,)} for t in (4.0, 1.0, 2.0)))
    (axes,) = sweep_plots.draw(numbers, ["students.temperatures"]).axes
    (line, *_) = (line for line in axes.get_lines() if line.get_label() == "vote")
    np.testing.assert_allclose(line.get_xdata(), [1, 2, 4])
    np.testing.assert_allclose(line.get_ydata(), [80, 70, 90])
    two = rows(*({"seed": s, "students.model": m} for s in (1, 2) for m in ("mlp", "cnn")))
    (axes,) = sweep_plots.draw(two, ["seed", "students.model"]).axes
    assert [text.get_text() for text in axes.texts] == ["90.0", "80.0", "70.0", "60.0"]
    (frame,) = axes.patches  # around the last one, whose validation NLL is the lowest
    np.testing.assert_allclose(frame.get_xy(), [0.54, 0.58])
    words = rows(*({"students.model": model} for model in ("mlp", "cnn")))
    (axes,) = sweep_plots.draw(words, ["students.model"]).axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["model=mlp: vote", "model=cnn: vote"]


def test_gains_over_the_baseline_are_paired_and_have_a_panel(swept):
    overs = [{"students.epochs": n} for n in (1, 2, 4)]
    ensemble = [{**row, "name": "mean_probs"} for row in rows(*overs, role="ensemble")]
    own = rows(*overs, gains=(0.01, 0.02, -0.03))
    above, below = sweep_plots.draw([*own, *ensemble], ["students.epochs"]).axes
    assert {"vote", "mean_probs"} <= {line.get_label() for line in above.get_lines()}
    (line,) = (line for line in below.get_lines() if line.get_label() == "vote")
    np.testing.assert_allclose(line.get_ydata(), [1, 2, -3])
    told = sweeps.read(swept, [{"students.temperatures": (1.0,)}], {})
    row = next(row for row in sweeps.rows(told) if row["role"] == "student")
    found = workdir.read_predictions(swept / row["cell"])
    of = {group.name: group.test for group in found.groups if group.transfer == row["transfer"]}
    right = {name: (np.argmax(of[name], axis=2) == found.test_labels).mean(axis=1) for name in of}
    difference = (right[row["name"]] - right["baseline"]).mean()
    assert row["gain"]["mean"] == pytest.approx(difference)
    fused = [one for one in sweeps.drawn(told, sweeps.rows(told)) if one["role"] == "ensemble"]
    assert [one["transfer"] for one in fused] == [gap["transfer"] for gap in told[0].report["gaps"]]


def test_validation_chooses_and_images_that_differ_are_said(swept):
    report = json.loads((swept / "temperatures=1.0" / "report.json").read_text())
    told = []
    for n, (nll, accuracy) in enumerate(((0.5, 0.9), (0.4, 0.1), (None, 0.99))):
        own = copy.deepcopy(report)
        for row in own["rows"]:
            if row["role"] == "student":
                row["val"]["nll"], row["accuracy"]["mean"] = nll, accuracy
            else:
                row["val"]["nll"] = 0.0  # a teacher or the baseline is never chosen beside students
        told.append(sweeps.Told(f"seed={n}", {"seed": n}, own, "", f"images {n}"))
    found = sweeps.rows(told)
    assert [(row["cell"], row["role"]) for row in found if row["best"]] == [("seed=1", "student")]
    assert "validated on different images" in sweeps.caption(told, found)
    assert "the best student of all 2 in the table" in sweeps.caption(told, found)
    same = [one._replace(validated_on="images") for one in told]
    assert "different images" not in sweeps.caption(same, found)


# --- before it is run ----------------------------------------------------------------------------------


def test_a_plan_counts_shared_teachers_once(command, tmp_path, capsys):
    arguments = [*command, f"--workdir={tmp_path / 'none'}", f"--over={TEMPERATURES}", "--plan"]
    assert sweep.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    stages = {line.split()[0]: line.split()[1] for line in lines if line.startswith(("teachers ", "temp"))}
    assert stages == {"teachers": "1", "temperatures=1.0": "1", "temperatures=3.0": "1"}
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "options, said",
    [
        (["--slurm", "--plan"], "--plan and --slurm: --plan trains and writes nothing, and is of all cells"),
        (["--shard=0/2", "--plan"], "--plan and --shard: --plan trains and writes nothing"),
        (["--into=page.md", "--plan"], "--plan and --into: --plan trains and writes nothing"),
        (["--slurm=4", "--shard=0/2"], "--slurm and --shard: --slurm writes an array job, whose tasks get"),
        (["--slurm", "--into=page.md"], "--slurm and --into: --slurm writes an array job"),
    ],
)
def test_options_of_which_one_would_be_ignored_are_refused(options, said, command, tmp_path, capsys):
    folder = tmp_path / "none"
    line = refusal([*command, f"--workdir={folder}", f"--over={TEMPERATURES}", *options], capsys)
    assert said in line and line.endswith("; leave out one of the two") and not folder.exists()


def test_an_array_job_gives_every_task_its_shard_and_is_requeued_when_it_was_stopped(
    command, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\necho "$@" >> asked\nexit 143\n')
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$@" >> requeued\n')
    for name in ("python", "scontrol"):
        (tmp_path / name).chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    over = "config.students.model=mlp(hidden=(8,)),cnn"
    assert (
        sweep.main([*command, "--workdir=runs", f"--over={over}", "--slurm", "8%2", "--config.seed=3"]) == 0
    )
    assert capsys.readouterr().out == "sbatch runs/sweep.sbatch\n"
    text = (tmp_path / "runs" / "sweep.sbatch").read_text()
    assert "#SBATCH --array=0-7%2\n" in text and f"#SBATCH --chdir={tmp_path}\n" in text
    environment = {
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "SLURM_ARRAY_TASK_ID": "5",
        "SLURM_JOB_ID": "77",
    }
    done = subprocess.run(["bash", "runs/sweep.sbatch"], env=environment, check=False)
    assert done.returncode == 143 and (tmp_path / "requeued").read_text() == "requeue 77\n"
    said = (tmp_path / "asked").read_text().split(maxsplit=2)
    assert said[:2] == ["-m", "mtkd_jax.sweep"]
    assert said[2].strip() == (f"{command[0]} --over={over} --workdir=runs --config.seed=3 --shard=5/8")
    assert "must be TASKS" in refusal([*command, "--workdir=runs", f"--over={over}", "--slurm=x"], capsys)


def test_a_page_has_the_table_and_its_plot_and_a_page_without_marks_is_refused_first(
    swept, command, tmp_path, capsys
):
    page, asked = tmp_path / "page.md", [*command, f"--workdir={swept}", "--over", TEMPERATURES]
    page.write_text("Before.\n")
    assert sweep.main([*asked, f"--into={page}"]) == 2
    begin = f"<!-- sweep {swept} -->"
    assert repr(begin) in capsys.readouterr().err
    page.write_text(f"Before.\n\n{begin}\nold\n<!-- end -->\n\nAfter.\n")
    assert sweep.main([*asked, f"--into={page}"]) == 0
    text = page.read_text()
    table = (swept / "sweep.md").read_text().partition("\n\n")[2].strip()
    picture = f"plots/{swept.name}/sweep.png"
    inside = text.partition(begin)[2].partition("<!-- end -->")[0].strip()
    assert inside == table.replace("(sweep.png)", f"({picture})") and picture in inside
    assert text.startswith("Before.") and text.endswith("After.\n") and "old" not in text
    assert (tmp_path / picture).read_bytes() == (swept / "sweep.png").read_bytes()
