"""The configuration as it is typed: a file or the name of one, single fields, and what there is to set.

    --config=digits:smoke --config.train.epochs=3 --config.students.modes=vote,fused:borda

Configuration files are the user's own Python and are executed; values of fields are literals and are not,
but may name functions of the user's own files (system/own_code.py).
"""

from __future__ import annotations

import ast
import inspect
import io
import os
import re
import textwrap
import tokenize
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from mtkd_jax import config as configuration
from mtkd_jax import validation
from mtkd_jax.system import own_code, paths
from mtkd_jax.system.spelling import hint
from mtkd_jax.system.terminal import one_line
from mtkd_jax.types import UserError

SHIPPED = Path(__file__).parent / "configs"
EXAMPLES = {  # of fields whose default does not show how they are written
    "students.arguments": "\"{'logits.dkd': {'nontarget_weight': (2.0, 8.0)}}\"",
    "data.augment.rand_augment": "2,7",
    "data.augment.own": "'mine.py:blur(share=0.5)'",
    "data.other": "'single_image(path=\"a.jpg\", image_size=8)'",
    "report.metrics": "'mine.py:cost(miss=10.0)'",
    "report.corruptions": "all",
    "report.ood": "'idx(path=\"data/letters\")'",
    "teachers.models": "mlp,cnn",
    "students.models": "'mlp(hidden=(16,)),mlp(hidden=(64,))'",
    "export.forms": "onnx,int8",
    "teachers.init_from": "a.safetensors,b.safetensors",
    "teachers.logits": "a.npz,b.npz",
    "teachers.programs": "a.onnx,b.stablehlo",
    "teachers.classifiers": "scikit_learn:GaussianNB,mine.py:forest",
    "teachers.learning_rates": "0.001,0.003",
    "teachers.weight_decays": "0.0001",
    "teachers.label_smoothings": "0.1",
}
YES, NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0")


# --- the file -----------------------------------------------------------------------------------------


def load(asked: str) -> ConfigDict:
    """The configuration of "FILE.py", "FILE.py:VARIANT", or of a shipped file's name instead of its path.

    Files of own functions that it names are looked up beside it first. Raises UserError, one line that names
    the file and where it can the line, for whatever is wrong with it.
    """
    path, variant = _found(asked)
    try:
        module = _module(path)
        if not callable(getattr(module, "get_config", None)):
            raise UserError("has no function get_config(), which returns the configuration")
        config = module.get_config(variant) if variant else module.get_config()
    except SyntaxError as error:
        raise UserError(f"{own_code.line_of(error, path)}: {one_line(error.msg)}") from None
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except (Exception, SystemExit) as error:  # anything may come out of it
        place = own_code.line_of(error, path)
        raise UserError(f"{place}: {type(error).__name__}: {one_line(error)}") from None
    if not isinstance(config, ConfigDict):
        raise UserError(f"{path}: get_config() returned {type(config).__name__}, not a ConfigDict")
    typed = Path(asked.partition(":")[0]).parent  # with its ~: what is typed is no path of this machine alone
    folder = "" if path.parent == SHIPPED or typed == Path() else str(typed)
    runtime = config.get("runtime")
    if isinstance(runtime, ConfigDict) and runtime.get("own_code") == "":  # what is missing, validate says
        configuration.put(config, "runtime.own_code", folder)
    return config.lock()


def variants(asked: str) -> tuple[str, ...]:
    """The variants that a configuration file offers in its `VARIANTS`; () where it has none."""
    path, _ = _found(asked)
    return tuple(getattr(_module(path), "VARIANTS", ()))


def shipped() -> dict[str, str]:
    """{name: first line of its docstring} of the configurations that come with the package."""
    found = {}
    for file in sorted(SHIPPED.glob("*.py")):
        text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
        found[file.stem] = text.partition("\n")[0]
    return found


