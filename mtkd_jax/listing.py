"""What can be named by an address: everything there is, and all that is known of one."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from mtkd_jax.addresses import KINDS, arguments_of, catalogue, parse, quote, return_annotation
from mtkd_jax.system import own_code
from mtkd_jax.system.spelling import hint
from mtkd_jax.types import UserError


def listing(name: str = "", own: Sequence[str] = ()) -> str:
    """Every mode, rule, model, ... as it is written, with the first line of its docstring; modes by family.

    After ours those of files or modules of the user's `own`, such as "mine.py". With a `name`, which may be
    an address of such a file, all that is known of what goes by it; UserError where nothing does.
    """
    if name:
        return _told(name, own)
    lines = []
    for kind in KINDS:
        for family, found in _families(catalogue(kind)).items():
            lines += _listed(f"{kind}s, {family}:" if family else f"{kind}s:", found)
    for where in map(_place_of_own, own):
        of_own = {kind: _own_catalogue(kind, where) for kind in KINDS}
        if not any(of_own.values()):
            raise UserError(
                f"--with {where}: none of its functions says that it returns what can be named: "
                + ", ".join(dict.fromkeys(one for kind in KINDS.values() for one in kind.returns))
            )
        for kind in KINDS:
            lines += _listed(f"{kind}s of {where}:", of_own[kind])
    return "\n".join(lines)


def _families(found: dict[str, Callable]) -> dict[str, dict[str, Callable]]:
    """What is in a catalogue, by the file before the point where an address has one."""
    families: dict[str, dict[str, Callable]] = {}
    for address in sorted(found, key=lambda address: ("." in address, address)):
        families.setdefault(address.rpartition(".")[0], {})[address] = found[address]
    return families


def _listed(heading: str, found: dict[str, Callable]) -> list[str]:
    lines = [heading] if found else []
    for address, function in sorted(found.items()):
        lines += [
            f"  {address}{_signature(function)}",
            f"      {documentation(function).splitlines()[0]}",
        ]
    return lines


def _place_of_own(where: str) -> str:
    """A file or module as `own_code.split` writes it."""
    place = own_code.split(f"{where}:any")
    if place is None:
        raise UserError(f"--with {where}: is no file of Python and no module; name mine.py or package.module")
    return place[0]


def _own_catalogue(kind: str, where: str) -> dict[str, Callable]:
    """{address: function} of a kind, in a file or module of the user's own, which is executed."""
    returns = KINDS[kind].returns
    return {
        f"{where}:{name}": function
        for name, function in own_code.functions(where).items()
        if return_annotation(function) in returns
    }


def documentation(function: Callable) -> str:
    """The docstring, out of the source where Python was told to leave docstrings out (-OO)."""
    if text := inspect.getdoc(function):
        return text
    node = ast.parse(textwrap.dedent(inspect.getsource(function))).body[0]
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        text = ast.get_docstring(node)
    return text or "Not documented."


def _told(name: str, own: Sequence[str]) -> str:
    where, call = own_code.split(name) or ("", "")
    if where and not any(where in catalogue(kind) for kind in KINDS):  # fused:median_probs is no file
        name, own = f"{where}:{parse(call, 'list')[0]}", (where,)
    there_is = [(kind, address, one) for kind in KINDS for address, one in catalogue(kind).items()]
    for place in map(_place_of_own, own):
        there_is += [(kind, *found) for kind in KINDS for found in _own_catalogue(kind, place).items()]
    asked = [one for one in there_is if name in (one[1], own_code.name_of(one[1]))]
    if not asked:
        known = [address for _, address, _ in there_is]
        raise UserError(f"--list: there is nothing named {quote(name)}{hint(name, known)}")
    return "\n\n".join(
        f"{kind} {address}{_signature(function)}\n\n{textwrap.indent(documentation(function), '    ')}"
        for kind, address, function in asked
    )


def _signature(function: Callable) -> str:
    """What an address can say in brackets, with the defaults; "" where there is nothing to say."""
    known = arguments_of(function).items()
    said = (f"{name}={'...' if p.default is p.empty else _short(p.default)}" for name, p in known)
    return f"({', '.join(said)})" if known else ""


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) and len(repr(value)) > 8 else repr(value)
