"""A Python function as a target of XLA's foreign calls (FFI) on a CPU, without a compiler.

`jax.pure_callback` hands over arrays, which it copies; here the function gets the addresses of the arrays
that XLA computes with. Structures are those of `xla/ffi/api/c_api.h` as far as they are read; fields are only
ever added behind the others, and every structure begins with its size.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from typing import Any

import jax

_METADATA, _INTERNAL, _INT64 = 1, 13, 5  # an extension that asks for the version; a code of errors; a dtype


def register(name: str, function: Callable[[bytes, Sequence[int]], None]) -> None:
    """Let `jax.ffi.ffi_call(name, ...)` call `function(bytes of its one attribute, addresses)` on a CPU.

    The attribute is an array of int64; the addresses are of the arguments and then of the results, all row by
    row (the last axis without gaps). The function may be called in several threads at once, and may not use
    JAX. What it raises is raised where the program's results are asked for. A name is registered once;
    another function for it is not taken.
    """

    @_Handler
    def handle(pointer: Any) -> int | None:
        frame = pointer.contents
        try:
            if frame.extension and frame.extension.contents.kind == _METADATA:
                _tell_version(frame)
                return None
            arguments, results = frame.arguments, frame.results
            addresses = [arguments.items[n].contents.data for n in range(arguments.size)]
            addresses += [results.items[n].contents.data for n in range(results.size)]
            array = ctypes.cast(frame.attributes.items[0], ctypes.POINTER(_Array)).contents
            if array.dtype != _INT64:
                raise TypeError("its attribute must be an array of int64")
            function(ctypes.string_at(array.data, array.size * ctypes.sizeof(ctypes.c_int64)), addresses)
        except BaseException as error:  # ctypes would print it and answer with whatever lies there
            return _error(frame, f"{name}: {str(error) or type(error).__name__}")
        return None

    with _registering:
        if name not in _handlers:
            jax.ffi.register_ffi_target(name, jax.ffi.pycapsule(handle), platform="cpu")
            _handlers[name] = handle


_handlers: dict[str, Any] = {}  # XLA keeps their addresses until the process ends
_registering = threading.Lock()


class _Extension(ctypes.Structure):
    _fields_ = [("own_size", ctypes.c_size_t), ("kind", ctypes.c_int), ("next", ctypes.c_void_p)]


def _fields(*own: tuple[str, Any]) -> list[tuple[str, Any]]:
    return [("own_size", ctypes.c_size_t), ("extension", ctypes.POINTER(_Extension)), *own]


class _Version(ctypes.Structure):
    _fields_ = _fields(("major", ctypes.c_int), ("minor", ctypes.c_int))


class _Metadata(ctypes.Structure):
    _fields_ = [("own_size", ctypes.c_size_t), ("version", _Version)]


class _MetadataExtension(ctypes.Structure):
    _fields_ = [("extension", _Extension), ("metadata", ctypes.POINTER(_Metadata))]


class _NewError(ctypes.Structure):
    _fields_ = _fields(("message", ctypes.c_char_p), ("code", ctypes.c_int))


class _Api(ctypes.Structure):
    _fields_ = _fields(
        ("version", _Version),
        ("internal", ctypes.c_void_p),
        ("create_error", ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_NewError))),
    )


class _Buffer(ctypes.Structure):
    _fields_ = _fields(("dtype", ctypes.c_int), ("data", ctypes.c_void_p))


class _Buffers(ctypes.Structure):
    _fields_ = _fields(
        ("size", ctypes.c_int64),
        ("kinds", ctypes.c_void_p),
        ("items", ctypes.POINTER(ctypes.POINTER(_Buffer))),
    )


class _Array(ctypes.Structure):
    _fields_ = [("dtype", ctypes.c_int), ("size", ctypes.c_size_t), ("data", ctypes.c_void_p)]


class _Attributes(ctypes.Structure):
    _fields_ = _fields(
        ("size", ctypes.c_int64),
        ("kinds", ctypes.c_void_p),
        ("names", ctypes.c_void_p),
        ("items", ctypes.POINTER(ctypes.c_void_p)),
    )


class _Frame(ctypes.Structure):
    _fields_ = _fields(
        ("api", ctypes.POINTER(_Api)),
        ("context", ctypes.c_void_p),
        ("stage", ctypes.c_int),
        ("arguments", _Buffers),
        ("results", _Buffers),
        ("attributes", _Attributes),
    )


_Handler = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_Frame))


def _tell_version(frame: _Frame) -> None:
    """Answer with XLA's own version: what is read here is the same in all that begin with 0."""
    asked = ctypes.cast(frame.extension, ctypes.POINTER(_MetadataExtension)).contents.metadata.contents
    asked.version.major, asked.version.minor = 0, frame.api.contents.version.minor


def _error(frame: _Frame, message: str) -> int:
    made = _NewError(own_size=ctypes.sizeof(_NewError), message=message.encode(), code=_INTERNAL)
    return frame.api.contents.create_error(ctypes.byref(made))