def _found(asked: str) -> tuple[Path, str]:
    """(file, variant) of what --config says."""
    text, _, variant = asked.partition(":")
    path = paths.parse(text, "--config")
    if not path.is_file() and text in shipped():
        return SHIPPED / f"{text}.py", variant
    if path.suffix == ".py" or os.sep in text or path.exists():
        if not path.exists():
            raise UserError(
                f"--config={asked}: there is no file {text!r}; shipped are {', '.join(shipped())}"
            )
        if not path.is_file():
            raise UserError(f"--config={asked}: {text!r} is no file; name one such as FILE.py")
        return path, variant
    raise UserError(
        f"--config={asked}: there is no file and no shipped configuration {text!r}{hint(text, shipped())}"
    )


def _module(path: Path) -> ModuleType:
    return own_code.execute(path, f"configuration_{re.sub(r'[^A-Za-z0-9_]', '_', path.stem)}")


# --- single fields ------------------------------------------------------------------------------------


def split(argv: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """({field: text}, the other arguments) of a command line; of a field given twice the last one.

    --config.a.b=TEXT, --config.a.b TEXT, --config.a.b (a switch: true) and --noconfig.a.b (false).
    """
    found: dict[str, str] = {}
    others: list[str] = []
    rest = list(argv)
    while rest:
        argument = rest.pop(0)
        match = re.fullmatch(r"--?(no)?config\.([^=]*)(=)?(.*)", argument, re.DOTALL)
        if match is None:
            others.append(argument)
            continue
        no, field, given, text = match.groups()
        if no and given:
            raise UserError(f"--noconfig.{field} takes no value; write --config.{field}={text}")
        found.pop(field, None)
        if given:
            found[field] = text
        elif no or isinstance(_defaults().get(field), bool):
            found[field] = NO[0] if no else YES[0]
        elif rest and not rest[0].startswith("--"):
            found[field] = rest.pop(0)
        else:
            raise UserError(f"--config.{field} has no value{_example(field)}")
    return found, others


def override(config: ConfigDict, field: str, text: str) -> None:
    """Set a field to what a text says; UserError where there is none, or none of such a value."""
    defaults = _defaults()
    if field not in defaults:
        raise UserError(configuration.unknown_field(field))
    configuration.put(config, field, value(field, text))


def value(field: str, text: str) -> Any:
    """What a text means for a field: a literal of the field's type, and text as it stands where that is text.

    Tuples are written with commas; brackets and quotes may be left out.

    >>> value("students.modes", "vote, logits.dkd(nontarget_weight=(2.0, 8.0))")
    ('vote', 'logits.dkd(nontarget_weight=(2.0, 8.0))')
    >>> value("students.alphas", "0,0.5")
    (0.0, 0.5)
    """
    default = _defaults()[field]
    if text in configuration.WORDS.get(field, ()):
        return text
    try:
        if isinstance(default, tuple):
            return tuple(_scalar(configuration.entry_type(field), part) for part in _parts(text))
        return _scalar(type(default).__name__, text)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError, OverflowError):
        shown = text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"
        right = configuration.type_of_field(field)
        raise UserError(f"--config.{field}={one_line(shown)}: must be {right}{_example(field)}") from None


def values(field: str, text: str) -> tuple[Any, ...]:
    """What a text with several values for a field means, each as `value` reads it.

    They are separated by commas; a value that has commas itself stands in brackets or quotes.

    >>> values("students.alphas", "0.5,(0,0.5)"), values("train.epochs", "10,20")
    (((0.5,), (0.0, 0.5)), (10, 20))
    >>> values("students.model", "mlp(hidden=(8, 8)),'cnn'")
    ('mlp(hidden=(8, 8))', 'cnn')
    """
    try:
        parts = _split_at_commas(text.strip())
        if not isinstance(_defaults()[field], tuple):
            parts = [ast.literal_eval(part) if part[:1] in ("'", '"') else part for part in parts]
    except (ValueError, SyntaxError):
        raise UserError(f"config.{field}={one_line(text)}: brackets or quotes do not match") from None
    return tuple(value(field, part) for part in parts)


