"""Where the curves of a run go besides metrics.jsonl: `runtime.trackers` names functions of this file.

A tracker is a function `(run: TrackedRun, *, ...) -> Tracker`; one of the user's own goes by its address,
"mine.py:tracker". It raises UserError for what the user can mend before anything is trained, such as a
package that is not installed. Means are drawn of every stage, members where they are few.
"""

from __future__ import annotations

import importlib
import io
import os
import re
import time
from collections.abc import Sequence
from csv import reader, writer
from pathlib import Path
from typing import Any

from mtkd_jax.system.files import write_atomically
from mtkd_jax.types import Point, TrackedRun, Tracker, UserError

MOST_MEMBERS = 16  # beyond that only the mean over members is drawn
COLUMNS = ("stage", "epoch", "step", "member", "name", "value", "wall")  # of metrics.csv


def tensorboard(run: TrackedRun) -> Tracker:
    """TensorBoard events in RUN/tensorboard: `tensorboard --logdir RUN`."""
    # Slow to import, and only a run needs it. The writer itself: tensorboardX's queue around it waits
    # for ever once the thread behind it has died of a full disk.
    from tensorboardX.event_file_writer import EventsWriter
    from tensorboardX.proto.event_pb2 import Event
    from tensorboardX.summary import scalar

    folder = Path(run.folder) / "tensorboard"
    folder.mkdir(parents=True, exist_ok=True)
    events = EventsWriter(str(folder / "events"))

    def write(points: Sequence[Point]) -> None:
        for point in drawn(points):
            summary = scalar(tag(point), point.value)
            events.write_event(Event(wall_time=time.time(), step=point.epoch, summary=summary))
        events.flush()

    return Tracker(write, close=events.close)


def csv(run: TrackedRun) -> Tracker:
    """RUN/metrics.csv, a line for every number of every member."""
    path = Path(run.folder) / "metrics.csv"

    def write(points: Sequence[Point]) -> None:
        rows = [[getattr(point, name) for name in COLUMNS] for point in points if point.member]
        begun = path.exists() and path.stat().st_size > 0
        with path.open("a", encoding="utf-8", newline="") as file:
            file.write(_lines(rows if begun else [COLUMNS, *rows]))

    def cut_back(stage: str, epoch: int) -> None:
        if path.exists():
            text = path.read_text(encoding="utf-8", errors="replace")
            rows = [row for row in reader(io.StringIO(text)) if _is_row(row)]
            kept = [row for row in rows if row[0] != stage or int(row[1]) <= epoch]
            write_atomically(path, _lines([COLUMNS, *kept]).encode())

    return Tracker(write, cut_back)


def wandb(run: TrackedRun, *, project: str = "mtkd_jax", entity: str = "", mode: str = "") -> Tracker:
    """Weights & Biases; mode is "online", "offline" (files in RUN/wandb) or as the environment says.

    The same run of W&B is gone on with where the server knows it. Needs `pip install 'mtkd_jax[wandb]'`.
    """
    if mode not in ("", "online", "offline"):
        raise UserError(
            f"wandb(mode={mode!r}): must be 'online' or 'offline', or '' for what WANDB_MODE says"
        )
    package = _needed("wandb", "wandb")
    begun = package.init(
        project=project,
        entity=entity or None,
        mode=mode or None,
        dir=run.folder,
        id=run.id[:16],
        name=Path(run.folder).resolve().name,
        resume="allow",
        config=dict(run.settings),
        reinit="create_new",  # beside one that the user's own script may have
        settings=package.Settings(console="off", silent=True),
    )
    stages: set[str] = set()

    def write(points: Sequence[Point]) -> None:
        stage, epoch = points[0].stage, points[0].epoch
        if stage not in stages:  # its own axis: epochs begin anew in every stage
            stages.add(stage)
            begun.define_metric(f"{stage}/epoch", hidden=True)
            begun.define_metric(f"{stage}/*", step_metric=f"{stage}/epoch")
        begun.log({f"{stage}/epoch": epoch, **{tag(point): point.value for point in drawn(points)}})

    return Tracker(write, close=begun.finish)


def mlflow(run: TrackedRun, *, uri: str = "", experiment: str = "mtkd_jax") -> Tracker:
    """MLflow, at `uri` or as MLFLOW_TRACKING_URI says, or else in the folder RUN/mlruns.

    The same run of MLflow is gone on with. Needs `pip install 'mtkd_jax[mlflow]'`.
    """
    uri = uri or os.environ.get("MLFLOW_TRACKING_URI", "")
    if not uri:
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        uri = (Path(run.folder) / "mlruns").resolve().as_uri()
    # A server that is gone is to cost seconds, and not the minutes that MLflow would try.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "15")
    package = _needed("mlflow", "mlflow")
    entities = importlib.import_module("mlflow.entities")
    client = package.MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(experiment)
    where = found.experiment_id if found else client.create_experiment(experiment)
    same = client.search_runs([where], filter_string=f"tags.mtkd_jax_id = '{run.id}'", max_results=1)
    if same:
        id = same[0].info.run_id
        client.update_run(id, status="RUNNING")
    else:
        name = Path(run.folder).resolve().name
        id = client.create_run(where, tags={"mtkd_jax_id": run.id}, run_name=name).info.run_id
        params = [entities.Param(key, str(value)[:500]) for key, value in run.settings.items()]
        for first in range(0, len(params), 100):  # as many as MLflow takes at once
            client.log_batch(id, params=params[first : first + 100])

    def write(points: Sequence[Point]) -> None:
        metrics = [
            entities.Metric(_key(point), point.value, int(1000 * point.wall), point.epoch)
            for point in drawn(points)
        ]
        for first in range(0, len(metrics), 1000):
            client.log_batch(id, metrics=metrics[first : first + 1000])

    return Tracker(write, close=lambda: client.set_terminated(id))


def drawn(points: Sequence[Point]) -> list[Point]:
    """The points of one validation without those of members, where these are many."""
    members = {point.member for point in points if point.member}
    return [point for point in points if not point.member or len(members) <= MOST_MEMBERS]


def tag(point: Point) -> str:
    """What a point's curve is called: stage/name of a mean, stage/name/member of a member's."""
    return "/".join((point.stage, point.name, *([point.member] if point.member else [])))


def _key(point: Point) -> str:
    """A name that MLflow takes, whose files make folders of it: none is the beginning of another.

    >>> _key(Point("students-labelled", 1, 23, "logits.dkd(warmup=2.0) a=0 T=1 seed 0", "val_nll", 0.5, 0.0))
    'students-labelled/val_nll/logits.dkd_warmup_2.0_ a_0 T_1 seed 0'
    """
    named = tag(point if point.member else point._replace(member="mean"))
    return re.sub(r"[^\w\-. /]", "_", named, flags=re.ASCII)


def _needed(package: str, extra: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        missing = error.name or package
        raise UserError(
            f"there is no package {missing!r}; pip install 'mtkd_jax[{extra}]', or leave {package} out"
        ) from None


def _lines(rows: Sequence[Sequence]) -> str:
    text = io.StringIO()
    writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def _is_row(row: list[str]) -> bool:
    """Not the half line of a run that was killed while it wrote."""
    return len(row) == len(COLUMNS) and row[1].isdecimal()
