"""What must not lose a run: kills, a second run, a full disk, damage, a member that breaks down."""

import ast
import contextlib
import dataclasses
import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import mtkd_jax
from mtkd_jax import experiment, main
from mtkd_jax.engine import training, tuning
from mtkd_jax.plans import plan
from mtkd_jax.runs import logbook, workdir
from mtkd_jax.system import files
from mtkd_jax.types import UserError
from tests import small

# A network that is fused of the teachers is a stage between theirs and the students'.
FUSED = {"students.modes": ("mimic_all", "supernet")}


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    """The small run as a command line that saves after every piece."""
    file = tmp_path_factory.mktemp("config") / "small.py"
    file.write_text(f"from tests import small\n\ndef get_config():\n    return small.config(**{FUSED})\n")
    return ["main", f"--config={file}", "--config.runtime.checkpoint_seconds=0"]


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    """The folder of the run that nothing happens to."""
    folder = tmp_path_factory.mktemp("whole")
    assert main.main([*command, f"--workdir={folder}"]) == 0
    return folder


def refusal(command, capsys) -> str:
    """The one line a command ends with."""
    capsys.readouterr()
    assert main.main(command) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("mtkd_jax: ")]
    assert len(said) == 1
    return said[0]


# --- kill -9 ------------------------------------------------------------------------------------------

# Importing takes longer than the run itself. It is done once, and every run is a fork of that: told a command
# line, it says the process and, when that has ended, the exit code.
FORKS = """
import os, sys
import orbax.checkpoint, tensorboardX
from mtkd_jax import experiment, main, report
for line in sys.stdin:
    if not (process := os.fork()):
        os.dup2(2, 1)
        os._exit(main.main(["main", *line.split()]))
    print(process, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
"""


@pytest.fixture
def start(command, tmp_path):
    """A function that starts a run in a folder; returns its process and a function that waits for its end."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache"), "JAX_NUM_CPU_DEVICES": "1"}
    forks = subprocess.Popen(
        [sys.executable, "-c", FORKS],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def start(folder: Path) -> tuple[int, Callable[[], int]]:
        forks.stdin.write(" ".join([*command[1:], f"--workdir={folder}"]) + "\n")
        forks.stdin.flush()
        return int(forks.stdout.readline()), lambda: int(forks.stdout.readline())

    yield start
    forks.stdin.close()
    forks.wait()
    forks.stdout.close()


@pytest.mark.slow(seconds=180)
def test_killed_at_20_random_moments_the_report_is_the_same(start, tmp_path):
    """In training, saving and reporting: from the first instruction to about the end of a run."""
    for name in ("cold", "whole"):  # the second one with every program compiled
        begun = time.monotonic()
        _, exit_code = start(tmp_path / name)
        assert exit_code() == 0
    seconds = time.monotonic() - begun
    drawn, num_kills, folders = random.Random(0), 0, [tmp_path / "0"]
    while num_kills < 20:
        process, exit_code = start(folders[-1])
        time.sleep(drawn.uniform(0, seconds))
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
        code = exit_code()
        assert code in (0, -signal.SIGKILL)
        num_kills += code != 0
        if code == 0 or (folders[-1] / "report.json").exists():  # it was the quicker one
            folders.append(tmp_path / str(len(folders)))
    if not folders[-1].exists():
        folders.pop()
    _, exit_code = start(folders[-1])
    assert exit_code() == 0
    for folder in folders:
        assert small.numbers(folder) == small.numbers(tmp_path / "whole")


def test_a_folder_with_half_a_beginning_is_begun_again(command, whole, tmp_path):
    """Killed while its description was written: config.json comes last and is written whole."""
    (tmp_path / "data.json").write_bytes((whole / "data.json").read_bytes())
    (tmp_path / "config.json.part").write_text('{"config": {"see')
    assert main.main([*command, f"--workdir={tmp_path}"]) == 0
    assert small.numbers(tmp_path) == small.numbers(whole)


# --- the lock -----------------------------------------------------------------------------------------

HOLDER = """
import sys, time
from pathlib import Path
from mtkd_jax.runs import workdir
with workdir.lock(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_second_run_is_refused_until_the_first_one_is_dead(command, whole, tmp_path, capsys):
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, tmp_path], stdout=subprocess.PIPE, text=True)
    assert holder.stdout.readline() == "locked\n"
    command = [*command, f"--workdir={tmp_path}"]
    line = refusal(command, capsys)
    assert f"{tmp_path} is in use by another run, process {holder.pid} on " in line
    assert not (tmp_path / "config.json").exists()
    holder.kill()
    holder.communicate()
    assert main.main(command) == 0
    assert small.numbers(tmp_path) == small.numbers(whole)


