"""students.num_seeds = "auto": blocks of further seeds, at the cell that the first block chose."""

import jax
import numpy as np
import pytest

from mtkd_jax import config as configuration
from mtkd_jax import experiment
from mtkd_jax.data import loading
from mtkd_jax.plans import plan, students
from mtkd_jax.plans.students import Cell, Member
from mtkd_jax.results import comparisons, evaluation
from mtkd_jax.types import UserError
from tests import small

AUTO = {
    "students.modes": ("output_avg",),
    "students.num_seeds": "auto",
    "students.max_seeds": 10,
    "train.epochs": 1,
    "runtime.how": "vmap",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("auto")


@pytest.fixture(scope="module")
def trained(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparisons, "undecided", lambda predictions: [{"a": "output_avg", "b": "baseline"}])
        return experiment.train(small.config(**AUTO), folder, quiet=True)


def test_blocks_are_added_until_the_budget_ends(trained):
    names = [stage.name for stage in trained.stages]
    assert names[1:] == ["students-labelled-output-avg", "students-labelled-output-avg-seeds-5"]
    predicted = evaluation.predict_students(trained.config, trained.split, trained.stages, trained.done)
    for group in predicted.groups:
        assert group.members == tuple(f"seed {seed}" for seed in range(10))
        assert group.test.shape[0] == 10
        model, variables = evaluation.network_of(trained.stages, trained.done, group, 7)
        said = model.apply(variables, loading.scale(trained.split.dataset.test_images))[0].logits
        np.testing.assert_allclose(said, group.test[7], rtol=1e-4, atol=1e-4)


def test_what_is_added_is_what_as_many_seeds_from_the_start_would_train(trained):
    fixed = small.config(**{**AUTO, "students.num_seeds": 10})
    (family,) = students.families(fixed)
    ensemble = plan.ensemble_of(trained.done)
    whole = students.job(fixed, trained.split, "labelled", family, ensemble, {})
    added = trained.stages[-1].make(trained.done)
    rows = [whole.names.index(name) for name in added.names]
    assert len(rows) == 10  # five seeds of output_avg at one cell of two, five of the baseline
    keys, of_whole = jax.random.key_data(added.init_keys), jax.random.key_data(whole.init_keys)
    np.testing.assert_array_equal(keys, of_whole[np.array(rows)])
    np.testing.assert_array_equal(added.order(0), whole.order(0))
    for name in ("alpha", "temperature", "learning_rate"):
        np.testing.assert_array_equal(added.hyper[name], whole.hyper[name][rows])


def test_a_run_ends_where_all_is_decided_and_goes_on_where_it_was(trained, folder, monkeypatch):
    monkeypatch.setattr(comparisons, "undecided", lambda predictions: [])
    with small.compilations() as compiled:
        again = experiment.train(small.config(**AUTO), folder, quiet=True)
    assert [stage.name for stage in again.stages] == [stage.name for stage in trained.stages[:-1]]
    assert not [one for one in compiled if "training" in one]
    raised = small.config(**{**AUTO, "students.max_seeds": 15})
    experiment.train(raised, folder, quiet=True)  # the budget is no part of what a run is
    lowered = small.config(**{**AUTO, "students.max_seeds": 5})
    with pytest.raises(UserError, match="max_seeds: 10 seeds are trained already, .* at least 10"):
        experiment.train(lowered, folder, quiet=True)


def test_the_first_seeds_choose_alone():
    cells = Cell(0.0, 1.0), Cell(0.5, 1.0)
    first = [Member("vote", None, cell, seed) for cell in cells for seed in range(2)]
    added = [Member("vote", None, cells[0], seed) for seed in (2, 3)]
    chosen, grid = students.choose([*first, *added], [0.4, 0.4, 0.5, 0.5, 9.0, 9.0])
    assert chosen == cells[0] and [point["val_nll"] for point in grid] == [0.4, 0.5]
    assert [point["num_seeds"] for point in grid] == [4, 2]


def test_of_cells_in_which_students_broke_down_that_with_the_fewest_is_chosen():
    """The preferred alpha has no student left: of it there would be no row."""
    cells = Cell(0.25, 1.0), Cell(0.0, 1.0), Cell(1.0, 1.0)
    members = [Member("vote", None, cell, seed) for cell in cells for seed in range(2)]
    inf = float("inf")
    chosen, _ = students.choose(members, [inf, inf, inf, 0.4, inf, inf])
    assert chosen == cells[1]
    assert students.choose(members, [0.4, 0.4, inf, 0.1, 0.5, 0.5])[0] == cells[0]


def test_what_auto_cannot_do_is_said():
    with pytest.raises(UserError, match="give a number with plan born_again"):
        small.config(**{"students.num_seeds": "auto", "plan": "born_again"})
    with pytest.raises(UserError, match='"auto"'):
        small.config(**{"students.num_seeds": "many"})
    for odd in (0, 3, 12):  # 10 and 11 would be a block of which a larger budget makes another one
        with pytest.raises(UserError, match=f"max_seeds: {odd} is not possible; .* a multiple of 5"):
            small.config(**{**AUTO, "students.max_seeds": odd})
    more = small.config(**{**AUTO, "students.max_seeds": 15})
    assert configuration.further_seeds(more) == (range(5, 10), range(10, 15))
    few = small.config(**{**AUTO, "students.max_seeds": 5})
    assert configuration.first_seeds(few) == range(5) and configuration.further_seeds(few) == ()
