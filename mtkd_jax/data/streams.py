"""Images that stay in their files: read when they are indexed, and read ahead of the steps that need them."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from mtkd_jax.types import Images

# Decoding leaves Python's lock, so more threads than one help; past the cores they only hold memory.
NUM_THREADS = min(16, os.cpu_count() or 1)
MOST_HELD = 2_000_000_000  # bytes of images that a source holds in memory before it streams them
_HANDED_OUT = 1024  # pieces of work that wait for a thread


class OneByOne:
    """`Images` [N,h,w,c] that several threads read one by one, each time they are indexed."""

    def __init__(
        self,
        read: Callable[[int], np.ndarray],
        shape: tuple[int, ...],
        dtype: DTypeLike,
        digests: Iterable[bytes],
    ):
        """`read(row)` gives the image [h,w,c] of a row, to several threads at once; `digests` are of all."""
        self.read, self.shape, self.dtype = read, shape, np.dtype(dtype)
        self._identity = hashlib.sha256(b"".join(digests)).digest()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        """The rows [n,h,w,c]; raises what `read` raises of the first that cannot be read."""
        numbers = np.arange(len(self))[rows].tolist()
        found = np.empty((len(numbers), *self.shape[1:]), self.dtype)

        def put(place: int) -> None:
            found[place] = self.read(numbers[place])

        for _ in in_threads(put, range(len(numbers))):
            pass
        return found

    def identity(self) -> bytes:
        """What differs where the images differ, from the digests of when each was read first."""
        return self._identity


def digest(image: np.ndarray) -> bytes:
    """The SHA-256 of an image's pixels."""
    return hashlib.sha256(image.tobytes()).digest()


def in_threads(work: Callable[[Any], Any], things: Sequence) -> Iterator:
    """`work` of every thing in order, done by `NUM_THREADS` threads; they end when this does.

    What `work` raises is raised here, of several the first in order; what waits is then not begun.
    """
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        for start in range(0, len(things), _HANDED_OUT):
            yield from pool.map(work, things[start : start + _HANDED_OUT])


def read_ahead(
    source: np.ndarray | Images, windows: Iterable[np.ndarray]
) -> Generator[np.ndarray, None, None]:
    """`source[rows]` for the rows of every window in turn; while one is used, the next are being read.

    At most two windows are held beside the one in use. The iterator keeps nothing between windows, so a run
    that goes on starts it with the windows that are left. What reading raises is raised here in its turn.
    Closing the iterator ends its thread, after the window that is being read.
    """
    from grain.experimental import ThreadPrefetchDatasetIterator

    reader = ThreadPrefetchDatasetIterator(_InTurn(source, windows), prefetch_buffer_size=1)
    try:
        yield from reader
    finally:
        reader.close()


class _InTurn:
    """An iterator over windows in the form that grain reads from."""

    def __init__(self, source: np.ndarray | Images, windows: Iterable[np.ndarray]):
        self.source, self.windows = source, iter(windows)

    def __next__(self) -> np.ndarray:
        return self.source[next(self.windows)]

    def get_state(self) -> dict:
        return {}  # asked for after every window; where to go on is known to who gives the windows
