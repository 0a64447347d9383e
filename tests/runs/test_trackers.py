"""Where curves go besides metrics.jsonl: what trackers are told, and that none of them can harm a run."""

import csv
import json
import struct
import sys

import numpy as np
import pytest

from mtkd_jax import experiment
from mtkd_jax.runs import trackers
from mtkd_jax.runs.logbook import Logbook
from mtkd_jax.types import Point, TrackedRun, Tracker, UserError
from tests import small


def fake(told, takes_back=False):
    """A tracker that keeps what it is told in a list."""

    def cut_back(stage, epoch):
        told[:] = [point for point in told if point.stage != stage or point.epoch <= epoch]

    return lambda: Tracker(told.extend, cut_back if takes_back else None)


def tell(book, epoch, *values, stage="teachers"):
    names = tuple(f"teacher {n}" for n in range(len(values)))
    book.record(stage, epoch, 3 * epoch, names, {"val_nll": np.array(values, np.float32)})


def test_a_tracker_is_told_the_mean_and_every_member_that_is_finite(tmp_path):
    told = []
    with Logbook(tmp_path, quiet=True, trackers={"fake": fake(told)}) as book:
        tell(book, 2, 0.5, 1.5, np.nan)
        tell(book, 4, np.nan, np.inf, np.nan)  # nothing of it can be drawn
    assert [(point.member, point.value) for point in told] == [
        ("", 1.0),
        ("teacher 0", 0.5),
        ("teacher 1", 1.5),
    ]
    assert {point[:3] + (point.name,) for point in told} == {("teachers", 2, 6, "val_nll")}
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 6


@pytest.mark.parametrize("takes_back", [True, False])
def test_no_point_is_told_twice_when_a_run_is_gone_on_with(takes_back, tmp_path):
    told = []
    begin = {"fake": fake(told, takes_back)}
    with Logbook(tmp_path, quiet=True, trackers=begin) as book:
        tell(book, 1, 0.9, stage="other")
        for epoch in (1, 2, 3):
            tell(book, epoch, 1 / epoch)
    with Logbook(tmp_path, quiet=True, trackers=begin) as book:  # it was saved at the first epoch
        book.cut_back("teachers", 1)
        for epoch in (2, 3, 4):
            tell(book, epoch, 1 / epoch)
    means = [(point.stage, point.epoch) for point in told if not point.member]
    assert means == [("other", 1), *(("teachers", epoch) for epoch in (1, 2, 3, 4))]


@pytest.mark.parametrize("when", ["begin", "write", "cut_back", "close"])
def test_a_tracker_that_fails_is_named_once_and_harms_nothing(when, tmp_path, capsys):
    told = []

    def fail(*_):
        raise RuntimeError("no\nserver")

    parts = {"write": told.extend, "cut_back": lambda *_: None, "close": lambda: None} | {when: fail}
    begin = fail if when == "begin" else lambda: Tracker(**parts)
    beside = []
    (tmp_path / "metrics.jsonl").touch()
    with Logbook(tmp_path, trackers={"mine.py:bad": begin, "fake": fake(beside)}) as book:
        book.cut_back("teachers", 0)
        for epoch in (1, 2):
            tell(book, epoch, 0.5)
    said = capsys.readouterr().err
    line = (
        "warning: runtime.trackers: mine.py:bad failed (RuntimeError: no server); the run goes on without it"
    )
    assert said.count("mine.py:bad") == 1 and line in said
    assert len(told) == (4 if when == "close" else 0) and len(beside) == 4
    assert len((tmp_path / "metrics.jsonl").read_text().splitlines()) == 2


def test_what_the_user_can_mend_is_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # not installed
    with pytest.raises(UserError, match=r"config.runtime.trackers: .*pip install 'mtkd_jax\[wandb\]'"):
        experiment.run(small.config(**{"runtime.trackers": ("wandb",)}), tmp_path, quiet=True)
    assert not (tmp_path / "checkpoints").exists()
    for wrong, said in (
        ("tensorbord", "did you mean 'tensorboard'"),
        ("csv(path='a')", "no argument 'path'"),
    ):
        with pytest.raises(UserError, match=said):
            small.config(**{"runtime.trackers": (wrong,)})
    with pytest.raises(UserError, match="twice"):
        small.config(**{"runtime.trackers": ("csv", "csv()")})


def test_metrics_csv_has_a_line_a_number_and_loses_half_lines(tmp_path):
    run = TrackedRun(str(tmp_path), "0" * 64, {})
    with Logbook(tmp_path, quiet=True, trackers={"csv": lambda: trackers.csv(run)}) as book:
        for epoch in (1, 2):
            tell(book, epoch, 0.25, 0.75)
    path = tmp_path / "metrics.csv"
    with path.open("a") as file:
        file.write("teachers,3,9,teach")  # killed while it wrote
    with Logbook(tmp_path, quiet=True, trackers={"csv": lambda: trackers.csv(run)}) as book:
        book.cut_back("teachers", 1)
        tell(book, 2, 0.25, 0.75)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    of_jsonl = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [{**row, "wall": 0} for row in rows] == [
        {name: str(value) for name, value in one.items()} | {"wall": 0} for one in of_jsonl
    ]
    assert len(rows) == 4


