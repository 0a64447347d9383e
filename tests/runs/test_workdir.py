"""What says whose a folder is: every file of it damaged, exchanged, of another form or of another version."""

import copy
import json
import subprocess

import jax
import pytest

from mtkd_jax import config as configuration
from mtkd_jax import experiment
from mtkd_jax.engine import training, tuning
from mtkd_jax.plans import teachers
from mtkd_jax.report import document
from mtkd_jax.runs import workdir
from mtkd_jax.system import files
from mtkd_jax.types import UserError
from tests import small

STRANGE = (3, "mlp(", [], {}, None, [[1]])


@pytest.fixture(scope="module")
def config():
    return configuration.in_one_spelling(small.config())


@pytest.fixture(scope="module")
def split(config):
    return experiment.load_split(config)


@pytest.fixture
def run(tmp_path, config, split):
    """The folder of a run that has not trained anything yet."""
    folder = tmp_path / "run"
    folder.mkdir()
    workdir.describe(folder, config, split)
    return folder


def refusal(function, *arguments) -> str:
    with pytest.raises(UserError) as caught:
        function(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def places(tree, place=()):
    """Where a JSON object can be changed: every value in it, however deep."""
    for name, value in tree.items():
        yield (*place, name)
        if isinstance(value, dict):
            yield from places(value, (*place, name))


def changed(tree, place, value):
    tree = copy.deepcopy(tree)
    inner = tree
    for name in place[:-1]:
        inner = inner[name]
    inner[place[-1]] = value
    return tree


# --- other forms --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["config.json", "data.json"])
def test_whatever_stands_in_a_file_it_is_one_line_or_the_same_run(name, run, config, split, monkeypatch):
    """Also where its hash is right: somebody may have edited it and made another."""
    identity = workdir._identity(config, split)
    monkeypatch.setattr(workdir, "_identity", lambda *_: identity)  # the data are read once
    path, lent = run / name, small.config(**{"teachers.from_run": str(run)})
    written = files.read_sealed(path, "")
    (run / workdir.REPORT).write_text('{"rows": []}')
    trains = {group for group in written.get("config", {}) if group not in workdir.TRAINS_NOTHING}
    for place in places(written):
        for value in STRANGE:
            files.write_sealed(path, changed(written, place, value))
            told = []
            for function in (workdir.check, workdir.finished_report):
                try:
                    function(run, config, *([split] if function is workdir.check else []))
                except UserError as error:
                    told.append(str(error))
            assert not any("\n" in line for line in told)
            if value is None and trains & {*place}:  # an empty group has all its fields at their defaults
                assert told, place
    files.write_sealed(path, changed(written, next(places(written)), 3))
    assert str(run) in refusal(teachers.borrow, lent, split)


@pytest.mark.parametrize("text", ["[" * 100_000, "[]", "3", '{"config": [', "\0", '{"config": {}', ""])
def test_what_is_no_object_is_one_line(text, run, config, split):
    (run / "config.json").write_text(text)
    line = refusal(workdir.check, run, config, split)
    assert f"{run / 'config.json'}: " in line and "restore it, or choose another --workdir" in line
    (run / "report.json").write_text(text)
    assert workdir.read_report(run) is None


def test_a_run_without_its_data_is_damaged_and_not_another_run(run, config, split):
    (run / "data.json").unlink()
    assert f"{run / 'data.json'}: is missing; restore it" in refusal(workdir.check, run, config, split)
    lent = small.config(**{"teachers.from_run": str(run)})
    assert "data.json: is missing" in refusal(teachers.borrow, lent, split)


def test_every_bit_of_a_sealed_file_is_told_or_changes_nothing(run):
    path = run / "config.json"
    written, content = path.read_bytes(), files.read_sealed(path, "")
    refused = 0
    for position in range(0, len(written), 7):
        path.write_bytes(written[:position] + bytes([written[position] ^ 1]) + written[position + 1 :])
        try:
            found = files.read_sealed(path, "restore it")
        except UserError as error:
            refused += str(path) in str(error)
        else:  # the name of the seal itself, or white space
            assert {name: found.get(name) for name in content} == content
    assert refused > len(written) / 7 / 2


def test_a_lock_that_is_a_folder_is_one_line(run):
    (run / workdir.LOCK).mkdir()

    def lock():
        with workdir.lock(run):
            pytest.fail("locked")

    assert "cannot be written: Is a directory" in refusal(lock)


@pytest.mark.parametrize("content", [{"members_at_once": "3"}, {"members_at_once": 0}, {"members": 3}])
def test_parts_of_another_form_are_refused_and_not_begun_again(content, run, config, split):
    job, directory = teachers.job(config, split, config.model.name), run / "checkpoints" / "teachers-x"
    (directory / "7").mkdir(parents=True)
    (directory / "7" / "manifest.json").touch()
    files.write_sealed(directory / tuning.PARTS, content)
    assert "parts.json: not what a run writes; restore it, or remove" in refusal(
        tuning.members_at_once, job, directory
    )


@pytest.mark.parametrize("seconds", [3, "fast", [1.0], {"[1]": "fast"}])
def test_layouts_of_another_form_are_asked_again(seconds, config, split):
    assert tuning._answer_for(seconds, teachers.job(config, split, config.model.name)) is None


# --- whose it is --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "info, said",
    [
        ({"stage": "teachers-b", "run": "r"}, "are of stage teachers-b; put those of teachers-a back"),
        ({"stage": "teachers-a/part-2", "run": "r"}, "are of stage teachers-a/part-2"),
        ({"stage": "teachers-a", "run": "s"}, "are of another run, with other data or fields"),
        ({"stage": "teachers-a", "run": "r"}, None),
        ({}, None),  # the first versions do not say
    ],
)
def test_checkpoints_say_whose_they_are(info, said, tmp_path):
    if said is None:
        training.check_owner(info, tmp_path, "teachers-a", "r")
    else:
        line = refusal(training.check_owner, info, tmp_path, "teachers-a", "r")
        assert str(tmp_path) in line and said in line


