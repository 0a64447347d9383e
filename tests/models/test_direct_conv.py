"""oneDNN's convolutions against XLA's in float64: values, derivatives of both orders and modes, batches."""

import functools
import importlib.metadata
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mtkd_jax import mesh
from mtkd_jax.mesh import Layout
from mtkd_jax.models import direct_conv, layers
from mtkd_jax.models.cnn import cnn
from mtkd_jax.system import onednn
from mtkd_jax.types import Task
from tests.models.test_layers import SHAPES, derivatives, drawn, plain, quick_jit


@pytest.fixture(autouse=True)
def installed():
    if not direct_conv.is_available():
        pytest.skip(f"needs the package {onednn.PACKAGE}, which is for Linux on x86-64")


SMALL = (None, jnp.zeros((3, 3, 32, 8), jnp.bfloat16), (1, 1), ((1, 1), (1, 1)), 1)


def direct(x, kernel, strides=(1, 1), padding="SAME", groups=1):
    with layers.in_form("onednn"):
        return layers.conv(x, kernel, strides, padding, groups)


def in_double(function, *arrays):
    """What the function answers in float64, to the arrays of float32."""
    with jax.enable_x64(True):
        return jax.device_get(quick_jit(function)(*(jnp.asarray(array, jnp.float64) for array in arrays)))


def assert_near(got, want):
    """As near as sums of some hundred products in float32 are."""
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize("padding", ["SAME", "VALID", ((0, 2), (1, 0))])
@pytest.mark.parametrize("image,window,strides,groups", SHAPES)
def test_values_and_derivatives_of_both_modes_are_those_of_xla(image, window, strides, groups, padding):
    x, kernel = drawn(image, 0, jnp.float32), drawn(window, 1, jnp.float32)

    def reference(x, kernel):
        if isinstance(padding, str):
            return plain(x, kernel, strides, padding, groups)
        return layers.plain_conv(x, kernel, strides, padding, groups)

    program = jax.jit(derivatives(lambda x, kernel: direct(x, kernel, strides, padding, groups)))
    assert "conv_general_dilated" not in str(jax.make_jaxpr(program)(x, kernel))
    for got, want in zip(program(x, kernel), in_double(derivatives(reference), x, kernel)):
        assert got.dtype == jnp.float32
        assert_near(got, want)


@pytest.mark.parametrize("mode", [jax.jacrev, jax.jacfwd])
@pytest.mark.parametrize("by", ["image", "kernel"])
def test_second_derivatives(mode, by):
    x, kernel = drawn((2, 5, 5, 2), 0, jnp.float32), drawn((3, 3, 2, 2), 1, jnp.float32)

    def gradient_norm(kernel, x, form):
        first = jax.grad(lambda x, kernel: jnp.sum(jnp.sin(form(x, kernel))), ("image", "kernel").index(by))
        return jnp.sum(first(x, kernel) ** 2)

    got = jax.jit(mode(functools.partial(gradient_norm, form=direct)))(kernel, x)
    assert_near(got, in_double(mode(functools.partial(gradient_norm, form=plain)), kernel, x))


@pytest.mark.parametrize("in_axes", [(0, 0), (0, None), (None, 3)])
def test_batches_of_convolutions_go_one_by_one(in_axes):
    x = drawn((3, 2, 6, 5, 2) if in_axes[0] == 0 else (2, 6, 5, 2), 0, jnp.float32)
    kernel = drawn({None: (3, 3, 2, 4), 0: (3, 3, 3, 2, 4), 3: (3, 3, 2, 3, 4)}[in_axes[1]], 1, jnp.float32)
    together = jax.vmap(direct, in_axes)
    assert_near(jax.jit(together)(x, kernel), in_double(jax.vmap(plain, in_axes), x, kernel))
    program = str(jax.make_jaxpr(together)(x, kernel))
    assert program.count("direct_conv[") == 1 and "scan[" in program and "conv_general_dilated" not in program