def test_tensorboard_holds_the_points_of_few_members_and_the_mean_of_many(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    run = TrackedRun(str(tmp_path), "0" * 64, {})
    with Logbook(tmp_path, quiet=True, trackers={"tensorboard": lambda: trackers.tensorboard(run)}) as book:
        tell(book, 2, 0.5, 1.5)
        tell(book, 3, *range(17), stage="many")
    (file,) = (tmp_path / "tensorboard").iterdir()
    data, found = file.read_bytes(), {}
    while data:  # a record: length (8 bytes), its check sum (4), the event, its check sum (4)
        (length,) = struct.unpack("<Q", data[:8])
        event = Event.FromString(data[12 : 12 + length])
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        data = data[16 + length :]
    of_two = {("teachers/val_nll", 2): 1.0, ("teachers/val_nll/teacher_0", 2): 0.5}
    assert found == {**of_two, ("teachers/val_nll/teacher_1", 2): 1.5, ("many/val_nll", 3): 8.0}


def test_a_tracker_of_the_users_own_is_told_of_a_run_and_changes_nothing_that_is_trained(tmp_path):
    (tmp_path / "mine.py").write_text(
        "from mtkd_jax.types import Tracker\n"
        "def tracker(run, *, name='points') -> Tracker:\n"
        "    path = f'{run.folder}/{name}.txt'\n"
        "    def write(points):\n"
        "        with open(path, 'a') as file:\n"
        "            print(run.settings['train.epochs'], len(points), file=file)\n"
        "    return Tracker(write)\n"
    )
    plain = {"students.modes": (), "train.epochs": 2}
    address = f"{tmp_path / 'mine.py'}:tracker(name='told')"
    config = small.config(**plain, **{"runtime.trackers": (address, "csv")})
    experiment.train(config, tmp_path / "run", quiet=True)
    lines = (tmp_path / "run" / "told.txt").read_text().splitlines()
    assert len(lines) == 2 and {line.split()[0] for line in lines} == {"2"}
    assert not (tmp_path / "run" / "tensorboard").exists()
    # Neither the field nor the code behind it makes it another run.
    (tmp_path / "mine.py").write_text("raise RuntimeError\n")
    experiment.train(small.config(**plain), tmp_path / "run", quiet=True)


@pytest.mark.filterwarnings("ignore")
def test_mlflow_keeps_one_run_that_is_gone_on_with(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    run = TrackedRun(str(tmp_path), "ab" * 32, {"train.epochs": 3, "students.arguments": {}})
    for epochs in ((1, 2), (2, 3)):
        with Logbook(tmp_path, quiet=True, trackers={"mlflow": lambda: trackers.mlflow(run)}) as book:
            book.cut_back("teachers", epochs[0] - 1)
            for epoch in epochs:
                tell(book, epoch, epoch / 4, epoch / 2)
    client = mlflow.MlflowClient((tmp_path / "mlruns").as_uri())
    (found,) = client.search_runs([client.get_experiment_by_name("mtkd_jax").experiment_id])
    assert found.info.status == "FINISHED" and found.data.params["train.epochs"] == "3"
    history = client.get_metric_history(found.info.run_id, "teachers/val_nll/teacher 1")
    assert [(one.step, one.value) for one in history] == [(1, 0.5), (2, 1.0), (3, 1.5)]


@pytest.mark.filterwarnings("ignore")
def test_wandb_writes_the_points_offline(tmp_path):
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    run = TrackedRun(str(tmp_path), "ab" * 32, {"train.epochs": 3})
    begin = {"wandb": lambda: trackers.wandb(run, mode="offline")}
    with Logbook(tmp_path, quiet=True, trackers=begin) as book:
        for epoch in (1, 2):
            tell(book, epoch, 0.5 * epoch)
    (file,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    data, found = file.read_bytes()[7:], []  # behind what the file begins with: the records of a LevelDB log
    while data:
        (length,) = struct.unpack("<H", data[4:6])  # behind a check sum, before a byte that says "whole"
        record = Record.FromString(data[7 : 7 + length])
        items = {item.key or "/".join(item.nested_key): item.value_json for item in record.history.item}
        found += [items] if "teachers/epoch" in items else []
        data = data[7 + length :]
    read = [(float(one["teachers/epoch"]), float(one["teachers/val_nll"])) for one in found]
    assert read == [(1.0, 0.5), (2.0, 1.0)]


def test_points_of_many_members_are_drawn_as_their_mean():
    points = [Point("a", 1, 1, member, "x", 0.0, 0.0) for member in ("", *map(str, range(16)))]
    assert trackers.drawn(points) == points
    assert trackers.drawn([*points, points[1]._replace(member="16")]) == points[:1]
