"""The page for the browser is refused in one line or whole, fetches nothing, and says what `predict` says."""

from __future__ import annotations

import base64
import gzip
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
import threading
import time
from html.parser import HTMLParser
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from mtkd_jax import addresses
from mtkd_jax import export as command
from mtkd_jax.data import images
from mtkd_jax.deploy import demo, deployed, export, forms, predict
from mtkd_jax.types import Task, UserError

RUNTIME = demo.Runtime(b"export default 1", b"\0asm")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chrome")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--remote-debugging-pipe"),
)


def save(directory, address="mlp(hidden=(8,))", shape=(6, 4, 3), **taken):
    """A student of weights as they are drawn, with statistics in its card."""
    channels = shape[-1]
    task = Task(3, 1, (0.4,) * channels, (0.2,) * channels)
    model = addresses.build_model(address, task)
    pixels = np.random.default_rng(0).uniform(size=(5, *shape)).astype(np.float32)
    variables = jax.jit(model.init)(jax.random.key(0), pixels)
    card = {
        "name": "made up: student by <nobody>",
        "model": address,
        "task": task,
        "class_names": ["a", "b", "c"],
        "input": {"shape": list(shape), "dtype": "float32", "range": deployed.PIXELS, **taken},
        "training": "none",
        "data": "none",
        "source": "none",
        "metrics": {"test accuracy": {"value": 0.875, "ci95": [0.8, 0.95], "over": "test examples"}},
    }
    export.save_student(
        directory, model, variables, card, (pixels, export.logits_of(model, variables, pixels))
    )
    return directory


@pytest.fixture
def folder(tmp_path):
    return save(tmp_path / "student", fit="pad", files=images.READING)


@pytest.fixture
def with_onnx(folder):
    """A student with what passes for an ONNX model: the page does not look into it."""
    (folder / forms.ONNX).write_bytes(b"onnx")
    card = deployed.read_card(folder / "model.json")
    forms.rewrite_card(folder, card, {forms.ONNX: {"sha256": deployed.sha256(b"onnx"), "bytes": 4}})
    return folder


@pytest.fixture
def package(tmp_path):
    """The files of onnxruntime-web that are read, of other content."""
    (tmp_path / "ort" / "dist").mkdir(parents=True)
    for name, data in zip((demo.SCRIPT, demo.BINARY), RUNTIME):
        (tmp_path / "ort" / "dist" / name).write_bytes(data)
    return tmp_path / "ort"


def content(directory):
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def refused(capsys, *arguments) -> str:
    assert command.main([*map(str, arguments)]) == 2
    told = capsys.readouterr().err.splitlines()
    assert told[-1].startswith("mtkd_jax: ")
    return told[-1]


class Parts(HTMLParser):
    """Text of every element of the page that has an id, and all its tags with attributes."""

    def __init__(self, text):
        super().__init__()
        self.text, self.tags, self.open = {}, [], ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        self.open = dict(attributes).get("id", "")

    def handle_data(self, data):
        self.text[self.open] = self.text.get(self.open, "") + data


# --- what is written ----------------------------------------------------------------------------------


