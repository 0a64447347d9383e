"""Every kind of image file is read as its format says, or refused in one line that names the file."""

from __future__ import annotations

import io
import os
import pathlib
import socket
import struct
import threading
import warnings
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from mtkd_jax.data import images
from mtkd_jax.data.images import read, shape_of
from mtkd_jax.types import UserError

GREY = np.arange(6 * 9, dtype=np.uint8).reshape(6, 9) * 4
COLOUR = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def written(path, array, mode=None, **options):
    image = Image.fromarray(array)
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def mode_of(path):
    with Image.open(path) as image:
        return image.mode


def refused(path, **arguments):
    with pytest.raises(UserError) as caught:
        read(path, **{"shape": (6, 9, 3), **arguments})
    message = str(caught.value)
    assert "\n" not in message
    return message


# --- pixels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["png", "bmp", "dib", "ppm", "tif", "webp"])
def test_lossless_files_are_read_as_they_are(tmp_path, suffix):
    options = {"lossless": True, "exact": True} if suffix == "webp" else {}
    file = written(tmp_path / f"a.{suffix}", COLOUR, **options)
    image = read(file, shape=(6, 9, 3))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, COLOUR)
    assert shape_of(file) == (6, 9, 3)


def test_grey_becomes_colour_and_colour_becomes_grey(tmp_path):
    grey, colour = written(tmp_path / "g.png", GREY), written(tmp_path / "c.png", COLOUR)
    np.testing.assert_array_equal(read(grey, shape=(6, 9, 1)), GREY[..., None])
    np.testing.assert_array_equal(read(grey, shape=(6, 9, 3)), GREY[..., None].repeat(3, axis=2))
    luma = COLOUR @ np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
    np.testing.assert_allclose(read(colour, shape=(6, 9, 1))[..., 0], luma, atol=0.51)
    assert (shape_of(grey), shape_of(colour)) == ((6, 9, 1), (6, 9, 3))


def test_transparent_pixels_are_laid_on_white(tmp_path):
    alpha = np.linspace(0, 255, 54).round().astype(np.uint8).reshape(6, 9)
    share = alpha[..., None] / 255
    rgba = written(tmp_path / "rgba.png", np.dstack([COLOUR, alpha]))
    np.testing.assert_allclose(
        read(rgba, shape=(6, 9, 3)), COLOUR * share + 255 * (1 - share), atol=1, rtol=0
    )
    la = written(tmp_path / "la.png", np.dstack([GREY, alpha]))
    assert mode_of(la) == "LA"
    want = GREY[..., None] * share + 255 * (1 - share)
    np.testing.assert_allclose(read(la, shape=(6, 9, 1)), want, atol=1, rtol=0)
    assert shape_of(la) == (6, 9, 1)


def test_a_palette_is_looked_up_and_its_transparent_entry_is_white(tmp_path):
    image = Image.fromarray(np.arange(54, dtype=np.uint8).reshape(6, 9) % 3, mode=None)
    image = image.convert("P")
    image.putdata((np.arange(54) % 3).tolist())
    image.putpalette([10, 20, 30, 40, 50, 60, 70, 80, 90])
    image.save(tmp_path / "p.png")
    image.save(tmp_path / "t.png", transparency=1)
    image.save(tmp_path / "a.png", transparency=bytes((255, 255, 0)))
    index = np.arange(54).reshape(6, 9) % 3
    palette = np.array([[10, 20, 30], [40, 50, 60], [70, 80, 90]])
    for name, white in (("p", []), ("t", [1]), ("a", [2])):
        want = palette.copy()
        want[white] = 255
        np.testing.assert_array_equal(read(tmp_path / f"{name}.png", shape=(6, 9, 3)), want[index])


@pytest.mark.parametrize("suffix", ["png", "tif", "pgm"])
def test_sixteen_bits_keep_their_upper_eight(tmp_path, suffix):
    deep = (GREY.astype(np.uint16) << 8) + 255 - GREY
    file = written(tmp_path / f"deep.{suffix}", deep)
    assert mode_of(file).startswith("I;16") or suffix == "pgm"
    np.testing.assert_array_equal(read(file, shape=(6, 9, 1))[..., 0], GREY)
    assert shape_of(file) == (6, 9, 1)


