"""Run folders: one seed of one cell, its configuration, rows and state."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from bench.errors import RunError
from bench.store.files import atomic_write, fsync_folder, read_json, to_json, writing

STATES = ("running", "done", "failed", "diverged", "killed")
METRICS_HEADER = "step,name,value"
SCORES_HEADER = "step,episode,return,length,normalized_score"
IDENTITY = ("schema_version", "algorithm", "dataset", "config", "seed")  # never changes
# What may change when a run is resumed and bears on its results: noted for each leg.
PROVENANCE = (
    *("versions", "git_commit", "code", "device", "group", "cpu", "reference"),
    *("compile", "tf32", "eval_workers"),
)

_SEED = re.compile(r"^seed-(\d+)$")


def config_hash(identity: dict[str, Any]) -> str:
    """First 12 hex digits of the sha256 of ``identity`` as canonical JSON (key order is no matter).

    Raises TypeError for values that JSON does not have.
    """
    text = json.dumps(identity, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _checked_part(name: str, what: str) -> str:
    parts = name.split("/")
    if not name or name.startswith("/") or any(p in ("", ".", "..") for p in parts):
        raise RunError(f"{what} {name!r}: cannot name a folder; give it a plain name")
    return name


class RunFolder:
    """One seed of one cell: ``OUT/runs/<dataset>/<algo>/<config>/seed-<n>``.

    The folder is made by the first write. Rows are flushed to the operating system at once;
    ``sync`` (which ``set_status(step=...)`` calls) makes them survive a power cut. Order at a
    checkpoint: ``sync``, ``save_checkpoint``, ``set_status("running", step=step)``.
    """

    def __init__(self, out: Path, dataset: str, algo: str, config: str, seed: int):
        _checked_part(dataset, "dataset")
        for name, what in ((algo, "algorithm"), (config, "configuration")):
            if "/" in _checked_part(name, what):
                raise RunError(f"{what} {name!r}: cannot name a folder; it must not hold a '/'")
        self.path = Path(out) / "runs" / dataset / algo / config / f"seed-{int(seed)}"

    def write_config(self, config: dict[str, Any], *, anew: bool = False) -> None:
        """Write config.json once; RunError where another run's is there (IDENTITY differs).

        Whatever else changes between two legs of a run, say a corrected citation, does not make
        it another run: the first leg's configuration stays. Of PROVENANCE a later leg's values
        are added to ``resumed_with`` where no leg before had them all. ``anew``: nothing that was
        trained before is kept, so neither is its configuration.
        """
        path = self.path / "config.json"
        new = json.loads(json.dumps(config))
        if not path.exists():
            return atomic_write(path, to_json(new))
        old = read_json(path)
        for key in IDENTITY:
            if json.dumps(old.get(key), sort_keys=True) != json.dumps(new.get(key), sort_keys=True):
                raise RunError(
                    f"{path}: {key!r} is {old.get(key)!r} there and {new.get(key)!r} in this run; "
                    "choose another --out or move the folder away"
                )
        later = old.get("resumed_with", [])
        if not isinstance(later, list) or not all(isinstance(leg, dict) for leg in later):
            raise RunError(
                f"{path}: 'resumed_with' is {later!r}, not a list of objects; restore it"
            )
        if anew:
            return atomic_write(path, to_json(new))
        leg = _provenance(new)
        if leg not in map(_provenance, [old, *later]):
            atomic_write(path, to_json({**old, "resumed_with": [*later, leg]}))

    def append_metrics(self, rows: Iterable[tuple[int, str, float]]) -> None:
        """Add rows ``(step, name, value)``; a value reads back as the same float64."""
        lines = []
        for step, name, value in rows:
            if not name or any(c in name for c in ',"\r\n'):
                raise ValueError(f"metric name {name!r}: must be one CSV field")
            lines.append(f"{int(step)},{name},{float(value)!r}\n")
        self._append("metrics.csv", METRICS_HEADER, lines)

    def append_scores(self, rows: Iterable[tuple[int, int, float, int, float | None]]) -> None:
        """Add evaluation episodes ``(step, episode, return, length, normalized_score or None)``."""
        lines = []
        for step, episode, ret, length, score in rows:
            last = "" if score is None else repr(float(score))
            lines.append(f"{int(step)},{int(episode)},{float(ret)!r},{int(length)},{last}\n")
        self._append("scores.csv", SCORES_HEADER, lines)

    def _append(self, name: str, header: str, lines: list[str]) -> None:
        if not lines:
            return
        path, data = self.path / name, "".join(lines).encode()
        with writing(path, len(data)):
            self.path.mkdir(parents=True, exist_ok=True)
            with open(path, "a+b") as file:
                if _drop_torn_line(file) == 0:
                    data = header.encode() + b"\n" + data
                file.write(data)

    def sync(self) -> None:
        """Make every row appended so far durable."""
        for name in ("metrics.csv", "scores.csv"):
            path = self.path / name
            if path.exists():
                with writing(path, path.stat().st_size), open(path, "rb") as file:
                    os.fsync(file.fileno())
        if self.path.exists():
            fsync_folder(self.path)

    def truncate_after(self, step: int) -> None:
        """Drop the rows with a greater step and a torn last line, each file atomically.

        Raises RunError for a damaged line among the rows that stay.
        """
        for leftover in self.path.glob(".tmp-*"):  # of a process killed while it wrote
            leftover.unlink(missing_ok=True)
        for name, header in (("metrics.csv", METRICS_HEADER), ("scores.csv", SCORES_HEADER)):
            path = self.path / name
            if path.exists():
                old = path.read_bytes()
                new = _rows_up_to(path, old, header, step)
                if new != old:
                    atomic_write(path, new)

    def status(self) -> dict[str, Any] | None:
        """The content of status.json, None before the first ``set_status``."""
        path = self.path / "status.json"
        return read_json(path) if path.exists() else None

    def set_status(self, state: str, **fields: Any) -> None:
        """Merge ``fields`` into status.json, atomically. A ``reason`` lasts until the next call
        that changes the state. With ``step`` the rows of both files are made durable first."""
        if state not in STATES:
            raise ValueError(f"state {state!r}: must be one of {', '.join(STATES)}")
        if "step" in fields:
            self.sync()
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        merged = {"reason": None, "step": 0, "started": now, **(self.status() or {})}
        if merged.get("state") != state:
            merged["reason"] = None
        atomic_write(
            self.path / "status.json",
            to_json({**merged, **fields, "state": state, "updated": now}),
        )


def _provenance(leg: dict[str, Any]) -> dict[str, Any]:
    return {key: leg[key] for key in PROVENANCE if leg.get(key) is not None}


def _drop_torn_line(file: IO[bytes]) -> int:
    """Cut what follows the last newline (left by a kill or a full disk); the size that stays."""
    size = file.seek(0, os.SEEK_END)
    end = size
    while end:
        start = max(0, end - 65536)
        file.seek(start)
        newline = file.read(end - start).rfind(b"\n")
        if newline >= 0:
            end = start + newline + 1
            break
        end = start
    if end != size:
        file.truncate(end)
    return end


def _row_step(line: bytes, fields: int) -> int | None:
    """The step of a CSV row; None where the row is damaged."""
    parts = line.split(b",")
    if len(parts) != fields or not re.fullmatch(rb"-?\d+", parts[0]):
        return None
    return int(parts[0])


def _rows_up_to(path: Path, content: bytes, header: str, step: int) -> bytes:
    """The header and the rows up to ``step``. Damage is expected behind the last durable row
    only: before one it would mean lost results, hence an error."""
    lines = content.split(b"\n")[:-1]
    if not lines:
        return b""
    if lines[0] != header.encode():
        raise RunError(f"{path}: line 1 is not {header!r}; restore the file or delete the folder")
    kept, damaged = [lines[0]], 0
    for number, line in enumerate(lines[1:], start=2):
        row = _row_step(line, header.count(",") + 1)
        if row is None:
            damaged = damaged or number
        elif row <= step:
            if damaged:
                raise RunError(f"{path}: line {damaged} is damaged; restore or delete the folder")
            kept.append(line)
    return b"\n".join(kept) + b"\n"


def iter_runs(out: Path) -> Iterator[Path]:
    """Every seed folder under ``OUT/runs``, cell by cell and in the order of the seeds."""
    yield from seed_folders(Path(out) / "runs")


def seed_folders(top: Path) -> Iterator[Path]:
    """Every seed folder below a folder, in the same order."""
    found = []
    for folder, names, _ in os.walk(top):
        found += [Path(folder) / name for name in names if _SEED.match(name)]
        names[:] = [n for n in names if n != "checkpoints" and not _SEED.match(n) and n[0] != "."]
    yield from sorted(found, key=lambda p: (p.parent, int(p.name[5:])))
