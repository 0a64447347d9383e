"""Configuration: what is right passes, what is wrong is told in one line that names the field."""

import inspect
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from mtkd_jax import addresses, listing, validation
from mtkd_jax import config as configuration
from mtkd_jax.types import Task, UserError
from tests import small


def test_the_default_is_valid():
    validation.validate(configuration.default())


@pytest.mark.parametrize(
    "field, value, right",
    [
        ("teachers.num_members", 0, "at least 1"),
        ("students.alphas", (0.0, 1.5), "[0, 1]"),
        ("students.alphas", (0.0, float("nan")), "students.alphas"),
        ("students.temperatures", (0.0,), "above 0"),
        ("students.transfer", ("labeled",), "labelled"),
        ("students.num_seeds", 0, "at least 1"),
        ("data.val_fraction", 1.0, "between 0 and 1"),
        ("teachers.subset_fraction", 0.0, "(0, 1]"),
        ("data.augment.rand_augment", (2,), "(2, 7)"),
        ("data.augment.rand_augment", (2, 11), "[0, 10]"),
        ("train.optimizer", "adamm", "adam"),
        ("report.margin", 0.0, "between 0 and 1"),
        ("report.cascade_tolerance", 1.0, "between 0 and 1"),
        ("runtime.how", "vmapp", "vmap"),
        ("train.eval_every", 3, "2 does"),
        ("students.modes", ("mimic_al",), "'mimic_all'"),
        ("students.modes", ("vote", "vote"), "twice"),
        ("students.modes", ("vote", "vote()"), "twice"),
        ("teachers.models", ("mlp", "mlp(hidden=(64, 64))"), "twice"),
        ("fusion.rules", ("borda", "borda"), "twice"),
        ("students.alphas", (), "empty"),
        ("students.temperatures", (), "empty"),
        ("students.transfer", (), "empty"),
        ("seed", 10**23, "2**31"),
        ("students.modes", ("mimic_all(",), "not an address"),
        ("students.modes", ("fused:borda",), "no rule that gives probabilities"),
        ("students.modes", ("logits.regression:borda",), "takes no argument"),
        ("students.modes", ("fusd:2",), "did you mean 'fused'"),
        ("model.name", "mlpp:2", "'mlp'"),
        ("fusion.rules", ("stacking(l2=1.0)",), "without arguments"),
        ("students.modes", ("vote(temprature=2)",), "no argument 'temprature'"),
        ("model.name", "mpl", "'mlp'"),
        ("model.name", "mlp(hiden=(3,))", "did you mean 'hidden'?"),
        ("model.name", "mlp(hidden=3)", "tuple[int, ...]"),
        ("model.name", "mlp(dropout=1.5)", "mlp.dropout"),
        ("model.name", "mlp(__import__('os'))", "not an address"),
        ("model.name", "mlp(hidden=__import__('os'))", "not an address"),
        ("model.name", "mlp(**{'hidden': (3,)})", "not an address"),
        ("model.name", "(" * 500 + ")" * 500, "not an address"),
        ("teachers.models", ("mlp", "cnnn"), "'cnn'"),
        ("teachers.learning_rates", (0.1, 0.2), "2 values for 3 members"),
        ("fusion.rules", ("mean_prob",), "'mean_probs'"),
        ("data.source", "digit", "'digits'"),
        ("data.source", "npz", "data.path"),
        ("data.source", "synthetic(num_clases=3)", "'num_classes'"),
    ],
)
def test_what_is_wrong_is_one_line_that_names_the_field(field, value, right):
    with pytest.raises(UserError) as caught:
        small.config(**{field: value})
    message = str(caught.value)
    assert field in message
    assert right in message
    assert "\n" not in message


@pytest.mark.parametrize(
    "field, value, expected",
    [
        ("train.epochs", "many", "config.train.epochs is 'many'"),
        ("train.epochs", True, "config.train.epochs is True"),
        ("train.epoch", 3, "did you mean 'train.epochs'?"),
        ("train.lr", 3, "did you mean 'train.learning_rate'?"),
        ("students.modes", "a,b", "a tuple of str, such as ('mimic_all', "),
        ("teachers.learning_rates", 0.1, "a tuple of float, such as (0.1,)"),
        ("students.arguments", 3, "must be a dict, such as {'vote': {}}"),
        ("train.epochs", None, "config.train.epochs is None"),
        ("train", 3, "config.train is 3"),
        ("students.alphas", ("a",), "tuple of float"),
        ("teachers.models", ("mlp", 3), "tuple of str"),
    ],
)
def test_types_and_unknown_fields_are_named(field, value, expected):
    loose = ConfigDict(configuration.default().to_dict(), type_safe=False)
    *groups, name = field.split(".")
    (loose[groups[0]] if groups else loose)[name] = value
    with pytest.raises(UserError) as caught:
        validation.validate(loose)
    assert expected in str(caught.value)


def test_missing_fields_are_named():
    loose = ConfigDict(configuration.default().to_dict())
    del loose.train.epochs
    with pytest.raises(UserError, match="config.train.epochs is missing"):
        validation.validate(loose)


def test_a_colon_inside_an_argument_is_part_of_it():
    assert addresses.resolve("source", "tfds(name='mnist:3.0.1')", "data.source")[1] == {
        "name": "mnist:3.0.1"
    }


def test_a_teacher_has_a_bootstrap_sample_or_a_subset():
    with pytest.raises(UserError, match="one or the other"):
        small.config(**{"teachers.bootstrap": True, "teachers.subset_fraction": 0.5})


def test_whole_numbers_pass_for_floats():
    small.config(**{"students.alphas": (0, 1), "students.temperatures": (1, 4)})


def test_modes_that_need_more_teachers_than_there_are_say_so(monkeypatch):
    greedy = addresses.build_recipe("vote")._replace(min_teachers=4)
    monkeypatch.setattr(configuration, "build_recipe", lambda address, field="": greedy)
    with pytest.raises(UserError, match="needs at least 4 teachers, config.teachers gives 3"):
        small.config()


def test_unknown_variant_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'smoke'"):
        configuration.variant(configuration.default(), "smok", smoke=lambda config: None)


@pytest.mark.parametrize("kind", addresses.KINDS)
def test_everything_that_can_be_named_is_listed_with_a_first_line(kind):
    for name, function in addresses.catalogue(kind).items():
        first = inspect.getdoc(function).splitlines()[0]
        assert first.endswith((".", ":", "!")) or "(" in first, f"{name}: {first!r} is not a sentence"
        assert name in listing.listing()


def test_an_address_is_also_the_name_of_what_it_builds():
    task = Task(num_classes=3, num_heads=2, mean=(0.0,), std=(1.0,))
    model = addresses.build_model("mlp(hidden=(5,))", task)
    assert addresses.build_model(model.name, task) == model
    assert addresses.build_recipe("mimic_all").name == "mimic_all"


def test_no_function_is_shadowed_by_another_of_its_name():
    """Two modules of a package must not define the same address."""
    for kind, (place, returns, *_) in addresses.KINDS.items():
        if kind == "mode":
            continue
        sources = Path(configuration.__file__).parent
        place = place.replace(".", "/")
        files = [sources / f"{place}.py", *(sources / place).glob("*.py")]
        text = "\n".join(file.read_text() for file in files if file.exists())
        for name in addresses.catalogue(kind):
            assert text.count(f"\ndef {name}(") == 1, name
        assert returns
