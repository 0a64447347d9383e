"""Whatever stops a command line is one line and an exit code; streams that fail end nothing."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import pytest

from mtkd_jax import commands, experiment, main
from mtkd_jax.report import overview
from mtkd_jax.runs import logbook, workdir
from mtkd_jax.system import interrupts, paths, terminal
from mtkd_jax.types import UserError
from tests import small

CONFIG = "from tests import small\n\n\ndef get_config():\n    return small.config()\n"


# --- errors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "error, code, said",
    [
        (UserError("what, where, right"), 2, "mtkd_jax: what, where, right\n"),
        (OSError(28, "No space left on device", "a.npz"), 2, "mtkd_jax: a.npz: No space left on device\n"),
        (OSError(28, "No space left on device"), 2, "mtkd_jax: writing: No space left on device\n"),
        (
            MemoryError("Unable to allocate\n3 GiB"),
            2,
            "mtkd_jax: out of memory: Unable to allocate 3 GiB; make batches or networks smaller\n",
        ),
        (MemoryError(), 2, "mtkd_jax: out of memory: no more to be had; make batches or networks smaller\n"),
        (
            RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes."),
            2,
            "mtkd_jax: out of memory: RESOURCE_EXHAUSTED: Out of memory allocating 8 bytes.; make batches or "
            "networks smaller\n",
        ),
        (KeyboardInterrupt(), 130, "mtkd_jax: interrupted; the same command goes on from what is saved\n"),
        (
            interrupts.Interrupted(signal.SIGTERM, "all is saved"),
            143,
            "mtkd_jax: stopped by SIGTERM; all is saved; the same command goes on from there\n",
        ),
        (
            interrupts.Interrupted(2, "nothing is kept", False),
            130,
            "mtkd_jax: stopped by SIGINT; nothing is kept\n",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_stops_a_command_line_is_one_line_and_an_exit_code(error, code, said, capsys):
    def work():
        raise error

    assert terminal.answer(work) == code
    assert capsys.readouterr().err == said


def test_what_is_no_fault_of_the_user_is_raised():
    with pytest.raises(KeyError):
        terminal.answer(lambda: {}["a"])


def test_exit_codes_of_work_are_passed_on(capsys):
    assert terminal.answer(lambda: sys.exit(3)) == 3
    assert terminal.answer(lambda: None) == 0
    assert terminal.answer(lambda: 7) == 7
    assert capsys.readouterr().err == ""


def test_a_jax_without_devices_is_told_with_what_the_environment_says(monkeypatch, capsys):
    def none():
        raise AssertionError

    monkeypatch.setattr("jax.devices", none)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert terminal.answer(none) == 2
    said = capsys.readouterr().err
    assert said.startswith("mtkd_jax: JAX finds no device to compute on: none; the environment has ")
    assert "JAX_PLATFORMS=cuda" in said and said.count("\n") == 1


def test_64_bits_are_refused_before_any_work(tmp_path):
    with jax.enable_x64(True), pytest.raises(UserError, match="unset JAX_ENABLE_X64"):
        experiment.run(small.config(), tmp_path / "run", quiet=True)
    with jax.enable_x64(True), pytest.raises(UserError, match="unset JAX_ENABLE_X64"):
        next(experiment.costs(small.config()))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", [*commands.COMMANDS, "none", ""])
def test_every_command_refuses_an_unknown_option_in_one_line(command, capsys):
    arguments = [command, "--nosuch=3"] if command else ["--nosuch"]
    assert commands.main(arguments) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and "Traceback" not in said and "usage:" not in said.partition(";")[0]


@pytest.fixture(autouse=True)
def process_as_it_was(monkeypatch):
    """What `terminal.begin` changes for good."""
    monkeypatch.setenv("MPLBACKEND", "Agg")
    handler = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    yield
    signal.signal(signal.SIGINT, handler)


def test_commands_are_listed_and_the_nearest_is_named(capsys):
    assert commands.main(["--help"]) == 0
    told = capsys.readouterr().out
    assert all(f"mtkd {name} " in told for name in commands.COMMANDS)
    assert commands.main(["raport"]) == 2
    assert "did you mean 'report'?" in capsys.readouterr().err


def test_the_command_is_what_the_module_is(capsys):
    assert commands.main(["run", "--list"]) == 0
    assert capsys.readouterr().out == listing(capsys)
    assert commands.main(["data", "digits", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert overview.main(["digits", "--json"]) == 0
    assert told == json.loads(capsys.readouterr().out)


def listing(capsys) -> str:
    assert main.main(["main", "--list"]) == 0
    return capsys.readouterr().out


# --- paths --------------------------------------------------------------------------------------------


def test_a_path_is_what_was_meant(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert paths.parse("~/x", "--workdir") == tmp_path / "x"
    assert paths.parse("a/~b", "--workdir") == Path("a/~b")
    assert paths.parse(Path("ü"), "--workdir") == Path("ü")
    for text, said in (
        ("", "--workdir is empty"),
        ("a\0b", "UTF-8 without NUL"),
        ("a\udcff", "UTF-8 without NUL"),
        ("~nosuchuser/x", "write the whole path"),
    ):
        with pytest.raises(UserError) as caught:
            paths.parse(text, "--workdir")
        assert said in str(caught.value)
        str(caught.value).encode()


@pytest.mark.parametrize("command", ["report", "fusion", "predict"])
def test_every_command_line_expands_and_checks_paths(command, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    arguments = {"predict": ["a.png", "--student"]}.get(command, [])
    assert commands.main([command, *arguments, "~/run"]) == 2
    assert f"{tmp_path / 'run'}" in capsys.readouterr().err
    assert commands.main([command, *arguments, ""]) == 2
    assert "is empty" in capsys.readouterr().err


@pytest.mark.parametrize("field, value", [("from_run", "~/run"), ("init_from", ("~/weights.npz",))])
def test_paths_of_the_configuration_are_expanded(field, value, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    config = small.config(**{f"teachers.{field}": value})
    with pytest.raises(UserError, match=str(tmp_path)):
        experiment.run(config, tmp_path / "out", quiet=True)


def test_text_that_no_file_could_have_as_its_name_is_refused():
    for text in ("a\0b", "a\udcff"):
        with pytest.raises(UserError, match="config.data.path is .*UTF-8 without NUL"):
            small.config(**{"data.path": text})


@pytest.mark.parametrize("workdir", ["", "a\0b", "a\udcff"])
def test_a_workdir_that_cannot_be_is_refused_before_any_work(workdir, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main.main(["main", "--config=digits:smoke", f"--workdir={workdir}"]) == 2
    assert capsys.readouterr().err.startswith("mtkd_jax: --workdir is ")
    assert list(tmp_path.iterdir()) == []


def test_without_a_known_home_programs_are_not_kept(monkeypatch, tmp_path):
    def update(*_):
        raise AssertionError("no folder was to be used")

    monkeypatch.setattr(workdir.jax.config, "update", update)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").touch()
    workdir.use_compile_cache()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    workdir.use_compile_cache()


# --- streams ------------------------------------------------------------------------------------------


class Broken:
    """A stream whose reader has gone, or whose disk is full."""

    encoding, closed = "utf-8", False

    def __init__(self, error: Exception):
        self.error = error

    def write(self, text):
        raise self.error

    flush = write

    def isatty(self):
        return True


@pytest.mark.parametrize(
    "stream",
    [Broken(BrokenPipeError()), Broken(OSError(28, "full")), Broken(OSError(5, "gone")), None],
    ids=("reader gone", "full", "terminal gone", "none"),
)
def test_a_log_that_nobody_can_read_ends_nothing(stream, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream)
    with logbook.Logbook(tmp_path) as book:
        book.say("a line")
        book.progress("teachers", 1, 2)
        book.progress("teachers", 2, 2)
    terminal.tell("a line")


FULL = f"{os.path.dirname(os.devnull)}/full"  # the device that never has space left


def run(*arguments, shell="{}", **environment) -> subprocess.CompletedProcess:
    """A command line in a process of its own, in a pipeline where `shell` says so."""
    command = " ".join([sys.executable, "-m", "mtkd_jax.main", *map(str, arguments)])
    environment = {**os.environ, "PYTHONPATH": str(small.CONFIGS.parent), **environment}
    return subprocess.run(
        ["bash", "-c", f"{shell.format(command)}; exit ${{PIPESTATUS[0]}}"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_what_the_environment_says_wrong_is_one_line():
    for name, value in (("JAX_NUM_CPU_DEVICES", "x"), ("JAX_ENABLE_X64", "banana")):
        done = run("--list", **{name: value})
        assert done.returncode == 2 and done.stderr.count("\n") == 1
        assert done.stderr.startswith("mtkd_jax: cannot start: ") and f"{name}={value}" in done.stderr


def test_without_docstrings_in_ascii_and_with_a_nonsensical_backend_the_catalogue_is_the_same(capsys):
    done = run(
        "--list", PYTHONOPTIMIZE="2", PYTHONIOENCODING="ascii", MPLBACKEND="nonsense", JAX_PLATFORMS="cuda"
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == listing(capsys).encode("ascii", terminal.READABLE).decode()


def test_pipes_that_are_closed_and_disks_that_are_full(tmp_path):
    done = run("--list", shell="{} | true")
    assert (done.returncode, done.stderr) == (141, "")
    done = run("--list", shell=f"{{}} > {FULL}")
    assert (done.returncode, done.stderr) == (2, "mtkd_jax: writing: No space left on device\n")
    done = run("--config=nowhere", "--workdir=x", shell="{} 2>&- >&-")
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "")


@pytest.mark.slow(seconds=40)
@pytest.mark.parametrize(
    "shell", [f"{{}} 2>{FULL}", "{} 2>&- >&-", "{} 2> >(true)", f"{{}} >{FULL}", "{} | true"]
)
def test_a_run_is_finished_whoever_reads_what_it_says(shell, tmp_path):
    (tmp_path / "small.py").write_text(CONFIG)
    done = run(f"--config={tmp_path / 'small.py'}", f"--workdir={tmp_path / 'run'}", shell=shell)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert (tmp_path / "run" / "report.json").exists()


@pytest.mark.slow(seconds=20)
# The child is another program at once: nothing of the threads that JAX has here is left in it.
@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
def test_a_run_whose_terminal_goes_away_goes_on(tmp_path):
    (tmp_path / "small.py").write_text(CONFIG)
    process, screen = pty.fork()
    if not process:
        os.chdir(small.CONFIGS.parent)
        command = [
            "-m",
            "mtkd_jax.main",
            f"--config={tmp_path / 'small.py'}",
            f"--workdir={tmp_path / 'run'}",
        ]
        os.execv(sys.executable, [sys.executable, *command])
    said = b""
    while b"teachers-mlp" not in said:  # the bar of the first stage
        said += os.read(screen, 1000)
    os.close(screen)
    _, status = os.waitpid(process, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert (tmp_path / "run" / "report.json").exists()


BUSY = """
import signal
import sys
# Who runs the tests in the background may have it ignored, which is inherited.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv[0] = "-m"
import mtkd_jax
print("ready", flush=True)
from mtkd_jax import main
while True:
    pass
"""


def test_ctrl_c_ends_a_command_line_on_the_spot_whatever_it_is_importing():
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.5)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert said.strip() == "mtkd_jax: interrupted; the same command goes on from what is saved"
