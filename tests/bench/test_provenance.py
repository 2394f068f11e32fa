"""Which code a run was trained by: the fingerprint, and what is said where it is another."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import pytest

from bench import plan
from bench.data import load
from bench.engine.cell import Cell
from bench.errors import RunError
from bench.plan import Plan, Request, make_plan
from bench.provenance import ROOT, code_fingerprint, spell_commit
from tests.bench.runs import pendulum_file

TREE = {
    "bench/__init__.py": "",
    "bench/recipes/__init__.py": "",
    "bench/recipes/one.py": "from rlobj.one import Loss\nfrom bench.recipes import _common",
    "bench/recipes/two.py": "import torch",
    "bench/recipes/_common.py": "def late():\n    import bench.nets",
    "bench/nets.py": "from rlobj import noise",
    "bench/engine/__init__.py": "",
    "bench/engine/worker.py": "from .cell import Cell\nfrom bench.data import load",
    "bench/engine/cell.py": "import bench.store.runs",
    "bench/data/__init__.py": "",
    "bench/store/runs.py": "",
    "bench/report.py": "",
    "rlobj/__init__.py": "",
    "rlobj/one.py": "from rlobj.deep.er import f",
    "rlobj/two.py": "",
    "rlobj/noise.py": "",
    "rlobj/deep/__init__.py": "",
    "rlobj/deep/er.py": "from . import beside",
    "rlobj/deep/beside.py": "",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in TREE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("bench/recipes/one.py", True),
        ("bench/recipes/_common.py", True),
        ("bench/nets.py", True),
        ("bench/engine/worker.py", True),
        ("bench/engine/cell.py", True),
        ("bench/engine/__init__.py", True),  # imported before what is in it
        ("rlobj/__init__.py", True),
        ("rlobj/one.py", True),
        ("rlobj/noise.py", True),
        ("rlobj/deep/er.py", True),
        ("rlobj/deep/beside.py", True),
        ("rlobj/two.py", False),  # another algorithm's
        ("bench/recipes/two.py", False),
        ("bench/recipes/three.py", False),  # new
        ("bench/report.py", False),
        ("bench/data/__init__.py", False),  # its outcome is the data's fingerprint
        ("bench/store/runs.py", False),
    ],
)
def test_what_the_fingerprint_covers(tree: Path, file: str, counts: bool) -> None:
    """Catches: a changed loss that nobody notices, and a warning for a file that cannot matter."""
    before = code_fingerprint("one", tree)
    (tree / file).write_text("changed = True\n" + TREE.get(file, ""))
    assert (code_fingerprint("one", tree) != before) == counts


def test_a_file_that_moves_is_another_program(tree: Path) -> None:
    before = code_fingerprint("one", tree)
    (tree / "rlobj/noise").mkdir()
    (tree / "rlobj/noise.py").rename(tree / "rlobj/noise/__init__.py")
    assert code_fingerprint("one", tree) != before


def test_this_projects_programs() -> None:
    """Catches: a search that ends at the first file, or leaves the project."""
    prints = {code_fingerprint(name) for name in ("bc", "td3_bc", "iql")}
    assert len(prints) == 3 and code_fingerprint("bc") in prints
    assert all(len(p) == 64 for p in prints)
    assert (ROOT / "bench" / "recipes" / "bc.py").exists()


def test_commits_are_spelled() -> None:
    found = [spell_commit(c) for c in ("a" * 40, "a" * 40 + "+", None)]
    assert found == ["aaaaaaaaaa", "aaaaaaaaaa+", "unknown"]


# -- what `bench run` says ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pendulum_file(tmp_path_factory.mktemp("data") / "pendulum.hdf5")


def planned(
    monkeypatch: pytest.MonkeyPatch, data: Path, out: Path, code: str, **changes: Any
) -> Plan:
    """A plan made by a checkout with that code, at a commit of the same letter."""
    request = Request(
        ("bc",),
        (str(data),),
        steps=10,
        out=out,
        settings={"hidden": "8,8", "batch_size": "8"},
        eval_interval=5,
        eval_episodes=1,
    )
    monkeypatch.setattr(plan, "code_fingerprint", lambda name: code * 64)
    monkeypatch.setattr(plan, "git_commit", lambda: code * 40)
    return make_plan(replace(request, **changes), workers=1)


def train(data: Path, found: Plan) -> dict[str, Any]:
    """Train a plan's only task; its first seed's config.json."""
    (task,) = found.tasks
    cell = Cell(task, load(str(data)), lambda event: None)
    cell.run()
    return json.loads((cell.folders[0].path / "config.json").read_text())


def test_other_code_is_said_and_written_down(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = planned(monkeypatch, data, tmp_path, "a")
    config = train(data, first)
    assert first.notes == () and config["code"] == "a" * 64
    assert planned(monkeypatch, data, tmp_path, "a").notes == ()

    skipped = planned(monkeypatch, data, tmp_path, "b")
    name = f"BC · {config['dataset']} · seed 0,1"
    assert skipped.tasks == () and skipped.notes == (
        f"note: {name} was trained by other code (commit aaaaaaaaaa); "
        "--out another folder to retrain",
    )
    assert first.tasks[0].config == config["config"]  # the hash is the same

    longer = planned(monkeypatch, data, tmp_path, "b", steps=20)
    assert len(longer.notes) == 1
    said = f"warning: {name} goes on with other code than it was trained with (commit aaaaaaaaaa)"
    assert longer.notes[0].startswith(said)
    config = train(data, longer)
    assert config["code"] == "a" * 64
    assert [leg["code"] for leg in config["resumed_with"]] == ["b" * 64]
    for today, other in ("ab", "ba"):  # each has trained a part of it
        (note,) = planned(monkeypatch, data, tmp_path, today, steps=20).notes
        assert f"commit {other * 10}" in note


def test_other_next_observations_are_refused(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: results of one file under the name of another, which differs only where neither the
    fingerprint nor the hash of a run looks; runs from before that are not found any more."""
    own = shutil.copy(data, tmp_path / "own.hdf5")
    config = train(own, planned(monkeypatch, own, tmp_path / "out", "a"))
    assert config["data"]["fingerprint_next"] == load(str(own)).fingerprint_next
    with h5py.File(own, "r+") as file:
        file["final_observations"][-1, 0] += 1
    for steps in (10, 20):  # finished, and to be gone on with
        with pytest.raises(RunError, match=r"config\.json: data: fingerprint_next is .*restore"):
            planned(monkeypatch, own, tmp_path / "out", "a", steps=steps)
    for file in (tmp_path / "out").rglob("config.json"):
        older = json.loads(file.read_text())
        del older["data"]["fingerprint_next"]
        file.write_text(json.dumps(older))
    assert planned(monkeypatch, own, tmp_path / "out", "a").tasks == ()


def test_a_run_without_a_durable_step_starts_anew_without_a_word(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches: a run marked as mixed for ever because a mistake in its recipe was mended."""
    (task,) = planned(monkeypatch, data, tmp_path, "a").tasks
    cell = Cell(task, load(str(data)), lambda event: None)
    monkeypatch.setattr(cell.trainer, "update", lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cell.run()
    again = planned(monkeypatch, data, tmp_path, "b")
    assert len(again.tasks) == 1 and again.notes == ()
    config = train(data, again)
    assert config["code"] == "b" * 64 and "resumed_with" not in config


def test_runs_of_before_the_record_say_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(data, planned(monkeypatch, data, tmp_path, "a"))
    for path in tmp_path.rglob("config.json"):
        config = json.loads(path.read_text())
        del config["code"]
        path.write_text(json.dumps(config))
    assert planned(monkeypatch, data, tmp_path, "b").notes == ()
