"""Functions of the user's own, by address: found, run, told apart by their code, refused in one line."""

import linecache
import re
import sys
import types
from pathlib import Path

import jax
import numpy as np
import pytest

import mtkd_jax
from mtkd_jax import addresses, experiment, main, settings, validation
from mtkd_jax import config as configuration
from mtkd_jax.fusion import rules
from mtkd_jax.runs import workdir
from mtkd_jax.system import own_code
from mtkd_jax.types import Task, UserError
from tests import contexts, small

MINE = '''
import jax
import jax.numpy as jnp
from flax import linen as nn

from mtkd_jax.methods.seams import PLAIN, HardAnd
from mtkd_jax.models import layers
from mtkd_jax.plans.plan import train_students, train_teachers
from mtkd_jax.data.sources.embedded import synthetic
from mtkd_jax.types import DataSet, Model, Recipe


def regression(*, weight: float = 1.0) -> Recipe:
    """The same as logits.regression, times a number."""
    return PLAIN._replace(term=HardAnd(_distance), hyper=(("weight", weight),))


def _distance(context):
    difference = context.student.logits - context.teacher.logits.mean(axis=0)
    return context.hyper["weight"] * 0.5 * jnp.sum(difference**2, axis=-1)


class Linear(nn.Module):
    task: tuple
    width: int

    @nn.compact
    def __call__(self, image, train):
        x = layers.normalise(image, self.task.mean, self.task.std).reshape(image.shape[0], -1)
        x = nn.relu(nn.Dense(self.width)(x))
        heads = layers.Heads(self.task.num_heads, self.task.num_classes, name="heads")(x)
        return layers.outputs(x, heads, {})


def linear(task, *, width: int = 4) -> Model:
    return Model("of no account", Linear(task, width))


def first(logits) -> "Scores":
    return jax.nn.softmax(logits[0])


def last_place(logits) -> "Places":
    return -jnp.argsort(jnp.argsort(logits.sum(axis=0)))


def made(*, size: int = 4) -> DataSet:
    return synthetic(num_classes=4, num_train=120, num_test=40, size=size, noise=0.4)


def straight(config, split) -> "Plan":
    return (*train_teachers(config, split), *train_students(config, split))


def says_nothing(task):
    return Model("nothing", Linear(task, 4))


def takes_too_much(task, more) -> Model:
    return Model("nothing", Linear(task, 4))


def lies(task) -> Model:
    return "no network"


def flat(logits) -> "Scores":
    return logits.mean()
'''


@pytest.fixture
def mine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "mine.py"
    path.write_text(MINE)
    return path


def own_config(**more):
    return small.config(
        **{
            "data.source": "mine.py:made(size=4)",
            "model.name": "mine.py:linear(width=6)",
            "students.modes": ("./mine.py:regression(weight=1)", "logits.regression"),
            "fusion.rules": ("mean_probs", "mine.py:first", "mine.py:last_place"),
            "plan": "mine.py:straight",
            "train.epochs": 2,
            **more,
        }
    )


def test_a_run_of_own_functions_says_what_those_of_the_house_say_and_knows_when_they_change(mine):
    report = experiment.run(own_config(), "run", quiet=True)
    rows = {row["name"]: row for row in report["rows"]}
    assert "mine.py:linear(width=6)" in rows
    found = workdir.read_predictions(mine.parent / "run")
    by_name = {group.name: group for group in found.groups}
    own, of_house = by_name["mine.py:regression(weight=1)"], by_name["logits.regression"]
    np.testing.assert_allclose(own.test, of_house.test, atol=1e-6)
    assert rows["mine.py:first"]["accuracy"]["mean"] == np.mean(
        by_name["mine.py:linear(width=6)"].test[0].argmax(-1) == found.test_labels
    )
    assert rows["mine.py:last_place"]["nll"] is None and rows["mine.py:first"]["nll"]["mean"] > 0
    described = workdir.read_config(mine.parent / "run")
    sha256 = own_code.digest("mine.py", "linear")
    assert described["own_code"] == described["fusion"]["own_code"] == {"mine.py": sha256}
    student = mtkd_jax.load_student("run/student")
    assert student.card["model"] == "mine.py:linear(width=6)"

    assert experiment.run(own_config(), "run", quiet=True) == report
    mine.write_text(MINE.replace("0.5 *", "0.6 *"))
    with pytest.raises(UserError, match=r"holds another run: own_code.mine.py was '\w{64}' and is '\w{64}'"):
        experiment.run(own_config(), "run", quiet=True)
    with pytest.raises(UserError, match="run has another mine.py: .*; put that code back, or train"):
        experiment.run(own_config(**{"teachers.from_run": "run"}), "other", quiet=True)


