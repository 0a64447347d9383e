"""The table over data sets: what is ranked and counted, what is told of it, and the command that makes it."""

import copy
import csv
import json

import numpy as np
import pytest

from mtkd_jax import experiment, leaderboard, settings
from mtkd_jax.report import document
from mtkd_jax.report import leaderboard as board_of
from mtkd_jax.report.reads import reads
from mtkd_jax.system import interrupts
from mtkd_jax.types import UserError
from tests.references import predictions as made_up

STUDENTS = {name: one for name, one in made_up.STUDENTS.items() if name != "loss_avg"}
STUDENTS["shuffled_teacher:output_avg"] = ("control", 2.5)


@pytest.fixture(scope="module")
def reports():
    def report(seed, students=STUDENTS):
        made = made_up.make(seed=seed, num_seeds=4, num_test=200, transfers=("labelled",), students=students)
        return json.loads(document.as_json(document.build(made)))

    fewer = {name: one for name, one in STUDENTS.items() if name != "vote"}
    return {"first": report(1), "second": report(2), "third": report(3, fewer)}


@pytest.fixture(scope="module")
def board(reports):
    return board_of.build(reports, {"fourth": "there is no data/fourth.npz"})


def test_methods_are_ranked_within_each_data_set_and_the_order_is_by_their_mean(board, reports):
    names = [one["name"] for one in board["methods"]]
    assert sorted(names) == sorted(name for name in STUDENTS if name != "vote")
    assert board["not_ranked"] == {"vote": ["third"]}
    for name, report in reports.items():
        accuracy = {row["name"]: row["accuracy"]["mean"] for row in report["rows"]}
        for one in board["methods"]:
            better = sum(accuracy[other] > accuracy[one["name"]] for other in names)
            equal = sum(accuracy[other] == accuracy[one["name"]] for other in names)
            assert one["ranks"][name] == better + (equal + 1) / 2
    means = [np.mean(list(one["ranks"].values())) for one in board["methods"]]
    np.testing.assert_allclose([one["mean_rank"] for one in board["methods"]], means)
    assert means == sorted(means)


def test_means_that_differ_by_rounding_alone_tie(reports):
    report = copy.deepcopy(reports["first"])
    accuracy = {row["name"]: row["accuracy"] for row in report["rows"]}
    accuracy["vote"]["mean"] = 0.7 + 0.1
    accuracy["supernet"]["mean"] = 0.8
    assert accuracy["vote"]["mean"] != accuracy["supernet"]["mean"]
    found = {one["name"]: one["mean_rank"] for one in board_of.build({"first": report}, {})["methods"]}
    assert found["vote"] == found["supernet"] and found["vote"] % 1 == 0.5


def test_mistakes_are_those_on_the_transfer_set_that_is_ranked(reports):
    report = copy.deepcopy(reports["first"])
    expected = board_of.build({"first": report}, {})["methods"]
    other = [{**one, "transfer": "unlabelled", "mean_difference": 9.0} for one in report["negative_transfer"]]
    report["negative_transfer"] += other
    assert board_of.build({"first": report}, {})["methods"] == expected


def test_seconds_are_those_of_a_network_whatever_became_of_it(reports):
    """30 s: of two points of the grid five seeds, of the chosen one five more; or one of ten broke down."""
    report = copy.deepcopy(reports["first"])
    rows = {row["name"]: row for row in report["rows"]}
    points = rows["vote"]["grid"]
    for name, numbers, n in (("vote", (10, 5), 10), ("supernet", (5, 5), 4)):
        grid = [{**point, "num_seeds": number} for point, number in zip(points, numbers)]
        rows[name] |= {"train_seconds": 30.0, "grid": grid, "n": n}
    rows["baseline"] |= {"train_seconds": 30.0, "n": 5}  # an earlier version's
    found = {one["name"]: one["cost"]["seconds"] for one in board_of.build({"one": report}, {})["methods"]}
    assert (found["vote"], found["supernet"], found["baseline"]) == pytest.approx((2.0, 3.0, 3.0))


