"""Published sets from a mirror: whole or not at all, checked, gone on with, and read by their sources."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import http.server
import io
import re
import shutil
import struct
import threading
import zipfile

import numpy as np
import pytest

from mtkd_jax.config import default, source_call
from mtkd_jax.data import fetch
from mtkd_jax.data.fetch import PUBLISHED, File
from mtkd_jax.report import overview
from mtkd_jax.types import UserError

LETTERS = "0123"


def packed_idx(array):
    header = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
    return gzip.compress(header + array.astype(np.uint8).tobytes(), mtime=0)


def parts():
    rng = np.random.default_rng(0)
    return {
        "train_images": rng.integers(0, 256, (8, 28, 28), dtype=np.uint8),
        "train_labels": np.arange(8) % 4,
        "test_images": rng.integers(0, 256, (4, 28, 28), dtype=np.uint8),
        "test_labels": np.arange(4),
    }


def published_mnist():
    files = {"train_images": "train-images-idx3", "train_labels": "train-labels-idx1"}
    files |= {"test_images": "t10k-images-idx3", "test_labels": "t10k-labels-idx1"}
    return {f"{name}-ubyte.gz": packed_idx(parts()[part]) for part, name in files.items()}


def published_emnist():
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        for part, array in parts().items():
            where, kind = part.split("_")
            images = array.transpose(0, 2, 1) if kind == "images" else array
            name = f"gzip/emnist-balanced-{where}-{kind}-idx{array.ndim}-ubyte.gz"
            archive.writestr(name, packed_idx(images))
        lines = "\n".join(f"{label} {ord(letter)}" for label, letter in enumerate(LETTERS))
        archive.writestr("gzip/emnist-balanced-mapping.txt", lines)
    return {"gzip.zip": stream.getvalue()}


@pytest.fixture
def mirror(tmp_path, monkeypatch):
    """A folder NAME/FILE of small sets, which stand in the table in the place of the published ones."""
    for name, files in (("mnist", published_mnist()), ("emnist", published_emnist())):
        (tmp_path / "mirror" / name).mkdir(parents=True)
        entries = []
        for file in PUBLISHED[name].files:
            content = files[file.name]
            (tmp_path / "mirror" / name / file.name).write_bytes(content)
            sha256 = hashlib.sha256(content).hexdigest()
            entries.append(File(f"https://nowhere.invalid/{file.name}", sha256, len(content)))
        monkeypatch.setitem(PUBLISHED, name, PUBLISHED[name]._replace(files=tuple(entries)))
    return tmp_path / "mirror"


def as_read(name, path):
    config = default()
    config.data.source, config.data.path = PUBLISHED[name].source, str(path)
    return source_call(config)()


@pytest.mark.parametrize("name", ["mnist", "emnist"])
def test_a_set_from_a_mirror_is_what_was_published(name, mirror, tmp_path):
    path = fetch.fetch(name, tmp_path / "data", str(mirror))
    dataset = as_read(name, path)
    for part, array in parts().items():
        np.testing.assert_array_equal(np.squeeze(getattr(dataset, part)), array)
    assert dataset.class_names == tuple(LETTERS)
    assert path == tmp_path / "data" / PUBLISHED[name].path


def test_what_was_made_is_not_made_again_where_its_files_were_removed(mirror, tmp_path, capsys):
    path = fetch.fetch("mnist", tmp_path / "data", str(mirror))
    shutil.rmtree(tmp_path / "data" / PUBLISHED["mnist"].folder)
    shutil.rmtree(mirror)
    before = path.read_bytes()
    assert fetch.fetch("mnist", tmp_path / "data", str(mirror)) == path
    assert path.read_bytes() == before and f"{path}: is there" in capsys.readouterr().err
    assert [one.name for one in (tmp_path / "data").iterdir()] == [path.name]


def test_the_command_says_licence_and_fields(mirror, tmp_path, capsys):
    assert overview.main(["fetch", "mnist", "--into", str(tmp_path / "d"), "--mirror", str(mirror)]) == 0
    said = capsys.readouterr()
    assert said.out == f"--config.data.source=npz --config.data.path={tmp_path}/d/mnist.npz\n"
    assert "CC BY-SA" in said.err and "LeCun" in said.err


def test_another_file_is_refused_and_leaves_nothing(mirror, tmp_path):
    file = mirror / "mnist" / "t10k-labels-idx1-ubyte.gz"
    file.write_bytes(b"\0" * file.stat().st_size)
    with pytest.raises(UserError, match="gave another file than the published t10k-labels"):
        fetch.fetch("mnist", tmp_path / "data", str(mirror))
    there = sorted(path.name for path in (tmp_path / "data").rglob("*") if path.is_file())
    assert "t10k-labels-idx1-ubyte.gz" not in there and not [name for name in there if "part" in name]


def test_a_file_that_is_there_and_another_is_told(mirror, tmp_path):
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    (tmp_path / "data" / "mnist" / "train-labels-idx1-ubyte.gz").write_bytes(b"mine")
    with pytest.raises(UserError, match="is 4 bytes; the published train-labels"):
        fetch.fetch("mnist", tmp_path / "data", str(mirror))
    assert (tmp_path / "data" / "mnist" / "train-labels-idx1-ubyte.gz").read_bytes() == b"mine"


def test_unknown_sets_and_mirrors_without_it(mirror, tmp_path):
    with pytest.raises(UserError, match="no set 'mnits'; did you mean 'mnist'"):
        fetch.fetch("mnits", tmp_path)
    with pytest.raises(UserError, match="fashion-mnist/train-images.*cannot be fetched.*--mirror"):
        fetch.fetch("fashion-mnist", tmp_path, str(mirror))


@contextlib.contextmanager
def server(content, whole=False, breaks_off=0):
    """The address of a server of one file, and the ranges it was asked for."""
    asked = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            range_ = self.headers.get("Range")
            asked.append(range_)
            start = 0 if whole or not range_ else int(re.match(r"bytes=(\d+)-", range_)[1])
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content) - start))
            self.end_headers()
            self.wfile.write(content[start : len(content) - breaks_off])

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Server) as running:
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}", asked
        finally:
            running.shutdown()
            thread.join()


@pytest.mark.parametrize("whole", [False, True], ids=["ranges", "whole files only"])
def test_a_download_goes_on_where_it_broke_off(whole, mirror, tmp_path):
    content = (mirror / "emnist" / "gzip.zip").read_bytes()
    with server(content, breaks_off=10) as (address, _), pytest.raises(UserError, match="broke off after"):
        fetch.fetch("emnist", tmp_path / "data", address)
    with server(content, whole) as (address, asked):
        fetch.fetch("emnist", tmp_path / "data", address)
    assert asked == [f"bytes={len(content) - 10}-"]
    assert (tmp_path / "data" / "emnist" / "gzip.zip").read_bytes() == content


def test_a_shorter_file_is_another_one(mirror, tmp_path):
    file = mirror / "emnist" / "gzip.zip"
    content = file.read_bytes()
    file.write_bytes(content[:-10])
    with pytest.raises(UserError, match=f"gave {len(content) - 10} bytes; the published .* {len(content)}"):
        fetch.fetch("emnist", tmp_path / "data", str(mirror))
    assert list((tmp_path / "data" / "emnist").iterdir()) == []


def test_a_run_without_its_data_says_how_to_get_it(tmp_path):
    with pytest.raises(UserError, match="no such file.*`python -m mtkd_jax.data fetch cifar10` gets it"):
        as_read("cifar10", tmp_path / "cifar-10-python.tar.gz")
    with pytest.raises(UserError) as told:
        as_read("cifar10", tmp_path / "mine.tar.gz")
    assert "fetch" not in str(told.value)


def test_every_entry_of_the_table_can_be_one():
    for name, published in PUBLISHED.items():
        for file in published.files:
            assert re.fullmatch("[0-9a-f]{64}", file.sha256), (name, file)
            assert file.size > 0 and file.address.startswith("http")
        assert published.licence and published.cite and published.what
    assert len({file.sha256 for published in PUBLISHED.values() for file in published.files}) == 11
