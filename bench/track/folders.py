"""What a run folder has to tell MLflow: parameters, tags, and the values not yet sent."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from bench.errors import RunError
from bench.store import read_json

Value = tuple[str, float, int]  # name, value, step


@dataclass(frozen=True)
class Seed:
    """One seed folder; ``key`` is its path below OUT and the tag that finds it in MLflow."""

    folder: Path
    key: str
    config: dict[str, Any]
    status: dict[str, Any]

    @property
    def cell(self) -> str:
        return self.key.rpartition("/")[0]

    @property
    def state(self) -> str:
        return str(self.status.get("state", "running"))

    @property
    def name(self) -> str:
        return str(self.config.get("label") or self.config.get("algorithm"))

    def millis(self, key: str) -> int | None:
        """``started`` or ``updated`` in milliseconds since 1970."""
        text = self.status.get(key)
        return int(datetime.fromisoformat(text).timestamp() * 1000) if text else None

    def params(self) -> dict[str, str]:
        """Its cell's but for ``seed`` and ``steps``. MLflow's parameters never change: a run that
        is trained longer is mirrored anew."""
        flat = dict(_flatten(self.config.get("hyperparameters") or {}))
        own = {key: self.config.get(key) for key in ("algorithm", "dataset", "seed", "profile")}
        own |= _flatten(self.config.get("protocol") or {})  # eval_interval, eval_episodes
        own["steps"] = self.status.get("steps")
        for key, value in own.items():
            if value is not None:
                flat.setdefault(key, value)
        return {_clean(key): str(value)[:6000] for key, value in flat.items()}

    def tags(self) -> dict[str, str]:
        config = self.config
        tags = {
            "bench.state": self.state,
            "bench.reason": self.status.get("reason"),
            "bench.recipe": config.get("algorithm"),
            "bench.config": config.get("config"),
            "bench.profile": config.get("profile"),
            "bench.unit": config.get("unit"),
            "bench.environment": config.get("env_id"),
            "bench.device": config.get("device"),
            "bench.dataset_fingerprint": (config.get("data") or {}).get("fingerprint"),
            "bench.version": (config.get("versions") or {}).get("project"),
            "mlflow.source.git.commit": config.get("git_commit"),
        }
        return {key: "" if value is None else str(value)[:5000] for key, value in tags.items()}


def _flatten(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _clean(name: str) -> str:
    """A name that MLflow accepts."""
    return re.sub(r"[^A-Za-z0-9_\-. :/]", "_", name)[:250]


class Rewritten(Exception):
    """The part of a file that was sent is not what is on disk now."""


def unsent(path: Path, columns: int, mark: str, durable: int) -> tuple[list[list[str]], str]:
    """Rows behind ``mark`` ('<bytes>:<hash of them>') up to the durable step, and the new mark.

    Raises Rewritten where the bytes before the mark changed, ValueError for a damaged row.
    """
    content = path.read_bytes() if path.exists() else b""
    size, _, known = mark.partition(":")
    offset = int(size or 0)
    if offset and digest(content[:offset]) != known:
        raise Rewritten
    rows: list[list[str]] = []
    for line in content[offset:].splitlines(keepends=True):
        fields = line.decode(errors="replace").rstrip("\n").split(",")
        if not line.endswith(b"\n"):  # it is being written
            break
        if offset:  # not the header
            if int(fields[0]) > durable:
                break
            if len(fields) != columns:
                raise ValueError(f"{path}: a damaged row at byte {offset}")
            rows.append(fields)
        offset += len(line)
    return rows, f"{offset}:{digest(content[:offset])}"


def digest(content: bytes | str) -> str:
    raw = content.encode() if isinstance(content, str) else content
    return hashlib.sha256(raw).hexdigest()[:16]


def values(metrics: list[list[str]], scores: list[list[str]]) -> list[Value]:
    """What MLflow gets: the metrics as they are, and the mean of every evaluation."""
    found = [(_clean(name), float(value), int(step)) for step, name, value in metrics]
    columns = {"eval/return": 2, "eval/length": 3, "eval/normalized_score": 4}
    by_step: dict[int, list[list[str]]] = {}
    for row in scores:
        by_step.setdefault(int(row[0]), []).append(row)
    for step, rows in by_step.items():
        for name, column in columns.items():
            cells = [row[column] for row in rows]
            if all(cells):
                found.append((name, sum(map(float, cells)) / len(cells), step))
    return found


def stamp(folder: Path) -> tuple[object, ...]:
    """Changes whenever one of the four files does."""
    stats = []
    for name in ("config.json", "status.json", "metrics.csv", "scores.csv"):
        try:
            stat = (folder / name).stat()
            stats.append((stat.st_mtime_ns, stat.st_size, stat.st_ino))
        except FileNotFoundError:
            stats.append((0, 0, 0))
    return tuple(stats)


def read_seed(out: Path, folder: Path) -> Seed:
    """Raises RunError for a folder that is damaged or was edited."""
    path = folder / "status.json"
    status = read_json(path) if path.exists() else {}
    config = read_json(folder / "config.json")
    for key in ("hyperparameters", "protocol", "data", "versions"):
        if not isinstance(config.get(key) or {}, dict):
            raise RunError(f"{folder / 'config.json'}: {key!r} is not an object; restore the file")
    return Seed(folder, folder.relative_to(out).as_posix(), config, status)
