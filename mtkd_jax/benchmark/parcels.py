"""Files in parcels, for a machine that is reached through a narrow door.

    python -m mtkd_jax.benchmark.parcels data/cifar10.npz FOLDER     writes FOLDER/cifar10.part-1.zip, ...

Images are kept losslessly, as strips in WebP: CIFAR-10 takes 100 MB instead of 184.
"""

from __future__ import annotations

import io
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from mtkd_jax.system import files
from mtkd_jax.types import UserError

PARCEL = 52_000_000  # bytes: what a door of 64 MiB lets through, with a checkout and wheels beside it
STRIP = 16_000  # rows of pixels in one picture; WebP takes at most 16 383


def main(npz: str, folder: str) -> None:
    """Pack the arrays of an .npz into parcels beside each other."""
    for path in pack(Path(npz), Path(folder)):
        print(f"{path}: {path.stat().st_size / 2**20:.1f} MiB")


def pack(npz: Path, folder: Path, parcel: int = PARCEL) -> list[Path]:
    """The paths of NAME.part-1.zip, ... in `folder`, each of at most `parcel` bytes."""
    with np.load(npz, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for number, entries in enumerate(in_parcels(_entries(arrays), parcel), start=1):
        written.append(folder / f"{npz.stem}.part-{number}.zip")
        files.write_atomically(written[-1], as_zip(entries))
    return written


def unpack(folder: Path, name: str, into: Path) -> Path:
    """`into`/NAME.npz, made of all parcels in `folder` unless it is there; UserError where there are none."""
    npz = into / f"{name}.npz"
    parcels = sorted(folder.glob(f"{name}.part-*.zip"))
    if npz.exists():
        return npz
    if not parcels:
        raise UserError(f"{folder}: neither {name}.npz nor {name}.part-1.zip and its like lie there")
    strips: dict[str, dict[int, bytes]] = {}
    for path in parcels:
        with zipfile.ZipFile(path) as archive:
            for entry in archive.namelist():
                array, _, place = entry.partition("/")
                strips.setdefault(array, {})[int(place or 0)] = archive.read(entry)
    shapes = np.load(io.BytesIO(strips.pop("shapes")[0]), allow_pickle=False)
    arrays: dict[str, Any] = {}
    for array, of_array in strips.items():
        if array in shapes.files:
            arrays[array] = _joined([of_array[place] for place in sorted(of_array)], shapes[array], array)
        else:
            arrays[array] = np.load(io.BytesIO(of_array[0]), allow_pickle=False)["array"]
    into.mkdir(parents=True, exist_ok=True)
    written = io.BytesIO()
    np.savez(written, **arrays)
    files.write_atomically(npz, written.getbuffer())
    return npz


def in_parcels(entries: Iterable[tuple[str, bytes]], parcel: int) -> Iterator[dict[str, bytes]]:
    """The entries one after the other, in as few parcels as that allows."""
    held: dict[str, bytes] = {}
    for name, data in entries:
        if held and sum(map(len, held.values())) + len(data) > parcel:
            yield held
            held = {}
        held[name] = data
    if held:
        yield held


def as_zip(entries: dict[str, bytes]) -> bytes:
    """A ZIP archive of what is compressed already."""
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(name, data)
    return written.getvalue()


def _entries(arrays: dict[str, np.ndarray]) -> Iterator[tuple[str, bytes]]:
    """Small ones first; images, strip after strip."""
    pictures = {name: array for name, array in arrays.items() if _is_images(array)}
    yield "shapes", _as_npz(**{name: np.array(array.shape) for name, array in pictures.items()})
    for name, array in arrays.items():
        if name not in pictures:
            yield name, _as_npz(array=array)
    for name, array in pictures.items():
        rows = array.reshape(-1, *array.shape[2:])
        for start in range(0, len(rows), STRIP):
            picture, written = Image.fromarray(rows[start : start + STRIP]), io.BytesIO()
            picture.save(written, "WEBP", lossless=True, quality=40, method=4, exact=True)
            yield f"{name}/{start // STRIP}", written.getvalue()


def _joined(strips: list[bytes], shape: np.ndarray, name: str) -> np.ndarray:
    rows = np.concatenate([np.asarray(Image.open(io.BytesIO(strip))) for strip in strips])
    if rows.size != np.prod(shape):
        raise UserError(f"{name}: {len(rows)} rows of pixels of {shape[0] * shape[1]}: a parcel is missing")
    return rows.reshape(shape)


def _is_images(array: np.ndarray) -> bool:
    return array.dtype == np.uint8 and array.ndim == 4 and array.shape[-1] == 3


def _as_npz(**arrays: Any) -> bytes:
    written = io.BytesIO()
    np.savez_compressed(written, **arrays)
    return written.getvalue()


if __name__ == "__main__":
    main(*sys.argv[1:])
