"""Addresses: how functions are named, in the configuration and anywhere else.

An ADDRESS names a function where it is defined, with arguments if need be: "cnn", "mlp(hidden=(32,))",
"logits.dkd(warmup=0.1)"; "fused:median_probs" gives the first argument a word. There is no registry: a
function is found by what it says it returns, so writing it is all it takes to add it. "mine.py:softer(w=2)",
"package.module:softer" and "__main__:softer" name functions of the user's own, whose files are executed.
"""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib
import inspect
import pkgutil
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import lru_cache, partial
from types import ModuleType
from typing import Any, NamedTuple

from mtkd_jax.data import checks, fetch
from mtkd_jax.fusion import rules
from mtkd_jax.optimizers import Optimizer, Schedule
from mtkd_jax.system import own_code
from mtkd_jax.system.spelling import hint, nearest
from mtkd_jax.types import Classifier, DataSet, Metric, Model, Recipe, Task, Tracker, UserError


class Kind(NamedTuple):
    """What can be named by an address: where its functions are, and what they say they return."""

    place: str  # module or package that defines them
    returns: tuple[str, ...]  # annotations
    made: Any = None  # the type of what they make, where that is checked
    num_positional: int = 0  # arguments that they are given beside those of the address


KINDS = {
    "mode": Kind("methods", ("Recipe",), Recipe),
    "rule": Kind("fusion.rules", ("Scores", "Places", "FittedRule"), num_positional=1),
    "model": Kind("models", ("Model",), Model, num_positional=1),
    "source": Kind("data.sources", ("DataSet",), DataSet),
    "plan": Kind("plans.schemes", ("Plan",), num_positional=2),
    "optimizer": Kind("optimizers", ("Optimizer",), Optimizer),
    "schedule": Kind("optimizers", ("Schedule",), Schedule),
    "tracker": Kind("runs.trackers", ("Tracker",), Tracker, num_positional=1),
    "corruption": Kind("data.corruptions", ("Corruption",), Callable),
    "augmentation": Kind("data.augment", ("Augment",), Callable),  # of the user's own alone; ours are fields
    "metric": Kind("results.metrics", ("Metric",), Metric),  # likewise
    "classifier": Kind("models.classifiers", ("Classifier",), Classifier),
}
INNER = "Model"  # annotation of an argument that is a network itself, given by its address


@lru_cache
def catalogue(kind: str) -> dict[str, Callable]:
    """{address: function} of every mode, rule, model, source or plan there is.

    Functions of methods/modes.py go by their bare name, other methods by "file.name".
    """
    place, returns, *_ = KINDS[kind]
    found: dict[str, Callable] = {}
    for module in _modules(importlib.import_module(f"mtkd_jax.{place}")):
        family = module.__name__.rsplit(".", 1)[-1]
        for name, function in inspect.getmembers(module, inspect.isfunction):
            own = function.__module__ == module.__name__ and not name.startswith("_")
            own &= all(p.kind is not p.VAR_KEYWORD for p in inspect.signature(function).parameters.values())
            if own and function.__annotations__.get("return") in returns:
                found[f"{family}.{name}" if kind == "mode" and family != "modes" else name] = function
    return found


def resolve(kind: str, address: str, field: str) -> tuple[Callable, dict[str, Any]]:
    """The function an address names and its arguments, checked against the function's signature.

    An address of the user's own (see system/own_code.py) has its file executed.
    """
    name, arguments = _named(address, field, kind)
    where = _own(kind, address)
    if not where and name not in catalogue(kind):
        known = hint(name, catalogue(kind)) if catalogue(kind) else "; write one of your own, mine.py:name"
        if name.endswith(".py"):
            known = f"; name a function of that file, {name}:FUNCTION"
        raise UserError(f"config.{field}: there is no {kind} {quote(name)}{known}")
    function = _found(kind, where, name, field) if where else catalogue(kind)[name]
    for argument, value in arguments.items():
        check_argument(function, kind, name, argument, value, field)
    if where:
        _check_call(kind, function, arguments, name, field)
    if where and kind == "rule":
        rules.offer(canonical(kind, address, field), function, return_annotation(function))
    return function, arguments


def _own(kind: str, address: str) -> str:
    """The file or module of an address of the user's own; "" for every other text."""
    where, _ = own_code.split(address) or ("", "")
    return "" if where in catalogue(kind) else where