def test_without_jit_and_inside_a_loop():
    x, kernel = drawn((2, 6, 5, 3), 0, jnp.float32), drawn((3, 3, 3, 3), 1, jnp.float32)
    want = in_double(plain, x, kernel)
    assert_near(direct(x, kernel), want)
    looped = jax.jit(lambda x, kernel: lax.scan(lambda x, _: (direct(x, kernel), None), x, length=2)[0])
    assert_near(looped(x, kernel), in_double(plain, want, kernel))


def test_bfloat16_is_summed_in_float32():
    if not direct_conv.computes(jnp.zeros((4, 9, 9, 32), jnp.bfloat16), *SMALL[1:]):
        pytest.skip("this processor has no bfloat16")
    x, kernel = jnp.abs(drawn((4, 9, 9, 32), 0, jnp.bfloat16)), jnp.abs(drawn((3, 3, 32, 8), 1, jnp.bfloat16))
    for got, want in zip(
        jax.jit(lambda x, k: jax.vjp(direct, x, k)[1](direct(x, k)))(x, kernel),
        in_double(lambda x, k: jax.vjp(plain, x, k)[1](plain(x, k)), x, kernel),
    ):
        assert got.dtype == jnp.bfloat16  # two roundings to 8 bits, of the value and of the gradient
        np.testing.assert_allclose(np.asarray(got, np.float64), want, rtol=2**-6)


@pytest.mark.parametrize("case", ["float64", "negative padding", "no rows", "refused"])
def test_what_the_library_does_not_compute_keeps_the_platform_s_form(case, monkeypatch):
    x, kernel, padding = drawn((2, 5, 5, 2), 0, jnp.float32), drawn((3, 3, 2, 2), 1, jnp.float32), "SAME"
    if case == "negative padding":
        padding = ((-1, 1), (0, 1))
    if case == "no rows":
        x, padding = x[:, :1], "VALID"
    if case == "refused":
        monkeypatch.setattr(onednn, "computes", lambda problem: False)
    with jax.enable_x64(case == "float64"):
        if case == "float64":
            x, kernel = x.astype(jnp.float64), kernel.astype(jnp.float64)
        program = str(jax.make_jaxpr(lambda *pair: direct(*pair, padding=padding))(x, kernel))
        assert "direct_conv" not in program and "conv_general_dilated" in program
        np.testing.assert_array_equal(
            direct(x, kernel, padding=padding), layers.conv(x, kernel, padding=padding)
        )


def test_two_dtypes_are_refused():
    x, kernel = drawn((2, 5, 5, 2), 0, jnp.float32), drawn((3, 3, 2, 2), 1, jnp.bfloat16)
    with pytest.raises(TypeError, match="of two dtypes, float32 and bfloat16"):
        direct_conv.direct_conv(x, kernel, (1, 1), ((1, 1), (1, 1)))


def test_a_device_that_shares_the_cores_uses_its_part_of_them(monkeypatch):
    monkeypatch.setattr(mesh.os, "sched_getaffinity", lambda _: set(range(8)))
    x, kernel = drawn((4, 2, 5, 5, 2), 0, jnp.float32), drawn((4, 3, 3, 2, 2), 1, jnp.float32)

    def members(x, kernel):
        return (lax.map(lambda pair: direct(*pair), (x, kernel)),)

    threads = {}
    for width in (1, 2, 4):
        spread = mesh.spread(members, Layout("map", width), (0, 0), (0,))
        program = str(jax.make_jaxpr(spread)(x, kernel))
        threads[width] = [n for n in (1, 2, 4, 8) if f"threads={n}" in program]
    assert threads == {1: [8], 2: [4], 4: [2]}


def test_the_number_of_threads_changes_nothing_but_rounding():
    x, kernel = drawn((16, 9, 9, 3), 0, jnp.float32), drawn((3, 3, 3, 8), 1, jnp.float32)
    pads = ((1, 1), (1, 1))
    alone, together = (
        jax.jit(derivatives(lambda x, k, n=n: direct_conv.direct_conv(x, k, (1, 1), pads, 1, n)))(x, kernel)
        for n in (1, 3)
    )
    for got, want in zip(together, alone):
        assert_near(got, want)


