"""Devices change where the work is done, not what comes out."""

import dataclasses
import json
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax import experiment, mesh
from mtkd_jax.addresses import build_model
from mtkd_jax.engine import jobs, layouts, training
from mtkd_jax.engine.tuning import with_layout
from mtkd_jax.mesh import Layout
from mtkd_jax.models import direct_conv, layers
from mtkd_jax.plans import teachers
from mtkd_jax.runs import checkpoint
from mtkd_jax.runs.logbook import Logbook
from mtkd_jax.system import interrupts
from mtkd_jax.types import Task, UserError
from tests import small

ROOT = Path(__file__).parent.parent
BATCH_NORM = "mlp(hidden=(8,), batch_norm=True)"
COLLECTIVES = r"all-gather|all-reduce|collective-permute|all-to-all|reduce-scatter"


def teachers_job(**overrides):
    config = small.config(**{"teachers.num_members": 4, **overrides})
    return teachers.job(config, experiment.load_split(config), config.model.name)


def fitted(job, tmp_path):
    with Logbook(tmp_path, quiet=True) as logbook:
        return training.fit(job, tmp_path / "checkpoints", logbook)


def close(a, b, atol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol, rtol=0), a, b)


def test_members_over_devices_are_the_same_members(tmp_path):
    """Four members over two devices, and over three, where they do not divide; compiled once."""
    job = teachers_job(**{"model.name": "cnn(widths=(4,), dense=8, batch_norm=True)"})
    job = dataclasses.replace(
        job, steps_at_once=job.steps_per_round
    )  # several pieces, one handed to the next
    alone = fitted(with_layout(job, Layout("map")), tmp_path / "1")
    for width in (2, 3):
        jax.clear_caches()
        with small.compilations() as said:
            spread = fitted(with_layout(job, Layout("map", width)), tmp_path / str(width))
        assert len([line for line in said if "training_chunk" in line]) == 1
        close(spread.population.variables, alone.population.variables, 1e-6)
        np.testing.assert_allclose(spread.val_nll, alone.val_nll, atol=1e-6)


def test_what_was_saved_on_four_devices_goes_on_on_two(tmp_path, monkeypatch):
    """To the numbers of one device that was never stopped."""
    job = teachers_job(**{"train.epochs": 4, "train.eval_every": 2})
    job = dataclasses.replace(job, steps_at_once=job.steps_per_round)
    alone = fitted(with_layout(job, Layout("map")), tmp_path / "1")
    with interrupts.handle_signals(), pytest.raises(interrupts.Interrupted):
        monkeypatch.setattr(Logbook, "progress", lambda *of: interrupts.request_stop())
        fitted(with_layout(job, Layout("map", 4)), tmp_path / "4")
    monkeypatch.undo()
    assert checkpoint.latest(tmp_path / "4" / "checkpoints") == [job.steps_per_round]
    assert job.steps_per_round < job.num_steps
    gone_on = fitted(with_layout(job, Layout("map", 2)), tmp_path / "4")
    close(gone_on.population.variables, alone.population.variables, 1e-6)
    np.testing.assert_allclose(gone_on.val_nll, alone.val_nll, atol=1e-6)


@pytest.mark.parametrize("layout", [Layout("vmap", 1, 2), Layout("map", 2, 2), Layout("vmap", 1, 4)])
def test_a_batch_split_over_devices_is_the_same_batch(layout, tmp_path):
    """Augmentation, mixing, batch statistics, counts of labels, norms of gradients: of the whole batch."""
    job = teachers_job(
        **{
            "model.name": BATCH_NORM,
            "train.epochs": 5,
            "data.augment.noise": 0.1,
            "train.mixup": 0.4,
            "train.cutmix": 1.0,
            "train.clip_norm": 1.0,
            "train.ema_decay": 0.9,
            "train.optimizer": "sgd",
            "train.learning_rate": 0.1,
        }
    )
    whole = fitted(with_layout(job, Layout("vmap")), tmp_path / "whole")
    split = fitted(with_layout(job, layout), tmp_path / "split")
    close(split.population.variables, whole.population.variables, 1e-5)


@pytest.mark.parametrize(
    "mode, layout",
    [
        ("mimic_all", Layout("vmap", 2, 2)),
        ("output_avg", Layout("vmap", 4, 1)),
        ("output_avg", Layout("map", 1, 4)),
    ],
)
def test_students_are_the_same_on_every_layout(mode, layout, tmp_path):
    """The teachers' work is shared out among the devices, three teachers over four of them."""
    annealed = {"students.alpha_schedule": "linear", "students.temperature_schedule": "linear"}
    mixed = {"train.mixup": 0.4, "students.temperatures": (3.0,), **annealed}
    job = small.students_job(mode, **{"students.alphas": (0.5,), **mixed})
    one = fitted(with_layout(job, Layout("vmap")), tmp_path / "one")
    many = fitted(with_layout(job, layout), tmp_path / "many")
    close(many.population.variables, one.population.variables, 1e-5)


