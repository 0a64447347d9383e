"""Losses of detectors in float64 NumPy, a place at a time, from Chen et al. 2017 and Girshick 2015."""

import numpy as np


def smooth_l1(box, goal):
    """Of corners [4], parts of the image's sides, in eighths of these."""
    total = 0.0
    for own, right in zip(np.asarray(box, float), np.asarray(goal, float)):
        x = abs(8 * (own - right))
        total += 0.5 * x * x if x < 1 else x - 0.5
    return total


def squared_distance(box, goal):
    return float(np.sum((8 * (np.asarray(box, float) - np.asarray(goal, float))) ** 2))


def bounded_boxes(own, teacher, goal, margin):
    """The squared distance of the student's box, unless it is nearer than the teacher's by the margin."""
    of_student, of_teacher = squared_distance(own, goal), squared_distance(teacher, goal)
    return of_student if of_student + margin > of_teacher else 0.0


def log_softmax(z):
    z = np.asarray(z, float) - np.max(z)
    return z - np.log(np.sum(np.exp(z)))


def weighted_classes(student, teacher, background, temperature):
    """Of logits [C], the background the first class."""
    weights = np.ones(len(student))
    weights[0] = background
    q = np.exp(log_softmax(np.asarray(teacher, float) / temperature))
    log_p = log_softmax(np.asarray(student, float) / temperature)
    return -float(temperature**2 * np.sum(weights * q * log_p))


def chen(student, teachers, boxes, own, theirs, goal, share, *, background, margin, temperature):
    """What teaches a place: of logits [C], [K,C]; boxes are weighed by `boxes` and count `share` times."""
    weighted = [weighted_classes(student, teacher, background, temperature) for teacher in teachers]
    bounded = [bounded_boxes(own, box, goal, margin) for box in theirs]
    return np.mean(weighted) + boxes * share * np.mean(bounded)