def test_pixels_of_32_bits_are_refused(tmp_path):
    file = written(tmp_path / "float.tif", GREY.astype(np.float32))
    assert refused(file) == f"{file}: pixels of 32 bits; must be of 8 or 16, whose range is known"


def test_black_and_white_and_cmyk(tmp_path):
    bits = written(tmp_path / "bits.png", np.where(GREY > 100, 255, 0).astype(np.uint8), mode="1")
    np.testing.assert_array_equal(read(bits, shape=(6, 9, 1))[..., 0], np.where(GREY > 100, 255, 0))
    flat = np.full((16, 16, 3), (200, 120, 40), np.uint8)
    cmyk = written(tmp_path / "cmyk.jpg", flat, mode="CMYK", quality=100, subsampling=0)
    assert mode_of(cmyk) == "CMYK"
    np.testing.assert_allclose(read(cmyk, shape=(16, 16, 3)), flat, atol=4)
    assert shape_of(cmyk) == (16, 16, 3)


def test_of_several_frames_the_first_is_read(tmp_path):
    first, second = Image.fromarray(GREY), Image.fromarray(255 - GREY)
    for suffix in ("gif", "tif"):
        first.save(tmp_path / f"two.{suffix}", save_all=True, append_images=[second])
        np.testing.assert_array_equal(read(tmp_path / f"two.{suffix}", shape=(6, 9, 1))[..., 0], GREY)


# EXIF 2.3, tag 274: on which side the first stored row is seen, and on which the first stored column.
SIDES = {
    1: ("top", "left"),
    2: ("top", "right"),
    3: ("bottom", "right"),
    4: ("bottom", "left"),
    5: ("left", "top"),
    6: ("right", "top"),
    7: ("right", "bottom"),
    8: ("left", "bottom"),
}


def seen(stored, orientation):
    """The image as a person sees it, pixel by pixel."""
    height, width = stored.shape[:2]
    sides = SIDES[orientation]
    turned = sides[0] in ("left", "right")
    image = np.zeros((width, height) if turned else (height, width), stored.dtype)
    for row in range(height):
        for column in range(width):
            place = {}
            for side, at in zip(sides, (row, column)):
                axis = "x" if side in ("left", "right") else "y"
                last = image.shape[axis == "x"] - 1
                place[axis] = at if side in ("left", "top") else last - at
            image[place["y"], place["x"]] = stored[row, column]
    return image


