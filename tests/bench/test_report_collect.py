"""Reading run folders, and which seeds share a cell."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from bench.errors import RunError
from bench.report import compare
from bench.report.aggregate import Cell, Summary, spell_steps, summarise
from bench.report.collect import collect
from bench.report.notes import QUICK
from tests.bench.report_runs import make_run

ROOT = Path(__file__).parents[2]


def summary(out: Path) -> Summary:
    return summarise(collect(out))


def only_cell(out: Path) -> Cell:
    (cell,) = summary(out).cells.values()
    return cell


def edit(path: Path, **changes: object) -> None:
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, **changes}))


# -- one run -------------------------------------------------------------------------------------


def test_final_last10_and_best_are_means_of_evaluations(tmp_path):
    run = make_run(tmp_path, finals=None)
    means = [90.0, 80.0, *(float(k) for k in range(1, 11))]  # the last ten are 1..10
    run.append_scores(
        [(k, e, 0.0, 5, m + d) for k, m in enumerate(means) for e, d in enumerate((-1, 0, 1))]
    )
    (read,) = collect(tmp_path).runs
    assert (read.final, read.last10, read.best) == (10.0, 5.5, 90.0)


def test_the_unit_chooses_the_column(tmp_path):
    make_run(tmp_path, finals=40.0, unit="normalized", dataset="a")
    make_run(tmp_path, finals=40.0, unit="return", dataset="b")
    a, b = collect(tmp_path).runs
    assert (a.final, b.final) == (pytest.approx(40.0), pytest.approx(400.0))
    # return_mean 460; the reference of the first is (0, 1000)
    assert (a.dataset_return, b.dataset_return) == (46.0, 460.0)


@pytest.mark.parametrize(("noted", "expected"), [(230.0, 23.0), (None, None)])
def test_the_dataset_itself_is_what_its_behaviour_returns(tmp_path, noted, expected):
    """Catches: the return of the data's episodes where the run notes what an evaluation gives."""
    data = {"fingerprint": "a", "stats": {"return_mean": 460.0}, "behaviour_return": noted}
    make_run(tmp_path, data=data)
    (run,) = collect(tmp_path).runs
    assert run.dataset_return == expected


def test_a_run_without_evaluations_has_no_numbers(tmp_path):
    make_run(tmp_path, finals=None, state="running")
    (run,) = collect(tmp_path).runs
    assert math.isnan(run.final) and math.isnan(run.last10) and math.isnan(run.best)


def test_a_torn_last_line_is_not_read(tmp_path):
    run = make_run(tmp_path, finals=50.0, state="running")
    with open(run.path / "scores.csv", "a") as file:
        file.write("20000,0,99999.0,1,9999")
    (read,) = collect(tmp_path).runs
    assert read.final == pytest.approx(50.0) and len(read.curve) == 10


@pytest.mark.parametrize(
    "line", ["20000,0,1.0,1\n", "20000,0,1.0,1,abc\n", "x,0,1.0,1,2.0\n", "\n"]
)
def test_a_damaged_line_leaves_the_run_out_and_is_named(tmp_path, line):
    make_run(tmp_path, seed=0)
    run = make_run(tmp_path, seed=1, evaluations=2, episodes=1)
    with open(run.path / "scores.csv", "a") as file:
        file.write(line)
    found = collect(tmp_path)
    assert [r.seed for r in found.runs] == [0]
    (problem,) = found.problems
    assert "seed-1/scores.csv: line 4 is damaged" in problem
    assert problem in summarise(found).notes


# -- damage and absence --------------------------------------------------------------------------


