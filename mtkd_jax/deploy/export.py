"""The chosen student as a folder that needs no run: weights, what they are, and a check that they work.

model.stablehlo     the network with its weights as a program that needs no mtkd_jax: see deploy/deployed.py
model.safetensors   {"params/Dense_0/kernel": array, ...}: no pickle, nothing is executed on loading
model.json          the card: what `load_student` needs and what a reader asks
check.safetensors   {"images", "logits"}: a few inputs and what the student said: `Outputs.exported`
README.md           the card in words
cascade/            with `export.cascade`, the ensemble it hands over to: see deploy/cascade.py

Further forms stand beside these where they have been asked for: see deploy/forms.py.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import export as jax_export
from safetensors import flax as safetensors

from mtkd_jax.data import series_files
from mtkd_jax.deploy import predict
from mtkd_jax.deploy.cascade import FOLDER
from mtkd_jax.deploy.deployed import (
    DEMO,
    INT8_ONNX,
    INT8_PROGRAM,
    ONNX,
    PIXELS,
    PROGRAM,
    card_digest,
    load_program,
    read,
    read_card,
    sha256,
)
from mtkd_jax.models import layers
from mtkd_jax.models.levels import LEVELS, round_inputs
from mtkd_jax.system.text import in_markdown
from mtkd_jax.types import Array, Model, PyTree, Task, UserError

Build = Callable[[str, Task], Model]  # addresses.build_model: of an address and a task
TOLERANCE = 1e-5
NEARLY_REAL = 31  # bits of a weight: a layer may begin as zeros
PLATFORMS = ("cpu", "cuda", "tpu")
FORMS = {  # file of the student's folder -> what it is, in the order in which they are told
    "model.safetensors": "float32 weights",
    PROGRAM: "float32, StableHLO",
    ONNX: "float32, ONNX",
    "model.int8.safetensors": "int8 kernels",
    INT8_PROGRAM: "int8 kernels, StableHLO",
    INT8_ONNX: "int8 kernels and activations, ONNX",
}
# What may lie in a student's folder, which is replaced as a whole.
OWN_FILES = {*FORMS, "model.json", "check.safetensors", "README.md", DEMO, FOLDER}


def save_student(
    directory: Path, model: Model, variables: PyTree, card: Mapping[str, Any], check: tuple[np.ndarray, Array]
) -> None:
    """Write the student's folder, whole or not at all; a student that is there is replaced.

    `card` holds, as JSON can:
        name        one line for the heading
        model       the address `build` takes
        task        a `Task`: classes, heads, and the normalisation inside the network
        class_names C strings, by output index
        input       {"shape": [h, w, c], "dtype", "range"}: what the network reads, and how to get there; of
                    one that was trained on image files also "fit" and "files", as in `data.images`; of one
                    that was trained on a table "columns", their names; of one of sequences "tokens",
                    the source tokens there are, and "unit", which of `data.tokens.UNITS` they are
        training    one line: method, alpha, temperature, or whatever made it
        data        one line: source and sizes
        source      one line: the run it came from
        weights     if there, what `results.bodies.of_weights` says of them
        places      of a dense task {"task", "place", "number" of an image, "beside": {name: d}}
        metrics     {name: {"value", "ci95": [low, high] or None, "over": what the interval is taken over}}
    `check` is (images [n,h,w,c], what `logits_of` says of them). Raises UserError when the disk refuses, and
    where `directory` holds something else than a student.
    """
    directory = Path(directory).absolute()
    check_replaceable(directory)
    temporary, old = (directory.with_name(f".{directory.name}.{word}") for word in ("writing", "old"))
    weights = safetensors.save(flatten_dict(_contiguous(variables), sep="/"))
    program = program_of(model, variables, card["input"]["shape"])
    card = {
        **{name: value for name, value in card.items() if name != "forms"},  # of another folder
        "task": card["task"]._asdict(),
        "weights_sha256": sha256(weights),
        "program_sha256": sha256(program),
        "jax": jax.__version__,
    }
    card["card_sha256"] = card_digest(card)
    images, logits = check
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        (temporary / "model.safetensors").write_bytes(weights)
        (temporary / PROGRAM).write_bytes(program)
        checked = safetensors.save(_contiguous({"images": images, "logits": logits}))
        (temporary / "check.safetensors").write_bytes(checked)
        (temporary / "model.json").write_text(json.dumps(card, indent=2), encoding="utf-8")
        (temporary / "README.md").write_text(readme(card, directory.name), encoding="utf-8")
        shutil.rmtree(old, ignore_errors=True)
        if directory.exists():
            directory.rename(old)
        temporary.rename(directory)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{directory}: cannot save the student: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def check_replaceable(directory: Path) -> None:
    """Raise UserError unless `directory` is missing, or holds nothing but a student and hidden files."""
    directory = Path(directory).absolute()
    if not directory.exists():
        return
    if not directory.is_dir():
        raise UserError(f"{directory} is a file; name a folder for the student")
    if directory == Path.cwd() or directory in Path.cwd().parents:
        raise UserError(f"{directory}: the current folder lies there and would be replaced; go elsewhere")
    names = sorted(path.name for path in directory.iterdir() if not path.name.startswith("."))
    if foreign := [name for name in names if name not in OWN_FILES]:
        raise UserError(
            f"{directory} holds {foreign[0]!r}, which is no part of a student; move it away, or name another "
            "folder, for this one is replaced as a whole"
        )


def load_student(directory: Path, build: Build) -> tuple[Model, PyTree, dict[str, Any]]:
    """The student as (model, variables, card): `model.apply(variables, images)[0].logits`.

    Raises UserError naming the file when one is missing or is not what was saved, or when `build` makes
    another network of the card's address than the one whose weights these are.
    """
    directory = Path(directory)
    card = read_card(directory / "model.json")
    path = directory / "model.safetensors"
    if sha256(read(path)) != card["weights_sha256"]:
        raise UserError(
            f"{path}: damaged, its SHA-256 is not the one in model.json; export the student again"
        )
    variables = unflatten_dict(safetensors.load_file(path), sep="/")
    task: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in card["task"].items()
    }
    model = build(card["model"], Task(**task))
    image = jax.ShapeDtypeStruct((1, *card["input"]["shape"]), jnp.float32)
    wanted = jax.eval_shape(model.init, jax.random.key(0), image)
    if _shapes(wanted) != _shapes({kind: of for kind, of in variables.items() if kind != LEVELS}):
        raise UserError(f"{path}: not the weights of {card['model']} as this version of mtkd_jax builds it")
    return (round_inputs(model) if LEVELS in variables else model), variables, card


def logits_of(model: Model, variables: PyTree, images: np.ndarray | Array) -> Array:
    """Logits [n,C] of one network, compiled alone: the same program before saving and after loading.

    Of a dense task [n,L,C], and behind the logits what is predicted beside them: `Outputs.exported`.
    """
    with jax.default_matmul_precision("highest"):  # as in the exported program
        return _logits(model)(variables, images)


@lru_cache
def _logits(model: Model) -> Callable:
    return jax.jit(lambda variables, images: model.apply(variables, images)[0].exported)


def verify_student(directory: Path, build: Build, images: np.ndarray, logits: Array) -> float:
    """Load the student again, as weights and as program, and return the largest difference from `logits`.

    The program is asked for all images at once and for the first alone. Raises RuntimeError where the weights
    differ by more than 1e-5, or the program, which is compiled otherwise, by more than 1e-5 of the largest
    logit (and of 1); of a network that computes in bfloat16, whose own rounding is 400 times that, by 5e-2.
    """
    model, variables, _ = load_student(directory, build)
    program, _ = load_program(directory)
    largest = max(1.0, float(np.max(np.abs(logits))))
    rounding = 5e-2 if getattr(model.module, "dtype", "float32") == "bfloat16" else TOLERANCE
    return max(
        _difference(logits_of(model, variables, images), logits, TOLERANCE, directory),
        _difference(program(images), logits, rounding * largest, directory / PROGRAM),
        _difference(program(images[:1]), logits[:1], rounding * largest, directory / PROGRAM),
    )


def _difference(found: np.ndarray | Array, wanted: Array, tolerance: float, path: Path) -> float:
    difference = float(np.max(np.abs(np.asarray(found, np.float64) - np.asarray(wanted, np.float64))))
    if not difference <= tolerance:  # NaN is a failure too
        raise RuntimeError(
            f"{path}: reloaded, the student's logits differ by {difference:g}, more than {tolerance:g}"
        )
    return difference


def program_of(model: Model, variables: PyTree, shape: Sequence[int]) -> bytes:
    """The network with its weights as StableHLO, float32 images [b,h,w,c] -> `Outputs.exported` for any b."""
    variables = jax.tree.map(np.asarray, variables)
    return stablehlo_of(lambda images: model.apply(variables, images)[0].exported, shape)


def stablehlo_of(function: Callable[[Array], Array], shape: Sequence[int]) -> bytes:
    """A function of float32 images [b,h,w,c] as StableHLO, for any b, with all that it holds."""
    images = jax.ShapeDtypeStruct((*jax_export.symbolic_shape("b"), *shape), jnp.float32)
    # A CPU runs the forms of other platforms up to 25 times slower, so all get those of a CPU. In the highest
    # precision, because a GPU or TPU that rounds factors in its own way would not say what was measured.
    with layers.forms_of("cpu"), jax.default_matmul_precision("highest"):
        return bytes(jax_export.export(jax.jit(function), platforms=PLATFORMS)(images).serialize())


def save_ensemble(
    directory: Path, decide: Callable[[Array], Array], card: Mapping[str, Any], tell: Sequence[str]
) -> None:
    """Write the ensemble that a student hands over to, beside it: see deploy/cascade.py.

    `decide` makes log-probabilities [b,C] of images [b,h,w,c], all weights inside; `card` has name,
    class_names, input, training, data and source as that of the student, and "cascade"; `tell` are paragraphs
    for its README. The student in `directory` must have been saved. Raises UserError when the disk refuses,
    or where `decide` cannot be a program for any number of images.
    """
    folder = Path(directory).absolute() / FOLDER
    temporary = folder.with_name(f".{FOLDER}.writing")
    student = read_card(folder.parent / "model.json")
    try:
        program = stablehlo_of(decide, card["input"]["shape"])
    except UserError:
        raise
    except Exception as error:  # whatever a rule of the user's own may raise
        what = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"config.export.cascade: {card['name']} cannot be exported: {what}") from error
    card = {
        **card,
        "cascade": {**card["cascade"], "student_sha256": student["program_sha256"]},
        "program_sha256": sha256(program),
        "jax": jax.__version__,
    }
    card["card_sha256"] = card_digest(card)
    use = f"    python -m mtkd_jax.predict --cascade --student {folder.parent.name} IMAGES"
    words = "\n\n".join([f"# {in_markdown(card['name'])}", *map(in_markdown, tell), use])
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        (temporary / PROGRAM).write_bytes(program)
        (temporary / "model.json").write_text(json.dumps(card, indent=2), encoding="utf-8")
        (temporary / "README.md").write_text(f"{words}\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        temporary.rename(folder)
    except OSError as error:
        raise UserError(f"{folder}: cannot save the ensemble: {error.strerror}") from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _contiguous(tree: PyTree) -> PyTree:
    """On the host in C order: safetensors writes the memory as it lies."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, order="C"), tree)