@pytest.mark.parametrize("name", ["checkpoints", "student", "report.md", "predictions.npz"])
def test_a_folder_that_is_no_runs_and_holds_what_a_run_would_write_is_refused(name, tmp_path, config, split):
    workdir.check(tmp_path, config, split)
    (tmp_path / "notes.txt").touch()  # a run would leave it alone
    workdir.check(tmp_path, config, split)
    (tmp_path / name).touch()
    assert f"holds {name}, which a run writes" in refusal(workdir.check, tmp_path, config, split)


def test_files_beside_the_student_are_told_before_any_work(tmp_path):
    config = small.config()
    (tmp_path / "student").mkdir()
    workdir.describe(tmp_path, config, experiment.load_split(config))
    (tmp_path / "student" / "notes.txt").touch()
    with pytest.raises(UserError, match="holds 'notes.txt', which is no part of a student; move it away"):
        experiment.run(config, tmp_path)
    assert not (tmp_path / "checkpoints").exists()


def test_checkpoints_of_no_stage_are_refused_with_the_version_that_began(run, config):
    for name in ("teachers-a", "teachers-mlp-hidden-64-64", ".hidden"):
        (run / "checkpoints" / name).mkdir(parents=True)
    workdir.check_stages(run, ("teachers-a", "teachers-mlp-hidden-64-64", "students-labelled-vote"))
    described = files.read_sealed(run / "config.json", "")
    files.write_sealed(run / "config.json", {**described, "version": "0.0.1"})
    line = refusal(workdir.check_stages, run, ("teachers-a", "teachers-mlp"))
    assert "no stage of this run is called 'teachers-mlp-hidden-64-64'" in line
    assert f"begun by mtkd_jax 0.0.1, this is {workdir.VERSION}" in line


def test_a_run_that_lends_its_teachers_must_stay_the_same_one(run, tmp_path, split):
    config = small.config(**{"teachers.from_run": str(run)})
    lent_to = tmp_path / "lent_to"
    lent_to.mkdir()
    workdir.describe(lent_to, config, split)
    workdir.check(lent_to, config, split)
    other = small.config(**{"train.learning_rate": 0.5})
    for name in ("config.json", "data.json"):
        (run / name).unlink()
    workdir.check(lent_to, config, split)  # gone: its teachers may have been all that was needed of it
    workdir.describe(run, other, split)
    assert "from_run_sha256 was " in refusal(workdir.check, lent_to, config, split)