def _found(kind: str, where: str, name: str, field: str) -> Callable:
    """The user's function `name`, WHERE:FUNCTION, which says that it returns what this kind does."""
    try:
        function = own_code.find(where, name.removeprefix(f"{where}:"))
    except UserError as error:
        known = ""
        if where.isidentifier():  # perhaps a short form, mistyped
            known = f", and there is no {kind} {where!r}{hint(where, catalogue(kind))}"
        raise UserError(f"config.{field}: {name}: {error}{known}") from None
    returns = KINDS[kind].returns
    if return_annotation(function) not in returns:
        raise UserError(
            f"config.{field}: {name} must say that it returns what a {kind} does: write "
            + " or ".join(f"-> '{one}'" for one in returns)
        )
    return function


def return_annotation(function: Callable) -> str:
    """The last word of what a function says it returns, which may be the class itself or text."""
    said = function.__annotations__.get("return")
    return said.rpartition(".")[2] if isinstance(said, str) else getattr(said, "__name__", "")


def _check_call(kind: str, function: Callable, arguments: dict[str, Any], name: str, field: str) -> None:
    """Raise UserError unless a function of the user's own can be called as its kind is."""
    signature = inspect.signature(function)
    number = 2 if return_annotation(function) == "FittedRule" else KINDS[kind].num_positional
    bind = signature.bind_partial if kind == "source" else signature.bind
    try:
        bind(*[None] * number, **arguments)
    except TypeError as error:
        raise UserError(f"config.{field}: {name} called as a {kind} is: {error}") from None


def code_behind(kinds: Sequence[str], address: str, field: str = "") -> dict[str, str]:
    """{file, module or notebook's function: its SHA-256} of an address of the user's own; {} for others."""
    where, call = own_code.split(address) or ("", "")
    if not where or any(where in catalogue(kind) for kind in kinds):
        return _code_of_inner(kinds, address, field)
    name, _ = parse(call, field)
    return {f"{where}:{name}" if where == own_code.MAIN else where: own_code.digest(where, name)}


def _code_of_inner(kinds: Sequence[str], address: str, field: str) -> dict[str, str]:
    """`code_behind` the networks that a network's address names, such as that of a detector."""
    if "model" not in kinds or not address:
        return {}
    with contextlib.suppress(UserError):
        function, arguments = resolve("model", address, field)
        inner = [arguments[name] for name in _inner_models(function, arguments)]
        return {place: sha for one in inner for place, sha in code_behind(("model",), one, field).items()}
    return {}


def words_in(values: Iterable[Any]) -> Iterable[str]:
    """Every text among values and in tuples of them."""
    for value in values:
        yield from (one for one in (value if isinstance(value, tuple) else (value,)) if isinstance(one, str))


def annotation_of(parameter: inspect.Parameter) -> str:
    """As text: of the user's own functions it may be a class."""
    said = parameter.annotation
    return said.__name__ if inspect.isclass(said) and not hasattr(said, "__args__") else str(said)


