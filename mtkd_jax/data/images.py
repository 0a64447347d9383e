"""Images from files: whatever a camera, a scanner or a web page wrote, as uint8 of one shape.

How an image is read is part of what a network has learnt: every reader in this package calls `read`.
"""

from __future__ import annotations

import contextlib
import difflib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from mtkd_jax.data.checks import first_line
from mtkd_jax.types import UserError

SUFFIXES = (
    *(".bmp", ".dib", ".gif", ".jfif", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm"),
    *(".tif", ".tiff", ".webp"),
)
SYSTEM = (
    "__macosx",
    "@eadir",
    "#recycle",
    "$recycle.bin",
    "thumbs.db",
    "desktop.ini",
    "lost+found",
    "system volume information",
)
MOST_PIXELS = 80_000_000  # 240 MB in colour; below the number from which Pillow warns of a bomb
# No others are tried: Pillow would hand PostScript to an interpreter, whatever the file is called.
_FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
READING = {  # what `read` does beside bringing to size, for the card of a network that was trained on it
    "orientation": "as the EXIF tag says",
    "frames": "the first",
    "transparency": "on white",
    "16 bits": "the upper 8",
    "grey": "luma of ITU-R 601",
    "colour profile": "not applied",
    "resampling": "bilinear, antialiased",
}
_GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L")
_TURNED = (5, 6, 7, 8)  # EXIF orientations that swap height and width


def read(path: str | os.PathLike, *, shape: tuple[int, int, int], fit: str = "crop") -> np.ndarray:
    """The image of a file as uint8 [h,w,c] of this shape, c = 1 (grey) or 3 (colour).

    The image is turned as its EXIF tag says; of several frames the first is read; what is transparent is
    laid on white; 16 bits keep their upper 8, as Pillow keeps them in colour; colour becomes grey as the
    luma of ITU-R 601. Colour profiles are not applied. Then `fit` brings it to size, always antialiased:
    "crop" fills the shape and cuts what stands over, half at each end; "pad" shows the whole image on a
    border of its mean colour; "stretch" ignores its proportions.
    Raises `UserError` naming the file when it is missing, no image, damaged or larger than `MOST_PIXELS`.
    """
    height, width, channels = shape
    if channels not in (1, 3):
        raise UserError(f"images: {channels} channels: must be 1 (grey) or 3 (colour)")
    bring_to_size = resizer_of(fit)
    with open_image(path) as image:
        # A JPEG is decoded at an eighth, a quarter or half of its size where twice the shape remains.
        image.draft(None, (2 * max(height, width),) * 2)
        has_16_bits = image.mode.startswith("I;16") or (image.format == "PPM" and image.mode == "I")
        plain = _plain(ImageOps.exif_transpose(image), has_16_bits, path)
        coloured = plain.convert("L" if channels == 1 else "RGB")
        return np.asarray(bring_to_size(coloured, (width, height))).reshape(shape)


def find_images(folder: str | os.PathLike) -> list[Path]:
    """The files in a folder and in the folders in it that end as images do, sorted; links are followed.

    Those of the system and of programs that show images (hidden ones, `__MACOSX`, `@eaDir`) are passed over,
    and a link that leads back up is followed once. Raises `UserError` naming a folder that cannot be read.
    """
    return [path for path in find_files(folder) if is_named_as_image(path.name)]


def find_files(folder: str | os.PathLike) -> list[Path]:
    """All files as `find_images` finds them, of any name. Raises UserError as `list_entries` does."""
    found, seen, waiting = [], set(), [Path(folder)]
    while waiting:
        place = waiting.pop(0)
        if (here := os.path.realpath(place)) not in seen:
            seen.add(here)
            folders, names = list_entries(place)
            found += [place / name for name in names]
            waiting += [place / name for name in folders]
    return sorted(found)


def list_entries(folder: str | os.PathLike[str]) -> tuple[list[str], list[str]]:
    """Names of the folders and of all else in a folder, sorted, links followed, without those of the system.

    Raises UserError naming the folder where it may not be read.
    """
    try:
        with os.scandir(folder) as entries:
            found = [(one.name, _is_folder(one)) for one in entries if not is_system_file(one.name)]
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{folder}: cannot be read ({why}); must be a folder that may be read") from error
    folders, others = (sorted(name for name, is_one in found if is_one == kind) for kind in (True, False))
    return folders, others


def _is_folder(entry: os.DirEntry) -> bool:
    # Not entry.is_dir() of a link: it raises where the link leads to itself.
    return os.path.isdir(entry.path) if entry.is_symlink() else entry.is_dir()


def is_named_as_image(name: str) -> bool:
    """Whether a file's name ends as that of an image does."""
    return name.lower().endswith(SUFFIXES)


def is_system_file(name: str) -> bool:
    """Whether a file or folder is hidden, or one that an operating system or a viewer leaves behind."""
    return name.startswith(".") or name.lower() in SYSTEM


def shape_of(path: str | os.PathLike) -> tuple[int, int, int]:
    """Height and width as `read` turns the image and c = 1 (grey) or 3, from the head of its file alone.

    Raises `UserError` as `read` does, but cannot see that the rest of a file is damaged.
    """
    with open_image(path) as image:
        width, height = image.size
        # Pillow gives the size of a TIFF as it is turned, of all others as they are stored.
        if image.format != "TIFF" and image.getexif().get(ExifTags.Base.Orientation) in _TURNED:
            width, height = height, width
        return height, width, 1 if image.mode in _GREY_MODES else 3


def check_size(image_size: int | tuple[int, int], channels: int) -> tuple[int, int]:
    """The (height, width) that is asked for, (0, 0) for that of the files; UserError where there is none."""
    size = image_size if isinstance(image_size, tuple) else (image_size, image_size)
    if size != (0, 0) and not (len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)):
        raise UserError(
            f"image_size = {image_size!r}: must be s or (h, w) in pixels, or 0 for that of the files"
        )
    if channels not in (0, 1, 3):
        raise UserError(f"channels = {channels}: must be 1 (grey), 3 (colour), or 0 for those of the files")
    return size


