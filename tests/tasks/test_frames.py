"""Frames: what is measured of recordings, and what is told of one."""

import numpy as np
import pytest

from mtkd_jax.data.sources.series import frames
from mtkd_jax.deploy import predict
from mtkd_jax.tasks import frames as task
from mtkd_jax.tasks import kinds
from mtkd_jax.tasks.kinds import PlaceOutputs
from mtkd_jax.types import UserError


def said():
    """Two recordings of two frames and one of a single one; two classes."""
    probs = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    labels = np.array([0, 0, 0, 0, 1], np.int32)
    return PlaceOutputs(np.log(probs) + 3.0, labels, np.array([0, 0, 1, 1, 2]), np.array([0, 1, 0, 1, 0]))


def test_frames_that_are_right_are_counted_by_recording():
    np.testing.assert_array_equal(task.frame_accuracy(said()), [[1, 2], [1, 2], [1, 1]])
    assert task.share(task.frame_accuracy(said()).sum(axis=0)) == 3 / 5


def test_frames_name_the_class_of_their_recording_together():
    """0.9 * 0.4 > 0.1 * 0.6, but 0.2 * 0.6 < 0.8 * 0.4."""
    np.testing.assert_array_equal(task.recording_accuracy(said()), [1, 0, 1])


def test_the_measures_are_those_of_the_task_and_are_resampled_by_recording():
    twice = said().take(np.array([1, 1, 0]))
    numbers = {one.name: one.compute(twice) for one in kinds.named("frames").measures}
    np.testing.assert_array_equal(numbers["frame accuracy"], [[1, 2], [1, 2], [1, 2]])
    np.testing.assert_array_equal(numbers["recording accuracy"], [0, 0, 1])


def test_runs_of_a_class_are_told():
    logits = np.eye(3)[[0, 0, 2, 1, 1, 1]]
    assert task.tell(logits, ("a", "b", "c"), {}) == ["1-2 a", "3 c", "4-6 b"]


def write(path, **arrays):
    np.savez(path, **{f"Set/{name}": array for name, array in arrays.items()})
    return str(path)


def test_every_frame_has_the_class_of_its_series(tmp_path):
    x = np.random.default_rng(0).normal(size=(4, 3, 2)).astype(np.float32)
    path = write(tmp_path / "a.npz", train_x=x, train_y=[1, 2, 1, 2], test_x=x[:2], test_y=[2, 1])
    found = frames(path=path)
    assert found.task == "frames" and found.class_names == ("1", "2")
    assert found.train_labels.tolist() == [[0] * 3, [1] * 3, [0] * 3, [1] * 3]
    assert found.test_labels.tolist() == [[1] * 3, [0] * 3]
    np.testing.assert_array_equal(found.train_images, x[:, :, None])
    with pytest.raises(UserError, match="no set"):
        frames(path=write(tmp_path / "b.npz", other=x))


def test_a_student_of_frames_tells_the_runs_of_every_line(tmp_path):
    (tmp_path / "new.ts").write_text("@classLabel true\n@data\n1,2,9:?\n1,2:?\n", encoding="utf-8")
    card = {
        "class_names": ["low", "high"],
        "input": {"shape": [3, 1, 1], "range": "as in the data"},
        "places": {"task": "frames", "place": "frame", "beside": {}},
    }

    def program(images):
        return np.concatenate([5 - images[:, :, 0], images[:, :, 0]], axis=-1)

    found = predict.predictions(program, card, [tmp_path / "new.ts"], top=1, fit="crop", batch=8)
    first, second = found
    assert first.lines == ("1-2 low", "3 high") and first.line == 3
    assert "channels of (2,) values; must be 1 of 3, as in training" in second.error