@pytest.mark.parametrize("make", [True, False])
def test_nothing_to_compare_names_the_command_that_makes_runs(tmp_path, make):
    out = tmp_path / "results"
    if make:
        out.mkdir()
    with pytest.raises(RunError, match=r"results: .*bench run --algo .* --out .*results"):
        collect(out)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"algorithm": "iql"}, "'algorithm' is 'iql' but the folder says 'td3_bc'"),
        ({"dataset": "x"}, "'dataset' is 'x' but the folder says 'lite/hopper/medium-v0'"),
        ({"config": "0" * 12}, "'config' is '000000000000' but the folder says"),
        ({"seed": 7}, "'seed' is 7 but the folder says 1"),
        ({"seed": "1"}, "'seed' is '1', not int"),
        ({"seed": True}, "'seed' is True, not int"),
        ({"profile": None}, "'profile' is None, not str"),
        ({"unit": "points"}, "'unit' is 'points', not 'normalized' or 'return'"),
        ({"data": [1]}, r"'data' is [1], not dict"),
        ({"paper_protocol": "yes"}, "'paper_protocol' is 'yes', not true or false"),
        ({"reference": None}, "'reference' is None, not list"),
        ({"reference": [5.0, 5.0]}, "'reference' is [5.0, 5.0]"),
        ({"reference": [5.0]}, "'reference' is [5.0]"),
        ({"hyperparameters": 3}, "'hyperparameters' is 3, not dict"),
        ({"resumed_with": ["x"]}, "'resumed_with' holds 'x'"),
        ({"data": {"stats": {"return_mean": "high"}}}, "'return_mean' is 'high'"),
    ],
)
def test_an_edited_config_is_one_clear_line(tmp_path, changes, words):
    make_run(tmp_path, seed=0)
    path = make_run(tmp_path, seed=1).path / "config.json"
    edit(path, **changes)
    found = collect(tmp_path)
    assert [run.seed for run in found.runs] == [0]
    (problem,) = found.problems
    assert words in problem and str(path) in problem and "\n" not in problem


@pytest.mark.parametrize("content", ["", "{", "[1]", "\xff\xfe"])
def test_an_unreadable_config_is_one_clear_line_and_alone_an_error(tmp_path, content):
    path = make_run(tmp_path).path / "config.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(RunError, match=r"no run folder can be read; .*config\.json: ") as caught:
        collect(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_folder_without_config_is_named(tmp_path):
    make_run(tmp_path, seed=0)
    (make_run(tmp_path, seed=1).path / "config.json").unlink()
    assert "seed-1/config.json: not readable" in collect(tmp_path).problems[0]


# -- choosing ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("algos", "datasets", "count"),
    [
        (None, None, 4),
        (["td3_bc"], None, 2),
        (["TD3+BC"], None, 2),
        (["TD3*"], ["a"], 1),
        (["iql", "td3_bc"], ["*/v0"], 2),
        (None, ["a", "b/v0"], 4),
    ],
)
def test_names_labels_and_globs_choose(tmp_path, algos, datasets, count):
    for algo in ("td3_bc", "iql"):
        for dataset in ("a", "b/v0"):
            make_run(tmp_path, algo, dataset)
    assert len(collect(tmp_path, algos=algos, datasets=datasets).runs) == count


def test_a_choice_that_matches_nothing_says_what_there_is(tmp_path):
    make_run(tmp_path)
    with pytest.raises(RunError, match="no run matches; there is td3_bc on lite/hopper/medium-v0"):
        collect(tmp_path, algos=["sac"])


# -- cells ---------------------------------------------------------------------------------------


def test_seeds_of_one_cell_are_averaged_by_hand(tmp_path):
    for seed, final in enumerate((10.0, 20.0, 60.0)):
        make_run(tmp_path, seed=seed, finals=final)
    cell = only_cell(tmp_path)
    assert cell.mean == pytest.approx(30.0)
    # sd = sqrt(700), half width 4.30265 * sqrt(700 / 3)
    assert cell.interval == pytest.approx((30 - 65.7245, 30 + 65.7245), abs=1e-3)


@pytest.mark.parametrize(
    ("changes", "first", "second"),
    [
        ({"hyper": {"alpha": 1.0, "discount": 0.99}}, "alpha=1.0", "alpha=2.5"),
        ({"steps": 1_000_000}, "10k steps", "1M steps"),
        ({"profile": "quick"}, "paper profile", "quick profile"),
    ],
)
def test_what_differs_is_never_averaged_and_is_in_the_label(tmp_path, changes, first, second):
    make_run(tmp_path, finals=10.0)
    make_run(tmp_path, finals=90.0, seed=1, **changes)
    table = summary(tmp_path)
    assert [row.label for row in table.rows] == [f"TD3+BC ({first})", f"TD3+BC ({second})"]
    assert sorted(round(cell.mean) for cell in table.cells.values()) == [10, 90]


