"""Files that several processes write, and what is left by one that was killed."""

import os
import threading

import pytest

from mtkd_jax.report import document
from mtkd_jax.system import files
from mtkd_jax.types import UserError


def test_who_writes_the_same_file_meanwhile_takes_nothing_away(tmp_path, monkeypatch):
    """Before the first one's bytes get their name another one writes all of its own."""
    path, replace = tmp_path / "page.md", os.replace

    def slowly(source, target):
        monkeypatch.setattr(os, "replace", replace)
        files.write_atomically(path, b"other")
        assert path.read_bytes() == b"other"
        replace(source, target)

    monkeypatch.setattr(os, "replace", slowly)
    files.write_atomically(path, b"first")
    assert path.read_bytes() == b"first" and os.listdir(tmp_path) == ["page.md"]


def test_parts_of_the_killed_are_removed_once_they_are_old_and_nothing_else_is(tmp_path):
    old, young = ".page.md.17-0123abcd.part", ".page.md.18-0123abcd.part"
    others = {"page.md.part", "page.md.gz.part", ".page.md.zip.17-0123abcd.part", ".page.md.part"}
    for name in (old, young, *others):
        (tmp_path / name).write_text("half")
    for name in (old, *others):
        os.utime(tmp_path / name, (0, 0))
    files.write_atomically(tmp_path / "page.md", b"whole")
    assert set(os.listdir(tmp_path)) == {"page.md", young, *others}


def test_a_refused_file_leaves_no_part(tmp_path):
    (tmp_path / "page.md").mkdir()
    (tmp_path / "page.md" / "within").touch()
    with pytest.raises(UserError, match="page.md: cannot be written"):
        files.write_atomically(tmp_path / "page.md", b"x")
    assert os.listdir(tmp_path) == ["page.md"]


def test_two_who_write_into_one_page_take_turns(tmp_path, monkeypatch):
    """A second one that comes between the reading and the writing of the first waits, and loses nothing."""
    page, write_files = tmp_path / "page.md", document.write_files
    page.write_text("<!-- one -->\n<!-- end -->\n<!-- two -->\n<!-- end -->\n")
    second = threading.Thread(target=document.put_into, args=(page, "two", lambda now: f"2 after{now}"))

    def first_writes(folder, written):
        monkeypatch.setattr(document, "write_files", write_files)
        second.start()
        second.join(timeout=0.3)  # time enough to do harm
        write_files(folder, written)

    monkeypatch.setattr(document, "write_files", first_writes)
    document.put_into(page, "one", "1")
    second.join()
    marks = [line for line in page.read_text().splitlines() if line]
    assert marks == ["<!-- one -->", "1", "<!-- end -->", "<!-- two -->", "2 after", "<!-- end -->"]
    assert os.listdir(tmp_path) == ["page.md"]