def test_reports_that_have_no_place_in_the_table_are_named(reports, tmp_path):
    names = {
        "no_baseline": "it has no baseline",
        "two": "several architectures",
        "plan": "BANE is of another",
    }
    unfit = {name: copy.deepcopy(reports["first"]) for name in names}
    unfit["no_baseline"]["rows"] = [row for row in unfit["no_baseline"]["rows"] if row["role"] != "baseline"]
    unfit["two"]["student_models"] = ["mlp", "cnn"]
    bane = next(row for row in unfit["plan"]["rows"] if row["name"] == "vote")
    bane |= {"name": "BANE", "role": "average", "grid": []}
    for name, report in {**unfit, "second": reports["second"]}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_bytes(document.as_json(report))
    board = board_of.write(tmp_path, dict.fromkeys((*unfit, "second"), "not finished"))
    assert [one["name"] for one in board["data_sets"]] == ["second"]
    assert list(board["left_out"]) == list(names)
    assert all(what in board["left_out"][name] for name, what in names.items())


def test_differences_are_paired_over_data_sets(board):
    by_name = {one["name"]: [a["mean"] for a in one["accuracy"].values()] for one in board["methods"]}
    for one in board["methods"]:
        if one["name"] == "baseline":
            assert "minus_baseline" not in one
            continue
        difference = np.subtract(by_name[one["name"]], by_name["baseline"])
        found = one["minus_baseline"]
        assert found["mean_difference"] == pytest.approx(difference.mean()) and found["n"] == 3
        assert found["p_holm"] >= found["p_value"]


def test_wins_and_losses_are_the_verdicts_of_the_runs(board, reports):
    header, cells = board_of.table(board)
    for row in cells:
        counted = dict(zip(header, row))
        verdicts = [
            one["verdict"] for report in reports.values() for one in report["rows"] if one["name"] == row[0]
        ]
        for word in ("better", "equivalent", "undecided", "worse"):
            assert counted[word] == ("–" if row[0] == "baseline" else str(verdicts.count(word)))
    assert all(len(row) == len(header) for row in cells)


def test_everything_stands_in_the_files(board, reports, tmp_path):
    for name, report in reports.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_bytes(document.as_json(report))
    why = {**dict.fromkeys(reports, "not run"), "fourth": "there is no data/fourth.npz"}
    assert board_of.write(tmp_path, why) == board
    assert json.loads((tmp_path / "leaderboard.json").read_text()) == board
    lines = list(csv.DictReader((tmp_path / "leaderboard.csv").read_text(encoding="utf-8").splitlines()))
    assert len(lines) == 3 * len(board["methods"])
    text = (tmp_path / "leaderboard.md").read_text(encoding="utf-8")
    assert "3 of 4 data sets are finished" in text and "fourth: there is no data/fourth.npz." in text
    assert "vote is not ranked: no row on third" in text and "(leaderboard.png)" in text
    assert (tmp_path / "leaderboard.svg").read_bytes().startswith(b"<?xml")


def test_one_data_set_is_told_and_not_ranked_against_chance(reports):
    board = board_of.build({"first": reports["first"]}, {})
    assert board["friedman"] is None and board_of.figure(board) is None
    assert "from two data sets on" in board_of.told(board)[-1]
    assert board_of.build({}, {"first": "not run"})["methods"] == []


@pytest.mark.parametrize(
    "row, expected",
    [
        ("output_avg", ["logits"]),
        ("supernet2", ["logits", "embedding"]),
        ("logits.dkd", ["logits", "labels"]),
        ("weights.ca_mkd", ["logits", "labels"]),
        ("weights.ebkd", ["logits"]),
        ("targets.label_smoothing", ["labels"]),
        ("shuffled_teacher:mimic_all", ["logits"]),
        ("control", ["labels"]),
    ],
)
def test_what_a_method_reads_is_found_out(row, expected):
    assert reads(row) == expected