def test_other_data_under_the_same_name_is_a_row_of_its_own_and_flagged(tmp_path):
    for seed, letter in enumerate("ab"):
        make_run(tmp_path, seed=seed, fingerprint=letter * 64,
                 data={"fingerprint": letter * 64, "stats": {}})  # fmt: skip
    table = summary(tmp_path)
    assert [row.label for row in table.rows] == ["TD3+BC (data=aaaaaaaa)", "TD3+BC (data=bbbbbbbb)"]
    assert any("mixed dataset fingerprints (aaaaaaaaaaaa, bbb" in note for note in table.notes)


def test_many_differences_are_named_by_the_hash(tmp_path):
    one = make_run(tmp_path, hyper=dict.fromkeys("abcd", 1)).path.parent.name
    two = make_run(tmp_path, hyper=dict.fromkeys("abcd", 2)).path.parent.name
    labels = {row.label for row in summary(tmp_path).rows}
    assert labels == {f"TD3+BC (config {one})", f"TD3+BC (config {two})"}


def test_configs_that_differ_only_outside_the_hyperparameters_are_kept_apart(tmp_path):
    one = make_run(tmp_path, fingerprint="1" * 64, data={})
    two = make_run(tmp_path, fingerprint="2" * 64, data={})
    labels = {row.label for row in summary(tmp_path).rows}
    assert labels == {f"TD3+BC (config {run.path.parent.name})" for run in (one, two)}


def test_recipes_that_differ_between_datasets_share_a_row(tmp_path):
    make_run(tmp_path, dataset="a", hyper={"tau": 0.7})
    make_run(tmp_path, dataset="b", hyper={"tau": 0.9})
    table = summary(tmp_path)
    assert [row.label for row in table.rows] == ["TD3+BC"] and len(table.cells) == 2


def test_a_variant_has_one_row_over_all_datasets(tmp_path):
    make_run(tmp_path, dataset="a", hyper={"alpha": 1.0})
    make_run(tmp_path, dataset="a", hyper={"alpha": 2.5})
    make_run(tmp_path, dataset="b", hyper={"alpha": 2.5})
    table = summary(tmp_path)
    assert [row.label for row in table.rows] == ["TD3+BC (alpha=1.0)", "TD3+BC (alpha=2.5)"]
    assert len(table.cells) == 3


def test_one_label_for_two_algorithms_is_told_apart(tmp_path):
    make_run(tmp_path, "cql", label="CQL")
    make_run(tmp_path, "cql_upstream", label="CQL")
    labels = [row.label for row in summary(tmp_path).rows]
    assert labels == ["CQL (cql)", "CQL (cql_upstream)"]


def test_one_dataset_in_two_environments_or_units_has_two_columns(tmp_path):
    make_run(tmp_path, env_id="Hopper-v4", hyper={"a": 1})
    make_run(tmp_path, env_id="Hopper-v5", hyper={"a": 1}, unit="return", seed=1)
    titles = [column.title for column in summary(tmp_path).columns]
    assert titles == [
        "lite/hopper/medium-v0 [Hopper-v4, normalized]",
        "lite/hopper/medium-v0 [Hopper-v5, return]",
    ]


def test_unfinished_seeds_are_counted_not_averaged_and_not_dropped(tmp_path):
    make_run(tmp_path, seed=0, finals=10.0)
    make_run(tmp_path, seed=1, finals=20.0)
    make_run(tmp_path, seed=2, finals=1000.0, state="diverged")
    make_run(tmp_path, seed=3, finals=1000.0, state="running")
    make_run(tmp_path, seed=4, finals=None, state="done")
    cell = only_cell(tmp_path)
    assert (cell.mean, cell.n, len(cell.runs)) == (pytest.approx(15.0), 2, 5)
    assert cell.missing() == "1 diverged, 1 running, 1 without a score"
    notes = summary(tmp_path).notes
    assert "2 of 5 runs are not finished and in no mean: 1 diverged, 1 running" in notes
    assert "1 finished run without a finite score, in no mean" in notes


