"""Imports go down only, nothing in circles; the pure rooms do no I/O and know no framework but JAX."""

import ast
import graphlib
import re
from pathlib import Path

import mtkd_jax

ROOT = Path(mtkd_jax.__file__).parent
FLOORS = [  # from the top, by folder or file; nothing imports from a floor above its own
    {
        "commands",
        "main",
        "sweep",
        "leaderboard",
        "predict",
        "replicate",
        "logits",
        "export",
        "benchmark",
        "report.overview",
    },  # and every __main__: the command lines
    {"api"},
    {"experiment"},
    {"laboratory", "report"},
    {"results"},
    {"plans"},
    {"engine"},
    {"runs", "deploy"},
    {"addresses", "config", "validation", "settings", "listing"},
    {"tasks"},
    {"methods"},
    {"data", "models", "fusion", "optimizers"},
    {"mesh", "system", "types"},
]
PURE = {"methods", "models", "fusion", "optimizers", "types", "results.metrics", "results.intervals"}
PURE |= {"results.cascade", "results.power", "results.ranks", "results.sequential"}
PURE |= {"data.augment", "data.corruptions", "data.mixing", "data.places", "data.rand_augment"}
WORLDLY = {
    "absl",
    "orbax",
    "tensorflow",
    "tensorflow_datasets",
    "ml_collections",
    "os",
    "pathlib",
    "json",
    "sys",
}


def modules():
    for path in sorted(ROOT.rglob("*.py")):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        if name != "__init__":
            yield name, ast.parse(path.read_text(encoding="utf-8"))


def imports(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def prefixes(name):
    """A dotted name and all that it lies in, the longest first."""
    parts = name.split(".")
    return [".".join(parts[:n]) for n in range(len(parts), 0, -1)]


def floor(name):
    """The floor of a module, or of what is imported from one; None where it has no place yet."""
    if name.endswith("__main__"):
        return 0
    return next((n for prefix in prefixes(name) for n, rooms in enumerate(FLOORS) if prefix in rooms), None)


def inner_imports(tree):
    return [name.removeprefix("mtkd_jax.") for name in imports(tree) if name.startswith("mtkd_jax.")]


def test_every_module_has_a_floor():
    assert [name for name, _ in modules() if floor(name) is None] == []


def test_imports_go_down_only():
    upward = [
        f"{name} imports {imported}"
        for name, tree in modules()
        for imported in inner_imports(tree)
        if floor(imported) is not None and floor(imported) < floor(name)
    ]
    assert upward == []


def test_no_modules_import_one_another_in_a_circle():
    names = {name for name, _ in modules()}
    needed = {
        name: {next((p for p in prefixes(one) if p in names), one) for one in inner_imports(tree)} - {name}
        for name, tree in modules()
    }
    list(graphlib.TopologicalSorter(needed).static_order())  # raises CycleError, which names the circle


def test_the_pure_rooms_do_no_io():
    worldly = [
        f"{name} imports {imported}"
        for name, tree in modules()
        if PURE.intersection(prefixes(name)) and not name.endswith("__main__")
        for imported in imports(tree)
        if imported.split(".")[0] in WORLDLY
    ]
    assert worldly == []


def test_only_models_know_linen():
    knowing = {name for name, tree in modules() if "flax.linen" in imports(tree)}
    others = {name for name in knowing if not name.startswith("models.")}
    assert others == {"benchmark.plain"}  # what a user of Flax would write, to compare with


def test_no_absolute_path_stands_in_the_project():
    """A path such as that of a home folder is of the machine it was written on."""
    absolute = re.compile(r"(?:^|[\s\"'`(=])/[a-z]+/[a-z]", re.MULTILINE)
    assert absolute.search('open("/home/somebody/data.npz")')
    top = ROOT.parent
    for path in [
        *ROOT.rglob("*.py"),
        *top.glob("*.md"),
        *top.glob("configs/*.py"),
        *top.glob("tests/**/*.py"),
    ]:
        found = absolute.search(path.read_text(encoding="utf-8"))
        assert found is None or path == Path(__file__), f"{path}: {found}"
