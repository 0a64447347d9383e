"""PyTorch's own files: what is read of them, that nothing is executed, and that damage is one line."""

from __future__ import annotations

import io
import os
import pickle
import zipfile

import numpy as np
import pytest

from mtkd_jax.models.pytorch import from_state_dict
from mtkd_jax.models.resnet import resnet
from mtkd_jax.plans import pretrained, torch_file
from mtkd_jax.types import Task, UserError
from tests.references import resnets as reference

# --- the operations that torch.save writes, by hand: there is no PyTorch where most tests run ------


def plain(value):
    return pickle.dumps(value, 2)[2:-1]  # without the operations that begin and end a pickle


def named(name):
    return b"c" + name.replace(" ", "\n").encode() + b"\n"


def called(function, *arguments):
    return named(function) + b"(" + b"".join(arguments) + b"tR"


def tensor(key, size, shape, strides, offset=0, kind="torch FloatStorage"):
    storage = b"(" + plain("storage") + named(kind) + plain(key) + plain("cpu") + plain(size) + b"tQ"
    hooks = called("collections OrderedDict")
    view = (storage, plain(offset), plain(shape), plain(strides), plain(False), hooks)
    return called("torch._utils _rebuild_tensor_v2", *view)


def dictionary(**values):
    return named("collections OrderedDict") + b")R(" + pairs(values) + b"u"


def pairs(values):
    return b"".join(plain(name) + value for name, value in values.items())


def saved(value, storages=None, order=b"little", compression=zipfile.ZIP_STORED, root="network"):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        archive.writestr(f"{root}/data.pkl", b"\x80\x02" + value + b".")
        archive.writestr(f"{root}/byteorder", order)
        for key, numbers in (storages or {}).items():
            archive.writestr(
                f"{root}/data/{key}", numbers if isinstance(numbers, bytes) else numbers.tobytes()
            )
    return buffer.getvalue()


def streamed(value, storages):
    """A file from before PyTorch 1.6: one pickle after the other, and each storage after its length."""
    form = {"protocol_version": 1001, "little_endian": True, "type_sizes": {"int": 4}}
    parts = [pickle.dumps(one, 2) for one in (torch_file.MAGIC, 1001, form)]
    parts += [b"\x80\x02" + value + b".", pickle.dumps(list(storages), 2)]
    for numbers in storages.values():
        parts += [len(numbers).to_bytes(8, "little"), numbers.tobytes()]
    return b"".join(parts)


SIX = {"0": np.arange(6, dtype="<f4")}
ONE = tensor("0", 6, (2, 3), (3, 1))


