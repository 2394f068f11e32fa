"""``bench export``: a trained policy as a file that needs nothing of this project."""

from __future__ import annotations

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.data import Dataset
from bench.errors import ConfigError
from bench.provenance import git_commit, versions
from bench.store import atomic_write, read_json
from bench.store.files import to_json
from bench.trained.formats import Format, format_of
from bench.trained.modules import Standalone, standalone
from bench.trained.program import describe, flatten
from bench.trained.run import Trained
from bench.trained.verify import LIMIT, expected, largest_difference
from rlobj.specs import Bounded

ABOUT = "policy.json"


def export(run: Trained, format: str, folder: Path, dataset: Dataset) -> dict[str, Any]:
    """Write the policy and ``policy.json`` into a folder, then compare its actions on observations
    of the data with the trained policy's; what ``policy.json`` says afterwards. Both files stay,
    whatever the comparison finds: "verified" says it.

    Raises:
        ConfigError: when a package is missing, or the folder holds another policy.
        RunError: when the file cannot be used without this project.
    """
    chosen = format_of(format)
    _check_free(folder, run, chosen)
    policy = standalone(run)
    graph = flatten(policy)
    content = chosen.write(graph, policy)
    about = describe_policy(run, policy, chosen)
    about["sha256"] = hashlib.sha256(content).hexdigest()
    if format == "safetensors":
        about["program"] = describe(graph)
    atomic_write(folder / chosen.file, content)
    atomic_write(folder / ABOUT, to_json(about))
    wanted = expected(run, dataset)
    off = largest_difference(folder, chosen, wanted)
    about["verified"] = {
        "observations": wanted.observations,
        "largest_difference": off,
        "limit": LIMIT,
        "equal": off <= LIMIT,  # not of nan
    }
    atomic_write(folder / ABOUT, to_json(about))
    return about


def _check_free(folder: Path, run: Trained, chosen: Format) -> None:
    if not (folder / ABOUT).exists():
        return
    there = read_json(folder / ABOUT)
    if (there.get("run"), there.get("file")) != (run.id, chosen.file):
        raise ConfigError(
            f"--to {folder}: holds {there.get('file')} of {there.get('run')}; choose another folder"
        )


def describe_policy(run: Trained, policy: Standalone, chosen: Format) -> dict[str, Any]:
    """Everything about a policy but its numbers, as JSON."""
    config, problem = run.config, run.problem
    normalization = None
    if problem.mean is not None and problem.std is not None:
        normalization = {"mean": problem.mean.tolist(), "std": problem.std.tolist()}
    return {
        "file": chosen.file,
        "run": run.id,
        "algorithm": run.recipe.name,
        "paper": run.recipe.paper,
        "dataset": {"name": config["dataset"], "fingerprint": config["data"].get("fingerprint")},
        "env_id": config.get("env_id"),
        "checkpoint": {"which": run.which, "step": run.step},
        "score": score_of(run),
        "inputs": [asdict(slot) for slot in policy.inputs],
        "state": [asdict(slot) for slot in policy.state],
        "action": {**asdict(policy.action), **_space(run)},
        "normalization": normalization,
        "hyperparameters": config["hyperparameters"],
        "trained_with": {k: config.get(k) for k in ("versions", "git_commit")},
        "written_with": {"versions": versions(), "git_commit": git_commit()},
        "verified": None,
    }


def _space(run: Trained) -> dict[str, Any]:
    if isinstance(run.problem.space, Bounded):
        return {k: getattr(run.problem.space, k).tolist() for k in ("low", "high")}
    return {"n": run.problem.n_actions}


def score_of(run: Trained) -> dict[str, Any] | None:
    """Of the recorded evaluation of this policy, over its episodes."""
    if run.recorded is None:
        return None
    mean = float(run.recorded.returns.mean())
    episodes = run.recorded.returns.shape[1]
    return {"return": mean, "normalized": run.normalized(mean), "episodes": episodes}


def example(run: Trained, chosen: Format, about: dict[str, Any]) -> str:
    """Python that takes one action, to be run in the folder."""
    lines = [chosen.reader.rstrip("\n"), ""]
    target = f"{run.hyper.target_returns[0]:g}" if run.recipe.sequence else ""
    notes = {
        "observation": ("0.0", "as the environment gives it"),
        "return_to_go": (target, "still to be earned: subtract each reward"),
    }
    for slot in about["inputs"]:
        value, note = notes[slot["name"]]
        lines.append(_assignment(slot, value, note))
    lines += [_assignment(slot, "0", "where an episode starts") for slot in about["state"]]
    state = [slot["name"] for slot in about["state"]]
    given = ", ".join([slot["name"] for slot in about["inputs"]] + state)
    lines.append(f"{', '.join(['action', *state])}{'' if state else ','} = policy({given})")
    return "\n".join(lines)


def _assignment(slot: dict[str, Any], value: str, note: str) -> str:
    shape = "".join(f", {size}" for size in slot["shape"])
    filled = f"numpy.full((1{shape or ','}), {value}, {slot['dtype']!r})"
    return f"{slot['name']} = array({filled})  # {note}"