def arguments_of(function: Callable) -> dict[str, inspect.Parameter]:
    """What an address can say in brackets: the keyword-only parameters."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def check_argument(function: Callable, kind: str, name: str, argument: str, value: Any, field: str) -> None:
    """Raise UserError for an argument that a function does not have, or a value not of its type."""
    known = arguments_of(function)
    if argument not in known:
        raise UserError(
            f"config.{field}: {kind} {name} has no argument {argument!r}{hint(str(argument), known)}"
        )
    annotation = annotation_of(known[argument])
    if not _fits(value, annotation):
        raise UserError(f"config.{field}: {name}({argument}={quote(value)}) must be of type {annotation}")
    if annotation == INNER:
        resolve("model", value, field)


def canonical(kind: str, address: str, field: str) -> str:
    """An address in one spelling: arguments by name, without those at their defaults.

    Examples:
        >>> canonical("model", "mlp( hidden=(8, ), dropout=0.0 )", "model.name")
        'mlp(hidden=(8,))'
        >>> canonical("mode", "fused(rule='median_probs')", "students.modes")
        'fused:median_probs'
        >>> canonical("plan", "born_again(mode='logits.dkd( warmup=2 )')", "plan")
        "born_again(mode='logits.dkd(warmup=2.0)')"
    """
    name, arguments = _named(address, field, kind)
    if _own(kind, address):  # as it is written: nothing is executed to spell it
        said = ", ".join(f"{n}={arguments[n]!r}" for n in sorted(arguments))
        return f"{name}({said})" if said else name
    function, arguments = resolve(kind, address, field)
    arguments = {n: canonical_value(kind, function, n, value) for n, value in arguments.items()}
    parameters = inspect.signature(function).parameters
    given = {n: arguments[n] for n in parameters if n in arguments and arguments[n] != parameters[n].default}
    if given and list(given) == list(arguments_of(function))[:1] and _is_word(*given.values()):
        return f"{name}:{next(iter(given.values()))}"
    return f"{name}({', '.join(f'{n}={value!r}' for n, value in given.items())})" if given else name


def canonical_value(kind: str, function: Callable, argument: str, value: Any) -> Any:
    """The value of an argument in one spelling.

    A whole number for a float is one; the words of plans are addresses, of modes and models.
    """
    if kind == "plan":
        return map_each(value, partial(canonical_or_same, ("mode", "model")))
    known = arguments_of(function)
    if argument in known and annotation_of(known[argument]) == INNER:
        return canonical_or_same(("model",), value)
    is_float = argument in known and annotation_of(known[argument]) in ("float", "tuple[float, ...]")
    return map_each(value, lambda one: float(one) if type(one) is int else one) if is_float else value


def map_each(value: Any, function: Callable) -> Any:
    """The function of a value, or of each entry where it is a tuple or list."""
    return type(value)(map(function, value)) if isinstance(value, tuple | list) else function(value)


def canonical_or_same(kinds: Sequence[str], address: Any) -> Any:
    """An address in its one spelling, of the first of the kinds that knows it; what is none as it is."""
    for kind in kinds if isinstance(address, str) and address else ():
        with contextlib.suppress(UserError):
            return canonical(kind, address, "")
    return address


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch(r"[\w.]+", value) is not None


def _named(address: str, field: str, kind: str) -> tuple[str, dict[str, Any]]:
    """Name and arguments of an address; the argument of the short form goes by the name of the first."""
    if where := _own(kind, address):
        _, call = own_code.split(address) or ("", "")
        name, arguments = parse(call, field)
        return f"{where}:{name}", arguments
    short = re.fullmatch(r"([\w.]+):([\w.]+)", address)
    if short is None:
        return parse(address, field)
    if short[1] not in catalogue(kind):
        return short[1], {}  # to be told with what it could mean
    known = arguments_of(catalogue(kind)[short[1]])
    if not known:
        raise UserError(
            f"config.{field}: {kind} {short[1]} takes no argument, {address!r} gives it {short[2]!r}"
        )
    return short[1], {next(iter(known)): short[2]}


def build(kind: str, address: str, field: str, *given: Any, **further: Any) -> Any:
    """What the function of an address makes, called with `given` and with further arguments.

    A function of the user's own is called once for the same arguments, and its code: what it makes may hold
    functions that it defines at every call, and programs are found again by what they were made from.
    """
    function, arguments = resolve(kind, address, field)
    _check_complete(arguments_of(function), arguments | further, address, field)
    for name in _inner_models(function, arguments):
        (task,) = given  # that of the network around it
        arguments = {**arguments, name: build_model(arguments[name], task, field)}
    key = None
    if (where := _own(kind, address)) and kind not in ("tracker", "classifier"):  # every run has its own
        name = own_code.name_of(address)
        key = (function, own_code.digest(where, name), given, repr(sorted((arguments | further).items())))
    if key in _made_by_own:
        return _made_by_own[key]
    try:
        made = function(*given, **arguments, **further)
    except UserError as error:
        raise UserError(f"config.{field}: {error}") from None
    _check_made(kind, made, address, field)
    if key is not None:
        _made_by_own[key] = made
    return made


_made_by_own: dict[tuple, Any] = {}  # by function, code and arguments


def _check_complete(
    known: Mapping[str, inspect.Parameter], arguments: Mapping[str, Any], address: str, field: str
) -> None:
    """Raise UserError for an argument that has no default and is not given."""
    for name, parameter in known.items():
        if parameter.default is parameter.empty and name not in arguments:
            raise UserError(f"config.{field}: {address} needs {name}=...")


def _inner_models(function: Callable, arguments: Mapping[str, Any]) -> list[str]:
    """The arguments that are networks themselves, given by their addresses."""
    return [
        n
        for n, parameter in arguments_of(function).items()
        if n in arguments and annotation_of(parameter) == INNER
    ]


def _check_made(kind: str, made: Any, address: str, field: str) -> None:
    right = KINDS[kind].made
    if not isinstance(made, right):
        raise UserError(
            f"config.{field}: {address} returned {type(made).__name__}; it must be a {right.__name__}"
        )


def source_of(
    address: str, function: Callable, arguments: dict[str, Any], field: str
) -> Callable[[], DataSet]:
    """The source of an address, resolved and with a path where it reads one; not called yet."""
    _check_complete(inspect.signature(function).parameters, arguments, address, field)
    is_own = _own("source", address)

    def checked() -> DataSet:
        try:
            found = function(**arguments)
        except UserError as error:
            raise UserError(f"{error}{fetch.remedy(arguments.get('path', ''))}") from error
        if is_own:
            _check_made("source", found, address, field)
        return checks.check(found, where=address) if is_own else found

    return checked


def build_model(address: str, task: Task, field: str = "model.name") -> Model:
    """The network an address names, for a task."""
    model = build("model", address, field, task)
    if model.trainable and model.trainable not in model.stages:
        known = model.stages or ("none: this network names no stages",)
        close = nearest(model.trainable, model.stages)
        suggested = f", did you mean {close!r}?" if close else ""
        raise UserError(
            f"config.{field}: {address}: there is no stage {quote(model.trainable)}"
            f"{suggested}; stages are {', '.join(known)}"
        )
    if not _own("model", address):
        return model
    return dataclasses.replace(model, name=canonical("model", address, field))  # by which it is found again


def build_recipe(address: str, field: str = "students.modes", **further: Any) -> Recipe:
    """The method an address names, with further arguments; its name is the address."""
    return build("mode", address, field, **further)._replace(name=address)


def _modules(module: ModuleType) -> list[ModuleType]:
    """A module and, of a package, the public modules in it."""
    names = sorted(info.name for info in pkgutil.iter_modules(getattr(module, "__path__", [])))
    inner = [name for name in names if not name.startswith("_")]
    return [module, *(importlib.import_module(f"{module.__name__}.{name}") for name in inner)]


def parse(address: str, field: str) -> tuple[str, dict[str, Any]]:
    """(name, arguments) of an address without a file; literals alone, nothing is run."""
    right = "write a name, or a call with literal keyword arguments such as mlp(hidden=(32, 32))"
    try:
        node = ast.parse(address, mode="eval").body
        if isinstance(node, ast.Call) and not node.args:
            named = [(keyword.arg, keyword.value) for keyword in node.keywords if keyword.arg]
            if len(named) == len(node.keywords):  # and none of them is **arguments
                # literal_eval reads numbers, strings, tuples and the like; it runs nothing.
                return ast.unparse(node.func), {name: ast.literal_eval(value) for name, value in named}
        if isinstance(node, ast.Name | ast.Attribute):
            return ast.unparse(node), {}
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):  # as ast documents them
        pass
    raise UserError(f"config.{field}: {quote(address)} is not an address; {right}")


TYPES = {
    "bool": lambda value: isinstance(value, bool),
    "int": lambda value: isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31,
    "float": lambda value: (
        isinstance(value, int | float) and not isinstance(value, bool) and _in_float32(value)
    ),
    "str": lambda value: isinstance(value, str),
    "dict": lambda value: isinstance(value, dict),
    INNER: lambda value: isinstance(value, str),
}
SIZES = {"int": ", below 2**31", "float": ", of a size that float32 holds"}


def _in_float32(value: float) -> bool:
    """Whether the number is one where it is used: neither NaN nor infinite there, nor 0 for being tiny."""
    return value == 0 or 2.0**-126 <= abs(value) < 2.0**128


def quote(value: Any) -> str:
    """A value as Python would write it, on one line of bearable length."""
    try:
        text = repr(value).replace("\n", " ")
    except ValueError:  # Python writes no number of more than some thousand digits
        return "a number of thousands of digits"
    return text if len(text) <= 80 else f"{text[:60]} ... ({len(text)} characters)"


def _fits(value: Any, annotation: str) -> bool:
    """Whether a literal fits an annotation; what is not in the table is left to the function."""
    if annotation.startswith("tuple[") and annotation.endswith(", ...]"):
        entry = TYPES.get(annotation[len("tuple[") : -len(", ...]")])
        return isinstance(value, tuple) and (entry is None or all(map(entry, value)))
    return annotation not in TYPES or TYPES[annotation](value)
