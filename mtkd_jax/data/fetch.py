"""Public data sets, fetched from their publishers once and checked before anything reads them.

    python -m mtkd_jax.data fetch cifar10 [--into data] [--mirror FOLDER|ADDRESS]

What was interrupted goes on where it stopped. A run never fetches anything.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import http.client
import io
import os
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import numpy as np

from mtkd_jax.data.sources.arrays import idx
from mtkd_jax.system import terminal
from mtkd_jax.system.files import write_atomically
from mtkd_jax.system.spelling import hint
from mtkd_jax.types import DataSet, UserError

PIECE = 2**20  # bytes that are read at once
PATIENCE = 60.0  # seconds without an answer


class File(NamedTuple):
    """A file as it is published."""

    address: str
    sha256: str
    size: int  # bytes

    @property
    def name(self) -> str:
        return self.address.rpartition("/")[2]


class Published(NamedTuple):
    """A set: where its files are, and what of it a run reads."""

    what: str
    licence: str
    cite: str
    folder: str  # of its files, under data/; "" = data/ itself; under a mirror it has the set's own name
    files: tuple[File, ...]
    source: str  # an address that reads `path`
    path: str  # under data/
    form: Callable[[Path], DataSet] | None = None  # of the folder: what is written to `path`, an .npz archive


def _emnist(folder: Path) -> DataSet:
    """The balanced split of EMNIST: its images are published turned about the diagonal."""
    with zipfile.ZipFile(folder / "gzip.zip") as archive:
        arrays: dict[str, Any] = {
            f"{part}_{kind}": _idx(
                archive.read(f"gzip/emnist-balanced-{part}-{kind}-idx{axes}-ubyte.gz"), axes
            )
            for part in ("train", "test")
            for kind, axes in (("images", 3), ("labels", 1))
        }
        mapping = archive.read("gzip/emnist-balanced-mapping.txt").decode().split()
    codes = dict(zip(map(int, mapping[::2]), map(int, mapping[1::2])))
    for part in ("train", "test"):
        arrays[f"{part}_images"] = arrays[f"{part}_images"].transpose(0, 2, 1)[..., None]
        arrays[f"{part}_labels"] = arrays[f"{part}_labels"].astype(np.int32)
    names = tuple(chr(codes[label]) for label in range(len(codes)))
    return DataSet(name="emnist47_balanced", class_names=names, **arrays)


def _idx(packed: bytes, axes: int) -> np.ndarray:
    """The bytes of an IDX file, gzipped; Format: LeCun, Cortes and Burges (1998), for MNIST."""
    content = gzip.decompress(packed)
    shape = np.frombuffer(content, ">u4", axes, offset=4).astype(int)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)


def _of_idx(address: str, *files: tuple[str, str, int]) -> tuple[File, ...]:
    return tuple(File(f"{address}/{name}-ubyte.gz", sha256, size) for name, sha256, size in files)


PUBLISHED = {
    "mnist": Published(
        what="MNIST: 70 000 written digits, 28x28, 10 classes",
        licence="none stated; usually given as CC BY-SA 3.0",
        cite="LeCun, Bottou, Bengio and Haffner 1998",
        folder="mnist",
        files=_of_idx(
            "https://storage.googleapis.com/cvdf-datasets/mnist",
            (
                "train-images-idx3",
                "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
                9912422,
            ),
            ("train-labels-idx1", "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c", 28881),
            ("t10k-images-idx3", "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6", 1648877),
            ("t10k-labels-idx1", "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6", 4542),
        ),
        source="npz",
        path="mnist.npz",
        form=lambda folder: idx(path=str(folder)),
    ),
    "fashion-mnist": Published(
        what="Fashion-MNIST: 70 000 pictures of clothes, 28x28, 10 classes",
        licence="MIT",
        cite="Xiao, Rasul and Vollgraf 2017, arXiv 1708.07747",
        folder="fashion-mnist",
        files=_of_idx(
            "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com",
            (
                "train-images-idx3",
                "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84",
                26421880,
            ),
            ("train-labels-idx1", "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845", 29515),
            ("t10k-images-idx3", "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073", 4422102),
            ("t10k-labels-idx1", "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5", 5148),
        ),
        source="idx",
        path="fashion-mnist",
    ),
    "cifar10": Published(
        what="CIFAR-10: 60 000 photographs, 32x32 in colour, 10 classes",
        licence="none stated",
        cite="Krizhevsky 2009, Learning multiple layers of features from tiny images",
        folder="",
        files=(
            File(
                "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
                "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
                170498071,
            ),
        ),
        source="cifar10",
        path="cifar-10-python.tar.gz",
    ),
    "cifar100": Published(
        what="CIFAR-100: 60 000 photographs, 32x32 in colour, 100 classes",
        licence="none stated",
        cite="Krizhevsky 2009, Learning multiple layers of features from tiny images",
        folder="",
        files=(
            File(
                "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
                "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
                169001437,
            ),
        ),
        source="cifar100",
        path="cifar-100-python.tar.gz",
    ),
    "emnist": Published(
        what="EMNIST Balanced: 131 600 written digits and letters, 28x28, 47 classes",
        licence="public domain (NIST Special Database 19)",
        cite="Cohen, Afshar, Tapson and van Schaik 2017, arXiv 1702.05373",
        folder="emnist",
        files=(
            File(
                "https://biometrics.nist.gov/cs_links/EMNIST/gzip.zip",
                "fb9bb67e33772a9cc0b895e4ecf36d2cf35be8b709693c3564cea2a019fcda8e",
                561753746,
            ),
        ),
        source="npz",
        path="emnist47_balanced.npz",
        form=_emnist,
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Fetch a published set; returns the exit code."""
    return terminal.answer(lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> None:
    parser = terminal.Parser("python -m mtkd_jax.data fetch", __doc__)
    parser.add_argument("name", metavar="NAME", help=", ".join(PUBLISHED))
    parser.add_argument("--into", type=terminal.path, default=Path("data"), metavar="FOLDER")
    parser.add_argument(
        "--mirror",
        default="",
        metavar="FOLDER|ADDRESS",
        help="fetch MIRROR/NAME/FILE instead, of which the same SHA-256 is asked",
    )
    asked: argparse.Namespace = parser.parse_args(argv)
    path = fetch(asked.name, asked.into, asked.mirror)
    print(f"--config.data.source={PUBLISHED[asked.name].source} --config.data.path={path}")


def fetch(name: str, into: Path, mirror: str = "") -> Path:
    """Get the set `name` into a folder, unless it is there; returns the path that its source reads.

    Every file is asked for its size and SHA-256 before it gets its name. `mirror` is a folder or an address
    (https://..., file:///...) with NAME/FILE under it. Raises UserError for an unknown set, and for a file
    that cannot be had or is another one.
    """
    if name not in PUBLISHED:
        raise UserError(f"fetch: there is no set {name!r}{hint(name, PUBLISHED)}")
    published = PUBLISHED[name]
    folder, path = into / published.folder, into / published.path
    terminal.tell(f"{published.what}\nlicence: {published.licence}; cite: {published.cite}")
    if published.form is not None and path.is_file():  # what it was made of may have been removed
        terminal.tell(f"{path}: is there")
        return path
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--into {into}: cannot be written: {error.strerror}") from None
    for file in published.files:
        _get(file, _place(file, name, mirror), folder / file.name)
    if published.form is not None:
        terminal.tell(f"writing {path}")
        write_atomically(path, _packed(published.form(folder)))
    return path


def remedy(path: str) -> str:
    """What mends a path that does not exist: the command that gets such a file; "" for others.

    >>> remedy("nowhere/mnist.npz")
    '; `python -m mtkd_jax.data fetch mnist` gets it'
    >>> remedy("nowhere/mine.npz")
    ''
    """
    if os.path.exists(os.path.expanduser(path)):
        return ""
    names = [name for name, published in PUBLISHED.items() if Path(path).name == published.path]
    return f"; `python -m mtkd_jax.data fetch {names[0]}` gets it" if names else ""


def _place(file: File, name: str, mirror: str) -> str:
    """Where a file is fetched from."""
    if not mirror:
        return file.address
    if not urlsplit(mirror).scheme:
        mirror = Path(os.path.expanduser(mirror)).absolute().as_uri()
    return f"{mirror.rstrip('/')}/{name}/{file.name}"


def _get(file: File, place: str, path: Path) -> None:
    """Fetch one file, going on with the part of it that is there."""
    if path.is_file():
        _check(file, path, f"{path}: is")
        terminal.tell(f"{path}: is there")
        return
    part = path.with_name(f"{path.name}.part")
    begun = part.stat().st_size if part.is_file() else 0
    if begun < file.size:
        _download(file, place, part, begun)
    try:
        _check(file, part, f"{place}: gave")
    except UserError:
        part.unlink()  # of another file; no part of it is any good
        raise
    os.replace(part, path)


def _download(file: File, place: str, part: Path, begun: int) -> None:
    """Write what a place gives behind the part that is there; UserError where it breaks off."""
    request = urllib.request.Request(place, headers={"Range": f"bytes={begun}-"} if begun else {})
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
            if begun and getattr(answer, "status", None) != http.client.PARTIAL_CONTENT:
                begun = 0  # a server, or a folder, that gives whole files only
            promised = begun + int(answer.headers.get("Content-Length") or file.size - begun)
            with open(part, "ab" if begun else "wb") as out:
                for number, piece in enumerate(iter(lambda: answer.read(PIECE), b"")):
                    out.write(piece)
                    begun += len(piece)
                    if number % 16 == 15:
                        terminal.tell(f"{file.name}: {begun / 1e6:.0f} of {file.size / 1e6:.0f} MB")
                    if begun > file.size:
                        break
    except (OSError, http.client.HTTPException, ValueError) as error:  # URLError is an OSError
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise UserError(
            f"{place}: cannot be fetched ({' '.join(str(reason).split())}); the same command goes on from "
            "what is there, --mirror names another place"
        ) from None
    if begun < promised:
        raise UserError(
            f"{place}: broke off after {begun} of {promised} bytes; the same command goes on from there"
        )


def _check(file: File, path: Path, found: str) -> None:
    """Raise UserError unless a file has the size and the SHA-256 of the published one."""
    size = path.stat().st_size
    if size != file.size:
        raise UserError(f"{found} {size} bytes; the published {file.name} has {file.size}")
    with open(path, "rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    if sha256 != file.sha256:
        raise UserError(
            f"{found} another file than the published {file.name}: its SHA-256 is {sha256[:12]}..., not "
            f"{file.sha256[:12]}..."
        )


def _packed(dataset: DataSet) -> bytes:
    """An archive that the source `npz` reads."""
    names = ("train_images", "train_labels", "test_images", "test_labels")
    arrays = {name: getattr(dataset, name) for name in names}
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays, class_names=np.array(dataset.class_names))
    return stream.getvalue()
