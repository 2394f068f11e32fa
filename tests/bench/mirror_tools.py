"""What the tests of the mirror share: a migrated store, and what it and the disk hold."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bench.store import RunFolder
from bench.track import init_store


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated, empty store: creating one takes seconds, copying it none."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    init_store(f"sqlite:///{path}")
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    return path


@pytest.fixture
def out(tmp_path: Path, database: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    folder = tmp_path / "results"
    folder.mkdir()
    shutil.copy(database, folder / "mlflow.db")
    yield folder


def rows(out: Path, sql: str, *values: object) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(out / "mlflow.db")
    try:
        return connection.execute(sql, values).fetchall()
    finally:
        connection.close()


def mirrored(out: Path) -> dict[str, dict[str, Any]]:
    """Every active run by its tag bench.run: tags, parameters, values, status."""
    found: dict[str, dict[str, Any]] = {}
    active = "SELECT run_uuid, status, name, start_time, end_time FROM runs"
    active += " WHERE lifecycle_stage='active'"
    for id_, status, name, start, end in rows(out, active):
        tags = dict(rows(out, "SELECT key, value FROM tags WHERE run_uuid=?", id_))
        assert tags["bench.run"] not in found, "mirrored twice"
        found[tags["bench.run"]] = {
            "id": id_,
            "status": status,
            "name": name,
            "times": (start, end),
            "tags": tags,
            "params": dict(rows(out, "SELECT key, value FROM params WHERE run_uuid=?", id_)),
            "metrics": sorted(
                rows(out, "SELECT key, step, value FROM metrics WHERE run_uuid=?", id_)
            ),
        }
    return found


def expected(run: RunFolder, upto: int) -> list[tuple[str, int, float]]:
    """What MLflow must hold for a run, worked out from the files alone."""
    wanted = []
    for line in (run.path / "metrics.csv").read_text().splitlines()[1:]:
        step, name, value = line.split(",")
        wanted.append((name, int(step), float(value)))
    by_step: dict[int, list[list[float]]] = {}
    for line in (run.path / "scores.csv").read_text().splitlines()[1:]:
        step, _, *fields = line.split(",")
        by_step.setdefault(int(step), []).append([float(x) for x in fields if x])
    for step, episodes in by_step.items():
        for i, name in enumerate(("eval/return", "eval/length", "eval/normalized_score")):
            if len(episodes[0]) > i:
                wanted.append((name, step, sum(e[i] for e in episodes) / len(episodes)))
    return sorted(row for row in wanted if row[1] <= upto)


def key(out: Path, run: RunFolder) -> str:
    return run.path.relative_to(out).as_posix()