def _scalar(kind: str, text: str) -> Any:
    if kind == "str":
        return text
    if kind == "bool":
        if text.lower() not in YES + NO:
            raise ValueError(text)
        return text.lower() in YES
    if kind == "dict":
        found = ast.literal_eval(text.strip())
        if not isinstance(found, dict):
            raise TypeError(text)
        return found
    return {"int": int, "float": float}[kind](text)


def _parts(text: str) -> list[str]:
    """The entries of a tuple, split at commas that stand in no brackets and no quotes.

    >>> _parts("('a', 'b(c=(1, 2))',)"), _parts("a,b(c=(1, 2))"), _parts("()"), _parts("0.5")
    (['a', 'b(c=(1, 2))'], ['a', 'b(c=(1, 2))'], [], ['0.5'])
    """
    text = text.strip()
    with_quotes = _split_at_commas(text)
    if len(with_quotes) == 1 and text[:1] in ("(", "[") and text[-1:] in (")", "]"):
        with_quotes = _split_at_commas(text[1:-1].strip())
    return [ast.literal_eval(part) if part[:1] in ("'", '"') else part for part in with_quotes]


def _split_at_commas(text: str) -> list[str]:
    parts, depth, quote = [""], 0, ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"" and (depth or not parts[-1].strip()):  # not that of it's.npz
            quote = character
        else:
            depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0 and not quote:
            parts.append("")
        else:
            parts[-1] += character
    if depth or quote:
        raise ValueError(text)
    if not parts[-1].strip():  # a comma at the end, or nothing at all
        parts.pop()
    return [part.strip() for part in parts]


def _example(field: str) -> str:
    """How a field is written on the command line; "" for one that does not exist."""
    if field not in _defaults():
        return ""
    example = EXAMPLES.get(field) or spelled(_defaults()[field])
    return f", such as --config.{field}={example}"


def spelled(value: Any) -> str:
    """A value as it is typed after a field's `=`.

    >>> spelled((0.0, 0.5)), spelled(True), spelled("cnn(widths=(4,))"), spelled(())
    ('0.0,0.5', 'true', "'cnn(widths=(4,))'", '')
    """
    if isinstance(value, tuple):
        text = ",".join(str(entry) for entry in value)
    elif isinstance(value, bool):
        text = str(value).lower()
    else:
        text = str(value)
    return f"'{text}'" if re.search(r"[\s()&|;<>*?$`{}]", text) else text


def _defaults() -> dict[str, Any]:
    return configuration.fields(configuration.default())


# --- what there is to set -----------------------------------------------------------------------------


class Field(NamedTuple):
    """A field, its default, and the comment that stands beside it in `config.default`."""

    name: str
    default: Any
    comment: str


def described() -> list[Field]:
    """Every field, sorted, with the comment beside its assignment or its group's, or else what it may be."""
    comments = _comments(textwrap.dedent(inspect.getsource(configuration.default)))
    ranges = {name: allowed.right for name, allowed in validation.RANGES.items()}
    return [
        Field(
            name,
            default,
            comments.get(name) or comments.get(name.rpartition(".")[0]) or ranges.get(name, ""),
        )
        for name, default in _defaults().items()
    ]


def help_text(width: int) -> str:
    """The fields, a line or two each, and the shipped configurations."""
    lines = ["Fields (--config.FIELD=VALUE), with their defaults:"]
    for field in described():
        lines.append(f"  {field.name}={spelled(field.default)}")
        lines += textwrap.wrap(field.comment, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
    lines += ["", "Configurations that come with the package (--config=NAME):"]
    longest = max(map(len, shipped()), default=0)
    lines += [f"  {name:<{longest}}  {purpose}" for name, purpose in shipped().items()]
    return "\n".join(lines)


def _comments(source: str) -> dict[str, str]:
    """{field: the comments on the lines of its assignment} of a function that fills `config`."""
    on_line = {
        token.start[0]: token.string.lstrip("# ").strip()
        for token in tokenize.generate_tokens(io.StringIO(source).readline)
        if token.type == tokenize.COMMENT
    }
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            field = ast.unparse(node.targets[0]).removeprefix("config.")
            lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            found[field] = " ".join(on_line[line] for line in lines if line in on_line)
    return found