def test_a_student_is_found_where_its_run_found_it_and_saved_wherever_one_stands(tmp_path, monkeypatch):
    beside, elsewhere = tmp_path / "beside", tmp_path / "elsewhere"
    for folder in (beside, elsewhere, tmp_path / "run"):
        folder.mkdir()
    (beside / "mine.py").write_text(MINE)
    config = small.config(**{"model.name": "mine.py:linear", "runtime.own_code": str(beside)})
    with configuration.own_files(config):
        workdir.describe(tmp_path / "run", config, experiment.load_split(config))
        model = addresses.build_model("mine.py:linear", Task(4, 1, (0.5,), (0.2,)))
    images = np.random.default_rng(0).random((3, 4, 4, 1), np.float32)
    card = {"name": "made up", "model": model.name, "class_names": [*"abcd"], "metrics": {}}
    card |= {"training": "none", "data": "none", "source": "none"}
    card["input"] = {"shape": [4, 4, 1], "dtype": "float32", "range": "as in the data"}
    own = mtkd_jax.Student(model, model.init(jax.random.key(0), images), card, images)
    monkeypatch.chdir(elsewhere)
    own.save(tmp_path / "run" / "student")
    loaded = mtkd_jax.load_student(tmp_path / "run" / "student")
    np.testing.assert_allclose(loaded.logits(images), own.logits(images), atol=1e-5)
    monkeypatch.chdir(tmp_path / "run" / "student")
    assert mtkd_jax.load_student(".").model.name == model.name
    monkeypatch.chdir(elsewhere)
    (tmp_path / "run" / "config.json").write_text("{}")  # somebody else's
    with pytest.raises(UserError, match="mine.py.*cannot be read"):
        mtkd_jax.load_student(tmp_path / "run" / "student")


def test_a_changed_rule_makes_the_report_again_and_trains_nothing(mine, monkeypatch):
    (mine.parent / "rule.py").write_text(MINE)
    asked = {
        "students.modes": (),
        "data.source": "synthetic(num_classes=4, num_train=120, num_test=40, size=4)",
        "model.name": "mlp(hidden=(4,))",
        "fusion.rules": ("mean_probs", "rule.py:first"),
        "plan": "teachers_then_students",
    }
    before = experiment.run(own_config(**asked), "run", quiet=True)
    begun = (mine.parent / "run" / "metrics.jsonl").read_text()
    (mine.parent / "rule.py").write_text(MINE.replace("softmax(logits[0])", "softmax(-logits[0])"))
    after = experiment.run(own_config(**asked), "run", quiet=True)
    first, again = (
        next(row["nll"]["mean"] for row in report["rows"] if row["name"] == "rule.py:first")
        for report in (before, after)
    )
    assert first != again and (mine.parent / "run" / "metrics.jsonl").read_text() == begun
    monkeypatch.setattr(rules, "_OWN", {})  # as another process has it, which executes nothing
    told = mtkd_jax.write_report("run")
    assert [row["rule"] for row in told["rows"] if row["rule"]] == ["mean_probs"]
    assert any("rule.py:first is a rule of somebody's own" in note for note in told["notes"])
    logits = np.random.default_rng(0).standard_normal((2, 5, 4))
    np.testing.assert_array_equal(mtkd_jax.fuse(logits, "mine.py:first").argmax(-1), logits[0].argmax(-1))


