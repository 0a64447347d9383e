"""Functions of the user's own, found by an address.

    mine.py:softer            in a file, beside the configuration file or in the current folder
    package.module:softer     wherever Python imports it from
    __main__:softer           in the notebook or script itself

A file is looked up in the folder that `beside` names first, then in the current folder, and keeps the name
it was given: what a run is does not depend on where its files lie. To find one is to execute its file. What a
function's code was is told by a SHA-256: of the file or the module's file, and of what a notebook defines by
the sources of the function and of all that it names there. Files and modules that these import in turn are
not looked at.
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import importlib
import inspect
import json
import linecache
import os
import re
import sys
import textwrap
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from mtkd_jax.system import paths
from mtkd_jax.system.spelling import hint
from mtkd_jax.system.terminal import one_line
from mtkd_jax.types import UserError

MAIN = "__main__"
_ADDRESS = re.compile(r"([^('\"]+\.py|[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):([A-Za-z_]\w*(?:\(.*\))?)", re.DOTALL)
_files: dict[tuple[Path, str], ModuleType] = {}  # by path and SHA-256: executed again where it has changed
_modules: dict[str, str] = {}  # {module: SHA-256 of its file when it was imported}
_held: dict[str, Any] = {}  # {where: the file as it was read, or the module}, while a run is at work
_holding = False
_beside = ""  # the folder that files are looked up in first; "" = the current folder alone


def split(address: str) -> tuple[str, str] | None:
    """(where, call) of an address in one of the three forms; None for every other text.

    >>> split("./mine.py:softer(weight=2.0)"), split("cnn(widths=(4,))")
    (('mine.py', 'softer(weight=2.0)'), None)
    """
    match = _ADDRESS.fullmatch(address)
    if match is None:
        return None
    where, call = match.groups()
    return (os.path.normpath(where) if where.endswith(".py") else where), call


def name_of(address: str) -> str:
    """What a function is called in its file or module; "" for what is no address.

    >>> name_of("mine.py:softer(weight=2.0)")
    'softer'
    """
    _, call = split(address) or ("", "")
    return call.partition("(")[0]


def find(where: str, name: str) -> Callable:
    """The function; the same object every time, unless its file has changed.

    Raises UserError, one line, for a place that is not there or fails while it is executed, for a name that
    is no function there, and for a module whose file has changed since it was imported.
    """
    module = _module(where)
    function = getattr(module, name, None)
    if not inspect.isfunction(function):
        known = [known for known, one in vars(module).items() if inspect.isfunction(one)]
        raise UserError(f"{where} has no function {name!r}{hint(name, known) if known else ''}")
    return function


def functions(where: str) -> dict[str, Callable]:
    """{name: function} of those a file or module defines itself and does not keep to itself (_name).

    Raises UserError, one line, as `find` does.
    """
    module = _module(where)
    return {
        name: one
        for name, one in vars(module).items()
        if inspect.isfunction(one) and one.__module__ == module.__name__ and not name.startswith("_")
    }


def digest(where: str, name: str) -> str:
    """SHA-256 in hexadecimal of the code behind a function, see above; UserError as `find` raises it."""
    if where == MAIN:
        sources: dict[str, str] = {}
        _gather(name, find(where, name), sources)
        return _sha256(json.dumps(sorted(sources.items())).encode())
    if where.endswith(".py"):
        return _sha256(_read(where)[1])
    _module(where)
    return _modules[where]


@contextlib.contextmanager
def beside(folder: str) -> Iterator[None]:
    """Within it files are looked up in `folder` first; "" is no folder."""
    global _beside
    before, _beside = _beside, folder
    try:
        yield
    finally:
        _beside = before


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Within it code is what it was when it was first asked for: a run ends with what it began with."""
    global _holding
    before, _holding = _holding, True
    try:
        yield
    finally:
        _holding = before
        if not before:
            _held.clear()


def _hold(where: str, code: Any) -> Any:
    if _holding:
        _held[where] = code
    return code


def execute(path: Path, name: str) -> ModuleType:
    """A Python file as a module `name`, read anew: two edits within a second differ."""
    return _executed(path, path.read_bytes(), name)


def line_of(error: BaseException, path: Path) -> str:
    """The file, and the line of it where the error came out of."""
    if isinstance(error, SyntaxError) and error.filename == str(path):
        return f"{path}, line {error.lineno}"
    lines = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(path)
    ]
    return f"{path}, line {lines[-1]}" if lines else str(path)


