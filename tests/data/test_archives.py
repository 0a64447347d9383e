"""CIFAR archives: every published form gives the same images, and no file can do or reserve anything."""

from __future__ import annotations

import io
import os
import pickle
import struct
import tarfile
import tracemalloc

import numpy as np
import pytest

from mtkd_jax.data.sources import archives
from mtkd_jax.data.sources.archives import cifar10, cifar100
from mtkd_jax.types import UserError

NAMES = tuple(f"kind_{n}" for n in range(10))
COARSE, FINE = NAMES[:5], tuple(f"fine_{n}" for n in range(10))
BATCHES = tuple(f"data_batch_{n}" for n in range(1, 6))


def drawn(num, seed):
    """Pixels [num,3072], the planes of three colours, and labels 0..9."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (num, 3072), dtype=np.uint8), (np.arange(num) % 10).tolist()


PARTS = {name: drawn(10, seed) for seed, name in enumerate((*BATCHES, "test_batch"))}
PUBLISHED = {  # the images and labels of any form, written down without planes
    "train_images": np.concatenate([PARTS[name][0] for name in BATCHES]),
    "test_images": PARTS["test_batch"][0],
    "train_labels": np.tile(np.arange(10), 5),
    "test_labels": np.arange(10),
}


# --- how the files are written ------------------------------------------------------------------------


def python2(value):
    """A value as cPickle of Python 2 wrote it under protocol 2: text and arrays as byte strings."""

    def text(content):
        if len(content) < 256:
            return b"U" + bytes([len(content)]) + content
        return b"T" + struct.pack("<i", len(content)) + content

    def spelt(value):
        if isinstance(value, str):
            return text(value.encode("latin-1"))
        if isinstance(value, int):
            return b"K" + bytes([value]) if value < 256 else b"M" + struct.pack("<H", value)
        if isinstance(value, list):
            return b"]" + (b"(" + b"".join(map(spelt, value)) + b"e" if value else b"")
        if isinstance(value, dict):
            return b"}q\x01(" + b"".join(spelt(part) for item in value.items() for part in item) + b"u"
        return (
            b"cnumpy.core.multiarray\n_reconstruct\nq\x02cnumpy\nndarray\nq\x03K\x00\x85U\x01b\x87R("
            + b"K\x01"
            + b"".join(map(spelt, value.shape))
            + b"\x86cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNN"
            + b"J\xff\xff\xff\xff" * 2
            + b"K\x00tb"
            + (b"\x88" if value.flags.f_contiguous else b"\x89")
            + text(value.tobytes("A"))
            + b"tb"
        )

    return b"\x80\x02" + spelt(value) + b"."


def python3(value):
    """The same as Python 3 writes it, where a byte string is a call of `_codecs.encode`."""
    return pickle.dumps(value, protocol=2)


def cifar10_python(dumps=python2):
    files = {
        name: dumps({"batch_label": name, "labels": labels, "data": pixels, "filenames": ["a.png"]})
        for name, (pixels, labels) in PARTS.items()
    }
    return files | {
        "batches.meta": dumps({"label_names": list(NAMES), "num_vis": 3072}),
        "readme.html": b"<p>",
    }


def cifar10_binary():
    files = {
        f"{name}.bin": np.column_stack([np.array(labels, np.uint8), pixels]).tobytes()
        for name, (pixels, labels) in PARTS.items()
    }
    return files | {"batches.meta.txt": "\n".join([*NAMES, "", ""]).encode()}


def cifar100_parts():
    """(name, pixels, coarse labels, fine labels); a coarse label is half of the fine one."""
    for name, num, seed in (("train", 40, 7), ("test", 10, 8)):
        pixels, fine = drawn(num, seed)
        yield name, pixels, [label // 2 for label in fine], fine


def cifar100_python(dumps=python2):
    files = {
        name: dumps({"data": pixels, "coarse_labels": coarse, "fine_labels": fine})
        for name, pixels, coarse, fine in cifar100_parts()
    }
    names = {"fine_label_names": list(FINE), "coarse_label_names": list(COARSE)}
    return files | {"meta": dumps(names)}


def cifar100_binary():
    files = {
        f"{name}.bin": np.column_stack([np.array([coarse, fine], np.uint8).T, pixels]).tobytes()
        for name, pixels, coarse, fine in cifar100_parts()
    }
    names = {"fine_label_names.txt": FINE, "coarse_label_names.txt": COARSE}
    return files | {name: "".join(f"{one}\n" for one in lines).encode() for name, lines in names.items()}


def packed(tmp_path, files, folder="cifar-10-batches-py/", members=()):
    """A .tar.gz of the files, and of further members [(TarInfo, content)] before them."""
    path = tmp_path / "cifar.tar.gz"
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        for name, content in files.items():
            member = tarfile.TarInfo(folder + name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(path)


def unpacked(tmp_path, files):
    folder = tmp_path / "unpacked"
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return str(folder)


def refused(source, path, **arguments):
    with pytest.raises(UserError) as caught:
        source(path=path, **arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- every form ---------------------------------------------------------------------------------------

FORMS = {
    "python 2": lambda: cifar10_python(python2),
    "python 3": lambda: cifar10_python(python3),
    "binary": cifar10_binary,
}


@pytest.mark.parametrize("place", [packed, unpacked])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_cifar10_gives_the_published_images(tmp_path, form, place):
    dataset = cifar10(path=place(tmp_path, FORMS[form]()))
    for part in ("train", "test"):
        images = getattr(dataset, f"{part}_images")
        assert images.shape == (50 if part == "train" else 10, 32, 32, 3) and images.dtype == np.uint8
        planes = PUBLISHED[f"{part}_images"]
        for row, colour, line, column in ((0, 0, 0, 0), (3, 1, 0, 5), (9, 2, 31, 7), (9, 0, 17, 31)):
            assert images[row, line, column, colour] == planes[row, 1024 * colour + 32 * line + column]
        np.testing.assert_array_equal(np.moveaxis(images, -1, 1).reshape(len(images), -1), planes)
        np.testing.assert_array_equal(getattr(dataset, f"{part}_labels"), PUBLISHED[f"{part}_labels"])
    assert (dataset.name, dataset.class_names) == ("cifar10", NAMES)


@pytest.mark.parametrize("labels", ["fine", "coarse"])
@pytest.mark.parametrize("form", ["python 2", "python 3", "binary"])
def test_every_form_of_cifar100_gives_the_published_images(tmp_path, form, labels):
    files = {
        "python 2": lambda: cifar100_python(python2),
        "python 3": lambda: cifar100_python(python3),
        "binary": cifar100_binary,
    }[form]()
    dataset = cifar100(path=packed(tmp_path, files, "cifar-100/"), labels=labels)
    for name, pixels, coarse, fine in cifar100_parts():
        images = getattr(dataset, f"{name}_images")
        np.testing.assert_array_equal(np.moveaxis(images, -1, 1).reshape(len(images), -1), pixels)
        np.testing.assert_array_equal(
            getattr(dataset, f"{name}_labels"), fine if labels == "fine" else coarse
        )
    assert dataset.class_names == (FINE if labels == "fine" else COARSE)
    assert dataset.name == {"fine": "cifar100", "coarse": "cifar100_coarse"}[labels]


def test_labels_are_fine_or_coarse(tmp_path):
    assert "labels = 'course': must be 'fine' or 'coarse'" in refused(
        cifar100, str(tmp_path), labels="course"
    )


def test_an_array_that_was_pickled_by_columns_is_the_same_array():
    pixels = drawn(4, 0)[0]
    for written in (pixels, np.asfortranarray(pixels)):
        for dumps in (python2, python3):
            got, labels = archives._pickled_records(
                dumps({"data": written, "labels": [1, 2, 3, 4]}), labels="labels"
            )
            np.testing.assert_array_equal(got, pixels)
            np.testing.assert_array_equal(labels, [1, 2, 3, 4])


# --- pickles that are not data ------------------------------------------------------------------------


class Harmful:
    """Unpickled, it would leave a file behind."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_pickle_that_would_run_a_command_is_refused_and_runs_nothing(tmp_path):
    left = tmp_path / "left_behind"
    harmful = python3({"data": Harmful(f"echo > {left}"), "labels": [0]})
    pickle.loads(harmful)
    assert left.exists()
    left.unlink()
    message = refused(cifar10, packed(tmp_path, cifar10_python() | {"data_batch_3": harmful}))
    assert (
        "data_batch_3: cannot be read (it asks for 'posix.system', which no published file does)" in message
    )
    assert not left.exists()