def test_a_stored_name_has_no_file_executed(mine):
    mine.write_text("raise SystemExit('executed')")
    assert addresses.canonical("mode", "./mine.py:f( b=1, a=(2,) )", "") == "mine.py:f(a=(2,), b=1)"
    assert configuration.canonicalise({"model": {"name": "mine.py:f( )"}}) == {"model": {"name": "mine.py:f"}}
    with pytest.raises(UserError, match="unseen.py:f is a rule of somebody's own"):
        rules.rule("unseen.py:f")


@pytest.mark.parametrize(
    "kind, address, said",
    [
        ("model", "nowhere.py:linear", "nowhere.py cannot be read: No such file"),
        ("model", "mine.py:liner", "mine.py has no function 'liner'; did you mean 'linear'"),
        ("model", "mine.py:Linear", "mine.py has no function 'Linear'"),
        ("model", "mine.py:says_nothing", "must say that it returns what a model does: write -> 'Model'"),
        ("mode", "mine.py:linear", "must say that it returns what a mode does: write -> 'Recipe'"),
        ("rule", "mine.py:linear", "write -> 'Scores' or -> 'Places' or -> 'FittedRule'"),
        ("model", "mine.py:takes_too_much", "called as a model is: missing a required argument: 'more'"),
        ("model", "mine.py:linear(widht=3)", "has no argument 'widht'; did you mean 'width'"),
        ("model", "mine.py:linear(width='3')", r"linear\(width='3'\) must be of type int"),
        ("model", "mine.py:linear(3)", "is not an address"),
        ("model", "mine.py:lies", "mine.py:lies returned str; it must be a Model"),
        ("rule", "mine.py:flat", r"mine.py:flat: must return scores \(1, 10\)"),
        ("model", "no.such.module:linear", "there is no module 'no'"),
        ("mode", "fusde:median_probs", "there is no mode 'fusde'; did you mean 'fused'"),
        ("model", "mine.py", "there is no model 'mine.py'; name a function of that file, mine.py:FUNCTION"),
        ("model", "broken.py:linear", r"broken.py, line 2: ZeroDivisionError: division by zero"),
        ("model", "unreadable.py:linear", r"unreadable.py, line 1: SyntaxError"),
        ("source", "mine.py:made(sise=4)", "did you mean 'size'"),
    ],
)
def test_what_cannot_be_is_one_line(mine, kind, address, said):
    (mine.parent / "broken.py").write_text("\n1 / 0\n")
    (mine.parent / "unreadable.py").write_text("def linear(:\n")

    def ask():
        if kind == "model":
            task = Task(10, 1, (0.0,), (1.0,))
            return addresses.build_model(address, task)
        addresses.resolve(kind, address, "field")
        if kind == "rule":
            rules.check(address, np.zeros((2, 1, 10), np.float32))
        return None

    with pytest.raises(UserError, match=said) as error:
        ask()
    assert "\n" not in str(error.value)


def test_a_module_is_imported_and_one_that_changes_afterwards_is_refused(mine, monkeypatch):
    package = mine.parent / "my_package_of_methods"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "losses.py").write_text(MINE)
    monkeypatch.syspath_prepend(str(mine.parent))
    address = "my_package_of_methods.losses:regression(weight=2)"
    recipe = addresses.build_recipe(address)
    assert recipe.name == address and dict(recipe.hyper) == {"weight": 2}
    where, _ = own_code.split(address)
    assert own_code.digest(where, "regression") == own_code.digest("mine.py", "regression")
    (package / "losses.py").write_text(MINE + "\n")
    with pytest.raises(UserError, match="has changed since it was imported; start Python again"):
        addresses.build_recipe(address)


def test_a_file_is_executed_once_and_again_when_it_changes(mine):
    find = lambda: addresses.resolve("mode", "mine.py:regression", "field")[0]  # noqa: E731
    first = find()
    assert find() is first  # the same objects: compiled programs are found again
    mine.write_text(MINE + "\n")
    assert find() is not first


NOTEBOOK = """
from mtkd_jax.methods.seams import PLAIN
from mtkd_jax.types import Recipe
SCALE = 2.0
UNUSED = 1
def term(context):
    return SCALE * helper(context)
def helper(context):
    return context.student.logits[:, 0]
def own() -> Recipe:
    return PLAIN._replace(term=term)
class Network:
    def __call__(self, x):
        return helper(x)
def network() -> Recipe:
    return Network()
"""


