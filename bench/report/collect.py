"""Read run folders into plain records. Nothing is dropped in silence: what cannot be read or is
not chosen is named in a note, and what is unfinished stays with its state."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from bench.errors import RunError
from bench.store import iter_runs, read_json

MAKE_RUNS = "bench run --algo td3_bc --dataset 'lite/*'"
Reference = tuple[float, float]  # the returns whose normalised scores are 0 and 100
SCORE_COLUMNS = ["step", "episode", "return", "length", "normalized_score"]


@dataclass(frozen=True)
class Run:
    """One seed: who it is, how it stands, and its learning curve (mean of each evaluation)."""

    path: Path
    algorithm: str
    label: str
    config: str
    dataset: str
    env: str | None
    seed: int
    steps: int | None
    profile: str
    unit: str
    state: str
    reason: str | None
    curve_steps: np.ndarray = field(repr=False)  # int64 [k]
    curve: np.ndarray = field(repr=False)  # float64 [k], in ``unit``
    dataset_return: float | None = None  # mean return of its behaviour, in ``unit``
    features: dict[str, Any] = field(default_factory=dict, repr=False)
    fingerprint: str | None = None
    commits: tuple[str, ...] = ()
    codes: tuple[str, ...] = ()  # fingerprints of the program's sources
    versions: tuple[tuple[str, str], ...] = ()
    ways: tuple[str, ...] = ()  # of computing: 'cpu', 'cuda tf32 compiled'
    paper_protocol: bool | None = None
    references: tuple[Reference, ...] = ()  # of every leg, for a normalised score
    reference_source: str | None = None  # of the first leg's
    episodes: int | None = None  # per evaluation

    @property
    def reference(self) -> Reference | None:
        """What the last evaluation was normalised with; None for raw returns."""
        return self.references[-1] if self.references else None

    @property
    def final(self) -> float:
        """Mean of the last evaluation; nan where there is none."""
        return float(self.curve[-1]) if len(self.curve) else math.nan

    @property
    def last10(self) -> float:
        """Mean over the last ten evaluations (fewer where there are fewer)."""
        return float(self.curve[-10:].mean()) if len(self.curve) else math.nan

    @property
    def best(self) -> float:
        """The best evaluation: optimistic, since it is chosen after the fact."""
        return float(np.max(self.curve)) if len(self.curve) else math.nan

    @property
    def finished(self) -> bool:
        """Whether the run counts in means: it reached its last step and has a score there."""
        return self.state == "done" and math.isfinite(self.final)


@dataclass(frozen=True)
class Collection:
    """The chosen runs and what the reader of any table of them must know."""

    runs: list[Run]
    problems: list[str]


def collect(
    out: Path,
    *,
    algos: Iterable[str] | None = None,
    datasets: Iterable[str] | None = None,
) -> Collection:
    """Every readable run under ``out`` whose algorithm and dataset match one of the globs.

    Raises RunError where there is nothing to show, with the command that makes runs.
    """
    folders = list(iter_runs(out))
    if not folders:
        what = "holds no runs" if Path(out).is_dir() else "does not exist"
        raise RunError(f"{out}: {what}; make some with: {MAKE_RUNS} --out {out}")
    runs, problems = [], []
    for folder in folders:
        try:
            runs.append(read_run(out, folder))
        except RunError as error:
            problems.append(f"left out: {error}")
    if not runs:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise RunError(f"{out}: no run folder can be read; {problems[0]}{more}")
    chosen = [
        run
        for run in runs
        if _matches((run.algorithm, run.label), algos) and _matches((run.dataset,), datasets)
    ]
    if not chosen:
        have = sorted({f"{run.algorithm} on {run.dataset}" for run in runs})
        raise RunError(f"{out}: no run matches; there is {', '.join(have[:8])}")
    return Collection(chosen, problems)


def _matches(names: tuple[str, ...], globs: Iterable[str] | None) -> bool:
    if globs is None:
        return True
    patterns = [g.lower() for g in globs]
    return any(fnmatchcase(name.lower(), glob) for name in names for glob in patterns)


def read_run(out: Path, folder: Path) -> Run:
    """One seed folder. Raises RunError naming file and key for what is damaged or was edited."""
    path = folder / "config.json"
    config = read_json(path)
    dataset, algo, hash_, seed = _identity(path, config, Path(out))
    status = read_json(folder / "status.json") if (folder / "status.json").exists() else {}
    unit = _get(path, config, "unit", str)
    if unit not in ("normalized", "return"):
        raise RunError(f"{path}: 'unit' is {unit!r}, not 'normalized' or 'return'; restore it")
    data = _get(path, config, "data", dict, {})
    steps, curve = read_curve(folder / "scores.csv", unit)
    legs = _legs(path, config)
    hyper = _get(path, config, "hyperparameters", dict, {})
    fingerprint = _get(path, data, "fingerprint", str, None)
    references = _references(path, legs) if unit == "normalized" else ()
    protocol = _get(path, config, "protocol", dict, {})
    horizon = {"horizon": config["horizon"]} if config.get("horizon") is not None else {}
    return Run(
        path=folder,
        algorithm=algo,
        label=_get(path, config, "label", str, algo),
        config=hash_,
        dataset=dataset,
        env=_get(path, config, "env_id", str, None),
        seed=seed,
        steps=_get(folder / "status.json", status, "steps", int, None),
        profile=_get(path, config, "profile", str),
        unit=unit,
        state=_get(folder / "status.json", status, "state", str, "unknown"),
        reason=_get(folder / "status.json", status, "reason", str, None),
        curve_steps=steps,
        curve=curve,
        dataset_return=_dataset_return(path, data, references[-1] if references else None),
        features={**hyper, **horizon, **protocol, "data": str(fingerprint)[:8]},
        fingerprint=fingerprint,
        commits=tuple(str(leg["git_commit"]) for leg in legs if leg.get("git_commit")),
        codes=tuple(str(leg["code"]) for leg in legs if leg.get("code")),
        versions=tuple(
            sorted(
                {(k, str(v)) for g in legs for k, v in _get(path, g, "versions", dict, {}).items()}
            )
        ),
        ways=tuple(sorted({_way(path, leg) for leg in legs})),
        paper_protocol=_flag(path, config, "paper_protocol"),
        references=references,
        reference_source=_get(path, config, "reference_source", str, None),
        episodes=_get(path, protocol, "eval_episodes", int, None),
    )


_REQUIRED = object()


def _get(
    path: Path,
    content: dict[str, Any],
    key: str,
    kind: type | tuple[type, ...],
    default: Any = _REQUIRED,
) -> Any:
    value = content.get(key)
    if value is None and default is not _REQUIRED:
        return default
    if not isinstance(value, kind) or isinstance(value, bool):
        name = kind.__name__ if isinstance(kind, type) else "a number"
        raise RunError(f"{path}: {key!r} is {value!r}, not {name}; restore it or delete its folder")
    return value


def _flag(path: Path, content: dict[str, Any], key: str) -> bool | None:
    value = content.get(key)
    if value is not None and not isinstance(value, bool):
        raise RunError(f"{path}: {key!r} is {value!r}, not true or false; restore it")
    return value


def _way(path: Path, leg: dict[str, Any]) -> str:
    """What a leg was computed with: 'cuda tf32 compiled'."""
    device = _get(path, leg, "device", str, "unknown device")
    flags = {"tf32": _flag(path, leg, "tf32"), "compiled": _flag(path, leg, "compile")}
    return " ".join([device.split(":")[0], *(name for name, on in flags.items() if on)])


def _identity(path: Path, config: dict[str, Any], out: Path) -> tuple[str, str, str, int]:
    """(dataset, algorithm, config, seed): the folder says it, config.json must agree."""
    *dataset, algo, hash_, seed = path.parent.relative_to(out / "runs").parts
    there: dict[str, Any] = {
        "dataset": "/".join(dataset),
        "algorithm": algo,
        "config": hash_,
        "seed": int(seed.removeprefix("seed-")),
    }
    for key, expected in there.items():
        value = _get(path, config, key, type(expected))
        if value != expected:
            raise RunError(
                f"{path}: {key!r} is {value!r} but the folder says {expected!r}; "
                "the file was edited or moved: restore it or delete its folder"
            )
    return there["dataset"], algo, hash_, there["seed"]


def _dataset_return(path: Path, data: dict[str, Any], reference: Reference | None) -> float | None:
    """The mean return of the policy behind the data, normalised where there is a reference; None
    where it is unknown. Older runs note only that of the episodes in the data."""
    stats = _get(path, data, "stats", dict, {})
    here, key = (data, "behaviour_return") if "behaviour_return" in data else (stats, "return_mean")
    value = _get(path, here, key, (int, float), None)
    if value is None or not math.isfinite(value):
        return None
    if reference is None:
        return float(value)
    random, expert = reference
    return 100 * (value - random) / (expert - random)


def _references(path: Path, legs: list[dict[str, Any]]) -> tuple[Reference, ...]:
    """The (random, expert) returns of each leg that notes them: the first one must. Nine digits
    tell references apart; what lies behind them is how a number was computed."""
    found = []
    for leg in [legs[0], *(leg for leg in legs[1:] if leg.get("reference") is not None)]:
        reference = _get(path, leg, "reference", list)
        try:
            random, expert = (float(f"{float(value):.9g}") for value in reference)
        except (TypeError, ValueError):
            random = expert = math.nan
        if not math.isfinite(expert - random) or expert == random:
            raise RunError(
                f"{path}: 'reference' is {reference!r}, not two different returns; restore it"
            )
        found.append((random, expert))
    return tuple(found)


def _legs(path: Path, config: dict[str, Any]) -> list[dict[str, Any]]:
    """The configuration and what was noted at each resume."""
    later = _get(path, config, "resumed_with", list, [])
    for leg in later:
        if not isinstance(leg, dict):
            raise RunError(f"{path}: 'resumed_with' holds {leg!r}, not objects; restore it")
    return [config, *later]


def read_curve(path: Path, unit: str) -> tuple[np.ndarray, np.ndarray]:
    """(steps int64 [k], mean per evaluation float64 [k]) of scores.csv; empty where it is missing.

    A torn last line (the run is being written) is left out.
    """
    if not path.exists():
        return np.empty(0, np.int64), np.empty(0)
    lines = path.read_text(errors="replace").split("\n")[:-1]  # without a torn last one
    if not lines:
        return np.empty(0, np.int64), np.empty(0)
    column = SCORE_COLUMNS.index("normalized_score" if unit == "normalized" else "return")
    step = np.empty(len(lines) - 1, np.int64)
    score = np.empty(len(lines) - 1)
    number = 1
    try:
        if lines[0].split(",") != SCORE_COLUMNS:
            raise ValueError(f"its columns are {lines[0]!r}")
        for number, line in enumerate(lines[1:], start=2):
            fields = line.split(",")
            if len(fields) != len(SCORE_COLUMNS):
                raise ValueError(f"{len(fields)} fields")
            step[number - 2] = int(fields[0])
            score[number - 2] = float(fields[column] or "nan")
    except (ValueError, OverflowError) as error:
        raise RunError(
            f"{path}: line {number} is damaged ({error}); restore it or delete its folder"
        ) from error
    steps, index, count = np.unique(step, return_inverse=True, return_counts=True)
    return steps, np.bincount(index, weights=score, minlength=len(steps)) / count
