"""`runtime.how = auto`: a short timed trial of the candidate layouts on the real step, made once.

The result is kept with the stage's checkpoints, so that a resumed run goes on as it began, and in the cache
folder for the next run of the same network, batch, number of members, devices and version.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import jax

from mtkd_jax import mesh
from mtkd_jax.engine import forecast
from mtkd_jax.engine.jobs import Job, part
from mtkd_jax.mesh import Layout
from mtkd_jax.system import files
from mtkd_jax.types import UserError

# Below about a minute of training a trial costs more than it can win: the first guess stands.
WORTH_A_TRIAL = {"cpu": 2e12, "gpu": 1e15, "tpu": 1e15}  # FLOPs of a stage
FOR_FORMS = 5  # times as many, for that of the forms of convolutions: each compiles the stage once more
FILE = "layout.json"
PARTS = "parts.json"

Answer = dict[str, float]  # {layout as JSON: seconds a step}


def choose_layout(job: Job, directory: Path, say: Callable[[str], None]) -> Job:
    """The job in the layout it is trained in; `directory` is the stage's checkpoint folder."""
    if len(job.candidates) == 1:
        return job
    before = _read_choice(directory / FILE)
    if _is_begun(directory) and not before:  # by a version that wrote down nothing but what it had timed
        return with_layout(job, job.candidates[0]._replace(form=""))
    layout = _chosen(before, job.candidates)
    if layout is None:
        answer = _timed(job)
        layout = fastest(answer) if answer else job.candidates[0]
        _remember(directory / FILE, {"question": question(job), "layout": layout, "seconds": answer})
        if answer:
            say(f"{job.stage}: {_answer_in_words(answer)}")
    return with_layout(job, layout)


def _timed(job: Job) -> Answer:
    """Seconds a step in the layouts that the stage is worth a trial of, now or in an earlier run; else {}."""
    flops, least = forecast.flops(job), WORTH_A_TRIAL[jax.default_backend()]
    if flops < least:
        return {}
    if flops < FOR_FORMS * least:
        job = dataclasses.replace(job, candidates=_in_first_form(job.candidates))
    answer = _answer_for(_read(cache_file()).get(question(job)), job.candidates) or measure(job)
    with contextlib.suppress(UserError):  # a cache that cannot be written costs the next run a trial
        _remember(cache_file(), {**_read(cache_file()), question(job): answer})
    return answer


def members_at_once(job: Job, directory: Path) -> int:
    """How many members of a stage are trained at the same time.

    As many as when it was begun, whatever memory is free now: its checkpoints are of these parts. Of several
    processes the first decides and remembers. Raises UserError where the configuration asks for another
    number meanwhile.
    """
    path, begun = directory / PARTS, _is_begun(directory)
    before = _read_choice(path).get("members_at_once") if begun else None
    if begun and not path.exists():
        raise UserError(f"{path}: is missing; {_mend(path)}")
    if begun and not (isinstance(before, int) and before > 0):
        raise UserError(f"{path}: not what a run writes; {_mend(path)}")
    if before is None:
        now = mesh.take_from_first(forecast.members_at_once(job))
        if mesh.is_first():
            _remember(path, {"members_at_once": now})
        return now
    if job.at_once and min(job.at_once, len(job.names)) != before:
        raise UserError(
            f"config.runtime.members_at_once: {job.at_once}, but {job.stage} was begun with {before}; "
            f"go on with {before}, or remove {directory} to train it again"
        )
    return before


def _is_begun(directory: Path) -> bool:
    """Whether a stage has checkpoints."""
    return any(directory.glob("**/manifest.json"))


def measure(job: Job) -> Answer:
    """Seconds a step in the candidate layouts; each compiles the stage's program and runs a few steps.

    First all in the likeliest form of convolutions, then the fastest of them in the other forms.
    """
    job = part(job, range(forecast.members_at_once(job)))

    def timed(layouts: Iterable[Layout]) -> Answer:
        return {json.dumps(one): forecast.seconds_per_step(with_layout(job, one)) for one in layouts}

    likeliest = _in_first_form(job.candidates)
    answer = timed(likeliest)
    best = fastest(answer)
    others = [one for one in job.candidates if one not in likeliest]
    return answer | timed(one for one in others if one._replace(form=best.form) == best)


def _in_first_form(candidates: Sequence[Layout]) -> tuple[Layout, ...]:
    """Those in the form of convolutions that is the likeliest to be the fastest."""
    return tuple(layout for layout in candidates if layout.form == candidates[0].form)


def fastest(answer: Answer) -> Layout:
    """The layout in which a step took the fewest seconds."""
    return _layout(min(answer, key=answer.__getitem__))


def with_layout(job: Job, layout: Layout) -> Job:
    """The same job in another layout."""
    return dataclasses.replace(job, program=job.program._replace(layout=layout))


def question(job: Job) -> str:
    """What an answer depends on."""
    program, device = job.program, jax.devices()[0]
    num_teachers = sum(len(jax.tree.leaves(variables)[0]) for variables in job.stage_data.teachers)
    num_checkpoints = len(jax.tree.leaves(job.stage_data.bank)[0]) if job.stage_data.bank else 1
    return " | ".join(
        (
            program.model.name,
            f"images {job.image.shape[1:]}",
            f"batch {job.order(0).shape[-1]}",
            f"{len(job.names)} members",
            f"{num_teachers} teachers, cached {job.stage_data.cached_logits is not None}",
            f"{num_checkpoints} checkpoints of each",
            f"{jax.device_count()} {device.platform} {device.device_kind}",
            f"data shards {program.layout.data}",
            f"{len(job.candidates)} candidates",
            f"jax {jax.__version__}",
        )
    )


def cache_file() -> Path | None:
    """Beside the compiled programs; None where those are not kept either."""
    of_jax: Any = jax.config  # whose type lists none of its fields
    folder = of_jax.jax_compilation_cache_dir
    return Path(folder).parent / "layouts.json" if folder else None


def _chosen(before: dict, candidates: Sequence[Layout]) -> Layout | None:
    """What was chosen, if it can be had here: a resume may find other devices, or other packages."""
    if "layout" in before:
        return next((one for one in candidates if list(one) == before["layout"]), None)
    answer = _answer_for(before.get("seconds"), candidates)  # of a version that wrote down no more
    return fastest(answer) if answer else None


def _answer_for(answer: Answer | None, candidates: Sequence[Layout]) -> Answer | None:
    """The answer, if what was the fastest in it can be had here."""
    is_answer = isinstance(answer, dict) and all(isinstance(seconds, float) for seconds in answer.values())
    return answer if is_answer and answer and fastest(answer) in candidates else None


def _layout(text: str) -> Layout:
    return Layout(*json.loads(text))


def _answer_in_words(answer: Answer) -> str:
    ranked = [
        f"{_layout(text)} {1e3 * answer[text]:.3g} ms" for text in sorted(answer, key=answer.__getitem__)
    ]
    return f"a step takes, {', '.join(ranked)}"


def _read(path: Path | None) -> dict:
    """What was remembered; {} where there is nothing that can be read, for it can be found out again."""
    try:
        return (files.read_sealed(path, "") or {}) if path else {}
    except UserError:
        return {}


def _read_choice(path: Path) -> dict:
    """What was chosen when the stage began; {} where nothing was. Another choice would be another run."""
    return files.read_sealed(path, _mend(path)) or {}


def _mend(path: Path) -> str:
    return f"restore it, or remove {path.parent} to train the stage again"


def _remember(path: Path | None, content: dict) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        files.write_sealed(path, content)