def test_a_lock_is_given_back_and_a_finished_report_needs_none(whole, tmp_path):
    for _ in range(2):
        with workdir.lock(tmp_path), pytest.raises(UserError, match="in use"), workdir.lock(tmp_path):
            pass
    with workdir.lock(whole):
        assert experiment.run(small.config(**FUSED), whole, quiet=True) == workdir.read_report(whole)


# --- the disk -----------------------------------------------------------------------------------------


def largest_files(folder: Path) -> dict[str, int]:
    return {p.relative_to(folder).as_posix(): p.stat().st_size for p in folder.rglob("*") if p.is_file()}


NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def refuse_file(patch: pytest.MonkeyPatch, name: str) -> None:
    """Let every file be written but the one of this name."""
    original = os.replace

    def replace(source, target):
        if Path(target).name == name:
            raise NO_SPACE
        original(source, target)

    patch.setattr(os, "replace", replace)


def refuse_weights(patch: pytest.MonkeyPatch, _) -> None:
    def write_bytes(self, data):
        raise NO_SPACE

    patch.setattr(Path, "write_bytes", write_bytes)


def refuse_space(patch: pytest.MonkeyPatch, _) -> None:
    usage = shutil.disk_usage(".")
    patch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=0))


def refuse_growth(patch: pytest.MonkeyPatch, _) -> None:
    """A limit on the size of a file, as far as files are written that grow: the system itself refuses."""
    original = logbook.Logbook.record

    def record(*arguments):
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
        try:
            original(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))

    patch.setattr(logbook.Logbook, "record", record)


