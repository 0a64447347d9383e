"""A Python function that XLA calls by the addresses of its arrays."""

import ctypes

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mtkd_jax.system import foreign


@pytest.fixture(scope="module", autouse=True)
def targets():
    foreign.register("test_scale", scale)
    foreign.register("test_refuse", refuse)
    foreign.register("test_interrupt", interrupt)


def scale(attribute, addresses):
    """The sum of two arrays of three numbers, times the attribute."""
    left, right, result = (np.ctypeslib.as_array((ctypes.c_float * 3).from_address(at)) for at in addresses)
    result[...] = (left + right) * np.frombuffer(attribute, np.int64)


def refuse(attribute, addresses):
    raise ValueError("what it raises")


def interrupt(attribute, addresses):
    raise KeyboardInterrupt


def call(name, left, right):
    result = jax.ShapeDtypeStruct((3,), jnp.float32)
    return jax.ffi.ffi_call(name, result)(left, right, times=np.array([1, 2, 3], np.int64))


def test_it_is_called_with_arguments_results_and_the_attribute():
    left, right = jnp.array([1.0, 2.0, 3.0]), jnp.array([10.0, 20.0, 30.0])
    for run in (call, jax.jit(call, static_argnums=0)):
        np.testing.assert_array_equal(run("test_scale", left, right), [11, 44, 99])


def test_what_it_raises_is_raised_where_the_result_is_asked_for():
    with pytest.raises(jax.errors.JaxRuntimeError, match="test_refuse: what it raises"):
        jax.block_until_ready(jax.jit(call, static_argnums=0)("test_refuse", jnp.ones(3), jnp.ones(3)))
    with pytest.raises(jax.errors.JaxRuntimeError, match="test_interrupt: KeyboardInterrupt"):
        jax.block_until_ready(call("test_interrupt", jnp.ones(3), jnp.ones(3)))
    np.testing.assert_array_equal(call("test_scale", jnp.ones(3), jnp.ones(3)), [2, 4, 6])


def test_an_attribute_of_other_numbers_is_refused():
    result = jax.ShapeDtypeStruct((3,), jnp.float32)
    with pytest.raises(jax.errors.JaxRuntimeError, match="must be an array of int64"):
        jax.block_until_ready(
            jax.ffi.ffi_call("test_scale", result)(jnp.ones(3), jnp.ones(3), times=np.ones(3, np.int32))
        )


def test_a_name_is_registered_once():
    foreign.register("test_scale", refuse)
    np.testing.assert_array_equal(call("test_scale", jnp.ones(3), jnp.ones(3)), [2, 4, 6])
