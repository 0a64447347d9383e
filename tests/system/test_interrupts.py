"""A signal is noted, and the work stops where it is saved; a second Ctrl-C stops wherever it is."""

import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from mtkd_jax import main
from mtkd_jax.results import evaluation
from mtkd_jax.runs import checkpoint, logbook, predictions
from mtkd_jax.system import interrupts
from tests import small

EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
CONFIG = "from tests import small\n\ndef get_config():\n    return small.config()\n"


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", EXIT_CODES)
def test_a_signal_is_noted_and_the_old_handlers_come_back(number, capfd):
    before = [signal.getsignal(one) for one in EXIT_CODES]
    with interrupts.handle_signals():
        assert interrupts.stop_requested() == 0
        interrupts.check("nobody has asked")
        send(number)
        assert interrupts.stop_requested() == number
        with pytest.raises(interrupts.Interrupted, match="^all is saved$") as caught:
            interrupts.check("all is saved")
        assert caught.value.signal == number
    assert interrupts.stop_requested() == 0
    assert [signal.getsignal(one) for one in EXIT_CODES] == before
    assert capfd.readouterr().err.strip().count("\n") == 0  # one line


def test_a_second_ctrl_c_is_a_keyboard_interrupt_and_a_second_sigterm_is_none():
    with pytest.raises(KeyboardInterrupt), interrupts.handle_signals():
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert interrupts.stop_requested() == signal.SIGTERM
        send(signal.SIGINT)


def test_a_second_ctrl_c_does_what_the_first_would_have_done_before():
    heard = []
    before = signal.signal(signal.SIGINT, lambda number, frame: heard.append(number))
    try:
        with pytest.raises(KeyboardInterrupt), interrupts.handle_signals():
            send(signal.SIGINT)
            assert heard == []
            send(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    assert heard == [signal.SIGINT]


def test_a_terminal_that_goes_away_asks_for_nothing():
    before = signal.getsignal(signal.SIGHUP)
    with interrupts.handle_signals():
        send(signal.SIGHUP)
        assert interrupts.stop_requested() == 0
    assert signal.getsignal(signal.SIGHUP) == before


def test_outside_the_main_thread_nothing_is_touched():
    before, found = signal.getsignal(signal.SIGINT), []

    def work():
        with interrupts.handle_signals():
            found.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert found == [before]


# Deriving such a key keeps the main thread outside of Python for minutes, as a long compilation does.
BUSY = """
import hashlib
from mtkd_jax.system import interrupts
with interrupts.handle_signals():
    print("busy", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"", b"", 10**9)
"""


def test_a_second_ctrl_c_ends_a_process_that_is_not_in_python():
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "busy\n"
        process.send_signal(signal.SIGINT)
        while "a second Ctrl-C stops at once" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in said and said.strip().count("\n") == 0


# --- whole runs ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def command(tmp_path_factory):
    file = tmp_path_factory.mktemp("config") / "small.py"
    file.write_text(CONFIG)
    return ["main", f"--config={file}", "--config.runtime.checkpoint_seconds=1e6"]


@pytest.fixture(scope="module")
def whole(command, tmp_path_factory):
    """What the run says that nobody interrupts."""
    workdir = tmp_path_factory.mktemp("whole")
    assert main.main([*command, f"--workdir={workdir}"]) == 0
    return small.numbers(workdir)


@pytest.mark.parametrize(
    "number, place, name, call",  # the signal comes as the function is called for that time
    [
        (signal.SIGINT, logbook.Logbook, "record", 1),
        (signal.SIGTERM, logbook.Logbook, "record", 6),
        (signal.SIGTERM, checkpoint, "_write_arrays", 1),
        (signal.SIGTERM, evaluation, "_student_group", 2),
        (signal.SIGTERM, predictions, "write_atomically", 1),
    ],
    ids=["training teachers", "training students", "saving", "evaluating", "writing predictions"],
)
def test_a_run_that_is_asked_to_stop_is_gone_on_with_to_the_same_numbers(
    number, place, name, call, command, whole, tmp_path, monkeypatch, capfd
):
    original, calls = getattr(place, name), []

    def asked_to_stop(*arguments, **keywords):
        calls.append(name)
        if len(calls) == call:
            send(number)
        return original(*arguments, **keywords)

    command = [*command, f"--workdir={tmp_path}"]
    with monkeypatch.context() as patched:
        patched.setattr(place, name, asked_to_stop)
        assert main.main(command) == EXIT_CODES[number]
    said = capfd.readouterr().err
    assert f"stopped by {number.name}; " in said and " saved" in said and "Traceback" not in said
    assert not (tmp_path / "report.json").exists()
    assert main.main(command) == 0
    assert small.numbers(tmp_path) == whole


@pytest.mark.slow
@pytest.mark.parametrize("number", EXIT_CODES, ids=("SIGTERM", "SIGINT"))
def test_a_process_that_trains_ends_within_20_seconds(number, command, tmp_path):
    """In a process of its own, in the middle of a training that would take long."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mtkd_jax.main",
            *command[1:],
            f"--workdir={tmp_path}",
            "--config.train.epochs=100000",
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while ": step " not in process.stderr.readline():
            assert process.poll() is None
        asked = time.monotonic()
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == EXIT_CODES[number]
    assert time.monotonic() - asked < 20
    assert f"stopped by {number.name}; teachers-mlp-hidden-8 is saved at " in said
    assert checkpoint.latest(tmp_path / "checkpoints" / "teachers-mlp-hidden-8")
