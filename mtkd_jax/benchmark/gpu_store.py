"""What the suite `gpu` has found: one file, written whole whenever something is known."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mtkd_jax.report import document
from mtkd_jax.system import files, terminal
from mtkd_jax.types import UserError

FILE = "gpu.json"
PARTS = ("numbers", "members", "cifar10", "published")  # in the order in which they are measured


class Item(NamedTuple):
    """One thing to measure."""

    name: str
    least: float  # seconds: with fewer left it is not begun
    run: Callable[[float], dict]  # given the time (of the epoch) when it has to end


class Skipped(Exception):
    """Something that the time was too short for, and what there is of it."""


class Store:
    """FOLDER/gpu.json: {"toy", "parts": {part: {"items": {name: found}, "skipped": {name: why}}}}."""

    def __init__(self, folder: Path, toy: bool):
        self.folder, self.toy = folder, toy
        self.refresh()
        if self.content["toy"] != toy:
            kind = "the results of --toy" if self.content["toy"] else "no results of --toy"
            raise UserError(f"{folder / FILE}: holds {kind}; name another folder")

    def refresh(self) -> Store:
        """Read what a child has written meanwhile."""
        read = files.read_object(self.folder / FILE, "remove it, to measure again")
        self.content = read or {"suite": "gpu", "toy": self.toy, "parts": {}}
        return self

    def is_done(self, part: str) -> bool:
        """Whether all of it is there."""
        return self.content["parts"].get(part, {}).get("done", False)

    def has(self, part: str, item: str) -> bool:
        """Whether it is there and whole: what the time was too short for is measured again."""
        return self._of(part)["items"].get(item, {"whole": False}).get("whole", True)

    def put(self, part: str, item: str, found: dict) -> None:
        """Keep a result, at once; one that is cut short does not replace one that says more."""
        self._of(part)["skipped"].pop(item, None)
        before = self._of(part)["items"].get(item, {})
        if found.get("whole", True) or len(found["records"]) >= len(before.get("records", ())):
            self._of(part)["items"][item] = found
        self._write()

    def skip(self, part: str, item: str, why: str) -> None:
        """Keep why there is none; the next time it is tried again."""
        self._of(part)["skipped"][item] = why
        self._write()

    def describe(self, part: str, **facts: Any) -> None:
        """Keep what is known of the part as a whole: done, machine, taken_by_others, ended."""
        self._of(part).update(facts)
        self._write()

    def _of(self, part: str) -> dict:
        return self.content["parts"].setdefault(part, {"items": {}, "skipped": {}})

    def _write(self) -> None:
        document.write_files(self.folder, {FILE: document.as_json(self.content)})


def run_items(items: Sequence[Item], store: Store, part: str, until: float) -> None:
    """Measure what is not there yet, one after the other; nothing that one of them does ends the others."""
    for item in items:
        left = until - time.time()
        if store.has(part, item.name):
            continue
        if left < item.least:
            store.skip(part, item.name, f"{max(0, left):.0f} s were left, and it takes {item.least:.0f}")
            continue
        terminal.tell(f"gpu: {part}: {item.name}")
        begun = time.perf_counter()
        try:
            found = item.run(until)
        except Skipped as skipped:
            store.skip(part, item.name, str(skipped))
        except Exception as error:  # whatever it is, there are other things to find out on this device
            terminal.tell(traceback.format_exc())
            store.skip(part, item.name, f"it failed: {terminal.one_line(error)[:300]}")
        else:
            store.put(part, item.name, {"took": time.perf_counter() - begun, **found})
    store.describe(part, done=all(store.has(part, item.name) for item in items))