@pytest.mark.parametrize("orientation", SIDES)
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_images_are_turned_as_their_tag_says(tmp_path, suffix, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    stored = np.kron(GREY[::2, ::3], np.ones((8, 8), np.uint8))  # blocks, which JPEG keeps to within 1
    file = written(
        tmp_path / f"a.{suffix}", stored, exif=exif, **({"quality": 100} if suffix == "jpg" else {})
    )
    want = seen(stored, orientation)
    assert shape_of(file) == (*want.shape, 1)
    np.testing.assert_allclose(read(file, shape=(*want.shape, 1))[..., 0], want, atol=suffix == "jpg", rtol=0)


def test_an_image_of_16_bits_is_turned_too(tmp_path):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    file = written(tmp_path / "a.png", GREY.astype(np.uint16) << 8, exif=exif)
    np.testing.assert_array_equal(read(file, shape=(9, 6, 1))[..., 0], seen(GREY, 6))


# --- size ---------------------------------------------------------------------------------------------


def test_crop_keeps_the_middle_pad_keeps_all_and_stretch_fills(tmp_path):
    """An image of three vertical bands, 4 x 12, brought to 4 x 4."""
    bands = np.repeat(np.array([[10, 90, 200]], np.uint8), 4, axis=1).repeat(4, axis=0)
    file = written(tmp_path / "bands.png", bands)
    np.testing.assert_array_equal(read(file, shape=(4, 4, 1)), 90)
    np.testing.assert_array_equal(read(file, shape=(4, 4, 1), fit="crop"), 90)

    padded = read(file, shape=(4, 12, 1), fit="pad")[..., 0]
    np.testing.assert_array_equal(padded, bands)
    padded = read(file, shape=(10, 12, 1), fit="pad")[..., 0]
    np.testing.assert_array_equal(padded[3:7], bands)
    np.testing.assert_array_equal(padded[[0, 1, 2, 7, 8, 9]], 100)  # the mean of 10, 90, 200

    stretched = read(file, shape=(4, 3, 1), fit="stretch")[..., 0]
    assert (np.diff(stretched.astype(int), axis=1) > 0).all()
    np.testing.assert_array_equal(stretched, stretched[:1].repeat(4, axis=0))


def test_the_border_of_a_colour_image_has_its_mean_colour(tmp_path):
    file = written(tmp_path / "a.png", np.array([[[0, 100, 200], [100, 200, 0]]], np.uint8))
    padded = read(file, shape=(3, 2, 3), fit="pad")
    np.testing.assert_array_equal(padded[[0, 2]], np.broadcast_to([50, 150, 100], (2, 2, 3)))


def test_a_line_of_pixels_is_padded_too(tmp_path):
    file = written(tmp_path / "line.png", np.full((1, 400), 7, np.uint8))
    np.testing.assert_array_equal(read(file, shape=(4, 4, 1), fit="pad"), 7)


@pytest.mark.parametrize("fit", ["crop", "pad", "stretch"])
@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_shrinking_is_antialiased(tmp_path, suffix, fit):
    """A fine checkerboard has no pixel of its mean, and its small copy has no other."""
    checkers = (np.indices((256, 256)).sum(axis=0) % 2 * 255).astype(np.uint8)
    file = written(tmp_path / f"a.{suffix}", checkers)
    np.testing.assert_allclose(read(file, shape=(8, 8, 1), fit=fit), 127.5, atol=3, rtol=0)


def test_a_large_jpeg_that_is_decoded_smaller_is_the_same_picture(tmp_path):
    ramp = np.add.outer(np.arange(480), np.arange(640)).astype(np.float64)
    ramp = np.round(ramp / ramp.max() * 255).astype(np.uint8)
    small = {
        suffix: read(written(tmp_path / f"a.{suffix}", ramp), shape=(12, 16, 1)) for suffix in ("png", "jpg")
    }
    np.testing.assert_allclose(small["jpg"].astype(int), small["png"], atol=2, rtol=0)


def test_unknown_fits_and_channels(tmp_path):
    file = written(tmp_path / "a.png", GREY)
    assert refused(file, fit="corp").endswith("must be one of crop, pad, stretch; did you mean 'crop'?")
    assert refused(file, shape=(6, 9, 2)) == "images: 2 channels: must be 1 (grey) or 3 (colour)"


# --- what cannot be read ------------------------------------------------------------------------------


def png_of(width, height):
    """A PNG file whose head says this size and whose pixels are missing."""

    def chunk(name, content):
        crc = zlib.crc32(name + content)
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    )


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 6\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not an image; must be one of BMP, DIB, GIF, JPEG, PNG, PPM, TIFF, WEBP"),
        (b"one line of text\n", "not an image; must be one of "),
        (POSTSCRIPT, "not an image; must be one of "),
        (png_of(9, 6), "cannot be read ("),
        (png_of(9_000, 8_889), "more than 80_000_000 pixels; must be a smaller image"),
        (png_of(100_000, 100_000), "more than 80_000_000 pixels; must be"),
    ],
    ids=["nothing", "text", "PostScript", "no pixels", "too many pixels", "a bomb"],
)
def test_files_that_hold_no_image_that_can_be_read(tmp_path, content, said):
    file = tmp_path / "a.png"
    file.write_bytes(content)
    assert refused(file).startswith(f"{file}: {said}")
    if not said.startswith("cannot"):
        with pytest.raises(UserError, match="a.png: "):
            shape_of(file)


def test_a_bomb_that_pillow_only_warns_of_is_refused(tmp_path):
    file = tmp_path / "a.png"
    file.write_bytes(png_of(10_000, 10_000))
    assert refused(file).startswith(f"{file}: more than 80_000_000 pixels")
    with warnings.catch_warnings(action="ignore"):
        assert refused(file).startswith(f"{file}: more than 80_000_000 pixels")
    assert images.MOST_PIXELS < Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize("kind", ["pipe", "socket", "device"])
