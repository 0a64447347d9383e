"""The scripts for clusters: sound shell, what they do with every exit code, and their local forms for real.

srun, scontrol and gcloud are played by small scripts that come first in PATH.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "scripts").glob("*.sh"))


@pytest.fixture
def play(tmp_path):
    """Put a command that is a few lines of shell into PATH; it may write to files of the test's folder."""
    folder = tmp_path / "bin"
    folder.mkdir()

    def put(name, text):
        (folder / name).write_text(f"#!/usr/bin/env bash\ncd {tmp_path}\n{text}\n")
        (folder / name).chmod(0o755)
        return folder / name

    return put


def run(script, *arguments, timeout=60, **environment):
    folder = environment.pop("folder")
    environment = {**os.environ, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", **environment}
    command = [str(ROOT / "scripts" / script), *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=timeout, check=False, cwd=ROOT
    )


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_shell_reads_it_and_its_head_says_how_it_is_called(script):
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text()
    assert script.name == "common.sh" or (f"scripts/{script.name}" in text and "LOCAL=2" in text)
    assert f"scripts/{script.name}" in (ROOT / "docs" / "clusters.md").read_text()


def test_shellcheck_has_nothing_to_say():
    beside = Path(sys.executable).parent / "shellcheck"
    found = str(beside) if beside.exists() else shutil.which("shellcheck")
    if found is None:
        pytest.skip("there is no shellcheck")
    scripts = [*SCRIPTS, ROOT / "scripts" / "pack_gpu_day"]
    said = subprocess.run([found, "-x", *scripts], cwd=ROOT, capture_output=True, text=True, check=False)
    assert said.stdout == ""


@pytest.mark.parametrize("code, requeued", [(0, False), (2, False), (1, False), (143, True), (130, True)])
def test_a_slurm_job_is_requeued_when_it_was_stopped_and_not_when_it_failed(code, requeued, play, tmp_path):
    play("srun", f'echo "$@" > asked; exit {code}')
    play("scontrol", 'echo "$@" > requeued')
    done = run("slurm.sh", "--config=digits", folder=tmp_path, SLURM_JOB_ID="7", LOCAL="")
    assert done.returncode == code
    expected = "--kill-on-bad-exit=1 python -m mtkd_jax.main --config=digits --processes=auto\n"
    assert (tmp_path / "asked").read_text() == expected
    assert (tmp_path / "requeued").exists() == requeued


def test_slurms_signal_reaches_the_processes(play, tmp_path):
    """The job's shell is signalled; its step, which scancel signals, saves and ends with 143."""
    play("srun", "trap 'exit 143' USR1; echo $$ > step; for _ in $(seq 400); do sleep 0.1; done")
    play("scancel", 'echo "$@" > cancelled; kill -USR1 "$(cat step)"')
    play("scontrol", 'echo "$@" > requeued')
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_ID": "7"}
    job = subprocess.Popen([ROOT / "scripts" / "slurm.sh"], env=environment, cwd=ROOT)
    while not ((tmp_path / "step").exists() and (tmp_path / "step").read_text()):
        assert job.poll() is None
    job.terminate()
    assert job.wait(timeout=60) == 143
    assert (tmp_path / "cancelled").read_text() == "--signal=TERM 7.0\n"
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"


GCLOUD = """
echo "$@" >> said
case "$*" in
  *"queued-resources create"*) echo ACTIVE > state ;;
  *"queued-resources delete"*) rm -f state ;;
  *"queued-resources describe"*) cat state 2>/dev/null ;;
  *"--command=setup"*) ;;
  *mtkd_jax*)
    echo run >> runs
    case $(wc -l < runs) in
      1) echo SUSPENDED > state; exit 255 ;;  # preempted: the connection is lost
      2) exit 143 ;;                          # stopped, on a slice that is still there
      *) exit "$(cat last)" ;;
    esac ;;
esac
"""


@pytest.mark.parametrize("last, num_runs", [(0, 3), (2, 3), (1, 5)])
def test_a_preempted_slice_is_asked_for_again_and_given_back_at_the_end(last, num_runs, play, tmp_path):
    play("gcloud", GCLOUD)
    (tmp_path / "last").write_text(str(last))
    environment = {"NAME": "mine", "ZONE": "z", "SETUP": "setup", "POLL": "0", "LOCAL": ""}
    done = run("tpu_pod.sh", "--config=a b", "--workdir=w", folder=tmp_path, **environment)
    assert done.returncode == last, done.stderr
    said = (tmp_path / "said").read_text()
    create = (
        "compute tpus queued-resources create mine --node-id=mine-node --accelerator-type=v5litepod-16 "
        "--runtime-version=v2-alpha-tpuv5-lite --spot --zone=z\n"
    )
    assert said.count(create) == 2  # at the beginning and after the preemption
    assert said.count("queued-resources delete mine --force --quiet --zone=z\n") == 2
    assert said.count("--command=setup") == len((tmp_path / "runs").read_text().split()) == num_runs
    assert "-m mtkd_jax.main --config=a\\ b --workdir=w --processes=auto" in said
    assert not (tmp_path / "state").exists()


@pytest.mark.parametrize("codes, returned", [((0, 0), 0), ((0, 143), 143), ((2, 0), 2)])
def test_a_box_runs_a_shard_on_each_gpu(codes, returned, play, tmp_path):
    text = 'echo "$CUDA_VISIBLE_DEVICES $*" >> asked\ncase "$*" in'
    text += "".join(f" *shard={place}/2*) exit {code} ;;" for place, code in enumerate(codes)) + " esac"
    python = play("fake-python", text)
    play("nvidia-smi", "echo 0; echo 3")
    environment = {"PYTHON": str(python), "LOCAL": "", "GPUS": ""}
    done = run("gpu_box.sh", "--over=x", f"--workdir={tmp_path / 'w'}", folder=tmp_path, **environment)
    assert done.returncode == returned
    asked = sorted((tmp_path / "asked").read_text().splitlines())
    assert asked == [
        f"{gpu} -m mtkd_jax.sweep --over=x --workdir={tmp_path / 'w'} --shard={place}/2"
        for place, gpu in enumerate((0, 3))
    ]


def test_a_shard_that_is_killed_is_started_again(play, tmp_path):
    python = play("fake-python", "echo x >> tries; if [ $(wc -l < tries) -lt 3 ]; then kill -KILL $$; fi")
    environment = {"PYTHON": str(python), "LOCAL": "1"}
    done = run("gpu_box.sh", f"--workdir={tmp_path / 'w'}", folder=tmp_path, **environment)
    assert done.returncode == 0 and len((tmp_path / "tries").read_text().split()) == 3
    assert "ended with 137; started again (2)" in (tmp_path / "w.shard-0.log").read_text()


# --- for real ------------------------------------------------------------------------------------------

TINY = (
    "--config=digits:smoke",
    "--config.students.modes=output_avg",
    "--config.train.epochs=2",
    "--config.train.eval_every=2",
    "--config.runtime.devices=1",
)


@pytest.mark.slow(seconds=40)
@pytest.mark.parametrize("script", ["slurm.sh", "tpu_pod.sh"])
def test_the_local_form_of_a_run_is_one_run_of_two_processes(script, tmp_path):
    environment = {"PYTHON": sys.executable, "LOCAL": "2", "JAX_NUM_CPU_DEVICES": "1"}
    folder = tmp_path / "run"
    done = run(script, *TINY, f"--workdir={folder}", folder=tmp_path, timeout=300, **environment)
    assert done.returncode == 0, done.stderr
    assert (folder / "process1" / "metrics.jsonl").exists()  # what the second one has to say
    assert any(
        row["name"] == "output_avg" for row in json.loads((folder / "report.json").read_text())["rows"]
    )


@pytest.mark.slow(seconds=60)
def test_the_local_form_of_a_box_is_two_shards_that_train_teachers_once(tmp_path):
    environment = {"PYTHON": sys.executable, "LOCAL": "2", "JAX_NUM_CPU_DEVICES": "1"}
    folder = tmp_path / "sweep"
    arguments = [*TINY, "--over=config.students.temperatures=1,2,4", f"--workdir={folder}"]
    done = run("gpu_box.sh", *arguments, folder=tmp_path, timeout=400, **environment)
    logs = [(tmp_path / f"sweep.shard-{place}.log").read_text() for place in (0, 1)]
    assert done.returncode == 0, logs
    said = json.loads((folder / "sweep.json").read_text())
    assert [cell["finished"] for cell in said["cells"]] == [True, True, True]
    curves = [json.loads(line) for line in (folder / "teachers" / "metrics.jsonl").read_text().splitlines()]
    points = [(one["stage"], one["epoch"], one["member"], one["name"]) for one in curves]
    assert len(points) == len(set(points))
    # Whoever came second waited, or found them trained.
    assert sum("cell 1 of" in log and "another process trains" not in log for log in logs) >= 1


# --- the day on a GPU ----------------------------------------------------------------------------------


def test_whatever_we_depend_on_is_packed_for_a_day_on_a_gpu_or_named_as_there():
    told = re.findall(r"\w[\w-]*", (ROOT / "scripts" / "pack_gpu_day").read_text(encoding="utf-8"))
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    assert {re.match(r"[\w-]+", one)[0] for one in asked} <= set(told)


def test_what_a_day_on_a_gpu_needs_is_packed(play, tmp_path):
    python = play("fake-python", 'echo "$@" >> asked')
    (tmp_path / "small.npz").touch()
    environment = {"PYTHON": str(python), "DATA": f"{tmp_path / 'small.npz'} nowhere.npz", "WHEELS": "a b"}
    folder = tmp_path / "packed"
    done = run("pack_gpu_day", str(folder), folder=tmp_path, PLATFORMS="p q", **environment)
    assert done.returncode == 0, done.stderr
    assert "nowhere.npz is not there: left out" in done.stderr
    wheels, parcels = (tmp_path / "asked").read_text().splitlines()
    assert wheels.startswith("-m pip download --quiet --no-deps --only-binary=:all:")
    assert wheels.endswith(f"--python-version 3.12 --platform=p --platform=q --dest {folder} a b")
    assert parcels == f"-m mtkd_jax.benchmark.parcels {tmp_path / 'small.npz'} {folder}"
    refused = run("pack_gpu_day", "docs", folder=tmp_path, **environment)
    assert refused.returncode == 2 and "git does not ignore docs" in refused.stderr