def resizer_of(fit: str) -> Callable[[Image.Image, tuple[int, int]], Image.Image]:
    """The function of this name that brings an image to a size (width, height)."""
    if fit not in _FITS:
        near = difflib.get_close_matches(str(fit), _FITS, n=1, cutoff=0)[0]
        raise UserError(f"images: fit = {fit!r}: must be one of {', '.join(_FITS)}; did you mean {near!r}?")
    return _FITS[fit]


# --- files --------------------------------------------------------------------------------------------


@contextlib.contextmanager
def open_image(path: str | os.PathLike, formats: tuple[str, ...] = _FORMATS) -> Iterator[Image.Image]:
    """The image of a file in one of Pillow's `formats`, its pixels not yet decoded, as a context.

    Raises `UserError` naming the file for whatever goes wrong with it, while it is decoded too, and for more
    than `MOST_PIXELS`.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a pipe would be waited for
            raise UserError(f"{path}: no regular file; must be an image")
        with Image.open(path, formats=formats) as image:
            if image.width * image.height > MOST_PIXELS:
                raise Image.DecompressionBombError
            yield image
    except UserError:
        raise
    except FileNotFoundError as error:
        raise UserError(f"{path}: no such file; must be an image") from error
    except UnidentifiedImageError as error:
        raise UserError(f"{path}: not an image; must be one of {', '.join(formats)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise UserError(f"{path}: more than {MOST_PIXELS:_} pixels; must be a smaller image") from error
    # A damaged file can raise almost anything: SyntaxError, struct.error, zlib.error, MemoryError, ...
    except Exception as error:
        raise UserError(
            f"{path}: cannot be read ({first_line(error)}); must be a whole, readable image"
        ) from error


# --- pixels -------------------------------------------------------------------------------------------


def _plain(image: Image.Image, has_16_bits: bool, path: str | os.PathLike) -> Image.Image:
    """Eight bits a channel, nothing transparent."""
    if has_16_bits:
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise UserError(f"{path}: pixels of 32 bits; must be of 8 or 16, whose range is known")
    if image.has_transparency_data:
        opaque = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", opaque.size, "white"), opaque)
    return image


def _cropped(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return ImageOps.fit(image, size, Image.Resampling.BILINEAR)


def _padded(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The whole image in the middle of a canvas of its mean colour."""
    scale = min(whole / part for whole, part in zip(size, image.size))
    width, height = (max(1, round(part * scale)) for part in image.size)
    inner = image.resize((width, height), Image.Resampling.BILINEAR)
    mean = np.asarray(inner).reshape(-1, len(inner.getbands())).mean(axis=0)
    canvas = Image.new(inner.mode, size, tuple(np.round(mean).astype(int).tolist()))
    left, top = ((whole - part) // 2 for whole, part in zip(size, inner.size))
    canvas.paste(inner, (left, top))
    return canvas


def _stretched(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    return image.resize(size, Image.Resampling.BILINEAR)


_FITS = {"crop": _cropped, "pad": _padded, "stretch": _stretched}