def test_other_reference_returns_are_other_columns_and_flagged(tmp_path):
    other = {"reference": [0.0, 500.0]}
    make_run(tmp_path, seed=0)
    make_run(tmp_path, seed=1, reference=[0.0, 1000.0 * (1 + 2**-52)])  # a last bit is no other
    assert not any("reference" in note for note in summary(tmp_path).notes)
    make_run(tmp_path, seed=2, **other)
    make_run(tmp_path, "iql", seed=0, **other)
    table = summary(tmp_path)
    assert [(column.title, column.reference) for column in table.columns] == [
        ("lite/hopper/medium-v0 [reference 0 to 500]", 92.0),
        ("lite/hopper/medium-v0 [reference 0 to 1000]", 46.0),
    ]
    assert [len(table.column_cells(column)) for column in table.columns] == [2, 1]
    assert [row.label for row in table.rows] == ["IQL", "TD3+BC"]
    note = "lite/hopper/medium-v0: mixed reference returns (0 to 1000, 0 to 500)"
    assert any(found.startswith(note) for found in table.notes)
    compare(tmp_path, echo=False)  # every format can tell the columns apart


def test_a_reference_that_changed_at_a_resume_is_flagged_and_the_last_one_counts(tmp_path):
    path = make_run(tmp_path).path / "config.json"
    edit(path, resumed_with=[{"reference": [0.0, 500.0]}, {"git_commit": "a" * 40}])
    table = summary(tmp_path)
    assert any("mixed reference returns (0 to 1000, 0 to 500)" in note for note in table.notes)
    assert table.columns[0].reference == 92.0


def test_mixed_commits_and_versions_are_flagged_also_those_of_a_resume(tmp_path):
    make_run(tmp_path, seed=0)
    assert not any("mixed" in note for note in summary(tmp_path).notes)
    run = make_run(tmp_path, seed=1)
    leg = {"git_commit": "b" * 40, "versions": {"torch": "2.11.0"}, "device": "cpu"}
    edit(run.path / "config.json", resumed_with=[leg])
    notes = summary(tmp_path).notes
    assert "mixed git commits: aaaaaaaaaa, bbbbbbbbbb" in notes
    assert "mixed versions: torch 2.11.0, 2.13.0" in notes


def test_quick_and_changed_protocols_are_said(tmp_path):
    make_run(tmp_path, "cql", protocol={"paper_protocol": False})  # not where it is kept
    make_run(tmp_path, "iql", paper_protocol=False)
    note = "not the paper's protocol (steps or settings were changed): IQL"
    assert note in summary(tmp_path).notes
    make_run(tmp_path, "bc", profile="quick")
    assert any(note.startswith(QUICK) for note in summary(tmp_path).notes)


def test_steps_are_spelled_short_and_exact():
    spelled = [spell_steps(n) for n in (None, 500, 1500, 1234, 10_000, 1_000_000, 2_500_000)]
    assert spelled == [
        "unknown steps", "500 steps", "1.5k steps", "1234 steps", "10k steps", "1M steps",
        "2.5M steps",
    ]  # fmt: skip


def test_the_report_imports_neither_torch_nor_training_nor_mlflow(tmp_path):
    make_run(tmp_path)
    code = """
import sys
from pathlib import Path
from bench.report import compare
early = [m for m in ("pandas", "matplotlib", "seaborn", "numpy") if m in sys.modules]
compare(Path(sys.argv[1]), echo=False)
wrong = [m for m in sys.modules if m.split(".")[0] in ("torch", "tensordict", "mlflow", "rlobj")]
print(early, wrong, [m for m in sys.modules if m.startswith("bench.train")])
"""
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "[] [] []", done.stdout + done.stderr
