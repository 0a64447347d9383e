"""Images read when asked for are the images; reading ahead is bounded, in order, and leaves no thread."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from PIL import Image

from mtkd_jax.data import images as image_files
from mtkd_jax.data import streams
from mtkd_jax.data.streams import OneByOne, digest, in_threads, read_ahead
from mtkd_jax.types import UserError

PIXELS = np.random.default_rng(0).integers(0, 256, (12, 5, 4, 3), dtype=np.uint8)


@pytest.fixture
def files(tmp_path):
    paths = [str(tmp_path / f"{n}.png") for n in range(len(PIXELS))]
    for path, pixels in zip(paths, PIXELS):
        Image.fromarray(pixels).save(path)

    def read(row):
        return image_files.read(paths[row], shape=(5, 4, 3))

    return OneByOne(read, PIXELS.shape, np.uint8, [digest(image) for image in PIXELS])


@pytest.fixture
def no_thread_left():
    before = set(threading.enumerate())
    yield
    assert set(threading.enumerate()) <= before


def test_files_are_used_like_the_array_of_their_images(files, no_thread_left):
    assert (files.shape, files.dtype, len(files)) == (PIXELS.shape, PIXELS.dtype, len(PIXELS))
    for rows in (
        slice(None),
        slice(2, 9, 3),
        np.array([7, 0, 7, 11], np.int32),
        np.array([-1]),
        np.array([], int),
        np.arange(12) % 2 == 0,
    ):
        np.testing.assert_array_equal(files[rows], PIXELS[rows])


def test_the_identity_differs_where_an_image_differs_or_stands_elsewhere():
    def identity(images):
        return OneByOne(images.__getitem__, images.shape, images.dtype, map(digest, images)).identity()

    changed = PIXELS.copy()
    changed[5, 2, 1, 0] ^= 1
    assert identity(PIXELS) == identity(PIXELS.copy())
    assert len({identity(images) for images in (PIXELS, changed, PIXELS[::-1], PIXELS[:-1])}) == 4


def test_of_files_that_cannot_be_read_the_first_in_order_is_named(files, tmp_path, no_thread_left):
    for row in (9, 4):
        (tmp_path / f"{row}.png").write_bytes(b"no image")
    with pytest.raises(UserError, match="4.png: not an image"):
        files[:]
    with pytest.raises(UserError, match="9.png: not an image"):
        files[np.array([0, 9, 4])]
    np.testing.assert_array_equal(files[:4], PIXELS[:4])


def test_as_many_threads_as_said_and_no_more(monkeypatch, no_thread_left):
    """Each of three waits until three are at work: with fewer it would break, with more a fourth is seen."""
    monkeypatch.setattr(streams, "NUM_THREADS", 3)
    monkeypatch.setattr(streams, "_HANDED_OUT", 6)
    barrier, lock, at_work, most = threading.Barrier(3), threading.Lock(), 0, 0

    def work(thing):
        nonlocal at_work, most
        with lock:
            at_work += 1
            most = max(most, at_work)
        barrier.wait(timeout=60)
        with lock:
            at_work -= 1
        barrier.wait(timeout=60)
        return thing * thing

    assert list(in_threads(work, range(15))) == [n * n for n in range(15)]
    assert most == 3


def test_windows_come_in_order_from_files_and_from_arrays(files, no_thread_left):
    windows = [np.arange(n, n + size) % 12 for n, size in ((0, 3), (5, 1), (2, 12), (7, 4))]
    for images in (files, PIXELS):
        got = list(read_ahead(images, windows))
        assert len(got) == len(windows)
        for rows, window in zip(windows, got):
            np.testing.assert_array_equal(window, PIXELS[rows])
        for rows, window in zip(windows[2:], read_ahead(images, iter(windows[2:]))):  # a run that goes on
            np.testing.assert_array_equal(window, PIXELS[rows])
    assert list(read_ahead(PIXELS, [])) == []


def test_reading_is_at_most_two_windows_ahead(no_thread_left):
    asked, changed = 0, threading.Condition()

    def windows():
        nonlocal asked
        for row in range(10):
            with changed:
                asked += 1
                changed.notify_all()
            yield np.array([row])

    def asks_for(number, timeout):
        with changed:
            return changed.wait_for(lambda: asked >= number, timeout)

    reading = read_ahead(PIXELS, windows())
    for used in range(1, 9):
        next(reading)
        assert asks_for(used + 2, timeout=60)
        assert not asks_for(used + 3, timeout=0.05)
    reading.close()


def test_what_cannot_be_read_is_told_in_its_turn(files, tmp_path, no_thread_left):
    (tmp_path / "8.png").write_bytes(b"no image")
    reading = read_ahead(files, [np.array([0]), np.array([1, 2]), np.array([7, 8, 9]), np.array([3])])
    np.testing.assert_array_equal(next(reading), PIXELS[:1])
    np.testing.assert_array_equal(next(reading), PIXELS[1:3])
    with pytest.raises(UserError, match="8.png: not an image"):
        next(reading)
    assert list(reading) == []


def test_closing_early_ends_the_threads(files, no_thread_left):
    reading = read_ahead(files, (np.array([n % 12]) for n in range(10_000)))
    next(reading)
    assert any("prefetch" in thread.name for thread in threading.enumerate())
    reading.close()
    never_begun = read_ahead(files, [np.array([0])])
    never_begun.close()
