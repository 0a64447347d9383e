"""What is typed: values by the type of their field, configurations by path or name; what `--help` shows."""

import ast
import shutil
import subprocess
import sys
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest

from mtkd_jax import config as configuration
from mtkd_jax import settings, validation
from mtkd_jax.types import UserError
from tests import small

ROOT = Path(__file__).parent.parent


# --- fields -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "field, text, expected",
    [
        ("students.modes", "vote", ("vote",)),
        ("students.modes", "vote,fused:borda", ("vote", "fused:borda")),
        ("students.modes", "('vote', 'mimic_all')", ("vote", "mimic_all")),
        ("students.modes", "(vote, mimic_all,)", ("vote", "mimic_all")),
        ("students.modes", "['vote']", ("vote",)),
        ("teachers.models", "mlp(hidden=(8, 8)), cnn", ("mlp(hidden=(8, 8))", "cnn")),
        ("teachers.models", "tfds(name='a,b')", ("tfds(name='a,b')",)),
        ("teachers.init_from", "it's.npz,a b.npz", ("it's.npz", "a b.npz")),
        ("teachers.models", "()", ()),
        ("teachers.models", "", ()),
        ("students.alphas", "(0,0.5)", (0.0, 0.5)),
        ("students.alphas", "1", (1.0,)),
        ("data.augment.rand_augment", "2,7", (2, 7)),
        ("train.epochs", "3", 3),
        ("train.learning_rate", "1", 1.0),
        ("train.learning_rate", "1e-3", 0.001),
        ("data.augment.flip", "True", True),
        ("data.augment.flip", "no", False),
        ("data.path", "a, b=c", "a, b=c"),
        ("students.arguments", "{'logits.dkd': {'beta': (2.0, 8.0)}}", {"logits.dkd": {"beta": (2.0, 8.0)}}),
    ],
)
def test_a_text_becomes_a_value_of_the_fields_type(field, text, expected):
    found = settings.value(field, text)
    assert found == expected and type(found) is type(expected)
    if isinstance(found, tuple):
        assert list(map(type, found)) == list(map(type, expected))


@pytest.mark.parametrize(
    "field, text, example",
    [
        ("train.epochs", "many", "--config.train.epochs=60"),
        ("train.epochs", "3.5", "an int"),
        ("train.epochs", "9" * 5000, "(5000 characters)"),
        ("train.learning_rate", "fast", "--config.train.learning_rate=0.001"),
        ("students.alphas", "a,b", "--config.students.alphas=0.0,0.25,0.5"),
        ("teachers.learning_rates", "a", "--config.teachers.learning_rates=0.001,0.003"),
        ("data.augment.rand_augment", "2.5,7", "--config.data.augment.rand_augment=2,7"),
        ("teachers.bootstrap", "maybe", "--config.teachers.bootstrap=false"),
        ("students.modes", "('vote'", "--config.students.modes=mimic_all,output_avg"),
        ("students.arguments", "dkd", "\"{'logits.dkd': {'nontarget_weight': (2.0, 8.0)}}\""),
        ("students.arguments", "[1]", "must be a dict"),
        ("students.arguments", "{" * 5000, "must be a dict"),
        ("students.arguments", "__import__('os').abort()", "must be a dict"),
    ],
)
def test_what_is_no_value_of_a_field_is_one_line_with_an_example(field, text, example):
    with pytest.raises(UserError) as caught:
        settings.value(field, text)
    line = str(caught.value)
    assert line.startswith(f"--config.{field}=") and example in line and "\n" not in line and len(line) < 300


def test_every_example_is_a_value_of_its_field():
    for field, default in configuration.fields(configuration.default()).items():
        example = settings.EXAMPLES.get(field)
        if example is not None:
            value = settings.value(field, example.strip('"'))
            assert value and type(value) is type(default), field


def test_every_default_is_read_back_as_it_is_shown():
    for field, default in configuration.fields(configuration.default()).items():
        assert settings.value(field, settings.spelled(default).strip("'")) == default, field