def test_a_run_keeps_its_name_when_fields_are_added_and_gets_another_with_other_data(run, config, split):
    name = workdir.read_run(run)
    described = files.read_sealed(run / "config.json", "")
    del described["config"]["train"]["class_weights"]
    files.write_sealed(run / "config.json", described)
    workdir.check(run, config, split)
    workdir.describe(run, config, split)
    assert workdir.read_run(run) == name
    identity = workdir.data_identity(split)
    others = (identity | {"data_sha256": "0"}, identity | {"split_sha256": "0"})
    assert len({workdir.run_hash(workdir._settings(config), one) for one in (identity, *others)}) == 3


def test_what_trains_nothing_does_not_name_a_run(config):
    plain = workdir._settings(config)
    same = small.config(**{"fusion.rules": ("borda",), "report.margin": 0.5, "runtime.how": "map"})
    assert workdir.config_hash(workdir._settings(same)) == workdir.config_hash(plain)
    other = small.config(**{"train.learning_rate": 0.5})
    assert workdir.config_hash(workdir._settings(other)) != workdir.config_hash(plain)


def test_predictions_of_another_run_are_not_reported(run):
    (run / workdir.PREDICTIONS).write_bytes(b"first")
    workdir.seal(run, workdir.PREDICTIONS)
    (run / workdir.REPORT).write_text('{"rows": []}')
    workdir.seal(run, workdir.REPORT)
    assert workdir.read_report(run) == {"rows": []}
    assert set(files.read_sealed(run / workdir.MANIFEST, "")) == {"predictions.npz", "report.json"}
    (run / workdir.PREDICTIONS).write_bytes(b"second")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workdir.predictions, "load", lambda path: "predictions")
        line = refusal(workdir.read_predictions, run)
        assert (
            "predictions.npz: not what the run wrote" in line and "give the command of the run again" in line
        )
        workdir.seal(run, workdir.PREDICTIONS)
        assert workdir.read_predictions(run) == "predictions"


def test_a_report_that_was_asked_for_before_the_end_does_not_end_the_run(run):
    (run / workdir.REPORT).write_text('{"rows": []}')
    workdir.seal(run, workdir.REPORT)
    assert workdir.read_report(run) is None


@pytest.mark.parametrize("rows", [3, [], [3], [{}], [{"name": "mean_probs"}], None, {"a": 1}])
def test_a_report_of_another_form_is_written_anew_and_not_shown(rows):
    assert not document.can_be_shown({"rows": rows})
    assert not document.can_be_shown({"rows": rows, "findings": 3, "dataset": "digits"})


# --- one spelling -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field, one, other",
    [
        ("model.name", "mlp(hidden=(8,))", "mlp( dropout=0, hidden=(8, ) )"),
        ("teachers.models", ("mlp(hidden=(64, 64))",), ("mlp()",)),
        ("students.model", "mlp(hidden=(64,64))", "mlp"),
        ("students.modes", ("logits.dkd(warmup=1)",), ("logits.dkd( warmup=1.0 )",)),
        ("students.modes", ("fused:median_probs",), ("fused(rule='median_probs')",)),
        ("fusion.rules", ("borda",), ("borda()",)),
        (
            "data.source",
            "synthetic(num_classes=4, num_train=120, num_test=40, size=4, noise=0.4)",
            "synthetic(noise=4e-1,size=4,num_train=120,num_test=40,num_classes=4)",
        ),
        ("plan", "born_again(generations=3)", "born_again()"),
        ("plan", "born_again(mode='logits.dkd(warmup=1.0)')", 'born_again(mode="logits.dkd( warmup=1 )")'),
        ("plan", "assistants(models=('mlp(hidden=(5,))',))", "assistants(models=('mlp( hidden=(5, ))',))"),
    ],
)
def test_addresses_that_mean_the_same_are_one_run(field, one, other, run, split):
    of_one, of_other = (small.config(**{field: address}) for address in (one, other))
    (run / "config.json").unlink()
    workdir.describe(run, configuration.in_one_spelling(of_one), split)
    workdir.check(run, of_other, split)
    assert workdir.read_config(run) == workdir._settings(of_other)
    stages = [
        [stage.name for stage in experiment.plan.build(configuration.in_one_spelling(config), split)]
        for config in (of_one, of_other)
    ]
    assert stages[0] == stages[1]