def test_the_command_says_what_is_missing_and_what_it_would_run(tmp_path, monkeypatch, capsys):
    ran = []
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        experiment, "run", lambda config, into, quiet: ran.append((into.name, config.students))
    )
    command = [f"--workdir={tmp_path / 'board'}", "--data=digits,mnist,smoke", "--seeds=3"]
    assert leaderboard.main([*command, "--modes=output_avg,vote"]) == 0
    assert [name for name, _ in ran] == ["digits", "smoke"]
    assert all(own.modes == ("output_avg", "vote") and own.num_seeds == 3 for _, own in ran)
    assert all(own.controlled == ("output_avg",) and len(own.controls) == 2 for _, own in ran)
    said = capsys.readouterr()
    assert "mnist is left out: there is no data/mnist.npz; `python -m mtkd_jax.data fetch mnist`" in said.err
    number = len(settings.variants("leaderboard")) + 1  # and smoke, which was asked for
    assert f"0 of {number} data sets are finished" in said.out.replace("\n", " ")
    assert leaderboard.main([*command, "--modes=vote", "--minutes=0"]) == 0 and len(ran) == 2
    assert leaderboard.main([f"--workdir={tmp_path}", "--data=digit"]) == 2
    assert "there is no variant 'digit'" in capsys.readouterr().err
    for fields, what in {
        "students.modes=": "config.students.modes is empty",
        "students.models=mlp(hidden=(8,)),mlp(hidden=(4,))": "students of one architecture",
        "plan=born_again": "of the plan teachers_then_students alone",
    }.items():
        assert leaderboard.main([f"--workdir={tmp_path}", "--data=smoke", f"--config.{fields}"]) == 2
        said = capsys.readouterr().err
        assert what in said and len(said.splitlines()) == 1
    assert leaderboard.main([]) == 2 and "--workdir is missing" in capsys.readouterr().err
    for minutes in ("nan", "-1", "inf"):
        assert leaderboard.main([*command, f"--minutes={minutes}"]) == 2
        assert f"--minutes={minutes}: must be a number of at least 0" in capsys.readouterr().err


@pytest.mark.parametrize("data, code", [("smoke", 0), ("digits,smoke", 2)])
def test_when_time_is_over_the_table_is_written_and_the_exit_code_says_whether_all_went_well(
    data, code, tmp_path, monkeypatch, capsys
):
    def run(config, into, quiet):
        if into.name == "digits":
            raise UserError("config: there is something wrong with digits")
        while not interrupts.stop_requested():
            pass
        interrupts.check("all is saved")

    monkeypatch.setattr(experiment, "run", run)
    command = [f"--workdir={tmp_path}", f"--data={data}", "--minutes=0.01"]
    assert leaderboard.main(command) == code
    assert "the time is over" in capsys.readouterr().err
    assert (tmp_path / "leaderboard.md").exists()


@pytest.mark.slow(60)
def test_the_digits_sized_table_from_end_to_end(tmp_path):
    page = tmp_path / "page.md"
    folder = tmp_path / "board"
    page.write_text(f"<!-- leaderboard {folder} -->\n<!-- end -->\n")
    command = [
        f"--workdir={folder}",
        "--data=smoke,digits",
        "--modes=output_avg",
        "--seeds=2",
        f"--into={page}",
    ]
    command += ["--config.train.epochs=2", "--config.teachers.num_members=2", "--config.students.alphas=0"]
    assert leaderboard.main(command) == 0
    board = json.loads((folder / "leaderboard.json").read_text())
    # In the order of the configuration, and what it does not offer last.
    assert [one["name"] for one in board["data_sets"]] == ["digits", "smoke"]
    assert {one["name"] for one in board["methods"]} == {
        "output_avg",
        "baseline",
        "random_teacher:output_avg",
        "shuffled_teacher:output_avg",
    }
    before = (folder / "digits" / "report.json").stat().st_mtime_ns
    assert leaderboard.main(command) == 0  # nothing is trained again
    assert (folder / "digits" / "report.json").stat().st_mtime_ns == before
    assert "critical difference" in page.read_text() and (tmp_path / "plots" / "board" / "ranks.png").exists()