@pytest.mark.parametrize(
    "written, said",
    [
        (b"cbuiltins\neval\n(U\x011tR.", "it asks for 'builtins.eval'"),
        (b"cnumpy\nload\n.", "it asks for 'numpy.load'"),
        (b"cnumpy.core.multiarray\nfromfile\n.", "it asks for 'numpy.core.multiarray.fromfile'"),
        (b"(ios\nsystem\n.", "it uses INST"),
        (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "it asks for 'os.system'"),
        (b"(U\x02osU\x06systemo.", "it uses OBJ"),
        (b"\x80\x02}\x81.", "it uses NEWOBJ"),
        (b"\x82\x01.", "it uses EXT1"),
        (b"U\x01aQ.", "it uses BINPERSID"),
        (b"}(((tU\x01atU\x01bu.", "a dict has keys that are not text"),
        (b"}(U\x01au.", "shorter than argument"),
        (b"U\x01aU\x01bR.", "'str' object has no attribute 'what'"),
        (b"}U\x01ab.", "no attribute 'state'"),
        (b"R.", "pop from empty list"),
        (b"h\x07.", "7"),
        (b"e.", "pop from empty list"),
        (b"]q\x01h\x01a.", "it holds no data"),  # a list that holds itself
        (b"}", "pickle exhausted before seeing STOP"),
        (b"", "pickle exhausted before seeing STOP"),
        (b"\xff", "opcode"),
        (b"T\xff\xff\xff\xff.", "byte count < 0"),
        (b"K\x05.", "it holds no data"),
        (python2({"labels": [1]}), "it holds no data"),
        (python2({"data": [1], "labels": [1]}), "data is not an array"),
        (python2({"data": np.zeros((1, 3072), np.uint8), "labels": ["a"]}), "labels is not a list of whole"),
        (python2({"data": np.zeros((1, 3072), np.uint8), "labels": 1}), "labels is not a list of whole"),
        (
            python2({"data": np.zeros((1, 3072), np.uint8), "labels": [1, 2]}),
            "shape (1, 3072), with 2 labels",
        ),
        (python2({"data": np.zeros((1, 3071), np.uint8), "labels": [1]}), "shape (1, 3071), with 1 labels"),
        (python3({"data": np.zeros((1, 3072), np.float32), "labels": [1]}), "data is not an array of bytes"),
        (python3({"data": np.array([{}]), "labels": [1]}), "data is not an array of bytes"),
    ],
)
def test_what_no_published_file_does_is_one_line(tmp_path, written, said):
    message = refused(cifar10, packed(tmp_path, cifar10_python() | {"data_batch_2": written}))
    assert "data_batch_2: cannot be read (" in message and said in message, message


