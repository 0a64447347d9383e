"""demo.html: a page that asks the student about images in the browser, one file that fetches nothing.

Inside it are model.onnx, ONNX Runtime Web (its JavaScript and its WebAssembly, compressed), the class names
and what the card says of bringing images to size. The page reads files as data/images.py does, as far as a
browser lets it: resampling and luma are Pillow's, to 1 of 255 (Pillow 13 resamples tall images in another
order than 12), decoding is the browser's own.
"""

from __future__ import annotations

import base64
import gzip
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from mtkd_jax.deploy import predict
from mtkd_jax.deploy.deployed import DEMO, read, read_card, read_form
from mtkd_jax.system import files
from mtkd_jax.system.terminal import one_line
from mtkd_jax.types import UserError, printable

RUNTIME = "onnxruntime-web@1.30.0"  # of the npm registry
SCRIPT, BINARY = (
    "ort.wasm.bundle.min.mjs",
    "ort-wasm-simd-threaded.wasm",
)  # for the CPU; both lie in its dist/
SECONDS = 600  # that npm may take
MEND = f"npm pack {RUNTIME} where there is npm and a network, and give --ort the file it writes"


class Runtime(NamedTuple):
    """What of ONNX Runtime Web a page needs."""

    script: bytes  # a JavaScript module
    binary: bytes  # WebAssembly


def write(directory: Path, runtime: Runtime) -> Path:
    """Write demo.html into the student's folder, which holds model.onnx; returns its path.

    Raises UserError as `check`, and naming a file that is not what was written.
    """
    card = read_card(directory / "model.json")
    check(card)
    model = read_form(directory, "onnx", card)
    path = directory / DEMO
    files.write_atomically(path, page(card, model, runtime).encode())
    return path


def check(card: Mapping[str, Any]) -> tuple[int, int, int]:
    """The shape [h,w,c] of the images that the page reads.

    Raises UserError for a student that reads no image files, or says more of one than a class.
    """
    predict.check_says_one_class(card, "--demo")
    return predict.check_reads_files(card)


def page(card: Mapping[str, Any], model: bytes, runtime: Runtime) -> str:
    """The page as HTML: `model` is an ONNX model, `card` that of the student it was made of."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mtkd_jax.deploy"),
        autoescape=True,
        finalize=lambda value: printable(value) if type(value) is str else value,  # before it is escaped
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    height, width, channels = check(card)
    taken = card["input"]
    return environment.get_template("demo.html.jinja").render(
        card=card,
        accuracy=card["metrics"].get("test accuracy"),
        known_fit="fit" in taken,
        settings={
            "classes": [printable(name) for name in card["class_names"]],
            "height": height,
            "width": width,
            "channels": channels,
            "fit": taken.get("fit", "crop"),  # as predict
        },
        parts={
            "runtime": _packed(runtime.script),
            "binary": _packed(runtime.binary),
            "model": _packed(model),
        },
    )


def _packed(data: bytes) -> str:
    """Compressed, as text; the same for the same bytes."""
    return base64.b64encode(gzip.compress(data, mtime=0)).decode()


# --- the runtime --------------------------------------------------------------------------------------


def read_runtime(path: Path) -> Runtime:
    """The runtime of an onnxruntime-web package: its folder, its dist/, or the .tgz that npm packs.

    Raises UserError naming what is missing.
    """
    if path.is_dir():
        folder = next((path / name for name in ("dist", "package/dist") if (path / name).is_dir()), path)
        return _runtime_of(lambda name: read(folder / name) if (folder / name).exists() else None, path)
    try:
        with tarfile.open(path) as package:

            def of_package(name: str) -> bytes | None:
                try:
                    member = package.extractfile(f"package/dist/{name}")
                except KeyError:
                    return None
                return member.read() if member else None

            return _runtime_of(of_package, path)
    except (OSError, EOFError, tarfile.TarError) as error:
        raise UserError(f"{path}: cannot be read ({one_line(error)}); {MEND}") from error


def _runtime_of(read_file: Callable[[str], bytes | None], path: Path) -> Runtime:
    found: list[bytes] = []
    for name in (SCRIPT, BINARY):
        data = read_file(name)
        if not data:
            raise UserError(f"{path}: no onnxruntime-web, dist/{name} is missing; {MEND}")
        found.append(data)
    return Runtime(*found)


def fetch_runtime() -> Runtime:
    """The runtime from the npm registry, through npm, by way of a temporary folder.

    Raises UserError, one line that says what to do, where npm is missing or fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = ["npm", "pack", RUNTIME, "--loglevel=error", "--pack-destination", folder]
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=SECONDS)
        except OSError as error:
            raise UserError(f"npm cannot be started ({error.strerror}); {MEND}") from error
        except subprocess.TimeoutExpired as error:
            raise UserError(f"npm pack took more than {SECONDS} s; {MEND}") from error
        packages = list(Path(folder).glob("*.tgz"))
        if done.returncode or not packages:
            said = one_line(done.stderr)[:160] or f"exit code {done.returncode}"
            raise UserError(f"npm pack {RUNTIME} failed ({said}); {MEND}")
        return read_runtime(packages[0])
