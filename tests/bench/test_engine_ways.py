"""Curves do not depend on how a run is computed: in one process or several, in captured blocks of
updates, compiled. (Streamed data: test_memory.py; evaluation beside training:
test_evaluation_beside.py; resumed: tests/faults; single updates: test_engine.py.)"""

from __future__ import annotations

import csv
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bench.engine.trainer import Trainer
from tests.bench.runs import bench, pendulum_file, small_run
from tests.bench.test_memory import cell_of

ROUNDING = 1e-5  # relative, of what metrics and scores may differ by


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pendulum_file(tmp_path_factory.mktemp("data") / "pendulum.hdf5")


Curves = dict[tuple[str, ...], list[float]]


def curves(out: Path) -> Curves:
    """Numbers of all rows of metrics and scores, by file and what else a row holds."""
    found: Curves = {}
    for path in sorted((out / "runs").rglob("*.csv")):
        with path.open() as file:
            for row in csv.DictReader(file):
                value = row.pop("value" if "value" in row else "return")
                found[(f"{path.parent.name}/{path.name}", *row.values())] = [float(value)]
    return found


def check_alike(one: Curves, other: Curves, rows: int) -> None:
    assert one.keys() == other.keys() and len(one) >= rows
    for key, values in one.items():
        assert other[key] == pytest.approx(values, rel=ROUNDING, abs=ROUNDING), key
    assert len({v for values in one.values() for v in values}) > rows / 2, "all the same"


def test_one_process_or_several(data: Path, tmp_path: Path) -> None:
    """Two seeds side by side in a process, and each in its own. Catches: noise, batches or starts
    that depend on the other seeds of a group, or on the process."""
    found = []
    for workers in (1, 2):
        words = small_run(data, tmp_path / str(workers))
        words[words.index("--workers") + 1] = workers
        done = bench(*words)
        assert done.returncode == 0, done.stderr
        found.append(curves(tmp_path / str(workers)))
    check_alike(*found, rows=20)
    groups = [{p.stem for p in (tmp_path / w / "runs").rglob("seeds-*")} for w in ("1", "2")]
    assert groups == [{"seeds-0-1"}, {"seeds-0", "seeds-1"}]


@pytest.mark.parametrize("algo", ["td3_bc", "iql", "cql"])
def test_blocks_of_updates(
    algo: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole run whose blocks are captured, here as Python calls: metrics between them and a
    checkpoint that ends inside one included."""
    monkeypatch.setattr("bench.engine.trainer._MAX_BLOCK", 4)
    captured: list[Callable[[], None]] = []

    def capture(work: Callable[[], None]) -> Callable[[], None]:
        captured.append(work)
        return work

    def run(name: str) -> Curves:
        changes: dict[str, Any] = {"steps": 30, "eval_interval": 10}
        cell_of(data, tmp_path / name, algo, **changes).run()
        return curves(tmp_path / name)

    plain = run("plain")
    monkeypatch.setattr("bench.engine.cell.Trainer", partial(Trainer, capture=capture))
    check_alike(plain, run("blocks"), rows=6)
    assert captured


@pytest.mark.slow
def test_compiled(data: Path, tmp_path: Path) -> None:
    found = []
    for name, more in (("eager", []), ("compiled", ["--compile"])):
        done = bench(*small_run(data, tmp_path / name), *more, timeout=900)
        assert done.returncode == 0, done.stderr
        found.append(curves(tmp_path / name))
    check_alike(*found, rows=20)
