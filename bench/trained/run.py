"""A run's trained policy, rebuilt from its folder and its group's checkpoint."""

from __future__ import annotations

import csv
import glob
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench.data import Dataset, load
from bench.engine.agent import Agent
from bench.engine.best import best_of
from bench.engine.evaluation import as_hyper
from bench.engine.problem import from_json, problem_of
from bench.errors import ConfigError, DataError, RunError
from bench.evaluate import Rollouts
from bench.policies import make_policies
from bench.recipe import Problem, Recipe, load_recipe
from bench.store import load_checkpoint, read_json, seed_folders

WHICH = ("last", "best")
_KEYS = ("algorithm", "dataset", "config", "seed", "group", "hyperparameters", "protocol", "data")


def find_runs(words: Sequence[str]) -> list[Path]:
    """The folders of seeds that words stand for: themselves, folders above them, globs.

    Raises:
        RunError: for a word that leads to none.
    """
    found: dict[Path, None] = {}
    for word in words:
        path = Path(word).expanduser()
        paths = [path] if path.exists() else sorted(map(Path, glob.glob(str(path))))
        runs = [run for p in paths for run in _below(p)]
        if not runs:
            raise RunError(
                f"{word}: no run is there; name a seed's folder, like "
                "results/runs/DATASET/ALGORITHM/CONFIG/seed-0, or a folder above some"
            )
        found |= dict.fromkeys(runs)
    return list(found)


def _below(path: Path) -> Iterator[Path]:
    if (path / "config.json").exists():
        yield path
    elif path.is_dir():
        top = path / "runs" if (path / "runs").is_dir() else path
        yield from (run for run in seed_folders(top) if (run / "config.json").exists())


def read_config(run: Path) -> dict[str, Any]:
    """config.json of a seed's folder.

    Raises:
        RunError: when there is none, or it lacks a key.
    """
    path = run / "config.json"
    if not path.exists():
        raise RunError(f"{run}: holds no config.json; give the folder of a seed, .../seed-0")
    config = read_json(path)
    for key in _KEYS:
        if key not in config:
            raise RunError(f"{path}: has no {key!r}; restore the file or train anew")
    return config


def checkpoint_of(
    run: Path, config: Mapping[str, Any]
) -> tuple[int, dict[str, Tensor], dict[str, Any]]:
    """The newest checkpoint of the group that a seed belongs to: step, tensors, notes.

    Raises:
        RunError: when there is none.
    """
    group = "-".join(map(str, config["group"]))
    folder = run.parent / "checkpoints" / f"seeds-{group}"
    found = load_checkpoint(folder)
    if found is None:
        raise RunError(f"{folder}: there is no checkpoint; train the run further, or anew")
    return found


def data_of(run: Path, config: Mapping[str, Any], ref: str | None = None) -> Dataset:
    """What a run was trained on; ``ref`` says where that is, for data that are a file.

    Raises:
        ConfigError: when it is not there, or other data are.
    """
    try:
        dataset = load(ref or config["dataset"])
    except DataError as error:
        hint = "" if ref else "; if it was a file, say where it is: --dataset FILE"
        raise ConfigError(f"{run}: its data: {error}{hint}") from None
    if dataset.fingerprint != config["data"].get("fingerprint"):
        raise ConfigError(f"{dataset.name}: is not the data that {run} was trained on")
    return dataset


@dataclass(frozen=True)
class Trained:
    """A seed's policy at a step. ``tensors`` are those of its whole group, ``[n_seeds, ...]``, as
    it was trained and evaluated; ``position`` is the seed's among them."""

    path: Path
    config: dict[str, Any]
    which: str
    step: int
    recipe: Recipe
    hyper: Any
    problem: Problem
    agent: Agent
    tensors: dict[str, Tensor]
    missing: frozenset[str]  # in the checkpoint: these are not trained ones
    position: int
    recorded: Rollouts | None  # its evaluation in scores.csv, [1, n_episodes]

    @property
    def name(self) -> str:
        """'TD3+BC · lite/hopper/medium-v0 · seed 0'."""
        config = self.config
        return f"{self.recipe.label} · {config['dataset']} · seed {config['seed']}"

    @property
    def id(self) -> str:
        config = self.config
        parts = (config["dataset"], config["algorithm"], config["config"])
        return "/".join([*parts, f"seed-{config['seed']}"])

    def policy(self, episodes: int, *, alone: bool = False) -> Any:
        """Acts for the whole group, or for this seed ``alone``; for the first of several target
        returns.

        Raises:
            RunError: when it needs what the checkpoint does not have.
        """
        i = self.position
        own = {k: t[i : i + 1] for k, t in self.tensors.items()} if alone else self.tensors
        found, *_ = make_policies(self.recipe, self.hyper, self.agent, own, self.problem, episodes)
        if lost := self.missing.intersection(found.program.reads):
            raise RunError(
                f"{self.path}: the checkpoint's {min(lost)} is missing or of another size than "
                "today's networks; use the commit in config.json, or train anew"
            )
        return found

    def normalized(self, value: float) -> float | None:
        """The score of a return in the run's own environment; None without reference returns."""
        if self.config.get("reference") is None:
            return None
        random, expert = self.config["reference"]
        return 100.0 * (value - random) / (expert - random)