def test_arguments_that_mean_the_same_are_one_run(run, split):
    spelt = (
        {"logits.dkd(warmup=1)": {"nontarget_weight": (2, 8.0)}},
        {"logits.dkd(warmup=1.0)": {"nontarget_weight": (2.0, 8)}},
    )
    one, other = (
        configuration.in_one_spelling(
            small.config(**{"students.modes": tuple(arguments), "students.arguments": arguments})
        )
        for arguments in spelt
    )
    assert repr(one.students.arguments) == repr(other.students.arguments)
    assert repr(one.students.arguments) == "{'logits.dkd(warmup=1.0)': {'nontarget_weight': (2.0, 8.0)}}"


def test_teachers_are_lent_whatever_the_spelling_of_their_network(run, split):
    lent = small.config(**{"model.name": "mlp( hidden=( 8, ), dropout=0 )", "teachers.from_run": str(run)})
    assert "holds no finished teachers" in refusal(teachers.borrow, lent, split)  # else it is the right run
    other = small.config(**{"model.name": "mlp(hidden=(9,))", "teachers.from_run": str(run)})
    assert "has another models: ['mlp(hidden=(8,))'] there" in refusal(teachers.borrow, other, split)


@pytest.mark.parametrize(
    "field, value, said",
    [
        ("seed", 1, "another seed: 0 there, 1 here"),
        ("data.split", "random", "another split: 'grouped' there"),
    ],
)
def test_whose_samples_are_drawn_again_are_lent_to_those_who_draw_the_same(field, value, said, tmp_path):
    """What decides them may differ where the split does not, as of data with a validation set of its own."""
    sampled = {"teachers.folds": True}
    config = small.config(**sampled)
    split = experiment.load_split(config)
    workdir.describe(tmp_path, config, split)
    lent = {**sampled, "teachers.from_run": str(tmp_path), "teachers.out_of_bag": True}
    assert "holds no finished teachers" in refusal(teachers.borrow, small.config(**lent), split)
    message = refusal(teachers.borrow, small.config(**lent, **{field: value}), split)
    assert said in message and "out_of_bag=False" in message
    heard = small.config(**{**lent, "teachers.out_of_bag": False, field: value})
    assert "holds no finished teachers" in refusal(teachers.borrow, heard, split)


# --- rules --------------------------------------------------------------------------------------------


def test_a_rule_for_more_teachers_is_refused_before_the_data_are_read(monkeypatch):
    monkeypatch.setattr(configuration, "source_call", lambda config: pytest.fail("read"))
    line = refusal(
        lambda: small.config(**{"teachers.num_members": 2, "fusion.rules": ("trimmed_mean_probs",)})
    )
    assert line == "config.fusion.rules: trimmed_mean_probs: needs 3 members or more to trim, got 2"


def test_a_config_is_read_back_as_it_was_written(run, config):
    plain = json.loads(json.dumps(config.to_dict()))
    assert workdir.read_config(run) == plain


def test_the_commit_of_somebody_elses_repository_is_not_ours(tmp_path, monkeypatch):
    """Installed into an environment that lies in a repository; then as a part of it, then changed."""
    file = tmp_path / "package" / "runs" / "workdir.py"
    file.parent.mkdir(parents=True)
    file.write_text("1\n")
    (tmp_path / "theirs.txt").write_text("1\n")

    def git(*asked):
        named = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        done = subprocess.run(["git", *named, *asked], cwd=tmp_path, check=True, capture_output=True)
        return done.stdout.decode().strip()

    git("init", "--quiet")
    git("add", "theirs.txt")
    git("commit", "--quiet", "--message=theirs")
    monkeypatch.setattr(workdir, "__file__", str(file))
    assert workdir.environment(0)["commit"] is None
    git("add", "package")
    git("commit", "--quiet", "--message=ours")
    (tmp_path / "theirs.txt").write_text("2\n")  # no file of ours
    assert workdir.environment(0)["commit"] == git("rev-parse", "HEAD")
    file.write_text("2\n")
    assert workdir.environment(0)["commit"] == f"{git('rev-parse', 'HEAD')}-dirty"


def test_the_environment_names_the_packages_that_are_there():
    assert workdir._installed(("jax", "no-such-package")) == {"jax": jax.__version__}
    assert {"jax", "flax", "mtkd_jax"} <= set(workdir.environment(0)["packages"])
