"""Tokens: what is right as a whole, edits a token, what is said by itself, and lines that are read."""

from __future__ import annotations

import numpy as np
import pytest

from mtkd_jax.data import tokens
from mtkd_jax.deploy import predict
from mtkd_jax.tasks import kinds
from mtkd_jax.tasks.kinds import PlaceOutputs
from mtkd_jax.tasks.tokens import SPOKEN, edits, exactly_right, rate, read, say, tell
from mtkd_jax.types import UserError
from tests.references import sequences as reference

NAMES = ("<end>", "AE", "K", "T")
REFERENCES = [[2, 1, 3], [1], [3, 3]]
SPOKE = [[2, 1, 3], [1, 3, 3], []]  # 0, 2 and 2 edits of 3, 1 and 2 tokens
L = 5


def said(**further):
    """Three examples with 4, 2 and 3 places; the first and the last are decided as they should be."""
    _, labels = tokens.lay_out([[]] * 3, REFERENCES, L)
    _, spoken = tokens.lay_out([[]] * 3, SPOKE, L)
    example, place = np.nonzero(labels >= 0)
    decided = labels[labels >= 0].copy()
    decided[5] = 3  # the end of the second
    logits = 5.0 * np.eye(len(NAMES))[decided]
    beside = {SPOKEN: np.repeat(spoken[:, None], L, axis=1)[labels >= 0]}
    return PlaceOutputs(logits, labels[labels >= 0], example, place, beside, class_names=NAMES, **further)


def test_what_is_right_as_a_whole_and_edits_by_hand():
    assert exactly_right(said()).tolist() == [100.0, 0.0, 100.0]
    assert edits(said()).tolist() == [[0, 3], [2, 1], [2, 2]]
    assert rate(edits(said()).sum(axis=0)) == pytest.approx(100 * 4 / 6)
    expected = [reference.edit_distance(a, b) for a, b in zip(SPOKE, REFERENCES)]
    assert edits(said())[:, 0].tolist() == expected


def test_examples_that_are_drawn_again_keep_their_own():
    drawn = said().take(np.array([1, 1, 0]))
    assert edits(drawn).tolist() == [[2, 1], [2, 1], [0, 3]]
    assert exactly_right(drawn).tolist() == [0.0, 0.0, 100.0]


@pytest.mark.parametrize("seed, to_the_last_place", [(0, False), (1, True)])
def test_a_whole_that_is_right_is_what_comes_out_greedily(seed, to_the_last_place):
    """Of random networks that see what stands before a place: right behind the right ones, or said alone."""
    rng = np.random.default_rng(seed)
    table = rng.normal(size=(L, 4, 4))
    labels = tokens.lay_out(
        [[]] * 300, [rng.integers(1, 4, rng.integers(0, L)).tolist() for _ in range(300)], L
    )[1]
    images = tokens.with_targets(tokens.as_images(np.zeros((300, L), np.int32)), labels)

    def network(images):
        before = images[:, 1, :, 0].astype(int)
        return np.stack([table[np.minimum(place, 1), before[:, place]] for place in range(L)], axis=1)

    spoken = say(network, images)
    there = labels >= 0
    example, place = np.nonzero(there)
    found = PlaceOutputs(network(images)[there], labels[there], example, place, {SPOKEN: spoken[there]})
    whole = exactly_right(found) == 100.0
    alone, long = edits(found)[:, 0] == 0, labels[:, -1] == tokens.END
    np.testing.assert_array_equal(whole[~long], alone[~long])
    # At the last place the end comes unasked.
    np.testing.assert_array_equal(alone[long], (network(images).argmax(-1) == labels)[long, :-1].all(axis=1))
    assert (alone[~long].any(), alone[long].any()) == (not to_the_last_place, to_the_last_place)
    assert whole.any() != to_the_last_place and not whole.all()