def _shapes(variables: PyTree) -> dict[str, tuple[tuple[int, ...], str]]:
    return {name: (leaf.shape, str(leaf.dtype)) for name, leaf in flatten_dict(variables, sep="/").items()}


# --- the card in words --------------------------------------------------------------------------------


def readme(card: Mapping[str, Any], folder: str) -> str:
    """The card in words, for the student's folder of this name."""
    shape = " x ".join(map(str, card["input"]["shape"]))
    metrics = "\n".join(_metric_row(name, metric) for name, metric in card["metrics"].items())
    told = {name: in_markdown(card[name]) for name in ("name", "training", "data", "source")}
    num_classes = len(card["class_names"])
    logits = "[b,L,C], of every place" if "places" in card else "[b,C]"
    return f"""# {told["name"]}

A network that {_what_it_does(card)}, of images of {shape} (height x width x channels). Classes:
{", ".join(map(in_markdown, card["class_names"]))}.

| | |
|---|---|
| network | `{card["model"]}` |
| trained by | {told["training"]} |
| data | {told["data"]} |
| run | {told["source"]} |
| weights | {_weights(card)} |
| input | {card["input"]["dtype"]}, {card["input"]["range"]}; normalisation is inside the network |
| output | {_what_it_says(card)} |

## What it is for

Images like those it was trained on. Nothing is known of its accuracy on others, such as another camera,
another scale or a class that is not in the list; it always answers with one of its classes.

## How good it is

| metric | value | 95 % interval | over |
|---|---|---|---|
{metrics}

{_forms(card)}## How to predict with it

{_of_files(card, folder)}From Python without `mtkd_jax`, but with JAX, flatbuffers and safetensors, from the
folder that holds `{folder}/`:

```python
from pathlib import Path

import jax
from jax import export
from safetensors.numpy import load_file

program = export.deserialize(bytearray(Path("{folder}/{PROGRAM}").read_bytes()))
# [b,h,w,c] {card["input"]["dtype"]}, {card["input"]["range"]}; these are the ones it was checked with
images = load_file("{folder}/check.safetensors")["images"]
logits = jax.jit(program.call)(images)[..., :{num_classes}]  # {logits}
print(jax.nn.softmax(logits).argmax(axis=-1), jax.nn.softmax(logits).max(axis=-1))
```

The program takes any number of images and runs on a CPU, on CUDA and on a TPU. JAX {card["jax"]} wrote it;
releases up to six months newer or three weeks older promise to run it. The weights have no such limit.

## How to load its weights

With `mtkd_jax` installed, from the folder that holds `{folder}/`:

```python
from pathlib import Path

import jax
import numpy as np
from safetensors.flax import load_file

from mtkd_jax.addresses import build_model
from mtkd_jax.deploy.export import load_student

model, variables, card = load_student(Path("{folder}"), build_model)
check = load_file("{folder}/check.safetensors")  # a few inputs, and what it said of them when it was saved
outputs, _ = model.apply(variables, check["images"])
probabilities = np.asarray(jax.nn.softmax(outputs.logits))  # {logits}
print(np.array(card["class_names"])[probabilities.argmax(axis=-1)], probabilities.max(axis=-1))
print("largest difference from what was saved:", abs(outputs.exported - check["logits"]).max())
```

`model.json` is this page for programs. SHA-256 of the weights: `{card["weights_sha256"]}`;
of the program: `{card["program_sha256"]}`.
"""


