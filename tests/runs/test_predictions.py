"""predictions.npz: everything comes back; whatever is not such a file is refused in one line."""

import dataclasses
import pickle

import numpy as np
import pytest

from mtkd_jax.runs import predictions
from mtkd_jax.types import UserError
from tests.references.predictions import make


@pytest.fixture
def made():
    return make(num_val=20, num_test=30, num_seeds=2, num_teachers=11)  # group1_ and group10_ must not mix


def as_plain(record):
    """A record as nested lists and dicts, so that == compares arrays too."""
    if dataclasses.is_dataclass(record):
        return {f.name: as_plain(getattr(record, f.name)) for f in dataclasses.fields(record)}
    if isinstance(record, tuple):
        return tuple(as_plain(item) for item in record)
    return (record.dtype, record.tolist()) if isinstance(record, np.ndarray) else record


def test_everything_comes_back(made, tmp_path):
    predictions.save(tmp_path / "predictions.npz", made)
    assert as_plain(predictions.load(tmp_path / "predictions.npz")) == as_plain(made)
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.npz"]


def test_nothing_is_pickled(made, tmp_path):
    predictions.save(tmp_path / "predictions.npz", made)
    with np.load(tmp_path / "predictions.npz", allow_pickle=False) as archive:
        assert all(archive[name].dtype != object for name in archive.files)


def test_a_failed_save_leaves_the_old_file(made, tmp_path):
    path = tmp_path / "predictions.npz"
    predictions.save(path, made)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        predictions.save(path, dataclasses.replace(made, notes=(object(),)))
    assert path.read_bytes() == before


def refused(path):
    with pytest.raises(UserError) as caught:
        predictions.load(path)
    line = str(caught.value)
    assert line.startswith(str(path)) and "\n" not in line
    return line


def test_missing(tmp_path):
    assert "no such file" in refused(tmp_path / "predictions.npz")


@pytest.mark.parametrize("keep", [0, 100, 0.5, -1])
def test_cut_off(made, tmp_path, keep):
    path = tmp_path / "predictions.npz"
    predictions.save(path, made)
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    assert "damaged" in refused(path)


def test_every_flipped_byte_in_an_array_is_noticed(made, tmp_path):
    path = tmp_path / "predictions.npz"
    predictions.save(path, made)
    data = bytearray(path.read_bytes())
    where = data.find(made.groups[3].test.tobytes())
    assert where > 0
    data[where + 17] ^= 0x10
    path.write_bytes(data)
    assert "damaged" in refused(path)


def test_foreign_files(made, tmp_path):
    path = tmp_path / "predictions.npz"
    for write in (
        lambda: np.savez(path, logits=np.zeros(3)),
        lambda: np.savez(path, meta=np.array('{"format": "something else"}')),
        lambda: np.savez(path, meta=np.array("[1, 2]")),
        lambda: np.savez(path, meta=np.array("not JSON")),
    ):
        write()
        assert "not written by" in refused(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    refused(path)
    path.write_bytes(pickle.dumps({"meta": 1}))
    refused(path)


def test_logits_that_do_not_fit_the_labels_are_refused(made, tmp_path):
    path = tmp_path / "predictions.npz"
    short = dataclasses.replace(made.groups[0], test=made.groups[0].test[:, :-1])
    predictions.save(path, dataclasses.replace(made, groups=(short, *made.groups[1:])))
    assert "not written by" in refused(path)
