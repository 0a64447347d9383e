"""Boxes and the places of a grid that answer for them, worked out by hand."""

import numpy as np
import pytest

from mtkd_jax.data import boxes


def corners(*rows):
    return np.array(rows, float)


def overlap(a, b):
    return boxes.intersection_over_union(corners(a), corners(b))[0, 0]


def test_overlap_by_hand():
    assert overlap((0, 0, 2, 2), (1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert overlap((0, 0, 2, 2), (0, 0, 2, 2)) == 1
    assert overlap((0, 0, 1, 1), (1, 0, 2, 1)) == 0  # an edge in common is no area
    assert overlap((0, 0, 4, 4), (1, 1, 2, 3)) == pytest.approx(2 / 16)
    assert overlap((1, 1, 1, 2), (1, 1, 1, 2)) == 0  # no area at all


def test_places_in_the_middle_of_a_box_answer_for_it():
    """On a grid of 4 x 4 middles are at 1/8, 3/8, 5/8, 7/8; the middle part of 0.1 .. 0.9 is 0.26 .. 0.74."""
    places = boxes.assign(np.array([2]), corners((0.1, 0.1, 0.9, 0.9)), (4, 4))
    expected = np.zeros((4, 4), int)
    expected[1:3, 1:3] = 2
    np.testing.assert_array_equal(places.label.reshape(4, 4), expected)
    np.testing.assert_allclose(places.corners[5], (0.1, 0.1, 0.9, 0.9), rtol=1e-6)
    assert not places.corners[0].any() and places.without.size == 0


def test_rows_are_of_the_height_and_columns_of_the_width():
    """Of 2 rows and 4 columns the place at the right end of the upper row is the fourth."""
    places = boxes.assign(np.array([1]), corners((0.76, 0.0, 1.0, 0.5)), (2, 4))
    np.testing.assert_array_equal(places.label, [0, 0, 0, 1, 0, 0, 0, 0])


def test_a_box_between_the_places_is_answered_for_by_the_one_around_its_middle():
    places = boxes.assign(np.array([1]), corners((0.26, 0.05, 0.3, 0.95)), (4, 4))
    assert places.label.sum() == 1
    assert places.label.reshape(4, 4)[2, 1] == 1  # of the middle (0.28, 0.5)


def test_of_two_boxes_the_smaller_has_the_place():
    large, small = (0.0, 0.0, 1.0, 1.0), (0.26, 0.26, 0.49, 0.49)
    for order in ((large, small), (small, large)):
        places = boxes.assign(np.array([1, 2]), corners(*order), (4, 4))
        np.testing.assert_allclose(places.corners[5], small, rtol=1e-6)
        np.testing.assert_allclose(places.corners[6], large, rtol=1e-6)


def test_a_box_whose_places_are_all_taken_gets_one_back_if_the_other_keeps_one():
    """Both cover the two places in the middle; the smaller has them, and the middle of the wide is in one."""
    wide, narrow = (0.0, 0.3, 1.0, 0.8), (0.05, 0.3, 0.95, 0.8)
    places = boxes.assign(np.array([1, 2]), corners(wide, narrow), (1, 4))
    assert places.label.tolist() == [0, 2, 1, 0]
    assert places.without.size == 0


def test_a_box_without_a_place_is_told():
    places = boxes.assign(np.array([1, 2]), corners((0.1, 0.1, 0.9, 0.9), (0.2, 0.2, 0.8, 0.8)), (1, 1))
    np.testing.assert_array_equal(places.label, [2])
    np.testing.assert_array_equal(places.without, [0])


def test_an_image_without_boxes_is_background():
    places = boxes.assign(np.zeros(0, int), np.zeros((0, 4)), (3, 3))
    assert not places.label.any() and places.label.dtype == np.int32
    assert places.corners.shape == (9, 4) and not places.corners.any()


def test_what_is_assigned_is_known_again():
    own = corners((0.05, 0.1, 0.6, 0.7), (0.5, 0.5, 0.95, 0.9), (0.7, 0.02, 0.74, 0.4))
    places = boxes.assign(np.array([1, 3, 1]), own, (8, 8))
    again = boxes.collect(places.label, places.corners, np.zeros(64, int))
    order = np.lexsort(own.T)
    np.testing.assert_allclose(again.corners[np.lexsort(again.corners.T)], own[order], rtol=1e-6)
    assert sorted(again.label.tolist()) == [1, 1, 3]


def test_known_boxes_are_counted_once_in_each_image():
    label, image = np.array([1, 1, 0, 1, 2]), np.array([0, 0, 0, 1, 1])
    same = np.tile(corners((0.1, 0.1, 0.5, 0.5)), (5, 1))
    there = boxes.collect(label, same, image)
    assert list(zip(there.image, there.label)) == [(0, 1), (1, 1), (1, 2)]


def test_of_boxes_that_overlap_the_surest_stays():
    """Two of class 1 overlap by 0.81: the less sure one goes; one of class 2 on the same spot stays."""
    probs = np.array([[0.1, 0.9, 0.0], [0.2, 0.8, 0.0], [0.3, 0.0, 0.7], [0.4, 0.6, 0.0]])
    own = corners((0.0, 0.0, 0.5, 0.5), (0.05, 0.0, 0.55, 0.5), (0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0))
    said = boxes.detect(probs, own, np.zeros(4, int))
    np.testing.assert_array_equal(said.label, [1, 2, 1])
    np.testing.assert_allclose(said.score, [0.9, 0.7, 0.6])
    assert len(boxes.detect(probs, own, np.zeros(4, int), overlap=0.9).label) == 4


def test_only_what_is_likely_enough_and_has_an_area_is_found():
    probs = np.array([[0.9, 0.04, 0.06], [0.2, 0.8, 0.0], [0.2, 0.8, 0.0]])
    own = corners((0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 0.4, 0.9), (1.2, 0.0, 1.5, 0.5))
    said = boxes.detect(probs, own, np.array([0, 0, 1]))  # inverted; outside the image
    assert said.label.tolist() == [2]
    assert boxes.detect(probs[:1], own[:1], np.zeros(1, int), least=0.1).label.size == 0


def test_boxes_are_cut_at_the_edge_and_of_an_image_the_surest_are_kept():
    probs = np.array([[0.1, 0.9], [0.2, 0.8], [0.3, 0.7]])
    own = corners((-0.5, -0.5, 0.2, 0.2), (0.3, 0.3, 0.4, 0.4), (0.6, 0.6, 1.7, 0.9))
    said = boxes.detect(probs, own, np.array([1, 0, 1]), most=1)
    assert said.image.tolist() == [0, 1]
    np.testing.assert_allclose(said.corners, [(0.3, 0.3, 0.4, 0.4), (0.0, 0.0, 0.2, 0.2)])