def _weights(card: Mapping[str, Any]) -> str:
    """The bits of weights and activations, and what the file holds instead."""
    told = card.get("weights")
    if told is None or min(told["weight_bits"], told["activation_bits"]) > NEARLY_REAL:
        return "float32"
    said = f"{told['weight_bits']:.3g} bits each on average, {told['zeros']:.1%} of them 0: "
    said += f"{round(told['num_bytes']):,} bytes if stored so; the file holds the same values as float32"
    few = told["activation_bits"]
    return said if few >= 32 else f"{said}. Layers between the first and the last read {few:.3g} bits"


def _what_it_does(card: Mapping[str, Any]) -> str:
    num_classes, places = len(card["class_names"]), card.get("places")
    if places is None:
        return f"tells {num_classes} classes apart"
    return f"tells {num_classes} classes apart in each of {places['number']:,} {places['place']}s"


def _what_it_says(card: Mapping[str, Any]) -> str:
    said = "unnormalised logits, one per class in the order above; softmax makes probabilities"
    if "places" not in card:
        return said
    beside = "".join(f", then {width} of {name}" for name, width in sorted(card["places"]["beside"].items()))
    return f"[b,{card['places']['number']},...]: of each {card['places']['place']} {said}{beside}"


def _forms(card: Mapping[str, Any]) -> str:
    """The forms and what they cost, where they have been measured; nothing where they have not."""
    if not card.get("forms"):
        return ""
    header, rows = forms_table(card)
    lines = [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]
    return "\n".join(["## Its forms", "", *lines, "", in_markdown(forms_caption(card)), "", ""])