def open_run(
    run: Path, which: str = "last", *, target: float | None = None, dataset: str | None = None
) -> Trained:
    """Rebuild a run's policy.

    Args:
        which: "last": of the newest checkpoint; "best": of the best evaluation up to it.
        target: the return to ask for, of algorithms that take one.
        dataset: where the data are, for checkpoints of old that lack the normalisation.

    Raises:
        RunError, ConfigError: one line, when there is no such policy.
    """
    config = read_config(run)
    recipe = load_recipe(config["algorithm"])
    hyper = _hyper(run, recipe, config["hyperparameters"], target)
    step, tensors, meta = checkpoint_of(run, config)
    known = meta.get("problem")
    problem = from_json(known) if known else problem_of(data_of(run, config, dataset), hyper)
    position = config["group"].index(config["seed"])
    curve = {s: r for s, r in read_scores(run / "scores.csv").items() if s <= step}
    if which == "best":
        step = _best_step(run, meta, position, curve)
        tensors = {**tensors, **best_of(tensors)}
    elif str(position) in meta["diverged"]:
        reason = meta["diverged"][str(position)]
        raise RunError(f"{run}: diverged ({reason}); --checkpoint best is its best policy before")
    agent = recipe.build(hyper, problem)
    own, missing = _fitting(agent, tensors, len(config["group"]))
    recorded = curve.get(step) if target is None else None
    facts = (config, which, step, recipe, hyper, problem)
    return Trained(run, *facts, agent, own, missing, position, recorded)


def _hyper(run: Path, recipe: Recipe, values: Mapping[str, Any], target: float | None) -> Any:
    try:
        hyper = as_hyper(recipe, values)
    except TypeError as error:
        raise RunError(
            f"{run / 'config.json'}: 'hyperparameters' are not today's of {recipe.name} ({error}); "
            "use the commit in it, or train anew"
        ) from None
    if target is None:
        return hyper
    if not recipe.sequence:
        raise ConfigError(f"--target-return: {recipe.name} takes none; leave it out")
    return replace(hyper, target_returns=(target,))


def _best_step(
    run: Path, meta: Mapping[str, Any], position: int, curve: Mapping[int, Rollouts]
) -> int:
    """Of the evaluation whose tensors are kept, which must be the best one that is recorded."""
    if not curve:
        raise RunError(f"{run}: was never evaluated, so none is the best; use --checkpoint last")
    best = max(curve, key=lambda step: (curve[step].returns.mean(), -step))
    found = (meta.get("best") or {position: None})[position]
    if found is None or found["step"] != best:
        raise RunError(
            f"{run}: its best evaluation, at step {best}, is not in its checkpoint, which an older "
            "version began; use --checkpoint last, or train anew"
        )
    return best


def _fitting(
    agent: Agent, tensors: Mapping[str, Tensor], seeds: int
) -> tuple[dict[str, Tensor], frozenset[str]]:
    """The loss's tensors as the checkpoint has them, and the names of those that it has not: other
    code trained it."""
    own = {name: torch.stack([t.detach()] * seeds) for name, t in agent.loss.tensors().items()}
    fit = {k: tensors[k] for k, t in own.items() if k in tensors and tensors[k].shape == t.shape}
    return {**own, **fit}, frozenset(own.keys() - fit.keys())


def read_scores(path: Path) -> dict[int, Rollouts]:
    """Returns and lengths of each evaluation in a scores.csv, ``[1, n_episodes]``, by step.

    Raises:
        RunError: for a damaged file.
    """
    if not path.exists():
        return {}
    rows: dict[int, list[tuple[float, int]]] = {}
    try:
        whole = path.read_text().rpartition("\n")[0]  # a line that is being written is left out
        for row in csv.DictReader(whole.splitlines()):
            rows.setdefault(int(row["step"]), []).append((float(row["return"]), int(row["length"])))
    except (KeyError, TypeError, ValueError) as error:
        raise RunError(f"{path}: is damaged ({error!r}); restore it or delete its folder") from None
    return {
        step: Rollouts(*(np.array([part]) for part in zip(*found, strict=True)))
        for step, found in rows.items()
    }