def compiled_text(job):
    rounds = job.order(0)[None]
    chunk = training.compiled_chunk(job.program, job.patience, job.eval_every)
    stage_data, validation = mesh.everywhere((job.stage_data, job.validation), job.program.layout)
    progress = mesh.spread_out(training.first_progress(job), job.program.layout)
    return chunk.lower(progress, job.hyper, rounds, np.int32(0), stage_data, validation).compile().as_text()


@pytest.mark.usefixtures("compiled_as_shipped")
def test_members_never_speak_to_each_other():
    """No collective in the compiled text; and the test would see one, for split batches have them."""
    job = teachers_job(**{"model.name": "cnn(widths=(4, 4), dense=8)"})
    assert not re.search(COLLECTIVES, compiled_text(with_layout(job, Layout("vmap", 4))))
    assert re.search("all-reduce", compiled_text(with_layout(job, Layout("vmap", 2, 2))))


@pytest.mark.usefixtures("compiled_as_shipped")
def test_students_gather_what_teachers_say_and_nothing_larger():
    job = with_layout(small.students_job("output_avg"), Layout("vmap", 2))
    gathered = re.findall(r"= \w+\[([\d,]*)\]\S* all-gather", compiled_text(job))
    assert gathered == ["3,16,4"]  # K teachers, B images, C classes


def test_dropout_differs_between_the_rows_of_a_split_batch():
    layout = Layout("vmap", 1, 4)
    keys = jax.shard_map(
        lambda key: jax.random.key_data(mesh.own_key(key, layout))[None],
        mesh=mesh.build(layout),
        in_specs=jax.sharding.PartitionSpec(),
        out_specs=jax.sharding.PartitionSpec("data"),
        check_vma=False,
    )(jax.random.key(0))
    assert len({tuple(row) for row in np.asarray(keys).tolist()}) == 4


def test_the_layouts_asked_for(monkeypatch):
    task = Task(num_classes=4, num_heads=1, mean=(0.5,), std=(0.3,))
    dense, conv = (build_model(name, task) for name in ("mlp", "cnn"))
    assert layouts.candidates("shard_map", 1, dense, 8) == (Layout("vmap", 4),)
    assert layouts.candidates("shard_map", 2, conv, 8) == (Layout("map", 2, 2),)
    assert layouts.candidates("pmap", 1, dense, 3) == (Layout("unroll", 3),)
    rest = ("", "ynnpack", "windows") if mesh.chooses_kernels() else ("", "windows")
    for forms in (rest, ("onednn", *rest)):  # the first is the guess
        monkeypatch.setattr(direct_conv, "is_available", lambda found="onednn" in forms: found)
        expected = tuple(Layout("map", width, form=form) for form in forms for width in (4, 1))
        assert layouts.candidates("auto", 1, conv, 8) == expected
    assert {layout.form for layout in layouts.candidates("auto", 1, dense, 8)} == {""}
    assert layouts.candidates("auto", 1, dense, 1) == (Layout("vmap", 1),)
    for how, shards, members, right in (
        ("pmap", 1, 5, "there are 4"),
        ("vmap", 8, 2, "data_shards"),
        ("loop", 2, 2, "loop"),
    ):
        with pytest.raises(UserError, match=right):
            layouts.candidates(how, shards, dense, members)


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(UserError, match=r"config\.train\.batch_size: 15"):
        teachers_job(**{"train.batch_size": 15, "runtime.data_shards": 2})