def test_of_a_field_given_twice_the_last_one_counts():
    fields, others = settings.split(
        [
            "--config.students.modes=a",
            "--config.train.epochs",
            "3",
            "--workdir=x",
            "--config.students.modes=b,c",
            "--config.teachers.bootstrap",
            "--noconfig.data.augment.flip",
            "--config=digits",
        ]
    )
    assert others == ["--workdir=x", "--config=digits"]
    assert fields == {
        "students.modes": "b,c",
        "train.epochs": "3",
        "teachers.bootstrap": "true",
        "data.augment.flip": "false",
    }
    config = configuration.default()
    for field, text in fields.items():
        settings.override(config, field, text)
    assert config.students.modes == ("b", "c") and config.train.epochs == 3
    assert config.teachers.bootstrap is True and config.data.augment.flip is False
    with pytest.raises(UserError, match=r"config.seed has no value, such as --config.seed=0"):
        settings.split(["--config.seed", "--workdir=x"])
    with pytest.raises(UserError, match="--noconfig.data.augment.flip takes no value; write --config.data"):
        settings.split(["--noconfig.data.augment.flip=true"])


def test_arguments_of_a_mode_can_be_typed():
    config = small.config(**{"students.modes": ("logits.dkd",)}).lock()
    settings.override(config, "students.arguments", "{'logits.dkd': {'nontarget_weight': (2.0, 8.0)}}")
    validation.validate(config)
    assert len(configuration.build_recipes(config, "logits.dkd")) == 2


# --- the file -----------------------------------------------------------------------------------------

GOOD = "from mtkd_jax import config\n\n\ndef get_config(variant=''):\n    return config.default()\n"