def saved_state_dict(tensors, order="little"):
    """Every tensor in a storage of its own, as after training."""
    little = "<" if order == "little" else ">"
    values, storages = {}, {}
    for number, (name, array) in enumerate(tensors.items()):
        strides = tuple(stride // array.itemsize for stride in np.ascontiguousarray(array).strides)
        values[name] = tensor(str(number), array.size, array.shape, strides)
        storages[str(number)] = array.astype(f"{little}f4")
    return saved(dictionary(**values), storages, order.encode())


# --- what is read -----------------------------------------------------------------------------------------


def test_views_are_read_with_their_strides_offsets_and_shared_storages():
    parameter = called("torch._utils _rebuild_parameter", ONE, plain(True), called("collections OrderedDict"))
    values = dictionary(
        whole=ONE,
        turned=tensor("0", 6, (3, 2), (1, 3)),
        part=tensor("0", 6, (2, 2), (3, 1), offset=1),
        one=tensor("0", 6, (), (), offset=5),
        empty=tensor("0", 6, (0, 3), (3, 1)),
        parameter=parameter,
    )
    found = torch_file.read(saved(values, SIX))
    whole = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    expected = dict(whole=whole, turned=whole.T, part=whole[:, 1:], one=np.float32(5), empty=whole[:0])
    for name, array in {**expected, "parameter": whole}.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


@pytest.mark.parametrize(
    "kind, stored, expected",
    [
        ("Double", np.array([1.5, -2], "<f8"), np.array([1.5, -2], np.float64)),
        ("Half", np.array([1.5, -2], "<f2"), np.array([1.5, -2], np.float16)),
        ("BFloat16", np.array([0x3FC0, 0xC000], "<u2"), np.array([1.5, -2], np.float32)),  # halves of float32
        ("Long", np.array([7, -2], "<i8"), np.array([7, -2], np.int64)),
        ("Byte", np.array([7, 255], "<u1"), np.array([7, 255], np.uint8)),
        ("Bool", np.array([True, False]), np.array([True, False])),
    ],
)
@pytest.mark.parametrize("order", [b"little", b"big"])
def test_every_kind_of_number_in_either_byte_order(kind, stored, expected, order):
    stored = stored if order == b"little" else stored.byteswap()
    value = dictionary(x=tensor("0", 2, (2,), (1,), kind=f"torch {kind}Storage"))
    np.testing.assert_array_equal(
        torch_file.read(saved(value, {"0": stored}, order))["x"], expected, strict=True
    )


def test_the_form_of_before_zip_archives_is_read():
    storages = {"94": np.arange(6, dtype="<f4"), "17": np.array([7, -2], "<i8")}
    value = dictionary(
        turned=tensor("94", 6, (3, 2), (1, 3)), count=tensor("17", 2, (2,), (1,), kind="torch LongStorage")
    )
    found = torch_file.read(streamed(value, storages))
    np.testing.assert_array_equal(
        found["turned"], np.arange(6, dtype=np.float32).reshape(2, 3).T, strict=True
    )
    np.testing.assert_array_equal(found["count"], np.array([7, -2]), strict=True)


def test_dictionaries_in_one_another_are_joined_by_dots_and_all_else_is_left_out():
    inner = b"}(" + pairs({"model": dictionary(**{"conv.weight": ONE}), "epoch": plain(3)}) + b"u"
    state = plain({"_metadata": {"": {"version": 1}}}) + b"b"  # attributes of a dictionary
    value = b"}(" + pairs({"state_dict": inner, "names": plain(["a", None, 2.5]), "rest": b"](" + ONE + b"e"})
    found = torch_file.read(saved(value + b"u" + state, SIX))
    assert sorted(found) == ["rest.0", "state_dict.model.conv.weight"]


@pytest.mark.parametrize("order", ["little", "big"])
@pytest.mark.parametrize("suffix", [".pth", ".pt"])
def test_a_network_is_read_from_a_file_of_pytorch_as_from_its_arrays(order, suffix, tmp_path):
    task = Task(num_classes=100, num_heads=1, mean=(0.5, 0.4, 0.3), std=(0.3, 0.2, 0.25))
    tensors = reference.drawn(reference.resnet_shapes(8, 16, (16, 32, 64)))
    (tmp_path / f"network{suffix}").write_bytes(saved_state_dict(tensors, order))
    got = pretrained.from_pytorch(tmp_path / f"network{suffix}", resnet(task, depth=8))
    expected = from_state_dict(tensors, resnet(task, depth=8))
    assert str(got) == str(expected)


# --- what is refused --------------------------------------------------------------------------------------


class Harmful:
    """What an attacker puts into a pickle."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    "function, named", [(os.mkdir, rf"{os.name}.mkdir"), (exec, "(__builtin__|builtins).exec")]
)
def test_functions_are_named_and_not_executed(function, named, protocol, tmp_path):
    target = tmp_path / "executed"
    argument = str(target) if function is os.mkdir else f"import os; os.mkdir({str(target)!r})"
    harmful = pickle.dumps({"weight": Harmful(function, argument)}, protocol)
    pickle.loads(harmful)
    assert target.exists()  # it is harmful where it is executed
    target.rmdir()
    (tmp_path / "network.pth").write_bytes(saved(harmful[2:-1]))
    with pytest.raises(UserError, match=f"network.pth: it asks for {named}, which is no part") as caught:
        pretrained.read_state_dict(tmp_path / "network.pth")
    assert "\n" not in str(caught.value) and not target.exists()


ENDLESS = b"]q\x00(" + 9 * b"h\x00" + b"e"  # a list of nine times itself
WIDE = b"](" + 1_100_000 * b"K\x01" + b"e"


@pytest.mark.parametrize(
    "data, message",
    [
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "damaged, or not arrays"),
        (
            saved(named("torchvision.models.resnet ResNet") + b")\x81"),
            r"it asks for torchvision.*\.ResNet, which",
        ),
        (saved(named("torch.jit Module")), "it asks for torch.jit.Module"),
        (saved(b"\x8c\x02os\x8c\x06system\x93"), "it asks for os.system"),
        (saved(named("collections OrderedDict") + b")\x81"), "it uses NEWOBJ"),
        (saved(b"(K\x01i" + b"os\nsystem\n"), "it uses INST"),
        (saved(b"(" + named("collections OrderedDict") + b"o"), "it uses OBJ"),
        (saved(b"\x82\x01"), "it uses EXT1"),
        (
            saved(called("collections OrderedDict", plain([["a", 1]]))),
            "it calls collections.OrderedDict in an",
        ),
        (saved(named("torch FloatStorage") + b")R"), "it calls torch.FloatStorage in an unknown way"),
        (saved(plain({"epoch": 3})), "no tensors are in it"),
        (saved(ENDLESS), "too deep in one another"),
        (saved(WIDE), "too deep in one another"),
        (
            saved(dictionary(x=tensor("0", 6, (10**12, 6), (0, 1))), SIX),
            "tensor x has 6000000000000 numbers, 6",
        ),
        (
            saved(dictionary(x=tensor("0", 6, (2, 3), (3, 1), offset=1)), SIX),
            "damaged: tensor x reaches beyond",
        ),
        (saved(dictionary(x=tensor("0", 6, (2,), (2**62,))), SIX), "damaged: tensor x reaches beyond"),
        (saved(dictionary(x=tensor("0", 7, (2, 3), (3, 1))), SIX), "storage 0 has 24 bytes instead of 28"),
        (saved(dictionary(x=tensor("0", 2**60, (2, 3), (3, 1))), SIX), "storage 0 has 24 bytes instead of"),
        (
            saved(
                dictionary(**{str(n): tensor("0", 9999, (9999,), (1,)) for n in range(300)}),
                {"0": bytes(4 * 9999)},
            ),
            "too many of its tensors share their numbers",
        ),
        (saved(b"}(" + pairs({"a": dictionary(b=ONE), "a.b": ONE}) + b"u", SIX), "tensor a.b is in it twice"),
        (saved(dictionary(x=ONE), SIX, b"middle"), "byteorder is b'middle': expected little or big"),
        (
            saved(dictionary(x=ONE), SIX, compression=zipfile.ZIP_DEFLATED),
            "its entries are compressed or overlap",
        ),
        (saved(dictionary(x=ONE), SIX, root="a/b"), "a zip archive that PyTorch has not written"),
        (saved(dictionary(x=ONE), {}), "damaged, or not arrays"),
        (saved(dictionary(x=tensor("0", 6, (2, -3), (3, 1))), SIX), "damaged, or not arrays"),
        (saved(dictionary(x=tensor("0", 6, (2, 3), (3,))), SIX), "damaged, or not arrays"),
        (saved(dictionary(x=ONE) + b"h\x63"), "damaged, or not arrays"),
        (saved(ONE + b"}b", SIX), "damaged, or not arrays"),  # attributes of a tensor
        (saved(b"}(](e" + b"K\x01u"), "damaged, or not arrays"),  # a list as a name
        (saved(b""), "damaged, or not arrays"),
        (b"PK\x03\x04torn", "damaged, or not arrays"),
        (b"anything", "damaged, or not arrays"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_files_that_are_no_state_dicts_are_one_line(data, message, tmp_path):
    (tmp_path / "network.pth").write_bytes(data)
    with pytest.raises(UserError, match=f"network.pth: .*{message}") as caught:
        pretrained.read_state_dict(tmp_path / "network.pth")
    assert "\n" not in str(caught.value)


def test_any_byte_of_the_pickle_may_be_another(tmp_path):
    """Either the file is read, to arrays no larger than it, or it is one line."""
    rng = np.random.default_rng(0)
    value, outcomes = dictionary(x=ONE, y=tensor("0", 6, (3, 2), (1, 3)), z=plain([1, 2.5, "a"])), set()
    for place in range(len(value)):
        changed = bytearray(value)
        changed[place] = rng.integers(256)
        (tmp_path / "network.pth").write_bytes(saved(bytes(changed), SIX))
        try:
            found = pretrained.read_state_dict(tmp_path / "network.pth")
        except UserError as error:
            outcomes.add("refused")
            assert "\n" not in str(error)
        else:
            outcomes.add("read")
            assert all(array.size <= 6 for array in found.values())
    assert outcomes == {"read", "refused"}


# --- with PyTorch -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol, zipped", [(2, True), (4, True), (2, False)])
def test_what_torch_saves_is_read(protocol, zipped, tmp_path):
    torch = pytest.importorskip("torch")
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4)).double()
    whole = torch.arange(24, dtype=torch.bfloat16).reshape(2, 3, 4)
    checkpoint = dict(
        state_dict=network.state_dict(),
        optimizer=torch.optim.Adam(network.parameters()).state_dict(),
        epoch=3,
        turned=whole.permute(2, 0, 1),
        part=whole[1:, ::2],
        parameter=torch.nn.Parameter(torch.ones(2)),
        mask=whole > 7,
    )
    form = dict(pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    torch.save(checkpoint, tmp_path / "checkpoint.pt", **form)
    found = pretrained.read_state_dict(tmp_path / "checkpoint.pt")
    expected = {f"state_dict.{name}": value for name, value in network.state_dict().items()}
    expected |= {name: checkpoint[name] for name in ("turned", "part", "parameter", "mask")}
    assert set(found) == set(expected)
    for name, value in expected.items():
        value = value.detach().float() if value.dtype == torch.bfloat16 else value.detach()
        np.testing.assert_array_equal(found[name], value.numpy(), strict=True)