@pytest.mark.parametrize("is_linked", [False, True])
def test_what_is_no_regular_file_is_not_waited_for(tmp_path, monkeypatch, kind, is_linked):
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    file = tmp_path / "a.png"
    place = tmp_path / "place" if is_linked else file
    if kind == "pipe":
        os.mkfifo(place)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(place.name)
    else:
        place = pathlib.Path(os.devnull)
        is_linked = True
    if is_linked:
        file.symlink_to(place)
    assert refused(file) == f"{file}: no regular file; must be an image"
    with pytest.raises(UserError, match="no regular file"):
        shape_of(file)


def test_a_path_that_cannot_be_one():
    assert refused("a\0.png").startswith("a\\x00.png: cannot be read (embedded null byte)")
    assert refused("a" * 300 + ".png").startswith("aaa")


def test_the_files_below_a_folder_are_found_once_and_none_of_the_system(tmp_path):
    for path in ("b/1.PNG", "b/c/2.jfif", "3.txt", ".x/4.png", "b/._5.png", "__MACOSX/6.png", "b/Thumbs.db"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"")
    (tmp_path / "b/up").symlink_to(tmp_path)
    (tmp_path / "b/loop").symlink_to("loop")
    found = [path.relative_to(tmp_path).as_posix() for path in images.find_files(tmp_path)]
    assert found == ["3.txt", "b/1.PNG", "b/c/2.jfif", "b/loop"]
    assert images.find_images(tmp_path) == [tmp_path / "b/1.PNG", tmp_path / "b/c/2.jfif"]
    assert images.list_entries(tmp_path / "b") == (["c", "up"], ["1.PNG", "loop"])
    with pytest.raises(
        UserError, match="none: cannot be read \\(No such file or directory\\); must be a folder"
    ):
        images.find_images(tmp_path / "none")


def test_every_ending_is_read_by_a_format(tmp_path):
    """No file is taken for an image by its name and then for none by its content."""
    known = Image.registered_extensions()
    assert {known[suffix] for suffix in images.SUFFIXES} <= set(images._FORMATS)


def test_missing_files_and_folders(tmp_path):
    assert refused(tmp_path / "none.png") == f"{tmp_path / 'none.png'}: no such file; must be an image"
    assert refused(tmp_path) == f"{tmp_path}: no regular file; must be an image"


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif", "gif", "bmp"])
def test_truncated_files(tmp_path, suffix):
    buffer = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(buffer, format={"jpg": "jpeg", "tif": "tiff"}.get(suffix, suffix))
    file = tmp_path / f"a.{suffix}"
    file.write_bytes(buffer.getvalue()[: len(buffer.getvalue()) // 2])
    assert refused(file, shape=(40, 40, 3)).startswith(f"{file}: ")


def test_damaged_files_are_read_or_refused_and_never_more(tmp_path):
    """Bytes changed at random: an image of the shape, or one line that names the file."""
    rng, num_refused = np.random.default_rng(0), 0
    for suffix in ("png", "jpg", "gif", "webp", "bmp", "tif"):
        whole = written(tmp_path / f"whole.{suffix}", COLOUR).read_bytes()
        file = tmp_path / f"damaged.{suffix}"
        for _ in range(60):
            damaged = bytearray(whole)
            for place in rng.integers(len(whole), size=3):
                damaged[place] = rng.integers(256)
            file.write_bytes(damaged)
            try:
                assert read(file, shape=(6, 9, 3)).shape == (6, 9, 3)
            except UserError as error:
                assert str(error).startswith(f"{file}: ") and "\n" not in str(error)
                num_refused += 1
    assert num_refused > 30


def test_reading_in_threads_gives_the_same(tmp_path):
    files = [written(tmp_path / f"{n}.png", np.roll(COLOUR, n, axis=0)) for n in range(8)]
    got = {}

    def work(n):
        got[n] = [read(files[n], shape=(4, 4, 3)) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for n in range(8):
        for image in got[n]:
            np.testing.assert_array_equal(image, read(files[n], shape=(4, 4, 3)))