@pytest.mark.slow(seconds=60)
def test_two_processes_write_the_report_of_one(tmp_path):
    """Two processes of two devices each, and one process of one device, run the smoke configuration."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    smoke = [
        sys.executable,
        "-m",
        "mtkd_jax.main",
        "--config=configs/digits.py:smoke",
        "--config.runtime.devices=2",
    ]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    options = {"cwd": ROOT, "env": environment, "stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    together = [
        subprocess.Popen(
            [*smoke, f"--workdir={tmp_path / 'two'}", f"--processes={place}/2@localhost:{port}"], **options
        )
        for place in range(2)
    ]
    said = [process.communicate(timeout=400)[0].decode() for process in together]
    assert [process.returncode for process in together] == [0, 0], said
    subprocess.run([*smoke, f"--workdir={tmp_path / 'one'}"], check=True, **options)
    two, one = (json.loads((tmp_path / name / "report.json").read_text()) for name in ("two", "one"))
    assert [row["name"] for row in two["rows"]] == [row["name"] for row in one["rows"]]
    for a, b in zip(two["rows"], one["rows"]):
        assert a["accuracy"]["values"] == b["accuracy"]["values"], a["name"]
        if a["nll"] is not None:
            np.testing.assert_allclose(a["nll"]["values"], b["nll"]["values"], rtol=1e-4)


@pytest.mark.slow(seconds=30)
@pytest.mark.parametrize("number, codes", [(signal.SIGTERM, (143, 143)), (signal.SIGKILL, (None, -9))])
def test_what_ends_one_of_two_processes_ends_both_in_a_line(number, codes, tmp_path):
    """Asked to stop, both are saved; where one is killed, the other says that the commands go on."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mtkd_jax.main", "--config=configs/digits.py", f"--workdir={tmp_path}"]
    command += ["--config.runtime.devices=1", "--config.train.epochs=6000"]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_NUM_CPU_DEVICES"}
    options = {"cwd": ROOT, "env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    first, second = processes = [
        subprocess.Popen([*command, f"--processes={place}/2@localhost:{port}"], text=True, **options)
        for place in range(2)
    ]
    try:
        while ": step " not in first.stderr.readline():
            assert first.poll() is None
        second.send_signal(number)
        said = [process.communicate(timeout=200)[1].strip().splitlines()[-1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert first.returncode != 0 and second.returncode == codes[1]
    assert codes[0] in (None, first.returncode)
    if number == signal.SIGTERM:
        assert all("stopped by SIGTERM; teachers-mlp is saved at step" in line for line in said), said
    else:
        assert "process 0 of 2 was ended, for another one died or it was killed" in said[0], said


@pytest.mark.usefixtures("compiled_as_shipped")
@pytest.mark.skipif(not jax.__version__.startswith("0.10."), reason="other versions choose for themselves")
def test_convolutions_are_given_to_the_kernels_that_use_every_core():
    arrays = jnp.ones((8, 8, 8, 32)), jnp.ones((3, 3, 32, 32))
    as_usual, ours = (
        compiled(layers.conv).lower(*arrays).compile().as_text() for compiled in (jax.jit, mesh.jit)
    )
    assert "ynn_fusion" in as_usual  # else there is nothing to choose any more
    assert "ynn_fusion" not in ours
    np.testing.assert_allclose(mesh.jit(layers.conv)(*arrays), jax.jit(layers.conv)(*arrays), rtol=1e-6)


def test_cores_are_known_where_no_affinity_is(monkeypatch):
    """As on macOS."""
    monkeypatch.delattr(mesh.os, "sched_getaffinity")
    monkeypatch.setattr(mesh.os, "cpu_count", lambda: 6)
    assert mesh.cores() == 6
    monkeypatch.setattr(mesh.os, "cpu_count", lambda: None)
    assert mesh.cores() == 1


@pytest.mark.parametrize(
    "said, heard",
    [
        ("RESOURCE_EXHAUSTED: of 8 GiB", "out of memory: RESOURCE_EXHAUSTED"),
        ("Gloo\nis shut", "Gloo is shut"),
    ],
)
def test_one_of_several_processes_says_what_ends_it(said, heard, monkeypatch, capsys):
    class EndedError(BaseException):
        pass

    def end(code):
        raise EndedError(code)

    monkeypatch.setattr(mesh.jax, "process_count", lambda: 2)
    monkeypatch.setattr(mesh.os, "_exit", end)
    with pytest.raises(EndedError), mesh.together():
        raise jax.errors.JaxRuntimeError(said)
    err = capsys.readouterr().err
    assert err.startswith(f"mtkd_jax: {heard}") and err.count("\n") == 1


@pytest.mark.parametrize("processes", ["2", "2/2@localhost:1", "0/2@localhost", "0@a:1"])
def test_processes_are_told_apart_in_one_line(processes):
    with pytest.raises(UserError, match="PLACE/NUMBER@HOST:PORT"):
        mesh.join(processes)


def test_a_part_is_its_members_alone(tmp_path):
    job = with_layout(teachers_job(), Layout("map"))
    whole = fitted(job, tmp_path / "whole")
    pieces = jobs.parts(job, 3)
    assert [len(piece.names) for piece in pieces] == [3, 1]
    joined = training.concatenate(
        [fitted(piece, tmp_path / piece.stage.replace("/", "-")) for piece in pieces]
    )
    assert joined.population.names == whole.population.names
    jax.tree.map(np.testing.assert_array_equal, joined.population.variables, whole.population.variables)
    np.testing.assert_array_equal(joined.val_nll, whole.val_nll)


def test_cohorts_stay_together():
    job = teachers_job()
    recipe = job.program.recipes[0]._replace(num_peers=2)
    mates = np.array([[0, 1], [0, 1], [2, 3], [2, 3]], np.int32)
    job = dataclasses.replace(
        job, hyper={**job.hyper, "mates": mates}, program=job.program._replace(recipes=(recipe,))
    )
    first, second = jobs.parts(job, 3)
    np.testing.assert_array_equal(first.hyper["mates"], mates[:2])
    np.testing.assert_array_equal(second.hyper["mates"], mates[:2])
    with pytest.raises(KeyError):
        jobs.part(job, [1, 2])