def of_main(monkeypatch, source: str, name: str = "own") -> str:
    """The digest of a function of a __main__ that is no file, as a notebook is none."""
    module = types.ModuleType("__main__")
    lines = source.splitlines(keepends=True)
    monkeypatch.setitem(linecache.cache, "<cell>", (len(source), None, lines, "<cell>"))
    monkeypatch.setitem(sys.modules, "__main__", module)
    exec(compile(source, "<cell>", "exec", dont_inherit=True), vars(module))
    return own_code.digest("__main__", name)


def test_what_a_notebook_defines_is_known_by_all_that_it_names(monkeypatch):
    before = of_main(monkeypatch, NOTEBOOK)
    assert re.fullmatch(r"[0-9a-f]{64}", before) and of_main(monkeypatch, NOTEBOOK) == before
    for old, new in (("SCALE = 2.0", "SCALE = 3.0"), ("logits[:, 0]", "logits[:, 1]"), ("=term", "= term")):
        assert of_main(monkeypatch, NOTEBOOK.replace(old, new)) != before, new
    assert of_main(monkeypatch, NOTEBOOK.replace("UNUSED = 1", "UNUSED = 2")) == before
    of_class = of_main(monkeypatch, NOTEBOOK, "network")
    assert of_main(monkeypatch, NOTEBOOK.replace("return helper(x)", "return 0"), "network") != of_class
    assert of_main(monkeypatch, NOTEBOOK.replace("logits[:, 0]", "logits[:, 1]"), "network") != of_class
    recipe = addresses.build_recipe("__main__:own")
    assert recipe.name == "__main__:own"