def test_the_page_holds_all_it_needs_and_names_no_address(with_onnx, package, capsys):
    assert command.main([str(with_onnx), "--demo", "--ort", str(package)]) == 0
    assert capsys.readouterr().err == ""
    text = (with_onnx / "demo.html").read_text(encoding="utf-8")
    parts = Parts(text)
    for name, data in {"runtime": RUNTIME.script, "binary": RUNTIME.binary, "model": b"onnx"}.items():
        assert gzip.decompress(base64.b64decode(parts.text[name])) == data
    assert json.loads(parts.text["settings"]) == {
        "classes": ["a", "b", "c"],
        "height": 6,
        "width": 4,
        "channels": 3,
        "fit": "pad",
    }
    assert re.search(r"(https?:)?//[\w.]+\.\w+/", text) is None
    assert not [tag for tag, attributes in parts.tags if {"src", "href"} & set(attributes)]
    policy = next(a["content"] for _, a in parts.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; ") and "http" not in policy and "*" not in policy
    assert "student by &lt;nobody&gt;" in text
    assert "87.5 % of the test images right (80.0 to 95.0, 95 % interval)" in text
    assert "brought to size by pad, as in training" in text
    assert demo.write(with_onnx, RUNTIME).read_text(encoding="utf-8") == text  # of the same, the same


def test_no_name_of_a_class_leaves_its_place(with_onnx):
    card = deployed.read_card(with_onnx / "model.json")
    names = ["</script><script>alert(1)</script>", "a\"b'c", "<!--", "Ünïcode \u202e"]
    card = {**card, "class_names": names, "name": "<b onclick=x>", "metrics": {}}
    parts = Parts(demo.page(card, b"onnx", RUNTIME))
    assert json.loads(parts.text["settings"])["classes"] == [*names[:3], "Ünïcode \\u202e"]
    assert len([tag for tag, _ in parts.tags if tag == "script"]) == 6
    assert not [tag for tag, attributes in parts.tags if tag == "b" or "onclick" in attributes]


def test_a_card_that_does_not_say_how_images_were_brought_to_size_is_cropped_and_says_so(with_onnx):
    card = deployed.read_card(with_onnx / "model.json")
    del card["input"]["fit"]
    text = demo.page(card, b"onnx", RUNTIME)
    assert json.loads(Parts(text).text["settings"])["fit"] == "crop"
    assert "how training brought them there is not known" in text


def test_the_runtime_is_found_in_a_folder_its_dist_and_what_npm_packs(package, tmp_path):
    packed = tmp_path / "onnxruntime-web.tgz"
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(package, "package")
    (tmp_path / "unpacked").mkdir()
    shutil.copytree(package, tmp_path / "unpacked" / "package")
    for path in (package, package / "dist", tmp_path / "unpacked", packed):
        assert demo.read_runtime(path) == RUNTIME


# --- what is refused ----------------------------------------------------------------------------------


def test_a_student_of_series_and_other_arrays_is_refused(tmp_path, package, capsys):
    series = save(tmp_path / "series", "fcn(widths=(4, 4, 4))", (20, 1, 2))
    before = content(series)
    assert "reads arrays [20, 1, 2]" in refused(capsys, series, "--demo", "--ort", package)
    floats = save(tmp_path / "floats", range="as in the file")
    assert "(as in the file), not image files" in refused(capsys, floats, "--demo", "--ort", package)
    assert content(series) == before


def test_without_the_packages_the_missing_form_is_one_line(folder, package, monkeypatch, capsys):
    find = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda one: None if one == "jax2onnx" else find(one))
    before = content(folder)
    assert "pip install 'mtkd_jax[onnx]'" in refused(capsys, folder, "--demo", "--ort", package)
    assert content(folder) == before


def test_a_damaged_model_is_not_put_into_a_page(with_onnx, package, capsys):
    (with_onnx / forms.ONNX).write_bytes(b"anno")
    assert "model.onnx: damaged" in refused(capsys, with_onnx, "--demo", "--ort", package)
    assert not (with_onnx / "demo.html").exists()


def test_what_is_no_runtime_is_one_line_that_says_what_to_do(with_onnx, package, tmp_path, capsys):
    before = content(with_onnx)
    (package / "dist" / demo.BINARY).unlink()
    (tmp_path / "text.tgz").write_text("no package")
    with tarfile.open(tmp_path / "other.tgz", "w:gz") as tar:
        tar.add(package, "package")
    for path, word in {
        package: f"dist/{demo.BINARY} is missing",
        tmp_path / "text.tgz": "cannot be read",
        tmp_path / "nothing": "cannot be read",
        tmp_path / "other.tgz": f"dist/{demo.BINARY} is missing",
    }.items():
        told = refused(capsys, with_onnx, "--demo", "--ort", path)
        assert str(path) in told and word in told and "npm pack onnxruntime-web@" in told
    assert "--ort: is for --demo" in refused(capsys, with_onnx, "--ort", package)
    assert content(with_onnx) == before