def forms_table(card: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows, as text, of the files that the card's "forms" tells of."""
    told = card["forms"]["files"]
    header = ["file", "what", "bytes", "1 image, ms", "64 images, ms", "largest difference", "same class"]
    has_accuracy = any("accuracy" in one for one in told.values())
    return header + ["accuracy", "minus float32"] * has_accuracy, [
        _form_row(file, FORMS[file], told[file], has_accuracy) for file in FORMS if file in told
    ]


def _form_row(file: str, what: str, told: Mapping[str, Any], has_accuracy: bool) -> list[str]:
    cells = [file, what, f"{told['bytes']:_}" if "bytes" in told else ""]
    cells += [f"{told['ms'][size]:.3g}" if "ms" in told else "" for size in ("1", "64")]
    cells += [f"{told['difference']:.2g}", f"{told['same_class']:.1%}"] if "ms" in told else ["", ""]
    if has_accuracy:
        cells += [_with_interval(told.get(name)) for name in ("accuracy", "accuracy_minus_float32")]
    return cells


def _with_interval(metric: Mapping[str, Any] | None) -> str:
    if metric is None:
        return ""
    value, ci95 = f"{metric['value']:.4f}", metric["ci95"]
    return value if ci95 is None else f"{value} ({ci95[0]:.4f} to {ci95[1]:.4f})"


def forms_caption(card: Mapping[str, Any]) -> str:
    """What the numbers of `forms_table` are."""
    said = (
        "Milliseconds: median of repeated calls. Largest difference of any logit from the student's, and "
        "share of images with the same class: over the images of check.safetensors."
    )
    if any("accuracy" in one for one in card["forms"]["files"].values()):
        said += " Accuracy: of the test set, with 95 % intervals over its examples, the difference paired."
    on = card["forms"]["on"]
    return f"{said} Measured on {on}." if on else f"{said} Not measured yet."


def _of_files(card: Mapping[str, Any], folder: str) -> str:
    """How to ask about files, and what is done to images; nothing for a student of other arrays."""
    taken = card["input"]
    if "tokens" in taken:
        return _asked_of("text files in UTF-8, a source a line", folder, "new.txt")
    if "columns" in taken:
        names = ", ".join(map(in_markdown, taken["columns"]))
        return _asked_of("a table", folder, "new.csv") + (
            "Its first line names its columns; these are read, in any order, and must be numbers as in "
            f"training:\n{names}.\n\n"
        )
    if predict.reads_lines(card):
        what = f"files of series ({', '.join(series_files.ENDINGS)}) of {taken['shape'][0]} steps"
        return _asked_of(what, folder, "new.ts") + (
            "What stands for the class is not read; below `@classLabel false` a .ts file has none.\n\n"
        )
    if taken["range"] != PIXELS:
        return ""
    return _asked_of("image files, or of folders of them", folder, "photos/") + f"{_done_to_files(taken)}\n\n"


def _asked_of(what: str, folder: str, example: str) -> str:
    return f"""Of {what}, with `mtkd_jax` installed:

```
python -m mtkd_jax.predict --student {folder} {example}
```

"""


def _done_to_files(taken: Mapping[str, Any]) -> str:
    height, width, channels = taken["shape"]
    size = f"{height} x {width} x {channels} (height x width x channels)"
    if "fit" not in taken:
        return (
            f"It was trained on arrays: how images were brought to {size} is not known here. Files of "
            "another size are cropped, unless `--fit` says otherwise."
        )
    rest = "; ".join(f"{name}: {how}" for name, how in taken.get("files", {}).items())
    return f"It brings files to {size} by `{taken['fit']}`, as in training" + (f" ({rest})." if rest else ".")


def _metric_row(name: str, metric: Mapping[str, Any]) -> str:
    interval = "none" if metric["ci95"] is None else f"{metric['ci95'][0]:.4g} to {metric['ci95'][1]:.4g}"
    return f"| {name} | {metric['value']:.4g} | {interval} | {metric['over']} |"