def test_the_method_that_the_documentation_shows_is_one(mine):
    text = (Path(__file__).parent.parent / "docs" / "own-code.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    mine.write_text(shown)
    recipe = addresses.build_recipe("mine.py:smoothed(share=0.2)")
    logits = np.log([[[0.5, 0.25, 0.25]], [[0.25, 0.25, 0.5]]])
    targets = contexts.aimed(recipe, contexts.context(np.zeros((1, 3)), logits)).targets
    mixed = 0.8 * np.array([0.375, 0.25, 0.375]) + 0.2 / 3
    np.testing.assert_allclose(targets.probs, mixed[None, None], rtol=1e-5)
    np.testing.assert_allclose(targets.entropy, -np.sum(mixed * np.log(mixed)), rtol=1e-5)


def test_the_network_that_the_documentation_shows_is_one(mine):
    text = (Path(__file__).parent.parent / "docs" / "own-code.md").read_text(encoding="utf-8")
    (shown,) = (block for block in re.findall(r"```py\n(.*?)```", text, re.DOTALL) if "nnx.Module" in block)
    mine.write_text(shown)
    model = addresses.build_model("mine.py:linear(pixels=6)", Task(4, 1, (0.5,), (0.2,)))
    images = np.ones((2, 3, 2, 1), np.float32)
    variables = model.init(jax.random.key(0), images)
    assert model.apply(variables, images)[0].logits.shape[-1] == 4


def test_own_addresses_are_typed_on_the_command_line_as_all_others(mine):
    config = configuration.default()
    settings.override(config, "students.modes", "vote, mine.py:regression(weight=2.0)")
    assert config.students.modes == ("vote", "mine.py:regression(weight=2.0)")
    validation.validate(config)


# --- where files are looked up ------------------------------------------------------------------------

BESIDE = """
from mtkd_jax import config as configuration

def get_config():
    config = configuration.default()
    config.data.source = "synthetic(num_classes=4, num_train=120, num_test=40, size=4)"
    config.data.num_train = 60
    config.model.name = "mine.py:linear(width=3)"
    config.teachers.num_members = 2
    config.train.batch_size = 16
    config.train.epochs = 1
    config.students.modes = ()
    config.fusion.rules = ("mean_probs", "./mine.py:first")
    return config
"""


def folder_of_own(folder: Path, source: str = MINE) -> str:
    folder.mkdir(parents=True)
    (folder / "mine.py").write_text(source)
    (folder / "asked.py").write_text(BESIDE)
    return str(folder / "asked.py")


def test_a_file_is_looked_up_beside_the_configuration_first_then_here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    asked = settings.load(folder_of_own(Path("theirs")))
    assert asked.runtime.own_code == "theirs"
    settings.override(asked, "students.modes", "mine.py:regression(weight=3.0)")  # as it is typed
    validation.validate(asked)
    with pytest.raises(UserError, match="mine.py cannot be read: No such file"):
        own_code.digest("mine.py", "linear")
    Path("mine.py").write_text(MINE + "\n# another")
    Path("only_here.py").write_text(MINE)
    with configuration.own_files(asked):
        beside, elsewhere = own_code.digest("mine.py", "linear"), own_code.digest("only_here.py", "linear")
        with pytest.raises(UserError, match=r"no.py cannot be read: .* \(neither in theirs nor here\)"):
            own_code.digest("no.py", "linear")
    assert beside == elsewhere != own_code.digest("mine.py", "linear")
    assert settings.load("digits").runtime.own_code == ""


def test_where_the_files_lie_is_no_part_of_what_a_run_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = []
    for folder in (Path("anna"), tmp_path / "hans" / "code"):
        asked = settings.load(folder_of_own(folder))
        experiment.train(asked, f"{folder.name}_run", quiet=True)
        names.append(workdir.read_run(Path(f"{folder.name}_run")))
    assert names[0] == names[1] != ""
    # It is gone on with from wherever the same configuration is given, and refused with other code.
    (tmp_path / "anna").rename(tmp_path / "moved")
    report = experiment.run(settings.load("moved/asked.py"), "anna_run", quiet=True)
    assert "mine.py:first" in [row["name"] for row in report["rows"]]
    (tmp_path / "moved" / "mine.py").write_text(MINE.replace("relu", "tanh"))
    with pytest.raises(UserError, match="holds another run: own_code.mine.py was"):
        experiment.run(settings.load("moved/asked.py"), "anna_run", quiet=True)


# --- what there is in a file --------------------------------------------------------------------------


def test_the_functions_of_a_file_are_listed_after_ours(mine, capsys):
    assert main.main(["main", "--list", "--with", "mine.py,tests.contexts_of_nobody"]) == 2
    assert "there is no module 'tests.contexts_of_nobody'" in capsys.readouterr().err
    assert main.main(["main", "--list", "--with", "./mine.py"]) == 0
    said = capsys.readouterr().out
    ours, theirs = said.split("modes of mine.py:\n")
    assert "  logits.dkd(" in ours and "mine.py" not in ours
    assert theirs.startswith(
        "  mine.py:regression(weight=1.0)\n      The same as logits.regression, times a number.\n"
    )
    for heading, name in (("rules", "first"), ("plans", "straight"), ("sources", "made(size=4)")):
        assert f"{heading} of mine.py:\n  mine.py:{name}\n" in theirs
    assert "synthetic" not in theirs and "says_nothing" not in theirs  # imported; no kind of anything


def test_one_function_of_a_file_is_told_whole(mine, capsys):
    for asked in (["mine.py:regression(weight=2)"], ["regression", "--with", "mine.py"]):
        assert main.main(["main", "--list", *asked]) == 0
        said = capsys.readouterr().out
        assert said.startswith(
            "mode mine.py:regression(weight=1.0)\n\n    The same as logits.regression, times a number.\n"
        )
    for asked, why in (
        (
            ["mine.py:regresion"],
            "is nothing named 'mine.py:regresion'; did you mean 'mine.py:regression'",
        ),
        (
            ["", "--with", "empty.py"],
            "empty.py: none of its functions says that it returns what can be",
        ),
        (["", "--with", "a b"], "--with a b: is no file of Python and no module"),
    ):
        (mine.parent / "empty.py").write_text("def f():\n    pass\n")
        assert main.main(["main", "--list", *asked]) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert why in said
    assert main.main(["main", "--with", "mine.py"]) == 2
    assert "--with names files of your own for --list" in capsys.readouterr().err
