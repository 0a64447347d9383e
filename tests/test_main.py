"""The program as a user meets it: a whole run, its folder, going on after a kill, and every refusal."""

import json
import shlex
from pathlib import Path

import jax
import numpy as np
import pytest

from mtkd_jax import addresses, experiment, main, validation
from mtkd_jax.deploy import export
from mtkd_jax.engine import population, training
from mtkd_jax.plans import plan, students, teachers
from mtkd_jax.report import document
from mtkd_jax.results import evaluation
from mtkd_jax.runs import predictions
from mtkd_jax.runs import workdir as workdir_module
from mtkd_jax.types import Population, UserError
from tests import small

ALL = {
    "students.modes": ("mimic_all", "output_avg", "loss_avg", "logit_avg", "vote", "supernet", "supernet2"),
    "students.transfer": ("labelled", "unlabelled"),
    "students.temperatures": (1.0, 3.0),
    "teachers.models": ("mlp(hidden=(8,))", "cnn(widths=(4,), dense=8)"),
    "teachers.num_members": 2,
    "teachers.subset_fraction": 0.8,
    "data.augment.noise": 0.05,
    "train.epochs": 2,
    "runtime.how": "auto",  # as users have it: members are spread over the devices
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A run with every mode, both transfer sets, two architectures of teachers, augmentation."""
    workdir = tmp_path_factory.mktemp("run") / "all"
    return workdir, experiment.run(small.config(**ALL), workdir, quiet=True)


def test_a_run_leaves_what_the_design_promises(finished):
    workdir, _ = finished
    for name in (
        "config.json",
        "data.json",
        "environment.json",
        "metrics.jsonl",
        "predictions.npz",
        "report.json",
        "report.md",
        "report.html",
        "results.csv",
        "student/model.safetensors",
        "student/model.stablehlo",
        "student/README.md",
    ):
        assert (workdir / name).stat().st_size > 0, name
    assert list((workdir / "plots").glob("*.png"))
    assert list((workdir / "tensorboard").iterdir())
    text = (workdir / "report.json").read_text()
    assert "NaN" not in text and "Infinity" not in text
    html = (workdir / "report.html").read_text()
    assert "data:image/png;base64" in html and 'src="plots' not in html and "http://" not in html


def test_the_report_has_every_row_and_comparison(finished):
    workdir, result = finished
    assert result == json.loads((workdir / "report.json").read_text())
    of_role = lambda role: [row["name"] for row in result["rows"] if row["role"] == role]  # noqa: E731
    assert len(of_role("teacher")) == 2
    assert len(of_role("ensemble")) == 4
    assert sorted(of_role("student")) == sorted(2 * ALL["students.modes"])
    assert of_role("baseline") == ["baseline"] * 2 and of_role("control") == ["control"] * 2
    for row in result["rows"]:
        assert 0 <= row["accuracy"]["mean"] <= 1
        assert row["params"] > 0 and row["flops"] > 0
        assert row["role"] == "linear" or row["latency_ms"]["1"] > 0
    asked = {(c["a"], c["b"]) for c in result["comparisons"]}
    assert {("mimic_all", "baseline"), ("mimic_all", "control"), ("vote", "output_avg")} <= asked
    assert any("equal gradients" in note for note in result["notes"])


def test_choices_come_from_validation_alone(finished):
    """The chosen (alpha, T) is the lowest mean validation NLL of what metrics.jsonl says of all members."""
    workdir, result = finished
    best: dict[tuple[str, str], float] = {}
    for line in (workdir / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        if record["name"] == "val_nll" and record["stage"].startswith("students"):
            key = (record["stage"], record["member"])
            best[key] = min(best.get(key, np.inf), record["value"])
    for row in result["rows"]:
        if row["role"] != "student":
            continue
        cells = {}
        for (stage, member), value in best.items():
            mode, alpha, temperature, *_ = member.split(" ")
            if mode == row["name"] and stage.startswith(f"students-{row['transfer']}"):
                cells.setdefault((float(alpha[2:]), float(temperature[2:])), []).append(value)
        assert len(cells) == 4
        chosen = min(cells, key=lambda cell: np.mean(cells[cell]))
        assert (row["alpha"], row["temperature"]) == chosen


def test_the_student_can_be_used_without_the_run(finished):
    workdir, _ = finished
    model, variables, card = export.load_student(workdir / "student", addresses.build_model)
    split = experiment.load_split(small.config(**ALL))
    images = np.asarray(split.dataset.test_images, np.float32) / 255
    outputs, _ = model.apply(variables, images)
    found = predictions.load(workdir / "predictions.npz")
    accuracy = np.mean(np.argmax(outputs.logits, axis=1) == found.test_labels)
    np.testing.assert_allclose(accuracy, card["metrics"]["test accuracy"]["value"])


def test_a_finished_run_prints_its_report_and_another_configuration_is_refused(finished):
    workdir, result = finished
    before = {path: path.stat().st_mtime_ns for path in workdir.rglob("*") if path.is_file()}
    assert experiment.run(small.config(**ALL), workdir, quiet=True) == result
    assert experiment.run(small.config(**{**ALL, "runtime.how": "map"}), workdir, quiet=True) == result
    assert [path.name for path, at in before.items() if path.stat().st_mtime_ns != at] == []
    with pytest.raises(UserError, match="train.epochs was 2 and is 4"):
        experiment.run(small.config(**{**ALL, "train.epochs": 4}), workdir, quiet=True)


def test_other_data_in_a_workdir_is_refused(tmp_path):
    """The same path and shapes, other images: an interrupted run must not go on with them."""

    def config(seed):
        split = experiment.load_split(
            small.config(**{"data.source": f"synthetic(num_train=80, size=4, seed={seed})"})
        )
        d = split.dataset
        np.savez(
            tmp_path / "data.npz",
            train_images=d.train_images,
            train_labels=d.train_labels,
            test_images=d.test_images,
            test_labels=d.test_labels,
        )
        return small.config(
            **{"data.source": "npz", "data.path": str(tmp_path / "data.npz"), "students.modes": ()}
        )

    experiment.train(config(0), tmp_path / "run", quiet=True)
    with pytest.raises(UserError, match="data_sha256"):
        experiment.run(config(1), tmp_path / "run", quiet=True)


def test_a_student_that_breaks_down_has_no_part_in_its_row():
    config = small.config()
    split = experiment.load_split(config)
    family = next(f for f in students.families(config) if f[0].mode == "output_avg")
    names = tuple(students.member_name(member) for member in family)
    model = teachers.network(split, config.model.name)
    variables = population.init(model, jax.random.split(jax.random.key(0), len(family)), (4, 4, 1))
    trained = Population(model, variables, {}, names)
    finite = np.array([not (member.mode == "baseline" and member.seed == 1) for member in family])
    fitted = training.as_fitted(trained, {"alive": finite, "val_nll": np.ones(len(family))}, 0.0)
    stage = plan.Stage("students", None, family, "labelled")
    predicted = evaluation.predict(config, split, (stage,), {"students": fitted})
    rows = {group.name: group for group in predicted.groups}
    assert rows["baseline"].members == ("seed 0",) and len(rows["baseline"].test) == 1
    assert rows["output_avg"].members == ("seed 0", "seed 1")
    assert any("baseline a=1 T=1 seed 1" in note for note in predicted.notes)


def test_git_is_not_needed(monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert workdir_module.environment(0)["commit"] is None


def test_the_report_is_rebuilt_without_training(finished, tmp_path):
    workdir, result = finished
    (tmp_path / "predictions.npz").write_bytes((workdir / "predictions.npz").read_bytes())
    assert document.write(tmp_path)["rows"] == result["rows"]


def test_a_report_of_an_earlier_version_is_not_whole_and_is_made_again(finished):
    """Reports had no list of metrics, then one without addresses."""
    config, report = small.config(**ALL), finished[1]
    assert experiment._is_whole(report, config)
    before = {name: value for name, value in report.items() if name != "metrics"}
    assert not experiment._is_whole(before, config)
    config.report.metrics = ("mine.py:cost",)
    without = [{name: one[name] for name in one if name != "address"} for one in report["metrics"]]
    assert not experiment._is_whole({**report, "metrics": without}, config)


def test_teachers_of_another_run_are_taken_as_they_are(finished, tmp_path):
    workdir, result = finished
    config = small.config(**{**ALL, "teachers.from_run": str(workdir), "students.alphas": (0.25,)})
    again = experiment.run(config, tmp_path / "again", quiet=True)
    assert teachers_of(again) == teachers_of(result)
    assert not list((tmp_path / "again" / "checkpoints").glob("teachers*"))
    with pytest.raises(UserError, match="split_sha256|sizes"):
        experiment.run(
            small.config(**{**ALL, "teachers.from_run": str(workdir), "seed": 1}), tmp_path / "x", True
        )
    other = {**ALL, "teachers.from_run": str(workdir), "teachers.num_members": 3}
    with pytest.raises(UserError, match="another num_members: 2 there, 3 here"):
        experiment.run(small.config(**other), tmp_path / "z", True)
    for folder, why in (("none", "holds no run"), ("again", "by teachers.from_run; name the run")):
        lent = small.config(**{**ALL, "teachers.from_run": str(tmp_path / folder)})
        with pytest.raises(UserError, match=why):
            experiment.run(lent, tmp_path / "y", True)


def teachers_of(result):
    roles = ("teacher", "ensemble")
    return [(r["name"], r["accuracy"], r["nll"]) for r in result["rows"] if r["role"] in roles]


def test_the_same_run_twice_gives_the_same_bytes(tmp_path):
    """report.json but for times, and every array of predictions.npz."""
    for name in ("a", "b"):
        experiment.run(small.config(), tmp_path / name, quiet=True)
    (document, stored), again = (small.numbers(tmp_path / name) for name in ("a", "b"))
    assert (document, stored) == again
    assert '"accuracy"' in document and "latency_ms" in document and len(stored) > 5


def refusal(arguments, capsys):
    assert main.main(["main", *map(str, arguments)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error
    return error


@pytest.fixture
def digits():
    return f"--config={small.CONFIGS / 'digits.py'}:smoke"


@pytest.mark.parametrize(
    "arguments, expected",
    [
        (["--config.train.epoch=3"], "did you mean 'train.epochs'"),
        (["--config.train.epochs=many"], "train.epochs"),
        (["--config.students.alphas=(0,2)"], "[0, 1]"),
        (["--config.students.modes=mimic_al"], "'mimic_all'"),
        (["--config.teachers.num_members=0"], "at least 1"),
        (["--config.data.num_train=5000"], "data.num_train"),
        (["--config.data.source=npz", "--config.data.path=nowhere.npz"], "nowhere.npz"),
        (["--config.teachers.from_run=nowhere"], "teachers.from_run"),
        (["--config.students.model=cnn(widths=(4,4,4,4))"], "8x8"),
        (["--config.data.augment.shift=9"], "config.data.augment.shift = 9"),
        (["--config.data.augment.rand_augment=7"], "config.data.augment.rand_augment"),
        (["--config.data.num_train=0"], "unlabelled"),
        (["--config.train.batch_size=200"], "100 training examples"),
        (["--config.trian.epochs=3"], "config.trian does not exist; did you mean 'train'?"),
        (["--config.train.lr=3"], "did you mean 'train.learning_rate'?"),
        (["--config.optimizer=sgd"], "did you mean 'train.optimizer'?"),
        (["--config.train=3"], "config.train is a group of fields; set one of them: accumulate, "),
        (["--config.train.epochs.x=3"], "is one field and has no 'x' inside it"),
        (["--config.students.modes=vote", "--config.students.modes=a"], "there is no mode 'a'"),
        (["--config.students.arguments={3: {}}"], "the key 3 is no text"),
        (["--config.students.arguments={'mimic_all': {3: 1}}"], "the key 3 is no text"),
        (["--config.students.arguments={'mimic_all': {'x': 1}}"], "no argument 'x'"),
        (["--wrkdir=x"], "did you mean '--workdir'?"),
        (["--work=x"], "did you mean '--workdir'?"),
        (["--workdir"], "expected one argument"),
        (["surplus"], "surplus"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(arguments, expected, digits, tmp_path, capsys):
    workdir = tmp_path / "run"
    assert expected in refusal([digits, f"--workdir={workdir}", *arguments], capsys)
    assert not (workdir / "config.json").exists()


def test_missing_files_variants_and_flags_are_named(tmp_path, capsys, digits):
    file = tmp_path / "file"
    file.write_text("")
    assert "is a file" in refusal([digits, f"--workdir={file}"], capsys)
    assert "--workdir is missing" in refusal([digits], capsys)
    assert "--config is missing" in refusal([f"--workdir={tmp_path}"], capsys)
    assert "no file" in refusal(["--config=nowhere.py", f"--workdir={tmp_path}"], capsys)
    assert "'smoke'" in refusal([digits.replace(":smoke", ":smok"), f"--workdir={tmp_path / 'x'}"], capsys)
    bad = tmp_path / "bad.py"
    bad.write_text("def get_config(:\n")
    assert "bad.py" in refusal([f"--config={bad}", f"--workdir={tmp_path / 'x'}"], capsys)
    bad.write_text("def get_config():\n    return 3\n")
    assert "ConfigDict" in refusal([f"--config={bad}", f"--workdir={tmp_path / 'x'}"], capsys)
    assert "did you mean 'digits'?" in refusal(["--config=digit", f"--workdir={tmp_path / 'x'}"], capsys)


def test_data_that_cannot_be_right_is_refused_before_anything_is_written(tmp_path, capsys, digits):
    labels = np.arange(40) % 4
    images = np.zeros((40, 4, 4), np.uint8)
    np.savez(tmp_path / "bad.npz", x_train=images, y_train=labels + 0.5, x_test=images, y_test=labels)
    arguments = [digits, f"--workdir={tmp_path / 'run'}", "--config.data.source=npz"]
    error = refusal([*arguments, f"--config.data.path={tmp_path / 'bad.npz'}"], capsys)
    assert "bad.npz" in error and "label" in error
    assert not (tmp_path / "run" / "config.json").exists()


def test_help_has_examples_fields_and_configurations(capsys):
    assert main.main(["main", "--help"]) == 0
    printed = capsys.readouterr().out
    for word in ("--config.model.name='cnn(widths=(32, 64))'", "students.alphas=0.0,0.25,0.5", "  digits   "):
        assert word in printed
    assert main.main(["main", "-h", "--config=nowhere"]) == 0


def test_what_help_shows_can_be_typed(tmp_path):
    """The longest example, as the shell splits it."""
    command = main.EXAMPLES.split("--config=mine.py", 1)[1].split("python -m")[0].replace("\\\n", " ")
    options = main.parse(["main", "--config=digits", *shlex.split(command)])
    validation.validate(options.config)
    assert options.config.students.modes == ("mimic_all", "logits.dkd")
    assert options.config.students.arguments == {"logits.dkd": {"nontarget_weight": (2.0, 8.0)}}
    assert options.config.data.augment.flip and options.workdir == Path("runs/mine")


def test_list_of_a_name_tells_all_of_it(capsys):
    assert main.main(["main", "--list", "logits.dkd"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("mode logits.dkd(target_weight=1.0, nontarget_weight=8.0, warmup=0.08333)\n")
    assert "arXiv 2203.08679" in printed
    assert main.main(["main", "--list=digits"]) == 0
    assert capsys.readouterr().out.startswith("source digits\n")
    assert "did you mean 'logits.dkd'?" in refusal(["--list=logits.dk"], capsys)


def test_list_prints_the_catalogue(capsys):
    assert main.main(["main", "--list"]) == 0
    printed = capsys.readouterr().out
    assert printed.index("modes:") < printed.index("modes, averages:\n  averages.mean_teacher(")
    for word in ("mimic_all", "mean_probs", "cnn", "digits"):
        assert word in printed
