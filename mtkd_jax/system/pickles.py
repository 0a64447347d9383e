"""Pickles of other people, read without doing any of what they say.

A pickle is a program for a stack machine that can call any function of Python. The machine here has no way to
call one: it builds dictionaries, lists, tuples, numbers and texts, and asks its `Reader` what stands for all
that the pickle names, calls or refers to. Other operations are refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from typing import Any, BinaryIO, NamedTuple

from mtkd_jax.types import UserError

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
LITERALS |= {"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BINBYTES", "SHORT_BINBYTES"}
LITERALS |= {"BINSTRING", "SHORT_BINSTRING"}  # bytes of Python 2, as text in Latin-1


class Reader(NamedTuple):
    """What stands for what a kind of pickle asks for; each function raises for what that kind never does."""

    named: Callable[[str], Any]  # for a function or class, "module.name", which nobody looks up
    called: Callable[[Any, Any], Any]  # for what such a thing makes of its arguments
    given: Callable[[Any, Any], Any]  # for a thing that is given a state, mostly attributes
    others: str  # of any other operation, behind "which ": that this kind does not need it
    stored: Callable[[Any], Any] | None = None  # for a reference to what lies outside; None: has none


def read(program: BinaryIO, reader: Reader) -> Any:
    """What a pickle makes, read to its end.

    Raises UserError for an operation that is not known, ValueError for the keys of a dict that are neither
    text nor whole numbers (to hash a tuple in a tuple in a tuple ... can end the process), and what Python
    raises for damage: IndexError, KeyError, TypeError, ValueError.
    """
    stack: list[Any] = []
    marks: list[int] = []
    memo: dict[Any, Any] = {}

    def since_mark() -> list[Any]:
        start = marks.pop()
        values = stack[start:]
        del stack[start:]
        return values

    for operation, argument, _ in pickletools.genops(program):
        match operation.name:
            case "PROTO" | "FRAME":
                pass
            case "STOP":
                return stack.pop()
            case "MARK":
                marks.append(len(stack))
            case name if name in CONSTANTS:
                stack.append(CONSTANTS[name])
            case name if name in LITERALS:
                stack.append(argument)
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "TUPLE":
                stack.append(tuple(since_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3" as name:
                count = int(name[-1])
                stack[-count:] = [(*stack[-count:],)]
            case "BINPUT" | "LONG_BINPUT":
                memo[argument] = stack[-1]
            case "MEMOIZE":
                memo[len(memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(memo[argument])
            case "GLOBAL":
                stack.append(reader.named(expect(argument, str).replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                name = expect(stack.pop(), str)
                stack.append(reader.named(f"{expect(stack.pop(), str)}.{name}"))
            case "BINPERSID" if reader.stored is not None:
                stack.append(reader.stored(stack.pop()))
            case "REDUCE":
                arguments = stack.pop()
                stack.append(reader.called(stack.pop(), arguments))
            case "BUILD":
                state = stack.pop()
                stack.append(reader.given(stack.pop(), state))
            case "SETITEM":
                value = stack.pop()
                _set(stack, [stack.pop(), value])
            case "SETITEMS":
                _set(stack, since_mark())
            case "APPEND":
                value = stack.pop()
                expect(stack[-1], list).append(value)
            case "APPENDS":
                values = since_mark()
                expect(stack[-1], list).extend(values)
            case name:
                raise UserError(f"it uses {name}, which {reader.others}")
    raise ValueError("no end")


def expect(value: Any, kind: Any) -> Any:
    """The value, of this class or one of these; TypeError otherwise."""
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind}")
    return value


def _set(stack: list[Any], pairs: list[Any]) -> None:
    keys, values = pairs[::2], pairs[1::2]
    if not all(isinstance(key, str | int) for key in keys):
        raise ValueError("a dict has keys that are not text")
    expect(stack[-1], dict).update(zip(keys, values, strict=True))
