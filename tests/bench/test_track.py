"""The mirror in MLflow against the run folders it mirrors, on one sqlite store for the module."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from bench.errors import BenchError, RunError
from bench.store import RunFolder
from bench.track import MirrorError, default_uri, sync
from bench.track import mirror as track_mirror
from bench.track.folders import Rewritten, read_seed, unsent, values
from tests.bench.mirror_tools import database, expected, key, mirrored, out, rows
from tests.bench.report_runs import make_run

__all__ = ["database", "out"]  # fixtures

pytestmark = pytest.mark.filterwarnings("default")  # mlflow's dependencies warn as they please

ROOT = Path(__file__).parents[2]


def test_the_mirror_equals_the_folders_and_a_second_sync_sends_nothing(out):
    runs = [make_run(out, algo, seed=seed, unit=unit, dataset=unit)
            for algo in ("td3_bc", "iql") for unit in ("normalized", "return")
            for seed in (0, 1)]  # fmt: skip
    report = sync(out)
    found = mirrored(out)
    for run in runs:
        assert found[key(out, run)]["metrics"] == expected(run, 10_000)
    # 8 seeds and 4 parents; 20 metrics, 10 evaluations with a normalized score or without
    assert (report.runs, report.created) == (8, 12)
    assert (
        report.metrics == 4 * (20 + 30) + 4 * (20 + 20) == len(rows(out, "SELECT 1 FROM metrics"))
    )
    again = sync(out)
    assert (again.created, again.metrics, again.artifacts, again.problems) == (0, 0, 0, [])
    assert mirrored(out) == found


def test_parents_children_parameters_tags_and_dataset(out):
    run = make_run(out, seed=3, fingerprint="f" * 64,
                   data={"fingerprint": "f" * 64, "stats": {"episodes": 7}})  # fmt: skip
    sync(out)
    found = mirrored(out)
    child, parent = found[key(out, run)], found[key(out, run).rpartition("/")[0]]
    assert child["tags"]["mlflow.parentRunId"] == parent["id"]
    assert "mlflow.parentRunId" not in parent["tags"] and parent["metrics"] == []
    assert child["params"] == {
        "alpha": "2.5", "discount": "0.99", "algorithm": "td3_bc", "seed": "3",
        "dataset": "lite/hopper/medium-v0", "profile": "paper", "steps": "10000",
        "eval_interval": "1000", "eval_episodes": "5",
    }  # fmt: skip
    shared = {k: v for k, v in child["params"].items() if k not in ("seed", "steps")}
    assert parent["params"] == shared
    for name, value in {
        "mlflow.source.git.commit": "a" * 40, "bench.recipe": "td3_bc", "bench.state": "done",
        "bench.profile": "paper", "bench.version": "0.1.0", "bench.seed": "3",
        "bench.dataset_fingerprint": "f" * 64,
    }.items():  # fmt: skip
        assert child["tags"][name] == value, name
    assert child["name"] == "TD3+BC seed-3" and parent["name"].startswith("TD3+BC ")
    names = {name for (name,) in rows(out, "SELECT name FROM experiments")}
    assert names == {"Default", "lite/hopper/medium-v0"}
    datasets = rows(out, "SELECT name, digest, dataset_profile FROM datasets")
    assert datasets == [("lite/hopper/medium-v0", "f" * 12, '{"episodes": 7}')]
    links = rows(out, "SELECT destination_id FROM inputs WHERE source_type='DATASET'")
    assert {id_ for (id_,) in links} == {child["id"], parent["id"]}
    whole = rows(out, "SELECT value FROM input_tags WHERE name='fingerprint'")
    assert set(whole) == {("f" * 64,)}


def test_what_a_plan_records_reaches_the_tags(out):
    """The record as `bench run` writes it, not as this module imagines it."""
    from bench import plan

    run = make_run(out, versions=plan.versions(), git_commit=plan.git_commit() or "none")
    seed = read_seed(out, run.path)
    assert seed.tags()["bench.version"] == version("rlobj-bench")
    assert seed.tags()["mlflow.source.git.commit"] == (plan.git_commit() or "none")


@pytest.mark.parametrize(
    ("states", "children", "parent"),
    [
        (["done", "done"], ["FINISHED", "FINISHED"], "FINISHED"),
        (["done", "running"], ["FINISHED", "RUNNING"], "RUNNING"),
        (["done", "failed", "running"], ["FINISHED", "FAILED", "RUNNING"], "RUNNING"),
        (["done", "diverged"], ["FINISHED", "FAILED"], "FAILED"),
        (["done", "killed"], ["FINISHED", "KILLED"], "KILLED"),
    ],
)
def test_statuses(out, states, children, parent):
    runs = [make_run(out, seed=seed, state=state) for seed, state in enumerate(states)]
    sync(out)
    found = mirrored(out)
    assert [found[key(out, run)]["status"] for run in runs] == children
    assert found[key(out, runs[0]).rpartition("/")[0]]["status"] == parent
    for run, status in zip(runs, children, strict=True):
        start, end = found[key(out, run)]["times"]
        assert start > 1.6e12 and (end is None) == (status == "RUNNING")


def test_a_status_that_changes_is_followed_both_ways(out):
    run = make_run(out, state="killed")
    sync(out)
    run.set_status("running")
    sync(out)
    found = mirrored(out)
    assert found[key(out, run)]["status"] == "RUNNING"
    assert found[key(out, run)]["tags"]["bench.state"] == "running"
    run.set_status("failed", reason="CUDA out of memory")
    assert sync(out).metrics == 0
    found = mirrored(out)
    assert found[key(out, run)]["status"] == "FAILED"
    assert found[key(out, run)]["tags"]["bench.reason"] == "CUDA out of memory"


def test_only_durable_rows_are_sent_and_the_rest_when_it_is_durable(out):
    run = make_run(out, state="running")  # rows up to step 10 000
    run.set_status("running", step=4_500)
    with open(run.path / "metrics.csv", "a") as file:
        file.write("11000,loss/q,0.")  # being written
    sync(out)
    half = mirrored(out)[key(out, run)]["metrics"]
    assert half == [r for r in expected_torn(run) if r[1] <= 4_500] and half
    run.set_status("running", step=10_000)
    report = sync(out)
    assert mirrored(out)[key(out, run)]["metrics"] == expected_torn(run)
    assert report.metrics == len(expected_torn(run)) - len(half)


def expected_torn(run: RunFolder) -> list[tuple[str, int, float]]:
    path = run.path / "metrics.csv"
    torn = path.read_text()
    path.write_text(torn[: torn.rfind("\n") + 1])
    wanted = expected(run, 10_000)
    path.write_text(torn)
    return wanted


def test_a_run_that_was_made_anew_is_mirrored_anew(out):
    run = make_run(out, state="running")
    sync(out)
    old = mirrored(out)[key(out, run)]["id"]
    shutil.rmtree(run.path)
    run = make_run(out, state="running", finals=99.0)
    sync(out)
    found = mirrored(out)
    assert found[key(out, run)]["id"] != old and len(found) == 2
    assert found[key(out, run)]["metrics"] == expected(run, 10_000)


def test_a_run_that_is_trained_longer_has_the_new_steps_and_all_values(out):
    run = make_run(out)
    sync(out)
    run.append_metrics([(20_000, "loss/q", 0.5)])
    run.set_status("done", step=20_000, steps=20_000)
    sync(out)
    found = mirrored(out)[key(out, run)]
    assert found["params"]["steps"] == "20000"
    assert found["metrics"] == expected(run, 20_000)


def test_a_fallback_to_an_older_checkpoint_leaves_the_mirror_equal_to_the_disk(out):
    run = make_run(out, state="running")
    sync(out)
    run.truncate_after(5_000)
    run.set_status("running", step=5_000)
    sync(out)
    assert mirrored(out)[key(out, run)]["metrics"] == expected(run, 5_000)


def test_more_values_than_one_call_takes_and_odd_numbers_and_names(out):
    run = make_run(out, finals=None, state="running", hyper={"nested": {"a": 1}, "läyers (n)": [2]})
    run.append_metrics([(k, "loss q%", k / 7) for k in range(2500)])
    run.append_metrics([(2500, "nan", float("nan")), (2500, "inf", float("-inf"))])
    run.set_status("running", step=2500)
    assert sync(out).metrics == 2502
    assert len(rows(out, "SELECT 1 FROM metrics WHERE key='loss q_'")) == 2500
    assert rows(out, "SELECT is_nan FROM metrics WHERE key='nan'") == [(1,)]
    params = mirrored(out)[key(out, run)]["params"]
    assert params["nested.a"] == "1" and params["l_yers _n_"] == "[2]"


def calls(monkeypatch: pytest.MonkeyPatch, stop_at: int) -> None:
    """MLflow fails for good at the n-th call."""
    from mlflow.tracking import MlflowClient

    count = 0

    def counted(real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += 1
            if count == stop_at:
                raise ConnectionError("the server\nis gone")
            return real(*args, **kwargs)

        return wrapped

    for name in ("create_experiment", "create_run", "log_batch", "log_inputs", "set_terminated"):
        monkeypatch.setattr(MlflowClient, name, counted(getattr(MlflowClient, name)))


def test_stopped_at_any_call_and_synced_again_is_complete(out, database, tmp_path, monkeypatch):
    run = make_run(out, evaluations=1)
    run.append_metrics([(10_000, f"m{k}", 1.0) for k in range(45)])
    monkeypatch.setattr(track_mirror, "BATCH", 20)
    stopped = 0
    while True:
        place = tmp_path / f"attempt{stopped}"  # MLflow keeps a store open: each has its own
        shutil.copytree(out, place)
        with monkeypatch.context() as patch:
            calls(patch, stopped + 1)
            try:
                sync(place)
            except MirrorError as error:
                assert "ConnectionError: the server is gone; the runs on disk are " in str(error)
            else:
                break
        stopped += 1
        sync(place)
        found = mirrored(place)
        assert found[key(out, run)]["metrics"] == expected(run, 10_000), stopped
        assert {item["status"] for item in found.values()} == {"FINISHED"} and len(found) == 2
        assert len(rows(place, "SELECT 1 FROM inputs WHERE source_type='DATASET'")) == 2
    assert stopped >= 10


def test_a_new_store_is_filled_from_disk(out, database):
    run = make_run(out)
    first = sync(out)
    shutil.copy(database, out / "new.db")
    again = sync(out, uri=f"sqlite:///{out}/new.db")
    assert (again.created, again.metrics) == (first.created, first.metrics) == (2, 50)
    (out / "new.db").rename(out / "mlflow.db")
    assert mirrored(out)[key(out, run)]["metrics"] == expected(run, 10_000)


def test_runs_deleted_in_mlflow_come_back(out):
    run = make_run(out)
    sync(out)
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=default_uri(out))
    experiment = client.get_experiment_by_name("lite/hopper/medium-v0").experiment_id
    client.delete_experiment(experiment)
    sync(out)
    client.delete_run(mirrored(out)[key(out, run)]["id"])
    report = sync(out)
    assert report.created == 1 and len(mirrored(out)) == 2


def test_two_mirrors_in_turn_make_no_run_twice(out):
    one, two = track_mirror.Mirror(out), track_mirror.Mirror(out)
    make_run(out, seed=0)
    one.sync()
    two.sync()
    make_run(out, seed=1)
    assert two.sync().created == 1
    make_run(out, seed=2)
    assert (one.sync().created, two.sync().created) == (1, 0)
    assert len(mirrored(out)) == 4  # asserts uniqueness too


def test_the_comparison_is_sent_as_files_once_and_again_when_it_changes(out):
    make_run(out)
    (out / "compare" / "plots").mkdir(parents=True)
    (out / "compare" / "table.md").write_text("one")
    (out / "compare" / "plots" / "a.png").write_bytes(b"png")
    assert sync(out).artifacts == 2
    stored = {p.relative_to(out / "mlartifacts").parts[2:]: p.read_bytes()
              for p in (out / "mlartifacts").rglob("*") if p.is_file()}  # fmt: skip
    assert stored == {("table.md",): b"one", ("plots", "a.png"): b"png"}
    assert sync(out).artifacts == 0
    (out / "compare" / "table.md").write_text("two")
    assert sync(out).artifacts == 2
    assert [p.read_text() for p in (out / "mlartifacts").rglob("table.md")] == ["two"]
    assert mirrored(out)["compare"]["status"] == "FINISHED"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", "{", "config.json: not readable"),
        ("config.json", '{"hyperparameters": [1]}', "'hyperparameters' is not an object"),
        ("status.json", "[]", "status.json: holds a list"),
        ("metrics.csv", "step,name,value\n1,a\n", "metrics.csv: a damaged row"),
        ("scores.csv", "step,episode\nx,y\n", "seed-0: invalid literal"),
    ],
)
def test_a_damaged_folder_is_named_and_stops_no_other(out, name, content, words):
    bad, good = make_run(out, seed=0), make_run(out, seed=1)
    (bad.path / name).write_text(content)
    (problem,) = sync(out).problems
    assert words in problem and "seed-0" in problem
    assert mirrored(out)[key(out, good)]["metrics"] == expected(good, 10_000)


def test_the_default_uri_is_absolute_and_the_variable_is_honoured(out, monkeypatch):
    monkeypatch.chdir(out.parent)
    assert default_uri(Path("results")) == f"sqlite:///{out}/mlflow.db"
    assert default_uri(Path("results")).startswith("sqlite:////")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://somewhere:5000")
    assert default_uri(out) == "http://somewhere:5000"
    make_run(out)
    elsewhere = f"sqlite:///{out}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", elsewhere)
    assert sync(out).uri == elsewhere


def test_the_store_is_in_wal_mode(database):
    connection = sqlite3.connect(database)
    assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()


def test_a_missing_folder_and_a_dead_server_are_one_line(out, tmp_path):
    with pytest.raises(RunError, match="nothing: does not exist; make runs with `bench run`"):
        sync(tmp_path / "nothing")
    make_run(out)
    with pytest.raises(MirrorError, match=r"MLflow at http://127\.0\.0\.1:9: .*safe") as caught:
        sync(out, uri="http://127.0.0.1:9")
    assert "\n" not in str(caught.value)


def test_without_mlflow_it_says_what_to_do(out, monkeypatch):
    make_run(out)
    monkeypatch.setattr(track_mirror.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BenchError, match=r"not installed; .*`bench sync` will fill MLflow later"):
        sync(out)


def test_importing_the_tracker_imports_nothing_heavy():
    code = (
        "import sys, bench.track; print({'mlflow', 'torch', 'pandas', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr


def test_unsent_stops_at_what_changed(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,name,value\n1,a,0.5\n2,a,0.25\n9,a,0.1\n")
    rows_, mark = unsent(path, 3, "", 2)
    assert rows_ == [["1", "a", "0.5"], ["2", "a", "0.25"]]
    assert unsent(path, 3, mark, 2) == ([], mark)
    assert unsent(path, 3, mark, 9)[0] == [["9", "a", "0.1"]]
    path.write_text(path.read_text().replace("0.5", "0.6"))
    with pytest.raises(Rewritten):
        unsent(path, 3, mark, 9)
    assert unsent(tmp_path / "missing.csv", 3, "", 9)[0] == []


def test_values_by_hand():
    metrics = [["5", "loss", "0.5"]]
    scores = [["5", "0", "1.0", "10", ""], ["5", "1", "2.0", "30", ""], ["9", "0", "4.0", "1", "8"]]
    assert values(metrics, scores) == [
        ("loss", 0.5, 5), ("eval/return", 1.5, 5), ("eval/length", 20.0, 5),
        ("eval/return", 4.0, 9), ("eval/length", 1.0, 9), ("eval/normalized_score", 8.0, 9),
    ]  # fmt: skip
