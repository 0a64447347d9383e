"""Imports go down only; the pure layer does no I/O and knows no framework but JAX."""

import ast
import re
from pathlib import Path

import mtkd_jax

ROOT = Path(mtkd_jax.__file__).parent
LAYERS = [  # from the top; a module may import its own layer's and lower ones
    {
        "__main__",
        "commands",
        "main",
        "predict",
        "fusion.__main__",
        "data.__main__",
        "data.overview",
        "benchmark",
    },
    {"experiment"},
    {
        "teachers",
        "students",
        "plan",
        "schemes",
        "evaluation",
        "analysis",
        "findings",
        "tables",
        "report",
        "laboratory",
        "plots",
        "export",
    },
    {
        "deployed",
        "files",
        "forecast",
        "interrupts",
        "jobs",
        "layouts",
        "mesh",
        "teacher_cache",
        "tuning",
        "training",
        "step",
        "population",
        "checkpoint",
        "config",
        "logbook",
        "paths",
        "predictions",
        "pretrained",
        "settings",
        "terminal",
        "workdir",
        "data.checks",
        "data.images",
        "data.loading",
        "data.sources",
        "data.streams",
    },
    {
        "data.augment",
        "data.places",
        "data.rand_augment",
        "models",
        "methods",
        "fusion",
        "metrics",
        "intervals",
        "optimizers",
        "spelling",
        "text",
    },
    {"types"},
]
PURE = (4, 5)
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


def layer(name):
    """The layer of a module or of what is imported from one; None where it has no place yet."""
    parts = name.split(".")
    prefixes = [".".join(parts[:n]) for n in range(len(parts), 0, -1)]
    return next((n for prefix in prefixes for n, members in enumerate(LAYERS) if prefix in members), None)


def test_every_module_has_a_layer():
    assert [name for name, _ in modules() if layer(name) is None and name != "data"] == []


def test_imports_go_down_only():
    upward = [
        f"{name} imports {imported}"
        for name, tree in modules()
        for imported in imports(tree)
        if imported.startswith("mtkd_jax.")
        and (target := layer(imported.removeprefix("mtkd_jax."))) is not None
        and layer(name) is not None
        and target < layer(name)
    ]
    assert upward == []


def test_the_pure_layer_does_no_io():
    worldly = [
        f"{name} imports {imported}"
        for name, tree in modules()
        if layer(name) in PURE
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
