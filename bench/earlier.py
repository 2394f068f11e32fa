"""What a run's hash leaves out: the code and next observations that it was trained with before."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bench.engine.task import Task
from bench.errors import RunError
from bench.provenance import spell_commit
from bench.store import RunFolder, read_json


def check_next_observations(paths: Iterable[Path], cell: Task) -> None:
    """Runs of data that differ from today's in next observations alone are found by the hash, too.

    Raises:
        RunError: for the first of them.
    """
    mine = cell.record["data"]["fingerprint_next"]
    for path in paths:
        data = _config(path).get("data")
        if isinstance(data, dict) and data.get("fingerprint_next", mine) != mine:
            raise RunError(
                f"{path / 'config.json'}: data: fingerprint_next is {data['fingerprint_next']} and "
                f"that of {cell.dataset} is {mine}: its next observations have changed since; "
                "restore the dataset or choose another --out"
            )


def other_code(todo: Sequence[RunFolder], done: Sequence[Path], cell: Task) -> Iterator[str]:
    """What of a cell was trained by other code than today's."""
    started = [f.path for f in todo if (f.status() or {}).get("step", 0) > 0]
    for paths, words in (
        (started, "warning: {} goes on with other code than it was trained with ({}); config.json "
         "notes both, --out another folder trains it anew"),
        (done, "note: {} was trained by other code ({}); --out another folder to retrain"),
    ):  # fmt: skip
        others = {p: commit for p in paths if (commit := other_commit(_config(p), cell.record))}
        if others:
            seeds = tuple(int(path.name.removeprefix("seed-")) for path in others)
            commits = ", ".join(sorted(set(others.values())))
            yield words.format(replace(cell, seeds=seeds).name, commits)


def other_commit(config: Mapping[str, Any], today: Mapping[str, Any]) -> str | None:
    """'commit 0123456789' where other code than `today`'s trained a part at least, else None."""
    for leg in [config, *config.get("resumed_with", [])]:
        if isinstance(leg, dict) and leg.get("code") not in (None, today["code"]):
            return f"commit {spell_commit(leg.get('git_commit'))}"
    return None


def _config(path: Path) -> dict[str, Any]:
    """Of a run; empty where it cannot be read, which is said where it is resumed or reported."""
    try:
        return read_json(path / "config.json")
    except RunError:
        return {}