def _executed(path: Path, source: bytes, name: str) -> ModuleType:
    module = ModuleType(name)
    module.__file__ = str(path)
    sys.modules[name] = module  # dataclasses look their module up
    exec(compile(source, str(path), "exec", dont_inherit=True), vars(module))
    return module


def _module(where: str) -> ModuleType:
    if where == MAIN:
        return sys.modules[MAIN]
    return _file(where) if where.endswith(".py") else _imported(where)


def _file(where: str) -> ModuleType:
    path, source = _read(where)
    sha256 = _sha256(source)
    if (path, sha256) not in _files:
        try:
            _files[path, sha256] = _executed(path, source, f"own_{path.stem}_{sha256[:12]}")
        except UserError:
            raise
        except (Exception, SystemExit) as error:  # anything may come out of it
            raise UserError(_what_failed(error, path)) from None
    return _files[path, sha256]


def _imported(where: str) -> ModuleType:
    try:
        module = importlib.import_module(where)
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{where}.".startswith(f"{error.name}."):
            raise UserError(f"there is no module {error.name!r}") from None
        raise UserError(f"{where} cannot be imported: {type(error).__name__}: {one_line(error)}") from None
    if where in _held:
        return module
    file = getattr(module, "__file__", None)
    try:
        now = _sha256(Path(file).read_bytes()) if file else ""
    except OSError:
        now = ""
    if now != _modules.setdefault(where, now):
        raise UserError(f"{where} has changed since it was imported; start Python again, or name its file")
    _hold(where, module)
    return module


def _read(where: str) -> tuple[Path, bytes]:
    if where in _held:
        return _held[where]
    path = paths.parse(where, "the file")
    first = paths.parse(_beside, "the folder of own files") / path if _beside else path
    try:
        path = first if first.is_file() else path
        return _hold(where, (path.resolve(), path.read_bytes()))
    except OSError as error:
        looked = f" (neither in {_beside} nor here)" if _beside and not path.exists() else ""
        raise UserError(f"{where} cannot be read: {error.strerror or error}{looked}") from None


def _what_failed(error: BaseException, path: Path) -> str:
    said = error.msg if isinstance(error, SyntaxError) else error
    return f"{line_of(error, path)}: {type(error).__name__}: {one_line(said)}"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# --- what a notebook defines --------------------------------------------------------------------------


def _gather(name: str, thing: Any, sources: dict[str, str]) -> None:
    """Add the source of a function or class, and those of what it names in __main__, also plain values."""
    if name in sources:
        return
    sources[name] = source = _source(name, thing)
    everything = vars(sys.modules[MAIN])
    for used in [node.id for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Name)]:
        known = everything.get(used)
        known = known.func if isinstance(known, partial) else known
        known = inspect.unwrap(known) if callable(known) else known  # jax.jit, functools.lru_cache
        if (inspect.isfunction(known) or inspect.isclass(known)) and known.__module__ == MAIN:
            _gather(used, known, sources)
        elif used in everything and (said := _value(known)) is not None:
            sources[used] = said


def _value(value: Any) -> str | None:
    """A value as text that is the same wherever it is; None for what has none, such as an open file."""
    if value is None or isinstance(value, bool | int | float | str | bytes):
        return repr(value)
    if isinstance(value, tuple | list | dict):
        parts = [*value.items()] if isinstance(value, dict) else value
        said = [_value(part) for part in parts]
        return None if None in said else f"{type(value).__name__}({', '.join(map(str, said))})"
    if hasattr(value, "__array__") and not inspect.isclass(value):
        array = np.asarray(value)
        return f"{array.dtype}{array.shape} {_sha256(array.tobytes())}"
    return None


def _source(name: str, thing: Any) -> str:
    """The source of a function or class; a class of a notebook is found by its methods."""
    try:
        return textwrap.dedent(inspect.getsource(thing))
    except (OSError, TypeError):
        pass
    for method in vars(thing).values() if inspect.isclass(thing) else ():
        code = getattr(inspect.unwrap(method), "__code__", None) if callable(method) else None
        text = "".join(linecache.getlines(code.co_filename)) if code else ""
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and node.name == thing.__name__:
                return ast.unparse(node)
    raise UserError(f"{MAIN}:{name}: its source cannot be read; write it into a file, and name that")