def test_whatever_the_disk_refuses_it_is_one_line_and_the_same_command_goes_on(
    command, whole, tmp_path, capsys
):
    command = [*command, f"--workdir={tmp_path}"]
    for refuse, name in (
        (refuse_file, "data.json"),
        (refuse_file, "config.json"),
        (refuse_growth, "metrics.jsonl"),
        (refuse_space, "checkpoints"),
        (refuse_file, "predictions.npz"),
        (refuse_weights, "student"),
        (refuse_file, "rows.png"),
        (refuse_file, "report.json"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            refuse(patch, name)
            line = refusal(command, capsys)
        assert str(tmp_path) in line and name in line
        assert any(word in line for word in ("No space left on device", "File too large", "MiB are free"))
        assert not list(tmp_path.rglob("*.part")) and not list(tmp_path.rglob(".writing*"))
    assert main.main(command) == 0
    assert small.numbers(tmp_path) == small.numbers(whole)


def test_a_folder_that_cannot_be_written_is_one_line(command, tmp_path, monkeypatch, capsys):
    def refuse(self):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "touch", refuse)
    assert "cannot be written: Read-only file system" in refusal([*command, f"--workdir={tmp_path}"], capsys)


# --- damage -------------------------------------------------------------------------------------------


def copied(whole: Path, to: Path) -> Path:
    """The folder of a run that was killed before its report."""
    for path in whole.rglob("*"):
        if path.is_file() and path.name != "report.json":
            target = to / path.relative_to(whole)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return to


def test_damage_that_costs_nothing_is_mended(command, whole, tmp_path):
    folder = copied(whole, tmp_path)
    (folder / "predictions.npz").write_bytes(b"PK")
    (folder / "student" / "model.json").write_text("{")
    (folder / "tensorboard").rename(folder / "gone")
    assert main.main([*command, f"--workdir={folder}"]) == 0
    assert small.numbers(folder) == small.numbers(whole)


@pytest.mark.parametrize(
    "break_it, said",
    [
        (lambda folder: (folder / "config.json").write_text('{"conf'), "config.json"),
        (lambda folder: (folder / "config.json").unlink(), "no config.json"),
        (lambda folder: (folder / "data.json").write_bytes(b"\xff"), "data.json"),
        (
            lambda folder: next(folder.glob("checkpoints/teachers*/finished/*/info.json")).unlink(),
            "info.json",
        ),
        (
            lambda folder: next(folder.glob("checkpoints/teachers*/finished/*/manifest.json")).write_text(
                "{}"
            ),
            "not in the manifest",
        ),
    ],
)
def test_damage_to_what_was_trained_is_an_error_that_names_it(
    command, whole, tmp_path, capsys, break_it, said
):
    folder = copied(whole, tmp_path)
    break_it(folder)
    before = largest_files(folder / "checkpoints")
    assert said in refusal([*command, f"--workdir={folder}"], capsys)
    assert largest_files(folder / "checkpoints") == before


def test_a_stage_that_starts_again_says_so(command, whole, tmp_path, capsys):
    """Its checkpoints are gone: only the log tells that from a run killed before its first save."""
    folder = copied(whole, tmp_path)
    (next(folder.glob("checkpoints/students*/finished/*"))).rename(folder / "gone")
    assert main.main([*command, f"--workdir={folder}"]) == 0
    assert "had come to epoch 4, saved up to 0; goes on from there" in capsys.readouterr().err
    assert small.numbers(folder) == small.numbers(whole)


def test_a_stage_of_another_run_or_in_the_place_of_another_is_refused(command, whole, tmp_path, capsys):
    folder = copied(whole, tmp_path / "swapped")
    one, other = sorted((folder / "checkpoints").glob("students*"))
    one.rename(folder / "kept")
    other.rename(one)
    (folder / "kept").rename(other)
    line = refusal([*command, f"--workdir={folder}"], capsys)
    assert f"these checkpoints are of stage {other.name}; put those of {one.name} back" in line
    seed = tmp_path / "seed"
    assert main.main([*command, f"--workdir={seed}", "--config.seed=1"]) == 0
    folder = copied(whole, tmp_path / "mixed")
    teachers = next((folder / "checkpoints").glob("teachers*"))
    shutil.rmtree(teachers)
    shutil.copytree(seed / "checkpoints" / teachers.name, teachers)
    assert "these checkpoints are of another run" in refusal([*command, f"--workdir={folder}"], capsys)


def test_other_rules_in_a_finished_run_train_nothing_and_are_reported(command, whole, tmp_path, monkeypatch):
    shutil.copytree(whole, tmp_path / "run")
    into = tmp_path / "run"
    asked = ["--config.fusion.rules=('mean_probs','copeland')", "--config.report.margin=0.25"]
    monkeypatch.setattr(training, "advance", lambda *_: pytest.fail("trained"))
    assert main.main([*command, f"--workdir={into}", *asked]) == 0
    report = workdir.read_report(into)
    assert [row["name"] for row in report["rows"] if row["role"] == "ensemble"] == ["mean_probs", "copeland"]
    assert report["margin"] == 0.25
    assert workdir.read_config(into)["fusion"]["rules"] == ["mean_probs", "copeland"]
    assert main.main([*command, f"--workdir={into}"]) == 0  # back again
    assert small.numbers(into) == small.numbers(whole)


def test_a_damaged_report_is_made_again(command, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    for text in ("{}", "[]", "{", (whole / "report.json").read_text().replace("0.", "1.", 1)):
        (tmp_path / "run" / "report.json").write_text(text)
        assert main.main([*command, f"--workdir={tmp_path / 'run'}"]) == 0
        assert small.numbers(tmp_path / "run") == small.numbers(whole)


def test_a_run_whose_folder_is_removed_says_so(command, tmp_path, capsys, monkeypatch):
    folder, record = tmp_path / "run", logbook.Logbook.record

    def removed(*arguments):
        record(*arguments)
        shutil.rmtree(folder)

    monkeypatch.setattr(logbook.Logbook, "record", removed)
    line = refusal([*command, f"--workdir={folder}"], capsys)
    assert "was removed while the run wrote into it; start again where it stays" in line
    assert not folder.exists()


@pytest.mark.parametrize(
    "text, said",
    [
        ("[]", "not what a run writes"),
        ("{}", "not what a run writes"),
        ('{"config": "digits"}', "not what a run writes"),
        ('{"config": {"teachers": 3}}', "config.teachers is 3; it must be a group of fields"),
        ('{"config": {"students": {"modes": 3}}}', "config.students.modes is 3; it must be a tuple of str"),
        ('{"config": {}}', "data.json: is missing"),
    ],
)
def test_a_config_of_another_form_is_one_line(text, said, command, tmp_path, capsys):
    (tmp_path / "config.json").write_text(text)
    assert said in refusal([*command, f"--workdir={tmp_path}"], capsys)
    line = refusal(
        [*command, f"--workdir={tmp_path / 'new'}", f"--config.teachers.from_run={tmp_path}"], capsys
    )
    assert said in line or "from_run" in line


def test_a_field_that_an_upgrade_has_added_stood_at_its_default(command, whole, tmp_path, capsys):
    folder = copied(whole, tmp_path)
    path = folder / "config.json"
    described = files.read_sealed(path, "")
    del described["config"]["train"]["class_weights"], described["config"]["report"]
    files.write_sealed(path, described)
    assert main.main([*command, f"--workdir={folder}"]) == 0
    described["config"]["train"]["gone"], described["version"] = 3, "0.0.1"
    files.write_sealed(path, described)
    line = refusal([*command, f"--workdir={folder}"], capsys)
    assert "another run of mtkd_jax 0.0.1: train.gone was 3 and does not exist any more" in line


def test_one_address_in_two_spellings_is_one_run(command, whole, tmp_path):
    shutil.copytree(whole, tmp_path / "run")
    (tmp_path / "run" / "report.json").unlink()
    spelt = ["--config.model.name=mlp( hidden=( 8, ), dropout=0.0)"]
    assert main.main([*command, f"--workdir={tmp_path / 'run'}", *spelt]) == 0
    assert small.numbers(tmp_path / "run") == small.numbers(whole)


def test_a_run_that_ended_between_two_stages_is_gone_on_with_to_the_same_numbers(command, whole, tmp_path):
    stages = sorted((whole / "checkpoints").iterdir(), key=lambda folder: folder.stat().st_mtime)
    assert len(stages) > 2
    for num_done in range(len(stages) + 1):
        folder = copied(whole, tmp_path / str(num_done))
        (folder / "predictions.npz").unlink()
        for stage in stages[num_done:]:
            shutil.rmtree(folder / "checkpoints" / stage.name)
        assert main.main([*command, f"--workdir={folder}"]) == 0
        assert small.numbers(folder) == small.numbers(whole), f"after {num_done} stages"


def test_what_the_log_cannot_use_is_dropped_and_said(tmp_path, capsys):
    record = {
        "stage": "a",
        "epoch": 2,
        "step": 4,
        "member": "m",
        "name": "val_nll",
        "value": 0.5,
        "wall": 1.0,
    }
    path = tmp_path / "metrics.jsonl"
    good = [json.dumps(record), json.dumps({**record, "epoch": 4}), json.dumps({**record, "stage": "b"})]
    path.write_bytes(
        "\n".join([good[0], "3", '{"stage": "a"}', *good[1:], '{"stage": "a", "epo']).encode() + b"\xff"
    )
    with logbook.Logbook(tmp_path) as book:
        book.cut_back("a", 2)
    assert path.read_text().splitlines() == [good[0], good[2]]
    said = capsys.readouterr().err
    assert "3 lines are no records" in said and "a: had come to epoch 4, saved up to 2" in said


def test_a_stage_goes_on_in_the_parts_it_was_begun_in(tmp_path, monkeypatch):
    """Whatever memory is free: checkpoints of other parts would not be found."""
    config = small.config(**{"teachers.num_members": 4, "students.modes": ()})
    split = experiment.load_split(config)
    (stage,) = plan.train_teachers(config, split)
    job, directory = stage.make({}), tmp_path / stage.name
    monkeypatch.setattr(tuning.forecast, "members_at_once", lambda job: 2)
    assert tuning.members_at_once(job, directory) == 2
    monkeypatch.setattr(tuning.forecast, "members_at_once", lambda job: 3)
    assert tuning.members_at_once(job, directory) == 3  # nothing is saved yet
    (directory / "part-1" / "7").mkdir(parents=True)
    (directory / "part-1" / "7" / "manifest.json").touch()
    monkeypatch.setattr(tuning.forecast, "members_at_once", lambda job: 4)
    assert tuning.members_at_once(job, directory) == 3
    with pytest.raises(UserError, match="members_at_once: 2, but .* was begun with 3"):
        tuning.members_at_once(dataclasses.replace(job, at_once=2), directory)
    stored = (directory / "parts.json").read_text()
    for damaged, said in (("{", "cannot be read"), (stored.replace("3", "2", 1), "damaged"), ("", "missing")):
        if damaged:
            (directory / "parts.json").write_text(damaged)
        else:
            (directory / "parts.json").unlink()
        with pytest.raises(UserError, match=f"parts.json: .*{said}.*; restore it, or remove "):
            tuning.members_at_once(job, directory)


# --- members that break down --------------------------------------------------------------------------


def test_a_member_that_breaks_down_is_named_in_log_and_report_and_left_out_of_fusion(tmp_path, capsys):
    rates = {"teachers.learning_rates": (1e-2, 1e30, 1e-2)}
    result = experiment.run(small.config(**rates), tmp_path)
    line = "teachers-mlp-hidden-8: teacher 1 left out, the loss was not finite"
    assert f"warning: {line}" in capsys.readouterr().err
    assert line in result["notes"]
    (teachers,) = (row for row in result["rows"] if row["role"] == "teacher")
    assert teachers["n"] == 2
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as stored:
        assert stored["group0_test"].shape[0] == 2 and np.isfinite(stored["group0_test"]).all()


# --- nothing executes what it loads -------------------------------------------------------------------

FORBIDDEN_IMPORTS = {
    "pickle",
    "cPickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "yaml",
    "runpy",
}
FORBIDDEN_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "extractall",
    "extract",
    "unpack_archive",
    "fromfile",
}


@pytest.mark.parametrize(
    "path", sorted(Path(mtkd_jax.__file__).parent.rglob("*.py")), ids=lambda path: path.stem
)
def test_nothing_executes_what_it_loads(path):
    """But for the user's own code: the configuration file, and files that an address names."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""] if isinstance(node, ast.ImportFrom) else [a.name for a in node.names]
        )
    }
    assert imported & FORBIDDEN_IMPORTS == set()
    forbidden = FORBIDDEN_CALLS - ({"exec", "compile"} if path.stem == "own_code" else set())
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        name = ast.unparse(call.func)
        given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert name not in forbidden and name.rpartition(".")[2] not in forbidden - {"compile"}, name
        if name in ("np.load", "numpy.load"):
            assert given.get("allow_pickle") == "False", ast.unparse(call)
        if name == "torch.load":
            assert given.get("weights_only") == "True", ast.unparse(call)
        if name.startswith("subprocess.") or name == "os.system":
            assert "shell" not in given and name != "os.system", ast.unparse(call)