def test_a_chain_of_tuples_as_a_key_does_not_end_the_process(tmp_path):
    """To hash it, Python would call itself for each of them."""
    written = b"}(" + b")" + b"\x85" * 10**6 + b"K\x01u."
    message = refused(cifar10, packed(tmp_path, cifar10_python() | {"test_batch": written}))
    assert "a dict has keys that are not text" in message


def test_a_string_that_is_asked_for_again_and_again_takes_no_more_memory(tmp_path):
    """A call of `_codecs.encode` costs 7 bytes of the file; made, each would copy the string."""
    once = b"c_codecs\nencode\nq\x01(X" + struct.pack("<I", 10**6) + bytes(10**6) + b"U\x06latin1tq\x02"
    again = (b"h\x01h\x02R") * 10**4
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match="it holds no data"):
            archives._pickled_records(once + b"](" + again + b"e.", labels="labels")
        assert tracemalloc.get_traced_memory()[1] < 10**8
    finally:
        tracemalloc.stop()


@pytest.mark.filterwarnings("ignore:invalid escape sequence")  # of pickletools, at an opcode that is refused
def test_pickled_files_with_changed_bytes_are_read_or_refused(tmp_path):
    """Cut short or with a byte changed: a data set, or one line. Never something else."""
    whole = python2({"data": PARTS["data_batch_1"][0], "labels": PARTS["data_batch_1"][1]})
    rng = np.random.default_rng(0)
    head = len(whole) - 30720 - 10  # of the structure, not of the pixels
    folder, num_refused = unpacked(tmp_path, cifar10_python()), 0
    for n in range(300):
        damaged = bytearray(whole)
        damaged[int(rng.integers(head))] = rng.integers(256)
        damaged = bytes(damaged if n % 3 else whole[: int(rng.integers(len(whole)))])
        try:
            unpacked(tmp_path, {"data_batch_1": damaged})
            assert cifar10(path=folder).train_images.shape == (50, 32, 32, 3)
        except UserError as error:
            assert "\n" not in str(error)
            num_refused += 1
    assert num_refused > 150