@pytest.mark.parametrize(
    "text, said",
    [
        ("def get_config(:\n", ", line 1: invalid syntax"),
        ("\n\nraise SystemExit(3)\n", ", line 3: SystemExit: 3"),
        ("import nothing_such\n", ", line 1: ModuleNotFoundError: No module named 'nothing_such'"),
        ("x = 3\n", ": has no function get_config(), which returns the configuration"),
        ("get_config = 3\n", ": has no function get_config(), which returns the configuration"),
        ("def get_config():\n    pass\n", ": get_config() returned NoneType, not a ConfigDict"),
        ("def get_config():\n    return 1 / 0\n", ", line 2: ZeroDivisionError: division by zero"),
        ("def get_config():\n    raise ValueError('a\\nb')\n", ", line 2: ValueError: a b"),
        ("def get_config():\n    raise MemoryError\n", ", line 2: MemoryError: "),
        ("\0", ": source code string cannot contain null bytes"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line_that_names_it(text, said, tmp_path):
    file = tmp_path / "bad.py"
    file.write_text(text)
    with pytest.raises(UserError) as caught:
        settings.load(str(file))
    assert str(caught.value) == f"{file}{said}"


def test_a_file_is_read_anew_each_time_and_leaves_nothing_behind(tmp_path):
    file = tmp_path / "mine.py"
    for seed in (1, 2):  # of one length, within one second
        file.write_text(GOOD.replace("config.default()", f"config.ConfigDict({{'seed': {seed}}})"))
        assert settings.load(str(file)).seed == seed
    assert [path.name for path in tmp_path.iterdir()] == ["mine.py"]


def test_what_is_no_file_is_told_apart(tmp_path, monkeypatch):
    (tmp_path / "folder.py").mkdir()
    for asked, said in (
        (str(tmp_path / "folder.py"), "is no file"),
        (str(tmp_path / "none.py"), "shipped are cifar10, "),
        ("digit", "did you mean 'digits'?"),
        ("", "--config is empty"),
        ("a\0b", "UTF-8 without NUL"),
    ):
        with pytest.raises(UserError) as caught:
            settings.load(asked)
        assert said in str(caught.value) and "\n" not in str(caught.value)
    file = tmp_path / "home.py"
    file.write_text(GOOD)
    monkeypatch.setenv("HOME", str(tmp_path))
    at_home = settings.load("~/home.py")
    assert at_home.runtime.own_code == "~"  # beside which own files are looked up
    at_home.runtime.own_code = ""
    assert at_home.to_dict() == configuration.default().to_dict()
    assert settings.load(f"{file}:any").is_locked


def test_a_file_in_the_current_folder_goes_before_a_shipped_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "digits").mkdir()  # a folder does not
    assert settings.load("digits:smoke").teachers.num_members == 3
    (tmp_path / "cifar10").write_text(GOOD)
    assert settings.load("cifar10").data.source == "digits"


def test_every_configuration_of_the_repository_is_shipped_under_its_name():
    files = {path.stem: path for path in small.CONFIGS.glob("*.py")}
    assert files.keys() == settings.shipped().keys()
    for name, purpose in settings.shipped().items():
        assert purpose and ast.get_docstring(ast.parse(files[name].read_text())).startswith(purpose)
        validation.validate(settings.load(f"{name}:smoke"))


def test_the_wheel_takes_configurations_and_the_command_along():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert {"configs/*.py", "py.typed"} <= set(project["tool"]["setuptools"]["package-data"]["mtkd_jax"])
    assert (ROOT / "mtkd_jax" / "py.typed").exists()
    assert project["project"]["scripts"] == {"mtkd": "mtkd_jax.commands:main"}
    assert settings.SHIPPED.samefile(small.CONFIGS)


USER_CODE = """\
from mtkd_jax.methods.seams import PLAIN
from mtkd_jax.types import Context

def term(context: Context, more: int) -> float:
    reveal_type(context.student)
    return 0.0

reveal_type(PLAIN)
PLAIN._replace(term=term)
"""


@pytest.mark.slow(seconds=40)
def test_a_wheel_holds_the_configurations_the_command_and_the_types(tmp_path):
    """Built as pip builds it, which fetches setuptools."""
    source = tmp_path / "source"
    kept = {"symlinks": True, "ignore": shutil.ignore_patterns("__pycache__")}
    for folder in ("mtkd_jax", "configs"):
        shutil.copytree(ROOT / folder, source / folder, **kept)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", str(tmp_path), str(source)]
    subprocess.run(pip, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        for file in small.CONFIGS.glob("*.py"):
            assert archive.read(f"mtkd_jax/configs/{file.name}") == file.read_bytes()
        (points,) = (name for name in names if name.endswith("entry_points.txt"))
        assert "mtkd = mtkd_jax.commands:main" in archive.read(points).decode()
        archive.extractall(site_packages := _empty_environment(tmp_path / "venv"))
    assert "mtkd_jax/py.typed" in names
    assert "mtkd_jax/report/templates/report.html.jinja" in names and "mtkd_jax/system/terminal.py" in names

    # mypy reads the annotations of an installed package only where it says py.typed.
    (tmp_path / "user.py").write_text(USER_CODE)
    python = site_packages.parents[2] / "bin" / "python"
    mypy = [sys.executable, "-m", "mypy", "--python-executable", str(python), "--ignore-missing-imports"]
    mypy += ["--follow-imports=silent", "--config-file=", f"--cache-dir={tmp_path}", "user.py"]
    said = subprocess.run(mypy, cwd=tmp_path, capture_output=True, text=True).stdout
    assert 'user.py:5: note: Revealed type is "mtkd_jax.types.Outputs"' in said, said
    assert "user.py:8: note: Revealed type is" in said and "mtkd_jax.types.Recipe" in said, said
    assert 'user.py:9: error: Argument "term" to "_replace"' in said, said


def _empty_environment(folder: Path) -> Path:
    """Where packages lie in a new virtual environment without any."""
    venv.create(folder)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    return site_packages


# --- help ---------------------------------------------------------------------------------------------


def test_help_has_every_field_with_its_default_and_comment():
    described = settings.described()
    assert {field.name: field.default for field in described} == configuration.fields(configuration.default())
    comments = {field.name: field.comment for field in described}
    assert comments["students.alphas"] == "weight of the HARD labels"
    assert comments["data.val_fraction"].startswith("cut from the training set first")  # inside brackets
    assert comments["teachers.label_smoothings"] == "in [0, 1)"  # no comment: what is allowed
    text = settings.help_text(width=80)
    assert "  students.alphas=0.0,0.25,0.5\n      weight of the HARD labels\n" in text
    assert f"  digits           {settings.shipped()['digits']}" in text