def test_npm_that_is_missing_or_fails_is_one_line_that_says_what_to_do(
    with_onnx, tmp_path, monkeypatch, capsys
):
    before, path = content(with_onnx), os.environ["PATH"]
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    told = refused(capsys, with_onnx, "--demo")
    assert "npm cannot be started (No such file or directory); npm pack onnxruntime-web@" in told
    npm = tmp_path / "bin" / "npm"
    npm.write_text("#!/bin/sh\necho 'npm error network' >&2\necho 'is down' >&2\nexit 1\n")
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{path}")
    told = refused(capsys, with_onnx, "--demo")
    assert f"npm pack {demo.RUNTIME} failed (npm error network is down); " in told and "--ort" in told
    assert content(with_onnx) == before


def test_what_npm_fetches_goes_into_the_page(with_onnx, package, tmp_path, monkeypatch, capsys):
    """Of an npm that packs a package of ours into the folder it is given last."""
    with tarfile.open(tmp_path / "there.tgz", "w:gz") as tar:
        tar.add(package, "package")
    (tmp_path / "bin").mkdir()
    npm = tmp_path / "bin" / "npm"
    npm.write_text(f'#!/bin/sh\nfor last; do :; done\ncp "{tmp_path}/there.tgz" "$last/"\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    assert command.main([str(with_onnx), "--demo"]) == 0
    assert f"note: npm fetches {demo.RUNTIME}" in capsys.readouterr().err
    assert demo.page(deployed.read_card(with_onnx / "model.json"), b"onnx", RUNTIME) == (
        (with_onnx / "demo.html").read_text(encoding="utf-8")
    )


# --- what it computes ---------------------------------------------------------------------------------

SIZES = [  # (width, height) of the file, of the network
    ((50, 40), (8, 8)),
    ((7, 31), (12, 10)),
    ((12, 10), (12, 10)),
    ((3, 2), (9, 9)),
    ((101, 17), (5, 13)),
    ((1, 1), (4, 3)),
]
ASK = """
const given = JSON.parse(require("fs").readFileSync(0, "utf8"));
process.stdout.write(JSON.stringify(given.map(({image, fit, size}) => {
  const {width, height, channels} = image;
  if (fit === "grey") {
    const found = [];
    for (let at = 0; at < image.data.length; at += 3) found.push(grey(...image.data.slice(at, at + 3)));
    return found;
  }
  return [...FITS[fit]({width, height, channels, data: Uint8ClampedArray.from(image.data)}, ...size).data];
})));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="node, which runs the page's JavaScript, is missing")
def test_pixels_are_those_of_pillow():
    """To the bit where Pillow resamples along the rows first, otherwise to one step of 255."""
    rng, asked, wanted, within = np.random.default_rng(3), [], [], []
    for (width, height), size in SIZES:
        for channels in (1, 3):
            data = rng.integers(0, 256, (height, width, channels)).astype(np.uint8)
            image = Image.fromarray(data[..., 0] if channels == 1 else data)
            told = {"width": width, "height": height, "channels": channels, "data": data.ravel().tolist()}
            for fit in ("crop", "pad", "stretch"):
                asked.append({"image": told, "fit": fit, "size": size})
                wanted.append(images.resizer_of(fit)(image, size))
                within.append(1)
            rows = image.resize((size[0], height), Image.Resampling.BILINEAR)
            asked.append({"image": told, "fit": "stretch", "size": size})
            wanted.append(rows.resize(size, Image.Resampling.BILINEAR))
            within.append(0)
        asked.append({"image": told, "fit": "grey"})
        wanted.append(image.convert("L"))
        within.append(0)
    template = (Path(demo.__file__).parent / "templates" / "demo.html.jinja").read_text(encoding="utf-8")
    script = re.search(r'<script id="pixels">(.*?)</script>', template, re.DOTALL).group(1)
    done = subprocess.run(
        ["node", "-e", script + ASK], input=json.dumps(asked), capture_output=True, text=True, check=True
    )
    for one, found, right, steps in zip(asked, json.loads(done.stdout), wanted, within, strict=True):
        difference = np.abs(np.array(found) - np.asarray(right, int).ravel()).max()
        assert difference <= steps, (
            one["image"]["width"],
            one["image"]["height"],
            one["fit"],
            one.get("size"),
        )


def files_of_many_kinds():
    """Name -> bytes of images that are smooth in colour, each with something that `images.read` minds."""
    y, x = np.mgrid[0:150, 0:230] / 100
    waves = [np.sin(4 * x + 2), np.cos(3 * y + x), np.sin(5 * x * y)]
    base = Image.fromarray((127.5 + 127 * np.stack(waves, axis=-1)).astype(np.uint8))
    alpha = Image.fromarray((255 * (x < y + 0.5)).astype(np.uint8))
    turned = Image.Exif()
    turned[0x0112] = 6
    found = {
        "colour.png": (base.resize((50, 40)), {}),
        "grey.png": (base.resize((9, 31)).convert("L"), {}),
        "transparent.png": (Image.merge("RGBA", (*base.split(), alpha)).resize((70, 30)), {}),
        # Of whole blocks: where it ends within one and is turned, a browser's are others than Pillow's.
        "turned.jpg": (base.resize((232, 152)), {"exif": turned, "quality": 95}),
        "palette.gif": (base.resize((40, 60)).convert("P"), {}),
    }
    for name, (image, options) in found.items():
        file = io.BytesIO()
        image.save(file, {"jpg": "JPEG"}.get(name[-3:], name[-3:].upper()), **options)
        yield name, file.getvalue()


TELL = """
new Promise(done => {
  const message = document.getElementById("message"), rows = document.getElementById("classes");
  const look = () => {
    const told = message.textContent;
    if (told.includes("being loaded") || told.includes("Reading") || !told && !rows.children.length) return;
    clearInterval(timer);
    done({
      message: told,
      rows: [...rows.children].map(one => [one.dataset.index, one.dataset.probability]),
      seen: [document.getElementById("seen").width, document.getElementById("seen").height],
      fetched: performance.getEntriesByType("resource").map(one => one.name),
    });
  };
  const timer = setInterval(look, 20);
})
"""


def asked_of_a_browser(page, fragments, profile):
    """What the page says at each fragment of its address, through the pipe that Chromium is driven by."""
    (to_read, to_write), (from_read, from_write) = os.pipe(), os.pipe()
    line = f'exec "$@" 3<&{to_read} 4>&{from_write}'
    browser = subprocess.Popen(
        ["bash", "-c", line, "bash", CHROMIUM, *QUIET, f"--user-data-dir={profile}", "about:blank"],
        pass_fds=(to_read, from_write),
        stderr=subprocess.DEVNULL,
    )
    os.close(to_read), os.close(from_write)
    watchdog = threading.Timer(120, browser.kill)  # then nothing more is read, and the test fails
    watchdog.start()
    with os.fdopen(to_write, "wb") as sending, os.fdopen(from_read, "rb") as receiving:
        number, rest = 0, b""

        def call(method, session=None, **given):
            nonlocal number, rest
            number += 1
            message = {"id": number, "method": method, "params": given}
            sending.write(json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
            sending.flush()
            while True:
                while b"\0" not in rest:
                    more = os.read(receiving.fileno(), 1 << 16)
                    assert more, "Chromium ended"
                    rest += more
                one, rest = rest.split(b"\0", 1)
                said = json.loads(one)
                if said.get("id") == number:
                    assert "error" not in said, said
                    return said["result"]

        try:
            for fragment in fragments:
                target = call("Target.createTarget", url=f"file://{page}{fragment}")["targetId"]
                session = call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
                while (
                    call("Runtime.evaluate", session, expression="document.readyState")["result"]["value"]
                    != "complete"
                    or not call("Runtime.evaluate", session, expression="location.hash")["result"]["value"]
                ):
                    time.sleep(0.1)
                told = call(
                    "Runtime.evaluate", session, expression=TELL, awaitPromise=True, returnByValue=True
                )
                call("Target.closeTarget", targetId=target)
                yield told["result"]["value"]
            call("Browser.close")
        finally:
            watchdog.cancel()
            browser.kill()
            browser.wait()


@pytest.mark.slow(seconds=60)
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is missing")
@pytest.mark.skipif(
    "ONNXRUNTIME_WEB" not in os.environ,
    reason="ONNXRUNTIME_WEB is not set: the path that --ort is to be given",
)
@pytest.mark.parametrize("fit, shape", [("crop", (12, 10, 3)), ("pad", (9, 12, 1)), ("stretch", (8, 8, 3))])
def test_a_browser_says_what_predict_says(tmp_path, fit, shape):
    pytest.importorskip("jax2onnx"), pytest.importorskip("onnxruntime")
    student = save(tmp_path / "student", "cnn(widths=(4, 8), dense=8)", shape, fit=fit, files=images.READING)
    runtime = os.environ["ONNXRUNTIME_WEB"]
    assert command.main([str(student), "--demo", "--ort", runtime]) == 0
    program, card = deployed.load_program(student)

    def said(path, fit):
        one = next(predict.predictions(program, card, [path], top=3, fit=fit, batch=1))
        return dict(zip(one.classes, one.probabilities))

    kinds = dict(files_of_many_kinds())
    addresses = [f"#image=data:image/any;base64,{base64.b64encode(data).decode()}" for data in kinds.values()]
    answers = asked_of_a_browser(
        student / "demo.html", [*addresses, "#image=data:image/png;base64,bm9uZQ=="], tmp_path / "profile"
    )
    by_other_fits = 0.0
    for name, data in kinds.items():
        answer = next(answers)
        (tmp_path / name).write_bytes(data)
        assert answer["seen"] == list(shape[1::-1]) and not answer["message"], (name, answer)
        assert all(one.startswith("blob:") for one in answer["fetched"]), answer["fetched"]
        found = {card["class_names"][int(index)]: float(p) for index, p in answer["rows"]}
        wanted = said(tmp_path / name, fit)
        within = 0.1 if name.endswith(".jpg") else 1e-2  # Pillow decodes a JPEG at a part of its size
        assert list(found)[0] == list(wanted)[0] and found == pytest.approx(wanted, abs=within), name
        for other in {"crop", "pad", "stretch"} - {fit}:
            by_other_fits = max(by_other_fits, abs(said(tmp_path / name, other)["a"] - found["a"]))
    assert by_other_fits > 3e-2  # or the test could not tell them apart
    assert next(answers)["message"] == "The image: This browser cannot read it as an image."


def test_a_student_of_pixels_is_refused(tmp_path, package, capsys):
    places = {"task": "masks", "place": "pixel", "number": 24, "beside": {}}
    student = save(tmp_path / "student")
    card = {**deployed.read_card(student / "model.json"), "places": places}
    forms.rewrite_card(student, card, {})
    before = content(student)
    said = refused(capsys, student, "--demo", "--ort", package)
    assert "says a class of every pixel; must be a student that says one of every image" in said
    assert content(student) == before


def test_what_predict_refuses_the_page_is_not_written_for():
    with pytest.raises(UserError, match="not image files"):
        demo.page({"name": "x", "input": {"shape": [20, 1, 2], "range": deployed.PIXELS}}, b"", RUNTIME)