# --- archives that are not archives -------------------------------------------------------------------


@pytest.mark.parametrize("lies_at", ["../data_batch_1", "data_batch_1/../../data_batch_1", "root"])
def test_members_that_lead_elsewhere_are_passed_over_and_nothing_is_written(tmp_path, lies_at):
    name = str(tmp_path / "inner" / "data_batch_1") if lies_at == "root" else lies_at
    files = cifar10_python()
    (tmp_path / "inner").mkdir()
    evil = [(tarfile.TarInfo(name), b"evil")]
    dataset = cifar10(path=packed(tmp_path, files, members=evil))
    np.testing.assert_array_equal(dataset.train_labels, PUBLISHED["train_labels"])
    del files["data_batch_1"]
    message = refused(cifar10, packed(tmp_path, files, members=evil))
    assert "no file data_batch_1: must hold data_batch_1, data_batch_2," in message
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["cifar.tar.gz", "inner"]


@pytest.mark.parametrize(
    "kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.DIRTYPE]
)
def test_links_devices_and_folders_are_not_files(tmp_path, kind):
    secret = tmp_path / "secret"
    secret.write_bytes(cifar10_python()["data_batch_1"])
    member = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
    member.type, member.linkname = kind, str(secret)
    files = cifar10_python()
    del files["data_batch_1"]
    assert "no file data_batch_1" in refused(cifar10, packed(tmp_path, files, members=[(member, b"")]))


@pytest.mark.parametrize("place", [packed, unpacked])
def test_nothing_beyond_the_limit_is_unpacked(tmp_path, monkeypatch, place):
    path = place(tmp_path, cifar10_binary() | {"data_batch_1.bin": bytes(2**22)})
    monkeypatch.setattr(archives, "_LIMIT", 2**20)
    assert "unpacks to more than 1048576 bytes: must be the archive as published" in refused(cifar10, path)


def test_damaged_archives_are_one_line(tmp_path):
    path = packed(tmp_path, cifar10_binary())
    with open(path, "rb") as file:
        whole = file.read()
    rng = np.random.default_rng(0)
    damaged = [b"", b"not gzip", whole[:20], whole[: len(whole) // 2], whole[:-4]]
    for _ in range(20):
        flipped = bytearray(whole)
        flipped[rng.integers(len(whole))] ^= 1 << rng.integers(8)
        damaged.append(bytes(flipped))
    for content in damaged[:-20]:
        with open(path, "wb") as file:
            file.write(content)
        assert "cannot be read" in refused(cifar10, path)
    for content in damaged[-20:]:
        with open(path, "wb") as file:
            file.write(content)
        try:
            assert cifar10(path=path).train_images.shape == (50, 32, 32, 3)  # of the header's time, say
        except UserError as error:
            assert "\n" not in str(error)


def test_what_is_missing_is_named(tmp_path):
    for path in ("", str(tmp_path / "nowhere")):
        assert "no such file or folder; must be a .tar.gz as published" in refused(cifar10, path)
    message = refused(cifar10, unpacked(tmp_path, {}))
    assert "no file data_batch_1: must hold data_batch_1" in message and "data_batch_1.bin" in message
    files = cifar100_binary()
    del files["coarse_label_names.txt"]
    path = packed(tmp_path, files)
    assert cifar100(path=path).num_classes == 10
    assert "no file coarse_label_names.txt" in refused(cifar100, path, labels="coarse")


@pytest.mark.parametrize("size, said", [(0, "0 bytes, and a record has 3073"), (3074, "3074 bytes, and")])
def test_binary_files_are_whole_records(tmp_path, size, said):
    assert said in refused(cifar10, packed(tmp_path, cifar10_binary() | {"data_batch_4.bin": bytes(size)}))


def test_a_label_beyond_the_names_is_one_line(tmp_path):
    files = cifar10_binary() | {"batches.meta.txt": b"cat dog"}
    assert "labels 0..9: must lie in 0..C-1, with C = 2 classes" in refused(cifar10, packed(tmp_path, files))