def test_one_program_may_run_in_many_threads_at_once():
    x, kernel = drawn((8, 9, 9, 3), 0, jnp.float32), drawn((3, 3, 3, 8), 1, jnp.float32)
    program = jax.jit(lambda x, kernel: direct(x, kernel))
    want = np.asarray(program(x, kernel))
    found = []

    def ask():
        for _ in range(20):
            found.append(np.array_equal(program(x, kernel), want))

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [True] * 80


@pytest.mark.parametrize("kind", onednn.KINDS)
@pytest.mark.parametrize("window,groups", [((1, 39), 1), ((3, 3), 1), ((3, 3), 4), ((1, 1), 1)])
def test_what_one_thread_prepared_another_may_run(kind, window, groups):
    """The library multiplies matrices for some of these, in memory that belonged to the thread."""
    shape, kernel_shape = (16, 9, 41, 8), (*window, 8 // groups, 8)
    pads = tuple((side // 2, side // 2) for side in window)
    geometry = direct_conv.Geometry(shape[1:3], window, (1, 1), pads, groups, 1)
    problem = direct_conv._problem(shape, kernel_shape, jnp.float32, "forward", geometry)
    problem = problem._replace(kind=onednn.KINDS.index(kind))
    shapes = {"image": shape, "kernel": kernel_shape, "output": (16, *problem.output_size, 8)}
    arrays = [np.ones(shapes[name], np.float32) for name in onednn._OPERANDS[kind]]
    (convolution,) = in_a_thread(lambda: [onednn.Convolution(problem)])
    in_a_thread(lambda: convolution.run([array.ctypes.data for array in arrays]))
    there = arrays[-1].copy()
    convolution.run([array.ctypes.data for array in arrays])
    np.testing.assert_array_equal(there, arrays[-1])
    if kind == "forward":  # in the middle every pixel of the window is one
        np.testing.assert_allclose(there[0, 4, 20], window[0] * window[1] * 8 // groups)


def in_a_thread(function):
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_a_network_learns_the_same_in_this_form():
    task = Task(num_classes=3, num_heads=1, mean=(0.5,), std=(0.2,))
    network = cnn(task, widths=(4, 6), dense=5, batch_norm=True)
    image = jnp.abs(drawn((6, 8, 8, 1), 0, jnp.float32))
    variables = quick_jit(network.init)(jax.random.key(0), image)

    def loss(params, form):
        with layers.in_form(form):
            variables_now = {**variables, "params": params}
            outputs, _ = network.apply(variables_now, image, train=True, key=jax.random.key(1))
        return jnp.sum(jnp.sin(outputs.logits))

    got, want = (
        jax.jit(jax.value_and_grad(functools.partial(loss, form=form)))(variables["params"])
        for form in ("onednn", "")
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), got, want)


def test_a_jaxlib_that_does_not_take_the_call_is_told(monkeypatch, capsys):
    def refuse(name, function):
        raise RuntimeError("FFI handler's API version\nis another one")

    monkeypatch.setattr(direct_conv.foreign, "register", refuse)
    assert not direct_conv.is_available.__wrapped__()
    assert "oneDNN is installed and cannot be called: FFI handler's" in capsys.readouterr().err


def test_a_problem_that_the_library_refuses_is_told():
    wrong = onednn.Problem(0, onednn.DTYPES["float32"], 1, 1, 4, 4, 3, 4, 1, 3, 3, 1, 1, -3, 0, -3, 0)
    assert not onednn.computes(wrong)
    with pytest.raises(OSError, match="oneDNN: dnnl_.* answered"):
        onednn.Convolution(wrong)


@pytest.mark.parametrize("missing", ["package", "file", "loader"])
def test_without_the_library_there_is_none(missing, monkeypatch):
    def files(_):
        if missing == "package":
            raise importlib.metadata.PackageNotFoundError(onednn.PACKAGE)
        return []

    if missing == "loader":
        monkeypatch.setattr(onednn.ctypes, "CDLL", lambda _: (_ for _ in ()).throw(OSError("libgomp.so.1")))
    else:
        monkeypatch.setattr(importlib.metadata, "files", files)
    monkeypatch.setattr(onednn, "_libraries", onednn._libraries.__wrapped__)
    assert not onednn.is_installed()