def test_what_is_told_is_what_is_said_alone():
    logits = np.eye(4)[[2, 1, 3, 0, 0]]
    assert tell(logits, NAMES, {}) == ["K AE T"]
    alone = np.repeat(tokens.lay_out([[]], [[1]], L)[1], L, axis=0)
    assert tell(logits, NAMES, {SPOKEN: alone}) == ["AE"]


def test_lines_become_sources(tmp_path):
    (tmp_path / "words.txt").write_text("cat\n\nzac \ncatacomb\n", encoding="utf-8")
    taken = {"tokens": ["a", "c", "t"], "shape": [2, L, 1]}
    (cat, of_cat), (zac, of_zac), (long, wrong) = read(tmp_path / "words.txt", taken)
    assert (cat, zac.strip(), long) == ("cat", "zac", "catacomb")
    assert of_cat[0, :, 0].tolist() == [3, 2, 4, 0, 0] and of_cat.shape == (2, L, 1)
    assert of_zac[0, :, 0].tolist() == [tokens.UNKNOWN, 2, 3, 0, 0]
    assert wrong == "catacomb: 8 tokens; must be at most 5"
    (tmp_path / "words.txt").write_text("one two\n", encoding="utf-8")
    (_, of_words), *_ = read(tmp_path / "words.txt", {"tokens": ["two", "one"], "shape": [2, L, 1]})
    assert of_words[0, :, 0].tolist() == [3, 2, 0, 0, 0]
    (tmp_path / "words.txt").write_text("a c\n", encoding="utf-8")  # words of a character each
    (_, of_words), *_ = read(tmp_path / "words.txt", {**taken, "unit": "words"})
    assert of_words[0, :, 0].tolist() == [2, 3, 0, 0, 0]
    with pytest.raises(UserError, match="cannot be read"):
        read(tmp_path / "none.txt", taken)


def test_the_record_says_which_measures_need_what():
    kind = kinds.named("tokens")
    assert [(one.name, one.beside) for one in kind.measures] == [
        ("exact match", ()),
        ("token error rate", (SPOKEN,)),
    ]
    assert kind.shows_labels and list(kind.asks) == [SPOKEN]


# --- predict ------------------------------------------------------------------------------------------


def program(images):
    """Says the source's own numbers again, as classes, and then the end; [n,2,L,1] -> [n,L,C]."""
    source = np.asarray(images)[:, 0, :, 0].astype(int)
    classes = np.where(source > 0, source - 1, tokens.END)  # a: 1, c: 2, t: 3; the unknown token: the end
    return np.eye(4, dtype=np.float32)[classes]


CARD = {
    "class_names": ["<end>", "A", "C", "T"],
    "input": {"shape": [2, L, 1], "range": "as in the data", "tokens": ["a", "c", "t"]},
    "places": {"task": "tokens", "place": "token", "number": L, "beside": {}},
}


def test_predict_tells_what_is_said_to_each_line(tmp_path):
    (tmp_path / "words.txt").write_text("cat\nact\ncatacomb\ntactt\nta?\n", encoding="utf-8")
    found = list(predict.predictions(program, CARD, [tmp_path / "words.txt"], top=1, fit="crop", batch=2))
    assert [one.source for one in found] == ["cat", "act", "catacomb", "tactt", "ta?"]
    assert [one.lines for one in found] == [
        ("CAT",),
        ("ACT",),
        (),
        ("TACT",),
        ("TA",),
    ]  # ends at the last place
    assert found[2].error == "catacomb: 8 tokens; must be at most 5"


def test_predict_prints_a_line_of_json_for_each(tmp_path, monkeypatch, capsys):
    (tmp_path / "words.txt").write_text("cat\n", encoding="utf-8")
    monkeypatch.setattr(predict, "load_program", lambda folder, form: (program, CARD))
    assert predict.main(["--student", "x", str(tmp_path / "words.txt"), "--json"]) == 0
    assert capsys.readouterr().out == '{"source": "cat", "told": ["CAT"]}\n'
